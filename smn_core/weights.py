"""A checkpoint on disk -> finite weights in a timm model, and what was left out of it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from smn_core.errors import InvalidWeights
from smn_core.files import open_regular

# Where published checkpoints keep the weights, best first (DINO's teacher is the network it publishes).
NESTS = ("state_dict_ema", "model_ema", "teacher", "state_dict", "model_state_dict", "model", "student")
PREFIXES = (
    "module.",
    "backbone.",
    "_orig_mod.",
    "model.",
    "encoder.",
    "teacher.",
    "student.",
    "base_encoder.",
    "encoder_q.",
)
CLASSIFIERS = frozenset({"head", "head_dist", "fc", "classifier", "last_linear"})

FILLS = frozenset({Tensor.normal_, Tensor.uniform_, Tensor.erfinv_})


class Unfilled(TorchFunctionMode):
    """A model that is built inside has no random weights: filling a ViT-B took 1.1 s, and a file replaces them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func in FILLS else func(*args, **(kwargs or {}))


def load_weights(model: nn.Module, path: Path | str) -> list[str]:
    """Load a safetensors file or a `weights_only` checkpoint into `model`; returns the keys that were ignored.

    Prefixes of wrappers (`module.`, `backbone.`) are taken off. Ignored are classifiers and modules that the model does
    not have (projection heads, prototypes, decoders); anything else that does not fit is an error.

    Raises:
        InvalidWeights: the file cannot be read, or keys are missing, left over or of another shape (the message
            says which).
    """
    path = Path(path)
    expected = model.state_dict()
    found = _unwrap(_read(path), expected, path)
    ignored = sorted(key for key in set(found) - set(expected) if _may_be_ignored(key, model))
    unexpected = sorted(set(found) - set(expected) - set(ignored))
    # Counters of batches seen are absent from old checkpoints and mean nothing to inference.
    missing = sorted(key for key in set(expected) - set(found) if not key.endswith("num_batches_tracked"))
    wrong = sorted(k for k in set(expected) & set(found) if expected[k].shape != found[k].shape)
    problems = [
        f"{title} {_some(keys)}" for title, keys in (("missing", missing), ("unexpected", unexpected)) if keys
    ] + [f"{key} is {list(found[key].shape)}, the model's is {list(expected[key].shape)}" for key in wrong[:3]]
    if problems:
        raise InvalidWeights(f"{path} does not fit {type(model).__name__}: {'; '.join(problems)}")
    model.load_state_dict({**expected, **{key: found[key] for key in expected if key in found}})
    return ignored


def require_finite(model: nn.Module, whose: str) -> None:
    """Refuse weights and statistics with a NaN or an infinity: every embedding would be NaN.

    Raises:
        InvalidWeights: it says whose weights they are, and names the first tensor.
    """
    for name, tensor in model.state_dict().items():
        # A sum is not finite where one value is not, and takes a tenth of the time; finite values may overflow in it.
        if tensor.is_floating_point() and not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
            raise InvalidWeights(f"{whose}: {name} has a value that is not finite")


def _read(path: Path) -> Mapping[str, object]:
    try:
        open_regular(path).close()  # both libraries would wait for a pipe's writer
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # of a pickle protocol, before the error
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InvalidWeights(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # the unpickler meets other formats with IndexError, KeyError, AssertionError, ...
        # Of torch's own words the first sentence alone: the others advise to let a file run code.
        # A word alone is a byte or an opcode, which says nothing to who gave the file.
        reason = (str(error).splitlines() or [""])[0].split(". ")[0]
        raise InvalidWeights(
            f"{path} is neither a safetensors file (named .safetensors) nor a checkpoint that loads with weights_only"
            f"{f': {reason}' if ' ' in reason else ''}"
        ) from error


def _unwrap(checkpoint: object, expected: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The table of weights inside a checkpoint, its keys without the prefixes of wrappers."""
    tables = [checkpoint] + [checkpoint[k] for k in NESTS if isinstance(checkpoint, Mapping) and k in checkpoint]
    candidates = [_strip(table, expected) for table in tables if isinstance(table, Mapping)]
    best = max(candidates, key=lambda table: len(set(table) & set(expected)), default={})
    if not set(best) & set(expected):
        raise InvalidWeights(f"{path} holds no weight of the backbone: is it for another architecture?")
    return best


def _strip(table: Mapping[str, object], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take prefixes off until no further one makes more keys match."""
    weights = {str(key): value for key, value in table.items() if isinstance(value, Tensor)}

    def matches(keys: Mapping[str, Tensor]) -> int:
        return len(set(keys) & set(expected))

    while True:
        shorter = [{key.removeprefix(p): value for key, value in weights.items()} for p in PREFIXES]
        best = max(shorter, key=lambda keys: (matches(keys), -sum(map(len, keys))))
        gained = matches(best) > matches(weights) or (matches(weights) == 0 and best.keys() != weights.keys())
        if not gained:
            return weights
        weights = best


def _may_be_ignored(key: str, model: nn.Module) -> bool:
    """Whether a key that the model does not have belongs to a head or to a module that was thrown away."""
    if "." not in key:
        return key == "mask_token"
    top = key.split(".", maxsplit=1)[0]
    return top in CLASSIFIERS or not hasattr(model, top)


def _some(keys: list[str]) -> str:
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(keys[:3]) + more

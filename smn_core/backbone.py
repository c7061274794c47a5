"""A timm model by name and weights: build, load, fingerprint, freeze; and how pixels become its input."""

from __future__ import annotations

import difflib
import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import huggingface_hub
import numpy as np
import timm
import torch
from timm.data.config import resolve_model_data_config
from torch import nn

from smn_core.contextual.classes import Theta
from smn_core.errors import InvalidArgument, InvalidMask, InvalidWeights, UnknownModel, WeightsUnavailable
from smn_core.layout import Layout, layout_of
from smn_core.precision import slow_on_cpu
from smn_core.spec import BackboneSpec
from smn_core.tensorfile import InvalidTensorFile, canonical_json, parse_json
from smn_core.weights import Unfilled, load_weights, require_finite

LOG = logging.getLogger("smn.backbone")
PREPROCESS_KEYS = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
MIN_CROP_PCT = 0.25
MAX_IMAGE_PX = 4096
HUB_TIMEOUT_S = 5
MAX_ARGUMENT, MAX_ARGUMENTS = 8192, 64
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen model in evaluation mode, `model(x [N,3,H,W]) -> embeddings [N, n_features]`, and its identity.

    `preprocess` holds timm's `input_size, mean, std, interpolation, crop_pct, crop_mode`. `ignored` lists the keys of
    the weights file that the backbone has no place for. `theta` says what codec `context` must know of the weights; it
    is None where they are in another process.
    """

    model: nn.Module
    architecture: str
    args: Mapping[str, Any]
    fingerprint: str
    layout: Layout
    preprocess: Mapping[str, Any]
    device: torch.device
    dtype: torch.dtype
    ignored: tuple[str, ...] = ()
    theta: Theta | None = None

    @cached_property
    def model_json(self) -> str:
        """The `model` key of smn-mask/1."""
        return model_json(self.architecture, self.args)

    @property
    def n_features(self) -> int:
        return self.layout.n_features


def load_backbone(spec: BackboneSpec) -> Backbone:
    """Build the model, load its weights, take the fingerprint, then fit it to the image size, device and dtype.

    Raises:
        UnknownModel, InvalidArgument: the name, an argument, the device or the image size cannot be used.
        InvalidWeights, WeightsUnavailable: as `load_weights`, or timm's pretrained weights cannot be fetched; or a
            weight is not finite (the message names its tensor), or the embedding of a first image.
    """
    device, dtype = _device(spec.device), _dtype(spec.dtype)
    if (slow := slow_on_cpu(dtype, device)) is not None:
        LOG.warning("--dtype %s: %s", spec.dtype, slow)
    architecture = spec.name.split(".")[0]
    ignored: list[str] = []
    if spec.weights is not None:
        with Unfilled():
            model = _create(spec.name, spec.args)
        ignored = load_weights(model, spec.weights)
    else:
        model = _create_pretrained(spec.name, spec.args)
    return wrap(model, architecture, spec, ignored=ignored, device=device, dtype=dtype)


def wrap(
    model: nn.Module,
    architecture: str,
    spec: BackboneSpec,
    *,
    ignored: list[str] | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Backbone:
    """The Backbone of a model whose weights are in place, in float32 on the CPU. Takes the model over.

    Raises:
        InvalidArgument, InvalidWeights: as `load_backbone`.
    """
    whose = str(spec.weights or f"the weights of {architecture}")
    require_finite(model, whose)
    fingerprint = fingerprint_of(model, model_json(architecture, spec.args))
    preprocess = _preprocess(model, spec)
    layout = layout_of(model)
    device = device or torch.device("cpu")
    rounded = dtype != torch.float32
    theta = Theta(dict(model.named_parameters()), layout, rounded=True) if rounded else None
    model = model.to(device=device, dtype=dtype).eval().requires_grad_(False)
    if dtype == torch.float16:  # the one type with a smaller range than the weights' own
        require_finite(model, f"{whose}, as float16")
    theta = theta or Theta(dict(model.named_parameters()), layout, rounded=False)
    backbone = Backbone(
        model,
        architecture,
        dict(spec.args),
        fingerprint,
        layout,
        preprocess,
        device,
        dtype,
        tuple(ignored or ()),
        theta,
    )
    _require_embeddings(backbone)
    return backbone


@torch.inference_mode()
def _require_embeddings(backbone: Backbone) -> None:
    """Embed one black image: whether a size, a type or a pooling works is known before the first real one comes.

    Raises:
        InvalidArgument: the model cannot take images of its size, or gives something else than one vector each.
        InvalidWeights: the vector is not finite.
    """
    size = backbone.preprocess["input_size"]
    try:
        z = backbone.model(torch.zeros(1, *size, device=backbone.device, dtype=backbone.dtype))
    except Exception as error:  # models say no with RuntimeError, AssertionError, ValueError, ...
        raise InvalidArgument(
            f"{backbone.architecture} cannot embed images of {size[-1]} px: {(str(error).splitlines() or [''])[0]}"
        ) from error
    if not isinstance(z, torch.Tensor) or z.shape != (1, backbone.n_features):
        raise InvalidArgument(f"{backbone.architecture} with {dict(backbone.args)} does not give one vector an image")
    if not torch.isfinite(z).all():
        dtype = str(backbone.dtype).removeprefix("torch.")
        raise InvalidWeights(
            f"{backbone.architecture} in {dtype} gives a black image an embedding that is not finite: "
            + ("its weights are no trained network's" if dtype == "float32" else "try --dtype float32")
        )


def model_json(architecture: str, args: Mapping[str, Any]) -> str:
    """Canonical JSON that names a backbone's architecture."""
    return canonical_json({"architecture": architecture, "args": dict(args)})


def fingerprint_of(model: nn.Module, model_text: str) -> str:
    """Hex sha256 over the model's name and every floating tensor of its state dict (docs/formats.md)."""
    digest = hashlib.sha256(f"{model_text}\n".encode())
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.is_floating_point():
            digest.update(f"{name}|{list(tensor.shape)}|".encode())
            values = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
            digest.update(np.ascontiguousarray(values, "<f4").data)
    return digest.hexdigest()


@lru_cache(maxsize=8)
def layout_for(model_text: str) -> Layout:
    """The layout of the architecture that a mask file's `model` key names, built without memory for its weights.

    Raises:
        InvalidMask: the text is not the canonical JSON of an architecture, or timm cannot build it.
        UnknownModel: timm does not have it.
    """
    architecture, args = parse_model(model_text)
    _require_modest(args)
    try:
        with torch.device("meta"):
            model = _create(architecture, args)
        return layout_of(model)
    except InvalidArgument as error:
        raise InvalidMask(f"metadata key 'model': {error}") from error


def _require_modest(args: object) -> None:
    """A stranger's file must not build for hours: no real argument of a model is a larger number or a longer list."""
    if isinstance(args, dict | list):
        if len(args) > MAX_ARGUMENTS:
            raise InvalidMask(f"metadata key 'model' has {len(args)} arguments in one place")
        for value in args.values() if isinstance(args, dict) else args:
            _require_modest(value)
    elif isinstance(args, int | float) and abs(args) > MAX_ARGUMENT:
        raise InvalidMask(f"metadata key 'model' has the argument {args}: no model is built with that")


def parse_model(model_text: str) -> tuple[str, dict[str, Any]]:
    """Architecture and arguments of a mask file's `model` key.

    Raises:
        InvalidMask: it is not the canonical JSON of an architecture without a tag, and its arguments.
    """
    try:
        named: Any = parse_json(model_text)
        architecture, args = named["architecture"], named["args"]
    except InvalidTensorFile as error:
        raise InvalidMask(f"metadata key 'model' {error}") from error
    except (TypeError, KeyError) as error:
        raise InvalidMask("metadata key 'model' does not name an architecture and its args") from error
    if not isinstance(architecture, str) or not isinstance(args, dict) or model_json(architecture, args) != model_text:
        raise InvalidMask("metadata key 'model' is not the canonical JSON of an architecture and its args")
    if "." in architecture:
        raise InvalidMask(f"metadata key 'model': {architecture} has a tag, the format has none")
    return architecture, args


def _create(name: str, args: Mapping[str, Any], **extra: Any) -> nn.Module:
    _require_known(name)
    if reserved := sorted(
        {"num_classes", "pretrained", "checkpoint_path", "pretrained_cfg", "cache_dir", "features_only"} & set(args)
    ):
        raise InvalidArgument(f"{reserved[0]} cannot be a model argument")
    try:
        return timm.create_model(name, num_classes=0, **args, **extra)
    except (
        TypeError,
        ValueError,
        AssertionError,
        RuntimeError,
        KeyError,
        AttributeError,
        IndexError,
        ArithmeticError,
    ) as error:
        raise InvalidArgument(f"timm cannot build {name} with {dict(args) or 'no arguments'}: {error}") from error


def _require_known(name: str) -> None:
    architecture = name.split(".", maxsplit=1)[0]
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3, cutoff=0.5)
        hint = f"; near it: {', '.join(near)}" if near else ""
        raise UnknownModel(f"timm {timm.__version__} has no model {architecture!r}{hint}")
    try:
        timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:
        tags = timm.list_pretrained(f"{architecture}.*")
        raise UnknownModel(f"timm {timm.__version__} has no weights {name!r}; it has {', '.join(tags)}") from error


def _create_pretrained(name: str, args: Mapping[str, Any]) -> nn.Module:
    _require_known(name)
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise WeightsUnavailable(f"timm has no pretrained weights for {name}: name a file with --weights")
    if config.hf_hub_id and not _in_hub_cache(config.hf_hub_id):
        _require_hub(name)
    try:
        return _create(name, args, pretrained=True)
    except OSError as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsUnavailable(
            f"the pretrained weights of {name} could not be fetched: name a file with --weights ({reason})"
        ) from error


def _in_hub_cache(repository: str) -> bool:
    files = ("model.safetensors", "pytorch_model.bin")
    return any(isinstance(huggingface_hub.try_to_load_from_cache(repository, file), str) for file in files)


def _require_hub(name: str) -> None:
    """Ask the hub for a sign of life first: a download retries for most of a minute before it gives up."""
    try:
        huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=HUB_TIMEOUT_S)
    except Exception as error:  # the session raises its HTTP library's own errors, which differ by version
        raise WeightsUnavailable(
            f"the hub with the pretrained weights of {name} cannot be reached: name a file with --weights"
        ) from error


def _preprocess(model: nn.Module, spec: BackboneSpec) -> dict[str, Any]:
    """timm's own data configuration with what the spec overrides; sets the model's input size where it is fixed."""
    config = resolve_model_data_config(model)
    preprocess = {key: config[key] for key in PREPROCESS_KEYS}
    if "img_size" in spec.args:
        preprocess["input_size"] = (3, *_two(spec.args["img_size"]))
    if spec.image_size is not None:
        _set_input_size(model, spec.image_size)
        preprocess["input_size"] = (3, spec.image_size, spec.image_size)
    for key, value in (("mean", spec.mean), ("std", spec.std)):
        if value is not None:
            preprocess[key] = _three(key, value)
    if spec.crop_pct is not None:
        preprocess["crop_pct"] = _crop_pct(spec.crop_pct)
    return preprocess


def _set_input_size(model: nn.Module, size_px: int) -> None:
    if not 1 <= size_px <= MAX_IMAGE_PX:
        raise InvalidArgument(f"--image-size {size_px}: it must be at least 1 px and at most {MAX_IMAGE_PX}")
    if hasattr(model, "set_input_size"):
        try:
            model.set_input_size(img_size=(size_px, size_px))  # type: ignore[operator]
        except (AssertionError, ValueError, RuntimeError, ZeroDivisionError) as error:
            raise InvalidArgument(f"{type(model).__name__} cannot take images of {size_px} px: {error}") from error


def _two(size: Any) -> tuple[int, int]:
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return int(height), int(width)


def _three(key: str, value: tuple[float, ...]) -> tuple[float, ...]:
    triple = tuple(value) * 3 if len(value) == 1 else tuple(value)
    if len(triple) != 3 or not np.isfinite(triple).all() or (key == "std" and min(triple) <= 0):
        raise InvalidArgument(f"--{key} takes one or three numbers{' above 0' if key == 'std' else ''}, not {value}")
    return triple


def _crop_pct(value: float) -> float:
    """Raises InvalidArgument: an image would be blown up to many times what is seen of it, or padded."""
    if not MIN_CROP_PCT <= value <= 1:
        raise InvalidArgument(f"--crop-pct {value}: a share of the shorter side, {MIN_CROP_PCT} to 1")
    return value


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
        if device.type == "meta":
            raise RuntimeError("it holds no values")
    except (RuntimeError, AssertionError) as error:
        raise InvalidArgument(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise InvalidArgument(f"unknown dtype {name!r}: choose {', '.join(DTYPES)}")
    return DTYPES[name]


def require_dimensions(dimensions: int | None, width: int) -> None:
    """Raise InvalidArgument unless an embedding has so many components."""
    if dimensions is not None and not 1 <= dimensions <= width:
        raise InvalidArgument(f"dimensions {dimensions}: an embedding has {width}")

"""theta', state and map of a mask as one ONNX graph: leave for any runtime, with the same embeddings."""

from __future__ import annotations

import copy
import logging
import tempfile
import warnings
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from numpy import ndarray
from torch import Tensor, nn

from smn_core.affine import Affine
from smn_core.backbone import Backbone
from smn_core.engine import Engine, Segment
from smn_core.errors import InvalidArgument, InvalidMask
from smn_core.files import write_bytes
from smn_core.mask import Head, TaskMask
from smn_core.spaces import space_of_mask
from smn_core.tensorfile import canonical_json
from smn_core.verbs.export import masked_weights

WRITERS, CHECKER = ("onnx", "onnxscript"), "onnxruntime"
MOST_BYTES = 2**31 - 2**24
"""Of weights: protobuf ends at 2 GiB, and the graph needs a little of it."""
LARGEST_ERROR = 1e-5
"""Relative, of the graph's embeddings from the engine's."""
N_EXPORTED, N_CHECKED = 2, 3
"""Images of the trace and of the check: two numbers, so that the check sees whether the batch is free."""


class Masked(nn.Module):
    """`images [n,3,H,W] -> (z', logits)`: the model with theta', then the map; logits only with a head.

    Map and head are modules: as plain parameters their names, `mean` among them, are also those of torch's nodes.
    """

    def __init__(self, backbone: Backbone, mask: TaskMask, *, with_map: bool, with_head: bool) -> None:
        super().__init__()
        self.model = copy.deepcopy(backbone.model).eval()
        weights = masked_weights(backbone, mask)
        self.model.load_state_dict({name: torch.from_numpy(values) for name, values in weights.items()})
        self.affine = Mapped(mask.affine) if with_map and mask.affine is not None else None
        self.head = Classes(mask.head) if with_head and mask.head is not None else None

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        z = self.model(images)
        if self.affine is not None:
            z = self.affine(z)
        return z if self.head is None else (z, self.head(z))


class Mapped(nn.Module):
    """`(z - mean) * scale` or `(z - mean) @ matrix.T`: no bias of the two, as timm's classifier needs it."""

    def __init__(self, affine: Affine) -> None:
        super().__init__()
        self.mean = _constant(affine.mean)
        self.is_diagonal = affine.scale is not None
        self.by = _constant(affine.full if affine.scale is None else affine.scale)

    def forward(self, z: Tensor) -> Tensor:
        centred = z - self.mean
        return centred * self.by if self.is_diagonal else centred @ self.by.T


class Classes(nn.Module):
    """`z' @ weight.T + bias`."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.weight, self.bias = _constant(head.weight), _constant(head.bias)

    def forward(self, z: Tensor) -> Tensor:
        return z @ self.weight.T + self.bias


def export_onnx(
    backbone: Backbone, mask: TaskMask, out: Path, *, with_head: bool = False, with_map: bool = True
) -> float | None:
    """Write the graph: `images` [n,3,H,W] float32, normalised, to `embeddings` [n,D], and with a head `logits` [n,C].

    The file's metadata properties say what `images` must be (`smn.preprocess`), and which space the embeddings are in.
    `backbone` is float32 on the CPU; an engine owns it afterwards.

    Returns:
        The relative error of ONNX Runtime's embeddings from the engine's; None where ONNX Runtime is not installed.

    Raises:
        InvalidArgument: a package of the extra is not there, another suffix, a model that is too large for one file or
            that torch cannot trace, or the graph does not give the engine's embeddings. Nothing is written then.
        InvalidMask, WrongBackbone: a head is asked for and there is none; the mask is for another backbone.
    """
    if out.suffix != ".onnx":
        raise InvalidArgument(f"--out {out}: an ONNX graph is written, so name it .onnx")
    if with_head and mask.head is None:
        raise InvalidMask("the mask has no head to export")
    if with_head and not with_map and mask.affine is not None:
        raise InvalidArgument("--head with --no-map: the head acts on mapped embeddings, so leave one of them out")
    require_writers()
    n_bytes = sum(4 * tensor.numel() for tensor in backbone.model.state_dict().values())
    if n_bytes > MOST_BYTES:
        raise InvalidArgument(f"{backbone.architecture} has {n_bytes:,} bytes of weights, an ONNX file holds 2 GiB")
    model = Masked(backbone, mask, with_map=with_map, with_head=with_head)
    graph = trace(model, tuple(backbone.preprocess["input_size"]), facts_of(backbone, mask, with_map=with_map))
    error = None
    if find_spec(CHECKER) is not None:
        error = error_of(graph, backbone, mask, with_map=with_map)
        if not error <= LARGEST_ERROR:
            raise InvalidArgument(
                f"ONNX Runtime's embeddings are {error:.1e} from the engine's, more than {LARGEST_ERROR:g}: the graph "
                "was not written; take the weights, --format safetensors"
            )
    write_bytes(out, graph)
    return error


def require_writers() -> None:
    """Raise InvalidArgument where a package that writes graphs is not there."""
    missing = [name for name in WRITERS if find_spec(name) is None]
    if missing:
        raise InvalidArgument(
            f"--format onnx needs {' and '.join(missing)}, of the extra onnx: uv pip install -e '.[onnx]'"
        )


def facts_of(backbone: Backbone, mask: TaskMask, *, with_map: bool) -> dict[str, str]:
    """What the graph's metadata properties say: whose embeddings these are, and of which pixels."""
    told = {
        "smn.model": mask.model,
        "smn.fingerprint": mask.fingerprint,
        "smn.mask": mask.digest or "",
        "smn.preprocess": canonical_json(dict(backbone.preprocess)),
    }
    if with_map or mask.affine is None:
        told["smn.space"] = space_of_mask(backbone, mask)
    if mask.head is not None:
        told["smn.classes"] = canonical_json(list(mask.head.classes))
    return told


def trace(model: Masked, size: tuple[int, ...], facts: dict[str, str]) -> bytes:
    """The graph's bytes, for any number of images of `size` [3,H,W].

    Raises:
        InvalidArgument: torch cannot trace the model, or only for one number of images.
    """
    import onnx

    outputs = ["embeddings"] if model.head is None else ["embeddings", "logits"]
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it names operators of packages that are not there
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of its own code
        file = Path(folder) / "model.onnx"
        try:
            torch.onnx.export(
                model, (torch.zeros(N_EXPORTED, *size),), file, dynamo=True, optimize=False, external_data=False,
                verbose=False, input_names=["images"], output_names=outputs,
                dynamic_shapes=({0: torch.export.Dim("n")},),
            )  # fmt: skip
        except torch.onnx.OnnxExporterError as error:
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            first = next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
            raise InvalidArgument(
                f"torch cannot make a graph of this model ({first[:200]}); take its weights, --format safetensors"
            ) from error
        proto: Any = onnx.load(file)
    del proto.metadata_props[:]
    onnx.helper.set_model_props(proto, facts)
    proto.graph.doc_string = ""
    data: bytes = proto.SerializeToString()
    return data


def error_of(graph: bytes, backbone: Backbone, mask: TaskMask, *, with_map: bool) -> float:
    """The relative error of ONNX Runtime's embeddings from the engine's, on images of seeded noise; never below 0."""
    x = torch.randn(N_CHECKED, *backbone.preprocess["input_size"], generator=torch.Generator().manual_seed(0))
    found = run(graph, x.numpy())
    worn = mask if with_map or mask.affine is None else _without_map(mask)
    engine = Engine(backbone, slots=1)
    engine.prepare(worn)
    assert worn.digest is not None
    wanted = engine.embed(x, [Segment(worn.digest, 0, N_CHECKED)]).embeddings.cpu().numpy()
    if not np.isfinite(found).all():
        return float("inf")
    return float(np.linalg.norm(found - wanted) / max(float(np.linalg.norm(wanted)), 1e-30))


def run(graph: bytes, images: Float32[ndarray, "n c h w"]) -> Float32[ndarray, "n d"]:
    """The embeddings that ONNX Runtime gives on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["embeddings"], {"images": images})[0], np.float32)


def _without_map(mask: TaskMask) -> TaskMask:
    return replace(mask, affine=None, head=None, digest=f"{mask.digest}-unmapped")


def _constant(values: ndarray) -> nn.Parameter:
    return nn.Parameter(torch.from_numpy(values.copy()).float(), requires_grad=False)

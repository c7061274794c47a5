"""What a user would take instead of torch for one model a task: the same timm model in ONNX Runtime and in OpenVINO."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

NEEDS = {"onnxruntime": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino")}
"""The packages that each runtime needs here, by its name."""
Embed = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Images [n,3,H,W] to embeddings [n,D]."""


def export(model: nn.Module, size: tuple[int, ...]) -> bytes:
    """A timm model as an ONNX graph for any number of images.

    Args:
        size: of an image, [3,H,W].
    """
    import onnx

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it names operators of packages that are not there
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        file = Path(folder) / "model.onnx"
        # Not optimised: folded weights could not be replaced. The runtimes fold when they load.
        torch.onnx.export(
            model, (torch.zeros(2, *size),), file, dynamo=True, optimize=False, external_data=False, verbose=False,
            input_names=["images"], output_names=["embeddings"], dynamic_shapes=({0: torch.export.Dim("n")},),
        )  # fmt: skip
        proto = onnx.load(file)
    if missing := dict(model.named_parameters()).keys() - {tensor.name for tensor in proto.graph.initializer}:
        raise RuntimeError(f"the exported graph has no {sorted(missing)[0]}")
    data: bytes = proto.SerializeToString()
    return data


class Graph:
    """An exported graph whose weights can be replaced."""

    def __init__(self, data: bytes) -> None:
        import onnx

        self._proto: Any = onnx.load_from_string(data)
        self._weights = {tensor.name: tensor for tensor in self._proto.graph.initializer}

    def with_weights(self, weights: Mapping[str, Tensor]) -> bytes:
        """The graph with these weights, by their names in timm."""
        for name, tensor in weights.items():
            if name in self._weights:
                self._weights[name].raw_data = tensor.contiguous().numpy().tobytes()
        data: bytes = self._proto.SerializeToString()
        return data


def open_model(runtime: str, graph: bytes, *, dtype: str = "float32", n_images: int | None = None) -> Embed:
    """A graph, optimised by its runtime and ready to run on one thread.

    Args:
        dtype: `float32`, or `bfloat16` (OpenVINO alone: ONNX Runtime has no bfloat16 for processors of this kind).
        n_images: of every batch, where it is always the same.
    """
    return _openvino(graph, dtype, n_images) if runtime == "openvino" else _onnxruntime(graph, n_images)


def _onnxruntime(graph: bytes, n_images: int | None) -> Embed:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if n_images is not None:
        options.add_free_dimension_override_by_name("n", n_images)
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return lambda x: np.asarray(session.run(None, {"images": x})[0])


def _openvino(graph: bytes, dtype: str, n_images: int | None) -> Embed:
    import openvino

    core = openvino.Core()
    model = core.read_model(graph)
    if n_images is not None:
        model.reshape([n_images, *model.input(0).partial_shape[1:]])
    precision = {"float32": "f32", "bfloat16": "bf16"}[dtype]
    settings = {
        "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
    }  # fmt: skip
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    return lambda x: np.array(request.infer([x], share_inputs=True)[0], np.float32)

"""Write the golden files beside this script with the independent writer: `python tests/golden/make.py`.

Weights, bits, state and head come from numpy alone, so the fingerprint does not depend on torch's random numbers.
Write them again only when the format itself changes, and then under a new name.
"""

import hashlib
from pathlib import Path

import independent
import numpy as np
import timm
import torch

HERE = Path(__file__).parent
MODEL_JSON = independent.model_json("test_resnet")
CLASSES = ("bee", "daisy", "fern")
PREPROCESS = {
    "input_size": [3, 160, 160],
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "interpolation": "bilinear",
    "crop_pct": 0.95,
    "crop_mode": "center",
}


def model() -> torch.nn.Module:
    """timm's test_resnet with uniform weights, drawn in the order of sorted names."""
    rng = np.random.Generator(np.random.PCG64(2024))
    found = timm.create_model("test_resnet", pretrained=False, num_classes=0).eval()
    weights = found.state_dict()
    for name in sorted(weights):
        if weights[name].is_floating_point():
            values = rng.random(tuple(weights[name].shape)).astype(np.float32)
            weights[name] = torch.from_numpy(values if name.endswith("running_var") else values - np.float32(0.5))
    found.load_state_dict(weights)
    return found


def bits(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Nine weights of ten ON, at random, tensors in the order of the layout."""
    rng = np.random.Generator(np.random.PCG64(2409))
    return {name: rng.random(shape) < 0.9 for name, shape in shapes.items()}


def state(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """A running statistic n of k values is (n + 1) / 8, (n + 2) / 8, ..."""
    names = sorted(name for name in model.state_dict() if name.endswith(("running_mean", "running_var")))
    sizes = [model.state_dict()[name].numel() for name in names]
    return {
        n: (np.arange(i + 1, i + 1 + k) / 8).astype(np.float32)
        for i, (n, k) in enumerate(zip(names, sizes, strict=True))
    }


def head(model: torch.nn.Module) -> tuple[np.ndarray, np.ndarray]:
    width = model.num_features
    weight = np.arange(len(CLASSES) * width, dtype=np.float32).reshape(len(CLASSES), width) / 256
    return weight, np.array([-1.0, 0.0, 1.0], np.float32)


def affine(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """An int8 map: `matrix[i, j] = (3 i + j) mod 255 - 127`, and row i is multiplied by `(1 + i) / 1024`."""
    width = model.num_features
    matrix = (3 * np.arange(width)[:, None] + np.arange(width)) % 255 - 127
    mean, scale = np.arange(width) / 8, (1 + np.arange(width)) / 1024
    return {
        "mean": mean.astype(np.float32),
        "matrix": matrix.astype(np.int8),
        "matrix_scale": scale.astype(np.float32),
    }


def cascade(theta: torch.nn.Module, root: bytes, expert: bytes) -> bytes:
    """Two experts, both modes: int8 components in one, float16 in the other; numbers without any meaning."""
    rng = np.random.Generator(np.random.PCG64(2410))
    width, n_reduced, n_components = theta.num_features, 3, 4

    def uniform(*shape: int) -> np.ndarray:
        return (rng.random(shape) - 0.5).astype(np.float32)

    router = {
        "mean": uniform(width),
        "components": uniform(n_reduced, width),
        "scale": 1 + uniform(n_reduced),
        "weights": np.array([0.25, 0.75], np.float32),
        "means": uniform(2, n_reduced),
        "precisions_cholesky": np.triu(uniform(2, n_reduced, n_reduced)) + 2 * np.eye(n_reduced, dtype=np.float32),
    }
    whole = {
        "mean": uniform(3 * width),
        "components": rng.integers(-127, 128, (n_components, 3 * width)).astype(np.int8),
        "components_scale": (1 + uniform(n_components)) / 128,
        "scale": 1 + uniform(n_components),
    }
    picked = {
        "mean": uniform(3 * width),
        "components": uniform(n_components, 3 * width).astype(np.float16),
        "scale": 1 + uniform(n_components),
    }
    names = [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in (root, expert)]
    return independent.write_cascade(
        independent.fingerprint(theta, MODEL_JSON),
        names[0],
        [names[1], names[0]],
        "pca",
        "conditional",
        {"unconditional": whole, "conditional": picked},
        router,
        dataset="flowers of the field",
    )


def files() -> dict[str, bytes]:
    """Every golden file by name: the same bits under both codecs, what is optional in one of them alone, and a map."""
    theta = model()
    on = bits(independent.layout(theta))
    texts = {
        "objective": "supervised",
        "dataset": "flowers of the field",
        "metrics": independent.canonical({"knn": 0.75}),
        "preprocess": independent.canonical(PREPROCESS),
        "classes": independent.canonical(list(CLASSES)),
    }
    raw = independent.write(theta, MODEL_JSON, on, codec="raw", state=state(theta), head=head(theta), **texts)
    # Another version of the compressor may make another frame: the cascade names the file that is kept.
    zstd = independent.write(theta, MODEL_JSON, on, codec="zstd")
    kept = HERE / "zstd.smn"
    beside = cascade(theta, raw, kept.read_bytes() if kept.exists() else zstd)
    mapped = independent.write(theta, MODEL_JSON, on, codec="raw", affine=affine(theta))
    return {"raw.smn": raw, "zstd.smn": zstd, "affine.smn": mapped, "cascade.safetensors": beside}


if __name__ == "__main__":
    for name, data in files().items():
        (HERE / name).write_bytes(data)
        print(f"{name}: {len(data)} bytes")

"""A second smn-mask/1, written from docs/formats.md alone: slow, short, and without one import of the project.

Tests hold it against smn_core bit for bit, so neither can drift from the written format without the other noticing.
"""

import hashlib
import itertools
import json
import math
import struct
from collections.abc import Iterable, Mapping
from typing import Any

import context
import numpy as np
import safetensors
import torch
import zstandard

DTYPES = {"U8": np.uint8, "I8": np.int8, "F32": np.float32, "F16": np.float16, "F64": np.float64, "I64": np.int64}
BLOCK_LAYERS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")

Tensors = Mapping[str, np.ndarray]


def canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def model_json(architecture: str, **arguments: object) -> str:
    return canonical({"architecture": architecture, "args": arguments})


def fingerprint(model: torch.nn.Module, model_json: str) -> str:
    sha = hashlib.sha256(f"{model_json}\n".encode())
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.is_floating_point():
            sha.update(f"{name}|{list(tensor.shape)}|".encode())
            sha.update(tensor.detach().cpu().numpy().astype("<f4").tobytes(order="C"))
    return sha.hexdigest()


def layout(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of the maskable parameters by name, in the order of the file."""
    kind = type(model).__name__
    if kind == "ResNet":
        layers: tuple[type, ...] = (torch.nn.Conv2d,)
    else:
        layers = (torch.nn.Conv2d, torch.nn.Linear)
    weights = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, layers)}

    def maskable(name: str) -> bool:
        if kind in ("VisionTransformer", "VisionTransformerDistilled"):
            first, _, inside = name.partition(".")
            return first == "blocks" and inside.partition(".")[2].rpartition(".")[0] in BLOCK_LAYERS
        return name in weights or (kind == "ResNet" and "downsample" in name.split("."))

    return {name: tuple(p.shape) for name, p in model.named_parameters() if maskable(name)}


def layout_digest(layout: Mapping[str, tuple[int, ...]]) -> str:
    return hashlib.sha256("".join(f"{name}|{list(shape)}\n" for name, shape in layout.items()).encode()).hexdigest()


def content(metadata: Mapping[str, str], tensors: Tensors) -> str:
    sha = hashlib.sha256()
    for key in sorted(set(metadata) - {"content"}):
        sha.update(f"{key}={metadata[key]}\n".encode())
    names = {np.dtype(numpy): name for name, numpy in DTYPES.items()}
    for name in sorted(tensors):
        array = tensors[name]
        sha.update(f"{name}|{names[array.dtype]}|{list(array.shape)}|".encode() + array.tobytes(order="C"))
    return sha.hexdigest()


def container(metadata: Mapping[str, str], tensors: Tensors) -> bytes:
    """The safetensors file of these tensors, its header written by hand so that it is the same on every run."""
    names = {np.dtype(numpy): name for name, numpy in DTYPES.items()}
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    body = b""
    for name in sorted(tensors, key=lambda name: (-tensors[name].itemsize, name)):
        data = tensors[name].tobytes(order="C")
        header[name] = {
            "dtype": names[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [len(body), len(body) + len(data)],
        }
        body += data
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body


def pack(bits: np.ndarray) -> np.ndarray:
    """Byte i holds sum of bits[8i+j] << j, weights flat in C order."""
    return np.packbits(bits.reshape(-1), bitorder="little")


def weights_of(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """The maskable weights in the order of the file."""
    parameters = dict(model.named_parameters())
    return {name: parameters[name].detach().numpy() for name in layout(model)}


def bit_tensors(packed: Iterable[tuple[str, np.ndarray]], codec: str) -> dict[str, np.ndarray]:
    if codec == "raw":
        return {f"mask.{name}": array for name, array in packed}
    frame = zstandard.ZstdCompressor(level=3).compress(b"".join(array.tobytes() for _, array in packed))
    return {"bits": np.frombuffer(frame, np.uint8)}


def write(
    model: torch.nn.Module,
    model_json: str,
    bits: Tensors,
    *,
    codec: str = "raw",
    strengths: int = 0,
    parent_bits: Tensors | None = None,
    state: Tensors | None = None,
    affine: Tensors | None = None,
    head: tuple[np.ndarray, np.ndarray] | None = None,
    **texts: str,
) -> bytes:
    """The smn-mask/1 file of these boolean arrays."""
    shapes = layout(model)
    if codec == "context":
        stream = context.encode(bits, weights_of(model), strengths, parent_bits)
        tensors = {"bits": np.frombuffer(stream, np.uint8)}
    else:
        tensors = bit_tensors(((name, pack(bits[name])) for name in shapes), codec)
    tensors |= {f"state.{name}": value for name, value in (state or {}).items()}
    tensors |= {f"affine.{name}": value for name, value in (affine or {}).items()}
    if head is not None:
        tensors |= {"head.weight": head[0], "head.bias": head[1]}
    metadata = {
        "format": "smn-mask/1",
        "model": model_json,
        "fingerprint": fingerprint(model, model_json),
        "layout": layout_digest(shapes),
        "codec": codec,
        **texts,
    }
    return container(metadata | {"content": content(metadata, tensors)}, tensors)


def parse(data: bytes) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Metadata and tensors of a safetensors file."""
    (length,) = struct.unpack("<Q", data[:8])
    metadata = json.loads(data[8 : 8 + length])["__metadata__"]
    tensors = {
        name: np.frombuffer(bytes(entry["data"]), DTYPES[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in safetensors.deserialize(data)
    }
    return metadata, tensors


def unpack_rest(frame: bytes) -> dict[str, np.ndarray]:
    data = zstandard.ZstdDecompressor().decompress(frame)
    (length,) = struct.unpack("<I", data[:4])
    listed, data, tensors = json.loads(data[4 : 4 + length]), data[4 + length :], {}
    for kind, group in itertools.groupby(listed, lambda one: one[1]):
        run, width = list(group), np.dtype(DTYPES[kind]).itemsize
        size = sum(math.prod(shape) for _, _, shape in run)
        numbers = b"".join(bytes(data[plane * size + i] for plane in range(width)) for i in range(size))
        data, place = data[size * width :], 0
        for name, _, shape in run:
            end = place + math.prod(shape) * width
            tensors[name] = np.frombuffer(numbers[place:end], DTYPES[kind]).reshape(shape)
            place = end
    assert not data
    return tensors


def read(data: bytes, model: torch.nn.Module, parent: bytes | None = None) -> dict[str, dict]:
    """{"metadata": texts, "bits": booleans in the shapes of the weights, "affine": ..., "state", "head" likewise}."""
    metadata, tensors = parse(data)
    assert metadata["format"] == "smn-mask/1" and metadata["content"] == content(metadata, tensors)
    if "rest" in tensors:
        tensors |= unpack_rest(tensors.pop("rest").tobytes())
    shapes = layout(model)
    assert metadata["layout"] == layout_digest(shapes)
    assert metadata["fingerprint"] == fingerprint(model, metadata["model"])
    sizes = [-(-math.prod(shape) // 8) for shape in shapes.values()]
    if metadata["codec"] == "context":
        there = None
        if "parent" in metadata:
            assert metadata["parent"] == f"sha256:{hashlib.sha256(parent).hexdigest()}"
            there = read(parent, model)["bits"]
        decoded = context.decode(tensors["bits"].tobytes(), weights_of(model), there)
        packed = [pack(decoded[name]) for name in shapes]
    elif metadata["codec"] == "raw":
        packed = [tensors[f"mask.{name}"] for name in shapes]
    else:
        flat = np.frombuffer(zstandard.ZstdDecompressor().decompress(tensors["bits"].tobytes()), np.uint8)
        packed = np.split(flat, np.cumsum(sizes)[:-1])
    assert [len(array) for array in packed] == sizes
    bits = {
        name: np.unpackbits(array, bitorder="little")[: math.prod(shape)].reshape(shape).astype(bool)
        for (name, shape), array in zip(shapes.items(), packed, strict=True)
    }
    part = {
        prefix: {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}
        for prefix in ("state.", "affine.", "head.")
    }
    return {
        "metadata": metadata,
        "bits": bits,
        "state": part["state."],
        "affine": part["affine."],
        "head": part["head."],
    }


def hand_masked_state_dict(model: torch.nn.Module, bits: Tensors, state: Tensors) -> dict[str, torch.Tensor]:
    """theta' = theta * M / sqrt(mean(M)) for each masked tensor, the task's state put in, everything else as it is."""
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, mask in bits.items():
        alpha = math.sqrt(float(np.mean(mask)))
        weights[name] = (weights[name].double() * torch.from_numpy(mask) / alpha).float()
    for name, value in state.items():
        weights[name] = torch.from_numpy(value.copy())
    return weights


def apply_affine(affine: Tensors, z: np.ndarray) -> np.ndarray:
    """Embeddings through the map of these tensors, in float64; without any they stay as they are."""
    if not affine:
        return z
    centred = z.astype(np.float64) - affine["mean"].astype(np.float64)
    if "scale" in affine:
        return centred * affine["scale"].astype(np.float64)
    matrix = affine["matrix"].astype(np.float64)
    if "matrix_scale" in affine:
        matrix = matrix * affine["matrix_scale"].astype(np.float64)[:, None]
    return np.einsum("ij,nj->ni", matrix, centred)


def write_cascade(
    fingerprint: str,
    root: str,
    experts: list[str],
    fusion: str,
    mode: str = "unconditional",
    modes: Mapping[str, Tensors] | None = None,
    router: Tensors | None = None,
    heads: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
    **texts: str,
) -> bytes:
    """The smn-cascade/1 file of these digests and arrays; `modes` are the fusion's tensors by mode, `heads` too."""
    tensors = {f"fusion.{m}.{name}": array for m, group in (modes or {}).items() for name, array in group.items()}
    tensors |= {f"router.{name}": array for name, array in (router or {}).items()}
    for m, (weight, bias) in (heads or {}).items():
        tensors |= {f"head.{m}.weight": weight, f"head.{m}.bias": bias}
    metadata = {
        "format": "smn-cascade/1",
        "root": root,
        "experts": canonical(experts),
        "fingerprint": fingerprint,
        "fusion": fusion,
        "mode": mode,
        **texts,
    }
    return container(metadata | {"content": content(metadata, tensors)}, tensors)


def read_cascade(data: bytes) -> dict[str, Any]:
    """{"metadata", "experts", "modes": {mode: {name: array}}, "router": {name: array}} of a sound file."""
    metadata, tensors = parse(data)
    assert metadata["format"] == "smn-cascade/1" and metadata["content"] == content(metadata, tensors)
    modes: dict[str, dict[str, np.ndarray]] = {}
    for name in tensors:
        if name.startswith("fusion."):
            _, mode, short = name.split(".")
            modes.setdefault(mode, {})[short] = tensors[name]
    router = {name.removeprefix("router."): tensors[name] for name in tensors if name.startswith("router.")}
    return {"metadata": metadata, "experts": json.loads(metadata["experts"]), "modes": modes, "router": router}


def route(cascade: Mapping[str, Any], root: np.ndarray) -> np.ndarray:
    """The expert of every root embedding, by scikit-learn itself."""
    from sklearn.mixture import GaussianMixture

    router = {name: array.astype(np.float64) for name, array in cascade["router"].items()}
    mixture = GaussianMixture(len(router["weights"]), covariance_type="full")
    mixture.weights_, mixture.means_ = router["weights"], router["means"]
    mixture.precisions_cholesky_ = router["precisions_cholesky"]
    unit = root / np.linalg.norm(root, axis=1, keepdims=True)
    return mixture.predict((unit - router["mean"]) @ router["components"].T * router["scale"])


def fuse(
    cascade: Mapping[str, Any], mode: str, embeddings: list[np.ndarray], chosen: np.ndarray | None = None
) -> np.ndarray:
    """Fused embeddings of the root's and every expert's; `chosen` names the expert that counts in conditional mode."""
    parts = [z.astype(np.float64) for z in embeddings]
    if mode == "conditional":
        parts = [parts[0], *(z * (chosen == i)[:, None] for i, z in enumerate(parts[1:]))]
    x = np.concatenate(parts, axis=1)
    t = {name: array.astype(np.float64) for name, array in cascade["modes"].get(mode, {}).items()}
    kind = cascade["metadata"]["fusion"]
    if kind.startswith("pca-int"):
        n_bits, rows = int(kind[-1]), []
        for row in cascade["modes"][mode]["components"]:
            text = "".join(f"{byte:08b}"[::-1] for byte in row)
            codes = [int(text[i * n_bits : (i + 1) * n_bits][::-1], 2) for i in range(len(t["mean"]))]
            rows.append([code - (2**n_bits - 1) / 2 for code in codes])
        t["components"] = np.array(rows)
    for name in ("components", "parts"):
        if f"{name}_scale" in t:
            t[name] = t[name] * t[f"{name}_scale"][..., None]
    if kind == "concat":
        return x
    if kind == "random":
        rows = []
        for i in range(len(t["mean"])):
            text = f"smn-cascade/1 random {cascade['metadata']['seed']} {i}".encode()
            stream = np.frombuffer(hashlib.shake_256(text).digest(-(-x.shape[1] // 8)), np.uint8)
            rows.append(2.0 * np.unpackbits(stream, bitorder="little")[: x.shape[1]] - 1)
        x = x @ (np.array(rows) / np.sqrt(x.shape[1])).T
    x = x - t["mean"]
    if kind == "low-rank":
        pieces = np.split(x, len(parts), axis=1)
        x = np.concatenate([piece @ matrix.T for piece, matrix in zip(pieces, t["parts"], strict=True)], axis=1)
    return (x @ t["components"].T) * t["scale"]

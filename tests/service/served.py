"""What the tests of the service serve: tiny backbones, hand-written mask files, real server processes."""

import io
import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import independent
import numpy as np
import timm
import torch
from PIL import Image
from preloaded import Preloaded
from safetensors.torch import save_file
from timm.data import create_transform

from benchmarks.redis_server import free_port
from smn_core.backbone import wrap
from smn_core.spec import BackboneSpec

ROOT = Path(__file__).parents[2]
SIZE_PX = 32
ARGS = {
    "test_vit": {"depth": 1, "embed_dim": 8, "num_heads": 1},
    "test_resnet": {"channels": [8, 8, 8, 8], "stem_width": 8},
}
ERROR_KEYS = {"message", "type", "param", "code"}


@dataclass(frozen=True)
class MaskFile:
    """A mask file, the theta' it stands for, worked out by hand, and the tensors of its map, if any."""

    data: bytes
    weights: dict
    affine: dict

    @property
    def digest(self):
        import hashlib

        return f"sha256:{hashlib.sha256(self.data).hexdigest()}"


class Theta:
    """A tiny backbone with random weights as plain timm sees it, and masks of it by the independent writer."""

    def __init__(self, name="test_vit", seed=0, args=None):
        self.name, self.args = name, ARGS[name] if args is None else args
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.plain = timm.create_model(name, num_classes=0, **self.args).eval()
        self.weights = {key: tensor.clone() for key, tensor in self.plain.state_dict().items()}
        self.model_json = independent.model_json(name, **self.args)
        self.spec = BackboneSpec(name, args=self.args, image_size=SIZE_PX)

    def backbone(self):
        return wrap(self._model(self.weights, SIZE_PX, resized=False), self.name, self.spec)

    def mask(
        self, seed=1, density=0.9, codec="zstd", with_state=False, with_affine=None, affine=None, head=None,
        parent=None, **texts,
    ):  # fmt: skip
        """A random mask; with other running statistics; with a map: `diagonal`, or the precision of its matrix.

        `affine` are the tensors of a map, sound or not, in its place; `head` a classifier's weight, bias and classes.
        `parent` is the mask that its bits are coded against.
        """
        there = None
        if parent is not None:
            codec, texts = "context", {**texts, "parent": parent.digest}
            there = independent.read(parent.data, self.plain)["bits"]
        weights, texts = (head[:2], {**texts, "classes": json.dumps(head[2])}) if head else (None, texts)
        rng = np.random.default_rng(seed)
        shapes = independent.layout(self.plain)
        bits = {name: rng.random(shape) < density for name, shape in shapes.items()}
        for on in bits.values():
            on.reshape(-1)[0] = True
        state = {}
        if with_state:
            state = {
                name: rng.random(tensor.shape, np.float32) + (0.5 if name.endswith("var") else -0.5)
                for name, tensor in self.plain.state_dict().items()
                if name.endswith(("running_mean", "running_var"))
            }
        affine = self._affine(rng, with_affine) if with_affine else affine or {}
        data = independent.write(
            self.plain, self.model_json, bits, codec=codec, state=state, affine=affine, head=weights, parent_bits=there,
            **texts,
        )  # fmt: skip
        return MaskFile(data, independent.hand_masked_state_dict(self.plain, bits, state), affine)

    @torch.inference_mode()
    def embed(self, x, mask=None):
        """Plain timm's embeddings of normalised inputs."""
        z = self._model(mask.weights if mask else self.weights)(torch.from_numpy(x)).numpy()
        return independent.apply_affine(mask.affine, z) if mask else z

    def pixels(self, data):
        """The model input of an RGB image file of any size, by timm's own transform."""
        config = timm.data.resolve_model_data_config(self.plain)
        transform = create_transform(**{**config, "input_size": (3, SIZE_PX, SIZE_PX)}, is_training=False)
        with Image.open(io.BytesIO(data)) as image:
            return transform(image.convert("RGB"))[None].numpy()

    def save(self, folder):
        """A weights file, and the flags of `smn serve` that serve it."""
        path = folder / "theta.safetensors"
        save_file(self.weights, path)
        args = [word for key, value in self.args.items() for word in ("--model-arg", f"{key}={value}".replace(" ", ""))]
        return ["--backbone", self.name, "--weights", str(path), "--image-size", str(SIZE_PX), *args]

    def _affine(self, rng, kind):
        d = self.plain.num_features
        mean = rng.standard_normal(d, np.float32)
        if kind == "diagonal":
            return {"mean": mean, "scale": rng.random(d, np.float32) + np.float32(0.5)}
        if kind == "int8":
            matrix = rng.integers(-127, 128, (d, d)).astype(np.int8)
            return {"mean": mean, "matrix": matrix, "matrix_scale": (rng.random(d) / 100 + 0.001).astype(np.float32)}
        return {"mean": mean, "matrix": rng.standard_normal((d, d)).astype(kind)}

    def _model(self, weights, size_px=SIZE_PX, resized=True):
        model = timm.create_model(self.name, num_classes=0, **self.args).eval()
        model.load_state_dict(weights)
        if resized and hasattr(model, "set_input_size"):
            model.set_input_size(img_size=(size_px, size_px))
        return model


class ServerProcess:
    """A real `smn serve` on a free port of loopback."""

    def __init__(self, arguments, folder, environment=None, port=None, command=None, program=None, host="127.0.0.1"):
        self.host, self.port = host, port or free_port()
        self.folder, self.arguments = folder, list(map(str, arguments))
        self.command = command or ["serve", "--port", str(self.port)]
        self.program = program
        plain = {k: v for k, v in os.environ.items() if not k.startswith("SMN_")}
        self.environment = {**plain, "OMP_NUM_THREADS": "1", **(environment or {})}
        self.process = None

    @property
    def url(self):
        return f"http://{self.host}:{self.port}"

    @property
    def log(self):
        return self._log.read_text()

    @property
    def _log(self):
        return self.folder / f"{self.host}-{self.port}.log"

    def start(self, wait=True):
        if self.program is None:
            self.process = Preloaded([*self.command, *self.arguments], self._log, self.environment, self.folder)
            return self.wait() if wait else self
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [self.program, *self.command, *self.arguments],
                stdout=log,
                stderr=log,
                env=self.environment,
                cwd=self.folder,
            )
        return self.wait() if wait else self

    def wait(self, within_s=120):
        deadline = time.monotonic() + within_s
        while not self.is_ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(self.log[-3000:])
            time.sleep(0.05)
        return self

    def is_ready(self):
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=5) as answer:
                return answer.status == 200
        except (OSError, urllib.error.URLError):
            return False

    def stop(self, how=signal.SIGTERM, within_s=60):
        """The exit code."""
        process, self.process = self.process, None
        if process is None:
            return None
        process.send_signal(how)
        try:
            return process.wait(within_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop()


def photo(seed=0, size=(40, 36), fmt="PNG", mode="RGB", **options):
    """An image file of noise that is smooth enough for every codec."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (6, 6, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    small.convert(mode).save(buffer, fmt, **options)
    return buffer.getvalue()


def inputs(n=1, seed=0):
    return np.random.default_rng(seed).standard_normal((n, 3, SIZE_PX, SIZE_PX)).astype(np.float32)


def relative_error(found, expected):
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def eventually(condition, within_s=10.0):
    """Wait until a condition holds; its value."""
    deadline = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.002)
    return value

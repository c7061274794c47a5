"""Write the set beside this script with the code of commit bc55b57, never with a later one.

    git clone . /tmp/base && cd /tmp/base && git checkout bc55b57 && make setup
    .venv/bin/python tests/golden/before/make.py FOLDER        # this file, copied there

Everything but the pictures and the half-finished run comes from the commands below, on one thread.
"""

from __future__ import annotations

import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

MODELS = {
    "vit": ("test_vit", {"depth": 1, "embed_dim": 16, "num_heads": 2}),
    "resnet": ("test_resnet", {"channels": [8, 8, 8, 8], "stem_width": 8}),
}
SETTINGS = {
    "steps": 8,
    "batch_size": 8,
    "lr": 0.15,
    "momentum": 0.9,
    "head_steps": 1,
    "checkpoint_steps": 4,
    "swav.prototypes": 16,
    "swav.queue": 16,
    "swav.queue_from": 0.25,
    "swav.frozen_steps": 2,
}
STOP_AFTER = 6  # the last checkpoint is then that of step 4
LIBRARIES = ("torch", "torchvision", "timm", "numpy", "pillow", "scikit-learn", "scipy", "zstandard")


def backbone_words(model: str) -> list[str]:
    """How a command line names the backbone of a folder, from within that folder."""
    name, args = MODELS[model]
    words = ["--backbone", name, "--weights", "theta.safetensors", "--image-size", "32", "--device", "cpu"]
    return [*words, *(word for key, value in args.items() for word in ("--model-arg", f"{key}={json.dumps(value)}"))]


def train_words(model: str) -> list[str]:
    settings = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    words = ["train", "--recipe", "tiny", "--data", "../digits.npz", "--out", "digits.smn", "--seed", "3"]
    return [*words, "--workers", "0", "--threads", "1", *settings, *backbone_words(model)]


def cascade_words(model: str) -> list[str]:
    words = ["cascade", "--root", "digits.smn", "--data", "../digits.npz", "--out", "cascade", "--experts", "2"]
    words += ["--split", "mixture", "--fusion", "pca:8:int8", "--mode", "conditional", "--seed", "2"]
    return [*words, "--processes", "1", "--threads", "1", *backbone_words(model)]


def embed_words(model: str, out: str, *through: str) -> list[str]:
    return ["embed", "../images", "--out", out, "--workers", "1", *through, *backbone_words(model)]


EMBEDDINGS = {
    "mask.npy": ("--mask", "digits.smn"),
    "unconditional.npy": ("--cascade", "cascade", "--mode", "unconditional"),
    "conditional.npy": ("--cascade", "cascade", "--mode", "conditional"),
}
"""The embeddings of every model: by file, what they go through."""


def machine() -> dict[str, object]:
    """What rounding depends on: the processor and the libraries that compute or decode."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    found = {key: re.search(rf"^{key}\s*: (.*)$", text, re.MULTILINE) for key in ("model name", "flags")}
    said = {key: match[1] if match else platform.processor() for key, match in found.items()}
    return {
        "processor": said["model name"],
        "flags": sorted(said["flags"].split()),
        "libraries": {name: version(name) for name in LIBRARIES},
    }


def smn(words: list[str], folder: Path) -> None:
    program = Path(sys.executable).parent / "smn"
    subprocess.run([program, *words], cwd=folder, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def write_pictures(root: Path) -> None:
    """Digits: 96 and 24 of 32 px as arrays, and twelve files of other sizes, two of them JPEGs."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))[:120]
    pixels = np.kron(found.images[order] * 15, np.ones((4, 4))).astype(np.uint8)
    x, y = np.repeat(pixels[..., None], 3, axis=-1), found.target[order]
    np.savez_compressed(root / "digits.npz", x_train=x[:96], y_train=y[:96], x_test=x[96:], y_test=y[96:])
    (root / "images").mkdir()
    for number in range(12):
        small = Image.fromarray((found.images[-1 - number] * 15).astype(np.uint8))
        image = small.resize((40 + number, 36), Image.Resampling.BICUBIC).convert("RGB")
        data = io.BytesIO()
        image.save(data, "JPEG" if number % 6 == 5 else "PNG")
        (root / "images" / f"{number:02}.{'jpg' if number % 6 == 5 else 'png'}").write_bytes(data.getvalue())


def stop_half_way() -> None:
    """In the folder of a model: `smn train`, ended as by a kill after step STOP_AFTER."""
    import torch

    from training.__main__ import _parse_train
    from training.run import train

    class Killed(Exception):
        pass

    def heard(step: int) -> None:
        if step == STOP_AFTER:
            raise Killed

    torch.set_num_threads(1)
    request, _ = _parse_train(train_words(Path.cwd().name)[1:])
    try:
        train(request, heard)
    except Killed:
        return
    raise SystemExit("the run was not stopped")


def write_model(model: str, folder: Path) -> None:
    import timm
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    torch.manual_seed(0)
    name, args = MODELS[model]
    save_file(timm.create_model(name, num_classes=0, **args).state_dict(), folder / "theta.safetensors")
    smn(train_words(model), folder)
    smn(cascade_words(model), folder)
    for out, through in EMBEDDINGS.items():
        smn(embed_words(model, out, *through), folder)
    # Of a finished run what `smn cascade --resume` asks for stays: that it is finished.
    for left in [*folder.rglob("*.png"), *folder.rglob("*.csv"), *folder.rglob("*.txt"), *folder.rglob("last.ckpt")]:
        left.unlink()
    shutil.rmtree(folder / "digits.run")
    shutil.rmtree(folder / "cascade" / "embeddings", ignore_errors=True)
    kept = (folder / "digits.smn").rename(folder / "kept")
    subprocess.run([sys.executable, __file__, "--half"], cwd=folder, check=True)
    kept.rename(folder / "digits.smn")


if __name__ == "__main__":
    if sys.argv[1] == "--half":
        stop_half_way()
    else:
        out = Path(sys.argv[1]).resolve()
        write_pictures(out)
        for each in MODELS:
            write_model(each, out / each)
        (out / "machine.json").write_text(json.dumps(machine(), indent=1) + "\n")

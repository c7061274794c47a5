"""How long does a server take until it is ready, at a first start and at the next one, against loading the model?

    .venv/bin/python -m benchmarks.starts [--quick] [--model NAME] [--out benchmarks/results/starts.jsonl]

`loading` is what any such server must do: a process imports torch, timm, FastAPI and uvicorn, makes the model, loads
its weights from disk and embeds one image. A first start finds an empty cache and measures which forms of the layers
are fast; the next one finds what that one wrote. All in turn, one thread each, from the start of the process on.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.redis_server import free_port
from benchmarks.rows import row
from benchmarks.server import process, random_weights

MODELS = ("vit_tiny_patch16_224", "vit_base_patch32_224", "resnet50")
FIRST, NEXT, LOADING = "first start", "next start", "loading"
LOAD = """
import sys, fastapi, timm, torch, uvicorn
from safetensors.torch import load_file
torch.set_num_threads(1)
model = timm.create_model(sys.argv[1], num_classes=0).eval()
model.load_state_dict(load_file(sys.argv[2]))
with torch.inference_mode():
    model(torch.zeros(1, *model.pretrained_cfg["input_size"]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="ViT-Tiny, 3 turns instead of 7")
    parser.add_argument("--model", help="one model")
    parser.add_argument("--out", type=Path, help="append the rows to this file too")
    args = parser.parse_args()
    for name in [args.model] if args.model else MODELS[:1] if args.quick else MODELS:
        with tempfile.TemporaryDirectory() as folder:
            measure(name, Path(folder), 3 if args.quick else 7, args.out)


def measure(name: str, folder: Path, turns: int, out: Path | None) -> None:
    """Rows of a model; one turn before them brings the files into memory."""
    weights = random_weights(name, folder).weights
    assert weights is not None
    taken: dict[str, list[float]] = {LOADING: [], FIRST: [], NEXT: []}
    for turn in range(1 + turns):
        shutil.rmtree(folder / "cache", ignore_errors=True)
        found = {LOADING: load(name, weights), FIRST: serve(name, weights, folder), NEXT: serve(name, weights, folder)}
        for variant, one in found.items() if turn else ():
            taken[variant].append(one)
    params = {"model": name, "threads": 1, "clock": "wall"}
    loading = np.array(taken[LOADING])
    for variant, seconds in taken.items():
        row("starts", variant, params, "time to ready", "s", seconds, out=out)
        if variant != LOADING:
            row("starts", variant, params, "time to ready, ratio to loading", "x", np.array(seconds) / loading, out=out)


def load(name: str, weights: Path) -> float:
    """Seconds of a process that loads the model and embeds one image."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", LOAD, name, weights], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return time.perf_counter() - began


def serve(name: str, weights: Path, folder: Path) -> float:
    """Seconds until `smn serve` is ready; its cache is in the folder."""
    port = free_port()
    words: list[str | Path] = [Path(sys.executable).parent / "smn", "serve", "--backbone", name, "--weights", weights]
    words += ["--device", "cpu", "--registry", folder / "registry", "--port", str(port), "--threads", "1"]
    with process(words, port, "/readyz", folder / "smn.log", more={"XDG_CACHE_HOME": str(folder / "cache")}) as server:
        return server.start_s


if __name__ == "__main__":
    main()

"""Does a request take more processor time than before spaces and labels came? Both servers side by side, asked in turn.

    .venv/bin/python -m benchmarks.since [--commit a6bc5ea] [--quick] [--out FILE.jsonl]
    .venv/bin/python -m benchmarks.since --flag=--no-console   # this commit with a flag, in the place of an earlier one

The earlier commit's code runs from a worktree of its own, in this environment. Both servers are here at once, with the
same random weights and mask, and get the same requests round by round (A B B A): user and system time of a server's
processes a request, and its ratio to the other's of the same round. A small model shows what the server takes, ViT-Tiny
what a request does. The load generator shares the cores, so wall time would mislead.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path

import httpx2
import numpy as np

from benchmarks.photos import photo
from benchmarks.redis_server import free_port
from benchmarks.rows import row
from benchmarks.server import Process, mask_file, pixels, process, random_weights
from smn_core.backbone import load_backbone

MODELS = ("test_vit", "vit_tiny_patch16_224")
NAME, NPY, WAIT_S = "asked", "application/x-npy", 600.0
BEFORE, NOW = "before", "now"
COMMIT = "a6bc5ea"
"""The last one whose answers named no space and had no labels."""
ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", default=COMMIT, help="the earlier one")
    parser.add_argument(
        "--flag", action="append", default=[], help="of the server `before`, which is this commit's then"
    )
    parser.add_argument("--models", default=",".join(MODELS), help="timm names")
    parser.add_argument("--quick", action="store_true", help="few requests")
    parser.add_argument("--out", type=Path, help="append the rows to this file too")
    args = parser.parse_args()
    with nullcontext(ROOT) if args.flag else checked_out(args.commit) as before:
        for model in args.models.split(","):
            measure(model, {BEFORE: before, NOW: ROOT}, args.flag, args.commit, args.quick, args.out)


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """A worktree of the commit, as long as the block lasts."""
    git = ("git", "-C", str(ROOT), "worktree")
    with tempfile.TemporaryDirectory() as text:
        tree = Path(text) / "before"
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), commit], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def measure(
    model: str, trees: dict[str, Path], flags: Sequence[str], commit: str, quick: bool, out: Path | None
) -> None:
    """The rows of one model; `flags` are those of the server `before`."""
    with tempfile.TemporaryDirectory() as text, ExitStack() as stack:
        folder = Path(text)
        spec = random_weights(model, folder)
        backbone = load_backbone(spec)
        mask = mask_file(backbone, 0.99, 0)
        servers, clients = {}, {}
        for which, tree in trees.items():
            servers[which] = stack.enter_context(serve(which, tree, model, folder, flags if which == BEFORE else ()))
            clients[which] = stack.enter_context(httpx2.Client(base_url=servers[which].url, timeout=WAIT_S))
            clients[which].put(f"/masks/{NAME}", content=mask).raise_for_status()
        small = model != MODELS[-1]
        rounds, requests = (3, 40) if quick else (12, 150 if small else 40)
        x = io.BytesIO()
        np.save(x, pixels(backbone, 1))
        forms = {"npy": (NPY, x.getvalue()), "jpeg": ("image/jpeg", photo(224, 224))}
        for form, (kind, body) in forms.items():
            headers = {"Content-Type": kind, "Accept": NPY}
            taken: dict[str, list[float]] = {which: [] for which in trees}
            for turn in range(1 + rounds):
                order = list(trees) if turn % 2 else list(trees)[::-1]
                for which in order:
                    ms = ask(clients[which], servers[which], body, headers, requests)
                    if turn:  # the first warms up
                        taken[which].append(ms)
            before = {"flags before": " ".join(flags)} if flags else {"commit before": commit}
            params = {"model": model, "form": form, "images a request": 1, **before}
            bench = "flag" if flags else "since"
            for which, values in taken.items():
                row(bench, which, params, "processor time per request", "ms", values, out=out)
            ratios = [now / then for now, then in zip(taken[NOW], taken[BEFORE], strict=True)]
            row(bench, NOW, params, "processor time ratio to before", "x", ratios, out=out)
            more = [now - then for now, then in zip(taken[NOW], taken[BEFORE], strict=True)]
            row(bench, NOW, params, "processor time beyond before", "ms", more, out=out)


def serve(which: str, tree: Path, model: str, folder: Path, flags: Sequence[str]) -> AbstractContextManager[Process]:
    """A server of a tree's own code."""
    port = free_port()
    words: list[str | Path] = [sys.executable, "-c", "import smn; smn.main()", "serve", "--backbone", model]
    words += ["--weights", folder / "theta.safetensors", "--registry", folder / which, "--port", str(port)]
    words += ["--threads", "1", "--device", "cpu", *flags]
    # Before the path of the environment, which leads to this tree.
    return process(words, port, "/readyz", folder / f"{which}.log", cwd=folder, more={"PYTHONPATH": str(tree)})


def ask(client: httpx2.Client, server: Process, body: bytes, headers: dict[str, str], n: int) -> float:
    """Milliseconds of the server's processor time a request."""
    before = server.cpu_s()
    for _ in range(n):
        client.post("/embed", params={"mask": NAME}, content=body, headers=headers).raise_for_status()
    return 1e3 * (server.cpu_s() - before) / n


if __name__ == "__main__":
    main()

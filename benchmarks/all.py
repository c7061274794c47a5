"""Every question that is measured, and the module that answers it; `smn bench` runs them one after another.

To add one: a module whose `python -m benchmarks.MODULE [--quick] [--out FILE]` prints rows (benchmarks/rows.py), a line
in BENCHES, and a question of the page in benchmarks/questions.py.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smn_core.errors import InvalidArgument

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Bench:
    """A question and how its module is run; `needs` are packages without which it is left out, `extra` brings them.

    `on_gpu`: it is left out where there is none.
    """

    name: str
    question: str
    module: str
    full: tuple[str, ...] = ()
    quick: tuple[str, ...] = ("--quick",)
    needs: tuple[str, ...] = ()
    extra: str = ""
    on_gpu: bool = False

    def left_out(self) -> str:
        """Why it cannot run here; empty where it can."""
        if absent := [name for name in self.needs if importlib.util.find_spec(name) is None]:
            return f"needs {', '.join(absent)}: uv pip install -e '.[{self.extra}]'"
        if self.on_gpu and not any(Path("/dev").glob("nvidia[0-9]*")):
            return "needs a GPU"
        return ""


class Failed(Exception):
    """A benchmark that ended with an error; what it was, its process has written to stderr."""


def _engine(name: str, question: str) -> Bench:
    return Bench(name, question, "engine", ("--only", name), ("--only", name, "--quick"))


BENCHES = (
    Bench("swap", "What does writing a mask's weights cost, against a plain copy?", "swap"),
    _engine("hot", "What does a mask that is in place cost, against plain timm?"),
    Bench(
        "patch",
        "What does a patch cost, against a slot; and how large is a mask?",
        "engine",
        ("--only", "swap"),
        ("--only", "swap", "--quick"),
    ),
    _engine("traffic", "What do 100 masks cost, against one?"),
    _engine("batch", "What do smaller batches cost, and how long does one keep others waiting?"),
    _engine("set", "Is there a cliff when masks outnumber the slots?"),
    _engine("soak", "Does memory grow over 20,000 mixed requests?"),
    Bench("hour", "Does an hour of hostile traffic with a killed Redis leave servers right and as they were?", "soak"),
    Bench("counted", "Is there one wrong answer among a million?", "counted"),
    Bench("seen", "How soon does a server see what another one took?", "seen"),
    Bench("many", "What do 1,000 registered masks cost a server, and what a mask in memory?", "many"),
    Bench("codecs", "What do a mask's bits take under each codec, and what does it cost to read them?", "codecs"),
    Bench(
        "stores",
        "What does each kind of collection cost, and does it find what an exact search finds?",
        "stores",
        needs=("lancedb", "pyarrow", "faiss"),
        extra="search,faiss",
    ),
    Bench("decode", "How many decode workers pay, and what do they do to the event loop?", "decode"),
    Bench("draft", "What does decoding at a reduced scale do to embeddings?", "draft", (), ("--photos=1",)),
    Bench("http", "What does HTTP cost, against the engine in process?", "http"),
    Bench("starts", "How long does a server take until it is ready, against loading the model?", "starts"),
    Bench("spaces", "Are vectors of two spaces ever mixed while a name is pushed over?", "spaces"),
    Bench("since", "Does a request take more processor time than before spaces and labels came?", "since"),
    Bench("fairness", "Does one who floods keep others waiting?", "fairness"),
    Bench("cascade", "What does a cascade cost, against a plain forward?", "cascade"),
    Bench("train_step", "What does a training step cost, against one that moves all weights?", "train_step"),
    Bench("peers", "What do servers of full copies cost for many tasks: torch, ONNX Runtime, OpenVINO?", "peers"),
    Bench(
        "runtimes",
        "What would one model cost in ONNX Runtime, OpenVINO or plain timm, and what does the core allow?",
        "runtimes",
        needs=("onnx", "onnxscript", "onnxruntime", "openvino"),
        extra="bench",
    ),
    Bench(
        "lora",
        "What do LoRA adapters cost on the same backbone?",
        "peers.lora",
        needs=("peft",),
        extra="bench",
    ),
    Bench("gpu", "What do masks cost on a GPU, against device copies and captured timm?", "gpu", on_gpu=True),
    Bench("fleet", "What would 100,000 masks take, by the model of a fleet?", "scale_model"),
    Bench("scale", "What does Ray cost, and what placement by digest bring?", "scale", needs=("ray",), extra="ray"),
    Bench(
        "fit",
        "Which constants does the cost model of smn_core/engine/costs.py get here?",
        "engine",
        ("--fit",),
        ("--fit", "--quick"),
    ),
)  # fmt: skip


def find(names: Sequence[str]) -> list[Bench]:
    """The benchmarks of these names, in the order of BENCHES; all of them without a name.

    Raises:
        InvalidArgument: an unknown name; the message names near ones.
    """
    known = {bench.name: bench for bench in BENCHES}
    wanted = [part for name in names for part in name.split(",") if part]
    for name in wanted:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=2)
            hint = f"near it: {', '.join(near)}" if near else f"there are {', '.join(known)}"
            raise InvalidArgument(f"--only {name!r}: no benchmark has that name; {hint}")
    return [bench for bench in BENCHES if not wanted or bench.name in wanted]


def run(bench: Bench, *, quick: bool, out: Path) -> Iterator[dict[str, Any]]:
    """The rows of a benchmark as they come, from a process of its own; each is in the file `out` by then.

    What else the module prints goes to stderr.

    Raises:
        Failed: the process ended with an error; the rows before it are kept.
    """
    words = [sys.executable, "-m", f"benchmarks.{bench.module}", *(bench.quick if quick else bench.full)]
    with subprocess.Popen([*words, "--out", str(out)], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith("{"):
                    yield json.loads(line)
                else:
                    print(line, end="", file=sys.stderr)
        finally:
            if sys.exc_info()[0] is not None:  # whoever reads stopped: leave no process behind
                process.terminate()
    if process.returncode:
        raise Failed(f"{bench.name} ended with exit code {process.returncode}")

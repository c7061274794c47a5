"""The Dockerfile as its engine reads it: instructions, with lines that go on joined."""

import json
import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]


def instructions():
    """[(instruction, argument)] in order; comments are gone."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def stages():
    """The instructions of each stage after its FROM."""
    found = []
    for name, argument in instructions():
        if name == "FROM":
            found.append([])
        elif found:
            found[-1].append((name, argument))
    return found


def argument_of(name):
    """The last instruction of this name, from its JSON list where it has one."""
    text = [argument for kind, argument in instructions() if kind == name][-1]
    return json.loads(text[text.index("[") :]) if "[" in text else text


def copies(stage):
    """[(sources, destination)] of what a stage takes from the context."""
    words = [shlex.split(argument) for name, argument in stage if name == "COPY"]
    return [(found[:-1], found[-1]) for found in words if not found[0].startswith("--from")]


def environment(stage):
    return dict(word.split("=", 1) for name, argument in stage if name == "ENV" for word in shlex.split(argument))


BUILD, FINAL = stages()

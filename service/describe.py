"""Writes what files of the repository say about the settings. `make docs` runs it; a test fails where a file is stale.

Everything between two lines `NAME: written by `make docs`` and `end of NAME` is replaced; the rest is written by hand.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from service.settings import Settings
from smn_core.verbs.options import OPTIONS

BACKBONE = tuple(option.name for option in OPTIONS)
"""Servers and trainer share these: masks fit one backbone's weights."""
OF_COMPOSE = ("registry", "host", "port", "drain_s", "api_keys", "admin_keys", "insecure")
"""docker-compose.yml gives these itself, or asks for them in words of its own."""
OF_RAY = ("on", "replicas", "max_replicas", "replica_cpus", "replica_gpus", "ingresses")
"""Compose starts plain servers, without Ray; its SMN_REPLICAS is their number."""
SERVERS = tuple(name for name in Settings.model_fields if name not in (*BACKBONE, *OF_COMPOSE, *OF_RAY))
NEEDED_BY_TRAINER = ("backbone",)
"""The trainer's script wants these to be set; `smn serve` has a default for everything."""


def table() -> str:
    """The settings of docs/configuration.md: flag, default, and what it is."""
    rows = ["| option | default | |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        shown = f"`{default}`" if (default := _default(name)) else ""
        rows.append(f"| `--{name.replace('_', '-')}` | {shown} | {field.description} |")
    return "\n".join(rows)


def example(names: Iterable[str]) -> str:
    """Lines of .env.example: what it is, and the default, commented out."""
    return "\n".join(
        f"# {Settings.model_fields[name].description}\n#{_variable(name)}={_default(name)}" for name in names
    )


def environment(names: Iterable[str], indent: int) -> str:
    """Lines of docker-compose.yml that hand variables on; an empty one is the application's own default."""
    given = {name: _default(name) if name in NEEDED_BY_TRAINER else "" for name in names}
    return "\n".join(
        f"{' ' * indent}{_variable(name)}: ${{{_variable(name)}:-{default}}}" for name, default in given.items()
    )


def parts() -> dict[str, dict[str, str]]:
    """The generated parts, by file and by the name in their marks."""
    backbone, servers = "settings of the backbone", "settings of the servers"
    return {
        "docs/configuration.md": {"settings": table()},
        ".env.example": {backbone: example(BACKBONE), servers: example(SERVERS)},
        "docker-compose.yml": {backbone: environment(BACKBONE, 2), servers: environment(SERVERS, 6)},
    }


def renewed(root: Path) -> dict[Path, str]:
    """What the files of a clone should say, by path.

    Raises:
        ValueError: a file has lost its marks.
    """
    found = {}
    for name, blocks in parts().items():
        text = (root / name).read_text()
        for mark, block in blocks.items():
            text = replace_part(text, mark, block, name)
        found[root / name] = text
    return found


def replace_part(text: str, mark: str, block: str, file: str) -> str:
    """The text of a file with another block between the marks."""
    marks = re.compile(
        rf"(?P<first>^.*\b{mark}: written by `make docs`.*\n)(?s:.*?)(?P<last>^.*\bend of {mark}\b.*$)", re.MULTILINE
    )
    text, count = marks.subn(lambda found: f"{found['first']}{block}\n{found['last']}", text)
    if count != 1:
        raise ValueError(f"{file} has {count} parts between marks `{mark}`, not one")
    return text


def _variable(name: str) -> str:
    return f"SMN_{name.upper()}"


def _default(name: str) -> str:
    """The default as text; "" for None, an empty list and False."""
    default: Any = Settings.model_fields[name].default
    return "" if default is None or default == [] or default is False else str(default)


if __name__ == "__main__":
    for path, text in renewed(Path(__file__).parents[1]).items():
        path.write_text(text)

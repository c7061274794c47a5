"""Read a manifest: a TOML file with one table for each mask. Its keys are the options of `smn train`.

[defaults]
backbone = "vit_tiny_patch16_224"
recipe = "small-vit"
set = ["steps=120"]                       # an entry's own come after these

[[mask]]
data = "photos/"                          # paths are relative to this file
out = "photos.smn"
push = {name = "photos", server = "https://smn.example", key = "env:SMN_KEY"}
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from smn_core.errors import InvalidArgument, SMNError
from smn_core.names import check_name
from training.request import Request
from training.several.jobs import Job, Push, require_key_by_name

Parse = Callable[[list[str]], tuple[Request, int]]
"""Parses the words of a command line of `smn train` into the request and torch's threads."""

LISTS = ("set", "model-arg")
PATHS = ("data", "out", "weights", "start")
WHOLE = ("resume", "overwrite", "help")


@dataclass(frozen=True)
class Entry:
    """One `[[mask]]`: its job, or the trouble that keeps it from running."""

    number: int
    out: str
    job: Job | None = None
    trouble: str = ""

    @property
    def name(self) -> str:
        return f"mask {self.number} ({self.out or 'without out'})"


def read_manifest(path: Path, parse: Parse) -> list[Entry]:
    """Read all entries, in order. An entry that makes no sense carries its trouble and does not stop the others.

    Raises:
        InvalidArgument: the file as a whole makes no sense.
    """
    try:
        with path.open("rb") as file:
            found = tomllib.load(file)
    except FileNotFoundError as error:
        raise InvalidArgument(f"{path} does not exist: give a manifest (docs/scale.md)") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{path} is not TOML: {error}") from error
    if unknown := sorted(set(found) - {"defaults", "mask"}):
        raise InvalidArgument(f"{path}: unknown {unknown[0]!r}: there are [defaults] and [[mask]]")
    defaults, masks = found.get("defaults", {}), found.get("mask", [])
    if not isinstance(defaults, dict) or not isinstance(masks, list) or not all(isinstance(m, dict) for m in masks):
        raise InvalidArgument(f"{path}: write [defaults] once, and [[mask]] for every mask")
    if not masks:
        raise InvalidArgument(f"{path} has no [[mask]]")
    entries: list[Entry] = []
    for number, table in enumerate(masks, 1):
        out = str(table.get("out", ""))
        try:
            job = _make_job(_merge(defaults, table), path.parent, parse)
            _require_own(job, entries)
            entries.append(Entry(number, out, job))
        except SMNError as error:
            entries.append(Entry(number, out, trouble=str(error)))
    return entries


def _merge(defaults: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """An entry with the defaults under it. Lists follow those of the defaults, and `push` is merged key by key."""
    merged = {**defaults, **own}
    for name in LISTS:
        if isinstance(defaults.get(name), list) and isinstance(own.get(name), list):
            merged[name] = [*defaults[name], *own[name]]
    if isinstance(defaults.get("push"), dict) and isinstance(own.get("push"), dict):
        merged["push"] = {**defaults["push"], **own["push"]}
    return merged


def _make_job(table: dict[str, Any], folder: Path, parse: Parse) -> Job:
    push = _parse_push(table.pop("push", None))
    words = []
    for name, value in table.items():
        if name in WHOLE:
            raise InvalidArgument(f"{name} is for the whole manifest: say smn train-many --{name}")
        words += _write_words(name, _resolve(value, folder) if name in PATHS else value)
    request, threads = parse(words)
    if push is not None and request.out.suffix != ".smn":
        raise InvalidArgument(f"push: {request.out.name} is no mask")
    return Job(replace(request, command=["smn", "train", *words]), push, threads)


def _write_words(name: str, value: Any) -> list[str]:
    """A setting as words of the command line of `smn train`."""
    if isinstance(value, bool):
        return [f"--{name}"] if value else []
    if name in LISTS:
        if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
            raise InvalidArgument(f'{name}: write a list of texts, as ["NAME=VALUE", ...]')
        return [f"--{name}={part}" for part in value]
    if not isinstance(value, (str, int, float)):
        raise InvalidArgument(f"{name} is {value!r}: write a text or a number")
    return [f"--{name}={value}"]


def _resolve(value: Any, folder: Path) -> Any:
    """An absolute path, from one relative to the manifest: runs start in other folders and on other nodes."""
    if not isinstance(value, str) or value.startswith("torchvision:"):
        return value
    return os.path.normpath(folder.absolute() / Path(value).expanduser())


def _parse_push(table: Any) -> Push | None:
    if table is None:
        return None
    if not isinstance(table, dict) or not all(isinstance(value, str) for value in table.values()):
        raise InvalidArgument('push: write {name = "...", server = "...", key = "env:NAME"}')
    if unknown := sorted(set(table) - {"name", "server", "key"}):
        raise InvalidArgument(f"push: unknown {unknown[0]!r}: there are name, server, key")
    if "name" not in table:
        raise InvalidArgument("push: it has no name")
    check_name(table["name"])
    require_key_by_name(table.get("key", ""))
    return Push(**table)


def _require_own(job: Job, entries: list[Entry]) -> None:
    """Refuse a job that writes the file, or pushes to the name, of an earlier entry."""
    for entry in entries:
        if entry.job is None:
            continue
        if entry.job.request.out == job.request.out or entry.job.request.folder == job.request.folder:
            raise InvalidArgument(f"{entry.name} writes that file too")
        theirs = entry.job.push
        if job.push and theirs and (theirs.server, theirs.name) == (job.push.server, job.push.name):
            raise InvalidArgument(f"{entry.name} is pushed to the name {theirs.name} too")

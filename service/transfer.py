"""What `smn push` and `smn pull` do beside a server's calls: parents come along, files are recoded on their way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from smn_core.errors import InvalidArgument
from smn_core.files import write_bytes
from smn_core.parents import parent_path
from smn_core.spec import BackboneSpec

if TYPE_CHECKING:
    from service.client import Client


def pull_mask(client: Client, name: str, version: int | None, path: Path, *, overwrite: bool) -> list[tuple[Path, int]]:
    """Write the file of a mask, and beside it that of its parent where it has one. Returns both with their bytes.

    Raises:
        InvalidArgument: the parent's file exists and `overwrite` is not said, or the key may not see the parent;
            nothing was written then.
        SMNError: as the client.
    """
    data = client.pull(name, version)
    parent = client.pull_parent(name, data)
    files = [(path, data), *([(parent_path(path), parent)] if parent is not None else [])]
    for file, content in files[1:]:
        if file.exists() and file.read_bytes() != content and not overwrite:
            raise InvalidArgument(f"{file} exists and is no parent of {path}: give --overwrite, or another --out")
    for file, content in reversed(files):  # whoever finds the mask finds its parent
        write_bytes(file, content)
    return [(file, len(content)) for file, content in files]


@contextmanager
def recoded(file: Path, codec: str | None, spec: BackboneSpec) -> Iterator[Path]:
    """The file or the cascade's folder under another codec, for as long as the block; itself where none is named.

    Raises:
        SMNError: as `smn_core.verbs.repack.repack`.
    """
    if codec is None:
        yield file
        return
    from smn_core.verbs.repack import repack

    with TemporaryDirectory(prefix="smn-push-") as folder:
        out = Path(folder) / (file.resolve().name or "mask.smn")
        parent = file / "root.smn" if file.is_dir() and codec == "context" else None
        repack(spec, file, out, codec, parent if parent is not None and parent.is_file() else None)
        yield out

"""What identifies the images of a set, so that a run goes on, and embeddings are kept, with the same ones alone."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from smn_core.imageset import ArraySet, FolderSet, ImageSet
from training.data import Subset
from training.labels import Renumbered


def identify(images: ImageSet, *, times: bool = True) -> str:
    """Hex sha256 of what identifies the images of a set: pixels of an `.npz`; names, sizes and times of files.

    Without `times` a copy of a folder has the digest of the original.
    """
    sha = hashlib.sha256()
    if isinstance(images, ArraySet):
        sha.update(f"{images.pixels.shape}|".encode())
        sha.update(np.ascontiguousarray(images.pixels).data)
    elif isinstance(images, FolderSet):
        for name in images.names:
            sha.update(f"{name}|{_identify_file(images.root / name, times)}\n".encode(errors="surrogateescape"))
    elif isinstance(images, Subset):
        sha.update(f"{identify(images.source, times=times)}|{images.indices.tolist()}".encode())
    elif isinstance(images, Renumbered):
        return identify(images.source, times=times)
    else:
        sha.update(f"{getattr(images, 'source', images)!r}|{list(images.names)}".encode())
    return sha.hexdigest()


def _identify_file(path: Path, times: bool) -> str:
    """Size and time; a link that leads nowhere has none, and is named as unreadable at its turn."""
    try:
        status = path.stat()
    except OSError:
        return "unreadable"
    return f"{status.st_size}|{status.st_mtime_ns}" if times else f"{status.st_size}"

"""Files of embeddings: `.npy`, `.npz` or `.parquet`, and what says where they come from, `X.json` beside them."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray

from smn_core.errors import InvalidArgument
from smn_core.files import replacing
from smn_core.imageset import FolderSet, ImageSet
from smn_core.verbs.texts import as_line, as_text, of_line

FORMS = (".npy", ".npz", ".parquet")
ROWS_AT_ONCE = 4096
"""Rows that are copied together, so that a set of any size takes little memory."""
OURS = frozenset({"file", "space", "rows"})
"""Keys by which an `X.json` is known as one of ours."""
NEEDS_PYARROW = ".parquet needs pyarrow, of the extra parquet: uv pip install -e '.[parquet]' in a clone"


@dataclass(frozen=True)
class Table:
    """Rows in the order of a file.

    Args:
        raw: float32 [n, width], as rows came.
        width: components of a vector.
        order: row i of the file is row `order[i]` of `raw`.
        paths: of the images, row by row; None for images without paths.
        labels: of the images, row by row; None where they are not known.
        space: the id of the vectors' space.
    """

    raw: Path
    width: int
    order: Int64[ndarray, "n"]
    paths: Sequence[str] | None
    labels: Sequence[str] | None
    space: str

    def chunks(self) -> Iterator[Float32[ndarray, "r width"]]:
        """The vectors in order, some thousand at a time."""
        rows = np.memmap(self.raw, "<f4", "r", shape=(self.raw.stat().st_size // (4 * self.width), self.width))
        for first in range(0, len(self.order), ROWS_AT_ONCE):
            yield np.asarray(rows[self.order[first : first + ROWS_AT_ONCE]])


def named(images: ImageSet, numbers: Sequence[int]) -> tuple[list[str] | None, list[str] | None]:
    """Paths and labels of some images; None where the set has none."""
    paths = [images.names[i] for i in numbers] if isinstance(images, FolderSet) else None
    labels = None if images.labels is None else [images.classes[int(images.labels[i])] for i in numbers]
    return paths, labels


@contextmanager
def scratch(out: Path) -> Iterator[Path]:
    """A path beside `out` for rows until they are written in order; nothing is left of it after the block.

    Raises:
        InvalidArgument: nothing can be written there.
    """
    path = out.with_name(f".{out.stem}.{secrets.token_hex(8)}.rows")
    try:
        path.touch(exist_ok=False)
        yield path
    except OSError as error:
        raise InvalidArgument(f"cannot write {out}: {error.strerror}") from error
    finally:
        path.unlink(missing_ok=True)


def check_out(out: Path) -> None:
    """Raise InvalidArgument unless `out` can be written by its suffix; before anything is embedded.

    What lies beside it and is written too, `X.json` and `X.txt` of a `.npy`, must be ours if it is there, and `X.json`
    must not be that of another form which is still there.
    """
    if out.suffix not in FORMS:
        raise InvalidArgument(f"--out {out}: embeddings are written as {', '.join(FORMS)}")
    if out.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise InvalidArgument(NEEDS_PYARROW)
    if out.is_dir():
        raise InvalidArgument(f"cannot write {out}: it is a folder")
    if not out.parent.is_dir():
        raise InvalidArgument(f"cannot write {out}: No such folder as {out.parent}")
    _require_ours(out)


def _require_ours(out: Path) -> None:
    listed, sidecar = out.with_suffix(".txt"), out.with_suffix(".json")
    told = _read_sidecar(sidecar)
    if told is None and os.path.lexists(sidecar):
        raise InvalidArgument(f"{sidecar} exists and was not written by smn: choose another --out")
    other = out.with_suffix(Path(str(told["file"])).suffix) if told is not None else out
    if other.suffix in FORMS and other != out and other.exists():
        raise InvalidArgument(f"{sidecar} describes {other}, which is still there: choose another --out, or remove it")
    is_listed = told is not None and isinstance(told.get("paths"), str)
    if out.suffix == ".npy" and not is_listed and os.path.lexists(listed):
        raise InvalidArgument(f"{listed} exists and was not written by smn: choose another --out")


def _read_sidecar(sidecar: Path) -> dict[str, Any] | None:
    """What an earlier run told; None where there is no such file, or it is not ours."""
    try:
        told = json.loads(sidecar.read_bytes())
    except (OSError, ValueError):
        return None
    return told if isinstance(told, dict) and told.keys() >= OURS else None


def write_table(table: Table, out: Path, told: Mapping[str, Any]) -> list[Path]:
    """Write the rows to `out` in the form of its suffix, paths of a `.npy` to `X.txt`, and `told` to `X.json`.

    What an older file of the same name left beside it and this one does not write is removed; it is returned.

    Raises:
        InvalidArgument: `out` cannot be written.
    """
    listed, sidecar = out.with_suffix(".txt"), out.with_suffix(".json")
    stale = listed.is_file() and (_read_sidecar(sidecar) or {}).get("paths") == listed.name
    stale = stale and (out.suffix == ".npy" or not out.with_suffix(".npy").exists())
    written = out.suffix == ".npy" and table.paths is not None
    kept = {"file": out.name, "space": table.space, "rows": len(table.order), "dimensions": table.width, **told}
    text = json.dumps(kept | {"paths": listed.name if written else None}, indent=2) + "\n"
    # All are written before the first takes its place: X.json, so that a list without it is never one of ours.
    with ExitStack() as files:
        if written:
            lines = files.enter_context(replacing(listed))
            lines.write_text("".join(f"{as_line(path)}\n" for path in table.paths or ()), "utf-8")
        vectors = files.enter_context(replacing(out))
        files.enter_context(replacing(sidecar)).write_text(text, "utf-8")
        {".npy": _write_npy, ".npz": _write_npz, ".parquet": _write_parquet}[out.suffix](table, vectors)
    if written or not stale:
        return []
    listed.unlink(missing_ok=True)
    return [listed]


def read_paths(listed: Path) -> list[str]:
    """The paths that an `X.txt` lists, row by row, as the folder has them: `os.fsencode` gives their bytes."""
    return [of_line(line) for line in listed.read_text("utf-8").splitlines()]


def _write_npy(table: Table, path: Path) -> None:
    with path.open("wb") as file:
        _write_vectors(table, file.write)


def _write_vectors(table: Table, write: Callable[[bytes], Any]) -> None:
    # Written chunk by chunk, not through a memory map: on a full disk a map would end the process with SIGBUS.
    header = io.BytesIO()
    shape = (len(table.order), table.width)
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    write(header.getvalue())
    for rows in table.chunks():
        write(rows.tobytes())


def _write_npz(table: Table, path: Path) -> None:
    import zipfile

    texts = {"path": table.paths, "label": table.labels}
    arrays = {name: np.array(list(map(as_text, found)), np.str_) for name, found in texts.items() if found is not None}
    arrays["space"] = np.array(table.space, np.str_)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
        with archive.open("vector.npy", "w", force_zip64=True) as member:
            _write_vectors(table, member.write)


def _write_parquet(table: Table, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    vectors = pa.list_(pa.float32(), table.width)
    schema = pa.schema([("path", pa.string()), ("vector", vectors), ("label", pa.string()), ("space", pa.string())])
    n_rows, done = len(table.order), 0
    paths = [None] * n_rows if table.paths is None else list(map(as_text, table.paths))
    labels = [None] * n_rows if table.labels is None else list(map(as_text, table.labels))
    with pq.ParquetWriter(path, schema) as writer:
        for rows in table.chunks():
            these = slice(done, done + len(rows))
            columns = [
                pa.array(paths[these], pa.string()),
                pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1), pa.float32()), type=vectors),
                pa.array(labels[these], pa.string()),
                pa.array([table.space] * len(rows), pa.string()),
            ]
            writer.write_batch(pa.record_batch(columns, schema=schema))
            done += len(rows)

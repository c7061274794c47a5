"""Files at a URL that fsspec can open: s3://, gs://, az://, memory://, ... Who may see them is fsspec's to know.

URLs come from command lines and settings alone: no request to the server names one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import fsspec
from fsspec.implementations.local import LocalFileSystem

from smn_core import files
from smn_core.errors import InvalidArgument, InvalidMask, NotFound, SMNError, Unavailable

OURS = ("http", "https", "file", "redis", "rediss", "unix", "hf")
"""Schemes that mean something else here: a server, a registry, the Hub."""
MOST_BYTES = 2**30
"""Of a mask's file: one bit each of eight billion weights."""


def is_store(text: str) -> bool:
    """Whether a text is the URL of a store of files."""
    scheme, sign, _ = text.partition("://")
    return bool(sign) and scheme not in OURS and "+" not in scheme


class Objects:
    """The files below one URL.

    Raises, all methods:
        InvalidArgument: no such scheme, a library is missing, or the store refuses.
        Unavailable: the store cannot be reached.
    """

    def __init__(self, url: str) -> None:
        if "::" in url:
            raise InvalidArgument(f"{url!r}: one URL, without ::")
        self.url = url.rstrip("/")
        with told(url):
            self._fs, root = fsspec.url_to_fs(self.url)
        self._root = str(root).rstrip("/")

    def list(self, under: str = "") -> list[str]:
        """Names of files and folders right below a folder, in order; none where there is no such folder."""
        folder = self._at(under)
        with told(self.url):
            self._fs.invalidate_cache()
            try:
                found = self._fs.ls(folder, detail=False)
            except FileNotFoundError:
                return []
        names = {str(path).rstrip("/").rpartition("/")[2] for path in found if str(path).rstrip("/") != folder}
        return sorted(names - {""})

    def read(self, name: str, most: int = MOST_BYTES) -> bytes:
        """A file.

        Raises:
            NotFound: there is none.
            InvalidMask: it has more than `most` bytes; it is not fetched then.
        """
        with told(self.url):
            try:
                n_bytes = int(self._fs.info(self._at(name))["size"] or 0)
                if n_bytes > most:
                    raise InvalidMask(f"{self.url}/{name} has {n_bytes:,} bytes, too many for a mask")
                data: bytes = self._fs.cat_file(self._at(name))
            except FileNotFoundError as error:
                raise NotFound(f"{self.url} has no {name}".rstrip()) from error
        return data

    def bytes_of(self, name: str) -> int | None:
        """How large a file is; None where there is none."""
        with told(self.url):
            self._fs.invalidate_cache()
            try:
                return int(self._fs.info(self._at(name))["size"] or 0)
            except FileNotFoundError:
                return None

    def write(self, name: str, data: bytes) -> None:
        """Put a file in the place of what is there, in one step where the store has such a step.

        Stores of objects have, and so has a folder; sftp:// and smb:// have none: there, a write that is stopped leaves
        half a file.
        """
        with told(self.url):
            self._fs.makedirs(self._at(name).rpartition("/")[0], exist_ok=True)
            if isinstance(self._fs, LocalFileSystem):
                files.write_bytes(self._at(name), data)
            else:
                self._fs.pipe_file(self._at(name), data)

    def delete(self, name: str) -> None:
        """Delete a file, if it is there."""
        with told(self.url), suppress(FileNotFoundError):
            self._fs.rm_file(self._at(name))

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root


@contextmanager
def told(url: str) -> Iterator[None]:
    """Turn what a store's library raises into one line."""
    try:
        yield
    except SMNError:
        raise
    except ImportError as error:
        raise InvalidArgument(f"{url}: {error}") from error
    except PermissionError as error:
        raise InvalidArgument(f"{url}: the store refuses: {_line(error)}") from error
    except ValueError as error:  # an unknown scheme
        raise InvalidArgument(f"{url}: {_line(error)}") from error
    except Exception as error:  # every store's library has errors of its own
        raise Unavailable(f"{url} cannot be reached or read: {_line(error)}") from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__

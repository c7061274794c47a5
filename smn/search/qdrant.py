"""A collection on a Qdrant server: `qdrant://host:port/photos`, or `qdrant+https://`.

What the collection says of itself is in its metadata, which servers have from 1.16 on. A row is a point, whose id
comes of its path, so that a path has one row whoever writes it.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from jaxtyping import Float32
from numpy import ndarray
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from smn.search.about import KEY, About, read_about
from smn.search.near import lengths_of, unit
from smn.search.places import Place
from smn.search.store import Found, Rows, Stamp, first_line
from smn_core.errors import InvalidArgument, InvalidData, SMNError, Unavailable

ROWS_AT_ONCE = 1024
"""Points of one answer: 8 MB of JSON where a vector has 768 components."""
TIMEOUT_S = 60
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class QdrantStore:
    """A collection of Qdrant, of cosine distances. Qdrant keeps vectors of length 1: their length is in the payload.

    Args:
        key: of the server.

    Raises:
        InvalidArgument: the key would go out in the clear, or the server refuses it.
        InvalidData: something else is there, or it is damaged.
        Unavailable: the server cannot be reached.
    """

    def __init__(self, place: Place, key: str | None = None) -> None:
        assert place.url is not None and place.url.hostname is not None
        self._where, self._name = str(place), place.name
        is_https = place.url.scheme == "qdrant+https"
        if key is not None and not is_https and place.url.hostname not in LOOPBACK:
            raise InvalidArgument(f"{place}: a key goes to qdrant+https:// alone, or to this machine")
        host = f"[{place.url.hostname}]" if ":" in place.url.hostname else place.url.hostname
        self._client = QdrantClient(
            f"{'https' if is_https else 'http'}://{host}:{place.url.port or 6333}",
            api_key=key if is_https else None,
            # The client warns of a key in the clear wherever it goes; to this machine it may.
            headers={"api-key": key} if key is not None and not is_https else None,
            timeout=TIMEOUT_S,
            check_compatibility=False,
        )
        self.about: About | None = None
        try:
            with _told(self._where):
                if self._client.collection_exists(self._name):
                    self.about = self._read_about()
        except SMNError:
            self._client.close()
            raise

    def begin(self, about: About) -> None:
        with _told(self._where):
            self._client.create_collection(
                self._name,
                vectors_config=models.VectorParams(size=about.width, distance=models.Distance.COSINE),
                metadata={KEY.decode(): about.as_metadata()[KEY].decode()},
            )
            if not self._client.get_collection(self._name).config.metadata:
                self._client.delete_collection(self._name)
                raise InvalidArgument(f"{self._where}: this server keeps no metadata: it needs Qdrant 1.16 or later")
        self.about = about

    def stamps(self) -> Mapping[str, Stamp]:
        return {
            point.payload["path"]: (point.payload["bytes"], point.payload["changed_ns"])
            for points in self._scroll(with_vectors=False)
            for point in points
        }

    def put(self, rows: Rows, known: Collection[str]) -> None:  # noqa: ARG002 (a path has one id)
        payloads = [
            {"path": path, "bytes": n_bytes, "changed_ns": changed, "length": float(length)}
            for path, (n_bytes, changed), length in zip(rows.paths, rows.stamps, lengths_of(rows.vectors), strict=True)
        ]
        batch = models.Batch(ids=list(map(_id_of, rows.paths)), payloads=payloads, vectors=rows.vectors.tolist())
        with _told(self._where):
            self._client.upsert(self._name, batch, wait=True)

    def remove(self, paths: Sequence[str]) -> None:
        with _told(self._where):
            for first in range(0, len(paths), ROWS_AT_ONCE):
                ids = [_id_of(path) for path in paths[first : first + ROWS_AT_ONCE]]
                self._client.delete(self._name, models.PointIdsList(points=ids), wait=True)

    def finish(self) -> None:
        """Nothing: Qdrant orders its rows by itself."""

    def nearest(self, vector: Float32[ndarray, "d"], top: int) -> Found:
        exact = models.SearchParams(exact=True)
        with _told(self._where):
            asked = unit(vector[None])[0].tolist()
            found = self._client.query_points(self._name, query=asked, limit=top, search_params=exact)
            return [(str(_payload(point)["path"]), float(point.score)) for point in found.points]

    def blocks(self) -> Iterator[tuple[list[str], Float32[ndarray, "n d"]]]:
        assert self.about is not None
        for points in self._scroll(with_vectors=True):
            with _told(self._where):
                if not points:
                    return
                vectors = np.asarray([point.vector for point in points], np.float32).reshape(-1, self.about.width)
                lengths = np.asarray([point.payload["length"] for point in points], np.float32)
                paths = [point.payload["path"] for point in points]
            yield paths, unit(vectors) * lengths[:, None]

    def close(self) -> None:
        self._client.close()

    def _read_about(self) -> About:
        config = self._client.get_collection(self._name).config
        told = (config.metadata or {}).get(KEY.decode())
        about = read_about({KEY: told.encode()} if isinstance(told, str) else None, self._where)
        vectors = config.params.vectors
        shape = (vectors.size, vectors.distance) if isinstance(vectors, models.VectorParams) else None
        if shape != (about.width, models.Distance.COSINE):
            raise InvalidData(f"{self._where} is damaged: its vectors are not those of a collection")
        return about

    def _scroll(self, *, with_vectors: bool) -> Iterator[list[Any]]:
        after: Any = None
        is_first = True
        while is_first or after is not None:
            with _told(self._where):
                points, after = self._client.scroll(
                    self._name, limit=ROWS_AT_ONCE, offset=after, with_vectors=with_vectors
                )
                for point in points:
                    _payload(point)
            is_first = False
            yield points


def _id_of(path: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, path))


def _payload(point: Any) -> Mapping[str, Any]:
    """What a point shows. Raises ValueError where it is none of ours."""
    found: Mapping[str, Any] = point.payload or {}
    if not {"path", "bytes", "changed_ns", "length"} <= found.keys():
        raise ValueError("a point has no path, so it is another's")
    return found


@contextmanager
def _told(where: str) -> Iterator[None]:
    """Turn what the client raises into one line."""
    try:
        yield
    except SMNError:
        raise
    except ResponseHandlingException as error:
        raise Unavailable(f"{where}: the Qdrant server cannot be reached: {first_line(error.source)}") from error
    except UnexpectedResponse as error:
        if error.status_code in (401, 403):
            raise InvalidArgument(f"{where}: the server refuses ({error.status_code}): give --store-key") from error
        status, body = error.status_code or 0, first_line(error.content.decode("utf-8", "replace"))
        kind = Unavailable if status >= 500 else InvalidData
        raise kind(f"{where}: the Qdrant server answered {status}: {body}") from error
    except Exception as error:  # an answer that is not Qdrant's
        raise InvalidData(f"{where} is damaged, or no collection of smn index: {first_line(error)}") from error

"""A collection as a table of PostgreSQL with pgvector: `postgresql://user@host:port/database/photos`.

What the collection says of itself is the table's comment. Every write is one transaction.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, LiteralString
from urllib.parse import quote, urlunsplit

import numpy as np
import psycopg
from jaxtyping import Float32
from numpy import ndarray
from pgvector.psycopg import register_vector
from psycopg import sql

from smn.search.about import KEY, About, read_about
from smn.search.places import Place
from smn.search.store import Found, Rows, Stamp, first_line
from smn_core.errors import Conflict, InvalidArgument, InvalidData, SMNError, Unavailable

ROWS_AT_ONCE = 4096
COLUMNS = ("path", "bytes", "changed_ns", "vector")
WAIT_S = 10
"""For a connection."""
REFUSALS = (psycopg.errors.InsufficientPrivilege, psycopg.errors.FeatureNotSupported, psycopg.errors.UndefinedFile)
"""What PostgreSQL raises where a user may not do something, or pgvector is not installed."""


class PostgresStore:
    """A table.

    Raises:
        InvalidArgument: the server lets this user not do it.
        InvalidData: something else is there, or it is damaged.
        Unavailable: the server cannot be reached.
    """

    def __init__(self, place: Place) -> None:
        self._where, self._name = str(place), place.name
        self._db = _connect(place)
        self.about: About | None = None
        try:
            with _told(self._where):
                if self._ask("SELECT to_regclass(quote_ident(%s))", self._name)[0][0] is not None:
                    self.about = self._read_about()
                    register_vector(self._db)
        except SMNError:
            self._db.close()
            raise

    def begin(self, about: About) -> None:
        with _told(self._where), self._db.transaction():
            self._do("CREATE EXTENSION IF NOT EXISTS vector")
            self._do(
                "CREATE TABLE {table} (path text PRIMARY KEY, bytes bigint NOT NULL, changed_ns bigint NOT NULL,"
                " vector vector({width}) NOT NULL)",
                width=sql.Literal(about.width),
            )
            told = about.as_metadata()[KEY].decode()
            self._do("COMMENT ON TABLE {table} IS {told}", told=sql.Literal(told))
            register_vector(self._db)
        self.about = about

    def stamps(self) -> Mapping[str, Stamp]:
        with _told(self._where):
            rows = self._db.execute(self._sql("SELECT path, bytes, changed_ns FROM {table}"))
            return {path: (n_bytes, changed) for path, n_bytes, changed in rows}

    def put(self, rows: Rows, known: Collection[str]) -> None:  # noqa: ARG002 (a path is a key)
        with _told(self._where), self._db.transaction(), self._db.cursor() as cursor:
            cursor.execute(self._sql("CREATE TEMP TABLE arriving (LIKE {table}) ON COMMIT DROP"))
            with cursor.copy("COPY arriving FROM STDIN WITH (FORMAT BINARY)") as copy:
                copy.set_types(["text", "int8", "int8", "vector"])
                for path, (n_bytes, changed), vector in zip(rows.paths, rows.stamps, rows.vectors, strict=True):
                    copy.write_row((path, n_bytes, changed, vector))
            cursor.execute(
                self._sql(
                    "INSERT INTO {table} SELECT * FROM arriving ON CONFLICT (path) DO UPDATE"
                    " SET bytes = excluded.bytes, changed_ns = excluded.changed_ns, vector = excluded.vector"
                )
            )

    def remove(self, paths: Sequence[str]) -> None:
        with _told(self._where):
            self._db.execute(self._sql("DELETE FROM {table} WHERE path = ANY(%s)"), (list(paths),))

    def finish(self) -> None:
        """Give back the room of rows that are gone, and count what is there."""
        if self.about is not None:
            with _told(self._where):
                self._do("VACUUM (ANALYZE) {table}")

    def nearest(self, vector: Float32[ndarray, "d"], top: int) -> Found:
        with _told(self._where), self._db.transaction():
            # An index that somebody made besides would answer with what it finds, not with the nearest.
            self._do("SET LOCAL enable_indexscan = off")
            asked = "SELECT path, 1 - (vector <=> %s) FROM {table} ORDER BY vector <=> %s, path LIMIT %s"
            rows = self._db.execute(self._sql(asked), (vector, vector, top))
            return [(path, float(near)) for path, near in rows]

    def blocks(self) -> Iterator[tuple[list[str], Float32[ndarray, "n d"]]]:
        assert self.about is not None
        with _told(self._where), self._db.transaction(), self._db.cursor("blocks", binary=True) as cursor:
            cursor.execute(self._sql("SELECT path, vector FROM {table}"))
            while rows := cursor.fetchmany(ROWS_AT_ONCE):
                vectors = np.stack([vector.to_numpy() for _, vector in rows]).astype(np.float32)
                yield [path for path, _ in rows], vectors

    def close(self) -> None:
        self._db.close()

    def _read_about(self) -> About:
        told = self._ask("SELECT obj_description(to_regclass(quote_ident(%s)), 'pg_class')", self._name)[0][0]
        about = read_about({KEY: told.encode()} if told is not None and told[:1] == "{" else None, self._where)
        columns = self._ask(
            "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute"
            " WHERE attrelid = to_regclass(quote_ident(%s)) AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
            self._name,
        )
        kinds = ("text", "bigint", "bigint", f"vector({about.width})")
        if columns != list(zip(COLUMNS, kinds, strict=True)):
            raise InvalidData(f"{self._where} is damaged: its columns are not those of a collection")
        return about

    def _ask(self, text: LiteralString, *values: object) -> list[tuple[Any, ...]]:
        return self._db.execute(text, values).fetchall()

    def _do(self, text: LiteralString, **parts: sql.Composable) -> None:
        self._db.execute(self._sql(text, **parts))

    def _sql(self, text: LiteralString, **parts: sql.Composable) -> sql.Composed:
        return sql.SQL(text).format(table=sql.Identifier(self._name), **parts)


@contextmanager
def alone(place: Place) -> Iterator[None]:
    """Be the only one that writes a table; the server frees it when the connection ends, however it ends.

    Raises:
        Conflict: another smn index writes it.
    """
    db = _connect(place)
    try:
        with _told(str(place)):
            asked = db.execute("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", (f"smn {place.name}",))
            is_mine = asked.fetchall()[0][0]
        if not is_mine:
            raise Conflict(f"another smn index writes {place}: wait for it")
        yield
    finally:
        db.close()


def _connect(place: Place) -> psycopg.Connection[tuple[Any, ...]]:
    """A connection to the database; the last part of the path is the collection, and libpq does not know of it."""
    assert place.url is not None
    database = place.url.path.strip("/").split("/")[0]
    url = urlunsplit(place.url._replace(scheme="postgresql", path=f"/{quote(database, safe='%')}"))
    with _told(str(place)):
        return psycopg.connect(url, autocommit=True, connect_timeout=WAIT_S)


@contextmanager
def _told(where: str) -> Iterator[None]:
    """Turn what psycopg raises into one line."""
    try:
        yield
    except SMNError:
        raise
    except REFUSALS as error:
        raise InvalidArgument(f"{where}: the server refuses: {first_line(error)}") from error
    except psycopg.OperationalError as error:
        raise Unavailable(f"{where}: PostgreSQL cannot be reached: {first_line(error)}") from error
    except psycopg.ProgrammingError as error:
        raise InvalidArgument(f"{where}: {first_line(error)}") from error
    except Exception as error:  # what else damaged tables lead to
        raise InvalidData(f"{where} is damaged, or no collection of smn index: {first_line(error)}") from error

"""Inputs that want to hurt: each kind, and the statuses that it may get. None of them may cost others an answer."""

from __future__ import annotations

import asyncio
import contextlib
import io
import struct
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from benchmarks.soaking.known import Unanswered
from benchmarks.soaking.traffic import ADMIN, NPY, READER, Client
from smn_core import tensorfile

KEY = "hostile"
CLOSED = 0
"""The server closed the connection without an answer."""
WITHIN_S = 60.0
"""In which a hostile connection is answered or closed: a head has 10 s, a body the deadline of 30 s and 6 s more."""
COSTLY_PX = 4000
KINDS = (
    "damaged image", "bomb", "costly image", "half a request", "trailers", "npy header", "deep JSON", "wide JSON",
    "wrong key", "wrong name", "damaged file", "unsayable file", "upgrade",
)  # fmt: skip


class Hostile:
    """One kind of input after another, by chance, through the connections of a client or raw ones."""

    def __init__(self, client: Client) -> None:
        self.client, self.world, self.rng = client, client.world, client.rng
        first = next(iter(client.world.masks.values()))[0]
        self._mask, self._array = first.data, client.world.arrays[0].body
        self._bombs = [png_that_declares(20_000), empty_webp(), many_scans()]
        self._costly = encoded(Image.new("RGB", (COSTLY_PX, COSTLY_PX), (3, 4, 5)), "PNG")
        file = tensorfile.parse_tensors(first.data)
        metadata = {key: value for key, value in file.metadata.items() if key != "content"}
        self._unsayable = [
            tensorfile.serialise_with_content(file.tensors, {**metadata, "preprocess": text})
            for text in ('{"interpolation": "\\ud800"}', '{"interpolation": ' + "[" * 260 + "1" + "]" * 260 + "}")
        ]
        ways = (
            self.damaged_image, self.bomb, self.costly_image, self.half, self.trailers, self.npy, self.deep, self.wide,
            self.wrong_key, self.wrong_name, self.damaged_file, self.unsayable, self.upgrade,
        )  # fmt: skip
        self.kinds: dict[str, Callable[[], Awaitable[None]]] = dict(zip(KINDS, ways, strict=True))

    async def one(self, kind: str) -> None:
        """Send one of a kind. Its answers are counted, those that may not be are faults."""
        with contextlib.suppress(Unanswered):
            await self.kinds[kind]()

    async def damaged_image(self) -> None:
        sent = self._one_of(self.world.photos)
        cut = sent.body[: int(self.rng.integers(20, len(sent.body) // 2))]
        await self._ask("damaged image", "POST", "/embed", cut, (422,), Content_Type=sent.kind)

    async def bomb(self) -> None:
        await self._ask("bomb", "POST", "/embed", self._one_of(self._bombs), (413, 422), Content_Type="image/png")

    async def costly_image(self) -> None:
        """More work than its deadline allows: the decode is ended, with its process."""
        await self._ask(
            "costly image", "POST", "/embed", self._costly, (200, 504), Content_Type="image/png", X_Timeout_Ms="150"
        )

    async def npy(self) -> None:
        shapes = ("(True,3,32,32)", "(-1,3,32,32)", "(1,3,32,32,1)", "(10**9,3,32,32)", "(99999999,3,32,32)", "()")
        types = ("<f4", "|O", "<f8", ">f4", "<U9999999")
        header = f"{{'descr': '{self._one_of(types)}', 'fortran_order': True, 'shape': {self._one_of(shapes)}, }}"
        body = b"\x93NUMPY\x01\x00v\x00" + header.encode().ljust(117) + b"\n" + bytes(12288)
        await self._ask("npy header", "POST", "/embed", body, (400, 413, 422), Content_Type=NPY)

    async def deep(self) -> None:
        path = self._one_of(["/embed", "/v1/embeddings", "/classify?mask=mask-1"])
        await self._ask("deep JSON", "POST", path, b"[" * 200_000, (400, 413), Content_Type="application/json")

    async def wide(self) -> None:
        body = b'{"model":"x","input":[' + b"1," * 200_000 + b"1]}"
        await self._ask("wide JSON", "POST", "/v1/embeddings", body, (400, 413), Content_Type="application/json")

    async def wrong_key(self) -> None:
        if self.rng.random() < 0.5:
            await self._ask("wrong key", "POST", "/embed", self._array, (401,), key="no-such-key", Content_Type=NPY)
        else:
            path = f"/masks/{self._one_of(list(self.world.masks))}"
            await self._ask("wrong key", "PUT", path, self._mask, (403,), key=READER)

    async def wrong_name(self) -> None:
        names = (
            "nosuch",
            "mask-0@99999999",
            "mask-0@sha256:00",
            "mask-0@nobody",
            "MASK",
            "%ff%00",
            "a" * 3000,
            "..%2f..",
        )
        path = f"/embed?mask={self._one_of(names)}"
        await self._ask("wrong name", "POST", path, self._array, (400, 404, 414, 422), Content_Type=NPY)

    async def damaged_file(self) -> None:
        data = bytearray(self._mask)
        data[int(self.rng.integers(len(data)))] ^= 1 << int(self.rng.integers(8))
        await self._ask("damaged file", "PUT", "/masks/hostile", bytes(data), (422,), key=ADMIN)

    async def unsayable(self) -> None:
        file = self._one_of(self._unsayable)
        await self._ask("unsayable file", "PUT", "/masks/hostile", file, (422,), key=ADMIN)

    async def half(self) -> None:
        """Half a head, or a body that never comes, then silence: the server closes the connection."""
        head = b"POST /embed?mask=mask-0 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer hostile\r\n"
        rest = self._one_of([b"", b"Content-Type: image/png\r\nContent-Length: 100000\r\n\r\n\x89PNG"])
        await self._raw("half a request", head + rest, (CLOSED, 408, 504))

    async def trailers(self) -> None:
        head = b"POST /embed HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nAuthorization: Bearer hostile\r\n\r\n"
        endless = b"".join(b"T%05d: v\r\n" % i for i in range(100_000))
        await self._raw("trailers", head + b"1\r\n{\r\n0\r\n" + endless, (CLOSED, 400, 413, 415, 431))

    async def upgrade(self) -> None:
        """An offer of HTTP/2 is ignored: the body belongs to this request, which is answered."""
        head = (
            "POST /embed HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
            f"HTTP2-Settings: AAMAAABkAAQAAP__\r\nAuthorization: Bearer {KEY}\r\nContent-Type: {NPY}\r\n"
            f"Content-Length: {len(self._array)}\r\n\r\n"
        )
        await self._raw("upgrade", head.encode() + self._array, (200,))

    async def _ask(
        self, kind: str, method: str, path: str, body: bytes, allowed: tuple[int, ...], key: str = KEY, **headers: Any
    ) -> None:
        await self.client.ask(f"hostile: {kind}", method, path, body, allowed=allowed, key=key, **headers)

    async def _raw(self, kind: str, data: bytes, allowed: tuple[int, ...]) -> None:
        """Write to a connection of its own and wait for the first line of an answer, or for the end."""
        seen, url = self.client.seen, urlsplit(self._one_of(self.client.servers))
        began = time.monotonic()
        status = CLOSED
        try:
            async with asyncio.timeout(WITHIN_S):
                reader, writer = await asyncio.open_connection(url.hostname, url.port)
                try:
                    with contextlib.suppress(ConnectionError):
                        writer.write(data)
                        await writer.drain()
                    with contextlib.suppress(ConnectionError):
                        line = await reader.readline()
                        status = int(line.split()[1]) if line else CLOSED
                finally:
                    writer.close()
        except TimeoutError:
            seen.fault(f"hostile: {kind}: still open after {WITHIN_S:.0f} s")
            return
        seen.answers[f"hostile: {kind} {status or 'closed'}"] += 1
        if status not in allowed and not (status in (503, 504) and self.client.away.covers(began, time.monotonic())):
            seen.fault(f"hostile: {kind}: {status or 'closed'}")

    def _one_of(self, values: Any) -> Any:
        return self.client._one_of(values)


def encoded(image: Image.Image, fmt: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def png_that_declares(side_px: int) -> bytes:
    """A small PNG whose header tells of a large one."""
    file = bytearray(encoded(Image.new("RGB", (8, 8)), "PNG"))
    file[16:24] = struct.pack(">II", side_px, side_px)
    return bytes(file)


def empty_webp() -> bytes:
    """34 bytes that declare 16,383 x 16,383 px."""
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\x10\0\0\0" + (16382).to_bytes(3, "little") * 2 + b"ICCP"
    return b"RIFF" + struct.pack("<I", len(body)) + body


def many_scans() -> bytes:
    """A progressive JPEG whose last scan stands there 10,000 times."""
    file = encoded(Image.new("RGB", (500, 500), (9, 99, 199)), "JPEG", progressive=True)
    return file[:-2] + file[file.rindex(b"\xff\xda") : -2] * 10_000 + b"\xff\xd9"

"""One client of a soak: requests of every kind, each answer compared with the reference of its digest."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence, Set
from functools import partial
from typing import Any

import aiohttp
import numpy as np

from benchmarks.soaking.known import LAG_S, Answer, Away, Change, Name, Seen, Stalls, Unanswered
from benchmarks.soaking.world import WITHIN, File, Sent, Vectors, World, relative_error
from smn_core.cascade.fusion import MODES

ADMIN, READER = "admin", "reader"
KEPT_VERSIONS = 10
AWAY = (503, 504)
NPY = "application/x-npy"


class Client:
    """Sends requests of random kinds to random servers.

    It changes only names of its own, `own`; it reads all of them. Of names that others change it knows the files alone.
    """

    def __init__(
        self,
        world: World,
        servers: Sequence[str],
        own: Set[str],
        rng: np.random.Generator,
        away: Away,
        seen: Seen,
        stalls: Stalls,
    ) -> None:
        self.world, self.servers, self.rng, self.away, self.seen = world, servers, rng, away, seen
        self.stalls = stalls
        self.names: dict[str, Name] = defaultdict(Name)
        self.own = sorted(own)
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=256), timeout=aiohttp.ClientTimeout(total=60)
        )
        self.kinds: dict[str, tuple[float, Callable[[], Awaitable[None]]]] = {
            "embed npy": (30, partial(self.embed, "embed npy", world.arrays)),
            "embed photo": (14, partial(self.embed, "embed photo", world.photos)),
            "embed several": (8, partial(self.embed, "embed several", world.several)),
            "embed root": (4, self.embed_root),
            "embed by digest": (4, self.embed_digest),
            "classify": (8, self.classify),
            "v1/embeddings": (8, self.openai),
            "cascade": (6, self.cascade),
            "list": (2, self.listing),
            "models": (1, self.models),
            "inspect": (2, self.inspect),
            "file": (2, self.file),
            "state": (1, self.state),
            "upload": (5, self.upload),
            "roll": (3, self.roll),
            "prune": (2, self.prune),
        }
        weights = np.array([weight for weight, _ in self.kinds.values()])
        self._odds = weights / weights.sum()

    async def fill(self) -> None:
        """Upload every file of the own names, and the cascades with their masks if they are among them."""
        for name, file in self.world.parts.items():
            if name.rpartition(".")[0].rpartition(".")[0] in self.own:
                await self._change("PUT", f"/masks/{name}", name, file.digest, file.data)
        for name, files in (*self.world.masks.items(), *self.world.cascades.items()):
            if name in self.own:
                for file in files:
                    await self._change("PUT", f"{self._folder(name)}/{name}", name, file.digest, file.data)

    async def one(self) -> None:
        """A request of a random kind."""
        kind = str(self.rng.choice(list(self.kinds), p=self._odds))
        try:
            await self.kinds[kind][1]()
        except Unanswered:
            pass
        except (KeyError, ValueError, TypeError, IndexError) as error:
            self.seen.wrong += 1
            self.seen.fault(f"{kind}: an answer that cannot be read: {error!r}")

    async def ask(
        self,
        kind: str,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        allowed: tuple[int, ...] = (200,),
        server: int | None = None,
        key: str = READER,
        **headers: str,
    ) -> Answer:
        """Send a request; header names have underscores.

        Raises:
            Unanswered: no answer, or another status than those allowed, and than 503 and 504 while Redis is away.
        """
        server = int(self.rng.integers(len(self.servers))) if server is None else server
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        named["Authorization"] = f"Bearer {key}"
        began = time.monotonic()
        try:
            async with self.session.request(method, self.servers[server] + path, data=body, headers=named) as answer:
                got = Answer(answer.status, answer.headers, await answer.read(), began, time.monotonic(), server)
        except (aiohttp.ClientError, TimeoutError) as error:
            self.seen.answers[f"{kind} no answer"] += 1
            if self.stalls.covers(began, time.monotonic()):
                self.seen.stalled += 1
            else:
                self.seen.fault(f"{kind} {method} {path}: {error!r} after {time.monotonic() - began:.1f} s")
            raise Unanswered from error
        self.seen.answers[f"{kind} {got.status}"] += 1
        self.seen.latencies_s.append(got.ended - began)
        if got.status in allowed:
            return got
        if got.status in AWAY and self.away.covers(began, got.ended):
            self.seen.away += 1
        elif got.status in AWAY and self.stalls.covers(began, got.ended):
            self.seen.stalled += 1
        else:
            self.seen.fault(f"{kind} {method} {path}: {got.status} {got.body[:300]!r}")
        raise Unanswered

    # Requests that embed

    async def embed(self, kind: str, bodies: Sequence[Sent]) -> None:
        name, sent = self._mask_name(), self._one_of(bodies)
        accept = self._one_of([NPY, "application/json"])
        answer = await self.ask(kind, "POST", f"/embed?mask={name}", sent.body, Content_Type=sent.kind, Accept=accept)
        file = self._file_of(kind, name, answer)
        if accept == NPY:
            z = np.load(io.BytesIO(answer.body))
        else:
            said = answer.json
            self._know(kind, name, said["mask"]["version"], said["mask"]["digest"])
            z = np.array(said["embeddings"], np.float32)
        self._compare(kind, name, z, file.z[""][sent.rows])

    async def embed_root(self) -> None:
        sent = self._one_of(self.world.arrays)
        answer = await self.ask("root", "POST", "/embed", sent.body, Content_Type=sent.kind, Accept=NPY)
        self._compare("root", "root", np.load(io.BytesIO(answer.body)), self.world.root.z[""][sent.rows])

    async def embed_digest(self) -> None:
        name, sent = self._mask_name(), self._one_of(self.world.arrays)
        file = self._one_of(self.world.masks[name])
        path = f"/embed?mask={name}@{file.digest}"
        # 404: all versions with this file may have been pruned.
        answer = await self.ask(
            "digest", "POST", path, sent.body, allowed=(200, 404), Content_Type=sent.kind, Accept=NPY
        )
        if answer.status == 200:
            self._compare("digest", name, np.load(io.BytesIO(answer.body)), file.z[""][sent.rows])

    async def classify(self) -> None:
        name = self._one_of([name for name, files in self.world.masks.items() if files[0].classes])
        sent = self._one_of([*self.world.photos, *self.world.several])
        answer = await self.ask("classify", "POST", f"/classify?mask={name}", sent.body, Content_Type=sent.kind)
        file = self._file_of("classify", name, answer)
        assert file.probabilities is not None
        found = np.array(
            [
                [dict(zip(row["classes"], row["probs"], strict=True))[c] for c in file.classes]
                for row in answer.json["data"]
            ]
        )
        self._compare("classify", name, found, file.probabilities[sent.rows])

    async def openai(self) -> None:
        name, sent = self._mask_name(), self._one_of(self.world.photos)
        form = self._one_of(["float", "base64"])
        uri = f"data:{sent.kind};base64,{base64.b64encode(sent.body).decode()}"
        body = json.dumps({"model": name, "input": [uri], "encoding_format": form}).encode()
        answer = await self.ask("openai", "POST", "/v1/embeddings", body, Content_Type="application/json")
        file = self._file_of("openai", name, answer)
        (value,) = (row["embedding"] for row in answer.json["data"])
        z = np.frombuffer(base64.b64decode(value), "<f4") if form == "base64" else np.array(value, np.float32)
        self._compare("openai", name, z[None], file.z[""][sent.rows])

    async def cascade(self) -> None:
        name, mode = self._one_of(list(self.world.cascades)), self._one_of(list(MODES))
        sent = self._one_of([*self.world.arrays, *self.world.photos])
        path = f"/embed?cascade={name}&mode={mode}"
        answer = await self.ask("cascade", "POST", path, sent.body, Content_Type=sent.kind, Accept=NPY)
        file = self._file_of("cascade", name, answer)
        self._compare("cascade", name, np.load(io.BytesIO(answer.body)), file.z[mode][sent.rows])

    # Requests that look

    async def listing(self) -> None:
        answer = await self.ask("list", "GET", "/masks?limit=1000")
        found = {entry["name"]: entry["current"]["digest"] for entry in answer.json["data"]}
        for name, files in self.world.masks.items():
            if found.get(name) not in {file.digest for file in files}:
                self._wrong("list", f"{name} is {found.get(name)}")

    async def models(self) -> None:
        ids = {entry["id"] for entry in (await self.ask("models", "GET", "/v1/models")).json["data"]}
        if absent := self.world.masks.keys() - ids:
            self._wrong("models", f"{sorted(absent)} are not there")

    async def inspect(self) -> None:
        name = self._one_of(self.own)
        server = int(self.rng.integers(len(self.servers)))
        async with self.names[name].lock:  # nobody deletes one meanwhile
            answer = await self.ask("inspect", "GET", f"{self._folder(name)}/{name}", server=server)
            listed = {entry["version"]: entry["digest"] for entry in answer.json["versions"]}
            for version, digest in self._settled(name, server, answer).items():
                if listed.get(version) != digest:
                    self._wrong("inspect", f"{name}@{version} is {listed.get(version)}, acknowledged was {digest}")

    def _settled(self, name: str, server: int, answer: Answer) -> dict[int, str]:
        """Versions that this server must know: all, unless another server took a change a moment ago."""
        known = self.names[name]
        recent = [
            c for c in known.changes if c.server != server and (c.ended or c.began) > answer.began - self._lag(answer)
        ]
        return {} if recent else known.versions

    async def file(self) -> None:
        name = self._mask_name()
        answer = await self.ask("file", "GET", f"/masks/{name}/file")
        if f"sha256:{hashlib.sha256(answer.body).hexdigest()}" != answer.headers["X-SMN-Digest"]:
            self._wrong("file", f"{name}: the bytes are not those of its digest")
        self._file_of("file", name, answer)

    async def state(self) -> None:
        await self.ask(
            "state", self._one_of(["GET", "HEAD"]), self._one_of(["/info", "/metrics", "/livez", "/openapi.json"])
        )

    # Requests that change

    async def upload(self) -> None:
        name = self._one_of(self.own)
        file = self._one_of(self.world.masks.get(name) or self.world.cascades[name])
        await self._change("PUT", f"{self._folder(name)}/{name}", name, file.digest, file.data)

    async def roll(self) -> None:
        name = self._one_of(self.own)
        async with self.names[name].lock:
            versions = self.names[name].versions
            version = self._one_of(list(versions))
            body = json.dumps({"version": version}).encode()
            await self._changed("PUT", f"{self._folder(name)}/{name}/current", name, versions[version], body)

    async def _change(self, method: str, path: str, name: str, digest: str, body: bytes) -> None:
        async with self.names[name].lock:
            await self._changed(method, path, name, digest, body)

    async def _changed(self, method: str, path: str, name: str, digest: str, body: bytes) -> None:
        """Change what a name means; the caller holds its lock."""
        server = int(self.rng.integers(len(self.servers)))
        change = Change(digest, server, time.monotonic())
        self.names[name].changes.append(change)
        kind = "json" if body[:1] == b"{" else "octet-stream"
        answer = await self.ask(
            "change", method, path, body, allowed=(200, 201), server=server, key=ADMIN,
            Content_Type=f"application/{kind}",
        )  # fmt: skip
        change.ended = answer.ended
        said = answer.json
        if said["digest"] != digest:
            self._wrong("change", f"{name}: {said['digest']} was acknowledged for {digest}")
        self._know("change", name, said["version"], digest)
        self.names[name].versions[said["version"]] = digest

    async def prune(self) -> None:
        """Delete the oldest version of a name with many."""
        name = self._one_of(self.own)
        async with self.names[name].lock:
            versions = self.names[name].versions
            if len(versions) <= KEPT_VERSIONS:
                return
            oldest = min(versions)
            digest = versions.pop(oldest)
            path = f"{self._folder(name)}/{name}?version={oldest}"
            # 409: it is the current one. 404: a server that died took it, and its answer was lost.
            answer = await self.ask("prune", "DELETE", path, allowed=(204, 404, 409), key=ADMIN)
            if answer.status == 409:
                versions[oldest] = digest

    async def check(self) -> None:
        """At the end, with nothing in work: every server knows every version that was acknowledged and not deleted."""
        for name in self.own:
            for server in range(len(self.servers)):
                with contextlib.suppress(Unanswered):
                    answer = await self.ask("check", "GET", f"{self._folder(name)}/{name}", server=server)
                    listed = {entry["version"]: entry["digest"] for entry in answer.json["versions"]}
                    if absent := self.names[name].versions.items() - listed.items():
                        self._wrong("check", f"{name}: {sorted(absent)} were acknowledged")

    # What an answer is held against

    def _file_of(self, kind: str, name: str, answer: Answer) -> File:
        """The file whose digest the answer names, if the name may have meant it then."""
        digest = answer.headers["X-SMN-Digest"]
        files = {file.digest: file for file in self.world.masks.get(name) or self.world.cascades[name]}
        if digest not in files:
            self._wrong(kind, f"{name}: {digest} is none of its files")
            raise Unanswered
        if name in self.own:
            allowed = self.names[name].allowed(answer.server, answer.began, answer.ended, self._lag(answer))
            if digest not in allowed:
                self._wrong(kind, f"{name}: {digest} is older than what was acknowledged, {sorted(allowed)}")
        return files[digest]

    def _lag(self, answer: Answer) -> float:
        """A server hears of another's changes only while Redis is there."""
        times = answer.began - LAG_S, answer.ended
        return float("inf") if self.away.covers(*times) or self.stalls.covers(*times) else LAG_S

    def _know(self, kind: str, name: str, version: int, digest: str) -> None:
        """A version's number means one file for ever."""
        known = self.names[name].versions.get(version, digest)
        if known != digest:
            self._wrong(kind, f"{name}@{version} was {known} and is {digest}")

    def _compare(self, kind: str, name: str, found: Vectors, expected: Vectors) -> None:
        self.seen.compared += 1
        if found.shape != expected.shape or not relative_error(found, expected) <= WITHIN:
            self._wrong(kind, f"{name}: {found.shape}, not what its digest means")

    def _wrong(self, kind: str, told: str) -> None:
        self.seen.wrong += 1
        self.seen.fault(f"WRONG {kind}: {told}")

    def _folder(self, name: str) -> str:
        return "/cascades" if name in self.world.cascades else "/masks"

    def _mask_name(self) -> str:
        return self._one_of(list(self.world.masks))

    def _one_of(self, values: Any) -> Any:
        return values[int(self.rng.integers(len(values)))]

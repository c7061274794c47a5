"""A stand-in for a Qdrant server: its HTTP API, as far as the collections need it, over qdrant-client's local mode."""

from __future__ import annotations

import json
import re
import threading

from qdrant_client import QdrantClient, models
from standin import StandIn


class StandInQdrant(StandIn):
    """`key` is what it asks for, `failing` the status of every answer, `keeps_metadata` as servers from 1.16 do."""

    def __init__(self):
        super().__init__()
        self.local = QdrantClient(":memory:", force_disable_check_same_thread=True)
        self.key, self.failing, self.keeps_metadata = None, None, True
        self.one = threading.Lock()
        self.url = f"qdrant://{self.address}"

    def __exit__(self, *_):
        super().__exit__()
        self.local.close()

    def reply(self, method, path, body, headers):
        return *self.answer(method, path, body, headers.get("api-key")), {"Content-Type": "application/json"}

    def answer(self, method, path, body, key):
        if self.key is not None and key != self.key:
            return 403, b"forbidden"
        if self.failing is not None:
            return self.failing, b"<html>no</html>"
        found = re.fullmatch(r"/collections/([^/?]+)(/[^?]*)?(\?.*)?", path)
        name, rest = found[1], found[2] or ""
        asked = json.loads(body) if body else {}
        with self.one:
            if rest != "/exists" and method != "PUT" and not self.local.collection_exists(name):
                return 404, {"status": {"error": f"Not found: Collection `{name}` doesn't exist!"}}
            result = self.act(method, name, rest, asked)
        if hasattr(result, "model_dump"):
            result = result.model_dump(mode="json")
        return 200, {"result": result, "status": "ok", "time": 0.0}

    def act(self, method, name, rest, asked):
        local = self.local
        acts = {
            "GET /exists": lambda: {"exists": local.collection_exists(name)},
            "GET ": lambda: local.get_collection(name),
            "PUT ": lambda: self.create(name, asked),
            "DELETE ": lambda: local.delete_collection(name),
            "PUT /points": lambda: local.upsert(name, models.Batch(**asked["batch"])),
            "POST /points/delete": lambda: local.delete(name, models.PointIdsList(points=asked["points"])),
            "POST /points/query": lambda: self.query(name, asked),
            "POST /points/scroll": lambda: self.scroll(name, asked),
        }
        return acts[f"{method} {rest}"]()

    def create(self, name, asked):
        kept = asked.get("metadata") if self.keeps_metadata else None
        return self.local.create_collection(name, models.VectorParams(**asked["vectors"]), metadata=kept)

    def query(self, name, asked):
        assert asked["params"]["exact"] is True
        return self.local.query_points(name, query=asked["query"]["nearest"], limit=asked["limit"])

    def scroll(self, name, asked):
        points, after = self.local.scroll(
            name, limit=asked["limit"], offset=asked.get("offset"), with_vectors=asked["with_vector"]
        )
        return {"points": [point.model_dump(mode="json") for point in points], "next_page_offset": after}

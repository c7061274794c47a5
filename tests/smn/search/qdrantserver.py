"""A stand-in for a Qdrant server: its HTTP API, as far as the collections need it, over qdrant-client's local mode."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from qdrant_client import QdrantClient, models


class StandInQdrant:
    """`key` is what it asks for, `failing` the status of every answer, `keeps_metadata` as servers from 1.16 do."""

    def __init__(self):
        self.local = QdrantClient(":memory:", force_disable_check_same_thread=True)
        self.key, self.failing, self.keeps_metadata = None, None, True
        self.one = threading.Lock()
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, found = stand_in.answer(self.command, self.path, body, self.headers.get("api-key"))
                data = found if isinstance(found, bytes) else json.dumps(found).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_PUT = do_POST = do_DELETE = handle_any

            def log_message(self, *_):
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"qdrant://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()
        self.local.close()

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

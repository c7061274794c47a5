"""A stand-in for the Hub's HTTP API, for the real client: repositories, commits, LFS files, tokens, and what breaks."""

from __future__ import annotations

import hashlib
import json
import re
from base64 import b64decode
from urllib.parse import unquote

from standin import StandIn

TOKEN = "hf_right"


class StandInHub(StandIn):
    """`repos[repo][revision]` is a commit's id, `commits[id]` its files.

    `failing` are (method, part of the path, status) that answer so; `cut` serves half of a file, with the whole's size.
    """

    def __init__(self):
        super().__init__()
        self.repos, self.commits, self.private, self.objects = {}, {}, set(), {}
        self.failing, self.cut, self.seen = [], False, []
        self.url = f"http://{self.address}"

    def reply(self, method, path, body, headers):
        path = unquote(path.split("?")[0])
        self.seen.append((method, path, headers.get("Authorization")))
        for failing, part, status in self.failing:
            if failing == method and part in path:
                return status, {"error": "no"}
        return self.answer(method, path, body, headers)

    def file(self, repo, path="mask.smn", revision="main"):
        return self.commits[self.repos[repo][revision]][path]

    def commit(self, repo, revision, files):
        branches = self.repos.setdefault(repo, {})
        now = {**self.commits.get(branches.get(revision, ""), {}), **files}
        number = hashlib.sha1(f"{repo}{len(self.commits)}".encode()).hexdigest()
        self.commits[number] = now
        branches[revision] = branches[number] = number
        return number

    def answer(self, method, path, body, headers):
        said = headers.get("Authorization")
        if said not in (None, f"Bearer {TOKEN}"):
            return 401, {"error": "Invalid"}, {"X-Error-Message": "Invalid credentials in Authorization header"}
        routes = (
            ("GET|HEAD", "/([^/]+/[^/]+)/resolve/(.+)/([^/]+)", lambda *at: self.resolve(*at, known=said is not None)),
            ("PUT", "/lfs/(.+)", lambda oid: self.take_object(oid, body)),  # a signed address needs no token
            ("POST", "/api/validate-yaml", lambda: (200, {"errors": [], "warnings": []})),
            ("POST", "/api/repos/create", lambda: self.create(json.loads(body))),
            ("POST", "/api/models/([^/]+/[^/]+)/preupload/(.+)", lambda *_: self.say_modes(json.loads(body))),
            ("POST", r"/(.+)\.git/info/lfs/objects/batch", lambda _: self.say_places(json.loads(body))),
            ("POST", "/api/models/([^/]+/[^/]+)/commit/(.+)", lambda *at: self.take_commit(*at, body)),
        )
        for number, (methods, pattern, act) in enumerate(routes):
            if re.fullmatch(methods, method) and (found := re.fullmatch(pattern, path)):
                if number > 2 and said is None:
                    return 401, {"error": "no token"}, {"X-Error-Message": "Invalid username or password."}
                return act(*found.groups())
        return 404, {"error": path}

    def take_object(self, oid, body):
        self.objects[oid] = body
        return 200, {}

    def create(self, asked):
        repo = f"{asked['organization']}/{asked['name']}"
        if repo in self.repos:
            return 409, {"error": "exists", "url": f"{self.url}/{repo}"}
        self.commit(repo, "main", {})
        if asked.get("visibility") == "private":
            self.private.add(repo)
        return 200, {"url": f"{self.url}/{repo}"}

    def say_modes(self, asked):
        names = [file["path"] for file in asked["files"]]
        modes = [(name, "lfs" if name.endswith(".smn") else "regular") for name in names]
        return 200, {"files": [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes]}

    def say_places(self, asked):
        at = [{**o, "actions": {"upload": {"href": f"{self.url}/lfs/{o['oid']}"}}} for o in asked["objects"]]
        return 200, {"transfer": "basic", "objects": at}

    def take_commit(self, repo, revision, body):
        if revision not in self.repos.get(repo, {}):
            return 404, {"error": "revision"}, {"X-Error-Code": "RevisionNotFound"}
        files = {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
        number = self.commit(repo, revision, files)
        return 200, {"success": True, "commitOid": number, "commitUrl": f"{self.url}/{repo}/commit/{number}"}

    def resolve(self, repo, revision, path, known):
        if repo not in self.repos or (repo in self.private and not known):
            return 401, {"error": "repo"}, {"X-Error-Code": "RepoNotFound"}
        commit = self.repos[repo].get(revision)
        if commit is None:
            return 404, {"error": "revision"}, {"X-Error-Code": "RevisionNotFound"}
        data = self.commits[commit].get(path)
        if data is None:
            return 404, {"error": "entry"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}
        facts = {
            "X-Repo-Commit": commit,
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X-Linked-Size": len(data),
            "X-Linked-ETag": f'"{hashlib.sha256(data).hexdigest()}"',
        }
        return 200, data[: len(data) // 2] if self.cut else data, facts

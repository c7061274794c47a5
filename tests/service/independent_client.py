"""A client written from what README.md says about HTTP and docs/formats.md about files: nothing of the project."""

import base64
import io
import json
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field

import numpy as np

NPY = "application/x-npy"


@dataclass
class Answer:
    status: int
    headers: dict
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def npy(self):
        return np.load(io.BytesIO(self.body), allow_pickle=False)

    @property
    def embeddings(self):
        """Whichever form it came in."""
        if self.headers["content-type"] == NPY:
            return self.npy
        return np.array(self.json["embeddings"], np.float32)


@dataclass
class IndependentClient:
    server: str
    key: str | None = None
    headers: dict = field(default_factory=dict)

    def call(self, method, path, body=None, params=None, **headers):
        """One request; an error answer is an answer too. Header names are written with underscores."""
        query = f"?{urllib.parse.urlencode(params)}" if params else ""
        named = {name.replace("_", "-"): value for name, value in {**self.headers, **headers}.items()}
        if self.key is not None:
            named["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(f"{self.server}{path}{query}", body, named, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return Answer(answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, {k.lower(): v for k, v in error.headers.items()}, error.read())

    def embed(self, body, content_type, accept="application/json", **params):
        return self.call("POST", "/embed", body, params, Content_Type=content_type, Accept=accept)

    def put_mask(self, name, data, **guards):
        return self.call("PUT", f"/masks/{name}", data, Content_Type="application/octet-stream", **guards)


def as_json(images, data_uri=None):
    """The JSON body of these image files; with `data_uri` as data URIs of that media type."""
    prefix = f"data:{data_uri};base64," if data_uri else ""
    return json.dumps({"images": [prefix + base64.b64encode(image).decode() for image in images]}).encode()


def as_multipart(images, boundary="b0undary"):
    """Body and content type of one `image` part for each file."""
    body = b"".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{i}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n".encode()
        + image
        + b"\r\n"
        for i, image in enumerate(images)
    )
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def as_npy(x):
    buffer = io.BytesIO()
    np.save(buffer, x)
    return buffer.getvalue()

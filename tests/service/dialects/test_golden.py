"""Bodies that were written down: each dialect's requests and answers stay what clients have seen.

Requests are as clients send them; `$PNG` is
the image in base64. Vectors may differ in the last digits from processor to processor, and so may the random weights of
the tiny backbone: its fingerprint within a space is that of the weights here.
"""

import base64
import json
import re
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parents[2] / "golden" / "dialects"
PNG = base64.b64encode((GOLDEN / "photo.png").read_bytes()).decode()
CASES = sorted(GOLDEN.glob("*.json"))
TOLERANCE = 1e-4


def filled(value):
    """A body with the image in its place."""
    return json.loads(json.dumps(value).replace("$PNG", PNG))


def require_same(found, wanted, at="answer"):
    """Equal in every key, type and text; floats nearly, bytes of a float in base64 by what they stand for."""
    if wanted == "$ANY":
        assert isinstance(found, str) and found, at
    elif isinstance(wanted, dict):
        assert isinstance(found, dict) and set(found) == set(wanted), (at, found)
        for key in wanted:
            require_same(found[key], wanted[key], f"{at}.{key}")
    elif isinstance(wanted, list):
        assert isinstance(found, list) and len(found) == len(wanted), (at, found)
        for i, one in enumerate(wanted):
            require_same(found[i], one, f"{at}[{i}]")
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, rel=TOLERANCE, abs=TOLERANCE), at
    else:
        assert type(found) is type(wanted) and found == wanted, (at, found)


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_a_body_gets_the_answer_that_was_written_down(client, theta, path):
    client.put("/masks/photos", content=theta.mask(31).data)
    here = theta.backbone().fingerprint[:16]
    case = json.loads(re.sub(r"smn1:[0-9a-f]{16}:", f"smn1:{here}:", path.read_text()))
    answer = client.post(case["path"], json=filled(case["request"]))
    assert answer.status_code == case["status"], answer.text
    require_same(answer.json(), case["answer"])


def test_every_dialect_is_written_down():
    assert len(CASES) >= 12

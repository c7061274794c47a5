"""What the tests in a browser share."""

import urllib.request
from pathlib import Path

CHROMIUM = Path("/usr/bin/chromium")
KEYS = {"SMN_API_KEYS": "reader", "SMN_ADMIN_KEYS": "admin"}
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


def put(server, name, data, key=""):
    """Upload as the command does."""
    request = urllib.request.Request(f"{server.url}/masks/{name}", data=data, method="PUT")
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 201

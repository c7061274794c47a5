"""Another process on a registry: reads commands as JSON lines, answers each with one, ends with its input.

[url, fingerprint] first; then ["resolve", reference], ["await", reference, digest or null], ["publish", name, text],
["publish_many", prefix, name, n], ["claim", name, text, digest].
Every answer is {"ok": ..., "at": CLOCK_MONOTONIC seconds} or {"error": code}.
"""

import json
import sys
import time

from service.registry.open import open_registry
from smn_core.errors import NotFound, SMNError


def digest_at(registry, reference):
    try:
        return registry.resolve("masks", reference).digest
    except NotFound:
        return None


def run(registry, verb, *arguments):
    if verb == "resolve":
        return digest_at(registry, *arguments)
    if verb == "await":
        reference, digest = arguments
        deadline = time.monotonic() + 10
        while digest_at(registry, reference) != digest and time.monotonic() < deadline:
            time.sleep(0.0002)
        return digest_at(registry, reference)
    if verb == "publish":
        name, text = arguments
        return registry.publish("masks", name, text.encode()).version.version
    if verb == "publish_many":
        prefix, name, n = arguments
        return [registry.publish("masks", name, f"{prefix}{i}".encode()).version.version for i in range(n)]
    name, text, digest = arguments
    return registry.publish("masks", name, text.encode(), if_match=digest).version.version


def main():
    registry = open_registry(*json.loads(sys.stdin.readline()))
    print(json.dumps({"ok": None}), flush=True)
    for line in sys.stdin:
        try:
            answer = {"ok": run(registry, *json.loads(line)), "at": time.monotonic()}
        except SMNError as error:
            answer = {"error": error.code}
        print(json.dumps(answer), flush=True)
    registry.close()


if __name__ == "__main__":
    main()

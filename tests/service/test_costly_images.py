"""Images that cost much, sent to a real server: others are answered, its memory has an end, and so has its drain."""

from __future__ import annotations

import contextlib
import io
import re
import signal
import struct
import threading
import time
from pathlib import Path

import pytest
from independent_client import IndependentClient
from PIL import Image
from served import ServerProcess, eventually, photo

WITHIN_S = 10.0
"""In which a small image is answered whatever others send: a third of the deadline."""
DECODE_BYTES = 600 * 2**20
BASE_BYTES = 1200 * 2**20
"""More than a server of a tiny backbone takes with its decode workers before anything hostile comes."""


def encode(image, fmt, **options):
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def many_scans():
    """A progressive JPEG of 978 KB or so whose last scan stands there 10,000 times."""
    file = encode(Image.new("RGB", (2000, 2000), (9, 99, 199)), "JPEG", progressive=True)
    last = file[file.rindex(b"\xff\xda") : -2]
    return file[:-2] + last * 10_000 + b"\xff\xd9"


def small_file_large_jpeg2000():
    file = bytearray(encode(Image.new("RGB", (16, 16)), "JPEG2000", no_jp2=True))
    at = file.index(b"\xff\x51") + 6
    file[at : at + 8] = struct.pack(">II", 7000, 7000)  # the image, of one tile as large
    file[at + 16 : at + 24] = struct.pack(">II", 7000, 7000)
    return bytes(file)


def empty_webp():
    """34 bytes that declare 16,383 x 16,383 px."""
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\x10\0\0\0" + (16382).to_bytes(3, "little") * 2 + b"ICCP"
    return b"RIFF" + struct.pack("<I", len(body)) + body


def empty_png(side_px):
    """A PNG of one colour, small in bytes, at the bound of its pixels."""
    return encode(Image.new("RGB", (side_px, side_px), (3, 4, 5)), "PNG", compress_level=9)


REFUSED = {
    "png 7100": lambda: empty_png(7100),
    "jpeg of 10,000 scans": many_scans,
    "jpeg 2000": small_file_large_jpeg2000,
    "webp of 34 bytes": empty_webp,
}


class Watch:
    """Samples the memory of a process and all below it, while its block runs: pages of their own, and shared ones."""

    def __init__(self, pid):
        self.pid, self.most_bytes, self._end = pid, 0, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        self._thread.join()

    def _run(self):
        while not self._end.wait(0.02):
            self.most_bytes = max(self.most_bytes, sum(map(memory_of, tree(self.pid))))


def memory_of(pid):
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    return 0


def tree(pid):
    """A process and those below it."""
    found, parents = [pid], {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            parents[int(path.parent.name)] = int(fields[1])
    for above in found:
        found += [child for child, parent in parents.items() if parent == above]
    return found


def state_of(pid):
    """S sleeps, R runs, Z ended; None: there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return None


def decoding(server):
    """The processes below a server, once one of them decodes."""
    below = tree(server.process.pid)[1:]
    return below if "R" in map(state_of, below) else None


def is_there(pid):
    return state_of(pid) not in (None, "Z")


def several(images):
    parts = [b'--B\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + i + b"\r\n" for i in images]
    return b"".join(parts) + b"--B--\r\n", "multipart/form-data; boundary=B"


@pytest.fixture(scope="module")
def costly(theta, tmp_path_factory):
    folder = tmp_path_factory.mktemp("costly")
    arguments = [*theta.save(folder), "--registry", folder / "registry", "--slots", "2", "--decode-workers", "2"]
    with ServerProcess([*arguments, "--decode-bytes", DECODE_BYTES], folder) as server:
        yield server


def send(server, images, timeout_ms=30_000):
    """The status."""
    body, kind = several(images)
    client = IndependentClient(server.url)
    return client.call("POST", "/embed", body, Content_Type=kind, X_Timeout_Ms=str(timeout_ms)).status


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_declares_too_much_is_refused_at_once_and_takes_no_memory(costly, name):
    image = REFUSED[name]()
    with Watch(costly.process.pid) as watch:
        assert send(costly, [image] * 4) == 422
        assert send(costly, [photo()]) == 200
    assert watch.most_bytes < BASE_BYTES


def test_many_images_at_their_bound_neither_stop_others_nor_take_all_memory(costly):
    """Six requests of ten PNGs, a second of a core each, are in work all the time; half of them hang up at .3 s."""
    heavy, statuses, done = [empty_png(6000)] * 10, [], threading.Event()

    def sender(timeout_ms):
        while not done.is_set():
            statuses.append(send(costly, heavy, timeout_ms))

    threads = [threading.Thread(target=sender, args=(ms,)) for ms in (300, 300, 300, 6000, 6000, 6000)]
    with Watch(costly.process.pid) as watch:
        for thread in threads:
            thread.start()
        took = []
        for seed in range(10):
            began = time.monotonic()
            assert send(costly, [photo(seed)]) == 200
            took.append(time.monotonic() - began)
        done.set()
        for thread in threads:
            thread.join()
    assert max(took) < WITHIN_S
    assert 504 in statuses and set(statuses) <= {200, 504}
    assert watch.most_bytes < BASE_BYTES + 2 * DECODE_BYTES


def test_after_a_504_nothing_of_the_request_goes_on(costly):
    def killed():
        text = IndependentClient(costly.url).call("GET", "/metrics").body.decode()
        return float(re.search(r"^smn_decode_killed_total (\S+)$", text, re.MULTILINE)[1])

    before = killed()
    assert send(costly, [empty_png(6000)] * 16, 300) == 504
    eventually(lambda: killed() > before)
    # The forker and two workers, all of which wait: the images that are left would take seconds.
    eventually(lambda: [state_of(pid) for pid in tree(costly.process.pid)[1:]] == ["S"] * 3, within_s=3)


def test_a_drain_ends_while_images_are_decoded_and_no_process_is_left(theta, tmp_path):
    arguments = [*theta.save(tmp_path), "--registry", tmp_path / "registry", "--slots", "2", "--drain-s", "1"]
    server = ServerProcess(arguments, tmp_path).start()
    heavy = [threading.Thread(target=send, args=(server, [empty_png(6000)] * 16)) for _ in range(3)]
    for thread in heavy:
        thread.start()
    below = eventually(lambda: decoding(server), within_s=60)
    assert server.stop() == 0
    for thread in heavy:
        thread.join()
    eventually(lambda: not any(map(is_there, below)))


def test_no_process_is_left_when_the_server_is_killed(theta, tmp_path):
    arguments = [*theta.save(tmp_path), "--registry", tmp_path / "registry", "--slots", "2"]
    server = ServerProcess(arguments, tmp_path).start()

    def heavy():
        with contextlib.suppress(OSError):  # its connection goes with the server
            send(server, [empty_png(6000)] * 16)

    thread = threading.Thread(target=heavy)
    thread.start()
    below = eventually(lambda: decoding(server), within_s=60)
    server.stop(signal.SIGKILL)
    thread.join()
    eventually(lambda: not any(map(is_there, below)))

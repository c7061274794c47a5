"""Worker processes: limits that the kernel holds, what is killed and what takes its place, and who shares with whom."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from served import eventually, photo

from service.decoding.parent import FORKER
from service.decoding.pool import DecodePool
from smn_core.errors import ImageTooLarge, InvalidImage
from smn_core.pixels import PixelReader

PREPROCESS = {
    "input_size": (3, 32, 32),
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "interpolation": "bicubic",
    "crop_pct": 0.9,
    "crop_mode": "center",
}
MIB = 2**20


def encode(image, fmt, **options):
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def slow():
    """A PNG of 36 megapixels, the most that are taken: about a second of one core."""
    return encode(Image.new("RGB", (6000, 6000), (3, 4, 5)), "PNG", compress_level=1)


@asynccontextmanager
async def pool_of(memory_bytes=1024 * MIB, cpu_s=20.0, killed=None):
    pool = DecodePool(
        PREPROCESS,
        51_000_000,
        n_workers=2,
        memory_bytes=memory_bytes,
        cpu_s=cpu_s,
        count_killed=(lambda: killed.append(1)) if killed is not None else lambda: None,
    )
    await pool.start()
    try:
        yield pool
    finally:
        pool.close()


def is_there(pid):
    """Whether a process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def until(condition, within_s=20.0):
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.005)


def test_pixels_are_those_of_this_process():
    files = [photo(seed, fmt=fmt) for seed in range(4) for fmt in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")]

    async def go():
        async with pool_of() as pool:
            return await pool.decode("a", files)

    read = PixelReader(PREPROCESS)
    assert np.array_equal(asyncio.run(go()), np.stack([np.asarray(read(data)) for data in files]))


def test_of_several_bad_images_the_first_is_named():
    async def go():
        async with pool_of() as pool:
            with pytest.raises(InvalidImage, match=r"^image 1: "):
                await pool.decode("a", [photo(), b"x", photo(1), b"y"])
            with pytest.raises(InvalidImage, match=r"^the 0 bytes"):
                await pool.decode("a", [b""])
            assert (await pool.decode("a", [photo()])).shape == (1, 32, 32, 3)

    asyncio.run(go())


def test_a_decode_beyond_its_processor_time_is_ended_by_the_kernel_and_others_go_on(slow):
    killed = []

    async def go():
        async with pool_of(cpu_s=0.05, killed=killed) as pool:
            bad = asyncio.create_task(pool.decode("a", [slow]))
            assert (await pool.decode("b", [photo()])).shape == (1, 32, 32, 3)
            with pytest.raises(ImageTooLarge, match=r"more than 0.05 s of processor time"):
                await bad
            await until(lambda: len(pool.pids) == 2)
            assert (await pool.decode("a", [photo()])).shape == (1, 32, 32, 3)

    asyncio.run(go())
    assert killed == [1]


def test_a_decode_beyond_its_memory_is_refused(slow):
    async def go():
        async with pool_of(memory_bytes=64 * MIB) as pool:
            with pytest.raises(ImageTooLarge, match="more memory than its decode may have"):
                await pool.decode("a", [slow])
            assert (await pool.decode("a", [photo()])).shape == (1, 32, 32, 3)

    asyncio.run(go())


def test_what_nobody_waits_for_is_killed_and_replaced(slow):
    killed = []

    async def go():
        async with pool_of(killed=killed) as pool:
            await until(lambda: len(pool.pids) == 2)
            before = pool.pids
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(pool.decode("a", [slow] * 4), 0.3)
            await until(lambda: len(pool.pids) == 2 and pool.pids != before)
            assert not len(pool._lanes)

    asyncio.run(go())
    assert killed == [1]


def test_slow_images_leave_a_worker_to_quick_ones(slow):
    async def go():
        async with pool_of() as pool:
            await until(lambda: len(pool.pids) == 2)
            heavy = [asyncio.create_task(pool.decode("a", [slow] * 3)) for _ in range(3)]
            await until(lambda: any(worker.job is not None and worker.job.slow for worker in pool._workers))
            for seed in range(20):
                await pool.decode("b", [photo(seed)])
            assert not any(task.done() for task in heavy)  # one worker has nine seconds of work
            for task in heavy:
                task.cancel()

    asyncio.run(go())


def test_a_slow_image_gets_its_turn_among_many_quick_ones(slow):
    async def go():
        async with pool_of() as pool:
            streams = [asyncio.create_task(pool.decode("b", [photo()] * 2000)) for _ in range(2)]
            await pool.decode("a", [slow])
            assert not all(task.done() for task in streams)
            for task in streams:
                task.cancel()

    asyncio.run(go())


def test_an_image_that_only_looks_quick_goes_over_to_the_slow():
    """A JPEG of 12 megapixels in 68 scans."""
    file = encode(Image.effect_noise((4000, 3000), 60).convert("RGB"), "JPEG", progressive=True)
    scan = file.rindex(b"\xff\xda")
    last = file[scan:-2]
    many = file[:-2] + last * 58 + b"\xff\xd9"

    async def go():
        async with pool_of() as pool:
            await until(lambda: len(pool.pids) == 2)
            before = pool.pids
            assert (await pool.decode("a", [many])).shape == (1, 32, 32, 3)
            assert pool.pids != before

    asyncio.run(go())


def test_a_worker_that_crashes_is_replaced_and_its_image_tried_once_more():
    async def go():
        async with pool_of() as pool:
            await until(lambda: len(pool.pids) == 2)
            decoding = asyncio.create_task(pool.decode("a", [photo()] * 500))
            await until(lambda: any(worker.job is not None for worker in pool._workers))
            for pid in pool.pids:
                os.kill(pid, signal.SIGKILL)
            assert (await decoding).shape == (500, 32, 32, 3)

    asyncio.run(go())


def test_the_forker_is_started_again_where_it_is_killed():
    async def go():
        async with pool_of() as pool:
            await until(lambda: len(pool.pids) == 2)
            before = pool.pids
            FORKER._process.kill()
            await until(lambda: not pool.pids & before)
            assert (await pool.decode("a", [photo()])).shape == (1, 32, 32, 3)
            assert not any(map(is_there, before))

    asyncio.run(go())


def test_no_worker_outlives_a_process_that_is_killed(slow, tmp_path):
    (tmp_path / "slow.png").write_bytes(slow)
    code = f"""
import asyncio, pathlib
from service.decoding.pool import DecodePool
async def go():
    pool = DecodePool({PREPROCESS!r}, 51_000_000, n_workers=2, memory_bytes=2**30, cpu_s=60.0)
    await pool.start()
    work = asyncio.create_task(pool.decode("a", [pathlib.Path("slow.png").read_bytes()] * 9))
    while sum(w.pid is not None for w in pool._workers) < 2 or not any(w.job and w.job.slow for w in pool._workers):
        await asyncio.sleep(.01)
    print(*[w.pid for w in pool._workers], flush=True)
    await work
asyncio.run(go())
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=environment
    )
    with process:
        workers = list(map(int, process.stdout.readline().split()))
        assert len(workers) == 2 and all(map(is_there, workers))
        process.kill()
    eventually(lambda: not any(map(is_there, workers)))

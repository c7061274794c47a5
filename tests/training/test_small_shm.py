"""Batches of workers where shared memory is as small as in a plain container: they arrive, and are the same."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALONE = ["unshare", "--mount", "--map-root-user"]
SCRIPT = """
import os, sys
import torch
from torch.utils.data import DataLoader
from training.data import collate

class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 24
    def __getitem__(self, row):
        return [torch.full((3, 200, 200), float(row)), torch.full((3, 50, 50), -float(row))], row, [f"no {row}"]

room = os.statvfs("/dev/shm")
assert room.f_blocks * room.f_frsize <= int(sys.argv[1]), "the small one is not there"
loader = DataLoader(Rows(), batch_size=8, num_workers=2, collate_fn=collate)
for step, batch in enumerate(loader):
    rows = list(range(8 * step, 8 * step + 8))
    big, small = batch.views
    assert big.shape == (8, 3, 200, 200) and big[:, 0, 0, 0].tolist() == rows
    assert small[:, 2, 49, 49].tolist() == [-row for row in rows]
    assert batch.labels.tolist() == rows and batch.skipped == [f"no {row}" for row in rows]
    print(step, big.is_shared())
"""


def arrive(size_bytes):
    """What the batches of 4 MB did with /dev/shm of a size: "False" in a line is the pipe's."""
    mount = f'mount -t tmpfs -o size={size_bytes} tmpfs /dev/shm && exec "$@"'
    command = [*ALONE, "sh", "-c", mount, "sh", sys.executable, "-c", SCRIPT, str(size_bytes)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [line.split()[1] for line in done.stdout.splitlines()]


@pytest.fixture(autouse=True)
def mounts():
    if subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount anything: no small /dev/shm")


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("size_bytes", "shared"), [(2**20, "False"), (2**28, "True")])
def test_batches_arrive_whatever_shared_memory_holds(size_bytes, shared):
    assert arrive(size_bytes) == [shared] * 3

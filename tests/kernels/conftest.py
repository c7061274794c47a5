"""These run in Triton's interpreter, in a process of their own: tests/smn_core/engine/test_kernels.py starts it."""

from __future__ import annotations

import os

import torch

torch.set_num_threads(1)
# Triton reads the variable when it is imported; another process of the suite must not find it set.
collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]

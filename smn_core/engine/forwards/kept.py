"""Forms that an earlier start has found best, in the user's cache directory: the next start need not measure.

What was found holds for one processor, versions of torch and timm, backbone, type, image size and number of threads. An
entry that is damaged, or that another combination wrote, counts as missing.
"""

from __future__ import annotations

import hashlib
import logging
import platform
from pathlib import Path
from typing import Any

import platformdirs
import timm
import torch

from smn_core.backbone import Backbone
from smn_core.engine.forwards.forms import Forms
from smn_core.errors import SMNError
from smn_core.files import write_bytes
from smn_core.tensorfile import canonical_json, parse_json

LOG = logging.getLogger("smn.engine")
MAX_BYTES = 100_000
# What tells one processor from another; of all cores the first is read.
IN_CPUINFO = (
    "vendor_id",
    "cpu family",
    "model",
    "model name",
    "stepping",
    "flags",
    "CPU implementer",
    "CPU part",
    "Features",
)


class Kept:
    """The entry of one backbone on this machine."""

    def __init__(self, backbone: Backbone, folder: Path | None = None) -> None:
        self._key: dict[str, Any] = {
            "version": 1,
            "processor": describe_processor(),
            "torch": torch.__version__,
            "timm": timm.__version__,
            "fingerprint": backbone.fingerprint,
            "dtype": str(backbone.dtype),
            "input_size": [int(n) for n in backbone.preprocess["input_size"]],
            "threads": torch.get_num_threads(),
        }
        name = hashlib.sha256(canonical_json(self._key).encode()).hexdigest()[:32]
        self.path = (folder or platformdirs.user_cache_path("smn") / "forms") / f"{name}.json"

    def read(self) -> Forms | None:
        """The forms; None where there is no sound entry."""
        try:
            with self.path.open("rb") as file:
                entry: Any = parse_json(file.read(MAX_BYTES).decode())
            if entry["key"] != self._key:
                raise ValueError("it is another model's")
            return Forms.of_json(entry["forms"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SMNError) as error:
            LOG.warning("%s is damaged, the forms are measured anew: %s", self.path, error)
            return None

    def write(self, forms: Forms) -> None:
        """Keep the forms. Where that cannot be done the next start measures again."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(self.path, canonical_json({"key": self._key, "forms": forms.as_json()}).encode())
        except (OSError, SMNError) as error:
            LOG.info("the forms that were measured are not kept: %s", error)


def describe_processor() -> str:
    """What a measurement depends on: the first core's model and instructions, and which of them torch uses."""
    found = [platform.machine(), torch.backends.cpu.get_cpu_capability()]
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n", 1)[0].splitlines()
    except OSError:
        return " ".join([*found, platform.processor()])
    return " ".join([*found, *(line for line in lines if line.split(":")[0].strip() in IN_CPUINFO)])

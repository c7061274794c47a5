"""What docs/performance.md answers: every row of it, the rows that answer it, and the aim they are held against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

VIT = "vit_tiny_patch16_224"
MASKS_100 = {"masks": 100}


@dataclass(frozen=True)
class Asked:
    """A row of the page: rows of `bench` with this metric, and these variants and parameters where given.

    `bench` is the row's own word; `run` the name by which `smn bench --only` measures it. `most` or `least` is the aim
    for the median; neither, where the figure is only to be known. `figure` is a plot under docs/figures. `needs` is
    what not every machine has.
    """

    title: str
    run: str
    bench: str
    metric: str
    most: float | None = None
    least: float | None = None
    variants: tuple[str, ...] = ()
    params: Mapping[str, Any] = field(default_factory=dict)
    figure: str = ""
    needs: str = ""

    @property
    def aim(self) -> str:
        if self.most is not None:
            return f"<= {self.most:g}"
        return f">= {self.least:g}" if self.least is not None else "known"

    def met(self, median: float) -> bool:
        return (self.most is None or median <= self.most) and (self.least is None or median >= self.least)

    def takes(self, row: Mapping[str, Any]) -> bool:
        """Whether a row answers it."""
        return (
            (row["bench"], row["metric"]) == (self.bench, self.metric)
            and (not self.variants or row["variant"] in self.variants)
            and all(row["params"].get(key) == value for key, value in self.params.items())
        )


RATIO = "images/s, ratio to one mask"
ASKED = (
    Asked("Swap on the CPU against a plain copy of the same bytes", "swap", "swap", "ratio to copy", most=1.4),
    Asked("Hot mask against a plain timm forward", "hot", "hot", "ratio to plain timm", most=1.02),
    Asked(
        "100 masks, zipf:1.5, 16 slots, against one mask",
        "traffic", "traffic", RATIO, least=0.95, variants=("zipf:1.5",), params=MASKS_100,
    ),
    Asked(
        "100 masks, distinct, 16 slots, against one mask: ViT-Tiny",
        "traffic", "traffic", RATIO, least=0.95, variants=("distinct",), params=MASKS_100 | {"model": VIT},
    ),
    Asked(
        "100 masks, distinct, 16 slots, against one mask: ResNet-50",
        "traffic", "traffic", RATIO, least=0.85, variants=("distinct",), params=MASKS_100 | {"model": "resnet50"},
    ),
    Asked(
        "100 masks, distinct, 16 slots, against one mask: ViT-B/32",
        "traffic", "traffic", RATIO, least=0.85, variants=("distinct",),
        params=MASKS_100 | {"model": "vit_base_patch32_224"},
    ),
    Asked(
        "Density .9995: a swap by patch against the dense swap",
        "patch", "engine swap", "ratio to slot", most=0.05, variants=("patch",), params={"density": 0.9995},
    ),
    Asked(
        "Density .9995, ViT-Tiny: resident bytes a mask",
        "patch", "resident", "bytes", most=16 * 1024, params={"density": 0.9995, "model": VIT},
    ),
    Asked(
        "Density .9995: 32 images with 32 masks in a batch against one mask",
        "traffic", "traffic", RATIO, least=0.9, variants=("distinct",), params={"density": 0.9995, "batch": 32},
    ),
    Asked(
        "Working set of 4 times the slots, uniform, against one mask",
        "set", "set", RATIO, least=0.85, variants=("64 masks",), figure="working-set.png",
    ),
    Asked(
        "No cliff: working sets of any size, uniform, against one mask", "set", "set", RATIO, least=0.85,
    ),
    Asked(
        "Host memory a cached mask against bits/8",
        "many", "many", "bytes a cached mask, ratio to bits/8", most=1.05,
    ),
    Asked(
        "Many masks registered: the last against the first", "many", "many", "time ratio, last to first", most=1.1,
    ),
    Asked(
        "Many masks served: the first one's answers with all of them there",
        "many", "many", "time ratio, all masks there to none", most=1.1,
    ),
    Asked("Many masks listed: a page of them", "many", "many", "time ratio, all masks there to one page"),
    Asked(
        "Memory after 20,000 mixed requests against after the first tenth",
        "soak", "soak", "memory at the end, ratio to after a tenth", most=1.02,
    ),
    Asked(
        "Against every peer whose full copies all fit in memory: images/s",
        "peers", "peers", "images/s, SMN's ratio to it", least=0.95, params={"copies fit": True}, figure="peers.png",
    ),
    Asked(
        "Against every peer whose full copies do not fit: images/s",
        "peers", "peers", "images/s, SMN's ratio to it", least=1.0, params={"copies fit": False},
    ),
    Asked(
        "Against every peer: bytes a task on disk", "peers", "peers", "disk a task, SMN's ratio to it", most=1.0,
    ),
    Asked(
        "Against every peer: bytes a task in memory", "peers", "peers", "memory a task, SMN's ratio to it", most=1.0,
    ),
    Asked(
        "Against every peer: time to add a task",
        "peers", "peers", "time to add a task, SMN's ratio to it", most=1.0,
    ),
    Asked(
        "Against every peer: processor time an image", "peers", "peers", "processor time an image, SMN's ratio to it",
    ),
    Asked("Peers: time to start", "peers", "peers", "start"),
    Asked(
        "Against LoRA adapters in process: images/s", "lora", "lora", "images/s, SMN's ratio to it", least=0.95,
        figure="lora.png",
    ),
    Asked("Against LoRA adapters: bytes a task on disk", "lora", "lora", "disk a task, SMN's ratio to it", most=1.0),
    Asked(
        "Against LoRA adapters: bytes a task in memory", "lora", "lora", "memory a task, SMN's ratio to it", most=1.0,
    ),
    Asked(
        "Against LoRA adapters: time to add a task", "lora", "lora", "time to add a task, SMN's ratio to it", most=1.0,
    ),
    Asked(
        "HTTP: processor time an image against the engine", "http", "http", "processor time ratio to engine", most=1.1,
    ),
    Asked("HTTP: beyond decode and forward, ms", "http", "http", "beyond decode and forward", most=3.0),
    Asked("Decode: images/s by workers", "decode", "decode", "images/s", figure="decode.png"),
    Asked("Decode: how late the event loop is, ms", "decode", "decode", "event loop late, p99"),
    Asked("Cascade of five experts, unconditional, against plain timm", "cascade", "cascade", "ratio to plain",
          most=6.6, variants=("unconditional",)),
    Asked("Cascade of five experts, conditional, against plain timm", "cascade", "cascade", "ratio to plain",
          most=2.3, variants=("conditional",)),
    Asked("GPU: swap against a device copy", "gpu", "gpu swap", "ratio to copy", most=1.25, needs="a GPU"),
    Asked(
        "GPU: hot mask through a captured graph against plain captured timm",
        "gpu", "gpu hot", "ratio to plain captured timm", most=1.03, needs="a GPU",
    ),
    Asked(
        "GPU: 64 images with 64 masks in a batch against 64 with one",
        "gpu", "gpu mixed", "images/s, ratio to one mask", least=0.5, needs="a GPU",
    ),
    Asked(
        "GPU: 64 images with 64 masks in a batch against swapping one by one",
        "gpu", "gpu mixed", "images/s, ratio to one by one", least=8, needs="a GPU",
    ),
    Asked("Training step against one that moves all weights", "train_step", "train_step",
          "time ratio to all weights"),
)  # fmt: skip

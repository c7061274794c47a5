"""Questions that hold SMN against what users would pick instead: runtimes, servers of full copies, LoRA adapters."""

from __future__ import annotations

from benchmarks.asked import Asked, Table

VIT = "vit_tiny_patch16_224"
TO_IT = "SMN's ratio to it"
BEST = ("best of them",)
F32, BF16 = {"dtype": "float32"}, {"dtype": "bfloat16"}
BESIDE = (
    Table(
        "One model in the runtimes that users would pick",
        "SMN's images a second through a hot mask over those of the same weights in another runtime, in process",
        ("variant",),
        (
            Asked(
                "Hot mask against the better of ONNX Runtime and OpenVINO, float32: ViT-Tiny", "runtimes", "runtimes",
                f"images/s, {TO_IT}", least=0.95, variants=BEST, params=F32 | {"model": VIT}, short="ViT-Tiny",
            ),
            Asked(
                "Hot mask against the better of ONNX Runtime and OpenVINO, float32: ViT-B/32", "runtimes", "runtimes",
                f"images/s, {TO_IT}", least=0.95, variants=BEST, params=F32 | {"model": "vit_base_patch32_224"},
                short="ViT-B/32",
            ),
            Asked(
                "Hot mask against the better of ONNX Runtime and OpenVINO, float32: ResNet-50", "runtimes", "runtimes",
                f"images/s, {TO_IT}", least=0.8, variants=BEST, params=F32 | {"model": "resnet50"}, short="ResNet-50",
            ),
            Asked(
                "Hot mask against OpenVINO, bfloat16", "runtimes", "runtimes", f"images/s, {TO_IT}", least=0.8,
                variants=BEST, params=BF16, short="bfloat16",
            ),
            Asked(
                "Hot mask against every runtime", "runtimes", "runtimes", f"images/s, {TO_IT}",
                variants=("plain timm", "onnx runtime", "openvino"), short="every runtime",
            ),
        ),
    ),
    Table(
        "How near each comes to the limit",
        "Floating-point operations a second of a forward, over those of the best matrix product that the core reaches",
        ("variant",),
        (
            Asked(
                "Forwards against the best matrix product of the core", "runtimes", "runtimes",
                "FLOP/s, over the best product's", variants=("smn", "plain timm", "onnx runtime", "openvino"),
            ),
        ),
    ),
    Table(
        "Peers: speed",
        "SMN's images a second and its processor time an image, over those of a peer with a full copy for each task",
        ("question", "variant"),
        (
            Asked(
                "Against every peer whose full copies all fit in memory: images/s",
                "peers", "peers", f"images/s, {TO_IT}", least=0.95, params={"copies fit": True}, short="images/s",
                where="where all copies fit",
            ),
            Asked(
                "Against every peer whose full copies do not fit: images/s",
                "peers", "peers", f"images/s, {TO_IT}", least=1.0, params={"copies fit": False}, short="images/s",
                where="where they do not",
            ),
            Asked(
                "Against every peer: processor time an image",
                "peers", "peers", f"processor time an image, {TO_IT}", short="CPU time",
            ),
        ),
        by_question=True,
    ),
    Table(
        "Peers: what one more task takes",
        "SMN's figure over the peer's; the start of the whole server in seconds",
        ("variant",),
        (
            Asked(
                "Against every peer: bytes a task on disk", "peers", "peers", f"disk a task, {TO_IT}", most=1.0,
                short="bytes on disk",
            ),
            Asked(
                "Against every peer: bytes a task in memory", "peers", "peers", f"memory a task, {TO_IT}", most=1.0,
                short="bytes in memory",
            ),
            Asked(
                "Against every peer: time to add a task", "peers", "peers", f"time to add a task, {TO_IT}", most=1.0,
                short="time to add it",
            ),
            Asked("Peers: time to start", "peers", "peers", "start", short="start, s"),
        ),
        by_question=True,
    ),
    Table(
        "LoRA adapters, in process",
        "SMN's figure over that of LoRA adapters on the same backbone",
        ("variant",),
        (
            Asked(
                "Against LoRA adapters in process: images/s", "lora", "lora", f"images/s, {TO_IT}", least=0.95,
                short="images/s",
            ),
            Asked(
                "Against LoRA adapters: bytes a task on disk", "lora", "lora", f"disk a task, {TO_IT}", most=1.0,
                short="bytes a task on disk",
            ),
            Asked(
                "Against LoRA adapters: bytes a task in memory", "lora", "lora", f"memory a task, {TO_IT}", most=1.0,
                short="bytes a task in memory",
            ),
            Asked(
                "Against LoRA adapters: time to add a task", "lora", "lora", f"time to add a task, {TO_IT}", most=1.0,
                short="time to add a task",
            ),
        ),
        by_question=True,
    ),
)  # fmt: skip

"""What docs/performance.md answers: its tables, in order, and the questions of each."""

from __future__ import annotations

from benchmarks.asked import Asked, Table
from benchmarks.beside import BESIDE, VIT
from benchmarks.lasting import LASTING

MASKS_100 = {"masks": 100}
RATIO = "images/s, ratio to one mask"
TABLES = (
    Table(
        "A mask that is in place",
        "Images a second through a hot mask, over those of plain timm",
        ("batch",),
        (
            Asked("Hot mask against plain timm: images/s", "hot", "hot", "images/s, ratio to plain timm", least=1.9),
        ),
    ),
    Table(
        "A swap",
        "Time to write a mask's weights, over that of a plain copy of the same bytes",
        ("density",),
        (
            Asked(
                "Swap on the CPU against a plain copy of the same bytes", "swap", "swap", "ratio to copy", most=1.1,
            ),
        ),
    ),
    Table(
        "A mask with nearly all weights ON",
        "At density .9995 a mask can be a list of its OFF weights, and a swap a patch of them",
        ("model",),
        (
            Asked(
                "Density .9995: a swap by patch against the dense swap",
                "patch", "engine swap", "ratio to slot", most=0.05, variants=("patch",), params={"density": 0.9995},
                short="time of a patch, over a dense swap's",
            ),
            Asked(
                "Density .9995, ViT-Tiny: resident bytes a mask",
                "patch", "resident", "bytes", most=16 * 1024, params={"density": 0.9995, "model": VIT},
                short="resident bytes",
            ),
        ),
        by_question=True,
    ),
    Table(
        "100 masks in one stream",
        "Images a second of mixed traffic in batches of 32, over those of the same traffic on one mask",
        ("variant",),
        (
            Asked(
                "100 masks, zipf:1.5, 16 slots, against one mask",
                "traffic", "traffic", RATIO, least=0.97, variants=("zipf:1.5",), params=MASKS_100, short="zipf:1.5",
            ),
            Asked(
                "100 masks, distinct, 16 slots, against one mask: ViT-Tiny",
                "traffic", "traffic", RATIO, least=0.95, variants=("distinct",), params=MASKS_100 | {"model": VIT},
                short="distinct on ViT-Tiny",
            ),
            Asked(
                "100 masks, distinct, 16 slots, against one mask: ResNet-50",
                "traffic", "traffic", RATIO, least=0.9, variants=("distinct",),
                params=MASKS_100 | {"model": "resnet50"}, short="on ResNet-50",
            ),
            Asked(
                "100 masks, distinct, 16 slots, against one mask: ViT-B/32",
                "traffic", "traffic", RATIO, least=0.9, variants=("distinct",),
                params=MASKS_100 | {"model": "vit_base_patch32_224"}, short="on ViT-B/32",
            ),
            Asked(
                "Density .9995: 32 images with 32 masks in a batch against one mask",
                "traffic", "traffic", RATIO, least=0.95, variants=("distinct",),
                params={"density": 0.9995, "batch": 32}, short="at density .9995",
            ),
        ),
    ),
    Table(
        "Smaller batches",
        "Images a second of one mask, or of 100 by two laws, in smaller batches, over those in batches of 32",
        ("batch",),
        (
            Asked(
                "Batches of 8 and 16 images against batches of 32", "batch", "batch",
                "images/s, ratio to batches of 32",
            ),
        ),
    ),
    Table(
        "More masks than slots",
        "Images a second of uniform traffic over so many masks, over those of one mask",
        ("variant",),
        (
            Asked(
                "Working set of 4 times the slots, uniform, against one mask",
                "set", "set", RATIO, least=0.85, variants=("64 masks",), short="64 masks",
            ),
            Asked(
                "No cliff: working sets of any size, uniform, against one mask", "set", "set", RATIO, least=0.85,
                short="any number",
            ),
        ),
    ),
    Table(
        "Hundreds of masks in one server",
        "What the last of many masks costs, and what each takes in memory",
        ("density", "masks"),
        (
            Asked(
                "Host memory a cached mask against bits/8",
                "many", "many", "bytes a cached mask, ratio to bits/8", most=1.05, short="memory a mask, over bits/8",
            ),
            Asked(
                "Many masks registered: the last against the first",
                "many", "many", "time ratio, last to first", most=1.1, short="time of the last, over the first's",
            ),
            Asked(
                "Many masks served: the first one's answers with all of them there",
                "many", "many", "time ratio, all masks there to none", most=1.1,
                short="time with all there, over none there",
            ),
            Asked(
                "Many masks listed: a page of them", "many", "many", "time ratio, all masks there to one page",
                short="time with all there, over one page there",
            ),
        ),
        by_question=True,
    ),
    Table(
        "Codec context",
        "Bytes of a mask's bits over those of zstd or over their entropy; seconds of one thread to decode 23.5 million",
        ("question",),
        (
            Asked(
                "Learned masks in codec context, bytes over zstd's: the median",
                "codecs", "codecs", "bytes of each of many, ratio to zstd", most=0.45,
                short="learned masks, bytes over zstd's",
            ),
            Asked(
                "Random bits in codec context, bytes over their entropy",
                "codecs", "codecs", "bytes, ratio to entropy", most=1.01, params={"kind": "random"},
                short="random bits, bytes over entropy",
            ),
            Asked(
                "Seconds to decode 23.5 million bits of density .95 in codec context",
                "codecs", "codecs", "decode", most=2, variants=("context",), params={"density": 0.95},
                short="s to decode, density .95",
            ),
            Asked(
                "Seconds to decode 23.5 million bits of density .9995 in codec context",
                "codecs", "codecs", "decode", most=0.5, variants=("context",), params={"density": 0.9995},
                short="s to decode, density .9995",
            ),
        ),
        by_question=True,
    ),
    Table(
        "Memory over time",
        "Memory at the end of 20,000 mixed requests, over that after the first tenth",
        ("variant",),
        (
            Asked(
                "Memory after 20,000 mixed requests against after the first tenth",
                "soak", "soak", "memory at the end, ratio to after a tenth", most=1.02,
            ),
        ),
    ),
    LASTING,
    *BESIDE,
    Table(
        "The start of a server",
        "Time until `smn serve` is ready, over that of a process that imports its libraries and loads the model",
        ("variant",),
        (
            Asked(
                "The next start of a server, over loading the model", "starts", "starts",
                "time to ready, ratio to loading", most=1.3, variants=("next start",), short="next start",
            ),
            Asked(
                "The first start of a server, over loading the model", "starts", "starts",
                "time to ready, ratio to loading", variants=("first start",), short="first start",
            ),
        ),
    ),
    Table(
        "HTTP",
        "What the server adds to the engine in process, on the same images",
        ("form",),
        (
            Asked(
                "HTTP: processor time an image against the engine",
                "http", "http", "processor time ratio to engine", most=1.1,
                short="processor time an image, over the engine's",
            ),
            Asked(
                "HTTP: beyond decode and forward, ms", "http", "http", "beyond decode and forward", most=3.0,
                short="beyond decode and forward, ms",
            ),
        ),
        by_question=True,
    ),
    Table(
        "Spaces and labels",
        "Processor time of a request to /embed, over that of a server from before spaces and labels, asked in turn",
        ("form",),
        (
            Asked(
                "Processor time of a request, over that before spaces and labels",
                "since", "since", "processor time ratio to before", most=1.02,
            ),
        ),
    ),
    Table(
        "A name that is pushed over",
        "Answers to clients that name the space they expect, while the name is uploaded and rolled back",
        ("variant",),
        (
            Asked(
                "Answers in another space than the client asked for", "spaces", "spaces", "answers", most=0,
                variants=("mixed",),
            ),
        ),
    ),
    Table(
        "Decode workers",
        "JPEGs decoded alone, and beside forwards",
        ("workers",),
        (
            Asked("Decode: images/s by workers", "decode", "decode", "images/s", short="images/s"),
            Asked(
                "Decode: how late the event loop is, ms", "decode", "decode", "event loop late, p99",
                short="event loop late, p99, ms",
            ),
        ),
        by_question=True,
    ),
    Table(
        "A cascade of five experts",
        "Time of one image, over that of plain timm",
        ("variant",),
        (
            Asked(
                "Cascade of five experts, unconditional, against plain timm", "cascade", "cascade", "ratio to plain",
                most=6.6, variants=("unconditional",), short="unconditional",
            ),
            Asked(
                "Cascade of five experts, conditional, against plain timm", "cascade", "cascade", "ratio to plain",
                most=2.3, variants=("conditional",), short="conditional",
            ),
        ),
    ),
    Table(
        "GPU",
        "The same questions on a GPU",
        ("variant",),
        (
            Asked(
                "GPU: swap against a device copy", "gpu", "gpu swap", "ratio to copy", most=1.25, needs="a GPU",
                short="swap, over a device copy",
            ),
            Asked(
                "GPU: hot mask through a captured graph against plain captured timm",
                "gpu", "gpu hot", "ratio to plain captured timm", most=1.03, needs="a GPU",
                short="hot mask, over plain captured timm",
            ),
            Asked(
                "GPU: 64 images with 64 masks in a batch against 64 with one",
                "gpu", "gpu mixed", "images/s, ratio to one mask", least=0.5, needs="a GPU",
                short="64 masks in a batch, over one mask",
            ),
            Asked(
                "GPU: 64 images with 64 masks in a batch against swapping one by one",
                "gpu", "gpu mixed", "images/s, ratio to one by one", least=8, needs="a GPU",
                short="64 masks in a batch, over one by one",
            ),
        ),
        by_question=True,
    ),
    Table(
        "A training step",
        "Time of a step that learns a mask, over that of one that moves all weights",
        ("variant",),
        (
            Asked(
                "Training step against one that moves all weights", "train_step", "train_step",
                "time ratio to all weights",
            ),
        ),
    ),
)  # fmt: skip
ASKED = tuple(asked for table in TABLES for asked in table.questions)

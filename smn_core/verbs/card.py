"""The model card of a mask or cascade, in the Hub's conventions: what it is, how good, how to use it.

Everything that a file says in its own words is escaped: a file may have been written by anybody.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import ModelCardData

from smn_core.cascade.cascade import Cascade
from smn_core.mask import TaskMask
from smn_core.verbs.report import stages
from smn_core.verdict import read_verdict

LIBRARY, PIPELINE, RELATION = "smn", "image-feature-extraction", "adapter"
"""The Hub's words for a mask: of its four relations to a base model, adapter is the one that changes no weight."""
TAGS = ["smn", "smn-mask", "timm"]
MOST_CHARACTERS, MOST_NUMBERS, MOST_DEPTH = 300, 40, 8
BAR_CHARACTERS = 20
PUNCTUATION = re.compile(r"([\\`*_{}\[\]()#+\-.!|~$:@/=\"'])")
ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


@dataclass(frozen=True)
class CardFacts:
    """What a mask file does not say.

    Args:
        repo: where the card stands, `user/name`.
        n_bytes: of the mask's file.
        base_model: the backbone's own place on the Hub, `timm/...`.
        license: an identifier of the Hub, such as `apache-2.0`.
    """

    repo: str
    n_bytes: int
    base_model: str | None = None
    license: str | None = None


def make_card(mask: TaskMask, facts: CardFacts) -> str:
    """The README.md of a mask's repository."""
    return f"---\n{_header(facts, TAGS)}\n---\n\n" + "\n".join(_body(mask, facts)) + "\n"


def make_cascade_card(cascade: Cascade, masks: Sequence[TaskMask], facts: CardFacts) -> str:
    """The README.md of a cascade's repository; `masks` are its masks, root first, `facts.n_bytes` of all files."""
    header = _header(facts, [*TAGS[:1], "smn-cascade", *TAGS[2:]])
    return f"---\n{header}\n---\n\n" + "\n".join(_body_of_cascade(cascade, masks, facts)) + "\n"


def escape(text: object, most: int = MOST_CHARACTERS) -> str:
    """Foreign text as one line of Markdown that shows as it is: no HTML, link, picture, mention, table cell or code."""
    plain = "".join(c if unicodedata.category(c)[0] != "C" else " " for c in str(text))
    plain = " ".join(plain.split())
    plain = plain if len(plain) <= most else f"{plain[:most]}..."
    return "".join(ENTITIES.get(c, c) for c in PUNCTUATION.sub(r"\\\1", plain))


def _header(facts: CardFacts, tags: list[str]) -> str:
    known: dict[str, Any] = {"library_name": LIBRARY, "pipeline_tag": PIPELINE, "tags": tags, "license": facts.license}
    if facts.base_model is not None:
        known |= {"base_model": facts.base_model, "base_model_relation": RELATION}
    return str(ModelCardData(**{key: value for key, value in known.items() if value is not None}).to_yaml())


def _body_of_cascade(cascade: Cascade, masks: Sequence[TaskMask], facts: CardFacts) -> Iterator[str]:
    name, architecture = facts.repo.split("/")[-1], json.loads(masks[0].model)["architecture"]
    yield f"# {name}\n"
    yield (
        f"A cascade of SMN (self-masking networks) for the timm backbone {escape(architecture)}: a root mask, "
        f"{len(masks) - 1} experts, and what makes one vector of theirs. The backbone itself is not in it.\n"
    )
    yield "| | |\n|---|---|"
    yield f"| fingerprint of its weights | {escape(cascade.fingerprint)} |"
    yield f"| digest of the cascade | {escape(cascade.digest or '')} |"
    yield f"| bytes of all files | {facts.n_bytes:,} |"
    yield f"| fusion | {escape(cascade.fusion.kind)} |"
    yield f"| modes | {escape(', '.join(cascade.modes))}; by default {escape(cascade.mode)} |"
    yield f"| licence | {escape(facts.license) if facts.license else 'none was named'} |"
    yield "\n| mask | weights OFF | share | digest |\n|---|---:|---:|---|"
    for number, mask in enumerate(masks):
        called = f"expert {number}" if number else "root"
        yield f"| {called} | {mask.n_off:,} | {1 - mask.density:.4%} | {escape(mask.digest or '')} |"
    yield "\n## How to use it\n"
    yield "```bash"
    yield f"smn pull hf:{facts.repo} --out {name.lower()}"
    yield f"smn push {name.lower()} --name {name.lower()}      # to a server of its backbone"
    yield f"curl -F image=@photo.jpg 'http://127.0.0.1:8000/embed?cascade={name.lower()}'"
    yield "```\n"
    yield (
        f"It fits only a backbone whose weights have the fingerprint {cascade.fingerprint[:16]}...; any other is "
        "refused. The files are safetensors, without code."
    )


def _body(mask: TaskMask, facts: CardFacts) -> Iterator[str]:
    model = json.loads(mask.model)
    yield f"# {facts.repo.split('/')[-1]}\n"
    yield (
        f"A task mask of SMN (self-masking networks) for the timm backbone {escape(model['architecture'])}: one bit "
        "for each of its maskable weights. The backbone itself is not in this repository, and stays as it is.\n"
    )
    yield from _verdict(mask)
    yield "| | |\n|---|---|"
    yield from (f"| {name} | {value} |" for name, value in _facts(mask, facts, model))
    yield "\n## Where it switches weights off\n"
    yield f"{mask.n_off:,} of {mask.layout.n_weights:,} weights are OFF (density {mask.density:.6f}).\n"
    yield "| stage | weights | OFF | share OFF |\n|---|---:|---:|:---|"
    found = stages(mask)
    most = max(1 - stage["density"] for stage in found) or 1.0
    for stage in found:
        share = 1 - stage["density"]
        bar = "█" * round(BAR_CHARACTERS * share / most)
        yield f"| {escape(stage['name'])} | {stage['weights']:,} | {stage['off']:,} | {bar} {share:.4%} |"
    yield from _numbers(mask)
    yield "\n## How to use it\n"
    name = facts.repo.split("/")[-1].lower()
    yield "```bash"
    yield f"smn pull hf:{facts.repo} --out {name}.smn"
    yield f"smn serve {name}.smn          # or: smn serve --masks-from hf:{facts.repo}"
    yield f"curl -F image=@photo.jpg 'http://127.0.0.1:8000/embed?mask={name}'"
    yield "```\n"
    yield (
        f"It fits only a backbone whose weights have the fingerprint {mask.fingerprint[:16]}...; any other is refused. "
        "The file is safetensors, without code."
    )


def _verdict(mask: TaskMask) -> Iterator[str]:
    found = read_verdict(mask.metadata)
    if found is None:
        yield "No verdict was written into this mask: nothing here says that it is better than the bare backbone.\n"
    else:
        yield f"**Verdict: {escape(found['answer'])}.** {escape(found['reason'])}\n"


def _facts(mask: TaskMask, facts: CardFacts, model: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "backbone", escape(model["architecture"])
    if model["args"]:
        yield "its arguments", escape(json.dumps(model["args"], sort_keys=True))
    yield "fingerprint of its weights", escape(mask.fingerprint)
    yield "digest of the file", escape(mask.digest or "")
    yield "bytes", f"{facts.n_bytes:,}"
    yield (
        "map of the embeddings",
        escape(" ".join(map(str, mask.affine.describe().values()))) if mask.affine else "none",
    )
    yield "classes", escape(", ".join(mask.head.classes)) if mask.head else "no classifier"
    yield from ((key, escape(mask.metadata[key])) for key in ("objective", "dataset") if key in mask.metadata)
    yield "pixels", escape(json.dumps(mask.preprocess, sort_keys=True)) if mask.preprocess else "not said"
    yield "licence", escape(facts.license) if facts.license else "none was named"


def _numbers(mask: TaskMask) -> Iterator[str]:
    """The numbers of the file's own `metrics`, as its maker wrote them."""
    try:
        metrics = json.loads(mask.metadata.get("metrics", "null"))
    except (ValueError, RecursionError):
        return  # other programs may write any text there
    rows = list(_leaves(metrics, ()))[:MOST_NUMBERS]
    if rows:
        yield "\n## Numbers\n\nAs the maker of the file wrote them.\n\n| what | value |\n|---|---:|"
        yield from (f"| {escape(' '.join(path), 120)} | {value:.6g} |" for path, value in rows)


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], float]]:
    if isinstance(value, dict) and len(path) < MOST_DEPTH:
        for key, inner in value.items():
            yield from _leaves(inner, (*path, str(key)))
    elif isinstance(value, int | float) and not isinstance(value, bool) and path and abs(value) < 1e300:
        yield path, float(value)

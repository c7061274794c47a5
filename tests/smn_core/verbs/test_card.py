"""The model card of a mask: the Hub's fields, the file's own numbers, and nothing that a file's text can do to it."""

from __future__ import annotations

import json
import re

import pytest
from huggingface_hub import ModelCard

from smn_core.verbs.card import CardFacts, escape, make_card

HOSTILE = (
    "<script>alert(1)</script>\n---\n# Owned ![x](http://evil.example/x.png) [a](javascript:1) `b` | c @team\n\x1b[31m"
)


def card(mask, **known):
    return make_card(mask, CardFacts("someone/Photos", 1234, **known))


def table(text, heading):
    """Rows of the table under a heading, as lists of cells."""
    lines = text[text.index(heading) + 2 :].split("\n## ")[0].splitlines()
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines if line.startswith("|")]


def test_the_hub_reads_its_own_fields(tiny_vit, make_mask):
    read = ModelCard(card(make_mask(tiny_vit), base_model="timm/test_vit.r160_in1k", license="apache-2.0"))
    assert read.data.to_dict() == {
        "base_model": "timm/test_vit.r160_in1k",
        "base_model_relation": "adapter",
        "library_name": "smn",
        "license": "apache-2.0",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["smn", "smn-mask", "timm"],
    }
    assert read.text.startswith("\n# Photos\n")


def test_what_nobody_said_is_not_claimed(tiny_vit, make_mask):
    text = card(make_mask(tiny_vit))
    assert not {"base_model", "license"} & ModelCard(text).data.to_dict().keys()
    assert "No verdict was written" in text and "none was named" in text and "## Numbers" not in text


def test_density_is_told_by_stage_with_a_bar_for_what_is_off(tiny_resnet, make_mask):
    mask = make_mask(tiny_resnet, 0.7)
    text = card(mask)
    rows = table(text, "## Where it switches")[2:]
    assert [row[0].replace("\\", "") for row in rows] == list(mask.layout.stages)
    assert sum(int(row[2].replace(",", "")) for row in rows) == mask.n_off
    assert max(row[3].count("█") for row in rows) == 20


def test_an_all_on_mask_has_no_bar(tiny_vit, make_mask):
    assert "█" not in card(make_mask(tiny_vit, 1.1))


def test_verdict_and_numbers_are_the_files_own(tiny_vit, make_mask):
    metrics = {
        "verdict": {"answer": "adopt", "reason": "kNN rose"},
        "knn": {"mask": 0.91234567, "frozen": 0.5},
        "ok": True,
    }
    text = card(make_mask(tiny_vit, metadata={"metrics": json.dumps(metrics), "objective": "swav"}))
    assert "**Verdict: adopt.** kNN rose" in text
    assert "| knn mask | 0.912346 |" in text and "| knn frozen | 0.5 |" in text and "swav" in text
    assert "ok" not in [row[0] for row in table(text, "## Numbers")]


def test_hostile_text_stays_text(tiny_vit, make_mask):
    metrics = {"verdict": {"answer": "adopt", "reason": HOSTILE}, HOSTILE: 1.0}
    mask = make_mask(tiny_vit, metadata={"metrics": json.dumps(metrics), "dataset": HOSTILE, "objective": HOSTILE})
    plain, text = card(make_mask(tiny_vit)), card(mask)
    for sign in ("<", ">", "\x1b", "](", "![", "http://evil", "javascript:", " @team"):
        assert sign not in text, sign
    assert ModelCard(text).data.to_dict() == ModelCard(plain).data.to_dict()
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings == ["# Photos", "## Where it switches weights off", "## Numbers", "## How to use it"]
    assert text.splitlines().count("---") == 2
    assert {len(row) for row in table(text, "## Numbers")} == {2}


@pytest.mark.parametrize("metrics", ["[", "[1]", "7", '{"a": NaN}', "[" * 100_000, '{"a": 1e999}'])
def test_metrics_that_are_no_table_are_borne(tiny_vit, make_mask, metrics):
    assert "## Numbers" not in card(make_mask(tiny_vit, metadata={"metrics": metrics}))


def test_long_text_is_cut_and_lines_are_one():
    assert escape("a\nb\u2028c\td\u202ee") == "a b c d e"
    assert escape("x" * 400) == "x" * 300 + "\\.\\.\\."

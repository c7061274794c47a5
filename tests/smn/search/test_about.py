"""What a collection says of itself: written, read, and refused where it is damaged or another's."""

import json
from dataclasses import asdict, replace

import pytest

from smn.search.about import FORMAT, KEY, About, read_about
from smn_core.errors import InvalidData, OtherSpace

ABOUT = About("smn1:a:root:b", 8, "test_vit", "f" * 64, "root", "/photos", {"mask": None}, {"name": "test_vit"})


def test_what_is_written_is_read():
    assert read_about(ABOUT.as_metadata(), "x") == ABOUT


TOLD = {"format": FORMAT, **asdict(ABOUT)}
BAD = {
    "nothing": (None, "was not made by smn index"),
    "another's": ({b"pandas": b"{}"}, "was not made by smn index"),
    "no json": ({KEY: b"{"}, "damaged"),
    "no object": ({KEY: b"[]"}, "damaged"),
    "a later format": ({KEY: json.dumps({**TOLD, "format": "smn-collection/9"}).encode()}, "smn-collection/9"),
    "a word too many": ({KEY: json.dumps({**TOLD, "more": 1}).encode()}, "damaged"),
    "no space": ({KEY: json.dumps({**TOLD, "space": ""}).encode()}, "damaged"),
    "a text as width": ({KEY: json.dumps({**TOLD, "width": "8"}).encode()}, "damaged"),
    "a list of words": ({KEY: json.dumps({**TOLD, "through": []}).encode()}, "damaged"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_collection_is_refused(name):
    metadata, said = BAD[name]
    with pytest.raises(InvalidData, match=said) as caught:
        read_about(metadata, "photos.lance")
    assert "photos.lance" in str(caught.value)


def test_another_space_or_backbone_is_refused_and_both_are_named():
    ABOUT.check_same("photos.lance", ABOUT.space, ABOUT.fingerprint)
    with pytest.raises(OtherSpace, match=r"smn1:a:root:b.*smn1:other"):
        ABOUT.check_same("photos.lance", "smn1:other", ABOUT.fingerprint)
    with pytest.raises(OtherSpace, match=f"{'f' * 64}.*{'e' * 64}"):
        ABOUT.check_same("photos.lance", ABOUT.space, "e" * 64)
    with pytest.raises(OtherSpace):
        replace(ABOUT, space="smn1:x").check_same("photos.lance", ABOUT.space, ABOUT.fingerprint)

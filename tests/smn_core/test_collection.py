"""A collection remembers its space, and takes no vector of another one."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from smn_core.collection import Collection
from smn_core.errors import InvalidArgument, OtherSpace


@dataclass
class Found:
    space: str


@dataclass
class Scribe:
    """A client that answers in one space and keeps what it was asked."""

    space: str
    asked: list[dict[str, Any]] = field(default_factory=list)

    def embed(self, images: object, **words: Any) -> Found:
        assert images == []
        self.asked.append(words)
        return Found(self.space)


def test_the_first_answer_decides_and_the_client_is_told_from_then_on():
    scribe = Scribe("smn1:a")
    photos = Collection(scribe, "photos", normalize=True)
    photos.embed([])
    photos.embed([], strict=False)
    assert [words["space"] for words in scribe.asked] == [None, "smn1:a"]
    assert scribe.asked[1] == {
        "mask": "photos", "cascade": None, "mode": None, "normalize": True, "dimensions": None,
        "space": "smn1:a", "strict": False, "progress": False,
    }  # fmt: skip


def test_a_collection_goes_on_from_a_stored_space_and_refuses_every_other_one():
    photos = Collection(Scribe("smn1:b"), space="smn1:a")
    with pytest.raises(OtherSpace, match="in the space smn1:b, the collection's in smn1:a"):
        photos.embed([])
    with pytest.raises(OtherSpace, match="does not name"):
        photos.admit("")
    found = Found("smn1:a")
    assert photos.take(found) is found and photos.space == "smn1:a"


def test_without_a_client_a_collection_embeds_nothing():
    with pytest.raises(InvalidArgument, match="no client"):
        Collection().embed([])

"""What a search goes through: what is said now, else what the collection remembers; never a server that it names."""

from dataclasses import replace

import pytest

from smn.search.about import About
from smn.search.through import Chosen, as_indexed
from smn_core.errors import InvalidArgument, InvalidData
from smn_core.spec import BackboneSpec

WHERE = "photos.lance"
HERE = {"mask": "/masks/a.smn", "cascade": None, "mode": None, "server": None}
MADE = About(
    "smn1:a", 8, "test_vit", "f", "root", "/photos", HERE, {"name": "test_vit", "image_size": 32, "mean": [0.5]}
)


def test_what_is_not_said_is_as_it_was_made():
    spec, chosen = as_indexed(BackboneSpec(""), Chosen(), MADE, WHERE)
    assert (spec.name, spec.image_size, spec.mean, spec.weights) == ("test_vit", 32, (0.5,), None)
    assert chosen == Chosen("/masks/a.smn")


def test_a_flag_counts_first_and_a_variable_last():
    said = BackboneSpec("other", image_size=64, by_variable={"image_size": 64})
    spec, chosen = as_indexed(said, Chosen("b.smn"), MADE, WHERE)
    assert (spec.name, spec.image_size, chosen.mask) == ("other", 32, "b.smn")
    assert as_indexed(said, Chosen("root"), MADE, WHERE)[1].mask is None


def test_weights_that_are_gone_are_left_to_the_user(tmp_path):
    made = replace(MADE, backbone={"weights": str(tmp_path / "w.safetensors")})
    assert as_indexed(BackboneSpec(""), Chosen(), made, WHERE)[0].weights is None
    (tmp_path / "w.safetensors").touch()
    assert as_indexed(BackboneSpec(""), Chosen(), made, WHERE)[0].weights == tmp_path / "w.safetensors"


def test_a_server_is_named_by_the_user_alone():
    made = replace(MADE, through={**HERE, "mask": "photos", "server": "http://elsewhere"})
    with pytest.raises(InvalidArgument, match="http://elsewhere: say --server"):
        as_indexed(BackboneSpec(""), Chosen(), made, WHERE)
    chosen = as_indexed(BackboneSpec(""), Chosen(server="http://mine"), made, WHERE)[1]
    assert chosen == Chosen("photos", server="http://mine")
    with pytest.raises(InvalidArgument, match="say which --mask"):
        as_indexed(BackboneSpec(""), Chosen(server="http://mine"), MADE, WHERE)


@pytest.mark.parametrize("backbone", [{"name": 3}, {"args": []}, {"mean": ["x"]}, {"image_size": "64"}])
def test_a_backbone_that_cannot_be_read_is_damage(backbone):
    with pytest.raises(InvalidData, match=r"photos\.lance is damaged"):
        as_indexed(BackboneSpec(""), Chosen(), replace(MADE, backbone=backbone), WHERE)


def test_words_that_exclude_each_other_are_refused():
    for chosen, said in ((Chosen("a", "b"), "one of them"), (Chosen(mode="conditional"), "for a --cascade")):
        with pytest.raises(InvalidArgument, match=said):
            chosen.check()

"""What push and pull do beside the calls: nothing of a pull is written where it would hide another file."""

from pathlib import Path

import pytest

from service.transfer import pull_mask, recoded
from smn_core.errors import InvalidArgument
from smn_core.maskfile import read_mask, serialise_mask, write_mask
from smn_core.spec import BackboneSpec


class Server:
    """A client's two calls, answered from here."""

    def pull(self, name, version):
        return {("m", None): b"mask"}[name, version]

    def pull_parent(self, name, data):
        return {("m", b"mask"): b"parent"}[name, data]


def test_a_parent_never_replaces_another_file_unasked(tmp_path):
    other = tmp_path / "m.parent.smn"
    other.write_bytes(b"other")
    with pytest.raises(InvalidArgument, match="--overwrite"):
        pull_mask(Server(), "m", None, tmp_path / "m.smn", overwrite=False)
    assert other.read_bytes() == b"other" and not (tmp_path / "m.smn").exists()
    written = pull_mask(Server(), "m", None, tmp_path / "m.smn", overwrite=True)
    assert written == [(tmp_path / "m.smn", 4), (other, 6)] and other.read_bytes() == b"parent"
    assert pull_mask(Server(), "m", None, tmp_path / "m.smn", overwrite=False) == written


def test_a_file_is_recoded_for_as_long_as_it_is_sent(tmp_path, tiny_resnet, make_mask):
    mask = write_mask(make_mask(tiny_resnet), tmp_path / "m.smn")
    with recoded(tmp_path / "m.smn", None, BackboneSpec("")) as same:
        assert same == tmp_path / "m.smn"
    with recoded(tmp_path / "m.smn", "raw", BackboneSpec("")) as made:
        assert made.read_bytes() == serialise_mask(mask, "raw") and made.name == "m.smn"
    assert not Path(made).exists() and read_mask(tmp_path / "m.smn").digest == mask.digest

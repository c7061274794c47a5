"""`smn serve FILE.smn`: the backbone as the mask and its run say it, the mask in the registry, a line to try."""

import json
import re
import shlex
import socket
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch
from served import SIZE_PX, ServerProcess, Theta, photo, relative_error

from service.app import registry_of
from service.offer import put_in, read_offers, settle
from service.settings import Settings
from smn_core.backbone import load_backbone
from smn_core.engine import Engine, Segment
from smn_core.errors import InvalidArgument, WrongBackbone
from smn_core.maskfile import read_mask, write_mask
from smn_core.spec import BackboneSpec
from smn_core.verbs.recorded import read_weights, run_folder, write_backbone


@pytest.fixture
def backbone(theta):
    return theta.backbone()


@pytest.fixture
def write(backbone, theta, make_mask, tmp_path):
    """`write("photos.smn")`: a mask as a run leaves it, its weights noted in the folder beside it."""
    theta.save(tmp_path)

    def written(name, seed=0, noted="theta.safetensors", of=None):
        path = tmp_path / name
        mask = make_mask(of or backbone, 0.8, seed, with_preprocess=True)
        write_mask(mask, path)
        run_folder(path).mkdir(exist_ok=True)
        if noted:
            spec = replace(theta_spec(theta), weights=tmp_path / noted)
            write_backbone(run_folder(path), spec, mask.fingerprint)
        return path

    return written


def theta_spec(theta):
    return BackboneSpec(theta.name, args=theta.args)


def settled(files, **given):
    return settle(given, read_offers(files), lambda values: Settings(**values))


def test_nothing_but_the_file_is_needed(write, tmp_path, theta):
    settings = settled([write("photos.smn"), write("b.smn", 1)], preload=["other"])
    spec = settings.spec()
    assert (spec.name, spec.args, spec.weights) == (theta.name, theta.args, tmp_path / "theta.safetensors")
    assert spec.image_size == SIZE_PX and settings.preload == ["other", "photos", "b"]
    mask = read_mask(tmp_path / "photos.smn")
    assert (spec.mean, spec.std) == (tuple(mask.preprocess["mean"]), tuple(mask.preprocess["std"]))
    assert spec.crop_pct == mask.preprocess["crop_pct"]
    assert load_backbone(spec).fingerprint == mask.fingerprint


def test_a_flag_goes_before_the_mask_and_the_mask_before_a_variable(write, tmp_path, monkeypatch, theta):
    path = write("photos.smn")
    for name, value in {"BACKBONE": "resnet50", "MODEL_ARG": "depth=9", "IMAGE_SIZE": "8", "WEIGHTS": "x"}.items():
        monkeypatch.setenv(f"SMN_{name}", value)
    spec = settled([path]).spec()
    assert (spec.name, spec.args, spec.image_size) == (theta.name, theta.args, SIZE_PX)
    assert spec.weights == tmp_path / "theta.safetensors"
    spec = settled([path], image_size=64, weights=tmp_path / "y").spec()
    assert (spec.name, spec.image_size, spec.weights) == (theta.name, 64, tmp_path / "y")
    monkeypatch.setenv("SMN_BATCH_SIZE", "3")
    assert settled([path]).batch_size == 3


def test_a_variable_names_the_weights_that_no_run_names_or_that_moved(write, tmp_path, monkeypatch):
    alone, moved = write("alone.smn", noted=None), write("moved.smn", noted="gone.safetensors")
    with pytest.raises(InvalidArgument, match=r"learned on .*gone\.safetensors, which is not there: say --weights"):
        settled([moved])
    monkeypatch.setenv("SMN_WEIGHTS", str(tmp_path / "theta.safetensors"))
    for path in (alone, moved):
        assert settled([path]).spec().weights == tmp_path / "theta.safetensors"


def test_a_note_of_another_run_says_nothing_and_a_damaged_one_is_refused(write, theta):
    path = write("photos.smn")
    write_backbone(run_folder(path), theta_spec(theta), "0" * 64)
    assert read_weights(path, read_mask(path).fingerprint) is None
    (run_folder(path) / "backbone.json").write_text("{")
    with pytest.raises(InvalidArgument, match=r"backbone\.json is damaged: .* --weights FILE"):
        read_weights(path, read_mask(path).fingerprint)


def test_what_no_server_can_serve_together_is_refused(write, make_backbone, tmp_path):
    path, upper = write("a.smn"), write("My Photos.smn")
    (tmp_path / "twin").mkdir()
    other = make_backbone("test_resnet", seed=5)
    foreign = write("foreign.smn", of=other, noted=None)
    for files, words in (
        ([upper], "My Photos.* is not a name.*rename"),
        ([path, path], "would have one name"),
        ([path, foreign], "different backbones"),
        ([tmp_path / "twin"], "is a folder.*smn push"),
    ):
        with pytest.raises(InvalidArgument, match=words):
            read_offers(files)


def test_a_mask_becomes_a_version_unless_it_is_the_current_one(write, backbone, tmp_path):
    registry = registry_of(Settings(registry=str(tmp_path / "registry")), backbone)
    first = read_offers([write("a.smn"), write("b.smn", 1)])
    assert [line.rsplit(" is ", 1)[1] for line in put_in(registry, backbone, first)] == [
        "now a@1 of the registry", "now b@1 of the registry",
    ]  # fmt: skip
    again = read_offers([write("a.smn"), write("b.smn", 2)])
    assert [line.rsplit(" is ", 1)[1] for line in put_in(registry, backbone, again)] == [
        "already a@1 of the registry", "now b@2 of the registry",
    ]  # fmt: skip


def test_other_weights_are_refused_before_anything_is_written(write, tmp_path):
    offers = read_offers([write("a.smn")])
    other = Theta(seed=1).backbone()
    registry = registry_of(Settings(registry=str(tmp_path / "registry")), other)
    with pytest.raises(WrongBackbone, match=r"a\.smn: .*fingerprint.*; say --weights FILE"):
        put_in(registry, other, offers)
    assert list(registry.names("masks")) == []


def test_a_mask_named_as_the_backbone_is_refused(write, backbone, tmp_path):
    registry = registry_of(Settings(registry=str(tmp_path / "registry")), backbone)
    with pytest.raises(InvalidArgument, match="the backbone's own name: rename"):
        put_in(registry, backbone, read_offers([write(f"{backbone.architecture}.smn")]))


def test_a_real_server_says_where_it_is_and_a_line_that_works(write, theta, tmp_path):
    path = write("photos.smn")
    (tmp_path / "photo.jpg").write_bytes(photo(3, (80, 60), "JPEG"))
    with ServerProcess([path], tmp_path) as server:
        said = re.findall(r"^(?:serving on|try:) .*$", server.log, re.MULTILINE)
        assert said[0].startswith(f"serving on {server.url} ")
        call = shlex.split(said[1].removeprefix("try: "))
        done = subprocess.run([*call, "-sS", "--fail-with-body"], cwd=tmp_path, capture_output=True, check=True)
        answer = json.loads(done.stdout)
        assert answer["mask"]["name"] == "photos" and answer["mask"]["digest"] == read_mask(path).digest
    engine = Engine(
        load_backbone(replace(theta_spec(theta), weights=tmp_path / "theta.safetensors", image_size=SIZE_PX)), 1
    )
    engine.prepare(read_mask(path))
    x = theta.pixels((tmp_path / "photo.jpg").read_bytes())
    wanted = engine.embed(torch.from_numpy(x), [Segment(read_mask(path).digest, 0, 1)]).embeddings.numpy()
    assert relative_error(np.array(answer["embeddings"]), wanted) < 1e-4


def test_a_start_on_a_port_in_use_leaves_the_registry_as_it_was(write, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = ServerProcess([write("photos.smn")], tmp_path, port=taken.getsockname()[1]).start(False)
        assert server.process.wait(120) == 2
    assert "is in use" in server.log and "photos@1" not in server.log
    assert not (tmp_path / "registry").exists()


def test_serving_on_comes_after_what_is_preloaded_and_not_where_the_start_fails(write, theta, tmp_path):
    """The name is current in the registry, but its blob is damaged: the server never answered, and never says so."""
    path = write("photos.smn")
    with ServerProcess([path], tmp_path) as server:
        assert server.log.index("photos@1") < server.log.index("serving on")
    (blob,) = (tmp_path / "registry").rglob("blobs/sha256/*")
    blob.chmod(0o644)
    blob.write_bytes(b"damaged")
    again = ServerProcess(["--preload", "photos", *theta.save(tmp_path)], tmp_path)
    with pytest.raises(RuntimeError):
        again.start()
    assert again.process.returncode == 2 and "serving on" not in again.log

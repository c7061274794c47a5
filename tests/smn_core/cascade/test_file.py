"""smn-cascade/1: what is written is read, in both implementations; and what it refuses."""

import json
from dataclasses import replace

import independent
import make
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from smn_core import maskfile, tensorfile
from smn_core.backbone import wrap
from smn_core.cascade import file as cascadefile
from smn_core.cascade.fusion import Fusion
from smn_core.cascade.kinds import KINDS
from smn_core.errors import InvalidCascade, InvalidMask, WrongBackbone
from smn_core.matrices import PRECISIONS
from smn_core.spec import BackboneSpec
from tests.smn_core.cascade.cascades import D, K, build_cascade, build_fusion, build_router, digest

GOLDEN = "sha256:53c5e47dc1e7da0ba9d765db1642712a803782d9428ca9fd073f12fe38df75b7"


def same(a, b):
    assert a.metadata == b.metadata
    assert (a.root, a.experts, a.fingerprint, a.mode, a.fusion.kind, a.fusion.seed) == (
        b.root, b.experts, b.fingerprint, b.mode, b.fusion.kind, b.fusion.seed
    )  # fmt: skip
    assert a.fusion.tensors.keys() == b.fusion.tensors.keys()
    for mode, tensors in a.fusion.tensors.items():
        assert tensors.keys() == b.fusion.tensors[mode].keys()
        for name, array in tensors.items():
            assert_array_equal(array, b.fusion.tensors[mode][name], strict=True)
    assert (a.router is None) == (b.router is None)
    for name, array in (a.router.tensors() if a.router else {}).items():
        assert_array_equal(array, getattr(b.router, name), strict=True)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read(kind, precision, tmp_path):
    cascade = build_cascade(kind, precision, metadata={"dataset": "blüten"}, mode="conditional")
    written = cascadefile.write_cascade(cascade, tmp_path / "cascade.safetensors")
    read = cascadefile.read_cascade(tmp_path)
    same(read, cascade)
    assert read.digest == written.digest == tensorfile.digest_of((tmp_path / "cascade.safetensors").read_bytes())
    assert cascadefile.serialise_cascade(read) == cascadefile.serialise_cascade(cascade)


@pytest.mark.parametrize("kind", KINDS)
def test_both_implementations_write_the_same_bytes(kind):
    cascade = build_cascade(kind, "int8", metadata={"dataset": "d"})
    texts = {"seed": str(cascade.fusion.seed)} if kind == "random" else {}
    assert cascadefile.serialise_cascade(cascade) == independent.write_cascade(
        cascade.fingerprint,
        cascade.root,
        list(cascade.experts),
        kind,
        "unconditional",
        cascade.fusion.tensors,
        cascade.router.tensors(),
        dataset="d",
        **texts,
    )


def test_the_golden_cascade_reads_the_same_for_ever():
    data = (make.HERE / "cascade.safetensors").read_bytes()
    assert tensorfile.digest_of(data) == GOLDEN
    assert make.files()["cascade.safetensors"] == data
    cascade = cascadefile.parse_cascade(data)
    masks = [maskfile.parse_mask((make.HERE / f"{name}.smn").read_bytes()).digest for name in ("raw", "zstd")]
    assert cascade.masks == (masks[0], masks[1], masks[0])
    assert (cascade.mode, cascade.modes) == ("conditional", ("unconditional", "conditional"))
    assert cascade.metadata == {"dataset": "flowers of the field"}
    assert cascade.router.weights.tolist() == [0.25, 0.75]
    assert cascade.fusion.tensors["unconditional"]["components"][0, :3].tolist() == [93, 117, -2]
    cascadefile.check_fits(cascade, wrap(make.model(), "test_resnet", BackboneSpec("test_resnet")))
    assert cascadefile.serialise_cascade(cascade) == data


def test_the_golden_folder_is_a_cascade_with_its_masks():
    found = cascadefile.open_folder(make.HERE)
    assert [path.name for path in found.files] == ["raw.smn", "zstd.smn", "raw.smn"]
    assert [mask.digest for mask in found.masks()] == list(found.cascade.masks)


def crafted(edit, kind="pca", precision="int8"):
    """The file after `edit(metadata, tensors)`, its content checksum right again."""
    metadata, tensors = independent.parse(cascadefile.serialise_cascade(build_cascade(kind, precision)))
    tensors = {name: array.copy() for name, array in tensors.items()}
    edit(metadata, tensors)
    metadata.pop("content", None)
    return independent.container(metadata | {"content": independent.content(metadata, tensors)}, tensors)


def put(where, key, value):
    def edit(metadata, tensors):
        (metadata if where == "metadata" else tensors)[key] = value

    return edit


def drop(where, key):
    return lambda metadata, tensors: (metadata if where == "metadata" else tensors).pop(key)


def spoil(name, value=np.nan, at=0):
    def edit(_, tensors):
        tensors[name].reshape(-1)[at] = value

    return edit


MEAN, COMPONENTS, SCALE = (f"fusion.unconditional.{name}" for name in ("mean", "components", "scale"))
F = (K + 1) * D
REFUSED = {
    "another format": (put("metadata", "format", "smn-mask/1"), "format is 'smn-mask/1'"),
    "no root": (drop("metadata", "root"), "'root' is missing"),
    "no experts": (drop("metadata", "experts"), "'experts' is missing"),
    "no fingerprint": (drop("metadata", "fingerprint"), "'fingerprint' is missing"),
    "no fusion": (drop("metadata", "fusion"), "'fusion' is missing"),
    "no mode": (drop("metadata", "mode"), "'mode' is missing"),
    "a root that is no digest": (put("metadata", "root", "sha256:00"), "'root': 'sha256:00' is not"),
    "upper case": (put("metadata", "root", "sha256:" + "A" * 64), "'root'"),
    "experts that are no JSON": (put("metadata", "experts", "["), "is not JSON"),
    "experts that are deep": (put("metadata", "experts", "[" * 100_000), "is not JSON"),
    "experts that are no list": (put("metadata", "experts", "{}"), "not a list of digests"),
    "an expert that is no digest": (put("metadata", "experts", json.dumps([1])), "'experts': '1'"),
    "too many experts": (put("metadata", "experts", json.dumps([digest(1)] * 65)), "65 experts, at most 64"),
    "fewer experts than the router": (put("metadata", "experts", json.dumps([digest(1)])), "among 3 experts"),
    "a fingerprint that is none": (put("metadata", "fingerprint", "xyz"), "not 64 hex digits"),
    "an unknown fusion": (put("metadata", "fusion", "magic"), "unknown fusion 'magic'"),
    "an unknown mode": (put("metadata", "mode", "magic"), "default mode 'magic'"),
    "a concatenation with tensors": (put("metadata", "fusion", "concat"), "the fusion concat has tensors"),
    "another kind's tensors": (put("metadata", "fusion", "low-rank"), "conditional.parts is missing"),
    "no components": (drop("tensors", COMPONENTS), "unconditional.components is missing"),
    "int8 without its scale": (drop("tensors", f"{COMPONENTS}_scale"), "components_scale is missing"),
    "a scale without int8": (put("tensors", COMPONENTS, np.ones((5, F), np.float32)), "components_scale is not a"),
    "an unknown tensor": (put("tensors", "extra", np.ones(1, np.float32)), "extra is not a tensor"),
    "an unknown fusion tensor": (put("tensors", "fusion.unconditional.x", np.ones(1, np.float32)), "unconditional.x"),
    "a fusion of no mode": (put("tensors", "fusion.sideways.mean", np.ones(1, np.float32)), "unknown mode 'sideways'"),
    "a deep name": (put("tensors", "fusion.unconditional.mean.x", np.ones(1, np.float32)), "is not a tensor"),
    "doubles": (put("tensors", MEAN, np.ones(F)), "mean is float64"),
    "whole numbers": (put("tensors", SCALE, np.ones(5, np.int8)), "scale is int8"),
    "a mean that is not finite": (spoil(MEAN), "mean has a value that is not finite"),
    "a scale that is not finite": (spoil(SCALE, np.inf), "scale has a value that is not finite"),
    "a narrow mean": (put("tensors", MEAN, np.ones(F - 1, np.float32)), "f is 47 elsewhere"),
    "a short scale": (put("tensors", SCALE, np.ones(4, np.float32)), "q is 5 elsewhere"),
    "a flat matrix": (put("tensors", COMPONENTS, np.ones(5, np.int8)), r"expected \[q,f\]"),
    "an empty matrix": (put("tensors", COMPONENTS, np.ones((0, F), np.int8)), r"expected \[q,f\]"),
    "a components_scale of another length": (
        put("tensors", f"{COMPONENTS}_scale", np.ones(4, "f4")),
        r"expected \[5\]",
    ),
    "no router of a conditional fusion": (
        lambda _, t: [t.pop(name) for name in list(t) if name.startswith("router.")],
        "without a router",
    ),
    "half a router": (drop("tensors", "router.means"), "router.means is missing"),
    "more than a router": (put("tensors", "router.x", np.ones(1, np.float32)), "router.x is not a tensor"),
    "a router of halves": (put("tensors", "router.mean", np.ones(D, np.float16)), "router.mean is float16"),
    "a router that is not finite": (spoil("router.means"), "router.means has a value that is not finite"),
    "a router of another width": (put("tensors", "router.mean", np.ones(D + 1, "f4")), "router.components is"),
    "a router of one matrix": (put("tensors", "router.mean", np.ones((D, 1), "f4")), "are vectors"),
    "weights that do not sum to 1": (spoil("router.weights", 2), "sum to 1"),
    "a negative weight": (spoil("router.weights", -0.1), "not positive"),
    "a diagonal of zero": (spoil("router.precisions_cholesky", 0), "positive diagonal"),
    "a lower triangle": (spoil("router.precisions_cholesky", 1, at=4), "upper triangular"),
}


def packed(edit):
    return crafted(edit, "pca-int3")


REFUSED_PACKED = {
    "a narrow matrix": (put("tensors", COMPONENTS, np.zeros((5, 17), np.uint8)), "packed is 18 elsewhere"),
    "signed codes": (put("tensors", COMPONENTS, np.zeros((5, 18), np.int8)), "components is int8, expected uint8"),
    "codes without a scale": (drop("tensors", f"{COMPONENTS}_scale"), "components_scale is missing"),
    "another number of bits": (put("metadata", "fusion", "pca-int4"), "packed is 24 elsewhere"),
    "an unknown number of bits": (put("metadata", "fusion", "pca-int5"), "unknown fusion 'pca-int5'"),
}


@pytest.mark.parametrize("what", REFUSED_PACKED)
def test_packed_codes_that_break_a_rule_are_refused_by_name(what):
    edit, said = REFUSED_PACKED[what]
    with pytest.raises(InvalidCascade, match=said):
        cascadefile.parse_cascade(packed(edit))


def test_a_bit_behind_the_last_code_is_refused():
    fusion = build_fusion("pca-int3", np.random.default_rng(0), d=D - 1)
    tensors = {"unconditional": dict(fusion.tensors["unconditional"])}
    width = len(tensors["unconditional"]["mean"])
    assert 3 * width % 8, "no padding to set"
    spoilt = tensors["unconditional"]["components"].copy()
    spoilt[0, -1] |= 0x80
    tensors["unconditional"]["components"] = spoilt
    with pytest.raises(InvalidCascade, match="bit set past its last code"):
        Fusion("pca-int3", tensors)


@pytest.mark.parametrize("what", REFUSED)
def test_a_file_that_breaks_a_rule_is_refused_by_name(what):
    edit, said = REFUSED[what]
    with pytest.raises(InvalidCascade, match=said):
        cascadefile.parse_cascade(crafted(edit))


def test_a_fusion_of_the_wrong_width_is_refused():
    """The router says how wide an embedding is: the fusion must take as many of them as there are masks."""
    rng = np.random.default_rng(0)
    with pytest.raises(InvalidCascade, match="4 masks give 4 x 12"):
        build_cascade(fusion=build_fusion("pca", rng, d=D + 1))
    with pytest.raises(InvalidCascade, match="no multiple of 4 masks"):
        build_cascade(router=None, fusion=build_fusion_of_one_mode(47))
    with pytest.raises(InvalidCascade, match="parts has 5 parts, the cascade 4 masks"):
        build_cascade(fusion=build_fusion("low-rank", rng, k=K + 1))


def build_fusion_of_one_mode(f):
    tensors = {"mean": np.zeros(f, "f4"), "components": np.ones((2, f), "f4"), "scale": np.ones(2, "f4")}
    return Fusion("pca", {"unconditional": tensors})


@pytest.mark.parametrize(("seed", "ok"), [("0", True), ("11", True), ("-1", False), ("01", False), ("x", False)])
def test_the_seed_of_a_random_projection_is_a_plain_number(seed, ok):
    data = crafted(put("metadata", "seed", seed), "random")
    if ok:
        assert cascadefile.parse_cascade(data).fusion.seed == int(seed)
    else:
        with pytest.raises(InvalidCascade, match="'seed'"):
            cascadefile.parse_cascade(data)


def test_a_random_projection_needs_its_seed():
    with pytest.raises(InvalidCascade, match="seed"):
        cascadefile.parse_cascade(crafted(drop("metadata", "seed"), "random"))


def test_a_projection_that_would_fill_the_memory_is_refused():
    """Its matrix is drawn from a seed: no byte of the file would show how large it is."""
    tensors = {"mean": np.zeros(F + 1, "f4"), "components": np.ones((1, F + 1), "f4"), "scale": np.ones(1, "f4")}
    with pytest.raises(InvalidCascade, match="too large"):
        build_cascade(fusion=Fusion("random", {"unconditional": tensors}, 0))


def test_any_flipped_bit_is_refused():
    data = bytearray(cascadefile.serialise_cascade(build_cascade("pca", "int8")))
    length = int.from_bytes(data[:8], "little")
    text = data[8 : 8 + length].rstrip(b" ")
    rng = np.random.default_rng(0)
    for position in (*rng.integers(0, 8 + len(text), 300), *rng.integers(8 + length, len(data), 300)):
        for bit in range(8):
            changed = bytearray(data)
            changed[position] ^= 1 << bit
            with pytest.raises(InvalidCascade):
                cascadefile.parse_cascade(bytes(changed))


@pytest.mark.parametrize("n", [0, 4, 8, 100, 1000, -1])
def test_a_truncated_file_is_refused(n):
    with pytest.raises(InvalidCascade):
        cascadefile.parse_cascade(cascadefile.serialise_cascade(build_cascade())[:n])


def test_duplicate_keys_are_refused():
    data = cascadefile.serialise_cascade(build_cascade())
    length = int.from_bytes(data[:8], "little")
    text = data[8 : 8 + length].rstrip(b" ")
    text = text.replace(b'"mode":', b'"root":"x","mode":', 1)
    text += b" " * (-len(text) % 8)
    with pytest.raises(InvalidCascade, match="same key twice"):
        cascadefile.parse_cascade(len(text).to_bytes(8, "little") + text + data[8 + length :])


def test_a_mask_is_no_cascade_and_a_cascade_no_mask():
    with pytest.raises(InvalidCascade, match="format is 'smn-mask/1'"):
        cascadefile.read_cascade(make.HERE / "zstd.smn")
    with pytest.raises(InvalidMask, match="format is 'smn-cascade/1'"):
        maskfile.parse_mask(cascadefile.serialise_cascade(build_cascade()))


def test_a_cascade_of_another_backbone_is_refused(tiny_resnet):
    with pytest.raises(WrongBackbone, match="fingerprint abab"):
        cascadefile.check_fits(build_cascade(), tiny_resnet)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cascade_of_another_width_than_the_backbone_is_refused(tiny_resnet, kind):
    router = build_router(np.random.default_rng(0)) if kind == "concat" else None
    fusion = build_cascade(kind).fusion
    fusion = replace(fusion, tensors={m: t for m, t in fusion.tensors.items() if m == "unconditional"})
    if kind == "random":  # says nothing of the width: projects whatever there is
        return
    cascade = build_cascade(kind, fusion=fusion, router=router, fingerprint=tiny_resnet.fingerprint)
    with pytest.raises(InvalidCascade, match=r"features|x 8"):
        cascadefile.check_fits(cascade, tiny_resnet)


@pytest.fixture
def folder(tmp_path, tiny_resnet, make_mask):
    masks = [maskfile.write_mask(make_mask(tiny_resnet, rng=i), tmp_path / f"{i}.smn") for i in range(K + 1)]
    cascade = build_cascade(
        root=masks[0].digest,
        experts=tuple(mask.digest for mask in masks[1:]),
        fusion=build_fusion("pca", np.random.default_rng(0), d=tiny_resnet.n_features),
        router=build_router(np.random.default_rng(0), d=tiny_resnet.n_features),
        fingerprint=tiny_resnet.fingerprint,
    )
    cascadefile.write_cascade(cascade, tmp_path / cascadefile.FILE_NAME)
    return tmp_path


def test_a_folder_without_one_of_its_masks_is_refused_by_the_digests_that_lack(folder):
    lost = [tensorfile.digest_of((folder / f"{i}.smn").read_bytes()) for i in (1, 3)]
    for i in (1, 3):
        (folder / f"{i}.smn").unlink()
    with pytest.raises(InvalidCascade, match=f"lacks masks of its cascade: {', '.join(lost)}"):
        cascadefile.open_folder(folder)


def test_a_mask_of_another_backbone_in_a_cascade_is_refused(folder, make_backbone, make_mask):
    other = make_backbone("test_resnet", seed=1, channels=[8, 8, 8, 8], stem_width=8)
    mask = maskfile.write_mask(make_mask(other), folder / "other.smn")
    cascade = cascadefile.read_cascade(folder)
    changed = replace(cascade, experts=(mask.digest, *cascade.experts[1:]))
    cascadefile.write_cascade(changed, folder / cascadefile.FILE_NAME)
    with pytest.raises(WrongBackbone, match=r"other\.smn: the mask was made for another backbone"):
        cascadefile.open_folder(folder).masks()


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(InvalidCascade, match="is not a folder"):
        cascadefile.open_folder(tmp_path / "none")
    with pytest.raises(InvalidCascade, match=r"cannot read .*cascade\.safetensors"):
        cascadefile.open_folder(tmp_path)

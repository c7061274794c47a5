"""Routing and fusing: the fast code, the slow reference, scikit-learn and the independent reader agree."""

import hashlib
from dataclasses import replace

import independent
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

from smn_core.cascade import cascade as cascades
from smn_core.cascade import codes
from smn_core.cascade import file as cascadefile
from smn_core.cascade.cascade import concatenate_all, concatenate_picked, fuse, fuse_slowly
from smn_core.cascade.fusion import Fusion
from smn_core.cascade.kinds import KINDS
from smn_core.cascade.kinds.random_signs import draw_signs
from smn_core.cascade.router import Router, route, route_slowly
from smn_core.engine import Engine, Segment
from smn_core.errors import InvalidArgument, NotReady
from smn_core.matrices import PRECISIONS, quantise
from tests.smn_core.builders import TINY_RESNET, by_hand, images, lively
from tests.smn_core.cascade.cascades import D, K, Q, build_cascade, build_fusion, build_router, embeddings


def close(found, expected):
    return np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)


def test_routing_is_scikit_learns_predict():
    """A mixture that scikit-learn fitted, rounded to float32 as files hold it."""
    rng = np.random.default_rng(0)
    z = np.concatenate([rng.standard_normal((150, D)) + 3 * rng.standard_normal(D) for _ in range(K)])
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    pca = PCA(4, whiten=True).fit(unit)
    mixture = GaussianMixture(K, random_state=0).fit(pca.transform(unit))
    router = Router(
        mean=pca.mean_.astype(np.float32),
        components=pca.components_.astype(np.float32),
        scale=(1 / np.sqrt(pca.explained_variance_)).astype(np.float32),
        weights=mixture.weights_.astype(np.float32),
        means=mixture.means_.astype(np.float32),
        precisions_cholesky=mixture.precisions_cholesky_.astype(np.float32),
    )
    fresh = rng.standard_normal((500, D)) * 3
    fresh_unit = fresh / np.linalg.norm(fresh, axis=1, keepdims=True)
    found = route(router, fresh.astype(np.float32))
    assert (found == mixture.predict(pca.transform(fresh_unit))).all()
    assert (found == route_slowly(router, fresh.astype(np.float32))).all()
    assert len(set(found.tolist())) == K


@pytest.mark.parametrize("seed", range(5))
def test_routing_agrees_with_its_reference_and_the_independent_reader(seed):
    router, root = build_router(np.random.default_rng(seed)), embeddings(200)[0]
    found = route(router, root)
    assert (found == route_slowly(router, root)).all()
    assert (found == independent.route({"router": router.tensors()}, root)).all()


def test_routing_does_not_depend_on_the_length_of_an_embedding():
    router, root = build_router(np.random.default_rng(0)), embeddings(50)[0]
    assert (route(router, root) == route(router, 7 * root)).all()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_fusion_agrees_with_its_reference_and_the_independent_reader(kind, precision):
    cascade = build_cascade(kind, precision)
    parts = embeddings()
    chosen = route(cascade.router, parts[0])
    expert = np.stack([parts[1 + j][i] for i, j in enumerate(chosen)])
    read = independent.read_cascade(cascadefile.serialise_cascade(cascade))
    whole = fuse(cascade, "unconditional", concatenate_all(parts))
    assert whole.dtype == np.float32
    assert whole.shape == (20, cascade.width("unconditional", D)) == (20, D * (K + 1) if kind == "concat" else Q)
    assert close(whole, fuse_slowly(cascade, "unconditional", parts))
    assert close(whole, independent.fuse(read, "unconditional", parts))
    conditional = fuse(cascade, "conditional", concatenate_picked(parts[0], expert, chosen, K))
    assert close(conditional, fuse_slowly(cascade, "conditional", parts, chosen))
    assert close(conditional, independent.fuse(read, "conditional", parts, chosen))


def test_pca_is_scikit_learns_whitening():
    x = concatenate_all(embeddings(100))
    pca = PCA(Q, whiten=True, svd_solver="full").fit(x.astype(np.float64))
    tensors = {
        "mean": pca.mean_.astype(np.float32),
        "components": pca.components_.astype(np.float32),
        "scale": (1 / np.sqrt(pca.explained_variance_)).astype(np.float32),
    }
    assert close(Fusion("pca", {"unconditional": tensors}).apply("unconditional", x), pca.transform(x))


def test_int8_is_within_half_a_step_of_what_it_stands_for():
    values = np.random.default_rng(0).standard_normal((6, 40)).astype(np.float32)
    stored = quantise("components", values, "int8")
    assert stored["components"].dtype == np.int8
    step = stored["components_scale"][:, None]
    assert (np.abs(stored["components"] * step - values) <= 0.5001 * step).all()


@settings(max_examples=60, deadline=None)
@given(n_bits=st.integers(2, 8), shape=st.tuples(st.integers(1, 5), st.integers(1, 40)), seed=st.integers(0, 2**31))
def test_packed_codes_come_back_and_take_their_bits_alone(n_bits, shape, seed):
    found = np.random.default_rng(seed).integers(0, 2**n_bits, shape, dtype=np.uint8)
    packed = codes.pack(found, n_bits)
    assert packed.shape == (shape[0], codes.row_bytes(shape[1], n_bits)) == (shape[0], -(-shape[1] * n_bits // 8))
    assert (codes.unpack(packed, n_bits, shape[1]) == found).all()
    assert codes.padding_is_clear(packed, n_bits, shape[1])


def test_levels_are_evenly_spaced_around_zero():
    assert codes.to_levels(np.arange(4, dtype=np.uint8)[None], 2).tolist() == [[-1.5, -0.5, 0.5, 1.5]]


def test_a_precision_that_is_none_is_refused():
    with pytest.raises(InvalidArgument, match="unknown precision 'int4'"):
        quantise("components", np.ones((2, 2), np.float32), "int4")


def test_signs_are_known_for_ever():
    """The bits of SHAKE-256, least significant first: the same for a later version and in another language."""
    found = draw_signs(0, 2, 16) * 4
    assert set(np.unique(found)) == {-1.0, 1.0}
    first = hashlib.shake_256(b"smn-cascade/1 random 0 0").digest(2)
    drawn = [(first[j // 8] >> (j % 8)) & 1 for j in range(16)]
    assert found[0].tolist() == [2.0 * bit - 1 for bit in drawn]
    assert (draw_signs(0, 1, 16) * 4 == found[:1]).all()
    assert draw_signs(1, 1, 16).tolist() != draw_signs(0, 1, 16).tolist()


def test_a_mode_that_is_not_there_is_refused():
    cascade = build_cascade(router=None, fusion=Fusion("concat"))
    assert cascade.modes == ("unconditional",)
    with pytest.raises(InvalidArgument, match="no conditional mode"):
        cascade.choose_mode("conditional")
    with pytest.raises(InvalidArgument, match="no sideways mode"):
        cascade.choose_mode("sideways")
    assert cascade.choose_mode(None) == "unconditional"


def test_dimensions_are_at_most_the_fusions_width():
    cascade = build_cascade()
    assert cascade.choose_dimensions(None, "conditional", D) == Q
    assert cascade.choose_dimensions(2, "conditional", D) == 2
    for wanted in (0, Q + 1):
        with pytest.raises(InvalidArgument, match=f"embedding of this cascade has {Q}"):
            cascade.choose_dimensions(wanted, "conditional", D)


def test_a_root_alone_may_be_whitened():
    """A cascade without experts: root and PCA whitening, the control that the paper lacks."""
    rng = np.random.default_rng(0)
    tensors = {"mean": np.zeros(D, np.float32), "components": np.eye(D, dtype=np.float32), "scale": np.ones(D, "f4")}
    cascade = build_cascade(experts=(), router=None, fusion=Fusion("pca", {"unconditional": tensors}))
    z = rng.standard_normal((3, D)).astype(np.float32)
    assert (fuse(cascade, "unconditional", concatenate_all([z])) == z).all()


@pytest.fixture
def ran(make_backbone, make_mask):
    """An engine with four masks prepared, a cascade of them, and every mask's embeddings of some images."""
    backbone = make_backbone("test_resnet", channels=[8, 8, 8, 8], stem_width=8)
    masks = [make_mask(backbone, rng=i) for i in range(K + 1)]
    engine = Engine(backbone, slots=2)
    rng, d = np.random.default_rng(0), backbone.n_features
    cascade = build_cascade(
        root=masks[0].digest,
        experts=tuple(mask.digest for mask in masks[1:]),
        fusion=build_fusion("pca", rng, d=d),
        router=build_router(rng, d=d),
    )
    for mask in masks:
        engine.prepare(mask)
    x = torch.randn(9, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    parts = [engine.embed(x, [Segment(mask.digest, 0, 9)]).embeddings.numpy() for mask in masks]
    return engine, cascade, x, parts


def test_running_a_cascade_is_its_masks_and_the_fusion(ran):
    engine, cascade, x, parts = ran
    whole = cascades.embed(engine, cascade, "unconditional", x)
    assert whole.chosen is None
    assert close(whole.embeddings, fuse_slowly(cascade, "unconditional", parts))
    conditional = cascades.embed(engine, cascade, "conditional", x)
    assert (conditional.chosen == route_slowly(cascade.router, parts[0])).all()
    assert close(conditional.embeddings, fuse_slowly(cascade, "conditional", parts, conditional.chosen))


@pytest.mark.parametrize("mode", ["unconditional", "conditional"])
def test_a_cascade_routes_and_fuses_mapped_embeddings(make_mask, mode):
    """Root and experts have maps, one has none: by a plain model, the maps in float64, and the references."""
    backbone = lively(TINY_RESNET)
    kinds = ["float32", "diagonal", None, "int8"]
    masks = [make_mask(backbone, 0.7, i, with_state=True, with_affine=kind) for i, kind in enumerate(kinds)]
    engine, x = Engine(backbone, slots=2), images(TINY_RESNET, 12)
    bare = [z.numpy() for z in by_hand(TINY_RESNET, masks, x)]
    # The root's map centres: only then do the rows lie apart for the router.
    masks[0] = replace(masks[0], affine=replace(masks[0].affine, mean=bare[0].mean(0)))
    for mask in masks:
        engine.prepare(mask)
    parts = [
        independent.apply_affine(mask.affine.tensors() if mask.affine else {}, z).astype(np.float32)
        for mask, z in zip(masks, bare, strict=True)
    ]
    rng, d = np.random.default_rng(0), backbone.n_features
    cascade = build_cascade(
        root=masks[0].digest,
        experts=tuple(mask.digest for mask in masks[1:]),
        fusion=build_fusion("pca", rng, d=d),
        router=build_router(rng, d=d),
    )
    chosen = route_slowly(cascade.router, parts[0])
    found = cascades.embed(engine, cascade, mode, x)
    if mode == "conditional":
        assert (found.chosen == chosen).all()
    assert len(set(chosen.tolist())) > 1
    read = independent.read_cascade(cascadefile.serialise_cascade(cascade))
    assert close(found.embeddings, independent.fuse(read, mode, parts, chosen))


def test_a_cascade_whose_expert_is_not_prepared_does_not_run(ran):
    engine, cascade, x, _ = ran
    engine.release(cascade.experts[1])
    with pytest.raises(NotReady):
        cascades.embed(engine, cascade, "unconditional", x)

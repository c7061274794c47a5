"""Fitted fusions: scikit-learn's whitening, cheaper ones near it, and what cannot be fitted."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA

from smn_core.cascade.fusion import Fusion
from smn_core.errors import InvalidArgument, InvalidData
from training.cascade.fusion import FusionChoice, fit, inputs, parse_fusion

D, M, N = 16, 3, 400


@pytest.fixture(scope="module")
def parts() -> list[np.ndarray]:
    """A root and two experts that differ from it a little, as experts do."""
    rng = np.random.default_rng(0)
    root = rng.standard_normal((N, D)) @ np.diag(np.geomspace(3, 0.1, D)) @ rng.standard_normal((D, D))
    return [(root + 0.2 * i * rng.standard_normal((N, D)) @ rng.standard_normal((D, D))).astype("f4") for i in range(M)]


@pytest.fixture(scope="module")
def x(parts: list[np.ndarray]) -> np.ndarray:
    return inputs(parts, None, ["unconditional"])["unconditional"]


def explained(fusion: Fusion, x: np.ndarray, target: np.ndarray) -> float:
    """Share of the target's variance that a linear map of the fused embedding gives."""
    z = fusion.apply("unconditional", x)
    fitted = z @ np.linalg.lstsq(z, target, rcond=None)[0]
    return 1 - float(((target - fitted) ** 2).sum() / (target**2).sum())


def test_float32_pca_is_scikit_learns_whitening(x):
    fusion = fit(FusionChoice("pca", 10, "float32"), {"unconditional": x}, M)
    wanted = PCA(10, whiten=True, svd_solver="covariance_eigh").fit(x.astype(np.float64)).transform(x)
    np.testing.assert_allclose(fusion.apply("unconditional", x), wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "text",
    ["pca", "pca:10:float16", "pca:10:int8", "pca:10:int4", "pca:10:int3", "random:10:int8:24", "low-rank:10:int8:6"],
)
def test_every_component_of_every_fusion_has_variance_one(text, x):
    fusion = fit(parse_fusion(text), {"unconditional": x}, M)
    z = fusion.apply("unconditional", x)
    assert z.shape == (N, 16 if text == "pca" else 10)
    np.testing.assert_allclose(z.std(0, ddof=1), 1, rtol=1e-3)
    np.testing.assert_allclose(z.mean(0), 0, atol=0.05)


def test_int8_says_what_float32_says_in_a_quarter_of_the_bytes(x):
    full = fit(FusionChoice("pca", 16, "float32"), {"unconditional": x}, M)
    small = fit(FusionChoice("pca", 16, "int8"), {"unconditional": x}, M)
    assert explained(small, x, full.apply("unconditional", x)) > 0.99
    assert small.nbytes < 0.35 * full.nbytes


def rounded(fusion: Fusion, n_bits: int, x: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """The products of the components rounded one by one, the way that needs no data."""
    components = fusion.tensors["unconditional"]["components"]
    scale = np.abs(components).max(1, keepdims=True) / ((2**n_bits - 1) / 2)
    top = (2**n_bits - 1) / 2
    return (x - mean) @ (np.clip(np.floor(components / scale) + 0.5, -top, top) * scale).T


@pytest.mark.parametrize(("precision", "n_bits", "least"), [("int4", 4, 0.99), ("int3", 3, 0.96)])
def test_few_bits_say_nearly_what_float32_says_also_of_images_that_they_were_not_fitted_on(precision, n_bits, least, x):
    known, other = x[: N // 2], x[N // 2 :]
    full = fit(FusionChoice("pca", 16, "float32"), {"unconditional": known}, M)
    small = fit(FusionChoice("pca", 16, precision), {"unconditional": known}, M)
    wanted = full.apply("unconditional", other)
    found = small.apply("unconditional", other)
    plain = rounded(full, n_bits, other, full.tensors["unconditional"]["mean"])

    def like(z: np.ndarray) -> float:
        return float(np.median([np.corrcoef(z[:, i], wanted[:, i])[0, 1] for i in range(16)]))

    assert like(found) > least
    assert 1 - like(found) < 0.5 * (1 - like(plain)), "feeding the errors back must pay"


def test_three_bits_of_a_root_and_five_experts_are_a_tenth_of_float32():
    x = np.random.default_rng(0).standard_normal((400, 6 * 48)).astype(np.float32)
    full, small = (fit(FusionChoice("pca", 48, p), {"unconditional": x}, 6) for p in ("float32", "int3"))
    # At 192 features a mask the row's own scale weighs less: 86.4 KB of 890 KB (docs/results.md).
    assert small.nbytes < 0.12 * full.nbytes


def test_a_low_rank_fusion_comes_near_the_full_one(x):
    full = fit(FusionChoice("pca", 12, "float32"), {"unconditional": x}, M)
    small = fit(FusionChoice("low-rank", 12, "float32", 10), {"unconditional": x}, M)
    assert explained(small, x, full.apply("unconditional", x)) > 0.9


def test_directions_without_variance_are_left_out():
    """A ViT's last LayerNorm leaves one: whitening it would be noise alone."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((100, 6)).astype(np.float32)
    z[:, 5] = z[:, :5].sum(1)
    fusion = fit(FusionChoice("pca", 6, "float32"), {"unconditional": z}, 1)
    assert fusion.width("unconditional", 1, 6) == 5


def test_in_conditional_mode_the_experts_that_were_not_picked_are_zero(parts):
    routed = np.arange(N) % 2
    x = inputs(parts, routed, ["conditional"])["conditional"].reshape(N, M, D)
    assert (x[:, 0] == parts[0]).all()
    assert (x[0, 1] == parts[1][0]).all()
    assert not x[0, 2].any()
    assert (x[1, 2] == parts[2][1]).all()


def test_fewer_images_than_components_are_refused(x):
    with pytest.raises(InvalidData, match="10 images are too few for 16 components: take at most 9"):
        fit(FusionChoice(), {"unconditional": x[:10]}, M)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("magic", "unknown fusion 'magic'"),
        ("pca:x", "whole numbers"),
        ("pca:0", "components is 0"),
        ("pca:4:int5", "unknown precision 'int5'"),
        ("random:4:int4", "random has no precision int4"),
        ("pca:4:int8:4", "has no rank"),
        ("pca:1:2:3:4", "write KIND:COMPONENTS:PRECISION:RANK"),
    ],
)
def test_a_choice_that_does_not_read_is_refused(text, said):
    with pytest.raises(InvalidArgument, match=said):
        parse_fusion(text)


@pytest.mark.parametrize("text", ["pca:49", "random:10::49", "random:30::20", "low-rank:16::17"])
def test_more_than_the_features_have_is_refused(text, x):
    with pytest.raises(InvalidArgument, match="there are not so many"):
        fit(parse_fusion(text), {"unconditional": x}, M)


def test_a_choice_reads_as_it_is_named():
    for text in ("concat", "pca:64:int8", "low-rank::int8:32", "pca::float32"):
        assert parse_fusion(text).name == text

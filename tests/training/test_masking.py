"""Scores become masks, and gradients become scores, exactly as docs/method.md, "Mask", says."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from smn_core.errors import InvalidArgument
from training.masking import Masked, MaskRule, Scores, attach, count_on, list_scores

SHAPES = st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple)


class Threshold(torch.autograd.Function):
    """The slow reference: 1[S > mu], whose gradient is the identity."""

    @staticmethod
    def forward(_, scores: Tensor, mu: float) -> Tensor:
        return (scores > mu).to(scores.dtype)

    @staticmethod
    def backward(_, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def reference(theta: Tensor, scores: Tensor, mu: float) -> Tensor:
    """`theta * M / sqrt(mean(M))` with autograd through everything but the threshold."""
    on = Threshold.apply(scores, mu)
    return theta * on / on.mean().sqrt()


def drawn(shape: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    theta, scores, g = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    return theta, scores.requires_grad_(), g


@given(shape=SHAPES, mu=st.floats(-1.5, 1.0), seed=st.integers(0, 2**20))
@settings(max_examples=60, deadline=None)
def test_value_and_gradient_are_those_of_autograd_with_an_identity_threshold(shape, mu, seed):
    theta, scores, g = drawn(shape, seed)
    if not (scores > mu).any():
        return
    (expected,) = torch.autograd.grad(reference(theta, scores, mu), scores, g)
    masked = Masked.apply(theta, scores, scores.detach() > mu)
    (found,) = torch.autograd.grad(masked, scores, g)
    torch.testing.assert_close(masked, reference(theta, scores, mu), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


@given(shape=SHAPES, mu=st.floats(-1.5, 1.0), seed=st.integers(0, 2**20))
@settings(max_examples=60, deadline=None)
def test_the_gradient_is_the_formula_in_float64(shape, mu, seed):
    theta, scores, g = drawn(shape, seed)
    on = (scores.detach() > mu).double()
    if on.sum() == 0:
        return
    m, n = on.mean(), on.numel()
    expected = g * theta / m.sqrt() - (g * theta * on).sum() / (2 * n * m**1.5)
    (found,) = torch.autograd.grad(Masked.apply(theta, scores, on.bool()), scores, g)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


def test_off_weights_get_gradient_too():
    theta, scores, g = drawn((50,), 1)
    on = scores.detach() > 0
    (found,) = torch.autograd.grad(Masked.apply(theta, scores, on), scores, g)
    assert (found[~on] != 0).all()


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext"])
def test_step_0_is_the_pretrained_model_bit_for_bit(name, make_backbone):
    backbone = make_backbone(name)
    x = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before = backbone.model(x)
        attach(backbone.model, backbone.layout, MaskRule())
        assert torch.equal(backbone.model(x), before)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_only_the_scores_of_maskable_tensors_learn(name, make_backbone):
    backbone = make_backbone(name)
    attach(backbone.model, backbone.layout, MaskRule())
    assert [n for n, _ in list_scores(backbone.model)] == [t.name for t in backbone.layout]
    learned = [n for n, p in backbone.model.named_parameters() if p.requires_grad]
    assert len(learned) == len(list(backbone.layout))
    assert all(n.endswith(".scores") for n in learned)


def test_a_score_at_the_threshold_is_off():
    scores = Scores(torch.ones(3), MaskRule(1.0, 0.5), None)
    scores.scores.data = torch.tensor([0.5, np.nextafter(np.float32(0.5), np.float32(1)), 0.4])
    assert scores.on().tolist() == [False, True, False]


def test_a_tensor_that_goes_all_off_stays_finite_and_comes_back():
    theta = torch.tensor([1.0, -2.0, 3.0])
    holder = nn.Module()
    scores = Scores(theta, MaskRule(), None)
    scores.scores.data.fill_(-0.1)
    holder.scores = scores
    optimiser = torch.optim.SGD(holder.parameters(), lr=0.1)
    masked = scores(theta)
    assert torch.equal(masked, torch.zeros(3))
    loss = (masked - theta).square().sum()
    loss.backward()
    assert torch.isfinite(scores.scores.grad).all()
    optimiser.step()
    assert scores.on().any()
    assert torch.isfinite(scores(theta)).all()


@given(n=st.integers(1, 300), density=st.floats(0.01, 1.0))
@settings(max_examples=40, deadline=None)
def test_top_k_keeps_the_density_and_the_highest_scores(n, density):
    scores = Scores(torch.ones(n), MaskRule(density=density), None)
    scores.scores.data = torch.randn(n)
    on = scores.on()
    assert int(on.sum()) == max(1, round(density * n))
    if not on.all():
        assert scores.scores[on].min() >= scores.scores[~on].max()


def test_only_the_tensors_that_the_expression_matches_are_masked(make_backbone):
    backbone = make_backbone("test_vit")
    attach(backbone.model, backbone.layout, MaskRule(only=r"blocks\.0\..*qkv"))
    assert [n for n, _ in list_scores(backbone.model)] == ["blocks.0.attn.qkv.weight", "blocks.0.attn.qkv.bias"]


def test_weights_outside_the_random_share_stay_on_whatever_their_scores(make_backbone):
    backbone = make_backbone("test_vit")
    attach(backbone.model, backbone.layout, MaskRule(share=0.25, seed=3))
    for _, scores in list_scores(backbone.model):
        scores.scores.data.fill_(-1)
    on, of = count_on(backbone.model)
    assert 0.74 < on / of < 0.76


def test_a_share_is_the_same_whatever_only_says(make_backbone):
    whole, part = make_backbone("test_vit"), make_backbone("test_vit")
    attach(whole.model, whole.layout, MaskRule(share=0.5))
    attach(part.model, part.layout, MaskRule(share=0.5, only="fc2"))
    of_whole = dict(list_scores(whole.model))
    for name, scores in list_scores(part.model):
        assert torch.equal(scores.kept, of_whole[name].kept)


def test_the_key_part_of_a_fused_bias_moves_together_by_alpha_alone(make_backbone):
    """Softmax does not see a constant added to every key, so a key bias has alpha's term and nothing else."""
    backbone = make_backbone("test_vit", seed=4)
    model = copy.deepcopy(backbone.model).double()
    for block in model.blocks:
        block.attn.qkv.bias.data.normal_(generator=torch.Generator().manual_seed(1))
    attach(model, backbone.layout, MaskRule())
    x = torch.randn(3, 3, 160, 160, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model(x).square().sum().backward()
    for name, scores in list_scores(model):
        if not name.endswith("qkv.bias"):
            continue
        gradient, d = scores.scores.grad, scores.scores.numel() // 3
        theta = dict(model.named_parameters())[name.replace("qkv.bias", "qkv.parametrizations.bias.original")]
        key, rest = gradient[d : 2 * d], torch.cat([gradient[:d], gradient[2 * d :]])
        scale = rest.abs().max()
        assert theta[d : 2 * d].std() > 0.1
        assert key.max() - key.min() < 1e-9 * scale
        assert rest.max() - rest.min() > 0.01 * scale
        # alpha's term is -sum(g theta) / 2N, and sum(g theta) is the sum of the gradients without it.
        products = rest - key.mean()
        torch.testing.assert_close(key.mean(), -products.sum() / (2 * 3 * d), rtol=1e-7, atol=0)


@pytest.mark.parametrize(
    "change",
    [{"init": 0.0}, {"init": 1.0, "threshold": 1.0}, {"density": 0.0}, {"density": 1.5}, {"share": 0.0}, {"only": "("}],
)
def test_a_rule_that_cannot_work_is_refused(change):
    with pytest.raises(InvalidArgument):
        MaskRule(**change)


def test_a_rule_that_takes_no_tensor_names_the_stages(make_backbone):
    backbone = make_backbone("test_vit")
    with pytest.raises(InvalidArgument, match=r"stages are .*blocks\.0"):
        attach(backbone.model, backbone.layout, MaskRule(only="nowhere"))

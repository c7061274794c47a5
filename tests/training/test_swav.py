"""One SwAV step is the paper's: swapped prediction, Sinkhorn, queue, prototypes on the sphere."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.training.builders import CROPS, SWAV, World, config
from training.data import Batch
from training.learner import Learner
from training.masking import list_scores
from training.swav import Crops, Swav, SwavConfig, SwavHead, make_crops

N, D = 6, 12


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def codes(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """The paper's appendix A.1: prototypes share the samples equally, every sample is wholly assigned; [B,K]."""
    q = torch.exp(scores / epsilon).T
    q = q / q.sum()
    k, b = q.shape
    for _ in range(iterations):
        q = q / q.sum(1, keepdim=True) / k
        q = q / q.sum(0, keepdim=True) / b
    return (q * b).T


def paper_loss(head: SwavHead, big: Tensor, small: Tensor, queue: Tensor | None, config: SwavConfig) -> Tensor:
    """Every big crop's code is predicted from every other crop; the mean over all those pairs."""
    weight, prototypes = head.projection, head.prototypes.weight
    crops = []
    for z in [*big, *small]:
        p = z @ weight.weight.T + weight.bias
        crops.append(p / p.norm(dim=1, keepdim=True) @ prototypes.T)
    total, pairs = torch.zeros(()), 0
    for i in range(len(big)):
        with torch.no_grad():
            seen = crops[i] if queue is None else torch.cat([crops[i], queue[i] @ prototypes.T])
            q = codes(seen, config.epsilon, config.sinkhorn_iterations)[: len(crops[i])]
        for j, scores in enumerate(crops):
            if j != i:
                total = total - (q * torch.log_softmax(scores / config.temperature, 1)).sum(1).mean()
                pairs += 1
    return total / pairs


def swav(**changes) -> Swav:
    torch.manual_seed(0)
    return Swav(D, replace(SWAV, **changes))


@pytest.mark.parametrize("n_small", [0, 3])
@pytest.mark.parametrize("queued", [False, True])
def test_loss_and_gradients_equal_the_papers(n_small, queued):
    module = swav(queue=8 if queued else 0)
    big, small = drawn(2, N, D), drawn(n_small, N, D, seed=1)
    queue = None
    if queued:
        queue = torch.nn.functional.normalize(drawn(2, 8, SWAV.projection, seed=2), dim=2)
        module.queue.copy_(queue)
        module.queued.fill_(8)
    twin = copy.deepcopy(module.head)
    ours, theirs = big.clone().requires_grad_(), big.clone().requires_grad_()
    loss, expected = module(ours, small, 0.5), paper_loss(twin, theirs, small, queue, module.config)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)
    for found, wanted in zip(module.head.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-4, atol=1e-6)


def test_a_whole_step_gives_head_and_scores_the_papers_gradients(world: World):
    """The reference computes theta' from scores in plain autograd and calls the untouched model with it."""
    recipe = config()
    torch.manual_seed(0)
    learner, plain = Learner(world.backbone(), recipe, 8), world.backbone().model
    views = [drawn(4, 3, 32, 32, seed=1), drawn(4, 3, 32, 32, seed=2), drawn(4, 3, 32, 32, seed=3)]
    twin = copy.deepcopy(learner.swav.head)
    for i, (_, scores) in enumerate(list_scores(learner.model)):
        scores.scores.data += drawn(*scores.scores.shape, seed=10 + i) * 0.6
    theirs = {name: s.scores.detach().clone().requires_grad_() for name, s in list_scores(learner.model)}
    learner.on_train_batch_start(Batch(views, None), 0)
    loss = learner.compute_loss(Batch(views, None))
    loss.backward()

    weights = {name: p.detach() for name, p in plain.named_parameters()}
    for name, s in theirs.items():
        on = (s > 0).float() + s - s.detach()  # straight through
        weights[name] = weights[name] * on / on.mean().sqrt()
    z = torch.func.functional_call(plain, weights, torch.cat(views)).view(3, 4, -1)
    expected = paper_loss(twin, z[:2], z[2:], None, recipe.swav)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    for name, scores in list_scores(learner.model):
        largest = theirs[name].grad.abs().max().item()
        torch.testing.assert_close(scores.scores.grad, theirs[name].grad, rtol=1e-3, atol=1e-3 * largest)
    for found, wanted in zip(learner.swav.head.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-3, atol=1e-5)


def test_prototypes_are_on_the_unit_sphere_before_every_step(world: World):
    learner = Learner(world.backbone(), config(), 8)
    learner.swav.head.prototypes.weight.data.mul_(7)
    learner.compute_loss(Batch([drawn(4, 3, 32, 32), drawn(4, 3, 32, 32), drawn(4, 3, 16, 16)], None))
    torch.testing.assert_close(learner.swav.head.prototypes.weight.norm(dim=1), torch.ones(SWAV.prototypes))
    assert learner.swav.head.prototypes.bias is None


@pytest.mark.parametrize(("frozen_steps", "moves"), [(0, True), (1, False), (-1, False)])
def test_frozen_prototypes_have_no_gradient(frozen_steps, moves, world: World):
    learner = Learner(world.backbone(), config(swav=replace(SWAV, frozen_steps=frozen_steps)), 8)
    batch = Batch([drawn(4, 3, 32, 32), drawn(4, 3, 32, 32, seed=1), drawn(4, 3, 16, 16)], None)
    learner.compute_loss(batch).backward()
    learner.on_before_optimizer_step(torch.optim.SGD(learner.parameters(), lr=1))
    assert (learner.swav.head.prototypes.weight.grad is not None) == moves
    assert learner.swav.head.projection.weight.grad is not None


def test_the_queue_starts_late_keeps_the_newest_and_is_used_once_full():
    module = swav(queue=8, queue_from=0.5)
    step = [drawn(2, N, D, seed=s) for s in range(3)]
    none = step[0][:0]
    module(step[0], none, 0.4)
    assert int(module.queued) == 0
    module(step[0], none, 0.5)
    assert module._queue_similarities(0.6) is None  # six of eight
    module(step[1], none, 0.6)
    assert module._queue_similarities(0.7) is not None
    first, second = (module.head.project(s.flatten(0, 1)).view(2, N, -1) for s in step[:2])
    torch.testing.assert_close(module.queue, torch.cat([second, first], 1)[:, :8])
    assert not module.queue.requires_grad


def test_the_queue_is_shared_among_processes():
    assert Swav(D, replace(SWAV, queue=64), world_size=4).queue.shape == (2, 16, SWAV.projection)


def test_sinkhorn_and_prototypes_stay_in_float32_under_autocast():
    module, seen = swav(), []
    module.loss.register_forward_pre_hook(lambda _, given: seen.extend(s.dtype for part in given[:2] for s in part))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = module(drawn(2, N, D).bfloat16(), drawn(1, N, D).bfloat16(), 0.0)
    assert loss.dtype == torch.float32
    assert seen == [torch.float32] * 3


def test_centre_and_spread_whiten_what_is_projected():
    head = SwavHead(D, SWAV)
    z = drawn(200, D) * 5 + 3
    expected = head.project((z - z.mean(0)) / z.std(0))
    head.centre.copy_(z.mean(0))
    head.spread.copy_(z.std(0))
    torch.testing.assert_close(head.project(z), expected)


def test_crops_come_big_ones_first_in_the_sizes_asked_for():
    crops = replace(CROPS, n_small=3)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8))
    views = make_crops(crops, {"mean": (0.5,) * 3, "std": (0.25,) * 3})(image)
    assert [tuple(v.shape) for v in views] == [(3, 32, 32)] * 2 + [(3, 16, 16)] * 3
    assert all(v.min() >= -2 and v.max() <= 2 for v in views)


def test_the_defaults_are_the_papers():
    assert SwavConfig() == SwavConfig(
        Crops(224, 2, (0.14, 1.0), 96, 6, (0.05, 0.14)), 128, 500, 0.1, 0.05, 3, 512, 0.2, 5005, False
    )

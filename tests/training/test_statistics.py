"""Statistics of other images: what every norm meets, with and without a mask; what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from smn_core import bits
from smn_core.backbone import Backbone
from smn_core.engine import Engine, Segment
from smn_core.errors import InvalidArgument, InvalidData
from smn_core.images import ImageReader
from smn_core.imageset import ArraySet, ImageSet
from smn_core.mask import TaskMask
from smn_core.maskfile import write_mask
from tests.training.builders import World, enliven
from training.data import open_split
from training.evaluation.controls import make_all_on
from training.recentre import find_norms
from training.statistics import fit_statistics, has_living_norms


@pytest.fixture(scope="module")
def living(world: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    return enliven(world, tmp_path_factory.mktemp("living"))


def mask_of(backbone: Backbone) -> TaskMask:
    rng = np.random.default_rng(3)
    packed = [bits.pack(rng.random(tensor.n_weights) < 0.8) for tensor in backbone.layout]
    return replace(make_all_on(backbone), packed=np.concatenate(packed))


def first(images: ImageSet, n: int) -> ImageSet:
    arrays = np.stack([np.asarray(images.image(i)) for i in range(n)])
    return ArraySet(arrays, images.names[:n], None, ())


@pytest.mark.parametrize("masked", [False, True])
def test_one_batch_then_embeds_as_a_training_pass_does(living: World, tmp_path, masked: bool):
    """On the images of one batch, serving with their statistics is normalising by the batch, mask or none."""
    backbone = living.backbone("test_resnet")
    images = first(open_split(str(living.data), "train"), 24)
    mask = mask_of(backbone) if masked else make_all_on(backbone)
    state = fit_statistics(backbone, images, mask if masked else None)
    task = write_mask(replace(mask, state=state), tmp_path / "m.smn")
    reader = ImageReader(backbone.preprocess)
    x = torch.stack([reader.tensor(images.image(i)) for i in range(24)])
    engine = Engine(living.backbone("test_resnet"), slots=1)
    engine.prepare(task)
    served = engine.embed(x, [Segment(task.digest, 0, 24)]).embeddings
    model = living.backbone("test_resnet").model
    for tensor in backbone.layout:
        weight, on = model.get_parameter(tensor.name), torch.from_numpy(mask.bits_of(tensor.name)).view(tensor.shape)
        weight.data = weight.data * on / mask.densities[tensor.name] ** 0.5
    with torch.no_grad():
        passed, untouched = model.train()(x), living.backbone("test_resnet").model(x)
    # A running variance divides by n - 1, a training pass by n: of 24 values that is seen.
    assert (served - passed).norm() < 0.05 * passed.norm() < 0.2 * (served - untouched).norm()


def test_the_backbone_is_left_as_it_was(living: World):
    backbone = living.backbone("test_resnet")
    before = {name: value.clone() for name, value in backbone.model.state_dict().items()}
    momenta = [norm.momentum for norm in find_norms(backbone.model).values()]
    fit_statistics(backbone, open_split(str(living.data), "train"), mask_of(backbone))
    for name, value in backbone.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert [norm.momentum for norm in find_norms(backbone.model).values()] == momenta
    assert not any(module.training for module in backbone.model.modules())


def test_a_share_lies_between_the_backbones_statistics_and_the_images(living: World):
    backbone, images = living.backbone("test_resnet"), open_split(str(living.data), "train")
    own, half, whole = (fit_statistics(backbone, images, share=share) for share in (0.0, 0.5, 1.0))
    assert set(whole) == set(backbone.layout.buffers)
    for name in whole:
        np.testing.assert_array_equal(own[name], backbone.model.get_buffer(name).numpy())
        np.testing.assert_allclose(half[name], (own[name] + whole[name]) / 2, rtol=1e-5, atol=1e-6)
    assert max(np.abs(whole[name] - own[name]).max() for name in whole) > 0.1


def test_a_last_image_alone_tells_no_variance(living: World):
    backbone, images = living.backbone("test_resnet"), open_split(str(living.data), "train")
    for name, values in fit_statistics(backbone, first(images, 33)).items():
        np.testing.assert_array_equal(values, fit_statistics(backbone, first(images, 32))[name])


def test_what_has_no_living_norms_and_too_few_images_are_refused(world: World, living: World):
    images = open_split(str(world.data), "train")
    folded = world.backbone("test_resnet")
    assert not has_living_norms(folded.model)
    for backbone in (folded, world.backbone("test_vit")):
        with pytest.raises(InvalidArgument, match="no BatchNorm whose statistics"):
            fit_statistics(backbone, images)
    backbone = living.backbone("test_resnet")
    with pytest.raises(InvalidArgument, match=r"share 1\.5"):
        fit_statistics(backbone, images, share=1.5)
    with pytest.raises(InvalidData, match="9 readable images are too few"):
        fit_statistics(backbone, first(images, 9))

"""Recipes: each is a function that returns a whole configuration. Its docstring gives command, time and score.

`register` says when to take it, for `smn recipes`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from smn_core.errors import InvalidArgument
from training.config import Config
from training.swav import Crops, SwavConfig

Recipe = Callable[[], Config]
RECIPES: dict[str, Recipe] = {}
WHEN: dict[str, str] = {}
"""When to take which recipe, by its name."""


def register(when: str) -> Callable[[Recipe], Recipe]:
    """Register a recipe under its function's name, with the case that it is for."""

    def keep(make: Recipe) -> Recipe:
        name = make.__name__.replace("_", "-")
        RECIPES[name], WHEN[name] = make, when
        return make

    return keep


@register("You have a GPU, a day, a ResNet-50 with SwAV weights and no labels, and want the paper's way.")
def resnet50_swav() -> Config:
    """The paper's self-supervised mask: ResNet-50 with SwAV weights.

    smn train --recipe resnet50-swav --backbone resnet50 --weights swav_800ep_pretrain.pth.tar
    --data torchvision:cifar10

    150 * 50000 / N epochs at batch 64, a day on one GPU. The paper reports kNN .921 on CIFAR-10 (frozen .832), .656 on
    CIFAR-100 (.497), .971 on EuroSAT (.754). Not run here: no GPU and no such weights on this machine.
    """
    return Config("resnet50-swav", steps=150 * 50_000 // 64)


@register("The same with a ResNet-18: half a day of a GPU.")
def resnet18_swav() -> Config:
    """The paper's recipe on the small ResNet, whose head is 512 wide.

    smn train --recipe resnet18-swav --backbone resnet18 --data torchvision:cifar10

    Half a day on one GPU. Not run here.
    """
    return Config("resnet18-swav", steps=150 * 50_000 // 64)


@register("You have a GPU, a ResNet, and labels of many images.")
def resnet_supervised() -> Config:
    """The paper's supervised mask of a ResNet: a random classifier whose mask is learned with the backbone's.

    smn train --recipe resnet-supervised --objective supervised --backbone resnet50 --data torchvision:cifar10

    150 epochs, 40 of them warm-up. The paper reports .962 on CIFAR-10. Not run here.
    """
    return Config(
        "resnet-supervised",
        objective="supervised",
        epochs=150,
        warmup=40 / 150,
        masked_head=True,
        crop_scale=(0.08, 1.0),
    )


@register("You have a GPU, a ResNet and labels, and may change all weights: what the paper's masks are compared with.")
def resnet_finetune() -> Config:
    """Full fine-tuning of a ResNet, beside `resnet-supervised`: weights, no mask.

    smn train --recipe resnet-finetune --backbone resnet50 --data torchvision:cifar10 --out cifar10.safetensors

    As many epochs and crops as the supervised mask. The rate of .01 is a usual one; the paper's is not known. Not run
    here.
    """
    return dataclasses.replace(
        resnet_supervised(), name="resnet-finetune", objective="finetune", lr=0.01, head_lr=0.01, masked_head=False
    )


@register("You have a GPU, CLIP's ViT-B/32, and labels of many images.")
def vit_clip_supervised() -> Config:
    """The paper's supervised mask of CLIP's ViT-B/32.

    smn train --recipe vit-clip-supervised --objective supervised --backbone vit_base_patch32_clip_224.openai
    --data torchvision:cifar10

    32 epochs. timm's CLIP towers have no projection when built without classes, so an ordinary linear head takes the
    place of the paper's masked projection and text similarities. Not run here.
    """
    return Config("vit-clip-supervised", objective="supervised", epochs=32, lr=10.0, head_lr=0.01)


SMALL_CROPS = Crops(n_small=2, big_scale=(0.4, 1.0), small_scale=(0.2, 0.4), jitter=0.5)
SMALL_SWAV = SwavConfig(crops=SMALL_CROPS, projection=32, prototypes=64, queue=0, frozen_steps=-1, centre=True)


@register("The first to try without labels: a ViT-Tiny, photos at its own resolution, 12 to 20 minutes of one core.")
def small_vit() -> Config:
    """A ViT-Tiny on a few hundred images or more, at the resolution that serves; cautious.

    smn train --recipe small-vit --backbone vit_tiny_patch16_224 --weights vit_tiny_patch16_224.safetensors
    --data dtd10 --out dtd10.smn

    12 to 20 minutes of one core. Scores: docs/results.md. Evaluate before you use a mask: where views of an image agree
    well without one (`smn evaluate`, "agreement"), there was little to gain and something to lose.
    """
    return Config(
        "small-vit",
        steps=80,
        batch_size=32,
        lr=5e-4,
        lr_per_tensor=True,
        head_steps=25,
        swav=SMALL_SWAV,
    )


@register("`small-vit` did harm, or the frozen backbone is good already: fewer and safer changes.")
def small_vit_gentle() -> Config:
    """Two large, mildly changed crops, and a head that learns for long before the mask: few flips.

    smn train --recipe small-vit-gentle --backbone vit_tiny_patch16_224 --weights vit_tiny_patch16_224.safetensors
    --data cifar10 --out cifar10.smn

    15 to 20 minutes of one core. Scores: docs/results.md. Masks of CIFAR-10 cost a point or two with small crops and a
    head that knew little when the first weights flipped; which of the two did it was not told apart.
    """
    crops = dataclasses.replace(SMALL_CROPS, n_small=0, big_scale=(0.5, 1.0), jitter=0.25, grey=0.1)
    return dataclasses.replace(
        small_vit(),
        name="small-vit-gentle",
        steps=170,
        lr=3e-4,
        head_steps=110,
        swav=dataclasses.replace(SMALL_SWAV, crops=crops),
    )


@register("The frozen backbone's views agree badly, below .9 in `smn evaluate`. It can do harm: evaluate the mask.")
def small_vit_64px() -> Config:
    """Crops of 64 and 32 px: three times the images a second, for sets whose views agree badly, like aerial photos.

    smn train --recipe small-vit-64px --backbone vit_tiny_patch16_224 --weights vit_tiny_patch16_224.safetensors
    --data rsscn7 --out rsscn7.smn

    10 to 27 minutes of one core. Scores: docs/results.md. On CIFAR-10 masks learned at 64 px do harm at 224.
    """
    crops = dataclasses.replace(SMALL_CROPS, big_px=64, small_px=32, n_small=4)
    return dataclasses.replace(
        small_vit(),
        name="small-vit-64px",
        steps=480,
        batch_size=64,
        lr=5e-4,
        head_steps=40,
        swav=dataclasses.replace(SMALL_SWAV, crops=crops),
    )


@register("As `small-vit-64px`, for pictures without a top: from above, microscopes, textures.")
def small_vit_aerial() -> Config:
    """`small-vit-64px` with half of the crops upside down: pictures from above have no top.

    smn train --recipe small-vit-aerial --backbone vit_tiny_patch16_224 --weights vit_tiny_patch16_224.safetensors
    --data rsscn7 --out rsscn7.smn

    15 to 28 minutes of one core, some 13 of two. Scores: docs/results.md.
    """
    plain = small_vit_64px()
    crops = dataclasses.replace(plain.swav.crops, flip_vertical=0.5)
    return dataclasses.replace(plain, name="small-vit-aerial", swav=dataclasses.replace(plain.swav, crops=crops))


@register("You have labels: the mask keeps the classifier too.")
def small_vit_supervised() -> Config:
    """The supervised mask that `small-vit` is compared with: as many images a step, an ordinary head.

    smn train --recipe small-vit-supervised --backbone vit_tiny_patch16_224 --weights vit_tiny_patch16_224.safetensors
    --data rsscn7 --out rsscn7-supervised.smn

    Times and scores: docs/results.md.
    """
    return Config(
        "small-vit-supervised",
        objective="supervised",
        steps=70,
        batch_size=32,
        lr=1e-3,
        lr_per_tensor=True,
        head_lr=2e-3,  # embeddings of these backbones are some 40 long: at .05 the head's loss passes 5 and stays there
        head_steps=15,
        crop_scale=(0.4, 1.0),
    )


@register("You have labels and may change all weights: what a mask is compared with. Writes weights, no mask.")
def small_vit_finetune() -> Config:
    """Full fine-tuning with labels, the upper reference of `small-vit-supervised`.

    smn train --recipe small-vit-finetune --backbone vit_tiny_patch16_224 --weights vit_tiny_patch16_224.safetensors
    --data rsscn7 --out rsscn7-finetune.safetensors

    Times and scores: docs/results.md.
    """
    return dataclasses.replace(
        small_vit_supervised(), name="small-vit-finetune", objective="finetune", lr=3e-4, lr_per_tensor=False
    )


@register("A first look in seconds, with a tiny model and images of 32 px.")
def tiny() -> Config:
    """Digits-sized images and a model of a few hundred thousand weights: seconds. For tests and for a first look.

    smn train --recipe tiny --backbone test_vit --image-size 32 --data digits.npz --out digits.smn
    """
    crops = Crops(big_px=32, small_px=16, n_small=2, big_scale=(0.5, 1.0), small_scale=(0.3, 0.5), jitter=0.5, flip=0.0)
    swav = SwavConfig(crops=crops, projection=16, prototypes=32, queue=0, frozen_steps=-1, centre=True)
    return Config("tiny", steps=40, batch_size=32, lr=2e-3, lr_per_tensor=True, head_steps=10, swav=swav)


def find_recipe(name: str) -> Config:
    """The configuration of a recipe by name.

    Raises:
        InvalidArgument: there is none of this name.
    """
    if name not in RECIPES:
        raise InvalidArgument(f"unknown recipe {name!r}: choose {', '.join(RECIPES)}")
    return RECIPES[name]()


def describe_recipes() -> list[dict[str, str]]:
    """Every recipe: `name`, `when` to take it, `what` it is, and the `command`; the last two are its docstring's."""
    rows = []
    for name, make in RECIPES.items():
        what, command, *_ = (" ".join(part.split()) for part in (make.__doc__ or "").split("\n\n"))
        rows.append({"name": name, "when": WHEN[name], "what": what, "command": command})
    return rows

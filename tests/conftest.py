"""Small backbones and masks that every folder of tests shares; the signatures of all packages are checked here."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import signatures
import timm
import torch

signatures.install()

from smn_core import bits, maskfile, tensorfile  # noqa: E402 - the hook must come first
from smn_core.affine import DIAGONAL, Affine, in_precision  # noqa: E402
from smn_core.backbone import Backbone, wrap  # noqa: E402
from smn_core.mask import Head, TaskMask  # noqa: E402
from smn_core.spec import BackboneSpec  # noqa: E402

SMALL = ("test_resnet", "test_vit", "test_convnext", "test_efficientnet")
TINY_VIT = {"depth": 1, "embed_dim": 8, "num_heads": 1}
TINY_RESNET = {"channels": [8, 8, 8, 8], "stem_width": 8}


@pytest.fixture(autouse=True)
def _no_variables_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell that has SMN_ variables means another backbone than the tests."""
    for name in [name for name in os.environ if name.startswith("SMN_")]:
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True, scope="session")
def _cache_directory_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What starts measure is kept in the user's cache directory; that of the tests ends with them."""
    with pytest.MonkeyPatch.context() as patching:
        patching.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c_is_heard() -> Iterator[None]:
    """A shell starts jobs in its background, CI's perhaps, with ctrl-C ignored, and children inherit that."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


MakeBackbone = Callable[..., Backbone]
MakeMask = Callable[..., TaskMask]


def build_backbone(name: str, dtype: torch.dtype = torch.float32, seed: int = 0, **args: Any) -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = timm.create_model(name, pretrained=False, num_classes=0, **args)
    return wrap(model, name, BackboneSpec(name, args=args), dtype=dtype)


def build_affine(n_features: int, rng: np.random.Generator | int = 0, kind: str = "float32") -> Affine:
    """A random map: `kind` is diagonal, or the precision of the matrix."""
    rng = np.random.default_rng(rng)
    mean = rng.standard_normal(n_features, np.float32)
    if kind == DIAGONAL:
        return Affine(mean, scale=rng.random(n_features, np.float32) + 0.5)
    return in_precision(Affine(mean, matrix=rng.standard_normal((n_features, n_features), np.float32)), kind)


def build_mask(
    backbone: Backbone,
    density: float = 0.9,
    rng: np.random.Generator | int = 0,
    with_state: bool = False,
    with_head: bool = False,
    with_preprocess: bool = False,
    metadata: Mapping[str, str] | None = None,
    with_affine: str | None = None,
) -> TaskMask:
    rng = np.random.default_rng(rng)
    packed = []
    for tensor in backbone.layout:
        on = rng.random(tensor.n_weights) < density
        on[rng.integers(tensor.n_weights)] = True
        packed.append(bits.pack(on))
    state = {
        name: rng.random(shape, np.float32) + (0.5 if name.endswith("var") else -0.5)
        for name, shape in backbone.layout.buffers.items()
    }
    weight = rng.standard_normal((3, backbone.n_features), np.float32)
    mask = TaskMask(
        layout=backbone.layout,
        model=backbone.model_json,
        fingerprint=backbone.fingerprint,
        packed=np.concatenate(packed),
        state=state if with_state else {},
        head=Head(weight, rng.standard_normal(3, np.float32), ("cat", "dog", "other")) if with_head else None,
        preprocess=backbone.preprocess if with_preprocess else None,
        metadata=metadata or {},
        affine=build_affine(backbone.n_features, rng, with_affine) if with_affine else None,
    )
    return replace(mask, digest=tensorfile.digest_of(maskfile.serialise_mask(mask, "raw")))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def make_backbone() -> MakeBackbone:
    """`make_backbone(name, dtype=..., seed=..., **args)`: a fresh Backbone of a timm model with random weights."""
    return build_backbone


@pytest.fixture(scope="session")
def make_mask() -> MakeMask:
    """`make_mask(backbone, density, rng, with_state, with_head, with_preprocess, with_affine)`: a random TaskMask.

    `with_affine` is `diagonal`, or the precision of a map's matrix. Its digest is that of its raw file.
    """
    return build_mask


@pytest.fixture(scope="session")
def small_backbones() -> dict[str, Backbone]:
    """timm's small models by name; shared, so never hand one to an engine."""
    return {name: build_backbone(name) for name in SMALL}


@pytest.fixture(scope="session", params=SMALL)
def small_backbone(request: pytest.FixtureRequest, small_backbones: dict[str, Backbone]) -> Backbone:
    """Each of the small backbones in turn."""
    return small_backbones[request.param]


@pytest.fixture(scope="session")
def tiny_vit() -> Backbone:
    """A ViT whose mask has 88 bytes of bits: small enough to flip every bit of its file."""
    return build_backbone("test_vit", **TINY_VIT)


@pytest.fixture(scope="session")
def tiny_resnet() -> Backbone:
    """A ResNet with 1,177 bytes of bits and 32 running statistics."""
    return build_backbone("test_resnet", **TINY_RESNET)

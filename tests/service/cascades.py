"""Cascades of tiny backbones by the independent writer, and what they give by plain timm, scikit-learn and numpy."""

import hashlib
from dataclasses import dataclass

import independent
import numpy as np
from served import inputs
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

K, Q = 3, 6


@dataclass(frozen=True)
class CascadeFile:
    """A cascade file, its masks (root first), and its contents as the independent reader has them."""

    data: bytes
    masks: list
    theta: object

    @property
    def digest(self):
        return f"sha256:{hashlib.sha256(self.data).hexdigest()}"

    @property
    def read(self):
        return independent.read_cascade(self.data)

    def embed(self, x, mode):
        """(fused embeddings, chosen experts from 0) of normalised inputs."""
        parts = [self.theta.embed(x, mask) for mask in self.masks]
        chosen = independent.route(self.read, parts[0]) if self.read["router"] else None
        return independent.fuse(self.read, mode, parts, chosen), chosen


def build(
    theta,
    seed=0,
    n_experts=K,
    fusion="pca",
    modes=("unconditional", "conditional"),
    mode="unconditional",
    maps=(None,),
    **texts,
):
    """A cascade fitted by scikit-learn on random inputs; masks sparse enough that experts differ.

    `maps` are `with_affine` of the root and the experts, in turn.
    """
    rng = np.random.default_rng(seed)
    masks = [
        theta.mask(seed=100 * seed + i, density=0.7, with_affine=maps[i % len(maps)]) for i in range(n_experts + 1)
    ]
    x = inputs(60, seed=7)
    parts = [theta.embed(x, mask) for mask in masks]
    unit = parts[0] / np.linalg.norm(parts[0], axis=1, keepdims=True)
    pca = PCA(3).fit(unit)
    scale = 1 / np.sqrt(pca.explained_variance_)
    mixture = GaussianMixture(n_experts, random_state=seed, reg_covar=1e-2).fit(pca.transform(unit) * scale)
    router = {
        "mean": pca.mean_,
        "components": pca.components_,
        "scale": scale,
        "weights": mixture.weights_,
        "means": mixture.means_,
        "precisions_cholesky": np.triu(mixture.precisions_cholesky_),
    }
    width = parts[0].shape[1] * len(masks)
    tensors = {}
    for name in modes:
        tensors[name] = {
            "mean": rng.standard_normal(width).astype(np.float32),
            "components": rng.integers(-127, 128, (Q, width)).astype(np.int8),
            "components_scale": (rng.random(Q) / 100 + 0.01).astype(np.float32),
            "scale": (rng.random(Q) + 0.5).astype(np.float32),
        }
    data = independent.write_cascade(
        independent.fingerprint(theta.plain, theta.model_json),
        masks[0].digest,
        [mask.digest for mask in masks[1:]],
        "pca",
        "unconditional",
        tensors,
        {name: np.asarray(array, np.float32) for name, array in router.items()},
        **texts,
    )
    return CascadeFile(data, masks, theta)


def put_all(client, name, cascade):
    """Masks first, then the cascade; the answer to the cascade."""
    for number, mask in enumerate(cascade.masks):
        part = f"{name}.expert-{number}" if number else f"{name}.root"
        assert client.put(f"/masks/{part}", content=mask.data).status_code in (200, 201)
    return client.put(f"/cascades/{name}", content=cascade.data)

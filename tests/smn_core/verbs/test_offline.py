"""Embedding a whole set: every image once, in order, whatever the batch size and the number of threads."""

from __future__ import annotations

import itertools

import pytest
import torch

from smn_core.errors import InvalidImage
from smn_core.verbs.offline import embed_batches, read_batches


def numbered(index: int) -> torch.Tensor:
    if index % 7 == 3:
        raise InvalidImage(f"image {index}")
    return torch.full((3, 1, 1), float(index))


@pytest.mark.parametrize(
    ("n_images", "batch_size", "workers"), [*itertools.product([1, 2, 31, 64], [1, 4, 100], [1, 2, 5])]
)
def test_every_readable_image_comes_once_and_in_order(n_images, batch_size, workers):
    skipped: list[str] = []
    found = list(read_batches(n_images, numbered, batch_size, workers, skipped))
    indices = [index for kept, _ in found for index in kept]
    readable = [index for index in range(n_images) if index % 7 != 3]
    assert indices == readable
    assert [float(row[0, 0, 0]) for _, x in found for row in x] == readable
    assert skipped == [f"image {index}" for index in range(n_images) if index % 7 == 3]


def test_an_unreadable_image_raises_where_nobody_collects_them():
    with pytest.raises(InvalidImage, match="image 3"):
        list(read_batches(10, numbered, 4, 2))


def test_an_embedding_that_is_not_finite_is_never_given_out():
    """One component of one row is enough; the message has the image's number in the set."""

    def embed(x: torch.Tensor) -> torch.Tensor:
        z = x[:, :, 0, 0].clone()
        z[z == 5] = float("inf")
        return z

    inputs = read_batches(3, numbered, 2, 1)
    assert [indices for indices, _ in embed_batches(embed, inputs)] == [[0, 1], [2]]
    inputs = iter([([4, 5, 6], torch.stack([torch.full((3, 1, 1), float(i)) for i in (4, 5, 6)]))])
    with pytest.raises(InvalidImage, match="image 5: its embedding is not finite"):
        list(embed_batches(embed, inputs))

"""Images for learning depend on (seed, step, row) alone; what cannot be read is named."""

from __future__ import annotations

import os
import random
import signal
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from smn_core.errors import InvalidData
from tests.training.builders import World, class_folders
from training.data import (
    Batch,
    Item,
    StepLoader,
    StepSampler,
    Subset,
    Views,
    collate,
    open_split,
    seeded,
)
from training.identity import identify
from training.progress import stopping_at_sigterm


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() + torch.rand(())


@pytest.fixture
def folder(tmp_path) -> Path:
    """Six images in one folder, one of them no image."""
    for i in range(6):
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "2.png").write_bytes(b"no image at all")
    return tmp_path


def test_an_epoch_shows_every_image_once():
    sampler = StepSampler(20, 5, 8, seed=1)
    batches = [[item.index for item in batch] for batch in sampler]
    for epoch in (batches[:4], batches[4:]):
        assert sorted(chain.from_iterable(epoch)) == list(range(20))
    assert batches[:4] != batches[4:]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_while_a_worker_is_forked_is_heard(number, folder):
    """An exception in what Python runs around a fork is lost, and SIGTERM would then be ignored for good."""
    asked = [number]
    os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), asked.pop()) if asked else None)
    views = Views(open_split(str(folder), "train"), lambda image: [as_tensor(image)], 8)
    loader = StepLoader(views, batch_sampler=StepSampler(6, 2, 3, seed=1), num_workers=1, collate_fn=collate)
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), stopping_at_sigterm():
        iter(loader)
    assert not asked
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_the_rest_of_an_epoch_that_fills_no_batch_is_dropped():
    batches = [[item.index for item in batch] for batch in StepSampler(11, 5, 4, seed=1)]
    assert all(len(set(batches[i] + batches[i + 1])) == 10 for i in (0, 2))


def test_processes_share_every_global_batch():
    whole = list(StepSampler(24, 8, 6, seed=2))
    parts = [list(StepSampler(24, 8, 6, seed=2, rank=r, world=2)) for r in range(2)]
    for step, batch in enumerate(whole):
        assert parts[0][step] == batch[0::2]
        assert parts[1][step] == batch[1::2]


def test_a_sampler_that_starts_later_goes_on_as_the_first_would():
    assert list(StepSampler(24, 8, 9, seed=2, first_step=4)) == list(StepSampler(24, 8, 9, seed=2))[4:]


def test_no_two_rows_share_their_augmentation():
    seeds = [item.seed for batch in StepSampler(24, 8, 30, seed=2) for item in batch]
    assert len(set(seeds)) == len(seeds)


def test_augmentation_depends_on_its_seed_and_leaves_the_global_generators_alone(world: World):
    views = Views(open_split(str(world.data), "train"), as_tensor, 8)
    states = random.getstate(), np.random.get_state()[1].copy(), torch.random.get_rng_state()
    one, two, other = (views[Item(3, seed)][0][0] for seed in (7, 7, 8))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert random.getstate() == states[0]
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])
    assert torch.equal(torch.random.get_rng_state(), states[2])


def test_generators_come_back_when_a_transform_fails():
    before = torch.random.get_rng_state()
    with pytest.raises(ValueError, match="no"), seeded(3):
        torch.rand(1)
        raise ValueError("no")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_corrupt_image_is_named_and_the_next_takes_its_place(folder):
    views = Views(open_split(str(folder), "train"), as_tensor, 8)
    (view,), label, skipped = views[Item(2, 0)]
    assert int(view.min()) == 3
    assert label == -1
    assert len(skipped) == 1
    assert str(folder / "2.png") in skipped[0]
    assert views[Item(4, 0)][2] == []


def test_images_none_of_which_can_be_read_are_refused(folder):
    for path in folder.iterdir():
        path.write_bytes(b"no image at all")
    with pytest.raises(InvalidData, match="none of the 6 images"):
        Views(open_split(str(folder), "train"), as_tensor, 8)[Item(0, 0)]


def test_a_batch_stacks_crops_and_has_labels_only_where_all_rows_have():
    rows = [([torch.zeros(3, 4, 4), torch.zeros(3, 2, 2)], label, [f"bad {label}"]) for label in (1, 0)]
    batch = collate(rows)
    assert [tuple(v.shape) for v in batch.views] == [(2, 3, 4, 4), (2, 3, 2, 2)]
    assert batch.labels.tolist() == [1, 0]
    assert batch.skipped == ["bad 1", "bad 0"]
    assert collate([(rows[0][0], -1, [])]).labels is None
    assert isinstance(batch.to(torch.device("cpu")), Batch)


def test_a_subset_keeps_names_labels_and_images_together(world: World):
    whole = open_split(str(world.data), "train")
    part = Subset(whole, np.array([5, 2]))
    assert part.names == ["5", "2"]
    np.testing.assert_array_equal(part.labels, whole.labels[[5, 2]])
    assert part.image(1).tobytes() == whole.image(2).tobytes()


def test_a_folder_without_splits_is_taken_whole(folder):
    assert len(open_split(str(folder), "train").names) == 6
    (folder / "val").mkdir()
    (folder / "0.png").rename(folder / "val/0.png")
    assert open_split(str(folder), "val").names == ["0.png"]


def test_an_unknown_torchvision_set_names_the_known_ones():
    with pytest.raises(InvalidData, match=r"unknown set torchvision:imagenet.*cifar10, cifar100, dtd"):
        open_split("torchvision:imagenet", "train")


def test_an_unknown_split_of_a_torchvision_set_is_refused():
    with pytest.raises(InvalidData, match="has the splits train, test, not 'val'"):
        open_split("torchvision:cifar10", "val")


def test_a_torchvision_set_that_is_nowhere_says_where_it_was_sought(tmp_path, monkeypatch):
    from torchvision import datasets

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("<urlopen error [Errno -2] Name or service not known>")

    monkeypatch.setattr(datasets, "CIFAR10", unreachable)
    with pytest.raises(InvalidData, match=f"{tmp_path}.*could not be fetched: <urlopen error"):
        open_split(f"torchvision:cifar10@{tmp_path}", "train")


@pytest.fixture
def eurosat(tmp_path) -> str:
    """Ten images in torchvision's own layout of EuroSAT: nothing is fetched."""
    for name in ("AnnualCrop", "Forest"):
        (tmp_path / "eurosat/2750" / name).mkdir(parents=True)
        for i in range(5):
            path = tmp_path / "eurosat/2750" / name / f"{name}_{i}.jpg"
            Image.fromarray(np.full((64, 64, 3), 40 * i, np.uint8)).save(path)
    return f"torchvision:eurosat@{tmp_path}"


def test_a_torchvision_set_without_splits_is_cut_once(eurosat):
    train, test = open_split(eurosat, "train"), open_split(eurosat, "test")
    assert (len(train.names), len(test.names)) == (8, 2)
    assert sorted([*train.names, *test.names], key=int) == [str(i) for i in range(10)]
    assert train.classes == ["AnnualCrop", "Forest"]
    np.testing.assert_array_equal(train.labels, [int(n) >= 5 for n in train.names])
    assert train.image(0).size == (64, 64)
    with pytest.raises(InvalidData, match="splits train and test"):
        open_split(eurosat, "val")


def test_a_corrupt_file_of_a_torchvision_set_is_skipped(eurosat, tmp_path):
    (tmp_path / "eurosat/2750/AnnualCrop/AnnualCrop_0.jpg").write_bytes(b"no image")
    split = next(s for s in map(open_split, (eurosat, eurosat), ("train", "test")) if "0" in s.names)
    _, _, skipped = Views(split, as_tensor, 8)[Item(split.names.index("0"), 0)]
    assert skipped[0].startswith("image 0: ")


def test_a_folder_of_splits_has_no_other_split(tmp_path):
    """Taken whole, its test images would be learned from and its splits would be classes."""
    class_folders(tmp_path, "train/a", "Test/a", "val/a")
    for split in ("trian", "test", "training"):
        with pytest.raises(InvalidData, match="has the splits Test, train, val"):
            open_split(str(tmp_path), split)
    assert list(open_split(str(tmp_path), "train").names) == ["a/x.png"]


def test_a_folder_of_classes_is_its_own_train_split_and_has_no_other(tmp_path):
    class_folders(tmp_path, "a", "b")
    assert list(open_split(str(tmp_path), "train").classes) == ["a", "b"]
    with pytest.raises(InvalidData, match="no folder 'typo'"):
        open_split(str(tmp_path), "typo")


def test_no_data_is_not_the_folder_one_is_in():
    with pytest.raises(InvalidData, match="--data is empty"):
        open_split("", "train")


def test_links_that_lead_nowhere_are_skipped_and_cost_no_other_image(folder):
    whole = identify(open_split(str(folder), "train"))
    (folder / "gone.png").symlink_to(folder / "nothing.png")
    (folder / "loop.png").symlink_to("loop.png")
    images = open_split(str(folder), "train")
    assert identify(images) != whole
    assert identify(images) == identify(open_split(str(folder), "train"))
    _, _, skipped = Views(images, as_tensor, 8)[Item(images.names.index("gone.png"), seed=0)]
    assert [Path(reason.split(":")[0]).name for reason in skipped] == ["gone.png", "loop.png"]

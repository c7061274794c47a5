"""One mask from several runs of one backbone: a weight is OFF where the mean of the runs' final scores says so.

Scores are compared as `(S - mu) / (S0 - mu)`, 1 at the start and 0 at the threshold, whatever the runs' S0 and mu
(METHOD.md, theorems 1 and 2). What a run may not mask counts as its start. Runs from one backbone differ by seed, crops
or images; flips that they do not share help little (docs/results.md). Source: averages of weights over runs from one
start, Wortsman et al., "Model soups", 2022; here of scores.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from smn_core import bits, tensorfile
from smn_core.errors import InvalidArgument, InvalidWeights
from smn_core.mask import TaskMask
from smn_core.maskfile import read_mask, write_mask
from training.checkpoints import CHECKPOINT, folder_of, read_checkpoint
from training.config import config_from

Scores = dict[str, Float64[ndarray, "n"]]
"""Relative scores of every tensor that a run masked, flat, by the tensor's name."""


def merge(paths: Sequence[Path], out: Path, *, overwrite: bool = False) -> TaskMask:
    """Write the mask that the mean of the scores means.

    Raises:
        InvalidArgument: fewer than two masks; of different backbones; some with normalisation statistics, which have no
            mean that would fit the merged mask; `out` is no .smn file in a folder that is there, or exists.
        InvalidWeights: a run is not beside its mask, or did not end with it.
        InvalidMask: a tensor would have no ON weight.
    """
    if len(paths) < 2:
        raise InvalidArgument("give two masks or more")
    if out.suffix != ".smn" or not out.parent.is_dir():
        raise InvalidArgument(f"--out {out}: name a .smn file in a folder that is there")
    if folder_of(out).exists() or (out.exists() and not overwrite):
        raise InvalidArgument(
            f"{out} or its run exists: give --out another name; --overwrite replaces a file without a run"
        )
    masks = [read_mask(path) for path in paths]
    first = masks[0]
    for path, mask in zip(paths, masks, strict=True):
        if (mask.fingerprint, mask.layout.digest) != (first.fingerprint, first.layout.digest):
            raise InvalidArgument(f"{path} and {paths[0]} are for different backbones")
        if mask.state:
            raise InvalidArgument(f"{path} has normalisation statistics: such masks cannot be merged")
    total = {tensor.name: np.zeros(tensor.n_weights) for tensor in first.layout}
    for path, mask in zip(paths, masks, strict=True):
        for name, scores in _scores_of(path, mask).items():
            total[name] += scores - 1
    packed = [bits.pack(total[tensor.name] > -len(paths)) for tensor in first.layout]
    merged = TaskMask(
        layout=first.layout,
        model=first.model,
        fingerprint=first.fingerprint,
        packed=np.concatenate(packed),
        preprocess=first.preprocess,
        metadata={
            "objective": "merge",
            "dataset": " + ".join(dict.fromkeys(mask.metadata.get("dataset", "?") for mask in masks)),
            "recipe": tensorfile.canonical_json({"merged": [mask.digest for mask in masks]}),
        },
    )
    return write_mask(merged, out)


def _scores_of(path: Path, mask: TaskMask) -> Scores:
    """Of the run that wrote a mask. A mask file alone has no scores.

    Raises:
        InvalidWeights: its checkpoint is not there, is none, or does not hold this mask.
        InvalidArgument: its masks are the top k of their scores, which have no threshold.
    """
    checkpoint = folder_of(path) / CHECKPOINT
    found = read_checkpoint(checkpoint)
    rule = config_from(json.loads(found["smn"]["recipe"])).mask
    if rule.density is not None:
        raise InvalidArgument(f"{path} was learned at a fixed density: its scores have no threshold to share")
    scores: Scores = {}
    for tensor in mask.layout:
        owner, _, local = tensor.name.rpartition(".")
        prefix = f"model.{owner}.parametrizations.{local}.0"
        on = np.ones(tensor.n_weights, np.bool_)
        if (values := found["state_dict"].get(f"{prefix}.scores")) is not None:
            flat = (values.double().numpy().reshape(-1) - rule.threshold) / (rule.init - rule.threshold)
            kept = found["state_dict"].get(f"{prefix}.kept")
            scores[tensor.name] = flat if kept is None else np.where(kept.numpy().reshape(-1), 1.0, flat)
            on = scores[tensor.name] > 0
        if not np.array_equal(on, mask.bits_of(tensor.name)):
            raise InvalidWeights(f"{checkpoint} is not the end of the run that wrote {path}")
    return scores

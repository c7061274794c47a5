"""What a verb embeds through: a backbone with a mask or a cascade, loaded as a user named them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from smn_core.backbone import Backbone, load_backbone
from smn_core.cascade.cascade import embed
from smn_core.cascade.file import check_fits, open_folder
from smn_core.engine import Engine
from smn_core.mask import TaskMask
from smn_core.maskfile import read_mask, with_bits
from smn_core.spaces import shape_space, space_of_cascade, space_of_mask
from smn_core.spec import BackboneSpec
from smn_core.vectors import vectors_of_mask
from smn_core.verbs.offline import Embed, embed_through, keep_first
from smn_core.verbs.options import as_trained
from smn_core.verbs.stderr import note


@dataclass(frozen=True)
class Way:
    """How images become vectors: the engine, the function, how wide its vectors are, and which space they are in.

    `digest` is that of the mask or cascade, or "root".
    """

    engine: Engine
    embed: Embed
    width: int
    space: str
    digest: str

    def facts(self) -> dict[str, Any]:
        """What a file of the vectors says of them."""
        backbone = self.engine.backbone
        return {
            "model": backbone.architecture,
            "fingerprint": backbone.fingerprint,
            "digest": self.digest,
            "preprocess": dict(backbone.preprocess),
        }


def way_through_mask(spec: BackboneSpec, mask: Path | None, dimensions: int | None, parent: Path | None = None) -> Way:
    """Through a mask, or the untouched backbone. `parent` may be the file that the mask is coded against.

    Raises:
        InvalidMask, WrongBackbone: the mask cannot be read or does not fit.
        InvalidArgument: more dimensions than there are.
    """
    backbone, task = backbone_and_mask(spec, mask, parent)
    engine = Engine(backbone, slots=1)
    if task is not None:
        for warning in engine.prepare(task):
            note(f"warning: {warning}")
    digest = task.digest if task is not None else None
    run, width = keep_first(embed_through(engine, digest), dimensions, backbone.n_features)
    space = shape_space(space_of_mask(backbone, task), dimensions=cut_of(width, backbone.n_features))
    return Way(engine, run, width, space, digest or "root")


def way_through_cascade(spec: BackboneSpec, folder: Path, mode: str | None, dimensions: int | None) -> Way:
    """Through a cascade in a mode.

    Raises:
        InvalidCascade: the folder has no whole cascade.
        InvalidArgument: a mode that it lacks, or more dimensions than there are.
    """
    found = open_folder(folder)
    cascade, masks = found.cascade, found.masks()
    chosen = cascade.choose_mode(mode)
    backbone = load_backbone(as_trained(spec, masks[0], found.files[0]))
    check_fits(cascade, backbone)
    engine = Engine(backbone, slots=len(masks))
    warnings = {warning: None for mask in masks for warning in engine.prepare(mask)}
    for warning in warnings:
        note(f"warning: {warning}")
    whole = cascade.choose_dimensions(None, chosen, backbone.n_features)
    width = cascade.choose_dimensions(dimensions, chosen, backbone.n_features)
    run, _ = keep_first(lambda x: torch.from_numpy(embed(engine, cascade, chosen, x).embeddings), width, width)
    of_masks = [vectors_of_mask(with_bits(mask, backbone)) for mask in masks]
    space = space_of_cascade(backbone, cascade, chosen, of_masks)
    return Way(engine, run, width, shape_space(space, dimensions=cut_of(width, whole)), str(cascade.digest))


def cut_of(width: int, whole: int) -> int | None:
    """The components that are kept of `whole`; None where all are."""
    return width if width < whole else None


def backbone_and_mask(
    spec: BackboneSpec, mask: Path | None, parent: Path | None = None
) -> tuple[Backbone, TaskMask | None]:
    """The backbone a user named, or else the one that the mask names; and the mask, read for it."""
    task = read_mask(mask, parent=parent) if mask is not None else None
    backbone = load_backbone(as_trained(spec, task, mask))
    if backbone.ignored:
        note(
            f"{spec.weights}: ignored {len(backbone.ignored)} keys that the backbone has no place for: "
            f"{', '.join(backbone.ignored[:4])}{' ...' if len(backbone.ignored) > 4 else ''}"
        )
    return backbone, task

"""Images in, mask file out: one run of learning, with checkpoints, curve and plots in `FILE.run/`."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import pytorch_lightning as pl
import torch
from timm.layers import set_fused_attn

from smn_core import tensorfile
from smn_core.backbone import Backbone, load_backbone
from smn_core.errors import InvalidArgument, InvalidWeights
from smn_core.files import write_bytes
from smn_core.images import draft_side_px
from smn_core.imageset import ImageSet
from smn_core.mask import TaskMask
from smn_core.maskfile import write_mask
from smn_core.precision import slow_on_cpu
from smn_core.verbs.stderr import note
from training import calibrate, export, starts
from training.checkpoints import CHECKPOINT, read_checkpoint
from training.config import PRECISIONS
from training.data import StepLoader, StepSampler, Views, collate, name_data
from training.folder import write_folder
from training.forms import settle_form
from training.hold import hold_folder
from training.identity import identify
from training.learner import Learner
from training.plan import choose_images, forget, require_output
from training.progress import Bar, count, count_silently
from training.request import Request, Result
from training.trainer import find_process, make_trainer, quieten, run_trainer
from training.watch import EARLY_STEPS, Curve, LogSteps, OnStep, SaveEarly, StopCleanly, TellSteps, Warn

NOTHING_OFF = (
    "the mask switches nothing off: it is the untouched backbone. Try more steps (--epochs, or --set steps=...), a "
    "higher rate (--set lr=...), or fewer steps that are for the head alone (--set head_steps=...)"
)


def train(request: Request, on_step: OnStep | None = None) -> Result:
    """Run, or resume, and write the result. Under torchrun every process calls it; process 0 writes.

    `on_step` takes the place of the progress bar, or of the lines in a log.

    Raises:
        SMNError: anything about the request that cannot work, before the first step.
        Stopped: ctrl-C or SIGTERM; a checkpoint was written.
    """
    return learn(prepare(request), on_step)


def learn(prepared: Prepared, on_step: OnStep | None = None) -> Result:
    """Run, or resume, what `prepare` checked, and write the result. As `train`."""
    shows = on_step is None and prepared.rank == 0
    with hold_folder(prepared.request.folder) if prepared.rank == 0 else nullcontext():
        learner, first_step = build_learner(prepared, count if shows else count_silently)
        fitted = fit(prepared, learner, first_step, on_step)
        mask = export_learned(prepared, learner, fitted.curve) if prepared.rank == 0 else None
        return finish(prepared, learner, fitted, mask)


@dataclass(frozen=True)
class Prepared:
    """A request that can work, and what it needs, loaded.

    `remarks` are the settings of the recipe that were lowered for a small set, `rank` of `world` is this process,
    `checkpoint` what to resume from, `root_state` the untouched running statistics.
    """

    request: Request
    rank: int
    world: int
    checkpoint: Path | None
    images: ImageSet
    backbone: Backbone
    root_state: dict[str, torch.Tensor]
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fitted:
    """What the steps left beside the weights: the curve, their time, the objective's warning."""

    curve: Curve
    seconds: float
    warning: str | None


def prepare(request: Request) -> Prepared:
    """Check the request, load images and backbone, and seed every generator.

    Raises:
        SMNError: the request cannot work.
    """
    quieten()
    rank, world = find_process()
    require_output(request)
    last = request.folder / CHECKPOINT
    checkpoint = last if request.resume and last.exists() else None
    request, images, remarks = choose_images(request)
    request, taken = settle_form(request, len(images.names), checkpoint, world)
    remarks += [taken] if taken else []
    set_fused_attn(request.config.fused_attention)  # attention asks for it when it is built
    backbone = load_backbone(request.spec)
    slow = slow_on_cpu(PRECISIONS[request.config.precision], backbone.device)
    if slow and rank == 0:
        note(f"warning: precision={request.config.precision}: {slow}")
    root_state = export.copy_statistics(backbone)
    pl.seed_everything(request.seed, verbose=False)
    return Prepared(request, rank, world, checkpoint, images, backbone, root_state, tuple(remarks))


def build_learner(
    prepared: Prepared, bar: Bar = count_silently, is_late: Callable[[], bool] = lambda: False
) -> tuple[Learner, int]:
    """The learner in the state that the first step finds, and the number of that step, counted from 0.

    A checkpoint's weights are not in it yet: Lightning loads them. The head is measured on no more images once
    `is_late` is true.

    Raises:
        InvalidArgument: the recipe does not fit the backbone.
        InvalidWeights: the checkpoint, or the run to go on from, is damaged or does not fit.
    """
    request, backbone, images = prepared.request, prepared.backbone, prepared.images
    learner = _make_learner(prepared)
    _require_crops(learner, backbone)
    if request.config.recentre_norm:
        calibrate.recentre(learner, backbone, images)
    if prepared.checkpoint is not None:
        return learner, _require_same_run(prepared.checkpoint, learner)
    if request.start is not None:
        starts.load(learner, backbone, request.start, prepared.root_state)
    elif learner.objective.needs_calibration:
        calibrate.calibrate_head(learner, backbone, images, bar, is_late)
    return learner, 0


def fit(prepared: Prepared, learner: Learner, first_step: int, on_step: OnStep | None) -> Fitted:
    """Take the steps that are left. Without `on_step` a bar is drawn on a terminal, and lines are written elsewhere.

    Raises:
        Stopped: ctrl-C or SIGTERM; a checkpoint was written.
    """
    request, backbone, images = prepared.request, prepared.backbone, prepared.images
    loader = make_loader(prepared, learner, first_step)
    if not request.resume:
        forget(request)  # an earlier run goes only once this one can begin
    request.folder.mkdir(parents=True, exist_ok=True)
    last = request.folder / CHECKPOINT
    curve, warn, stop = Curve(), Warn(learner.objective.make_watch()), StopCleanly(last)
    watchers: list[pl.Callback] = [curve, warn]
    shows = on_step is None
    watchers += [TellSteps(on_step)] if on_step is not None else []
    watchers.append(stop)  # before the first line of a log: who reads it may send a signal at once
    if on_step is None and prepared.rank == 0 and not sys.stderr.isatty():
        watchers.append(LogSteps())
    if learner.config.checkpoint_steps > EARLY_STEPS:
        watchers.append(SaveEarly(last))
    trainer = make_trainer(learner, request.folder, backbone.device, prepared.world, watchers, shows=shows)
    settle = partial(calibrate.settle, learner, backbone, images) if learner.recentred is not None else None
    began = time.perf_counter()
    run_trainer(trainer, learner, loader, prepared.checkpoint, last, settle, stop)
    return Fitted(curve, time.perf_counter() - began, warn.message)


def export_learned(prepared: Prepared, learner: Learner, curve: Curve) -> TaskMask | None:
    """Write what was learned to the request's output: a mask, which is returned, or plain weights."""
    request, backbone = prepared.request, prepared.backbone
    if not request.config.learns_mask:
        weights = {name: tensor.numpy() for name, tensor in export.collect_weights(learner.model).items()}
        write_bytes(request.out, tensorfile.serialise_tensors(weights, {"format": "pt", "model": backbone.model_json}))
        return None
    recipe = {**asdict(request.config), "seed": request.seed, "total_steps": learner.total_steps}
    recipe |= {"start": learner.start} if learner.start else {}
    metadata = {
        "objective": request.config.objective,
        "dataset": name_data(request.data),
        "recipe": tensorfile.canonical_json(recipe),
        "metrics": tensorfile.canonical_json(curve.losses(request.config.head_steps)),
    }
    head = learner.objective.export_head(learner.head, tuple(str(c) for c in prepared.images.classes))
    mask = export.make_mask(backbone, learner.model, prepared.root_state, metadata, head, learner.recentred)
    return write_mask(mask, request.out, request.codec, backbone)


def finish(prepared: Prepared, learner: Learner, fitted: Fitted, mask: TaskMask | None) -> Result:
    """Say what the run left, and write its folder: the README there is what makes a run count as finished."""
    rows = fitted.curve.rows
    last_loss = rows[-1]["loss"] if rows else float("nan")
    request = prepared.request
    nothing_off = NOTHING_OFF if mask is not None and not mask.n_off else None
    warning = "\n\n".join(text for text in (fitted.warning, nothing_off) if text) or None
    result = Result(request.out, mask, fitted.seconds, last_loss, tuple(learner.skipped), warning)
    if prepared.rank == 0:
        write_folder(request, learner, fitted.curve, result)
    return result


def make_loader(prepared: Prepared, learner: Learner, first_step: int) -> StepLoader:
    """This process's rows of the batches from `first_step` on."""
    request, backbone, images = prepared.request, prepared.backbone, prepared.images
    preprocess = dict(backbone.preprocess)
    sampler = StepSampler(
        len(images.names), request.config.batch_size, learner.total_steps, request.seed, first_step, prepared.rank,
        prepared.world,
    )  # fmt: skip
    return StepLoader(
        Views(images, learner.objective.make_transform(preprocess), draft_side_px(preprocess)),
        batch_sampler=sampler,
        num_workers=request.workers,
        # Ctrl-C in a terminal reaches them too, and SIGTERM where a service's whole group gets it; they live until the
        # step in hand is done and saved, and end with their loader.
        worker_init_fn=_ignore_stops,
        collate_fn=collate,
        pin_memory=backbone.device.type == "cuda",
    )


def _ignore_stops(_: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _make_learner(prepared: Prepared) -> Learner:
    request, backbone, images, world = prepared.request, prepared.backbone, prepared.images, prepared.world
    if request.config.batch_size % world:
        raise InvalidArgument(f"a batch of {request.config.batch_size} cannot be shared by {world} processes")
    total = request.config.total_steps(len(images.names))
    pixels = tensorfile.canonical_json(json.loads(json.dumps(dict(backbone.preprocess))))
    seen = tensorfile.digest_of(f"{identify(images, times=False)}\n{pixels}".encode())
    n_classes, start = len(images.classes), request.start_digest
    sync_norm = world > 1 and backbone.device.type == "cuda"
    return Learner(backbone, request.config, total, n_classes, world, request.seed, seen, start, sync_norm)


@torch.inference_mode()
def _require_crops(learner: Learner, backbone: Backbone) -> None:
    """The model takes crops of the sizes that the objective makes.

    Raises:
        InvalidArgument: it does not; a ViT wants multiples of its patch.
    """
    objective = learner.objective
    learner.model.eval()
    for side_px in objective.crop_sides_px:
        try:
            learner.model(torch.zeros(1, 3, side_px, side_px, device=backbone.device))
        except Exception as error:  # every architecture has its own way to say so
            raise InvalidArgument(
                f"{backbone.architecture} takes no crops of {side_px} px: {error}; change {objective.crop_setting}"
            ) from error


def _require_same_run(path: Path, learner: Learner) -> int:
    """The step that a checkpoint stopped after.

    Raises:
        InvalidWeights: it is damaged, or of another backbone, recipe, length, seed or set of images.
    """
    checkpoint = read_checkpoint(path, mend="; say --overwrite to begin anew")
    theirs, step = checkpoint["smn"], int(checkpoint["global_step"])
    for key, ours in learner.identity().items():
        if theirs.get(key) != ours:
            raise InvalidWeights(
                f"{path} was written by a run with another {key}: resume with the same options, or say --overwrite"
            )
    return step

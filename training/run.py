"""Images in, mask file out: one run of learning, with checkpoints, curve and plots in `FILE.run/`."""

from __future__ import annotations

import json
import logging
import signal
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint, RichProgressBar
from pytorch_lightning.plugins.environments import TorchElasticEnvironment
from pytorch_lightning.strategies import DDPStrategy
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
from smn_core.verbs.show import note
from training import calibrate, export, starts, supervised, swav
from training.checkpoints import CHECKPOINT, WholeCheckpoints, read_checkpoint
from training.config import PRECISIONS
from training.data import StepLoader, StepSampler, Views, collate, identity
from training.folder import write_folder
from training.learner import Learner
from training.plan import forget, images_of, require_float32, require_output
from training.request import Request, Result
from training.watch import Curve, Steps, StopCleanly, StuckAtUniform


def train(request: Request, heard: Callable[[int], None] | None = None) -> Result:
    """Run, or resume, and write the result. Under torchrun every process calls it; process 0 writes.

    `heard` is called with the number of steps done, and takes the place of the progress bar.

    Raises:
        SMNError: anything about the request that cannot work, before the first step.
        KeyboardInterrupt: ctrl-C; a checkpoint was written.
    """
    _quieten()
    rank, world = _process()
    checkpoint = _checkpoint_of(request)
    images = images_of(request)
    backbone = load_backbone(request.spec)
    require_float32(backbone)
    slow = slow_on_cpu(PRECISIONS[request.config.precision], backbone.device)
    if slow and rank == 0:
        note(f"warning: precision={request.config.precision}: {slow}")
    root_state = export.running_state(backbone)
    set_fused_attn(request.config.fused_attention)
    pl.seed_everything(request.seed, verbose=False)
    learner = _learner_of(request, backbone, images, world)
    _require_crops(learner, backbone)
    if request.config.recentre_norm:
        calibrate.recentre(learner, backbone, images)
    if checkpoint is not None:
        first_step = _require_same_run(checkpoint, learner)
    else:
        first_step = 0
        if request.start is not None:
            starts.load(learner, backbone, request.start, root_state)
        elif request.config.swav.centre and learner.swav is not None:
            calibrate.set_centre(learner, backbone, images)
    loader = _loader_of(request, learner, backbone, images, first_step, rank, world)
    if not request.resume:
        forget(request)  # an earlier run goes only once this one can begin
    request.folder.mkdir(parents=True, exist_ok=True)
    curve, stuck = Curve(), StuckAtUniform()
    watchers: list[pl.Callback] = [curve, stuck, *([Steps(heard)] if heard is not None else [])]
    trainer = _trainer_of(request, learner, backbone, world, watchers, shows=heard is None)
    began = time.perf_counter()
    end = partial(calibrate.settle, learner, backbone, images) if learner.recentred is not None else None
    _fit(trainer, learner, loader, checkpoint, request.folder / CHECKPOINT, end)
    seconds = time.perf_counter() - began
    result = Result(
        request.out,
        _write_output(request, backbone, learner, root_state, images, curve) if rank == 0 else None,
        seconds,
        curve.rows[-1]["loss"] if curve.rows else float("nan"),
        tuple(learner.skipped),
        stuck.message,
    )
    if rank == 0:
        write_folder(request, learner, curve, result)
    return result


def _process() -> tuple[int, int]:
    """Rank and number of processes: torchrun's, or one."""
    if TorchElasticEnvironment.detect():
        environment = TorchElasticEnvironment()
        return environment.global_rank(), environment.world_size()
    return 0, 1


def _checkpoint_of(request: Request) -> Path | None:
    """The checkpoint to resume from; refuses to write over an earlier run that nobody said to drop."""
    require_output(request)
    path = request.folder / CHECKPOINT
    return path if request.resume and path.exists() else None


def _learner_of(request: Request, backbone: Backbone, images: ImageSet, world: int) -> Learner:
    if request.config.batch_size % world:
        raise InvalidArgument(f"a batch of {request.config.batch_size} cannot be shared by {world} processes")
    total = request.config.total_steps(len(images.names))
    pixels = tensorfile.canonical_json(json.loads(json.dumps(dict(backbone.preprocess))))
    seen = tensorfile.digest_of(f"{identity(images, times=False)}\n{pixels}".encode())
    n_classes, start = len(images.classes), request.start_digest
    sync_norm = world > 1 and backbone.device.type == "cuda"
    return Learner(backbone, request.config, total, n_classes, world, request.seed, seen, start, sync_norm)


@torch.inference_mode()
def _require_crops(learner: Learner, backbone: Backbone) -> None:
    """The model takes crops of the sizes that the recipe makes.

    Raises:
        InvalidArgument: it does not; a ViT wants multiples of its patch.
    """
    if learner.swav is None:
        return
    crops = learner.config.swav.crops
    learner.model.eval()
    for side_px in (crops.big_px, *([crops.small_px] if crops.n_small else [])):
        try:
            learner.model(torch.zeros(1, 3, side_px, side_px, device=backbone.device))
        except Exception as error:  # every architecture has its own way to say so
            raise InvalidArgument(
                f"{backbone.architecture} takes no crops of {side_px} px: {error}; change swav.crops"
            ) from error


def _require_same_run(path: Path, learner: Learner) -> int:
    """The step that a checkpoint stopped after.

    Raises:
        InvalidWeights: it is damaged, or of another backbone, recipe, length, seed or set of images.
    """
    checkpoint = read_checkpoint(path)
    theirs, step = checkpoint["smn"], int(checkpoint["global_step"])
    for key, ours in learner.identity().items():
        if theirs.get(key) != ours:
            raise InvalidWeights(
                f"{path} was written by a run with another {key}: resume with the same options, or say --overwrite"
            )
    return step


def _loader_of(
    request: Request, learner: Learner, backbone: Backbone, images: ImageSet, first_step: int, rank: int, world: int
) -> StepLoader:
    config, preprocess = request.config, dict(backbone.preprocess)
    if learner.swav is not None:
        transform: Any = swav.transform_for(config.swav.crops, preprocess)
    else:
        transform = supervised.transform_for(config.crop_scale, preprocess)
    sampler = StepSampler(
        len(images.names), config.batch_size, learner.total_steps, request.seed, first_step, rank, world
    )
    return StepLoader(
        Views(images, transform, draft_side_px(preprocess)),
        batch_sampler=sampler,
        num_workers=request.workers,
        # Ctrl-C in a terminal reaches them too; they live until the step in hand is done and saved.
        worker_init_fn=_ignore_interrupts,
        collate_fn=collate,
        pin_memory=backbone.device.type == "cuda",
    )


def _ignore_interrupts(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _trainer_of(
    request: Request,
    learner: Learner,
    backbone: Backbone,
    world: int,
    watchers: list[pl.Callback],
    *,
    shows: bool = True,
) -> pl.Trainer:
    on_gpu, shows = backbone.device.type == "cuda", shows and sys.stderr.isatty()
    # On CPUs Lightning asks for one device a process, whatever the nodes.
    devices = min(torch.cuda.device_count(), world) if on_gpu else world
    saver = ModelCheckpoint(
        dirpath=request.folder,
        filename=CHECKPOINT.removesuffix(".ckpt"),
        every_n_train_steps=min(request.config.checkpoint_steps, learner.total_steps),
        save_top_k=1,
        enable_version_counter=False,
        save_on_train_epoch_end=False,
    )
    return pl.Trainer(
        accelerator="gpu" if on_gpu else "cpu",
        devices=[backbone.device.index or 0] if on_gpu and world == 1 else devices,
        num_nodes=world // devices,
        # Every process keeps its own buffers: the queue is of its rows; the norms synchronise themselves on GPUs.
        strategy=DDPStrategy(broadcast_buffers=False) if world > 1 else "auto",
        precision=request.config.precision,
        max_steps=learner.total_steps,
        max_epochs=1,
        use_distributed_sampler=False,
        plugins=[WholeCheckpoints()],
        callbacks=[
            *watchers,
            # Without a terminal the bar's last state would stand before an error's one line.
            *([RichProgressBar(console_kwargs={"stderr": True})] if shows else []),
            saver,
            StopCleanly(request.folder / CHECKPOINT),
        ],
        logger=False,
        enable_model_summary=False,
        enable_progress_bar=shows,
        benchmark=False,
    )


def _fit(
    trainer: pl.Trainer,
    learner: Learner,
    loader: StepLoader,
    checkpoint: Path | None,
    last: Path,
    end: Callable[[], None] | None,
) -> None:
    try:
        trainer.fit(learner, loader, ckpt_path=checkpoint, weights_only=True)
        if end is not None:
            end()
        if end is not None or learner.total_steps % learner.config.checkpoint_steps:
            trainer.save_checkpoint(last)  # what goes on from this run goes on from its end
    except SystemExit as stopped:  # Lightning turns ctrl-C into exit code 1
        raise KeyboardInterrupt from stopped
    finally:
        # Lightning moved the model; what follows (export) reads it on the CPU.
        learner.cpu()


def _write_output(
    request: Request,
    backbone: Backbone,
    learner: Learner,
    root_state: dict[str, torch.Tensor],
    images: ImageSet,
    curve: Curve,
) -> TaskMask | None:
    if not learner.learns_mask:
        weights = {name: tensor.numpy() for name, tensor in export.plain_state(learner.model).items()}
        write_bytes(request.out, tensorfile.serialise_tensors(weights, {"format": "pt", "model": backbone.model_json}))
        return None
    recipe = {**asdict(request.config), "seed": request.seed, "total_steps": learner.total_steps}
    recipe |= {"start": learner.start} if learner.start else {}
    metadata = {
        "objective": request.config.objective,
        "dataset": Path(request.data).name,
        "recipe": tensorfile.canonical_json(recipe),
        "metrics": tensorfile.canonical_json(curve.losses(request.config.head_steps)),
    }
    mask = export.to_mask(
        backbone,
        learner.model,
        root_state,
        metadata,
        learner.classifier,
        tuple(str(c) for c in images.classes),
        learner.recentred,
    )
    return write_mask(mask, request.out)


def _quieten() -> None:
    """Lightning advises on workers, logging and devices; none of it is news to whoever runs a recipe."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"pytorch_lightning\.")
    warnings.filterwarnings("ignore", module=r"lightning_fabric\.")
    warnings.filterwarnings("ignore", module=r"lightly\.")

"""Lightning's part of a run: its processes, its trainer with checkpoints and bar, and what it does on a stop."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint, RichProgressBar
from pytorch_lightning.plugins.environments import TorchElasticEnvironment
from pytorch_lightning.strategies import DDPStrategy

from training.checkpoints import CHECKPOINT, WholeCheckpoints
from training.data import StepLoader
from training.learner import Learner
from training.watch import StopCleanly


def quieten() -> None:
    """Silence Lightning's advice on workers, logging and devices: none of it is news to whoever runs a recipe."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"pytorch_lightning\.")
    warnings.filterwarnings("ignore", module=r"lightning_fabric\.")
    warnings.filterwarnings("ignore", module=r"lightly\.")


def find_process() -> tuple[int, int]:
    """Rank of this process and number of processes: torchrun's, or 0 of 1."""
    if TorchElasticEnvironment.detect():
        environment = TorchElasticEnvironment()
        return environment.global_rank(), environment.world_size()
    return 0, 1


def make_trainer(
    learner: Learner, folder: Path, device: torch.device, world: int, watchers: Sequence[pl.Callback], *, shows: bool
) -> pl.Trainer:
    """A trainer that runs all steps of the learner and saves checkpoints in `folder`.

    Args:
        device: the backbone's.
        world: number of processes that learn together.
        watchers: callbacks; they run before checkpoints are saved.
        shows: whether a bar is drawn where stderr is a terminal.
    """
    on_gpu, shows = device.type == "cuda", shows and sys.stderr.isatty()
    # On CPUs Lightning asks for one device a process, whatever the nodes.
    devices = min(torch.cuda.device_count(), world) if on_gpu else world
    saver = ModelCheckpoint(
        dirpath=folder,
        filename=CHECKPOINT.removesuffix(".ckpt"),
        every_n_train_steps=min(learner.config.checkpoint_steps, learner.total_steps),
        save_top_k=1,
        enable_version_counter=False,
        save_on_train_epoch_end=False,
    )
    return pl.Trainer(
        accelerator="gpu" if on_gpu else "cpu",
        devices=[device.index or 0] if on_gpu and world == 1 else devices,
        num_nodes=world // devices,
        # Every process keeps its own buffers: the queue is of its rows; the norms synchronise themselves on GPUs.
        strategy=DDPStrategy(broadcast_buffers=False) if world > 1 else "auto",
        precision=learner.config.precision,  # type: ignore[arg-type] # `Config` takes no other than Lightning's names
        max_steps=learner.total_steps,
        max_epochs=1,
        use_distributed_sampler=False,
        plugins=[WholeCheckpoints()],
        callbacks=[
            *watchers,
            *([RichProgressBar(console_kwargs={"stderr": True})] if shows else []),
            saver,
        ],
        logger=False,
        enable_model_summary=False,
        enable_progress_bar=shows,
        benchmark=False,
    )


def run_trainer(
    trainer: pl.Trainer,
    learner: Learner,
    loader: StepLoader,
    checkpoint: Path | None,
    last: Path,
    at_end: Callable[[], None] | None,
    stop: StopCleanly,
) -> None:
    """Take all steps that are left, and leave the learner on the CPU.

    Args:
        checkpoint: where to go on from; None begins anew.
        last: where the checkpoint of the run's end is kept: what goes on from this run reads it.
        at_end: called after the last step; it may change the learner, which is then saved once more.
        stop: one of the trainer's callbacks.

    Raises:
        Stopped: ctrl-C or SIGTERM; a checkpoint was written.
    """
    try:
        trainer.fit(learner, loader, ckpt_path=checkpoint, weights_only=True)
        if at_end is not None:
            at_end()
        if at_end is not None or learner.total_steps % learner.config.checkpoint_steps:
            trainer.save_checkpoint(last)
    except SystemExit as stopped:  # Lightning turns ctrl-C into exit code 1
        raise stop.stopped() from stopped
    finally:
        # Lightning moved the model; what follows (export) reads it on the CPU.
        learner.cpu()

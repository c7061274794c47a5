"""Choose where several runs run: in processes of this machine, or as tasks of a Ray cluster."""

from __future__ import annotations

from functools import partial

from smn_core.errors import InvalidArgument
from training.several import processes
from training.several.jobs import FanOut


def choose_fan_out(
    on: str, n_processes: int, threads: int, cpus: float, gpus: float, retries: int, n_runs: int, device: str
) -> FanOut:
    """A function that does jobs as the options of a command ask for.

    Args:
        on: "" for processes, or `ray`, or `ray=ADDRESS`.
        n_processes: how many at once; 0: one for each core or GPU, and no more than `n_runs`.
        threads: torch's threads of each run; 0 divides the cores.
        cpus, gpus: what a task of Ray asks for.
        retries: how often a run goes on after its process or worker died.
        device: where the runs compute, as `--device` has it.

    Raises:
        InvalidArgument: `on` is something else, or Ray is not installed.
    """
    where, _, address = on.partition("=")
    if where == "ray":
        from training.several.on_ray import Cluster, work_on_ray  # needs Ray, which few have

        return partial(work_on_ray, cluster=Cluster(address, cpus, gpus, retries), threads=threads)
    if on:
        raise InvalidArgument(f"--on {on}: there is ray, or ray=ADDRESS")
    n_processes = n_processes or processes.choose_processes(n_runs, device)
    return partial(processes.work_in_processes, processes=n_processes, threads=threads, retries=retries)

"""Build a cascade: cluster the root's embeddings, train an expert for each cluster, fit the fusion, write the folder.

DIR/root.smn  expert-1.smn ...  expert-1.run/ ...  cascade.safetensors  clusters.png  README.md
DIR/plan.json       what must be equal when the cascade is resumed
DIR/embeddings/     through every mask; `smn evaluate` reads them too, and they may be deleted
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from numpy import ndarray

from smn_core.backbone import load_backbone
from smn_core.cascade.cascade import Cascade
from smn_core.cascade.file import FILE_NAME, mask_names, write_cascade
from smn_core.cascade.fusion import CONDITIONAL, MODES, UNCONDITIONAL
from smn_core.cascade.router import reduce, route
from smn_core.engine import Engine
from smn_core.errors import InvalidArgument, InvalidData
from smn_core.files import write_bytes
from smn_core.imageset import ImageSet
from smn_core.mask import TaskMask
from smn_core.maskfile import read_mask
from smn_core.parents import beside, parent_path
from smn_core.spec import BackboneSpec
from smn_core.verbs.recorded import run_folder
from smn_core.verbs.stderr import count_others, name_unreadable
from training.cascade.clusters import Clusters, cluster, measure_purity
from training.cascade.fusion import FusionChoice, fit, inputs
from training.checkpoints import is_finished
from training.config import Config
from training.data import name_data, open_split, others_among
from training.features import EMBEDDINGS, Cache, Features
from training.identity import identify
from training.plan import PLAN, require_same
from training.plots import draw_clusters
from training.progress import Bar, Tell, stopping_midway
from training.request import Request
from training.several.jobs import FanOut, Job, sum_steps
from training.several.processes import work_here


@dataclass(frozen=True)
class CascadeRequest:
    """What a user asks of `smn cascade`.

    `config` is that of the experts, unused without any. `split` is the part of the data, `clusters` how it is divided
    among the experts.
    """

    spec: BackboneSpec
    data: str
    root: Path
    config: Config | None
    out: Path
    experts: int = 5
    clusters: str = "mixture"
    fusion: FusionChoice = field(default_factory=FusionChoice)
    modes: Sequence[str] = MODES
    mode: str = UNCONDITIONAL
    split: str = "train"
    seed: int = 0
    resume: bool = False
    overwrite: bool = False
    workers: int = 0
    fan_out: FanOut = work_here
    batch_size: int = 32
    command: Sequence[str] = ()


@dataclass(frozen=True)
class CascadeResult:
    """What was written, with the sizes of the clusters. `purity` is None without labels or experts.

    `unreadable` says why each of the images that were left out cannot be read.
    """

    cascade: Cascade
    sizes: list[int]
    purity: dict[str, Any] | None
    bytes: dict[str, int]
    unreadable: tuple[str, ...]


def build(request: CascadeRequest, bar: Bar, say: Tell) -> CascadeResult:
    """Build the cascade, or go on with one. Finished experts and embeddings are kept.

    Raises:
        SMNError: something cannot work; most of that is found before the first step of training.
        StoppedMidway: a signal; every expert that had begun wrote a checkpoint.
    """
    root = read_mask(request.root)
    images = open_split(request.data, request.split)
    _check(request, images)
    count_others(others_among(images), say=say)
    _prepare_folder(request, root, images)
    with stopping_midway():
        return _build(request, root, images, bar, say)


def _build(request: CascadeRequest, root: TaskMask, images: ImageSet, bar: Bar, say: Tell) -> CascadeResult:
    engine = Engine(load_backbone(request.spec), slots=1)
    cache, n = Cache([request.out / EMBEDDINGS]), len(images.names)

    def embed(name: str, mask: TaskMask) -> Features:
        for warning in engine.prepare(mask):
            say(f"warning: {name}: {warning}")
        with bar(f"embedding through {name}", n) as on_batch:
            return cache.embed(engine, mask.digest, images, request.batch_size, on_batch)

    found = embed("root", root)
    name_unreadable(found.skipped, say=say)
    _require_enough(request, len(found.z), engine.backbone.n_features)
    clusters = _cluster(request, found) if request.experts else None
    if request.root.resolve() != (request.out / "root.smn").resolve():
        shutil.copyfile(request.root, request.out / "root.smn")
        if root.parent is not None and (parent := beside(request.root)(root.parent)) is not None:
            write_bytes(parent_path(request.out / "root.smn"), parent)
    if clusters is not None:
        _train_experts(request, clusters, found, bar)
    experts = [read_mask(_expert(request, j), engine.backbone.layout) for j in range(request.experts)]
    parts = [found.z]
    for number, expert in enumerate(experts, 1):
        parts.append(embed(f"expert {number}", expert).z)
        engine.release(str(expert.digest))
    cascade = _fuse(request, root, experts, clusters, parts)
    return _finish(request, cascade, clusters, found)


def _check(request: CascadeRequest, images: ImageSet) -> None:
    if unknown := [mode for mode in request.modes if mode not in MODES]:
        raise InvalidArgument(f"unknown mode {unknown[0]!r}: choose {', '.join(MODES)}")
    if not request.experts and CONDITIONAL in (*request.modes, request.mode):
        raise InvalidArgument("without experts there is no conditional mode: say --modes unconditional")
    if request.mode not in request.modes:
        raise InvalidArgument(f"--mode {request.mode} is not among --modes {','.join(request.modes)}")
    if request.config is not None and not request.config.learns_mask:
        raise InvalidArgument(f"{request.root} comes from objective {request.config.objective}, which learns no mask")
    if len(images.names) < 2:
        raise InvalidData(f"{request.data} has {len(images.names)} images: nothing to split or fit")


def _prepare_folder(request: CascadeRequest, root: TaskMask, images: ImageSet) -> None:
    """Make the folder. A folder that exists must have an equal plan, or `overwrite` must be set."""
    plan = {
        "root": root.digest,
        "images": identify(images),
        "experts": request.experts,
        "split": request.clusters,
        "seed": request.seed,
        "recipe": asdict(request.config) if request.config is not None else None,
    }
    plan = json.loads(json.dumps(plan))
    path = request.out / PLAN
    if path.exists() and request.resume:
        require_same(path, plan, request.out)
        return
    # A start that found its clusters too small leaves these and nothing else.
    begun = request.out.is_dir() and {p.name for p in request.out.iterdir()} - {
        PLAN,
        EMBEDDINGS,
        "root.smn",
        "root.run",
    }
    if begun and not request.overwrite:
        raise InvalidArgument(f"{request.out} is not empty: continue it with --resume, or say --overwrite")
    try:
        request.out.mkdir(exist_ok=True)
    except OSError as error:
        raise InvalidArgument(f"cannot make {request.out}: {error.strerror}") from error
    (request.out / FILE_NAME).unlink(missing_ok=True)
    for old in request.out.glob("expert-*.smn"):
        old.unlink()
        shutil.rmtree(run_folder(old), ignore_errors=True)
    for old in request.out.glob("expert-*.run"):
        shutil.rmtree(old)
    write_bytes(path, json.dumps(plan, indent=1).encode())


def _require_enough(request: CascadeRequest, n_images: int, n_features: int) -> None:
    """Fewer images than components, or fewer features, is known before the experts are trained."""
    wanted = request.fusion.components or n_features
    if request.fusion.has_components and n_images <= wanted:
        raise InvalidData(
            f"{n_images} images are too few for a fusion of {wanted} components: take fewer, as in --fusion "
            f"{request.fusion.kind}:{max(1, n_images // 2)}"
        )
    n_concatenated = n_features * (request.experts + 1)
    if request.fusion.has_components and wanted > n_concatenated:
        raise InvalidArgument(
            f"--fusion {request.fusion.name}: {wanted} components of {n_concatenated} features: there are not so many"
        )


def _cluster(request: CascadeRequest, found: Features) -> Clusters:
    clusters = cluster(found.z, request.experts, request.clusters, request.seed)
    assert request.config is not None
    smallest = min(clusters.sizes)
    if smallest < request.config.batch_size:
        raise InvalidData(
            f"clusters of {clusters.sizes} images: one does not fill a batch of {request.config.batch_size}; take "
            f"--set batch_size={smallest}, fewer --experts, or another --seed"
        )
    return clusters


def _expert(request: CascadeRequest, j: int) -> Path:
    return request.out / f"expert-{j + 1}.smn"


def _train_experts(request: CascadeRequest, clusters: Clusters, found: Features, bar: Bar) -> None:
    assert request.config is not None
    jobs, done, total = [], 0, 0
    for j in range(request.experts):
        only = tuple(int(i) for i in found.kept[clusters.of_each == j])
        steps = request.config.total_steps(len(only))
        total += steps
        out = _expert(request, j)
        if is_finished(out):
            done += steps
            continue
        expert = Request(
            request.spec, request.data, request.config, out, split=request.split, seed=request.seed + j,
            resume=True, workers=request.workers, command=request.command, start=request.root, only=only,
        )  # fmt: skip
        jobs.append(Job(expert))
    sizes = ", ".join(map(str, clusters.sizes))
    with bar(f"steps of experts on {sizes} images", total) as advance:
        advance(done)
        request.fan_out(jobs, sum_steps(advance))


def _fuse(
    request: CascadeRequest,
    root: TaskMask,
    experts: Sequence[TaskMask],
    clusters: Clusters | None,
    parts: Sequence[ndarray],
) -> Cascade:
    router = clusters.router if clusters is not None else None
    routed = route(router, parts[0]) if router is not None else None  # not the random control's clusters
    fusion = fit(request.fusion, inputs(parts, routed, request.modes), len(parts))
    cascade = Cascade(
        fingerprint=root.fingerprint,
        root=str(root.digest),
        experts=tuple(str(expert.digest) for expert in experts),
        fusion=fusion,
        mode=request.mode,
        router=router if CONDITIONAL in request.modes else None,
        metadata={"dataset": name_data(request.data), "split": request.clusters, "split_seed": str(request.seed)},
    )
    return write_cascade(cascade, request.out / FILE_NAME)


def _finish(request: CascadeRequest, cascade: Cascade, clusters: Clusters | None, found: Features) -> CascadeResult:
    pure = None
    if clusters is not None:
        if found.labels is not None:
            pure = measure_purity(clusters.of_each, found.labels, request.experts)
        title = f"{name_data(request.data)}: {request.clusters} split"
        u = reduce(clusters.router, found.z)
        draw_clusters(u, clusters.of_each, request.experts, request.out / "clusters.png", title)
    files = [*mask_names(1 + request.experts), FILE_NAME]
    sizes = {name: (request.out / name).stat().st_size for name in files}
    result = CascadeResult(cascade, clusters.sizes if clusters is not None else [], pure, sizes, tuple(found.skipped))
    write_bytes(request.out / "README.md", _format_readme(request, result).encode(errors="backslashreplace"))
    return result


def _format_readme(request: CascadeRequest, result: CascadeResult) -> str:
    lines = [f"# {request.out.name}", "", "```sh", shlex.join(request.command), "```", ""]
    facts = {
        "root": f"{request.root}, {result.cascade.root}",
        "data": f"{request.data}, split {request.split}",
        "experts": f"{request.experts}, {request.clusters} split, seed {request.seed}",
        "fusion": f"{request.fusion.name}, modes {', '.join(result.cascade.modes)}, default {result.cascade.mode}",
        "fingerprint": result.cascade.fingerprint,
        "digest": result.cascade.digest,
        "bytes": f"{sum(result.bytes.values()):,}",
    }
    lines += [f"- {key}: {value}" for key, value in facts.items()]
    if result.sizes:
        lines += ["", "| cluster | images | purity |", "|---|---|---|"]
        pure = result.purity["clusters"] if result.purity else [None] * len(result.sizes)
        for j, (size, share) in enumerate(zip(result.sizes, pure, strict=True), 1):
            lines.append(f"| {j} | {size} | {'' if share is None else f'{share:.3f}'} |")
        if result.purity:
            lines += ["", f"Purity over all: {result.purity['all']:.3f}. Picture: clusters.png."]
    lines += ["", "| file | bytes |", "|---|---|", *(f"| {n} | {s:,} |" for n, s in result.bytes.items()), ""]
    return "\n".join(lines)

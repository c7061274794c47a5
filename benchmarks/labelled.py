"""Are the labels that a server answers those of scikit-learn, and as right as the published probe's?

    python -m benchmarks.labelled --data SET [--mask FILE.smn] --weights W [--out FILE.jsonl]

`smn probe` fits a classifier on the train split and writes it into a mask; a `smn serve` of its own answers /embed and
/classify for every image of the test split. Against that stand scikit-learn's classifier of the same strength, fitted
on the train split's embeddings and asked for the vectors that /embed gave, image by image, and the linear probe of
docs/method.md, "Evaluation protocol", on the same embeddings.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy import ndarray
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from benchmarks.redis_server import free_port
from benchmarks.rows import row
from benchmarks.server import process
from service.client import Client
from smn_core.backbone import load_backbone
from smn_core.engine import Engine
from smn_core.errors import InvalidArgument
from smn_core.imageset import FolderSet
from smn_core.maskfile import read_mask
from smn_core.spec import BackboneSpec
from smn_core.verbs.options import as_trained, model_options
from training.data import open_labelled, open_split
from training.evaluation import probes
from training.features import embed
from training.labels import renumber_classes
from training.probe.fit import MOST_ITERATIONS
from training.probe.probe import probe_mask
from training.progress import count

BATCH, NAME = 32, "labelled"


def main(
    spec: BackboneSpec,
    data: Annotated[str, typer.Option(help="labelled images, a folder with a train and a test split")],
    mask: Annotated[Path | None, typer.Option(help="the mask; without it the frozen backbone")] = None,
    out: Annotated[Path | None, typer.Option(help="append the rows to this file too")] = None,
) -> None:
    """Print the rows."""
    torch.set_num_threads(1)
    known, asked = open_labelled(data), open_split(data, "test")
    truth = renumber_classes(known, asked).labels
    if not isinstance(asked, FolderSet) or truth is None:
        raise InvalidArgument(f"{data} is no folder with labelled images in test/")
    with tempfile.TemporaryDirectory() as text:
        file = Path(text) / f"{NAME}.smn"
        made = probe_mask(spec, known, mask, file, data, batch_size=BATCH, seed=0, bar=count)
        engine = Engine(load_backbone(as_trained(spec, read_mask(file), file)), slots=1)
        engine.prepare(made.mask)
        with count("embedding again", len(known.names)) as on_batch:
            train = embed(engine, made.mask.digest, known, BATCH, on_batch)
        assert train.labels is not None
        paths = [asked.root / name for name in asked.names]
        z, labels = ask(spec, file, paths)
    scaler = StandardScaler().fit(train.z.astype(np.float64))
    model = LogisticRegression(C=made.fitted.strength, max_iter=MOST_ITERATIONS)
    model.fit(scaler.transform(train.z.astype(np.float64)), train.labels)
    theirs = model.predict(scaler.transform(z.astype(np.float64)))
    ours = np.array([list(known.classes).index(label) for label in labels])
    protocol = probes.linear(train.z, train.labels, z)
    params = {
        "data": Path(data).name,
        "mask": mask.stem if mask is not None else "frozen",
        "off": made.mask.n_off,
        "fitted on": len(train.z),
        "asked for": len(z),
        "C": made.fitted.strength,
        "held-out accuracy told": round(made.fitted.accuracy, 4),
    }
    row(
        "labels", "served", params, "labels other than scikit-learn's", "images", [int((ours != theirs).sum())], out=out
    )
    for variant, found in (("served", ours), ("scikit-learn", theirs), ("published protocol", protocol)):
        row("labels", variant, params, "accuracy", "1", [float((found == truth).mean())], out=out)


def ask(spec: BackboneSpec, file: Path, paths: list[Path]) -> tuple[ndarray, list[str]]:
    """Vectors and labels of images by a server of the backbone and the mask."""
    port, folder = free_port(), file.parent
    words: list[str | Path] = [Path(sys.executable).parent / "smn", "serve", file, "--registry", folder / "registry"]
    words += ["--port", str(port), "--threads", "1", "--device", "cpu"]
    words += ["--weights", spec.weights] if spec.weights is not None else []
    with process(words, port, "/readyz", folder / "smn.log") as server, Client(server.url, timeout_s=300) as client:
        z = client.embed(paths, NAME, progress=True).embeddings
        return z, [each.label for each in client.classify(paths, NAME, top=1, progress=True).data]


if __name__ == "__main__":
    typer.run(model_options(main))

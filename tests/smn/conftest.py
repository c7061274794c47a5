"""A tiny backbone, masks of it with a classifier and without, and a real `smn serve` of the same."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "service"))

from served import SIZE_PX, ServerProcess, Theta, photo

import smn
from smn_core.mask import Head
from smn_core.maskfile import parse_mask, write_mask

CLASSES = ("daisy", "rose", "tulip")


@dataclass(frozen=True)
class World:
    """Masks flowers.smn, with a classifier, and other.smn; the words that name the backbone; photos of two classes."""

    folder: Path
    theta: Theta
    photos: Path
    url: str

    @property
    def weights(self) -> Path:
        return self.folder / "theta.safetensors"

    @property
    def model(self) -> list[str]:
        return self.theta.save(self.folder)

    def embedder(self, **more) -> "smn.Embedder":
        return smn.Embedder(
            self.theta.name,
            weights=self.weights,
            model_args=self.theta.args,
            image_size=SIZE_PX,
            **{"device": "cpu", "masks": self.folder, **more},
        )


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    folder, theta = tmp_path_factory.mktemp("world"), Theta()
    flags = theta.save(folder)
    layout = theta.backbone().layout
    rng = np.random.default_rng(5)
    head = Head(rng.standard_normal((3, 8)).astype(np.float32), rng.standard_normal(3).astype(np.float32), CLASSES)
    write_mask(replace(parse_mask(theta.mask(51).data, layout), head=head, digest=None), folder / "flowers.smn")
    (folder / "other.smn").write_bytes(theta.mask(52).data)
    for i in range(20):
        place = folder / "photos" / ("bright" if i % 2 else "dark") / f"{i:02}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(photo(i))
    arguments = [*flags, "--registry", folder / "registry", "--slots", "4", "--max-images", "6"]
    with ServerProcess(arguments, folder) as server:
        with smn.Client(server.url) as client:
            client.push("flowers", folder / "flowers.smn")
            client.push("other", folder / "other.smn")
        yield World(folder, theta, folder / "photos", server.url)


@pytest.fixture
def run(capsys, monkeypatch):
    """`smn.main()` in this process: exit code, stdout, stderr."""

    def ran(*arguments):
        monkeypatch.setattr(sys, "argv", ["smn", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            smn.main()
        except SystemExit as stopped:
            code = stopped.code or 0
        return code, *capsys.readouterr()

    return ran

"""What `smn bench paper` is asked, and the runs of learning that follow from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from smn_core.errors import InvalidArgument
from smn_core.maskfile import read_mask
from smn_core.spec import BackboneSpec
from smn_core.verbs.options import as_trained
from training.cascade.build import CascadeRequest
from training.cascade.fusion import FusionChoice
from training.config import Config, override
from training.recipes import find_recipe
from training.request import Request, make_request
from training.starts import read_config

ROOT, SUPERVISED, FINETUNE, FEW, EXPERTS = "root", "supervised", "finetune", "few", "experts"
PARTS = (ROOT, SUPERVISED, FINETUNE, FEW, EXPERTS)
"""What `--setting PART.NAME=VALUE` may name. `few` are the runs with few labels, of both kinds."""
SKIPPABLE = (SUPERVISED, FINETUNE, FEW, EXPERTS)
CLUSTERS = ("mixture", "random")


@dataclass(frozen=True)
class Recipes:
    """Names of the recipes of the mask without labels, the supervised mask, and full fine-tuning."""

    root: str
    supervised: str
    finetune: str


PRESETS = {
    "resnet": Recipes("resnet50-swav", "resnet-supervised", "resnet-finetune"),
    "": Recipes("small-vit", "small-vit-supervised", "small-vit-finetune"),
}
"""By the beginning of the backbone's name: the paper's way for ResNets, the small one for others."""


@dataclass(frozen=True)
class Wanted:
    """A table of one set of images.

    `settings` change recipes, by part. `labels` are amounts of few labels, each a number for every class or a fraction,
    drawn `seeds` times. `skip` are parts that are left out. `foreign` is a mask learned on other images.
    """

    spec: BackboneSpec
    data: str
    out: Path
    recipes: Recipes
    settings: Mapping[str, Sequence[str]]
    labels: Sequence[float]
    seeds: int = 5
    seed: int = 0
    experts: int = 5
    fusion: FusionChoice = field(default_factory=FusionChoice)
    foreign: Path | None = None
    skip: frozenset[str] = frozenset()
    workers: int = 1
    batch_size: int = 32
    command: Sequence[str] = ()

    def root(self) -> Request:
        return self._request(ROOT, self.recipes.root, "root.smn")

    def with_all_labels(self) -> list[Request]:
        """The supervised mask and full fine-tuning, where they are not skipped."""
        made = {
            SUPERVISED: (self.recipes.supervised, "supervised.smn"),
            FINETUNE: (self.recipes.finetune, "finetune.safetensors"),
        }
        return [self._request(part, *made[part]) for part in made if part not in self.skip]

    def with_few_labels(self) -> list[Request]:
        """The same two on every draw of few labels, each kind with its own part's settings and those of `few`."""
        if FEW in self.skip:
            return []
        return [
            self._request(part, recipe, f"few/{name_few(part, amount, seed)}{suffix}", amount, seed)
            for amount in self.labels
            for seed in range(self.seeds)
            for part, recipe, suffix in (
                (SUPERVISED, self.recipes.supervised, ".smn"),
                (FINETUNE, self.recipes.finetune, ".safetensors"),
            )
            if part not in self.skip
        ]

    def runs(self) -> list[Request]:
        return [self.root(), *self.with_all_labels(), *self.with_few_labels()]

    def expert_config(self, root: Config) -> Config:
        """The recipe of the experts, from that of the root: its head is trained already."""
        return override(replace(root, head_steps=0), list(self.settings.get(EXPERTS, ())))

    def cascade(self, clusters: str) -> CascadeRequest:
        """The request of a cascade, once its root is learned."""
        root = self.out / "root.smn"
        return CascadeRequest(
            as_trained(self.spec, read_mask(root), root), self.data, root, self.expert_config(read_config(root)),
            self.cascade_folder(clusters), experts=self.experts, clusters=clusters,
            fusion=self.fusion, seed=self.seed, resume=True,
            workers=self.workers, batch_size=self.batch_size, command=self.command,
        )  # fmt: skip

    def cascade_folder(self, clusters: str) -> Path:
        return self.out / f"cascade-{clusters}"

    def as_plan(self) -> dict[str, Any]:
        """What must be equal when the work is gone on with."""
        settings = {part: list(texts) for part, texts in self.settings.items()}
        return {"recipes": vars(self.recipes), "settings": settings, "seed": self.seed, "experts": self.experts}

    def _request(
        self, part: str, recipe: str, file: str, amount: float | None = None, seed: int | None = None
    ) -> Request:
        texts = [*self.settings.get(part, ()), *(self.settings.get(FEW, ()) if amount is not None else ())]
        return make_request(
            self.spec, self.data, self.out / file, objective="", recipe=recipe, epochs=None,
            labels=str(amount) if amount is not None else None, seed=self.seed if seed is None else seed, split="train",
            stages="", share=None, density=None, setting=texts, workers=self.workers, resume=True, overwrite=False,
            command=self.command,
        )  # fmt: skip


def name_few(part: str, amount: float, seed: int) -> str:
    """The name of a run on a draw of few labels."""
    return f"{part}-{amount:g}-{seed}"


def choose_recipes(backbone: str, root: str = "", supervised: str = "", finetune: str = "") -> Recipes:
    """The preset that goes with a backbone, with the recipes that were named in its place.

    Raises:
        InvalidArgument: there is none of a name, or it learns something else.
    """
    preset = next(recipes for begin, recipes in PRESETS.items() if backbone.startswith(begin))
    chosen = Recipes(root or preset.root, supervised or preset.supervised, finetune or preset.finetune)
    for name, objective in ((chosen.root, "swav"), (chosen.supervised, "supervised"), (chosen.finetune, "finetune")):
        if (found := find_recipe(name)).objective != objective:
            raise InvalidArgument(f"recipe {name} has the objective {found.objective}, and {objective} is wanted there")
    return chosen


def parse_settings(texts: Sequence[str]) -> dict[str, list[str]]:
    """`["root.steps=100", "few.steps=40"]` -> `{"root": ["steps=100"], "few": ["steps=40"]}`.

    Raises:
        InvalidArgument: no such part.
    """
    found: dict[str, list[str]] = {}
    for text in texts:
        part, point, rest = text.partition(".")
        if part not in PARTS or not point or "=" not in rest:
            raise InvalidArgument(f"--setting {text!r}: write PART.NAME=VALUE, where PART is one of {', '.join(PARTS)}")
        found.setdefault(part, []).append(rest)
    return found


def parse_skip(text: str) -> frozenset[str]:
    """Names of parts, with commas.

    Raises:
        InvalidArgument: no such part, or one that everything else needs.
    """
    named = frozenset(part for part in text.split(",") if part)
    if unknown := sorted(named - set(SKIPPABLE)):
        raise InvalidArgument(f"--skip {unknown[0]!r}: choose {', '.join(SKIPPABLE)}")
    return named

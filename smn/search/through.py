"""What photos and queries go through: a mask or a cascade in this process, or through a server. Both answer in rows."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smn.search.about import About
from smn_core.errors import InvalidArgument, InvalidData
from smn_core.spec import BackboneSpec

if TYPE_CHECKING:
    from smn_core.answers import Row

KINDS = {"name": str, "weights": str, "args": dict, "image_size": int, "mean": list, "std": list, "crop_pct": float}
"""Fields of a spec that a collection remembers, as JSON has them: all that decide its space."""
ROOT = "root"


@dataclass(frozen=True)
class Chosen:
    """The words of a user: a mask or a cascade, as a file or as its name on a server, or neither."""

    mask: str | None = None
    cascade: str | None = None
    mode: str | None = None
    server: str | None = None

    def check(self) -> None:
        """Raise InvalidArgument where the words exclude each other."""
        if self.mask is not None and self.cascade is not None:
            raise InvalidArgument("--mask and --cascade: give one of them")
        if self.mode is not None and self.cascade is None:
            raise InvalidArgument("--mode is for a --cascade")

    def as_json(self) -> dict[str, str | None]:
        """As a collection remembers them: files by their absolute path."""
        names = {"mask": self.mask, "cascade": self.cascade}
        if self.server is None:
            names = {key: str(Path(value).resolve()) if value else None for key, value in names.items()}
        return {**names, "mode": self.mode, "server": self.server}


@dataclass(frozen=True)
class Through:
    """Where vectors come from.

    Args:
        space: of the vectors; model, fingerprint: of the backbone.
        backbone: what a collection remembers of it.
        embed: yields a row an image, in order; an image that cannot be read has an error instead of a vector.
    """

    space: str
    model: str
    fingerprint: str
    backbone: Mapping[str, Any]
    embed: Callable[[Iterable[Path]], Generator[Row, None, None]]

    def check_same(self, about: About, where: str) -> None:
        """Raise OtherSpace unless its vectors may be compared with those of a collection."""
        about.check_same(where, self.space, self.fingerprint)


@contextmanager
def open_through(
    spec: BackboneSpec,
    chosen: Chosen,
    *,
    key: str | None = None,
    batch_size: int = 32,
    workers: int = 2,
    in_flight: int = 4,
) -> Iterator[Through]:
    """Load what was chosen, or ask the server about it.

    Raises:
        InvalidMask, WrongBackbone, InvalidCascade, WeightsUnavailable: it cannot be loaded.
        ServerError, ServerAway: as the client.
    """
    chosen.check()
    if chosen.server is None:
        yield _here(spec, chosen, batch_size, workers)
        return
    from service.client import Client
    from service.settings import secret

    with Client(chosen.server, secret(key), in_flight=in_flight) as client:
        space, told = client.space(chosen.mask, cascade=chosen.cascade, mode=chosen.mode), client.info()

        def embed(paths: Iterable[Path]) -> Generator[Row, None, None]:
            return client.embed_each(
                paths, chosen.mask, cascade=chosen.cascade, mode=chosen.mode, space=space, strict=False
            )

        yield Through(space, str(told["model"]), str(told["fingerprint"]), {}, embed)


def _here(spec: BackboneSpec, chosen: Chosen, batch_size: int, workers: int) -> Through:
    from smn.embedder import Embedder
    from smn_core.verbs.options import as_trained

    spec = as_trained(spec, *_root_of(chosen))
    embedder = Embedder(
        spec.name,
        spec.weights,
        device=spec.device,
        model_args=spec.args,
        image_size=spec.image_size,
        mean=spec.mean,
        std=spec.std,
        crop_pct=spec.crop_pct,
        dtype=spec.dtype,
        batch_size=batch_size,
        workers=workers,
    )
    space = embedder.space(chosen.mask, cascade=chosen.cascade, mode=chosen.mode)

    def embed(paths: Iterable[Path]) -> Generator[Row, None, None]:
        return embedder.embed_each(
            paths, chosen.mask, cascade=chosen.cascade, mode=chosen.mode, space=space, strict=False
        )

    backbone = embedder.backbone
    return Through(space, backbone.architecture, backbone.fingerprint, _remembered(spec), embed)


def _root_of(chosen: Chosen) -> tuple[Any, Path | None]:
    """The mask that says which backbone it is for, and its file; of a cascade its root. None for the backbone alone."""
    if chosen.cascade is not None:
        from smn_core.cascade.file import open_folder

        found = open_folder(Path(chosen.cascade))
        return found.masks()[0], found.files[0]
    if chosen.mask is None:
        return None, None
    from smn_core.maskfile import read_mask

    return read_mask(Path(chosen.mask)), Path(chosen.mask)


def _remembered(spec: BackboneSpec) -> dict[str, Any]:
    said = {name: getattr(spec, name) for name in KINDS}
    return said | {"weights": str(spec.weights.resolve()) if spec.weights is not None else None}


def as_indexed(spec: BackboneSpec, chosen: Chosen, about: About, where: str) -> tuple[BackboneSpec, Chosen]:
    """What a search goes through: as said now, and what is not said as when the collection was made.

    A server is never taken from a collection, for it would be sent the query and the key.

    Raises:
        InvalidArgument: the collection was made through a server and none is named now, or the other way round and
            no mask is named.
    """
    made = Chosen(**{name: about.through.get(name) for name in ("mask", "cascade", "mode", "server")})
    if chosen.mask is None and chosen.cascade is None:
        if (made.server is None) != (chosen.server is None):
            if made.server is not None:
                raise InvalidArgument(f"{where} was made through the server {made.server}: say --server or --mask FILE")
            if made.mask is not None or made.cascade is not None:
                raise InvalidArgument(f"{where} was made without a server: say which --mask of this server it was")
        chosen = replace(chosen, mask=made.mask, cascade=made.cascade, mode=chosen.mode or made.mode)
    if chosen.mask == ROOT:
        chosen = replace(chosen, mask=None)
    if chosen.server is not None:
        return spec, chosen
    plain = BackboneSpec("")
    kept = {name: about.backbone[name] for name in KINDS if about.backbone.get(name) is not None}
    sound = all(isinstance(value, KINDS[name]) for name, value in kept.items())
    if not sound or not all(isinstance(n, float) for name in ("mean", "std") for n in kept.get(name, ())):
        raise InvalidData(f"{where} is damaged: it names a backbone that cannot be read")
    left = {
        name: value
        for name, value in kept.items()
        if getattr(spec, name) == getattr(plain, name) or name in spec.by_variable
    }
    if "weights" in left:
        left["weights"] = Path(left["weights"])
    for name in ("mean", "std"):
        if name in left:
            left[name] = tuple(left[name])
    if "weights" in left and not left["weights"].is_file():
        del left["weights"]
    return replace(spec, **left), chosen

"""What `smn serve FILE.smn` and `--masks-from` serve: the backbone as masks say it, masks under their files' names.

Masks go into the registry before the server starts, so that this form and `smn push` end alike.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.hub import HubAddress, parse_address, pull_mask
from service.registry.base import Hold, Registry
from service.settings import Settings
from smn_core.backbone import Backbone
from smn_core.errors import InvalidArgument, MissingParent, WrongBackbone
from smn_core.mask import TaskMask
from smn_core.maskfile import check_fits, parse_mask, read_file, with_bits
from smn_core.names import check_name
from smn_core.parents import beside
from smn_core.vectors import vectors_of_mask
from smn_core.verbs.options import OPTIONS, as_trained, spec_of
from smn_core.verbs.recorded import missing_weights, read_weights


@dataclass(frozen=True)
class Offer:
    """A mask, where it stands, and what it is called on the server: its file's name without the suffix."""

    name: str
    path: Path
    data: bytes
    mask: TaskMask


def read_offers(files: Sequence[Path], addresses: Sequence[str] = ()) -> list[Offer]:
    """Read and check the masks that one server can serve together: files, and what stands at addresses of the Hub.

    Raises:
        InvalidArgument: a file's name cannot be a mask's, two are alike, or the masks are for different backbones.
        InvalidMask, UnknownModel: as `read_file`.
        SMNError: as `pull_mask`.
    """
    offers: dict[str, Offer] = {}
    places = [parse_address(address) for address in addresses]
    for path in files:
        if path.is_dir():
            raise InvalidArgument(f"{path} is a folder: serve takes mask files; a cascade goes in with smn push")
        try:
            check_name(path.stem)
        except InvalidArgument as error:
            raise InvalidArgument(f"{path}: its mask would be called as the file is, but {error}: rename it") from error
        _require_new(path.stem, path, offers)
        _add(Offer(path.stem, path, *read_file(path)), offers)
    for place in places:
        _require_new(place.name, place, offers)
        _add(Offer(place.name, Path(str(place)), *pull_mask(place)), offers)
    return list(offers.values())


def _require_new(name: str, place: Path | HubAddress, offers: Mapping[str, Offer]) -> None:
    if name in offers:
        raise InvalidArgument(f"{offers[name].path} and {place} would have one name: rename one of them")


def _add(offer: Offer, offers: dict[str, Offer]) -> None:
    first = next(iter(offers.values()), offer)
    if offer.mask.fingerprint != first.mask.fingerprint:
        raise InvalidArgument(f"{first.path} and {offer.path} are for different backbones: a server has one")
    offers[offer.name] = offer


def settle(given: Mapping[str, Any], offers: Sequence[Offer], make: Callable[[dict[str, Any]], Settings]) -> Settings:
    """The settings for these masks. A flag goes first, then the mask and its run, then a variable, then the default.

    Args:
        given: what flags said, by the names of settings.
        make: makes settings of values; what is not among them comes from variables or defaults.

    Raises:
        InvalidArgument: a value is out of range, or the weights that the run names are not there any more.
    """
    first = offers[0]
    spec = as_trained(spec_of({option.name: given.get(option.name, option.default) for option in OPTIONS}), first.mask)
    told: dict[str, Any] = {
        "backbone": spec.name,
        "image_size": spec.image_size,
        "mean": _with_commas(spec.mean),
        "std": _with_commas(spec.std),
        "crop_pct": spec.crop_pct,
    }
    told = {name: value for name, value in told.items() if value is not None}
    if "backbone" not in given:
        told["model_arg"] = [f"{key}={json.dumps(value)}" for key, value in spec.args.items()]
    noted = next((found for offer in offers if (found := read_weights(offer.path, offer.mask.fingerprint))), None)
    if noted is not None and noted.exists():
        told["weights"] = noted
    settings = make({**told, **given})
    if noted is not None and settings.spec().weights is None:
        raise InvalidArgument(missing_weights(first.path, noted))
    preloaded = [*settings.preload, *(offer.name for offer in offers if offer.name not in settings.preload)]
    return settings.model_copy(update={"preload": preloaded})


def put_in(registry: Registry, backbone: Backbone, offers: Sequence[Offer]) -> list[str]:
    """Make each mask the current version of its name, unless it is. Returns a line on each, and the masks' warnings.

    Raises:
        InvalidArgument: a mask would be called as the backbone is.
        WrongBackbone: a mask was made for another one; nothing was put in.
    """
    lines = []
    for offer in offers:
        if offer.name == backbone.architecture:
            raise InvalidArgument(f"{offer.path}: {offer.name} is the backbone's own name: rename the file")
        try:
            lines += [f"warning: {offer.path}: {warning}" for warning in check_fits(offer.mask, backbone)]
        except WrongBackbone as error:
            way = "; say --weights FILE" if offer.mask.fingerprint != backbone.fingerprint else ""
            raise WrongBackbone(f"{offer.path}: {error}{way}") from error
    held: dict[str, Hold] = {}
    for offer in sorted(offers, key=lambda offer: offer.mask.parent is not None):
        hold = _hold_parent(registry, backbone, offer, held) if offer.mask.parent is not None else None
        vectors = vectors_of_mask(with_bits(offer.mask, backbone))
        done = registry.publish(
            "masks", offer.name, offer.data, holds=[hold] if hold else [], vectors=vectors, parent=offer.mask.parent
        )
        held[done.version.digest] = Hold(done.version.digest, offer.name, done.version.version)
        state = "is now" if done.created else "is already"
        lines.append(f"{offer.path} {state} {offer.name}@{done.version.version} of the registry")
    return lines


def _hold_parent(registry: Registry, backbone: Backbone, offer: Offer, held: Mapping[str, Hold]) -> Hold:
    """The version that a mask is coded against: one that was put in before it, or the file beside it, put in now."""
    digest = str(offer.mask.parent)
    if digest in held:
        return held[digest]
    data, name = beside(offer.path)(digest), f"{offer.name}.parent"
    if data is None:
        raise MissingParent(f"{offer.path} is coded against {digest}: put that file beside it")
    vectors = vectors_of_mask(with_bits(parse_mask(data, backbone.layout), backbone))
    return Hold(digest, name, registry.publish("masks", name, data, vectors=vectors).version.version)


def _with_commas(numbers: tuple[float, ...] | None) -> str | None:
    return ",".join(map(repr, numbers)) if numbers is not None else None

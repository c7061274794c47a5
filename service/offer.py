"""What `smn serve FILE.smn` and `--masks-from` serve: the backbone as masks say it, masks under their files' names.

Masks go into the registry before the server starts, so that this form and `smn push` end alike.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.hub import is_hub, parse_address, pull_mask
from service.objects import Objects, is_store
from service.registry.base import Hold, Registry
from service.settings import Settings
from smn_core.backbone import Backbone
from smn_core.errors import InvalidArgument, InvalidMask, MissingParent, NotFound, WrongBackbone
from smn_core.mask import TaskMask
from smn_core.maskfile import check_fits, parse_mask, read_file, with_bits
from smn_core.names import check_name
from smn_core.parents import beside
from smn_core.vectors import vectors_of_mask
from smn_core.verbs.options import OPTIONS, as_trained, spec_of
from smn_core.verbs.recorded import missing_weights, read_weights

SUFFIX = ".smn"


@dataclass(frozen=True)
class Offer:
    """A mask, where it stands, and what it is called on the server: its file's name without the suffix.

    `path` is None of one that is not on this machine.
    """

    name: str
    where: str
    data: bytes
    mask: TaskMask
    path: Path | None = None


def read_offers(files: Sequence[Path], addresses: Sequence[str] = ()) -> list[Offer]:
    """Read and check the masks that one server can serve together: files, and what stands on the Hub or in a store.

    Raises:
        InvalidArgument: a file's name cannot be a mask's, two are alike, or the masks are for different backbones.
        InvalidMask, UnknownModel: as `read_file`.
        SMNError: as `pull_mask`, or as `Objects`.
    """
    offers: dict[str, Offer] = {}
    addresses = [part for address in addresses for part in address.split(",") if part]
    for address in addresses:
        _check_address(address)
    for path in files:
        if path.is_dir():
            raise InvalidArgument(f"{path} is a folder: serve takes mask files; a cascade goes in with smn push")
        _check_name(path.stem, path)
        _require_new(path.stem, path, offers)
        data, mask = read_file(path)
        _add(Offer(path.stem, str(path), data, mask, path), offers)
    for address in addresses:
        if is_hub(address):
            place = parse_address(address)
            _require_new(place.name, place, offers)
            _add(Offer(place.name, str(place), *pull_mask(place)), offers)
            continue
        for name, where, data in _files_in(address):
            _require_new(name, where, offers)
            try:
                _add(Offer(name, where, data, parse_mask(data)), offers)
            except InvalidMask as error:
                raise type(error)(f"{where}: {error}") from error
    return list(offers.values())


def _check_address(address: str) -> None:
    if is_hub(address):
        parse_address(address)
    elif not is_store(address):
        raise InvalidArgument(
            f"--masks-from {address!r}: write hf:user/name, or a store's URL, such as s3://bucket/dir"
        )


def _files_in(url: str) -> Iterator[tuple[str, str, bytes]]:
    """Name, place and bytes of each mask at a store's URL: one file, or all *.smn right below it.

    Raises:
        NotFound: there is no mask.
        SMNError: as `Objects`.
    """
    folder, _, file = url.rstrip("/").rpartition("/")
    store = Objects(folder if file.endswith(SUFFIX) else url)
    files = [file] if file.endswith(SUFFIX) else [name for name in store.list() if name.endswith(SUFFIX)]
    if not files:
        raise NotFound(f"{url} has no file *{SUFFIX}: smn mirror brings the masks of a whole registry")
    for name in files:
        where = f"{store.url}/{name}"
        _check_name(name.removesuffix(SUFFIX), where)
        yield name.removesuffix(SUFFIX), where, store.read(name)


def _check_name(name: str, place: object) -> None:
    try:
        check_name(name)
    except InvalidArgument as error:
        raise InvalidArgument(f"{place}: its mask would be called as the file is, but {error}: rename it") from error


def _require_new(name: str, place: object, offers: Mapping[str, Offer]) -> None:
    if name in offers:
        raise InvalidArgument(f"{offers[name].where} and {place} would have one name: rename one of them")


def _add(offer: Offer, offers: dict[str, Offer]) -> None:
    first = next(iter(offers.values()), offer)
    if offer.mask.fingerprint != first.mask.fingerprint:
        raise InvalidArgument(f"{first.where} and {offer.where} are for different backbones: a server has one")
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
    noted = next((found for o in offers if o.path and (found := read_weights(o.path, o.mask.fingerprint))), None)
    if noted is not None and noted.exists():
        told["weights"] = noted
    settings = make({**told, **given})
    if noted is not None and settings.spec().weights is None:
        raise InvalidArgument(missing_weights(first.path or Path(first.where), noted))
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
            raise InvalidArgument(f"{offer.where}: {offer.name} is the backbone's own name: rename the file")
        try:
            lines += [f"warning: {offer.where}: {warning}" for warning in check_fits(offer.mask, backbone)]
        except WrongBackbone as error:
            way = "; say --weights FILE" if offer.mask.fingerprint != backbone.fingerprint else ""
            raise WrongBackbone(f"{offer.where}: {error}{way}") from error
    held: dict[str, Hold] = {}
    for offer in sorted(offers, key=lambda offer: offer.mask.parent is not None):
        hold = _hold_parent(registry, backbone, offer, held) if offer.mask.parent is not None else None
        vectors = vectors_of_mask(with_bits(offer.mask, backbone))
        done = registry.publish(
            "masks", offer.name, offer.data, holds=[hold] if hold else [], vectors=vectors, parent=offer.mask.parent
        )
        held[done.version.digest] = Hold(done.version.digest, offer.name, done.version.version)
        state = "is now" if done.created else "is already"
        lines.append(f"{offer.where} {state} {offer.name}@{done.version.version} of the registry")
    return lines


def _hold_parent(registry: Registry, backbone: Backbone, offer: Offer, held: Mapping[str, Hold]) -> Hold:
    """The version that a mask is coded against: one that was put in before it, or the file beside it, put in now."""
    digest = str(offer.mask.parent)
    if digest in held:
        return held[digest]
    data, name = beside(offer.path)(digest) if offer.path else None, f"{offer.name}.parent"
    if data is None:
        raise MissingParent(f"{offer.where} is coded against {digest}: put that file beside it")
    vectors = vectors_of_mask(with_bits(parse_mask(data, backbone.layout), backbone))
    return Hold(digest, name, registry.publish("masks", name, data, vectors=vectors).version.version)


def _with_commas(numbers: tuple[float, ...] | None) -> str | None:
    return ",".join(map(repr, numbers)) if numbers is not None else None

"""The hub's side of `smn push` and `smn pull`: a file to `hf:user/name` with its card, and back."""

from __future__ import annotations

import re
from pathlib import Path

from service.hub import (
    CASCADE,
    FILE,
    HubAddress,
    is_hub,
    look,
    parse_address,
    pull_cascade,
    pull_mask,
    push_files,
)
from service.settings import secret
from smn_core.cascade.file import mask_names, open_folder
from smn_core.errors import InvalidArgument
from smn_core.files import write_bytes
from smn_core.maskfile import read_file
from smn_core.verbs.card import CardFacts, make_card, make_cascade_card
from smn_core.verbs.show import as_json as print_json
from smn_core.verbs.stderr import note

LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")


def push_to_hub(
    file: Path,
    target: str,
    *,
    token: str | None,
    private: bool,
    with_card: bool,
    base_model: str | None,
    license: str | None,
    as_json: bool,
) -> None:
    """Check a mask file, or the folder of a cascade with its masks, write its card, commit all of it.

    Raises:
        InvalidArgument: no address, or what the card is told is none of the Hub's words.
        InvalidMask, InvalidCascade: the file is no sound mask, the folder no whole cascade.
        SMNError: as `push_files`.
    """
    if not is_hub(target):
        raise InvalidArgument(
            f"{target!r}: a hub's place is written hf:user/name; a name on a server is given by --name"
        )
    address = parse_address(target)
    if license is not None and not LICENSE.fullmatch(license):
        raise InvalidArgument(f"--license {license!r}: write an identifier of the Hub, such as apache-2.0")
    if base_model is not None:
        _check_base(base_model)
    if file.is_dir():
        found = open_folder(file)
        masks = found.masks()
        names = mask_names(len(masks))
        files = {name: path.read_bytes() for name, path in zip(names, found.files, strict=True)}
        files = {CASCADE: (file / CASCADE).read_bytes(), **files}
        digest = found.cascade.digest
    else:
        data, mask = read_file(file)
        masks, files, digest = [mask], {FILE: data}, mask.digest
    here = {mask.digest for mask in masks}
    if any(mask.parent not in (None, *here) for mask in masks):
        raise InvalidArgument(f"{file} is coded against a parent outside it: smn repack it without --parent first")
    n_bytes = sum(map(len, files.values()))
    facts = CardFacts(address.repo, n_bytes, base_model, license)
    card = None
    if with_card:
        card = make_cascade_card(found.cascade, masks, facts) if file.is_dir() else make_card(mask, facts)
    url = push_files(address, files, card, token=secret(token, "--token"), private=private)
    if as_json:
        print_json({"repo": address.repo, "digest": digest, "bytes": n_bytes, "files": list(files), "commit": url})
        return
    print(f"{address} {digest} ({n_bytes:,} bytes)")
    note(f"commit: {url}")


def pull_from_hub(reference: str, out: Path | None, *, token: str | None, overwrite: bool) -> None:
    """Fetch a mask, check it, and write it in one step; or a cascade and its masks, into a folder.

    Raises:
        InvalidArgument: no address; the file or folder exists and `overwrite` is not said; before it is fetched.
        SMNError: as `pull_mask` and `pull_cascade`; nothing is written then.
    """
    address, key = parse_address(reference), secret(token, "--token")
    path = out or Path(f"{address.name}.smn")
    _require_free(path, overwrite=overwrite)
    held = look(address, token=key)
    if not held.is_cascade:
        data, mask = pull_mask(address, token=key, held=held)
        write_bytes(path, data)
        note(f"{len(data):,} bytes in {path}, {mask.digest}")
        return
    folder = out or Path(address.name)
    _require_free(folder, overwrite=overwrite)
    files = pull_cascade(address, held, token=key)
    folder.mkdir(exist_ok=True)
    for name, data in files.items():  # the cascade itself comes last
        write_bytes(folder / name, data)
    note(f"a cascade and {len(files) - 1} masks, {sum(map(len, files.values())):,} bytes, in {folder}")


def _require_free(path: Path, *, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise InvalidArgument(f"{path} exists: give --overwrite, or another --out")


def _check_base(text: str) -> None:
    try:
        found: HubAddress | None = parse_address(f"hf:{text}")
    except InvalidArgument:
        found = None
    if found is None or found.revision is not None:
        raise InvalidArgument(
            f"--base-model {text!r}: write the backbone's place on the Hub, such as timm/resnet50.a1_in1k"
        )

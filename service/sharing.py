"""The hub's side of `smn push` and `smn pull`: a file to `hf:user/name` with its card, and back."""

from __future__ import annotations

import re
from pathlib import Path

from service.hub import HubAddress, is_hub, parse_address, pull_mask, push_mask
from service.settings import secret
from smn_core.errors import InvalidArgument
from smn_core.files import write_bytes
from smn_core.maskfile import read_file
from smn_core.verbs.card import CardFacts, make_card
from smn_core.verbs.show import as_json as print_json
from smn_core.verbs.show import note

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
    """Check a mask file, write its card, commit both.

    Raises:
        InvalidArgument: no address, a folder, or what the card is told is none of the Hub's words.
        InvalidMask: the file is no sound mask.
        SMNError: as `push_mask`.
    """
    if not is_hub(target):
        raise InvalidArgument(
            f"{target!r}: a hub's place is written hf:user/name; a name on a server is given by --name"
        )
    address = parse_address(target)
    if file.is_dir():
        raise InvalidArgument(f"{file} is a folder: a hub takes mask files; a cascade goes to a server, with --name")
    if license is not None and not LICENSE.fullmatch(license):
        raise InvalidArgument(f"--license {license!r}: write an identifier of the Hub, such as apache-2.0")
    if base_model is not None:
        _check_base(base_model)
    data, mask = read_file(file)
    if mask.parent is not None:  # a repository holds one mask, and a parent is another
        raise InvalidArgument(f"{file} is coded against a parent: smn repack it without --parent first")
    facts = CardFacts(address.repo, len(data), base_model, license)
    url = push_mask(
        address, data, make_card(mask, facts) if with_card else None, token=secret(token, "--token"), private=private
    )
    if as_json:
        print_json({"repo": address.repo, "digest": mask.digest, "bytes": len(data), "commit": url})
        return
    print(f"{address} {mask.digest} ({len(data):,} bytes)")
    note(f"commit: {url}")


def pull_from_hub(reference: str, out: Path | None, *, token: str | None, overwrite: bool) -> None:
    """Fetch a mask, check it, and write it in one step.

    Raises:
        InvalidArgument: no address; the file exists and `overwrite` is not said; before anything is fetched.
        SMNError: as `pull_mask`; nothing is written then.
    """
    address = parse_address(reference)
    path = out or Path(f"{address.name}.smn")
    if path.exists() and not overwrite:
        raise InvalidArgument(f"{path} exists: give --overwrite, or another --out")
    data, mask = pull_mask(address, token=secret(token, "--token"))
    write_bytes(path, data)
    note(f"{len(data):,} bytes in {path}, {mask.digest}")


def _check_base(text: str) -> None:
    try:
        found: HubAddress | None = parse_address(f"hf:{text}")
    except InvalidArgument:
        found = None
    if found is None or found.revision is not None:
        raise InvalidArgument(
            f"--base-model {text!r}: write the backbone's place on the Hub, such as timm/resnet50.a1_in1k"
        )

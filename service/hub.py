"""Masks on the Hugging Face Hub, by its own client: `hf:user/name[@revision]` holds a mask or a cascade, and its card.

Addresses come from command lines and settings alone: no request to the server names one.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import disable_progress_bars

from smn_core.cascade.file import FILE_NAME, mask_names, parse_cascade
from smn_core.errors import InvalidArgument, InvalidCascade, InvalidMask, NotFound, SMNError, Unavailable
from smn_core.mask import TaskMask
from smn_core.maskfile import parse_mask
from smn_core.tensorfile import digest_of

PREFIX, FILE, CASCADE, CARD = "hf:", "mask.smn", FILE_NAME, "README.md"
PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
ADDRESS = re.compile(rf"hf:(?P<repo>{PART}/{PART})(?:@(?P<revision>[A-Za-z0-9][A-Za-z0-9._/-]{{0,199}}))?")
MOST_BYTES = 2**30
"""Of a mask's file: one bit each of eight billion weights."""
FAILURES = (httpx2.HTTPError, OSError, ValueError, RuntimeError, KeyError, EntryNotFoundError)
"""What the client raises: its own errors are among these, and an answer that is not the Hub's gives the last three."""


@dataclass(frozen=True)
class HubAddress:
    """`hf:user/name`, at a branch, tag or commit."""

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{PREFIX}{self.repo}{f'@{self.revision}' if self.revision else ''}"

    @property
    def name(self) -> str:
        """What its mask is called on a server: the repository's name in small letters."""
        return self.repo.split("/")[1].lower()


def is_hub(text: str) -> bool:
    """Whether a text is meant as the address of a hub."""
    return text.startswith(PREFIX)


def parse_address(text: str) -> HubAddress:
    """Raises InvalidArgument: not `hf:user/name` or `hf:user/name@revision`."""
    found = ADDRESS.fullmatch(text)
    if found is None or ".." in text or "--" in found["repo"] or found["repo"].endswith(".git"):
        raise InvalidArgument(f"{text!r}: write hf:user/name, or hf:user/name@revision")
    return HubAddress(found["repo"], found["revision"])


def push_files(
    address: HubAddress,
    files: Mapping[str, bytes],
    card: str | None,
    *,
    token: str | None = None,
    private: bool = False,
) -> str:
    """Commit a mask, or a cascade and its masks, with a card, in one commit; a new repository is made. Its URL.

    Args:
        token: None for the client's own: HF_TOKEN, or what `hf auth login` saved.
        private: of a repository that is made now.

    Raises:
        InvalidArgument: the repository holds the other kind, which a pull would find first or not at all.
        SMNError: as `explain`; nothing was committed then.
    """
    disable_progress_bars()
    api = HfApi(token=token)
    kept = {**files, **({CARD: card.encode()} if card is not None else {})}
    other, called = (CASCADE, "cascade") if FILE in files else (FILE, "mask")
    try:
        api.create_repo(address.repo, private=private or None, exist_ok=True)
        if api.file_exists(address.repo, other, revision=address.revision):
            raise InvalidArgument(f"{address} holds a {called}: a repository has one mask or one cascade; take another")
        done = api.create_commit(
            address.repo,
            [CommitOperationAdd(path, content) for path, content in kept.items()],
            commit_message=f"Upload {' and '.join([next(iter(files)), *([CARD] if card else [])])} with smn push",
            revision=address.revision,
        )
    except FAILURES as error:
        raise explain(error, address) from error
    return str(done.commit_url)


@dataclass(frozen=True)
class Held:
    """What a repository has at one commit: a mask or a cascade, by the name of its file, and how large that is."""

    file: str
    commit: str
    n_bytes: int | None

    @property
    def is_cascade(self) -> bool:
        return self.file == CASCADE


def look(address: HubAddress, *, token: str | None = None) -> Held:
    """Whether an address has a mask or a cascade; nothing is fetched.

    Raises:
        SMNError: as `explain`; NotFound where it has neither.
    """
    disable_progress_bars()
    api = HfApi(token=token)
    for name in (FILE, CASCADE):
        try:
            found = api.hf_hub_download(address.repo, name, revision=address.revision, dry_run=True)
        except FAILURES as error:
            if (
                name == FILE
                and isinstance(error, EntryNotFoundError)
                and not isinstance(error, LocalEntryNotFoundError)
            ):
                continue
            raise explain(error, address) from error
        return Held(name, found.commit_hash, found.file_size)
    raise AssertionError("the last name raises")


def pull_mask(address: HubAddress, *, token: str | None = None, held: Held | None = None) -> tuple[bytes, TaskMask]:
    """The bytes of a mask's file, whole and checked, and the mask. Nothing stays on the disk.

    Args:
        held: what `look` found.

    Raises:
        SMNError: as `explain`.
        InvalidArgument: there is a cascade.
        InvalidMask: what is there is no mask, is damaged, or is too large for one.
        UnknownModel: it is for a model that timm does not have.
    """
    held = held or look(address, token=token)
    if held.is_cascade:
        raise InvalidArgument(f"{address} has a cascade: bring it with smn pull, and to a server with smn push")
    data = _fetch(address, held, FILE, token)
    try:
        return data, parse_mask(data)
    except InvalidMask as error:
        raise type(error)(f"{address}: {error}") from error


def pull_cascade(address: HubAddress, held: Held, *, token: str | None = None) -> dict[str, bytes]:
    """The files of a cascade, as `smn cascade` writes them: each mask is the one that the cascade names by its digest.

    Raises:
        SMNError: as `explain`.
        InvalidCascade, InvalidMask: what is there is no cascade, or a mask of it is missing or another.
    """
    try:
        data = _fetch(address, held, CASCADE, token)
        cascade = parse_cascade(data)
        files = {}
        for name, digest in zip(mask_names(len(cascade.masks)), cascade.masks, strict=True):
            files[name] = _fetch(address, held, name, token)
            if digest_of(files[name]) != digest:
                raise InvalidCascade(f"{name} is not the mask {digest} that its cascade names")
            parse_mask(files[name])
    except (InvalidMask, InvalidCascade) as error:
        raise type(error)(f"{address}: {error}") from error
    return {**files, CASCADE: data}


def _fetch(address: HubAddress, held: Held, name: str, token: str | None) -> bytes:
    """One file at the commit that was looked at, and not at what the branch means a moment later."""
    disable_progress_bars()
    api = HfApi(token=token)
    try:
        with tempfile.TemporaryDirectory() as folder:
            # Not the client's cache: it would keep halves and copies of what goes to a file or registry.
            n_bytes = held.n_bytes
            if name != held.file:
                seen = api.hf_hub_download(address.repo, name, revision=held.commit, cache_dir=folder, dry_run=True)
                n_bytes = seen.file_size
            if n_bytes is not None and n_bytes > MOST_BYTES:
                raise InvalidMask(f"{name} has {n_bytes:,} bytes, too many for a mask")
            return Path(api.hf_hub_download(address.repo, name, revision=held.commit, cache_dir=folder)).read_bytes()
    except FAILURES as error:
        raise explain(error, address, name) from error


def explain(error: BaseException, address: HubAddress, name: str = CASCADE) -> SMNError:
    """What went wrong at the hub, in a line that names the fix; `name` is the file that was asked for."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    # The client wraps what the Hub said in what it did next, such as a look into its cache.
    told = next((e for e in chain if isinstance(e, HfHubHTTPError)), None)
    return _say_unheard(chain, address) if told is None else _say_refused(told, address, name)


def _say_unheard(chain: Sequence[BaseException], address: HubAddress) -> SMNError:
    reason = " ".join(str(next((e for e in reversed(chain) if str(e)), chain[0])).split())[:200]
    if any(isinstance(e, httpx2.TransportError) for e in chain):
        return Unavailable(f"{address}: the hub cannot be reached: {reason}")
    return Unavailable(f"{address}: the hub's answer cannot be used: {reason}")


def _say_refused(told: HfHubHTTPError, address: HubAddress, name: str) -> SMNError:
    who = "give --token, set HF_TOKEN, or run hf auth login"
    status, place = told.response.status_code, f"{address}: the hub"
    if isinstance(told, RevisionNotFoundError):
        return NotFound(f"{address}: the repository has no revision {address.revision or 'main'}")
    if isinstance(told, EntryNotFoundError):
        what = f"{FILE} and no {CASCADE}" if name == CASCADE else name
        return NotFound(f"{address} has no {what}: no smn push has written it")
    if isinstance(told, RepositoryNotFoundError) and not isinstance(told, GatedRepoError):
        return NotFound(f"{address}: no such repository, or none that you may see ({status}): {who}")
    if status in (401, 403):  # a gated repository, too
        return InvalidArgument(f"{place} refuses ({status}): {who}, with the right to do this")
    return Unavailable(f"{place} answered {status}: try again later")

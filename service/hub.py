"""Masks on the Hugging Face Hub, by its own client: `hf:user/name[@revision]` holds one mask and its card.

Addresses come from command lines and settings alone: no request to the server names one.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import disable_progress_bars

from smn_core.errors import InvalidArgument, InvalidMask, NotFound, SMNError, Unavailable
from smn_core.mask import TaskMask
from smn_core.maskfile import parse_mask

PREFIX, FILE, CARD = "hf:", "mask.smn", "README.md"
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


def push_mask(
    address: HubAddress, data: bytes, card: str | None, *, token: str | None = None, private: bool = False
) -> str:
    """Commit a mask, and its card, in one commit; the repository is made where there is none. Returns the commit's URL.

    Args:
        token: None for the client's own: HF_TOKEN, or what `hf auth login` saved.
        private: of a repository that is made now.

    Raises:
        SMNError: as `explain`; nothing was committed then.
    """
    disable_progress_bars()
    api = HfApi(token=token)
    files = {FILE: data, **({CARD: card.encode()} if card is not None else {})}
    try:
        api.create_repo(address.repo, private=private or None, exist_ok=True)
        done = api.create_commit(
            address.repo,
            [CommitOperationAdd(path, content) for path, content in files.items()],
            commit_message=f"Upload {' and '.join(files)} with smn push",
            revision=address.revision,
        )
    except FAILURES as error:
        raise explain(error, address) from error
    return str(done.commit_url)


def pull_mask(address: HubAddress, *, token: str | None = None) -> tuple[bytes, TaskMask]:
    """The bytes of a mask's file, whole and checked, and the mask. Nothing stays on the disk.

    Raises:
        SMNError: as `explain`.
        InvalidMask: what is there is no mask, is damaged, or is too large for one.
        UnknownModel: it is for a model that timm does not have.
    """
    disable_progress_bars()
    api = HfApi(token=token)
    try:
        with tempfile.TemporaryDirectory() as folder:
            # Not the client's cache: it would keep halves and copies of what goes to a file or registry.
            found = api.hf_hub_download(address.repo, FILE, revision=address.revision, cache_dir=folder, dry_run=True)
            if found.file_size is not None and found.file_size > MOST_BYTES:
                raise InvalidMask(f"{address}: {FILE} has {found.file_size:,} bytes, too many for a mask")
            # At the commit whose size was told, and not what the branch means a moment later.
            path = api.hf_hub_download(address.repo, FILE, revision=found.commit_hash, cache_dir=folder)
            data = Path(path).read_bytes()
    except FAILURES as error:
        raise explain(error, address) from error
    try:
        return data, parse_mask(data)
    except InvalidMask as error:
        raise type(error)(f"{address}: {error}") from error


def explain(error: BaseException, address: HubAddress) -> SMNError:
    """What went wrong at the hub, in a line that names the fix."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    # The client wraps what the Hub said in what it did next, such as a look into its cache.
    told = next((e for e in chain if isinstance(e, HfHubHTTPError)), None)
    return _say_unheard(chain, address) if told is None else _say_refused(told, address)


def _say_unheard(chain: Sequence[BaseException], address: HubAddress) -> SMNError:
    reason = " ".join(str(next((e for e in reversed(chain) if str(e)), chain[0])).split())[:200]
    if any(isinstance(e, httpx2.TransportError) for e in chain):
        return Unavailable(f"{address}: the hub cannot be reached: {reason}")
    return Unavailable(f"{address}: the hub's answer cannot be used: {reason}")


def _say_refused(told: HfHubHTTPError, address: HubAddress) -> SMNError:
    who = "give --token, set HF_TOKEN, or run hf auth login"
    status, place = told.response.status_code, f"{address}: the hub"
    if isinstance(told, RevisionNotFoundError):
        return NotFound(f"{address}: the repository has no revision {address.revision or 'main'}")
    if isinstance(told, EntryNotFoundError):
        return NotFound(f"{address} has no {FILE}: no smn push has written it")
    if isinstance(told, RepositoryNotFoundError) and not isinstance(told, GatedRepoError):
        return NotFound(f"{address}: no such repository, or none that you may see ({status}): {who}")
    if status in (401, 403):  # a gated repository, too
        return InvalidArgument(f"{place} refuses ({status}): {who}, with the right to do this")
    return Unavailable(f"{place} answered {status}: try again later")

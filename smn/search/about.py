"""What a collection says of itself: the one space of its vectors, the model behind them, and the folder they show."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from smn_core.errors import InvalidData, OtherSpace

FORMAT = "smn-collection/1"
KEY = b"smn"
"""The key of the schema's metadata that holds it, in a Lance table as in a Parquet file."""


@dataclass(frozen=True)
class About:
    """Written when a collection begins, and never changed.

    Args:
        space: the id of the vectors' space.
        width: components of a vector.
        model: the backbone's architecture; fingerprint: of its weights.
        digest: of the mask or cascade, or "root".
        folder: the images' folder, absolute; the paths of a collection are relative to it.
        through: the words that made the vectors: mask, cascade, mode, server.
        backbone: what the user said of the backbone, so that a search need not say it again.
    """

    space: str
    width: int
    model: str
    fingerprint: str
    digest: str
    folder: str
    through: Mapping[str, str | None] = field(default_factory=dict)
    backbone: Mapping[str, Any] = field(default_factory=dict)

    def as_metadata(self) -> dict[bytes, bytes]:
        """As a schema's metadata."""
        return {KEY: json.dumps({"format": FORMAT, **asdict(self)}).encode()}

    def check_same(self, where: str, space: str, fingerprint: str) -> None:
        """Raise OtherSpace unless vectors of this space and backbone may go into the collection `where`."""
        if space != self.space:
            raise OtherSpace(
                f"{where} has vectors of the space {self.space}, and these would be in {space}: they cannot be "
                "compared. Name the mask and the backbone that it was made with, or make another collection"
            )
        if fingerprint != self.fingerprint:
            raise OtherSpace(
                f"{where} has vectors of the backbone {self.fingerprint}, and these would be of {fingerprint}: they "
                "cannot be compared. Name the weights that it was made with, or make another collection"
            )


def read_about(metadata: Mapping[bytes, bytes] | None, where: str) -> About:
    """What a schema's metadata says.

    Raises:
        InvalidData: it says nothing of this project, or something that cannot be read.
    """
    told = (metadata or {}).get(KEY)
    if told is None:
        raise InvalidData(f"{where} was not made by smn index: name a collection that was, or a place for a new one")
    try:
        found = json.loads(told)
        form = found.pop("format")
        if form == FORMAT:
            about = About(**found)
            texts = (about.space, about.model, about.fingerprint, about.digest, about.folder)
            tables = (about.through, about.backbone)
            is_sound = all(isinstance(text, str) for text in texts) and all(isinstance(t, dict) for t in tables)
            if is_sound and isinstance(about.width, int) and about.width > 0 and about.space:
                return about
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidData(f"{where} is damaged: what it says of itself cannot be read") from error
    if form != FORMAT:
        raise InvalidData(f"{where} has the format {form!r}, and this version reads {FORMAT}")
    raise InvalidData(f"{where} is damaged: what it says of itself cannot be read")

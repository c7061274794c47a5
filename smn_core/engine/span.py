"""A span: consecutive rows of a batch that go through one mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from smn_core.engine.contract import Segment
from smn_core.engine.sites import Weights
from smn_core.engine.wearable import WearableMask


class Span(NamedTuple):
    """Rows `start` to `stop` of a batch go through `mask`; None is the root.

    In a batch that mixes masks, `weights` are where those of the mask lie: theta, or its slot; None where they are
    written module by module, into scratch or, of a patch, into the shared array.
    """

    start: int
    stop: int
    mask: WearableMask | None
    weights: Weights | None = None


def spans_of(segments: Sequence[Segment], masks: Mapping[str, WearableMask]) -> list[Span]:
    """The segments with their masks; neighbours with the same mask become one span."""
    found: list[Span] = []
    for segment in segments:
        mask = None if segment.mask is None else masks[segment.mask]
        if found and found[-1].mask is mask:
            found[-1] = Span(found[-1].start, segment.stop, mask)
        else:
            found.append(Span(segment.start, segment.stop, mask))
    return found


def close_up(spans: Sequence[Span]) -> list[Span]:
    """The spans in their order, with rows numbered without the gaps between them."""
    found: list[Span] = []
    for span in spans:
        start = found[-1].stop if found else 0
        found.append(span._replace(start=start, stop=start + span.stop - span.start))
    return found

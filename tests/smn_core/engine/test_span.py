"""Segments become spans: rows with the mask itself, and neighbours of one mask together."""

from __future__ import annotations

from smn_core.engine import Segment
from smn_core.engine.span import Span, close_up, spans_of
from smn_core.engine.wardrobe import UNKNOWN


def test_neighbours_of_one_mask_become_one_span():
    """Also those of the root; the same mask after another one is a span of its own."""
    mask = UNKNOWN
    edges = [(None, 0, 1), (None, 1, 3), ("a", 3, 4), ("a", 4, 6), (None, 6, 7), ("a", 7, 8)]
    found = spans_of([Segment(*edge) for edge in edges], {"a": mask})
    assert [(s.start, s.stop, s.mask) for s in found] == [(0, 3, None), (3, 6, mask), (6, 7, None), (7, 8, mask)]


def test_no_segments_are_no_spans():
    assert spans_of([], {}) == []


def test_spans_of_a_part_of_a_batch_close_up():
    """Each keeps its length and its mask; the rows between them are gone."""
    spans = [Span(2, 5, UNKNOWN), Span(7, 8, None), Span(8, 10, UNKNOWN)]
    assert close_up(spans) == [Span(0, 3, UNKNOWN), Span(3, 4, None), Span(4, 6, UNKNOWN)]
    assert close_up([]) == []

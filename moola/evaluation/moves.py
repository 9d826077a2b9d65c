"""From what each window says to moves: sightings of the same move, merged into one.

A sighting is a span in which one window may see a move, with the probability that it is one. Many
windows overlap, so that a move has many sightings, which need not agree to the bar.
"""

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from moola import HIT_BARS, WINDOW
from moola.evaluation.arrays import Floats, Ints

LEAST_PROBABILITY = 0.01  # sightings below it are none


@dataclass(frozen=True)
class Sightings:
    """N spans of bars that windows take for a move.

    window_row     [N] row of the window's first bar
    first, last    [N] rows of the span's first and last bar, both included
    probability    [N] that it is a move
    types          [N, C] probabilities of the type, rows summing to 1
    """

    window_row: Ints
    first: Ints
    last: Ints
    probability: Floats
    types: Floats

    def __len__(self) -> int:
        return len(self.first)

    def take(self, rows: Ints | NDArray[np.bool_]) -> "Sightings":
        return Sightings(*(getattr(self, field.name)[rows] for field in fields(self)))


@dataclass(frozen=True)
class Moves:
    """M moves in time order; no two share a bar.

    first, last    [M] rows of the first and last bar, both included
    probability    [M] that it is a move: what the windows say that hold it, those counted as 0
                   that do not see it
    types          [M, C] probabilities of the type
    n_agree        [M] windows that see it
    n_windows      [M] windows that hold it
    best_window    [M] row of the first bar of the window that is the most certain of it
    """

    first: Ints
    last: Ints
    probability: Floats
    types: Floats
    n_agree: Ints
    n_windows: Ints
    best_window: Ints

    def __len__(self) -> int:
        return len(self.first)

    def take(self, rows: Ints | NDArray[np.bool_]) -> "Moves":
        return Moves(*(getattr(self, field.name)[rows] for field in fields(self)))


def merge(sightings: Sightings, window_row: Ints) -> Moves:
    """The moves of the windows that begin at `window_row` [W], in increasing order.

    The span with the most probability over all windows comes first (of equals the earlier, then the
    shorter). Its sightings, and those that share a bar with it and whose centre is within HIT_BARS
    of its own, are views of one move; whatever else shares a bar with it is another opinion of the
    same bars and goes, as does the view of a window that cuts the move off. The type is the views'
    mean, weighted by their probability.
    """
    kept = sightings.take(sightings.probability >= LEAST_PROBABILITY)
    kept = kept.take(np.lexsort((kept.window_row, kept.last, kept.first)))
    spans, of_span = _distinct_spans(kept)
    weight = np.bincount(of_span, kept.probability, minlength=len(spans))
    longest = int((kept.last - kept.first + 1).max(initial=0))
    is_left = np.ones(len(kept), np.bool_)

    views: list[tuple[int, int, Ints]] = []
    for k in np.lexsort((spans[:, 1], spans[:, 0], -weight)):
        first, last = spans[k].tolist()
        low = np.searchsorted(kept.first, first - longest + 1)
        high = np.searchsorted(kept.first, last, side="right")
        near = low + np.flatnonzero(is_left[low:high] & (kept.last[low:high] >= first))
        is_same = (kept.first[near] == first) & (kept.last[near] == last)
        if not is_same.any():
            continue

        is_left[near] = False
        off = np.abs(kept.first[near] + kept.last[near] - first - last)
        views.append((first, last, near[off <= 2 * HIT_BARS]))

    views.sort(key=lambda view: view[0])
    return _summed_up(kept, views, window_row)


def _distinct_spans(sightings: Sightings) -> tuple[Ints, Ints]:
    """[S, 2] first and last bar of every span, and [N] which of them a sighting is."""
    both = np.stack([sightings.first, sightings.last], axis=1)
    spans, of_span = np.unique(both, axis=0, return_inverse=True)
    return spans, of_span.reshape(-1)


def _summed_up(
    sightings: Sightings,
    views: list[tuple[int, int, Ints]],
    window_row: Ints,
) -> Moves:
    """One move for each group of views (first, last, sightings)."""
    n_types = sightings.types.shape[1]
    n = len(views)
    moves = Moves(
        first=np.array([view[0] for view in views], np.int64),
        last=np.array([view[1] for view in views], np.int64),
        probability=np.zeros(n),
        types=np.zeros((n, n_types)),
        n_agree=np.zeros(n, np.int64),
        n_windows=np.zeros(n, np.int64),
        best_window=np.zeros(n, np.int64),
    )

    for k, (first, last, rows) in enumerate(views):
        seen_from = sightings.window_row[rows]
        holds = (seen_from > last - WINDOW) & (seen_from <= first)
        own = _best_of_each_window(sightings.take(rows[holds]))
        low = np.searchsorted(window_row, last - WINDOW + 1)
        high = np.searchsorted(window_row, first, side="right")

        moves.n_agree[k] = len(own)
        moves.n_windows[k] = high - low
        moves.probability[k] = own.probability.sum() / moves.n_windows[k]
        moves.types[k] = own.probability @ own.types / own.probability.sum()
        moves.best_window[k] = own.window_row[own.probability.argmax()]

    return moves


def _best_of_each_window(views: Sightings) -> Sightings:
    """The most certain view of each window; the first of equals."""
    order = np.lexsort((-views.probability, views.window_row))
    ordered = views.take(order)
    is_first = np.diff(ordered.window_row, prepend=-1) != 0
    return ordered.take(is_first)

"""What is known of the bars of a series: where moves are, and where there is none.

Hindsight and planted labels know of every bar. A file's rows of the label `none` name stretches in
which nobody sees a move. A file without them says nothing of the bars between its labels: those
stand in as a background, in which there may be moves that nobody has labelled.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from moola import HIT_BARS, WINDOW
from moola.data.labels import LabelSet
from moola.data.splits import Split
from moola.features.arrays import Flags, Ints

NoMoveKind = Literal["unlabelled stretches", "none rows", "background"]
NO_MOVE_TEXTS: dict[NoMoveKind, str] = {
    "unlabelled stretches": "stretches in which the rule of the labels finds no move",
    "none rows": "rows of the label none",
    "background": "background: unlabelled bars, in which there may be moves nobody has labelled",
}
IS_MOVE = 1
IS_NONE = 0
IS_UNKNOWN = -1


@dataclass(frozen=True)
class MoveTruth:
    """Of a series of n bars.

    first, last  [M] rows of the known moves' first and last bar, by their first bar
    is_known     [n] whether it is known of a bar that it is in a known move, or in none
    kind         where it comes from that there is no move
    """

    first: Ints
    last: Ints
    is_known: Flags
    kind: NoMoveKind

    def judge(self, first: Ints, last: Ints) -> Ints:
        """[N] of spans of bars, given by their rows: IS_MOVE, IS_NONE or IS_UNKNOWN.

        A span is a move if its centre is within HIT_BARS of a known one's; it is none if it shares
        a bar with a known move and is not that, or if all its bars are known.
        """
        near = _distance(np.sort(self.first + self.last), first + last) <= 2 * HIT_BARS
        known = _count_before(self.is_known)
        is_known = known[last + 1] - known[first] == last - first + 1
        in_move = _count_before(self._in_moves())
        shares = in_move[last + 1] > in_move[first]

        judged = np.where(is_known | shares, IS_NONE, IS_UNKNOWN)
        return np.asarray(np.where(near, IS_MOVE, judged))

    def is_exact(self, first: Ints, last: Ints) -> Flags:
        """[N] whether a span is a known move to the bar."""
        n_bars = len(self.is_known)
        return np.isin(first * n_bars + last, self.first * n_bars + self.last)

    def holds_move(self, window_row: Ints) -> Ints:
        """[W] of windows: IS_MOVE where a whole known move is inside, IS_NONE where all its bars
        are known and none is, else IS_UNKNOWN."""
        holds = self._n_whole(window_row) > 0
        known = _count_before(self.is_known)
        is_known = known[window_row + WINDOW] - known[window_row] == WINDOW

        return np.asarray(np.where(holds, IS_MOVE, np.where(is_known, IS_NONE, IS_UNKNOWN)))

    def without_move(self, split: Split, least_known: int) -> Ints:
        """Rows at which windows of the split start that hold no whole move, and of which at least
        `least_known` bars are known."""
        window_row = np.arange(split.start, split.stop)
        known = _count_before(self.is_known)
        n_known = known[window_row + WINDOW] - known[window_row]

        is_free = (self._n_whole(window_row) == 0) & (n_known >= least_known)
        return np.asarray(window_row[is_free])

    def inside(self, first_row: int, stop_row: int) -> tuple[Ints, Ints]:
        """First and last rows of the known moves that lie in rows [first_row, stop_row)."""
        is_in = self.lie_in(first_row, stop_row)
        return self.first[is_in], self.last[is_in]

    def lie_in(self, first_row: int, stop_row: int) -> Flags:
        """[M] whether each known move lies whole in rows [first_row, stop_row)."""
        return (self.first >= first_row) & (self.last < stop_row)

    def _n_whole(self, window_row: Ints) -> Ints:
        """[W] known moves that lie whole in each window."""
        n_whole = np.zeros(len(self.is_known) + 1, np.int64)
        for first, last in zip(self.first, self.last, strict=True):
            n_whole[max(last - WINDOW + 1, 0)] += 1
            n_whole[first + 1] -= 1

        return np.cumsum(n_whole)[window_row]

    def _in_moves(self) -> Flags:
        in_moves = np.zeros(len(self.is_known), np.bool_)
        for first, last in zip(self.first, self.last, strict=True):
            in_moves[first : last + 1] = True

        return in_moves


def move_truth(labels: LabelSet, n_bars: int) -> MoveTruth | None:
    """Of the bars that the labels point into; None for labels that carry their own bars."""
    if not labels.anchored:
        return None
    if labels.every_move is not None:
        first = labels.every_move.first_bar
        last = labels.every_move.last_bar
        return _in_order(first, last, np.ones(n_bars, np.bool_), "unlabelled stretches")
    if labels.no_moves is None:
        every_bar = np.ones(n_bars, np.bool_)
        return _in_order(labels.start_bar, labels.end_bar, every_bar, "background")

    is_known = np.zeros(n_bars, np.bool_)
    stretches = zip(labels.no_moves.first_bar, labels.no_moves.last_bar, strict=True)
    for first_bar, last_bar in stretches:
        is_known[first_bar : last_bar + 1] = True
    for first_bar, last_bar in zip(labels.start_bar, labels.end_bar, strict=True):
        is_known[first_bar : last_bar + 1] = True

    return _in_order(labels.start_bar, labels.end_bar, is_known, "none rows")


def forget_moves(truth: MoveTruth, split: Split, drawn: LabelSet) -> MoveTruth:
    """What somebody knows who has labelled only the `drawn` moves of the split.

    Of the bars of its other moves nothing is known.
    """
    in_split = truth.lie_in(split.start, split.stop + WINDOW - 1)
    drawn_bars = set(zip(drawn.start_bar.tolist(), drawn.end_bar.tolist(), strict=True))
    pairs = zip(truth.first.tolist(), truth.last.tolist(), strict=True)
    is_drawn = np.array([pair in drawn_bars for pair in pairs], np.bool_)
    forgotten = in_split & ~is_drawn

    is_known = truth.is_known.copy()
    for first, last in zip(truth.first[forgotten], truth.last[forgotten], strict=True):
        is_known[first : last + 1] = False

    return MoveTruth(
        truth.first[~forgotten],
        truth.last[~forgotten],
        is_known,
        truth.kind,
    )


def forget_outside(truth: MoveTruth, splits: Iterable[Split]) -> MoveTruth:
    """What somebody knows who is shown these splits alone, which share no bar.

    A move that does not lie whole in one of them is forgotten. At the edges of a split nothing is
    known of as many bars as a move of its own could cover from outside: whether one does is not
    seen from inside.
    """
    is_known = np.zeros(len(truth.is_known), np.bool_)
    is_whole = np.zeros(len(truth.first), np.bool_)
    for split in splits:
        stop = split.stop + WINDOW - 1
        is_inside = truth.lie_in(split.start, stop)
        is_whole |= is_inside
        n_bars = truth.last[is_inside] - truth.first[is_inside] + 1
        edge = int(n_bars.max(initial=1)) - 1
        inner = slice(split.start + edge, stop - edge)
        is_known[inner] = truth.is_known[inner]

    return MoveTruth(
        truth.first[is_whole],
        truth.last[is_whole],
        is_known,
        truth.kind,
    )


def _in_order(
    first: Ints,
    last: Ints,
    is_known: Flags,
    kind: NoMoveKind,
) -> MoveTruth:
    order = np.lexsort((last, first))
    return MoveTruth(first[order], last[order], is_known, kind)


def _count_before(flags: Flags) -> Ints:
    """[n + 1] how many are True before each place."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(flags)])


def _distance(ordered: Ints, values: Ints) -> Ints:
    """[N] from each value to the nearest of those in order; large where there is none."""
    if not len(ordered):
        return np.full(len(values), np.iinfo(np.int64).max)

    after = np.searchsorted(ordered, values).clip(0, len(ordered) - 1)
    before = (after - 1).clip(0)
    to_before = np.abs(values - ordered[before])
    to_after = np.abs(values - ordered[after])
    return np.asarray(np.minimum(to_before, to_after))

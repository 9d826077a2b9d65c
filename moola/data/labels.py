"""Labelled moves: the state before an expansion, where the expansion lies, and their splits.

Labels may look ahead: a label is made with the future in view, and nothing here feeds a feature.
Where they come from: `moola.data.label_files` reads them, `moola.data.hindsight` finds them in
bars, `moola.data.placement` cuts windows around moves that were found or planted.
"""

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moola.data.splits import Ranges, Split, ranges_of
from moola.errors import DataError
from moola.features.arrays import Flags, Float32s, Floats, Ints
from moola.specs import RareClasses, label_word
from moola.text import quoted

MIN_PER_CLASS = 2  # labels of each class in each split
SHARED_BARS = 10  # consecutive bars by which two windows are known to overlap


@dataclass(frozen=True)
class NoMoves:
    """m stretches in which nobody sees a move, as labels of the word NO_MOVE say.

    first_bar, last_bar  [m] rows of the series, both included; -1 where they are in no series
    bars                 [m, T, 4] open, high, low, close of windows that carry their own
    """

    first_bar: Ints
    last_bar: Ints
    bars: Floats | None = None

    def __len__(self) -> int:
        return len(self.first_bar)


@dataclass(frozen=True)
class EveryMove:
    """All moves that a rule finds in the series, or that were planted in it: elsewhere is none.

    first_bar, last_bar  [m] rows of the series, both included
    """

    first_bar: Ints
    last_bar: Ints


@dataclass(frozen=True)
class LabelSet:
    """n labelled windows of one source, in the source's order.

    Anchored labels lie in a series of bars, and training may re-cut their windows; the others carry
    their own `bars`. `start` and `end` are offsets in the window; an anchor, `start_bar` and
    `end_bar` are rows of the series.

    source       "hindsight", "planted" or the file's name
    label_index  [n] into classes
    start, end   [n] first and last bar of the expansion, 0..T-1, in the window at `anchor`
    window_id    [n] text
    anchor       [n] row of the window's first bar; -1 where it is in no series
    first_anchor, last_anchor
                 [n] a re-cut window may start from first_anchor to last_anchor, both included; the
                 expansion is inside all of them
    state_bars   bars before the expansion that a re-cut keeps, where there is room
    bars         [n, T, 4] open, high, low, close of windows that carry their own
    features     [n, T, F] computed per window, where they carry their own bars
    valid        [n, T] False in the warm-up, where they carry their own bars
    left_out     reason -> rows of the source
    mirror       class -> what it is upside down; a class that is not in it has a direction
    no_moves     where the source says that there is no move; None where it says nothing about that
    every_move   of a source that knows of every bar; None for others
    """

    source: str
    classes: tuple[str, ...]
    label_index: Ints
    start: Ints
    end: Ints
    window_id: NDArray[np.object_]
    anchor: Ints
    first_anchor: Ints
    last_anchor: Ints
    state_bars: int
    bars: Floats | None = None
    features: Float32s | None = None
    valid: Flags | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    mirror: Mapping[str, str] = field(default_factory=dict)
    no_moves: NoMoves | None = None
    every_move: EveryMove | None = None

    def __len__(self) -> int:
        return len(self.label_index)

    @property
    def anchored(self) -> bool:
        return self.bars is None

    @property
    def start_bar(self) -> Ints:
        """[n] first bar of the expansion as a row of the series; anchored labels only."""
        return self.anchor + self.start

    @property
    def end_bar(self) -> Ints:
        """[n] last bar of the expansion as a row of the series; anchored labels only."""
        return self.anchor + self.end

    def class_counts(self) -> dict[str, int]:
        """class -> labels, in the order of the classes."""
        counts = np.bincount(self.label_index, minlength=len(self.classes))
        return dict(zip(self.classes, counts.tolist(), strict=True))

    def take(self, rows: Ints | Flags) -> "LabelSet":
        """The labels at `rows` (numbers or a mask of [n]), in that order."""
        columns: dict[str, Any] = {}

        for column in fields(self):
            value = getattr(self, column.name)
            if isinstance(value, np.ndarray):
                columns[column.name] = value[rows]

        return replace(self, **columns)

    def without_classes(self, names: Collection[str]) -> "LabelSet":
        """The labels of the other classes, which keep their order."""
        classes = tuple(name for name in self.classes if name not in names)
        new_index = np.array([_place(name, classes) for name in self.classes], np.int64)
        index = new_index[self.label_index]

        kept = self.take(index >= 0)
        return replace(kept, classes=classes, label_index=index[index >= 0])


def _place(name: str, classes: Sequence[str]) -> int:
    """-1 where it is not among them."""
    return classes.index(name) if name in classes else -1


# --- what every source of labels needs ------------------------------------------------------------


def class_index(
    labels: "pd.Series[Any]",
    classes: Sequence[str],
    place: str,
) -> Ints:
    """[n] index of each label in the classes, in any case; there is no default class.

    Raises DataError.
    """
    words = [label_word(label) if isinstance(label, str) else None for label in labels]
    names = pd.Index(words, dtype=object)
    index = pd.Index([label_word(name) for name in classes]).get_indexer(names)
    rule = f"label must be one of {', '.join(classes)} (labels.classes)"
    refuse_first(index < 0, rule, labels.tolist(), labels.index, place)

    return index.astype(np.int64)


def refuse_first(
    broken: Flags,
    rule: str,
    values: Sequence[object] | pd.Index,
    rows: Sequence[int] | pd.Index,
    place: str,
) -> None:
    """Raises DataError for the first row that breaks `rule`, with its value and its row number."""
    if not broken.any():
        return

    first = int(np.argmax(broken))
    raise DataError(f"{rule}, got {quoted(values[first])} (row {rows[first]} of {place})")


def span_text(times: pd.DatetimeIndex) -> str:
    """From when to when the bars are, for messages."""
    return f"{times[0]:%Y-%m-%d %H:%M} to {times[-1]:%Y-%m-%d %H:%M} UTC"


def nonzero_counts(counts: Mapping[str, int]) -> dict[str, int]:
    return {reason: count for reason, count in counts.items() if count}


# --- splits ---------------------------------------------------------------------------------------


def assign_splits(
    labels: LabelSet,
    splits: Mapping[str, Split],
    rare_classes: RareClasses = "refuse",
) -> tuple[dict[str, LabelSet], dict[str, int]]:
    """Anchored labels by split, and how many rows of the source are in none, by reason.

    A label is in a split if its whole window is; re-cut windows are held inside the split too.
    A class with fewer than MIN_PER_CLASS labels in a split is `rare`: "train_only" takes it out of
    the other splits, "drop" out of all and out of the classes. Raises DataError where it is to be
    refused, and where fewer than two classes would be left.
    """
    return assign_ranges(labels, ranges_of(splits), rare_classes)


def assign_ranges(
    labels: LabelSet,
    ranges: Ranges,
    rare_classes: RareClasses = "refuse",
) -> tuple[dict[str, LabelSet], dict[str, int]]:
    """As `assign_splits`, where a split may have several ranges of windows: one of each series.

    A re-cut window is held inside the range that its label lies in. A class is rare by its labels
    in all ranges of a split together.
    """
    if not labels.anchored:
        raise DataError(
            "labels that carry their own bars are split in their order, not by time "
            f"({labels.source})"
        )

    parts = {}
    for name, splits in ranges.items():
        start = np.zeros(len(labels), np.int64)
        stop = np.zeros(len(labels), np.int64)
        for split in splits:
            inside = (labels.anchor >= split.start) & (labels.anchor < split.stop)
            start[inside] = split.start
            stop[inside] = split.stop

        is_in = stop > 0
        part = labels.take(is_in)
        parts[name] = replace(
            part,
            first_anchor=np.maximum(part.first_anchor, start[is_in]),
            last_anchor=np.minimum(part.last_anchor, stop[is_in] - 1),
        )

    left_out = _left_out(parts, labels, "window over a cut or outside the splits")
    return _settle_rare_classes(parts, left_out, labels, rare_classes)


def split_in_order(
    labels: LabelSet,
    fractions: Mapping[str, float],
    rare_classes: RareClasses = "refuse",
) -> tuple[dict[str, LabelSet], dict[str, int]]:
    """Labels that carry their own bars by split, and how many rows of the source are in none.

    The file's order is taken for the order of time. A window that shares SHARED_BARS consecutive
    bars with a window of a later split is in none, so that no split knows another's bars. Rare
    classes are treated, and DataError is raised, as by `assign_splits`.
    """
    if labels.bars is None:
        raise DataError(
            "labels that point into a series are split by its time, not by their order "
            f"({labels.source})"
        )

    ends = np.cumsum([0.0, *fractions.values()])
    cuts = np.round(ends * len(labels)).astype(np.int64)
    ranges = dict(zip(fractions, itertools.pairwise(cuts), strict=True))

    parts: dict[str, LabelSet] = {}
    later: set[bytes] = set()  # pieces of the windows of later splits

    for name in reversed(ranges):
        kept = []
        pieces: set[bytes] = set()

        for row in range(*ranges[name]):
            own_pieces = _pieces(labels.bars[row])
            pieces |= own_pieces
            if later.isdisjoint(own_pieces):
                kept.append(row)

        parts[name] = labels.take(np.array(kept, np.int64))
        later |= pieces

    in_order = {name: parts[name] for name in fractions}
    left_out = _left_out(in_order, labels, "shares bars with a later split")
    return _settle_rare_classes(in_order, left_out, labels, rare_classes)


def _pieces(bars: Floats) -> set[bytes]:
    """Every run of SHARED_BARS consecutive bars of a window [T, 4]."""
    pieces = set()

    for stop in range(SHARED_BARS, len(bars) + 1):
        piece = bars[stop - SHARED_BARS : stop]
        pieces.add(piece.tobytes())

    return pieces


def _left_out(
    parts: Mapping[str, LabelSet],
    labels: LabelSet,
    reason: str,
) -> dict[str, int]:
    n_split = sum(len(part) for part in parts.values())

    return nonzero_counts({**labels.left_out, reason: len(labels) - n_split})


def _settle_rare_classes(
    parts: Mapping[str, LabelSet],
    left_out: dict[str, int],
    labels: LabelSet,
    rule: RareClasses,
) -> tuple[dict[str, LabelSet], dict[str, int]]:
    """The splits and what is left out, once rare classes are treated by the rule."""
    rare = [name for name in labels.classes if _is_rare(name, parts)]
    if not rare:
        return dict(parts), left_out
    if rule == "refuse":
        _require_examples_in_each(parts, labels)

    if len(labels.classes) - len(rare) < 2:
        raise DataError(
            f"two classes must be left besides those too rare for a split, {', '.join(rare)} "
            f"(labels.rare_classes: {rule}, {labels.source})"
        )

    settled = {}
    for split, part in parts.items():
        if rule == "drop":
            settled[split] = part.without_classes(rare)
        elif split == "train":
            settled[split] = part
        else:
            is_rare = np.isin(part.label_index, [labels.classes.index(name) for name in rare])
            settled[split] = part.take(~is_rare)

    if rule == "train_only":
        among = f"in train (labels.rare_classes: {rule}, {labels.source})"
        require_examples(settled["train"], "labels to be trained on", among)

    left_out |= _rare_counts(parts, settled, rare, rule)
    return settled, nonzero_counts(left_out)


def _is_rare(name: str, parts: Mapping[str, LabelSet]) -> bool:
    return any(part.class_counts()[name] < MIN_PER_CLASS for part in parts.values())


def _rare_counts(
    parts: Mapping[str, LabelSet],
    settled: Mapping[str, LabelSet],
    rare: Sequence[str],
    rule: RareClasses,
) -> dict[str, int]:
    """Reason -> labels of rare classes that were in a split and are in none now."""
    counts = {}
    for name in rare:
        before = sum(part.class_counts()[name] for part in parts.values())
        after = sum(part.class_counts().get(name, 0) for part in settled.values())
        counts[f"{name} is too rare for a split ({rule})"] = before - after

    return counts


def _require_examples_in_each(parts: Mapping[str, LabelSet], labels: LabelSet) -> None:
    for name, part in parts.items():
        among = (
            f"in {name} (of {len(part)} in {name} and {len(labels)} in {labels.source}); add "
            f"labels, or --set labels.rare_classes=train_only to learn it without judging it, or "
            f"=drop to leave it out"
        )
        require_examples(part, "labels in each split", among)


def require_examples(part: LabelSet, what: str, among: str) -> None:
    """Raises DataError where a class has fewer than MIN_PER_CLASS labels.

    `what` it needs and `among` which labels are words of the message.
    """
    for label, count in part.class_counts().items():
        if count < MIN_PER_CLASS:
            raise DataError(f"each class needs {MIN_PER_CLASS} {what}: {label} has {count} {among}")

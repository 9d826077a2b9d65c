"""Labels from a file: read, or refused with the row and value that break a rule.

A row has a label, an optional grade and window_id, and one of three forms:

windows  window_start, the minute of the window's first bar in a series; expansion_start and
         expansion_end, 0..T-1 in the window, both included
own      features, T x [open, high, low, close], nested, flat (bar after bar) or JSON text;
         expansion_start, expansion_end; window_id
times    start and end, the minutes of the move's first and last bar in a series, both included;
         Label Studio's exports are of this form

The first of them that the file has the columns for is taken. A label NO_MOVE says that nobody sees
a move in the window, or from start to end. Rows are counted from 0, a header not included. Rows
that repeat an earlier one count once; a window may hold several moves.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moola import WINDOW
from moola.data.label_bars import own_bars
from moola.data.label_places import Places
from moola.data.label_tables import read_label_table
from moola.data.labels import (
    LabelSet,
    NoMoves,
    class_index,
    nonzero_counts,
    refuse_first,
)
from moola.data.windows import features_of_windows
from moola.errors import DataError
from moola.features.arrays import Flags, Ints
from moola.specs import NO_MOVE, FeatureConfig, LabelConfig, label_word
from moola.text import quoted

Form = Literal["windows", "own", "times"]

SET_COLUMN = "features"  # where a window has no bars of its own: the set that a row points into

_POINTERS = ("expansion_start", "expansion_end")
_NEEDED: dict[Form, tuple[str, ...]] = {
    "windows": ("window_start", "label", *_POINTERS),
    "own": ("features", "label", *_POINTERS, "window_id"),
    "times": ("start", "end", "label"),
}


@dataclass(frozen=True)
class LabelFile:
    """The table of a label file, and which form its rows have."""

    table: pd.DataFrame
    form: Form
    name: str

    @property
    def has_own_bars(self) -> bool:
        return self.form == "own"


def open_label_file(path: Path) -> LabelFile:
    """The file's rows. Raises DataError for what is no table, or lacks a column."""
    table = read_label_table(path)
    return LabelFile(table, _form(table, path.name), path.name)


def read_labels(
    path: Path,
    config: LabelConfig,
    *,
    times: pd.DatetimeIndex | None = None,
    dropped: Sequence[pd.Timestamp] = (),
    features: FeatureConfig | None = None,
) -> LabelSet:
    """The labels of a file, as `labels_of_file` gives them, with the features of own bars.

    `features` says how those are computed: from each window alone, whose first WARM_UP bars are
    masked.
    """
    labels = labels_of_file(open_label_file(path), config, times=times, dropped=dropped)
    return with_own_features(labels, features or FeatureConfig())


def labels_of_file(
    file: LabelFile,
    config: LabelConfig,
    *,
    times: pd.DatetimeIndex | None = None,
    dropped: Sequence[pd.Timestamp] = (),
) -> LabelSet:
    """The labels of a file, without those of `config.left_out_grades`.

    times    of the series that window_start, or start and end, point into
    dropped  minutes whose rows were dropped from it: a pointer across one would be off

    A re-cut keeps `config.state_bars` bars before the expansion, where there is room.

    Raises DataError naming row and value: unknown label, pointer outside 0..T-1 or not whole, end
    before start, window or time not in the bars, windows over dropped bars, bars of another shape
    or not finite or not in order, two labels for one move, no label at all.
    """
    kept, left_out = _without_grades(file.table, config.left_out_grades, file.name)
    is_none = _says_no_move(kept["label"], config)
    table = kept[~is_none]
    if table.empty:
        raise DataError(
            f"a file must hold at least one label, got none{_besides(left_out, is_none)} "
            f"({file.name})"
        )

    places = Places(config, times, dropped, file.name)
    labels, windows = _located(table, file, config, places)
    no_moves = _no_moves(kept[is_none], file, places)

    is_first = _first_mentions(table, windows, labels, file)
    left_out["repeated"] = int((~is_first).sum())
    left_out["none: nobody sees a move"] = int(is_none.sum())
    labels = replace(
        labels.take(is_first),
        left_out=nonzero_counts(left_out),
        no_moves=no_moves if len(no_moves) else None,
    )

    _refuse_moves_in_no_moves(labels, kept[is_none], file.name)
    return labels


def with_own_features(labels: LabelSet, config: FeatureConfig) -> LabelSet:
    """Labels with the features of each window's own bars; others as they are."""
    if labels.bars is None:
        return labels

    rows, valid = features_of_windows(labels.bars, config)
    return replace(labels, features=rows, valid=valid)


# --- the table ------------------------------------------------------------------------------------


def _form(table: pd.DataFrame, place: str) -> Form:
    """The first form whose columns are all there. Raises DataError with what is missing."""
    has = set(table.columns)
    for form, needed in _NEEDED.items():
        if has >= set(needed):
            return form

    columns = ", ".join(map(str, table.columns))[:300]
    if not has & {"window_start", "features", "start", "end"}:
        raise DataError(
            f"missing column window_start or features: found {columns} ({place}); or name the "
            f"times of a move's first and last bar in start and end"
        )

    begun: Form = "times"
    if "window_start" in has:
        begun = "windows"
    elif "features" in has:
        begun = "own"
    missing = [name for name in ("label", *_NEEDED[begun]) if name not in has]
    listed = " and ".join(dict.fromkeys(missing))
    raise DataError(f"missing column {listed}: found {columns} ({place})")


def _without_grades(
    table: pd.DataFrame, grades: Sequence[str], place: str
) -> tuple[pd.DataFrame, dict[str, int]]:
    """The rows that stay, under their old row numbers, and how many went for which grade."""
    left_out = {}

    if "grade" in table:
        grade = table["grade"].astype(str).str.strip().str.upper()

        for name in grades:
            is_left_out = grade == name.upper()
            left_out[f"grade {name}"] = int(is_left_out.sum())
            table = table[~is_left_out.loc[table.index]]

    if table.empty:
        raise DataError(
            f"a file must hold at least one label, got none{_besides(left_out)} ({place})"
        )

    return table, left_out


def _besides(left_out: dict[str, int], is_none: Flags | None = None) -> str:
    """For messages: what else the file holds."""
    counts = dict(left_out)
    if is_none is not None:
        counts[f"label {NO_MOVE}"] = int(is_none.sum())

    return "".join(
        f", besides {count} of {reason}" for reason, count in nonzero_counts(counts).items()
    )


def _says_no_move(labels: "pd.Series[Any]", config: LabelConfig) -> Flags:
    """[n] whether a label is NO_MOVE, which is a class like others where the spec declares it."""
    if NO_MOVE in [label_word(name) for name in config.classes]:
        return np.zeros(len(labels), np.bool_)

    return np.array(
        [isinstance(label, str) and label_word(label) == NO_MOVE for label in labels],
        np.bool_,
    )


def _window_ids(table: pd.DataFrame, form: Form) -> NDArray[np.object_]:
    """[n] the given ids as text; a row without one is called by its window_start, or its start."""
    no_ids = pd.Series(None, table.index, dtype=object)
    ids = table.get("window_id", no_ids).astype(object)

    if form != "own":
        time = table["window_start" if form == "windows" else "start"]
        ids = ids.where(ids.notna(), time.astype(object))

    return ids.astype(str).to_numpy(object)


# --- where labels lie -----------------------------------------------------------------------------


def _located(
    table: pd.DataFrame,
    file: LabelFile,
    config: LabelConfig,
    places: Places,
) -> tuple[LabelSet, list[Hashable]]:
    """The labels at their places, and what tells their windows apart."""
    nowhere = np.full(len(table), -1)
    unplaced = LabelSet(
        source=file.name,
        classes=config.classes,
        label_index=class_index(table["label"], config.classes, file.name),
        start=nowhere,
        end=nowhere,
        window_id=_window_ids(table, file.form),
        anchor=nowhere,
        first_anchor=nowhere,
        last_anchor=nowhere,
        state_bars=config.state_bars,
        mirror=config.mirrored_classes(),
    )

    if file.form == "times":
        labels = places.of_times(unplaced, table)
        return labels, [None] * len(table)

    start, end = _read_pointers(table, file.name)
    pointed = replace(unplaced, start=start, end=end)
    if file.form == "windows":
        labels = places.of_windows(pointed, table["window_start"])
        return labels, labels.anchor.tolist()

    bars = own_bars(table["features"], file.name)
    return replace(pointed, bars=bars), [window.tobytes() for window in bars]


def _no_moves(table: pd.DataFrame, file: LabelFile, places: Places) -> NoMoves:
    """The stretches of the rows with the label NO_MOVE, whose pointers mean nothing."""
    nowhere = np.full(len(table), -1)

    if file.form == "own":
        return NoMoves(nowhere, nowhere, own_bars(table["features"], file.name))
    if table.empty:
        return NoMoves(nowhere, nowhere)
    if file.form == "times":
        first, last = places.bars_of_times(table)
        return NoMoves(first, last)

    anchor = places.anchors(table["window_start"])
    return NoMoves(anchor, anchor + WINDOW - 1)


def _refuse_moves_in_no_moves(labels: LabelSet, table: pd.DataFrame, place: str) -> None:
    """Raises DataError where a row says that there is no move where another row has one."""
    no_moves = labels.no_moves
    if no_moves is None:
        return

    for k, row in enumerate(table.index):
        if labels.bars is not None and no_moves.bars is not None:
            inside = (labels.bars == no_moves.bars[k]).all(axis=(1, 2))
        else:
            starts_inside = labels.start_bar >= no_moves.first_bar[k]
            inside = starts_inside & (labels.end_bar <= no_moves.last_bar[k])

        if inside.any():
            label = int(np.argmax(inside))
            raise DataError(
                f"where nobody sees a move there must be none: {NO_MOVE} in row {row}, and "
                f"{labels.classes[labels.label_index[label]]} inside it "
                f"({labels.window_id[label]}, {place})"
            )


# --- where the expansion is in its window ---------------------------------------------------------


def _read_pointers(table: pd.DataFrame, place: str) -> tuple[Ints, Ints]:
    """(start, end), each [n] in 0..T-1."""
    start, end = (_read_pointer(table[name], place) for name in _POINTERS)
    refuse_first(
        end < start,
        "expansion_start must be <= expansion_end",
        _spans(start, end),
        table.index,
        place,
    )

    return start, end


def _spans(start: Ints, end: Ints) -> list[tuple[int, int]]:
    return list(zip(start.tolist(), end.tolist(), strict=True))


def _with_point(value: object) -> object:
    """Text with a decimal comma as a number has it."""
    return value.replace(",", ".") if isinstance(value, str) else value


def _read_pointer(column: "pd.Series[Any]", place: str) -> Ints:
    parsed = pd.to_numeric(column.map(_with_point), errors="coerce")
    number = parsed.to_numpy(np.float64, na_value=np.nan)

    in_window = (number >= 0) & (number < WINDOW)
    is_whole = number == np.floor(number)
    is_flag = np.array([isinstance(value, bool | np.bool_) for value in column], np.bool_)
    is_bar = in_window & is_whole & ~is_flag

    rule = f"{column.name} must be a bar 0..{WINDOW - 1} of the window"
    refuse_first(~is_bar, rule, column.tolist(), column.index, place)

    return number.astype(np.int64)


# --- rows about the same window -------------------------------------------------------------------


def _first_mentions(
    table: pd.DataFrame,
    windows: Sequence[Hashable],
    labels: LabelSet,
    file: LabelFile,
) -> Flags:
    """[n] False where a row repeats an earlier one.

    Raises DataError where a move has two labels, or one window_id names two windows.
    """
    spans = _spans(labels.start, labels.end)
    if file.form == "times":
        spans = _spans(labels.start_bar, labels.end_bar)

    kept = np.ones(len(table), np.bool_)
    first_rows: dict[Hashable, int] = {}

    for k, move in enumerate(zip(windows, spans, strict=True)):
        first = first_rows.setdefault(move, k)
        kept[k] = first == k

        if labels.label_index[first] != labels.label_index[k]:
            raise DataError(
                f"a move must have one label, got {quoted(table['label'].iloc[k])} and in row "
                f"{table.index[first]} {quoted(table['label'].iloc[first])} for the same bars "
                f"({_window_name(table, k)}, row {table.index[k]} of {file.name})"
            )

    if file.form != "times" and "window_id" in table:
        _refuse_ids_of_two_windows(table, windows, file.name)
    return kept


def _refuse_ids_of_two_windows(
    table: pd.DataFrame,
    windows: Sequence[Hashable],
    place: str,
) -> None:
    first_rows: dict[Hashable, int] = {}

    for k, window_id in enumerate(table["window_id"].tolist()):
        if pd.isna(window_id):
            continue

        first = first_rows.setdefault(window_id, k)
        if windows[first] != windows[k]:
            raise DataError(
                f"a window_id must name one window, got {quoted(window_id)} for another one in row "
                f"{table.index[first]} ({_window_name(table, k)}, row {table.index[k]} of {place})"
            )


def _window_name(table: pd.DataFrame, k: int) -> str:
    """What the row calls its window."""
    names = ("window_id", "window_start", "start", "end")
    return ", ".join(f"{name} {table[name].iloc[k]}" for name in names if name in table)

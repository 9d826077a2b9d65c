"""Labelled moves: what kind of market came before an expansion, and where in the window the expansion lies.

This is the one module that may look right: a label is made with the future in view. Nothing here feeds a feature.
Hindsight labels test the machinery; they are nobody's judgement and no trading result.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numba import njit
from numpy.typing import NDArray

from moola import WINDOW
from moola.bars import PRICES
from moola.errors import DataError
from moola.features.relativity import compute_features
from moola.specs import FeatureConfig, HindsightConfig, LabelConfig
from moola.windows import Split, valid_rows

HINDSIGHT_CLASSES = ("consolidation", "retracement")
UNLABELLED = -1
MIN_PER_CLASS = 2  # labels of each class in each split
SHARED_BARS = 10  # consecutive bars by which two windows are known to overlap
_COLUMNS = ("window_start", "window_id", "label", "expansion_start", "expansion_end", "grade", "features")
_BARS = f"{WINDOW} x [{', '.join(PRICES)}]"


@dataclass(frozen=True)
class LabelSet:
    """n labelled windows of one source. Their order is the source's; nothing in here is a feature of a later bar.

    Anchored labels lie in a series of bars, and training may re-cut their windows; the others carry their own `bars`.
    """

    source: str  # "hindsight", "planted" or the file's name
    classes: tuple[str, ...]
    label_index: NDArray[np.int64]  # [n] into classes
    start: NDArray[np.int64]  # [n] first bar of the expansion, 0..T-1, in the window at `anchor`
    end: NDArray[np.int64]  # [n] last bar of it, inclusive
    window_id: NDArray[np.object_]  # [n] text
    anchor: NDArray[np.int64]  # [n] row of the window's first bar in the series; -1 where it is in none
    first_anchor: NDArray[np.int64]  # [n] a re-cut window may start at first_anchor..last_anchor, both inclusive;
    last_anchor: NDArray[np.int64]  # [n] the expansion and its state are inside all of them
    bars: NDArray[np.float64] | None = None  # [n, T, 4] open, high, low, close of windows that carry their own
    features: NDArray[np.float32] | None = None  # [n, T, F] computed per window
    valid: NDArray[np.bool_] | None = None  # [n, T] False in the warm-up
    left_out: dict[str, int] = field(default_factory=dict)  # reason -> rows of the source

    def __len__(self) -> int:
        return len(self.label_index)

    @property
    def anchored(self) -> bool:
        return self.bars is None

    @property
    def start_bar(self) -> NDArray[np.int64]:
        """[n] first bar of the expansion as a row of the series; anchored labels only."""
        return self.anchor + self.start

    @property
    def end_bar(self) -> NDArray[np.int64]:
        """[n] last bar of the expansion as a row of the series; anchored labels only."""
        return self.anchor + self.end

    def class_counts(self) -> dict[str, int]:
        """class -> labels, in the order of the classes."""
        counts = np.bincount(self.label_index, minlength=len(self.classes))
        return dict(zip(self.classes, counts.tolist(), strict=True))

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> "LabelSet":
        """The labels at `rows` (numbers or a mask of [n]), in that order."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        taken: dict[str, Any] = {name: v[rows] for name, v in values.items() if isinstance(v, np.ndarray)}
        return replace(self, **taken)


# --- moves in a series: hindsight labels and the planted truth --------------------------------------------------------


def hindsight_labels(bars: pd.DataFrame, config: HindsightConfig | None = None) -> pd.DataFrame:
    """The labelled moves of `bars` (DatetimeIndex; open, high, low, close), in time order, one row each:

    label       "consolidation" or "retracement"
    state_start first bar of the state
    start, end  first and last bar of the expansion, row numbers of `bars`, both inclusive
    direction   +1 up, -1 down
    net_atr     |close[end] - close[start - 1]| / ATR
    efficiency  |close[end] - close[start - 1]| / sum of |close[i] - close[i - 1]| over start..end
    clear_from, clear_to  first and last bar at which a window may start so that no stronger expansion, labelled or
                not, lies whole in it; clear_from > clear_to where every window with this one holds a stronger one

    ATR is the plain mean of the true ranges of the `atr_period` bars that end at start - 1. An expansion has
    min_bars..max_bars bars, net_atr >= min_net_atr and efficiency >= min_efficiency. Of all that overlap, the best by
    net_atr / sqrt(bars) stays (ties: the earlier, then the shorter). Its state is the `state_bars` bars before it:
    consolidation if their range <= max_range_atr ATR; else retracement if the leg from the lowest low before the
    highest high up to that high is >= min_leg_atr ATR and what was given back from there to the lowest low after it
    is a fraction of the leg within `give_back` (mirrored for a move down); else the move is left unlabelled, though
    it still keeps weaker ones away. The state, the ATR and the expansion lie in one session: no pause of
    `gap_minutes` or more inside them. Multiplying all prices by one number changes no label but for rounding.
    """
    config = config or HindsightConfig()
    high, low, close = (np.array(bars[name], np.float64) for name in ("high", "low", "close"))
    since_gap = _bars_since_gap(pd.DatetimeIndex(bars.index), config.gap_minutes)
    atr = _average_true_range(high, low, close, config.atr_period)
    start, length, net_atr, efficiency = _expansions(
        close, atr, since_gap, max(config.state_bars, config.atr_period + 1), config.min_bars, config.max_bars,
        config.min_net_atr, config.min_efficiency,
    )  # fmt: skip
    ranked = np.argsort(-np.abs(net_atr) / np.sqrt(length), kind="stable")
    kept = _without_overlap(start, length, ranked, len(close))
    start, length, net_atr, efficiency = start[kept], length[kept], net_atr[kept], efficiency[kept]
    clear_from, clear_to = _clear_places(start, start + length - 1, np.abs(net_atr) / np.sqrt(length), len(close))
    direction = np.sign(net_atr).astype(np.int64)
    state = _states(
        high, low, atr, start, direction, config.state_bars, config.max_range_atr, config.min_leg_atr, *config.give_back
    )
    moves = pd.DataFrame(
        {
            "label": np.array([*HINDSIGHT_CLASSES, ""])[state],
            "state_start": start - config.state_bars,
            "start": start,
            "end": start + length - 1,
            "direction": direction,
            "net_atr": np.abs(net_atr),
            "efficiency": efficiency,
            "clear_from": clear_from,
            "clear_to": clear_to,
        }
    )
    labelled: pd.DataFrame = moves[state != UNLABELLED].reset_index(drop=True)
    return labelled


def _bars_since_gap(times: pd.DatetimeIndex, gap_minutes: int) -> NDArray[np.int64]:
    """[n_bars] how many bars of the same session come before each bar."""
    opened_ns = times.as_unit("ns").asi8
    after_gap = np.diff(opened_ns, prepend=opened_ns[:1]) >= gap_minutes * 60_000_000_000
    position = np.arange(len(times))
    return np.asarray(position - np.maximum.accumulate(np.where(after_gap, position, 0)))


@njit(cache=True)
def _average_true_range(
    high: NDArray[np.float64], low: NDArray[np.float64], close: NDArray[np.float64], period: int
) -> NDArray[np.float64]:
    """[n_bars] mean of the last `period` true ranges; nan until there are as many. Summed afresh for every bar, so
    that it does not depend on where the series starts."""
    true_range = np.zeros(len(close))
    for i in range(1, len(close)):
        true_range[i] = max(high[i] - low[i], abs(high[i] - close[i - 1]), abs(low[i] - close[i - 1]))
    atr = np.full(len(close), np.nan)
    for i in range(period, len(close)):
        total = 0.0
        for j in range(i - period + 1, i + 1):
            total += true_range[j]
        atr[i] = total / period
    return atr


@njit(cache=True)
def _expansions(
    close: NDArray[np.float64],
    atr: NDArray[np.float64],
    since_gap: NDArray[np.int64],
    history: int,
    min_bars: int,
    max_bars: int,
    min_net_atr: float,
    min_efficiency: float,
) -> Any:
    """(start, length, signed net in ATR, efficiency) of every expansion, overlapping ones too, by start then length."""
    found = [(0, 0, 0.0, 0.0) for _ in range(0)]
    for start in range(history, len(close)):
        unit = atr[start - 1]
        if since_gap[start] < history or not unit > 0:
            continue
        path = 0.0
        for end in range(start, min(start + max_bars, len(close))):
            if since_gap[end] == 0:
                break
            path += abs(close[end] - close[end - 1])
            net = close[end] - close[start - 1]
            long_enough = end - start + 1 >= min_bars
            if long_enough and abs(net) >= min_net_atr * unit and abs(net) >= min_efficiency * path:
                found.append((start, end - start + 1, net / unit, abs(net) / path))
    start_bar, length = np.empty(len(found), np.int64), np.empty(len(found), np.int64)
    net_atr, efficiency = np.empty(len(found)), np.empty(len(found))
    for k in range(len(found)):
        start_bar[k], length[k], net_atr[k], efficiency[k] = found[k]
    return start_bar, length, net_atr, efficiency


@njit(cache=True)
def _without_overlap(
    start: NDArray[np.int64], length: NDArray[np.int64], ranked: NDArray[np.int64], n_bars: int
) -> NDArray[np.bool_]:
    """[candidates] True for those that stay when the best ranked come first and none may touch a bar already taken."""
    taken, kept = np.zeros(n_bars, np.bool_), np.zeros(len(start), np.bool_)
    for k in ranked:
        bars = taken[start[k] : start[k] + length[k]]
        if not bars.any():
            bars[:] = True
            kept[k] = True
    return kept


@njit(cache=True)
def _clear_places(
    start: NDArray[np.int64], end: NDArray[np.int64], strength: NDArray[np.float64], n_bars: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where windows may start that hold no expansion stronger than this one; expansions in time order, none touching.

    A stronger one before is kept out by starting after its first bar, one behind by ending before its last.
    """
    clear_from, clear_to = np.zeros_like(start), np.full_like(start, n_bars - WINDOW)
    for k in range(len(start)):
        before = k - 1
        while before >= 0 and strength[before] <= strength[k]:
            before -= 1
        if before >= 0:
            clear_from[k] = start[before] + 1
        behind = k + 1
        while behind < len(start) and strength[behind] <= strength[k]:
            behind += 1
        if behind < len(start):
            clear_to[k] = min(n_bars, end[behind]) - WINDOW
    return clear_from, clear_to


@njit(cache=True)
def _states(
    high: NDArray[np.float64],
    low: NDArray[np.float64],
    atr: NDArray[np.float64],
    start: NDArray[np.int64],
    direction: NDArray[np.int64],
    state_bars: int,
    max_range_atr: float,
    min_leg_atr: float,
    least_back: float,
    most_back: float,
) -> NDArray[np.int64]:
    """[moves] index into HINDSIGHT_CLASSES, or UNLABELLED."""
    state = np.full(len(start), UNLABELLED)
    for k in range(len(start)):
        before, unit = slice(start[k] - state_bars, start[k]), atr[start[k] - 1]
        # A move down is the same move up of the mirrored prices.
        top = high[before] if direction[k] > 0 else -low[before]
        bottom = low[before] if direction[k] > 0 else -high[before]
        peak = np.argmax(top)
        if top[peak] - bottom.min() <= max_range_atr * unit:
            state[k] = 0
        elif 0 < peak < state_bars - 1:
            leg = top[peak] - bottom[:peak].min()
            given_back = top[peak] - bottom[peak + 1 :].min()
            if leg >= min_leg_atr * unit and least_back * leg <= given_back <= most_back * leg:
                state[k] = 1
    return state


def place_windows(moves: pd.DataFrame, times: pd.DatetimeIndex, config: LabelConfig, *, source: str) -> LabelSet:
    """Moves (label, state_start, start, end: rows of the bars that opened at `times`) as labelled windows.

    The window holds the state and the whole expansion, and where `moves` tells clear_from and clear_to, no stronger
    one: what a window's label is about must be in no doubt. Among the places left, the one taken is fixed by a hash of
    the minute the expansion starts in: all places are equally likely, so that no pointer can be guessed, and
    the same move lies at the same place however much history the series has. Raises DataError for a label that is
    not among the classes.
    """
    label_index = _class_index(moves["label"], config.classes, f"the {source} labels")
    state, start, end = (moves[name].to_numpy(np.int64) for name in ("state_start", "start", "end"))
    first = np.maximum(end - WINDOW + 1, 0)
    last = np.minimum(state, len(times) - WINDOW)
    too_long = first > last
    if "clear_from" in moves:
        first = np.maximum(first, moves["clear_from"].to_numpy(np.int64))
        last = np.minimum(last, moves["clear_to"].to_numpy(np.int64))
    fits = first <= last
    minutes = times[start[fits]]
    first, last, start, end = first[fits], last[fits], start[fits], end[fits]
    anchor = first + (_hash(minutes.as_unit("s").asi8 // 60) % (last - first + 1).astype(np.uint64)).astype(np.int64)
    return LabelSet(
        source=source,
        classes=config.classes,
        label_index=label_index[fits],
        start=start - anchor,
        end=end - anchor,
        window_id=(f"{source}-" + minutes.strftime("%Y%m%dT%H%M")).to_numpy(object),
        anchor=anchor,
        first_anchor=first,
        last_anchor=last,
        left_out=_counted(
            {
                f"state and expansion longer than {WINDOW} bars": int(too_long.sum()),
                "a stronger expansion in every window": int((~fits & ~too_long).sum()),
            }
        ),
    )


def planted_labels(moves: pd.DataFrame, times: pd.DatetimeIndex, config: LabelConfig) -> LabelSet:
    """`moves` of `moola.synthetic.Market` (UTC minutes) in the bars that opened at `times`, by `place_windows`.

    Raises DataError for a move that is not in the bars.
    """
    rows = {}
    for ours, theirs in (("state_start", "state_start"), ("start", "expansion_start"), ("end", "expansion_end")):
        minutes = pd.DatetimeIndex(moves[theirs])
        rows[ours] = times.get_indexer(minutes)
        rule = f"{theirs} must be a minute of the bars ({_span(times)})"
        _refuse(rows[ours] < 0, rule, minutes.astype(str), moves.index, "the planted moves")
    return place_windows(pd.DataFrame({"label": moves["label"].to_numpy(), **rows}), times, config, source="planted")


def _hash(values: NDArray[np.int64]) -> NDArray[np.uint64]:
    """splitmix64 (Steele, Lea and Flood, OOPSLA 2014): the same on every machine, and even in its low bits."""
    z = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


# --- label files ------------------------------------------------------------------------------------------------------


def read_labels(
    path: Path,
    config: LabelConfig,
    *,
    times: pd.DatetimeIndex | None = None,
    dropped: Sequence[pd.Timestamp] = (),
    features: FeatureConfig | None = None,
) -> LabelSet:
    """The labels of a parquet or CSV file; columns label, expansion_start, expansion_end (0..T-1 in the window, both
    inclusive), optional grade (those of `config.left_out_grades` are left out), and one of

    window_start  UTC minute of the window's first bar in the series that opened at `times`; optional window_id.
                  `dropped` are the minutes whose rows were dropped from that series: a pointer across one is off.
    features      T x [open, high, low, close], nested, flat (bar after bar) or JSON text; needs window_id. The features
                  are computed from these bars alone, with `features`, and their first WARM_UP bars are masked.

    With both, window_start is taken. A re-cut keeps `config.state_bars` bars before the expansion, or all the file's
    window has. Rows that say the same twice count once. Rows are counted from 0, a header not included.

    Raises DataError naming row and value: missing column, unknown label, pointer outside 0..T-1 or not whole, end
    before start, window not in the bars or over dropped ones, bars of another shape, not finite or not in order, one
    window or window_id with two labels, no label at all.
    """
    table = _read_table(path)
    table, left_out = _without_grades(table, config.left_out_grades, path.name)
    label_index = _class_index(table["label"], config.classes, path.name)
    start, end = _pointers(table, path.name)
    if "window_start" not in table:
        bars = _own_bars(table["features"], path.name)
        anchor = first = last = np.full(len(table), -1)
        windows = [window.tobytes() for window in bars]
    elif times is None:
        raise DataError(f"window_start needs the bars it points into, got none ({path.name})")
    else:
        bars, anchor = None, _anchors(table["window_start"], times, dropped, path.name)
        first = np.maximum(anchor + end - WINDOW + 1, 0)
        last = np.minimum(anchor + np.maximum(start - config.state_bars, 0), len(times) - WINDOW)
        windows = anchor.tolist()
    kept = _once(table, windows, start, end, path.name)
    left_out = _counted({**left_out, "said twice": int((~kept).sum())})
    labels = LabelSet(
        path.name, config.classes, label_index, start, end, _window_ids(table), anchor, first, last, bars,
        left_out=left_out,
    ).take(kept)  # fmt: skip
    if labels.bars is None:
        return labels
    rows, valid = features_of_windows(labels.bars, features or FeatureConfig())
    return replace(labels, features=rows, valid=valid)


def _read_table(path: Path) -> pd.DataFrame:
    """The file's rows, with the columns that every label needs."""
    try:
        table = pd.read_parquet(path) if path.suffix.lower() in (".parquet", ".pq") else pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise DataError(f"labels must be a readable parquet or CSV file: {error} ({path.name})") from error
    if table.index.name in _COLUMNS:
        table = table.reset_index()
    table = table.reset_index(drop=True)
    anchored, found = "window_start" in table, ", ".join(map(str, table.columns))[:300]
    if not anchored and "features" not in table:
        raise DataError(f"missing column window_start or features: found {found} ({path.name})")
    needed = ("label", "expansion_start", "expansion_end", *(() if anchored else ("window_id",)))
    missing = [name for name in needed if name not in table]
    if missing:
        raise DataError(f"missing column {' and '.join(missing)}: found {found} ({path.name})")
    return table


def _without_grades(table: pd.DataFrame, grades: Sequence[str], place: str) -> tuple[pd.DataFrame, dict[str, int]]:
    """The rows that stay, under their old row numbers, and how many went for which grade."""
    left_out = {}
    if "grade" in table:
        grade = table["grade"].astype(str).str.strip().str.upper()
        left_out = {f"grade {name}": int((grade == name.upper()).sum()) for name in grades}
        table = table[~grade.isin([name.upper() for name in grades])]
    if table.empty:
        besides = "".join(f", besides {n} of {grade}" for grade, n in _counted(left_out).items())
        raise DataError(f"a file must hold at least one label, got none{besides} ({place})")
    return table, left_out


def _refuse(broken: NDArray[np.bool_], rule: str, values: Any, rows: Any, place: str) -> None:
    """Raise DataError for the first row that breaks `rule`."""
    if broken.any():
        at = int(np.argmax(broken))
        raise DataError(f"{rule}, got {values[at]!r} (row {rows[at]} of {place})")


def _class_index(labels: "pd.Series[Any]", classes: Sequence[str], place: str) -> NDArray[np.int64]:
    """[n] index of each label in the classes; there is no default class."""
    index = pd.Index(classes).get_indexer(pd.Index(labels, dtype=object))
    _refuse(
        index < 0, f"label must be one of {', '.join(classes)} (labels.classes)", labels.tolist(), labels.index, place
    )
    return index.astype(np.int64)


def _pointers(table: pd.DataFrame, place: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(start, end), each [n] in 0..T-1."""
    ends = []
    for name in ("expansion_start", "expansion_end"):
        number = pd.to_numeric(table[name], errors="coerce").to_numpy(np.float64, na_value=np.nan)
        a_bar = ~table[name].map(lambda value: isinstance(value, bool | np.bool_)).to_numpy(np.bool_)
        whole = a_bar & (number >= 0) & (number < WINDOW) & (number == np.floor(number))
        _refuse(~whole, f"{name} must be a bar 0..{WINDOW - 1} of the window", table[name].tolist(), table.index, place)
        ends.append(number.astype(np.int64))
    start, end = ends
    spans = list(zip(start.tolist(), end.tolist(), strict=True))
    _refuse(end < start, "expansion_start must be <= expansion_end", spans, table.index, place)
    return start, end


def _anchors(
    starts: "pd.Series[Any]", times: pd.DatetimeIndex, dropped: Sequence[pd.Timestamp], place: str
) -> NDArray[np.int64]:
    """[n] rows of the bars that the windows start at."""
    text = starts.dtype == object or pd.api.types.is_string_dtype(starts.dtype)
    minutes = pd.DatetimeIndex(pd.to_datetime(starts, utc=True, errors="coerce", format="ISO8601" if text else None))
    anchor = times.get_indexer(minutes).astype(np.int64)
    named = [str(value) for value in starts]
    _refuse(anchor < 0, f"window_start must be a minute of the bars ({_span(times)})", named, starts.index, place)
    outside = anchor + WINDOW > len(times)
    _refuse(outside, f"a window needs {WINDOW} bars from window_start on ({_span(times)})", named, starts.index, place)
    lost = pd.DatetimeIndex(list(dropped)).sort_values() if len(dropped) else times[:0]
    n_lost = lost.searchsorted(times[anchor + WINDOW - 1], side="right") - lost.searchsorted(times[anchor])
    _refuse(n_lost > 0, "a labelled window must hold no dropped bar: window_start", named, starts.index, place)
    return anchor


def _own_bars(windows: "pd.Series[Any]", place: str) -> NDArray[np.float64]:
    """[n, T, 4] the bars that the windows carry."""
    bars = np.empty((len(windows), WINDOW, len(PRICES)))
    for k, (row, value) in enumerate(windows.items()):
        where = f"(row {row} of {place})"
        try:
            window = np.array(_plain_lists(value), np.float64)
        except (TypeError, ValueError) as error:
            raise DataError(f"features must be {_BARS}, got {str(value)[:80]!r}: {error} {where}") from error
        if window.shape not in (bars.shape[1:], (WINDOW * len(PRICES),)):
            raise DataError(f"features must be {_BARS}, got shape {window.shape} {where}")
        bars[k] = window.reshape(bars.shape[1:])
        rules = {
            "prices must be finite and > 0": (np.isfinite(bars[k]) & (bars[k] > 0)).all(axis=1),
            "open and close must lie in [low, high]": _in_order(bars[k]),
        }
        for rule, good in rules.items():
            if not good.all():
                at = int(np.argmin(good))
                raise DataError(
                    f"{rule}, got {bars[k, at].tolist()} as {', '.join(PRICES)} (bar {at}, row {row} of {place})"
                )
    return bars


def _plain_lists(value: Any) -> Any:
    """Nested lists, from the arrays of arrays that parquet gives or the JSON text that a CSV holds."""
    value = json.loads(value) if isinstance(value, str) else value
    return value.tolist() if isinstance(value, np.ndarray) else value


def _in_order(bars: NDArray[np.float64]) -> NDArray[np.bool_]:
    """[T] low <= open, close <= high; nan counts as in order."""
    opened, high, low, close = bars.T
    return np.asarray(~((np.maximum(opened, close) > high) | (np.minimum(opened, close) < low)))


def _once(
    table: pd.DataFrame, windows: Sequence[Any], start: NDArray[np.int64], end: NDArray[np.int64], place: str
) -> NDArray[np.bool_]:
    """[n] False where a row says again what an earlier one said. Raises where it says another label."""
    kept = np.ones(len(table), np.bool_)
    named = table["window_id"].tolist() if "window_id" in table else [None] * len(table)
    seen: dict[tuple[str, Any], tuple[int, str]] = {}
    said: set[tuple[Any, ...]] = set()
    for k, (row, label, window, name) in enumerate(zip(table.index, table["label"], windows, named, strict=True)):
        for key in [("window", window)] + ([] if pd.isna(name) else [("window_id", name)]):
            first, other = seen.setdefault(key, (row, label))
            if other != label:
                raise DataError(
                    f"a window must have one label, got {label!r} and in row {first} {other!r} "
                    f"for the same {key[0]} ({_name(table, k)}, row {row} of {place})"
                )
        says = (window, start[k], end[k])
        kept[k] = says not in said
        said.add(says)
    return kept


def _name(table: pd.DataFrame, k: int) -> str:
    """What the row calls its window."""
    names = [name for name in ("window_id", "window_start") if name in table]
    return ", ".join(f"{name} {table[name].iloc[k]}" for name in names)


def _window_ids(table: pd.DataFrame) -> NDArray[np.object_]:
    """[n] the given ids as text; a row without one is called by its window_start."""
    ids = table["window_id"] if "window_id" in table else pd.Series(None, table.index, dtype=object)
    if "window_start" in table:
        ids = ids.astype(object).where(ids.notna(), table["window_start"])
    return ids.astype(str).to_numpy(object)


def features_of_windows(
    bars: NDArray[np.float64], config: FeatureConfig
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Bars [n, T, 4] -> (features [n, T, F], valid [n, T]): each window a series of its own, its warm-up masked."""
    rows = [compute_features(pd.DataFrame(window, columns=list(PRICES)), config) for window in bars]
    return np.stack(rows), np.tile(valid_rows(np.zeros(WINDOW, np.bool_)), (len(bars), 1))


def _span(times: pd.DatetimeIndex) -> str:
    return f"{times[0]:%Y-%m-%d %H:%M} to {times[-1]:%Y-%m-%d %H:%M} UTC"


def _counted(reasons: dict[str, int]) -> dict[str, int]:
    return {reason: rows for reason, rows in reasons.items() if rows}


# --- splits -----------------------------------------------------------------------------------------------------------


def assign_splits(labels: LabelSet, splits: Mapping[str, Split]) -> tuple[dict[str, LabelSet], dict[str, int]]:
    """Anchored labels by split, and how many rows of the source are in none, by reason.

    A label is in a split if its whole window is; re-cut windows are held inside the split too. Raises DataError where
    a class has fewer than MIN_PER_CLASS labels in a split.
    """
    if not labels.anchored:
        raise DataError(f"labels that carry their own bars are split in their order, not by time ({labels.source})")
    parts = {}
    for name, split in splits.items():
        part = labels.take((labels.anchor >= split.start) & (labels.anchor < split.stop))
        parts[name] = replace(
            part,
            first_anchor=np.maximum(part.first_anchor, split.start),
            last_anchor=np.minimum(part.last_anchor, split.stop - 1),
        )
    return _with_examples(parts, labels), _left_out(parts, labels, "window over a cut or outside the splits")


def split_in_order(labels: LabelSet, fractions: Mapping[str, float]) -> tuple[dict[str, LabelSet], dict[str, int]]:
    """Labels that carry their own bars by split, and how many rows of the source are in none, by reason.

    The file's order is taken for the order of time. A window that shares SHARED_BARS consecutive bars with a window of
    a later split is in none, so that no split knows another's bars. Raises DataError as `assign_splits` does.
    """
    if labels.bars is None:
        raise DataError(f"labels that point into a series are split by its time, not by their order ({labels.source})")
    cuts = np.round(np.cumsum([0.0, *fractions.values()]) * len(labels)).astype(np.int64)
    parts: dict[str, LabelSet] = {}
    later: set[bytes] = set()
    for name, start, stop in reversed(list(zip(fractions, cuts, cuts[1:], strict=False))):
        pieces = {k: _pieces(labels.bars[k]) for k in range(start, stop)}
        parts[name] = labels.take(np.array([k for k in pieces if later.isdisjoint(pieces[k])], np.int64))
        later.update(*pieces.values())
    parts = {name: parts[name] for name in fractions}
    return _with_examples(parts, labels), _left_out(parts, labels, "shares bars with a later split")


def _left_out(parts: Mapping[str, LabelSet], labels: LabelSet, reason: str) -> dict[str, int]:
    return _counted({**labels.left_out, reason: len(labels) - sum(map(len, parts.values()))})


def _pieces(bars: NDArray[np.float64]) -> set[bytes]:
    """Every run of SHARED_BARS consecutive bars of a window [T, 4]."""
    return {bars[i : i + SHARED_BARS].tobytes() for i in range(len(bars) - SHARED_BARS + 1)}


def _with_examples(parts: dict[str, LabelSet], labels: LabelSet) -> dict[str, LabelSet]:
    for name, part in parts.items():
        among = f"in {name} (of {len(part)} in {name} and {len(labels)} in {labels.source})"
        require_examples(part, "labels in each split", among)
    return parts


def require_examples(part: LabelSet, what: str, among: str) -> None:
    """Raises DataError where a class has fewer than MIN_PER_CLASS labels; `what` it needs, `among` which they are."""
    for label, count in part.class_counts().items():
        if count < MIN_PER_CLASS:
            raise DataError(f"each class needs {MIN_PER_CLASS} {what}: {label} has {count} {among}")

"""What a series of bars is, checked after loading: one instrument, one bar a minute, in one
spacing.

What would be learned from wrongly is refused by what it is (5-minute bars, two contracts in one
file). What can be lived with is reported: contract rolls, bars stamped at their close, bars that
fill closed hours, pauses, repeats.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from moola import PRICES
from moola.data.advice import command
from moola.data.instruments import (
    Roll,
    refuse_mixture,
    rolls_of_columns,
    rolls_of_jumps,
    wide_jumps,
)
from moola.data.loading import LoadedBars
from moola.data.series import MINUTE_NS
from moola.data.series_rows import Rows
from moola.data.time_values import SECOND_NS
from moola.errors import DataError
from moola.features.arrays import Flags, Floats, Ints
from moola.specs import SESSION_BREAK_MINUTES, SeriesConfig

# This many equal steps in a row, none of a minute, are another spacing: thin 1-minute bars of SPY
# have 2 in a row.
OTHER_STEP_RUN = 20
# The rest of a spacing, an odd volume: up to this fraction of the rows is a slip, above it is what
# the column is.
SLIP_FRACTION = 0.01
FILLER_RUN_BARS = SESSION_BREAK_MINUTES  # EUR/USD without volume has 4 in a row
# Sessions open and close on quarters of an hour.
QUARTER_MINUTES = 15
_UNITS = (
    (86_400, "day"),
    (3_600, "hour"),
    (60, "minute"),
    (1, "second"),
)


@dataclass(frozen=True)
class FillerRun:
    """Bars in a row without a trade: open = high = low = close = the close before and no volume, or
    the whole bar before again.
    """

    first: pd.Timestamp
    n_bars: int


@dataclass(frozen=True)
class SeriesReport:
    """What was found in a series and done about it."""

    step_s: int
    step_fraction: float  # of the steps that are the commonest
    n_pauses: int  # rows without prices and volume, left out
    n_repeats: int  # rows that say the same twice, left out
    n_other_instruments: int  # rows left out by the choice of one instrument
    instrument: str | None
    rolls: tuple[Roll, ...]
    filler_runs: tuple[FillerRun, ...]
    fillers_left_out: bool
    stamped_at_close: bool  # by all signs, and nobody said so
    n_odd_volumes: int
    volume_left_out: bool
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON: times as ISO text in UTC."""
        document = asdict(self)
        document["rolls"] = [
            {**asdict(roll), "minute": roll.minute.isoformat()} for roll in self.rolls
        ]
        document["filler_runs"] = [
            {"first": run.first.isoformat(), "n_bars": run.n_bars} for run in self.filler_runs
        ]
        document["warnings"] = list(self.warnings)
        return document


@dataclass(frozen=True)
class Series:
    """The rows that are bars: times [n_rows] UTC ns, values [4 or 5, n_rows], and the loaded row of
    each.

    `is_roll` [n_rows] is True for the first bar of another contract: it is flagged, and no move
    spans it. `rows` is None where no row was left out.
    """

    times: Ints
    values: Floats
    rows: Ints | None
    is_roll: Flags
    report: SeriesReport

    def loaded_row(self, row: int) -> int:
        """The row as it was loaded, for messages."""
        return row if self.rows is None else int(self.rows[row])


def check_series(
    loaded: LoadedBars,
    config: SeriesConfig = SeriesConfig(),  # noqa: B008
) -> Series:
    """The series in `loaded`, whose arrays are used up: rows that are left out are overwritten.

    Raises DataError for a series that is not one instrument's bars of one minute. What single bars
    must be (prices in order, whole minutes, increasing times) is not looked at here.
    """
    bars = Rows(loaded)
    layout = loaded.layout
    n_pauses = bars.keep(~_pauses(bars))
    n_others = bars.keep_instrument(layout.instrument)
    is_roll, rolls = rolls_of_columns(bars)
    n_repeats = 0

    if (bars.steps(bars.gaps()) <= 0).any():
        keep = ~_repeats(bars)
        is_roll = is_roll[keep]
        n_repeats = bars.keep(keep)

    step_s, step_fraction = _check_step(bars)
    wide = wide_jumps(bars)
    refuse_mixture(bars, wide)
    is_roll, jumps = rolls_of_jumps(bars, wide, is_roll)
    n_odd, volume_left_out = _mend_volume(bars)
    stamped_at_close = layout.stamp is None and _is_stamped_at_close(bars)
    is_filler, filler_runs = _fillers(bars)

    leave_out = config.fillers == "leave_out" and bool(filler_runs)
    if leave_out:
        is_roll = is_roll[~is_filler]
        bars.keep(~is_filler)

    report = SeriesReport(
        step_s=step_s,
        step_fraction=step_fraction,
        n_pauses=n_pauses,
        n_repeats=n_repeats,
        n_other_instruments=n_others,
        instrument=layout.instrument,
        rolls=tuple(sorted((*rolls, *jumps), key=lambda roll: roll.minute)),
        filler_runs=filler_runs,
        fillers_left_out=leave_out,
        stamped_at_close=stamped_at_close,
        n_odd_volumes=n_odd,
        volume_left_out=volume_left_out,
        warnings=(),
    )
    report = replace(report, warnings=_warnings(report, loaded))
    return Series(bars.times, bars.values, bars.rows, is_roll, report)


def _pauses(bars: Rows) -> Flags:
    """Rows without prices and without volume: closed minutes, empty lines."""
    is_pause: Flags = np.isnan(bars.values[0])
    if not is_pause.any():
        return is_pause

    for price in bars.values[1:4]:
        is_pause &= np.isnan(price)
    if bars.volume is not None:
        is_pause &= np.isnan(bars.volume) | (bars.volume == 0)
    return is_pause


def _repeats(bars: Rows) -> Flags:
    """Rows that an earlier one says, too."""
    order = np.argsort(bars.times, kind="stable")
    is_same = bars.times[order][1:] == bars.times[order][:-1]

    for column in bars.values:
        ordered = column[order]
        is_same &= (ordered[1:] == ordered[:-1]) | (np.isnan(ordered[1:]) & np.isnan(ordered[:-1]))
    for instruments in bars.instruments:
        codes = instruments.codes[order]
        is_same &= codes[1:] == codes[:-1]

    repeats = np.zeros(bars.n_rows, dtype=np.bool_)
    repeats[order[1:][is_same]] = True
    return repeats


def _check_step(bars: Rows) -> tuple[int, float]:
    """The commonest step in seconds and its share. Raises DataError where it is not a minute, or
    not throughout.
    """
    gaps = bars.gaps()
    steps = bars.steps(gaps)
    n_minutes = bars.n_rows - 1 - len(gaps)
    n_forward = n_minutes + int(np.count_nonzero(steps > 0))

    if n_minutes * 2 <= n_forward and n_forward > 0:
        commonest, count = _commonest(steps[steps > 0])
        if count > n_minutes and count * 2 < n_forward:
            raise DataError(
                f"the commonest step must be 1 minute, and it is {step_text(commonest)} "
                f"({count} of {n_forward} steps): most minutes are missing; choose the download "
                f"with all of them ({bars.loaded.path.name})"
            )
        if count > n_minutes and n_minutes < OTHER_STEP_RUN:
            raise DataError(
                f"the bars must be 1 minute apart, and these are {step_text(commonest)} apart "
                f"({count} of {n_forward} "
                f"steps): choose the download of 1-minute bars ({bars.loaded.path.name})"
            )

    run = _first_run(gaps[steps > 0], steps[steps > 0])
    if run is not None:
        first, length, step = run
        raise DataError(
            f"the bars must be 1 minute apart throughout, and from "
            f"{bars.minute(first - 1):%Y-%m-%d %H:%M} UTC on "
            f"{length} in a row are {step_text(step)} apart ({bars.place(first - 1)})"
        )
    return 60, n_minutes / n_forward if n_forward else 1.0


def _commonest(steps: Ints) -> tuple[int, int]:
    values, counts = np.unique(steps, return_counts=True)
    most = int(counts.argmax())
    return int(values[most]), int(counts[most])


def _first_run(gaps: Ints, steps: Ints) -> tuple[int, int, int] | None:
    """Row, length and step of the first OTHER_STEP_RUN steps in a row that are equal and none of a
    minute.
    """
    if len(gaps) < OTHER_STEP_RUN:
        return None

    is_new = np.ones(len(gaps), dtype=np.bool_)
    is_new[1:] = (np.diff(gaps) != 1) | (steps[1:] != steps[:-1])
    starts = np.flatnonzero(is_new)
    lengths = np.diff(starts, append=len(gaps))

    long = np.flatnonzero(lengths >= OTHER_STEP_RUN)
    if not len(long):
        return None
    start = starts[long[0]]
    return int(gaps[start]), int(lengths[long[0]]), int(steps[start])


def step_text(step_ns: int) -> str:
    """5 minutes, 1 second, 1 day: in the largest unit that needs no fraction."""
    seconds, rest = divmod(step_ns, SECOND_NS)
    if rest:
        return f"{step_ns / SECOND_NS:g} seconds"

    size, unit = next((size, unit) for size, unit in _UNITS if seconds % size == 0)
    number = seconds // size
    return f"{number} {unit}" if number == 1 else f"{number} {unit}s"


def _is_stamped_at_close(bars: Rows) -> bool:
    """Whether sessions run from :01 to :00 and not from :00 to :59, by most of the pauses."""
    gaps = bars.gaps()
    after = gaps[bars.steps(gaps) >= SESSION_BREAK_MINUTES * MINUTE_NS]
    first = bars.times[after] // MINUTE_NS % QUARTER_MINUTES
    last = bars.times[after - 1] // MINUTE_NS % QUARTER_MINUTES

    like_close = np.count_nonzero((first == 1) & (last == 0))
    return bool(like_close > 0 and like_close * 2 > len(after))


def _fillers(
    bars: Rows,
) -> tuple[Flags, tuple[FillerRun, ...]]:
    """[n_rows] whether a bar is one of FILLER_RUN_BARS or more in a row without a trade, and these
    runs.
    """
    is_filler = np.zeros(bars.n_rows, dtype=np.bool_)
    is_empty = _in_runs(bars, _has_no_trade) | _in_runs(bars, _says_the_bar_before)
    if not is_empty.any():
        return is_filler, ()

    edges = np.flatnonzero(np.diff(is_empty, prepend=False, append=False))
    runs = []
    for start, stop in edges.reshape(-1, 2).tolist():
        if stop - start >= FILLER_RUN_BARS:
            is_filler[start:stop] = True
            runs.append(FillerRun(bars.minute(start), stop - start))
    return is_filler, tuple(runs)


def _in_runs(bars: Rows, is_so: Callable[[Rows, Ints], Flags]) -> Flags:
    """[n_rows] `is_so` of rows that may belong to a run of FILLER_RUN_BARS or more."""
    is_filler: Flags = np.zeros(bars.n_rows, dtype=np.bool_)
    probes = np.arange(FILLER_RUN_BARS, bars.n_rows, FILLER_RUN_BARS)  # each run has one
    hits = probes[is_so(bars, probes)]

    around = np.arange(-FILLER_RUN_BARS, FILLER_RUN_BARS + 1)
    rows = np.unique(hits[:, None] + around)
    rows = rows[(rows > 0) & (rows < bars.n_rows)]
    is_filler[rows] = is_so(bars, rows)
    return is_filler


def _has_no_trade(bars: Rows, rows: Ints) -> Flags:
    """Whether bars stand still at the close before them, without volume."""
    _, _, _, close = bars.values[:4]
    is_flat: Flags = np.ones(len(rows), dtype=np.bool_)
    for price in bars.values[: len(PRICES)]:
        is_flat &= price[rows] == close[rows - 1]

    if bars.volume is not None:
        is_flat &= ~(bars.volume[rows] > 0)
    return is_flat


def _says_the_bar_before(bars: Rows, rows: Ints) -> Flags:
    """Whether bars have the prices of the ones before: a pinned price has them too, so a bar that
    stands still does not count.
    """
    _, high, low, _ = bars.values[:4]
    is_same: Flags = high[rows] > low[rows]
    for price in bars.values[: len(PRICES)]:
        is_same &= price[rows] == price[rows - 1]
    return is_same


def _mend_volume(bars: Rows) -> tuple[int, bool]:
    """How many volumes are odd: below 0, infinite or missing. A few count as 0, many are no volume
    at all.
    """
    volume = bars.volume
    if volume is None:
        has_column = any("volume" in file.decisions.columns for file in bars.loaded.report.files)
        return (bars.n_rows, True) if has_column else (0, False)

    is_odd = ~((volume >= 0) & (volume < np.inf))
    n_odd = int(np.count_nonzero(is_odd))
    if n_odd == 0:
        return 0, False
    if n_odd > SLIP_FRACTION * bars.n_rows:
        bars.values = bars.values[: len(PRICES)]
        return n_odd, True

    volume[is_odd] = 0.0
    return n_odd, False


def _warnings(report: SeriesReport, loaded: LoadedBars) -> tuple[str, ...]:
    warnings = []
    path = loaded.path

    if report.stamped_at_close:
        warnings.append(
            f"sessions begin at :01 and end at :00, so the bars seem to carry the minute of their "
            f"close: "
            f"{command(path, stamp='close')}; or --set layout.stamp=open where that is right"
        )
    for roll in report.rolls[:10]:
        warnings.append(
            f"the contract rolls at {roll.minute:%Y-%m-%d %H:%M} UTC ({roll.reason}: "
            f"{roll.before} -> {roll.after}, "
            f"{roll.jump:+g}): the bar is flagged"
        )
    if len(report.rolls) > 10:
        warnings.append(f"{len(report.rolls) - 10} more rolls are in the metadata")

    if report.filler_runs:
        longest = max(report.filler_runs, key=lambda run: run.n_bars)
        total = sum(run.n_bars for run in report.filler_runs)
        done = "left out" if report.fillers_left_out else "kept; --set series.fillers=leave_out"
        warnings.append(
            f"{total} bars in {len(report.filler_runs)} runs without a trade, the longest "
            f"{longest.n_bars} from "
            f"{longest.first:%Y-%m-%d %H:%M} UTC on: {done}"
        )
    if report.n_odd_volumes:
        done = "the column is left out" if report.volume_left_out else "they count as 0"
        warnings.append(f"{report.n_odd_volumes} volumes are no numbers of at least 0: {done}")

    if report.n_repeats:
        warnings.append(f"{report.n_repeats} rows say what an earlier one says: counted once")
    if report.n_pauses:
        warnings.append(f"{report.n_pauses} rows have no prices and no volume: left out")
    if report.n_other_instruments:
        warnings.append(f"{report.n_other_instruments} rows of other instruments: left out")
    return tuple(warnings)

"""1-minute bars: files become a checked frame in UTC; owns the clock convention.

A bar carries the minute it OPENED, so it is known one minute later. `moola.data.loading` reads the
rows, `moola.data.series_checks` looks at them as one series, `moola.data.bar_rules` judges each.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from moola import PRICES, WINDOW
from moola.data.advice import command, given
from moola.data.bar_rules import (
    BarRows,
    OnBadBars,
    broken_rules,
    count_by_rule,
    refuse_bad_rows,
)
from moola.data.blocks import BLOCK_ROWS
from moola.data.loading import LayoutReport, LoadedBars, load_bars
from moola.data.series import NO_TIME, Gaps, find_gaps
from moola.data.series_checks import Series, SeriesReport, check_series
from moola.errors import DataError
from moola.features.arrays import Codes, Flags, Ints
from moola.specs import LayoutConfig, PrecomputeSpec, SeriesConfig

MAX_DROPPED_FRACTION: float = PrecomputeSpec.model_fields["max_dropped_fraction"].default


@dataclass(frozen=True)
class BarsReport:
    """What was found in a file of bars.

    dropped          rule (a key of RULES) -> rows
    dropped_minutes  in file order; rows without a time are only counted
    has_volume       False too where the column is there and 0 everywhere
    """

    n_bars: int
    first: pd.Timestamp
    last: pd.Timestamp
    dropped: dict[str, int]
    dropped_minutes: tuple[pd.Timestamp, ...]
    gaps: Gaps
    has_volume: bool

    def as_dict(self) -> dict[str, object]:
        """The same, ready for JSON: times as ISO text in UTC."""
        return {
            "n_bars": self.n_bars,
            "first": self.first.isoformat(),
            "last": self.last.isoformat(),
            "dropped": dict(self.dropped),
            "dropped_minutes": [minute.isoformat() for minute in self.dropped_minutes],
            "gaps": self.gaps.as_dict(),
            "has_volume": self.has_volume,
        }


@dataclass(frozen=True)
class Bars:
    """Checked bars.

    frame    indexed by "timestamp" (UTC, ns, increasing); float64 columns open, high, low, close,
             and volume where the file has one
    flagged  [n_bars] True for a bar that follows dropped rows, and for the first of a contract
    layout   what was decided about the files
    series   what was found in the series
    """

    frame: pd.DataFrame
    report: BarsReport
    flagged: Flags
    layout: LayoutReport
    series: SeriesReport

    def as_dict(self) -> dict[str, Any]:
        """All that was found, ready for JSON."""
        return {
            **self.report.as_dict(),
            "layout": self.layout.as_dict(),
            "series": self.series.as_dict(),
        }


def read_bars(
    where: Path | str | Sequence[Path],
    *,
    timezone: str | None = None,
    on_bad_bars: OnBadBars = "fail",
    max_dropped_fraction: float = MAX_DROPPED_FRACTION,
    layout: LayoutConfig = LayoutConfig(),  # noqa: B008
    series: SeriesConfig = SeriesConfig(),  # noqa: B008
    called: str | None = None,
) -> Bars:
    """The bars of a local file, of a folder's files or of a pattern's, at least WINDOW of them.

    `moola.data.layouts` and the fields of `layout` say how files are written, `timezone` is an IANA
    name for times that do not state their zone. `called` is what messages and commands in them call
    the bars.

    "drop" removes rows that break one of RULES (of a duplicate the later one, out of order the one
    that steps back), at most `max_dropped_fraction` of them. A time that daylight saving makes
    ambiguous or skips, and text that is no number, fail in both modes. Raises DataError.
    """
    with given(called or _name(where), layout, timezone):
        loaded = load_bars(where, layout, timezone)
        if called is not None and len(loaded.report.files) > 1:
            loaded = replace(loaded, path=Path(called))
        checked = check_series(loaded, series)

        return judge_rows(loaded, checked, on_bad_bars, max_dropped_fraction)


def judge_rows(
    loaded: LoadedBars,
    checked: Series,
    on_bad_bars: OnBadBars,
    max_dropped_fraction: float,
) -> Bars:
    """The rows that keep all rules, whose arrays are used up. Raises DataError."""
    rows = BarRows(checked.times, checked.values, lambda row: _locate(loaded, checked, row))
    broken = broken_rules(rows)
    dropping = f"{command(loaded.path)} --on-bad-bars drop"
    refuse_bad_rows(rows, broken, on_bad_bars, max_dropped_fraction, dropping)
    _require_window(int(np.count_nonzero(broken == 0)), loaded.path)

    return _without_bad_rows(loaded, checked, broken)


def read_bars_of(
    spec: PrecomputeSpec,
    where: Path | str | Sequence[Path],
    called: str | None = None,
) -> Bars:
    """`read_bars` as a spec says. Raises DataError."""
    return read_bars(
        where,
        timezone=spec.timezone,
        on_bad_bars=spec.on_bad_bars,
        max_dropped_fraction=spec.max_dropped_fraction,
        layout=spec.layout,
        series=spec.series,
        called=called,
    )


def _name(where: Path | str | Sequence[Path]) -> str:
    if isinstance(where, (str, Path)):
        return str(where)
    return str(where[0] if len(where) == 1 else where[0].parent)


def _locate(loaded: LoadedBars, series: Series, row: int) -> tuple[int, str]:
    return loaded.locate(series.loaded_row(row))


def _without_bad_rows(loaded: LoadedBars, series: Series, broken: Codes) -> Bars:
    """The rows that are good; those of `series` are moved to the front of its arrays."""
    is_bad = broken != 0
    flagged = series.is_roll.copy()
    flagged[1:] |= is_bad[:-1]

    times = series.times
    values = series.values
    dropped_times = times[is_bad & (times != NO_TIME)]

    if is_bad.any():
        n_good = int(np.count_nonzero(~is_bad))
        flagged = flagged[~is_bad]
        times = times[~is_bad]
        for column in values:
            column[:n_good] = column[~is_bad]
        values = values[:, :n_good]

    frame = pd.DataFrame(
        values.T,
        index=_utc(times),
        columns=[*PRICES, "volume"][: len(values)],
        copy=False,
    )
    report = _report(frame, count_by_rule(broken), _utc(dropped_times))
    return Bars(frame, report, flagged, loaded.report, series.report)


def write_bars(frame: pd.DataFrame, destination: Path | IO[bytes]) -> None:
    """Bars as parquet, `timestamp` in UTC first.

    The same frame gives the same bytes (with the same pyarrow). Raises DataError for naive times.
    """
    index = frame.index
    if not isinstance(index, pd.DatetimeIndex) or index.tz is None:
        raise DataError(f"bars must be indexed by times with a zone, got {index.dtype}")

    utc_ns = pa.array(index.tz_convert("UTC").as_unit("ns").asi8)
    columns = {"timestamp": utc_ns.cast(pa.timestamp("ns", "UTC"))}

    for name in (*PRICES, "volume"):
        if name in frame:
            values = frame[name].to_numpy(np.float64)
            columns[name] = pa.array(values)

    pa.parquet.write_table(
        pa.table(columns),
        destination,
        compression="zstd",
        row_group_size=2 * BLOCK_ROWS,
    )


def _require_window(n_bars: int, path: Path) -> None:
    if n_bars < WINDOW:
        raise DataError(f"a file must hold at least {WINDOW} good bars, got {n_bars} ({path.name})")


def _utc(times: Ints) -> pd.DatetimeIndex:
    return pd.DatetimeIndex(
        times.view("datetime64[ns]"),
        tz="UTC",
        name="timestamp",
    )


def _report(
    frame: pd.DataFrame,
    dropped: dict[str, int],
    dropped_minutes: pd.DatetimeIndex,
) -> BarsReport:
    times = pd.DatetimeIndex(frame.index)
    has_volume = "volume" in frame and bool((frame["volume"] > 0).any())

    return BarsReport(
        n_bars=len(times),
        first=times[0],
        last=times[-1],
        dropped=dropped,
        dropped_minutes=tuple(dropped_minutes),
        gaps=find_gaps(times),
        has_volume=has_volume,
    )

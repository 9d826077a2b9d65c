"""What is understood of files of bars, as far as they are understood, and what is refused."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from moola import PRICES
from moola.data.advice import command, given
from moola.data.bars import Bars, judge_rows
from moola.data.containers import open_container
from moola.data.loading import LayoutReport, LoadedBars, load_bars
from moola.data.series import NO_TIME
from moola.data.series_checks import SeriesReport, check_series
from moola.data.splits import split_windows
from moola.errors import DataError
from moola.specs import PrecomputeSpec

SHOWN_BARS = 2  # the first and the last
HEAD_BYTES = 4096  # of a text, in which its first lines are
SHOWN_LINES = 3
SHOWN_CHARACTERS = 100


@dataclass(frozen=True)
class Inspection:
    """Each part is None where reading did not come so far; `refused` says why.

    `first_rows` and `last_rows` are as they stand in the files, time and prices; `begins` are the
    first lines of a text whose rows could not be read. `command` reads
    the bars, or would if its gaps are filled in; None where none is known.
    """

    where: str
    layout: LayoutReport | None
    n_rows: int | None
    first_rows: tuple[dict[str, Any], ...]
    last_rows: tuple[dict[str, Any], ...]
    series: SeriesReport | None
    bars: Bars | None
    warnings: tuple[str, ...]
    refused: str | None
    command: str | None
    begins: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        document: dict[str, Any] = {
            "bars": self.where,
            "n_bars": None,
            "first": None,
            "last": None,
            "n_rows": self.n_rows,
            "first_rows": list(self.first_rows),
            "last_rows": list(self.last_rows),
            "begins": list(self.begins),
        }
        if self.layout is not None:
            document |= self.layout.as_dict()
        if self.series is not None:
            document |= self.series.as_dict()
        if self.bars is not None:
            document |= self.bars.report.as_dict()

        return document | {
            "warnings": list(self.warnings),
            "refused": self.refused,
            "command": self.command,
        }


def inspect_bars(spec: PrecomputeSpec, files: Sequence[Path], where: str) -> Inspection:
    """Reads the bars as precompute would, and goes as far as that goes; `where` names them."""
    with given(where, spec.layout, spec.timezone):
        found = Inspection(where, None, None, (), (), None, None, (), None, _command(spec, where))
        try:
            loaded = load_bars(files, spec.layout, spec.timezone)
            loaded = replace(loaded, path=Path(where))
            found = _with_rows(found, loaded)

            checked = check_series(loaded, spec.series)
            found = replace(found, series=checked.report, warnings=checked.report.warnings)

            bars = judge_rows(loaded, checked, spec.on_bad_bars, spec.max_dropped_fraction)
            warnings = (*found.warnings, *_dropped(bars), *_short_splits(spec, bars))
            return replace(found, bars=bars, warnings=warnings)
        except DataError as error:
            begins = _first_lines(files[0]) if found.layout is None else ()
            return replace(
                found,
                refused=str(error),
                command=_command_in(str(error)),
                begins=begins,
            )


def _first_lines(path: Path) -> tuple[str, ...]:
    """Of a text; none of anything else."""
    try:
        container = open_container(path)
    except DataError:
        return ()
    if container.kind != "text":
        return ()

    text = container.head[:HEAD_BYTES].decode(errors="replace")
    printable = ["".join(filter(str.isprintable, line)) for line in text.splitlines()]
    return tuple(line[:SHOWN_CHARACTERS] for line in printable[:SHOWN_LINES])


def _with_rows(found: Inspection, loaded: LoadedBars) -> Inspection:
    rows = range(loaded.n_rows)
    return replace(
        found,
        layout=loaded.report,
        n_rows=loaded.n_rows,
        first_rows=tuple(_row(loaded, row) for row in rows[:SHOWN_BARS]),
        last_rows=tuple(_row(loaded, row) for row in rows[SHOWN_BARS:][-SHOWN_BARS:]),
    )


def _row(loaded: LoadedBars, row: int) -> dict[str, Any]:
    time = loaded.times[row]
    names = (*PRICES, "volume")
    values = dict(zip(names, loaded.values[:, row].tolist(), strict=False))

    return {
        "time": None if time == NO_TIME else pd.Timestamp(int(time), tz="UTC").isoformat(),
        # JSON has no NaN.
        **{name: value if abs(value) < float("inf") else None for name, value in values.items()},
    }


def _dropped(bars: Bars) -> list[str]:
    return [f"{count} rows are dropped: {rule}" for rule, count in bars.report.dropped.items()]


def _short_splits(spec: PrecomputeSpec, bars: Bars) -> list[str]:
    """What precompute would refuse for want of bars: the bars themselves are good."""
    try:
        split_windows(pd.DatetimeIndex(bars.frame.index), spec.splits)
    except DataError as error:
        return [f"precompute needs more: {error}"]
    return []


def _command(spec: PrecomputeSpec, where: str) -> str:
    """The command that reads the bars, with all that decides how."""
    words = command(where)
    defaults = PrecomputeSpec()

    if spec.on_bad_bars != defaults.on_bad_bars:
        words += f" --on-bad-bars {spec.on_bad_bars}"
    if spec.max_dropped_fraction != defaults.max_dropped_fraction:
        words += f" --set max_dropped_fraction={spec.max_dropped_fraction:g}"
    if spec.series.fillers != defaults.series.fillers:
        words += f" --set series.fillers={spec.series.fillers}"
    return words


def _command_in(message: str) -> str | None:
    """The command that a message ends with."""
    _, found, rest = message.rpartition("moola precompute ")
    return found + rest if found else None

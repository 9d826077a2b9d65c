"""What was understood of bars, as pairs of a heading and a line of text."""

from typing import Any

import pandas as pd

from moola.data.bars import BarsReport
from moola.data.inspection import Inspection
from moola.data.loading import LayoutReport
from moola.data.series_checks import SeriesReport, step_text
from moola.data.time_values import SECOND_NS

SHOWN_FILES = 3
SHOWN_ROLLS = 4

Lines = list[tuple[str, str]]


def layout_text(report: LayoutReport) -> str:
    """How the files are written, in one line, for the log."""
    return f"{_files_text(report)}: " + "; ".join(
        text for heading, text in layout_lines(report) if heading != "files"
    )


def layout_lines(report: LayoutReport) -> Lines:
    """How the files are written."""
    decisions = report.files[0].decisions
    columns = ", ".join(
        name if name.lower() == role else f"{role} = {name}"
        for role, name in decisions.columns.items()
    )
    stated = decisions.zone == "stated"
    zone = "each states its zone" if stated else f"in {decisions.zone}"
    table = [decisions.container, f"layout {decisions.layout}"]

    if decisions.separator is not None:
        table.append(f"separator {decisions.separator}")
        table.append(f"decimal {decisions.decimal}")
        table.append("a header" if decisions.header else "no header")
    if decisions.lines_skipped:
        table.append(f"{decisions.lines_skipped} lines skipped")
    if decisions.price_scale != 1:
        table.append(f"prices divided by {decisions.price_scale:g}")
    if report.newest_first:
        table.append("newest first: turned round")

    return [
        ("files", _files_text(report)),
        ("layout", ", ".join(table)),
        ("columns", columns),
        ("times", f"{decisions.time_format}, {zone}, the minute of the {decisions.stamp}"),
    ]


def _files_text(report: LayoutReport) -> str:
    names = [file.name for file in report.files[:SHOWN_FILES]]
    n_more = len(report.files) - SHOWN_FILES
    return ", ".join([*names, *([f"{n_more} more"] if n_more > 0 else [])])


def series_lines(report: SeriesReport) -> Lines:
    """What the series is."""
    step = f"{step_text(report.step_s * SECOND_NS)} ({report.step_fraction:.1%} of the steps)"
    rolls = [f"{roll.minute:%Y-%m-%d %H:%M}" for roll in report.rolls[:SHOWN_ROLLS]]
    n_more = len(report.rolls) - SHOWN_ROLLS
    if n_more > 0:
        rolls.append(f"{n_more} more")

    n_fillers = sum(run.n_bars for run in report.filler_runs)
    fillers = f"{n_fillers} bars in {len(report.filler_runs)} runs" if n_fillers else "none"
    lines = [
        ("step", step),
        ("rolls", ", ".join(rolls) or "none"),
        ("fillers", fillers),
    ]
    if report.instrument is not None:
        lines.append(("instrument", report.instrument))
    return lines


def bars_lines(report: BarsReport) -> Lines:
    """The bars that are left."""
    gaps = report.gaps
    first, last = _minute(report.first), _minute(report.last)
    longest = ""
    if gaps.longest_after is not None:
        after = _minute(gaps.longest_after)
        longest = f"; the longest {gaps.longest_minutes:,} minutes after {after}"

    return [
        ("bars", f"{report.n_bars:,} from {first} to {last} UTC"),
        ("volume", "yes" if report.has_volume else "no"),
        ("gaps", f"{gaps.count:,}, of them {gaps.session_breaks:,} session breaks{longest}"),
    ]


def inspection_lines(found: Inspection) -> Lines:
    """All that was understood, in the order of reading."""
    lines: Lines = []
    if found.layout is not None:
        lines += layout_lines(found.layout)

    for heading, rows in (("first", found.first_rows), ("last", found.last_rows)):
        if rows:
            lines.append((heading, "\n".join(map(_row_text, rows))))
    if found.begins:
        lines.append(("begins", "\n".join(found.begins)))
    if found.series is not None:
        lines += series_lines(found.series)

    if found.bars is not None:
        lines += bars_lines(found.bars.report)
    elif found.n_rows is not None:
        lines.append(("rows", f"{found.n_rows:,}"))

    return lines


def _minute(time: pd.Timestamp) -> str:
    return f"{time:%Y-%m-%d %H:%M}"


def _row_text(row: dict[str, Any]) -> str:
    values = [f"{value:.10g}" if value is not None else "-" for value in _numbers(row)]
    time = row["time"]
    return " ".join([_minute(pd.Timestamp(time)) if time else "no time", *values])


def _numbers(row: dict[str, Any]) -> list[float | None]:
    return [value for name, value in row.items() if name != "time"]

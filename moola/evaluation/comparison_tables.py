"""A comparison's rows of text, and its tables for the terminal."""

import json
from collections.abc import Sequence

from pydantic import JsonValue
from rich import box
from rich.table import Column, Table
from rich.text import Text

from moola.evaluation.comparison import Comparison, Spread
from moola.evaluation.formats import format_value
from moola.evaluation.result_documents import MetricDocument
from moola.text import shortened

SPEC_HEADING = "What differs in their specs"
LONGEST_VALUE = 40  # characters of a field's value


def difference_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """Field, and its value in each run."""
    return [
        (shortened(name), *map(_value_text, values))
        for name, values in comparison.differences.items()
    ]


def _value_text(value: JsonValue) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return shortened(text, LONGEST_VALUE)


def group_headings(comparison: Comparison) -> list[str]:
    """One for each set of runs that differ by the seed alone."""
    return [f"{', '.join(group.letters)}: mean ± sd" for group in comparison.seed_groups]


def metric_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """Metric, its value in each run, and its spread over the seeds."""
    rows = []
    for name, metrics in comparison.metrics.items():
        some = next(metric for metric in metrics if metric is not None)
        unit = ", bars" if some.unit == "bars" else ""
        spreads = [group.spreads.get(name) for group in comparison.seed_groups]
        rows.append(
            (
                shortened(some.title) + unit,
                *(_metric_text(metric) for metric in metrics),
                *(_spread_text(spread, some.unit) for spread in spreads),
            )
        )
    return rows


def _metric_text(metric: MetricDocument | None) -> str:
    return "" if metric is None else format_value(metric.value, metric.unit)


def _spread_text(spread: Spread | None, unit: str) -> str:
    if spread is None:
        return ""
    return f"{format_value(spread.mean, unit)} ± {format_value(spread.deviation, unit)}"


def comparison_tables(comparison: Comparison) -> list[Table]:
    """The runs and their letters, what differs in the specs, and the metrics."""
    letters = [run.letter for run in comparison.runs]
    runs = [(run.letter, run.run_id, run.name) for run in comparison.runs]
    metrics = metric_rows(comparison)
    tables = [
        _table("Runs", ("", "run", "name"), runs),
        _table(SPEC_HEADING, ("field", *letters), difference_rows(comparison)),
    ]
    if metrics:
        headings = ("metric", *letters, *group_headings(comparison))
        tables.append(_table("Test; fractions, unless bars are named", headings, metrics))
    return tables


def _table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    columns = [Column(heading, overflow="fold") for heading in headings]
    table = Table(*columns, title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*map(Text, row))
    return table

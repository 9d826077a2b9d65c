"""A feature set's checks and statistics as tables for people."""

from rich.table import Table
from rich.text import Text

from moola import WINDOW
from moola.data.verify import Report
from moola.data.window_stats import WindowStats
from moola.features import FEATURE_NAMES, FEATURE_RANGES

PASS = Text("pass", style="green")
FAIL = Text("FAIL", style="bold red")


def checks_table(report: Report) -> Table:
    """All checks: value found, bound, pass or FAIL."""
    table = Table("check", "found", "must be", "", title="Feature set")

    for check in report.checks:
        mark = PASS if check.passed else FAIL
        table.add_row(check.name, check.value, check.bound, mark)

    return table


def features_table(stats: WindowStats) -> Table:
    """Per feature: range found and allowed, density, live positions."""
    table = Table(
        "feature",
        "min",
        "max",
        "allowed",
        "non-zero %",
        f"live of {WINDOW}",
        title="Features",
    )

    for column, name in enumerate(FEATURE_NAMES[: len(stats.minimum)]):
        low, high = FEATURE_RANGES[name]
        n_live = int(stats.live[:, column].sum())
        table.add_row(
            name,
            f"{stats.minimum[column]:.3f}",
            f"{stats.maximum[column]:.3f}",
            f"[{low:g}, {high:g}]",
            f"{100 * stats.density[column]:.1f}",
            str(n_live),
        )

    return table

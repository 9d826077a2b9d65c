"""Cross-validations as a table for the terminal."""

import json
from collections.abc import Sequence

from rich import box
from rich.table import Column, Table
from rich.text import Text

from moola.evaluation.cross_validation import NOT_COMMITTED, CrossValidated
from moola.evaluation.formats import format_value
from moola.evaluation.metrics import HEADLINE, catalogue
from moola.text import shortened

SPREAD_CHARACTERS = len("0.400 ± 0.283")


def cross_validation_table(results: Sequence[CrossValidated]) -> Table:
    """Two rows for each: the mean and spread over its runs, and the value on all windows."""
    titles = catalogue(())
    n_folds = ", ".join(str(n) for n in sorted({result.n_folds for result in results}))
    left = [text for result in results for text in _left_texts(result)]
    table = Table(
        Column("", overflow="fold"),
        Column("runs", no_wrap=True),
        Column("", no_wrap=True),
        *[Column(titles[name].title, min_width=SPREAD_CHARACTERS) for name in HEADLINE],
        title=f"Cross-validation, {n_folds} folds, on test",
        title_justify="left",
        caption="\n".join(left) or None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )

    for result in results:
        spreads = result.spreads()
        values = result.of_all_windows()
        means = [
            f"{format_value(spreads[name].mean)} ± {format_value(spreads[name].deviation)}"
            if name in spreads
            else format_value(None)
            for name in HEADLINE
        ]
        pooled = [format_value(values.get(name)) for name in HEADLINE]
        n_all = len(result.runs) + len(result.left)
        runs = f"{len(result.runs)} of {n_all}"
        table.add_row(*map(Text, (_differs_text(result), runs, "mean ± sd", *means)))
        table.add_row(*map(Text, ("", "", "all windows", *pooled)))
    return table


def _differs_text(result: CrossValidated) -> str:
    return "\n".join(
        shortened(f"{name}={value if isinstance(value, str) else json.dumps(value)}")
        for name, value in result.differs.items()
    )


def _left_texts(result: CrossValidated) -> list[str]:
    """Of the runs that are committed, and yet not among them."""
    return [
        shortened(f"{run_id}: {reason}")
        for run_id, reason in result.left.items()
        if reason != NOT_COMMITTED
    ]

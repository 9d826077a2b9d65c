"""One self-contained HTML page of a comparison: its tables, and learning curves over each other."""

from collections.abc import Sequence
from html import escape

import numpy as np
import pandas as pd

from moola import HIT_BARS
from moola.evaluation import pictures
from moola.evaluation.comparison import ComparedRun, Comparison
from moola.evaluation.comparison_tables import (
    SPEC_HEADING,
    difference_rows,
    group_headings,
    metric_rows,
)
from moola.evaluation.report import CONTENT_POLICY
from moola.evaluation.style import BLUE, CSS, GREEN, INK, MUTED, ORANGE, PURPLE, VERMILION

COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, INK, MUTED)
DASHES = ("-", "--", ":", "-.")  # from one round through the colours to the next
CURVES = {
    "loss": "Loss on the training split",
    f"val_hit{HIT_BARS}": f"Hit@±{HIT_BARS} on the validation split",
    "val_f1": "F1 macro on the validation split",
}
MAX_POINTS = 2000  # of a curve


def render_comparison(comparison: Comparison) -> str:
    """The whole page. The same runs give the same bytes."""
    with pictures.drawing():
        curves = "".join(
            _figure(comparison.runs, column, title) for column, title in CURVES.items()
        )
    letters = [run.letter for run in comparison.runs]
    sections = {
        "Runs": _table(
            ("", "run", "name"), [(r.letter, r.run_id, r.name) for r in comparison.runs]
        ),
        SPEC_HEADING: _table(("field", *letters), difference_rows(comparison)),
        "Metrics on the test split": _table(
            ("metric", *letters, *group_headings(comparison)), metric_rows(comparison)
        ),
        "Learning curves": curves or "<p>Nothing was recorded.</p>",
    }
    body = "".join(
        f"<section><h2>{escape(title)}</h2>{content}</section>"
        for title, content in sections.items()
    )
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{CONTENT_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>moola compare</title><style>{CSS}</style></head>"
        f"<body><main><header><h1>moola: {len(letters)} runs compared</h1></header>{body}"
        "</main></body></html>\n"
    )


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return "<p>None.</p>"
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = ""
    for first, *rest in rows:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        body += f"<tr><th>{escape(first)}</th>{cells}</tr>"
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _figure(runs: Sequence[ComparedRun], column: str, title: str) -> str:
    """A curve of each run that has one, over epochs; "" where none has."""
    curves = {run.letter: _values(run.history, column) for run in runs}
    if not any(len(values) for values in curves.values()):
        return ""

    figure, (ax,) = pictures.panels(1, pictures.PAGE_WIDTH, 3.2, right=pictures.LEGEND_WIDTH)
    for at, (letter, values) in enumerate(curves.items()):
        ax.plot(
            np.arange(1, len(values) + 1),
            values,
            color=COLOURS[at % len(COLOURS)],
            linestyle=DASHES[at // len(COLOURS) % len(DASHES)],
            label=letter,
        )
    ax.set_xlabel("epoch with labels")
    ax.locator_params(axis="x", integer=True)
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    picture = pictures.svg(figure, title)
    return f"<figure><figcaption>{escape(title)}</figcaption>{picture}</figure>"


def _values(
    history: pd.DataFrame | None, column: str
) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    """What was recorded in the epochs with labels; nothing where the table has no such numbers."""
    if history is None or column not in history or "stage" not in history:
        return np.empty(0)
    rows = history.loc[history["stage"] != "pretrain", column]
    values = pd.to_numeric(rows, errors="coerce").to_numpy(np.float64)
    return values[:MAX_POINTS] if np.isfinite(values).any() else np.empty(0)

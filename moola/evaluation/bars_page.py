"""One self-contained HTML page of bars: what was understood of them, and a picture."""

from html import escape

from moola.data.bars import Bars
from moola.data.bars_text import Lines, bars_lines, inspection_lines, layout_lines, series_lines
from moola.data.inspection import Inspection
from moola.evaluation.bars_picture import Marks, draw_bars
from moola.evaluation.style import CSS, ORANGE, VERMILION

CONTENT_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
KEY = (
    f"<p>Highest and lowest price, the minutes from bar to bar, and volume. "
    f'<b style="color:{VERMILION}">|</b> first bar of a contract, '
    f'<b style="color:{ORANGE}">|</b> dropped rows, shaded: bars without a trade.</p>'
)


def render_inspection(found: Inspection) -> str:
    """The page of `moola bars`. The same bars give the same bytes."""
    notes = list(found.warnings)
    if found.refused is not None:
        notes.insert(0, f"Refused: {found.refused}")
    return _page(found.where, inspection_lines(found), notes, found.bars, found.command)


def render_bars(bars: Bars, title: str) -> str:
    """The page that precompute writes into its run."""
    lines = [*layout_lines(bars.layout), *series_lines(bars.series), *bars_lines(bars.report)]
    return _page(title, lines, list(bars.series.warnings), bars, None)


def _page(
    title: str,
    lines: Lines,
    notes: list[str],
    bars: Bars | None,
    command: str | None,
) -> str:
    facts = "".join(
        f"<div><dt>{escape(heading)}</dt><dd>{_text(text)}</dd></div>" for heading, text in lines
    )
    warnings = "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    reads = "" if command is None else f"<h3>Read with</h3><p><code>{escape(command)}</code></p>"
    picture = "" if bars is None else f"<section>{_picture(bars)}{KEY}</section>"
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{CONTENT_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>moola bars {escape(title)}</title><style>{CSS}</style></head>"
        f"<body><main><header><h1>Bars: {escape(title)}</h1>{warnings}<dl>{facts}</dl>{reads}"
        f"</header>{picture}</main></body></html>\n"
    )


def _text(text: str) -> str:
    return escape(text).replace("\n", "<br>")


def _picture(bars: Bars) -> str:
    marks = Marks(
        rolls=[roll.minute for roll in bars.series.rolls],
        dropped=bars.report.dropped_minutes,
        fillers=[(run.first, run.n_bars) for run in bars.series.filler_runs],
    )
    return draw_bars(bars.frame, marks)

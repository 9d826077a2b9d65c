"""One self-contained HTML page: bars as candles, with the moves found on them. No network.

The candles are drawn by a short script of ours (`moves_page.js`), the only one that the page's
policy lets run.
"""

import base64
import hashlib
import json
from html import escape
from importlib.resources import files

import numpy as np
import pandas as pd

from moola import PRICES
from moola.data.series import MINUTE_NS
from moola.evaluation.style import CSS, RULE
from moola.specs import SESSION_BREAK_MINUTES
from moola.text import counted

PAGE_CSS = f"""
main{{max-width:1500px}}
#chart{{display:block;width:100%;height:460px;border:1px solid {RULE};cursor:grab;
 touch-action:none}}
#note{{font-variant-numeric:tabular-nums;min-height:1.5em;margin:8px 0 0}}
.tools button{{font:inherit;margin:0 6px 10px 0;padding:3px 11px}}
.list{{max-height:420px;overflow:auto;position:relative}}
#moves thead th{{position:sticky;top:0;background:#fff}}
#moves tbody tr{{cursor:pointer}}
#moves tbody tr:hover,#moves tr.chosen{{background:#fdf0e6}}
"""
BUTTONS = {
    "closer": "zoom in",
    "wider": "zoom out",
    "all": "all bars",
    "earlier": "earlier",
    "later": "later",
    "previous": "previous move",
    "next": "next move",
}
HEADINGS = (
    "",
    "start, UTC",
    "end, UTC",
    "type",
    "a move",
    "of this type",
    "windows that agree",
    "window of best view",
)


def render_moves(
    bars: pd.DataFrame,
    moves: pd.DataFrame,
    threshold: float,
    run_id: str,
) -> str:
    """The page. `moves` are those of `predict_moves` in the same `bars`."""
    script = files("moola.evaluation").joinpath("moves_page.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    buttons = "".join(f'<button id="{name}">{text}</button>' for name, text in BUTTONS.items())

    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>moola moves {escape(run_id)}</title><style>{CSS}{PAGE_CSS}</style></head>"
        f"<body><main><header><h1>Moves</h1><p>{_summary(bars, moves, threshold, run_id)}</p>"
        "</header>"
        f'<section><div class="tools">{buttons}</div><canvas id="chart"></canvas>'
        '<p id="note">Wheel: zoom. Drag, or arrow keys: earlier and later. n, p: next and previous '
        "move.</p></section>"
        f"<section>{_table(moves)}</section></main>"
        f'<script type="application/json" id="data">{_json(bars, moves)}</script>'
        f"<script>{script}</script></body></html>\n"
    )


def moves_text(moves: pd.DataFrame, threshold: float) -> str:
    """How many moves were found, in words."""
    shown = f"{threshold:.2f}"
    if float(shown) != threshold:
        shown = f"{threshold:g}"
    count = "no move" if moves.empty else counted(len(moves), "move")
    return f"{count} with a probability of {shown} or more"


def _summary(
    bars: pd.DataFrame,
    moves: pd.DataFrame,
    threshold: float,
    run_id: str,
) -> str:
    text = moves_text(moves, threshold)
    return (
        f"{text[0].upper()}{text[1:]} in {len(bars):,} bars, "
        f"{bars.index[0]:%Y-%m-%d %H:%M} to {bars.index[-1]:%Y-%m-%d %H:%M} UTC; "
        f"model of run {escape(run_id)}. The shade of a move is the deeper, the surer it is. "
        "Hollow candles rise, filled ones fall; a dotted line is a pause of half an hour or more."
    )


def _table(moves: pd.DataFrame) -> str:
    if moves.empty:
        return "<p>No move was found in these bars.</p>"

    head = "".join(f"<th>{heading}</th>" for heading in HEADINGS)
    rows = "".join(
        f"<tr><td>{number}</td><td>{move.start:%Y-%m-%d %H:%M}</td>"
        f"<td>{move.end:%Y-%m-%d %H:%M}</td><td>{escape(str(move.type))}</td>"
        f"<td>{move.probability:.2f}</td><td>{move.probability_of_type:.2f}</td>"
        f"<td>{move.windows_agree} of {move.windows}</td>"
        f"<td>{move.best_window:%Y-%m-%d %H:%M}</td></tr>"
        for number, move in enumerate(moves.itertuples(), 1)
    )
    return (
        f'<div class="list"><table id="moves"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _json(bars: pd.DataFrame, moves: pd.DataFrame) -> str:
    """Numbers only: what users named stays out of the script's data."""
    minutes = pd.DatetimeIndex(bars.index).as_unit("ns").asi8 // MINUTE_NS
    prices = {name: bars[name].astype(float).tolist() for name in PRICES}
    first = bars.index.get_indexer(pd.DatetimeIndex(moves["start"]))
    last = bars.index.get_indexer(pd.DatetimeIndex(moves["end"]))
    marks = [
        {"first": int(begin), "last": int(end), "probability": round(float(probability), 4)}
        for begin, end, probability in zip(first, last, moves["probability"], strict=True)
    ]

    return json.dumps(
        {
            "start": int(minutes[0]),
            "pause": SESSION_BREAK_MINUTES,
            "minutes": np.asarray(minutes - minutes[0]).tolist(),
            **prices,
            "moves": marks,
        },
        separators=(",", ":"),
        allow_nan=False,
    )

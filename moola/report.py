"""One self-contained HTML page of a training run: tables and pictures, no network, nothing unescaped.

Pictures are data URIs; text that comes from users stays in HTML, where it is escaped, and out of the pictures.
"""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moola import WINDOW
from moola.errors import DataError
from moola.metrics import (
    BASELINE_TITLES,
    POINTER_BASELINES,
    SUCCESS_TOLERANCE,
    Gate,
    Predictions,
    Targets,
    show,
)
from moola.specs import GateConfig

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart by the colour-blind too
INK, MUTED, RULE = "#1f2933", "#616e7c", "#d9dee3"
BLUE, VERMILION, GREEN, PURPLE, ORANGE = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.color": INK,
    "text.parse_math": False,  # a "$" in a name is a "$"
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "svg.hashsalt": "moola",  # the same run gives the same bytes
}
LABEL_NOTES = {
    "hindsight": (
        "Hindsight labels: found in these bars by a rule that sees the future. This run tests the machinery. "
        "It says nothing about anyone's judgement and is not a trading result."
    ),
    "planted": (
        "Planted labels: the true moves of a synthetic market. This run tests the machinery. "
        "It says nothing about any traded market."
    ),
}
LEGEND = 1.4  # inches to the right of the panels
SMOOTHED_POINTS = 200  # above so many points a curve is drawn as its moving mean, the points faint behind it


@dataclass(frozen=True)
class ShownWindow:
    """A window with what is true and what was predicted of it.

    ohlc [T, 4] open, high, low, close; spans are bars 0..104, inclusive; opened: the first bar's time, for people.
    """

    window_id: str
    opened: str
    ohlc: NDArray[Any]
    label: str
    start: int
    end: int
    predicted_label: str
    predicted_start: int
    predicted_end: int
    probability: float  # of the predicted label

    def __post_init__(self) -> None:
        ohlc = np.asarray(self.ohlc, np.float64)
        if ohlc.shape != (WINDOW, 4) or not np.isfinite(ohlc).all():
            raise DataError(f"ohlc must be finite [{WINDOW}, 4], got {list(ohlc.shape)} (window {self.window_id})")

    @property
    def right(self) -> bool:
        """Joint success: the type is right and the centre near enough."""
        off = 0.5 * abs(self.start + self.end - self.predicted_start - self.predicted_end)
        return self.label == self.predicted_label and off <= SUCCESS_TOLERANCE


@dataclass(frozen=True)
class ReportData:
    """What a report shows. validation and test are `moola.metrics.evaluate`'s results.

    history has the columns stage, epoch, step, loss, loss_ptr, loss_type, sigma_ptr, sigma_type, val_f1, val_hit3;
    NaN where a row has no such value. label_source is "hindsight", "planted" or the name of a label file.
    splits and facts are shown as they are: name -> text.
    """

    run_id: str
    data_digest: str
    label_source: str
    splits: Mapping[str, str]
    seeds: Sequence[int]
    validation: Mapping[str, Any]
    test: Mapping[str, Any]
    gates: Sequence[Gate]
    history: pd.DataFrame
    windows: Sequence[ShownWindow]
    facts: Mapping[str, str] = field(default_factory=dict)
    gate_config: GateConfig = field(default_factory=GateConfig)  # the band that sigmas should settle in


def pick_windows(predictions: Predictions, targets: Targets, n_each: int = 6) -> list[int]:
    """Up to n_each right and n_each wrong windows, spread evenly over the split, so nobody chose the pretty ones."""
    centre_off = 0.5 * np.abs(predictions.start + predictions.end - targets.start - targets.end)
    right = (predictions.label == targets.label) & (centre_off <= SUCCESS_TOLERANCE)
    picked: list[int] = []
    for group in (np.flatnonzero(right), np.flatnonzero(~right)):
        places = np.linspace(0, len(group) - 1, min(n_each, len(group))).round().astype(int)
        picked += group[places].tolist()
    return picked


def write_report(path: Path, data: ReportData) -> None:
    """Write the page to `path`. The same data give the same bytes."""
    path.write_text(render(data), encoding="utf-8")


def render(data: ReportData) -> str:
    """The whole page."""
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        return _page(data)


def _page(data: ReportData) -> str:
    sections = {
        "Gates": _gates(data.gates),
        "Metrics": _metrics(data.test, data.validation),
        "Training": _training(data.history, data.gate_config),
        "Type: confusion and calibration": _type_section(data.test),
        "Pointer: hits against tolerance": _hits(data.test),
        "Windows": _windows(data.windows),
    }
    body = "".join(f"<section><h2>{title}</h2>{content}</section>" for title, content in sections.items())
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>moola {escape(data.run_id)}</title><style>{CSS}</style></head>"
        f"<body><main>{_head(data)}{body}</main></body></html>\n"
    )


# --- tables -----------------------------------------------------------------------------------------------------


def _head(data: ReportData) -> str:
    facts = {
        "Run": data.run_id,
        "Data digest": data.data_digest,
        "Labels": data.label_source,
        "Classes": ", ".join(data.test["class_names"]),
        "Seeds": ", ".join(map(str, data.seeds)),
        **{f"Split: {name}": text for name, text in data.splits.items()},
        **data.facts,
    }
    rows = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(str(v))}</dd></div>" for k, v in facts.items())
    note = LABEL_NOTES.get(data.label_source, "")
    banner = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<header><h1>moola: training run</h1>{banner}<dl>{rows}</dl></header>{_cards(data.test)}"


def _cards(test: Mapping[str, Any]) -> str:
    """The four numbers to read first: interval and best trivial baseline beside the value."""
    cards = ""
    for name in ("f1_macro", f"hit_centre_{SUCCESS_TOLERANCE}", "joint_success"):
        m = test["metrics"][name]
        baseline, trivial = _best_baseline(m)
        cards += _card(m, f"{_interval(m)} ({test['interval']['level']:.0%})", f"{baseline}: {show(trivial)}")
    before = test["metrics"]["ece"]["value"]
    ece = _card(test["metrics"]["ece_scaled"], f"before: {show(before)}", f"temperature: {test['temperature']:.2f}")
    return f'<div class="cards">{cards}{ece}</div>'


def _card(m: Mapping[str, Any], *lines: str) -> str:
    small = "".join(f"<div>{escape(line)}</div>" for line in lines)
    return (
        f'<div class="card"><div class="name">{escape(m["title"])}</div><div class="big">{show(m["value"])}</div>'
        f"<div>test split</div>{small}</div>"
    )


def _gates(gates: Sequence[Gate]) -> str:
    rows = ""
    for gate in gates:
        mark = '<td class="pass">✓ pass</td>' if gate.passed else '<td class="fail">✗ FAIL</td>'
        test = "" if gate.test is None else show(gate.test)
        rows += (
            f"<tr><th>{escape(gate.name)}</th><td>{_gate_value(gate)}</td>"
            f"<td>{escape(gate.bound.replace('>=', '≥'))}</td>{mark}<td>{test}</td></tr>"
        )
    n_failed = sum(not gate.passed for gate in gates)
    verdict = "All gates pass." if not n_failed else f"{n_failed} of {len(gates)} gates fail."
    return (
        f"<p>{verdict} Judged on the validation split; the test value is there to compare and decides nothing.</p>"
        "<table><thead><tr><th>Gate</th><th>Validation</th><th>Must be</th><th></th><th>Test</th></tr></thead>"
        f"<tbody>{rows}</tbody></table>"
    )


def _gate_value(gate: Gate) -> str:
    return show(gate.value) if gate.bound != "0" else show(gate.value).removesuffix(".000")


def _metrics(test: Mapping[str, Any], validation: Mapping[str, Any]) -> str:
    titles = "".join(f"<th>{escape(title)}</th>" for title in BASELINE_TITLES.values())
    rows = ""
    for kind, heading in (("type", "Type"), ("pointer", "Pointer"), ("joint", "Both")):
        rows += f'<tr class="group"><th colspan="9">{heading}</th></tr>'
        for name, m in test["metrics"].items():
            rows += _metric_row(name, m, validation["metrics"][name]) if m["kind"] == kind else ""
    return (
        f"<p>Test split, {test['n_windows']:,} windows (validation: {validation['n_windows']:,}), beside predictors "
        f"that know nothing. Intervals: {test['interval']['level']:.0%}, percentile bootstrap over windows taken as "
        f"independent, {test['interval']['resamples']:,} resamples. <b>Lead</b> is the distance to the best trivial "
        'baseline, positive where the model is better: <span class="pass">✓</span> the interval excludes the baseline, '
        '<span class="fail">✗</span> the model is worse; per class and in calibration, where always saying the same '
        "wins by construction, it is left out. Fractions unless bars are named. "
        "Joint success of a trivial pointer is with the majority class.</p>"
        "<table><thead><tr><th>Metric</th><th>Test</th><th>Interval</th><th>Lead</th>"
        f"{titles}<th>Validation</th></tr></thead><tbody>{rows}</tbody></table>"
    )


def _metric_row(name: str, m: Mapping[str, Any], validation: Mapping[str, Any]) -> str:
    unit = m["unit"]
    trivial = "".join(
        f"<td>{show(m['baselines'][b], unit) if b in m['baselines'] else ''}</td>" for b in BASELINE_TITLES
    )
    title = escape(m["title"]) + (", bars" if unit == "bars" else "")
    return (
        f'<tr><th>{title}</th><td class="value">{show(m["value"], unit)}</td><td class="interval">{_interval(m)}</td>'
        f"{'<td></td>' if _won_by_construction(name) else _lead(m)}{trivial}"
        f"<td>{show(validation['value'], unit)}</td></tr>"
    )


def _won_by_construction(name: str) -> bool:
    """Does always saying the same win here? One class's recall is then 1, and the shares are calibrated."""
    return "[" in name or name.startswith("ece")


def _interval(m: Mapping[str, Any]) -> str:
    return "" if m["low"] is None else f"{show(m['low'], m['unit'])} to {show(m['high'], m['unit'])}"


def _best_baseline(m: Mapping[str, Any]) -> tuple[str, float | None]:
    defined = {name: value for name, value in m["baselines"].items() if value is not None}
    if not defined:
        return BASELINE_TITLES[next(iter(m["baselines"]))], None
    best = max(defined, key=lambda name: m["better"] * defined[name])
    return BASELINE_TITLES[best], defined[best]


def _lead(m: Mapping[str, Any]) -> str:
    """How far the model is ahead of the best trivial baseline, and whether the interval says so."""
    _, best = _best_baseline(m)
    if best is None or m["value"] is None:
        return "<td></td>"
    lead = m["better"] * (m["value"] - best)
    nearest = m["low"] if m["better"] > 0 else m["high"]
    sure = nearest is not None and m["better"] * (nearest - best) > 0
    css, mark = ("fail", " ✗") if lead < 0 else ("pass", " ✓") if sure else ("", "")
    digits = 2 if m["unit"] == "bars" else 3
    return f'<td class="{css}">{lead:+.{digits}f}{mark}</td>'.replace("-", "−")


def _confusion(evaluation: Mapping[str, Any]) -> str:
    """Counts and shares of each true class; the darker the cell the larger the share."""
    names = [escape(name) for name in evaluation["class_names"]]
    rows = ""
    for i, (name, counts) in enumerate(zip(names, evaluation["confusion"], strict=True)):
        cells = ""
        for j, count in enumerate(counts):
            share = count / max(1, sum(counts))
            colour = "0,114,178" if i == j else "213,94,0"
            style = f"background:rgba({colour},{0.08 + 0.6 * share:.2f})"
            cells += f'<td style="{style}"><b>{count:,}</b><br>{share:.0%}</td>'
        rows += f"<tr><th>{name}</th>{cells}</tr>"
    head = "".join(f"<th>{name}</th>" for name in names)
    return (
        '<table class="confusion"><caption>Rows: true. Columns: predicted. Share of the true class below the count.'
        f"</caption><thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody></table>"
    )


# --- sections with pictures -------------------------------------------------------------------------------------


def _training(history: pd.DataFrame, config: GateConfig) -> str:
    losses = {"loss": ("total", INK), "loss_ptr": ("pointer", BLUE), "loss_type": ("type", VERMILION)}
    sigmas = {"sigma_ptr": ("sigma_ptr", BLUE), "sigma_type": ("sigma_type", VERMILION)}
    scores = {"val_f1": ("F1 macro", VERMILION), "val_hit3": ("Hit@±3", BLUE)}
    band = partial(_band, low=config.min_sigma, high=config.max_sigma)
    return (
        _figure("Loss in each stage", _curves(history, losses, "loss"))
        + _figure("Learned task sigmas; the band is where they should settle", _curves(history, sigmas, "sigma", band))
        + _figure("Scores on the validation split", _curves(history, scores, "validation score", _unit_scale))
    )


def _type_section(test: Mapping[str, Any]) -> str:
    caption = "Reliability: how often the model is right at each confidence"
    return f'<div class="pair"><div>{_confusion(test)}</div>{_figure(caption, _reliability(test))}</div>'


def _hits(test: Mapping[str, Any]) -> str:
    return _figure("Fraction of windows whose centre is found within so many bars; band: interval", _hit_curve(test))


def _windows(windows: Sequence[ShownWindow]) -> str:
    groups = {
        f"Right: the type, and the centre within {SUCCESS_TOLERANCE} bars": [w for w in windows if w.right],
        "Wrong": [w for w in windows if not w.right],
    }
    grids = ""
    for heading, group in groups.items():
        cells = "".join(_window(w) for w in group) or "<p>None among the windows shown.</p>"
        grids += f'<h3>{heading}</h3><div class="grid">{cells}</div>'
    return (
        '<p class="legend"><span class="true-key"></span> true expansion <span class="predicted-key"></span> predicted '
        f"expansion. Hollow candles rise, filled ones fall; bars 0 to {WINDOW - 1}.</p>{grids}"
    )


def _window(window: ShownWindow) -> str:
    predicted_class = "pass" if window.label == window.predicted_label else "fail"
    return (
        f'<figure class="window">{_candles(window)}'
        f"<figcaption><b>{escape(window.window_id)}</b> {escape(window.opened)}<br>"
        f"true: {escape(window.label)}, {window.start} to {window.end}<br>"
        f'predicted: <span class="{predicted_class}">{escape(window.predicted_label)}</span>, '
        f"{window.predicted_start} to {window.predicted_end} (p = {window.probability:.2f})</figcaption></figure>"
    )


def _figure(caption: str, figure: "Figure | None") -> str:
    picture = _image(figure, caption) if figure else "<p>Nothing was recorded.</p>"
    return f"<figure><figcaption>{escape(caption)}</figcaption>{picture}</figure>"


def _image(figure: "Figure", alt: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return _embedded("image/svg+xml", buffer, alt)


def _embedded(media_type: str, picture: io.BytesIO, alt: str) -> str:
    uri = base64.b64encode(picture.getvalue()).decode()
    return f'<img alt="{escape(alt)}" src="data:{media_type};base64,{uri}">'


# --- pictures ---------------------------------------------------------------------------------------------------


def _panels(n: int, width: float, height: float, right: float) -> "tuple[Figure, list[Axes]]":
    """n axes side by side, sizes and the right margin (for a legend) in inches.

    The figure belongs to no global state, so there is nothing to close. Margins are set by hand: a layout engine
    measures every text, which costs as much as all the drawing.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    left, gap, bottom, top = 0.55, 0.5, 0.5, 0.3
    panel = (width - left - right - gap * (n - 1)) / n
    rectangles = [
        ((left + i * (panel + gap)) / width, bottom / height, panel / width, 1 - (bottom + top) / height)
        for i in range(n)
    ]
    return figure, [figure.add_axes(rectangle) for rectangle in rectangles]


def _curves(
    history: pd.DataFrame,
    columns: Mapping[str, tuple[str, str]],
    label: str,
    finish: "Callable[[Axes], None] | None" = None,
) -> "Figure | None":
    """One panel per stage that has any of the columns, in the order of training."""
    columns = {name: style for name, style in columns.items() if name in history}
    stages = [(name, rows) for name, rows in history.groupby("stage", sort=False) if _any_finite(rows[list(columns)])]
    if not stages:
        return None
    figure, axes = _panels(len(stages), 10.6, 2.7, right=LEGEND)
    for ax, (stage, rows) in zip(axes, stages, strict=True):
        for name, (title, colour) in columns.items():
            _curve(ax, rows["step"], rows[name], title, colour)
        ax.set_title(str(stage))
        ax.set_xlabel("step")
        if finish:
            finish(ax)
    axes[0].set_ylabel(label)
    axes[-1].legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _any_finite(values: pd.DataFrame) -> bool:
    return bool(np.isfinite(values.to_numpy(np.float64)).any())


def _curve(ax: "Axes", step: "pd.Series[Any]", values: "pd.Series[Any]", title: str, colour: str) -> None:
    kept = np.isfinite(values.to_numpy(np.float64))
    x, y = step[kept], values[kept]
    if not len(x):
        return
    if len(x) > SMOOTHED_POINTS:
        ax.plot(x, y, color=colour, alpha=0.25, linewidth=0.6)
        y = y.rolling(len(x) // 50, min_periods=1).mean()
    ax.plot(x, y, color=colour, label=title, marker="o" if len(x) < 30 else "", markersize=3)


def _band(ax: "Axes", low: float, high: float) -> None:
    """Shade low to high, on a log scale that shows all of it."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    ax.axhspan(low, high, color=GREEN, alpha=0.10, linewidth=0)
    ax.set_yscale("log", base=2)
    bottom, top = ax.get_ylim()
    ax.set_ylim(min(bottom, low / 1.25), max(top, high * 1.25))
    ax.yaxis.set_major_locator(LogLocator(base=2))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _unit_scale(ax: "Axes") -> None:
    ax.set_ylim(0, 1)


def _reliability(test: Mapping[str, Any]) -> "Figure":
    """Accuracy against confidence before and after scaling, dots sized by windows; below, where the windows are."""
    figure, (ax,) = _panels(1, 5.6, 3.7, right=0.1)
    ax.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
    for which, title, colour, marker in (
        ("before", "before scaling", ORANGE, "s"),
        ("after", "after scaling", BLUE, "o"),
    ):
        bins = test["reliability"][which]
        filled = [i for i, count in enumerate(bins["count"]) if count]
        x, y = ([bins[of][i] for i in filled] for of in ("confidence", "accuracy"))
        size = [12 + 200 * bins["count"][i] / sum(bins["count"]) for i in filled]
        ax.plot(x, y, color=colour, linewidth=1)
        ax.scatter(x, y, s=size, color=colour, marker=marker, alpha=0.85, linewidths=0, label=title)
    ax.set(xlim=(1 / len(test["class_names"]) - 0.02, 1.02), ylim=(0, 1.02))
    ax.set(xlabel="confidence", ylabel="fraction right")
    ax.legend(loc="lower right", title="dot area: share of windows", markerscale=0.8)
    return figure


def _hit_curve(test: Mapping[str, Any]) -> "Figure":
    curve = test["hit_curve"]
    x = curve["tolerance_bars"]
    figure, (ax,) = _panels(1, 10.6, 3.4, right=LEGEND)
    ax.axvline(SUCCESS_TOLERANCE, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
    ax.fill_between(x, curve["low"], curve["high"], color=BLUE, alpha=0.18, linewidth=0)
    ax.plot(x, curve["model"], color=BLUE, marker="o", markersize=3.5, label="model")
    looks = ((VERMILION, (0, (5, 2))), (PURPLE, (0, (1, 1))), (MUTED, (0, (5, 1, 1, 1))))
    for name, (colour, dashes) in zip(reversed(POINTER_BASELINES), looks, strict=True):
        ax.plot(x, curve[name], color=colour, linestyle=dashes, label=BASELINE_TITLES[name])
    ax.set(xlim=(0, x[-1]), ylim=(0, 1.02), xlabel="tolerance, bars", ylabel="fraction of windows")
    ax.set_xticks(range(0, x[-1] + 1, 2))
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _candles(window: ShownWindow) -> str:
    """The window's bars; true span shaded, predicted span bracketed. A PNG: as SVG, candles are many times larger."""
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.3, 2.2))
    ax = figure.add_axes((0.105, 0.11, 0.885, 0.87))
    opened, high, low, close = np.asarray(window.ohlc, np.float64).T
    bar = np.arange(WINDOW)
    ax.axvspan(window.start - 0.5, window.end + 0.5, color=BLUE, alpha=0.22, linewidth=0)
    ax.vlines(bar, low, high, color=INK, linewidth=0.6)
    x = np.stack([bar - 0.36, bar - 0.36, bar + 0.36, bar + 0.36], axis=1)
    bodies = np.stack([x, np.stack([opened, close, close, opened], axis=1)], axis=2)  # [T, 4 corners, 2]
    colours = np.where(close >= opened, "white", INK).tolist()
    ax.add_collection(PolyCollection(list(bodies), facecolors=colours, edgecolors=INK, linewidths=0.5, zorder=3))
    left, right = window.predicted_start - 0.5, window.predicted_end + 0.5
    frame = ax.get_xaxis_transform()  # x in bars, y in parts of the axes
    bracket = ([left, left, right, right], [0.01, 0.985, 0.985, 0.01])
    ax.plot(*bracket, color=VERMILION, linewidth=1.6, transform=frame, zorder=4)
    ax.set(xlim=(-1, WINDOW), ylim=_with_room(low.min(), high.max()))
    ax.set_xticks(range(0, WINDOW, 13))
    ax.tick_params(labelsize=7.5, length=2)
    ax.ticklabel_format(axis="y", useOffset=False)
    ax.grid(visible=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200, metadata={"Software": None})
    return _embedded("image/png", buffer, "candlesticks with the true and the predicted span")


def _with_room(low: float, high: float) -> tuple[float, float]:
    """Limits with 5 % to spare; a flat window gets a band around its price."""
    room = 0.05 * (high - low) or 1e-4 * abs(high) or 1.0
    return low - room, high + room


CSS = f"""
*{{box-sizing:border-box}}
body{{margin:0;background:#f4f6f8;color:{INK};
 font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}}
main{{max-width:1140px;margin:0 auto;padding:28px 20px 60px}}
h1{{font-size:27px;margin:0 0 10px;letter-spacing:-.01em}}
h2{{font-size:19px;margin:0 0 10px}}
h3{{font-size:15px;margin:20px 0 10px}}
p{{margin:0 0 12px;max-width:100ch;color:#3e4c59}}
section,header{{background:#fff;border:1px solid {RULE};border-radius:8px;padding:22px 24px;margin:0 0 18px}}
.note{{background:#fff6e0;border-left:4px solid {ORANGE};padding:9px 14px;color:{INK};max-width:none}}
dl{{display:grid;grid-template-columns:repeat(auto-fill,minmax(330px,1fr));gap:10px 28px;margin:0}}
dt{{font-size:12px;color:{MUTED}}}
dd{{margin:0;overflow-wrap:anywhere;font-size:14px}}
.cards{{display:grid;grid-template-columns:repeat(4,1fr);gap:14px;margin:0 0 18px}}
.card{{background:#fff;border:1px solid {RULE};border-radius:8px;padding:14px 18px;font-size:13px;color:{MUTED}}}
.card .name{{color:{INK};font-weight:600;line-height:1.3;min-height:2.6em}}
.card .big{{font-size:32px;line-height:1.25;font-weight:650;color:{BLUE}}}
table{{border-collapse:collapse;width:100%;font-size:13.5px;font-variant-numeric:tabular-nums}}
th,td{{padding:5px 9px;border-bottom:1px solid #e9edf0;text-align:right;vertical-align:top}}
th:first-child{{text-align:left}}
thead th{{color:{MUTED};font-weight:600;font-size:12.5px;vertical-align:bottom;border-bottom:1.5px solid {MUTED}}}
tbody th{{font-weight:400;overflow-wrap:anywhere}}
td.value{{font-weight:650}}
td.interval{{white-space:nowrap;color:{MUTED}}}
tr.group th{{padding-top:14px;font-weight:700;border-bottom:1px solid {RULE}}}
.pass{{color:#00694e;font-weight:600;white-space:nowrap}}
.fail{{color:#b34700;font-weight:700;white-space:nowrap}}
table.confusion caption{{caption-side:top;text-align:left;color:{MUTED};font-size:13px;padding-bottom:8px}}
table.confusion td{{text-align:center;padding:16px 10px;font-size:13px;border:3px solid #fff}}
table.confusion b{{font-size:20px}}
table.confusion thead th{{text-align:center;border:0}}
table.confusion tbody th{{vertical-align:middle;border:0}}
figure{{margin:0 0 16px}}
figcaption{{font-size:13.5px;color:{INK};margin:0 0 6px}}
img{{display:block;width:100%;height:auto}}
.pair{{display:grid;grid-template-columns:1fr 1fr;gap:34px;align-items:start}}
.grid{{display:grid;grid-template-columns:repeat(2,1fr);gap:14px 20px}}
.window figcaption{{margin:2px 0 0;font-size:12.5px;line-height:1.4;overflow-wrap:anywhere}}
.window figcaption b{{color:{INK}}}
.legend span{{display:inline-block;width:22px;height:13px;vertical-align:-2px;margin:0 4px 0 14px}}
.legend span:first-child{{margin-left:0}}
.true-key{{background:rgba(0,114,178,.25)}}
.predicted-key{{border:2px solid {VERMILION};border-bottom:0}}
@media(max-width:820px){{.cards,.grid,.pair{{grid-template-columns:1fr}}table{{display:block;overflow-x:auto}}}}
"""

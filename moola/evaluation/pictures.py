"""The pictures of a report, drawn with matplotlib -> HTML images as data URIs.

Text that comes from users stays out of the pictures, but for the names of classes and stages.
"""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from moola import HIT_BARS, WINDOW
from moola.evaluation.baselines import BASELINE_TITLES, POINTER_BASELINES
from moola.evaluation.detection import Detection
from moola.evaluation.metrics import Evaluation
from moola.evaluation.report_data import ReportWindow
from moola.evaluation.style import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, RULE, VERMILION
from moola.specs import GateConfig

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SETTINGS: dict[Any, Any] = {
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
DASHED = (0, (4, 3))
BASELINE_LINES = {
    "strongest_run": (VERMILION, (0, (5, 2))),
    "mean_pointer": (PURPLE, (0, (1, 1))),
    "whole_window": (MUTED, (0, (5, 1, 1, 1))),
}

# In inches.
PAGE_WIDTH = 10.6
LEGEND_WIDTH = 1.4  # to the right of the panels
LEFT = 0.55
GAP = 0.5
BOTTOM = 0.5
TOP = 0.3

SMOOTHED_POINTS = 200  # a curve of more points is drawn as its moving mean, the points faint behind
MARKED_POINTS = 30  # a curve of fewer points is drawn with them
CANDLE_HALF_WIDTH = 0.36  # bars

Styles = Mapping[str, tuple[str, str]]  # column of the history -> title, colour
LOSSES = {
    "loss": ("total", INK),
    "loss_ptr": ("pointer", BLUE),
    "loss_type": ("type", VERMILION),
}
SIGMAS = {
    "sigma_ptr": ("sigma_ptr", BLUE),
    "sigma_type": ("sigma_type", VERMILION),
}
SCORES = {
    "val_f1": ("F1 macro", VERMILION),
    f"val_hit{HIT_BARS}": (f"Hit@±{HIT_BARS}", BLUE),
}


def drawing() -> AbstractContextManager[None]:
    """The settings under which all pictures are drawn; matplotlib's own are left as they were."""
    import matplotlib as mpl

    return mpl.rc_context(SETTINGS)


# --- training -------------------------------------------------------------------------------------


def loss_curves(history: pd.DataFrame, alt: str) -> str | None:
    """None where the history has no such value, as in the next two."""
    return svg(_curves(history, LOSSES, "loss"), alt)


def sigma_curves(
    history: pd.DataFrame,
    config: GateConfig,
    alt: str,
) -> str | None:
    band = partial(_band, low=config.min_sigma, high=config.max_sigma)
    return svg(_curves(history, SIGMAS, "sigma", band), alt)


def score_curves(history: pd.DataFrame, alt: str) -> str | None:
    return svg(_curves(history, SCORES, "validation score", _unit_scale), alt)


def _curves(
    history: pd.DataFrame,
    styles: Styles,
    label: str,
    finish: "Callable[[Axes], None] | None" = None,
) -> "Figure | None":
    """One panel per stage that has any of the columns, in the order of training."""
    styles = {name: style for name, style in styles.items() if name in history}
    stages = {
        str(stage): rows
        for stage, rows in history.groupby("stage", sort=False)
        if _any_finite(rows[list(styles)])
    }
    if not stages:
        return None

    figure, axes = panels(len(stages), PAGE_WIDTH, 2.7, right=LEGEND_WIDTH)
    for ax, (stage, rows) in zip(axes, stages.items(), strict=True):
        for name, (title, colour) in styles.items():
            _curve(ax, rows["step"], rows[name], title, colour)
        ax.set_title(stage)
        ax.set_xlabel("step")
        ax.locator_params(axis="x", integer=True)
        if finish:
            finish(ax)

    axes[0].set_ylabel(label)
    axes[-1].legend(loc="upper left", bbox_to_anchor=(1, 1))

    return figure


def _any_finite(values: pd.DataFrame) -> bool:
    return bool(np.isfinite(values.to_numpy(np.float64)).any())


def _curve(
    ax: "Axes",
    step: "pd.Series[Any]",
    values: "pd.Series[Any]",
    title: str,
    colour: str,
) -> None:
    kept = np.isfinite(values.to_numpy(np.float64))
    x = step[kept]
    y = values[kept]
    if not len(x):
        return

    if len(x) > SMOOTHED_POINTS:
        ax.plot(x, y, color=colour, alpha=0.25, linewidth=0.6)
        y = y.rolling(len(x) // 50, min_periods=1).mean()
    marker = "o" if len(x) < MARKED_POINTS else ""
    ax.plot(
        x,
        y,
        color=colour,
        label=title,
        marker=marker,
        markersize=3,
    )


def _band(ax: "Axes", low: float, high: float) -> None:
    """Shade low to high, on a log scale on which all of it is seen."""
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


# --- type and pointer -----------------------------------------------------------------------------


def reliability_curves(test: Evaluation, alt: str) -> str | None:
    """Accuracy against confidence before and after scaling, dots sized by windows."""
    figure, (ax,) = panels(1, 5.6, 3.7, right=0.1)
    ax.plot(
        [0, 1],
        [0, 1],
        color=MUTED,
        linewidth=0.8,
        linestyle=DASHED,
    )
    for bins, title, colour, marker in (
        (test["reliability"]["before"], "before scaling", ORANGE, "s"),
        (test["reliability"]["after"], "after scaling", BLUE, "o"),
    ):
        n_windows = sum(bins["count"])
        filled = [i for i, count in enumerate(bins["count"]) if count]
        x: Any = [bins["confidence"][i] for i in filled]
        y: Any = [bins["accuracy"][i] for i in filled]
        area = [12 + 200 * bins["count"][i] / n_windows for i in filled]
        ax.plot(x, y, color=colour, linewidth=1)
        ax.scatter(
            x,
            y,
            s=area,
            color=colour,
            marker=marker,
            alpha=0.85,
            linewidths=0,
            label=title,
        )

    chance = 1 / len(test["class_names"])
    ax.set(xlim=(chance - 0.02, 1.02), ylim=(0, 1.02))
    ax.set(xlabel="confidence", ylabel="fraction right")
    ax.legend(
        loc="lower right",
        title="dot area: share of windows",
        markerscale=0.8,
    )

    return svg(figure, alt)


def hit_curve(test: Evaluation, alt: str) -> str | None:
    """Hits of the model and of the trivial pointers against the tolerance."""
    curve: Mapping[str, Any] = test["hit_curve"]
    x = curve["tolerance_bars"]
    figure, (ax,) = panels(1, PAGE_WIDTH, 3.4, right=LEGEND_WIDTH)
    ax.axvline(
        HIT_BARS,
        color=MUTED,
        linewidth=0.8,
        linestyle=DASHED,
    )
    ax.fill_between(
        x,
        curve["low"],
        curve["high"],
        color=BLUE,
        alpha=0.18,
        linewidth=0,
    )
    ax.plot(
        x,
        curve["model"],
        color=BLUE,
        marker="o",
        markersize=3.5,
        label="model",
    )
    for name in reversed(POINTER_BASELINES):
        colour, dashes = BASELINE_LINES[name]
        ax.plot(
            x,
            curve[name],
            color=colour,
            linestyle=dashes,
            label=BASELINE_TITLES[name],
        )

    ax.set(xlim=(0, x[-1]), ylim=(0, 1.02))
    ax.set(xlabel="tolerance, bars", ylabel="fraction of windows")
    ax.set_xticks(range(0, x[-1] + 1, 2))
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))

    return svg(figure, alt)


# --- finding moves --------------------------------------------------------------------------------


def detection_curves(detection: Detection, alt: str) -> str | None:
    """Calibration of the moves found, and precision and recall over thresholds."""
    figure, axes = panels(2, PAGE_WIDTH, 2.9, right=LEGEND_WIDTH)
    calibration, thresholds = axes
    bins = [each for each in detection["calibration"] if each["count"]]
    said = [each["probability"] or 0.0 for each in bins]
    right = [each["right"] or 0.0 for each in bins]
    calibration.plot([0, 1], [0, 1], color=MUTED, linestyle=DASHED, linewidth=1)
    calibration.plot(said, right, color=BLUE, marker="o", markersize=4)
    calibration.set(xlabel="probability", ylabel="right", xlim=(0, 1), ylim=(0, 1))
    calibration.set_title("calibration")

    rows = detection["thresholds"]
    at = [row["threshold"] for row in rows]
    for field, colour in (("precision", BLUE), ("recall", VERMILION)):
        values = [row["precision"] if field == "precision" else row["recall"] for row in rows]
        drawn = [np.nan if value is None else value for value in values]
        thresholds.plot(at, drawn, color=colour, label=field)
    thresholds.set(xlabel="threshold", xlim=(0, 1), ylim=(0, 1))
    thresholds.set_title("precision and recall")
    thresholds.legend(loc="upper left", bbox_to_anchor=(1, 1))

    return svg(figure, alt)


# --- windows --------------------------------------------------------------------------------------


def candles(window: ReportWindow) -> str:
    """The window's bars; the true span shaded, the predicted one bracketed.

    A PNG: as SVG, candles are many times larger.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.3, 2.2))
    ax = figure.add_axes((0.105, 0.11, 0.885, 0.87))
    ax.axvspan(
        window.start - 0.5,
        window.end + 0.5,
        color=BLUE,
        alpha=0.22,
        linewidth=0,
    )
    _draw_bars(ax, window)
    _draw_bracket(
        ax,
        window.predicted_start - 0.5,
        window.predicted_end + 0.5,
    )

    low = window.ohlc[:, 2].min()
    high = window.ohlc[:, 1].max()
    ax.set(xlim=(-1, WINDOW), ylim=_with_room(float(low), float(high)))
    ax.set_xticks(range(0, WINDOW, 13))
    ax.tick_params(labelsize=7.5, length=2)
    ax.ticklabel_format(axis="y", useOffset=False)
    ax.grid(visible=False)

    buffer = io.BytesIO()
    figure.savefig(
        buffer,
        format="png",
        dpi=200,
        metadata={"Software": None},
    )

    return _image(
        "image/png",
        buffer,
        "candlesticks with the true and the predicted span",
    )


def _draw_bars(ax: "Axes", window: ReportWindow) -> None:
    """Wicks as lines, bodies as boxes: hollow where the bar rose."""
    from matplotlib.collections import PolyCollection

    opened, high, low, close = np.asarray(window.ohlc, np.float64).T
    bar = np.arange(WINDOW)
    ax.vlines(bar, low, high, color=INK, linewidth=0.6)

    left = bar - CANDLE_HALF_WIDTH
    right = bar + CANDLE_HALF_WIDTH
    x = np.stack([left, left, right, right], axis=1)
    y = np.stack([opened, close, close, opened], axis=1)
    bodies = np.stack([x, y], axis=2)  # [T, 4 corners, 2]
    colours = np.where(close >= opened, "white", INK).tolist()
    ax.add_collection(
        PolyCollection(
            list(bodies),
            facecolors=colours,
            edgecolors=INK,
            linewidths=0.5,
            zorder=3,
        )
    )


def _draw_bracket(ax: "Axes", left: float, right: float) -> None:
    """Three sides of a box from the bottom to the top of the axes."""
    x = [left, left, right, right]
    y = [0.01, 0.985, 0.985, 0.01]  # in parts of the axes
    transform = ax.get_xaxis_transform()
    ax.plot(
        x,
        y,
        color=VERMILION,
        linewidth=1.6,
        transform=transform,
        zorder=4,
    )


def _with_room(low: float, high: float) -> tuple[float, float]:
    """Limits with 5 % to spare; a flat window gets a band around its price."""
    room = 0.05 * (high - low) or 1e-4 * abs(high) or 1.0
    return low - room, high + room


# --- figures and images ---------------------------------------------------------------------------


def panels(
    n: int,
    width: float,
    height: float,
    right: float,
) -> "tuple[Figure, Sequence[Axes]]":
    """n axes side by side; sizes, and the right margin (for a legend), in inches.

    The figure belongs to no global state, so there is nothing to close. Margins are set by hand: a
    layout engine measures every text, which costs as much as all the drawing.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    panel = (width - LEFT - right - GAP * (n - 1)) / n
    axes = []
    for i in range(n):
        left = LEFT + i * (panel + GAP)
        rectangle = (
            left / width,
            BOTTOM / height,
            panel / width,
            1 - (BOTTOM + TOP) / height,
        )
        axes.append(figure.add_axes(rectangle))

    return figure, axes


def svg(figure: "Figure | None", alt: str) -> str | None:
    """A figure as an image of HTML; None for none."""
    if figure is None:
        return None

    buffer = io.BytesIO()
    figure.savefig(
        buffer,
        format="svg",
        metadata={"Date": None, "Creator": None},
    )

    return _image("image/svg+xml", buffer, alt)


def _image(media_type: str, picture: io.BytesIO, alt: str) -> str:
    data = base64.b64encode(picture.getvalue()).decode()
    return f'<img alt="{escape(alt)}" src="data:{media_type};base64,{data}">'

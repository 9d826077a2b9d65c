"""The picture of what a run's machine was used for, over the time that the run was at work."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moola.evaluation.arrays import Floats
from moola.evaluation.pictures import DASHED, MARKED_POINTS, PAGE_WIDTH, panels, svg
from moola.evaluation.style import BLUE, MUTED, VERMILION
from moola.runs.records import UsageHistory

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MB_PER_GB = 1000.0
RIGHT_MARGIN = 0.2  # inches
ROOM_ABOVE = 1.08  # the top of an axis by its highest value
UNITS = {"hours": 3600.0, "minutes": 60.0, "seconds": 1.0}
LEAST_UNITS = 3  # of the unit of the axis, or a smaller unit is taken


@dataclass(frozen=True)
class _Curve:
    name: str
    values: Floats  # one a point; NaN where it is not known
    colour: str


def usage_curves(usage: UsageHistory, alt: str) -> str | None:
    """Cores, memory and GPUs, a panel each; None where nothing of them is known."""
    panels_of = {
        "cores at work": [_Curve("machine", _values(usage.cpu_cores), BLUE)],
        "memory, GB": [
            _Curve("machine", _values(usage.memory_mb) / MB_PER_GB, BLUE),
            _Curve("GPUs", _values(usage.gpu_memory_mb) / MB_PER_GB, VERMILION),
        ],
        "GPUs, fraction of the time at work": [_Curve("GPUs", _values(usage.gpu), VERMILION)],
    }
    known = {title: list(filter(_is_known, curves)) for title, curves in panels_of.items()}
    shown = {title: curves for title, curves in known.items() if curves}
    if not shown:
        return None

    figure, axes = panels(len(shown), PAGE_WIDTH, 2.4, right=RIGHT_MARGIN)
    for ax, (title, curves) in zip(axes, shown.items(), strict=True):
        _draw(ax, usage, curves)
        ax.set_title(title)
        if len(curves) > 1:
            ax.legend(loc="lower right")

    return svg(figure, alt)


def _values(column: Sequence[float | None]) -> Floats:
    return np.array([np.nan if value is None else value for value in column], np.float64)


def _is_known(curve: _Curve) -> bool:
    return bool(np.isfinite(curve.values).any())


def _draw(ax: "Axes", usage: UsageHistory, curves: Sequence[_Curve]) -> None:
    """The curves of a panel, from 0, and a dashed line where the run went on."""
    length_s = len(usage) * usage.every_s
    unit = _unit(length_s)
    point = usage.every_s / UNITS[unit]
    middle = (np.arange(len(usage)) + 0.5) * point

    for start in usage.starts[1:]:
        ax.axvline(start * point, color=MUTED, linestyle=DASHED, linewidth=1)
    for curve in curves:
        marker = "o" if len(usage) < MARKED_POINTS else ""
        ax.plot(
            middle,
            curve.values,
            color=curve.colour,
            label=curve.name,
            marker=marker,
            markersize=3,
        )
    ax.set(xlim=(0, length_s / UNITS[unit]), xlabel=f"{unit} at work")
    highest = max(float(np.nanmax(curve.values)) for curve in curves)
    ax.set_ylim(0, ROOM_ABOVE * highest or 1.0)


def _unit(length_s: float) -> str:
    return next((unit for unit, in_s in UNITS.items() if length_s >= LEAST_UNITS * in_s), "seconds")

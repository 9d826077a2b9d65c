"""A picture of bars as inline SVG: price, gaps and volume over time, without a drawing library.

The CPU image, which makes it, has none. Times are binned to the width of a panel; the highest and
lowest price, the longest gap and the sum of volume of each bin are drawn.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import pandas as pd

from moola.data.series import MINUTE_NS
from moola.evaluation.style import BLUE, INK, MUTED, ORANGE, RULE, VERMILION
from moola.features.arrays import Floats, Ints

WIDTH = 1080  # of the drawing, in its own units
LEFT = 70  # for the labels of values
BINS = WIDTH - LEFT
PANEL_GAP = 34
PRICE_HEIGHT = 300
GAP_HEIGHT = 90
VOLUME_HEIGHT = 90
MIN_LINE = 1.0  # a price that does not move is still seen
TIME_LABELS = 6
VALUE_LABELS = 5

# Minutes, and what a gap of so many is called.
GAP_LABELS = ((1, "1 min"), (10, "10 min"), (60, "1 h"), (1_440, "1 d"), (10_080, "1 week"))


@dataclass(frozen=True)
class Marks:
    """What is marked in the picture: the minutes of rolls and of dropped rows, and the runs of
    fillers as (first minute, bars).
    """

    rolls: Sequence[pd.Timestamp]
    dropped: Sequence[pd.Timestamp]
    fillers: Sequence[tuple[pd.Timestamp, int]]


@dataclass(frozen=True)
class _Scale:
    """Times in ns -> places, 0 to BINS. `last` is later than any of them."""

    first: int
    last: int

    @property
    def span(self) -> int:
        return self.last - self.first

    def place(self, time: int) -> float:
        return LEFT + (time - self.first) / self.span * BINS

    def bins(self, times: Ints) -> Ints:
        """[n] bin of each time, increasing."""
        minutes = (times - self.first) // MINUTE_NS  # nanoseconds times BINS would overflow
        places: Ints = minutes * BINS // (self.span // MINUTE_NS)
        return places


def draw_bars(frame: pd.DataFrame, marks: Marks) -> str:
    """The picture of bars (DatetimeIndex in UTC; high, low, and volume where there is one)."""
    times = pd.DatetimeIndex(frame.index).as_unit("ns").asi8
    scale = _Scale(int(times[0]), int(times[-1]) + MINUTE_NS)
    bins = scale.bins(times)
    starts = np.flatnonzero(np.diff(bins, prepend=-1))
    places = LEFT + bins[starts]
    width = max(1.0, MINUTE_NS / scale.span * BINS * 0.7)

    high = np.maximum.reduceat(frame["high"].to_numpy(), starts)
    low = np.minimum.reduceat(frame["low"].to_numpy(), starts)
    parts = [_price_panel(places, low, high, width, scale, marks)]
    top = PRICE_HEIGHT + PANEL_GAP

    parts.append(_gap_panel(times, scale, top))
    top += GAP_HEIGHT + PANEL_GAP
    if "volume" in frame:
        volume = np.add.reduceat(frame["volume"].to_numpy(), starts)
        parts.append(_volume_panel(places, volume, width, top))
        top += VOLUME_HEIGHT + PANEL_GAP

    parts.append(_time_axis(scale, top - PANEL_GAP))
    return (
        f'<svg viewBox="0 -16 {WIDTH + 8} {top + 16}" role="img" width="100%" '
        f'font-size="11" fill="{MUTED}"><title>price, gaps and volume over time</title>'
        f"{''.join(parts)}</svg>"
    )


# --- panels ---------------------------------------------------------------------------------------


def _price_panel(
    places: Ints,
    low: Floats,
    high: Floats,
    width: float,
    scale: _Scale,
    marks: Marks,
) -> str:
    least, most = float(low.min()), float(high.max())
    if least == most:
        least, most = least - 1, most + 1

    def height(price: float) -> float:
        return (most - price) / (most - least) * PRICE_HEIGHT

    fillers = "".join(_filler(scale, first, n_bars) for first, n_bars in marks.fillers)
    grid = _grid(_nice_values(least, most), height, 0)
    lines = [
        _line(place, height(top), max(height(bottom) - height(top), MIN_LINE))
        for place, bottom, top in zip(places, low, high, strict=True)
    ]
    rolls = _verticals(scale, marks.rolls, VERMILION)
    dropped = _verticals(scale, marks.dropped, ORANGE)
    return f"{_title('price', 0)}{fillers}{grid}{_path(lines, BLUE, width)}{rolls}{dropped}"


def _gap_panel(times: Ints, scale: _Scale, top: int) -> str:
    """The minutes from each bar to the next, where more than one, on a logarithmic scale."""
    minutes = np.diff(times) / MINUTE_NS
    after = np.flatnonzero(minutes > 1)
    title = _title("gaps", top)
    if not len(after):
        return f"{title}{_text(LEFT + 6, top + 14, 'none', 'start')}"

    longest = max(math.log10(float(minutes.max())), 1.0)

    def height(value: float) -> float:
        return GAP_HEIGHT - math.log10(value) / longest * GAP_HEIGHT

    labels = [(value, text) for value, text in GAP_LABELS if math.log10(value) <= longest]
    grid = _grid(labels, height, top)
    bins = scale.bins(times[after])
    starts = np.flatnonzero(np.diff(bins, prepend=-1))
    size = np.maximum.reduceat(minutes[after], starts)

    lines = [
        _line(LEFT + place, top + height(value), GAP_HEIGHT - height(value))
        for place, value in zip(bins[starts], size, strict=True)
    ]
    return f"{title}{grid}{_path(lines, INK, 1.0)}"


def _volume_panel(places: Ints, volume: Floats, width: float, top: int) -> str:
    most = max(float(volume.max()), 1.0)

    def height(value: float) -> float:
        return VOLUME_HEIGHT - value / most * VOLUME_HEIGHT

    lines = [
        _line(place, top + height(value), VOLUME_HEIGHT - height(value))
        for place, value in zip(places, volume, strict=True)
    ]
    grid = _grid([(0.0, "0"), (most, _volume_text(most))], height, top)
    return f"{_title('volume', top)}{grid}{_path(lines, BLUE, width)}"


def _volume_text(volume: float) -> str:
    return f"{volume:,.0f}" if volume >= 100 else f"{volume:.3g}"


def _time_axis(scale: _Scale, top: int) -> str:
    is_long = scale.span > 3 * 24 * 60 * MINUTE_NS
    form = "%Y-%m-%d" if is_long else "%m-%d %H:%M"
    parts = []

    for at in range(TIME_LABELS):
        time = scale.first + scale.span * at // (TIME_LABELS - 1)
        place = scale.place(time)
        anchor = "start" if at == 0 else "end" if at == TIME_LABELS - 1 else "middle"
        parts.append(_text(place, top + 16, f"{pd.Timestamp(time):{form}}", anchor))
    return "".join(parts)


# --- what panels are made of ----------------------------------------------------------------------


def _line(place: float, top: float, length: float) -> str:
    return f"M{place:.0f} {top:.1f}v{length:.1f}"


def _path(lines: Sequence[str], colour: str, width: float) -> str:
    return f'<path d="{"".join(lines)}" stroke="{colour}" stroke-width="{width:.1f}"/>'


def _verticals(scale: _Scale, minutes: Sequence[pd.Timestamp], colour: str) -> str:
    inside = [time for time in minutes if scale.first <= time.value <= scale.last]
    lines = sorted({_line(scale.place(time.value), 0, PRICE_HEIGHT) for time in inside})
    return _path(lines, colour, 1.0) if lines else ""


def _filler(scale: _Scale, first: pd.Timestamp, n_bars: int) -> str:
    left = scale.place(first.value)
    width = max(n_bars * MINUTE_NS / scale.span * BINS, 1.0)
    return (
        f'<rect x="{left:.1f}" y="0" width="{width:.1f}" height="{PRICE_HEIGHT}" '
        f'fill="{ORANGE}" fill-opacity=".25"/>'
    )


def _grid(
    values: Sequence[tuple[float, str]],
    height: Callable[[float], float],
    top: int,
) -> str:
    parts = []
    for value, label in values:
        y = top + height(value)
        parts.append(f'<path d="M{LEFT} {y:.1f}h{BINS}" stroke="{RULE}"/>')
        parts.append(_text(LEFT - 8, y + 4, label, "end"))
    return "".join(parts)


def _title(text: str, top: int) -> str:
    return f'<text x="{LEFT}" y="{top - 6}" font-weight="bold" fill="{INK}">{text}</text>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _nice_values(least: float, most: float) -> list[tuple[float, str]]:
    """Round values between two, some VALUE_LABELS of them, with their text."""
    rough = (most - least) / VALUE_LABELS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step * power for step in (1, 2, 5, 10) if step * power >= rough)

    first = math.ceil(least / step)
    last = math.floor(most / step)
    return [(at * step, f"{at * step:.8g}") for at in range(first, last + 1)]

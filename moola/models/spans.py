"""Spans of bars, the candidates for a move: their layout, what describes them, and the decode.

Spans are worked on as [B, L, R]: row l holds the spans of l + 1 bars, by the bar at which they
start. R = T + L - 1, so that the rows, read as if they were one bar shorter each, hold them by the
bar at which they end, without a copy.
"""

import torch
from torch import Tensor
from torch.nn import functional

from moola import HIT_BARS, WINDOW
from moola.models.price_path import (
    ATR_BARS,
    CONTEXT_LIMIT,
    TINY,
    UNIT_ATR,
    PricePath,
    trailing_mean,
)

# Where the worth of a span may bend: of its net move, in 5 ATR or in ATR per sqrt(bar) ...
FAR_KNOTS = (0.5, 1.0, 2.0)
STRAIGHT_KNOTS = (0.5, 0.7, 0.9)  # ... and of its |net| / path
N_DESCRIPTORS = 3 + 2 * len(FAR_KNOTS) + len(STRAIGHT_KNOTS)


def row_length(longest: int) -> int:
    """R. Columns T and above are of no span; nor are spans of which the last bar is T or above."""
    return WINDOW + longest - 1


def by_last_bar(spans: Tensor) -> Tensor:
    """[B, L, R] -> [B, L, T]: the same by the span's last bar; 0 where there is no such span."""
    batch, longest, row = spans.shape
    shorter = spans.flatten(1)[:, : longest * (row - 1)]
    return shorter.view(batch, longest, row - 1)[..., :WINDOW]


def at_first_bars(series: Tensor, longest: int) -> Tensor:
    """[B, T] -> [B, 1, R]: the value at the bar at which a span starts."""
    return functional.pad(series, (0, longest - 1)).unsqueeze(1)


def at_last_bars(series: Tensor, longest: int) -> Tensor:
    """[B, T] -> [B, L, R]: the value at each span's last bar, or the window's last if outside."""
    last = series[:, -1:].expand(-1, 2 * (longest - 1))
    return torch.cat([series, last], dim=1).unfold(
        1,
        row_length(longest),
        1,
    )


@torch.no_grad()
def span_descriptors(path: PricePath, longest: int) -> Tensor:
    """[D, B, L, R]: how far and how straight prices went from the close before a span to its last.

    far           net move in 5 ATR, the ATR being the mean true range of the ATR_BARS before the
                  span
    straight      |net| / path
    per_root_bar  net move in ATR per square root of a bar, which is what a random walk's would be
                  measured in
    hinges        of the three, so that a sum of them can bend: rise to a bound, or count only from
                  one on
    """
    atr = trailing_mean(path.true_range, ATR_BARS) + TINY
    close_before = _one_bar_before(path.close)  # [B, T]
    atr_before = _one_bar_before(atr)

    last_close = at_last_bars(path.close, longest)
    net = (last_close - at_first_bars(close_before, longest)).abs()  # [B, L, R]

    steps = (path.close - close_before).abs()
    travelled = functional.pad(steps, (1, 0)).cumsum(1)  # [B, 1 + T]
    travelled_to = at_last_bars(travelled[:, 1:], longest)
    travelled_before = at_first_bars(travelled[:, :-1], longest)
    path_length = (travelled_to - travelled_before).abs()  # [B, L, R]

    # Written in place: a training step is mostly about memory here.
    descriptors = net.new_empty(N_DESCRIPTORS, *net.shape)
    far, straight, per_root_bar = descriptors[:3]
    per_unit = at_first_bars(1 / (UNIT_ATR * atr_before), longest)
    torch.mul(net, per_unit, out=far).clamp_(max=CONTEXT_LIMIT)
    torch.div(net, path_length + TINY, out=straight).clamp_(max=1.0)
    bars = torch.arange(1, longest + 1, device=net.device)[:, None]  # [L, 1]
    torch.mul(far, UNIT_ATR / bars.sqrt(), out=per_root_bar)

    hinges = [(series, knot) for series in (far, per_root_bar) for knot in FAR_KNOTS]
    hinges += [(straight, knot) for knot in STRAIGHT_KNOTS]
    for column, (series, knot) in zip(descriptors[3:], hinges, strict=True):
        torch.sub(series, knot, out=column).clamp_(min=0)

    return descriptors


def _one_bar_before(series: Tensor) -> Tensor:
    """[B, T] -> [B, T]: the value one bar earlier; the first stands for itself."""
    return torch.cat([series[:, :1], series[:, :-1]], dim=1)


@torch.no_grad()
def decode_spans(span_probs: Tensor) -> tuple[Tensor, Tensor]:
    """[B, T, L] -> the span (start, end) [B] int64 each, both inclusive, 0 <= start <= end <= 104.

    The centre is one that some span has, with the most probability within HIT_BARS of it, nearer
    bars counting a little more; the span is the likeliest one of that centre. Where a window
    holds two moves this picks the likelier move, which the likeliest span need not belong to.
    """
    batch, _, longest = span_probs.shape
    device = span_probs.device
    starts = torch.arange(WINDOW, device=device)[:, None].expand(-1, longest)  # [T, L]
    ends = starts + torch.arange(longest, device=device)
    inside = ends < WINDOW
    probs = span_probs[:, inside]  # [B, S]
    twice_centre = (starts + ends)[inside]  # [S] 0..208
    mass = probs.new_zeros(batch, 2 * WINDOW - 1)  # [B, 209] probability of each centre
    mass.index_add_(1, twice_centre, probs)

    reach = 2 * HIT_BARS  # in half bars
    offsets = torch.arange(-reach, reach + 1, device=device) / reach  # -1..1
    near = (1 - 0.5 * offsets**2).to(mass)  # [2 reach + 1]
    scores = functional.conv1d(mass[:, None], near[None, None], padding=reach)  # [B, 1, 209]

    own = scores[:, 0].masked_fill(mass == 0, -1.0)  # [B, 209]
    best = own.argmax(dim=1, keepdim=True)  # [B, 1]
    elsewhere = twice_centre[None] != best  # [B, S]
    chosen = probs.masked_fill(elsewhere, -1.0).argmax(dim=1)  # [B]

    return starts[inside][chosen], ends[inside][chosen]


def starts_near(
    span_probs: Tensor,
    start: Tensor,
    end: Tensor,
) -> Tensor:
    """[B, T, L], [B], [B] -> [B, T]: the probability of the spans that start at each bar and have
    their centre within HIT_BARS of that of start..end."""
    device = span_probs.device
    first = torch.arange(span_probs.shape[1], device=device)[:, None]
    twice_centre = 2 * first + torch.arange(span_probs.shape[2], device=device)  # [T, L]
    away = twice_centre - (start + end)[:, None, None]  # [B, T, L] in half bars
    return (span_probs * (away.abs() <= 2 * HIT_BARS)).sum(2)

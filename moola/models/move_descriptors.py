"""The spans of a window that may be moves, and what prices did in and next to each.

The prices are those behind the features (`moola.models.price_path`), in ATR, with the move upwards,
so that neither their unit nor their direction matters. Horizons are families, of which none is
preferred; nothing here is learned.
"""

import torch
from torch import Tensor
from torch.nn import functional

from moola import HIT_BARS, WINDOW
from moola.models.candidates import (
    ATR_BARS,
    FAR_BARS,
    Motion,
    Spans,
    at_bar,
    directed_steps,
    motion_of,
    net_move,
    of_the_span,
)
from moola.models.price_path import PricePath
from moola.models.spans import decode_spans

STEP_HORIZONS = (1, 2, 4, 8)  # bars just before the span, and just after it
MOST_BARS_LEFT = 16  # after the span; more tell no more
N_INSIDE = 7 + len(FAR_BARS) + len(ATR_BARS)
N_DESCRIPTORS = N_INSIDE + 2 * len(STEP_HORIZONS)
LIMIT = 12.0  # ATR; what is further out tells no more


def best_spans(span_probs: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """[B, T, L] -> start and end [B, count], decoded one after the other; no two share a bar."""
    first = torch.arange(span_probs.shape[1], device=span_probs.device)[:, None]  # [T, 1]
    last = first + torch.arange(span_probs.shape[2], device=span_probs.device)  # [T, L]

    left = span_probs
    starts = []
    ends = []
    for _ in range(count):
        start, end = decode_spans(left)
        starts.append(start)
        ends.append(end)

        begins_before = first <= end[:, None, None]
        ends_after = last >= start[:, None, None]
        left = left.masked_fill(begins_before & ends_after, 0.0)

    return torch.stack(starts, dim=1), torch.stack(ends, dim=1)


def mass_near(probs: Tensor, twice_centre: Tensor) -> Tensor:
    """[B, T, L], [B, S] -> [B, S] the probability of a centre within HIT_BARS."""
    first = torch.arange(probs.shape[1], device=probs.device)[:, None]
    centres = 2 * first + torch.arange(probs.shape[2], device=probs.device)  # [T, L]
    n_centres = 3 * WINDOW
    mass = probs.new_zeros(len(probs), n_centres)
    mass.index_add_(1, centres.flatten(), probs.flatten(1))

    reach = 2 * HIT_BARS  # in half bars
    up_to = functional.pad(mass.cumsum(1), (1, 0))
    low = (twice_centre - reach).clamp(min=0)
    high = (twice_centre + reach + 1).clamp(max=n_centres)
    return up_to.gather(1, high) - up_to.gather(1, low)


# --- prices ---------------------------------------------------------------------------------------


@torch.no_grad()
def measure(path: PricePath, start: Tensor, end: Tensor) -> Tensor:
    """[B, S, D] what prices did in, just before and just after each span."""
    motion = motion_of(path)
    spans = Spans(start, end)
    steps = [(start - 1 - bars, start - 1) for bars in STEP_HORIZONS]
    steps += [(end, end + bars) for bars in STEP_HORIZONS]

    columns = [*_inside(motion, spans), *directed_steps(motion, spans, steps)]
    return torch.stack(columns, dim=2).clamp(-LIMIT, LIMIT)


def _inside(motion: Motion, spans: Spans) -> list[Tensor]:
    """How long, straight, wide and far the span is, its outer steps, and its place."""
    start, end = spans
    path = motion.path
    unit = at_bar(motion.unit, start - 1)  # [B, S]
    n_bars, *far, straight = of_the_span(motion, spans)
    mean_range = _sum_over(path.true_range, start, end) / n_bars

    steps = functional.pad(path.close.diff(dim=1), (1, 0))
    direction = net_move(motion, spans).sign()
    outer = [direction * at_bar(steps, bar) / unit for bar in (start, end)]

    bars_left = (WINDOW - 1 - end).float().clamp(max=MOST_BARS_LEFT)
    return [n_bars, straight, mean_range / unit, *far, *outer, start.float() / WINDOW, bars_left]


def _sum_over(series: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """[B, T], [B, S] twice -> [B, S]: the sum from start to end, both included."""
    up_to = functional.pad(series.cumsum(1), (1, 0))
    return up_to.gather(1, end + 1) - up_to.gather(1, start)

"""The spans of a window that may be moves, and what prices did in and around each.

The prices are those behind the features (`moola.models.price_path`), in ATR, with the move upwards,
so that neither their unit nor their direction matters. Horizons are geometric families; nothing
here is learned.
"""

import torch
from torch import Tensor
from torch.nn import functional

from moola import HIT_BARS, WINDOW
from moola.models.price_path import ATR_BARS, TINY, PricePath, shifted, trailing_mean
from moola.models.spans import decode_spans

ATR_HORIZONS = (10, ATR_BARS, 40)  # bars; the unit, measured in three ways
BEFORE_HORIZONS = (8, 16, 24, 48)  # bars before the span in which the market's state is read
STEP_HORIZONS = (1, 2, 4, 8)  # bars just before the span, and just after it
MOST_BARS_LEFT = 16  # after the span; more tell no more
N_INSIDE = 7 + 2 * len(ATR_HORIZONS)
N_BEFORE = 6 * len(BEFORE_HORIZONS) + len(STEP_HORIZONS)
N_DESCRIPTORS = N_INSIDE + N_BEFORE + len(STEP_HORIZONS)
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
    """[B, S, D] what prices did in, before and after each span."""
    net = _at(path.close, end) - _at(path.close, start - 1)
    atr = trailing_mean(path.true_range, ATR_BARS) + TINY
    unit = shifted(atr, (1,))[..., 0]  # [B, T] that of the bar before
    own_unit = _at(unit, start).unsqueeze(-1)  # [B, S, 1]

    falls = (net < 0).unsqueeze(-1)
    fallen = PricePath(path.true_range, -path.close, -path.low, -path.high)
    before = torch.where(
        falls,
        _rows(_before(fallen, unit), start),
        _rows(_before(path, unit), start),
    )
    ahead = shifted(path.close, [-bars for bars in STEP_HORIZONS]) - path.close.unsqueeze(-1)
    after = torch.where(falls, -1.0, 1.0) * _rows(ahead, end) / own_unit

    inside = torch.stack(_inside(path, start, end, net, own_unit[..., 0]), dim=2)
    return torch.cat([inside, before, after], dim=2).clamp(-LIMIT, LIMIT)


def _inside(
    path: PricePath,
    start: Tensor,
    end: Tensor,
    net: Tensor,
    unit: Tensor,
) -> list[Tensor]:
    """How long, far, straight and wide the span is, its outer steps, and its place."""
    n_bars = (end - start + 1).to(net)
    far = net.abs()
    steps = functional.pad(path.close.diff(dim=1), (1, 0))
    travelled = _sum_over(steps.abs(), start, end)
    mean_range = _sum_over(path.true_range, start, end) / n_bars

    columns = [n_bars, far / (travelled + TINY), mean_range / unit]
    for bars in ATR_HORIZONS:
        atr = _at(trailing_mean(path.true_range, bars), start - 1) + TINY
        columns.append(far / atr)
        columns.append(far / atr / n_bars.sqrt())

    columns += [net.sign() * _at(steps, bar) / unit for bar in (start, end)]
    columns.append(start.to(net) / WINDOW)
    columns.append((WINDOW - 1 - end).to(net).clamp(max=MOST_BARS_LEFT))

    return columns


def _before(path: PricePath, unit: Tensor) -> Tensor:
    """[B, T, D] the market before a move up that would start at each bar.

    Over each horizon its range, net move, distance from the peak, the leg up to the peak, the part
    of it that was given back, and when the peak was. Bars before the window stand for its first.
    """
    columns = []
    for bars in BEFORE_HORIZONS:
        high = _earlier(path.high, bars)
        low = _earlier(path.low, bars)
        close = _earlier(path.close, bars)

        peak, place = high.max(dim=2)
        position = torch.arange(bars, device=place.device)
        is_before = position < place.unsqueeze(-1)
        is_after = position > place.unsqueeze(-1)
        leg = peak - torch.minimum(_lowest(low, is_before), peak)
        given_back = peak - torch.minimum(_lowest(low, is_after), peak)

        columns += [
            (peak - low.amin(2)) / unit,
            (close[..., -1] - close[..., 0]) / unit,
            (peak - close[..., -1]) / unit,
            leg / unit,
            (given_back / (leg + TINY)).clamp(max=2),
            place / bars,
        ]

    close = _earlier(path.close, max(STEP_HORIZONS) + 1)
    columns += [(close[..., -1] - close[..., -1 - bars]) / unit for bars in STEP_HORIZONS]

    return torch.stack(columns, dim=2)


def _earlier(series: Tensor, bars: int) -> Tensor:
    """[B, T] -> [B, T, bars]: the values before each bar, the latest last."""
    outside = series[:, :1].expand(-1, bars)
    return torch.cat([outside, series[:, :-1]], dim=1).unfold(1, bars, 1)


def _lowest(low: Tensor, chosen: Tensor) -> Tensor:
    """[B, T] the lowest of the chosen bars [B, T, bars]; infinite where there are none."""
    return low.masked_fill(~chosen, torch.inf).amin(2)


def _sum_over(series: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """[B, T], [B, S] twice -> [B, S]: the sum from start to end, both included."""
    up_to = functional.pad(series.cumsum(1), (1, 0))
    return up_to.gather(1, end + 1) - up_to.gather(1, start)


def _at(series: Tensor, rows: Tensor) -> Tensor:
    """[B, T], [B, S] -> [B, S]: the values there; the nearest bar's outside the window."""
    return series.gather(1, rows.clamp(0, series.shape[1] - 1))


def _rows(table: Tensor, rows: Tensor) -> Tensor:
    """[B, T, D], [B, S] -> [B, S, D]: the rows of the table there."""
    return table.gather(1, rows.unsqueeze(-1).expand(-1, -1, table.shape[2]))

"""The relative path of prices behind a window's features, and the context a model reads off it.

The 11 features are ratios; ranges, bodies, wicks and the distances to swings give the bars back up
to one unit and one origin per window.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from moola import WINDOW
from moola.features import FEATURE_NAMES, FEATURE_RANGES

OPEN_NORM = FEATURE_NAMES.index("open_norm")
CLOSE_NORM = FEATURE_NAMES.index("close_norm")
BODY_PCT = FEATURE_NAMES.index("body_pct")
RANGE_Z = FEATURE_NAMES.index("range_z")
DIST_SH = FEATURE_NAMES.index("dist_to_prev_SH")
DIST_SL = FEATURE_NAMES.index("dist_to_prev_SL")
SINCE_SH = FEATURE_NAMES.index("bars_since_SH_norm")
SINCE_SL = FEATURE_NAMES.index("bars_since_SL_norm")

MAX_RANGE_Z = FEATURE_RANGES["range_z"][1]
MAX_DISTANCE = FEATURE_RANGES["dist_to_prev_SH"][1]  # ATR
MAX_SINCE = FEATURE_RANGES["bars_since_SH_norm"][1]

NET_HORIZONS = (2, 4, 8, 16)  # bars over which a net move is measured
RANGE_HORIZONS = (8, 16, 32, 64)  # bars over which a range is measured
ATR_BARS = 16  # the unit of all context: mean true range of the last 16 bars
UNIT_ATR = 5  # net moves and ranges are given in units of 5 ATR
N_CONTEXT = 3 * len(NET_HORIZONS) + 2 * len(RANGE_HORIZONS) + 1  # 21: with F, 32 inputs in all
CONTEXT_LIMIT = 4.0
TINY = 1e-6  # keeps a division by 0 away
# The ATR needs the gaps and the gaps need the ATR: two passes leave a tenth of the error.
GAP_PASSES = 2


class PricePath(NamedTuple):
    """[B, T] each, in one unit per window whose size and origin are unknown.

    true_range        as the ATR takes it: with the gap to the close before
    close, high, low  measured from the first bar's open
    """

    true_range: Tensor
    close: Tensor
    high: Tensor
    low: Tensor


@torch.no_grad()
def price_path(
    x: Tensor,
    range_period: int = 20,
    atr_period: int = 10,
) -> PricePath:
    """The bars behind the features [B, T, F].

    range_z is the ratio of a bar's range to its running average, which gives the average from bar
    to bar, hence the ranges; bodies and wicks then give each bar. The gap between a close and the
    next open follows from a swing that both bars are measured against: its distance changed by the
    step from close to close, in ATR. Where no swing serves (it changed, or the distance is clipped)
    the gap is taken as 0.
    """
    spread = _bar_ranges(x[..., RANGE_Z], range_period)  # [B, T] high - low
    body = x[..., BODY_PCT] * spread
    below_open = x[..., OPEN_NORM] * spread
    above_open = (1 - x[..., OPEN_NORM]) * spread

    distance = x[..., DIST_SH : DIST_SL + 1]  # [B, T, 2]
    trust = _trust(distance, x[..., SINCE_SH : SINCE_SL + 1])  # [B, T - 1, 2]
    total_trust = trust.sum(-1)  # [B, T - 1]
    # The distance from a high falls as the price rises.
    sign = trust.new_tensor([-1.0, 1.0])
    share = trust / total_trust.clamp(min=1e-9).unsqueeze(-1) * sign

    true_range = spread
    gap = torch.zeros_like(body[:, 1:])
    for _ in range(GAP_PASSES):
        atr = trailing_mean(true_range, atr_period)
        price_distance = distance * atr.unsqueeze(-1)
        step = (share * price_distance.diff(dim=1)).sum(-1)  # [B, T - 1] close to close
        gap = torch.where(total_trust > 0, step - body[:, 1:], 0.0)
        gap = gap.clamp(-atr[:, 1:], atr[:, 1:])

        above_close = (above_open[:, 1:] + gap).relu()
        below_close = (below_open[:, 1:] - gap).relu()
        true_range = torch.cat([spread[:, :1], above_close + below_close], dim=1)

    close = (body + functional.pad(gap, (1, 0))).cumsum(1)
    return PricePath(
        true_range=true_range,
        close=close,
        high=close + (1 - x[..., CLOSE_NORM]) * spread,
        low=close - x[..., CLOSE_NORM] * spread,
    )


def _bar_ranges(range_z: Tensor, range_period: int) -> Tensor:
    """[B, T] range_z -> [B, T] high - low of each bar.

    The running average obeys average[t] (1 - alpha z[t]) = (1 - alpha) average[t - 1].
    """
    alpha = 2 / (range_period + 1)
    z = range_z.clamp(0, min(MAX_RANGE_Z, 0.99 / alpha))

    log_average = (math.log(1 - alpha) - torch.log1p(-alpha * z)).cumsum(1)
    centred = log_average - log_average.mean(1, keepdim=True)
    return z * torch.exp(centred.clamp(-20, 20))


def _trust(distance: Tensor, since: Tensor) -> Tensor:
    """[B, T, 2] twice -> [B, T - 1, 2]: how much two bars' distances to a swing say of the step.

    0 where the two are not measured against the same swing; else the more, the nearer the swing.
    """
    now = distance[:, 1:].abs()
    before = distance[:, :-1].abs()
    aged = (since.diff(dim=1) - 1 / WINDOW).abs() < 1e-4
    unclipped = MAX_DISTANCE - 1e-3
    inside = (now < unclipped) & (before < unclipped) & (since[:, 1:] < MAX_SINCE - 1e-2)
    return (aged & inside) / (0.05 + now)


@torch.no_grad()
def context_features(path: PricePath) -> Tensor:
    """[B, T, C]: what the last and the next few bars did, in ATR; each within +-CONTEXT_LIMIT.

    Net move and efficiency of the last 2, 4, 8, 16 bars, net move of the next; range of the last
    8, 16, 32, 64 bars and the close's place in it; and how the ATR compares with the window's last.
    """
    true_range, close, high, low = path
    atr = trailing_mean(true_range, ATR_BARS) + TINY
    travelled = functional.pad(close.diff(dim=1).abs(), (1, 0)).cumsum(1)

    # All horizons at once, as the number of operations is what takes time here.
    earlier = shifted(torch.stack([close, travelled, atr]), NET_HORIZONS)
    close_then, travelled_then, atr_then = earlier  # [B, T, horizons] each
    net = close.unsqueeze(-1) - close_then
    efficiency = net / (travelled.unsqueeze(-1) - travelled_then + TINY)
    net_ahead = shifted(close, [-bars for bars in NET_HORIZONS]) - close.unsqueeze(-1)

    edges = torch.stack([high, -low], dim=1)  # [B, 2, T]
    extremes = torch.stack([trailing_max(edges, bars) for bars in RANGE_HORIZONS], dim=-1)
    top, negative_bottom = extremes.unbind(1)  # [B, T, horizons] each
    spread = top + negative_bottom
    place = (2 * close.unsqueeze(-1) - top + negative_bottom) / (spread + TINY)

    unit = atr.unsqueeze(-1)
    columns = [
        net / atr_then / UNIT_ATR,
        efficiency,
        net_ahead / unit / UNIT_ATR,
        spread / unit / UNIT_ATR - 1,
        place,
        (unit / unit[:, -1:]).log(),
    ]

    return torch.cat(columns, dim=-1).clamp(-CONTEXT_LIMIT, CONTEXT_LIMIT)


def shifted(series: Tensor, horizons: Sequence[int]) -> Tensor:
    """[..., T] -> [..., T, horizons]: the value so many bars ago (negative: ahead).

    Where that lies outside the window, the value at its edge.
    """
    last = series.shape[-1] - 1
    here = torch.arange(last + 1, device=series.device)[:, None]
    bars = here - torch.tensor(horizons, device=series.device)
    return series[..., bars.clamp(0, last)]


def trailing_mean(series: Tensor, bars: int) -> Tensor:
    """[B, T] -> [B, T]: mean of the last (up to) `bars` values."""
    total = functional.pad(series.cumsum(1), (bars, 0))  # [B, bars + T]
    count = torch.arange(
        1,
        series.shape[1] + 1,
        device=series.device,
        dtype=series.dtype,
    )
    return (total[:, bars:] - total[:, :-bars]) / count.clamp(max=bars)


def trailing_max(series: Tensor, bars: int) -> Tensor:
    """[B, K, T] -> [B, K, T]: largest of the last (up to) `bars` values."""
    padded = functional.pad(series, (bars - 1, 0), value=-math.inf)
    return functional.max_pool1d(padded, bars, 1)

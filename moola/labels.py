"""Labelled moves: what kind of market came before an expansion, and where in the window the expansion lies.

This is the one module that may look right: a label is made with the future in view. Nothing here feeds a feature.
Hindsight labels test the machinery; they are nobody's judgement and no trading result.
"""

from typing import Any

import numpy as np
import pandas as pd
from numba import njit
from numpy.typing import NDArray

from moola.specs import HindsightConfig

HINDSIGHT_CLASSES = ("consolidation", "retracement")
UNLABELLED = -1


def hindsight_labels(bars: pd.DataFrame, config: HindsightConfig | None = None) -> pd.DataFrame:
    """The labelled moves of `bars` (DatetimeIndex; open, high, low, close), in time order, one row each:

    label       "consolidation" or "retracement"
    start, end  first and last bar of the expansion, row numbers of `bars`, both inclusive
    direction   +1 up, -1 down
    net_atr     |close[end] - close[start - 1]| / ATR
    efficiency  |close[end] - close[start - 1]| / sum of |close[i] - close[i - 1]| over start..end

    ATR is the plain mean of the true ranges of the `atr_period` bars that end at start - 1. An expansion has
    min_bars..max_bars bars, net_atr >= min_net_atr and efficiency >= min_efficiency. Of all that overlap, the best by
    net_atr / sqrt(bars) stays (ties: the earlier, then the shorter). Its state is the `state_bars` bars before it:
    consolidation if their range <= max_range_atr ATR; else retracement if the leg from the lowest low before the
    highest high up to that high is >= min_leg_atr ATR and what was given back from there to the lowest low after it
    is a fraction of the leg within `give_back` (mirrored for a move down); else the move is left unlabelled, though
    it still keeps weaker ones away. The state, the ATR and the expansion lie in one session: no pause of
    `gap_minutes` or more inside them. Multiplying all prices by one number changes no label but for rounding.
    """
    config = config or HindsightConfig()
    high, low, close = (bars[name].to_numpy(np.float64) for name in ("high", "low", "close"))
    since_gap = _bars_since_gap(pd.DatetimeIndex(bars.index), config.gap_minutes)
    atr = _average_true_range(high, low, close, config.atr_period)
    start, length, net_atr, efficiency = _expansions(
        close, atr, since_gap, max(config.state_bars, config.atr_period + 1), config.min_bars, config.max_bars,
        config.min_net_atr, config.min_efficiency,
    )  # fmt: skip
    ranked = np.argsort(-np.abs(net_atr) / np.sqrt(length), kind="stable")
    kept = _without_overlap(start, length, ranked, len(close))
    start, length, net_atr, efficiency = start[kept], length[kept], net_atr[kept], efficiency[kept]
    direction = np.sign(net_atr).astype(np.int64)
    state = _states(
        high, low, atr, start, direction, config.state_bars, config.max_range_atr, config.min_leg_atr, *config.give_back
    )
    moves = pd.DataFrame(
        {
            "label": np.array([*HINDSIGHT_CLASSES, ""])[state],
            "start": start,
            "end": start + length - 1,
            "direction": direction,
            "net_atr": np.abs(net_atr),
            "efficiency": efficiency,
        }
    )
    return moves[state != UNLABELLED].reset_index(drop=True)


def _bars_since_gap(times: pd.DatetimeIndex, gap_minutes: int) -> NDArray[np.int64]:
    """[n_bars] how many bars of the same session come before each bar."""
    position = np.arange(len(times))
    opens = np.zeros(len(times), np.int64)
    if len(times) > 1:
        pause = np.diff(times.to_numpy()) >= np.timedelta64(gap_minutes, "m")
        opens[1:] = np.where(pause, position[1:], 0)
    return np.asarray(position - np.maximum.accumulate(opens)) if len(times) else opens


@njit(cache=True)  # type: ignore[untyped-decorator]
def _average_true_range(
    high: NDArray[np.float64], low: NDArray[np.float64], close: NDArray[np.float64], period: int
) -> NDArray[np.float64]:
    """[n_bars] mean of the last `period` true ranges; nan until there are as many. Summed afresh for every bar, so
    that it does not depend on where the series starts."""
    true_range = np.zeros(len(close))
    for i in range(1, len(close)):
        true_range[i] = max(high[i] - low[i], abs(high[i] - close[i - 1]), abs(low[i] - close[i - 1]))
    atr = np.full(len(close), np.nan)
    for i in range(period, len(close)):
        total = 0.0
        for j in range(i - period + 1, i + 1):
            total += true_range[j]
        atr[i] = total / period
    return atr


@njit(cache=True)  # type: ignore[untyped-decorator]
def _expansions(
    close: NDArray[np.float64],
    atr: NDArray[np.float64],
    since_gap: NDArray[np.int64],
    history: int,
    min_bars: int,
    max_bars: int,
    min_net_atr: float,
    min_efficiency: float,
) -> Any:
    """(start, length, signed net in ATR, efficiency) of every expansion, overlapping ones too, by start then length."""
    found = [(0, 0, 0.0, 0.0) for _ in range(0)]
    for start in range(history, len(close)):
        unit = atr[start - 1]
        if since_gap[start] < history or not unit > 0:
            continue
        path = 0.0
        for end in range(start, min(start + max_bars, len(close))):
            if since_gap[end] == 0:
                break
            path += abs(close[end] - close[end - 1])
            net = close[end] - close[start - 1]
            long_enough = end - start + 1 >= min_bars
            if long_enough and abs(net) >= min_net_atr * unit and abs(net) >= min_efficiency * path:
                found.append((start, end - start + 1, net / unit, abs(net) / path))
    start_bar, length = np.empty(len(found), np.int64), np.empty(len(found), np.int64)
    net_atr, efficiency = np.empty(len(found)), np.empty(len(found))
    for k in range(len(found)):
        start_bar[k], length[k], net_atr[k], efficiency[k] = found[k]
    return start_bar, length, net_atr, efficiency


@njit(cache=True)  # type: ignore[untyped-decorator]
def _without_overlap(
    start: NDArray[np.int64], length: NDArray[np.int64], ranked: NDArray[np.int64], n_bars: int
) -> NDArray[np.bool_]:
    """[candidates] True for those that stay when the best ranked come first and none may touch a bar already taken."""
    taken, kept = np.zeros(n_bars, np.bool_), np.zeros(len(start), np.bool_)
    for k in ranked:
        bars = taken[start[k] : start[k] + length[k]]
        if not bars.any():
            bars[:] = True
            kept[k] = True
    return kept


@njit(cache=True)  # type: ignore[untyped-decorator]
def _states(
    high: NDArray[np.float64],
    low: NDArray[np.float64],
    atr: NDArray[np.float64],
    start: NDArray[np.int64],
    direction: NDArray[np.int64],
    state_bars: int,
    max_range_atr: float,
    min_leg_atr: float,
    least_back: float,
    most_back: float,
) -> NDArray[np.int64]:
    """[moves] index into HINDSIGHT_CLASSES, or UNLABELLED."""
    state = np.full(len(start), UNLABELLED)
    for k in range(len(start)):
        before, unit = slice(start[k] - state_bars, start[k]), atr[start[k] - 1]
        # A move down is the same move up of the mirrored prices.
        top = high[before] if direction[k] > 0 else -low[before]
        bottom = low[before] if direction[k] > 0 else -high[before]
        peak = np.argmax(top)
        if top[peak] - bottom.min() <= max_range_atr * unit:
            state[k] = 0
        elif 0 < peak < state_bars - 1:
            leg = top[peak] - bottom[:peak].min()
            given_back = top[peak] - bottom[peak + 1 :].min()
            if leg >= min_leg_atr * unit and least_back * leg <= given_back <= most_back * leg:
                state[k] = 1
    return state

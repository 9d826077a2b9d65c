"""Hindsight labels: moves found in bars with the future in view.

This module may look ahead; nothing here feeds a feature. Hindsight labels test the machinery; they
are nobody's judgement and no trading result.

The rule, with the names of `HindsightConfig`. ATR is the plain mean of the true ranges of the
`atr_period` bars that end just before the expansion. An expansion has min_bars..max_bars bars,
net_atr >= min_net_atr and efficiency >= min_efficiency. Of all that overlap, the best by
net_atr / sqrt(bars) stays (ties: the earlier, then the shorter).

The state is the `state_bars` bars before it: consolidation if their range <= max_range_atr ATR;
else retracement if the leg from the lowest low before the highest high up to that high is >=
min_leg_atr ATR and what was given back from there to the lowest low after it is a fraction of the
leg within `give_back` (mirrored for a move down); else the move is left unlabelled, though it still
keeps weaker ones away.

The state, the ATR and the expansion lie in one session: no pause of `gap_minutes` or more inside
them, and no roll from one contract to the next. Multiplying all prices by one number changes no
label but for rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numba import njit

from moola import WINDOW
from moola.data.series import MINUTE_NS
from moola.features.arrays import Flags, Floats, Ints
from moola.specs import STATE_CLASSES, HindsightConfig

CONSOLIDATION, RETRACEMENT = range(len(STATE_CLASSES))
UNLABELLED = -1


@dataclass(frozen=True)
class _Expansions:
    """n expansions, by start and then by length.

    start_bar   [n] first bar, a row of the series
    n_bars      [n]
    net_atr     [n] signed move from the close before the first bar to the last close, in ATR
    efficiency  [n] size of that move / sum of the sizes of the bars' moves
    """

    start_bar: Ints
    n_bars: Ints
    net_atr: Floats
    efficiency: Floats

    @property
    def end_bar(self) -> Ints:
        return self.start_bar + self.n_bars - 1

    @property
    def direction(self) -> Ints:
        return np.sign(self.net_atr).astype(np.int64)

    @property
    def strength(self) -> Floats:
        return np.abs(self.net_atr) / np.sqrt(self.n_bars)

    def take(self, kept: Flags) -> "_Expansions":
        return _Expansions(
            self.start_bar[kept],
            self.n_bars[kept],
            self.net_atr[kept],
            self.efficiency[kept],
        )


def hindsight_labels(
    bars: pd.DataFrame,
    config: HindsightConfig | None = None,
    rolls: Sequence[pd.Timestamp] = (),
) -> pd.DataFrame:
    """The labelled moves of `bars` (DatetimeIndex; open, high, low, close), in time order.

    `rolls` are the minutes from which on prices are those of another contract.

    One row each; bars are row numbers of `bars`, first and last included:

    label            "consolidation" or "retracement"
    state_start_bar  first bar of the state
    start_bar        first bar of the expansion
    end_bar          last bar of the expansion
    direction        +1 up, -1 down
    net_atr          |close[end_bar] - close[start_bar - 1]| / ATR
    efficiency       |close[end_bar] - close[start_bar - 1]| / sum of |close[i] - close[i - 1]| over
                     start_bar..end_bar
    clear_from, clear_to
                     first and last bar at which a window may start so that no stronger expansion,
                     labelled or not, lies whole in it; clear_from > clear_to where every window
                     with this one holds a stronger one
    """
    config = config or HindsightConfig()
    high = np.array(bars["high"], np.float64)
    low = np.array(bars["low"], np.float64)
    close = np.array(bars["close"], np.float64)

    since_gap = _bars_since_gap(pd.DatetimeIndex(bars.index), config.gap_minutes, rolls)
    atr = _average_true_range(high, low, close, config.atr_period)

    expansions = _strongest(_all_expansions(close, atr, since_gap, config), len(close))
    clear_from, clear_to = _clear_places(
        expansions.start_bar,
        expansions.end_bar,
        expansions.strength,
        len(close),
    )
    state = _states(
        high,
        low,
        atr,
        expansions.start_bar,
        expansions.direction,
        config.state_bars,
        config.max_range_atr,
        config.min_leg_atr,
        *config.give_back,
    )

    return _labelled_moves(expansions, state, clear_from, clear_to, config)


def _labelled_moves(
    expansions: _Expansions,
    state: Ints,
    clear_from: Ints,
    clear_to: Ints,
    config: HindsightConfig,
) -> pd.DataFrame:
    moves = pd.DataFrame(
        {
            "label": np.array([*STATE_CLASSES, ""])[state],  # UNLABELLED is the last
            "state_start_bar": expansions.start_bar - config.state_bars,
            "start_bar": expansions.start_bar,
            "end_bar": expansions.end_bar,
            "direction": expansions.direction,
            "net_atr": np.abs(expansions.net_atr),
            "efficiency": expansions.efficiency,
            "clear_from": clear_from,
            "clear_to": clear_to,
        }
    )
    labelled: pd.DataFrame = moves[state != UNLABELLED].reset_index(drop=True)
    return labelled


def _all_expansions(
    close: Floats,
    atr: Floats,
    since_gap: Ints,
    config: HindsightConfig,
) -> _Expansions:
    """Every expansion, overlapping ones too."""
    columns = _find_expansions(
        close,
        atr,
        since_gap,
        max(config.state_bars, config.atr_period + 1),
        config.min_bars,
        config.max_bars,
        config.min_net_atr,
        config.min_efficiency,
    )
    return _Expansions(*columns)


def _strongest(expansions: _Expansions, n_bars: int) -> _Expansions:
    """Those that stay when the strongest come first and no two may share a bar."""
    ranked = np.argsort(-expansions.strength, kind="stable")
    kept = _without_overlap(expansions.start_bar, expansions.n_bars, ranked, n_bars)

    return expansions.take(kept)


def _bars_since_gap(
    times: pd.DatetimeIndex,
    gap_minutes: int,
    rolls: Sequence[pd.Timestamp],
) -> Ints:
    """[n_bars] how many bars of the same session and contract come before each bar."""
    opened_ns = times.as_unit("ns").asi8
    after_gap = np.diff(opened_ns, prepend=opened_ns[:1]) >= gap_minutes * MINUTE_NS
    if len(rolls):
        first_bars = times.searchsorted(pd.DatetimeIndex(list(rolls)))
        after_gap[first_bars[first_bars < len(times)]] = True

    bar = np.arange(len(times))
    session_start = np.maximum.accumulate(np.where(after_gap, bar, 0))

    return np.asarray(bar - session_start)


@njit(cache=True)
def _average_true_range(
    high: Floats,
    low: Floats,
    close: Floats,
    period: int,
) -> Floats:
    """[n_bars] mean of the last `period` true ranges; nan until there are as many.

    Summed afresh for every bar, so that it does not depend on where the series starts.
    """
    true_range = np.zeros(len(close))
    for i in range(1, len(close)):
        from_high = abs(high[i] - close[i - 1])
        from_low = abs(low[i] - close[i - 1])
        true_range[i] = max(high[i] - low[i], from_high, from_low)

    atr = np.full(len(close), np.nan)
    for i in range(period, len(close)):
        total = 0.0
        for j in range(i - period + 1, i + 1):
            total += true_range[j]
        atr[i] = total / period

    return atr


@njit(cache=True)
def _find_expansions(
    close: Floats,
    atr: Floats,
    since_gap: Ints,
    history_bars: int,
    min_bars: int,
    max_bars: int,
    min_net_atr: float,
    min_efficiency: float,
) -> tuple[Ints, Ints, Floats, Floats]:
    """The columns of `_Expansions`, by start and then by length, overlapping ones too."""
    rows = [(0, 0, 0.0, 0.0) for _ in range(0)]  # empty, and of a type that numba knows

    for start_bar in range(history_bars, len(close)):
        unit = atr[start_bar - 1]
        if since_gap[start_bar] < history_bars or not unit > 0:
            continue

        path = 0.0
        for end_bar in range(start_bar, min(start_bar + max_bars, len(close))):
            if since_gap[end_bar] == 0:
                break

            path += abs(close[end_bar] - close[end_bar - 1])
            net = close[end_bar] - close[start_bar - 1]
            n_bars = end_bar - start_bar + 1

            is_large = abs(net) >= min_net_atr * unit
            is_straight = abs(net) >= min_efficiency * path
            if n_bars >= min_bars and is_large and is_straight:
                rows.append((start_bar, n_bars, net / unit, abs(net) / path))

    start_bars = np.empty(len(rows), np.int64)
    lengths = np.empty(len(rows), np.int64)
    net_atr = np.empty(len(rows))
    efficiency = np.empty(len(rows))

    for k in range(len(rows)):
        start_bars[k], lengths[k], net_atr[k], efficiency[k] = rows[k]

    return start_bars, lengths, net_atr, efficiency


@njit(cache=True)
def _without_overlap(
    start_bar: Ints,
    length: Ints,
    ranked: Ints,
    n_bars: int,
) -> Flags:
    """[candidates] True for those that stay: the best ranked first, none on a bar already taken."""
    taken = np.zeros(n_bars, np.bool_)
    kept = np.zeros(len(start_bar), np.bool_)

    for k in ranked:
        bars = taken[start_bar[k] : start_bar[k] + length[k]]
        if not bars.any():
            bars[:] = True
            kept[k] = True

    return kept


@njit(cache=True)
def _clear_places(
    start_bar: Ints,
    end_bar: Ints,
    strength: Floats,
    n_bars: int,
) -> tuple[Ints, Ints]:
    """Where windows may start that hold no expansion stronger than this one.

    The expansions are in time order and share no bar. A stronger one before is kept out by starting
    after its first bar, a stronger one after by ending before its last.
    """
    clear_from = np.zeros_like(start_bar)
    clear_to = np.full_like(start_bar, n_bars - WINDOW)

    for k in range(len(start_bar)):
        before = k - 1
        while before >= 0 and strength[before] <= strength[k]:
            before -= 1
        if before >= 0:
            clear_from[k] = start_bar[before] + 1

        after = k + 1
        while after < len(start_bar) and strength[after] <= strength[k]:
            after += 1
        if after < len(start_bar):
            clear_to[k] = min(n_bars, end_bar[after]) - WINDOW

    return clear_from, clear_to


@njit(cache=True)
def _states(
    high: Floats,
    low: Floats,
    atr: Floats,
    start_bar: Ints,
    direction: Ints,
    state_bars: int,
    max_range_atr: float,
    min_leg_atr: float,
    min_give_back: float,
    max_give_back: float,
) -> Ints:
    """[moves] CONSOLIDATION, RETRACEMENT or UNLABELLED."""
    state = np.full(len(start_bar), UNLABELLED)

    for k in range(len(start_bar)):
        before = slice(start_bar[k] - state_bars, start_bar[k])
        unit = atr[start_bar[k] - 1]

        # A move down is the same move up of the mirrored prices.
        top = high[before] if direction[k] > 0 else -low[before]
        bottom = low[before] if direction[k] > 0 else -high[before]
        peak = np.argmax(top)

        if top[peak] - bottom.min() <= max_range_atr * unit:
            state[k] = CONSOLIDATION
        elif 0 < peak < state_bars - 1:
            leg = top[peak] - bottom[:peak].min()
            given_back = top[peak] - bottom[peak + 1 :].min()
            in_bounds = min_give_back * leg <= given_back <= max_give_back * leg

            if leg >= min_leg_atr * unit and in_bounds:
                state[k] = RETRACEMENT

    return state

"""Planted moves: where they go in a synthetic market, and its bars, drawn one by one.

A move is a state of consolidation or of a leg and its pullback, then an expansion. It is built at
the local volatility, measured on the finished bars, and drawn again until the bounds of its rule
hold, so that an annotation is true of the bars that come out. Where the bounds cannot be met, the
slot keeps its ordinary bars and is not annotated.

Prices are in whole ticks. Inside a bar the price is a Brownian bridge from open to close, whose
maximum and minimum are drawn by inversion (Karatzas and Shreve 1991, section 2.8).
"""

import itertools
from typing import NamedTuple, Protocol

import numpy as np
from numba import njit

from moola import PRICES
from moola.data.hindsight import CONSOLIDATION, RETRACEMENT
from moola.features.arrays import Floats, Ints
from moola.specs import HindsightConfig, MarketConfig

DAY_BARS = 1380  # a full trading day: 23 h
OPEN, HIGH, LOW, CLOSE = range(len(PRICES))  # columns of the simulated bars

_MAX_ATTEMPTS = 200  # at one move
_OPEN_GAP_TICKS = 0.7  # of an open against the close before: standard deviation
_OPEN_GAP_SPREADS = 0.05  # the same, as a fraction of the bar's spread; added to it


class MoveRule(NamedTuple):
    """The bounds that a planted move keeps: those of the default hindsight rule.

    In units of one ATR, the mean of the true ranges of the `atr_bars` bars before the expansion:

    min_net_atr     of the expansion, close to close
    min_efficiency  |net| / sum of |close - previous close|
    max_range_atr   highest high - lowest low of a consolidation; a retracement's is above
    min_leg_atr     of a retracement, from the lowest low before the peak to the peak, upwards
    min_give_back   fraction of the leg, by the last close
    max_give_back   fraction of the leg, by the deepest point after the peak
    """

    state_bars: int
    atr_bars: int
    min_bars: int
    max_bars: int
    min_net_atr: float
    min_efficiency: float
    max_range_atr: float
    min_leg_atr: float
    min_give_back: float
    max_give_back: float

    @classmethod
    def of(cls, config: HindsightConfig) -> "MoveRule":
        min_give_back, max_give_back = config.give_back

        return cls(
            state_bars=config.state_bars,
            atr_bars=config.atr_period,
            min_bars=config.min_bars,
            max_bars=config.max_bars,
            min_net_atr=config.min_net_atr,
            min_efficiency=config.min_efficiency,
            max_range_atr=config.max_range_atr,
            min_leg_atr=config.min_leg_atr,
            min_give_back=min_give_back,
            max_give_back=max_give_back,
        )


# An argument of the compiled functions, not a constant in them: numba keeps what it compiled until
# this file changes, and would not see another default in the specs.
RULE = MoveRule.of(HindsightConfig())


class PlannedMove(Protocol):
    """A record of a plan. `atr`, in ticks, and `planted` are filled in by `simulate`."""

    start_bar: int  # first bar of the state
    n_bars: int  # of the expansion
    direction: int  # +1 or -1
    state: int  # CONSOLIDATION or RETRACEMENT
    atr: float
    planted: bool


MOVE = np.dtype(
    [
        ("start_bar", "i8"),
        ("n_bars", "i8"),
        ("direction", "i8"),
        ("state", "i8"),
        ("atr", "f8"),
        ("planted", "?"),
    ]
)
Plan = np.ndarray[tuple[int], np.dtype[np.void]]  # of MOVE


def plan_moves(
    opens: Ints,
    n_bars: int,
    config: MarketConfig,
    rng: np.random.Generator,
) -> Plan:
    """Where moves go, and of which kind: uniform over each session, none sharing a bar.

    `opens` are the rows at which sessions open; there are `n_bars` rows in all.
    """
    edges = [*opens.tolist(), n_bars]
    plans = []

    for first, stop in itertools.pairwise(edges):
        plans.append(_plan_session(first, stop, config, rng))

    return np.concatenate(plans)


def _plan_session(
    first: int,
    stop: int,
    config: MarketConfig,
    rng: np.random.Generator,
) -> Plan:
    room = stop - first - 1  # the first bar opens with a gap: no move begins on it
    n_drawn = rng.poisson(config.moves_per_day * (stop - first) / DAY_BARS)
    n_moves = min(n_drawn, room // (RULE.state_bars + RULE.max_bars))

    plan = np.zeros(n_moves, MOVE)
    plan["n_bars"] = rng.integers(RULE.min_bars, RULE.max_bars + 1, n_moves)
    plan["direction"] = rng.choice([-1, 1], n_moves)

    is_quiet = rng.random(n_moves) < config.consolidation_fraction
    plan["state"] = np.where(is_quiet, CONSOLIDATION, RETRACEMENT)

    lengths = RULE.state_bars + plan["n_bars"]
    n_ordinary = room - lengths.sum()
    ordinary_before = np.sort(rng.integers(0, n_ordinary + 1, n_moves))
    moves_before = np.cumsum(lengths) - lengths
    plan["start_bar"] = first + 1 + ordinary_before + moves_before

    return plan


@njit(cache=True)
def simulate(
    bars: Floats,
    volatility: Floats,
    sigma: Floats,
    gaps: Floats,
    plan: Plan,
    start_ticks: float,
    difficulty: float,
    rule: MoveRule,
    rng: np.random.Generator,
) -> None:
    """Fills `bars` [n_bars, 4] (open, high, low, close), and `atr` and `planted` of the plan.

    volatility   [n_bars] the return's scale
    sigma        [n_bars] the same with the bar's own share of the fat tail
    gaps         [n_bars] return from the close before to the open
    start_ticks  price before the first bar
    """
    close = np.round(start_ticks)
    next_move = 0
    i = 0

    while i < len(bars):
        if next_move < len(plan) and i == plan[next_move].start_bar:
            move = plan[next_move]
            next_move += 1
            spread = volatility[i : i + rule.state_bars].mean() * close

            if _plant(bars, move, spread, difficulty, rule, rng):
                i += rule.state_bars + move.n_bars
                close = bars[i - 1, CLOSE]
                continue

        before = close * (1 + gaps[i])
        step = sigma[i] * close * rng.standard_normal()
        # A bar's range has thinner tails than its return.
        spread = np.sqrt(volatility[i] * sigma[i]) * close
        close = _write_bar(bars, i, before, before + step, spread, rng)
        i += 1


@njit(cache=True)
def _plant(
    bars: Floats,
    move: PlannedMove,
    spread: float,
    difficulty: float,
    rule: MoveRule,
    rng: np.random.Generator,
) -> bool:
    """Draws the move until its bounds hold; False where they never did."""
    for _ in range(_MAX_ATTEMPTS):
        _draw_move(bars, move, spread, difficulty, rule, rng)
        move.planted = _holds(bars, move, rule)
        if move.planted:
            break

    return move.planted


@njit(cache=True)
def _write_bar(
    bars: Floats,
    i: int,
    before: float,
    close: float,
    spread: float,
    rng: np.random.Generator,
) -> float:
    """Bar i: opens near `before`, closes at `close`; between, a bridge of deviation `spread`."""
    open_gap = _OPEN_GAP_TICKS + _OPEN_GAP_SPREADS * spread
    open_ = np.round(before + open_gap * rng.standard_normal())
    close = np.round(close)

    middle = (open_ + close) / 2
    body = close - open_
    above = _draw_reach(body, spread, rng)
    below = _draw_reach(body, spread, rng)

    bars[i, OPEN] = open_
    bars[i, HIGH] = np.round(middle + above)
    bars[i, LOW] = np.round(middle - below)
    bars[i, CLOSE] = close
    return float(close)


@njit(cache=True)
def _draw_reach(body: float, spread: float, rng: np.random.Generator) -> float:
    """How far the bridge goes from the middle of its ends, to one side."""
    log_uniform = np.log(1 - rng.random())
    squared = body**2 - 2 * spread**2 * log_uniform

    return float(np.sqrt(squared) / 2)


@njit(cache=True)
def _draw_move(
    bars: Floats,
    move: PlannedMove,
    spread: float,
    difficulty: float,
    rule: MoveRule,
    rng: np.random.Generator,
) -> None:
    """One attempt: writes the state and the expansion; sets the move's ATR."""
    if move.state == CONSOLIDATION:
        memory = 0.4 + 0.4 * difficulty
        _write_quiet(bars, move.start_bar, rule.state_bars, memory, spread, rng)
    else:
        noise = spread * (0.3 + 0.6 * difficulty)
        leg_bars = 10 + int(8 * rng.random())
        leg = move.direction * spread * (8 + 4 * rng.random())
        _write_path(bars, move.start_bar, leg_bars, leg, noise, spread, rng)

        peak_bar = move.start_bar + leg_bars
        back = -leg * (0.3 + 0.35 * rng.random())
        _write_path(
            bars,
            peak_bar,
            rule.state_bars - leg_bars,
            back,
            noise,
            spread,
            rng,
        )

    begin = move.start_bar + rule.state_bars
    move.atr = _average_true_range(bars, begin, rule.atr_bars)

    excess_atr = min(rng.exponential(1.2), 6.0)
    size = move.atr * (rule.min_net_atr + 0.2 + excess_atr)
    noise = (0.2 + 0.9 * difficulty) * size / move.n_bars
    _write_path(
        bars,
        begin,
        move.n_bars,
        move.direction * size,
        noise,
        spread,
        rng,
    )


@njit(cache=True)
def _write_quiet(
    bars: Floats,
    first: int,
    n_bars: int,
    memory: float,
    spread: float,
    rng: np.random.Generator,
) -> None:
    """`n_bars` bars whose closes keep returning to the close before them."""
    centre = bars[first - 1, CLOSE]
    close = centre
    offset = 0.0

    for i in range(first, first + n_bars):
        offset = memory * offset + 0.8 * spread * rng.standard_normal()
        close = _write_bar(bars, i, close, centre + offset, 0.8 * spread, rng)


@njit(cache=True)
def _write_path(
    bars: Floats,
    first: int,
    n_bars: int,
    net: float,
    noise: float,
    spread: float,
    rng: np.random.Generator,
) -> None:
    """`n_bars` bars whose closes go `net` ticks from the close before, each step with normal noise.

    The noise sums to zero: `net` is exact.
    """
    wander = np.cumsum(noise * rng.standard_normal(n_bars))
    origin = bars[first - 1, CLOSE]
    close = origin

    for k in range(n_bars):
        fraction = (k + 1) / n_bars
        target = origin + fraction * net + wander[k] - fraction * wander[-1]
        close = _write_bar(bars, first + k, close, target, 0.8 * spread, rng)


@njit(cache=True)
def _average_true_range(bars: Floats, stop: int, n_bars: int) -> float:
    """Mean true range of the `n_bars` bars before bar `stop`."""
    total = 0.0
    for i in range(stop - n_bars, stop):
        before = bars[i - 1, CLOSE]
        highest = max(bars[i, HIGH], before)
        lowest = min(bars[i, LOW], before)
        total += highest - lowest

    return total / n_bars


@njit(cache=True)
def _holds(bars: Floats, move: PlannedMove, rule: MoveRule) -> bool:
    """Whether the bars keep every bound, and the expansion's first and last bar go its way."""
    begin = move.start_bar + rule.state_bars
    last = begin + move.n_bars - 1

    path = 0.0
    for i in range(begin, last + 1):
        path += abs(bars[i, CLOSE] - bars[i - 1, CLOSE])

    net = bars[last, CLOSE] - bars[begin - 1, CLOSE]
    net *= move.direction
    if net < rule.min_net_atr * move.atr or net < rule.min_efficiency * path:
        return False

    first_step = bars[begin, CLOSE] - bars[begin - 1, CLOSE]
    last_step = bars[last, CLOSE] - bars[last - 1, CLOSE]
    if min(move.direction * first_step, move.direction * last_step) <= 0:
        return False

    width, leg, given_back, deepest = _measure_state(
        bars, move.start_bar, rule.state_bars, move.direction
    )
    is_quiet = width <= rule.max_range_atr * move.atr

    if move.state == CONSOLIDATION:
        return bool(is_quiet)

    leg_counts = not is_quiet and leg >= rule.min_leg_atr * move.atr
    return bool(leg_counts and given_back >= rule.min_give_back and deepest <= rule.max_give_back)


@njit(cache=True)
def _measure_state(
    bars: Floats, first: int, n_bars: int, direction: int
) -> tuple[float, float, float, float]:
    """(range, leg, given_back, deepest) of the `n_bars` bars from `first`; direction -1 mirrors it.

    Range and leg are in ticks; the others are the fractions of the leg that the last close and the
    deepest point after the peak give back.
    """
    peak = -np.inf
    lowest = np.inf
    leg = 0.0
    deepest = 0.0

    for i in range(first, first + n_bars):
        top = bars[i, HIGH]
        bottom = bars[i, LOW]
        if direction < 0:
            top = -bars[i, LOW]
            bottom = -bars[i, HIGH]

        lowest = min(lowest, bottom)

        if top > peak:
            peak = top
            leg = top - lowest
            deepest = bottom

        deepest = min(deepest, bottom)

    close = direction * bars[first + n_bars - 1, CLOSE]
    divisor = max(leg, 1.0)
    given_back = (peak - close) / divisor
    deepest_back = (peak - deepest) / divisor

    return peak - lowest, leg, given_back, deepest_back

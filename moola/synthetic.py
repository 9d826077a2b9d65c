"""A seeded futures market with planted, annotated moves, for tests, benchmarks and the shipped job.

Sessions: the CMES calendar of exchange_calendars (holidays, early closes at 13:00 New York), from 18:00 New York on the
day before to 17:00. The library has no daily halt (17:00 to 18:00); it is added here.

Volatility: season(minute of the New York day) x exp(sum of three AR(1) processes of minutes, hours and days) x a
chi-square mixture, which makes the returns Student-t. Inside a bar the price is a Brownian bridge from open to close,
whose maximum and minimum are drawn by inversion (Karatzas and Shreve 1991, section 2.8). The constants below were set
from the moments of two weeks of 1-minute NQ (November 2023), with the default planted moves in place.

Planted moves: STATE_BARS bars of consolidation or of a leg and its pullback, then an expansion. They are built at the
local volatility, measured on the finished bars, and drawn again until the bounds below hold, so that an annotation is
true of the bars that come out. All bounds are in units of one ATR: the mean of the true ranges of the ATR_BARS bars
before the expansion. Where the bounds cannot be met, the slot keeps its ordinary bars and is not annotated.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numba import njit

from moola.errors import DataError
from moola.specs import MarketConfig

TICK = 0.25  # price
DAY_BARS = 1380  # a full trading day: 23 h
NEW_YORK = "America/New_York"

CONSOLIDATION, RETRACEMENT = 0, 1
STATES = ("consolidation", "retracement")
STATE_BARS = 24
ATR_BARS = 20
EXPANSION_BARS = (4, 16)  # both inclusive
MIN_NET_ATR = 4.0  # of the expansion, close to close
MIN_EFFICIENCY = 0.75  # |net| / sum of |close - previous close|
MAX_CONSOLIDATION_ATR = 4.5  # highest high - lowest low of the state; a retracement's is above
MIN_LEG_ATR = 4.0  # from the lowest low before the peak to the peak, upwards
GIVEN_BACK = (0.25, 0.75)  # of the leg: by the last close, and at most by the deepest point after the peak
_TRIES = 200

# (minute of the New York day, standard deviation of a 1-minute return in 1e-4); between knots log-linear.
_SEASON = (
    (0, 0.65), (120, 0.75), (175, 0.95), (180, 1.50), (240, 1.30), (300, 1.05), (420, 1.10), (505, 1.20), (510, 1.65),
    (569, 1.65), (570, 5.20), (600, 4.00), (660, 3.00), (720, 1.85), (779, 1.70), (780, 2.30), (840, 2.30),
    (959, 2.20), (960, 1.80), (990, 1.20), (1019, 0.80), (1080, 1.40), (1095, 0.80), (1200, 0.83), (1320, 0.65),
    (1439, 0.45),
)  # fmt: skip
_MOVE = np.dtype(
    [("start", "i8"), ("n_bars", "i8"), ("direction", "i8"), ("state", "i8"), ("atr", "f8"), ("planted", "?")]
)  # start: first bar of the state; n_bars: of the expansion; atr, in ticks, and planted are filled in by _simulate

# (time constant in bars, standard deviation of the log volatility)
_CLUSTERS = ((6.0, 0.30), (400.0, 0.20), (5000.0, 0.16))
_STUDENT_DF = 9.0
_HALT_GAP = 2e-4  # standard deviation of the gap over one closed hour; grows with the root of the hours
_OPEN_GAP = (0.7, 0.05)  # of an open against the close before: in ticks, and as a fraction of the bar's volatility


@dataclass(frozen=True)
class Market:
    """`bars`: index `timestamp` (UTC minute the bar opened), float64 open, high, low, close, volume.

    `moves`: one row per planted move, in time order, no two sharing a bar. `label` is the state before the move;
    `state_start`, `expansion_start`, `expansion_end` are UTC minutes and, with the suffix `_bar`, rows of `bars`, all
    inclusive; the state ends where the expansion starts. `direction` is +1 or -1; `net` is the signed price change from
    the close before the expansion to its last close, `net_atr` its size in ATR.
    """

    bars: pd.DataFrame
    moves: pd.DataFrame


def make_market(config: MarketConfig = MarketConfig()) -> Market:  # noqa: B008
    """The market of `config`; the same config gives the same bits. Raises DataError where no trading day is in it."""
    rng = np.random.default_rng(config.seed)
    index, opens = session_minutes(config)
    season = _season(index)
    plan = _plan_moves(opens, len(index), config, rng)
    volatility = season * np.exp(_log_volatility(len(index), rng))
    ticks = np.empty((len(index), 4))
    _simulate(
        ticks,
        volatility,
        volatility * np.sqrt((_STUDENT_DF - 2) / rng.chisquare(_STUDENT_DF, len(index))),
        _halt_gaps(index, opens, rng),
        plan,
        config.start_price / TICK,
        config.difficulty,
        rng,
    )
    bars = pd.DataFrame(ticks * TICK, index=index, columns=["open", "high", "low", "close"])
    bars["volume"] = _volume(bars, season, rng)
    return Market(bars, _moves_table(index, ticks, plan[plan["planted"]]))


def session_minutes(config: MarketConfig) -> tuple[pd.DatetimeIndex, np.ndarray[Any, np.dtype[np.int64]]]:
    """Every minute of the config's sessions (UTC), and the row at which each session opens."""
    schedule = _schedule(config)
    halt = pd.DatetimeIndex([day + pd.Timedelta(hours=17) for day in schedule.index], tz=NEW_YORK)  # the wall clock's
    first = _epoch_minutes(pd.DatetimeIndex(schedule["open"]))
    stop = np.minimum(_epoch_minutes(pd.DatetimeIndex(schedule["close"])), _epoch_minutes(halt))
    n_bars = stop - first
    opens = np.concatenate(([0], np.cumsum(n_bars)[:-1]))
    minutes = np.arange(n_bars.sum()) + np.repeat(first - opens, n_bars)
    index = pd.DatetimeIndex((minutes * 60_000_000).view("datetime64[us]"), name="timestamp").tz_localize("UTC")
    return index, opens


def _schedule(config: MarketConfig) -> pd.DataFrame:
    import exchange_calendars  # takes a second to import: only a market pays for it

    margin = pd.Timedelta(days=10)  # the library refuses a span without a session; holidays never last so long
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it uses what pandas 3 deprecates
        calendar = exchange_calendars.get_calendar(
            "CMES", start=pd.Timestamp(config.start) - margin, end=pd.Timestamp(config.end) + margin
        )
    schedule: pd.DataFrame = calendar.schedule.loc[str(config.start) : str(config.end)]
    if schedule.empty:
        raise DataError(f"the market needs at least one trading day: none from {config.start} to {config.end} (CMES)")
    return schedule


def _epoch_minutes(times: pd.DatetimeIndex) -> Any:
    return times.as_unit("s").asi8 // 60


def _season(index: pd.DatetimeIndex) -> Any:
    """Standard deviation of the return at each minute, before clustering; [n_bars]."""
    new_york = index.tz_convert(NEW_YORK)
    minute, sigma = np.array(_SEASON).T
    by_minute = 1e-4 * np.exp(np.interp(np.arange(1440), minute, np.log(sigma)))
    return by_minute[new_york.hour.to_numpy() * 60 + new_york.minute.to_numpy()]


def _plan_moves(opens: Any, n_bars: int, config: MarketConfig, rng: np.random.Generator) -> Any:
    """Where moves go, and of which kind: uniform over each session, none sharing a bar; records of `_MOVE`."""
    plans = []
    for first, stop in zip(opens, np.append(opens[1:], n_bars), strict=True):
        room = int(stop - first) - 1  # the session's first bar opens with a gap: no move begins on it
        n_moves = rng.poisson(config.moves_per_day * (stop - first) / DAY_BARS)
        n_moves = min(n_moves, room // (STATE_BARS + EXPANSION_BARS[1]))
        plan = np.zeros(n_moves, _MOVE)
        plan["n_bars"] = rng.integers(EXPANSION_BARS[0], EXPANSION_BARS[1] + 1, n_moves)
        plan["direction"] = rng.choice([-1, 1], n_moves)
        plan["state"] = np.where(rng.random(n_moves) < config.consolidation_fraction, CONSOLIDATION, RETRACEMENT)
        lengths = STATE_BARS + plan["n_bars"]
        before = np.sort(rng.integers(0, room - lengths.sum() + 1, n_moves))  # ordinary bars before each
        plan["start"] = first + 1 + before + np.cumsum(lengths) - lengths
        plans.append(plan)
    return np.concatenate(plans)


def _log_volatility(n_bars: int, rng: np.random.Generator) -> Any:
    total = np.zeros(n_bars)
    for time_constant, deviation in _CLUSTERS:
        _add_autoregression(total, np.exp(-1 / time_constant), deviation, rng.standard_normal(n_bars))
    return total


@njit(cache=True)
def _add_autoregression(total: Any, memory: float, deviation: float, noise: Any) -> None:
    """Adds a stationary AR(1) process of that standard deviation to `total`, in place."""
    value = deviation * noise[0]
    total[0] += value
    for i in range(1, len(total)):
        value = memory * value + deviation * np.sqrt(1 - memory**2) * noise[i]
        total[i] += value


def _halt_gaps(index: pd.DatetimeIndex, opens: Any, rng: np.random.Generator) -> Any:
    """Return from the last close to the open at each session's first bar; 0 elsewhere; [n_bars]."""
    minutes = _epoch_minutes(index)
    gaps = np.zeros(len(index))
    closed_hours = (minutes[opens[1:]] - minutes[opens[1:] - 1] - 1) / 60
    gaps[opens[1:]] = _HALT_GAP * np.sqrt(closed_hours) * rng.standard_normal(len(closed_hours))
    return gaps


@njit(cache=True)
def _simulate(
    bars: Any, volatility: Any, sigma: Any, gaps: Any, plan: Any, start: float, difficulty: float, rng: Any
) -> None:
    """Fills `bars` [n_bars, 4] (open, high, low, close in whole ticks), and `atr` and `planted` of the plan.

    `volatility` is the return's scale at each bar, `sigma` the same with the bar's own share of the fat tail.
    """
    close, next_move, i = np.round(start), 0, 0
    while i < len(bars):
        if next_move < len(plan) and i == plan[next_move].start:
            move = plan[next_move]
            next_move += 1
            spread = volatility[i : i + STATE_BARS].mean() * close
            for _ in range(_TRIES):
                _draw_move(bars, move, spread, difficulty, rng)
                move.planted = _holds(bars, move)
                if move.planted:
                    break
            if move.planted:
                i += STATE_BARS + move.n_bars
                close = bars[i - 1, 3]
                continue
        before = close * (1 + gaps[i])
        step = sigma[i] * close * rng.standard_normal()
        spread = np.sqrt(volatility[i] * sigma[i]) * close  # a bar's range has thinner tails than its return
        close = _write_bar(bars, i, before, before + step, spread, rng)
        i += 1


@njit(cache=True)
def _write_bar(bars: Any, i: int, before: float, close: float, spread: float, rng: Any) -> float:
    """Bar i: opens near `before`, closes at `close`, between them a bridge of standard deviation `spread`."""
    open_ = np.round(before + (_OPEN_GAP[0] + _OPEN_GAP[1] * spread) * rng.standard_normal())
    close = np.round(close)
    middle, body = (open_ + close) / 2, close - open_
    above = np.sqrt(body**2 - 2 * spread**2 * np.log(1 - rng.random())) / 2
    below = np.sqrt(body**2 - 2 * spread**2 * np.log(1 - rng.random())) / 2
    bars[i, 0] = open_
    bars[i, 1] = np.round(middle + above)
    bars[i, 2] = np.round(middle - below)
    bars[i, 3] = close
    return float(close)


@njit(cache=True)
def _draw_move(bars: Any, move: Any, spread: float, difficulty: float, rng: Any) -> None:
    """One attempt: writes the state and the expansion; sets the move's ATR."""
    begin = move.start + STATE_BARS
    if move.state == CONSOLIDATION:
        _write_quiet(bars, move.start, 0.4 + 0.4 * difficulty, spread, rng)
    else:
        noise = spread * (0.3 + 0.6 * difficulty)
        leg_bars = 10 + int(8 * rng.random())
        leg = move.direction * spread * (8 + 4 * rng.random())
        _write_path(bars, move.start, leg_bars, leg, noise, spread, rng)
        back = -leg * (0.3 + 0.35 * rng.random())
        _write_path(bars, move.start + leg_bars, STATE_BARS - leg_bars, back, noise, spread, rng)
    move.atr = _average_true_range(bars, begin)
    size = move.atr * (MIN_NET_ATR + 0.2 + min(rng.exponential(1.2), 6.0))
    noise = (0.2 + 0.9 * difficulty) * size / move.n_bars
    _write_path(bars, begin, move.n_bars, move.direction * size, noise, spread, rng)


@njit(cache=True)
def _write_quiet(bars: Any, first: int, memory: float, spread: float, rng: Any) -> None:
    """STATE_BARS bars whose closes keep returning to the close before them."""
    centre = bars[first - 1, 3]
    close, offset = centre, 0.0
    for i in range(first, first + STATE_BARS):
        offset = memory * offset + 0.8 * spread * rng.standard_normal()
        close = _write_bar(bars, i, close, centre + offset, 0.8 * spread, rng)


@njit(cache=True)
def _write_path(bars: Any, first: int, n_bars: int, net: float, noise: float, spread: float, rng: Any) -> None:
    """`n_bars` bars whose closes go `net` ticks from the close before, each step with normal noise; net is exact."""
    wander = np.cumsum(noise * rng.standard_normal(n_bars))
    origin = bars[first - 1, 3]
    close = origin
    for k in range(n_bars):
        share = (k + 1) / n_bars
        target = origin + share * net + wander[k] - share * wander[-1]
        close = _write_bar(bars, first + k, close, target, 0.8 * spread, rng)


@njit(cache=True)
def _average_true_range(bars: Any, stop: int) -> float:
    """Mean true range of the ATR_BARS bars before bar `stop`."""
    total = 0.0
    for i in range(stop - ATR_BARS, stop):
        total += max(bars[i, 1], bars[i - 1, 3]) - min(bars[i, 2], bars[i - 1, 3])
    return total / ATR_BARS


@njit(cache=True)
def _holds(bars: Any, move: Any) -> bool:
    """Whether the finished bars keep every bound of the move, and its first and last bar go its way."""
    begin = move.start + STATE_BARS
    path = 0.0
    for i in range(begin, begin + move.n_bars):
        path += abs(bars[i, 3] - bars[i - 1, 3])
    last = begin + move.n_bars - 1
    net = move.direction * (bars[last, 3] - bars[begin - 1, 3])
    first_step = move.direction * (bars[begin, 3] - bars[begin - 1, 3])
    last_step = move.direction * (bars[last, 3] - bars[last - 1, 3])
    if net < MIN_NET_ATR * move.atr or net < MIN_EFFICIENCY * path or min(first_step, last_step) <= 0:
        return False
    width, leg, given_back, deepest = _measure_state(bars, move.start, move.direction)
    if move.state == CONSOLIDATION:
        return bool(width <= MAX_CONSOLIDATION_ATR * move.atr)
    leg_counts = width > MAX_CONSOLIDATION_ATR * move.atr and leg >= MIN_LEG_ATR * move.atr
    return bool(leg_counts and given_back >= GIVEN_BACK[0] and deepest <= GIVEN_BACK[1])


@njit(cache=True)
def _measure_state(bars: Any, first: int, direction: int) -> tuple[float, float, float, float]:
    """Of the STATE_BARS bars from `first`: range and leg in ticks, and the shares of the leg that the last close and
    the deepest point after the peak give back. Direction -1 mirrors it.
    """
    peak, lowest, leg, deepest = -np.inf, np.inf, 0.0, 0.0
    for i in range(first, first + STATE_BARS):
        top, bottom = (bars[i, 1], bars[i, 2]) if direction > 0 else (-bars[i, 2], -bars[i, 1])
        lowest = min(lowest, bottom)
        if top > peak:
            peak, leg, deepest = top, top - lowest, bottom
        deepest = min(deepest, bottom)
    close = direction * bars[first + STATE_BARS - 1, 3]
    return peak - lowest, leg, (peak - close) / max(leg, 1.0), (peak - deepest) / max(leg, 1.0)


def _volume(bars: pd.DataFrame, season: Any, rng: np.random.Generator) -> Any:
    """Contracts per bar, at least 1: a power of the season and of how much wider than its season the bar is."""
    relative_range = ((bars["high"] - bars["low"]).to_numpy() + TICK) / (bars["close"].to_numpy() * season)
    volume = 60 * (season / 1e-4) ** 2.0 * relative_range**1.1 * np.exp(0.4 * rng.standard_normal(len(bars)))
    return np.maximum(np.round(volume), 1.0)


def _moves_table(index: pd.DatetimeIndex, ticks: Any, plan: Any) -> pd.DataFrame:
    begin = plan["start"] + STATE_BARS
    end = begin + plan["n_bars"] - 1
    net = ticks[end, 3] - ticks[begin - 1, 3]
    return pd.DataFrame(
        {
            "label": np.array(STATES, dtype=object)[plan["state"]],
            "state_start": index[plan["start"]],
            "expansion_start": index[begin],
            "expansion_end": index[end],
            "state_start_bar": plan["start"],
            "expansion_start_bar": begin,
            "expansion_end_bar": end,
            "direction": plan["direction"],
            "net": net * TICK,
            "net_atr": np.abs(net) / plan["atr"],
        }
    )

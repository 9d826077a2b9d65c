"""A seeded futures market with planted, annotated moves, for tests, benchmarks and the shipped job.

Sessions: the CMES calendar of exchange_calendars (holidays, early closes at 13:00 New York), from
18:00 New York on the day before to 17:00. The library has no daily halt (17:00 to 18:00); it is
added here.

Volatility: season(minute of the New York day) x exp(sum of three AR(1) processes of minutes, hours
and days) x a chi-square mixture, which makes the returns Student-t. The constants below were set
from the moments of two weeks of 1-minute NQ (November 2023), with the default planted moves in
place. The bars themselves, and the moves in them, are drawn by `moola.data.planted_moves`.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numba import njit

from moola import PRICES
from moola.data.planted_moves import CLOSE, RULE, Plan, plan_moves, simulate
from moola.errors import DataError
from moola.features.arrays import Floats, Ints
from moola.specs import STATE_CLASSES, MarketConfig

TICK = 0.25  # price
NEW_YORK = "America/New_York"
HALT_HOUR = 17  # New York: the daily halt begins

# Minute of the New York day -> standard deviation of a 1-minute return in 1e-4; log-linear between.
_SEASON = {
    0: 0.65,
    120: 0.75,
    175: 0.95,
    180: 1.50,
    240: 1.30,
    300: 1.05,
    420: 1.10,
    505: 1.20,
    510: 1.65,
    569: 1.65,
    570: 5.20,
    600: 4.00,
    660: 3.00,
    720: 1.85,
    779: 1.70,
    780: 2.30,
    840: 2.30,
    959: 2.20,
    960: 1.80,
    990: 1.20,
    1019: 0.80,
    1080: 1.40,
    1095: 0.80,
    1200: 0.83,
    1320: 0.65,
    1439: 0.45,
}
_RETURN_UNIT = 1e-4

# (time constant in bars, standard deviation of the log volatility)
_CLUSTERS = (
    (6.0, 0.30),
    (400.0, 0.20),
    (5000.0, 0.16),
)
_STUDENT_DF = 9.0
_HALT_GAP = 2e-4  # standard deviation of the gap over one closed hour; grows with the hours' root
_CALENDAR_MARGIN = pd.Timedelta(days=10)  # holidays never last so long


@dataclass(frozen=True)
class Market:
    """A synthetic series and the truth about it.

    `bars`: index `timestamp` (UTC minute the bar opened), float64 open, high, low, close, volume.

    `moves`: one row per planted move, in time order, no two sharing a bar. `label` is the state
    before the move; `state_start`, `expansion_start`, `expansion_end` are UTC minutes and, with the
    suffix `_bar`, rows of `bars`, all included; the state ends where the expansion starts.
    `direction` is +1 or -1; `net` is the signed price change from the close before the expansion to
    its last close, `net_atr` its size in ATR.
    """

    bars: pd.DataFrame
    moves: pd.DataFrame


def make_market(config: MarketConfig = MarketConfig()) -> Market:  # noqa: B008
    """The market of `config`; the same config gives the same bits.

    Raises DataError where no trading day is in it.
    """
    rng = np.random.default_rng(config.seed)
    times, opens = session_minutes(config)
    season = _season(times)

    # What is drawn is drawn in this order, or the bits are others.
    plan = plan_moves(opens, len(times), config, rng)
    volatility = season * np.exp(_log_volatility(len(times), rng))
    chi_square = rng.chisquare(_STUDENT_DF, len(times))
    fat_tail = np.sqrt((_STUDENT_DF - 2) / chi_square)
    gaps = _halt_gaps(times, opens, rng)

    ticks = np.empty((len(times), len(PRICES)))
    simulate(
        ticks,
        volatility,
        volatility * fat_tail,
        gaps,
        plan,
        config.start_price / TICK,
        config.difficulty,
        RULE,
        rng,
    )
    bars = pd.DataFrame(ticks * TICK, index=times, columns=list(PRICES))
    bars["volume"] = _volume(bars, season, rng)

    return Market(bars, _moves_table(times, ticks, plan[plan["planted"]]))


# --- sessions -------------------------------------------------------------------------------------


def session_minutes(config: MarketConfig) -> tuple[pd.DatetimeIndex, Ints]:
    """Every minute of the config's sessions (UTC), and the row at which each session opens."""
    schedule = _schedule(config)
    halt_by_clock = [day + pd.Timedelta(hours=HALT_HOUR) for day in schedule.index]
    halt = pd.DatetimeIndex(halt_by_clock, tz=NEW_YORK)

    first = _epoch_minutes(pd.DatetimeIndex(schedule["open"]))
    close = _epoch_minutes(pd.DatetimeIndex(schedule["close"]))
    n_bars = np.minimum(close, _epoch_minutes(halt)) - first

    n_before = np.cumsum(n_bars) - n_bars
    opens = np.asarray(n_before)
    minutes = np.arange(n_bars.sum()) + np.repeat(first - opens, n_bars)
    microseconds = (minutes * 60_000_000).view("datetime64[us]")
    times = pd.DatetimeIndex(microseconds, name="timestamp").tz_localize("UTC")

    return times, opens


def _schedule(config: MarketConfig) -> pd.DataFrame:
    import exchange_calendars  # takes a second to import: only a market pays for it

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it uses what pandas 3 deprecates
        # The library refuses a span without a session.
        calendar = exchange_calendars.get_calendar(
            "CMES",
            start=pd.Timestamp(config.start) - _CALENDAR_MARGIN,
            end=pd.Timestamp(config.end) + _CALENDAR_MARGIN,
        )

    schedule: pd.DataFrame = calendar.schedule.loc[str(config.start) : str(config.end)]
    if schedule.empty:
        raise DataError(
            "the market needs at least one trading day: none from "
            f"{config.start} to {config.end} (CMES)"
        )
    return schedule


def _epoch_minutes(times: pd.DatetimeIndex) -> Ints:
    return np.asarray(times.as_unit("s").asi8 // 60)


# --- volatility -----------------------------------------------------------------------------------


def _season(times: pd.DatetimeIndex) -> Floats:
    """[n_bars] standard deviation of the return at each minute, before clustering."""
    knots = np.array(list(_SEASON), np.float64)
    deviations = np.array(list(_SEASON.values()))
    minutes = np.arange(24 * 60)
    log_deviation = np.interp(minutes, knots, np.log(deviations))
    by_minute = _RETURN_UNIT * np.exp(log_deviation)

    new_york = times.tz_convert(NEW_YORK)
    minute_of_day = new_york.hour.to_numpy() * 60 + new_york.minute.to_numpy()

    return np.asarray(by_minute[minute_of_day])


def _log_volatility(n_bars: int, rng: np.random.Generator) -> Floats:
    total = np.zeros(n_bars)

    for time_constant, deviation in _CLUSTERS:
        memory = np.exp(-1 / time_constant)
        _add_autoregression(total, memory, deviation, rng.standard_normal(n_bars))

    return total


@njit(cache=True)
def _add_autoregression(total: Floats, memory: float, deviation: float, noise: Floats) -> None:
    """Adds a stationary AR(1) process of that standard deviation to `total`, in place."""
    value = deviation * noise[0]
    total[0] += value

    for i in range(1, len(total)):
        innovation = deviation * np.sqrt(1 - memory**2) * noise[i]
        value = memory * value + innovation
        total[i] += value


def _halt_gaps(
    times: pd.DatetimeIndex,
    opens: Ints,
    rng: np.random.Generator,
) -> Floats:
    """[n_bars] return from the last close to the open at each session's first bar; 0 elsewhere."""
    minutes = _epoch_minutes(times)
    gaps = np.zeros(len(times))

    opens_after_halt = opens[1:]
    closed_minutes = minutes[opens_after_halt] - minutes[opens_after_halt - 1] - 1
    deviation = _HALT_GAP * np.sqrt(closed_minutes / 60)
    gaps[opens_after_halt] = deviation * rng.standard_normal(len(opens_after_halt))

    return gaps


def _volume(
    bars: pd.DataFrame,
    season: Floats,
    rng: np.random.Generator,
) -> Floats:
    """[n_bars] contracts, at least 1.

    A power of the season, and of how much wider than its season the bar is.
    """
    spread = (bars["high"] - bars["low"]).to_numpy() + TICK
    relative_range = spread / (bars["close"].to_numpy() * season)
    noise = np.exp(0.4 * rng.standard_normal(len(bars)))
    volume = 60 * (season / _RETURN_UNIT) ** 2.0 * relative_range**1.1 * noise

    return np.maximum(np.round(volume), 1.0)


# --- the truth ------------------------------------------------------------------------------------


def _moves_table(times: pd.DatetimeIndex, ticks: Floats, plan: Plan) -> pd.DataFrame:
    start_bar = plan["start_bar"] + RULE.state_bars
    end_bar = start_bar + plan["n_bars"] - 1
    net = ticks[end_bar, CLOSE] - ticks[start_bar - 1, CLOSE]

    return pd.DataFrame(
        {
            "label": np.array(STATE_CLASSES, dtype=object)[plan["state"]],
            "state_start": times[plan["start_bar"]],
            "expansion_start": times[start_bar],
            "expansion_end": times[end_bar],
            "state_start_bar": plan["start_bar"],
            "expansion_start_bar": start_bar,
            "expansion_end_bar": end_bar,
            "direction": plan["direction"],
            "net": net * TICK,
            "net_atr": np.abs(net) / plan["atr"],
        }
    )

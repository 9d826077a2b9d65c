"""The 11 features bar by bar in plain Python floats: the oracle of `moola.features`.

A transcription of the written definition that imports nothing of moola and shares no code with it.
Slow on purpose: to be read beside the text.
"""

from collections.abc import Iterator
from typing import NamedTuple


class Bar(NamedTuple):
    open: float
    high: float
    low: float
    close: float


class Swing(NamedTuple):
    bar: int
    price: float


DEFAULTS = {
    "ema_range_period": 20,
    "atr_period": 10,
    "zigzag_k": 1.2,
    "hybrid_confirm_lookback": 5,
    "hybrid_min_retrace_atr": 0.5,
}


def clip(value: float, least: float, most: float) -> float:
    if value < least:
        return least
    if value > most:
        return most
    return value


def distance(price: float, atr: float) -> float:
    """In ATR; where that is 0 the end of the range on the side of the sign, 0 if there is none."""
    if atr != 0:
        return clip(price / atr, -3.0, 3.0)
    if price == 0:
        return 0.0
    return 3.0 if price > 0 else -3.0


def mean(values: list[float]) -> float:
    """Added one after the other, oldest first; sum() compensates rounding from Python 3.12 on."""
    total = 0.0
    for value in values:
        total += value
    return total / len(values)


class Zigzag:
    """Swings as the definition tells them, with its two directions spelled out."""

    def __init__(self, k: float, lookback: int, min_retrace_atr: float | None) -> None:
        self.k, self.lookback, self.min_retrace_atr = k, lookback, min_retrace_atr
        self.trend: str | None = None
        self.extreme: Swing | None = None
        self.candidate: Swing | None = None
        self.swing_high: Swing | None = None
        self.swing_low: Swing | None = None
        self.n_confirmed = 0

    def update(self, i: int, bar: Bar, atr: float) -> None:
        if self.trend is None:
            if i >= 1 and atr > 0:
                self.trend = "up"
                self.extreme = Swing(i, bar.close)
            return
        if self.trend == "up":
            self._up(i, bar, atr)
        else:
            self._down(i, bar, atr)

    def _up(self, i: int, bar: Bar, atr: float) -> None:
        if bar.high > self.extreme.price:
            self.extreme = Swing(i, bar.high)
        if self.candidate is None or bar.high > self.candidate.price:
            self.candidate = Swing(i, bar.high)
        if self._confirmed(i, atr, self.extreme.price - bar.close, self.candidate.price - bar.low):
            self.swing_high = self.extreme
            self.trend = "down"
            self.extreme = self.candidate = Swing(i, bar.low)

    def _down(self, i: int, bar: Bar, atr: float) -> None:
        if bar.low < self.extreme.price:
            self.extreme = Swing(i, bar.low)
        if self.candidate is None or bar.low < self.candidate.price:
            self.candidate = Swing(i, bar.low)
        if self._confirmed(i, atr, bar.close - self.extreme.price, bar.high - self.candidate.price):
            self.swing_low = self.extreme
            self.trend = "up"
            self.extreme = self.candidate = Swing(i, bar.high)

    def _confirmed(self, i: int, atr: float, come_back: float, retrace: float) -> bool:
        if not atr > 0:
            return False
        by_close = come_back >= self.k * atr
        by_candidate = (
            self.min_retrace_atr is not None
            and i - self.candidate.bar <= self.lookback
            and retrace >= self.min_retrace_atr * atr
        )
        if by_close or by_candidate:
            self.n_confirmed += 1
            return True
        return False


def oracle_rows(bars: list[Bar], zigzag: Zigzag, config: dict) -> Iterator[list[float]]:
    alpha = 2.0 / (config["ema_range_period"] + 1)
    ema = 0.0
    true_ranges: list[float] = []
    for i, bar in enumerate(bars):
        r = bar.high - bar.low
        R = 1.0 if r == 0 else r
        ema = r if i == 0 else alpha * r + (1.0 - alpha) * ema
        if i >= 1:
            previous = bars[i - 1].close
            true_ranges.append(max(r, abs(bar.high - previous), abs(bar.low - previous)))
        last = true_ranges[-config["atr_period"] :]
        atr = mean(last) if last else 0.0
        zigzag.update(i, bar, atr)

        open_norm = clip((bar.open - bar.low) / R, 0.0, 1.0)
        close_norm = clip((bar.close - bar.low) / R, 0.0, 1.0)
        body_pct = clip((bar.close - bar.open) / R, -1.0, 1.0)
        upper_wick_pct = clip((bar.high - max(bar.open, bar.close)) / R, 0.0, 1.0)
        lower_wick_pct = clip((min(bar.open, bar.close) - bar.low) / R, 0.0, 1.0)
        range_z = 0.0 if ema == 0 else clip(r / ema, 0.0, 3.0)

        dist_to_prev_sh = dist_to_prev_sl = bars_since_sh_norm = bars_since_sl_norm = 0.0
        if zigzag.swing_high is not None:
            dist_to_prev_sh = distance(zigzag.swing_high.price - bar.close, atr)
            bars_since_sh_norm = clip((i - zigzag.swing_high.bar) / 105, 0.0, 3.0)
        if zigzag.swing_low is not None:
            dist_to_prev_sl = distance(bar.close - zigzag.swing_low.price, atr)
            bars_since_sl_norm = clip((i - zigzag.swing_low.bar) / 105, 0.0, 3.0)

        leg_dir = {None: 0.0, "up": 1.0, "down": -1.0}[zigzag.trend]
        expansion_proxy = clip(range_z * leg_dir * body_pct, -2.0, 2.0)
        yield [
            open_norm,
            close_norm,
            body_pct,
            upper_wick_pct,
            lower_wick_pct,
            range_z,
            dist_to_prev_sh,
            dist_to_prev_sl,
            bars_since_sh_norm,
            bars_since_sl_norm,
            expansion_proxy,
        ]


def oracle_features(
    bars: list[tuple[float, float, float, float]], **overrides: float | None
) -> list[list[float]]:
    """Rows of 11 float64 values for bars of (open, high, low, close).

    `overrides` are constants of DEFAULTS.
    """
    return run_oracle(bars, **overrides)[0]


def run_oracle(
    bars: list[tuple[float, float, float, float]], **overrides: float | None
) -> tuple[list[list[float]], Zigzag]:
    """The same rows, and the zigzag after the last bar, which counts the swings it confirmed."""
    assert overrides.keys() <= DEFAULTS.keys(), (
        f"no such constant: {overrides.keys() - DEFAULTS.keys()}"
    )
    config = DEFAULTS | overrides
    zigzag = Zigzag(
        config["zigzag_k"], config["hybrid_confirm_lookback"], config["hybrid_min_retrace_atr"]
    )
    return list(oracle_rows([Bar(*bar) for bar in bars], zigzag, config)), zigzag

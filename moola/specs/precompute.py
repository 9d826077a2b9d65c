"""The spec of precompute: bars in; features, windows, mask and splits out."""

from datetime import date
from typing import Literal, Self

from pydantic import Field, model_validator

from moola.specs.base import Positive, Spec
from moola.specs.layout import LayoutConfig, SeriesConfig
from moola.specs.machine import PrecomputeMachine

PUBLISHED_EPS = 1e-6  # price


class FeatureConfig(Spec):
    """Constants of the 11 features; the defaults are the published definition, to the last bit."""

    ema_range_period: int = Field(
        20,
        ge=1,
        le=10_000,
        description="bars in the moving average of the range",
    )
    atr_period: int = Field(
        10,
        ge=1,
        le=10_000,
        description="bars in the average true range",
    )
    zigzag_k: Positive = Field(
        1.2,
        description="ATR by which the close must come back to confirm a swing",
    )
    hybrid_confirm_lookback: int = Field(
        5,
        ge=0,
        le=10_000,
        description="bars after which the candidate no longer counts",
    )
    hybrid_min_retrace_atr: Positive | None = Field(
        0.5,
        description="ATR from the candidate that also confirm a swing; null switches this rule off",
    )

    @model_validator(mode="before")
    @classmethod
    def _without_eps(cls, fields: object) -> object:
        """Specs and metadata of older runs hold `eps`, a range in price below which features were
        not scale-free. At its default it changed nothing on prices of ordinary size: it is read
        over. Features made with another one cannot be made again.
        """
        if not isinstance(fields, dict) or "eps" not in fields:
            return fields
        if fields["eps"] != PUBLISHED_EPS:
            raise ValueError(
                f"features are scale-free and have no eps; only {PUBLISHED_EPS:g}, as older runs "
                "have it, is read over"
            )
        return {name: value for name, value in fields.items() if name != "eps"}


class MarketConfig(Spec):
    """The synthetic market of `moola.data.synthetic`: sessions, NQ-like moments, planted moves.

    A trading day is named after the date it closes on: Monday 6 January opens on Sunday the 5th at
    18:00 New York.
    """

    seed: int = Field(0, ge=0, description="same seed, same bars")
    start: date = Field(
        date(2025, 1, 6),
        ge=date(2000, 1, 1),
        description="first trading day",
    )
    end: date = Field(
        date(2025, 3, 28),
        le=date(2049, 12, 31),
        description="last trading day, included",
    )
    start_price: float = Field(
        16_000.0,
        ge=1_000,
        le=100_000,
        description="price before the first bar",
    )
    moves_per_day: float = Field(
        12.0,
        ge=0,
        le=20,
        description="mean number of planted moves in a full trading day of 1380 bars",
    )
    consolidation_fraction: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of planted moves after a consolidation; the others follow a retracement",
    )
    difficulty: float = Field(
        0.5,
        ge=0,
        le=1,
        description="noise in the planted paths: 0 is straight, 1 as noisy as their bounds allow",
    )

    @model_validator(mode="after")
    def _starts_before_it_ends(self) -> Self:
        if self.start > self.end:
            raise ValueError(f"start <= end, got {self.start} / {self.end}")
        return self


class SplitConfig(Spec):
    """Where train, validation and test end. No bar belongs to two splits.

    With dates, a split ends with the last bar of that day (UTC). Any date given makes the splits go
    by date, the others taking their default. With none given, and `fractions` as they are, the
    default dates hold where the bars reach past 2025-06-30 and give each split a window; else
    `fractions` of the bars.
    """

    train_end: date | None = Field(
        None,
        description="last day of training (2024-12-31 where the bars reach so far)",
    )
    val_end: date | None = Field(
        None,
        description="last day of validation (2025-03-31)",
    )
    test_end: date | None = Field(
        None,
        description="last day of test (the last day of the bars)",
    )
    fractions: tuple[float, float, float] = Field(
        (0.70, 0.15, 0.15),
        description="of the bars: train, validation, test",
    )

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        ends = [self.train_end, self.val_end, self.test_end]
        given = [end for end in ends if end is not None]

        if given != sorted(set(given)):
            listed = " / ".join(map(str, given))
            raise ValueError(f"train_end < val_end < test_end, got {listed}")
        return self

    @model_validator(mode="after")
    def _fractions_are_a_whole(self) -> Self:
        if min(self.fractions) <= 0 or abs(sum(self.fractions) - 1) > 1e-9:
            raise ValueError(f"fractions must be positive and sum to 1, got {self.fractions}")
        return self


# Fields that decide how a file of bars is read.
READING_FIELDS = {"timezone", "on_bad_bars", "max_dropped_fraction", "layout", "series"}


class PrecomputeSpec(Spec):
    """Bars in; features, windows, mask and splits out."""

    job: Literal["precompute"] = "precompute"
    bars: str | None = Field(
        None,
        description="1-minute bars: a file, a folder or a pattern, as path, file:// or s3://; "
        "null: synthetic bars",
    )
    timezone: str | None = Field(
        None,
        description="zone of naive times, such as America/New_York; converted to UTC",
    )
    on_bad_bars: Literal["fail", "drop"] = Field(
        "fail",
        description="refuse bad bars, or drop them (at most max_dropped_fraction)",
    )
    max_dropped_fraction: float = Field(
        0.01,
        ge=0,
        le=1,
        description="largest share of the rows that may be dropped",
    )
    layout: LayoutConfig = Field(
        default_factory=LayoutConfig,
        description="how the bars are written, where the file does not show it",
    )
    series: SeriesConfig = Field(
        default_factory=SeriesConfig,
        description="what is done about the oddities of a series",
    )
    synthetic: MarketConfig = Field(
        default_factory=MarketConfig,
        description="the market made when bars is null",
    )
    features: FeatureConfig = Field(default_factory=FeatureConfig)
    splits: SplitConfig = Field(default_factory=SplitConfig)
    windows: Literal["stored", "virtual"] = Field(
        "stored",
        description="virtual leaves features_11d.npy out of the run; "
        "pull rebuilds it to the recorded sha256",
    )
    machine: PrecomputeMachine = Field(
        default_factory=PrecomputeMachine,
        description="what --on runpod rents",
    )

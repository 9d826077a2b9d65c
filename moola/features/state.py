"""Features of a series that goes on: in chunks, or tomorrow, to the last bit."""

from typing import Literal, Self

import numpy as np
import pandas as pd
from pydantic import ConfigDict, ValidationError, model_validator

from moola.errors import DataError
from moola.features.arrays import Float32s
from moola.features.relativity import Carry, continue_features, room_for_true_ranges
from moola.specs import FeatureConfig, Spec

SCHEMA = "moola.features.FeatureState/1"


class FeatureState:
    """A series of features that can be taken up again: in chunks, or tomorrow.

    Rows do not depend on where the chunks are cut: the bits are those of one `compute_features`
    over all bars.
    """

    def __init__(self, config: FeatureConfig = FeatureConfig()) -> None:  # noqa: B008
        self.config = config
        self._carry = Carry()
        self._true_ranges = room_for_true_ranges(config)

    @property
    def n_bars(self) -> int:
        """Bars taken in so far."""
        return self._carry.n_bars

    def extend(self, bars: pd.DataFrame) -> Float32s:
        """Takes in the next bars: their features, float32 [n_chunk, 11].

        A DataError leaves the state as it was.
        """
        rows, self._carry = continue_features(bars, self.config, self._carry, self._true_ranges)
        return rows

    def to_json(self) -> str:
        """The state as JSON; `from_json` restores it to the last bit."""
        last = self._last_true_ranges(_n_true_ranges(self.n_bars, self.config))
        saved = _SavedState(
            schema_id=SCHEMA,
            config=self.config,
            carry=self._carry,
            true_ranges=last.tolist(),
        )
        return saved.model_dump_json()

    @classmethod
    def from_json(cls, text: str, config: FeatureConfig | None = None) -> Self:
        """The state that `to_json` wrote.

        Raises DataError if it is damaged, of another schema, or, where `config` is given, made with
        another configuration.
        """
        try:
            saved = _SavedState.model_validate_json(text)
        except ValidationError as error:
            raise DataError(f"a feature state must be one that to_json wrote: {error}") from error

        if config is not None and config != saved.config:
            raise DataError(
                "a feature state must be continued with the configuration it was made with: "
                f"{_differences(saved.config, config)}"
            )

        state = cls(saved.config)
        state._carry = saved.carry
        state._last_true_ranges(len(saved.true_ranges))[:] = saved.true_ranges
        return state

    def _last_true_ranges(self, n: int) -> np.ndarray:
        """A view of the `n` last true ranges, oldest first."""
        period = self.config.atr_period
        return self._true_ranges[period - n : period]


def _n_true_ranges(n_bars: int, config: FeatureConfig) -> int:
    """How many of the last true ranges count: bar 0 has none."""
    return min(max(n_bars - 1, 0), config.atr_period)


def _differences(saved: FeatureConfig, given: FeatureConfig) -> str:
    saved_values = saved.model_dump()
    differences = []

    for name, value in given.model_dump().items():
        if saved_values[name] != value:
            differences.append(f"{name} {saved_values[name]} is not {value}")

    return ", ".join(differences)


class _SavedState(Spec):
    """What `to_json` writes; no field has a default, so that a missing one is refused.

    true_ranges  the last (up to) atr_period, oldest first
    """

    model_config = ConfigDict(allow_inf_nan=False)

    schema_id: Literal["moola.features.FeatureState/1"]
    config: FeatureConfig
    carry: Carry
    true_ranges: list[float]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.carry.n_bars < 0 or abs(self.carry.swings.trend) > 1:
            raise ValueError(f"n_bars must be >= 0 and trend one of -1, 0, 1, got {self.carry}")

        n_true_ranges = _n_true_ranges(self.carry.n_bars, self.config)
        if len(self.true_ranges) != n_true_ranges:
            raise ValueError(
                f"{self.carry.n_bars} bars leave {n_true_ranges} true ranges, "
                f"got {len(self.true_ranges)}"
            )
        return self

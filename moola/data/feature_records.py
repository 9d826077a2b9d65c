"""metadata.json and splits.json of a feature set, as they are read."""

from datetime import datetime
from typing import Annotated

from pydantic import AwareDatetime, Field, JsonValue, StringConstraints, ValidationError

from moola.data.splits import SPLITS, Split
from moola.errors import ArtifactError
from moola.runs.records import Count, Record, Sha256
from moola.specs import FeatureConfig

MAX_DROPPED = 10_000_000  # minutes; more bars than there are in 25 years

FeatureName = Annotated[str, StringConstraints(max_length=100)]


class InputDigest(Record):
    """What a file of bars held."""

    sha256: Sha256


class RollMinute(Record):
    """The minute from which on the bars are those of another contract."""

    minute: AwareDatetime


class SeriesFindings(Record):
    """What was found of the series of bars; more is there for people."""

    rolls: tuple[RollMinute, ...] = Field((), max_length=MAX_DROPPED)


class FeatureMetadata(Record):
    """metadata.json: how features were made. What a set of another maker leaves out is None."""

    feature_names: tuple[FeatureName, ...] = Field((), max_length=1000)
    config: dict[str, JsonValue] = Field(default_factory=dict)
    on_bad_bars: Annotated[str, StringConstraints(pattern="^(fail|drop)$")] = "fail"
    n_bars: Count | None = None
    n_windows: Count | None = None
    valid_ratio: Annotated[float, Field(ge=0, le=1)] | None = None
    dropped_minutes: tuple[AwareDatetime, ...] = Field((), max_length=MAX_DROPPED)
    inputs: dict[str, InputDigest] = Field(default_factory=dict)
    reading: dict[str, JsonValue] | None = None  # fields of a PrecomputeSpec; older sets lack it
    series: SeriesFindings = SeriesFindings()

    @property
    def rolls(self) -> tuple[datetime, ...]:
        """Minutes from which on the bars are those of another contract."""
        return tuple(roll.minute for roll in self.series.rolls)

    def feature_config(self) -> FeatureConfig:
        """The constants of the features. Raises ArtifactError for what is none."""
        try:
            return FeatureConfig.model_validate(self.config)
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            field = ".".join(map(str, fault["loc"]))
            raise ArtifactError(
                f"metadata.json is damaged: config.{field}: {fault['msg']}"
            ) from error


class WindowRange(Record):
    """Windows [start, stop) of a split."""

    start: Count
    stop: Count


class SplitsDocument(Record):
    """splits.json."""

    train: WindowRange
    val: WindowRange
    test: WindowRange

    def splits(self) -> dict[str, Split]:
        """By name, in time order."""
        ranges = {"train": self.train, "val": self.val, "test": self.test}
        return {name: Split(ranges[name].start, ranges[name].stop) for name in SPLITS}

"""What is shown of metrics.json and gates.json, as it is read back from a store."""

from typing import Annotated, cast

from pydantic import Field, StringConstraints

from moola.evaluation.gates import Gate
from moola.evaluation.metrics import Evaluation
from moola.runs.records import Count, Record

Name = Annotated[str, StringConstraints(max_length=200)]
Number = float | None


class MetricDocument(Record):
    """One metric of metrics.json."""

    title: Name
    unit: Name
    value: Number
    low: Number
    high: Number
    baselines: dict[Name, Number] = Field(max_length=100)


class IntervalDocument(Record):
    """How the intervals were made."""

    level: float


class EvaluationDocument(Record):
    """What was measured on one split, as far as tables show it."""

    n_windows: Count
    interval: IntervalDocument
    metrics: dict[Name, MetricDocument] = Field(max_length=1000)

    def evaluation(self) -> Evaluation:
        """For `moola.evaluation.tables`."""
        return cast(Evaluation, self.model_dump())


class MarketDocument(Record):
    """Of one of several markets; `test` is null where it has no label there."""

    test: EvaluationDocument | None


class MetricsDocument(Record):
    """metrics.json; `markets` by name, where there are several."""

    test: EvaluationDocument
    validation: EvaluationDocument | None = None
    markets: dict[Name, MarketDocument] = Field(default_factory=dict, max_length=1000)


class GateDocument(Record):
    """One gate of gates.json."""

    name: Name
    value: Number
    bound: Name
    passed: bool
    test: Number = None
    judged: bool = True

    def gate(self) -> Gate:
        return Gate(**self.model_dump())


class GatesDocument(Record):
    """gates.json."""

    passed: bool
    gates: tuple[GateDocument, ...] = Field(max_length=1000)

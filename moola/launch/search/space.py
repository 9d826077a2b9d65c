"""The space of a search: fields of a spec, each with a range or a list of values.

training.learning_rate=1e-4..1e-2 log    a range; of floats where an end is written as one
model.hidden_size=32..128 step 16        a range of whole numbers
model.dropout=0.1,0.2,0.3                values, as a sweep takes them
"""

import json
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from pydantic import JsonValue

from moola.errors import DataError
from moola.launch.grid import Overrides, read_swept
from moola.specs.yaml_text import read_yaml
from moola.text import quoted, shortened

if TYPE_CHECKING:  # importing it takes a second
    from optuna.distributions import BaseDistribution

Number = int | float

# What is meant as a range: no list, no text in quotes, no path.
MEANT_AS_RANGE = re.compile(r"[^,/\\'\"\[\]{}]*\.\.[^,/\\'\"\[\]{}]*")
RANGE = re.compile(r"(?P<low>\S+?)\.\.(?P<high>\S+)(?:\s+(?:(?P<log>log)|step\s+(?P<step>\S+)))?")
WHOLE = re.compile(r"[-+]?\d+")
DECIMAL = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
LARGEST = 1 << 53  # of a whole number: Optuna counts in floats
SHOWN_DIGITS = 4  # of a float, in titles and tables
STEP_TOLERANCE = 1e-6  # of a step, for a value that was added up


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included: all whole, or all floats."""

    low: Number
    high: Number
    log: bool = False
    step: Number | None = None

    def document(self) -> dict[str, JsonValue]:
        """As a study keeps it."""
        return {"low": self.low, "high": self.high, "log": self.log, "step": self.step}

    def text(self) -> str:
        """As a person writes it."""
        way = " log" if self.log else "" if self.step is None else f" step {self.step!r}"
        return f"{self.low!r}..{self.high!r}{way}"

    def distribution(self) -> "BaseDistribution":
        """For Optuna."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if isinstance(self.low, int):
            step = 1 if self.step is None else int(self.step)
            return IntDistribution(self.low, int(self.high), log=self.log, step=step)
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def value_of(self, stored: object) -> object:
        """The value of a field by what a study says. Raises ValueError for one outside."""
        if type(stored) is not type(self.low) or not self.low <= stored <= self.high:
            raise ValueError(f"must be in {self.text()}, got {quoted(stored)}")
        if self.step is not None:
            steps = (stored - self.low) / self.step
            if abs(steps - round(steps)) > STEP_TOLERANCE:
                raise ValueError(f"must be in {self.text()}, got {quoted(stored)}")
        return stored

    def ends(self) -> tuple[object, object]:
        """The lowest and the highest value."""
        return self.low, self.high


@dataclass(frozen=True)
class Choices:
    """Values without an order: each is known to Optuna by its text."""

    values: Mapping[str, object]

    def document(self) -> dict[str, JsonValue]:
        """As a study keeps it."""
        return {"values": list(self.values)}

    def text(self) -> str:
        """As a person writes it."""
        return ",".join(self.values)

    def distribution(self) -> "BaseDistribution":
        """For Optuna."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(list(self.values))

    def value_of(self, stored: object) -> object:
        """The value of a field by what a study says. Raises ValueError for another one."""
        if not isinstance(stored, str) or stored not in self.values:
            raise ValueError(f"must be one of {shortened(self.text())}, got {quoted(stored)}")
        return self.values[stored]

    def ends(self) -> tuple[object, object]:
        """The first and the last value."""
        values = list(self.values.values())
        return values[0], values[-1]


Dimension = Range | Choices


@dataclass(frozen=True)
class Space:
    """Field -> what it may be, sorted by field: the order on the command line is no matter."""

    dimensions: Mapping[str, Dimension]

    def document(self) -> dict[str, JsonValue]:
        """As a study keeps it."""
        return {field: each.document() for field, each in self.dimensions.items()}

    def distributions(self) -> "dict[str, BaseDistribution]":
        """For Optuna."""
        return {field: each.distribution() for field, each in self.dimensions.items()}

    def point(self, stored: Mapping[str, object]) -> Overrides:
        """The values of all fields by what a study says. Raises ValueError for any outside."""
        if stored.keys() != self.dimensions.keys():
            raise ValueError(f"must have the fields {', '.join(self.dimensions)}, got {[*stored]}")
        point: Overrides = {}
        for field, dimension in self.dimensions.items():
            try:
                point[field] = dimension.value_of(stored[field])
            except ValueError as error:
                raise ValueError(f"{field} {error}") from None
        return point

    def corners(self) -> Iterator[Overrides]:
        """All fields at their lowest, all at their highest, and each further value once."""
        low = {field: each.ends()[0] for field, each in self.dimensions.items()}
        yield low
        yield {field: each.ends()[1] for field, each in self.dimensions.items()}
        for field, dimension in self.dimensions.items():
            if isinstance(dimension, Choices):
                for value in list(dimension.values.values())[1:-1]:
                    yield {**low, field: value}


def read_space(texts: Sequence[str]) -> Space:
    """The space of texts such as `model.hidden_size=32..128`. Raises DataError."""
    dimensions: dict[str, Dimension] = {}
    for text in texts:
        field, equals, values = text.partition("=")
        if not equals or not field:
            raise DataError(f"--over takes FIELD=LOW..HIGH or FIELD=VALUE,..., got {quoted(text)}")
        if field in dimensions:
            raise DataError(f"--over names {quoted(field)} twice: give all of it at once")
        if MEANT_AS_RANGE.fullmatch(values):
            dimensions[field] = _read_range(field, values.strip())
        else:
            dimensions[field] = _read_choices(text, field)
    return Space(dict(sorted(dimensions.items())))


def _read_choices(text: str, field: str) -> Choices:
    values: dict[str, object] = {}
    for value in read_swept([text])[field]:
        word = value_text(value)
        if word in values:
            raise DataError(f"--over {quoted(field)} must have different values, got {word} twice")
        values[word] = value
    return Choices(values)


def _read_range(field: str, text: str) -> Range:
    match = RANGE.fullmatch(text)
    if match is None:
        raise DataError(
            f"--over {quoted(field)}: a range is LOW..HIGH, with ` log` or ` step STEP` after it "
            f"or nothing, got {quoted(text)}"
        )
    texts = [match["low"], match["high"], *filter(None, [match["step"]])]
    is_whole = all(WHOLE.fullmatch(each) for each in texts)
    low, high, *steps = (_number(field, each, is_whole=is_whole) for each in texts)
    step = steps[0] if steps else None
    log = match["log"] is not None

    if low >= high:
        raise DataError(f"--over {quoted(field)}: LOW < HIGH, got {quoted(text)}")
    if log and low <= 0:
        raise DataError(f"--over {quoted(field)}: with log LOW must be above 0, got {quoted(text)}")
    if step is not None and (step <= 0 or _decimal(high, low) % Decimal(str(step))):
        raise DataError(
            f"--over {quoted(field)}: a step must be above 0 and HIGH a whole number of steps from "
            f"LOW, got {quoted(text)}"
        )
    return Range(low, high, log, step)


def _decimal(high: Number, low: Number) -> Decimal:
    return Decimal(str(high)) - Decimal(str(low))


def _number(field: str, text: str, *, is_whole: bool) -> Number:
    if not DECIMAL.fullmatch(text):
        raise DataError(
            f"--over {quoted(field)}: a range has numbers as its ends, got {quoted(text)}"
        )
    if is_whole and len(text) < 30 and abs(int(text)) <= LARGEST:
        return int(text)
    if is_whole or not math.isfinite(float(text)):
        raise DataError(f"--over {quoted(field)}: {quoted(text)} is too large a number")
    return float(text)


# --- values as texts --------------------------------------------------------------------------


def value_text(value: object) -> str:
    """A value, whole: a text as it is, others as JSON."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def title_of_point(point: Mapping[str, object]) -> str:
    """What a trial is called: model.hidden_size=64 training.learning_rate=0.003162."""
    return " ".join(f"{field}={short_text(value)}" for field, value in point.items())


def short_text(value: object) -> str:
    """A value for people, floats to a few digits."""
    if isinstance(value, float):
        return f"{value:.{SHOWN_DIGITS}g}"
    return shortened(value_text(value))


def set_arguments(point: Mapping[str, object]) -> str:
    """The options --set of a command that give exactly this point."""
    return " ".join(
        f"--set {shlex.quote(f'{field}={_yaml_text(value)}')}" for field, value in point.items()
    )


def _yaml_text(value: object) -> str:
    text = value_text(value)
    if isinstance(value, float) and "." not in text:
        text = text.replace("e", ".0e")  # 1e-05 would be a text in YAML
    if isinstance(value, str) and read_yaml(text) != value:
        return json.dumps(value)
    return text

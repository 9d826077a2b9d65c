"""What all specs are made of: the strict base class, positive numbers and durations."""

import re
from datetime import timedelta
from typing import Annotated

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
)

LONGEST_DURATION = timedelta(days=365)
UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd])")


class Spec(BaseModel):
    """Base of all specs: strict about names, immutable once made."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _read_duration(value: object) -> timedelta:
    if isinstance(value, timedelta):
        return value

    match = DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or float(match[1]) == 0:
        raise ValueError("a duration is a number above 0 with its unit: 90s, 30m, 2h or 1d")
    seconds = float(match[1]) * UNIT_S[match[2]]
    if seconds > LONGEST_DURATION.total_seconds():
        raise ValueError(f"a duration is at most {LONGEST_DURATION.days}d")
    return timedelta(seconds=seconds)


def duration_text(value: timedelta) -> str:
    """2h, 90m, 45s: the largest unit that needs no fraction."""
    seconds = value.total_seconds()

    for unit in "dhm":
        if seconds % UNIT_S[unit] == 0:
            return f"{seconds / UNIT_S[unit]:g}{unit}"
    return f"{seconds:g}s"


def _read_names(value: object) -> object:
    names = value if isinstance(value, list | tuple) else [value]
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError("must be a text, or a list of texts, none of them empty")
    return value


Names = Annotated[str | tuple[str, ...], BeforeValidator(_read_names)]  # one, or several
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Duration = Annotated[
    timedelta,
    BeforeValidator(_read_duration),
    PlainSerializer(duration_text, return_type=str),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": DURATION.pattern,
            "examples": ["90s", "30m", "2h", "1d"],
        }
    ),
]


def whole_fractions(fractions: tuple[float, float, float]) -> tuple[float, float, float]:
    """The fractions themselves. Raises ValueError unless they are positive and sum to 1."""
    if min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-9:
        raise ValueError(f"fractions must be positive and sum to 1, got {fractions}")
    return fractions

"""What a process's environment variables hold, read within bounds."""

from collections.abc import Mapping

from moola.errors import DataError
from moola.runs.binding import is_attempt_id, is_run_id
from moola.text import quoted

SHORTEST_BEAT_S = 0.01
LONGEST_BEAT_S = 3600.0
LAST_UNIX_TIME = 253_402_300_799.0  # the end of the year 9999
MOST_GPUS = 1024


def read_number(
    environment: Mapping[str, str],
    name: str,
    default: float,
    *,
    least: float,
    most: float,
) -> float:
    """The number in a variable, `default` where it is not set or empty.

    Raises DataError that names the variable, its bounds and its value.
    """
    text = environment.get(name, "").strip()
    if not text:
        return default

    rule = f"{name} must be a number from {least:g} to {most:g}, got {quoted(text)}"
    try:
        number = float(text)
    except ValueError as error:
        raise DataError(rule) from error
    if not least <= number <= most:
        raise DataError(rule)
    return number


def read_count(environment: Mapping[str, str], name: str, default: int, *, most: int) -> int:
    """The whole number from 0 on in a variable. Raises DataError as `read_number` does."""
    number = read_number(environment, name, default, least=0, most=most)
    if number != int(number):
        raise DataError(f"{name} must be a whole number, got {quoted(environment[name])}")
    return int(number)


def beat_s(environment: Mapping[str, str], default_s: float) -> float:
    """MOOLA_BEAT_S: seconds between heartbeats."""
    return read_number(
        environment, "MOOLA_BEAT_S", default_s, least=SHORTEST_BEAT_S, most=LONGEST_BEAT_S
    )


def deadline(environment: Mapping[str, str]) -> float:
    """MOOLA_DEADLINE: when the job has to end, in Unix seconds; infinite without one."""
    return read_number(environment, "MOOLA_DEADLINE", float("inf"), least=0, most=LAST_UNIX_TIME)


def require_ids(environment: Mapping[str, str]) -> None:
    """Raises DataError where MOOLA_RUN or MOOLA_ATTEMPT is set and is no id."""
    for name, is_id in (("MOOLA_RUN", is_run_id), ("MOOLA_ATTEMPT", is_attempt_id)):
        value = environment.get(name)
        if value and not is_id(value):
            raise DataError(f"{name} must be an id, got {quoted(value)}")

"""The rules by which an attempt on a rented machine is over, though its job has not said so.

    late            past its deadline by more than `grace_s`
    stalled         no sign of life for more than `stalled_after_s`
    never started   no sign of life at all within `start_timeout_s`

The launcher and `moola reap` both go by them. No clock is read here. An age is one of the store
(`moola.launch.rented.signs`) or of the provider (`moola.launch.rented.machines`), by that service's
own clock: what this computer, or a rented one, takes for the time decides nothing.
"""

import math
from dataclasses import dataclass

from moola.errors import EXIT_TIME_LIMIT
from moola.launch.settings import WatchConfig


@dataclass(frozen=True)
class Ending:
    """The final state that an attempt is to be given."""

    state: str
    reason: str
    exit_code: int | None = None


@dataclass(frozen=True)
class Ages:
    """What is known of an attempt from outside, in seconds.

    past_deadline_s   since its deadline; negative before it
    silent_s          since the job's last sign of life, infinite if that proves nothing; None if
                      it has given none so far
    unstarted_s       since its machine was made, while the job has given no sign of life; None if
                      it has given one

    Both are None where it is not known whether there was a sign of life.
    """

    past_deadline_s: float
    silent_s: float | None = None
    unstarted_s: float | None = None


def verdict(ages: Ages, limits: WatchConfig) -> Ending | None:
    """What the attempt has to be ended as; None while it may be at work."""
    if ages.past_deadline_s > limits.grace_s:
        return Ending(
            "timed_out",
            "past its deadline: max_runtime or max_spend was reached, "
            "and the job did not stop by itself",
            EXIT_TIME_LIMIT,
        )

    if ages.silent_s is not None and ages.silent_s > limits.stalled_after_s:
        for_how_long = "that can be believed"
        if math.isfinite(ages.silent_s):
            for_how_long = f"for {ages.silent_s:.0f} s"
        return Ending("stalled", f"no heartbeat {for_how_long}")

    if ages.unstarted_s is not None and ages.unstarted_s > limits.start_timeout_s:
        return Ending(
            "infra_lost",
            f"the job did not start within {limits.start_timeout_s:.0f} s: "
            "is the image's download stuck?",
        )

    return None

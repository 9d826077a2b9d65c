"""The three rules by which an attempt is over, each on both sides of its limit and at it."""

import pytest

from moola.launch.rented.verdict import Ages, verdict
from moola.launch.settings import WatchConfig

LIMITS = WatchConfig(grace_s=30.0, stalled_after_s=180.0, start_timeout_s=1200.0)
IN_TIME_S = -3600.0


@pytest.mark.parametrize(
    ("ages", "state"),
    [
        (Ages(IN_TIME_S), None),
        (Ages(-1.0), None),  # just before the deadline
        (Ages(29.9), None),  # past it, in the time of grace
        (Ages(30.0), None),
        (Ages(30.1), "timed_out"),
        (Ages(IN_TIME_S, silent_s=0.0), None),
        (Ages(IN_TIME_S, silent_s=180.0), None),
        (Ages(IN_TIME_S, silent_s=180.1), "stalled"),
        (Ages(IN_TIME_S, unstarted_s=180.1), None),  # the image may take longer to fetch
        (Ages(IN_TIME_S, unstarted_s=1200.0), None),
        (Ages(IN_TIME_S, unstarted_s=1200.1), "infra_lost"),
        (Ages(IN_TIME_S, silent_s=0.0, unstarted_s=None), None),
    ],
    ids=str,
)
def test_an_attempt_is_over_only_beyond_a_limit(ages: Ages, state: str | None) -> None:
    ending = verdict(ages, LIMITS)
    assert (ending.state if ending else None) == state


def test_lateness_comes_before_silence_and_has_the_exit_code_of_a_time_limit() -> None:
    ending = verdict(Ages(31.0, silent_s=10_000.0), LIMITS)
    assert ending is not None
    assert (ending.state, ending.exit_code) == ("timed_out", 124)
    assert "past its deadline" in ending.reason


def test_the_reason_has_the_numbers() -> None:
    silent = verdict(Ages(IN_TIME_S, silent_s=200.4), LIMITS)
    unstarted = verdict(Ages(IN_TIME_S, unstarted_s=5000.0), LIMITS)
    assert silent is not None
    assert unstarted is not None
    assert silent.reason == "no heartbeat for 200 s"
    assert "did not start within 1200 s" in unstarted.reason
    assert (silent.exit_code, unstarted.exit_code) == (None, None)

"""Retries with backoff, and the rate limiter. Nothing here waits: the pauses are recorded."""

import time
from collections.abc import Callable

import pytest

from moola.errors import LaunchError
from moola.providers.rate_limit import BURST_CALLS, RateLimiter
from moola.providers.retry import LONGEST_WAIT_S, TransientError, with_retries


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    taken: list[float] = []
    monkeypatch.setattr(time, "sleep", taken.append)
    return taken


def failing(*errors: Exception) -> Callable[[], str]:
    """Raises these in turn, then answers."""
    left = list(errors)

    def call() -> str:
        if left:
            raise left.pop(0)
        return "answer"

    return call


def again(**how: object) -> TransientError:
    return TransientError("busy", **how)  # type: ignore[arg-type]


def test_pauses_double_and_are_drawn_out_by_up_to_a_half(pauses: list[float]) -> None:
    assert with_retries(failing(*[again()] * 4), first_wait_s=1.0) == "answer"
    assert [1 <= pause / 2**n <= 1.5 for n, pause in enumerate(pauses)] == [True] * 4


def test_after_the_last_try_its_error_is_raised(pauses: list[float]) -> None:
    with pytest.raises(TransientError, match="busy"):
        with_retries(failing(*[again()] * 5))
    assert len(pauses) == 4


def test_other_errors_are_raised_at_once(pauses: list[float]) -> None:
    with pytest.raises(LaunchError):
        with_retries(failing(LaunchError("no")))
    assert not pauses


def test_an_unsafe_call_is_repeated_after_harmless_failures_only(pauses: list[float]) -> None:
    assert with_retries(failing(again(had_no_effect=True)), idempotent=False) == "answer"
    with pytest.raises(TransientError):
        with_retries(failing(again()), idempotent=False)
    assert len(pauses) == 1


def test_retry_after_is_waited_for_unless_it_is_too_long(pauses: list[float]) -> None:
    assert with_retries(failing(again(retry_after_s=7.0)), first_wait_s=100.0) == "answer"
    assert 7 <= pauses[0] <= 10.5
    with pytest.raises(TransientError):
        with_retries(failing(again(retry_after_s=LONGEST_WAIT_S + 1)))
    assert len(pauses) == 1


def test_a_burst_is_free_and_then_calls_go_at_half_of_the_quota(pauses: list[float]) -> None:
    limiter = RateLimiter()
    for _ in range(BURST_CALLS):
        limiter.wait()
    assert not pauses
    limiter.wait()
    limiter.wait()
    assert pauses == [
        pytest.approx(2.0, abs=0.5),
        pytest.approx(4.0, abs=0.5),
    ]  # the clock stands: they add up


@pytest.mark.parametrize(
    ("left", "calls_per_s"),
    [
        ('"minute";r=59;t=60, "hour";r=2999;t=3600', 3000 / 3600 / 2),  # the tighter one
        ('"minute";r=6;t=30, "hour";r=2999;t=3600', 6 / 30),
        ('"minute";r=0;t=12, "hour";r=2999;t=3600', 1 / 12),
        ('"minute";r=14;t=60, "hour";r=2999;t=3600', 14 / 60),
        ('"minute";r=15;t=60, "hour";r=2999;t=3600', 3000 / 3600 / 2),  # a quarter is not little
        ("", 3000 / 3600 / 2),
        ("nonsense", 3000 / 3600 / 2),
    ],
)
def test_the_rate_follows_the_quota_and_slows_down_when_little_is_left(
    left: str, calls_per_s: float
) -> None:
    limiter = RateLimiter()
    limiter.learn(
        {"RateLimit-Policy": '"minute";q=60;w=60, "hour";q=3000;w=3600', "RateLimit": left}
    )
    assert limiter.calls_per_s == pytest.approx(calls_per_s)


def test_without_the_headers_the_rate_stays(pauses: list[float]) -> None:
    limiter = RateLimiter()
    limiter.learn({})
    assert limiter.calls_per_s == 0.5
    assert not pauses

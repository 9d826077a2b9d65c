"""What a launcher sees of an attempt, look by look: a provider with given answers, a folder."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from moola.errors import LaunchError, TryAgainError
from moola.launch.rented.observer import Observer
from moola.launch.settings import WatchConfig
from moola.providers.base import Pod, PodStatus
from moola.runs.launches import Launch, claim
from moola.runs.protocol import HEARTBEAT, canonical_json
from moola.store import Store, open_store
from tests.rented import rented_machine

CONFIG = WatchConfig(pod_poll_s=1000.0, stalled_after_s=60.0, start_timeout_s=600.0, grace_s=30.0)
IMAGE = "img@sha256:" + "0" * 64
NAME = "moola-small-ffffffffffff-a1-01234567-0000"
Answer = Callable[[], Pod | None]


class Provider:
    """Has one pod, and counts how often it is asked for it."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.n_calls = 0

    @staticmethod
    def now() -> float:
        return time.time()

    def get(self, _: str) -> Pod | None:
        self.n_calls += 1
        return self.answer()


def pod(status: PodStatus = PodStatus.RUNNING, uptime_s: float | None = None) -> Pod:
    return Pod("p1", NAME, status, status.name, "img", 0.06, uptime_s=uptime_s)


def refuse() -> Pod:
    raise LaunchError("not for this key")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(f"file://{tmp_path}/store")


@pytest.fixture
def launch(store: Store) -> Launch:
    launch = claim(store, "small-ffffffffffff", 1, "small", IMAGE, {"cpu": {}})
    assert launch is not None
    return launch.model_copy(update={"pod_name": NAME})


def observer(
    store: Store,
    launch: Launch,
    provider: Provider,
    *,
    left_s: float = 3600.0,
    age_s: float = 0.0,
    config: WatchConfig = CONFIG,
) -> Observer:
    """Of a machine that was made `age_s` ago and has `left_s` to its deadline."""
    now = time.time()
    machine = rented_machine(
        pod_id="p1",
        pod_name=launch.pod_name,
        price_per_hour=0.06,
        created=now - age_s,
        deadline=now + left_s,
    )
    return Observer(config, store, provider, launch, machine)  # type: ignore[arg-type]


def beat(store: Store, launch: Launch, text: str) -> None:
    store.put(launch.key(HEARTBEAT), canonical_json({"time": text}))


def state(observer: Observer) -> str | None:
    ending = observer.ending()
    return ending.state if ending else None


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (PodStatus.STARTING, None),
        (PodStatus.RUNNING, None),
        (PodStatus.STOPPED, "infra_lost"),
        (PodStatus.FAILED, "infra_lost"),
        (PodStatus.GONE, "infra_lost"),
    ],
)
def test_a_machine_that_has_gone_is_lost(
    store: Store, launch: Launch, status: PodStatus, expected: str | None
) -> None:
    assert state(observer(store, launch, Provider(lambda: pod(status)))) == expected


def test_a_pod_that_the_provider_does_not_know_is_lost(store: Store, launch: Launch) -> None:
    assert state(observer(store, launch, Provider(lambda: None))) == "infra_lost"


def test_a_pod_of_another_name_is_not_this_launch_s(store: Store, launch: Launch) -> None:
    """A record in the store may name any pod."""
    other = replace(pod(), name="production-database")
    ending = observer(store, launch, Provider(lambda: other)).ending()
    assert ending is not None
    assert (ending.state, "the machine is gone" in ending.reason) == ("infra_lost", True)


def test_the_provider_is_asked_no_more_often_than_its_quota_allows(
    store: Store, launch: Launch
) -> None:
    provider = Provider(pod)
    watched = observer(store, launch, provider)
    assert [state(watched) for _ in range(5)] == [None] * 5
    assert provider.n_calls == 1


def test_an_uptime_that_falls_back_is_a_crash_loop_and_rounding_is_none(
    store: Store, launch: Launch
) -> None:
    uptimes_s = iter([50.0, 60.0, 59.5, 59.5, 3.0])
    config = CONFIG.model_copy(update={"pod_poll_s": 1e-9})
    provider = Provider(lambda: pod(uptime_s=next(uptimes_s)))
    watched = observer(store, launch, provider, config=config)
    assert [state(watched) for _ in range(5)] == [None] * 4 + ["crash_loop"]


def test_silence_is_a_heartbeat_that_does_not_change_whatever_time_stands_in_it(
    store: Store, launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    watched = observer(store, launch, Provider(pod), age_s=10_000.0)
    beat(store, launch, "1999-01-01T00:00:00+00:00")
    assert state(watched) is None
    now += 59.0
    assert state(watched) is None
    beat(store, launch, "1999-01-01T00:00:01+00:00")
    now += 2.0
    assert state(watched) is None
    now += 59.0
    assert state(watched) is None
    now += 2.0
    assert state(watched) == "stalled"


@pytest.mark.parametrize(("age_s", "expected"), [(590.0, None), (610.0, "infra_lost")])
def test_a_job_without_a_first_sign_of_life_has_the_start_timeout(
    store: Store, launch: Launch, age_s: float, expected: str | None
) -> None:
    assert state(observer(store, launch, Provider(pod), age_s=age_s)) == expected


def test_a_provider_that_refuses_is_told_unless_the_attempt_is_over_all_the_same(
    store: Store, launch: Launch
) -> None:
    with pytest.raises(LaunchError, match="not for this key"):
        observer(store, launch, Provider(refuse)).ending()
    assert state(observer(store, launch, Provider(refuse), left_s=-31.0)) == "timed_out"
    assert state(observer(store, launch, Provider(refuse), age_s=610.0)) == "infra_lost"


def test_a_store_that_does_not_answer_is_no_silence_and_no_way_round_the_deadline(
    store: Store, launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: str) -> bytes:
        raise TryAgainError("no answer")

    monkeypatch.setattr(store, "get_dated", fail)
    with pytest.raises(TryAgainError, match="no answer"):
        observer(store, launch, Provider(pod), age_s=10_000.0).ending()
    assert state(observer(store, launch, Provider(pod), left_s=-31.0)) == "timed_out"

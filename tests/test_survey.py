"""All runs at a glance: the newest first, in few requests, whatever a run's log may hold."""

import time
from collections import Counter
from pathlib import Path

import pytest

from moola.runs.attempt import Attempt
from moola.runs.launches import claim
from moola.runs.protocol import attempt_key, canonical_json, now_text, run_key
from moola.runs.survey import newest_run, summarize_runs, survey_runs
from moola.store import Store, open_store
from tests.hostile import IMAGE, MACHINE
from tests.runs import attempt_id, put_committed, submitted_run
from tests.s3_proxy import running_proxy
from tests.seaweed import Seaweed


def put_status(store: Store, run_id: str, number: int, state: str) -> str:
    attempt = attempt_id(number)
    status = {"state": state, "time": now_text(), "reason": f"attempt {number}"}
    store.put(attempt_key(run_id, attempt, "status.json"), canonical_json(status))
    return attempt


def test_runs_are_told_newest_first_by_the_store_s_clock(store: Store, tmp_path: Path) -> None:
    """Not by the ids of attempts, which clocks elsewhere have made."""
    first, second, third, fourth = (submitted_run(store, n=n) for n in range(4))
    put_status(store, second, 900, "failed")
    time.sleep(1.1)  # a listing of S3 has whole seconds
    put_status(store, first, 5, "running")
    time.sleep(1.1)
    with Attempt(store, third, attempt_id=attempt_id(1), work=tmp_path) as attempt:
        attempt.write("x", b"x", "text/plain")

    survey = survey_runs(store)
    summaries = summarize_runs(store, survey, 10)
    assert [run.run_id for run in summaries[:2]] == [third, first]
    assert {run.run_id for run in summaries[2:]} == {second, fourth}
    states = {run.run_id: (run.state, run.attempt) for run in summaries}
    assert states == {
        first: ("running", attempt_id(5)),
        second: ("failed", attempt_id(900)),
        third: ("committed", attempt_id(1)),
        fourth: ("submitted", None),
    }
    assert [run.run_id for run in summarize_runs(store, survey, 1)] == [third]


def test_of_a_rented_run_the_newest_launch_counts(store: Store, run_id: str) -> None:
    """Though the attempt before it came from a computer whose clock is a day ahead."""
    for n in (1, 2):
        launch = claim(store, run_id, n, "precompute", IMAGE, MACHINE.model_dump(mode="json"))
        assert launch is not None
    late = attempt_key(run_id, launch.attempt, "status.json")
    store.put(late, canonical_json({"state": "waiting", "time": now_text()}))
    (run,) = summarize_runs(store, survey_runs(store), 10)
    assert (run.state, run.attempt) == ("waiting", launch.attempt)


def test_a_run_that_lost_its_spec_is_damaged_and_hides_no_other(store: Store) -> None:
    good, damaged = (submitted_run(store, n=n) for n in range(2))
    store.delete(run_key(damaged, "spec.json"))
    put_status(store, damaged, 1, "running")
    runs = {run.run_id: run for run in summarize_runs(store, survey_runs(store), 10)}
    assert runs[good].state == "submitted"
    assert runs[damaged].state is None
    assert "spec.json is missing" in runs[damaged].fault


@pytest.mark.parametrize("most", [1, 4, 250])
def test_a_run_and_its_forced_twin_are_two(
    store: Store, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """One id is the start of the other; also where the runs are listed in several parts."""
    monkeypatch.setattr("moola.runs.survey.RUNS_PER_LISTING", most)
    monkeypatch.setattr("moola.store.s3_listing.PAGE_KEYS", 3)
    run_ids = [f"precompute-{n * 7777:012x}" for n in range(20)]
    run_ids += [f"{run_ids[0]}-{n:04x}" for n in range(3)]
    for run_id in run_ids:
        store.put(run_key(run_id, "spec.json"), b"{}")
    survey = survey_runs(store)
    assert sorted(run.run_id for run in survey.runs) == sorted(run_ids)
    assert all(run.has_spec for run in survey.runs)


N_RUNS = 100


@pytest.fixture(scope="module")
def many_runs(seaweed: Seaweed, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The prefix of a store with many committed runs."""
    from tests.seaweed import BUCKET

    with pytest.MonkeyPatch.context() as patch:
        for name, value in seaweed.environment().items():
            patch.setenv(name, value)
        url = f"s3://{BUCKET}/{tmp_path_factory.mktemp('many').name}-{time.time_ns()}"
        store = open_store(url)
        for n in range(N_RUNS):
            put_committed(store, n)
    return url


@pytest.mark.parametrize("last", [20, N_RUNS])
def test_a_list_takes_at_most_two_requests_a_run_that_is_shown(
    many_runs: str,
    seaweed: Seaweed,
    s3_environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    last: int,
) -> None:
    """And `train` with no --features as few: it needs one run of them."""
    del s3_environment
    with running_proxy(seaweed.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        store = open_store(many_runs)
        proxy.calls.clear()
        summaries = summarize_runs(store, survey_runs(store), last)
        assert len(summaries) == last
        assert {run.state for run in summaries} == {"committed"}
        kinds = Counter("list-type" in call.path for call in proxy.calls)
        assert kinds[False] <= 2 * last
        assert kinds[True] <= 4

        proxy.calls.clear()
        assert newest_run(store, "precompute") == summaries[0].run_id
        assert len(proxy.calls) <= 8


def test_a_long_log_is_not_listed(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run's thousands of chunks: the others are told as soon."""
    store = open_store(s3_url)
    talkative, quiet = (submitted_run(store, n=n) for n in range(2))
    attempt = put_status(store, talkative, 1, "running")
    monkeypatch.setattr("moola.store.s3_listing.PAGE_KEYS", 10)
    for n in range(50):
        store.put(attempt_key(talkative, attempt, "logs", f"{n + 1:08d}.jsonl"), b"")
    put_status(store, quiet, 2, "failed")

    pages = []
    list_page = store.list_page

    def count_page(prefix: str, more: str | None = None, after: str = "") -> object:
        pages.append(prefix)
        return list_page(prefix, more, after)

    store.list_page = count_page  # type: ignore[method-assign, assignment]
    runs = {run.run_id: run for run in summarize_runs(store, survey_runs(store), 10)}
    assert {run_id: run.state for run_id, run in runs.items()} == {
        talkative: "running",
        quiet: "failed",
    }
    assert len(pages) <= 3

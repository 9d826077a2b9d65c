"""Launches of a run: one launcher wins a claim, the machine is found by its name, the cost is price x time."""

import threading
import time

import pytest

from moola.launches import (
    Launch,
    Rented,
    all_launches,
    claim,
    cost_of,
    newest_launch,
    record_rented,
    rental,
    run_of_pod_name,
)
from moola.protocol import canonical_json
from moola.runs import end_attempt
from moola.store import Store

IMAGE = "ghcr.io/someone/moola@sha256:" + "0" * 64


def claimed(store: Store, run_id: str, n: int) -> Launch:
    launch = claim(store, run_id, n, "precompute", IMAGE, {})
    assert launch is not None
    return launch


def rented_for(launch: Launch, *, price: float = 0.36, created: float = 1_000_000.0) -> Rented:
    return Rented(
        "pod1", launch.pod_name, "runpod", "cpu", "cpu5c", 4, "SECURE", "EU-RO-1", price, created, created + 7200
    )


def test_of_many_launchers_one_claims_a_launch(store: Store, run_id: str) -> None:
    won: list[Launch | None] = []
    threads = [
        threading.Thread(target=lambda: won.append(claim(store, run_id, 1, "precompute", IMAGE, {}))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [launch for launch in won if launch is not None]
    assert newest_launch(store, run_id) == winner
    assert claim(store, run_id, 1, "precompute", IMAGE, {}) is None


def test_the_newest_launch_is_the_last_one_claimed(store: Store, run_id: str) -> None:
    assert newest_launch(store, run_id) is None
    launches = [claimed(store, run_id, n) for n in (1, 2, 3)]
    assert all_launches(store, run_id) == launches
    assert newest_launch(store, run_id) == launches[-1]


def test_a_machine_s_name_leads_to_its_run(store: Store, run_id: str) -> None:
    launch = claimed(store, run_id, 12)
    assert run_of_pod_name(launch.pod_name) == (run_id, 12)
    assert run_of_pod_name(f"moola-{run_id}-beef-a1-0a1b") == (f"{run_id}-beef", 1)  # a run made with --force
    for other in ("someones-pod", "moola-", f"moola-{run_id}", f"not-moola-{run_id}-a1-0a1b"):
        assert run_of_pod_name(other) is None


def test_what_was_rented_is_written_down_once(store: Store, run_id: str) -> None:
    launch = claimed(store, run_id, 1)
    first = record_rented(store, launch, rented_for(launch))
    assert record_rented(store, launch, rented_for(launch, price=9.0)) == first


def test_the_cost_is_price_times_time(store: Store, run_id: str) -> None:
    """0.36 USD/h for half an hour is 0.18 USD; an attempt that has ended costs no more afterwards."""
    launch = claimed(store, run_id, 1)
    assert cost_of(store, launch)["cost"] == 0.0
    now = time.time()
    record_rented(store, launch, rented_for(launch, created=now - 1800))
    assert cost_of(store, launch, now)["cost"] == pytest.approx(0.18)
    end_attempt(store, run_id, launch.attempt, "timed_out", "enough", 124)
    assert cost_of(store, launch, now + 36_000)["cost"] == pytest.approx(0.18, abs=0.01)
    second = claimed(store, run_id, 2)
    record_rented(store, second, rented_for(second, created=now - 3600))
    found = rental(store, run_id, second.attempt)
    assert found["cost"] == pytest.approx(0.18 + 0.36, abs=0.01)
    assert [row["state"] for row in found["attempts"]] == ["timed_out", "submitted"]
    assert found["rented"]["data_center"] == "EU-RO-1"


def test_an_attempt_on_no_rented_machine_has_no_rental(store: Store, run_id: str) -> None:
    assert rental(store, run_id, "20261122T231500Z-9f86d081") == {}


def test_fields_of_a_later_version_are_passed_over(store: Store, run_id: str) -> None:
    launch = claimed(store, run_id, 1)
    document = {**vars(launch), "schema": 2, "colour": "red"}
    store.put(f"runs/{run_id}/launches/00000001.json", canonical_json(document))
    assert Launch.read(store, run_id, 1) == launch

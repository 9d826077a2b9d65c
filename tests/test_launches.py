"""Launches of a run: one launcher wins a claim, its pod is found by name, its cost is counted."""

import threading
import time
from typing import Any

import pytest

from moola.errors import ArtifactError, DataError
from moola.runs.attempt import end_attempt
from moola.runs.launches import (
    Launch,
    RentedMachine,
    all_launches,
    claim,
    cost_of,
    newest_launch,
    record_rented,
    rental,
)
from moola.runs.pod_names import parse_pod_name, store_tag
from moola.runs.protocol import canonical_json
from moola.runs.records import parse_record
from moola.store import Store

IMAGE = "ghcr.io/someone/moola@sha256:" + "0" * 64
MACHINE: dict[str, Any] = {"cpu": {"vcpus": 4}}


def claimed(store: Store, run_id: str, n: int) -> Launch:
    launch = claim(store, run_id, n, "precompute", IMAGE, MACHINE)
    assert launch is not None
    return launch


def rented_for(
    launch: Launch, *, price: float = 0.36, created: float = 1_000_000.0
) -> RentedMachine:
    return RentedMachine(
        pod_id="pod1",
        pod_name=launch.pod_name,
        provider="runpod",
        kind="cpu",
        type_id="cpu5c",
        count=4,
        cloud="SECURE",
        data_center="EU-RO-1",
        price_per_hour=price,
        created=created,
        deadline=created + 7200,
    )


def test_of_many_launchers_one_claims_a_launch(store: Store, run_id: str) -> None:
    won: list[Launch | None] = []
    threads = [
        threading.Thread(
            target=lambda: won.append(claim(store, run_id, 1, "precompute", IMAGE, MACHINE))
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [launch for launch in won if launch is not None]
    assert newest_launch(store, run_id) == winner
    assert claim(store, run_id, 1, "precompute", IMAGE, MACHINE) is None


def test_the_newest_launch_is_the_last_one_claimed(store: Store, run_id: str) -> None:
    assert newest_launch(store, run_id) is None
    launches = [claimed(store, run_id, n) for n in (1, 2, 3)]
    assert all_launches(store, run_id) == launches
    assert newest_launch(store, run_id) == launches[-1]


def test_a_machine_s_name_leads_to_its_run(store: Store, run_id: str) -> None:
    launch = claimed(store, run_id, 12)
    assert parse_pod_name(launch.pod_name) == (run_id, 12, store_tag(store.url))
    forced = f"{run_id}-beef"  # a run made with --force
    assert parse_pod_name(f"moola-{forced}-a1-89abcdef-0a1b") == (forced, 1, "89abcdef")
    assert parse_pod_name(f"moola-{forced}-a1-0a1b") == (forced, 1, None), "of an earlier version"
    for other in ("someones-pod", "moola-", f"moola-{run_id}", f"not-moola-{run_id}-a1-0a1b"):
        assert parse_pod_name(other) is None


def test_what_was_rented_is_written_down_once(store: Store, run_id: str) -> None:
    launch = claimed(store, run_id, 1)
    first = record_rented(store, launch, rented_for(launch))
    assert record_rented(store, launch, rented_for(launch, price=9.0)) == first


def test_the_cost_is_price_times_time(store: Store, run_id: str) -> None:
    """0.36 USD/h for half an hour is 0.18 USD; an attempt that has ended costs no more."""
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


def test_the_cost_of_an_attempt_leaves_out_those_after_it(store: Store, run_id: str) -> None:
    now = time.time()
    launches = [claimed(store, run_id, n) for n in (1, 2)]
    for launch in launches:
        record_rented(store, launch, rented_for(launch, created=now - 3600))
    first = rental(store, run_id, launches[0].attempt)
    assert [row["n"] for row in first["attempts"]] == [1]
    assert first["cost"] == pytest.approx(0.36, abs=0.01)


def test_an_attempt_on_no_rented_machine_has_no_rental(store: Store, run_id: str) -> None:
    assert rental(store, run_id, "20261122T231500Z-9f86d081") == {}


def test_fields_of_a_later_version_are_passed_over(store: Store, run_id: str) -> None:
    launch = claimed(store, run_id, 1)
    document = {**launch.model_dump(mode="json"), "schema": 2, "colour": "red"}
    store.put(f"runs/{run_id}/launches/00000001.json", canonical_json(document))
    assert Launch.read(store, run_id, 1) == launch


@pytest.mark.parametrize(
    ("n", "image", "why"),
    [(1000, IMAGE, "less than or equal to 999"), (1, "a b@sha256:" + "0" * 64, "image: ")],
)
def test_what_no_reader_would_accept_is_not_claimed(
    store: Store, run_id: str, n: int, image: str, why: str
) -> None:
    with pytest.raises(DataError, match=why):
        claim(store, run_id, n, "precompute", image, MACHINE)
    assert newest_launch(store, run_id) is None


@pytest.mark.parametrize(
    "pod_id", ["", "pod2/", "../pods/pod2", "pod2?x=1", "pod2#", "p%2F", "a b"]
)
def test_a_pod_s_id_that_could_name_another_place_of_the_provider_is_damaged(pod_id: str) -> None:
    """It becomes a part of the URL by which a machine is ended."""
    machine = {
        "pod_id": pod_id,
        "pod_name": "x",
        "provider": "runpod",
        "kind": "cpu",
        "type_id": "cpu3c",
        "count": 2,
        "cloud": "SECURE",
        "data_center": None,
        "price_per_hour": 0.1,
        "created": 0.0,
        "deadline": 1.0,
    }
    parse_record(RentedMachine, canonical_json({**machine, "pod_id": "k4a1-b_2"}), "pod.json")
    with pytest.raises(ArtifactError, match="pod_id"):
        parse_record(RentedMachine, canonical_json(machine), "pod.json")

"""The plan of a rented run and its request, worked out by hand; nothing is sent."""

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest

from moola.errors import DataError, LaunchError
from moola.launch.rented.plan import (
    Plan,
    candidates,
    choose,
    deadline_of,
    machine_json,
    plan_text,
    require_affordable,
)
from moola.launch.rented.request import first_request, pod_environment, pod_request, shown_request
from moola.launch.settings import Settings
from moola.providers import open_pods
from moola.providers.base import Candidate, Offer, PodRequest
from moola.runs.launches import Launch
from moola.runs.pod_names import store_tag
from moola.specs import MachineConfig, PrecomputeMachine, TrainMachine

IMAGE = "ghcr.io/someone/moola@sha256:" + "0" * 64
KEYS = {"AWS_ACCESS_KEY_ID": "AKIA-example", "AWS_SECRET_ACCESS_KEY": "the-secret-value"}
RUN = "precompute-0123456789ab"
TRAIN_RUN = "train-0123456789ab"
ATTEMPT = "20261122T231500Z-9f86d081"
SETTINGS = Settings(store="s3://bucket/moola", on="runpod")


def launch_on(machine: MachineConfig) -> Launch:
    return Launch(
        n=1,
        run_id=RUN,
        attempt=ATTEMPT,
        pod_name=f"moola-{RUN}-a1-89abcdef-0f0f",
        time=0.0,
        job="precompute",
        image=IMAGE,
        machine=machine_json(machine),
    )


def offer(type_id: str, price: float | None, stock: str = "high", memory_gb: float = 24.0) -> Offer:
    candidate = Candidate("gpu", type_id, 1)
    return Offer(candidate, type_id, price, stock, memory_gb, ("EU-RO-1",))  # type: ignore[arg-type]


class Catalog:
    """A provider that only has a catalog."""

    def __init__(self, offers: Sequence[Offer]) -> None:
        self._offers = offers

    def catalog(self, kind: str, cloud: str = "SECURE") -> Sequence[Offer]:
        assert (kind, cloud) == ("gpu", "SECURE")
        return self._offers


def test_the_request_is_exactly_this(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    for name in (
        "AWS_SESSION_TOKEN",
        "AWS_ENDPOINT_URL_S3",
        "AWS_ENDPOINT_URL",
        "AWS_DEFAULT_REGION",
        "AWS_MAX_ATTEMPTS",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("RUNPOD_TERMINATE_API_KEY", raising=False)
    machine = TrainMachine(data_centers=("EU-RO-1",), disk_gb=40)
    request = pod_request(
        SETTINGS, launch_on(machine), offer("NVIDIA L4", 0.39), deadline=1_800_000_000.4
    )
    assert open_pods("rest", "key").body(request) == {
        "name": f"moola-{RUN}-a1-89abcdef-0f0f",
        "image": IMAGE,
        "gpu": {"id": "NVIDIA L4", "count": 1, "minCudaVersion": "12.0"},
        "cloud": "SECURE",
        "dataCenterIds": ["EU-RO-1"],
        "disk": 40,
        "startSsh": False,
        "startJupyter": False,
        "env": {
            **KEYS,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "MOOLA_STORE": "s3://bucket/moola",
            "MOOLA_JOB": "precompute",
            "MOOLA_RUN": RUN,
            "MOOLA_ATTEMPT": ATTEMPT,
            "MOOLA_LAUNCH": "1",
            "MOOLA_DEADLINE": "1800000000",
            "MOOLA_BEAT_S": "5",
            "MOOLA_GPUS": "1",
            "MOOLA_IMAGE_DIGEST": "sha256:" + "0" * 64,
            "PYTHONUNBUFFERED": "1",
        },
    }


def test_cpu_candidates_are_the_flavours_in_order() -> None:
    machine = PrecomputeMachine.model_validate({"cpu": {"flavors": ["cpu3c", "cpu5c"], "vcpus": 8}})
    found = candidates(machine, Catalog([]))  # type: ignore[arg-type]
    assert found == [Candidate("cpu", "cpu3c", 8), Candidate("cpu", "cpu5c", 8)]


def test_data_centers_of_the_community_cloud_are_refused_before_anything_is_asked() -> None:
    machine = TrainMachine(cloud="COMMUNITY", data_centers=("EU-RO-1",))
    with pytest.raises(
        DataError, match=r"COMMUNITY and machine.data_centers exclude each other, got EU-RO-1"
    ):
        candidates(machine, Catalog([]))  # type: ignore[arg-type]
    assert candidates(TrainMachine(cloud="COMMUNITY"), Catalog([]))  # type: ignore[arg-type]


def test_gpu_types_null_takes_what_is_large_and_cheap_enough_the_cheapest_first() -> None:
    machine = TrainMachine.model_validate(
        {"gpu": {"types": None, "min_memory_gb": 20, "count": 2}, "max_price_per_hour": 1.0}
    )
    catalog = [
        offer("small", 0.1, memory_gb=16),
        offer("dear", 0.51),
        offer("b", 0.4),
        offer("a", 0.2),
        offer("c", None),
    ]
    found = candidates(machine, Catalog(catalog))  # type: ignore[arg-type]
    assert [(one.type_id, one.count) for one in found] == [("a", 2), ("b", 2)]


def test_a_price_that_equals_the_cap_is_taken() -> None:
    machine = TrainMachine.model_validate(
        {"gpu": {"types": None, "min_memory_gb": 20, "count": 2}, "max_price_per_hour": 0.5}
    )
    catalog = [offer("at the cap", 0.25), offer("above it", 0.26)]
    fitting = candidates(machine, Catalog(catalog))  # type: ignore[arg-type]
    assert [candidate.type_id for candidate in fitting] == ["at the cap"]

    reasons = [one.why_not for one in choose(machine, [offer("at", 0.5), offer("above", 0.501)])]
    assert reasons == ["", "price above max_price_per_hour 0.5"]


def test_memory_that_equals_the_least_is_taken() -> None:
    machine = TrainMachine.model_validate({"gpu": {"types": None, "min_memory_gb": 24}})
    catalog = [offer("24 GB", 0.2, memory_gb=24.0), offer("23 GB", 0.1, memory_gb=23.0)]
    fitting = candidates(machine, Catalog(catalog))  # type: ignore[arg-type]
    assert [candidate.type_id for candidate in fitting] == ["24 GB"]


def test_a_run_is_refused_only_if_no_candidate_is_affordable() -> None:
    machine = TrainMachine(max_price_per_hour=0.5)
    dear = offer("dear", 0.6)
    missing = offer("missing", None)
    gone = offer("gone", 0.4, "none")  # for the moment: waiting may help
    require_affordable(machine, choose(machine, [dear, missing, gone]))
    with pytest.raises(LaunchError, match=r"costs at most .* 0.5 USD/h: dear 0.6$"):
        require_affordable(machine, choose(machine, [dear, missing]))


def test_the_first_request_is_for_the_first_candidate_that_would_be_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    machine = TrainMachine(max_price_per_hour=0.5, max_runtime=timedelta(hours=1))
    choices = choose(machine, [offer("dear", 0.6), offer("cheap", 0.2)])
    plan = Plan(TRAIN_RUN, "train", IMAGE, machine, choices, {})
    request = first_request(SETTINGS, plan)
    assert request.candidate.type_id == "cheap"
    assert request.name.startswith(f"moola-{TRAIN_RUN}-a1-{store_tag(SETTINGS.store)}-")
    left_s = float(request.env["MOOLA_DEADLINE"]) - time.time()
    assert left_s == pytest.approx(3600, abs=60)


def test_no_gpu_that_fits_is_refused_with_the_numbers() -> None:
    machine = TrainMachine.model_validate({"gpu": {"types": None, "min_memory_gb": 80}})
    with pytest.raises(
        LaunchError, match=r"no GPU has at least 80 GB and costs at most 1 USD/h \(0 types"
    ):
        candidates(machine, Catalog([offer("a", 0.2)]))  # type: ignore[arg-type]


def test_each_candidate_says_why_it_would_not_be_taken() -> None:
    machine = TrainMachine(max_price_per_hour=0.5, data_centers=("US-KS-2",))
    offers = [offer("a", None), offer("b", 0.6), offer("c", 0.4, "none"), offer("d", 0.4)]
    reasons = [choice.why_not for choice in choose(machine, offers)]
    assert reasons == [
        "not offered",
        "price above max_price_per_hour 0.5",
        "out of stock",
        "not in US-KS-2",
    ]
    (taken,) = choose(TrainMachine(max_price_per_hour=0.5), [offer("d", 0.4)])
    assert (taken.why_not, taken.price) == ("", 0.4)


@pytest.mark.parametrize(
    ("price", "spent", "seconds"),
    [
        (0.5, 0.0, 7200),  # 2 h cost 1 USD, which is what may be spent
        (1.0, 0.0, 3600),  # the money is gone first
        (1.0, 0.75, 900),
        (1.0, 1.5, 0),
        (0.1, 0.0, 7200),  # the time is up first
        (0.0, 0.0, 7200),
    ],
)
def test_the_deadline_is_the_sooner_of_time_and_money(
    price: float, spent: float, seconds: int
) -> None:
    machine = PrecomputeMachine(max_runtime=timedelta(hours=2), max_spend=1.0)
    assert deadline_of(machine, price, spent, now=1000.0) == pytest.approx(1000 + seconds)


def test_the_most_a_run_can_cost_is_never_above_max_spend() -> None:
    def most(**caps: Any) -> float:
        machine = TrainMachine.model_validate({"retry": {"times": 1}, **caps})
        choices = choose(machine, [offer("a", 0.2), offer("b", 0.4)])
        return Plan("train-abc", "train", IMAGE, machine, choices, {}).most_it_can_cost()

    assert most(max_runtime="2h", max_spend=100) == pytest.approx(0.4 * 2 * 2)
    assert most(max_runtime="2h", max_spend=1.0) == 1.0
    assert most(max_runtime="2h", max_spend=100, max_price_per_hour=0.3) == pytest.approx(
        0.2 * 2 * 2
    )


def test_the_plan_says_what_is_uploaded_and_capped() -> None:
    machine = PrecomputeMachine()
    plan = Plan(
        "precompute-abc",
        "precompute",
        IMAGE,
        machine,
        choose(machine, []),
        {"nq.parquet": 78_000_000},
    )
    text = plan_text(plan)
    for part in (
        IMAGE,
        "nq.parquet 78.0 MB",
        "2h an attempt",
        "2 further attempts",
        "1 USD in all",
        "15m",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("machine", "is_said"), [(TrainMachine(), True), (PrecomputeMachine(), False)]
)
def test_the_plan_says_of_which_hosts_the_stock_is(machine: MachineConfig, is_said: bool) -> None:
    text = plan_text(Plan("train-abc", "train", IMAGE, machine, choose(machine, []), {}))
    assert (f"CUDA {machine.min_cuda} or newer" in text) == is_said


def test_a_folder_is_no_store_for_a_rented_machine() -> None:
    with pytest.raises(
        DataError,
        match="a rented machine needs a store it can reach: s3://bucket/prefix, got file:",
    ):
        pod_environment(
            Settings(store="file:///tmp/x"),
            launch_on(PrecomputeMachine()),
            PrecomputeMachine(),
            0.0,
            KEYS,
        )


def test_missing_keys_are_named_with_the_way_to_give_them() -> None:
    with pytest.raises(
        DataError,
        match=r"AWS_SECRET_ACCESS_KEY: set it here, or .*machine.secrets.AWS_SECRET_ACCESS_KEY",
    ):
        pod_environment(
            SETTINGS,
            launch_on(PrecomputeMachine()),
            PrecomputeMachine(),
            0.0,
            {"AWS_ACCESS_KEY_ID": "x"},
        )


def test_a_secret_of_the_provider_stands_in_place_of_a_value() -> None:
    machine = PrecomputeMachine(secrets={"AWS_SECRET_ACCESS_KEY": "my_secret"})
    found = pod_environment(SETTINGS, launch_on(machine), machine, 0.0, KEYS)
    assert found["AWS_SECRET_ACCESS_KEY"] == "{{ RUNPOD_SECRET_my_secret }}"
    assert found["AWS_ACCESS_KEY_ID"] == "AKIA-example"


def test_a_shown_request_hides_values_but_not_names_of_secrets() -> None:
    env = {**KEYS, "AWS_SESSION_TOKEN": "{{ RUNPOD_SECRET_token }}", "MOOLA_JOB": "train"}
    shown = shown_request({"name": "x", "env": env})
    assert "the-secret-value" not in str(shown)
    assert shown["env"]["AWS_SESSION_TOKEN"] == "{{ RUNPOD_SECRET_token }}"
    assert shown["env"]["MOOLA_JOB"] == "train"


def test_a_shown_query_hides_the_values_of_secrets_too() -> None:
    """GraphQL has no environment of its own: it is part of the query."""
    query = 'env: [{ key: "AWS_SECRET_ACCESS_KEY", value: "the-secret-value" }]'
    shown = shown_request({"query": query}, environ=KEYS)
    assert shown["query"] == 'env: [{ key: "AWS_SECRET_ACCESS_KEY", value: "***" }]'


def test_a_request_shows_no_environment_when_printed() -> None:
    request = PodRequest("n", IMAGE, Candidate("cpu", "cpu5c", 4), 20, KEYS)
    assert "the-secret-value" not in repr(request)

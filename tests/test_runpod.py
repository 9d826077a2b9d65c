"""Both clients of RunPod against the fake of it: one contract, then what only one can do."""

import json
import logging
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from moola import __version__
from moola.errors import AuthError, LaunchError, MoolaError, NoCapacityError, TryAgainError
from moola.providers import open_pods, rate_limit
from moola.providers.base import Candidate, LogLine, PodApi, PodRequest, PodStatus
from moola.providers.runpod.answers import NO_CAPACITY, read_log_lines
from moola.providers.runpod.rest import RestPods
from moola.providers.runpod.terminate_self import terminate_self
from tests.fake_runpod import FakeRunpod, schema

ROOT = Path(__file__).resolve().parents[1]
READ_S = 1.0  # a server on a busy machine answers within it
A5000, L4 = "NVIDIA RTX A5000", "NVIDIA L4"
SECRET = "s3cr3t-of-the-bucket"
GPU = PodRequest(
    "moola-run-1",
    "repo/img@sha256:00",
    Candidate("gpu", A5000, 1),
    20,
    {"MOOLA_RUN": "r1", "KEY": SECRET},
)
CPU = replace(GPU, name="moola-run-2", candidate=Candidate("cpu", "cpu3c", 4))
needs_schema = pytest.mark.skipif(
    schema.OPENAPI is None, reason="the published OpenAPI file is not there"
)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRunpod]:
    """An account without pods, with the environment set for it; its pods sleep."""
    with FakeRunpod(lambda _: ["sleep", "60"], per_minute=100_000, restart_s=60.0) as running:
        monkeypatch.setenv("RUNPOD_API_BASE_URL", running.url)
        monkeypatch.setenv("RUNPOD_API_KEY", running.api_key)
        yield running


@pytest.fixture(params=["rest", "sdk"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A client's name. The package has a fixed timeout of 30 s: here it is 0.5."""
    if request.param == "sdk":
        requests = pytest.importorskip("requests")
        pytest.importorskip("runpod")
        send = requests.adapters.HTTPAdapter.send

        def impatient(self: Any, *given: Any, **how: Any) -> Any:
            return send(self, *given, **{**how, "timeout": READ_S})

        monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", impatient)
    return str(request.param)


def client(backend: str, key: str | None = None) -> PodApi:
    """With short pauses."""
    if backend == "rest":
        return RestPods(key, read_s=READ_S, silence_s=0.3, first_wait_s=0.02)
    from moola.providers.runpod.graphql import SdkPods

    return SdkPods(key, first_wait_s=0.02)


@pytest.fixture
def api(fake: FakeRunpod, backend: str, monkeypatch: pytest.MonkeyPatch) -> PodApi:  # noqa: ARG001
    monkeypatch.setattr(rate_limit, "BURST_CALLS", 1000)
    return client(backend)


@pytest.fixture
def rest(fake: FakeRunpod) -> RestPods:  # noqa: ARG001
    return RestPods(read_s=READ_S, silence_s=0.3, first_wait_s=0.02)


def calls(fake: FakeRunpod, operation: str) -> int:
    return sum(call.operation == operation for call in fake.calls)


# the contract


@pytest.mark.parametrize("wanted", [GPU, CPU], ids=["gpu", "cpu"])
def test_a_pod_is_made_shown_listed_and_ended(
    fake: FakeRunpod, api: PodApi, wanted: PodRequest
) -> None:
    made = api.create(wanted)
    there = fake.pods[made.id]
    assert (made.name, made.image, made.status) == (wanted.name, wanted.image, PodStatus.STARTING)
    assert made.price_per_hour == pytest.approx(0.27 if wanted is GPU else 0.12)
    assert (there.wanted.machine, there.wanted.count) == (
        wanted.candidate.type_id,
        wanted.candidate.count,
    )
    assert (there.env, there.cloud, there.wanted.disk) == (wanted.env, "SECURE", 20)
    assert (there.wanted.ports, there.wanted.template) == ([], None)
    fake.wait_until(lambda: there.status == "RUNNING")
    seen = api.get(made.id)
    assert seen
    assert (seen.status, seen.provider_status, seen.env) == (
        PodStatus.RUNNING,
        "RUNNING",
        wanted.env,
    )
    assert seen.uptime_s is not None
    assert api.list() == [seen]
    api.terminate(made.id)
    assert not fake.alive()
    assert api.get(made.id) is None
    assert api.list() == []


def test_ending_a_pod_that_is_gone_is_fine_and_one_that_is_stopped_is_shown_so(
    fake: FakeRunpod, api: PodApi
) -> None:
    made = api.create(GPU)
    fake.stop_by_provider(fake.pods[made.id])
    stopped = api.get(made.id)
    assert stopped
    assert (stopped.status, stopped.provider_status, stopped.uptime_s) == (
        PodStatus.STOPPED,
        "EXITED",
        None,
    )
    api.terminate(made.id)
    api.terminate(made.id)
    api.terminate("never0there")
    assert api.get("never0there") is None


def test_arguments_and_data_centre_arrive(fake: FakeRunpod, api: PodApi) -> None:
    made = api.create(
        replace(
            GPU,
            args=("--run", "a b", "it's" if isinstance(api, RestPods) else "c"),
            data_centers=("US-KS-2",),
        )
    )
    there = fake.pods[made.id]
    assert there.data_center == "US-KS-2"
    assert there.cmd == ["--run", "a b", "it's" if isinstance(api, RestPods) else "c"]


def test_lack_of_capacity_is_an_error_of_its_own(fake: FakeRunpod, api: PodApi) -> None:
    fake.stock.set(A5000, "NONE")
    with pytest.raises(NoCapacityError, match="no longer any instances"):
        api.create(GPU)
    assert api.create(CPU)


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (402, LaunchError, "balance"),
        (403, AuthError, "scope"),
        (422, LaunchError, "Request validation failed"),
        (401, AuthError, "RUNPOD_API_KEY"),
    ],
)
def test_a_refused_create_is_not_repeated_and_makes_no_pod(
    fake: FakeRunpod, api: PodApi, status: int, error: type[Exception], words: str
) -> None:
    fake.fail(status)
    with pytest.raises(error, match=words) as caught:
        api.create(GPU)
    assert type(caught.value) is error
    assert calls(fake, "create") == 1
    assert not fake.pods


def test_a_wrong_key_and_none_at_all(
    fake: FakeRunpod, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(AuthError, match="RUNPOD_API_KEY"):
        client(backend, "rpa_wrong").list()
    monkeypatch.delenv("RUNPOD_API_KEY")
    seen = len(fake.calls)
    for call in (lambda: client(backend).create(GPU), lambda: client(backend).list()):
        with pytest.raises(AuthError, match="no key for RunPod"):
            call()
    assert client(backend).body(GPU)
    assert len(fake.calls) == seen
    with pytest.raises(AuthError, match="blank"):
        client(backend, "rpa_two words")


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "cut"},
        {"kind": "withheld"},
        {"kind": 502, "done": True},
        {"kind": "slow", "seconds": READ_S + 0.2},
    ],
    ids=str,
)
@pytest.mark.parametrize("wanted", [GPU, CPU], ids=["gpu", "cpu"])
def test_a_create_without_a_usable_answer_finds_the_pod_it_made(
    fake: FakeRunpod, api: PodApi, fault: dict[str, Any], wanted: PodRequest
) -> None:
    other = api.create(replace(GPU, name="moola-other"))
    fake.fail(**fault)
    made = api.create(wanted)
    assert {pod.id for pod in fake.alive()} == {other.id, made.id}
    assert (made.name, calls(fake, "create")) == (wanted.name, 2)


def test_a_create_that_cannot_be_settled_says_so_and_is_not_repeated(
    fake: FakeRunpod, api: PodApi
) -> None:
    fake.fail(503)
    with pytest.raises(
        TryAgainError, match="found no pod moola-run-1, but it could not be settled"
    ):
        api.create(GPU)
    assert (calls(fake, "create"), calls(fake, "list")) == (1, 5)
    fake.fail("cut")
    fake.fail(503, "list", times=None)
    with pytest.raises(
        TryAgainError, match="whether pod moola-run-1 was made could not be settled"
    ):
        api.create(GPU)
    assert (calls(fake, "create"), len(fake.pods)) == (2, 1)


def test_a_create_that_had_no_effect_is_repeated(fake: FakeRunpod, api: PodApi) -> None:
    fake.fail(429, times=2, retry_after=0)
    assert api.create(GPU).id in fake.pods
    assert (calls(fake, "create"), calls(fake, "list"), len(fake.pods)) == (3, 0, 1)


def test_without_a_connection_nothing_was_made_and_nothing_is_looked_up(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RUNPOD_API_BASE_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
        monkeypatch.setenv("RUNPOD_API_KEY", "rpa_any")
        with pytest.raises(TryAgainError) as caught:
            client(backend).create(GPU)
    assert "settled" not in str(caught.value)


@pytest.mark.parametrize("kind", [500, 503, 429, "cut", "withheld"])
def test_reading_and_ending_go_on_after_failures_in_passing(
    fake: FakeRunpod, api: PodApi, kind: Any
) -> None:
    made = api.create(GPU)
    for operation in ("get", "list", "delete"):
        fake.fail(kind, operation, retry_after=0)
    assert api.get(made.id)
    assert [pod.id for pod in api.list()] == [made.id]
    api.terminate(made.id)
    whole = kind == "cut" and isinstance(api, RestPods)  # a 204 has no body to cut
    assert [calls(fake, operation) for operation in ("list", "delete")] == [2, 1 if whole else 2]
    assert not fake.alive()


def test_an_outage_ends_in_try_again(fake: FakeRunpod, api: PodApi) -> None:
    fake.partitioned = True
    for call in (lambda: api.get("x"), api.list, lambda: api.terminate("x")):
        before = len(fake.calls)
        with pytest.raises(TryAgainError):
            call()
        assert len(fake.calls) - before == 5


def test_requests_name_their_sender(fake: FakeRunpod, api: PodApi) -> None:
    api.list()
    agent = fake.calls[-1].headers["user-agent"]
    assert (
        agent == f"moola/{__version__}"
        if isinstance(api, RestPods)
        else agent.startswith("RunPod-Python-SDK/")
    )


@pytest.mark.parametrize(
    "fault", [401, 402, 403, 422, 503, "cut", "no_capacity", "withheld", "echo"]
)
def test_no_error_shows_the_key_or_the_environment(
    fake: FakeRunpod,
    api: PodApi,
    fault: Any,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.DEBUG)
    if fault == "echo":  # an answer that quotes the request
        monkeypatch.setitem(gate_details(), 422, f"env.KEY: {SECRET!r} is too long")
    fake.fail(422 if fault == "echo" else fault)
    fake.fail(503, "list", times=None)
    with pytest.raises(MoolaError) as caught:
        api.create(GPU)
    shown = "".join(traceback.format_exception(caught.value)) + caplog.text + repr(api) + repr(GPU)
    assert "moola-run-1" in shown or "RunPod" in shown
    assert fake.api_key not in shown
    assert SECRET not in shown


def gate_details() -> dict[int, str]:
    from tests.fake_runpod import gate

    return gate.DETAILS


def test_a_pod_shows_no_environment_in_its_repr(api: PodApi) -> None:
    made = api.create(GPU)
    assert made.env["KEY"] == SECRET
    assert SECRET not in repr(made)


# only over REST


def test_the_request_is_known_before_it_is_sent() -> None:
    wanted = PodRequest(
        name="moola-20260101-train-a1",
        image="ghcr.io/me/moola-gpu@sha256:12",
        candidate=Candidate("gpu", "NVIDIA GeForce RTX 4090", 2, "COMMUNITY"),
        disk_gb=30,
        env={"MOOLA_RUN": "r", "AWS_SECRET_ACCESS_KEY": "{{ RUNPOD_SECRET_s3 }}"},
        args=("--verbose", 'say "hi"'),
        data_centers=("EU-RO-1", "US-KS-2"),
        min_cuda="12.8",
        registry="cred_1",
    )
    assert open_pods("rest").body(wanted) == {
        "name": "moola-20260101-train-a1",
        "image": "ghcr.io/me/moola-gpu@sha256:12",
        "gpu": {"id": "NVIDIA GeForce RTX 4090", "count": 2, "minCudaVersion": "12.8"},
        "cloud": "COMMUNITY",
        "disk": 30,
        "env": {"MOOLA_RUN": "r", "AWS_SECRET_ACCESS_KEY": "{{ RUNPOD_SECRET_s3 }}"},
        "args": '{"cmd": ["--verbose", "say \\"hi\\""]}',
        "dataCenterIds": ["EU-RO-1", "US-KS-2"],
        "registry": "cred_1",
        "startSsh": False,
        "startJupyter": False,
    }
    assert open_pods("rest").body(replace(CPU, min_cuda="12.8")) == {
        "name": "moola-run-2",
        "image": "repo/img@sha256:00",
        "cpu": {"id": "cpu3c", "vcpuCount": 4},
        "cloud": "SECURE",
        "disk": 20,
        "env": {"MOOLA_RUN": "r1", "KEY": SECRET},
        "startSsh": False,
        "startJupyter": False,
    }


@needs_schema
@pytest.mark.parametrize(
    "candidate", [GPU.candidate, CPU.candidate, Candidate("gpu", A5000, 8, "COMMUNITY")]
)
@pytest.mark.parametrize("args", [(), ("a", "b c")])
@pytest.mark.parametrize(
    "more", [{}, {"data_centers": ("EU-RO-1",), "min_cuda": "12.11", "registry": "c"}]
)
def test_every_request_is_valid_by_the_published_schema(
    candidate: Candidate, args: Any, more: dict[str, Any]
) -> None:
    body = open_pods("rest").body(replace(GPU, candidate=candidate, args=args, **more))
    assert schema.violations("CreatePodRequest", body) == []
    assert schema.violations("CreatePodRequest", {**body, "imageName": "v1's word"})


def test_what_is_sent_is_the_body(fake: FakeRunpod, rest: RestPods) -> None:
    rest.create(GPU)
    assert next(call.json() for call in fake.calls if call.operation == "create") == rest.body(GPU)


def offline(answer: Callable[[httpx.Request], httpx.Response]) -> RestPods:
    return RestPods("rpa_any", first_wait_s=0.0, transport=httpx.MockTransport(answer))


def shown(**change: Any) -> dict[str, Any]:
    return {"id": "p1", "name": "moola-run-1", "status": "RUNNING", **change}


def test_unknown_fields_are_ignored_and_absent_ones_are_filled_in() -> None:
    full = shown(
        new=1,
        gpu={"id": L4, "count": 1, "new": 1},
        runtime={"uptime": 7, "new": {}},
        cost=0.4,
        env=None,
    )
    pods = {"/v2/pods/p1": full, "/v2/pods/p2": shown(id="p2", runtime=None, startedAt=None)}
    api = offline(lambda request: httpx.Response(200, json=pods[request.url.path]))
    one, two = api.get("p1"), api.get("p2")
    assert one
    assert two
    assert (one.type_id, one.uptime_s, one.price_per_hour, one.env) == (L4, 7.0, 0.4, {})
    assert (two.type_id, two.uptime_s, two.price_per_hour, two.image) == (None, None, 0.0, "")


def test_an_answer_that_lacks_what_we_need_is_named_without_its_values() -> None:
    api = offline(
        lambda _: httpx.Response(200, json={"id": "p1", "name": "n", "env": {"KEY": {"x": SECRET}}})
    )
    with pytest.raises(
        LaunchError, match=r"a pod cannot be read.*status: Field required"
    ) as caught:
        api.get("p1")
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_an_unknown_status_is_named_and_still_listed() -> None:
    listed = {"pods": [shown(status="MIGRATING"), shown(id="p2")]}
    api = offline(
        lambda request: httpx.Response(
            200, json=listed if request.url.path == "/v2/pods" else listed["pods"][0]
        )
    )
    with pytest.raises(LaunchError, match="p1 has the status 'MIGRATING'"):
        api.get("p1")
    assert [(pod.status, pod.provider_status) for pod in api.list()] == [
        (PodStatus.UNKNOWN, "MIGRATING"),
        (PodStatus.RUNNING, "RUNNING"),
    ]


@pytest.mark.parametrize(
    "made", [shown(status="MIGRATING"), {"id": "p1"}, shown(name=None)], ids=str
)
def test_a_pod_that_was_made_and_is_not_understood_is_ended_before_the_error(
    made: dict[str, Any],
) -> None:
    ended: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "DELETE":
            ended.append(request.url.path)
        return httpx.Response(201, json=made) if request.method == "POST" else httpx.Response(204)

    with pytest.raises(LaunchError):
        offline(answer).create(GPU)
    assert ended == ["/v2/pods/p1"]


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b'{"name": "moola-run-1"}', b"<html>"])
def test_a_create_whose_answer_is_no_pod_is_looked_up(body: bytes) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        made = httpx.Response(201, content=body)
        return (
            made
            if request.method == "POST"
            else httpx.Response(200, json={"pods": [shown(name="x"), shown(id="p2")]})
        )

    assert offline(answer).create(GPU).id == "p2"


def test_a_list_of_several_pages_is_read_to_its_end() -> None:
    pages = {
        None: {"pods": [shown(id="a")], "nextCursor": "1"},
        "1": {"pods": [shown(id="b")], "pagination": {"nextCursor": "2"}},
        "2": {"pods": [shown(id="c")], "nextCursor": "2"},
    }
    api = offline(lambda request: httpx.Response(200, json=pages[request.url.params.get("cursor")]))
    assert [pod.id for pod in api.list()] == ["a", "b", "c"]


@pytest.mark.parametrize("words", NO_CAPACITY)
def test_every_wording_of_no_capacity_is_known_with_400_alone(words: str) -> None:
    problem = {
        "title": "Bad Request",
        "status": 400,
        "detail": f"Sorry: {words.upper()} of that kind.",
    }
    with pytest.raises(NoCapacityError):
        offline(lambda _: httpx.Response(400, json=problem)).create(GPU)
    with pytest.raises(LaunchError) as caught:
        offline(lambda _: httpx.Response(422, json=problem)).create(GPU)
    assert type(caught.value) is LaunchError


def test_a_wrong_request_is_told_with_all_its_errors() -> None:
    problem = {
        "detail": "Request validation failed.",
        "errors": ["$: additional properties 'X' not allowed", "disk: min"],
    }
    with pytest.raises(
        LaunchError,
        match=r"422 Request validation failed\.; \$: additional properties 'X'.*; disk: min",
    ):
        offline(lambda _: httpx.Response(422, json=problem)).create(GPU)
    with pytest.raises(LaunchError, match="400 exactly one of gpu or cpu") as caught:
        offline(
            lambda _: httpx.Response(400, json={"detail": "exactly one of gpu or cpu must be set"})
        ).create(GPU)
    assert type(caught.value) is LaunchError
    with pytest.raises(AuthError, match="403 error code: 1010"):
        offline(lambda _: httpx.Response(403, text="error code: 1010")).create(GPU)


def test_a_conflict_is_try_again_and_not_repeated() -> None:
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.method)
        return httpx.Response(409, json={"detail": "pod belongs to a cluster"})

    with pytest.raises(TryAgainError, match="409 pod belongs to a cluster"):
        offline(answer).terminate("p1")
    assert seen == ["DELETE"]


@pytest.mark.parametrize("status", [404, 410])
def test_a_pod_answered_404_or_410_is_gone(status: int) -> None:
    api = offline(lambda _: httpx.Response(status, json={"detail": "pod not found"}))
    api.terminate("p1")
    assert api.get("p1") is None
    assert list(api.logs("p1")) == []


def test_a_price_is_the_whole_price_in_the_cloud_asked_for(
    fake: FakeRunpod, rest: RestPods
) -> None:
    fake.stock.set(L4, "LOW", "EU-RO-1")
    fake.stock.set(L4, "NONE", "US-KS-2")
    fake.stock.set(L4, "NONE", "EUR-IS-1")
    wanted = [
        Candidate("gpu", L4, 2),
        Candidate("gpu", A5000, 1, "COMMUNITY"),
        Candidate("gpu", L4, 1, "COMMUNITY"),  # not offered there
        Candidate("cpu", "cpu5c", 8),
        Candidate("cpu", "cpu5c", 8, "COMMUNITY"),
        Candidate("cpu", "cpu5c", 64),  # more than there is
        Candidate("gpu", "NVIDIA unheard of", 1),
    ]
    offers = rest.offers(wanted)
    assert [offer.candidate for offer in offers] == wanted
    assert [(o.price_per_hour, o.stock, o.memory_gb) for o in offers] == [
        (0.78, "low", 24),
        (0.16, "high", 24),
        (None, "none", 24),
        (0.288, "high", 16),
        (None, "none", 16),
        (2.304, "none", 128),
        (None, "none", 0),
    ]
    assert offers[0].data_centers == ("EU-RO-1",)
    asked = {
        (call.path, *sorted(call.query.items()))
        for call in fake.calls
        if call.operation == "catalog"
    }
    assert (
        len(asked) == 5
    )  # one for each kind and size; GPUs, which have clouds, one for each cloud too


@pytest.mark.parametrize(
    ("min_cuda", "stock"), [(None, "high"), ("12.8", "high"), ("13.0", "none")]
)
def test_stock_is_of_hosts_that_can_run_the_image(
    fake: FakeRunpod, rest: RestPods, min_cuda: str | None, stock: str
) -> None:
    """What the catalog promises, a create for the same hosts keeps."""
    fake.stock.machines[L4].cuda = ("12.4", "12.8")
    (offer,) = rest.offers([Candidate("gpu", L4, 1)], min_cuda)
    assert offer.stock == stock

    request = replace(GPU, candidate=offer.candidate, min_cuda=min_cuda)
    if stock == "none":
        with pytest.raises(NoCapacityError):
            rest.create(request)
    else:
        rest.create(request)


def test_the_catalog_has_one_gpu_or_the_smallest_cpu_of_each_type(rest: RestPods) -> None:
    cpus, gpus = rest.catalog("cpu"), rest.catalog("gpu", "COMMUNITY")
    assert {(offer.candidate.type_id, offer.price_per_hour) for offer in cpus} >= {
        ("cpu3c", 0.06),
        ("cpu5m", 0.12),
    }
    assert {offer.candidate.count for offer in cpus} == {2}
    prices = {offer.candidate.type_id: offer.price_per_hour for offer in gpus}
    assert (prices[A5000], prices[L4]) == (0.16, None)
    assert {offer.candidate.cloud for offer in gpus} == {"COMMUNITY"}


def test_billing_is_what_the_meter_says_for_the_pods_asked(
    fake: FakeRunpod, rest: RestPods
) -> None:
    fake.billing_lag_s = 0.0
    pods = [rest.create(replace(GPU, name=f"moola-{n}")) for n in range(3)]
    fake.clock.speed = 3600.0
    fake.wait_until(lambda: fake.clock.now() > 1800)
    fake.clock.speed = 1.0
    for pod in pods:
        rest.terminate(pod.id)
    asked = [pod.id for pod in pods[:2]]
    records = rest.billing(asked)
    assert {record.pod_id for record in records} == set(asked)
    for pod_id in asked:
        total = sum(record.amount for record in records if record.pod_id == pod_id)
        assert total == pytest.approx(fake.billed(fake.pods[pod_id]))
    assert all(record.start < record.end for record in records)
    assert rest.billing([]) == []


def test_a_key_without_the_scope_is_told_what_it_lacks(fake: FakeRunpod) -> None:
    with pytest.raises(AuthError, match="scope for GET /v2/catalog/gpus"):
        RestPods(fake.restricted_key).catalog("gpu")


def test_the_rate_is_half_of_the_quota_the_provider_tells(rest: RestPods) -> None:
    rest.list()
    per_minute, _, per_day = 100_000 / 60, 5_000_000 / 3600, 83_300_000 / 86400
    assert rest.rate_limiter.calls_per_s == pytest.approx(min(per_minute, per_day) / 2, rel=0.01)


# logs


def test_a_log_that_is_dropped_again_and_again_arrives_once_and_in_order(
    fake: FakeRunpod, rest: RestPods
) -> None:
    fake.command = lambda _: ["sh", "-c", "seq 1000; sleep 60"]
    faults = [fake.fail("drop", "logs", lines=n) for n in (0, 1, 2, 40, 0, 99, 100, 101, 150, 7)]
    made = rest.create(GPU)
    collected: list[LogLine] = []
    after = None
    for _ in range(100):
        if len(collected) == 1002:
            break
        try:
            for line in rest.logs(made.id, after):
                collected.append(line)
                after = line.id
        except TryAgainError:
            continue
    assert [line.text for line in collected if line.source == "container"] == [
        str(n + 1) for n in range(1000)
    ]
    system = [line.text for line in collected if line.source == "system"]
    assert [text.split()[0] for text in system] == ["create", "start"]
    assert all(fault.times == 0 for fault in faults)
    assert all(line.time.tzinfo for line in collected)


def test_a_log_with_nothing_in_it_yet_ends_without_an_error(
    fake: FakeRunpod, rest: RestPods
) -> None:
    made = rest.create(GPU)
    fake.wait_until(lambda: fake.pods[made.id].status == "RUNNING")
    last = fake.pods[made.id].log.lines()[-1]
    from tests.fake_runpod.logs import rfc3339

    assert list(rest.logs(made.id, after=rfc3339(last.ns))) == []


def test_a_stream_that_cannot_be_had_is_told(fake: FakeRunpod, rest: RestPods) -> None:
    made = rest.create(GPU)
    fake.fail(503, "logs")
    with pytest.raises(TryAgainError, match="503"):
        next(rest.logs(made.id))
    fake.fail(401, "logs")
    with pytest.raises(AuthError):
        next(rest.logs(made.id))
    assert next(rest.logs(made.id)).source == "system"


FIRST = "2026-06-01T12:00:00.000000001Z"
FRAMES = (
    f'id: {FIRST}\ndata: {{"source":"container","line":"a \x85 \u2028 b","ts":"{FIRST}"}}\n\n'
    ": keepalive\n\n"
    "id:2026-06-01T12:00:01Z\r\n"
    'data:{"source":"system","line":"still fetching","ts":"2026-06-01T12:00:01Z","new":1}\r\n\r\n'
    "data: no json\n\n"
    'id: 2026-06-01T12:00:02Z\ndata: {"source":"system","line":"cut","ts":"2026-'
).encode()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 1000])
def test_frames_are_read_however_they_are_cut_into_chunks(size: int) -> None:
    lines = list(read_log_lines(FRAMES[at : at + size] for at in range(0, len(FRAMES), size)))
    assert [(line.id, line.source, line.text) for line in lines] == [
        (FIRST, "container", "a \x85 \u2028 b"),
        ("2026-06-01T12:00:01Z", "system", "still fetching"),
    ]


def test_a_resume_point_that_is_sent_again_is_left_out() -> None:
    stream = httpx.Response(200, content=FRAMES, headers={"Content-Type": "text/event-stream"})
    lines = list(offline(lambda _: stream).logs("p1", after=FIRST))
    assert [line.text for line in lines] == ["still fetching"]


# only through the package


@pytest.fixture
def sdk(fake: FakeRunpod) -> PodApi:  # noqa: ARG001
    pytest.importorskip("runpod")
    return client("sdk")


def test_the_query_is_known_before_it_is_sent(fake: FakeRunpod, sdk: PodApi) -> None:
    query = " ".join(sdk.body(replace(CPU, args=("--run", "a b")))["query"].split())
    assert query.startswith(
        'mutation { deployCpuPod( input: { name: "moola-run-2", '
        'imageName: "repo/img@sha256:00", cloudType: SECURE, '
        'instanceId: "cpu3c-4-8", dataCenterId: null, '
        "dockerArgs: \"--run 'a b'\", containerDiskInGb: 20, "
        f'env: [{{ key: "MOOLA_RUN", value: "r1" }}, {{ key: "KEY", value: "{SECRET}" }}] }} )'
    )
    sdk.create(GPU)
    sent = next(call.json()["query"] for call in fake.calls if call.operation == "create")
    assert sent == sdk.body(GPU)["query"]
    assert 'gpuTypeId: "NVIDIA RTX A5000", supportPublicIp: false, gpuCount: 1' in sent


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"registry": "cred_1"}, "credentials for a private image"),
        ({"data_centers": ("EU-RO-1", "US-KS-2")}, "more than one data centre"),
        ({"min_cuda": "12.4"}, "lowest CUDA version"),
        ({"env": {"SPEC": '{"a": 1}'}}, "'SPEC' has one"),
        ({"env": {"KEY": "a\\b"}}, "'KEY' has one"),
        ({"env": {"KEY": "a\nb"}}, "'KEY' has one"),
        ({"args": ("it's",)}, "arguments"),
        ({"candidate": Candidate("cpu", "cpu9x", 2)}, "memory of a CPU machine"),
    ],
)
def test_what_the_package_cannot_send_is_refused_before_anything_is_sent(
    fake: FakeRunpod, sdk: PodApi, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(LaunchError, match=words) as caught:
        sdk.create(replace(GPU, **change))
    assert '{"a": 1}' not in str(caught.value)
    assert not fake.calls


def test_what_the_package_lacks_is_refused_with_the_way_out(sdk: PodApi) -> None:
    for lacking in (
        lambda: sdk.catalog("gpu"),
        lambda: sdk.billing(["p1"]),
        lambda: sdk.offers([CPU.candidate]),
    ):
        with pytest.raises(LaunchError, match="the REST backend does"):
            lacking()
    with pytest.raises(NotImplementedError, match="REST"):
        sdk.logs("p1")


def test_the_package_has_prices_of_gpus_but_no_levels_of_stock(
    fake: FakeRunpod, sdk: PodApi
) -> None:
    fake.stock.set("NVIDIA A40", "NONE")
    wanted = [
        Candidate("gpu", L4, 2),
        Candidate("gpu", L4, 1, "COMMUNITY"),
        Candidate("gpu", "NVIDIA A40", 1),
    ]
    offers = sdk.offers([*wanted, Candidate("gpu", "NVIDIA unheard of", 1)])
    assert [(offer.price_per_hour, offer.stock) for offer in offers] == [
        (0.78, "unknown"),
        (None, "none"),
        (0.40, "none"),
        (None, "none"),
    ]


def graphql_pod(**change: Any) -> dict[str, Any]:
    return {
        "id": "p1",
        "name": "moola-run-1",
        "desiredStatus": "RUNNING",
        "runtime": None,
        "new": 1,
        **change,
    }


def test_the_packages_words_for_a_status_are_known(
    sdk: PodApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    import runpod

    for word, runtime, status in (
        ("RUNNING", None, PodStatus.STARTING),
        ("RUNNING", {}, PodStatus.RUNNING),
        ("DEAD", None, PodStatus.FAILED),
        ("EXITED", {}, PodStatus.STOPPED),
    ):
        one = graphql_pod(desiredStatus=word, runtime=runtime, uptimeSeconds=9)
        monkeypatch.setattr(runpod, "get_pod", lambda *_, one=one, **__: one)
        pod = sdk.get("p1")
        assert pod
        assert (pod.status, pod.uptime_s) == (status, 9 if status is PodStatus.RUNNING else None)
    monkeypatch.setattr(runpod, "get_pod", lambda *_, **__: graphql_pod(desiredStatus="MIGRATING"))
    with pytest.raises(LaunchError, match="p1 has the status 'MIGRATING'"):
        sdk.get("p1")
    monkeypatch.setattr(
        runpod, "get_pods", lambda *_, **__: [graphql_pod(desiredStatus="MIGRATING")]
    )
    assert [pod.status for pod in sdk.list()] == [PodStatus.UNKNOWN]


def test_a_pod_that_the_package_cannot_show_is_ended_before_the_error(
    fake: FakeRunpod, sdk: PodApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    import runpod

    monkeypatch.setattr(
        runpod, "get_pod", lambda pod_id, **_: graphql_pod(id=pod_id, desiredStatus="MIGRATING")
    )
    with pytest.raises(LaunchError, match="MIGRATING"):
        sdk.create(GPU)
    assert len(fake.pods) == 1
    assert not fake.alive()


def test_nothing_of_ours_shadows_the_package() -> None:
    """Also not for `python deploy/launch.py`, which puts deploy/ first on the path."""
    pytest.importorskip("runpod")
    script = (  # run there, that folder is the first on the path
        "from moola.providers.runpod.graphql import import_runpod\nprint(import_runpod().__file__)"
    )
    command = [sys.executable, "-c", script]
    imported = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=ROOT / "deploy"
    )
    assert "site-packages" in imported.stdout


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(LaunchError, match="'ssh'; there are rest and sdk"):
        open_pods("ssh")


# a pod ends itself


@pytest.fixture
def inside(fake: FakeRunpod, rest: RestPods) -> dict[str, str]:
    """The environment of a running pod, as far as it matters here."""
    pod = fake.pods[rest.create(GPU).id]
    return {"RUNPOD_POD_ID": pod.id, "RUNPOD_API_KEY": pod.api_key, "RUNPOD_API_BASE_URL": fake.url}


def test_a_pod_ends_itself_with_the_restricted_key(
    fake: FakeRunpod, inside: dict[str, str]
) -> None:
    fake.pod_key_terminates = False
    assert terminate_self({**inside, "RUNPOD_TERMINATE_API_KEY": fake.restricted_key})
    assert not fake.alive()
    assert terminate_self(
        {**inside, "RUNPOD_TERMINATE_API_KEY": fake.restricted_key}
    )  # gone is as good


@pytest.mark.parametrize("restricted", [None, "rpa_wrong", "not a key"])
def test_a_pod_ends_itself_with_its_own_key_where_the_restricted_one_fails(
    fake: FakeRunpod, inside: dict[str, str], restricted: str | None
) -> None:
    assert terminate_self(inside | ({"RUNPOD_TERMINATE_API_KEY": restricted} if restricted else {}))
    assert not fake.alive()
    assert [call.path for call in fake.calls if call.operation == "delete"][-1] == "/graphql"


def test_a_pod_that_may_not_end_itself_knows_it(
    fake: FakeRunpod, inside: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    fake.pod_key_terminates = False
    keys = {**inside, "RUNPOD_TERMINATE_API_KEY": "rpa_wrong"}
    assert not terminate_self(keys)
    assert len(fake.alive()) == 1
    assert "Unauthorized" in caplog.text
    assert not any(key in caplog.text for key in (inside["RUNPOD_API_KEY"], "rpa_wrong"))


@pytest.mark.parametrize(
    "environment",
    [{}, {"RUNPOD_POD_ID": 'x"}) { id }'}, {"RUNPOD_POD_ID": "x", "RUNPOD_API_BASE_URL": "no url"}],
)
def test_ending_itself_never_raises(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    assert not terminate_self(
        {"RUNPOD_API_KEY": "k", "RUNPOD_TERMINATE_API_KEY": "k", **environment}
    )


@pytest.mark.parametrize(
    ("answer", "ended"),
    [
        ({"data": {"podTerminate": None}}, True),
        (
            {"errors": [{"message": "pod not found to terminate"}], "data": {"podTerminate": None}},
            True,
        ),
        ({"errors": [{"message": "Unauthorized"}], "data": {"podTerminate": None}}, False),
        ({"data": {}}, False),
        ({"data": None}, False),
        ({}, False),
    ],
    ids=json.dumps,
)
def test_only_a_graphql_answer_that_says_so_is_an_end(
    answer: dict[str, Any], ended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        httpx,
        "post",
        lambda url, **_: httpx.Response(200, json=answer, request=httpx.Request("POST", url)),
    )
    assert terminate_self({"RUNPOD_POD_ID": "x", "RUNPOD_API_KEY": "k"}) is ended

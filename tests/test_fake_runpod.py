"""The fake of RunPod behaves as the real one was seen to; each failure switch does what it says."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fake_runpod import FakeRunpod, Pod, pods, schema
from tests.fake_runpod.guard import members
from tests.shared import shared

ROOT = Path(__file__).resolve().parents[1]
A5000, RTX4090 = "NVIDIA RTX A5000", "NVIDIA GeForce RTX 4090"
GPU_BODY = {
    "name": "job",
    "image": "img",
    "gpu": {"id": A5000, "count": 1},
    "disk": 20,
    "env": {"MOOLA_RUN": "r1"},
}
CPU_BODY = {"name": "job", "image": "img", "cpu": {"id": "cpu3c", "vcpuCount": 2}, "disk": 20}
NO_INSTANCES = "There are no longer any instances available"
needs_schema = pytest.mark.skipif(
    schema.OPENAPI is None, reason="the published OpenAPI file is not there"
)


@pytest.fixture
def fake() -> Iterator[FakeRunpod]:
    """An account without pods; a pod sleeps."""
    with FakeRunpod(lambda _: ["sleep", "60"], per_minute=10_000, restart_s=0.05) as running:
        yield running


@pytest.fixture
def api(fake: FakeRunpod) -> Iterator[httpx.Client]:
    with client(fake, fake.api_key) as one:
        yield one


def client(fake: FakeRunpod, key: str, timeout: float = 10.0) -> httpx.Client:
    plain = httpx.HTTPTransport(
        verify=False
    )  # or each client reads all certificates of the machine first
    return httpx.Client(
        base_url=fake.url,
        headers={"Authorization": f"Bearer {key}"},
        timeout=timeout,
        transport=plain,
    )


def create(
    fake: FakeRunpod, api: httpx.Client, *, until: str | None = "RUNNING", **change: Any
) -> Pod:
    answer = api.post("/v2/pods", json={**GPU_BODY, **change})
    assert answer.status_code == 201, answer.text
    pod = fake.pods[answer.json()["id"]]
    if until:
        fake.wait_until(lambda: pod.status == until)
    return pod


def shell(script: str) -> Callable[[Pod], list[str]]:
    return lambda _: ["sh", "-c", script]


def graphql(api: httpx.Client, query: str) -> httpx.Response:
    return api.post("/graphql", json={"query": query})


# a pod and its process


def test_a_pod_is_provisioned_started_and_runs(fake: FakeRunpod, api: httpx.Client) -> None:
    fake.provision_s = fake.pull_s = 0.15
    pod = create(fake, api, until=None)
    seen: list[dict[str, Any]] = []
    while not seen or seen[-1]["status"] != "RUNNING":
        shown = api.get(f"/v2/pods/{pod.id}").json()
        if not seen or shown["status"] != seen[-1]["status"]:
            seen.append(shown)
    assert [shown["status"] for shown in seen] == ["PROVISIONING", "STARTING", "RUNNING"]
    assert [shown["actions"] for shown in seen] == [["stop", "terminate"]] * 2 + [
        ["stop", "restart", "terminate"]
    ]
    assert [shown["runtime"] is None for shown in seen] == [True, True, False]
    assert {shown["cost"] for shown in seen} == {0.27}
    assert pod.log.texts("system") == ["create container img", "start container img"]


def test_the_process_sees_the_request_and_runpod_and_nothing_of_ours(
    fake: FakeRunpod, api: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OF_THE_TEST", "1")
    fake.secrets["bucket"] = "s3cr3t"
    fake.command = shell("env; sleep 60")
    pod = create(
        fake,
        api,
        env={"A": "b", "KEY": "<{{ RUNPOD_SECRET_bucket }}>", "NOT": "{{ RUNPOD_SECRET_other }}"},
    )
    fake.wait_until(lambda: len(pod.log.texts()) >= 14)
    env = dict(line.split("=", 1) for line in pod.log.texts())
    assert env["A"] == "b"
    assert env["KEY"] == "<s3cr3t>"
    assert env["NOT"] == "{{ RUNPOD_SECRET_other }}"
    assert (env["RUNPOD_POD_ID"], env["RUNPOD_GPU_COUNT"]) == (pod.id, "1")
    assert (env["RUNPOD_API_KEY"], env["RUNPOD_API_BASE_URL"]) == (pod.api_key, fake.url)
    assert Path(env["MOOLA_WORK"]).name == "work"
    assert "OF_THE_TEST" not in env
    shown = api.get("/v2/pods").text
    assert "{{ RUNPOD_SECRET_bucket }}" in shown
    assert not [call for call in fake.calls if "s3cr3t" in call.body + call.answer]
    assert not [call for call in fake.calls if fake.api_key in repr(call)]


def test_a_container_that_exits_is_started_again_in_place(
    fake: FakeRunpod, api: httpx.Client
) -> None:
    fake.command = shell("echo x >> home/boots; wc -l < home/boots; sleep 0.1; exit 0")
    pod = create(fake, api)
    fake.wait_until(lambda: pod.log.texts()[:3] == ["1", "2", "3"])
    assert pod.boots >= 3
    shown = [api.get(f"/v2/pods/{pod.id}").json()]
    fake.clock.speed = 1000.0
    while len(shown) < 2 or shown[-1]["runtime"]["uptime"] >= shown[-2]["runtime"]["uptime"]:
        shown.append(api.get(f"/v2/pods/{pod.id}").json())
    assert {each["status"] for each in shown} == {"RUNNING"}


def test_what_a_container_leaves_behind_dies_with_its_first_process(
    fake: FakeRunpod, api: httpx.Client
) -> None:
    fake.command = shell(
        "mkfifo wait; setsid env -i sleep 60 & echo $!; setsid sleep 60 & echo $!; read go < wait"
    )
    fake.restart_s = 60.0
    pod = create(fake, api)
    fake.wait_until(lambda: len(pod.log.texts()) == 2)
    left = [int(line) for line in pod.log.texts()]
    assert all(runs(pid) for pid in left)
    assert pod.container
    assert pod.container.pid
    os.kill(pod.container.pid, signal.SIGKILL)
    fake.wait_until(lambda: not any(runs(pid) for pid in left))


def runs(pid: int) -> bool:
    """Is there such a process, other than a zombie?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_terminate_is_sigterm_to_the_first_process_and_the_pod_vanishes(
    fake: FakeRunpod, api: httpx.Client
) -> None:
    fake.command = shell("trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.02; done")
    pod = create(fake, api)
    fake.wait_until(lambda: "up" in pod.log.texts())
    assert api.delete(f"/v2/pods/{pod.id}").status_code == 204
    gone = api.get(f"/v2/pods/{pod.id}")
    assert (gone.status_code, gone.json()["detail"]) == (404, "pod not found")
    assert api.get("/v2/pods").json() == {"pods": []}
    assert api.delete(f"/v2/pods/{pod.id}").status_code == 404
    assert pod.container
    assert pod.container.join(5)
    assert pod.log.texts()[-1] == "bye"
    assert pod.boots == 1


def test_a_process_that_ignores_sigterm_is_killed_after_the_grace(
    fake: FakeRunpod, api: httpx.Client
) -> None:
    fake.command = shell("trap '' TERM; echo up; while :; do sleep 0.02; done")
    pod = create(fake, api)
    fake.wait_until(lambda: "up" in pod.log.texts())
    fake.clock.speed = 10.0
    before = fake.clock.now()
    api.delete(f"/v2/pods/{pod.id}")
    assert pod.container
    assert pod.container.join(20)
    assert fake.clock.now() - before >= 5
    assert not members(pod.id)


def test_a_stopped_pod_costs_nothing_and_starts_on_an_empty_disk(
    fake: FakeRunpod, api: httpx.Client
) -> None:
    fake.command = shell("echo x >> home/boots; wc -l < home/boots; exec sleep 60")
    pod = create(fake, api)
    fake.wait_until(lambda: pod.log.texts() == ["1"])
    wrong = api.post(f"/v2/pods/{pod.id}/action", json={"action": "start"})
    assert (wrong.status_code, wrong.json()["title"]) == (409, "Conflict")
    stopped = api.post(f"/v2/pods/{pod.id}/action", json={"action": "stop"}).json()
    assert (stopped["status"], stopped["cost"]) == ("EXITED", 0.0)
    assert isinstance(stopped["runtime"]["uptime"], int)  # it lingers
    assert stopped["actions"] == ["start", "terminate"]
    assert (
        api.post(f"/v2/pods/{pod.id}/action", json={"action": "start"}).json()["status"]
        == "PROVISIONING"
    )
    fake.wait_until(lambda: pod.log.texts() == ["1", "1"])
    api.post(f"/v2/pods/{pod.id}/action", json={"action": "restart"})
    fake.wait_until(lambda: pod.log.texts() == ["1", "1", "2"])
    assert api.post(f"/v2/pods/{pod.id}/action", json={"action": "terminate"}).status_code == 204


def test_cleanup_is_called_whenever_the_command_has_ended(
    fake: FakeRunpod, api: httpx.Client
) -> None:
    """As for `docker run`, which passes SIGTERM on, and leaves its container after SIGKILL."""
    cleaned: list[str] = []
    fake.cleanup = lambda pod: cleaned.append(pod.id)
    fake.command = shell("trap 'kill $!; echo passed on; exit 143' TERM; sleep 60 & echo up; wait")
    pod = create(fake, api)
    fake.wait_until(lambda: pod.log.texts() == ["up"])
    fake.terminate(pod)
    assert pod.container
    assert pod.container.join(20)  # its last words may come after the cleanup
    assert cleaned == [pod.id]
    assert pod.log.texts() == ["up", "passed on"]


def test_no_process_survives_the_fake() -> None:
    with (
        FakeRunpod(shell("setsid sleep 60 & exec sleep 60")) as fake,
        client(fake, fake.api_key) as api,
    ):
        pod = create(fake, api)
        fake.wait_until(lambda: len(members(pod.id)) == 2)
    assert not members(pod.id)


def test_no_process_survives_a_fake_that_is_killed() -> None:
    command = [
        sys.executable,
        "-m",
        "tests.fake_runpod",
        "--provision",
        "0",
        "--pull",
        "0",
        "--command",
    ]
    started = subprocess.Popen(
        [*command, "sh -c 'setsid sleep 60 & sleep 60'"], cwd=ROOT, stdout=subprocess.PIPE
    )
    with started:
        assert started.stdout
        words = dict(started.stdout.readline().decode().split()[1].split("=", 1) for _ in range(3))
        api = httpx.Client(
            base_url=words["RUNPOD_API_BASE_URL"],
            headers={"Authorization": f"Bearer {words['RUNPOD_API_KEY']}"},
        )
        with api:
            pod_id = api.post("/v2/pods", json=GPU_BODY).json()["id"]
        within(lambda: len(members(pod_id)) >= 2)
        started.kill()
    within(lambda: not members(pod_id))


def within(condition: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


# who may ask, and how often


def test_a_key_is_needed_and_the_edge_turns_the_default_agent_of_python_away(
    fake: FakeRunpod,
) -> None:
    assert httpx.get(f"{fake.url}/v2/pods").json()["detail"] == "missing bearer token"
    with client(fake, "rpa_wrong") as wrong:
        assert wrong.get("/v2/pods").status_code == 401
        assert graphql(wrong, "{ gpuTypes { id } }").status_code == 401
    with client(fake, fake.api_key) as api:
        turned_away = api.get("/v2/pods", headers={"User-Agent": "Python-urllib/3.11"})
    assert (turned_away.status_code, turned_away.text) == (403, "error code: 1010")
    assert [call.key for call in fake.calls] == ["none", "unknown", "unknown", "account"]


def test_the_restricted_key_opens_pods_only(fake: FakeRunpod) -> None:
    with client(fake, fake.restricted_key) as api:
        pod = create(fake, api)
        assert api.get("/v2/catalog/gpus").status_code == 403
        assert api.get("/v2/billing/pods").json()["detail"] == "access denied"
        assert api.delete(f"/v2/pods/{pod.id}").status_code == 204


@pytest.mark.parametrize("may", [True, False])
def test_a_pods_own_key_opens_only_itself_and_only_graphql(
    fake: FakeRunpod, api: httpx.Client, may: bool
) -> None:
    fake.pod_key_terminates = may
    pod, other = create(fake, api), create(fake, api)
    with client(fake, pod.api_key) as own:
        assert own.delete(f"/v2/pods/{pod.id}").status_code == 403
        assert graphql(own, "{ myself { id } }").json()["errors"][0]["message"] == "Unauthorized"
        shown = graphql(own, f'{{ pod(input: {{podId: "{pod.id}"}}) {{ id }} }}')
        assert shown.json() == {"data": {"pod": {"id": pod.id}}}
        denied = graphql(own, f'mutation {{ podTerminate(input: {{podId: "{other.id}"}}) }}').json()
        assert denied["errors"][0]["message"] == "Unauthorized"
        query = "mutation End($id: String!) { podTerminate(input: {podId: $id}) }"
        answer = own.post("/graphql", json={"query": query, "variables": {"id": pod.id}}).json()
    assert answer == {"data": {"podTerminate": None}} if may else answer["errors"]
    assert pod.gone is may
    assert not other.gone


def test_a_key_has_a_quota_that_comes_back() -> None:
    with FakeRunpod(per_minute=2) as fake, client(fake, fake.api_key) as api:
        assert api.get("/v2/pods").headers["RateLimit"].startswith('"minute";r=1;t=')
        assert (
            api.get("/v2/pods").headers["RateLimit-Policy"].startswith('"minute";q=2;w=60, "hour"')
        )
        refused = api.get("/v2/pods")
        assert refused.status_code == 429
        assert 0 < int(refused.headers["Retry-After"]) <= 60
        with client(fake, fake.restricted_key) as other:
            assert other.get("/v2/pods").status_code == 200
        fake.clock.speed = 1000.0
        fake.wait_until(lambda: fake.clock.now() > 60)
        fake.clock.speed = 1.0
        assert api.get("/v2/pods").status_code == 200


# what a create is refused for


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"gpu": {"id": A5000}}, 400, NO_INSTANCES),
        ({"gpu": {"id": "NVIDIA unheard of", "count": 1}}, 400, NO_INSTANCES),
        ({"gpu": {"id": A5000, "count": 9}}, 400, NO_INSTANCES),
        ({"gpu": {"id": A5000, "count": 1, "minCudaVersion": "13.1"}}, 400, NO_INSTANCES),
        ({"gpu": {"id": "NVIDIA L4", "count": 1}, "cloud": "COMMUNITY"}, 400, NO_INSTANCES),
        ({"disk": 19}, 400, NO_INSTANCES),
        ({"dataCenterIds": ["XX-1"]}, 400, NO_INSTANCES),
        ({"cpu": CPU_BODY["cpu"]}, 400, "exactly one of gpu or cpu"),
        ({"gpu": None, "cpu": {"id": "cpu3c", "vcpuCount": 3}}, 400, "power of two"),
        ({"env": {f"V{n}": "" for n in range(51)}}, 400, "at most 50"),
        ({"typo": 1}, 422, "$: additional properties 'typo' not allowed"),
        ({"image": None}, 422, "'image'"),
    ],
)
def test_a_create_that_cannot_be_placed_or_breaks_a_rule(
    fake: FakeRunpod, api: httpx.Client, change: dict[str, Any], status: int, words: str
) -> None:
    body = {key: value for key, value in {**GPU_BODY, **change}.items() if value is not None}
    answer = api.post("/v2/pods", json=body)
    assert answer.status_code == status
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert words in answer.json()["detail"] + str(answer.json().get("errors"))
    assert not fake.pods


def test_names_are_not_unique_and_the_most_pods_alive_at_once_are_counted(
    fake: FakeRunpod, api: httpx.Client
) -> None:
    first, second = create(fake, api), create(fake, api)
    fake.terminate(first)
    third = create(fake, api, env={"MOOLA_RUN": "r2"})
    assert len({pod.name for pod in (first, second, third)}) == 1
    assert fake.alive() == [second, third]
    assert fake.most_alive == {"r1": 2, "r2": 1}


def test_stock_and_price_may_change_between_catalog_and_create(
    fake: FakeRunpod, api: httpx.Client
) -> None:
    def offered() -> dict[str, Any]:
        answer = api.get(
            "/v2/catalog/gpus",
            params={"include": "AVAILABILITY", "product": "POD", "cloud": "SECURE"},
        )
        return next(gpu for gpu in answer.json()["gpus"] if gpu["id"] == A5000)

    assert offered()["availability"] == "HIGH"
    fake.stock.set(A5000, "NONE", "EU-RO-1")
    fake.stock.set(A5000, "LOW", "US-KS-2", "SECURE")
    assert [(dc["id"], dc["availability"]) for dc in offered()["dataCenters"]] == [
        ("EUR-IS-1", "HIGH"),
        ("US-KS-2", "LOW"),
    ]
    fake.stock.machines[A5000].price["SECURE"] = 0.5
    pod = create(fake, api, dataCenterIds=["US-KS-2"])
    assert (pod.data_center, pod.price_per_hour, offered()["price"]["secure"]) == (
        "US-KS-2",
        0.5,
        0.5,
    )
    assert api.post("/v2/pods", json={**GPU_BODY, "dataCenterIds": ["EU-RO-1"]}).status_code == 400
    fake.stock.set(A5000, "NONE")
    assert offered()["availability"] == "NONE"
    assert "dataCenters" not in offered()
    assert NO_INSTANCES in api.post("/v2/pods", json=GPU_BODY).json()["detail"]


def test_the_catalog_names_cpus_and_data_centres_and_wants_its_product(api: httpx.Client) -> None:
    assert "product" in api.get("/v2/catalog/gpus?include=AVAILABILITY").json()["detail"]
    assert api.get("/v2/catalog/cpus?vcpuCount=4").status_code == 400
    cpus = api.get("/v2/catalog/cpus?include=AVAILABILITY&product=POD&vcpuCount=4").json()["cpus"]
    assert {cpu["availability"] for cpu in cpus} == {"HIGH"}
    there = api.get("/v2/catalog/datacenters?include=GPU_AVAILABILITY&regions=EUROPE").json()[
        "dataCenters"
    ]
    assert [dc["id"] for dc in there] == ["EU-RO-1", "EUR-IS-1"]
    assert {gpu["availability"] for gpu in there[0]["gpuAvailability"]} == {"HIGH"}


def test_v1_is_gone_and_unknown_paths_and_methods_are_refused(api: httpx.Client) -> None:
    assert api.get("/v1/pods").status_code == 410
    assert api.get("/v2/nothing").status_code == 404
    assert api.put("/v2/pods", json={}).status_code == 405


# the failure switches


@pytest.mark.parametrize("status", [402, 403, 409, 422, 429, 500, 503])
def test_a_status_switch_hits_the_next_create_and_makes_no_pod(
    fake: FakeRunpod, api: httpx.Client, status: int
) -> None:
    fake.fail(status, retry_after=7)
    answer = api.post("/v2/pods", json=GPU_BODY)
    assert answer.status_code == status
    assert ("errors" in answer.text) == (status == 422)
    assert answer.headers.get("Retry-After") == ("7" if status == 429 else None)
    assert not fake.pods
    assert api.post("/v2/pods", json=GPU_BODY).status_code == 201


def test_a_switch_can_be_for_one_machine_and_until_it_is_cleared(
    fake: FakeRunpod, api: httpx.Client
) -> None:
    other = {**GPU_BODY, "gpu": {"id": RTX4090, "count": 1}}
    switch = fake.fail("no_capacity", times=None, machine=A5000)
    for _ in range(2):
        assert NO_INSTANCES in api.post("/v2/pods", json=GPU_BODY).json()["detail"]
        assert api.post("/v2/pods", json=other).status_code == 201
    fake.clear(switch)
    assert api.post("/v2/pods", json=GPU_BODY).status_code == 201


def test_a_cut_answer_a_withheld_one_and_a_late_error_leave_a_pod(
    fake: FakeRunpod, api: httpx.Client
) -> None:
    fake.fail("cut")
    with pytest.raises(httpx.RemoteProtocolError):
        api.post("/v2/pods", json={**GPU_BODY, "name": "cut"})
    fake.fail("withheld")
    with client(fake, fake.api_key, timeout=0.3) as impatient, pytest.raises(httpx.ReadTimeout):
        impatient.post("/v2/pods", json={**GPU_BODY, "name": "withheld"})
    fake.fail(502, done=True)
    assert api.post("/v2/pods", json={**GPU_BODY, "name": "late"}).status_code == 502
    assert [pod["name"] for pod in api.get("/v2/pods").json()["pods"]] == [
        "cut",
        "withheld",
        "late",
    ]


def test_a_slow_answer_comes_after_its_time_and_on_create_sees_the_pod_before(
    fake: FakeRunpod, api: httpx.Client
) -> None:
    seen: list[bool] = []
    fake.on_create = lambda pod: seen.append(pod.id in fake.pods and fake.calls[-1].status is None)
    fake.fail("slow", seconds=0.2)
    before = time.monotonic()
    assert api.post("/v2/pods", json=GPU_BODY).status_code == 201
    assert time.monotonic() - before >= 0.2
    assert seen == [True]


def test_a_pull_that_hangs_repeats_itself_and_starts_nothing(
    fake: FakeRunpod, api: httpx.Client
) -> None:
    fake.still_fetching_s = 0.02
    fake.fail("pull_hangs")
    pod = create(fake, api, until="STARTING")
    fake.wait_until(lambda: pod.log.texts("system").count("still fetching image img") > 3)
    assert (pod.status, pod.boots) == ("STARTING", 0)
    assert fake.billed(pod) > 0
    assert create(fake, api).boots == 1


def test_a_crash_loop_is_killed_after_each_start_and_stays_running(
    fake: FakeRunpod, api: httpx.Client
) -> None:
    fake.fail("crash_loop")
    pod = create(fake, api)
    fake.wait_until(lambda: pod.boots > 3)
    assert pod.status == "RUNNING"


def test_a_lost_host_takes_pod_and_process_without_a_word(
    fake: FakeRunpod, api: httpx.Client
) -> None:
    fake.command = shell("trap 'echo bye' TERM EXIT; echo up; while :; do sleep 0.02; done")
    pod = create(fake, api)
    fake.wait_until(lambda: "up" in pod.log.texts())
    fake.lose_host(pod)
    assert api.get(f"/v2/pods/{pod.id}").status_code == 404
    fake.wait_until(lambda: not members(pod.id))
    assert pod.log.texts() == ["up"]


def test_a_pod_stopped_by_the_provider_is_exited_and_still_listed(
    fake: FakeRunpod, api: httpx.Client
) -> None:
    pod = create(fake, api)
    fake.stop_by_provider(pod)
    told = graphql(
        api, f'{{ pod(input: {{podId: "{pod.id}"}}) {{ desiredStatus lastStatusChange }} }}'
    ).json()
    assert told["data"]["pod"]["desiredStatus"] == "EXITED"
    assert told["data"]["pod"]["lastStatusChange"].startswith("Exited by Runpod: ")
    assert [(each["id"], each["status"]) for each in api.get("/v2/pods").json()["pods"]] == [
        (pod.id, "EXITED")
    ]
    assert fake.alive() == []
    fake.wait_until(lambda: not members(pod.id))


def test_a_frozen_pod_stands_still_and_is_running(fake: FakeRunpod, api: httpx.Client) -> None:
    fake.command = shell("while :; do echo tick; sleep 0.01; done")
    pod = create(fake, api)
    fake.wait_until(lambda: len(pod.log.texts()) > 3)
    fake.freeze(pod)

    def still() -> bool:
        before = len(pod.log.texts())
        time.sleep(0.2)
        return len(pod.log.texts()) == before

    fake.wait_until(still)  # what was on its way has arrived
    before = len(pod.log.texts())
    assert pod.status == "RUNNING"
    fake.freeze(pod, False)
    fake.wait_until(lambda: len(pod.log.texts()) > before)
    fake.freeze(pod)
    fake.clock.speed = 50.0
    fake.terminate(pod)
    fake.wait_until(lambda: not members(pod.id))


def test_in_a_partition_every_call_fails_and_the_pod_lives(
    fake: FakeRunpod, api: httpx.Client
) -> None:
    pod = create(fake, api)
    fake.partitioned = True
    assert {api.get("/v2/pods").status_code, graphql(api, "{ myself { id } }").status_code} == {503}
    fake.partitioned = False
    assert [each["id"] for each in api.get("/v2/pods").json()["pods"]] == [pod.id]
    assert pod.boots == 1


# logs


def follow(
    api: httpx.Client, pod: Pod, count: int, after: str | None = None, **query: Any
) -> list[dict[str, Any]]:
    """Whole frames of the stream, at most `count`; fewer if it was cut."""
    headers, frames = {"Last-Event-ID": after} if after else {}, []
    try:
        with api.stream("GET", f"/v2/pods/{pod.id}/logs", params=query, headers=headers) as stream:
            assert stream.headers["Content-Type"] == "text/event-stream"
            text = ""
            for part in stream.iter_text():
                *whole, text = (text + part).split("\n\n")
                for frame in whole:
                    id_line, data_line = frame.split("\n")
                    frames.append(
                        {
                            "id": id_line.removeprefix("id: "),
                            **json.loads(data_line.removeprefix("data: ")),
                        }
                    )
                if len(frames) >= count:
                    return frames[:count]
    except httpx.RemoteProtocolError:
        pass
    return frames


def lines(frames: list[dict[str, Any]]) -> list[str]:
    return [frame["line"] for frame in frames]


@pytest.fixture
def talker(fake: FakeRunpod, api: httpx.Client) -> Pod:
    """A pod that has printed 1..200."""
    fake.command = shell("seq 200; exec sleep 60")
    pod = create(fake, api)
    fake.wait_until(lambda: len(pod.log.texts()) == 200)
    return pod


def test_a_log_is_resumed_behind_the_last_event(api: httpx.Client, talker: Pod) -> None:
    shown = follow(api, talker, 150, tail=5000, source="container")
    assert lines(shown) == [str(n) for n in range(1, 151)]
    assert shown[0]["id"] == shown[0]["ts"]
    ids = [frame["id"] for frame in follow(api, talker, 202, tail=5000)]
    assert len(set(ids)) == 202
    assert lines(follow(api, talker, 2, after=shown[-1]["id"])) == ["151", "152"]
    assert lines(follow(api, talker, 2, since=shown[-1]["id"])) == ["150", "151"]
    assert lines(follow(api, talker, 1, after=shown[-1]["id"], tail=0, since=shown[0]["id"])) == [
        "151"
    ]


def test_a_log_begins_with_its_tail_and_has_two_sources(api: httpx.Client, talker: Pod) -> None:
    assert lines(follow(api, talker, 100)) == [str(n) for n in range(101, 201)]
    assert lines(follow(api, talker, 2, tail=2)) == ["199", "200"]
    assert lines(follow(api, talker, 200, tail=201, source="container"))[0] == "1"
    system = follow(api, talker, 2, source="system")
    assert [(frame["source"], frame["line"]) for frame in system] == [
        ("system", "create container img"),
        ("system", "start container img"),
    ]


@pytest.mark.parametrize(
    "query",
    [{"tail": "5001"}, {"tail": "-1"}, {"source": "all"}, {"since": "yesterday"}],
    ids=lambda q: next(iter(q)),
)
def test_a_wrong_question_for_a_log_is_a_422(
    api: httpx.Client, talker: Pod, query: dict[str, str]
) -> None:
    assert api.get(f"/v2/pods/{talker.id}/logs", params=query).status_code == 422


def test_the_head_of_a_stream_waits_for_its_first_line(fake: FakeRunpod, api: httpx.Client) -> None:
    pod = create(fake, api)
    with client(fake, fake.api_key, timeout=0.3) as impatient, pytest.raises(httpx.ReadTimeout):
        follow(impatient, pod, 1, source="container")
    pod.log.add("container", "at last")
    assert lines(follow(api, pod, 1, source="container")) == ["at last"]


def test_a_silent_stream_sends_comments_and_the_log_goes_with_the_pod(
    fake: FakeRunpod, api: httpx.Client
) -> None:
    pod = create(fake, api)
    fake.clock.speed = 500.0
    with api.stream("GET", f"/v2/pods/{pod.id}/logs") as stream:
        chunks = stream.iter_text()
        while ": keepalive\n\n" not in next(chunks):
            pass
        fake.terminate(pod)
        assert next(chunks).endswith(": keepalive\n\n")  # it does not close by itself
    assert api.get(f"/v2/pods/{pod.id}/logs").status_code == 404


def test_a_stream_that_is_dropped_in_the_middle_of_frames_loses_nothing_when_resumed(
    fake: FakeRunpod, api: httpx.Client
) -> None:
    fake.command = shell("seq 3000; exec sleep 60")
    fake.fail("drop", on="logs", times=5, lines=321)
    pod, connections = create(fake, api), 0
    got: list[dict[str, Any]] = []
    while len(got) < 3000:
        got += follow(
            api,
            pod,
            3000 - len(got),
            after=got[-1]["id"] if got else None,
            tail=5000,
            source="container",
        )
        connections += 1
    assert lines(got) == [str(n) for n in range(1, 3001)]
    assert connections == 6


# billing


def test_the_meter_runs_while_a_pod_is_alive_and_the_records_lag(
    fake: FakeRunpod, api: httpx.Client
) -> None:
    pod, other = create(fake, api), create(fake, api)
    fake.clock.speed = 36_000.0
    fake.wait_until(lambda: fake.clock.now() > 3 * 3600)
    fake.terminate(pod)
    fake.clock.speed = 1.0
    fake.billing_lag_s = 2 * fake.clock.now()
    assert api.get("/v2/billing/pods", params={"podId": pod.id}).json()["records"] == []
    fake.billing_lag_s = 3600.0
    spell, billed = pod.spells[-1], fake.billed(pod)
    assert spell.end
    hours = (spell.end - spell.start) / 3600
    assert billed == pytest.approx(hours * (0.27 + 20 * pods.DISK_PER_GB_HOUR))
    told = api.get("/v2/billing/pods", params={"podId": pod.id, "bucketSize": "hour"}).json()
    assert 0 < told["metadata"]["totals"]["totalAmount"] < billed
    fake.billing_lag_s = 0.0
    told = api.get(
        "/v2/billing/pods", params={"podId": pod.id, "bucketSize": "hour", "lastN": 24}
    ).json()
    assert told["metadata"]["totals"]["totalAmount"] == pytest.approx(billed)
    assert len(told["records"]) >= 3
    assert fake.billed(pod) == billed < fake.billed(other)


# GraphQL and the package that speaks it


@pytest.fixture
def sdk(fake: FakeRunpod, monkeypatch: pytest.MonkeyPatch) -> Any:
    runpod = pytest.importorskip("runpod")
    monkeypatch.setenv("RUNPOD_API_BASE_URL", fake.url)
    monkeypatch.setattr(runpod, "api_key", fake.api_key)
    return runpod


def test_the_runpod_package_creates_shows_and_terminates(
    fake: FakeRunpod, api: httpx.Client, sdk: Any
) -> None:
    made = sdk.create_pod(
        "job", "img", RTX4090, container_disk_in_gb=20, env={"A": "b"}, docker_args="x -y"
    )
    pod = fake.pods[made["id"]]
    fake.wait_until(lambda: pod.status == "RUNNING")
    assert (made["env"], pod.cmd) == (["A=b"], ["x", "-y"])
    shown = sdk.get_pod(pod.id)
    assert (shown["desiredStatus"], shown["costPerHr"], shown["machine"]) == (
        "RUNNING",
        0.69,
        {"gpuDisplayName": "RTX 4090"},
    )
    cpu = sdk.create_pod("job", "img", instance_id="cpu3c-2-4", container_disk_in_gb=20)
    assert [each["id"] for each in sdk.get_pods()] == [pod.id, cpu["id"]]
    assert [each["id"] for each in api.get("/v2/pods").json()["pods"]] == [pod.id, cpu["id"]]
    assert sdk.stop_pod(pod.id) == {"id": pod.id, "desiredStatus": "EXITED"}
    sdk.terminate_pod(pod.id)
    sdk.terminate_pod(cpu["id"])
    assert sdk.get_pod(pod.id) is None
    assert fake.alive() == []
    with pytest.raises(sdk.error.QueryError, match="pod not found to terminate"):
        sdk.terminate_pod(pod.id)


def test_the_runpod_package_meets_the_same_switches(
    fake: FakeRunpod, sdk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make() -> Any:
        return sdk.create_pod("job", "img", A5000, container_disk_in_gb=20)

    fake.fail("no_capacity", machine=A5000)
    with pytest.raises(sdk.error.QueryError, match=NO_INSTANCES):
        make()
    fake.fail(402)
    with pytest.raises(sdk.error.QueryError, match="balance"):
        make()
    fake.fail(502)
    with pytest.raises(
        ValueError, match="Expecting value"
    ):  # an HTML page, which the package does not expect
        make()
    assert not fake.pods
    fake.fail("cut")
    with pytest.raises(OSError, match=r"Connection broken|IncompleteRead"):
        make()
    assert len(fake.pods) == 1
    with pytest.raises(sdk.error.QueryError, match=NO_INSTANCES):
        sdk.create_pod("job", "img", A5000)  # the package's default of 10 GB
    with pytest.raises(sdk.error.QueryError, match="Syntax Error"):
        sdk.create_pod(
            "job", "img", A5000, env={"SPEC": '{"a": "b"}'}
        )  # the package escapes nothing
    monkeypatch.setattr(sdk, "api_key", "rpa_wrong")
    with pytest.raises(sdk.error.AuthenticationError):
        make()


def test_every_captured_request_of_the_package_is_understood(api: httpx.Client) -> None:
    requests = shared("reference/runpod-sdk-1.12.0-requests.json")
    refused = set()
    for request in json.loads(requests.read_text()):
        answer = graphql(api, json.loads(request["body"])["query"])
        if answer.status_code != 200:
            refused.add(answer.json()["errors"][0]["message"])
    assert refused == {
        """Syntax Error: Expected ':', found '""'""",
        'Cannot query field "y" on type "Query".',
    }


def test_a_field_that_does_not_exist_is_no_answer(api: httpx.Client) -> None:
    answer = graphql(api, "{ gpuTypes { id nothing } }")
    assert answer.status_code == 400
    assert "nothing" in answer.text


# the published schema


@needs_schema
def test_an_answer_that_breaks_the_schema_fails_the_test_that_saw_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(pods.ACTIONS, "PROVISIONING", ["fly"])
    broken = pytest.raises(AssertionError, match=r"POST /v2/pods -> 201: .*'fly' is not one of")
    with broken, FakeRunpod() as fake, client(fake, fake.api_key) as api:
        api.post("/v2/pods", json=GPU_BODY)


@needs_schema
def test_the_type_of_every_field_is_checked(api: httpx.Client) -> None:
    answer = api.post("/v2/pods", json={**GPU_BODY, "disk": "20"})
    assert answer.status_code == 422
    assert "$.disk: '20' is not of type 'integer'" in answer.json()["errors"]


def test_without_the_schema_unknown_keys_are_still_refused(
    api: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "validator", lambda _: None)
    assert api.post("/v2/pods", json=GPU_BODY).status_code == 201
    assert api.post("/v2/pods", json={**GPU_BODY, "typo": 1}).status_code == 422
    assert "'name'" in api.post("/v2/pods", json={"image": "img"}).text


def test_arguments_are_json_or_split_like_a_shell() -> None:
    assert pods.split_args("bash -lc 'a b'") == (None, ["bash", "-lc", "a b"])
    assert pods.split_args('{"entrypoint": ["sh"], "cmd": ["-c", "a b"]}') == (
        ["sh"],
        ["-c", "a b"],
    )


def test_the_command_for_people_prints_what_to_export_and_ends_on_sigterm() -> None:
    command = [
        sys.executable,
        "-m",
        "tests.fake_runpod",
        "--command",
        "sleep 60",
        "--secret",
        "a=b",
    ]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, env={**os.environ}) as process:
        assert process.stdout
        printed = [process.stdout.readline().decode() for _ in range(3)]
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 143
    names = ["RUNPOD_API_BASE_URL", "RUNPOD_API_KEY", "RUNPOD_TERMINATE_API_KEY"]
    assert [line.split("=")[0] for line in printed] == [f"export {name}" for name in names]

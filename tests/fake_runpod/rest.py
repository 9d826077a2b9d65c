"""REST v2: pods."""

import json
from typing import TYPE_CHECKING, Any

from tests.fake_runpod.gate import Answer, Call, answer_json
from tests.fake_runpod.logs import SOURCES, LogStream, parse_rfc3339
from tests.fake_runpod.pods import Pod, RefusedError, Wanted
from tests.fake_runpod.schema import violations

if TYPE_CHECKING:
    from tests.fake_runpod.fake import FakeRunpod

MOST_ENV = 50
MOST_TAIL = 5000
INVALID = "Request validation failed."


def list_pods(fake: "FakeRunpod", call: Call) -> Answer:  # noqa: ARG001
    now = fake.clock.now()
    return answer_json(200, {"pods": [pod.shown(now) for pod in fake.listed()]})


def create_pod(fake: "FakeRunpod", call: Call) -> Answer:
    body = parsed(call, "CreatePodRequest")
    check_rules(body)
    pod = fake.create(wanted(body))
    return answer_json(201, pod.shown(fake.clock.now()))


def get_pod(fake: "FakeRunpod", call: Call) -> Answer:
    return answer_json(200, the_pod(fake, call).shown(fake.clock.now()))


def delete_pod(fake: "FakeRunpod", call: Call) -> Answer:
    fake.terminate(the_pod(fake, call))
    return Answer(204)


def act_on_pod(fake: "FakeRunpod", call: Call) -> Answer:
    action = parsed(call, "PodActionRequest").get("action")
    pod = the_pod(fake, call)
    fake.act(pod, action)
    return Answer(204) if action == "terminate" else answer_json(200, pod.shown(fake.clock.now()))


def stream_logs(fake: "FakeRunpod", call: Call) -> LogStream:
    pod, query = the_pod(fake, call), call.query
    source, tail = query.get("source"), query.get("tail", "100")
    if source not in (None, *SOURCES):
        raise RefusedError(422, INVALID, [f"source: value must be one of {', '.join(SOURCES)}"])
    if not tail.isdecimal() or int(tail) > MOST_TAIL:
        raise RefusedError(422, INVALID, [f"tail: must be an integer from 0 to {MOST_TAIL}"])
    since = moment(query.get("since"), "since")
    last_event = moment(call.headers.get("last-event-id"), "Last-Event-ID")
    drop = fake.faults.of_stream()
    cursor = pod.log.cursor(source, int(tail), since, last_event)
    return LogStream(fake, pod.log, source, cursor, drop.lines if drop else None)


def the_pod(fake: "FakeRunpod", call: Call) -> Pod:
    return fake.find(call.path.split("/")[3])


def moment(text: str | None, name: str) -> int | None:
    try:
        return None if text is None else parse_rfc3339(text)
    except ValueError as error:
        raise RefusedError(422, INVALID, [f"{name}: {error}"]) from error


def parsed(call: Call, schema: str) -> Any:
    """The body. RefusedError 400 if it is no JSON, 422 if it breaks the schema."""
    try:
        body = call.json()
    except json.JSONDecodeError as error:
        raise RefusedError(400, "request could not be processed") from error
    if found := violations(schema, body):
        raise RefusedError(422, INVALID, found)
    return body


def wanted_machine(call: Call) -> str | None:
    """The GPU type or CPU flavour that a create asks for, as far as it can be read."""
    try:
        body = call.json() if call.operation == "create" else {}
        return (body.get("gpu") or body.get("cpu") or {}).get("id")
    except (ValueError, AttributeError):
        return None


def check_rules(body: dict[str, Any]) -> None:
    """The rules between fields. RefusedError 400."""
    mounts = body.get("mounts", {})
    vcpus = body.get("cpu", {}).get("vcpuCount", 2)
    broken = [
        (("gpu" in body) == ("cpu" in body), "exactly one of gpu or cpu must be set"),
        (
            "persistent" in mounts and bool(mounts.get("network")),
            "mounts: persistent and network exclude each other",
        ),
        (
            "persistent" in mounts and "cpu" in body,
            "mounts.persistent is not supported on CPU pods",
        ),
        (
            bool(mounts.get("network")) and body.get("cloud") == "COMMUNITY",
            "network volumes need the SECURE cloud",
        ),
        (vcpus & (vcpus - 1) != 0, "cpu.vcpuCount must be a power of two"),
        (len(body.get("env", {})) > MOST_ENV, f"env: at most {MOST_ENV} variables"),
    ]
    for is_broken, rule in broken:
        if is_broken:
            raise RefusedError(400, rule)


def wanted(body: dict[str, Any]) -> Wanted:
    kind = "gpu" if "gpu" in body else "cpu"
    size = body[kind]
    return Wanted(
        name=body["name"],
        image=body.get("image", ""),
        kind=kind,
        machine=size["id"],
        count=size.get("count" if kind == "gpu" else "vcpuCount"),
        clouds=(body.get("cloud", "SECURE"),),
        data_centers=tuple(body.get("dataCenterIds", ())),
        disk=body.get("disk", 50),
        args=body.get("args", ""),
        env=body.get("env", {}),
        ports=body.get("ports", []),
        registry=body.get("registry"),
        mounts=body.get("mounts", {}),
        template=body.get("templateId"),
        cuda_allowed=size.get("allowedCudaVersions", []),
        cuda_min=size.get("minCudaVersion"),
    )

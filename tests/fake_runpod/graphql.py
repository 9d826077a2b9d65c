"""The GraphQL API, as far as the `runpod` package and a pod that ends itself use it.

It is over the same account as /v2.
"""

import json
import re
from typing import TYPE_CHECKING, Any

from tests.fake_runpod.faults import Fault
from tests.fake_runpod.gate import DETAILS, Answer, Call, answer_json, edge
from tests.fake_runpod.machines import CLOUDS, Machine
from tests.fake_runpod.pods import NO_CAPACITY, Pod, RefusedError, Wanted
from tests.fake_runpod.query import BadQueryError as BadQueryError
from tests.fake_runpod.query import Field, parse

if TYPE_CHECKING:
    from tests.fake_runpod.fake import FakeRunpod

OPERATIONS = {
    "podFindAndDeployOnDemand": "create",
    "deployCpuPod": "create",
    "myself": "list",
    "pod": "get",
    "podTerminate": "delete",
    "podStop": "action",
    "podResume": "action",
    "gpuTypes": "catalog",
}


def parse_call(call: Call) -> Field:
    """The root field of a request."""
    try:
        body = call.json()
        field = parse(body["query"], body.get("variables"))
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise BadQueryError(
            "POST body missing, invalid Content-Type, or JSON object has no keys.", "BAD_REQUEST"
        ) from error
    if field.name not in OPERATIONS:
        kind = "Mutation" if body["query"].lstrip().startswith("mutation") else "Query"
        raise BadQueryError(
            f'Cannot query field "{field.name}" on type "{kind}".', "GRAPHQL_VALIDATION_FAILED"
        )
    return field


def operation(field: Field) -> tuple[str, str | None]:
    """What kind of call it is, and the machine a create asks for."""
    flavour = str(field.input.get("instanceId", "")).split("-")[0]
    return OPERATIONS[field.name], field.input.get("gpuTypeId") or flavour or None


def answer(fake: "FakeRunpod", call: Call, field: Field) -> Answer:
    """Carry it out. A refusal is HTTP 200 with `errors`."""
    try:
        value = RESOLVERS[field.name](fake, call, field)
    except RefusedError as refused:
        return refusal(field, refused.detail)
    return answer_json(200, {"data": {field.name: project(value, field)}})


def refusal(field: Field, message: str) -> Answer:
    error = {"message": message, "path": [field.name], "extensions": {"code": "RUNPOD"}}
    return answer_json(200, {"errors": [error], "data": {field.name: None}})


def fault_answer(field: Field, fault: Fault) -> Answer:
    """A status switch as GraphQL answers it: those of the transport keep their status."""
    if fault.kind == "no_capacity":
        return refusal(field, NO_CAPACITY)
    status = int(fault.kind)
    if status == 401:
        return answer_json(401, {"errors": [{"message": "Unauthorized"}]})
    if status == 429:
        answered = answer_json(429, {"errors": [{"message": DETAILS[429]}]})
        answered.headers["Retry-After"] = str(fault.retry_after)
        return answered
    return (
        edge(status)
        if status >= 500
        else refusal(field, DETAILS.get(status, "Something went wrong."))
    )


def project(value: Any, field: Field) -> Any:
    """What was selected of an object, or of each in a list."""
    if isinstance(value, list) and field.selected:
        return [project(item, field) for item in value]
    if not isinstance(value, dict) or not field.selected:
        return value
    for each in field.selected:
        if each.name not in value:
            raise BadQueryError(
                f'Cannot query field "{each.name}" of "{field.name}".', "GRAPHQL_VALIDATION_FAILED"
            )
    return {each.name: project(value[each.name], each) for each in field.selected}


def own_pod(fake: "FakeRunpod", call: Call, field: Field, missing: str) -> Pod:
    """The pod of the input, if the key may see it."""
    pod_id = str(field.input.get("podId"))
    if call.key.startswith("pod ") and call.key != f"pod {pod_id}":
        raise RefusedError(403, "Unauthorized")
    try:
        return fake.find(pod_id)
    except RefusedError as refused:
        raise RefusedError(404, missing) from refused


def no_pod_key(call: Call) -> None:
    if call.key.startswith("pod "):
        raise RefusedError(403, "Unauthorized")


def resolve_myself(fake: "FakeRunpod", call: Call, field: Field) -> dict[str, Any]:  # noqa: ARG001
    no_pod_key(call)
    spend = sum(pod.price_per_hour for pod in fake.alive())
    shown = {
        "id": "user_1",
        "pubKey": "",
        "networkVolumes": [],
        "clientBalance": 100.0,
        "currentSpendPerHr": spend,
    }
    return shown | {"pods": [shown_pod(fake, pod) for pod in fake.listed()]}


def resolve_pod(fake: "FakeRunpod", call: Call, field: Field) -> dict[str, Any] | None:
    try:
        return shown_pod(fake, own_pod(fake, call, field, "gone"))
    except RefusedError as refused:
        if refused.status == 404:
            return None
        raise


def resolve_terminate(fake: "FakeRunpod", call: Call, field: Field) -> None:
    pod = own_pod(fake, call, field, "pod not found to terminate")
    if call.key.startswith("pod ") and not fake.pod_key_terminates:
        raise RefusedError(403, "Unauthorized")
    fake.terminate(pod)


def resolve_stop(fake: "FakeRunpod", call: Call, field: Field) -> dict[str, Any]:
    no_pod_key(call)
    pod = own_pod(fake, call, field, "pod not found")
    fake.act(pod, "stop")
    return shown_pod(fake, pod)


def resolve_resume(fake: "FakeRunpod", call: Call, field: Field) -> dict[str, Any]:
    no_pod_key(call)
    pod = own_pod(fake, call, field, "pod not found")
    fake.act(pod, "start")
    return shown_pod(fake, pod)


def resolve_create(fake: "FakeRunpod", call: Call, field: Field) -> dict[str, Any]:
    no_pod_key(call)
    given = field.input
    kind, machine, count = "gpu", given.get("gpuTypeId"), given.get("gpuCount")
    if field.name == "deployCpuPod":
        match = re.fullmatch(r"(\w+)-(\d+)-(\d+)", given.get("instanceId", ""))
        if not match:
            raise RefusedError(400, NO_CAPACITY)
        kind, machine, count = "cpu", match[1], int(match[2])
    cloud = given.get("cloudType", "ALL")
    wanted = Wanted(
        name=given["name"],
        image=given["imageName"],
        kind=kind,
        machine=str(machine),
        count=count,
        clouds=CLOUDS if cloud == "ALL" else (cloud,),
        data_centers=(given["dataCenterId"],) if given.get("dataCenterId") else (),
        disk=given.get("containerDiskInGb", 10),
        args=given.get("dockerArgs", ""),
        env={pair["key"]: pair["value"] for pair in given.get("env", [])},
        ports=[port for port in given.get("ports", "").split(",") if port],
        template=given.get("templateId"),
        cuda_allowed=given.get("allowedCudaVersions", []),
    )
    return shown_pod(fake, fake.create(wanted))


def shown_pod(fake: "FakeRunpod", pod: Pod) -> dict[str, Any]:
    """Every field there is to select. `desiredStatus` is what is wanted, not what is."""
    wanted, running = pod.wanted, pod.status == "RUNNING"
    gpus, cpus = (wanted.count, 8) if wanted.kind == "gpu" else (0, wanted.count)
    machine = fake.stock.machines[wanted.machine]
    return {
        "id": pod.id,
        "name": wanted.name,
        "imageName": wanted.image,
        "env": [f"{key}={value}" for key, value in wanted.env.items()],
        "desiredStatus": "RUNNING" if pod.alive else "EXITED",
        "costPerHr": pod.price_per_hour,
        "containerDiskInGb": wanted.disk,
        "dockerArgs": wanted.args,
        "dockerId": None,
        "gpuCount": gpus,
        "vcpuCount": cpus,
        "memoryInGb": pod.memory,
        "lastStatusChange": f"{pod.last_change}: {pod.created:%a %b %d %Y %H:%M:%S} GMT+0000",
        "machineId": f"machine-{pod.id[:6]}",
        "podType": "RESERVED",
        "port": None,
        "ports": ",".join(wanted.ports),
        "uptimeSeconds": pod.uptime(fake.clock.now()),
        "volumeInGb": 0,
        "volumeMountPath": "/runpod-volume",
        "runtime": {"ports": []} if running else None,
        "machine": {"podHostId": f"{pod.id}-64411eb2", "gpuDisplayName": machine.name},
    }


def resolve_gpus(
    fake: "FakeRunpod",
    call: Call,  # noqa: ARG001
    field: Field,
) -> list[dict[str, Any]]:
    asked = field.input.get("id")
    lowest = next((f.input for f in field.selected if f.name == "lowestPrice"), {})
    count = lowest.get("gpuCount", 1)
    return [
        shown_gpu(fake, machine, count)
        for machine in fake.stock.machines.values()
        if machine.kind == "gpu" and asked in (None, machine.id)
    ]


def shown_gpu(fake: "FakeRunpod", machine: Machine, count: int) -> dict[str, Any]:
    offered = [
        machine.price[c] * count
        for c in machine.price
        if fake.stock.best(machine, c, count) != "NONE"
    ]
    secure, community = machine.price.get("SECURE"), machine.price.get("COMMUNITY")
    spans = dict.fromkeys(
        (
            "oneMonthPrice",
            "threeMonthPrice",
            "oneWeekPrice",
            "communitySpotPrice",
            "secureSpotPrice",
        )
    )
    return spans | {
        "id": machine.id,
        "displayName": machine.name,
        "manufacturer": "Nvidia",
        "memoryInGb": machine.memory,
        "maxGpuCount": machine.max_count,
        "cudaCores": 0,
        "secureCloud": secure is not None,
        "communityCloud": community is not None,
        "securePrice": secure,
        "communityPrice": community,
        "lowestPrice": {
            "minimumBidPrice": None,
            "uninterruptablePrice": min(offered, default=None),
        },
    }


RESOLVERS = {
    "myself": resolve_myself,
    "pod": resolve_pod,
    "podTerminate": resolve_terminate,
    "podStop": resolve_stop,
    "podResume": resolve_resume,
    "podFindAndDeployOnDemand": resolve_create,
    "deployCpuPod": resolve_create,
    "gpuTypes": resolve_gpus,
}

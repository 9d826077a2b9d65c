"""The ASGI app: /v2 and /graphql over the same account, /v1 retired."""

import json
import re
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.routing import Route

from tests.fake_runpod import billing, catalog, graphql, rest
from tests.fake_runpod.faults import Fault
from tests.fake_runpod.gate import (
    DETAILS,
    Answer,
    Call,
    answer_json,
    at_the_edge,
    carried_out,
    check_key,
    edge,
    hold,
    problem,
    read,
    request_id,
)
from tests.fake_runpod.pods import NO_CAPACITY, RefusedError
from tests.fake_runpod.schema import violations

if TYPE_CHECKING:
    from tests.fake_runpod.fake import FakeRunpod

Handler = Callable[["FakeRunpod", Call], Any]

# operation, method, path, handler, component of the published schema that a 2xx body must match
REST: list[tuple[str, str, str, Handler, str | None]] = [
    ("list", "GET", "/v2/pods", rest.list_pods, "ListPodsResponse"),
    ("create", "POST", "/v2/pods", rest.create_pod, "Pod"),
    ("get", "GET", "/v2/pods/{id}", rest.get_pod, "Pod"),
    ("delete", "DELETE", "/v2/pods/{id}", rest.delete_pod, None),
    ("action", "POST", "/v2/pods/{id}/action", rest.act_on_pod, "Pod"),
    ("logs", "GET", "/v2/pods/{id}/logs", rest.stream_logs, None),
    ("catalog", "GET", "/v2/catalog/gpus", catalog.gpus, "ListGpuTypesResponse"),
    ("catalog", "GET", "/v2/catalog/cpus", catalog.cpus, "ListCpuTypesResponse"),
    ("catalog", "GET", "/v2/catalog/datacenters", catalog.data_centers, "ListDataCentersResponse"),
    ("billing", "GET", "/v2/billing/pods", billing.pods, "ListPodBillingResponse"),
]


def build(fake: "FakeRunpod") -> Starlette:
    routes = [Route("/graphql", partial(graphql_call, fake), methods=["POST"])]
    routes += [
        Route(
            "/v2/{rest:path}",
            partial(rest_call, fake),
            methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
        )
    ]
    routes += [
        Route("/v1/{rest:path}", partial(retired, fake), methods=["GET", "POST", "PATCH", "DELETE"])
    ]
    return Starlette(routes=routes)


async def rest_call(fake: "FakeRunpod", request: Request) -> Any:
    """A call of REST v2, from the edge to the record of its answer."""
    call = await read(fake, request)
    answer = at_the_edge(fake, call)
    schema = None
    if answer is None:
        headers: dict[str, str] = request_id()
        try:
            check_key(call)
            quota, wait = fake.quota.take(call.key)
            headers |= quota
            if wait is not None:
                headers["Retry-After"] = str(wait)
                raise RefusedError(429, DETAILS[429])
            call.operation, handler, schema = route(call)
            check_scope(call)
            call.machine = rest.wanted_machine(call)
            answer = await with_faults(
                fake, request, call, partial(handler, fake, call), rest_fault
            )
        except RefusedError as refused:
            answer = problem(refused.status, refused.detail, refused.errors)
        answer.headers.update(headers)
    keep(fake, call, answer, schema)
    return answer


async def graphql_call(fake: "FakeRunpod", request: Request) -> Any:
    """A call of the GraphQL API: refusals come as HTTP 200 with `errors`."""
    call = await read(fake, request)
    answer = at_the_edge(fake, call)
    if answer is None and call.key in ("none", "unknown"):
        answer = answer_json(401, {"errors": [{"message": "Unauthorized"}]})
    if answer is None:
        try:
            field = graphql.parse_call(call)
            call.operation, call.machine = graphql.operation(field)
            run = partial(graphql.answer, fake, call, field)
            answer = await with_faults(
                fake, request, call, run, partial(graphql.fault_answer, field)
            )
        except graphql.BadQueryError as bad:
            answer = answer_json(
                400, {"errors": [{"message": str(bad), "extensions": {"code": bad.code}}]}
            )
    keep(fake, call, answer, None)
    return answer


async def retired(fake: "FakeRunpod", request: Request) -> Answer:
    call = await read(fake, request)
    answer = at_the_edge(fake, call) or problem(410, "REST v1 was retired on 2026-11-15; use /v2")
    keep(fake, call, answer, None)
    return answer


async def with_faults(
    fake: "FakeRunpod",
    request: Request,
    call: Call,
    run: Callable[[], Any],
    refuse: Callable[[Fault], Answer],
) -> Any:
    """The call, with what the switches do to it."""
    fault = fake.faults.of_answer(call.operation, call.machine)
    if fault is None:
        return await run_in_threadpool(run)
    if fault.kind == "slow":
        await hold(fake, request, fault.seconds)
    answer: Any = await run_in_threadpool(run) if carried_out(fault) else None
    if fault.kind == "withheld":
        await hold(fake, request, fault.seconds)
    elif fault.kind == "cut":
        answer.cut = True
    elif fault.kind != "slow":
        answer = refuse(fault)
    return answer


def rest_fault(fault: Fault) -> Answer:
    """A status switch as REST v2 answers it."""
    if fault.kind == "no_capacity":
        return problem(400, NO_CAPACITY)
    status = int(fault.kind)
    if status > 500:
        return edge(status)
    errors = ["$: additional properties 'injected' not allowed"] if status == 422 else None
    extra = {"Retry-After": str(fault.retry_after)} if status == 429 else {}
    return problem(status, DETAILS.get(status, "request could not be processed"), errors, **extra)


def route(call: Call) -> tuple[str, Handler, str | None]:
    """(operation, handler, schema of the answer) of a path; 404 and 405 as the API gives them."""
    allowed = False
    for operation, method, path, handler, schema in REST:
        if re.fullmatch(path.replace("{id}", "[^/]+"), call.path):
            if method == call.method:
                return operation, handler, schema
            allowed = True
    if allowed:
        raise RefusedError(405, "The requested method is not allowed for this path.")
    raise RefusedError(404, "resource not found")


def check_scope(call: Call) -> None:
    """A pod's key opens nothing here, the restricted one only pods."""
    if call.key.startswith("pod ") or (
        call.key == "pods" and call.operation in ("catalog", "billing")
    ):
        raise RefusedError(403, "access denied")


def keep(fake: "FakeRunpod", call: Call, answer: Any, schema: str | None) -> None:
    """Write the answer into the record, and check it against the published schema."""
    if not isinstance(answer, Answer):
        call.status = 200  # a log stream
        return
    call.status, call.answer = answer.status, answer.body.decode()
    kind = answer.headers.get("Content-Type", "")
    if answer.status == 204 or "json" not in kind or not call.path.startswith("/v2"):
        return
    component = "ErrorResponse" if answer.status >= 400 else schema
    if component:
        found = violations(component, json.loads(answer.body))
        fake.violations += [
            f"{call.method} {call.path} -> {answer.status}: {line}" for line in found
        ]

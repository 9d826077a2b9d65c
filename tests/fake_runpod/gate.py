"""What stands before both APIs: the edge, keys and their scopes, quotas, the failure switches.

Every call is recorded here.
"""

import asyncio
import json
import math
import secrets
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from tests.fake_runpod.clock import Clock
from tests.fake_runpod.faults import Fault
from tests.fake_runpod.pods import RefusedError

if TYPE_CHECKING:
    from tests.fake_runpod.fake import FakeRunpod

TITLES = {
    400: "Bad Request",
    401: "Unauthorized",
    402: "Payment Required",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    409: "Conflict",
    410: "Gone",
    422: "Unprocessable Entity",
    429: "Too Many Requests",
    500: "Internal Server Error",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}
DETAILS = {
    401: "invalid bearer token",
    402: "Your account balance is too low to rent this pod.",
    403: "access denied",
    409: "action is not valid for the pod's current status",
    422: "Request validation failed.",
    429: "rate limit exceeded for the minute window",
}


@dataclass
class Call:
    """A request and its answer.

    `key` is the name of its scope: account, pods, "pod <id>", none or unknown.
    """

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]  # without Authorization
    body: str
    key: str
    operation: str = ""
    machine: str | None = None  # of a create
    status: int | None = None
    answer: str = ""

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Answer:
    """Sent as it is; `cut` closes the connection after half of the body."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG002
        headers = {
            "content-length": str(len(self.body)),
            **{k.lower(): v for k, v in self.headers.items()},
        }
        if self.status == 204:
            del headers["content-length"]
        pairs = [(k.encode(), v.encode()) for k, v in headers.items()]
        await send({"type": "http.response.start", "status": self.status, "headers": pairs})
        body = self.body[: len(self.body) // 2] if self.cut else self.body
        await send({"type": "http.response.body", "body": body, "more_body": self.cut})


def answer_json(status: int, body: Any, kind: str = "application/json", **headers: str) -> Answer:
    return Answer(status, json.dumps(body).encode(), {"Content-Type": kind, **headers})


def problem(status: int, detail: str, errors: list[str] | None = None, **headers: str) -> Answer:
    """An error of REST v2."""
    body = {
        "title": TITLES[status],
        "status": status,
        "detail": detail,
        **({"errors": errors} if errors else {}),
    }
    return answer_json(status, body, "application/problem+json", **headers)


def edge(status: int) -> Answer:
    """An error from before the API: no JSON."""
    text = f"<html><head><title>{status} {TITLES[status]}</title></head></html>"
    return Answer(status, text.encode(), {"Content-Type": "text/html"})


class Quota:
    """Fixed windows of a minute, an hour and a day for each key."""

    def __init__(self, clock: Clock, per_minute: int) -> None:
        self.windows = {
            "minute": (per_minute, 60),
            "hour": (50 * per_minute, 3600),
            "day": (833 * per_minute, 86400),
        }
        self._clock = clock
        self._used: dict[tuple[str, str, int], int] = {}
        self._lock = threading.Lock()

    def take(self, key: str) -> tuple[dict[str, str], int | None]:
        """Headers for the answer, and the seconds to wait if there was nothing left to take."""
        now, state, wait = self._clock.now(), [], None
        with self._lock:
            for name, (quota, length) in self.windows.items():
                window = int(now // length)
                used = self._used.get((key, name, window), 0) + 1
                self._used[key, name, window] = used
                left = math.ceil((window + 1) * length - now)
                state.append(f'"{name}";r={max(quota - used, 0)};t={left}')
                if used > quota:
                    wait = max(left, wait or 0)
        policy = ", ".join(
            f'"{name}";q={quota};w={length}' for name, (quota, length) in self.windows.items()
        )
        return {"RateLimit": ", ".join(state), "RateLimit-Policy": policy}, wait


async def read(fake: "FakeRunpod", request: Request) -> Call:
    """Take the request down."""
    body = (await request.body()).decode("utf-8", "replace")
    headers = {k: v for k, v in request.headers.items() if k != "authorization"}
    key = key_name(fake, request.headers.get("authorization"))
    call = Call(request.method, request.url.path, dict(request.query_params), headers, body, key)
    fake.calls.append(call)
    return call


def key_name(fake: "FakeRunpod", authorization: str | None) -> str:
    """Which key it is."""
    if not authorization or not authorization.startswith("Bearer "):
        return "none"
    given = authorization.removeprefix("Bearer ")
    known = {fake.api_key: "account", fake.restricted_key: "pods"}
    known |= {pod.api_key: f"pod {pod.id}" for pod in list(fake.pods.values())}
    return known.get(given, "unknown")


def at_the_edge(fake: "FakeRunpod", call: Call) -> Answer | None:
    """What is turned away before the API sees it."""
    if call.headers.get("user-agent", "").startswith("Python-urllib"):
        return Answer(403, b"error code: 1010", {"Content-Type": "text/plain"})
    return edge(503) if fake.partitioned else None


def check_key(call: Call) -> None:
    """RefusedError 401 without one that is known."""
    if call.key in ("none", "unknown"):
        raise RefusedError(
            401, "missing bearer token" if call.key == "none" else "invalid bearer token"
        )


def request_id() -> dict[str, str]:
    return {"x-request-id": secrets.token_hex(8)}


async def hold(fake: "FakeRunpod", request: Request, seconds: float) -> None:
    """Wait (on the wall clock) until then, or until the client has left or the fake ends."""
    end = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < end and not fake.stopping.is_set():
        if await request.is_disconnected():
            return
        await asyncio.sleep(0.02)


def carried_out(fault: Fault | None) -> bool:
    """Does the call have its effect?"""
    return fault is None or fault.done or fault.kind in ("cut", "withheld", "slow")

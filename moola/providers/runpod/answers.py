"""What RunPod's REST API v2 answers, read into the types of `moola.providers.base`.

Unknown fields are ignored, and only what we cannot do without is required. Errors are told apart
by the vendor's own table, and by what was seen in the field.
"""

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Literal, TypeVar

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from moola.errors import AuthError, LaunchError, MoolaError, NoCapacityError, TryAgainError
from moola.providers.base import BillingRecord, Candidate, LogLine, Offer, Pod, PodStatus, Stock
from moola.providers.retry import TransientError
from moola.providers.runpod.account import API_KEY

STATUS = {
    "PROVISIONING": PodStatus.STARTING,
    "STARTING": PodStatus.STARTING,
    "RUNNING": PodStatus.RUNNING,
    "EXITED": PodStatus.STOPPED,
    "ERROR": PodStatus.FAILED,
    "TERMINATED": PodStatus.GONE,
}
STOCK: dict[str | None, Stock] = {"NONE": "none", "LOW": "low", "MEDIUM": "medium", "HIGH": "high"}
NO_CAPACITY = (  # prose is all there is: it comes with the same 400 as a wrong request
    "no longer any instances available",
    "does not have the resources",
    "no instances",
    "out of stock",
    "insufficient resources",
    "no capacity",
)
SHORTEST_SECRET = 8  # characters; shorter values are not taken for secrets
MOST_DETAIL = 200  # characters quoted of an answer that is no problem document


class MissingError(LaunchError):
    """404 or 410: there is no such pod (any more)."""


class _Answer(BaseModel):
    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, coerce_numbers_to_str=True
    )


class _MachineSize(_Answer):
    id: str | None = None


class _Runtime(_Answer):
    uptime: float | None = None


class _Pod(_Answer):
    id: str
    name: str
    status: str
    image: str | None = None
    cost: float | None = None
    data_center_id: str | None = None
    gpu: _MachineSize | None = None
    cpu: _MachineSize | None = None
    runtime: _Runtime | None = None
    created_at: datetime | None = None
    env: dict[str, str] | None = Field(None, repr=False)


class _DataCenter(_Answer):
    id: str
    availability: str | None = None


class MachineType(_Answer):
    """A GPU type or a CPU flavour of the catalog; prices are of one GPU or vCPU."""

    id: str
    name: str = ""
    memory: float = 0.0
    ram_gb_per_vcpu: float = 0.0
    vcpu: dict[str, int] = {}
    price: dict[str, float | None] = {}
    availability: str | None = None
    data_centers: list[_DataCenter] | None = None


class _BillingRecord(_Answer):
    start_time: datetime
    end_time: datetime
    pod_id: str
    total_amount: float


class _LogLine(_Answer):
    source: Literal["container", "system"] = "container"
    line: str
    ts: datetime


Model = TypeVar("Model", bound=BaseModel)


def read_answer(model: type[Model], answer: object, what: str) -> Model:
    """An answer as a model.

    Raises LaunchError that names the fields that are wrong, without their values: an env is secret.
    """
    try:
        return model.model_validate(answer)
    except ValidationError as error:
        faults = []
        for fault in error.errors(include_input=False):
            place = ".".join(map(str, fault["loc"]))
            faults.append(f"{place}: {fault['msg']}")
        raise LaunchError(
            f"RunPod's answer about {what} cannot be read: {'; '.join(faults)}"
        ) from None


def read_pod(answer: object, *, any_status: bool = False) -> Pod:
    """A pod as REST shows it.

    With `any_status` a status that STATUS lacks is UNKNOWN, otherwise it raises LaunchError.
    """
    pod = read_answer(_Pod, answer, "a pod")
    status = STATUS.get(pod.status, PodStatus.UNKNOWN)
    if status is PodStatus.UNKNOWN and not any_status:
        raise unknown_status(pod.id, pod.status, STATUS)

    size = pod.gpu or pod.cpu
    uptime_s = None
    if status is PodStatus.RUNNING and pod.runtime is not None:  # a stopped pod may show its last
        uptime_s = pod.runtime.uptime

    return Pod(
        id=pod.id,
        name=pod.name,
        status=status,
        provider_status=pod.status,
        image=pod.image or "",
        price_per_hour=pod.cost or 0.0,
        type_id=size.id if size else None,
        data_center=pod.data_center_id,
        created=pod.created_at,
        uptime_s=uptime_s,
        env=pod.env or {},
    )


def unknown_status(pod_id: str, status: str, known: Iterable[str]) -> LaunchError:
    """The error for a status that a client's table lacks."""
    return LaunchError(
        f"pod {pod_id} has the status {status!r}, which is none of {', '.join(known)}"
    )


def read_offer(candidate: Candidate, machine_type: MachineType | None) -> Offer:
    """A candidate as the catalog shows it; None: the catalog does not have the type."""
    if machine_type is None:
        return Offer(candidate, candidate.type_id, None, "none", 0.0)

    cloud = candidate.cloud.lower()
    if candidate.kind == "gpu":
        unit_price = machine_type.price.get(cloud)
        memory_gb = machine_type.memory
    else:
        unit_price = machine_type.price.get(f"{cloud}PerVcpu")
        memory_gb = machine_type.ram_gb_per_vcpu * candidate.count

    price: float | None = None
    stock: Stock = "none"
    if unit_price:  # 0.0 where it is not offered
        price = round(unit_price * candidate.count, 6)
        stock = STOCK.get(machine_type.availability, "unknown")

    data_centers = tuple(
        data_center.id
        for data_center in machine_type.data_centers or []
        if data_center.availability != "NONE"
    )
    return Offer(
        candidate=candidate,
        name=machine_type.name or machine_type.id,
        price_per_hour=price,
        stock=stock,
        memory_gb=memory_gb,
        data_centers=data_centers,
    )


def read_billing(answer: object) -> BillingRecord:
    """A billing record of one pod and one stretch of time."""
    record = read_answer(_BillingRecord, answer, "billing")
    return BillingRecord(record.pod_id, record.start_time, record.end_time, record.total_amount)


def refusal(response: httpx.Response, what: str, secrets: Iterable[str] = ()) -> MoolaError:
    """The error of a response that is no success. `secrets` are values that may not be quoted."""
    status = response.status_code
    detail = without_secrets(error_detail(response), secrets)
    message = f"RunPod: {what}: {status} {detail}"

    if status == 400 and is_no_capacity(detail):
        return NoCapacityError(message)
    if status == 401:
        return AuthError(f"{message} (is {API_KEY} right?)")
    if status == 403:
        return AuthError(f"{message} (the key lacks the scope for {what})")
    if status == 402:
        return LaunchError(f"{message} (the account's balance)")
    if status in (404, 410):
        return MissingError(message)
    if status == 429:
        return TransientError(message, had_no_effect=True, retry_after_s=retry_after_s(response))
    if status == 408 or status >= 500:
        return TransientError(message, retry_after_s=retry_after_s(response))
    if status == 409:
        return TryAgainError(message)
    return LaunchError(message)


def is_no_capacity(detail: str) -> bool:
    """Does the prose of an error say that no machine is free?"""
    lower = detail.lower()
    return any(wording in lower for wording in NO_CAPACITY)


def without_secrets(text: str, secrets: Iterable[str]) -> str:
    """The text with *** in place of each secret."""
    for secret in secrets:
        if len(secret) >= SHORTEST_SECRET:
            text = text.replace(secret, "***")
    return text


def error_detail(response: httpx.Response) -> str:
    """The prose of a problem document with its list of errors; the start of anything else."""
    try:
        problem = response.json()
        summary = problem.get("detail") or problem.get("title") or ""
        errors = problem.get("errors") or []
    except (ValueError, AttributeError):
        return " ".join(response.text.split())[:MOST_DETAIL]
    return "; ".join(str(part) for part in (summary, *errors))


def retry_after_s(response: httpx.Response) -> float | None:
    """Seconds, None without the header; its other form, a date, is not used by this API."""
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isdecimal() else None


def read_log_lines(chunks: Iterable[bytes]) -> Iterator[LogLine]:
    """Log lines of server-sent events; comments and frames without a line are left out.

    So is a last frame that was cut.
    """
    rest = b""
    for chunk in chunks:
        text = (rest + chunk).replace(b"\r\n", b"\n")
        *frames, rest = text.split(b"\n\n")
        for frame in frames:
            line = _read_frame(frame)
            if line is not None:
                yield line


def _read_frame(frame: bytes) -> LogLine | None:
    fields = dict(field.split(b":", 1) for field in frame.split(b"\n") if b":" in field)
    if b"data" not in fields:
        return None
    try:
        line = _LogLine.model_validate_json(fields[b"data"])
    except ValidationError:
        return None

    line_id = fields.get(b"id", b"").decode().strip()
    return LogLine(id=line_id, source=line.source, time=line.ts, text=line.line)

"""What RunPod's REST API v2 answers, read into our words; errors by its own table and what was seen in the field."""

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Literal, TypeVar

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from deploy.patience import NotAnsweredError
from deploy.pods import BillingRecord, Candidate, LogLine, Offer, Pod, PodStatus, Stock
from moola.errors import AuthError, LaunchError, MoolaError, NoCapacityError, TryAgainError

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


class MissingError(LaunchError):
    """404 or 410: there is no such pod (any more)."""


class _Shown(BaseModel):
    """Something that RunPod shows: unknown fields are ignored, and only what we cannot do without is required."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, coerce_numbers_to_str=True)


class _Size(_Shown):
    id: str | None = None


class _Runtime(_Shown):
    uptime: float | None = None


class _Pod(_Shown):
    id: str
    name: str
    status: str
    image: str | None = None
    cost: float | None = None
    data_center_id: str | None = None
    gpu: _Size | None = None
    cpu: _Size | None = None
    runtime: _Runtime | None = None
    created_at: datetime | None = None
    started_at: datetime | None = None
    env: dict[str, str] | None = Field(None, repr=False)


class _Place(_Shown):
    id: str
    availability: str | None = None


class MachineType(_Shown):
    """A GPU type or a CPU flavour of the catalog; prices are of one GPU or vCPU."""

    id: str
    name: str = ""
    memory: float = 0.0
    ram_gb_per_vcpu: float = 0.0
    vcpu: dict[str, int] = {}
    price: dict[str, float | None] = {}
    availability: str | None = None
    data_centers: list[_Place] | None = None


class _Record(_Shown):
    start_time: datetime
    end_time: datetime
    pod_id: str
    total_amount: float


class _Line(_Shown):
    source: Literal["container", "system"] = "container"
    line: str
    ts: datetime


Model = TypeVar("Model", bound=BaseModel)


def read(model: type[Model], shown: object, what: str) -> Model:
    """An answer as a model. LaunchError names the fields that are wrong, without their values: an env is secret."""
    try:
        return model.model_validate(shown)
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False)]
        raise LaunchError(f"RunPod's answer about {what} cannot be read: {'; '.join(wrong)}") from None


def pod_of(shown: object, *, any_status: bool = False) -> Pod:
    """A pod of ours from RunPod's. LaunchError for a status that STATUS lacks; UNKNOWN instead with `any_status`."""
    pod = read(_Pod, shown, "a pod")
    status = STATUS.get(pod.status, PodStatus.UNKNOWN)
    if status is PodStatus.UNKNOWN and not any_status:
        raise LaunchError(f"pod {pod.id} has the status {pod.status!r}, which is none of {', '.join(STATUS)}")
    size = pod.gpu or pod.cpu
    running = status is PodStatus.RUNNING and pod.runtime is not None  # a stopped pod may still show its last uptime
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
        started=pod.started_at,
        uptime_s=pod.runtime.uptime if running and pod.runtime else None,
        env=pod.env or {},
    )


def offer_of(candidate: Candidate, shown: MachineType | None) -> Offer:
    """A candidate as the catalog shows it; None: it does not know the type."""
    if shown is None:
        return Offer(candidate, candidate.type_id, None, "none", 0.0)
    gpu = candidate.kind == "gpu"
    unit = shown.price.get(candidate.cloud.lower() if gpu else f"{candidate.cloud.lower()}PerVcpu")
    places = tuple(place.id for place in shown.data_centers or [] if place.availability != "NONE")
    return Offer(
        candidate,
        shown.name or shown.id,
        round(unit * candidate.count, 6) if unit else None,  # 0.0 where it is not offered
        STOCK.get(shown.availability, "unknown") if unit else "none",
        shown.memory if gpu else shown.ram_gb_per_vcpu * candidate.count,
        places,
    )


def billing_of(shown: object) -> BillingRecord:
    record = read(_Record, shown, "billing")
    return BillingRecord(record.pod_id, record.start_time, record.end_time, record.total_amount)


def refusal(answer: httpx.Response, what: str, hide: Iterable[str] = ()) -> MoolaError:
    """The error of an answer that is no success, by the vendor's table. `hide`: values that may not be quoted."""
    status, detail = answer.status_code, hidden(detail_of(answer), hide)
    message = f"RunPod: {what}: {status} {detail}"
    if status == 400 and any(words in detail.lower() for words in NO_CAPACITY):
        return NoCapacityError(message)
    if status == 401:
        return AuthError(f"{message} (is RUNPOD_API_KEY right?)")
    if status == 403:
        return AuthError(f"{message} (the key lacks the scope for {what})")
    if status == 402:
        return LaunchError(f"{message} (the account's balance)")
    if status in (404, 410):
        return MissingError(message)
    if status == 429:
        return NotAnsweredError(message, harmless=True, retry_after_s=retry_after(answer))
    if status == 408 or status >= 500:
        return NotAnsweredError(message, retry_after_s=retry_after(answer))
    return TryAgainError(message) if status == 409 else LaunchError(message)


def hidden(text: str, secrets: Iterable[str]) -> str:
    """The text without the secrets in it; what is shorter than 8 characters is none."""
    for secret in secrets:
        text = text.replace(secret, "***") if len(secret) >= 8 else text
    return text


def detail_of(answer: httpx.Response) -> str:
    """The prose of a problem document with its list of errors; the start of anything else."""
    try:
        problem = answer.json()
        errors = problem.get("errors") or []
        return "; ".join(str(part) for part in (problem.get("detail") or problem.get("title") or "", *errors))
    except (ValueError, AttributeError):
        return " ".join(answer.text.split())[:200]


def retry_after(answer: httpx.Response) -> float | None:
    """Seconds; the header's other form, a date, is not used by this API."""
    text = answer.headers.get("Retry-After", "")
    return float(text) if text.isdecimal() else None


def lines_of(chunks: Iterable[bytes]) -> Iterator[LogLine]:
    """Log lines of server-sent events. Comments, frames that are no line and a cut last frame are left out."""
    rest = b""
    for chunk in chunks:
        *frames, rest = (rest + chunk).replace(b"\r\n", b"\n").split(b"\n\n")
        for frame in frames:
            fields = dict(text.split(b":", 1) for text in frame.split(b"\n") if b":" in text)
            if b"data" in fields:
                try:
                    line = _Line.model_validate_json(fields[b"data"])
                except ValidationError:
                    continue
                yield LogLine(fields.get(b"id", b"").decode().strip(), line.source, line.ts, line.line)

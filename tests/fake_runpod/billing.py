"""REST v2: billing records, one per pod and bucket; they lag behind the meter."""

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from tests.fake_runpod.gate import Answer, Call, answer_json
from tests.fake_runpod.pods import Pod, RefusedError, epoch, stamp

if TYPE_CHECKING:
    from tests.fake_runpod.fake import FakeRunpod

BUCKETS = {"hour": timedelta(hours=1), "day": timedelta(days=1)}


def pods(fake: "FakeRunpod", call: Call) -> Answer:
    query = call.query
    size = query.get("bucketSize", "day")
    if size not in BUCKETS:
        raise RefusedError(
            422, "Request validation failed.", [f"bucketSize: the fake knows {', '.join(BUCKETS)}"]
        )
    if "lastN" in query and ("startTime" in query or "endTime" in query):
        raise RefusedError(400, "lastN and startTime/endTime exclude each other")
    start, end = window(query, BUCKETS[size])
    asked = query.get("podId")
    records = [
        record
        for pod in list(fake.pods.values())
        if asked in (None, pod.id)
        for record in pod_records(fake, pod, start, end, BUCKETS[size])
    ]
    meta = {
        "query": {
            "startTime": stamp(start),
            "endTime": stamp(end),
            "bucketSize": size,
            "podId": asked,
        },
        "recordCount": len(records),
        "uniquePodCount": len({record["podId"] for record in records}),
        "totals": {name: sum(r[name] for r in records) for name in amounts("gpu", 0.0, 0.0)},
    }
    return answer_json(200, {"records": records, "metadata": meta})


def window(query: dict[str, str], bucket: timedelta) -> tuple[datetime, datetime]:
    """The resolved [start, end), on bucket boundaries."""
    now = datetime.now(UTC)
    if "lastN" in query:
        end = floor(now, bucket) + bucket
        return end - int(query["lastN"]) * bucket, end
    try:
        end = datetime.fromisoformat(query["endTime"]) if "endTime" in query else now
        start = (
            datetime.fromisoformat(query["startTime"])
            if "startTime" in query
            else now - timedelta(days=30)
        )
    except ValueError as error:
        raise RefusedError(422, "Request validation failed.", [f"$: {error}"]) from error
    return floor(start, bucket), floor(end - timedelta(microseconds=1), bucket) + bucket


def floor(at: datetime, bucket: timedelta) -> datetime:
    origin = datetime(1970, 1, 1, tzinfo=UTC)
    return origin + (at - origin) // bucket * bucket


def pod_records(
    fake: "FakeRunpod", pod: Pod, start: datetime, end: datetime, bucket: timedelta
) -> list[dict[str, Any]]:
    """The buckets in which the pod was billed, as far as the records have come."""
    now = fake.clock.now()
    zero = epoch(0.0, now)  # of the fake's clock
    known = now - fake.billing_lag_s
    found = []
    at = floor(max(start, epoch(pod.spells[0].start, now)), bucket) if pod.spells else end
    while at < min(end, epoch(now, now)):
        since, until = (at - zero).total_seconds(), (at + bucket - zero).total_seconds()
        compute, disk = pod.billed(since, min(until, known))
        if compute > 0:
            record = {"startTime": stamp(at), "endTime": stamp(at + bucket), "podId": pod.id}
            found.append(record | amounts(pod.wanted.kind, compute, disk))
        at += bucket
    return found


def amounts(kind: str, compute: float, disk: float) -> dict[str, float]:
    return {
        "totalAmount": compute + disk,
        "gpuAmount": compute if kind == "gpu" else 0.0,
        "cpuAmount": compute if kind == "cpu" else 0.0,
        "diskAmount": disk,
    }

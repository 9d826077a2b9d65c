"""REST v2: what there is to rent now, and for how much. Not a reservation."""

import re
from typing import TYPE_CHECKING, Any

from tests.fake_runpod.gate import Answer, Call, answer_json
from tests.fake_runpod.machines import CLOUDS, DATA_CENTERS, Machine, at_least
from tests.fake_runpod.pods import RefusedError

if TYPE_CHECKING:
    from tests.fake_runpod.fake import FakeRunpod

FILTERS = (
    "product",
    "count",
    "cloud",
    "vcpuCount",
    "countryCodes",
    "cudaVersions",
    "minCudaVersion",
)


def gpus(fake: "FakeRunpod", call: Call) -> Answer:
    stocked = with_availability(call)
    cloud, count = call.query.get("cloud", "SECURE"), number(call, "count", 1)
    cuda_min = call.query.get("minCudaVersion")
    if cuda_min is not None and not re.fullmatch(r"\d+(\.\d+)?", cuda_min):
        raise RefusedError(422, "Request validation failed.", ["minCudaVersion: invalid"])
    if cloud not in CLOUDS:
        raise RefusedError(
            422, "Request validation failed.", [f"cloud: value must be one of {', '.join(CLOUDS)}"]
        )
    shown = [
        gpu(machine) | (availability(fake, machine, cloud, count, cuda_min) if stocked else {})
        for machine in fake.stock.machines.values()
        if machine.kind == "gpu"
    ]
    return answer_json(200, {"gpus": shown})


def cpus(fake: "FakeRunpod", call: Call) -> Answer:
    stocked, count = with_availability(call), number(call, "vcpuCount", 2)
    if count & (count - 1):
        raise RefusedError(400, "vcpuCount must be a power of two")
    shown = [
        cpu(machine) | (availability(fake, machine, "SECURE", count) if stocked else {})
        for machine in fake.stock.machines.values()
        if machine.kind == "cpu"
    ]
    return answer_json(200, {"cpus": shown})


def data_centers(fake: "FakeRunpod", call: Call) -> Answer:
    include, regions = listed(call, "include"), listed(call, "regions")
    shown = []
    for name, (title, region) in DATA_CENTERS.items():
        if regions and region not in regions:
            continue
        entry: dict[str, Any] = {"id": name, "name": title, "region": region, "globalNetwork": True}
        entry |= {"networkVolumeTypes": ["STANDARD"], "compliance": []}
        for kind in ("gpu", "cpu"):
            if f"{kind.upper()}_AVAILABILITY" in include:
                entry[f"{kind}Availability"] = offered(fake, kind, name)
        shown.append(entry)
    return answer_json(200, {"dataCenters": shown})


def offered(fake: "FakeRunpod", kind: str, data_center: str) -> list[dict[str, Any]]:
    """What a data centre has, in the secure cloud."""
    return [
        {"id": m.id, "name": m.name, "availability": fake.stock.level(m, data_center, "SECURE")}
        for m in fake.stock.machines.values()
        if m.kind == kind
    ]


def gpu(machine: Machine) -> dict[str, Any]:
    prices = {cloud.lower(): machine.price.get(cloud, 0.0) for cloud in CLOUDS}
    return {
        "id": machine.id,
        "name": machine.name,
        "pool": machine.pool,
        "manufacturer": "NVIDIA",
        "memory": machine.memory,
        "secure": "SECURE" in machine.price,
        "community": "COMMUNITY" in machine.price,
        "price": prices,
        "maxCount": {
            cloud.lower(): machine.max_count if cloud in machine.price else 0 for cloud in CLOUDS
        },
    }


def cpu(machine: Machine) -> dict[str, Any]:
    price = machine.price["SECURE"]
    return {
        "id": machine.id,
        "name": machine.name,
        "group": f"Gen {machine.id[3]}",
        "vcpu": {"min": 2, "max": machine.max_count},
        "ramGbPerVcpu": machine.memory,
        "price": {"securePerVcpu": price, "serverlessPerVcpu": price},
    }


def availability(
    fake: "FakeRunpod", machine: Machine, cloud: str, count: int, cuda_min: str | None = None
) -> dict[str, Any]:
    """Stock now; the list of data centres is left out where there is none."""
    there = fake.stock.by_data_center(machine, cloud, count, cuda_min)
    entry: dict[str, Any] = {"availability": fake.stock.best(machine, cloud, count, cuda_min)}
    if there:
        named = [
            {"id": dc, "name": DATA_CENTERS[dc][0], "availability": level}
            for dc, level in there.items()
        ]
        entry["dataCenters"] = named
    if machine.cuda:
        entry["cudaVersions"] = [
            {"version": version, "available": bool(there)}
            for version in machine.cuda
            if cuda_min is None or at_least(version, cuda_min)
        ]
    return entry


def with_availability(call: Call) -> bool:
    """Is stock asked for?

    Raises RefusedError 400 if `product` is missing with it, or a filter is there without it.
    """
    asked = "AVAILABILITY" in listed(call, "include")
    if asked and "product" not in call.query:
        raise RefusedError(400, "product is required with include=AVAILABILITY")
    for name in FILTERS:
        if not asked and name in call.query:
            raise RefusedError(400, f"{name} is valid only with include=AVAILABILITY")
    return asked


def listed(call: Call, name: str) -> list[str]:
    return [part for part in call.query.get(name, "").split(",") if part]


def number(call: Call, name: str, default: int) -> int:
    text = call.query.get(name, str(default))
    if not text.isdecimal() or int(text) < 1:
        raise RefusedError(
            422, "Request validation failed.", [f"{name}: must be a positive integer"]
        )
    return int(text)

"""A store as its worst writer leaves it: every document, and ways in which each can be damaged.

`HostileStore` makes one good store of three runs once, keeps a copy, and puts one document after
another into a bad state: committed precompute and train runs, and a run on a rented machine.
"""

import builtins
import contextlib
import json
import logging
import math
import os
import secrets
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from moola.evaluation.gates import Gate
from moola.jobs.precompute import precompute
from moola.jobs.prepare import prepare_precompute
from moola.providers.base import Pod, PodRequest, PodStatus
from moola.runs.about import add_about, new_about
from moola.runs.attempt import Attempt, end_attempt
from moola.runs.authority import signing_key
from moola.runs.launches import Launch, RentedMachine, claim, record_rented
from moola.runs.protocol import MANIFEST, attempt_key, canonical_json, run_key
from moola.runs.reading import describe_input_run, require_manifest
from moola.runs.submit import describe_run, put_input, submit
from moola.specs import MachineConfig, PrecomputeSpec
from moola.store import Store, open_store
from tests.feature_set import random_bars
from tests.runs import sha256

ACCOUNT_KEY = "rpa_0123456789abcdef0123456789abcdef"
IMAGE = "ghcr.io/someone/moola@sha256:" + "0" * 64
MACHINE = MachineConfig(cpu={"flavors": ["cpu3c"], "vcpus": 2}, retry={"times": 1})

EVIL = "\x1b[31mEVIL\x07[/INST]\r\u202e"  # escape code, bell, markup, what turns writing around
OUTSIDE = ("../../../outside/moola-written", "/tmp/moola-written", "C:\\moola-written", "nul")

HEARTBEAT = {
    "time": "2026-01-01T00:00:00.000+00:00",
    "stage": "features",
    "done": 1,
    "total": 2,
    "unit": "bars",
    "note": "",
    "usage": {"memory_mb": 1.0},
}

Damage = Callable[[bytes], bytes | None]


# --- damages ----------------------------------------------------------------------------------


def with_leaves(change: Callable[[Any], Any]) -> Damage:
    """A JSON document with each of its leaves changed; other bytes stay."""

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: walk(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [walk(inner) for inner in value]
        return change(value)

    def damage(data: bytes) -> bytes:
        try:
            lines = [json.loads(line) for line in data.splitlines()]
            documents = lines if len(lines) > 1 else [json.loads(data)]
        except ValueError:
            try:
                documents = [json.loads(data)]
            except ValueError:
                return data[: len(data) // 2] + b"\xff\x00" + data[len(data) // 2 :]
        return b"\n".join(json.dumps(walk(document)).encode() for document in documents)

    return damage


def texts(value: str) -> Damage:
    return with_leaves(lambda leaf: value if isinstance(leaf, str) else leaf)


def numbers(value: float) -> Damage:
    def change(leaf: Any) -> Any:
        is_number = isinstance(leaf, int | float) and not isinstance(leaf, bool)
        return value if is_number else leaf

    return with_leaves(change)


def without_fields(data: bytes) -> bytes:
    """Every other field is left out."""
    try:
        document = json.loads(data)
    except ValueError:
        return data[:10]
    if not isinstance(document, dict):
        return data
    return json.dumps(dict(list(document.items())[::2])).encode()


DAMAGES: dict[str, Damage] = {
    "missing": lambda _: None,
    "empty": lambda _: b"",
    "{}": lambda _: b"{}",
    "[]": lambda _: b"[]",
    "null": lambda _: b"null",
    "torn": lambda data: data[: len(data) // 2],
    "no JSON": lambda _: b"\x00\xff\xfe" * 10,
    "huge": lambda data: data + b" " * (17 << 20),
    "deep": lambda _: b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "half of the fields": without_fields,
    "texts for numbers": numbers("many"),  # type: ignore[arg-type]
    "numbers for texts": with_leaves(lambda leaf: 7 if isinstance(leaf, str) else leaf),
    "lists": with_leaves(lambda leaf: [leaf]),
    "nulls": with_leaves(lambda _: None),
    "negative": numbers(-1),
    "infinite": numbers(math.inf),
    "no number": numbers(math.nan),
    "very large": numbers(10**40),
    "far future": texts("2999-12-31T23:59:59+00:00"),
    "escape codes": texts(EVIL),
    **{f"path {path}": texts(path) for path in OUTSIDE},
}


def npy_bytes(descr: str, shape: tuple[int, ...]) -> bytes:
    """A .npy header without the bytes of its array."""
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}"
    header = text.encode() + b" " * (117 - len(text)) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


ARRAYS: dict[str, bytes] = {
    "40 TiB": npy_bytes("<f4", (10_000_000_000, 1100)),
    "objects": npy_bytes("|O", (1500, 11)) + b"cos\nsystem\n(S'true'\ntR.",
    "negative": npy_bytes("<f4", (-1, 11)),
    "of doubles": npy_bytes("<f8", (1500, 11)) + bytes(1500 * 11 * 8),
    "of no bars": npy_bytes("<f4", (0, 11)),
    "flat": npy_bytes("<f4", (16_500,)) + bytes(16_500 * 4),
    "wide": npy_bytes("<f4", (1, 1 << 40)),
    "no header": b"\x93NUMPY\x01\x00\xff\xff",
    "of all NaN": npy_bytes("<f4", (1500, 11)) + np.full((1500, 11), np.nan, "<f4").tobytes(),
}


# --- the store --------------------------------------------------------------------------------


class HostileStore:
    """A good store in `folder / "store"`, of which one document at a time is damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "store"
        self.store = open_store(self.root.as_uri())
        self.bars = folder / "bars.parquet"
        random_bars().to_parquet(self.bars)

        logging.getLogger("moola").setLevel(logging.INFO)  # as in a job: its log has lines
        work = folder / "making"
        self.precompute = _precompute(self.store, self.bars, work)
        self.train = _train(self.store, self.precompute, work)
        self.launch = _rented(self.store)
        self.rented = self.launch.run_id
        self._good = {
            path.relative_to(self.root).as_posix(): path.read_bytes() for path in self._files()
        }

    def _files(self) -> list[Path]:
        return [path for path in self.root.rglob("*") if path.is_file()]

    def documents(self, run_id: str) -> list[str]:
        """Keys of a run's documents."""
        return [key for key in self._good if key.startswith(run_key(run_id, ""))]

    def bytes_of(self, key: str) -> bytes:
        return self._good[key]

    def restore(self) -> None:
        """Make the store good again, whatever a command did to it."""
        for path in self._files():
            key = path.relative_to(self.root).as_posix()
            if key not in self._good:
                path.unlink()
        for folder, _, _ in os.walk(self.root, topdown=False):
            with contextlib.suppress(OSError):  # it is not empty
                Path(folder).rmdir()
        for key, data in self._good.items():
            path = self.root / key
            if not path.is_file() or path.read_bytes() != data:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)

    def put(self, key: str, data: bytes | None) -> None:
        path = self.root / key
        if data is None:
            path.unlink()
        else:
            path.write_bytes(data)

    def put_committed(self, run_id: str, path: str, data: bytes) -> None:
        """Replace a file of a committed run, with a manifest and a commit that agree with it."""
        self.change_manifest(
            run_id,
            lambda manifest: _replace_file(self, manifest, path, data),
        )

    def change_manifest(self, run_id: str, change: Callable[[dict[str, Any]], None]) -> None:
        """Change a committed manifest, and the commit so that it agrees."""
        attempt = require_manifest(self.store, run_id).attempt_id
        key = attempt_key(run_id, attempt, MANIFEST)
        manifest = json.loads(self.store.get(key))
        change(manifest)
        data = canonical_json(manifest)
        self.put(key, data)

        commit = json.loads(self.store.get(run_key(run_id, "COMMIT.json")))
        self.put(
            run_key(run_id, "COMMIT.json"),
            canonical_json({**commit, "manifest_sha256": sha256(data)}),
        )


def _replace_file(hostile: HostileStore, manifest: dict[str, Any], path: str, data: bytes) -> None:
    entry = next(entry for entry in manifest["files"] if entry["path"] == path)
    hostile.put(entry["key"], data)
    entry["size"] = len(data)
    entry["sha256"] = sha256(data)


def _precompute(store: Store, bars: Path, work: Path) -> str:
    spec = PrecomputeSpec(bars=str(bars), windows="virtual")
    prepared = prepare_precompute(spec, work)
    put_input(store, bars, prepared.input_file("bars"))
    submit(store, prepared.run_id, prepared.document)
    add_about(store, prepared.run_id, new_about("a name", ["a-tag"]))
    with Attempt(store, prepared.run_id, work=work) as attempt:
        precompute(attempt, prepared.document)
    store.put(attempt.key("heartbeat.json"), canonical_json(HEARTBEAT))
    return prepared.run_id


def _train(store: Store, features: str, work: Path) -> str:
    """A train run with a small untrained model, and numbers as a real one has."""
    from moola.evaluation.model_document import ModelDocument
    from moola.features import FEATURE_NAMES
    from moola.models import build_model
    from moola.specs import FeatureConfig, ModelConfig, TrainSpec
    from moola.training.checkpoint import weights_bytes

    item = describe_input_run(store, features)
    spec = TrainSpec().model_dump(mode="json", exclude={"job", "machine", "features"})
    run_id, document = describe_run("train", spec, {"features": item})
    submit(store, run_id, document)

    info = ModelDocument(
        model=ModelConfig(hidden_size=8),
        classes=("consolidation", "retracement"),
        temperature=1.0,
        feature_names=FEATURE_NAMES,
        feature_config=FeatureConfig(),
        longest_move=16,
        own_bars=False,
        feature_set=item,
        moola=document.moola,
    )
    measured = {"title": "F1", "unit": "fraction", "value": 0.5, "low": 0.4, "high": 0.6}
    metrics = {
        "test": {
            "n_windows": 10,
            "interval": {"level": 0.95},
            "metrics": {"f1_macro": {**measured, "baselines": {"majority_class": 0.3}}},
        }
    }
    gate = Gate("F1", 0.5, "> 0.6", passed=False).__dict__
    with Attempt(store, run_id, work=work) as attempt:
        model = build_model("jade", hidden_size=8, longest_move=16)
        attempt.write("model.safetensors", weights_bytes(model), "application/x-safetensors")
        attempt.write("model.json", info.model_dump_json().encode(), "application/json")
        attempt.write("metrics.json", json.dumps(metrics).encode(), "application/json")
        gates = {"passed": False, "gates": [gate]}
        attempt.write("gates.json", json.dumps(gates).encode(), "application/json")
    return run_id


def _rented(store: Store) -> Launch:
    """A run on a rented machine that has ended as failed: it left a log and a checkpoint."""
    run_id, document = describe_run("precompute", {"windows": "stored"}, {})
    submit(store, run_id, document)
    launch = claim(
        store,
        run_id,
        1,
        "precompute",
        IMAGE,
        MACHINE.model_dump(mode="json"),
        key=signing_key({}, ACCOUNT_KEY),
    )
    assert launch is not None
    now = datetime.now(UTC).timestamp()
    machine = RentedMachine(
        pod_id="pod1",
        pod_name=launch.pod_name,
        provider="runpod",
        kind="cpu",
        type_id="cpu3c",
        count=2,
        cloud="SECURE",
        data_center="EU-RO-1",
        price_per_hour=0.1,
        created=now,
        deadline=now + 3600,
    )
    record_rented(store, launch, machine)
    attempt = Attempt(store, run_id, attempt_id=launch.attempt, work=Path("unused"))
    attempt.checkpoint(10, {"state.bin": b"state"})
    store.put(launch.key("renting.json"), b'{"time": "2026-01-01T00:00:00+00:00"}')
    store.put(launch.key("heartbeat.json"), canonical_json(HEARTBEAT))
    line = {"seq": 1, "time": 1.0e9, "level": "INFO", "message": "a line"}
    store.put(launch.key("logs", "00000001.jsonl"), canonical_json(line) + b"\n")
    end_attempt(store, run_id, launch.attempt, "failed", "prices must be > 0", 3)
    return launch


# --- the account ------------------------------------------------------------------------------


class Account:
    """A provider's account: it rents, lists and ends, and notes what it was asked for."""

    provider = "runpod"
    account_key = ACCOUNT_KEY

    def __init__(self, launch: Launch) -> None:
        self.requests: list[PodRequest] = []
        self.ended: list[str] = []
        self.pods = {
            "pod1": self._pod("pod1", launch.pod_name),
            "pod2": self._pod("pod2", "production-database"),
            "pod3": self._pod("pod3", f"moola-{launch.run_id}-a1-{secrets.token_hex(4)}-0000"),
        }

    def _pod(self, pod_id: str, name: str) -> Pod:
        return Pod(
            id=pod_id,
            name=name,
            status=PodStatus.RUNNING,
            provider_status="RUNNING",
            image=IMAGE,
            price_per_hour=0.1,
            type_id="cpu3c",
            created=datetime.now(UTC),
        )

    def now(self) -> float:
        return datetime.now(UTC).timestamp()

    def body(self, request: PodRequest) -> dict[str, Any]:
        return {"name": request.name, "env": request.env}

    def create(self, request: PodRequest) -> Pod:
        self.requests.append(request)
        # It is in no list: as a machine that was lost at once.
        return self._pod(f"new{len(self.requests)}", request.name)

    def get(self, pod_id: str) -> Pod | None:
        return self.pods.get(pod_id)

    def list(self) -> builtins.list[Pod]:
        return [*self.pods.values()]

    def terminate(self, pod_id: str) -> None:
        self.ended.append(pod_id)
        self.pods.pop(pod_id, None)

    def logs(self, pod_id: str, after: str | None = None) -> Iterator[Any]:
        raise NotImplementedError

    def offers(self, candidates: Any) -> Any:
        from moola.providers.base import Offer

        return [
            Offer(
                candidate=candidate,
                name=candidate.type_id,
                memory_gb=4,
                price_per_hour=0.1,
                stock="high",
            )
            for candidate in candidates
        ]

    def catalog(self, kind: str, cloud: str = "SECURE") -> builtins.list[Any]:  # noqa: ARG002
        return []

    def billing(self, pod_ids: Any) -> builtins.list[Any]:  # noqa: ARG002
        return []

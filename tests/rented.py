"""A rented run as the tests see it: the fake provider, a real store, real jobs in pods, launchers.

As a program it is a launcher of its own: `python -m tests.rented RUN_ID`, with the store and the
provider from the environment.
"""

import hashlib
import io
import json
import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from moola.launch.rented.plan import machine_json
from moola.launch.rented.session import Session
from moola.launch.settings import Settings, WatchConfig
from moola.providers.base import Candidate, PodRequest
from moola.providers.runpod.rest import RestPods
from moola.runs.attempt import COMMITTED, commit_run, manifest_json
from moola.runs.authority import signing_key
from moola.runs.launches import Launch, RentedMachine, all_launches, claim
from moola.runs.protocol import MANIFEST, STATUS, read_json_or_none
from moola.runs.reading import pull_files, read_manifest
from moola.runs.records import FileEntry
from moola.runs.submit import describe_run, submit
from moola.specs import MachineConfig
from moola.store import open_store
from tests.fake_runpod import FakeRunpod, Pod

ROOT = Path(__file__).resolve().parents[1]
IMAGE = "ghcr.io/someone/moola@sha256:" + "0" * 64
JOB = "small"
WATCH: dict[str, float] = {
    "poll_s": 0.15,
    "pod_poll_s": 0.3,
    "beat_s": 0.2,
    "start_timeout_s": 60.0,
    "stalled_after_s": 60.0,
    "grace_s": 1.0,
    "settle_s": 2.0,
    "capacity_poll_s": 0.1,
}
MACHINE: dict[str, Any] = {
    "cpu": {"flavors": ["cpu3c", "cpu5c"], "vcpus": 2},
    "max_runtime": timedelta(minutes=5),
}
MOST_S = 60.0  # for one launcher: a case that takes longer hangs


def run_small_job(_: Pod) -> list[str]:
    """The first process of a pod: the images' entry point, with the small job."""
    return [sys.executable, str(ROOT / "tests" / "small_job.py"), "--on-a-machine"]


def quick_settings(store_url: str, **watch: float) -> Settings:
    """Settings under which nothing is waited for longer than it takes."""
    return Settings(store=store_url, watch=WatchConfig(**{**WATCH, **watch}))


def machine_config(**change: Any) -> MachineConfig:
    return MachineConfig(**{**MACHINE, **change})


class RentedRun:
    """One run of the small job, with as many launchers as a test asks for."""

    def __init__(self, fake: FakeRunpod, store_url: str, folder: Path, **spec: Any) -> None:
        self.fake, self.folder = fake, folder
        self.store = open_store(store_url)
        self.run_id, document = describe_run("small", {"steps": 3, **spec}, {})
        submit(self.store, self.run_id, document)
        self.output = io.StringIO()

    def session(self, **watch: float) -> Session:
        """A launcher, as on a computer of its own."""
        console = Console(file=self.output, width=200)
        return Session(
            quick_settings(self.store.url, **watch),
            self.store,
            self.provider(),
            self.run_id,
            console,
        )

    def provider(self) -> RestPods:
        """The provider's API, for one who does not wait long."""
        plain = httpx.HTTPTransport(
            verify=False
        )  # or each client reads all certificates of the machine first
        waits = {"read_s": 0.5, "silence_s": 1.0, "first_wait_s": 0.02}
        return RestPods(self.fake.api_key, base_url=self.fake.url, transport=plain, **waits)

    def start_launcher(self) -> subprocess.Popen[bytes]:
        """`launch` in a process of its own, which may be killed."""
        names = {"MOOLA_STORE": self.store.url, "RUNPOD_API_BASE_URL": self.fake.url}
        environment = {**os.environ, **names, "RUNPOD_API_KEY": self.fake.api_key}
        command = [sys.executable, "-m", "tests.rented", self.run_id]
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)

    def launch(self, machine: dict[str, Any] | None = None, **watch: float) -> int:
        """Rent and see it through in this process; -> exit code."""
        return self.session(**watch).run(JOB, IMAGE, machine_config(**(machine or {})))

    # what is left

    def states(self) -> list[str]:
        """The state of each attempt, oldest first."""
        launches = all_launches(self.store, self.run_id)
        return [
            str((read_json_or_none(self.store, one.key(STATUS)) or {}).get("state"))
            for one in launches
        ]

    def reasons(self) -> list[str]:
        launches = all_launches(self.store, self.run_id)
        return [
            str((read_json_or_none(self.store, one.key(STATUS)) or {}).get("reason"))
            for one in launches
        ]

    def pods(self) -> list[Pod]:
        """Every pod there ever was of this run."""
        return [pod for pod in self.fake.pods.values() if pod.run == self.run_id]

    def resumed_from(self) -> int:
        """The step after which the committed attempt went on."""
        self.pulled()
        return int(json.loads((self.folder / "pulled" / "resumed.json").read_text())["from"])

    def pulled(self) -> dict[str, bytes]:
        """path -> bytes of what was committed, fetched anew, every digest checked."""
        manifest = read_manifest(self.store, self.run_id)
        assert manifest is not None, (
            f"not committed: {self.states()} {self.reasons()}\n{self.output.getvalue()}"
        )
        pull_files(self.store, manifest, self.folder / "pulled")
        files = {
            item.path: (self.folder / "pulled" / item.path).read_bytes() for item in manifest.files
        }
        assert {item.path: item.sha256 for item in manifest.files} == {
            path: hashlib.sha256(data).hexdigest() for path, data in files.items()
        }
        return files

    def check_nothing_is_left(self, *, most_alive: int = 1) -> None:
        """No pod alive, no meter running, never more than one at a time, at most one commit."""
        assert self.fake.alive() == []
        assert [pod.id for pod in self.pods() if pod.spells[-1].end is None] == []
        assert self.fake.most_alive.get(self.run_id, 0) <= most_alive
        committed = [state for state in self.states() if state == "committed"]
        assert len(committed) == (1 if read_manifest(self.store, self.run_id) else 0)


def rented_machine(**fields: Any) -> RentedMachine:
    """The record of a machine with two vCPUs; `fields` are what differs between machines."""
    return RentedMachine(
        provider="runpod",
        kind="cpu",
        type_id="cpu3c",
        count=2,
        cloud="SECURE",
        data_center=None,
        **fields,
    )


def claim_launch(run: RentedRun, n: int = 1, **machine: Any) -> Launch:
    """Launch n of the run, claimed by the account's holder, who does nothing more."""
    document = machine_json(machine_config(**machine))
    key = signing_key({}, run.fake.api_key)
    launch = claim(run.store, run.run_id, n, JOB, IMAGE, document, key=key)
    assert launch is not None
    return launch


def rent_pod(run: RentedRun, name: str, *, lasts_s: float = 3600.0) -> Pod:
    """A pod of this name that runs, with a deadline `lasts_s` from now."""
    env = {"MOOLA_RUN": run.run_id, "MOOLA_DEADLINE": f"{time.time() + lasts_s:.3f}"}
    request = PodRequest(name, IMAGE, Candidate("cpu", "cpu3c", 2), 20, env)
    pod = run.fake.pods[run.provider().create(request).id]
    run.fake.wait_until(lambda: pod.status == "RUNNING")
    return pod


def commit_launch(run: RentedRun, launch: Launch, *files: FileEntry) -> None:
    """The run's commit by this launch's attempt, with these files."""
    manifest = manifest_json(
        run.run_id, launch.attempt, COMMITTED, provenance={}, files=files, logs=()
    )
    run.store.put_once(launch.key(MANIFEST), manifest)
    commit_run(run.store, run.run_id, launch.attempt, manifest)


def wait_for(condition: Any, what: str, within_s: float = MOST_S) -> Any:
    """Poll until the condition holds, and return its value."""
    end = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < end, f"never happened: {what}"
        time.sleep(0.02)
    return value


if __name__ == "__main__":
    url = os.environ["MOOLA_STORE"]
    session = Session(quick_settings(url), open_store(url), RestPods(), sys.argv[1])
    sys.exit(session.run(JOB, IMAGE, machine_config()))

"""The account behind both APIs: its pods, its keys, its switches, and the server on loopback."""

import contextlib
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn

from tests.fake_runpod.app import build
from tests.fake_runpod.clock import Clock
from tests.fake_runpod.container import Container, new_scratch
from tests.fake_runpod.faults import Fault, Faults, Kind
from tests.fake_runpod.gate import Call, Quota
from tests.fake_runpod.logs import Log
from tests.fake_runpod.machines import DATA_CENTERS, Machine, Stock, at_least
from tests.fake_runpod.pods import ACTIONS, NO_CAPACITY, Pod, RefusedError, Wanted, new_id, new_key

SMALLEST_DISK_GB = 20  # smaller ones were seen to match no machine


def run_entry_point(pod: Pod) -> list[str]:
    """The default command: the entry point of the images."""
    return [sys.executable, "-m", "moola.jobs.entry", *pod.cmd]


class FakeRunpod:
    """A context manager; attributes are the switches, and what tests assert on.

    command(pod)         argv of a pod's first process. Its environment is `container_environment`'s
    cleanup(pod)         called when that process has ended: removes what it left elsewhere
    on_create(pod)       called when a pod was made and before the create is answered
    on_line(pod, text)   called for every line a container prints
    provision_s, pull_s, restart_s, still_fetching_s, billing_lag_s
                         seconds of `clock`; timestamps are wall-clock
    per_minute           quota of one key for REST v2
    secrets              values of the account's secrets by name
    pod_key_terminates   may a pod end itself with its own key, over GraphQL? Both were seen
    log_history          lines a pod's log keeps
    partitioned          True: every call is answered 503
    api_key, restricted_key   of the account, and one for pods only
    pods                 every pod there ever was, by id
    calls                every request with its answer
    violations           answers of the fake that break the published schema; raised at the end
    most_alive           the most pods that were alive at once, by run
    """

    def __init__(
        self,
        command: Callable[[Pod], list[str]] = run_entry_point,
        *,
        cleanup: Callable[[Pod], None] = lambda _: None,
        port: int = 0,
        speed: float = 1.0,
        provision_s: float = 0.05,
        pull_s: float = 0.05,
        restart_s: float = 0.5,
        still_fetching_s: float = 5.0,
        billing_lag_s: float = 600.0,
        per_minute: int = 60,
        secrets: dict[str, str] | None = None,
        log_history: int = 100_000,
    ) -> None:
        self.command, self.cleanup, self.clock = command, cleanup, Clock(speed)
        self.provision_s, self.pull_s, self.restart_s = provision_s, pull_s, restart_s
        self.still_fetching_s, self.billing_lag_s, self.log_history = (
            still_fetching_s,
            billing_lag_s,
            log_history,
        )
        self.secrets = dict(secrets or {})
        self.on_create: Callable[[Pod], None] = lambda _: None
        self.on_line: Callable[[Pod, str], None] = lambda *_: None
        self.pod_key_terminates, self.partitioned = True, False
        self.api_key, self.restricted_key = new_key(), new_key()
        self.stock, self.faults, self.quota = Stock(), Faults(), Quota(self.clock, per_minute)
        self.pods: dict[str, Pod] = {}
        self.calls: list[Call] = []
        self.violations: list[str] = []
        self.most_alive: dict[str, int] = {}
        self.stopping = threading.Event()
        self._lock, self._guard_lock = threading.RLock(), threading.Lock()
        self._port = port

    # the server

    def __enter__(self) -> "FakeRunpod":
        self._scratch = Path(tempfile.mkdtemp(prefix="fake-runpod-"))
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", self._port))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        guard = [
            sys.executable,
            "-I",
            "-S",
            str(Path(__file__).with_name("guard.py")),
            str(self._scratch),
        ]
        self._guard = subprocess.Popen(
            guard,
            stdin=subprocess.PIPE,
            env={},  # without the mark of the tests' watchdog, which would kill it at its work
            start_new_session=True,
        )
        config = uvicorn.Config(
            build(self), log_config=None, log_level="critical", lifespan="off", ws="none"
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, args=([self._socket],), daemon=True
        )
        self._thread.start()
        while not self._server.started:
            time.sleep(0.005)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.stopping.set()
        self._server.should_exit = self._server.force_exit = True
        for pod in self.pods.values():
            if pod.container:
                pod.container.kill()
        self._thread.join(10)
        self._socket.close()
        slow = [
            pod.id for pod in self.pods.values() if pod.container and not pod.container.join(10)
        ]
        with contextlib.suppress(OSError):
            self._guard.communicate(timeout=10)
        if kind is None:
            assert not slow, f"pods that did not end: {slow}"
            assert not self.violations, "\n".join(self.violations)

    def guard(self, pod: Pod) -> None:
        """Have the pod's processes killed should the fake itself be killed."""
        assert self._guard.stdin
        with self._guard_lock:
            self._guard.stdin.write(f"{pod.id}\n".encode())
            self._guard.stdin.flush()

    # switches

    def fail(self, kind: Kind, on: str = "create", *, times: int | None = 1, **how: Any) -> Fault:
        """Throw a switch: see Fault."""
        return self.faults.add(Fault(kind, on, times, **how))

    def clear(self, fault: Fault | None = None) -> None:
        """Take back one switch, or all."""
        self.faults.clear(fault)

    def lose_host(self, pod: Pod) -> None:
        """The machine is gone, and the pod with it: no signal, no word."""
        self._end(pod, "TERMINATED", gone=True)
        if pod.container:
            pod.container.kill()

    def stop_by_provider(self, pod: Pod) -> None:
        """Nobody of ours stopped it: EXITED, still listed, and only GraphQL says by whom."""
        self.stop(pod, by="Runpod")

    def freeze(self, pod: Pod, frozen: bool = True) -> None:
        """Stop every process of the pod where it stands (SIGSTOP), or let it go on."""
        assert pod.container
        pod.container.freeze(frozen)

    # what tests ask

    def alive(self) -> list[Pod]:
        """Pods that are billed as machines now."""
        with self._lock:
            return [pod for pod in self.pods.values() if pod.alive]

    def listed(self) -> list[Pod]:
        """Pods the account still has, stopped ones too."""
        with self._lock:
            return [pod for pod in self.pods.values() if not pod.gone]

    def billed(self, pod: Pod) -> float:
        """USD by the meter until now, without the lag of the billing records."""
        return sum(pod.billed(0.0, self.clock.now()))

    def wait_until(self, condition: Callable[[], Any], timeout: float = 20.0) -> Any:
        """Poll until the condition holds; -> its value. AssertionError after `timeout` seconds."""
        end = time.monotonic() + timeout
        while not (value := condition()):
            assert time.monotonic() < end, (
                f"did not happen within {timeout} s; pods: {list(self.pods.values())}"
            )
            time.sleep(0.01)
        return value

    # what the two APIs do

    def create(self, wanted: Wanted) -> Pod:
        """Place a pod. RefusedError 400 where no machine fits."""
        with self._lock:
            machine, cloud, data_center, cuda = self._place(wanted)
            count = wanted.count or 1
            memory = machine.memory * count if machine.kind == "cpu" else machine.memory
            price = machine.price[cloud] * count
            pod = Pod(
                new_id(), wanted, cloud, data_center, cuda, memory, price, Log(self.log_history)
            )
            fault = self.faults.of_pod(machine.id)
            pod.faults = {str(fault.kind): fault.text} if fault else {}
            self.pods[pod.id] = pod
            self._begin(pod)
        self.on_create(pod)
        return pod

    def find(self, pod_id: str) -> Pod:
        with self._lock:
            pod = self.pods.get(pod_id)
        if pod is None or pod.gone:
            raise RefusedError(404, "pod not found")
        return pod

    def terminate(self, pod: Pod) -> None:
        """It vanishes at once; its processes get SIGTERM and 5 seconds."""
        self._end(pod, "TERMINATED", gone=True)
        if pod.container:
            pod.container.stop()

    def stop(self, pod: Pod, by: str = "user") -> None:
        pod.last_change = f"Exited by {by}"
        self._end(pod, "EXITED")
        if pod.container:
            pod.container.stop()

    def act(self, pod: Pod, action: str) -> None:
        """start, stop, restart or terminate. RefusedError 409 in the wrong state."""
        with self._lock:
            if action not in ACTIONS[pod.status]:
                raise RefusedError(409, f"cannot {action} a pod that is {pod.status}")
            if action == "start":
                pod.status, pod.last_uptime, pod.started = "PROVISIONING", None, None
                self._begin(pod)
        if action == "restart" and pod.container:
            pod.container.restart()
        elif action == "stop":
            self.stop(pod)
        elif action == "terminate":
            self.terminate(pod)

    def set_status(self, pod: Pod, status: str) -> None:
        """Called by the container; a pod that was ended meanwhile stays ended."""
        with self._lock:
            if pod.alive:
                pod.status = status

    def _begin(self, pod: Pod) -> None:
        """Start its container and its meter, and count it."""
        pod.container = Container(pod, self, new_scratch(self._scratch, pod))
        pod.meter(self.clock.now())
        together = sum(1 for other in self.alive() if other.run == pod.run)
        self.most_alive[pod.run] = max(together, self.most_alive.get(pod.run, 0))
        pod.container.start()

    def _end(self, pod: Pod, status: str, gone: bool = False) -> None:
        with self._lock:
            now = self.clock.now()
            pod.last_uptime = pod.uptime(now) if pod.boots else None
            pod.status, pod.gone = status, gone
            pod.meter(now)

    def _place(self, wanted: Wanted) -> tuple[Machine, str, str, str | None]:
        machine = self.stock.machines.get(wanted.machine)
        if (
            machine is None
            or machine.kind != wanted.kind
            or wanted.count is None
            or wanted.disk < SMALLEST_DISK_GB
        ):
            raise RefusedError(400, NO_CAPACITY)
        versions = [v for v in machine.cuda if _cuda_fits(v, wanted)]
        if machine.kind == "gpu" and not versions:
            raise RefusedError(400, NO_CAPACITY)
        for cloud, data_center in self._places(wanted):
            if self.stock.level(machine, data_center, cloud, wanted.count) != "NONE":
                return machine, cloud, data_center, versions[-1] if versions else None
        raise RefusedError(400, NO_CAPACITY)

    def _places(self, wanted: Wanted) -> Iterator[tuple[str, str]]:
        for cloud in wanted.clouds:
            if cloud == "COMMUNITY" and wanted.data_centers:
                continue  # as was seen: community hosts are in none that can be asked for
            for data_center in wanted.data_centers or DATA_CENTERS:
                if data_center in DATA_CENTERS:
                    yield cloud, data_center


def _cuda_fits(version: str, wanted: Wanted) -> bool:
    if wanted.cuda_allowed and version not in wanted.cuda_allowed:
        return False
    return wanted.cuda_min is None or at_least(version, wanted.cuda_min)

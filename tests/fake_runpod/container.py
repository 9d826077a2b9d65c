"""The processes of a pod: pulled, started, started again whenever they exit, stopped.

To stop them is SIGTERM, and SIGKILL a while later.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from tests.fake_runpod.guard import kill_all, signal_all
from tests.fake_runpod.pods import Pod, substituted

if TYPE_CHECKING:
    from tests.fake_runpod.fake import FakeRunpod

GRACE_S = 5.0  # between SIGTERM and SIGKILL, on the fake's clock
CRASH_S = 0.05  # from start to the kill in a crash loop


class Container:
    """Runs in its own thread from PROVISIONING until the pod is stopped, terminated or lost."""

    def __init__(self, pod: Pod, fake: "FakeRunpod", scratch: Path) -> None:
        self._pod, self._fake, self._scratch = pod, fake, scratch
        self._before = pod.container  # the one it had before it was stopped may still be ending
        self._process: subprocess.Popen[bytes] | None = None
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._live, name=f"pod {pod.id}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """SIGTERM to the first process, as docker does; SIGKILL to all after the grace.

        Returns at once.
        """
        self._over.set()
        self.restart()

    def restart(self) -> None:
        """The same without the end: it is started again in place."""
        with self._lock:
            process = self._process
        if process is not None:
            self._signal_first(process, signal.SIGTERM)
            threading.Thread(target=self._kill_after_grace, args=(process,), daemon=True).start()

    def kill(self) -> None:
        """The host is gone: SIGKILL, no notice."""
        self._over.set()
        self._signal_all(signal.SIGKILL)

    def freeze(self, frozen: bool) -> None:
        """Every process stands still, or goes on."""
        self._signal_all(signal.SIGSTOP if frozen else signal.SIGCONT)

    def _signal_all(self, number: int) -> None:
        with self._lock:
            if self._process is not None:
                signal_all(self._pod.id, self._process.pid, number)

    def join(self, timeout: float | None = None) -> bool:
        """Wait until nothing of it runs; False if that took too long."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    @property
    def pid(self) -> int | None:
        """Of the first process, None while there is none."""
        return None if self._process is None else self._process.pid

    def _live(self) -> None:
        try:
            if self._before is not None:
                self._before.join()
            if not self._pull():
                return
            while not self._over.is_set():
                self._boot()
                self._pod.booted_at = None
                self._fake.clock.wait(self._over, self._fake.restart_s)
        finally:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def _pull(self) -> bool:
        """PROVISIONING, STARTING; False if it was ended there."""
        pod, fake, image = self._pod, self._fake, self._pod.wanted.image
        if fake.clock.wait(self._over, fake.provision_s):
            return False
        fake.set_status(pod, "STARTING")
        pod.log.add("system", f"create container {image}")
        while not pod.faults.keys().isdisjoint(("pull_hangs", "pull_fails")):
            text = pod.faults.get("pull_fails") or f"still fetching image {image}"
            pod.log.add("system", text)
            if fake.clock.wait(self._over, fake.still_fetching_s):
                return False
        if fake.clock.wait(self._over, fake.pull_s):
            return False
        pod.log.add("system", f"start container {image}")
        return True

    def _boot(self) -> None:
        """One life of the container: when its first process ends, the others are killed."""
        pod, fake = self._pod, self._fake
        process = self._spawn()
        if process is None:
            return
        pod.boots, pod.booted_at, pod.started = (
            pod.boots + 1,
            fake.clock.now(),
            pod.started or datetime.now(UTC),
        )
        fake.set_status(pod, "RUNNING")
        reader = threading.Thread(target=self._read, args=(process,), daemon=True)
        reader.start()
        if "crash_loop" in pod.faults and not self._over.wait(CRASH_S):
            self._signal_all(signal.SIGKILL)
        process.wait()
        with self._lock:
            self._process = None
            signal_all(pod.id, process.pid, signal.SIGKILL)
        kill_all(pod.id)
        fake.cleanup(pod)
        reader.join()

    def _spawn(self) -> subprocess.Popen[bytes] | None:
        """Start the first process; None if the pod was ended meanwhile, or there is no program."""
        environment = container_environment(self._pod, self._fake, self._scratch)
        command = self._fake.command(self._pod)
        with self._lock:
            if self._over.is_set():
                return None
            self._fake.guard(self._pod)
            try:
                self._process = subprocess.Popen(
                    command,
                    env=environment,
                    cwd=self._scratch,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                self._pod.log.add("system", f"OCI runtime create failed: {error}")
                self._process = None
            return self._process

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout
        with process.stdout:
            for raw in process.stdout:
                line = self._pod.log.add("container", raw.decode("utf-8", "replace").rstrip("\r\n"))
                self._fake.on_line(self._pod, line.text)

    def _signal_first(self, process: subprocess.Popen[bytes], number: int) -> None:
        with self._lock:
            if self._process is process:  # not reaped yet, so the pid is still its own
                process.send_signal(number)

    def _kill_after_grace(self, process: subprocess.Popen[bytes]) -> None:
        end = self._fake.clock.now() + GRACE_S
        while self._process is process and self._fake.clock.now() < end:
            time.sleep(0.01)
        with self._lock:
            if self._process is process:
                signal_all(self._pod.id, process.pid, signal.SIGKILL)


def new_scratch(root: Path, pod: Pod) -> Path:
    """The container disk: kept over a restart in place, wiped when the pod is stopped."""
    scratch = Path(tempfile.mkdtemp(prefix=f"{pod.id}-", dir=root))
    for name in ("home", "work", "tmp"):
        (scratch / name).mkdir()
    return scratch


def container_environment(pod: Pod, fake: "FakeRunpod", scratch: Path) -> dict[str, str]:
    """What the first process gets: the request's variables, RunPod's, and none of the test's."""
    return {
        "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(scratch / "home"),
        "TMPDIR": str(scratch / "tmp"),
        "MOOLA_WORK": str(scratch / "work"),
        "RUNPOD_API_BASE_URL": fake.url,
        **substituted(pod.env, fake.secrets),
        **injected(pod),
    }


def injected(pod: Pod) -> dict[str, str]:
    """RunPod's own variables. `docker run -e NAME` takes one over from this environment."""
    gpus = pod.wanted.count if pod.wanted.kind == "gpu" else 0
    cpus = pod.wanted.count if pod.wanted.kind == "cpu" else os.cpu_count()
    return {
        "RUNPOD_POD_ID": pod.id,
        "RUNPOD_DC_ID": pod.data_center,
        "RUNPOD_POD_HOSTNAME": f"{pod.id}-64411eb2",
        "RUNPOD_GPU_COUNT": str(gpus),
        "RUNPOD_CPU_COUNT": str(cpus),
        "RUNPOD_API_KEY": pod.api_key,
    }

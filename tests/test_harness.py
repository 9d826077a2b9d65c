"""The tests' own machinery: a test that hangs fails, a run that is killed leaves nothing behind."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fake_runpod.guard import members
from tests.watchdog import marked_processes

ROOT = Path(__file__).resolve().parents[1]
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="the watchdog reads /proc")


def pytest_command(folder: Path, code: str, *options: str) -> list[str]:
    """A pytest of its own, with this project's settings, that runs the tests in `code`."""
    file = folder / "test_sample.py"
    file.write_text(textwrap.dedent(code))
    settings = ("--rootdir", str(folder), "-c", str(ROOT / "pyproject.toml"))
    plugins = ("-p", "tests.conftest", "-p", "no:cacheprovider")
    return [sys.executable, "-m", "pytest", *settings, *plugins, *options, str(file)]


# A wait for a process, for a lock and for nothing at all: what tests have been seen to hang in.
HANGING = """
    import subprocess
    import threading
    import time

    def test_waits_for_a_process():
        subprocess.run(["sleep", "100"], check=True)

    def test_waits_for_a_lock():
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()

    def test_sleeps():
        time.sleep(100)

    def test_of_a_good_kind():
        pass
    """


@pytest.mark.parametrize("workers", [0, 2])
def test_a_test_that_hangs_fails_with_its_name_and_the_others_run(
    workers: int, tmp_path: Path
) -> None:
    command = pytest_command(tmp_path, HANGING, "--timeout", "2", "-n", str(workers))
    run = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200"},  # or lines of the summary are cut short
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    assert run.returncode == 1, run.stdout
    failed = set(re.findall(r"^FAILED \S+::(\w+) - Failed: Timeout", run.stdout, re.MULTILINE))
    assert failed == {"test_waits_for_a_process", "test_waits_for_a_lock", "test_sleeps"}
    assert "3 failed, 1 passed" in run.stdout


def test_every_test_has_a_time_limit(request: pytest.FixtureRequest) -> None:
    assert 0 < float(request.config.getini("timeout")) <= 600


SERVING = """
    import os
    import subprocess
    import time

    import httpx

    from tests.fake_runpod import FakeRunpod
    from tests.fake_runpod.guard import members
    from tests.test_fake_runpod import GPU_BODY
    from tests.watchdog import VARIABLE

    def test_serves(seaweed):
        subprocess.Popen(["sleep", "101"], start_new_session=True)
        command = ["sh", "-c", "setsid sleep 102 & sleep 103"]
        with FakeRunpod(lambda pod: command, provision_s=0, pull_s=0) as fake:
            key = {{"Authorization": f"Bearer {{fake.api_key}}"}}
            pod = httpx.post(f"{{fake.url}}/v2/pods", json=GPU_BODY, headers=key).json()["id"]
            while len(members(pod)) < 3:
                time.sleep(0.01)
            with open({started!r}, "a") as file:
                print(os.getpid(), os.environ[VARIABLE], pod, file=file)
            time.sleep(100)
    """


@linux_only
@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_that_is_killed_leaves_no_server_behind(workers: int, tmp_path: Path) -> None:
    """kill -9 of pytest: its workers, an S3 server, other processes and a pod end too."""
    started = tmp_path / "started"
    code = SERVING.format(started=str(started))
    command = pytest_command(tmp_path, code, "-n", str(workers))
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as run:
        within(60, lambda: started.exists() or run.poll() is not None)
        assert run.poll() is None
        within(1, lambda: started.read_text().endswith("\n"))
        pid, mark, pod = started.read_text().split()
        names = {process_name(each) for each in marked_processes(mark)}
        folders = list(Path("/tmp").glob(f"weed-{mark}-*"))
        run.send_signal(signal.SIGKILL)

    assert names == {"weed", "sleep"}
    assert len(folders) == 1
    within(10, lambda: not is_alive(int(pid)))
    within(10, lambda: not marked_processes(mark))
    within(10, lambda: not folders[0].exists())
    within(10, lambda: not members(pod))


@linux_only
def test_the_search_for_marked_processes_sees_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: one that carries the mark is found, whatever session it is in."""
    monkeypatch.setenv("STARTED_BY_TESTS", "a-twin")
    with subprocess.Popen(["sleep", "103"], start_new_session=True) as process:
        within(10, lambda: marked_processes("a-twin") == [process.pid])
        process.kill()
    assert marked_processes("a-twin") == []


def within(seconds: float, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.02)


def process_name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True

"""The supervisor with real child processes: signals, deadline, a killed job, a second boot, a launch given up."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moola.launches import Launch, claim
from moola.protocol import attempt_key, read_json
from moola.runs import describe_run, run_state, submit
from moola.store import Store, open_store
from tests.test_launch import wait_for

ROOT = Path(__file__).resolve().parents[1]

JOB = """
import logging, os, sys, time
sys.path.insert(0, {root!r})
from pathlib import Path
from moola.runs import run_job
def work_on(attempt, document):
    {work}
sys.exit(run_job("precompute", work_on, None))
"""


class Pod:
    """A process that supervises one attempt, as in a container."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store: Store = open_store(f"file://{folder}/store")
        self.run_id, document = describe_run("precompute", {"windows": "stored"}, {})
        submit(self.store, self.run_id, document)
        launch = claim(self.store, self.run_id, 1, "precompute", "image", {})
        assert launch is not None
        self.launch: Launch = launch

    def start(self, work: str, **environment: str) -> subprocess.Popen[str]:
        script = self.folder / "job.py"
        script.write_text(JOB.format(root=str(ROOT), work=work))
        code = (
            f"import os, sys; sys.path.insert(0, {str(ROOT)!r})\n"
            "from moola.supervisor import log_to_stdout, supervise\n"
            f"log_to_stdout(); sys.exit(supervise(os.environ, [sys.executable, {str(script)!r}]))"
        )
        names = {"MOOLA_RUN": self.run_id, "MOOLA_ATTEMPT": self.launch.attempt, "MOOLA_LAUNCH": "1"}
        names |= {"MOOLA_STORE": self.store.url, "MOOLA_WORK": str(self.folder / "work")} | environment
        return subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, **names},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def run(self, work: str, **environment: str) -> tuple[int, str]:
        process = self.start(work, **environment)
        out, _ = process.communicate(timeout=60)
        return process.returncode, out

    def wait_until_running(self) -> None:
        key = attempt_key(self.run_id, self.launch.attempt, "status.json")
        wait_for(lambda: json.loads(self.store.get_or_none(key) or b"{}").get("state") == "running", "running")

    @property
    def state(self) -> str:
        return str(run_state(self.store, self.run_id)["state"])

    @property
    def reason(self) -> str:
        return str(run_state(self.store, self.run_id)["status"]["reason"])


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    return Pod(tmp_path)


def test_a_job_that_ends_well_is_committed_and_its_lines_are_numbered(pod: Pod) -> None:
    code, out = pod.run("attempt.stage('think')")
    assert (code, pod.state) == (0, "committed")
    assert "#1 INFO think" in out


def test_sigterm_reaches_the_job_and_its_state_stands(pod: Pod) -> None:
    process = pod.start("time.sleep(60)")
    pod.wait_until_running()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode == 143
    assert pod.state == "terminated"


def test_the_deadline_ends_the_job_as_timed_out(pod: Pod) -> None:
    code, _ = pod.run("time.sleep(60)", MOOLA_DEADLINE=str(time.time() + 2))
    assert (code, pod.state) == (124, "timed_out")


def test_a_job_that_ignores_the_signal_is_killed_and_recorded(pod: Pod) -> None:
    work = "import signal; signal.signal(signal.SIGXCPU, signal.SIG_IGN); time.sleep(60)"
    code, _ = pod.run(work, MOOLA_DEADLINE=str(time.time() + 2))
    assert (code, pod.state) == (124, "timed_out")


def test_a_killed_job_is_recorded_with_what_it_said_last(pod: Pod) -> None:
    code, _ = pod.run("print('the last words', flush=True); os.kill(os.getpid(), 9)")
    assert (code, pod.state) == (137, "failed")
    assert "killed by SIGKILL" in pod.reason
    assert "the last words" in pod.reason
    manifest = read_json(pod.store, attempt_key(pod.run_id, pod.launch.attempt, "manifest.json"))
    assert (manifest["state"], manifest["files"]) == ("failed", [])


def test_a_job_killed_after_its_commit_stays_committed(pod: Pod) -> None:
    work = (
        "import moola.runs; commit = moola.runs.commit_run\n"
        "    moola.runs.commit_run = lambda *a: (commit(*a), os.kill(os.getpid(), 9))"
    )
    assert pod.run(work)[0] == 0
    assert pod.state == "committed"


def test_a_second_boot_does_not_run_the_job_twice(pod: Pod) -> None:
    pod.start("os.kill(os.getppid(), 9); time.sleep(0.5); os.kill(os.getpid(), 9)").communicate(timeout=60)
    code, out = pod.run("print('ran twice')")
    assert (code, pod.state) == (1, "crash_loop")
    assert "started a second time" in pod.reason
    assert "ran twice" not in out


def test_a_container_restarted_after_the_end_does_nothing(pod: Pod) -> None:
    assert pod.run("pass")[0] == 0
    code, out = pod.run("print('ran twice')")
    assert (code, pod.state) == (0, "committed")
    assert "ran twice" not in out


def test_a_launch_that_was_given_up_does_nothing(pod: Pod) -> None:
    assert claim(pod.store, pod.run_id, 2, "precompute", "image", {})
    code, out = pod.run("print('ran')")
    assert code == 143
    assert "given up for launch 2" in out
    assert "INFO" not in out


def test_a_job_that_was_never_started_by_python_leaves_a_record(pod: Pod) -> None:
    """The job cannot be imported: it leaves no status, so the supervisor does."""
    code, _ = pod.run("pass\nraise SyntaxError('cannot start')\n#")
    assert (code, pod.state) == (1, "failed")
    assert "cannot start" in pod.reason


def test_the_runner_exits_with_the_job_s_code_where_no_machine_is_rented(pod: Pod) -> None:
    environment = {
        **os.environ,
        "MOOLA_STORE": pod.store.url,
        "MOOLA_WORK": str(pod.folder / "work"),
        "MOOLA_JOB": "precompute",
        "MOOLA_RUN": "precompute-nothere",
        "MOOLA_ATTEMPT": "20261122T231500Z-9f86d081",
    }
    environment.pop("RUNPOD_POD_ID", None)
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "runner.py")], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 4
    assert "spec.json is not in the store" in done.stdout

"""The supervisor with real child processes.

Signals, deadline, a killed job, a second boot, a launch that was given up.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moola.jobs import entry
from moola.runs.launches import Launch, claim
from moola.runs.protocol import attempt_key, read_json
from moola.runs.reading import run_state
from moola.runs.submit import describe_run, submit
from moola.store import Store, open_store
from tests.test_launch import wait_for

ROOT = Path(__file__).resolve().parents[1]

JOB = """
import logging, os, sys, time
from pathlib import Path
from moola.jobs.process import run_job
def work_on(attempt, document):
    {work}
sys.exit(run_job("precompute", work_on, None))
"""

IMAGE = "img@sha256:" + "0" * 64


class Pod:
    """A process that supervises one attempt, as in a container."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cgroup = folder / "cgroup"
        self.store: Store = open_store(f"file://{folder}/store")
        self.run_id, document = describe_run("precompute", {"windows": "stored"}, {})
        submit(self.store, self.run_id, document)
        launch = claim(self.store, self.run_id, 1, "precompute", IMAGE, {"cpu": {}})
        assert launch is not None
        self.launch: Launch = launch

    def start(self, work: str, **environment: str) -> subprocess.Popen[str]:
        script = self.folder / "job.py"
        script.write_text(JOB.format(work=work))
        code = (
            "import os, sys\n"
            "from pathlib import Path\n"
            "from moola.jobs.supervisor import log_to_stdout, supervise\n"
            "from moola.runs import usage\n"
            f"usage.CGROUP = Path({str(self.cgroup)!r})\n"
            f"log_to_stdout(); sys.exit(supervise(os.environ, [sys.executable, {str(script)!r}]))"
        )
        names = {
            "MOOLA_RUN": self.run_id,
            "MOOLA_ATTEMPT": self.launch.attempt,
            "MOOLA_LAUNCH": "1",
        }
        names |= {
            "MOOLA_STORE": self.store.url,
            "MOOLA_WORK": str(self.folder / "work"),
        } | environment
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
        wait_for(
            lambda: json.loads(self.store.get_or_none(key) or b"{}").get("state") == "running",
            "running",
        )

    @property
    def state(self) -> str:
        return str(run_state(self.store, self.run_id).state)

    @property
    def reason(self) -> str:
        return run_state(self.store, self.run_id).reason


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


def test_a_job_killed_for_want_of_memory_is_recorded_as_such(pod: Pod) -> None:
    pod.cgroup.mkdir()
    events = pod.cgroup / "memory.events"
    events.write_text("oom 3\noom_kill 3\n")
    (pod.cgroup / "memory.max").write_text("2000000000\n")
    kill = "os.kill(os.getpid(), 9)"
    code, _ = pod.run(f"Path({str(events)!r}).write_text('oom 4\\noom_kill 4\\n'); {kill}")
    assert (code, pod.state) == (137, "failed")
    assert pod.reason == "out of memory: the container's limit is 2,000 MB"


def test_a_job_killed_after_others_ran_out_of_memory_is_just_killed(pod: Pod) -> None:
    pod.cgroup.mkdir()
    (pod.cgroup / "memory.events").write_text("oom_kill 3\n")
    pod.run("os.kill(os.getpid(), 9)")
    assert "killed by SIGKILL" in pod.reason


@pytest.mark.parametrize(
    ("work", "stop", "exit_code"),
    [
        ("sys.exit(7)", None, 7),
        ("os.kill(os.getpid(), 9)", None, 137),
        ("import signal; signal.signal(15, signal.SIG_DFL); time.sleep(60)", signal.SIGTERM, 143),
    ],
)
def test_a_job_without_an_attempt_ends_with_its_exit_code(
    pod: Pod, work: str, stop: signal.Signals | None, exit_code: int
) -> None:
    process = pod.start(f"Path({str(pod.folder / 'up')!r}).touch(); {work}", MOOLA_ATTEMPT="")
    if stop is not None:
        wait_for(lambda: (pod.folder / "up").exists(), "up")
        time.sleep(0.2)
        process.send_signal(stop)
    process.communicate(timeout=60)
    assert process.returncode == exit_code


def test_a_job_killed_after_its_commit_stays_committed(pod: Pod) -> None:
    work = (
        "import moola.runs.attempt as attempts; commit = attempts.commit_run\n"
        "    attempts.commit_run = lambda *a: (commit(*a), os.kill(os.getpid(), 9))"
    )
    assert pod.run(work)[0] == 0
    assert pod.state == "committed"


def test_a_second_boot_does_not_run_the_job_twice(pod: Pod) -> None:
    pod.start("os.kill(os.getppid(), 9); time.sleep(0.5); os.kill(os.getpid(), 9)").communicate(
        timeout=60
    )
    code, out = pod.run("print('ran twice')")
    assert (code, pod.state) == (70, "crash_loop")
    assert "started a second time" in pod.reason
    assert "ran twice" not in out


def test_a_container_restarted_after_the_end_does_nothing(pod: Pod) -> None:
    assert pod.run("pass")[0] == 0
    code, out = pod.run("print('ran twice')")
    assert (code, pod.state) == (0, "committed")
    assert "ran twice" not in out


def test_a_launch_that_was_given_up_does_nothing(pod: Pod) -> None:
    assert claim(pod.store, pod.run_id, 2, "precompute", IMAGE, {"cpu": {}})
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
        "MOOLA_RUN": "precompute-0123456789ab",
        "MOOLA_ATTEMPT": "20261122T231500Z-9f86d081",
    }
    environment.pop("RUNPOD_POD_ID", None)
    assert run_entry(environment) == (4, "spec.json is missing in")

    empty = dict.fromkeys(["RUNPOD_POD_ID", "MOOLA_JOB", "MOOLA_DEADLINE", "MOOLA_LAUNCH"], "")
    assert run_entry({**environment, **empty}) == (4, "spec.json is missing in")


def run_entry(environment: dict[str, str]) -> tuple[int, str]:
    """The exit code of an image's entry point, and what it says of a run that is not there."""
    done = subprocess.run(
        [sys.executable, "-m", "moola.jobs.entry"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    words = "spec.json is missing in"
    return done.returncode, words if words in done.stdout else done.stdout


def test_an_empty_number_of_the_launch_is_none(pod: Pod) -> None:
    assert pod.run("print('ran')", MOOLA_LAUNCH="")[0] == 0
    assert pod.state == "committed"


@pytest.mark.parametrize("arguments", [[], ["bake"], ["precompute", "train"]])
def test_a_job_that_does_not_exist_is_a_matter_of_usage(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "moola.jobs", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "usage: python -m moola.jobs precompute|train\n"


def test_a_run_of_another_job_is_refused(pod: Pod) -> None:
    run_id, document = describe_run("train", {"fraction": 1.0}, {})
    submit(pod.store, run_id, document)
    code, out = pod.run("print('ran')", MOOLA_RUN=run_id, MOOLA_ATTEMPT="")
    assert code == 3
    assert f"this is the precompute job, but run {run_id} is a train run" in out
    assert "ran\n" not in out


@pytest.mark.parametrize(("seconds_left", "slept_s"), [(100.0, 220.0), (-500.0, 120.0)])
def test_a_machine_is_ended_two_minutes_after_the_deadline_whatever_the_job_does(
    monkeypatch: pytest.MonkeyPatch, seconds_left: float, slept_s: float
) -> None:
    slept = []
    ended = []
    monkeypatch.setenv("MOOLA_DEADLINE", "1000")
    monkeypatch.setattr(entry.time, "time", lambda: 1000 - seconds_left)
    monkeypatch.setattr(entry.time, "sleep", slept.append)
    monkeypatch.setattr(entry, "end_machine", lambda: ended.append(True))
    entry.end_machine_when_late()
    assert (slept, ended) == ([slept_s], [True])

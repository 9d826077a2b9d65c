"""Sweeps on Ray: real clusters of real nodes, one of which is killed in the middle."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import moola
from moola.errors import DataError, TryAgainError
from moola.jobs.prepare import PreparedRun
from moola.launch.local import job_arguments, start_job
from moola.launch.member_progress import MemberProgress
from moola.launch.on_ray.environment import store_environment
from moola.launch.on_ray.members import MemberOrder, RayMembers
from moola.launch.on_ray.members import _Member as RayMember
from moola.launch.on_ray.share import room_for, share_of
from moola.launch.on_ray.task import new_attempt_id, own_attempts, task_for_nodes
from moola.launch.settings import Settings
from moola.providers.ray_cluster import Cluster, Node, Share, Task, TaskEnd, open_cluster
from moola.runs.binding import is_attempt_id
from moola.runs.protocol import attempt_key
from moola.runs.provenance import code_sha256
from moola.runs.reading import (
    attempts_of,
    newest_checkpoint,
    read_manifest,
    read_status,
    run_state,
)
from moola.runs.submit import describe_run
from moola.specs import CpuMachine, GpuMachine, MachineConfig
from moola.store import Store, open_store
from moola.store.background import in_background
from tests.feature_set import random_bars
from tests.ray_nodes import RayNodes, running_ray_nodes
from tests.ray_sweep import SMALL_JOB, ended_small, run_small, start_small
from tests.rented import wait_for
from tests.runs import attempt_id, pid_of, submitted_run
from tests.test_sweep import LONGEST_S, Computer, at_work, digests

pytest.importorskip("ray", reason="needs the extra `ray`")

N_SMALL = 6


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    with running_ray_nodes() as running:
        yield running


def computer(folder: Path, store: str, **variables: str) -> Computer:
    variables = {"MOOLA_BEAT_S": "0.1", "OMP_NUM_THREADS": "1", "RAY_ADDRESS": "", **variables}
    return Computer(folder, store, variables)


def is_child_of(store: Store, run_id: str, raylet: str) -> bool:
    """Is a run at work on the node of this process?"""
    try:
        environment = Path(f"/proc/{pid_of(store, run_id)}/environ").read_text()
    except OSError:  # it has just ended
        return False
    return f"RAY_RAYLET_PID={raylet}" in environment.split("\0")


def run_on(store: Store, raylet: str) -> str | None:
    """The run at work on that node, once it has a checkpoint."""
    at_work_now = at_work(store, store.children("runs"))
    working = [run_id for run_id in at_work_now if newest_checkpoint(store, run_id)]
    return next((run_id for run_id in working if is_child_of(store, run_id, raylet)), None)


# --- no cluster is needed ---------------------------------------------------------------------


def prepared(machine: MachineConfig, job: str = "train", device: str = "auto") -> PreparedRun:
    run_id, document = describe_run(job, {"device": device}, {})
    return PreparedRun(job, run_id, document, {}, machine)


def test_a_member_takes_what_its_spec_says_of_what_there_is() -> None:
    cpu = MachineConfig(cpu=CpuMachine(vcpus=8))
    gpu = MachineConfig(gpu=GpuMachine(count=2))
    small = Node("10.0.0.1", 4, 0, 16)
    large = Node("10.0.0.2", 16, 4, 64)

    assert share_of(prepared(cpu), [small, large]) == Share(8, 0, 2)
    assert share_of(prepared(cpu), [small]) == Share(4, 0, 2)
    assert share_of(prepared(cpu), []) == Share(8, 0, 2)
    assert share_of(prepared(gpu), [small, large]) == Share(8, 2, 2)
    assert share_of(prepared(gpu, device="cpu"), [small, large]) == Share(4, 0, 2)
    assert share_of(prepared(gpu), [small]) == Share(4, 0, 2)
    with pytest.raises(DataError, match="needs a node with 2 GPUs"):
        share_of(prepared(gpu, device="cuda"), [small])

    assert room_for(Share(2, 0, 2), [small, large]) == 10
    assert room_for(Share(8, 2, 2), [small, large]) == 2
    assert room_for(Share(1, 0, 8), [small, large]) == 10
    assert room_for(Share(64, 0, 2), [small]) == 1


def test_a_new_attempt_is_the_last_one_whatever_the_clock_of_a_node_says(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}")
    run_id = submitted_run(store)
    of_tomorrow = "20991231T000000Z-ffff0000"
    for name in (of_tomorrow, attempt_id(1)):
        store.put(attempt_key(run_id, name, "status.json"), b"{}")

    mine = new_attempt_id(store, run_id, "1a2b")
    assert is_attempt_id(mine)
    assert mine.startswith("20991231T000000Z-1a2b")
    store.put(attempt_key(run_id, mine, "status.json"), b"{}")
    assert own_attempts(store, run_id, "1a2b") == [mine]
    assert new_attempt_id(store, run_id, "1a2b") > mine


def order(**fields: Any) -> Mapping[str, Any]:
    return {"version": moola.__version__, "code": "", "run_id": "", "environment": {}, **fields}


def test_a_node_with_another_moola_is_refused_by_name() -> None:
    run = task_for_nodes()
    other = run(order(version="9.9.9"))
    assert other["exit_code"] == 3
    assert f"must be 9.9.9 as here, got {moola.__version__}" in other["words"]
    assert "has other code" in run(order(code="0" * 64))["words"]


def test_a_node_without_moola_says_so(tmp_path: Path) -> None:
    from ray import cloudpickle

    (tmp_path / "task").write_bytes(cloudpickle.dumps(task_for_nodes()))
    code = (
        "import sys; sys.modules['moola'] = None\n"
        "from ray import cloudpickle\n"
        "print(cloudpickle.load(open('task', 'rb'))({'version': '1'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert "has no moola" in done.stdout


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moola.providers.ray_cluster.find_spec", lambda _: None)
    with (
        pytest.raises(DataError, match=r"pip install 'moola\[ray\]'"),
        open_cluster(1, with_gpus=False),
    ):
        pass


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:80", "ray://10.0.0.1:10001", "here", "127.0.0.1:99999", "a b:1"]
)
def test_what_is_no_address_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(DataError, match="must be HOST:PORT"), open_cluster(1, with_gpus=False):
        pass


def test_a_cluster_that_does_not_answer_ends_a_sweep_before_anything_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        random_bars().to_parquet(tmp_path / "bars.parquet")
        launch = computer(tmp_path, f"file://{tmp_path}/store", RAY_ADDRESS=address)
        output = launch(
            "sweep", "precompute", "--bars", "bars.parquet", "--on", "ray", exit_code=75
        )
        assert f"no Ray cluster answers at RAY_ADDRESS={address}" in output
        assert not (tmp_path / "store" / "runs").exists()

        unused.listen()
        monkeypatch.setenv("RAY_ADDRESS", address)
        monkeypatch.setattr("moola.providers.ray_cluster.ANSWER_S", 0.5)
        with pytest.raises(TryAgainError, match="no word of Ray"), open_cluster(1, with_gpus=False):
            pass


def test_a_leashed_job_stops_when_its_launcher_is_gone(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/store")
    launch = computer(tmp_path, store.url)
    launch("precompute", "--dry-run")
    run_id = submitted_run(store, synthetic={"start": "2015-01-02", "end": "2024-12-31"})
    name = attempt_id(1)
    environment = {
        "MOOLA_STORE": store.url,
        "MOOLA_WORK": str(tmp_path / "work"),
        "MOOLA_RUN": run_id,
        "MOOLA_ATTEMPT": name,
    }
    with start_job(job_arguments("precompute"), environment, leashed=True) as process:
        wait_for(lambda: read_status(store, run_id, name), "the job at work", LONGEST_S)
        assert process.poll() is None
        assert process.stdin is not None
        process.stdin.close()
        process.wait()
    status = read_status(store, run_id, name)
    assert status is not None
    assert status.state == "terminated"


def test_a_task_that_is_run_again_goes_on_from_the_checkpoint(tmp_path: Path) -> None:
    """As Ray runs it again whose process was killed: no cluster is needed to see it."""
    store = open_store(f"file://{tmp_path}/store")
    run_id = submitted_run(store, "small", steps=40)
    environment = {"MOOLA_STORE": store.url, "MOOLA_WORK": str(tmp_path / "work")}
    told = order(
        code=code_sha256(),
        run_id=run_id,
        arguments=[str(SMALL_JOB)],
        mark="1a2b",
        environment={**environment, "MOOLA_RUN": run_id, "MOOLA_BEAT_S": "0.1"},
    )
    code = (
        "import json, sys; from moola.launch.on_ray.task import run_member\n"
        "print(json.dumps(run_member(json.loads(sys.argv[1]))))"
    )
    command = [sys.executable, "-c", code, json.dumps(told)]
    with subprocess.Popen(command) as killed:
        wait_for(lambda: newest_checkpoint(store, run_id), "a checkpoint", LONGEST_S)
        killed.kill()

    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"exit_code": 0, "words": ""}
    require_resumed(store, run_id)


def require_resumed(store: Store, run_id: str) -> None:
    """The run was committed by its second attempt, which went on where the first one was."""
    first, second = attempts_of(store, run_id)
    status = read_status(store, run_id, first)
    assert status is not None
    assert status.state in ("infra_lost", "terminated")
    manifest = read_manifest(store, run_id)
    assert manifest is not None
    assert manifest.attempt_id == second
    (resumed,) = [entry for entry in manifest.files if entry.path == "resumed.json"]
    assert json.loads(store.get(resumed.key))["from"] > 0


class ClusterOf(Cluster):
    """Of nodes that are here or elsewhere."""

    def __init__(self, *, here: bool) -> None:
        super().__init__(is_own=False)
        self._here = here

    def is_here(self) -> bool:
        return self._here


def test_nodes_elsewhere_cannot_reach_a_store_of_this_computer(
    s3_environment: dict[str, str], s3_url: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    longest = timedelta(hours=1)
    on_s3 = Settings(store=s3_url)
    store = open_store(s3_url)
    with pytest.raises(DataError, match="this computer's own address"):
        store_environment(on_s3, store, ClusterOf(here=False), longest)

    sent = store_environment(on_s3, store, ClusterOf(here=True), longest)
    assert {**sent, **s3_environment} == sent
    assert sent["AWS_PROFILE"] == ""  # of a node: it would bring keys of its own

    folder = Settings(store=f"file://{tmp_path}")
    assert store_environment(folder, open_store(folder.store), ClusterOf(here=False), longest) == {}
    assert "all nodes must share it" in capsys.readouterr().err


def test_a_folder_that_a_node_does_not_share_is_named(tmp_path: Path) -> None:
    environment = {"MOOLA_STORE": f"file://{tmp_path}/of-the-node", "MOOLA_WORK": str(tmp_path)}
    told = order(code=code_sha256(), run_id="train-0123456789ab", environment=environment)
    ending = task_for_nodes()(told)
    assert ending["exit_code"] == 4
    assert "must be one that all nodes share" in ending["words"]
    assert "MOOLA_STORE" not in os.environ


def test_one_run_is_told_to_be_a_sweep(tmp_path: Path) -> None:
    launch = computer(tmp_path, f"file://{tmp_path}/store", MOOLA_ON="ray")
    assert "moola sweep precompute ... --on ray" in launch("precompute", exit_code=3)


# --- members of a launcher, without a cluster -----------------------------------------------------


class GivenTask(Task):
    """In the place of Ray's: it ends when it is told to; what it is asked for is kept."""

    def __init__(self) -> None:
        self.cancelled: list[bool] = []  # `force` of each
        self.given: TaskEnd | None = None

    def has_ended(self) -> bool:
        return self.given is not None

    def end(self) -> TaskEnd:
        assert self.given is not None
        return self.given

    def cancel(self, *, force: bool) -> None:
        self.cancelled.append(force)


class GivenCluster(Cluster):
    """Takes what is to be started: its tasks have ended at once."""

    def __init__(self) -> None:
        super().__init__(is_own=False)
        self.started: list[tuple[Mapping[str, Any], Share, dict[str, Any]]] = []

    def start(self, _: object, order: Mapping[str, Any], share: Share, **options: Any) -> GivenTask:
        self.started.append((order, share, options))
        task = GivenTask()
        task.given = TaskEnd({"exit_code": 3, "words": ""}, "")
        return task


SECRET = "s3cretKeyOfTheStore"


def test_keys_are_in_the_environment_of_the_order_and_nothing_else_that_ray_is_given(
    tmp_path: Path,
) -> None:
    store = open_store(f"file://{tmp_path}")
    run_id = submitted_run(store, "small")
    cluster = GivenCluster()
    orders = {run_id: MemberOrder(Share(1, 0, 1), 2, {"AWS_SECRET_ACCESS_KEY": SECRET})}
    members = RayMembers(cluster, store, ["job.py"], orders, parallel=1)
    with MemberProgress(Console(quiet=True), store, {run_id: ""}) as progress:
        assert members.run([run_id], progress) == {run_id: 3}

    ((order, share, options),) = cluster.started
    assert order["environment"] == {"AWS_SECRET_ACCESS_KEY": SECRET}
    rest = {name: value for name, value in order.items() if name != "environment"}
    assert SECRET not in repr((rest, share, options))


def test_the_keys_of_an_order_are_in_the_job_and_not_left_in_rays_process(tmp_path: Path) -> None:
    """Which does the tasks of others next."""
    store = open_store(f"file://{tmp_path}/store")
    run_id = submitted_run(store, "small")
    job = tmp_path / "job.py"
    seen = tmp_path / "seen"
    job.write_text(
        f"import json, os\nprint(json.dumps(dict(os.environ)), file=open({str(seen)!r}, 'w'))\n"
    )
    code = (
        "import json, os, sys; from moola.launch.on_ray.task import run_member\n"
        "before = dict(os.environ)\n"
        "run_member(json.loads(sys.stdin.read()))\n"
        "assert dict(os.environ) == before"
    )
    environment = {
        "MOOLA_STORE": store.url,
        "MOOLA_WORK": str(tmp_path / "work"),
        "MOOLA_RUN": run_id,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_PROFILE": "",
    }
    told = order(
        code=code_sha256(),
        run_id=run_id,
        arguments=[str(job)],
        mark="1a2b",
        environment=environment,
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        input=json.dumps(told),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(seen.read_text())["AWS_SECRET_ACCESS_KEY"] == SECRET
    assert not [path for path in (tmp_path / "store").rglob("*") if holds(path, SECRET)]
    assert SECRET not in done.stdout + done.stderr


def holds(path: Path, secret: str) -> bool:
    return path.is_file() and secret.encode() in path.read_bytes()


def put_running(store: Store, run_id: str, attempt: str) -> None:
    status = {"state": "running", "time": "2026-01-01T00:00:00+00:00"}
    store.put(attempt_key(run_id, attempt, "status.json"), json.dumps(status).encode())


def is_asked_to_stop(store: Store, run_id: str, attempt: str) -> bool:
    return store.exists(attempt_key(run_id, attempt, "cancel.json"))


def test_ctrl_c_stops_what_this_launcher_runs_and_not_what_another_one_does(
    tmp_path: Path,
) -> None:
    store = open_store(f"file://{tmp_path}")
    run_id = submitted_run(store, "small")
    others = attempt_id(1)
    put_running(store, run_id, others)
    task = GivenTask()
    member = RayMember(store, run_id, 0, "1a2b", task)
    member.send_signal(signal.SIGINT)
    assert task.cancelled == [False], "it waits for the other one, on some node"
    assert not is_asked_to_stop(store, run_id, others)

    own = new_attempt_id(store, run_id, "1a2b")
    put_running(store, run_id, own)
    newest = new_attempt_id(store, run_id, "ffff")
    put_running(store, run_id, newest)
    member = RayMember(store, run_id, 0, "1a2b", GivenTask())
    member.send_signal(signal.SIGINT)
    asked = {name: is_asked_to_stop(store, run_id, name) for name in (others, own, newest)}
    assert asked == {others: False, own: True, newest: False}


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    """Ray ends the task's process, which can record no end: the launcher does."""
    store = open_store(f"file://{tmp_path}")
    run_id = submitted_run(store, "small")
    own = new_attempt_id(store, run_id, "1a2b")
    put_running(store, run_id, own)
    task = GivenTask()
    member = RayMember(store, run_id, 0, "1a2b", task)
    member.send_signal(signal.SIGINT)
    assert member.poll(signal.SIGINT) is None
    member.send_signal(signal.SIGINT)
    assert task.cancelled == [False, True]

    task.given = TaskEnd(None, "cancelled")
    assert member.poll(signal.SIGINT) == 130
    status = read_status(store, run_id, own)
    assert status is not None
    assert status.state == "cancelled"


# --- a cluster of this computer, which ends with the sweep --------------------------------------


def test_ctrl_c_ends_the_members_and_begins_no_other(tmp_path: Path) -> None:
    for number in range(2):
        random_bars(seed=number).to_parquet(tmp_path / f"market-{number}.parquet")
    launch = computer(tmp_path, f"file://{tmp_path}/store")
    sweep = ("sweep", "precompute", "--bars", "*.parquet", "--windows", "virtual", "--on", "ray")
    store = open_store(launch.store)

    process = launch.start(*sweep, "--parallel", "1")
    wait_for(lambda: at_work(store, launch.runs()), "a member at work", LONGEST_S)
    process.send_signal(signal.SIGINT)
    output = "".join(process.communicate(timeout=LONGEST_S))
    assert process.returncode == 130, output
    states = sorted(str(run_state(store, run_id).state) for run_id in launch.runs())
    assert states == ["cancelled", "submitted"], output

    launch(*sweep)
    states = [run_state(store, run_id).state for run_id in launch.runs()]
    assert states == ["committed"] * 2


# --- a cluster of two nodes ---------------------------------------------------------------------


def test_keys_reach_the_job_and_nothing_that_ray_keeps(
    nodes: RayNodes, s3_environment: dict[str, str], s3_url: str, tmp_path: Path
) -> None:
    s3_store = open_store(s3_url)
    random_bars().to_parquet(tmp_path / "bars.parquet")
    launch = computer(tmp_path, s3_store.url, **s3_environment, RAY_ADDRESS=nodes.address)
    sweep = ("sweep", "precompute", "--bars", "*.parquet", "--windows", "virtual", "--on", "ray")
    launch(*sweep)
    (run_id,) = s3_store.children("runs")
    alone = computer(tmp_path, f"file://{tmp_path}/alone")
    alone("precompute", "--bars", "bars.parquet", "--windows", "virtual")
    assert digests(open_store(alone.store), run_id) == digests(s3_store, run_id)
    again = launch(
        "sweep", "precompute", "--bars", "*.parquet", "--windows", "virtual", "--on", "ray"
    )
    assert "1 of them committed already" in again
    assert len(attempts_of(s3_store, run_id)) == 1

    secret = s3_environment["AWS_SECRET_ACCESS_KEY"].encode()
    logs = [path for path in Path(nodes.session).rglob("*") if path.is_file()]
    assert logs
    assert not [path for path in logs if secret in path.read_bytes()]
    listed = nodes.kept()
    assert f"moola {run_id}" in listed
    assert secret.decode() not in listed


def test_how_a_run_ended_is_what_its_records_say(nodes: RayNodes, tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/store")
    bad = submitted_run(store, "small", steps=1, exit_code=3)
    passing = submitted_run(store, "small", steps=1, exit_code=75)
    missing = "small-0123456789ab"
    exit_codes = run_small(store.url, tmp_path / "work", [bad, passing, missing], nodes.address)
    assert exit_codes == {bad: 3, passing: 75, missing: 4}
    assert len(attempts_of(store, bad)) == 1, "what cannot pass is not tried again"
    assert len(attempts_of(store, passing)) == 3


def test_a_second_ctrl_c_does_not_wait_for_a_job_that_does_not_stop(
    nodes: RayNodes, tmp_path: Path
) -> None:
    """The run is cancelled, and another launcher's goes on. Ray ends the job, sooner or later."""
    store = open_store(f"file://{tmp_path}/store")
    run_id = submitted_run(store, "small", steps=1, hang=True, is_deaf=True)
    others = attempt_id(1)
    put_running(store, run_id, others)
    launcher = start_small(store.url, tmp_path / "work", [run_id], nodes.address)

    def own_attempt() -> str | None:
        has_begun = newest_checkpoint(store, run_id) is not None
        return attempts_of(store, run_id)[-1] if has_begun else None

    own = str(wait_for(own_attempt, "the job at its last step", LONGEST_S))
    pid = pid_of(store, run_id)
    try:
        launcher.send_signal(signal.SIGINT)
        wait_for(lambda: is_asked_to_stop(store, run_id, own), "the request", LONGEST_S)
        assert launcher.poll() is None
        assert Path(f"/proc/{pid}").exists()
        launcher.send_signal(signal.SIGINT)
        assert ended_small(launcher) == {run_id: 130}
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        launcher.kill()

    status = read_status(store, run_id, own)
    assert status is not None
    assert status.state == "cancelled"
    assert not is_asked_to_stop(store, run_id, others)


def test_a_group_survives_the_loss_of_a_node(nodes: RayNodes, tmp_path: Path) -> None:
    """All is committed once; what ran on the node goes on elsewhere from its checkpoint."""
    store = open_store(f"file://{tmp_path}/store")
    run_ids = [submitted_run(store, "small", steps=40 + number) for number in range(N_SMALL)]

    def kill() -> str:
        lost = wait_for(lambda: run_on(store, nodes.raylet), "a checkpoint there", LONGEST_S)
        nodes.kill_node()
        return str(lost)

    killing = in_background(kill)
    exit_codes = run_small(store.url, tmp_path / "work", run_ids, nodes.address)
    lost = killing.result()
    assert exit_codes == dict.fromkeys(run_ids, 0)
    n_attempts = {run_id: len(attempts_of(store, run_id)) for run_id in run_ids}
    assert n_attempts == {run_id: 2 if run_id == lost else 1 for run_id in run_ids}

    require_resumed(store, lost)

"""Sweeps on this computer, as a person runs them: processes, signals, kill -9, and again."""

import os
import signal
from pathlib import Path

import pytest

from moola.runs.groups import group_of
from moola.runs.protocol import COMMIT, run_key
from moola.runs.reading import attempts_of, read_manifest, run_state
from moola.store import Store, open_store
from tests.feature_set import random_bars
from tests.rented import wait_for
from tests.runs import pid_of
from tests.test_launch import Launcher

N_FILES = 3
LONGEST_S = 500.0  # for a step: a case that takes longer hangs


class Computer(Launcher):
    """A launcher that may take long: each command starts several processes."""

    longest_s = LONGEST_S

    def __call__(self, *args: str, exit_code: int = 0) -> str:
        process = self.start(*args)
        out, err = process.communicate(timeout=self.longest_s)
        assert process.returncode == exit_code, f"exit {process.returncode}\n{out}\n{err}"
        return out + err


@pytest.fixture
def launch(tmp_path: Path) -> Launcher:
    return Computer(tmp_path, f"file://{tmp_path}/store", {"MOOLA_BEAT_S": "0.1"})


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "bars"
    folder.mkdir()
    paths = [folder / f"market-{number}.parquet" for number in range(N_FILES)]
    for number, path in enumerate(paths):
        random_bars(seed=number).to_parquet(path)
    return paths


SWEEP = ("sweep", "precompute", "--bars", "bars/*.parquet", "--windows", "virtual")


def store_of(launch: Launcher) -> Store:
    return open_store(launch.store)


def digests(store: Store, run_id: str) -> dict[str, str]:
    """path -> sha256 of what a run made."""
    manifest = read_manifest(store, run_id)
    assert manifest is not None
    return {entry.path: entry.sha256 for entry in manifest.entries}


def results_of(store: Store, run_id: str) -> dict[str, str]:
    """Without the report, which shows what the machine was used for."""
    made = digests(store, run_id)
    made.pop("report.html")
    return made


def at_work(store: Store, run_ids: list[str]) -> list[str]:
    """The runs whose process writes heartbeats."""
    return [run_id for run_id in run_ids if run_state(store, run_id).state == "running"]


def planned(launch: Launcher) -> list[str]:
    """The ids of the members, by a dry run."""
    words = launch(*SWEEP, "--dry-run").replace("│", " ").split()
    return [word for word in words if word.startswith("precompute-")]


def test_members_are_ordinary_runs_and_the_same_sweep_computes_nothing(
    launch: Launcher, files: list[Path], tmp_path: Path
) -> None:
    run_ids = planned(launch)
    assert not (tmp_path / "store").exists()

    output = launch(*SWEEP, "--parallel", "2")
    store = store_of(launch)
    assert sorted(launch.runs()) == sorted(run_ids)
    assert "2 at once" in output
    assert store.children("groups") == [group_of("precompute", run_ids).id]
    attempts = {run_id: attempts_of(store, run_id) for run_id in run_ids}
    assert [len(each) for each in attempts.values()] == [1] * N_FILES

    again = launch(*SWEEP)
    assert f"{N_FILES} of them committed already" in again
    assert {run_id: attempts_of(store, run_id) for run_id in run_ids} == attempts
    table = launch("group", store.children("groups")[0])
    assert all(path.name in table for path in files)

    (tmp_path / "alone").mkdir()
    alone = Computer(tmp_path / "alone", f"file://{tmp_path}/alone/store")
    alone("precompute", "--bars", str(files[1]), "--windows", "virtual")
    (run_id,) = alone.runs()
    assert run_id in run_ids
    assert digests(store_of(alone), run_id) == digests(store, run_id)


def test_a_killed_launcher_leaves_members_that_the_same_sweep_meets(
    launch: Launcher, files: list[Path]
) -> None:
    """Members of a killed launcher go on; the next launcher waits for them and does the rest."""
    run_ids = planned(launch)
    store = store_of(launch)
    process = launch.start(*SWEEP, "--parallel", "2")
    wait_for(lambda: at_work(store, run_ids), "a member at work", LONGEST_S)
    process.kill()
    process.communicate()

    launch(*SWEEP, "--parallel", "2")
    for run_id in run_ids:
        assert read_manifest(store, run_id) is not None
        assert len(attempts_of(store, run_id)) == 1, "nothing was done twice"
    assert len(files) == len(run_ids)


def test_a_sweep_killed_with_its_members_goes_on(launch: Launcher, files: list[Path]) -> None:
    run_ids = planned(launch)
    store = store_of(launch)
    process = launch.start(*SWEEP, "--parallel", "1")
    wait_for(lambda: store.exists(run_key(run_ids[0], COMMIT)), "the first commit", LONGEST_S)
    wait_for(lambda: at_work(store, run_ids), "a second member at work", LONGEST_S)
    process.kill()
    process.communicate()
    for run_id in at_work(store, run_ids):
        os.kill(pid_of(store, run_id), signal.SIGKILL)

    first = attempts_of(store, run_ids[0])
    launch(*SWEEP)
    assert attempts_of(store, run_ids[0]) == first
    assert [run_state(store, run_id).state for run_id in run_ids] == ["committed"] * len(files)


@pytest.mark.parametrize(
    ("signum", "exit_code", "state"),
    [(signal.SIGINT, 130, "cancelled"), (signal.SIGTERM, 143, "terminated")],
)
def test_a_stop_ends_the_members_and_begins_no_other(
    launch: Launcher,
    files: list[Path],
    signum: int,
    exit_code: int,
    state: str,
) -> None:
    run_ids = planned(launch)
    store = store_of(launch)
    process = launch.start(*SWEEP, "--parallel", "2")
    wait_for(lambda: at_work(store, run_ids), "a member at work", LONGEST_S)
    process.send_signal(signum)
    output = "".join(process.communicate(timeout=LONGEST_S))
    assert process.returncode == exit_code, output

    states = [str(run_state(store, run_id).state) for run_id in run_ids]
    assert state in states
    assert set(states) <= {state, "committed", "submitted"}
    assert "submitted" in states, "the last one had no turn"
    assert not at_work(store, run_ids)

    launch(*SWEEP)
    assert [run_state(store, run_id).state for run_id in run_ids] == ["committed"] * len(files)


def test_a_member_that_is_killed_ends_alone(launch: Launcher, files: list[Path]) -> None:
    run_ids = planned(launch)
    store = store_of(launch)
    process = launch.start(*SWEEP, "--parallel", "1")
    wait_for(lambda: at_work(store, run_ids), "a member at work", LONGEST_S)
    os.kill(pid_of(store, at_work(store, run_ids)[0]), signal.SIGKILL)
    output = "".join(process.communicate(timeout=LONGEST_S))
    assert process.returncode == 137, output

    states = sorted(str(run_state(store, run_id).state) for run_id in run_ids)
    assert states == ["committed"] * (len(files) - 1) + ["infra_lost"]
    assert "killed by SIGKILL" in output


def test_two_sweeps_at_once_do_each_run_once(launch: Launcher, files: list[Path]) -> None:
    run_ids = planned(launch)
    processes = [launch.start(*SWEEP, "--parallel", "2") for _ in range(2)]
    outputs = ["".join(process.communicate(timeout=LONGEST_S)) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs

    store = store_of(launch)
    for run_id in run_ids:
        assert read_manifest(store, run_id) is not None
        assert len(attempts_of(store, run_id)) == 1
    assert len(files) == len(run_ids)


def test_one_bad_file_is_refused_before_anything_is_sent(
    launch: Launcher, files: list[Path], tmp_path: Path
) -> None:
    files[1].write_bytes(b"no bars at all")
    output = launch(*SWEEP, exit_code=3)
    assert "market-1.parquet" in output
    assert not (tmp_path / "store").exists()


def test_a_sweep_takes_no_other_places(launch: Launcher, files: list[Path]) -> None:
    assert files
    assert "--on local, ray or runpod" in launch(*SWEEP, "--on", "docker", exit_code=2)


@pytest.mark.large  # those of folds are compared by tests/test_cross_validation.py, always
def test_metrics_of_a_swept_model_are_those_of_a_single_run(tmp_path: Path) -> None:
    """Bit by bit, with the same number of threads: torch sums in another order with another one."""
    pytest.importorskip("torch", reason="training needs the extra `train`")
    small = (
        *("--set", "training.full_epochs=1", "--set", "training.windows_per_epoch=32"),
        *("--set", "training.pretrain_epochs=0", "--set", "training.heads_epochs=1"),
        *(
            "--set",
            "model.hidden_size=8",
            "--set",
            "trees={members: 1, rounds: 5, windows: 1}",
            "--set",
            "presence.windows=200",
        ),
    )
    launch = Computer(tmp_path, f"file://{tmp_path}/store", {"OMP_NUM_THREADS": "1"})
    launch("precompute", "--windows", "virtual", "--set", "synthetic.end=2025-02-14")
    output = launch("sweep", "train", "--over", "training.seed=0,1", *small, "--parallel", "2")
    store = store_of(launch)
    run_ids = [run_id for run_id in launch.runs() if run_id.startswith("train-")]
    made = {run_id: results_of(store, run_id) for run_id in run_ids}
    assert len({each["metrics.json"] for each in made.values()}) == 2, output

    before = set(launch.runs())
    launch("train", "--seed", "1", *small, "--force")
    (single,) = set(launch.runs()) - before
    assert results_of(store, single) == made[single.rpartition("-")[0]]

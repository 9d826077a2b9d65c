"""Whole sweeps in every place, with what goes wrong there: `pytest -m large`, in minutes.

Twelve train runs and six files of bars: first one by one, then as sweeps here, on two nodes of Ray
of which one is killed, and on rented machines whose provider fails at random and loses hosts, under
a budget, with the launcher killed in the middle. All make the same bytes, each once.
"""

import contextlib
import random
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from moola.errors import TryAgainError
from moola.runs.groups import read_group
from moola.runs.reading import attempts_of, newest_checkpoint, read_status
from moola.store import Store, open_store
from moola.store.background import in_background
from tests.fake_runpod import FakeRunpod, Pod
from tests.fake_runpod.faults import Kind
from tests.feature_set import random_bars
from tests.ray_nodes import running_ray_nodes
from tests.rented import wait_for
from tests.seaweed import Seaweed
from tests.test_ray import is_child_of
from tests.test_rented_launch import Account, environment, images
from tests.test_rented_sweep import PATIENT, ledger_of
from tests.test_sweep import Computer, at_work, digests

__all__ = ["environment", "images"]

pytestmark = [pytest.mark.large, pytest.mark.timeout(3600)]

SEED = 20261127
LONGEST_S = 1800.0
MACHINES = 4
MOST_COMMANDS = 5
N_FILES = 6
BUDGET_USD = 0.9
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MOOLA_BEAT_S": "0.5", "PYTHONWARNINGS": ""}
SMALL = (
    *("--set", "training.full_epochs=2", "--set", "training.windows_per_epoch=32"),
    *("--set", "training.pretrain_epochs=0", "--set", "training.checkpoint_minutes=0"),
    *("--set", "trees={members: 1, rounds: 5, windows: 1}", "--set", "presence.windows=100"),
    *("--set", "device=cpu"),
)
FEATURES = ("precompute", "--windows", "virtual", "--set", "synthetic.end=2025-02-14")
SEEDS = range(6)
SIZES = (8, 12)
TRAIN_RUNS = [
    ("train", "--set", f"training.seed={seed}", "--set", f"model.hidden_size={size}", *SMALL)
    for seed in SEEDS
    for size in SIZES
]
TRAIN_SWEEP = (
    *("sweep", "train", "--over", f"training.seed={','.join(map(str, SEEDS))}"),
    *("--over", f"model.hidden_size={','.join(map(str, SIZES))}", *SMALL),
)
BARS_SWEEP = ("sweep", "precompute", "--bars", "bars/*.parquet", "--windows", "virtual")
BARS_RUNS = [
    ("precompute", "--bars", f"bars/market-{number}.parquet", "--windows", "virtual")
    for number in range(N_FILES)
]
SWEEPS = (BARS_SWEEP, TRAIN_SWEEP)
RENTED = (
    *("--on", "runpod", "--yes", "--machines", str(MACHINES), "--max-spend", str(BUDGET_USD)),
    *("--set", "machine.max_runtime=20m", "--set", "machine.retry.times=6"),
)
KINDS: list[Kind] = [500, 502, 503, 429, "cut", "slow"]
Made = Mapping[str, Mapping[str, str]]  # run id -> path -> sha256


class PatientComputer(Computer):
    longest_s = LONGEST_S


def with_bars(computer: Computer) -> Computer:
    folder = computer.folder / "bars"
    folder.mkdir(parents=True)
    for number in range(N_FILES):
        random_bars(20_000, seed=number).to_parquet(folder / f"market-{number}.parquet")
    return computer


def made_in(store: Store, run_ids: list[str]) -> Made:
    """What runs made, but for the report, which shows how the machine was used."""
    made = {run_id: digests(store, run_id) for run_id in run_ids}
    return {
        run_id: {path: digest for path, digest in files.items() if path != "report.html"}
        for run_id, files in made.items()
    }


@dataclass
class Alone:
    """All runs, one by one, in a store of their own; `features`: the run of the feature set."""

    folder: Path
    features: str
    made: Made

    def give_features(self, store: Store) -> tuple[str, str]:
        """Copy the feature set to another store; -> the option that names it."""
        there = self.folder / "store"
        for path in (there / "runs" / self.features).rglob("*"):
            if path.is_file():
                store.put(str(path.relative_to(there)), path.read_bytes())
        return "--features", self.features


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    folder = tmp_path_factory.mktemp("alone")
    computer = with_bars(PatientComputer(folder, f"file://{folder}/store", ONE_THREAD))
    computer(*FEATURES)
    (features,) = computer.runs()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda arguments: computer(*arguments), BARS_RUNS))
        train_runs = [(*arguments, "--features", features) for arguments in TRAIN_RUNS]
        list(pool.map(lambda arguments: computer(*arguments), train_runs))

    made = made_in(open_store(computer.store), computer.runs())
    assert len(made) == 1 + N_FILES + len(TRAIN_RUNS)
    assert len({files["metrics.json"] for run, files in made.items() if "train" in run}) == 12
    return Alone(folder, features, made)


def check_made(store: Store, alone: Alone) -> dict[str, int]:
    """Every run once, with the bytes of one that ran alone; -> run id -> number of attempts."""
    run_ids = store.children("runs")
    assert made_in(store, run_ids) == alone.made

    attempts = {run_id: attempts_of(store, run_id) for run_id in run_ids}
    for run_id, names in attempts.items():
        statuses = [read_status(store, run_id, name) for name in names]
        states = [str(status.state) if status else "" for status in statuses]
        assert states.count("committed") == 1, (run_id, states)
    groups = [read_group(store, name) for name in store.children("groups")]
    assert sorted(len(group.members) for group in groups) == [N_FILES, len(TRAIN_RUNS)]
    return {run_id: len(names) for run_id, names in attempts.items()}


def test_here(alone: Alone, tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/store")
    computer = with_bars(PatientComputer(tmp_path, store.url, ONE_THREAD))
    features = alone.give_features(store)
    for sweep in ((*BARS_SWEEP,), (*TRAIN_SWEEP, *features)):
        computer(*sweep, "--parallel", "2")
    attempts = check_made(store, alone)
    assert set(attempts.values()) == {1}

    assert f"{N_FILES} of them committed already" in computer(*BARS_SWEEP)
    assert "12 of them committed already" in computer(*TRAIN_SWEEP, *features)
    assert check_made(store, alone) == attempts


def test_on_two_nodes_of_which_one_is_killed(alone: Alone, tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/store")
    with running_ray_nodes() as nodes:
        variables = {**ONE_THREAD, "RAY_ADDRESS": nodes.address}
        computer = with_bars(PatientComputer(tmp_path, store.url, variables))
        features = alone.give_features(store)
        on_ray = ("--on", "ray", "--parallel", "2")
        computer(*BARS_SWEEP, *on_ray)

        def kill() -> str:
            lost = wait_for(lambda: lost_run(store, nodes.raylet), "a checkpoint there", LONGEST_S)
            nodes.kill_node()
            return str(lost)

        killing = in_background(kill)
        computer(*TRAIN_SWEEP, *features, *on_ray)
        lost = killing.result()
        attempts = check_made(store, alone)
        assert {run_id for run_id, n in attempts.items() if n > 1} == {lost}
        assert "12 of them committed already" in computer(*TRAIN_SWEEP, *features, *on_ray)
        assert check_made(store, alone) == attempts


def lost_run(store: Store, raylet: str) -> str | None:
    """A train run that has a checkpoint and is at work on the node that will be killed."""
    train_runs = [run_id for run_id in store.children("runs") if run_id.startswith("train")]
    for run_id in at_work(store, train_runs):
        if newest_checkpoint(store, run_id) and is_child_of(store, run_id, raylet):
            return run_id
    return None


# --- on rented machines -----------------------------------------------------------------------


@dataclass
class Trouble:
    """Goes wrong at random, while it is used as a context; the hosts of at most three pods die."""

    fake: FakeRunpod
    most_lost: int = 3
    n_lost: int = 0
    n_faults: int = 0

    def __enter__(self) -> "Trouble":
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._make)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.fake.clear()

    def _make(self) -> None:
        chance = random.Random(SEED)
        while not self._over.wait(chance.uniform(0.5, 2.0)):
            on = chance.choice(["create", "list", "get", "delete"])
            kind = chance.choice(KINDS + ["no_capacity"] * (on == "create"))
            self.fake.fail(kind, on=on, times=chance.randint(1, 2), seconds=1.0)
            self.n_faults += 1
            running = [pod for pod in self.fake.alive() if pod.status == "RUNNING"]
            if running and self.n_lost < self.most_lost and chance.random() < 0.1:
                self.fake.lose_host(chance.choice(running))
                self.n_lost += 1


@pytest.fixture(scope="module")
def one_thread_fake(environment: None) -> Iterator[FakeRunpod]:  # noqa: ARG001
    threads = [f"{name}={text}" for name, text in ONE_THREAD.items() if name.startswith("OMP")]

    def entry_point(pod: Pod) -> list[str]:
        return ["env", *threads, sys.executable, "-m", "moola.jobs.entry", *pod.cmd]

    with FakeRunpod(entry_point, per_minute=6000, restart_s=0.1) as running:
        yield running


@contextlib.contextmanager
def counted(fake: FakeRunpod) -> Iterator[list[int]]:
    """How many machines there were each time that one was made."""
    counts: list[int] = []
    fake.on_create = lambda _: counts.append(len(fake.alive()))
    yield counts
    fake.on_create = lambda _: None


def test_on_rented_machines_that_fail(
    alone: Alone,
    one_thread_fake: FakeRunpod,
    seaweed: Seaweed,
    images: dict[str, str],
    tmp_path: Path,
) -> None:
    fake = one_thread_fake
    account = Account(fake, seaweed, images, tmp_path, tmp_path.name)
    launcher = account.computer(**PATIENT, **ONE_THREAD)
    laptop = with_bars(PatientComputer(launcher.folder, account.store, launcher.env))
    store = open_store(account.store)
    features = alone.give_features(store)
    cpu = ("--set", "machine.gpu=null", "--set", "machine.cpu.vcpus=2")
    train_sweep = (*TRAIN_SWEEP, *features, *cpu)

    with counted(fake) as counts, Trouble(fake) as trouble:
        until_done(laptop, *BARS_SWEEP, *RENTED)
        killed = laptop.start(*train_sweep, *RENTED)
        wait_for(lambda: len(committed_trainings(store)) >= 3, "three models", LONGEST_S)
        killed.kill()
        killed.communicate()
        until_done(laptop, *train_sweep, *RENTED)
        assert trouble.n_faults > 10
        assert trouble.n_lost > 0

    # What was set aside for a machine that may have been made is given back by who looks again.
    wait_for(lambda: "0 runs open" in laptop("tend"), "all machines known to be gone", LONGEST_S)
    attempts = check_made(store, alone)
    assert fake.alive() == []
    assert max(counts) == MACHINES, counts
    for name in store.children("groups"):
        group = read_group(store, name)
        ledger = ledger_of(account, group)
        billed = sum(fake.billed(pod) for pod in fake.pods.values() if pod.run in group.members)
        assert ledger.held() == {}
        assert 0 < ledger.spent() <= BUDGET_USD
        assert 0 < billed <= BUDGET_USD

    pods = len(fake.pods)
    assert "12 of them committed already" in laptop(*train_sweep, *RENTED)
    assert f"{N_FILES} of them committed already" in laptop(*BARS_SWEEP, *RENTED)
    assert (check_made(store, alone), len(fake.pods)) == (attempts, pods)


def until_done(laptop: Computer, *command: str) -> None:
    """As a person would: where it ends with "try again", again."""
    for _ in range(MOST_COMMANDS):
        process = laptop.start(*command)
        said = "".join(process.communicate(timeout=LONGEST_S))
        if process.returncode == 0:
            return
        assert process.returncode == TryAgainError.exit_code, said
    raise AssertionError(said)


def committed_trainings(store: Store) -> list[str]:
    run_ids = [run_id for run_id in store.children("runs") if run_id.startswith("train")]
    return [run_id for run_id in run_ids if store.exists(f"runs/{run_id}/COMMIT.json")]

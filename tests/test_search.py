"""Searches: ranges, the journal of a study that anybody may write to, rounds, kill -9."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("optuna", reason="searching needs the extra `search`")

from moola.cli.app import run as moola
from moola.cli.options import spec_overrides
from moola.errors import ArtifactError, DataError, TryAgainError
from moola.jobs.prepare import PreparedRun
from moola.launch.search import searching
from moola.launch.search import study as studies
from moola.launch.search.journal import MAX_ENTRY_BYTES, StoreJournal
from moola.launch.search.objective import direction_of, objective_value
from moola.launch.search.searching import Search, plan_search, run_search
from moola.launch.search.space import Choices, Range, read_space, set_arguments
from moola.launch.search.study import SearchStudy, Trial, open_study
from moola.launch.search.trials import check_told, trials_table
from moola.launch.settings import Settings
from moola.launch.sweep import Ended, Runner, Sweep
from moola.runs.attempt import Attempt
from moola.runs.groups import read_group
from moola.runs.protocol import COMMIT, run_key
from moola.runs.reading import attempts_of, read_commit
from moola.runs.submit import submit
from moola.store import Store, open_store
from moola.store.local import FileStore
from tests.hostile import DAMAGES
from tests.rented import wait_for
from tests.small_search import OBJECTIVE, SPACE, prepare, search_of, value_of
from tests.small_search import work_on as small_job

SCRIPT = Path(__file__).with_name("small_search.py")
LONGEST_S = 300.0


# --- the space --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "dimension"),
    [
        ("1e-4..1e-2 log", Range(1e-4, 1e-2, log=True)),
        ("32..128", Range(32, 128)),
        ("32..128 step 32", Range(32, 128, step=32)),
        ("1..64 log", Range(1, 64, log=True)),
        ("0..0.5", Range(0.0, 0.5)),
        ("0.1..0.7 step 0.2", Range(0.1, 0.7, step=0.2)),
        ("-3..3", Range(-3, 3)),
        (" .5..1. ", Range(0.5, 1.0)),
        ("0.1,0.2,0.3", Choices({"0.1": 0.1, "0.2": 0.2, "0.3": 0.3})),
        ("null,auto", Choices({"null": None, "auto": "auto"})),
        ("../a.csv,../b.csv", Choices({"../a.csv": "../a.csv", "../b.csv": "../b.csv"})),
        ("../a.csv", Choices({"../a.csv": "../a.csv"})),
    ],
)
def test_a_dimension_is_read_as_it_is_written(text: str, dimension: Range | Choices) -> None:
    (read,) = read_space([f"a.b={text}"]).dimensions.values()
    assert read == dimension
    assert [type(end) for end in read.ends()] == [type(end) for end in dimension.ends()]
    assert read_space([f"a.b={read.text()}"]).dimensions == {"a.b": dimension}


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("a", "FIELD=LOW..HIGH or"),
        ("=1..2", "FIELD=LOW..HIGH or"),
        ("a=1..", "a range is LOW..HIGH"),
        ("a=..2", "a range is LOW..HIGH"),
        ("a=1..2 logs", "a range is LOW..HIGH"),
        ("a=1..2 log step 1", "a range is LOW..HIGH"),
        ("a=x..2", "numbers as its ends"),
        ("a=1..inf", "numbers as its ends"),
        ("a=1..nan", "numbers as its ends"),
        ("a=0..1e999", "too large a number"),
        ("a=0..99999999999999999999", "too large a number"),
        ("a=2..1", "LOW < HIGH"),
        ("a=1..1", "LOW < HIGH"),
        ("a=0..1 log", "must be above 0"),
        ("a=0..10 step 3", "whole number of steps"),
        ("a=0..10 step 0", "whole number of steps"),
        ("a=0..1 step 0.3", "whole number of steps"),
        ("a=1,1", "different values"),
        ("a='1',1", "different values"),
        ("a=", "at least one value"),
    ],
)
def test_what_is_no_dimension_is_refused(text: str, rule: str) -> None:
    with pytest.raises(DataError, match=rule):
        read_space([text])
    with pytest.raises(DataError, match="twice"):
        read_space(["a=1..2", "a=1,2"])


def test_corners_are_all_low_all_high_and_each_further_value() -> None:
    space = read_space(["b=x,y,z", "a=1..9"])
    assert [*space.corners()] == [{"a": 1, "b": "x"}, {"a": 9, "b": "z"}, {"a": 1, "b": "y"}]


@pytest.mark.parametrize(
    "stored", [0, 10, 4, 1.0, True, "1", None, float("nan"), float("inf"), [1], {}]
)
def test_a_value_from_outside_is_none(stored: object) -> None:
    space = read_space(["a=1..9 step 2"])
    assert space.point({"a": 3}) == {"a": 3}
    with pytest.raises(ValueError, match=r"a must be in 1\.\.9 step 2"):
        space.point({"a": stored})
    for other in ({}, {"a": 3, "b": 1}):
        with pytest.raises(ValueError, match="must have the fields"):
            space.point(other)


@pytest.mark.parametrize(
    "value", [1e-05, 1.5e300, 0.1, 3, True, None, "auto", "true", "1e5", "a 'b' c", [1, "x"]]
)
def test_the_best_point_can_be_set(value: object) -> None:
    """As a shell and --set read it."""
    import shlex

    option, text = shlex.split(set_arguments({"a.b": value}))
    assert option == "--set"
    (read,) = spec_overrides([text], {}).values()
    assert read == value
    assert type(read) is type(value)


def test_an_objective_is_a_metric_with_a_direction() -> None:
    assert direction_of("joint_success", ["a", "b"]) == "maximize"
    assert direction_of("f1[a]", ["a", "b"]) == "maximize"
    assert direction_of("mae_start_bars", ["a", "b"]) == "minimize"
    for name in ("predicted_share[a]", "loss", "f1[c]"):
        with pytest.raises(DataError, match="--objective must be one of f1_macro, "):
            direction_of(name, ["a", "b"])


# --- planning ---------------------------------------------------------------------------------


def plan(space: list[str], point_of: Callable[[Any], PreparedRun] = prepare, **how: Any) -> Search:
    options = {"objective": OBJECTIVE, "n_trials": 3, "seed": 0, **how}
    fixed = options.pop("fixed", {})
    return plan_search(read_space(space), fixed, point_of, **options)


def test_a_bad_bound_is_refused_before_anything_is_sent() -> None:
    """13 is refused: as an end of the range, or as one of several values."""
    for space in (["size=13..20"], ["size=1..13"], ["size=1,13,20"]):
        with pytest.raises(DataError, match="size must not be 13"):
            plan([*space, "way=up,down"])
    with pytest.raises(DataError, match="swept over and set"):
        plan(["size=1..2", "way=up,down"], fixed={"size": 1})
    with pytest.raises(DataError, match="at most 1,000"):
        plan(["size=1..2", "way=up,down"], n_trials=1001)


def test_floats_are_refused_for_a_field_of_whole_numbers_and_what_changes_nothing() -> None:
    def rounded(point: dict[str, Any]) -> PreparedRun:
        return prepare({"way": "up", **point, "size": int(point["size"])})

    with pytest.raises(DataError, match=r"size takes whole numbers, got 1\.0\.\.5\.0"):
        plan(["size=1.0..5"], rounded)
    with pytest.raises(DataError, match="change no run"):
        plan(["other=1..5"], lambda _: prepare({"size": 1, "way": "up"}))


def test_the_same_search_has_the_same_name_and_another_one_another() -> None:
    space = ["size=1..9", "way=up,down"]
    name = plan(space).name
    assert plan(space[::-1], n_trials=50).name == name
    others = [
        plan(["size=1..8", "way=up,down"]),
        plan(["size=1..9 log", "way=up,down"]),
        plan(space, seed=1),
        plan(space, objective="accuracy"),
        plan(space, lambda point: prepare({**point, "more": 1})),
    ]
    assert len({name, *(other.name for other in others)}) == 6
    assert plan(space, study="mine").name == "mine"


# --- rounds, without processes ----------------------------------------------------------------


class Runs:
    """A runner that commits runs here, and counts them. `end` may give a run another end."""

    def __init__(self, store: Store, work: Path, parallel: int = 1) -> None:
        self.store, self.work, self.parallel = store, work, parallel
        self.rounds: list[list[str]] = []
        self.end: Callable[[PreparedRun], int] = lambda _: 0

    def at_once(self, _runs: object) -> int:
        return self.parallel

    def run(self, sweep: Sweep) -> Ended:
        self.rounds.append([run.run_id for run in sweep.runs])
        exit_codes = {}
        for run in sweep.runs:
            if read_commit(self.store, run.run_id) is not None:
                continue
            submit(self.store, run.run_id, run.document)
            exit_codes[run.run_id] = self.end(run)
            if not exit_codes[run.run_id]:
                with Attempt(self.store, run.run_id, work=self.work) as attempt:
                    small_job(attempt, run.document)
        return Ended(exit_codes, is_stopped=130 in exit_codes.values())


@pytest.fixture
def folder_store(tmp_path: Path) -> Store:
    return open_store(f"file://{tmp_path}/store")


@pytest.fixture
def runs(folder_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    runner = Runs(folder_store, tmp_path / "work")

    @contextlib.contextmanager
    def opened(*_: object) -> Iterator[Runner]:
        yield runner

    monkeypatch.setattr(searching, "_open_runner", opened)
    return runner


def go(store: Store, search: Search, storage_url: str | None = None) -> list[Trial]:
    """Run a search to its end; -> its trials."""
    run_search(Settings(store=store.url), search, parallel=None, storage_url=storage_url)
    return study_of(store, search, storage_url).trials()


def study_of(store: Store, search: Search, storage_url: str | None = None) -> SearchStudy:
    return open_study(store, storage_url, search.name, search.definition, search.seed)


def test_a_search_gets_better_and_ends_as_a_group(
    folder_store: Store, runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    search = search_of(25)
    trials = go(folder_store, search)
    assert [trial.number for trial in trials] == list(range(25))
    for trial in trials:
        assert trial.value == value_of(trial.point) or trial.outcome == "failed"
        assert trial.run_id == prepare(trial.point).run_id
    values = [trial.value for trial in trials if trial.value is not None]
    assert sum(values[10:]) / len(values[10:]) > sum(values[:10]) / len(values[:10])

    output = capsys.readouterr()
    best = max(trials, key=lambda trial: trial.value or 0)
    assert f"best: trial {best.number}, {best.run_id}" in output.out
    (group_id,) = folder_store.children("groups")
    members = {trial.run_id for trial in trials}
    assert set(read_group(folder_store, group_id).members) == members
    assert f"moola group {group_id}" in output.err

    n_rounds = len(runs.rounds)
    keys = journal_keys(folder_store)
    assert go(folder_store, search) == trials
    assert len(runs.rounds) == n_rounds
    assert journal_keys(folder_store) == keys, "nothing was written"
    assert len(go(folder_store, search_of(26))) == 26
    assert len(runs.rounds) == n_rounds + 1


def journal_keys(store: Store) -> list[str]:
    (name,) = store.children("studies")
    return [f"studies/{name}/journal/{each}" for each in store.children(f"studies/{name}/journal")]


def test_a_round_is_as_many_trials_as_run_at_once(folder_store: Store, runs: Runs) -> None:
    runs.parallel = 4
    trials = go(folder_store, search_of(10))
    assert [len(each) for each in runs.rounds] == [4, 4, 2]
    assert len({trial.run_id for trial in trials}) == 10, "running trials are kept away from"


@pytest.mark.usefixtures("runs")
def test_a_point_that_was_run_before_costs_nothing(folder_store: Store) -> None:
    space = ("size=5,6", "way=up,down")
    trials = go(folder_store, search_of(12, space=space))
    assert all(trial.value == value_of(trial.point) for trial in trials)
    attempts = [len(attempts_of(folder_store, run)) for run in folder_store.children("runs")]
    assert len(attempts) <= 4
    assert set(attempts) == {1}


def test_failed_trials_are_told_and_the_search_goes_on(folder_store: Store, runs: Runs) -> None:
    failing: list[str] = []

    def end(run: PreparedRun) -> int:
        if len(folder_store.children("runs")) in (2, 3):
            failing.append(run.run_id)
            return 5
        return 0

    runs.end = end
    trials = go(folder_store, search_of(6))
    assert [trial.outcome for trial in trials] == ["complete", *["failed"] * 2, *["complete"] * 3]
    assert [trial.run_id for trial in trials][1:3] == failing
    assert go(folder_store, search_of(6)) == trials


def test_a_search_whose_trials_all_fail_ends_with_the_first_exit_code(
    folder_store: Store, runs: Runs
) -> None:
    codes = iter([5, 137, 130, 5])
    runs.end = lambda _: next(codes) % 130 or 9
    with pytest.raises(typer.Exit) as ended:
        go(folder_store, search_of(20))
    assert ended.value.exit_code == 5
    assert len(runs.rounds) == searching.MOST_FAILURES_IN_A_ROW
    with pytest.raises(DataError, match=r"no trial of study .* has a value of joint_success"):
        go(folder_store, search_of(3))


@pytest.mark.parametrize("exit_code", [75, 130, 143])
def test_what_was_stopped_stays_open_and_is_run_first(
    folder_store: Store, runs: Runs, exit_code: int
) -> None:
    """As with the killed one: in the end the study is that of a search without a stop."""
    runs.end = lambda _: exit_code if len(folder_store.children("runs")) == 3 else 0
    with pytest.raises(typer.Exit) as ended:
        go(folder_store, search_of(5))
    assert ended.value.exit_code == exit_code
    open_trial = study_of(folder_store, search_of(5)).trials()[-1]
    assert (open_trial.number, open_trial.outcome) == (2, "running")

    runs.end = lambda _: 0
    trials = go(folder_store, search_of(5))
    assert runs.rounds[3] == [open_trial.run_id]
    assert trials == unkilled(folder_store, runs, 5)


def unkilled(store: Store, runs: Runs, n_trials: int) -> list[Trial]:
    """The trials of the same search that nothing stops, in a store of its own."""
    before = runs.store
    runs.store = open_store(f"{store.url}-unkilled")
    trials = go(runs.store, search_of(n_trials))
    runs.store = before
    return trials


@pytest.mark.usefixtures("runs")
def test_a_launcher_killed_while_asking_leaves_what_counts_for_nothing(folder_store: Store) -> None:
    search = search_of(3)
    go(folder_store, search_of(2))
    study = study_of(folder_store, search)
    with study._guarded():
        study._study.ask()  # without a point
    trials = go(folder_store, search)
    assert [trial.number for trial in trials] == [0, 1, 3]


def test_two_launchers_may_end_the_same_trial(folder_store: Store) -> None:
    first, second = (study_of(folder_store, search_of(3)) for _ in range(2))
    trial = first.ask()
    assert second.trials() == [trial]
    first.name_run(trial, "train-" + "a" * 12)
    first.tell(trial, 0.5)
    second.name_run(trial, "train-" + "b" * 12)
    second.tell(trial, 0.25)
    for study in (first, second):
        assert [(each.run_id[-1], each.value) for each in study.trials()] == [("a", 0.5)]


@pytest.mark.usefixtures("runs")
def test_another_search_under_the_same_name_is_refused(folder_store: Store) -> None:
    go(folder_store, search_of(1, study="mine"))
    words = r"of another search: size is 1\.\.64 there and 1\.\.63 here\. Give another --study"
    with pytest.raises(DataError, match=words):
        go(folder_store, plan(["size=1..63", "rate=1e-4..1e-2 log", "way=up,down"], study="mine"))
    with pytest.raises(DataError, match="its direction; direction is 'maximize' there"):
        go(folder_store, plan([*SPACE], objective="ece", study="mine"))
    with pytest.raises(DataError, match="more is missing there and 7 here"):
        go(folder_store, plan([*SPACE], lambda at: prepare({**at, "more": 7}), study="mine"))


# --- the journal ------------------------------------------------------------------------------


def test_racing_writers_lose_nothing(folder_store: Store) -> None:
    """Four writers, each with a store of its own, and each sees one and the same order."""
    n_writers, n_each = 4, 25
    journals = [StoreJournal(open_store(folder_store.url), "s") for _ in range(n_writers)]
    start = threading.Barrier(n_writers)

    def write(number: int) -> None:
        start.wait()
        for count in range(n_each):
            journals[number].append_logs([{"writer": number, "count": count}])

    threads = [threading.Thread(target=write, args=(number,)) for number in range(n_writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    logs = [list(journal.read_logs(0)) for journal in journals]
    assert all(each == logs[0] for each in logs)
    assert len(logs[0]) == n_writers * n_each
    for number in range(n_writers):
        own = [log["count"] for log in logs[0] if log["writer"] == number]
        assert own == list(range(n_each))


def test_a_write_whose_answer_was_lost_is_no_second_entry(folder_store: Store) -> None:
    journal, other = (StoreJournal(folder_store, "s") for _ in range(2))
    other.append_logs([{"a": 1}])
    journal.append_logs([{"a": 1}])  # the same bytes: as if its own try had been answered
    assert list(journal.read_logs(0)) == [{"a": 1}]


@pytest.mark.usefixtures("runs")
def test_each_entry_is_read_once(folder_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    go(folder_store, search_of(4))
    keys = journal_keys(folder_store)
    read: Counter[str] = Counter()
    get_or_none = FileStore.get_or_none

    def counted(self: FileStore, key: str, *args: Any, **kwargs: Any) -> bytes | None:
        read[key] += 1
        return get_or_none(self, key, *args, **kwargs)

    monkeypatch.setattr(FileStore, "get_or_none", counted)
    study = study_of(folder_store, search_of(4))
    for _ in range(3):
        study.trials()
    assert {key: read[key] for key in keys} == dict.fromkeys(keys, 1)


def look(store: Store, search: Search) -> None:
    """All that a command reads of a study before it runs anything, and asks of it."""
    study = study_of(store, search)
    trials = study.trials()
    check_told(store, study, trials)
    trials_table(study, trials)
    study.ask()


def entry(store: Store, log: object) -> str:
    """Forge the next entry of the study in a store; -> its key."""
    keys = journal_keys(store)
    key = f"{keys[-1].rpartition('/')[0]}/{len(keys) + 1:08d}.json"
    name = keys[0].split("/")[1]
    store.put(key, json.dumps({"n": len(keys) + 1, "study": name, "log": log}).encode())
    return key


def fault_of(store: Store, search: Search) -> str:
    """What is said of a study that is damaged; "" of one that is not, or of another search."""
    try:
        study_of(store, search).trials()
    except ArtifactError as error:
        return str(error)
    except DataError:
        pass
    return ""


@pytest.mark.usefixtures("runs")
def test_a_damaged_entry_is_named(folder_store: Store) -> None:
    search = search_of(2)
    go(folder_store, search)
    n_refused = 0
    keys = journal_keys(folder_store)[1:7]  # definition, a trial, its point, its run
    for key in keys:
        good = folder_store.get(key)
        for name, damage in DAMAGES.items():
            bad = damage(good)
            if bad is None:
                continue
            folder_store.put(key, bad)
            fault = fault_of(folder_store, search)
            n_refused += bool(fault)
            assert not fault or "studies/" in fault or "is damaged: trial" in fault, name
        folder_store.put(key, good)
    assert n_refused > 5 * len(keys)


RUN = "train-" + "a" * 12
FORGED: dict[str, tuple[list[dict[str, Any]], str]] = {
    "an unknown operation": ([{"op_code": 99, "worker_id": "x"}], r"journal/\d{8}\.json"),
    "no operation": ([{}], r"journal/\d{8}\.json"),
    "no fields": ([{"op_code": 4, "worker_id": "x"}], r"journal/\d{8}\.json"),
    "a dateless trial": (
        [{"op_code": 4, "worker_id": "x", "study_id": 0, "datetime_start": "x"}],
        r"journal/\d{8}\.json",
    ),
    "no distribution": (
        [
            {"op_code": 5, "worker_id": "x", "trial_id": 2, "param_name": "size"}
            | {"param_value_internal": 1.0, "distribution": '{"name": "os.system"}'}
        ],
        r"journal/\d{8}\.json",
    ),
    "a code": ([{"op_code": "4", "worker_id": "x"}], r"journal/\d{8}\.json"),
}


def open_trial(store: Store, search: Search) -> Trial:
    """A trial that is left open, the third, whose number in the journal is 2."""
    go(store, search_of(2))
    return study_of(store, search).ask()


@pytest.mark.parametrize("name", [name for name, (_, words) in FORGED.items() if words])
@pytest.mark.usefixtures("runs")
def test_what_optuna_stumbles_over_is_named(folder_store: Store, name: str) -> None:
    search = search_of(3)
    open_trial(folder_store, search)
    logs, words = FORGED[name]
    for log in logs:
        key = entry(folder_store, log)
    with pytest.raises(ArtifactError, match=words) as caught:
        look(folder_store, search)
    assert key in str(caught.value)
    assert "\n" not in str(caught.value)


def ended_with(values: object, state: int = 1) -> dict[str, Any]:
    time = "2026-01-01T00:00:00"
    return {"op_code": 6, "worker_id": "x", "trial_id": 2, "state": state} | {
        "values": values,
        "datetime_complete": time,
    }


def with_run(run: object) -> dict[str, Any]:
    return {"op_code": 8, "worker_id": "x", "trial_id": 2, "user_attr": {"run": run}}


def with_size(value: float) -> dict[str, Any]:
    low_and_high = {"log": False, "step": 1, "low": 1, "high": 64}
    distribution = json.dumps({"name": "IntDistribution", "attributes": low_and_high})
    return {"op_code": 5, "worker_id": "x", "trial_id": 2, "param_name": "size"} | {
        "param_value_internal": value,
        "distribution": distribution,
    }


@pytest.mark.parametrize(
    ("logs", "fault"),
    [
        ([ended_with([1.0])], "is complete, and names no run"),
        ([with_run(RUN), ended_with([1.0, 2.0])], "has the values"),
        ([with_run(RUN), ended_with([float("inf")])], "has the values"),
        ([with_run(RUN), ended_with(["1"])], "has the values"),
        ([with_run(RUN), ended_with(None)], "has the values"),
        ([with_run("../../x"), ended_with([1.0])], "names the run"),
        ([with_run(7), ended_with([1.0])], "names the run"),
        ([with_run("precompute-" + "a" * 12), ended_with([1.0])], "no train run"),
        ([ended_with(None, state=2)], "is PRUNED"),
        ([with_size(65.0)], r"outside the space: size must be in 1\.\.64, got 65"),
        ([with_size(-1e300)], "outside the space"),
    ],
)
@pytest.mark.usefixtures("runs")
def test_a_trial_that_is_none_of_the_search_is_refused(
    folder_store: Store, logs: list[dict[str, Any]], fault: str
) -> None:
    search = search_of(3)
    open_trial(folder_store, search)
    for log in logs:
        entry(folder_store, log)
    with pytest.raises(ArtifactError, match=f"trial 2 .*{fault}"):
        look(folder_store, search)


@pytest.mark.usefixtures("runs")
def test_a_value_that_the_run_does_not_have_is_refused(folder_store: Store) -> None:
    search = search_of(3)
    trial = open_trial(folder_store, search)
    (first, _) = study_of(folder_store, search).trials()[:2]
    entry(folder_store, with_run(first.run_id))
    entry(folder_store, ended_with([0.99]))
    assert trial.number == 2
    with pytest.raises(ArtifactError, match=f"trial 2 has the value 0.99, and its run {RUN[:6]}"):
        go(folder_store, search)


@pytest.mark.usefixtures("runs")
def test_a_removed_run_keeps_its_place_in_the_study(folder_store: Store) -> None:
    trials = go(folder_store, search_of(3))
    for key in ("spec.json", COMMIT):
        folder_store.delete(run_key(trials[0].run_id, key))
    assert go(folder_store, search_of(3)) == trials
    groups = [read_group(folder_store, each) for each in folder_store.children("groups")]
    assert sorted(len(group.members) for group in groups) == [2, 3]


@pytest.mark.usefixtures("runs")
def test_an_entry_has_a_bound_and_a_place(folder_store: Store) -> None:
    go(folder_store, search_of(1))
    key = entry(folder_store, {"op_code": 2, "text": "x" * MAX_ENTRY_BYTES})
    with pytest.raises(ArtifactError, match="must have at most") as caught:
        look(folder_store, search_of(1))
    assert key in str(caught.value)
    folder_store.put(key, folder_store.get(journal_keys(folder_store)[0]))
    with pytest.raises(ArtifactError, match="it is entry 1 of search-"):
        look(folder_store, search_of(1))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 5) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
_NAMES = ("study_id", "trial_id", "state", "values", "user_attr", "system_attr", "param_name")
_NAMES += ("param_value_internal", "distribution", "datetime_start", "datetime_complete", "params")


@given(
    logs=st.lists(
        st.fixed_dictionaries(
            {"op_code": st.integers(0, 10), "worker_id": st.just("x")},
            optional=dict.fromkeys(_NAMES, _JSON),
        ),
        min_size=1,
        max_size=3,
    )
)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_forged_journal_is_a_fault_of_moolas(tmp_path_factory, logs) -> None:
    store = open_store(f"file://{tmp_path_factory.mktemp('forged')}/store")
    search = search_of(3)
    study_of(store, search).ask()
    for log in logs:
        entry(store, log)
    with contextlib.suppress(ArtifactError, DataError):
        look(store, search)


# --- a database -------------------------------------------------------------------------------


def test_a_study_in_a_database_is_the_same_study(
    folder_store: Store, runs: Runs, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/search.db"
    trials = go(folder_store, search_of(4), url)
    assert not folder_store.children("studies")
    assert go(folder_store, search_of(4), url) == trials
    assert len(runs.rounds) == 4
    assert go(folder_store, search_of(4)) == trials, "in the store"


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("postgresql://me:geheim-4711@127.0.0.1:1/x", DataError),
        ("nonsense:geheim-4711@", DataError),
        ("mysql://h/x?password=geheim-4711", DataError),
        ("sqlite:////nowhere/geheim-4711/x.db", TryAgainError),
    ],
)
def test_a_database_that_cannot_be_used_is_told_without_its_password(
    folder_store: Store, url: str, error: type[Exception]
) -> None:
    with pytest.raises(error, match="in --study-storage") as caught:
        study_of(folder_store, search_of(1), url)
    assert "geheim" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_another_programs_study_is_left_alone(folder_store: Store, tmp_path: Path) -> None:
    import optuna

    url = f"sqlite:///{tmp_path}/search.db"
    other = optuna.create_study(study_name="theirs", storage=url, direction="maximize")
    other.ask()
    with pytest.raises(DataError, match="of another program"):
        study_of(folder_store, search_of(1, study="theirs"), url)


# --- commands and processes -------------------------------------------------------------------


def test_the_command_refuses_before_it_looks_at_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MOOLA_STORE", f"file://{tmp_path}/store")
    over = ["search", "--over", "model.hidden_size=4..8"]
    assert moola([*over, "--on", "runpod"]) == 2
    assert "moola sweep train --over FIELD=VALUES --random N --on runpod" in capsys.readouterr().err
    assert moola([*over, "--study", "../x"]) == 2
    assert moola([*over, "--objective", "loss"]) == 3
    monkeypatch.setattr(studies, "find_spec", lambda _: None)
    assert moola([*over, "--on", "runpod"]) == 3
    assert "pip install 'moola[search]'" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def start(store: Store, work: Path, n_trials: int, **variables: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "MOOLA_BEAT_S": "0.1", **variables}
    command = [sys.executable, str(SCRIPT), store.url, str(work), str(n_trials)]
    return subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def test_a_killed_search_goes_on_and_its_study_is_that_of_an_unkilled_one(
    folder_store: Store, runs: Runs, tmp_path: Path
) -> None:
    """Launcher and job are killed in the second trial; Ctrl-C then ends a third launcher."""
    hang = tmp_path / "hang"
    hang.touch()
    search = search_of(3)

    def second_at_work() -> str:
        run_ids = [trial.run_id for trial in study_of(folder_store, search).trials()[1:]]
        return next((run for run in run_ids if run and attempts_of(folder_store, run)), "")

    process = start(folder_store, tmp_path / "work", 3, MOOLA_TEST_HANG=str(hang))
    wait_for(lambda: folder_store.children("studies"), "a study", LONGEST_S)
    wait_for(second_at_work, "a second trial at work", LONGEST_S)
    process.kill()
    process.communicate()
    hang.unlink()

    again = start(folder_store, tmp_path / "work", 3)
    output, _ = again.communicate(timeout=LONGEST_S)
    assert again.returncode == 0, output
    trials = study_of(folder_store, search).trials()
    assert [trial.outcome for trial in trials] == ["complete"] * 3
    assert trials == unkilled(folder_store, runs, 3)
    for trial in trials:
        assert len(attempts_of(folder_store, trial.run_id)) == 1
        assert objective_value(folder_store, trial.run_id, OBJECTIVE) == trial.value


def test_ctrl_c_ends_the_trials_at_work_and_leaves_them_open(
    folder_store: Store, tmp_path: Path
) -> None:
    hang = tmp_path / "hang"
    hang.touch()
    search = search_of(2)
    submit(folder_store, prepare({"size": 1, "way": "up"}).run_id, search.sample.document)
    process = start(folder_store, tmp_path / "work", 2, MOOLA_TEST_HANG=str(hang))

    def at_work() -> bool:
        trials = study_of(folder_store, search).trials()
        return bool(trials and trials[0].run_id and attempts_of(folder_store, trials[0].run_id))

    wait_for(at_work, "a trial at work", LONGEST_S)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=LONGEST_S)
    assert process.returncode == 130, output
    assert "the same command goes on" in output
    assert [trial.outcome for trial in study_of(folder_store, search).trials()] == ["running"]

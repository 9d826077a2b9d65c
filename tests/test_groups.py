"""Groups: their document in a store anybody may write to, the grid of a sweep, and what differs."""

import hashlib
import io
import itertools
import json
import multiprocessing
import re
import time
from pathlib import Path

import pytest
from rich.console import Console

from moola.errors import ArtifactError, DataError
from moola.launch.capacity import THREAD_VARIABLES, Capacity, thread_environment
from moola.launch.console import SafeConsole
from moola.launch.grid import combinations, drawn, read_swept, title_of
from moola.launch.group_table import group_document, group_tables, member_states
from moola.launch.member_progress import MemberProgress
from moola.runs.groups import (
    MAX_MEMBERS,
    differences,
    find_group,
    group_key,
    group_of,
    put_group,
    read_group,
)
from moola.runs.protocol import HEARTBEAT, attempt_key, canonical_json, run_key
from moola.runs.reading import run_state
from moola.runs.submit import describe_input, describe_run, pull_input, put_input
from moola.store import Store, open_store
from tests.hostile import DAMAGES, EVIL
from tests.runs import committed_run, submitted_run

RUN_A = "train-" + "a" * 12
RUN_B = "train-" + "b" * 12


# --- the document -----------------------------------------------------------------------------


def test_the_id_is_a_fingerprint_of_the_members_alone() -> None:
    group = group_of("train", [RUN_B, RUN_A, RUN_B])
    text = f'["{RUN_A}","{RUN_B}"]'
    assert group.id == "group-" + hashlib.sha256(text.encode()).hexdigest()[:12]
    assert group_of("train", [RUN_A, RUN_B]) == group
    assert group_of("train", [RUN_A]).id != group.id


@pytest.mark.parametrize("count", [0, MAX_MEMBERS + 1])
def test_a_group_has_members_and_not_too_many(count: int) -> None:
    run_ids = [f"train-{number:012x}" for number in range(count)]
    with pytest.raises(DataError, match=r"1 to 1,000 runs"):
        group_of("train", run_ids)


def test_a_group_is_written_once_and_found_by_the_start_of_its_id(store: Store) -> None:
    group = group_of("train", [RUN_A, RUN_B])
    put_group(store, group)
    put_group(store, group)
    store.put("groups/nonsense/group.json", b"{}")

    digits = group.id.removeprefix("group-")
    for name in (group.id, group.id[:9], digits[:4]):
        assert find_group(store, name) == group.id
    assert read_group(store, group.id) == group
    with pytest.raises(DataError, match="none"):
        find_group(store, "group-nothing")


def test_members_that_the_id_does_not_stand_for_are_refused(store: Store) -> None:
    group = group_of("train", [RUN_A])
    other = group_of("train", [RUN_B])
    store.put(group_key(group.id), canonical_json(other.model_dump(mode="json")))
    with pytest.raises(ArtifactError, match="changed after it was written"):
        read_group(store, group.id)


@pytest.mark.parametrize(
    "members",
    [
        [],
        [RUN_B, RUN_A],
        [RUN_A, RUN_A],
        ["precompute-" + "a" * 12],
        ["../../outside"],
        [EVIL],
        [f"train-{number:012x}" for number in range(MAX_MEMBERS + 1)],
    ],
)
def test_a_document_that_breaks_a_rule_is_refused(store: Store, members: list[str]) -> None:
    document = {"job": "train", "members": members}
    store.put(group_key("group-" + "0" * 12), canonical_json(document))
    with pytest.raises(ArtifactError, match=r"damaged.*members|damaged.*the document"):
        read_group(store, "group-" + "0" * 12)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_group_is_an_error_of_ours_or_the_group_itself(tmp_path: Path, damage) -> None:
    store = open_store(f"file://{tmp_path}/store")
    group = group_of("precompute", [committed_run(store, tmp_path / "work")])
    put_group(store, group)
    bad = damage(store.get(group_key(group.id)))
    if bad is None:
        store.delete(group_key(group.id))
    else:
        store.put(group_key(group.id), bad)

    fault = ""
    try:
        assert read_group(store, group.id) == group
    except ArtifactError as error:
        fault = str(error)
    assert "\x1b" not in fault


# --- how the members stand --------------------------------------------------------------------


def test_a_damaged_member_hides_no_other(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/store")
    good = committed_run(store, tmp_path / "work", windows="stored")
    bad = submitted_run(store, windows="virtual")
    missing = "precompute-" + "f" * 12
    store.put(run_key(bad, "spec.json"), b'{"job": "' + EVIL.encode() + b'"}')
    group = group_of("precompute", [good, bad, missing])

    states = {member.run_id: member.state for member in member_states(store, group)}
    assert states == {good: "committed", bad: "damaged", missing: "damaged"}
    json.dumps(group_document(store, group))

    with (tmp_path / "screen").open("w") as stream:
        SafeConsole(stream).print(*group_tables(store, group))
    screen = (tmp_path / "screen").read_text()
    assert "1 committed, 2 damaged" in screen
    assert "\x1b" not in screen
    assert "\u202e" not in screen


def test_what_differs_is_what_the_specs_differ_in() -> None:
    rates = [
        {"training": {"rate": rate, "epochs": 3}, "model": {"name": "jade"}} for rate in (1, 2)
    ]
    rates.append({"training": {"epochs": 3}, "model": {"name": "jade"}})
    documents = [describe_run("train", spec, {})[1] for spec in rates]
    assert differences(documents) == [
        {"training.rate": "1"},
        {"training.rate": "2"},
        {"training.rate": "-"},
    ]
    assert differences(documents[:1]) == [{}]


# --- the grid ---------------------------------------------------------------------------------


def test_a_grid_is_every_combination_with_values_read_as_yaml() -> None:
    swept = read_swept(["a.b=0,1", "c=x,null,0.5", "d=[1, 2]"])
    points = combinations(swept, {})
    expected = itertools.product([0, 1], ["x", None, 0.5], [[1, 2]][0:1])
    assert [tuple(point.values()) for point in points] == [
        (first, second, value) for first, second, _ in expected for value in ([1, 2],)
    ]
    assert list(points[0]) == ["a.b", "c", "d"]
    assert title_of(points[1]) == "a.b=0 c=None d=[1, 2]"


def test_draws_are_points_of_the_grid_each_once_and_the_same_every_time() -> None:
    swept = read_swept(["a=0,1,2,3", "b=0,1,2,3,4"])
    points = drawn(swept, {}, 7, seed=3)
    grid = combinations(swept, {})
    assert len({(point["a"], point["b"]) for point in points}) == 7
    assert all(point in grid for point in points)
    assert drawn(swept, {}, 7, seed=3) == points
    assert drawn(swept, {}, 7, seed=4) != points
    assert drawn(swept, {}, 20, seed=0) == grid


def test_a_grid_of_a_billion_points_can_be_drawn_from() -> None:
    values = ",".join(map(str, range(1000)))
    swept = read_swept([f"{name}={values}" for name in "abc"])
    assert len(drawn(swept, {}, 5, seed=0)) == 5
    with pytest.raises(DataError, match="at most 1,000 runs"):
        combinations(swept, {})


@pytest.mark.parametrize(
    ("texts", "rule"),
    [
        (["training.seed"], "FIELD=VALUE"),
        (["=1,2"], "FIELD=VALUE"),
        (["a="], "at least one value"),
        (["a=[1"], "must be YAML"),
        (["a=1", "a=2"], "twice"),
    ],
)
def test_what_is_no_sweep_is_refused(texts: list[str], rule: str) -> None:
    with pytest.raises(DataError, match=rule):
        read_swept(texts)


def test_a_field_is_swept_or_set() -> None:
    swept = read_swept(["a=1,2"])
    for points in (combinations, lambda *args: drawn(*args, 1, 0)):
        with pytest.raises(DataError, match="swept over and set"):
            points(swept, {"a": 1})
    with pytest.raises(DataError, match="at most the 2 points"):
        drawn(swept, {}, 3, 0)


# --- how many at once -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cores", "memory_gb", "most", "at_once"),
    [(8, 64.0, 12, 8), (8, 64.0, 3, 3), (8, 7.5, 12, 3), (1, 64.0, 5, 1), (8, 0.5, 5, 1)],
)
def test_cores_and_memory_bound_what_runs_at_once(
    cores: int, memory_gb: float, most: int, at_once: int
) -> None:
    assert Capacity(cores, memory_gb).jobs_at_once(most) == at_once
    assert Capacity(cores, None).jobs_at_once(most) == min(cores, most)


@pytest.mark.parametrize("cores", [1, 2, 7, 64])
def test_threads_together_are_no_more_than_the_cores(cores: int) -> None:
    capacity = Capacity(cores, None)
    for jobs in range(1, cores + 1):
        threads = capacity.threads_of_each(jobs)
        assert 1 <= threads * jobs <= cores
        assert (threads + 1) * jobs > cores


def test_a_lower_bound_of_the_users_stays() -> None:
    environment = thread_environment(4, {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "16"})
    assert environment == dict.fromkeys(THREAD_VARIABLES, "4") | {"OMP_NUM_THREADS": "2"}


# --- files that several runs read -------------------------------------------------------------


def _pull(url: str, path: str, work: str, results: "multiprocessing.Queue[str]") -> None:
    store = open_store(url)
    try:
        pulled = pull_input(store, describe_input(Path(path)), Path(work))
        results.put(hashlib.sha256(pulled.read_bytes()).hexdigest())
    except BaseException as error:
        results.put(repr(error))


def test_processes_that_fetch_the_same_input_at_once_all_get_it(tmp_path: Path) -> None:
    path = tmp_path / "input.bin"
    data = bytes(range(256)) * 100_000
    path.write_bytes(data)
    url = f"file://{tmp_path}/store"
    put_input(open_store(url), path, describe_input(path))

    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    arguments = (url, str(path), str(tmp_path / "work"), results)
    processes = [context.Process(target=_pull, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    digests = {results.get(timeout=120) for _ in processes}
    for process in processes:
        process.join()
    assert digests == {hashlib.sha256(data).hexdigest()}


# --- what is shown of members at work ---------------------------------------------------------


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def shown(store: Store, run_id: str, console: Console) -> None:
    """A member that gives a heartbeat and commits, and one that fails, as they are shown."""
    attempt_id = run_state(store, run_id).attempt
    assert attempt_id is not None
    heartbeat = {
        "time": "2026-01-01T00:00:00.000+00:00",
        "stage": "full epoch 3",
        "done": 3,
        "total": 40,
        "unit": "epochs",
        "note": f"loss 0.5{EVIL}",
    }
    store.put(attempt_key(run_id, attempt_id, HEARTBEAT), canonical_json(heartbeat))
    titles = {run_id: "training.seed=0", RUN_B: "training.seed=1"}

    with MemberProgress(console, store, titles) as progress:
        progress.started(run_id)
        progress.started(RUN_B)
        progress.update({run_id: attempt_id, RUN_B: ""})
        time.sleep(0.3)  # a bar is drawn ten times a second
        progress.ended(run_id, attempt_id, 0)
        progress.ended(RUN_B, "", 137, "out of memory")


def test_members_at_work_are_a_table_on_a_terminal_and_lines_elsewhere(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    run_id = committed_run(store, tmp_path / "work")
    terminal = Terminal()
    shown(store, run_id, SafeConsole(terminal))
    drawn_text = terminal.getvalue()
    assert "full epoch 3  3 epochs / 40 epochs" in drawn_text
    assert "\u202e" not in drawn_text

    plain = io.StringIO()
    shown(store, run_id, SafeConsole(plain))
    lines = [re.sub(r"after \d+ s", "after N s", line) for line in plain.getvalue().splitlines()]
    assert lines == [
        f"started {run_id}: training.seed=0",
        f"started {RUN_B}: training.seed=1",
        f"committed {run_id}: training.seed=0 after N s (1 of 2)",
        f"failed {RUN_B}: training.seed=1 after N s (2 of 2)",
        "  exit 137: out of memory",
    ]

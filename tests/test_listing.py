"""Names and tags of runs, and finding runs by them."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from moola.cli import app as command_line
from moola.cli.listing import StateName
from moola.errors import ArtifactError, DataError
from moola.runs.about import About, add_about, new_about, read_about
from moola.runs.attempt import Attempt
from moola.runs.protocol import run_key
from moola.runs.records import State
from moola.runs.submit import describe_run, read_spec_document
from moola.runs.survey import DAMAGED, HALF_REMOVED, RunQuery, summarize_runs, survey_runs
from moola.store import Store
from tests.runs import committed_run, submitted_run

Command = Callable[..., str]


@pytest.fixture
def command(
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Command:
    """Runs a command in this process; -> what it wrote to standard output alone."""
    monkeypatch.setenv("MOOLA_STORE", store.url)
    monkeypatch.setenv("MOOLA_WORK", str(tmp_path / "work"))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, exit_code: int = 0) -> str:
        ended = command_line.run(arguments)
        captured = capsys.readouterr()
        assert ended == exit_code, captured
        return captured.err if exit_code else captured.out

    return run


def failed_run(store: Store, work: Path, **spec: int) -> str:
    run_id = submitted_run(store, **spec)
    with pytest.raises(DataError), Attempt(store, run_id, work=work):
        raise DataError("bars must be good")
    return run_id


def found(output: str) -> list[str]:
    return [run["run"] for run in json.loads(output)["runs"]]


def test_runs_are_found_by_state_tag_and_name(
    store: Store, command: Command, tmp_path: Path
) -> None:
    good = committed_run(store, tmp_path, n=1)
    time.sleep(1.1)  # a listing of S3 has whole seconds
    bad = failed_run(store, tmp_path, n=2)
    time.sleep(1.1)
    waiting = submitted_run(store, n=3)
    add_about(store, good, new_about("wide model", ["sweep", "nq"]))
    add_about(store, bad, new_about("wide one", ["sweep"]))

    assert found(command("list", "--json")) == [waiting, bad, good]
    assert found(command("list", "--json", "--last", "1")) == [waiting]
    assert found(command("list", "--json", "--state", "failed")) == [bad]
    assert found(command("list", "--json", "--state", "failed", "--state", "committed")) == [
        bad,
        good,
    ]
    assert found(command("list", "--json", "--tag", "sweep")) == [bad, good]
    assert found(command("list", "--json", "--tag", "sweep", "--last", "1")) == [bad]
    assert found(command("list", "--json", "--tag", "sweep", "--tag", "nq")) == [good]
    assert found(command("list", "--json", "--name", "wide*")) == [bad, good]
    assert found(command("list", "--json", "--name", "wide")) == []
    assert found(command("list", "--json", "--name", "*model", "--state", "failed")) == []

    table = command("list", "--tag", "nq")
    assert good in table
    assert "wide" in table
    assert bad not in table


def test_the_document_of_a_list_says_what_is_known(
    store: Store, command: Command, tmp_path: Path
) -> None:
    run_id = committed_run(store, tmp_path)
    command("tag", run_id, "--name", "first", "--tag", "b", "--tag", "a")
    document = json.loads(command("list", "--json"))
    (run,) = document["runs"]
    assert document["store"] == store.url
    assert document["n_runs"] == 1
    assert (run["name"], run["tags"]) == ("first", ["a", "b"])
    assert (run["job"], run["state"]) == ("precompute", "committed")
    assert run["committed"] <= run["changed"]
    assert run["changed"].endswith("+00:00")


def test_a_name_is_no_part_of_a_run(store: Store, tmp_path: Path) -> None:
    """Neither the id nor the fingerprint knows of it, and a new name is no change of the run."""
    run_id = committed_run(store, tmp_path, n=1)
    before = read_spec_document(store, run_id)
    time.sleep(1.1)
    newer = committed_run(store, tmp_path, n=2)
    time.sleep(1.1)
    add_about(store, run_id, new_about("renamed", ["x"]))

    assert read_spec_document(store, run_id) == before
    assert describe_run("precompute", {"n": 1}, {})[0] == run_id
    runs = summarize_runs(store, survey_runs(store), 2)
    assert [run.run_id for run in runs] == [newer, run_id]


def test_tags_are_added_and_taken_away(store: Store, run_id: str) -> None:
    add_about(store, run_id, new_about("a name", ["one", "two"]))
    add_about(store, run_id, new_about(None, ["three"]), without=["one"])
    assert read_about(store, run_id) == About(name="a name", tags=("three", "two"))


@pytest.mark.parametrize(
    ("name", "tags", "rule"),
    [
        ("", [], "a name has 1 to 80 letters"),
        ("ends with a blank ", [], "a name has"),
        ("x" * 81, [], "a name has"),
        ("\x1b[31mred", [], "a name has"),
        ("line\nbreak", [], "a name has"),
        (None, ["two words"], "a tag has 1 to 40 letters"),
        (None, ["-x"], "a tag has"),
        (None, ["x" * 41], "a tag has"),
        (None, [f"t{n}" for n in range(21)], "at most 20 tags"),
        ("key SecretOfTheStore", [], "the value of a secret"),
    ],
)
def test_a_name_or_tag_that_breaks_a_rule_is_refused(
    name: str | None, tags: list[str], rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "SecretOfTheStore")
    with pytest.raises(DataError, match=rule):
        new_about(name, tags)


def test_names_in_any_language_are_taken() -> None:
    assert new_about("früher Lauf 3", ["größe=64"]).tags == ("größe=64",)


DAMAGED_NAMES = (
    b'{"name": "\\u001b[31mEVIL"}',
    b'{"tags": ["' + b"x" * 99 + b'"]}',
    b'{"tags": "nq"}',
    b'{"tags": [' + b",".join([b'"a"'] * 21) + b"]}",
    b"[" * 1000,
    b"\xff",
)


def test_a_damaged_name_is_told_of_its_run_alone(store: Store, command: Command) -> None:
    good, *damaged = (submitted_run(store, n=n) for n in range(1 + len(DAMAGED_NAMES)))
    add_about(store, good, new_about("good", []))
    for run_id, data in zip(damaged, DAMAGED_NAMES, strict=True):
        store.put(run_key(run_id, "about.json"), data)
        with pytest.raises(ArtifactError, match=r"about\.json"):
            read_about(store, run_id)

    listed = {run["run"]: run["state"] for run in json.loads(command("list", "--json"))["runs"]}
    assert listed == {good: "submitted", **dict.fromkeys(damaged, "damaged")}
    assert set(found(command("list", "--json", "--state", "damaged"))) == set(damaged)
    assert found(command("list", "--json", "--name", "good")) == [good]


def test_the_states_of_the_option_are_those_of_the_records() -> None:
    """They stand twice: the records take too long to import for --help."""
    assert tuple(StateName) == (*State, DAMAGED, HALF_REMOVED)


def test_only_runs_with_a_name_are_read_for_one(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search by tag in a store of many runs reads the few that have any."""
    named, *others = (submitted_run(store, n=n) for n in range(5))
    add_about(store, named, new_about(None, ["x"]))
    survey = survey_runs(store)
    read: list[str] = []
    get_or_none = store.get_or_none

    def note(key: str, *args: int) -> bytes | None:
        read.append(key)
        return get_or_none(key, *args)

    monkeypatch.setattr(store, "get_or_none", note)
    (run,) = summarize_runs(store, survey, 5, RunQuery(tags=frozenset({"x"})))
    assert run.run_id == named
    assert not [key for key in read if any(other in key for other in others)]


def test_a_tag_of_a_run_that_is_not_there_is_refused(command: Command) -> None:
    assert "start of exactly one" in command("tag", "train-0", "--tag", "x", exit_code=3)

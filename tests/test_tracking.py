"""Runs told to MLflow: to a real server, once, as they are; what fails is said, no more."""

import json
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest

pytest.importorskip("mlflow", reason="in the extra `mlflow`")

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, PERMISSION_DENIED

from moola.errors import DataError
from moola.evaluation.run_tables import MAX_HISTORY_CELLS
from moola.launch import sweep as sweeping
from moola.launch import tracking
from moola.launch.endings import Endings, MemberEndings
from moola.launch.member_progress import MemberProgress
from moola.launch.settings import Settings, TrackingConfig, read_settings_file
from moola.launch.submit import submit_and_follow
from moola.launch.tracked_run import (
    LONGEST_TITLE,
    Point,
    TrackedRun,
    _input_runs,
    clean_name,
    history_points,
    short_title,
    tracked_run,
)
from moola.launch.tracking import Tracking, require_tracking
from moola.runs.about import add_about, new_about
from moola.runs.attempt import Attempt
from moola.runs.groups import Member, group_of, put_group
from moola.runs.protocol import attempt_key
from moola.runs.reading import run_state
from moola.runs.records import InputRun, SpecDocument
from moola.store import Store, open_store
from tests.mlflow_server import running_mlflow
from tests.runs import committed_run, submitted_run
from tests.test_comparing import trained_run
from tests.test_listing import Command, command, failed_run

__all__ = ["command"]

PASSWORD = "corr3ct-horse"
UNREACHABLE = f"http://me:{PASSWORD}@127.0.0.1:1"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A folder: what kind of store it is matters to nothing here."""
    return open_store((tmp_path / "store").as_uri())


def config(address: str) -> TrackingConfig:
    return TrackingConfig.model_validate({"mlflow": address})


def claims(store: Store, run_id: str) -> bool:
    attempt = run_state(store, run_id).attempt
    assert attempt is not None
    return store.exists(attempt_key(run_id, attempt, tracking.TRACKED))


class Mlflow:
    """What a server has, asked for without MLflow's client."""

    def __init__(self, address: str) -> None:
        self.address = address

    def runs(self, experiment: str) -> list[dict[str, Any]]:
        named = self._get("experiments/get-by-name", experiment_name=experiment)
        request = {"experiment_ids": [named["experiment"]["experiment_id"]]}
        answer = httpx.post(f"{self.address}/api/2.0/mlflow/runs/search", json=request, timeout=60)
        return list(answer.json().get("runs", []))

    def curve(self, run: Mapping[str, Any], name: str) -> list[tuple[int, float]]:
        id_ = run["info"]["run_id"]
        answer = self._get("metrics/get-history", run_id=id_, metric_key=name)
        return [(int(each["step"]), each["value"]) for each in answer["metrics"]]

    def _get(self, path: str, **parameters: str) -> dict[str, Any]:
        url = f"{self.address}/api/2.0/mlflow/{path}"
        answer = httpx.get(url, params=parameters, timeout=60)
        assert answer.status_code == httpx.codes.OK, answer.text
        return dict(answer.json())


def table(items: list[dict[str, Any]]) -> dict[str, Any]:
    return {item["key"]: item["value"] for item in items}


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mlflow]:
    with running_mlflow(tmp_path_factory.mktemp("mlflow")) as address:
        yield Mlflow(address)


def test_a_real_server_has_each_run_once_as_it_is(
    mlflow: Mlflow,
    store: Store,
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One test, so that there is one server: a sweep of two, a run that failed, both told again."""
    runs = [
        trained_run(store, tmp_path, {"f1_macro": f1, "f1[a move]": None}, training={"seed": seed})
        for seed, f1 in enumerate((0.25, 0.5))
    ]
    failed = failed_run(store, tmp_path)
    add_about(store, failed, new_about("nightly", ["nq", "x"]))
    group = group_of("train", runs)
    put_group(store, group)

    told = Tracking(config(mlflow.address))
    for seed, run_id in enumerate(runs):
        told.tell_end(store, run_id, Member(group.id, f"training.seed={seed}"))
    told.tell_end(store, failed)
    Tracking(config(mlflow.address)).tell_end(store, failed)  # by somebody else
    monkeypatch.setenv("MOOLA_TRACKING__MLFLOW", mlflow.address)
    assert "in MLflow" in command("track", group.id, failed, runs[0])

    found = mlflow.runs("moola/train")
    assert sorted(run["info"]["run_name"] for run in found) == ["seed=0", "seed=1"]
    (run,) = [run for run in found if run["info"]["run_name"] == "seed=1"]
    assert run["info"]["status"] == "FINISHED"
    assert table(run["data"]["params"]) == {"training.seed": "1"}
    metrics = table(run["data"]["metrics"])
    assert metrics == {
        "test/f1_macro": 0.5,
        "pretrain/loss": 9.0,
        "train/loss": 0.25,
        "validation/hit3": 0.3,
    }
    assert mlflow.curve(run, "train/loss") == [(1, 1.0), (2, 0.5), (3, 0.25)]
    tags = table(run["data"]["tags"])
    assert tags["moola.run"] == runs[1]
    assert tags["moola.group"] == group.id
    assert tags["moola.artifacts"].startswith(f"{store.url}/runs/{runs[1]}/attempts/")
    assert len(tags["mlflow.source.git.commit"]) == 40

    (run,) = mlflow.runs("moola/precompute")
    assert run["info"]["run_name"] == "nightly"
    assert run["info"]["status"] == "FAILED"
    tags = table(run["data"]["tags"])
    assert tags["moola.tags"] == "nq x"
    assert "bars must be good" in tags["moola.reason"]


def test_what_a_hostile_store_holds_is_cut_to_what_mlflow_takes(
    store: Store, tmp_path: Path
) -> None:
    spec = {"a/../[b]\x1b": "x" * 600, "..": [1, None], **{f"n{n}": n for n in range(2000)}}
    run_id = trained_run(store, tmp_path, {"..": 1.0, "m" * 200: float("nan")}, **spec)
    run = tracked_run(store, run_id, run_state(store, run_id))
    assert len(run.params) <= 1000
    assert len(run.params["a_.._.b_"]) == 500
    assert run.params["_"] == "[1,null]"
    assert Point("test/_", 1.0) in run.points
    assert not any("mmm" in point.name for point in run.points)


def test_damaged_results_are_named_and_the_rest_is_told(store: Store, tmp_path: Path) -> None:
    run_id = submitted_run(store, "train", seed=1)
    with Attempt(store, run_id, work=tmp_path) as attempt:
        attempt.write("metrics.json", b'{"test": 1}', "application/json")
    run = tracked_run(store, run_id, run_state(store, run_id))
    assert "metrics.json" in run.tags["moola.fault"]
    assert run.params == {"seed": "1"}
    assert run.points == []


def run_with_history(store: Store, work: Path, history: pd.DataFrame) -> TrackedRun:
    run_id = trained_run(store, work, {"f1": 0.5}, history=history)
    return tracked_run(store, run_id, run_state(store, run_id))


def test_a_small_file_that_unpacks_to_a_large_history_is_not_read(
    store: Store, tmp_path: Path
) -> None:
    history = pd.DataFrame({"step": np.zeros(MAX_HISTORY_CELLS + 1, np.int8)})
    run = run_with_history(store, tmp_path, history)
    assert "must have at most 1,000,000 values" in run.tags["moola.fault"]
    assert run.points == []


def test_of_a_history_numbers_and_texts_are_read_alone(store: Store, tmp_path: Path) -> None:
    history = pd.DataFrame({"step": [1], "loss": [2.0], "stage": [["pretrain", "x"]]})
    run = run_with_history(store, tmp_path, history)
    assert run.points == [Point("test/f1", 0.5), Point("train/loss", 2.0, 1)]
    assert "moola.fault" not in run.tags


def test_a_stage_that_is_no_text_is_none() -> None:
    stages = pd.Series([np.array(["pretrain", "x"])], dtype=object)
    history = pd.DataFrame({"step": [1], "loss": [2.0], "stage": stages})
    assert list(history_points(history)) == [Point("train/loss", 2.0, 1)]


def test_inputs_take_the_place_of_no_other_tag(store: Store, tmp_path: Path) -> None:
    features = committed_run(store, tmp_path)
    item = InputRun(run=features, sha256="0" * 64)
    document = SpecDocument.model_construct(inputs={"run": item})
    assert _input_runs(document) == {"moola.input.run": features}


def test_a_title_of_any_length_is_cut_before_it_is_searched() -> None:
    assert len(short_title(Member("group", "x" * 100_000))) == LONGEST_TITLE


@pytest.mark.parametrize(
    ("error", "n_asked"),
    [
        (MlflowException("this run", error_code=INVALID_PARAMETER_VALUE), 2),
        (MlflowException("no answer"), 1),
        (MlflowException("who are you", error_code=PERMISSION_DENIED), 1),
        (ValueError("of this run"), 2),
        (ConnectionError("gone"), 1),
    ],
)
def test_the_next_run_is_told_unless_the_server_fails(
    error: Exception, n_asked: int, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def tell(_config: object, _store: object, run_id: str, *_: object) -> None:
        asked.append(run_id)
        raise error

    monkeypatch.setattr(tracking, "tell", tell)
    told = Tracking(config("http://127.0.0.1:1"))
    for n in range(2):
        told.tell_end(store, committed_run(store, tmp_path, n=n))
    assert len(asked) == n_asked


@pytest.mark.parametrize("step", [-1, 1 << 60, "x", None])
def test_a_row_of_the_history_without_a_step_is_passed_over(step: object) -> None:
    history = pd.DataFrame({"step": pd.Series([step], dtype=object), "loss": [1.0]})
    assert list(history_points(history)) == []


def test_names_are_those_that_mlflow_takes() -> None:
    assert clean_name("f1[a move]") == "f1.a move"
    assert clean_name("a/b:ü") == "a_b_"
    assert clean_name("../..") == "_"
    assert clean_name("") == "_"


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("training.seed=1 model.dropout=0.1", "seed=1 dropout=0.1"),
        ("bars=/home/me/my bars/nq.parquet features.zigzag_k=1.2", "bars=nq.parquet zigzag_k=1.2"),
        ("bars=s3://bucket/es.parquet", "bars=es.parquet"),
        ("", ""),
    ],
)
def test_a_member_is_named_by_what_is_its_own(title: str, name: str) -> None:
    assert short_title(Member("group", title)) == name


def test_a_server_that_is_down_is_told_of_in_one_line_and_fails_nothing(
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is not asked again, and nothing is claimed: the next pass of `tend` tells it."""
    monkeypatch.setenv("MOOLA_TRACKING__MLFLOW", UNREACHABLE)
    told = Tracking(Settings().tracking)
    runs = [committed_run(store, tmp_path, n=n) for n in range(2)]
    for run_id in runs:
        told.tell_end(store, run_id)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert f"MLflow was not told of the end of {runs[0]}" in err
    assert PASSWORD not in err
    assert not any(claims(store, run_id) for run_id in runs)


def test_a_server_that_never_answers_is_given_up(
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in tracking.CLIENT_ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(tracking.CLIENT_ENVIRONMENT, "MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    before = dict(os.environ)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        Tracking(config(address)).tell_end(store, committed_run(store, tmp_path))
    assert "was not told" in capsys.readouterr().err
    assert dict(os.environ) == before
    assert int(tracking.CLIENT_ENVIRONMENT["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]) <= 1


@pytest.mark.parametrize(
    "address",
    ["somewhere", "./mlruns", "file:///mlruns", "http://[", f"nonsense://me:{PASSWORD}@host"],
)
def test_an_address_that_is_none_is_refused_before_a_run(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOOLA_TRACKING__MLFLOW", address)
    with pytest.raises(DataError, match="must be the address of an MLflow server") as refused:
        require_tracking(Settings().tracking)
    assert PASSWORD not in str(refused.value)
    assert PASSWORD not in repr(Settings())


def test_without_the_client_a_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda _: None)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(DataError, match=r"pip install 'moola\[mlflow\]'"):
        require_tracking(config("http://127.0.0.1:1"))
    require_tracking(TrackingConfig())


@pytest.mark.parametrize("address", [f"https://me:{PASSWORD}@host", f"https://host?key={PASSWORD}"])
def test_a_password_in_the_settings_file_is_refused(address: str, tmp_path: Path) -> None:
    path = tmp_path / "moola.toml"
    path.write_text(f'[tracking]\nmlflow = "{address}"\n')
    with pytest.raises(ValueError, match="set MOOLA_TRACKING__MLFLOW instead") as refused:
        read_settings_file(path)
    assert PASSWORD not in str(refused.value)

    path.write_text('[tracking]\nmlflow = "https://host:5000"\n')
    assert read_settings_file(path) == {"tracking": {"mlflow": "https://host:5000"}}


# --- who tells --------------------------------------------------------------------------------


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """(run id, title) of what a server would be sent."""
    monkeypatch.setenv("MOOLA_TRACKING__MLFLOW", "http://127.0.0.1:1")
    sent: list[tuple[str, str]] = []

    def tell(
        _config: object, _store: object, run_id: str, _state: object, member: Member, _claim: str
    ) -> None:
        sent.append((run_id, member.title))

    monkeypatch.setattr(tracking, "tell", tell)
    return sent


def test_the_command_that_runs_a_job_tells_of_its_end(
    tmp_path: Path, told: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from moola.jobs.prepare import prepare_precompute
    from moola.launch import local
    from moola.specs import PrecomputeSpec

    settings = Settings(store=(tmp_path / "store").as_uri(), work=tmp_path / "work")
    run = prepare_precompute(PrecomputeSpec(), settings.work)

    def run_to_end(_: Settings, store: Store, __: str, run_id: str) -> int:
        with Attempt(store, run_id, work=tmp_path / "work"):
            pass
        return 0

    monkeypatch.setattr(local, "run_to_end", run_to_end)
    submit_and_follow(settings, run)
    assert told == [(run.run_id, "")]


def test_a_sweep_tells_of_each_member_as_it_ends(
    store: Store, tmp_path: Path, told: list[tuple[str, str]]
) -> None:
    from rich.console import Console

    runs = {committed_run(store, tmp_path, n=n): f"n={n}" for n in range(2)}
    sweep = sweeping.Sweep("precompute", (), runs)
    endings = MemberEndings(Settings(), store, sweep.name, sweep.titles)
    with MemberProgress(Console(quiet=True), store, runs, endings.tell) as progress:
        for run_id in runs:
            progress.started(run_id)
            progress.ended(run_id, "", 0)
    assert told == list(runs.items())


def test_a_sweep_on_ray_tells_of_each_member_as_it_ends(
    store: Store,
    tmp_path: Path,
    told: list[tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without Ray: what is asked of the cluster is no matter here."""
    from moola.jobs.prepare import prepare_precompute
    from moola.launch.on_ray import sweep as on_ray
    from moola.specs import PrecomputeSpec

    class Members:
        def run(self, run_ids: list[str], progress: MemberProgress) -> dict[str, int]:
            for run_id in run_ids:
                progress.started(run_id)
                with Attempt(store, run_id, work=tmp_path):
                    pass
                progress.ended(run_id, "", 0)
            return dict.fromkeys(run_ids, 0)

    monkeypatch.setattr(on_ray, "require_ray", lambda: None)
    monkeypatch.setattr(on_ray, "open_cluster", lambda *_, **__: nullcontext())
    monkeypatch.setattr(on_ray, "ray_members", lambda *_: Members())
    monkeypatch.setattr(on_ray, "_say_how", lambda *_: None)
    run = prepare_precompute(PrecomputeSpec(), tmp_path)
    sweep = sweeping.sweep_of("precompute", [("n=1", run)])

    on_ray.run_ray_sweep(Settings(store=store.url), sweep)
    assert told == [(run.run_id, "n=1")]

    monkeypatch.setenv("MOOLA_TRACKING__MLFLOW", "somewhere")
    with pytest.raises(DataError, match="must be the address of an MLflow server"):
        on_ray.run_ray_sweep(Settings(store=store.url), sweep)


def test_of_a_run_under_way_or_told_of_nothing_is_sent(
    store: Store, tmp_path: Path, told: list[tuple[str, str]]
) -> None:
    endings = Endings(Settings())
    endings.tell(store, submitted_run(store))
    done = committed_run(store, tmp_path, n=1)
    attempt = run_state(store, done).attempt
    assert attempt is not None
    store.create(attempt_key(done, attempt, tracking.TRACKED), json.dumps({}).encode())
    endings.tell(store, done)
    assert told == []

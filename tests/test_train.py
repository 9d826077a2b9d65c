"""The train job end to end, small:
from a feature set and labels to a model, its numbers and a report."""

import fcntl
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("torch", reason="training needs the extra `train`")

from moola.runs.reading import run_state
from moola.store import Store, open_store
from tests.feature_set import random_bars
from tests.runs import pid_of
from tests.test_launch import Launcher, wait_for

FEATURES = ("--windows", "virtual", "--set", "synthetic.end=2025-01-31")
REPORT = "report.html"
SMALL = (
    *("--set", "training.full_epochs=2", "--set", "training.windows_per_epoch=64"),
    *("--set", "training.pretrain_epochs=1", "--set", "training.pretrain_windows=64"),
    *("--set", "model.hidden_size=8"),
    *("--set", "trees={members: 1, rounds: 5, windows: 1}", "--set", "presence.windows=200"),
)
STAGE_STEPS = {"pretrain": (1, 16), "heads": (17, 32), "full": (33, 63)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Launcher, str, str]:
    """A store with a feature set of synthetic bars and a small model.

    -> (launcher, run, output of the command).

    Made once: the processes of a test run wait for the first that needs it, and each takes a copy.
    """
    base = tmp_path_factory.getbasetemp()
    made = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "trained-once"
    with made.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (made / "output").exists():
            made.mkdir()
            launch = Launcher(made, f"file://{made}/store")
            launch("precompute", *FEATURES)
            (made / "output").write_text(launch("train", *SMALL))
    folder = shutil.copytree(made, tmp_path_factory.mktemp("train") / "copy")
    launch = Launcher(folder, f"file://{folder}/store")
    return (
        launch,
        next(run for run in launch.runs() if run.startswith("train-")),
        (folder / "output").read_text(),
    )


def pulled(launch: Launcher, run_id: str, name: str) -> Path:
    launch("pull", run_id, name)
    return launch.folder / name


def test_a_run_ends_with_metrics_gates_and_report(trained: tuple[Launcher, str, str]) -> None:
    launch, run_id, output = trained
    assert "F1, macro" in output
    assert "hindsight" in (pulled(launch, run_id, "out") / "report.html").read_text()
    metrics = json.loads((launch.folder / "out" / "metrics.json").read_text())
    assert 0 <= metrics["test"]["metrics"]["f1_macro"]["value"] <= 1
    assert metrics["test"]["metrics"]["hit_centre_3"]["baselines"]
    gates = json.loads((launch.folder / "out" / "gates.json").read_text())
    assert len(gates["gates"]) >= 6
    assert set(pd.read_parquet(launch.folder / "out" / "history.parquet")["stage"]) == {
        "pretrain",
        "heads",
        "full",
    }


def test_the_same_work_makes_the_same_bytes_but_for_the_manifest(
    trained: tuple[Launcher, str, str],
) -> None:
    """Times that a run took are in its manifest, and the report names the work, not the try."""
    launch, run_id, _ = trained
    features = next(run for run in launch.runs() if run.startswith("precompute-"))
    before = set(launch.runs())
    launch("precompute", *FEATURES, "--force")
    (features_again,) = set(launch.runs()) - before
    before = set(launch.runs())
    launch("train", *SMALL, "--features", features, "--force")
    (run_again,) = set(launch.runs()) - before

    for first, again in ((features, features_again), (run_id, run_again)):
        assert again.startswith(f"{first}-")
        folders = [pulled(launch, each, f"same-{each}") for each in (first, again)]
        files = [{path.name: path.read_bytes() for path in each.iterdir()} for each in folders]
        manifests = [json.loads(each.pop("manifest.json")) for each in files]
        assert files[0].keys() == files[1].keys()
        for each in files:  # the use of the machine, which is another one each time, comes last
            if REPORT in each:
                each[REPORT] = each[REPORT].partition(b"Use of the machine")[0]
        assert [name for name in files[0] if files[0][name] != files[1][name]] == []
        times = "timing_s" if first == features else "windows_per_s"
        assert all(manifest["provenance"][times] for manifest in manifests)

    history = pd.read_parquet(launch.folder / f"same-{run_id}" / "history.parquet")
    assert "windows_per_s" not in history
    assert run_id in (launch.folder / f"same-{run_id}" / "report.html").read_text()


def test_no_label_is_in_two_splits_and_no_bar_is(trained: tuple[Launcher, str, str]) -> None:
    launch, run_id, _ = trained
    table = pd.read_parquet(pulled(launch, run_id, "splits") / "predictions.parquet")
    spans = table.groupby("split")["window_start"].agg(["min", "max"]).loc[["train", "val", "test"]]
    assert table["window_id"].is_unique
    for before, after in (("train", "val"), ("val", "test")):
        assert spans.loc[before, "max"] + pd.Timedelta(minutes=104) < spans.loc[after, "min"]


def test_predictions_for_other_bars_are_those_of_the_model(
    trained: tuple[Launcher, str, str],
) -> None:
    """The same windows, asked for later, get the answer that the run itself recorded,
    whatever bars came after."""
    launch, run_id, _ = trained
    folder = pulled(launch, run_id, "again")
    bars = pd.read_parquet(pulled(launch, launch.runs()[0], "features") / "bars.parquet").iloc[
        :2500
    ]
    bars.to_parquet(launch.folder / "bars.parquet")
    launch("predict", run_id, "--bars", "bars.parquet", "--every", "1", "--windows", "all.parquet")
    every = pd.read_parquet(launch.folder / "all.parquet").set_index("window_start")
    recorded = (
        pd.read_parquet(folder / "predictions.parquet").set_index("window_start").sort_index()
    )
    recorded = recorded.loc[: every.index[-1]]
    assert len(recorded) > 8
    later = every.loc[recorded.index]
    np.testing.assert_array_equal(recorded["predicted_start"], later["expansion_start"])
    np.testing.assert_array_equal(recorded["predicted_label"], later["type"])
    for name in ("probability_consolidation", "probability_retracement"):
        np.testing.assert_allclose(recorded[name], later[name], atol=1e-5)

    local = bars.set_index("timestamp") if "timestamp" in bars else bars
    naive = local.index.tz_convert("America/Chicago").tz_localize(None)
    local.set_axis(naive).rename(columns={"close": "Settle"}).to_csv(launch.folder / "naive.csv")
    options = ("--timezone", "America/Chicago", "--set", "layout.close=Settle")
    launch(
        "predict",
        run_id,
        "--bars",
        "naive.csv",
        *options,
        "--every",
        "100",
        "--windows",
        "n.parquet",
    )
    again = pd.read_parquet(launch.folder / "n.parquet").set_index("window_start")
    assert again.index[-1] == every.index[-1], "the newest window is among them"
    pd.testing.assert_frame_equal(again, every.loc[again.index], check_index_type=False)


def test_predict_writes_the_moves_and_a_page_of_them(trained: tuple[Launcher, str, str]) -> None:
    launch, run_id, output = trained
    folder = pulled(launch, run_id, "moves")
    metrics = json.loads((folder / "metrics.json").read_text())["detection"]
    presence = json.loads((folder / "model.json").read_text())["presence"]
    assert metrics["presence"] == presence
    assert presence["no_moves"] == "unlabelled stretches"
    assert f"threshold {presence['threshold']:.2f}" in output
    assert f"<b>{presence['threshold']:.2f}</b>" in (folder / "report.html").read_text()

    bars = pd.read_parquet(pulled(launch, launch.runs()[0], "of") / "bars.parquet").iloc[:3000]
    bars.to_parquet(launch.folder / "few.parquet")
    said = launch("predict", run_id, "--bars", "few.parquet", "--html", "new/page.html")
    moves = pd.read_parquet(launch.folder / "moves.parquet")
    assert f"{len(moves)} moves" in said
    assert len(moves) > 3
    assert (moves["probability"] >= presence["threshold"]).all()
    assert (moves["start"].to_numpy()[1:] > moves["end"].to_numpy()[:-1]).all()

    refused = launch("predict", run_id, "--bars", "few.parquet", "--every", "104", exit_code=3)
    assert "got 104: moves have up to" in refused
    same = launch("predict", run_id, "--bars", "few.parquet", "--out", "few.parquet", exit_code=2)
    assert "few.parquet holds the bars" in same
    outputs = ("--out", "moves.parquet", "--windows", "new/../moves.parquet")
    twice = launch("predict", run_id, "--bars", "few.parquet", *outputs, exit_code=2)
    assert "must be two files" in twice
    pd.testing.assert_frame_equal(pd.read_parquet(launch.folder / "few.parquet"), bars)

    newest = moves.iloc[len(moves) // 2]
    ends_with_it = bars[pd.DatetimeIndex(bars["timestamp"]) <= newest["end"]]
    ends_with_it.to_parquet(launch.folder / "newest.parquet")
    launch("predict", run_id, "--bars", "newest.parquet", "--threshold", "0", "--out", "newest.csv")
    last = pd.read_csv(launch.folder / "newest.csv", parse_dates=["end"])["end"].iloc[-1]
    assert last >= newest["end"] - pd.Timedelta(minutes=3)

    launch("predict", run_id, "--bars", "few.parquet", "--threshold", "0", "--out", "all.csv")
    everything = pd.read_csv(launch.folder / "all.csv", parse_dates=["start", "end"])
    surer = everything[everything["probability"] >= presence["threshold"]]
    assert surer["start"].tolist() == moves["start"].tolist()
    assert "no move with" in launch(
        "predict", run_id, "--bars", "few.parquet", "--threshold", "1", "--out", "none.parquet"
    )
    assert len(pd.read_parquet(launch.folder / "none.parquet")) == 0


def test_a_model_of_windows_alone_is_given_windows_alone(
    trained: tuple[Launcher, str, str],
) -> None:
    """Labels that carried their own bars:
    predictions for the series those bars are from are the recorded ones."""
    launch, _, _ = trained
    bars = pd.read_parquet(pulled(launch, launch.runs()[0], "series") / "bars.parquet").iloc[
        : 60 * 105
    ]
    bars.to_parquet(launch.folder / "series.parquet")
    windows = bars[["open", "high", "low", "close"]].to_numpy().reshape(60, 105, 4)
    mine = {
        "window_id": range(60),
        "label": ["consolidation", "retracement"] * 30,
        "features": windows.tolist(),
    }
    pd.DataFrame(mine | {"expansion_start": 40, "expansion_end": 47}).to_parquet(
        launch.folder / "own.parquet"
    )
    before = set(launch.runs())
    launch("train", *SMALL, "--labels", "own.parquet")
    (run_id,) = set(launch.runs()) - before
    recorded = pd.read_parquet(pulled(launch, run_id, "own") / "predictions.parquet")
    launch(
        "predict", run_id, "--bars", "series.parquet", "--every", "105", "--windows", "new/own.CSV"
    )
    later = pd.read_csv(launch.folder / "new" / "own.CSV").loc[recorded["window_id"].astype(int)]
    assert len(later) == 60
    refused = launch("predict", run_id, "--bars", "series.parquet", exit_code=3)
    assert "nothing that says whether there is one (the labels carry" in refused
    assert "--windows" in refused
    np.testing.assert_array_equal(recorded["predicted_start"], later["expansion_start"])
    np.testing.assert_allclose(
        recorded["probability_retracement"], later["probability_retracement"], atol=1e-5
    )


def test_labels_with_their_own_bars_train_in_an_empty_store(tmp_path: Path) -> None:
    """Without a feature set: a fold of them, pretrained, and used for predictions."""
    bars = random_bars(120 * 105)
    bars.reset_index().to_parquet(tmp_path / "series.parquet")
    windows = bars[["open", "high", "low", "close"]].to_numpy() - 15_000
    mine = {
        "window_id": range(120),
        "label": ["bull", "Bear "] * 60,
        "expansion_start": 40,
        "expansion_end": 47,
        "features": windows.reshape(120, 105, 4).tolist(),
    }
    pd.DataFrame(mine).to_parquet(tmp_path / "own.parquet")
    launch = Launcher(tmp_path, f"file://{tmp_path}/store")
    direction = ("--set", "labels.classes=[bull, bear]")
    fold = ("--set", "cross_validate={folds: 2, fold: 1}")
    launch("train", *SMALL, *direction, *fold, "--labels", "own.parquet")

    (run_id,) = launch.runs()
    assert "not mirrored: windows of bull, bear" in launch("logs", run_id)
    folder = pulled(launch, run_id, "pulled")
    assert json.loads((folder / "model.json").read_text())["feature_set"] is None
    assert "of each window alone" in (folder / "report.html").read_text()
    launch("predict", run_id, "--bars", "series.parquet", "--every", "105", "--windows", "p.csv")
    assert len(pd.read_csv(tmp_path / "p.csv")) == 120


def test_a_label_file_is_refused_in_a_dry_run(
    trained: tuple[Launcher, str, str],
) -> None:
    launch, _, _ = trained
    path = launch.folder / "mine.csv"
    path.write_text("start,end,label\n2025-01-07 09:30,2025-01-07 09:36,consolidation\n")
    run = ("train", "--labels", "mine.csv", "--dry-run")
    assert "start has no zone: write 2025-01-07T09:30Z" in launch(*run, exit_code=3)
    output = launch(*run, "--timezone", "America/New_York", exit_code=3)
    assert "each class needs 2 labels in each split" in output


def test_what_cannot_be_done_is_refused_before_anything_is_trained(
    trained: tuple[Launcher, str, str],
) -> None:
    launch, run_id, _ = trained
    other = next(run for run in launch.runs() if run.startswith("precompute-"))
    for args, exit_code, message in (
        (("train", "--resume", other), 3, f"RUN must be a train run, got {other}"),
        (("train", "--features", run_id), 3, f"RUN must be a precompute run, got {run_id}"),
        (
            ("train", "--resume", run_id, "--seed", "3"),
            2,
            "--resume goes on with the run's own spec",
        ),
        (("predict", other, "--bars", "none.parquet"), 3, f"RUN must be a train run, got {other}"),
        (
            ("predict", run_id, "--bars", "none.parquet", "--out", "x.xlsx"),
            2,
            "must end in .parquet or .csv",
        ),
        (
            ("train", *SMALL, "--fraction", "0.001"),
            3,
            "training labels: consolidation has 0 of the 0 drawn from",
        ),
        (
            ("train", *SMALL, "--set", "cross_validate={folds: 20, fold: 0}"),
            3,
            "cross_validate.folds: fold 0 of 0..19 has too few labels",
        ),
    ):
        output = " ".join(launch(*args, exit_code=exit_code).replace("│", " ").split())
        assert message in output
        assert "pretrain" not in output


def test_a_label_file_that_points_into_the_bars_trains_to_its_gates(
    trained: tuple[Launcher, str, str],
) -> None:
    launch, run_id, _ = trained
    table = pd.read_parquet(pulled(launch, run_id, "labels") / "predictions.parquet")
    mine = table[["window_id", "window_start", "label", "expansion_start", "expansion_end"]]
    mine.to_parquet(launch.folder / "mine.parquet")
    failing = (
        "--set",
        "gates.min_f1_macro=1.0",
        "--require-gates",
    )  # a failed gate fails the command, if asked
    output = launch("train", *SMALL, "--labels", "mine.parquet", *failing, exit_code=1)
    assert "train: " in output
    assert "FAIL" in output
    mine.iloc[3, mine.columns.get_loc("label")] = "sideways"
    mine.to_parquet(launch.folder / "wrong.parquet")
    output = launch("train", *SMALL, "--labels", "wrong.parquet", exit_code=3)
    assert "sideways" in output
    assert "row 3" in output


def test_a_fraction_of_planted_labels_trains(trained: tuple[Launcher, str, str]) -> None:
    launch, _, _ = trained
    output = launch("train", *SMALL, "--labels", "planted", "--fraction", "0.1")
    assert "train: " in output


def test_training_without_a_feature_set_is_refused(tmp_path: Path) -> None:
    launch = Launcher(tmp_path, f"file://{tmp_path}/store")
    assert "no precompute run is committed" in launch("train", exit_code=3)
    assert "model.name: Input should be 'jade', got 'opal'" in launch(
        "train", "--set", "model.name=opal", exit_code=3
    )


def test_killed_in_every_stage_and_resumed_the_metrics_are_the_same(
    trained: tuple[Launcher, str, str], tmp_path: Path
) -> None:
    """16 steps of pretrain, 16 of heads, 32 of full, a checkpoint after each;
    one run, killed -9 in each stage."""
    launch, _, _ = trained
    many = ("--set", "training.windows_per_epoch=512", "--set", "training.pretrain_windows=512")
    args = (*SMALL, *many, "--set", "training.checkpoint_minutes=0")
    run_id = json.loads(launch("train", *args, "--dry-run"))["run"]
    attempts = launch.folder / "store" / "runs" / run_id / "attempts"

    def last_step() -> int:
        return max(
            (int(path.parent.name) for path in attempts.glob("*/checkpoints/*/manifest.json")),
            default=0,
        )

    command: tuple[str, ...] = ("train", *args)
    for stage, step in (("pretrain", 4), ("heads", 20), ("full", 36)):
        process = launch.start(*command)
        wait_for(
            lambda step=step, process=process: last_step() >= step or process.poll() is not None,
            stage,
        )
        os.kill(pid_of(open_store(launch.store), run_id), signal.SIGKILL)
        process.communicate(timeout=60)
        assert process.returncode == 128 + signal.SIGKILL
        assert STAGE_STEPS[stage][0] <= last_step() <= STAGE_STEPS[stage][1]
        command = ("train", "--resume", run_id)
    assert f"resuming after step {last_step()}" in launch(*command)
    launch("pull", run_id, str(tmp_path / "resumed"))
    launch("train", *args, "--force")
    (straight,) = [run for run in launch.runs() if run.startswith(f"{run_id}-")]
    launch("pull", straight, str(tmp_path / "straight"))
    for name in ("metrics.json", "model.safetensors"):
        assert (tmp_path / "resumed" / name).read_bytes() == (
            tmp_path / "straight" / name
        ).read_bytes()


def test_sigterm_leaves_a_checkpoint_that_is_resumed(trained: tuple[Launcher, str, str]) -> None:
    launch, _, _ = trained
    args = (*SMALL, "--set", "training.full_epochs=200", "--set", "training.patience_epochs=200")
    process = launch.start("train", *args)
    run_id = json.loads(launch("train", *args, "--dry-run"))["run"]
    store = open_store(launch.store)
    wait_for(lambda: in_stage_full(store, run_id), "stage full")
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert run_state(store, run_id).state == "terminated"
    assert "checkpoint after step" in launch("logs", run_id)


TWO = (
    "--set",
    "processes=2",
    "--set",
    "device=cpu",
    "--set",
    "model.dropout=0",
)  # dropout differs in each process


@pytest.mark.large  # their losses are compared by tests/test_loop.py, always
def test_two_processes_end_with_the_metrics_of_one(
    trained: tuple[Launcher, str, str], tmp_path: Path
) -> None:
    launch, _, _ = trained
    results = {}
    for count in (1, 2):
        args = (*SMALL, *TWO, "--set", f"processes={count}")
        run_id = json.loads(launch("train", *args, "--dry-run"))["run"]
        launch("train", *args)
        launch("pull", run_id, str(tmp_path / str(count)))
        history = pd.read_parquet(tmp_path / str(count) / "history.parquet")
        test = json.loads((tmp_path / str(count) / "metrics.json").read_text())["test"]["metrics"]
        results[count] = (
            history[["loss", "sigma_ptr", "val_score"]],
            [test[m]["value"] for m in ("f1_macro", "iou")],
        )
    pd.testing.assert_frame_equal(results[1][0], results[2][0], rtol=1e-3)
    assert results[1][1] == pytest.approx(results[2][1], abs=0.02)


def test_two_processes_that_are_stopped_go_on_from_a_checkpoint(
    trained: tuple[Launcher, str, str],
) -> None:
    """SIGTERM to the job reaches both and leaves a checkpoint;
    a kill -9 of the first ends the other too."""
    launch, _, _ = trained
    args = (
        *SMALL,
        *TWO,
        "--set",
        "training.full_epochs=60",
        "--set",
        "training.checkpoint_minutes=0.02",
    )
    run_id = json.loads(launch("train", *args, "--dry-run"))["run"]
    store, command = open_store(launch.store), ("train", *args)
    for signum, exit_code, state in (
        (signal.SIGTERM, 143, "terminated"),
        (signal.SIGKILL, 128 + signal.SIGKILL, "infra_lost"),
    ):
        process = launch.start(*command)
        wait_for(lambda: in_stage_full(store, run_id), "stage full")
        if signum == signal.SIGTERM:
            process.terminate()
        else:
            os.kill(pid_of(store, run_id), signal.SIGKILL)
        _, err = process.communicate(timeout=60)
        assert process.returncode == exit_code, err
        assert run_state(store, run_id).state == state
        command = ("train", "--resume", run_id)
    assert "resuming after step" in launch(*command)


def in_stage_full(store: Store, run_id: str) -> bool:
    run = run_state(store, run_id)
    stage = run.heartbeat.stage if run.heartbeat is not None else ""
    return run.state == "running" and stage == "full"

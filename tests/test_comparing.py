"""Runs compared, and run again with changes."""

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moola.cli import app as command_line
from moola.errors import ArtifactError, DataError
from moola.evaluation.comparison import compare_runs
from moola.evaluation.comparison_page import render_comparison
from moola.jobs.prepare import prepare_precompute, prepare_train
from moola.jobs.rerun import prepare_rerun
from moola.runs.about import add_about, new_about
from moola.runs.attempt import Attempt
from moola.runs.binding import fingerprint_of, run_id_of
from moola.runs.protocol import canonical_json, run_key
from moola.runs.records import InputFile, InputRun
from moola.runs.submit import describe_run, put_input, read_spec_document, submit
from moola.specs import PrecomputeSpec, TrainSpec
from moola.store import Store, open_store
from tests.feature_set import random_bars
from tests.runs import committed_run
from tests.test_json_output import fields_of, fields_on_page
from tests.test_listing import Command, command

__all__ = ["command"]


def trained_run(
    store: Store,
    work: Path,
    values: dict[str, float | None],
    history: pd.DataFrame | None = None,
    **spec: Any,
) -> str:
    """A committed train run with these metrics and history: without one, of three epochs."""
    run_id, document = describe_run("train", spec, {})
    submit(store, run_id, document)
    metrics = {
        name: {
            "title": name.upper(),
            "unit": "bars" if name == "mae" else "fraction",
            "value": value,
            "low": None,
            "high": None,
            "baselines": {},
        }
        for name, value in values.items()
    }
    test = {"n_windows": 10, "interval": {"level": 0.95}, "metrics": metrics}
    three_epochs = pd.DataFrame(
        {
            "stage": ["pretrain", "full", "full", "full"],
            "step": [1, 1, 2, 3],
            "loss": [9.0, 1.0, 0.5, 0.25],
            "val_hit3": [np.nan, 0.1, 0.2, 0.3],
        }
    )
    stream = io.BytesIO()
    (three_epochs if history is None else history).to_parquet(stream)
    with Attempt(store, run_id, work=work) as attempt:
        attempt.write("metrics.json", json.dumps({"test": test}).encode(), "application/json")
        attempt.write("history.parquet", stream.getvalue(), "application/x-parquet")
    return run_id


def test_runs_that_differ_by_the_seed_alone_have_a_spread(
    store: Store, command: Command, tmp_path: Path
) -> None:
    """Worked out by hand: 0.1, 0.2, 0.6 have mean 0.3 and standard deviation sqrt(0.07)."""
    runs = [
        trained_run(store, tmp_path, {"f1": f1, "mae": 2.0}, training={"seed": seed, "lr": 0.1})
        for seed, f1 in enumerate((0.1, 0.2, 0.6))
    ]
    add_about(store, runs[1], new_about("second", []))
    document = json.loads(command("compare", *runs, "--json"))
    assert fields_of(document) == fields_on_page("compare")
    assert document["runs"][1] == {"run": runs[1], "name": "second"}
    assert document["differences"] == {"training.seed": [0, 1, 2]}
    assert document["metrics"] == {"f1": [0.1, 0.2, 0.6], "mae": [2.0, 2.0, 2.0]}
    (group,) = document["seeds"]
    assert group["runs"] == runs
    assert group["mean"]["f1"] == pytest.approx(0.3)
    assert group["deviation"]["f1"] == pytest.approx(0.07**0.5)
    assert group["deviation"]["mae"] == 0

    table = command("compare", *runs)
    assert "0.300 ± 0.265" in table
    assert "second" in table


def test_what_differs_is_shown_and_nothing_else(tmp_path: Path) -> None:
    store = open_store((tmp_path / "store").as_uri())
    first = trained_run(store, tmp_path, {"f1": 0.1}, model={"size": 64, "depth": 1}, seed=1)
    second = trained_run(store, tmp_path, {"f1": None}, model={"size": 96, "depth": 1}, more=[1])
    comparison = compare_runs(store, [first, second])
    assert comparison.differences == {
        "model.size": [64, 96],
        "seed": [1, None],
        "more": [None, [1]],
    }
    assert comparison.seed_groups == []


def test_two_seeds_of_two_variants_are_two_groups(tmp_path: Path) -> None:
    store = open_store((tmp_path / "store").as_uri())
    runs = [
        trained_run(store, tmp_path, {"f1": 0.1 * n}, training={"seed": n % 2, "lr": n // 2})
        for n in range(4)
    ]
    groups = compare_runs(store, runs).seed_groups
    assert [group.letters for group in groups] == ["AB", "CD"]
    assert groups[1].spreads["f1"].mean == pytest.approx(0.25)


def test_precompute_runs_are_compared_by_their_specs(tmp_path: Path) -> None:
    store = open_store((tmp_path / "store").as_uri())
    runs = [committed_run(store, tmp_path, k=k) for k in (1.0, 1.5)]
    comparison = compare_runs(store, runs)
    assert comparison.differences == {"k": [1.0, 1.5]}
    assert comparison.metrics == {}


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    store = open_store((tmp_path / "store").as_uri())
    train = trained_run(store, tmp_path, {"f1": 0.1})
    precompute = committed_run(store, tmp_path)
    with pytest.raises(DataError, match="2 to 26 different runs"):
        compare_runs(store, [train])
    with pytest.raises(DataError, match="different runs"):
        compare_runs(store, [train, train])
    with pytest.raises(DataError, match="runs of one job, got precompute, train"):
        compare_runs(store, [train, precompute])


def test_the_page_has_curves_and_nothing_that_runs(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    store = open_store((tmp_path / "store").as_uri())
    evil = "<script>alert(1)</script>"
    runs = [trained_run(store, tmp_path, {evil: n}, note=evil * n) for n in (1, 2)]
    comparison = compare_runs(store, runs, histories=True)
    page = render_comparison(comparison)
    assert page == render_comparison(comparison)
    assert "<script" not in page.lower()
    assert "&lt;script" in page.lower()
    assert len(re.findall("<img", page)) == 2  # loss and hits; F1 was not recorded
    assert all(run in page for run in runs)


# --- rerun ----------------------------------------------------------------------------------------


def precompute_run(store: Store, folder: Path, n_bars: int = 1500, **spec: Any) -> tuple[str, Path]:
    """A submitted run on a file of bars; -> its id and the file."""
    path = folder / "bars.parquet"
    random_bars(n_bars).to_parquet(path)
    prepared = prepare_precompute(PrecomputeSpec(bars=str(path), **spec), folder / "work")
    put_input(store, path, prepared.input_file("bars"))
    submit(store, prepared.run_id, prepared.document)
    return prepared.run_id, path


def test_a_rerun_without_changes_is_the_same_run(store: Store, tmp_path: Path) -> None:
    """On a computer that has neither the file nor the spec."""
    run_id, path = precompute_run(store, tmp_path, windows="virtual")
    path.unlink()
    again = prepare_rerun(store, run_id, tmp_path / "elsewhere", {})
    assert again.run_id == run_id
    assert again.document == read_spec_document(store, run_id)


def test_a_rerun_with_changes_is_the_run_that_has_them(store: Store, tmp_path: Path) -> None:
    run_id, path = precompute_run(store, tmp_path, windows="virtual")
    changes = {"features.zigzag_k": 1.5, "machine.max_spend": 0.5}
    again = prepare_rerun(store, run_id, tmp_path / "elsewhere", changes)
    spec = PrecomputeSpec(bars=str(path), windows="virtual", features={"zigzag_k": 1.5})
    assert again.run_id == prepare_precompute(spec, tmp_path / "work").run_id != run_id
    assert again.machine.max_spend == 0.5


@pytest.mark.parametrize("is_sweep", [False, True])
def test_what_is_odd_in_the_bars_is_said_once(
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    is_sweep: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOOLA_STORE", store.url)
    monkeypatch.setenv("MOOLA_WORK", str(tmp_path / "work"))
    bars = random_bars(1500).assign(volume=-1.0)
    bars.to_parquet("odd.parquet")
    prepared = prepare_precompute(PrecomputeSpec(bars="odd.parquet"), tmp_path / "work")
    assert len(prepared.warnings) == 1
    (name, path), *_ = prepared.inputs.items()
    put_input(store, path, prepared.input_file(name))
    submit(store, prepared.run_id, prepared.document)

    rerun = ["rerun", prepared.run_id, "--dry-run", "--set", "windows=virtual"]
    over = ["--over", "features.zigzag_k=1.2,1.5"]
    sweep = ["sweep", "precompute", "--bars", "odd.parquet", *over, "--dry-run"]
    assert command_line.run(sweep if is_sweep else rerun) == 0
    said = capsys.readouterr().err
    assert said.count("warning: ") == 1
    assert prepared.warnings[0][:30] in " ".join(said.split())


def test_a_train_run_is_run_again_on_its_own_features(tmp_path: Path) -> None:
    """Not on the newest, which are what a train run reads that names none."""
    from moola.jobs.precompute import precompute

    store = open_store((tmp_path / "store").as_uri())
    features = []
    for windows in ("virtual", "stored"):
        run_id, _ = precompute_run(store, tmp_path, 15_000, windows=windows)
        with Attempt(store, run_id, work=tmp_path / "work") as attempt:
            precompute(attempt, read_spec_document(store, run_id))
        features.append(run_id)

    spec = TrainSpec(features=features[0], labels={"source": "hindsight"})
    prepared = prepare_train(spec, store, tmp_path / "work")
    submit(store, prepared.run_id, prepared.document)
    again = prepare_rerun(store, prepared.run_id, tmp_path / "work", {})
    assert again.run_id == prepared.run_id
    changed = prepare_rerun(store, prepared.run_id, tmp_path / "work", {"training.seed": 7})
    item = changed.document.inputs["features"]
    assert isinstance(item, InputRun)
    assert item.run == features[0]
    assert changed.run_id != prepared.run_id


def test_a_wrong_change_is_refused_with_its_field(store: Store, tmp_path: Path) -> None:
    run_id, _ = precompute_run(store, tmp_path)
    with pytest.raises(DataError, match=r"features\.zigzag_k"):
        prepare_rerun(store, run_id, tmp_path / "work", {"features.zigzag_k": "wide"})


def put_spec(store: Store, job: str, spec: dict[str, Any]) -> str:
    """A run whose spec.json is well formed, as a hostile writer can make one."""
    inputs: dict[str, InputFile | InputRun] = {}
    fingerprint = fingerprint_of(job, spec, inputs, "0" * 64)
    run_id = run_id_of(job, fingerprint)
    document = {
        "job": job,
        "spec": spec,
        "inputs": {},
        "code_sha256": "0" * 64,
        "fingerprint": fingerprint,
        "moola": "0.1.0",
    }
    store.put(run_key(run_id, "spec.json"), canonical_json(document))
    return run_id


@pytest.mark.parametrize(
    ("job", "spec"),
    [
        ("train", {"labels": {"source": "SECRET"}}),
        ("train", {"labels": {"source": "file"}}),
        ("train", {"labels": "SECRET"}),
        ("train", {}),
        ("rocket", {}),
    ],
)
def test_a_stored_spec_names_no_file_of_this_computer(
    store: Store, tmp_path: Path, job: str, spec: dict[str, Any]
) -> None:
    """It would be read here, and uploaded to where whoever wrote the spec can read it."""
    secret = tmp_path / "secret.csv"
    secret.write_text("a,b\n")
    text = json.dumps(spec).replace("SECRET", str(secret))
    run_id = put_spec(store, job, json.loads(text))
    with pytest.raises(ArtifactError):
        prepare_rerun(store, run_id, tmp_path / "work", {})


def test_a_stored_spec_names_no_bars_and_no_machine(tmp_path: Path) -> None:
    store = open_store((tmp_path / "store").as_uri())
    secret = tmp_path / "secret.csv"
    random_bars().to_csv(secret)
    machine = {"max_spend": 10_000.0}
    run_id = put_spec(store, "precompute", {"bars": str(secret), "machine": machine})
    prepared = prepare_rerun(store, run_id, tmp_path / "work", {})
    assert prepared.inputs == {}
    assert prepared.machine.max_spend == PrecomputeSpec().machine.max_spend

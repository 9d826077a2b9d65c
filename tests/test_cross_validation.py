"""Cross-validation as a group: folds as runs of their own, and what they give together."""

import io
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moola import WINDOW
from moola.cli.options import spec_overrides
from moola.data.folds import fold_splits, folds_of_series, no_folds
from moola.data.label_folds import fold_labels
from moola.data.labels import LabelSet
from moola.data.move_truth import IS_MOVE, IS_NONE, IS_UNKNOWN, MoveTruth, forget_outside
from moola.data.splits import Split
from moola.errors import DataError
from moola.jobs.prepare import prepare_train, shipped_spec
from moola.launch.grid import title_of, with_folds
from moola.runs.attempt import Attempt
from moola.runs.groups import group_of, put_group
from moola.runs.submit import describe_run, submit
from moola.specs import CrossValidation, RareClasses, TrainSpec, parse_spec, read_spec
from moola.store import Store, open_store
from tests.feature_set import random_bars
from tests.runs import committed_run
from tests.test_json_output import fields_of, fields_on_page
from tests.test_label_sources import moves_csv
from tests.test_launch import Launcher
from tests.test_listing import Command, command
from tests.test_sweep import Computer

__all__ = ["command"]

N_BARS = 6000
CLASSES = ("consolidation", "retracement", "rare")


def moves(label_index: np.ndarray[Any, np.dtype[np.int64]]) -> LabelSet:
    """Moves evenly over N_BARS bars, each in a window of its own."""
    n = len(label_index)
    anchor = np.linspace(0, N_BARS - WINDOW, n).astype(np.int64)
    return LabelSet(
        source="mine",
        classes=CLASSES,
        label_index=label_index,
        start=np.full(n, 40),
        end=np.full(n, 47),
        window_id=np.arange(n).astype(object),
        anchor=anchor,
        first_anchor=anchor - 10,
        last_anchor=anchor + 10,
        state_bars=24,
    )


# --- the splits of a fold -------------------------------------------------------------------------


def test_a_fold_is_tested_on_the_time_after_what_it_knows() -> None:
    """2 folds of 6,000 bars: thirds; validation is the last 15 % of what is known."""
    bounds = [
        {"train": (0, 1700), "val": (1700, 2000), "test": (2000, 4000)},
        {"train": (0, 3400), "val": (3400, 4000), "test": (4000, 6000)},
    ]
    labels = moves(np.arange(200) % 3)
    for fold, expected in enumerate(bounds):
        config = CrossValidation(folds=2, fold=fold)
        parts, left_out = fold_labels(labels, config, folds_of_series(N_BARS))
        splits = fold_splits(config, N_BARS)
        for name, (first, stop) in expected.items():
            inside = (labels.anchor >= first) & (labels.anchor + WINDOW <= stop)
            assert parts[name].window_id.tolist() == labels.window_id[inside].tolist(), name
            assert splits[name] == Split(first, stop - WINDOW + 1)
            assert parts[name].first_anchor.min() >= first
            assert parts[name].last_anchor.max() + WINDOW <= stop
        assert sum(left_out.values()) == 200 - sum(map(len, parts.values()))


def test_labels_with_their_own_bars_are_folds_in_their_order() -> None:
    bars = np.random.default_rng(0).random((80, WINDOW, 4))
    labels = replace(moves(np.arange(80) % 2), bars=bars, classes=CLASSES[:2])
    parts, left_out = fold_labels(labels, CrossValidation(folds=3, fold=1), no_folds)
    ids = {name: part.window_id.tolist() for name, part in parts.items()}
    assert ids == {
        "train": list(range(34)),
        "val": list(range(34, 40)),
        "test": list(range(40, 60)),
    }
    assert left_out == {"after the fold's test": 20}


def test_the_fold_that_is_too_short_for_a_window_is_named() -> None:
    message = r"must have 105 bars, and train of fold 0 of 0\.\.8 has 85 of the 1,000"
    folds = folds_of_series(1000)
    with pytest.raises(DataError, match=message):
        fold_labels(moves(np.arange(200) % 3), CrossValidation(folds=9, fold=0), folds)


def test_the_fold_that_has_too_few_labels_is_named() -> None:
    folds = folds_of_series(N_BARS)
    with pytest.raises(DataError, match=r"fold 3 of 0\.\.29 has too few labels"):
        fold_labels(moves(np.arange(200) % 3), CrossValidation(folds=30, fold=3), folds)


@pytest.mark.parametrize("fold", [0, 1])
def test_a_class_too_rare_for_any_fold_is_dropped_from_all(fold: int) -> None:
    """It is in the last third alone: fold 1 is tested on it, and fold 0 never sees it."""
    label_index = np.arange(200) % 2
    label_index[150::5] = 2
    labels = moves(label_index)
    config = CrossValidation(folds=2, fold=fold)

    def parts_of(rule: RareClasses) -> tuple[dict[str, LabelSet], dict[str, int]]:
        return fold_labels(labels, config, folds_of_series(N_BARS), rule)

    parts, left_out = parts_of("drop")
    assert {part.classes for part in parts.values()} == {CLASSES[:2]}
    assert left_out["rare is too rare for a split of a fold (drop)"] == 10
    with pytest.raises(DataError, match="each class needs 2"):
        parts_of("refuse")


def test_a_drop_that_leaves_one_class_is_refused() -> None:
    label_index = np.zeros(200, np.int64)
    label_index[150::5] = 1
    folds = folds_of_series(N_BARS)
    with pytest.raises(DataError, match="two classes must be left"):
        fold_labels(moves(label_index), CrossValidation(folds=2, fold=0), folds, "drop")


def test_a_move_over_a_cut_is_known_to_no_split() -> None:
    """Splits of bars 0..199 and 200..399; a move in each, one over the cut, one after both."""
    truth = MoveTruth(
        first=np.array([100, 196, 300, 420]),
        last=np.array([107, 203, 307, 427]),
        is_known=np.ones(500, np.bool_),
        kind="unlabelled stretches",
    )
    kept = forget_outside(truth, [Split(0, 96), Split(200, 296)])
    assert kept.first.tolist() == [100, 300]
    assert kept.last.tolist() == [107, 307]
    spans = {(100, 107): IS_MOVE, (196, 203): IS_UNKNOWN, (420, 427): IS_UNKNOWN}
    spans |= {(150, 157): IS_NONE, (185, 192): IS_NONE, (190, 197): IS_UNKNOWN}
    for (first, last), expected in spans.items():
        assert kept.judge(np.array([first]), np.array([last])).tolist() == [expected], first


def test_whether_a_move_lies_over_a_cut_is_not_seen_from_inside() -> None:
    def told(*moves: tuple[int, int]) -> MoveTruth:
        first, last = np.array(moves).T
        truth = MoveTruth(first, last, np.ones(500, np.bool_), "unlabelled stretches")
        return forget_outside(truth, [Split(0, 96), Split(200, 296)])

    inside = [(100, 107), (300, 311)]
    alone = told(*inside)
    over = told(*inside, (196, 203), (395, 450))
    np.testing.assert_array_equal(over.is_known, alone.is_known)
    assert over.first.tolist() == alone.first.tolist() == [100, 300]
    # A move of a split's own length may come in from outside: up to 7 bars here, and 11 there.
    assert np.flatnonzero(np.diff(alone.is_known)).tolist() == [6, 192, 210, 388]


# --- the spec and the sweep -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cross_validate": {"folds": 4, "seeds": [0, 1]}}, "moola sweep train --folds 4"),
        ({"cross_validate": {"folds": 4}}, "moola sweep train --folds 4"),
        ({"cross_validate": {"folds": 4, "fold": 4}}, "fold < folds, got 4 and 4"),
        ({"cross_validate": {"folds": 4, "fold": 0}, "encoder": "train-1"}, "encoder must be null"),
        (
            {
                "features": ["NQ=precompute-1", "FX=precompute-2"],
                "splits": {"train_end": "2024-01-01", "val_end": "2024-02-01"},
                "encoder": "train-1",
            },
            "encoder must be null with splits",
        ),
    ],
)
def test_what_is_no_fold_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_spec(TrainSpec, fields, place="a test")


def test_an_encoder_of_a_fold_is_refused(tmp_path: Path) -> None:
    """It may have seen what this run is tested on; that of another run may be taken."""
    store = open_store((tmp_path / "store").as_uri())
    fold = fold_run(store, tmp_path, 0, 0.5, predictions_of([True]))
    spec = parse_spec(TrainSpec, {"encoder": fold}, place="here")
    with pytest.raises(DataError, match=f"must be a run that is no fold .*, got {fold}"):
        prepare_train(spec, store, tmp_path)

    whole = committed_run(store, tmp_path, "train", cross_validate=None)
    spec = parse_spec(TrainSpec, {"encoder": whole}, place="here")
    with pytest.raises(DataError, match="no precompute run is committed"):  # it came so far
        prepare_train(spec, store, tmp_path)


def test_every_fold_of_every_point_is_a_run() -> None:
    points = with_folds([{"a": 1}, {"a": 2}], 3, {"b": 0})
    folds = [(point["a"], point["cross_validate"]) for point in points]
    assert folds == [(a, {"folds": 3, "fold": fold}) for a in (1, 2) for fold in range(3)]
    assert title_of(points[1]) == "a=1 cross_validate.folds=3 cross_validate.fold=1"
    with pytest.raises(DataError, match="at most 1,000 runs, got 1,050"):
        with_folds([{"a": n} for n in range(21)], 50, {})
    for point, fixed in (({}, {"cross_validate.fold": 1}), ({"cross_validate": None}, {})):
        with pytest.raises(DataError, match="--folds sets cross_validate"):
            with_folds([point], 3, fixed)


def test_a_sweep_needs_values_or_folds(command: Command) -> None:
    assert "give --over, or --folds" in command("sweep", "train", exit_code=2)


# --- what the folds give together -----------------------------------------------------------------


def predictions_of(right: list[bool], split: str = "test") -> pd.DataFrame:
    """Windows whose type is predicted right, or not; the place is right in all."""
    truth = ["consolidation", "retracement"] * len(right)
    table = pd.DataFrame({"split": split, "window_id": range(len(right))})
    table["label"] = truth[: len(right)]
    table[["expansion_start", "expansion_end", "predicted_start", "predicted_end"]] = 40, 47, 40, 47
    sure = (table["label"] == "consolidation") == right
    table["probability_consolidation"] = sure.astype(float)
    table["probability_retracement"] = 1.0 - sure
    return table


def fold_run(
    store: Store,
    work: Path,
    fold: int,
    value: float,
    table: pd.DataFrame,
    *,
    is_done: bool = True,
    **spec: Any,
) -> str:
    """A train run that is a fold, with the value of its one metric and its predictions."""
    fields = {"cross_validate": {"folds": 2, "fold": fold}, "training": {"seed": 0}, **spec}
    run_id, document = describe_run("train", fields, {})
    submit(store, run_id, document)
    if not is_done:
        return run_id

    metric = {"title": "F1, macro", "unit": "fraction", "value": value, "low": None, "high": None}
    metrics = {"f1_macro": metric | {"baselines": {}}}
    test = {"n_windows": len(table), "interval": {"level": 0.95}, "metrics": metrics}
    stream = io.BytesIO()
    whole = pd.concat([predictions_of([False] * 3, "val"), table])
    whole[list(table.columns)].to_parquet(stream, index=False)
    with Attempt(store, run_id, work=work) as attempt:
        attempt.write("metrics.json", json.dumps({"test": test}).encode(), "application/json")
        attempt.write("predictions.parquet", stream.getvalue(), "application/x-parquet")
    return run_id


def stored_group(store: Store, run_ids: list[str]) -> str:
    group = group_of("train", run_ids)
    put_group(store, group)
    return group.id


def test_folds_are_pooled_by_variant(store: Store, command: Command, tmp_path: Path) -> None:
    """By hand: 0.2 and 0.6 have mean 0.4 and deviation sqrt(0.08); 1 of 2 and 4 of 4 right are 5
    of 6."""
    half = predictions_of([True, False])
    right = predictions_of([True] * 4)
    small = [
        fold_run(store, tmp_path, 1, 0.6, right, model={"size": 8}),
        fold_run(store, tmp_path, 0, 0.2, half, model={"size": 8}),
    ]
    large = [
        fold_run(store, tmp_path, 0, 0.5, right, model={"size": 16}),
        fold_run(store, tmp_path, 1, 0.0, half, is_done=False, model={"size": 16}),
    ]
    group = stored_group(store, [*small, *large])
    document = json.loads(command("group", group, "--json", "--predictions", "new/folds.csv"))
    assert fields_of(document) == fields_on_page("group")

    first, second = document["cross_validation"]
    assert first["differs"] == {"model.size": 8}
    assert [(run["run"], run["fold"], run["n_windows"]) for run in first["runs"]] == [
        (small[1], 0, 2),
        (small[0], 1, 4),
    ]
    assert first["mean"]["f1_macro"] == pytest.approx(0.4)
    assert first["deviation"]["f1_macro"] == pytest.approx(0.08**0.5)
    assert first["all_windows"]["accuracy"] == pytest.approx(5 / 6)
    assert first["all_windows"]["hit_centre_3"] == 1
    assert second["left"] == [{"run": large[1], "reason": "not committed"}]
    assert second["mean"] == {}
    assert second["all_windows"]["accuracy"] == 1

    table = command("group", group)
    assert "0.400 ± 0.283" in table
    assert "2 of 2" in table
    assert "1 of 2" in table

    written = pd.read_csv(tmp_path / "new" / "folds.csv")
    assert len(written) == 2 + 4 + 4
    assert set(written["split"]) == {"test"}
    assert written.groupby("run")["fold"].first().to_dict() == {
        small[1]: 0,
        small[0]: 1,
        large[0]: 0,
    }


def test_a_damaged_fold_is_named_and_stops_no_other(
    store: Store, command: Command, tmp_path: Path
) -> None:
    right = predictions_of([True] * 4)
    good = fold_run(store, tmp_path, 0, 0.5, right)
    outside = fold_run(store, tmp_path, 1, 0.5, right.assign(predicted_end=200))
    lacking = fold_run(store, tmp_path, 1, 0.5, right.drop(columns="label"), training={"seed": 1})
    other = fold_run(store, tmp_path, 1, 0.5, right.assign(more=1), training={"seed": 2})
    group = stored_group(store, [good, outside, lacking, other])

    (found,) = json.loads(command("group", group, "--json"))["cross_validation"]
    assert [run["run"] for run in found["runs"]] == [good]
    reasons = {each["run"]: each["reason"] for each in found["left"]}
    assert "0 <= start <= end <= 104" in reasons[outside]
    assert "no column 'label'" in reasons[lacking]
    assert "other columns" in reasons[other]
    assert "1 of 4" in command("group", group)


def test_a_group_without_folds_has_no_predictions(
    store: Store, command: Command, tmp_path: Path
) -> None:
    runs = [committed_run(store, tmp_path, "train", k=k) for k in (1, 2)]
    group = stored_group(store, runs)
    assert json.loads(command("group", group, "--json"))["cross_validation"] == []
    refused = command("group", group, "--predictions", "x.parquet", exit_code=3)
    assert "no committed fold" in " ".join(refused.split())
    assert "must end in .parquet or .csv" in " ".join(
        command("group", group, "--predictions", "x.xlsx", exit_code=2).replace("│", " ").split()
    )


def test_a_group_is_compared_by_the_runs_that_are_committed(
    store: Store, command: Command, tmp_path: Path
) -> None:
    right = predictions_of([True] * 4)
    runs = [
        fold_run(store, tmp_path, fold, 0.2 + 0.4 * fold, right, training={"seed": seed})
        for fold in (0, 1)
        for seed in (0, 1)
    ]
    open_run = fold_run(store, tmp_path, 0, 0.0, right, is_done=False, training={"seed": 2})
    group = stored_group(store, [*runs, open_run])
    document = json.loads(command("compare", group, "--json"))
    assert [run["run"] for run in document["runs"]] == runs
    (repeats,) = document["seeds"]
    assert repeats["mean"]["f1_macro"] == pytest.approx(0.4)


# --- as a person runs it --------------------------------------------------------------------------

SMALL = (
    *("--set", "training.full_epochs=1", "--set", "training.windows_per_epoch=32"),
    *("--set", "training.pretrain_epochs=1", "--set", "training.pretrain_windows=32"),
    *("--set", "training.heads_epochs=0", "--set", "model.hidden_size=8"),
    *("--set", "trees={members: 1, rounds: 5, windows: 1}", "--set", "presence.windows=20"),
)
CUTS = {0: (0, 1700, 2000, 4000), 1: (0, 3400, 4000, 6000)}  # of 6,000 bars, by hand


def in_one_process(launch: Launcher, spec: TrainSpec) -> list[dict[str, float]]:
    """Every metric of each fold on its test windows, the folds fitted one after the other."""
    from moola.data.feature_set import read_feature_set
    from moola.data.label_files import open_label_file
    from moola.data.label_sources import load_labels, series_of
    from moola.data.labels import assign_splits
    from moola.evaluation.scoring import score_on
    from moola.features import N_FEATURES
    from moola.training.data import training_data
    from moola.training.fit import QuietHooks, fit_model, new_model
    from moola.training.inference import infer

    (run,) = [run_id for run_id in launch.runs() if run_id.startswith("precompute-")]
    folder = launch.folder / "features"
    launch("pull", run, str(folder))
    features = read_feature_set(folder, N_FEATURES)
    file = open_label_file(launch.folder / "moves.csv")
    labels = load_labels(spec.labels, file, series_of(features, folder))

    scores = []
    for cuts in CUTS.values():
        spans = zip(("train", "val", "test"), pairwise(cuts), strict=True)
        splits = {name: Split(first, stop - WINDOW + 1) for name, (first, stop) in spans}
        parts, _ = assign_splits(labels, splits)
        data = training_data(replace(features, splits={"train": splits["train"]}), parts, {})
        model = new_model(spec, data)
        fit_model(model, spec, data, score_on(parts["val"]), QuietHooks(), "cpu")
        scores.append(score_on(parts["test"])(infer(model, data.windows["test"])))
    return scores


def test_folds_that_run_apart_measure_what_they_do_in_one_process(tmp_path: Path) -> None:
    """Bit by bit, with one thread each; and what is committed is not computed again."""
    torch = pytest.importorskip("torch", reason="training needs the extra `train`")
    launch = Computer(tmp_path, f"file://{tmp_path}/store", {"OMP_NUM_THREADS": "1"})
    random_bars(N_BARS).to_parquet(tmp_path / "bars.parquet")
    (tmp_path / "moves.csv").write_text(moves_csv())
    launch("precompute", "--bars", "bars.parquet", "--windows", "virtual")
    sweep = ("sweep", "train", "--folds", "2", *SMALL, "--labels", "moves.csv")
    output = launch(*sweep, "--parallel", "2")
    assert "2 of 2" in output

    (group,) = open_store(launch.store).children("groups")
    (found,) = json.loads(launch("group", group, "--json"))["cross_validation"]
    spec = read_spec(TrainSpec, shipped_spec("train"), spec_overrides(list(SMALL[1::2]), {}))
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        expected = in_one_process(launch, spec)
    finally:
        torch.set_num_threads(n_threads)
    for run, scores in zip(found["runs"], expected, strict=True):
        measured = run["metrics"]
        del measured["ece_scaled"]  # by the run's temperature
        assert measured == {name: scores[name] for name in measured}
    for name in ("f1_macro", "hit_centre_3", "joint_success"):
        values = [scores[name] for scores in expected]
        assert found["mean"][name] == pytest.approx(np.mean(values))
        assert found["deviation"][name] == pytest.approx(np.std(values, ddof=1))

    launch("group", group, "--predictions", "folds.parquet")
    table = pd.read_parquet(tmp_path / "folds.parquet")
    assert not table["window_id"].duplicated().any(), "a window is tested once"
    first_bar = (table["window_start"] - random_bars(1).index[0]).dt.total_seconds() // 60
    for fold, (_, _, begins, stops) in CUTS.items():
        of_fold = first_bar[table["fold"] == fold]
        assert of_fold.min() >= begins
        assert of_fold.max() + WINDOW <= stops

    assert "2 of them committed already" in launch(*sweep)

"""A run on two markets, small: what is drawn, found, measured and written of each."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightgbm", reason="trees are grown with the extra `train`")

from moola import WINDOW  # noqa: E402
from moola.api import Run  # noqa: E402
from moola.cli import app as command_line  # noqa: E402
from moola.data.labels import EveryMove, LabelSet  # noqa: E402
from moola.data.move_truth import MoveTruth, move_truth  # noqa: E402
from moola.data.splits import Split  # noqa: E402
from moola.data.synthetic import make_market  # noqa: E402
from moola.errors import ArtifactError, DataError  # noqa: E402
from moola.evaluation.detection import judge_moves  # noqa: E402
from moola.evaluation.metrics import score  # noqa: E402
from moola.evaluation.predict import MODEL_FILES, load_model, predict_bars  # noqa: E402
from moola.evaluation.predictions import Predictions, Targets  # noqa: E402
from moola.jobs.prepare import prepare_train  # noqa: E402
from moola.jobs.train import load_data, run_train_job  # noqa: E402
from moola.runs.attempt import Attempt  # noqa: E402
from moola.runs.submit import submit  # noqa: E402
from moola.specs import MarketConfig, PresenceConfig, TrainSpec, parse_spec  # noqa: E402
from moola.store import Store, open_store  # noqa: E402
from moola.training.presence import fit_windows  # noqa: E402
from tests.feature_set import write_feature_set  # noqa: E402
from tests.test_markets import store_set  # noqa: E402

MARKETS = {
    "NQ": {"seed": 1, "start": "2025-01-06", "end": "2025-01-23"},
    "ES": {"seed": 2, "start": "2024-12-30", "end": "2025-01-21"},
}
SMALL = {
    "splits": {"train_end": "2025-01-14", "val_end": "2025-01-17"},
    "training": {"full_epochs": 1, "windows_per_epoch": 64, "pretrain_epochs": 1,
                 "pretrain_windows": 64},
    "model": {"hidden_size": 8},
    "trees": {"members": 1, "rounds": 5, "windows": 1},
    "presence": {"windows": 200},
    "device": "cpu",
}  # fmt: skip
CLASSES = ("consolidation", "retracement")
MINUTE = pd.Timedelta(minutes=1)


class Trained(NamedTuple):
    """A run on two markets, and what it read."""

    run: Run
    bars: dict[str, pd.DataFrame]
    runs: dict[str, str]


def spec_of(runs: dict[str, str], **fields: Any) -> TrainSpec:
    named = [f"{name}={run_id}" for name, run_id in runs.items()]
    return parse_spec(TrainSpec, {"features": named, **SMALL, **fields}, place="here")


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, str], Any]:
    """A store with the feature sets of two synthetic markets, their runs, and their bars."""
    store = open_store(tmp_path_factory.mktemp("store").as_uri())
    runs = {}
    bars = {}
    for name, config in MARKETS.items():
        market = make_market(MarketConfig.model_validate(config))
        folder = tmp_path_factory.mktemp(name)
        write_feature_set(folder, bars=market.bars)
        (folder / "features_11d.npy").unlink()
        market.moves.to_parquet(folder / "moves.parquet")
        runs[name] = store_set(store, folder, tmp_path_factory.mktemp("work"), name)
        bars[name] = market.bars
    return store, runs, bars


@pytest.fixture(scope="module")
def trained(
    stored: tuple[Store, dict[str, str], Any], tmp_path_factory: pytest.TempPathFactory
) -> Trained:
    store, runs, bars = stored
    work = tmp_path_factory.mktemp("train")
    prepared = prepare_train(spec_of(runs), store, work)
    submit(store, prepared.run_id, prepared.document)
    with Attempt(store, prepared.run_id, work=work / "attempt") as attempt:
        run_train_job(attempt, prepared.document)
    return Trained(Run(store, prepared.run_id, work), bars, runs)


def metrics_of(trained: Trained, folder: Path) -> dict[str, Any]:
    trained.run.pull(folder, only=["metrics.json"])
    document: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return document


def test_each_prediction_says_its_market_and_splits_share_no_time(trained: Trained) -> None:
    table = trained.run.predictions
    assert list(table.columns[:3]) == ["split", "market", "window_id"]
    assert set(table["market"]) == set(MARKETS)
    for name, bars in trained.bars.items():
        own = table[table["market"] == name]
        assert own["window_start"].isin(bars.index).all()
        assert len(own) > 50
    assert table["window_start"].notna().all()

    last_bar = table["window_start"] + pd.Timedelta(minutes=104)
    for before, after in (("train", "val"), ("val", "test")):
        begins = table.loc[table["split"] == after, "window_start"].min()
        assert last_bar[table["split"] == before].max() < begins
    assert set(table.loc[table["split"] == "test", "market"]) == set(MARKETS)


def test_the_metrics_of_a_market_are_those_of_its_own_windows(
    trained: Trained, tmp_path: Path
) -> None:
    table = trained.run.predictions
    metrics = metrics_of(trained, tmp_path)
    assert set(metrics["markets"]) == set(MARKETS)
    for split, part in (("validation", "val"), ("test", "test")):
        counts = []
        for name, market in metrics["markets"].items():
            own = table[(table["split"] == part) & (table["market"] == name)]
            assert market["run"] == trained.runs[name]
            assert market["labels"][part]["n"] == market[split]["n_windows"] == len(own)
            expected = score(*_as_arrays(own))
            for metric in ("f1_macro", "hit_centre_3", "joint_success"):
                value = market[split]["metrics"][metric]["value"]
                assert value == pytest.approx(expected[metric])
                assert market[split]["metrics"][metric]["baselines"]
            counts.append(len(own))
        assert metrics[split]["n_windows"] == sum(counts)


def _as_arrays(table: pd.DataFrame) -> tuple[Predictions, Targets]:
    probabilities = table[[f"probability_{name}" for name in CLASSES]].to_numpy()
    start = table["predicted_start"].to_numpy()
    label = table["label"].map(CLASSES.index).to_numpy()
    truth = Targets(
        label, table["expansion_start"].to_numpy(), table["expansion_end"].to_numpy(), CLASSES
    )
    return Predictions(probabilities, start, table["predicted_end"].to_numpy()), truth


def test_moves_are_found_in_each_market_and_all_of_them_together(
    trained: Trained, tmp_path: Path
) -> None:
    metrics = metrics_of(trained, tmp_path)
    for split in ("validation", "test"):
        pooled = metrics["detection"][split]
        own = [market["detection"][split] for market in metrics["markets"].values()]
        for count in ("n_windows", "n_moves", "n_found"):
            assert sum(each[count] for each in own) == pooled[count]
        assert all(each["n_moves"] > 10 for each in own)
        assert all(each["finders"].keys() == pooled["finders"].keys() for each in own)


def test_the_model_says_the_same_of_a_markets_own_bars(trained: Trained, tmp_path: Path) -> None:
    """`predict` knows nothing of markets."""
    loaded = load_model(trained.run.pull(tmp_path, only=MODEL_FILES))
    assert loaded.info.feature_set is None
    assert loaded.info.feature_sets is not None
    assert {name: item.run for name, item in loaded.info.feature_sets.items()} == trained.runs

    table = trained.run.predictions.set_index("window_start")
    for name, bars in trained.bars.items():
        for opened, own in table[table["market"] == name].iloc[2::80].iterrows():
            row = bars.index.get_loc(opened)
            until_then = bars.iloc[: row + WINDOW]
            asked = predict_bars(loaded.model, loaded.info, until_then, row).iloc[-1]
            assert asked["window_start"] == opened
            assert asked["expansion_start"] == own["predicted_start"]
            assert asked["expansion_end"] == own["predicted_end"]
            probability = own["probability_consolidation"]
            assert asked["probability_consolidation"] == pytest.approx(probability, abs=1e-5)


def test_the_report_has_a_table_of_the_markets(trained: Trained, tmp_path: Path) -> None:
    trained.run.pull(tmp_path, only=["report.html"])
    page = (tmp_path / "report.html").read_text()
    assert "<h2>Markets</h2>" in page
    for name, run_id in trained.runs.items():
        assert f"<th>{name}</th><td>test</td>" in page
        assert f"{name} ({run_id})" in page
    with pytest.raises(DataError, match="reads several feature sets, ES, NQ"):
        _ = trained.run.features


def test_a_set_that_was_changed_since_is_refused(
    stored: tuple[Store, dict[str, str], Any], tmp_path: Path
) -> None:
    store, runs, _ = stored
    spec = spec_of(runs)
    prepared = prepare_train(spec, store, tmp_path)
    item = prepared.document.inputs["features-ES"]
    inputs = {
        **prepared.document.inputs,
        "features-ES": item.model_copy(update={"sha256": "0" * 64}),
    }
    document = prepared.document.model_copy(update={"inputs": inputs})
    with (
        pytest.raises(ArtifactError, match=f"run {runs['ES']} was changed"),
        Attempt(store, prepared.run_id, work=tmp_path / "attempt") as attempt,
    ):
        load_data(attempt, spec, document)


def test_planted_labels_are_those_of_every_market(
    stored: tuple[Store, dict[str, str], Any], tmp_path: Path
) -> None:
    store, runs, _ = stored
    prepared = prepare_train(spec_of(runs, labels={"source": "planted"}), store, tmp_path)
    assert prepared.warnings == ()
    assert set(prepared.document.inputs) == {"features-NQ", "features-ES"}


# --- folds ----------------------------------------------------------------------------------------


@pytest.mark.large  # the cuts are in tests/test_markets.py, always
def test_folds_of_two_markets_are_runs_of_a_group(
    stored: tuple[Store, dict[str, str], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store, runs, bars = stored
    monkeypatch.setenv("MOOLA_STORE", store.url)
    monkeypatch.setenv("MOOLA_WORK", str(tmp_path / "work"))
    monkeypatch.chdir(tmp_path)
    small = {name: value for name, value in SMALL.items() if name != "splits"}
    Path("small.yaml").write_text(json.dumps(small))
    named = [f"--features={name}={run_id}" for name, run_id in runs.items()]
    assert command_line.run(["sweep", "train", "--folds=2", "--spec=small.yaml", *named]) == 0

    (group,) = store.children("groups")
    capsys.readouterr()
    assert command_line.run(["group", group, "--json", "--predictions", "folds.parquet"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["cross_validation"]
    assert [run["fold"] for run in found["runs"]] == [0, 1]
    assert found["left"] == []
    scores = [run["metrics"]["f1_macro"] for run in found["runs"]]
    assert found["mean"]["f1_macro"] == pytest.approx(np.mean(scores))

    table = pd.read_parquet("folds.parquet")
    assert list(table.columns[:5]) == ["run", "fold", "seed", "split", "market"]
    assert not table.duplicated(["market", "window_start"]).any(), "a window is tested once"
    opened = table["window_start"]
    assert opened[table["fold"] == 0].max() + 104 * MINUTE < opened[table["fold"] == 1].min()
    for fold, run in enumerate(found["runs"]):
        assert set(table.loc[table["fold"] == fold, "market"]) == set(MARKETS)
        known = Run(store, run["run"], tmp_path / "read").predictions
        assert known["window_start"].isin(pd.concat(bars.values()).index).all()
        last_bar = known["window_start"] + 104 * MINUTE
        for before, after in (("train", "val"), ("val", "test")):
            begins = known.loc[known["split"] == after, "window_start"].min()
            assert last_bar[known["split"] == before].max() < begins
        pulled = Run(store, run["run"], tmp_path / "read").pull(
            tmp_path / f"fold-{fold}", only=["metrics.json"]
        )
        metrics = json.loads((pulled / "metrics.json").read_text())
        for market in metrics["markets"].values():
            assert market["detection"]["test"]["n_moves"] > 10


# --- what is drawn and judged, market by market ---------------------------------------------------


def moves_at(start: np.ndarray) -> LabelSet:
    n = len(start)
    return LabelSet(
        source="x",
        classes=CLASSES,
        label_index=np.arange(n) % 2,
        start=np.full(n, 50),
        end=np.full(n, 57),
        window_id=np.array([str(each) for each in start], object),
        anchor=start - 50,
        first_anchor=start - 60,
        last_anchor=start - 40,
        state_bars=24,
        every_move=EveryMove(start, start + 7),
    )


def test_each_market_has_the_same_share_of_windows_without_a_move_as_with_one() -> None:
    """Though one has twenty times the bars of the other."""
    few = 5000 + 300 * np.arange(10)
    many = 20_000 + 4000 * np.arange(20)
    labels = moves_at(np.concatenate([few, many]))
    truth = move_truth(labels, 110_000)
    assert truth is not None
    ranges = [Split(4500, 9000), Split(19_000, 109_000)]
    windows = fit_windows(truth, labels, ranges, PresenceConfig(windows=30), seed=0)
    for rows in (windows.with_move, windows.without_move):
        inside = (rows >= 4500) & (rows < 9000)
        assert inside.sum() == 10
        assert (rows[~inside] >= 19_000).all()
        assert len(rows) == 30


def test_a_move_between_the_windows_of_two_markets_could_not_be_found() -> None:
    first = np.array([50, 1000, 5050])
    truth = MoveTruth(first, first + 9, np.ones(9000, np.bool_), "unlabelled stretches")
    two = np.concatenate([np.arange(0, 300, 15), np.arange(5000, 5300, 15)])
    judged = judge_moves(first, first + 9, np.array([0.9, 0.8, 0.7]), truth, two)
    assert judged.n_moves == 2
    assert judged.is_right.tolist() == [True, False, True]

    one = judge_moves(first, first + 9, np.array([0.9, 0.8, 0.7]), truth, np.arange(0, 5300, 15))
    assert one.n_moves == 3
    assert replace(truth).inside(0, 9000)[0].tolist() == first.tolist()

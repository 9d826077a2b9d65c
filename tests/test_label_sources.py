"""What a train run is refused for before anything is sent, and what it needs no feature set for."""

import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from moola import WINDOW
from moola.data.bars import write_bars
from moola.data.feature_set import CLEAN_BARS, read_clean_bars
from moola.data.labels import LabelSet
from moola.data.splits import ranges_of
from moola.errors import ArtifactError, DataError
from moola.jobs.prepare import PreparedRun, prepare_train
from moola.runs.attempt import Attempt
from moola.runs.records import InputFile, InputRun
from moola.runs.submit import describe_run, submit
from moola.specs import CrossValidation, TrainSpec
from moola.store import Store, open_store
from tests.feature_set import random_bars, write_feature_set

N_BARS = 6000
OCTETS = "application/octet-stream"


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, str]:
    """A store with the feature set of N_BARS bars, and its run."""
    folder = tmp_path_factory.mktemp("set")
    write_feature_set(folder, N_BARS)
    (folder / "features_11d.npy").unlink()

    store = open_store(tmp_path_factory.mktemp("store").as_uri())
    run_id, document = describe_run("precompute", {"windows": "stored"}, {})
    submit(store, run_id, document)
    with Attempt(store, run_id, work=tmp_path_factory.mktemp("work")) as attempt:
        for path in sorted(folder.iterdir()):
            attempt.write(path.name, path.read_bytes(), OCTETS)
    return store, run_id


TIMES = pd.date_range("2024-03-04", periods=N_BARS, freq="min", tz="UTC")


def moves_csv(n: int = 120, form: str = "%Y-%m-%dT%H:%MZ", **labels: str) -> str:
    """Moves of 8 bars, evenly over the series, classes in turn; `labels` by number, as m7="x"."""
    lines = ["start,end,label"]
    for k, bar in enumerate(np.linspace(200, N_BARS - 200, n).astype(int)):
        label = labels.get(f"m{k}", ("consolidation", "retracement")[k % 2])
        lines.append(f"{TIMES[bar]:{form}},{TIMES[bar + 7]:{form}},{label}")
    return "\n".join(lines) + "\n"


def own_windows(path: Path, n: int = 40) -> Path:
    bars = random_bars(n * WINDOW)[["open", "high", "low", "close"]].to_numpy()
    columns = {
        "window_id": [f"w{k}" for k in range(n)],
        "label": [("consolidation", "retracement")[k % 2] for k in range(n)],
        "expansion_start": 40,
        "expansion_end": 47,
        "features": bars.reshape(n, WINDOW, 4).tolist(),
    }
    pd.DataFrame(columns).to_parquet(path)
    return path


def spec_of(source: Path | str, **fields: object) -> TrainSpec:
    labels = {"source": str(source)}
    labels |= {name[7:]: fields.pop(name) for name in list(fields) if name.startswith("labels_")}
    return TrainSpec.model_validate({"labels": labels, **fields})


def prepared(store: Store, tmp_path: Path, source: Path | str, **fields: object) -> PreparedRun:
    return prepare_train(spec_of(source, **fields), store, tmp_path / "work")


def keys(store: Store) -> list[str]:
    folder = Path(store.url.removeprefix("file://"))
    return sorted(str(path) for path in folder.rglob("*"))


def refused_files(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    """File -> what it is refused for. Each passed a dry run once, and failed on the machine."""
    spreadsheet = tmp_path / "labels.xlsx"
    with zipfile.ZipFile(spreadsheet, "w") as archive:
        archive.writestr("xl/workbook.xml", "<workbook/>")

    texts = {
        "naive": (moves_csv(form="%Y-%m-%d %H:%M"), "start has no zone"),
        "elsewhere": (moves_csv().replace("2024-", "2023-"), "must be a minute of the bars"),
        "unknown": (moves_csv(m7="breakout"), "got 'breakout' (row 7 of unknown.csv)"),
        "few": (moves_csv(8), "labels in each split"),
        "no header": (moves_csv().split("\n", 1)[1], "begins with the names of its columns"),
    }
    refused = {"spreadsheet": (spreadsheet, "save it as CSV")}
    for name, (text, message) in texts.items():
        path = tmp_path / f"{name}.csv"
        path.write_text(text)
        refused[name] = (path, message)
    return refused


@pytest.mark.parametrize(
    "case", ["spreadsheet", "naive", "elsewhere", "unknown", "few", "no header"]
)
def test_label_rules_run_before_anything_is_sent(
    stored: tuple[Store, str], tmp_path: Path, case: str
) -> None:
    store, _ = stored
    before = keys(store)
    path, message = refused_files(tmp_path)[case]
    with pytest.raises(DataError) as caught:
        prepared(store, tmp_path, path)
    assert message in str(caught.value)
    assert keys(store) == before


def test_rules_of_labels_that_are_no_file_run_early_too(
    stored: tuple[Store, str], tmp_path: Path
) -> None:
    store, run_id = stored
    with pytest.raises(DataError, match=f"planted needs synthetic bars; run {run_id} has none"):
        prepared(store, tmp_path, "planted")
    with pytest.raises(DataError, match=r"timezone .* for a file of labels, .* is hindsight"):
        prepared(store, tmp_path, "hindsight", labels_timezone="UTC")
    with pytest.raises(DataError, match="label must be one of up, down"):
        prepared(store, tmp_path, "hindsight", labels_classes=("up", "down"))
    path = tmp_path / "mine.csv"
    path.write_text(moves_csv())
    with pytest.raises(DataError, match=r"must have 105 bars, and val of fold 0 of 0\.\.29"):
        prepared(store, tmp_path, path, cross_validate={"folds": 30, "fold": 0})
    with pytest.raises(DataError, match="training labels: consolidation has 0 of the 0 drawn"):
        prepared(store, tmp_path, path, fraction=0.001)


def test_a_good_file_is_prepared_without_the_features(
    stored: tuple[Store, str], tmp_path: Path
) -> None:
    """Of the feature set only what labels point into is pulled."""
    store, run_id = stored
    path = tmp_path / "mine.csv"
    path.write_text(moves_csv().replace(",", ";"))
    run = prepared(store, tmp_path, path)
    assert isinstance(run.document.inputs["labels"], InputFile)
    features = run.document.inputs["features"]
    assert isinstance(features, InputRun)
    assert features.run == run_id

    pulled = {path.name for path in (tmp_path / "work" / "features" / run_id).glob("[!.]*")}
    assert pulled == {"bars.parquet", "metadata.json", "splits.json"}


def test_the_zone_of_the_labels_is_part_of_the_run(
    stored: tuple[Store, str], tmp_path: Path
) -> None:
    store, _ = stored
    path = tmp_path / "mine.csv"
    path.write_text(moves_csv(form="%Y-%m-%d %H:%M"))
    utc = prepared(store, tmp_path, path, labels_timezone="UTC")
    assert utc.document.spec["labels"]["timezone"] == "UTC"  # type: ignore[index, call-overload]

    local = pd.read_csv(path).apply(
        lambda column: column if column.name == "label" else _new_york(column)
    )
    local.to_csv(path, index=False)
    prepared(store, tmp_path, path, labels_timezone="America/New_York")


def _new_york(column: "pd.Series[str]") -> "pd.Series[str]":
    times = pd.to_datetime(column).dt.tz_localize("UTC").dt.tz_convert("America/New_York")
    return times.dt.strftime("%Y-%m-%d %H:%M")


# --- labels that carry their own bars -------------------------------------------------------------


def test_labels_with_their_own_bars_need_no_feature_set(tmp_path: Path) -> None:
    store = open_store((tmp_path / "empty").as_uri())
    run = prepared(store, tmp_path, own_windows(tmp_path / "own.parquet"))
    assert set(run.document.inputs) == {"labels"}
    assert keys(store) == []

    path = tmp_path / "mine.csv"
    path.write_text(moves_csv())
    with pytest.raises(DataError, match="no precompute run is committed"):
        prepared(store, tmp_path, path)


def test_what_is_in_the_store_does_not_change_labels_with_their_own_bars(
    stored: tuple[Store, str], tmp_path: Path
) -> None:
    store, run_id = stored
    path = own_windows(tmp_path / "own.parquet")
    empty = open_store((tmp_path / "empty").as_uri())
    assert prepared(store, tmp_path, path).run_id == prepared(empty, tmp_path, path).run_id

    named = prepared(store, tmp_path, path, features=run_id)
    assert set(named.document.inputs) == {"labels", "features"}


def test_their_splits_are_the_specs_fractions(stored: tuple[Store, str], tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from moola.data.feature_set import read_feature_set
    from moola.data.label_files import read_labels
    from moola.training.data import split_labels

    store, run_id = stored
    path = own_windows(tmp_path / "own.parquet")
    named = prepared(store, tmp_path, path, features=run_id)
    folder = tmp_path / "set"
    folder.mkdir()
    write_feature_set(folder, N_BARS)
    features = read_feature_set(folder, 11)

    for fractions in ((0.7, 0.15, 0.15), (0.5, 0.2, 0.3)):
        spec = spec_of(path, labels_fractions=fractions)
        labels = read_labels(path, spec.labels)
        for given in (None, features):
            data = split_labels(labels, given, spec)
            sizes = [len(part) for part in data.labels.values()]
            assert sizes == [round(40 * share) for share in fractions]
    assert named.run_id


def test_pretraining_on_own_windows_sees_whole_windows_of_the_training_split(
    tmp_path: Path,
) -> None:
    pytest.importorskip("torch")
    from moola.data.label_files import read_labels
    from moola.training.data import split_labels
    from moola.training.objectives import Unlabelled

    path = own_windows(tmp_path / "own.parquet")
    spec = spec_of(path)
    data = split_labels(read_labels(path, spec.labels), None, spec)
    train = data.labels["train"]
    assert train.features is not None
    assert not data.features.is_series

    split = data.features.splits["train"]
    unlabelled = Unlabelled(
        data.features.rows, data.features.valid, np.arange(split.start, split.stop, WINDOW)
    )
    batch = unlabelled.masked_batch(np.random.default_rng(0), 500, slice(None))
    seen = {window.tobytes() for window in batch["x"].numpy()}
    assert seen == {window.tobytes() for window in train.features}


def test_a_fold_of_own_windows_pretrains_on_its_own_training_windows_alone(
    tmp_path: Path,
) -> None:
    """When they were is not known: a window of the series may be one that the fold is tested on."""
    pytest.importorskip("torch")
    from moola.data.feature_set import read_feature_set
    from moola.data.label_files import read_labels
    from moola.training.data import split_labels
    from moola.training.fit import unlabelled_windows

    path = own_windows(tmp_path / "own.parquet")
    folder = tmp_path / "set"
    folder.mkdir()
    write_feature_set(folder, N_BARS)
    features = read_feature_set(folder, 11)

    def seen(spec: TrainSpec) -> tuple[set[bytes], LabelSet]:
        data = split_labels(read_labels(path, spec.labels), features, spec)
        unlabelled = unlabelled_windows(spec, data)
        batch = unlabelled.masked_batch(np.random.default_rng(0), 500, slice(None))
        return {window.tobytes() for window in batch["x"].numpy()}, data.labels["train"]

    fold = CrossValidation(folds=2, fold=1)
    windows, train = seen(spec_of(path).model_copy(update={"cross_validate": fold}))
    assert train.features is not None
    assert windows == {window.tobytes() for window in train.features}

    windows, train = seen(spec_of(path))
    assert len(windows) > 2 * len(train), "those of the series"


# --- classes too rare for a split, and classes with a direction -----------------------------------

RARE = {f"m{k}": "breakout" for k in (3, 9, 15, 119)}  # 3 in train, none in val, 1 in test
CLASSES = ("consolidation", "breakout", "retracement")


def parts_of(
    stored: tuple[Store, str], tmp_path: Path, rule: str
) -> tuple[dict[str, dict[str, int]], dict[str, int]]:
    """Class counts by split, and what is left out."""
    from moola.data.label_files import open_label_file
    from moola.data.label_sources import fetch_series, labels_by_split, load_labels
    from moola.runs.reading import describe_input_run

    store, run_id = stored
    path = tmp_path / "mine.csv"
    path.write_text(moves_csv(**RARE))
    spec = spec_of(path, labels_classes=CLASSES, labels_rare_classes=rule)
    series = fetch_series(store, describe_input_run(store, run_id), tmp_path / "work")
    labels = load_labels(spec.labels, open_label_file(path), series)
    parts, left_out = labels_by_split(labels, ranges_of(series.splits), spec)
    return {name: part.class_counts() for name, part in parts.items()}, left_out


def test_a_class_too_rare_for_a_split_is_named_with_the_ways_out(
    stored: tuple[Store, str], tmp_path: Path
) -> None:
    message = (
        r"breakout has 0 in val \(of \d+ in val and 120 in mine.csv\); add labels, or "
        r"--set labels.rare_classes=train_only .* or =drop"
    )
    with pytest.raises(DataError, match=message):
        parts_of(stored, tmp_path, "refuse")


def test_a_rare_class_may_be_trained_on_alone(stored: tuple[Store, str], tmp_path: Path) -> None:
    counts, left_out = parts_of(stored, tmp_path, "train_only")
    assert counts["train"]["breakout"] == 3
    assert counts["val"]["breakout"] == counts["test"]["breakout"] == 0
    assert left_out["breakout is too rare for a split (train_only)"] == 1


def test_a_rare_class_may_be_dropped(stored: tuple[Store, str], tmp_path: Path) -> None:
    counts, left_out = parts_of(stored, tmp_path, "drop")
    assert {tuple(part) for part in counts.values()} == {("consolidation", "retracement")}
    assert left_out["breakout is too rare for a split (drop)"] == 4
    assert min(counts["val"].values()) > 2


def test_a_class_too_rare_to_train_on_and_the_last_two_classes_are_refused(
    stored: tuple[Store, str], tmp_path: Path
) -> None:
    store, _ = stored
    path = tmp_path / "mine.csv"
    path.write_text(moves_csv(m119="breakout", m118="breakout"))
    settings = {"labels_classes": CLASSES, "labels_rare_classes": "train_only"}
    with pytest.raises(DataError, match="2 labels to be trained on: breakout has 0 in train"):
        prepared(store, tmp_path, path, **settings)

    path.write_text(moves_csv().replace("retracement", "consolidation"))
    for rule in ("train_only", "drop"):
        with pytest.raises(DataError, match=r"two classes must be left .* retracement"):
            prepared(store, tmp_path, path, labels_rare_classes=rule)


@pytest.mark.parametrize(
    ("classes", "mirror", "expected"),
    [
        (("consolidation", "retracement"), None, (0, 1)),
        (("bull", "bear"), None, (-1, -1)),
        (("bull", "bear"), {"bull": "bear"}, (1, 0)),
        (("bull", "bear"), {"bull": "bull"}, (0, -1)),
        (("bull", "flat", "bear"), {"bear": "bull"}, (2, -1, 0)),
        (("bull", "consolidation", "bear"), {"bear": "bull"}, (2, 1, 0)),
    ],
)
def test_a_class_with_a_direction_is_not_mirrored_into_itself(
    tmp_path: Path,
    classes: tuple[str, ...],
    mirror: dict[str, str] | None,
    expected: tuple[int, ...],
) -> None:
    """[class] what windows of it are, turned upside down; -1: they are not turned."""
    torch = pytest.importorskip("torch")
    from moola.data.label_files import read_labels
    from moola.training.batches import setup_optimized_dataloader
    from moola.training.data import split_labels

    path = own_windows(tmp_path / "own.parquet", 60)
    table = pd.read_parquet(path)
    table["label"] = [classes[k % len(classes)] for k in range(len(table))]
    table.to_parquet(path)
    spec = spec_of(path, labels_classes=classes, labels_mirror=mirror)
    windows = split_labels(read_labels(path, spec.labels), None, spec).windows["train"]
    assert windows.mirrored_class == expected

    batches = {
        mirrored: next(
            iter(
                setup_optimized_dataloader(
                    windows, 512, train=True, mirrored=mirrored, windows_per_epoch=512
                )
            )
        )
        for mirrored in (False, True)
    }
    label = batches[False]["label"]
    turned = (batches[True]["x"] != batches[False]["x"]).flatten(1).any(dim=1)
    after = batches[True]["label"]
    assert torch.equal(after[~turned], label[~turned])

    for index, image in enumerate(expected):
        share = turned[label == index].float().mean()
        if image < 0:
            assert share == 0
        else:
            assert 0.3 < share < 0.7
            assert set(after[turned & (label == index)].tolist()) == {image}


@pytest.mark.parametrize("level", [0.0, -5_000.0])
def test_the_clean_bars_of_a_run_may_have_any_sign(level: float, tmp_path: Path) -> None:
    frame = random_bars(200)
    prices = ["open", "high", "low", "close"]
    frame[prices] += level - frame["close"].iloc[100]
    write_bars(frame, tmp_path / CLEAN_BARS)

    read = read_clean_bars(tmp_path, 200)
    np.testing.assert_array_equal(read[prices], frame[prices])

    frame.iloc[7, 0] = np.nan
    write_bars(frame, tmp_path / CLEAN_BARS)
    with pytest.raises(ArtifactError, match="prices must be finite"):
        read_clean_bars(tmp_path, 200)

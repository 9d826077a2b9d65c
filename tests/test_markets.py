"""Several feature sets trained on together: which go together, where labels point, what is cut."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moola import WINDOW
from moola.data.feature_records import FeatureMetadata
from moola.data.feature_set import Series, read_feature_set
from moola.data.folds import fold_splits
from moola.data.label_files import open_label_file
from moola.data.label_sources import labels_by_split, load_labels, series_of
from moola.data.labels import LabelSet
from moola.data.market_folds import market_fold_splits, pooled_times
from moola.data.market_labels import (
    files_by_set,
    load_market_labels,
    require_labels_of_each,
)
from moola.data.markets import (
    GAP_BARS,
    MarketRows,
    folds_of_markets,
    join_features,
    lay_out,
    market_of,
    market_ranges,
)
from moola.data.move_truth import move_truth
from moola.data.splits import SPLITS, Split
from moola.errors import ArtifactError, DataError
from moola.features import FeatureConfig
from moola.jobs.prepare import PreparedRun, prepare_train
from moola.jobs.rerun import prepare_rerun
from moola.runs.attempt import Attempt
from moola.runs.binding import run_id_of
from moola.runs.records import InputRun
from moola.runs.submit import describe_run, put_input, submit
from moola.specs import CrossValidation, SplitDates, TrainSpec, parse_spec
from moola.store import Store, open_store
from tests.feature_set import random_bars, write_feature_set

OCTETS = "application/octet-stream"
DATES = SplitDates(train_end=date(2024, 3, 7), val_end=date(2024, 3, 8))
MINUTE = pd.Timedelta(minutes=1)


def bars_from(start: str, n_bars: int, seed: int) -> pd.DataFrame:
    bars = random_bars(n_bars, seed=seed)
    bars.index = pd.date_range(start, periods=n_bars, freq="min", tz="UTC", name="timestamp")
    return bars


BARS = {"NQ": bars_from("2024-03-04", 9000, seed=1), "FX": bars_from("2024-03-05 07:00", 7000, 2)}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of two feature sets: NQ of 2024-03-04 to -10, FX of -05 to -09."""
    folders = {name: tmp_path_factory.mktemp(name) for name in BARS}
    for name, bars in BARS.items():
        write_feature_set(folders[name], bars=bars)
        (folders[name] / "features_11d.npy").unlink()
    return folders


def store_set(store: Store, folder: Path, work: Path, key: str) -> str:
    """The run that holds a folder's files."""
    run_id, document = describe_run("precompute", {"windows": "stored", "key": key}, {})
    submit(store, run_id, document)
    with Attempt(store, run_id, work=work) as attempt:
        for path in sorted(folder.iterdir()):
            attempt.write(path.name, path.read_bytes(), OCTETS)
    return run_id


@pytest.fixture(scope="module")
def stored(
    sets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Store, dict[str, str]]:
    """A store with the two sets, and the runs that hold them."""
    store = open_store(tmp_path_factory.mktemp("store").as_uri())
    work = tmp_path_factory.mktemp("work")
    return store, {name: store_set(store, folder, work, name) for name, folder in sets.items()}


def series_in(sets: Mapping[str, Path]) -> dict[str, Series]:
    return {
        name: replace(series_of(read_feature_set(folder, 11), folder), run=f"precompute-{name}")
        for name, folder in sorted(sets.items())
    }


def times_only(start: str, n_bars: int, run: str, skipped: int = 0) -> Series:
    """A series of flat bars, `skipped` minutes left out in its middle."""
    minutes = np.arange(n_bars)
    minutes[n_bars // 2 :] += skipped
    times = pd.Timestamp(start, tz="UTC") + pd.TimedeltaIndex(minutes * MINUTE)
    price = np.arange(n_bars) + len(run) / 7
    bars = pd.DataFrame(dict.fromkeys(("open", "high", "low", "close"), price), index=times)
    return Series(run, bars, (), (), {}, Path(run), FeatureMetadata(config={}))


def moves_csv(path: Path, n: int = 60, **columns: str) -> Path:
    """n moves of 8 bars in each market, classes in turn; a column `features` names the market."""
    rows = []
    for name, bars in BARS.items():
        for k, bar in enumerate(np.linspace(200, len(bars) - 200, n).astype(int)):
            label = ("consolidation", "retracement")[k % 2]
            rows.append((bars.index[bar], bars.index[bar + 7], label, columns.get(name, name)))
    pd.DataFrame(rows, columns=["start", "end", "label", "features"]).to_csv(path, index=False)
    return path


def one_file_each(folder: Path) -> dict[str, Path]:
    table = pd.read_csv(moves_csv(folder / "both.csv"))
    paths = {name: folder / f"{name}.csv" for name in BARS}
    for name, path in paths.items():
        rows = table[table["features"] == name].drop(columns="features")
        rows.to_csv(path, index=False)
    return paths


def spec_of(source: object = "hindsight", **fields: object) -> TrainSpec:
    ends = {"train_end": DATES.train_end, "val_end": DATES.val_end}
    source = str(source) if isinstance(source, Path) else source
    spec = {"labels": {"source": source}, "splits": ends, **fields}
    return parse_spec(TrainSpec, spec, place="here")


def prepared(
    stored: tuple[Store, dict[str, str]], work: Path, source: object, **fields: object
) -> PreparedRun:
    store, runs = stored
    named = [f"{name}={run}" for name, run in runs.items()]
    return prepare_train(spec_of(source, **{"features": named, **fields}), store, work)


# --- the time of splits ---------------------------------------------------------------------------


@st.composite
def some_series(draw: st.DrawFn) -> dict[str, Series]:
    """One to four series that begin on days near each other, each with a pause in its middle."""
    n = draw(st.integers(1, 4))
    return {
        f"M{k}": times_only(
            f"2024-03-{draw(st.integers(1, 9)):02d} {draw(st.integers(0, 23)):02d}:00",
            draw(st.integers(300, 9000)),
            f"run-{'x' * k}",
            draw(st.integers(0, 3000)),
        )
        for k in range(n)
    }


@settings(deadline=None, max_examples=60)
@given(some_series(), st.integers(1, 12), st.integers(1, 5))
def test_no_window_of_training_ends_after_validation_has_begun_anywhere(
    series: dict[str, Series], train_day: int, val_days: int
) -> None:
    train_end = date(2024, 3, train_day)
    dates = SplitDates(train_end=train_end, val_end=train_end + timedelta(days=val_days))
    try:
        markets = lay_out(series, dates)
    except DataError as error:
        assert "each split needs a window" in str(error)  # noqa: PT017 - others are faults
        return

    _, last = bounds_in_time(series, markets)
    assert last["train"] <= np.datetime64(train_end) + np.timedelta64(1439, "m")


def bounds_in_time(
    series: dict[str, Series], markets: Sequence[MarketRows]
) -> tuple[dict[str, np.datetime64], dict[str, np.datetime64]]:
    """Each split's first bar and last one in any market; they share no time, and no range is in two
    markets."""
    times = np.concatenate([_padded(one) for one in series.values()])
    first = {}
    last = {}
    for name, ranges in market_ranges(markets).items():
        bars = []
        for split in ranges:
            rows = np.arange(split.start, split.stop + WINDOW - 1)
            assert len(set(market_of(rows, markets).tolist())) == 1
            assert not np.isnat(times[rows]).any()
            bars.append(times[rows])
        first[name] = np.concatenate(bars).min()
        last[name] = np.concatenate(bars).max()

    assert last["train"] < first["val"]
    assert last["val"] < first["test"]
    return first, last


def _padded(series: Series) -> np.ndarray:
    """The times of a market's rows, and of those before the next one's."""
    gap = np.full(GAP_BARS, np.datetime64("NaT", "us"))
    return np.concatenate([series.times.tz_localize(None).as_unit("us").to_numpy(), gap])


def test_sets_keep_their_own_splits_where_those_were_cut_at_the_same_time(
    sets: dict[str, Path],
) -> None:
    series = series_in(sets)
    cuts = {"FX": (2000, 3000), "NQ": (3860, 4860)}  # FX begins 1860 minutes after NQ
    for name, (first, second) in cuts.items():
        n_bars = len(series[name].bars)
        splits = {
            "train": Split(0, first - 104),
            "val": Split(first, second - 104),
            "test": Split(second, n_bars - 104),
        }
        series[name] = replace(series[name], splits=splits)

    markets = lay_out(series, SplitDates())
    assert markets[0].splits == series["FX"].splits
    shift = 7000 + GAP_BARS
    assert markets[1].splits["val"] == Split(3860 + shift, 4860 - 104 + shift)

    splits = {**series["NQ"].splits, "train": Split(0, 3000), "val": Split(3104, 4756)}
    later = replace(series["FX"], splits={**series["FX"].splits, "train": Split(0, 1898)})
    with pytest.raises(DataError) as caught:
        lay_out({"FX": later, "NQ": replace(series["NQ"], splits=splits)}, SplitDates())
    assert "train of FX ends 2024-03-06 16:21 UTC, and val of NQ begins 2024-03-06 03:44 UTC" in (
        str(caught.value)
    )
    assert "--set splits.train_end=" in str(caught.value)


def test_splits_that_are_not_in_their_series_are_damaged(sets: dict[str, Path]) -> None:
    series = series_in(sets)
    broken = {**series["NQ"].splits, "test": Split(8000, 8990)}
    with pytest.raises(ArtifactError, match=r"test must lie in 0..8896, got 8000..8990"):
        lay_out({**series, "NQ": replace(series["NQ"], splits=broken)}, SplitDates())


# --- folds ----------------------------------------------------------------------------------------


def test_a_fold_is_cut_at_the_same_moments_in_all_markets() -> None:
    """2 folds of A, 2,400 minutes, and B, the last 1,200 of these: 3,600 bars.

    Thirds are cut at bars 1,200 and 2,400, which are minutes 1,200 and 1,800; the last 15 % of the
    first one (two) thirds begin at bar 1,020 (2,040), which is minute 1,020 (1,620).
    """
    series = {
        "A": times_only("2024-03-04", 2400, "a"),
        "B": times_only("2024-03-04 20:00", 1200, "b"),
    }
    bounds = [
        {"A": [(0, 1020), (1020, 1200), (1200, 1800)], "B": [None, None, (0, 600)]},
        {"A": [(0, 1620), (1620, 1800), (1800, 2400)], "B": [(0, 420), (420, 600), (600, 1200)]},
    ]
    for number, expected in enumerate(bounds):
        fold = CrossValidation(folds=2, fold=number)
        markets = lay_out(series, SplitDates(), fold)
        for market in markets:
            spans = zip(SPLITS, expected[market.name], strict=True)
            splits = {
                name: Split(span[0], span[1] - WINDOW + 1).moved(market.first_row)
                for name, span in spans
                if span is not None
            }
            assert market.splits == splits, (number, market.name)
        assert folds_of_markets(series)(fold) == market_ranges(markets)


@pytest.mark.parametrize("n_bars", [3000, 3001, 7777])
def test_the_folds_of_one_market_are_those_of_a_series(n_bars: int) -> None:
    times = {"A": times_only("2024-03-04", n_bars, "a", skipped=5000).times}
    for number in range(3):
        fold = CrossValidation(folds=3, fold=number)
        splits = market_fold_splits(times, pooled_times(times), fold)
        assert splits == {"A": fold_splits(fold, n_bars)}


@settings(deadline=None, max_examples=40)
@given(some_series(), st.integers(1, 5))
def test_no_split_of_a_fold_shares_time_with_a_later_one_anywhere(
    series: dict[str, Series], folds: int
) -> None:
    times = np.sort(np.concatenate([_padded(one)[:-GAP_BARS] for one in series.values()]))
    tested_until = times[0]
    for number in range(folds):
        fold = CrossValidation(folds=folds, fold=number)
        try:
            first, last = bounds_in_time(series, lay_out(series, SplitDates(), fold))
        except DataError as error:
            assert f"fold {number} of 0..{folds - 1}" in str(error)  # noqa: PT017 - others are faults
            continue
        part = (times >= first["test"]) & (times <= last["test"])
        assert part.sum() <= len(times) / (folds + 1) + len(series)
        assert first["test"] > tested_until
        tested_until = last["test"]


def test_a_class_too_rare_for_a_fold_is_dropped_from_all_folds_of_markets(
    sets: dict[str, Path], tmp_path: Path
) -> None:
    """A retracement becomes a third class from March 8 on: the first fold never sees it."""
    path = moves_csv(tmp_path / "both.csv", n=120)
    table = pd.read_csv(path)
    is_late = (table["start"] >= "2024-03-08") & (table.index % 4 == 1)
    table.loc[is_late, "label"] = "late"
    table.to_csv(path, index=False)
    series = series_in(sets)
    classes = ["consolidation", "retracement", "late"]
    for number in range(2):
        labels = {"source": str(path), "classes": classes, "rare_classes": "drop"}
        fold = {"folds": 2, "fold": number}
        spec = parse_spec(TrainSpec, {"labels": labels, "cross_validate": fold}, place="here")
        markets = lay_out(series, spec.splits, spec.cross_validate)
        parts, left_out = labels_by_split(
            labels_of(sets, spec, path), market_ranges(markets), spec, folds_of_markets(series)
        )
        assert {part.classes for part in parts.values()} == {("consolidation", "retracement")}
        assert left_out["late is too rare for a split of a fold (drop)"] == is_late.sum()
        assert {len(set(market_of(part.anchor, markets))) for part in parts.values()} == {2}


def test_the_folds_of_a_run_on_several_markets_are_runs(
    stored: tuple[Store, dict[str, str]], tmp_path: Path
) -> None:
    store, _ = stored
    path = moves_csv(tmp_path / "both.csv", n=120)

    def fold_run(folds: int, fold: int, **fields: object) -> PreparedRun:
        config = {"folds": folds, "fold": fold}
        return prepared(stored, tmp_path, path, cross_validate=config, **fields)

    first = fold_run(2, 0, splits={})
    assert "splits" not in first.document.spec
    assert set(first.document.inputs) == {"features-FX", "features-NQ", "labels"}
    put_input(store, path, first.input_file("labels"))
    submit(store, first.run_id, first.document)
    assert prepare_rerun(store, first.run_id, tmp_path / "work", {}).run_id == first.run_id
    second = prepare_rerun(store, first.run_id, tmp_path / "work", {"cross_validate.fold": 1})
    assert second.document == fold_run(2, 1, splits={}).document

    with pytest.raises(DataError, match="give no splits beside it"):
        fold_run(2, 0)
    with pytest.raises(DataError, match=r"fold 0 of 0\.\.49: take fewer folds"):
        fold_run(50, 0, splits={})


# --- sets that go together ------------------------------------------------------------------------


def test_sets_that_were_made_otherwise_are_refused_with_both_values(sets: dict[str, Path]) -> None:
    series = series_in(sets)
    other = FeatureConfig(zigzag_k=1.5).model_dump()
    metadata = series["NQ"].metadata.model_copy(update={"config": other})
    with pytest.raises(DataError, match=r"features.zigzag_k is 1.2 in FX and 1.5 in NQ"):
        lay_out({**series, "NQ": replace(series["NQ"], metadata=metadata)}, DATES)

    metadata = series["NQ"].metadata.model_copy(update={"n_windows": 9000 - 59})
    with pytest.raises(DataError, match=r"bars in a window is 105 in FX and 60 in NQ"):
        lay_out({**series, "NQ": replace(series["NQ"], metadata=metadata)}, DATES)


def test_the_same_bars_twice_are_refused(
    sets: dict[str, Path], stored: tuple[Store, dict[str, str]], tmp_path: Path
) -> None:
    series = series_in(sets)
    copy = replace(series["NQ"], run="precompute-0123456789ab")
    with pytest.raises(DataError, match=r"NQ \(precompute-NQ\) and copy .* hold the same bars"):
        lay_out({**series, "copy": copy}, DATES)

    run = stored[1]["NQ"]
    with pytest.raises(DataError, match=f"the same set twice: {run} is NQ and Nasdaq"):
        prepared(stored, tmp_path, "hindsight", features=[f"NQ={run}", f"Nasdaq={run}"])
    with pytest.raises(DataError, match="two sets are called nq"):
        prepared(stored, tmp_path, "hindsight", features=[f"NQ={run}", f"nq={stored[1]['FX']}"])


def test_rows_of_a_market_are_those_of_its_own_set(sets: dict[str, Path]) -> None:
    """And between two there are rows that nobody sees."""
    read = {name: read_feature_set(folder, 11) for name, folder in sorted(sets.items())}
    markets = lay_out(series_in(sets), DATES)
    joined = join_features(read)
    assert len(joined.rows) == 7000 + GAP_BARS + 9000
    for market in markets:
        own = slice(market.first_row, market.first_row + market.n_bars)
        np.testing.assert_array_equal(joined.rows[own], read[market.name].rows)
        np.testing.assert_array_equal(joined.valid[own], read[market.name].valid)
        assert joined.times[own].equals(read[market.name].times)
    assert not joined.valid[7000 : 7000 + GAP_BARS].any()
    assert joined.bars.iloc[7000 : 7000 + GAP_BARS].isna().all(axis=None)


# --- labels ---------------------------------------------------------------------------------------


def labels_of(sets: dict[str, Path], spec: TrainSpec, path: Path | None) -> LabelSet:
    series = series_in(sets)
    runs = {name: one.run for name, one in series.items()}
    files = {} if path is None else files_by_set(open_label_file(path), runs)
    return load_market_labels(spec.labels, files, series, lay_out(series, DATES))


def test_a_label_lies_in_the_market_that_its_row_names(
    sets: dict[str, Path], tmp_path: Path
) -> None:
    labels = labels_of(sets, spec_of(), moves_csv(tmp_path / "both.csv"))
    markets = lay_out(series_in(sets), DATES)
    joined = join_features({name: read_feature_set(sets[name], 11) for name in sorted(sets)})
    table = pd.read_csv(tmp_path / "both.csv", parse_dates=["start", "end"])
    number = market_of(labels.anchor, markets)
    for k, name in enumerate(("FX", "NQ")):
        own = table[table["features"] == name]
        assert joined.times[labels.start_bar[number == k]].tolist() == own["start"].tolist()
        assert joined.times[labels.end_bar[number == k]].tolist() == own["end"].tolist()
    assert (number[:60] == 0).all()
    assert (number[60:] == 1).all()


@pytest.mark.parametrize("name", ["fx", " FX ", "precompute-fx", "PRECOMPUTE-FX"])
def test_a_row_may_name_its_set_in_any_case_or_by_its_run(tmp_path: Path, name: str) -> None:
    file = open_label_file(moves_csv(tmp_path / "both.csv", FX=name))
    runs = {"FX": "precompute-fx0123456789", "NQ": "precompute-nq0123456789"}
    if name.casefold() == "precompute-fx":
        with pytest.raises(DataError, match="must name one of the feature sets"):
            files_by_set(file, runs)  # two characters of an id are too few
        file = open_label_file(moves_csv(tmp_path / "both.csv", FX=name + "01"))
    pieces = files_by_set(file, runs)
    assert {name: len(piece.table) for name, piece in pieces.items()} == {"FX": 60, "NQ": 60}


def test_labels_that_name_no_set_are_refused_with_their_row(tmp_path: Path) -> None:
    runs = {"FX": "precompute-1111aaaa2222", "NQ": "precompute-1111bbbb2222"}
    listed = r"FX \(precompute-1111aaaa2222\), NQ \(precompute-1111bbbb2222\)"

    both = open_label_file(moves_csv(tmp_path / "both.csv", NQ="ES"))
    with pytest.raises(DataError, match=f"one of the feature sets, {listed}, got 'ES' .row 0 of"):
        files_by_set(both, runs)
    both = open_label_file(moves_csv(tmp_path / "both.csv", FX="precompute-1111"))
    with pytest.raises(DataError, match=r"got 'precompute-1111' \(row 60 of both.csv\)"):
        files_by_set(both, runs)  # it is the start of both
    both = open_label_file(moves_csv(tmp_path / "both.csv", FX=""))
    with pytest.raises(DataError, match=r"row 60 of both.csv"):
        files_by_set(both, runs)
    both = open_label_file(moves_csv(tmp_path / "both.csv", FX="NQ"))
    with pytest.raises(DataError, match="no row names FX"):
        files_by_set(both, runs)

    alone = one_file_each(tmp_path)["NQ"]
    with pytest.raises(DataError, match="must say which one they point into, in a column features"):
        files_by_set(open_label_file(alone), runs)


def test_a_broken_row_is_named_by_its_number_in_the_file(
    sets: dict[str, Path], tmp_path: Path
) -> None:
    path = moves_csv(tmp_path / "both.csv")
    table = pd.read_csv(path)
    table.loc[77, "label"] = "breakout"
    table.to_csv(path, index=False)
    with pytest.raises(DataError, match=r"got 'breakout' \(row 77 of both.csv\)"):
        labels_of(sets, spec_of(), path)


def test_labels_by_hindsight_are_those_of_each_set_alone(sets: dict[str, Path]) -> None:
    spec = spec_of("hindsight")
    labels = labels_of(sets, spec, None)
    series = series_in(sets)
    alone = {name: load_labels(spec.labels, None, one) for name, one in series.items()}
    shift = {"FX": 0, "NQ": 7000 + GAP_BARS}
    assert len(alone["FX"]) > 20
    assert len(alone["NQ"]) > 20
    for field in ("anchor", "first_anchor", "last_anchor", "start_bar", "end_bar"):
        expected = [getattr(alone[name], field) + shift[name] for name in series]
        np.testing.assert_array_equal(getattr(labels, field), np.concatenate(expected))
    assert labels.source == "hindsight"
    assert labels.every_move is not None

    truth = move_truth(labels, 16_000 + GAP_BARS)
    assert truth is not None
    known = [(one.every_move.first_bar + shift[name]).tolist() for name, one in alone.items()]  # type: ignore[union-attr]
    assert sorted(truth.first.tolist()) == sorted(known[0] + known[1])


def test_rows_that_say_none_move_with_their_set(sets: dict[str, Path], tmp_path: Path) -> None:
    path = moves_csv(tmp_path / "both.csv")
    table = pd.read_csv(path)
    index = BARS["NQ"].index
    table.loc[len(table)] = [str(index[20]), str(index[150]), "none", "NQ"]
    table.to_csv(path, index=False)
    labels = labels_of(sets, spec_of(), path)
    assert labels.no_moves is not None
    shift = 7000 + GAP_BARS
    assert labels.no_moves.first_bar.tolist() == [20 + shift]
    assert labels.no_moves.last_bar.tolist() == [150 + shift]
    assert labels.left_out == {"none: nobody sees a move": 1}
    truth = move_truth(labels, 16_000 + GAP_BARS)
    assert truth is not None
    assert truth.is_known.sum() == 131 + 120 * 8


def test_a_market_without_rows_that_say_none_is_named_where_others_have_them(
    stored: tuple[Store, dict[str, str]], tmp_path: Path
) -> None:
    path = moves_csv(tmp_path / "both.csv")
    table = pd.read_csv(path)
    for name, expected in (("NQ", ["only NQ has rows without a move"]), ("FX", [])):
        index = BARS[name].index
        table.loc[len(table)] = [str(index[20]), str(index[150]), "none", name]
        table.to_csv(path, index=False)
        warnings = prepared(stored, tmp_path, path).warnings
        assert len(warnings) == len(expected)
        for warning, start in zip(warnings, expected, strict=True):
            assert warning.startswith(start)
            assert "what is found in FX" in warning


def test_a_class_is_rare_by_the_labels_of_all_markets(
    sets: dict[str, Path], tmp_path: Path
) -> None:
    """FX has no retracement in validation; NQ has enough for both."""
    path = moves_csv(tmp_path / "both.csv")
    table = pd.read_csv(path)
    is_val = table["start"].str.startswith("2024-03-08")
    gone = (table["features"] == "FX") & is_val & (table["label"] == "retracement")
    assert gone.sum() > 2
    table[~gone].to_csv(path, index=False)
    spec = spec_of()
    markets = lay_out(series_in(sets), DATES)
    parts, _ = labels_by_split(labels_of(sets, spec, path), market_ranges(markets), spec)
    assert parts["val"].class_counts()["retracement"] >= 2
    for name, part in parts.items():
        in_order = np.array(
            [markets[k].splits[name].start for k in market_of(part.anchor, markets)]
        )
        assert (part.first_anchor >= in_order).all()


def test_a_market_that_nothing_is_learned_from_is_named(
    sets: dict[str, Path], tmp_path: Path
) -> None:
    path = moves_csv(tmp_path / "both.csv")
    table = pd.read_csv(path)
    is_fx = table["features"] == "FX"
    table[~is_fx | (table["start"] >= "2024-03-08")].to_csv(path, index=False)
    spec = spec_of()
    markets = lay_out(series_in(sets), DATES)
    parts, _ = labels_by_split(labels_of(sets, spec, path), market_ranges(markets), spec)
    (warning,) = require_labels_of_each(parts, markets, are_drawn=False)
    assert "nothing is learned from FX (precompute-FX): it has no label in train" in warning

    none_left = {
        name: part.take(market_of(part.anchor, markets) == 1) for name, part in parts.items()
    }
    with pytest.raises(DataError, match=r"those of FX \(precompute-FX\) are in none"):
        require_labels_of_each(none_left, markets, are_drawn=False)
    (warning,) = require_labels_of_each(none_left, markets, are_drawn=True)
    assert "nothing is learned from FX" in warning


# --- a run ----------------------------------------------------------------------------------------


def test_a_run_is_bound_to_every_set_and_not_to_their_order(
    stored: tuple[Store, dict[str, str]], tmp_path: Path
) -> None:
    runs = stored[1]
    path = moves_csv(tmp_path / "both.csv")
    run = prepared(stored, tmp_path, path)
    inputs = run.document.inputs
    assert set(inputs) == {"features-FX", "features-NQ", "labels"}
    for name in runs:
        item = inputs[f"features-{name}"]
        assert isinstance(item, InputRun)
        assert item.run == runs[name]
    assert run.document.spec["splits"] == {
        "train_end": "2024-03-07",
        "val_end": "2024-03-08",
        "test_end": None,
    }

    turned = [f"NQ={runs['NQ']}", f"FX={runs['FX']}"]
    assert prepared(stored, tmp_path, path, features=turned).run_id == run.run_id
    other_days = {"train_end": "2024-03-06", "val_end": "2024-03-08"}
    assert prepared(stored, tmp_path, path, splits=other_days).run_id != run.run_id
    unnamed = prepared(stored, tmp_path, "hindsight", features=list(runs.values()))
    assert set(unnamed.document.inputs) == {f"features-{run_id}" for run_id in runs.values()}
    assert run_id_of("train", run.document.fingerprint) == run.run_id


def test_one_set_in_a_list_is_that_set(
    stored: tuple[Store, dict[str, str]], tmp_path: Path
) -> None:
    store, runs = stored
    path = one_file_each(tmp_path)["NQ"]
    alone = spec_of(path, features=runs["NQ"], splits={})
    run = prepare_train(alone, store, tmp_path)
    assert set(run.document.inputs) == {"features", "labels"}
    assert not {"splits", "features"} & set(run.document.spec)
    for features in ([runs["NQ"]], [f"NQ={runs['NQ']}"]):
        listed = spec_of([str(path)], features=features, splits={})
        assert prepare_train(listed, store, tmp_path).document == run.document


def test_labels_of_several_markets_are_not_laid_on_one(
    stored: tuple[Store, dict[str, str]], tmp_path: Path
) -> None:
    store, runs = stored
    both = moves_csv(tmp_path / "both.csv")
    with pytest.raises(DataError, match=r"the column features names 'NQ', 'FX'; give each"):
        prepare_train(spec_of(both, features=runs["NQ"], splits={}), store, tmp_path)

    table = pd.read_csv(both)
    own = table[table["features"] == "NQ"]
    path = tmp_path / "nq.csv"
    own.assign(features=runs["FX"]).to_csv(path, index=False)
    with pytest.raises(DataError, match=f"must not be laid on {runs['NQ']}"):
        prepare_train(spec_of(path, features=runs["NQ"], splits={}), store, tmp_path)
    own.assign(features=runs["NQ"]).to_csv(path, index=False)
    prepare_train(spec_of(path, features=runs["NQ"], splits={}), store, tmp_path)


def test_sets_and_files_that_do_not_belong_together_are_refused(
    sets: dict[str, Path], tmp_path: Path
) -> None:
    series = series_in(sets)
    files = {"NQ": open_label_file(one_file_each(tmp_path)["NQ"])}
    with pytest.raises(DataError, match="FX has only one of them"):
        load_market_labels(spec_of().labels, files, series, lay_out(series, DATES))


def test_files_for_each_set_are_the_same_labels_as_one_for_all(
    stored: tuple[Store, dict[str, str]], tmp_path: Path
) -> None:
    paths = one_file_each(tmp_path)
    sources = [str(paths[name]) for name in stored[1]]
    run = prepared(stored, tmp_path, sources)
    assert set(run.inputs) == {"labels-FX", "labels-NQ"}
    assert run.inputs["labels-FX"] == paths["FX"]

    with pytest.raises(DataError, match="got 1 files for 2 sets"):
        prepared(stored, tmp_path, sources[:1])
    with pytest.raises(DataError, match="a list is of files, got 'hindsight' in it"):
        prepared(stored, tmp_path, ["hindsight", sources[0]])
    with pytest.raises(DataError, match="must be a minute of the bars"):
        prepared(stored, tmp_path, sources[::-1])


def test_what_does_not_go_with_the_number_of_sets_is_refused(
    stored: tuple[Store, dict[str, str]], tmp_path: Path
) -> None:
    store, runs = stored
    with pytest.raises(DataError, match="splits of a train spec are for several"):
        prepare_train(spec_of(features=runs["NQ"]), store, tmp_path)
    with pytest.raises(DataError, match="1 to 60 letters"):
        prepared(stored, tmp_path, "hindsight", features=[f"EUR/USD={runs['FX']}", runs["NQ"]])
    with pytest.raises(DataError, match="must not be the name of a device"):
        prepared(stored, tmp_path, "hindsight", features=[f"CON={runs['FX']}", runs["NQ"]])
    with pytest.raises(DataError, match="planted needs synthetic bars"):
        prepared(stored, tmp_path, "planted")
    with pytest.raises(DataError, match="train_end and val_end are given together"):
        spec_of(splits={"train_end": "2024-03-07"})
    for bad in (5, [], [3], ""):
        with pytest.raises(DataError, match=r"features: .*must be a text, or a list of texts"):
            spec_of(features=bad)
    with pytest.raises(DataError, match="train_end < val_end"):
        spec_of(splits={"train_end": "2024-03-07", "val_end": "2024-03-07"})
    with pytest.raises(DataError, match="must be cut at the same time"):
        prepared(stored, tmp_path, "hindsight", splits={})

    own = {"window_id": ["a"], "label": ["consolidation"], "expansion_start": 1, "expansion_end": 2}
    path = tmp_path / "own.parquet"
    pd.DataFrame({**own, "features": [np.ones(420).tolist()]}).to_parquet(path)
    with pytest.raises(DataError, match="must say which one they point into"):
        prepared(stored, tmp_path, path)
    with pytest.raises(DataError, match="labels that carry their own bars are in no feature set"):
        prepared(stored, tmp_path, [str(path)] * 2)


def test_the_spec_of_a_run_is_prepared_again_as_the_same_run(
    stored: tuple[Store, dict[str, str]], tmp_path: Path
) -> None:
    store, runs = stored
    paths = one_file_each(tmp_path)
    for source in (moves_csv(tmp_path / "all.csv"), [str(paths[name]) for name in runs]):
        run = prepared(stored, tmp_path, source)
        for name, path in run.inputs.items():
            put_input(store, path, run.input_file(name))
        submit(store, run.run_id, run.document)
        again = prepare_rerun(store, run.run_id, tmp_path / "work", {})
        assert again.document == run.document
        changed = prepare_rerun(store, run.run_id, tmp_path / "work", {"training.seed": 3})
        assert changed.run_id != run.run_id
        assert changed.document.inputs == run.document.inputs


def test_sets_and_files_of_a_run_are_changed_together(
    stored: tuple[Store, dict[str, str]], tmp_path: Path
) -> None:
    """Its own order of them is by name: a list in another order would swap the markets' labels."""
    store, runs = stored
    paths = [str(one_file_each(tmp_path)[name]) for name in runs]
    run = prepared(stored, tmp_path, paths)
    for name, path in run.inputs.items():
        put_input(store, path, run.input_file(name))
    submit(store, run.run_id, run.document)

    sets = [f"{name}={run_id}" for name, run_id in runs.items()]
    for alone in ({"features": sets}, {"labels.source": paths}):
        with pytest.raises(DataError, match="give both, or neither"):
            prepare_rerun(store, run.run_id, tmp_path / "work", alone)
    both = {"features": sets, "labels.source": paths}
    again = prepare_rerun(store, run.run_id, tmp_path / "work", both)
    assert again.document == run.document

"""Views, the bytes of the feature set, the mask and the purged splits."""

import hashlib
import io
import tracemalloc
from datetime import date

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moola import WINDOW
from moola.data.feature_records import SplitsDocument
from moola.data.feature_set import BARS, FEATURES, WINDOWS_RULE, rebuild
from moola.data.splits import split_windows, splits_document
from moola.data.windows import (
    WARM_UP,
    WindowSource,
    density,
    source_sha256,
    valid_ratio,
    valid_rows,
    window_view,
)
from moola.errors import ArtifactError, DataError
from moola.runs.records import DerivedEntry, NpyFormat
from moola.specs import SplitConfig

ROWS = np.random.default_rng(3).normal(size=(260, 11)).astype(np.float32)


def saved(array: np.ndarray) -> bytes:
    """What numpy itself writes."""
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def minutes(n: int, start: str = "2024-01-01") -> pd.DatetimeIndex:
    return pd.date_range(start, periods=n, freq="min", tz="UTC")


def test_window_w_is_bars_w_to_w_plus_104_and_a_view() -> None:
    view = window_view(ROWS)
    assert view.shape == (260 - 104, WINDOW, 11)
    assert np.shares_memory(view, ROWS)
    assert not view.flags.writeable
    for w in (0, 1, 77, 155):
        np.testing.assert_array_equal(view[w], ROWS[w : w + 105])


def test_a_series_shorter_than_a_window_is_refused() -> None:
    with pytest.raises(DataError, match="a window needs 105 bars, got 104"):
        window_view(ROWS[:104])


@pytest.mark.parametrize("rows", [ROWS, ROWS[:, 0] > 0, ROWS[:105], ROWS.astype(np.float64)[::2]])
def test_the_source_gives_the_bytes_numpy_would_save(rows: np.ndarray) -> None:
    source, expected = WindowSource(rows), saved(window_view(np.ascontiguousarray(rows)))
    assert source.size == len(expected)
    whole = bytearray(source.size)
    source.read_into(0, memoryview(whole))
    assert bytes(whole) == expected
    assert source_sha256(source) == hashlib.sha256(expected).hexdigest()


EXPECTED = saved(window_view(ROWS))


@given(st.data())
def test_any_range_of_the_source_can_be_read(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(EXPECTED)))
    stop = data.draw(st.integers(start, min(len(EXPECTED), start + 4 * 4620 + 7)))
    part = bytearray(stop - start)
    WindowSource(ROWS).read_into(start, memoryview(part))
    assert bytes(part) == EXPECTED[start:stop]


@pytest.mark.parametrize(
    ("offset", "length"), [(-1, 1), (len(EXPECTED), 1), (len(EXPECTED) - 3, 4)]
)
def test_a_range_outside_the_file_is_refused(offset: int, length: int) -> None:
    with pytest.raises(ValueError, match="are outside a file of"):
        WindowSource(ROWS).read_into(offset, memoryview(bytearray(length)))


def test_hashing_virtual_windows_takes_no_memory_of_their_size() -> None:
    source = WindowSource(np.zeros((30_000, 11), np.float32))  # 138 MB of windows
    tracemalloc.start()
    source_sha256(source)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert source.size > 130e6
    assert peak < 20e6


def test_the_mask_is_false_in_the_warm_up_and_where_flagged() -> None:
    flagged = np.zeros(200, bool)
    flagged[150] = True
    valid = valid_rows(flagged)
    assert not valid[:WARM_UP].any()
    assert valid[WARM_UP:150].all()
    assert not valid[150]
    assert valid[151:].all()
    mask = window_view(valid)
    assert not mask[150 - 104, 104]
    assert not mask[95, 55]


def test_density_and_valid_ratio_equal_the_means_over_all_windows() -> None:
    rows = np.where(np.random.default_rng(0).random((333, 11)) < 0.3, 0, 1).astype(np.float32)
    valid = np.random.default_rng(1).random(333) < 0.8
    np.testing.assert_allclose(density(rows), (window_view(rows) != 0).mean((0, 1)), rtol=1e-12)
    assert valid_ratio(valid) == pytest.approx(window_view(valid).mean(), rel=1e-12)
    np.testing.assert_allclose(
        density(rows[:106]), (window_view(rows[:106]) != 0).mean((0, 1)), rtol=1e-12
    )


# --- splits ---------------------------------------------------------------------------------------


def test_fractions_by_hand() -> None:
    rule, splits = split_windows(minutes(1000), SplitConfig())
    assert rule == "fractions"
    assert {k: (s.start, s.stop) for k, s in splits.items()} == {
        "train": (0, 700 - 104),
        "val": (700, 850 - 104),
        "test": (850, 1000 - 104),
    }


def test_default_dates_hold_where_the_bars_reach_past_them() -> None:
    hours = pd.date_range("2024-06-01", "2025-08-01", freq="h", tz="UTC")
    rule, splits = split_windows(hours, SplitConfig())
    assert rule == "dates"
    document = splits_document(rule, splits, hours)
    assert document["train"]["last_bar"] == "2024-12-31T23:00:00+00:00"
    assert document["val"]["first_bar"] == "2025-01-01T00:00:00+00:00"
    assert document["val"]["last_bar"] == "2025-03-31T23:00:00+00:00"
    assert document["test"]["last_bar"] == "2025-08-01T00:00:00+00:00"
    assert SplitsDocument.model_validate(document).splits() == splits


@pytest.mark.parametrize("given", [{"train_end": date(2024, 9, 1)}, {"val_end": date(2025, 2, 1)}])
def test_with_no_date_for_its_end_the_test_split_runs_to_the_last_bar(
    given: dict[str, date],
) -> None:
    hours = pd.date_range("2024-06-01", "2025-11-20 15:00", freq="h", tz="UTC")

    rule, splits = split_windows(hours, SplitConfig(**given))
    assert (rule, splits["test"].stop) == ("dates", len(hours) - WINDOW + 1)

    ended = SplitConfig(**given, test_end=date(2025, 6, 30))
    last_of_june = int(hours.get_loc(pd.Timestamp("2025-06-30 23:00", tz="UTC")))
    assert split_windows(hours, ended)[1]["test"].stop == last_of_june + 1 - WINDOW + 1


def test_bars_that_do_not_reach_past_june_2025_go_by_fractions() -> None:
    rule, _ = split_windows(
        pd.date_range("2024-06-01", "2025-06-30 22:00", freq="h", tz="UTC"), SplitConfig()
    )
    assert rule == "fractions"


def test_the_default_dates_hold_from_the_bar_on_that_opens_as_june_ends() -> None:
    """The last bar opens at midnight, when the day is over that the bars must reach past."""
    hours = pd.date_range("2024-06-01", "2025-07-01", freq="h", tz="UTC")
    assert str(hours[-1]) == "2025-07-01 00:00:00+00:00"
    assert split_windows(hours, SplitConfig())[0] == "dates"
    assert split_windows(hours[:-1], SplitConfig())[0] == "fractions"


def test_a_split_of_one_window_is_enough_by_dates_and_by_default() -> None:
    days = SplitConfig(
        train_end=date(2024, 1, 1), val_end=date(2024, 1, 2), test_end=date(2024, 1, 3)
    )
    every_third_minute = minutes(2880).union(minutes(105, "2024-01-03"))
    splits = split_windows(every_third_minute, days)[1]
    assert (splits["test"].start, splits["test"].stop) == (2880, 2881)
    with pytest.raises(DataError, match="test has 104 of the 2984 bars"):
        split_windows(every_third_minute[:-1], days)

    late = pd.date_range("2025-01-01", "2025-07-02", freq="h", tz="UTC")
    last_of_train = pd.date_range("2024-12-31", periods=105, freq="min", tz="UTC")
    assert split_windows(last_of_train.union(late), SplitConfig())[0] == "dates"
    assert split_windows(last_of_train[1:].union(late), SplitConfig())[0] == "fractions"


@pytest.mark.parametrize("first", ["2024-12-30", "2025-02-01", "2026-08-01"])
def test_bars_that_start_too_late_for_the_default_dates_go_by_fractions(first: str) -> None:
    hours = pd.date_range(first, periods=6000, freq="h", tz="UTC")
    rule, splits = split_windows(hours, SplitConfig())
    assert (rule, splits["val"].start) == ("fractions", 4200)


def test_fractions_that_were_asked_for_hold_against_the_default_dates() -> None:
    hours = pd.date_range("2024-01-01", periods=20_000, freq="h", tz="UTC")
    assert split_windows(hours, SplitConfig())[0] == "dates"
    rule, splits = split_windows(hours, SplitConfig(fractions=(0.5, 0.25, 0.25)))
    assert (rule, splits["val"].start) == ("fractions", 10_000)


@given(
    n=st.integers(700, 3000),
    days=st.lists(st.integers(0, 25), min_size=3, max_size=3, unique=True).map(sorted),
    by_date=st.booleans(),
)
def test_splits_share_no_bar(n: int, days: list[int], by_date: bool) -> None:
    times = pd.date_range("2024-01-01", periods=n, freq="16min", tz="UTC")
    ends = [date.fromordinal(date(2024, 1, 1).toordinal() + d) for d in days]
    config = (
        SplitConfig(train_end=ends[0], val_end=ends[1], test_end=ends[2])
        if by_date
        else SplitConfig()
    )
    try:
        _, splits = split_windows(times, config)
    except DataError as error:
        assert "each split needs a window" in str(error)  # noqa: PT017 - hypothesis draws impossible dates too
        return
    bars = [set(range(s.start, s.stop + WINDOW - 1)) for s in splits.values()]
    assert all(bars)
    assert not (bars[0] & bars[1] | bars[1] & bars[2] | bars[0] & bars[2])
    assert max(bars[0]) < min(bars[1]) <= max(bars[1]) < min(bars[2])


def test_without_the_purge_splits_would_share_104_bars() -> None:
    """The twin: windows cut where the bars are cut reach into the next split."""
    _, splits = split_windows(minutes(1000), SplitConfig())
    unpurged = range(splits["val"].start - 1, splits["val"].start - 1 + WINDOW)
    assert len(set(unpurged) & set(range(splits["val"].start, 1000))) == 104


def test_a_split_without_a_window_names_itself_and_the_dates() -> None:
    config = SplitConfig(
        train_end=date(2024, 1, 1), val_end=date(2024, 1, 2), test_end=date(2024, 2, 1)
    )
    with pytest.raises(
        DataError, match=r"test has 0 of the 2880 bars .*splits\.test_end, 2024-01-01 / 2024-01-02"
    ):
        split_windows(minutes(2880), config)


def test_dates_out_of_order_with_the_defaults_are_refused() -> None:
    with pytest.raises(
        DataError, match="train_end < val_end < test_end, got 2026-01-01 / 2025-03-31"
    ):
        split_windows(minutes(2880), SplitConfig(train_end=date(2026, 1, 1)))


def test_a_date_that_meets_a_default_is_refused() -> None:
    with pytest.raises(DataError, match=r"< test_end, got 2025-03-31 / 2025-03-31 / 2024-01-0[12]"):
        split_windows(minutes(2880), SplitConfig(train_end=date(2025, 3, 31)))


# --- rebuilding virtual windows -------------------------------------------------------------------


def virtual(folder, rows: np.ndarray) -> DerivedEntry:
    np.save(folder / BARS, rows)
    source = WindowSource(rows)
    return DerivedEntry(
        path=FEATURES,
        size=source.size,
        sha256=source_sha256(source),
        npy=NpyFormat(dtype="float32", shape=source.shape),
        rule=WINDOWS_RULE,
    )


def test_virtual_windows_are_rebuilt_to_the_recorded_digest(tmp_path) -> None:
    rebuild(tmp_path, virtual(tmp_path, ROWS))
    np.testing.assert_array_equal(np.load(tmp_path / FEATURES), window_view(ROWS))


def test_progress_adds_up_to_the_bytes_of_the_file(tmp_path) -> None:
    rows = np.zeros((4000, 11), np.float32)  # 18 MB of windows: several buffers
    item = virtual(tmp_path, rows)
    hashed, written = [], []
    source_sha256(WindowSource(rows), hashed.append)
    rebuild(tmp_path, item, written.append)
    assert sum(hashed) == sum(written) == item.size
    assert len(hashed) > 3
    assert len(written) > 2


def test_a_rebuild_from_other_rows_is_refused_and_leaves_nothing(tmp_path) -> None:
    item = virtual(tmp_path, ROWS)
    np.save(tmp_path / BARS, ROWS + 1)
    with pytest.raises(ArtifactError, match=r"sha256 of the rebuilt features_11d\.npy must be"):
        rebuild(tmp_path, item)
    assert sorted(p.name for p in tmp_path.iterdir()) == [BARS]

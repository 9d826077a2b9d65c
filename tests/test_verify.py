"""Every check on a feature set, seen to pass on a good set and to fail on one damaged for it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.lib.format import open_memmap

from moola import WINDOW
from moola.data.feature_set_files import FolderFiles
from moola.data.verify import verify
from moola.data.verify_tables import checks_table, features_table
from moola.data.window_stats import stats_of_rows, stats_of_stream
from moola.specs import READING_FIELDS, PrecomputeSpec
from tests.feature_set import N_BARS, write_feature_set


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("good")
    return folder, write_feature_set(folder)


@pytest.fixture
def damaged(good: tuple[Path, dict[str, str]], tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(good[0], tmp_path / "set"))


def failed(folder: Path, **kwargs: Any) -> list[str]:
    return [
        check.name for check in verify(FolderFiles(folder), **kwargs).checks if not check.passed
    ]


def features(folder: Path) -> np.ndarray:
    return open_memmap(folder / "features_11d.npy", mode="r+")


def edit(folder: Path, name: str, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads((folder / name).read_text())
    change(document)
    (folder / name).write_text(json.dumps(document))


def test_a_good_set_passes_every_check(good: tuple[Path, dict[str, str]]) -> None:
    report = verify(FolderFiles(good[0]), digests=good[1], bars=[good[0] / "bars.parquet"])
    assert report.passed, [c for c in report.checks if not c.passed]
    assert len(report.checks) > 20


def test_the_published_pair_passes_without_the_other_files(
    good: tuple[Path, dict[str, str]],
) -> None:
    paths = {name: good[0] / name for name in ("features_11d.npy", "metadata.json")}
    report = verify(FolderFiles(Path(), paths), published=True, bars=[good[0] / "bars.parquet"])
    assert report.passed, [c for c in report.checks if not c.passed]
    assert "recomputed from the bars" in {c.name for c in report.checks}


def test_virtual_windows_are_checked_against_the_digest_they_would_have(
    good: tuple[Path, dict[str, str]], damaged: Path
) -> None:
    (damaged / "features_11d.npy").unlink()
    assert failed(damaged, digests=good[1]) == []
    others = {**good[1], "features_11d.npy": "0" * 64}
    assert failed(damaged, digests=others) == ["sha256 of features_11d.npy"]


@pytest.mark.parametrize("name", ["metadata.json", "splits.json", "valid_mask.npy", "bars_11d.npy"])
def test_a_missing_file_fails(damaged: Path, name: str) -> None:
    (damaged / name).unlink()
    assert f"{name} loads" in failed(damaged)


@pytest.mark.parametrize(
    "name", ["metadata.json", "splits.json", "valid_mask.npy", "bars_11d.npy", "features_11d.npy"]
)
def test_a_truncated_or_empty_file_fails(damaged: Path, name: str) -> None:
    for data in ((damaged / name).read_bytes()[:-100], b""):
        (damaged / name).write_bytes(data)
        assert f"{name} loads" in failed(damaged)


def test_windows_of_another_shape_or_dtype_fail(damaged: Path) -> None:
    rows = np.load(damaged / "features_11d.npy")
    np.save(damaged / "features_11d.npy", rows[:, :100])
    assert "features_11d.npy loads" in failed(damaged)
    np.save(damaged / "features_11d.npy", rows.astype(np.float64))
    assert "features_11d.npy loads" in failed(damaged)


def test_fewer_windows_than_metadata_states_fail(damaged: Path) -> None:
    np.save(damaged / "features_11d.npy", np.load(damaged / "features_11d.npy")[:-1])
    assert {"shape agrees with metadata", "windows = bars - 104"} <= set(failed(damaged))


def test_a_wrong_number_of_bars_in_metadata_fails(damaged: Path) -> None:
    edit(damaged, "metadata.json", lambda m: m.update(n_bars=N_BARS + 1))
    assert failed(damaged) == ["windows = bars - 104"]


def test_features_in_another_order_fail(damaged: Path) -> None:
    edit(damaged, "metadata.json", lambda m: m["feature_names"].reverse())
    assert failed(damaged) == ["feature names"]


def test_a_set_without_expansion_proxy_fails(damaged: Path) -> None:
    """The obsolete shape with 10 features."""
    edit(damaged, "metadata.json", lambda m: m["feature_names"].remove("expansion_proxy"))
    np.save(damaged / "features_11d.npy", np.load(damaged / "features_11d.npy")[:, :, :10])
    np.save(damaged / "bars_11d.npy", np.load(damaged / "bars_11d.npy")[:, :10])
    assert {"expansion_proxy among them", "number of features", "feature names"} <= set(
        failed(damaged)
    )


def test_one_value_outside_its_range_fails(damaged: Path) -> None:
    features(damaged)[700, 50, 5] = 3.5
    assert "features inside their range" in failed(damaged)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_value_that_is_not_finite_fails(damaged: Path, value: float) -> None:
    features(damaged)[700, 50, 5] = value
    assert "non-finite values" in failed(damaged)


def test_windows_that_are_zero_but_for_the_last_bar_fail(damaged: Path) -> None:
    """What a public project shipped for months: 104 of 105 bars are zero."""
    features(damaged)[:, :-1] = 0
    assert {
        "LIVENESS: positions that vary in every feature",
        "non-zero density",
        "windows slide by one bar",
    } <= set(failed(damaged))


def test_one_dead_position_of_one_feature_fails_liveness(damaged: Path) -> None:
    features(damaged)[:, 17, 9] = 0.5
    report = verify(FolderFiles(damaged))
    check = next(c for c in report.checks if c.name.startswith("LIVENESS"))
    assert (check.value, check.bound, check.passed) == ("104", "105", False)


def test_sparse_features_fail_density_though_they_live(damaged: Path) -> None:
    rows = np.load(damaged / "bars_11d.npy")
    rows[np.random.default_rng(0).random(rows.shape) < 0.6] = 0
    np.save(damaged / "bars_11d.npy", rows)
    np.save(
        damaged / "features_11d.npy",
        np.lib.stride_tricks.sliding_window_view(rows, WINDOW, 0).swapaxes(1, 2).copy(),
    )
    assert failed(damaged) == ["non-zero density"]


def test_shuffled_windows_fail_the_slide(damaged: Path) -> None:
    array = features(damaged)
    array[[300, 301]] = array[[301, 300]]
    assert failed(damaged) == ["windows slide by one bar"]


def test_windows_of_other_rows_than_bars_11d_fail(damaged: Path) -> None:
    """Windows that slide, but over rows that are not those of bars_11d.npy."""
    rows = np.load(damaged / "bars_11d.npy")[::-1]
    np.save(
        damaged / "features_11d.npy",
        np.lib.stride_tricks.sliding_window_view(rows, WINDOW, 0).swapaxes(1, 2).copy(),
    )
    assert failed(damaged) == ["windows slide by one bar"]


def test_a_mask_that_does_not_slide_or_leaves_the_warm_up_in_fails(damaged: Path) -> None:
    mask = np.load(damaged / "valid_mask.npy")
    np.save(damaged / "valid_mask.npy", np.ones_like(mask))
    assert failed(damaged) == ["valid_mask slides, warm-up masked"]
    mask[400, 3] = False
    np.save(damaged / "valid_mask.npy", mask)
    assert failed(damaged) == ["valid_mask slides, warm-up masked"]


def test_a_mask_of_another_shape_fails(damaged: Path) -> None:
    np.save(damaged / "valid_mask.npy", np.load(damaged / "valid_mask.npy")[1:])
    assert failed(damaged) == ["valid_mask shape"]


def test_too_many_masked_bars_fail(damaged: Path) -> None:
    valid = np.ones(N_BARS, bool)
    valid[:300] = False
    np.save(
        damaged / "valid_mask.npy", np.lib.stride_tricks.sliding_window_view(valid, WINDOW).copy()
    )
    assert failed(damaged) == ["valid ratio"]


def test_splits_that_share_bars_fail(damaged: Path) -> None:
    edit(damaged, "splits.json", lambda s: s["train"].update(stop=s["train"]["stop"] + 1))
    assert failed(damaged) == ["bars in two splits"]


def test_splits_out_of_time_order_fail(damaged: Path) -> None:
    def swap(splits: dict[str, Any]) -> None:
        splits["train"], splits["test"] = splits["test"], splits["train"]

    edit(damaged, "splits.json", swap)
    assert "splits in time order" in failed(damaged)


def test_splits_past_the_end_or_empty_fail(damaged: Path) -> None:
    edit(damaged, "splits.json", lambda s: s["test"].update(stop=N_BARS))
    assert failed(damaged) == ["splits inside the set, none empty"]
    edit(damaged, "splits.json", lambda s: s["test"].update(stop=s["test"]["start"]))
    assert failed(damaged) == ["splits inside the set, none empty"]


def test_splits_without_a_name_fail(damaged: Path) -> None:
    edit(damaged, "splits.json", lambda s: s.pop("val"))
    assert failed(damaged) == ["splits"]


def test_a_flipped_byte_fails_the_digest(good: tuple[Path, dict[str, str]], damaged: Path) -> None:
    data = bytearray((damaged / "bars.parquet").read_bytes())
    data[len(data) // 2] ^= 1
    (damaged / "bars.parquet").write_bytes(data)
    assert failed(damaged, digests=good[1]) == ["sha256 of bars.parquet"]


def test_a_file_of_the_manifest_that_is_gone_fails_the_digest(
    good: tuple[Path, dict[str, str]], damaged: Path
) -> None:
    (damaged / "bars.parquet").unlink()
    assert failed(damaged, digests=good[1]) == ["sha256 of bars.parquet"]


def test_other_bars_fail_the_recomputation(damaged: Path) -> None:
    bars = pd.read_parquet(damaged / "bars.parquet")
    bars.loc[700, "close"] = bars.loc[700, "low"]
    bars.to_parquet(damaged / "bars.parquet")
    assert failed(damaged, bars=[damaged / "bars.parquet"]) == ["recomputed from the bars"]


def test_statistics_of_rows_equal_those_of_the_stream(good: tuple[Path, dict[str, str]]) -> None:
    """Two ways to the same numbers: closed form over rows, and one pass over every window."""
    rows = np.load(good[0] / "bars_11d.npy")
    rows[50:900, 3] = 0.25  # a feature that is constant for a while
    windows = np.lib.stride_tricks.sliding_window_view(rows[:320], WINDOW, 0).swapaxes(1, 2)
    np.save(good[0].parent / "some.npy", windows)
    streamed = stats_of_stream([(good[0].parent / "some.npy").read_bytes()])
    closed = stats_of_rows(rows[:320])
    np.testing.assert_array_equal(streamed.live, closed.live)
    assert not closed.live.all()
    np.testing.assert_allclose(streamed.density, closed.density)
    np.testing.assert_array_equal(streamed.minimum, closed.minimum)
    np.testing.assert_array_equal(streamed.maximum, closed.maximum)


def test_statistics_do_not_depend_on_how_the_stream_is_cut(
    good: tuple[Path, dict[str, str]],
) -> None:
    rows = np.load(good[0] / "bars_11d.npy")[:300]
    windows = np.lib.stride_tricks.sliding_window_view(rows, WINDOW, 0).swapaxes(1, 2).copy()
    windows[[120, 121]] = windows[[121, 120]]  # three windows do not slide from the one before
    np.save(good[0].parent / "cut.npy", windows)
    data = (good[0].parent / "cut.npy").read_bytes()
    whole = stats_of_stream([data])
    assert whole.n_slide_faults == 3

    for size in (200, 4620, 50_000):
        chunks = [data[first : first + size] for first in range(0, len(data), size)]
        part = stats_of_stream(chunks)
        assert part.n_slide_faults == 3
        np.testing.assert_array_equal(part.live, whole.live)
        np.testing.assert_array_equal(part.density, whole.density)
        np.testing.assert_array_equal(part.minimum, whole.minimum)


def test_windows_past_the_rows_they_should_be_of_are_a_fault(
    good: tuple[Path, dict[str, str]],
) -> None:
    rows = np.load(good[0] / "bars_11d.npy")[:300]
    windows = np.lib.stride_tricks.sliding_window_view(rows, WINDOW, 0).swapaxes(1, 2)
    np.save(good[0].parent / "past.npy", windows)
    data = (good[0].parent / "past.npy").read_bytes()
    assert stats_of_stream([data], rows).n_slide_faults == 0
    assert stats_of_stream([data], rows[:-1]).n_slide_faults == 1


def test_liveness_by_rows_sees_one_change_wherever_it_is() -> None:
    """A position lives if some of its windows, and not all, hold the changed bar or a later one."""
    n_bars = 300
    for bar in range(1, n_bars):
        rows = np.zeros((n_bars, 1), np.float32)
        rows[bar:] = 1.0
        windows = np.lib.stride_tricks.sliding_window_view(rows, WINDOW, 0).swapaxes(1, 2)
        expected = windows.max(axis=0) > windows.min(axis=0)
        np.testing.assert_array_equal(stats_of_rows(rows).live, expected, err_msg=f"bar {bar}")


def test_the_tables_show_every_check_and_feature(good: tuple[Path, dict[str, str]]) -> None:
    report = verify(FolderFiles(good[0]))
    assert checks_table(report).row_count == len(report.checks)
    assert report.stats is not None
    assert features_table(report.stats).row_count == 11


def test_a_set_is_held_to_the_spec_of_its_run(good: tuple[Path, dict[str, str]]) -> None:
    def faults(spec: PrecomputeSpec) -> list[str]:
        checks = verify(FolderFiles(good[0]), spec=spec).checks
        return [check.value for check in checks if not check.passed]

    assert faults(PrecomputeSpec()) == []
    other = PrecomputeSpec.model_validate({"features": {"zigzag_k": 1.5}})
    assert faults(other) == ["'zigzag_k' 1.2"]


def test_a_set_of_an_older_version_whose_config_has_eps_passes(
    damaged: Path,
) -> None:
    edit(damaged, "metadata.json", lambda m: m["config"].update(eps=1e-6))
    report = verify(FolderFiles(damaged), spec=PrecomputeSpec(), bars=[damaged / "bars.parquet"])
    assert report.passed, [c for c in report.checks if not c.passed]


def test_the_reading_of_the_bars_is_held_to_the_spec_too(damaged: Path) -> None:
    reading = PrecomputeSpec().model_dump(mode="json", include=READING_FIELDS)
    edit(damaged, "metadata.json", lambda m: m.update(reading=reading))
    assert verify(FolderFiles(damaged), spec=PrecomputeSpec()).passed

    tokyo = PrecomputeSpec(timezone="Asia/Tokyo")
    (fault,) = [c for c in verify(FolderFiles(damaged), spec=tokyo).checks if not c.passed]
    assert "'timezone' 'Asia/Tokyo'" in fault.bound

"""Batches: what is gathered, how it is drawn, re-cut and mirrored,
and what a damaged batch is refused with."""

import time
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from moola import WINDOW  # noqa: E402
from moola.errors import DataError  # noqa: E402
from moola.features import FEATURE_NAMES, N_FEATURES, compute_features  # noqa: E402
from moola.specs.train import STATE_BARS  # noqa: E402
from moola.training.batches import (  # noqa: E402
    WindowDataset,
    mirror,
    setup_optimized_dataloader,
    validate_batch_schema,
)


def dataset(n: int = 60, n_bars: int = 3000, rare: int = 10, seed: int = 0) -> WindowDataset:
    """n windows, `rare` of them of class 1;
    row i holds the value i everywhere, so that a gather can be read."""
    rng = np.random.default_rng(seed)
    rows = np.repeat(np.arange(n_bars, dtype=np.float32)[:, None], N_FEATURES, axis=1)
    start = np.sort(rng.integers(200, n_bars - 200, n))
    end = start + rng.integers(3, 16, n)
    window_row = start - rng.integers(STATE_BARS, 80, n)
    return WindowDataset(
        rows=rows,
        valid=np.arange(n_bars) >= 20,
        window_row=window_row,
        start_row=start,
        end_row=end,
        label=(np.arange(n) < rare).astype(np.int64),
        min_row=np.zeros(n, np.int64),
        stop_row=np.full(n, n_bars),
        window_id=np.array([f"w{i}" for i in range(n)]),
    )


def test_a_batch_holds_the_rows_of_its_windows() -> None:
    data = dataset()
    batch = data.gather(np.array([3, 7]))
    for i, k in enumerate((3, 7)):
        cut = data.window_row[k]
        assert (batch["x"][i, :, 0].numpy() == np.arange(cut, cut + WINDOW)).all()
        assert batch["start"][i] == data.start_row[k] - cut
        assert batch["end"][i] == data.end_row[k] - cut
        assert batch["window_id"][i] == f"w{k}"
    validate_batch_schema(batch)


def test_rows_may_be_a_memory_map(tmp_path: Any) -> None:
    data = dataset()
    np.save(tmp_path / "bars_11d.npy", data.rows)
    mapped = replace(data, rows=np.load(tmp_path / "bars_11d.npy", mmap_mode="r"))
    assert torch.equal(mapped.gather(np.arange(9))["x"], data.gather(np.arange(9))["x"])


def test_the_valid_mask_is_that_of_the_rows() -> None:
    data = replace(dataset(), valid=np.arange(3000) % 3 > 0)
    assert (
        data.gather(np.array([5]))["valid_mask"][0].numpy()
        == data.valid[data.window_row[5] :][:WINDOW]
    ).all()


def test_evaluation_gives_every_window_once_in_order_and_as_labelled() -> None:
    data = dataset()
    loader = setup_optimized_dataloader(data, 32)
    for _ in range(2):
        batches = list(loader)
        assert np.concatenate([b["window_id"] for b in batches]).tolist() == data.window_id.tolist()
        assert (
            torch.cat([b["start"] for b in batches]).tolist()
            == (data.start_row - data.window_row).tolist()
        )


def test_training_draws_the_classes_equally_often() -> None:
    loader = setup_optimized_dataloader(dataset(), 32, train=True, windows_per_epoch=4000)
    label = torch.cat([batch["label"] for batch in loader])
    assert len(label) == 4000
    assert abs(label.float().mean().item() - 0.5) < 4 * 0.5 / np.sqrt(
        4000
    )  # the labels hold 17 % of class 1
    plain = torch.cat([batch["label"] for batch in setup_optimized_dataloader(dataset(), 32)])
    assert plain.float().mean().item() == pytest.approx(10 / 60)


def test_training_windows_are_recut_around_their_move() -> None:
    data = dataset()
    loader = setup_optimized_dataloader(
        data, 32, train=True, windows_per_epoch=2048, mirrored=False
    )
    starts: dict[str, set[int]] = {}
    for batch in loader:
        validate_batch_schema(batch)
        for name, x, start, end in zip(
            batch["window_id"], batch["x"], batch["start"], batch["end"], strict=True
        ):
            k = int(name[1:])
            assert (x[start, 0].item(), x[end, 0].item()) == (data.start_row[k], data.end_row[k])
            assert start >= STATE_BARS
            starts.setdefault(name, set()).add(int(start))
    assert np.mean([len(s) for s in starts.values()]) > 5
    assert set().union(*starts.values()) >= set(range(STATE_BARS, 80))  # every place is reached


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_recut_window_stays_in_its_split_and_holds_its_move(data: st.DataObject) -> None:
    first = data.draw(st.integers(0, 300))
    stop = data.draw(st.integers(first + WINDOW, 600))
    window_row = data.draw(st.integers(first, stop - WINDOW))
    start = data.draw(st.integers(window_row, window_row + WINDOW - 1))
    end = data.draw(st.integers(start, window_row + WINDOW - 1))
    one = replace(
        dataset(n=1, n_bars=600, rare=0),
        window_row=np.array([window_row]),
        start_row=np.array([start]),
        end_row=np.array([end]),
        min_row=np.array([first]),
        stop_row=np.array([stop]),
    )
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    cut = int(one.recut(np.array([0]), rng)[0])
    assert first <= cut <= stop - WINDOW
    assert cut <= start
    assert end < cut + WINDOW


def test_a_window_that_brought_its_own_bars_is_never_recut() -> None:
    data = dataset()
    own = replace(data, min_row=data.window_row, stop_row=data.window_row + WINDOW)
    for batch in setup_optimized_dataloader(own, 32, train=True):
        k = [int(name[1:]) for name in batch["window_id"]]
        assert batch["start"].tolist() == (own.start_row - own.window_row)[k].tolist()


def test_an_epoch_depends_on_seed_and_number_alone() -> None:
    def epoch(number: int, seed: int = 0, skip: int = 0) -> Any:
        loader = setup_optimized_dataloader(dataset(), 16, train=True, seed=seed)
        loader.set_epoch(number, skip)
        return torch.cat([batch["x"] for batch in loader])

    assert torch.equal(epoch(1), epoch(1))
    assert not torch.equal(epoch(1), epoch(2))
    assert not torch.equal(epoch(1), epoch(1, seed=1))
    assert torch.equal(epoch(1, skip=2), epoch(1)[32:])


def test_loading_does_not_advance_the_generator_of_dropout() -> None:
    before = torch.get_rng_state()
    list(setup_optimized_dataloader(dataset(), 16, train=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_processes_share_out_the_batch_of_one() -> None:
    whole = list(setup_optimized_dataloader(dataset(), 16, train=True))
    halves = [
        list(setup_optimized_dataloader(dataset(), 16, train=True, rank=r, world_size=2))
        for r in (0, 1)
    ]
    for one, *two in zip(whole, *halves, strict=True):
        joined = torch.stack([half["x"] for half in two], dim=1).flatten(0, 1)
        assert torch.equal(one["x"], joined)


def market(seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    n = 600
    close = 10_000 + np.cumsum(rng.integers(-8, 9, n))
    opened = np.concatenate([close[:1], close[:-1]]) + rng.integers(-1, 2, n)
    high, low = (
        np.maximum(opened, close) + rng.integers(0, 4, n),
        np.minimum(opened, close) - rng.integers(0, 4, n),
    )
    index = pd.date_range("2025-01-06", periods=n, freq="min", tz="UTC")
    bars = pd.DataFrame(
        {"open": opened, "high": high, "low": low, "close": close}, index=index, dtype=float
    )
    bars.iloc[300:304] = bars.close.iloc[300]  # bars without range
    return bars


@pytest.mark.parametrize("seed", [0, 1])
def test_mirrored_features_are_those_of_the_mirrored_bars(seed: int) -> None:
    bars = market(seed)
    upside_down = (
        pd.DataFrame(
            {"open": -bars.open, "high": -bars.low, "low": -bars.high, "close": -bars.close},
            index=bars.index,
        )
        + 20_000
    )
    rows = torch.from_numpy(compute_features(bars))
    expected = compute_features(upside_down)
    # The zigzag starts with "up" whichever way prices go; from the first common swing on it is
    # symmetric.
    settled = slice(200, None)
    assert np.allclose(mirror(rows)[settled], expected[settled], atol=1e-5)
    assert not np.allclose(rows[settled], expected[settled], atol=1e-5)


def test_mirroring_twice_changes_nothing() -> None:
    rows = torch.from_numpy(compute_features(market(0)))
    assert torch.allclose(mirror(mirror(rows)), rows, atol=1e-6)


def test_half_of_the_training_windows_are_mirrored() -> None:
    rows = compute_features(market(0))
    data = replace(dataset(n_bars=600), rows=rows)
    drawn = {
        mirrored: torch.cat(
            [
                b["x"]
                for b in setup_optimized_dataloader(
                    data, 32, train=True, windows_per_epoch=512, mirrored=mirrored
                )
            ]
        )
        for mirrored in (False, True)
    }
    body = FEATURE_NAMES.index("body_pct")
    flipped = (drawn[True][..., body] == -drawn[False][..., body]).all(dim=1)
    assert 0.4 < flipped.float().mean() < 0.6
    assert torch.allclose(drawn[True][flipped], mirror(drawn[False][flipped]))
    assert torch.equal(drawn[True][~flipped], drawn[False][~flipped])


def damage(batch: dict[str, Any], name: str, at: Any, value: Any) -> dict[str, Any]:
    copy = batch[name].clone()
    copy[at] = value
    return batch | {name: copy}


@pytest.mark.parametrize(
    ("name", "at", "value", "message"),
    [
        ("x", (2, 50, 3), float("nan"), r"x must be finite: .*sample 2 of the batch, window w2"),
        ("x", (1, 0, 0), float("inf"), r"x must be finite: .*window w1"),
        ("start", 3, 104, r"0 <= start <= end < 105: .*'start': 104.*window w3"),
        ("start", 0, -1, r"0 <= start <= end < 105: .*'start': -1.*window w0"),
        ("end", 1, 105, r"0 <= start <= end < 105: .*'end': 105.*window w1"),
        ("label", 2, -1, r"a label must be 0 or above: .*'label': -1.*window w2"),
    ],
)
def test_a_damaged_sample_is_named(name: str, at: Any, value: Any, message: str) -> None:
    batch = dataset().gather(np.arange(4))
    validate_batch_schema(batch)
    with pytest.raises(DataError, match=message):
        validate_batch_schema(damage(batch, name, at, value))


def test_a_batch_of_another_schema_is_refused() -> None:
    batch = dataset().gather(np.arange(4))
    with pytest.raises(DataError, match="end is missing"):
        validate_batch_schema({name: value for name, value in batch.items() if name != "end"})
    with pytest.raises(
        DataError, match=r"x must be torch.float32 \[4, 105, 11\], got torch.float64"
    ):
        validate_batch_schema(batch | {"x": batch["x"].double()})
    with pytest.raises(
        DataError, match=r"x must be torch.float32 \[4, 105, 11\], got torch.float32 \[4, 105, 10\]"
    ):
        validate_batch_schema(batch | {"x": batch["x"][..., :10]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": -1}, "a label must be 0 or above: .*window w1"),
        ({"end_row": 2999}, "a move must lie in its window, start <= end: .*window w1"),
        ({"stop_row": 100}, "a window must lie within its rows: .*window w1"),
        ({"stop_row": 3001}, "a window must lie within its rows: .*window w1"),
    ],
)
def test_a_window_that_breaks_a_rule_is_named(change: dict[str, int], message: str) -> None:
    data = dataset()
    columns = {name: getattr(data, name).copy() for name in change}
    for name, value in change.items():
        columns[name][1] = value
    with pytest.raises(DataError, match=message):
        replace(data, **columns)


def test_rows_of_another_width_are_refused() -> None:
    with pytest.raises(
        DataError, match=r"rows must be float32 \[n_bars, 11\], got float32 \[3000, 10\]"
    ):
        replace(dataset(), rows=dataset().rows[:, :10])


def subset(data: WindowDataset, chosen: Any) -> WindowDataset:
    """The windows at `chosen` (numbers or a mask), over the same rows."""
    of_all = ("rows", "valid", "state_bars", "mirrored_class")
    columns = {f.name: getattr(data, f.name) for f in fields(data) if f.name not in of_all}
    return replace(data, **{name: column[chosen] for name, column in columns.items()})


def test_a_loader_that_cannot_work_is_refused() -> None:
    data = dataset()
    with pytest.raises(DataError, match="at least one window, got 0"):
        setup_optimized_dataloader(subset(data, np.array([], np.int64)))
    with pytest.raises(DataError, match="multiple of the 2 processes, got 31"):
        setup_optimized_dataloader(data, 31, world_size=2)
    with pytest.raises(DataError, match=r"class 0 has none \(counts \[0, 10\]\)"):
        setup_optimized_dataloader(subset(data, data.label == 1), train=True)


def test_gathering_is_far_faster_than_one_window_at_a_time() -> None:
    data = dataset(n=2000, n_bars=20_000)
    loader = setup_optimized_dataloader(data, 32)

    def seconds(work: Any) -> float:
        best = float("inf")
        for _ in range(3):
            began = time.perf_counter()
            work()
            best = min(best, time.perf_counter() - began)
        return best

    at_once = seconds(lambda: list(loader))
    one_by_one = seconds(lambda: [data.gather(np.array([i])) for i in range(len(data))])
    assert at_once < one_by_one / 2

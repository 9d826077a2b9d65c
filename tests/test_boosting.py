"""Trees grown on labelled windows: what they see, what they leave in the model, and what for."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightgbm", reason="trees are grown with the extra `train`")

from moola import WINDOW  # noqa: E402
from moola.data.windows import valid_rows  # noqa: E402
from moola.errors import ArtifactError, DataError  # noqa: E402
from moola.features import compute_features  # noqa: E402
from moola.models.jade_core import RECIPE, JadeCompact, found_type  # noqa: E402
from moola.models.spans import decode_spans  # noqa: E402
from moola.specs import TreesConfig  # noqa: E402
from moola.training import boosting  # noqa: E402
from moola.training.batches import Collate, WindowDataset, mirror  # noqa: E402
from moola.training.boosting import (  # noqa: E402
    Stopped,
    candidate_bars,
    copies_of,
    grades_of,
    grow_trees,
)
from moola.training.checkpoint import load_weights, read_weights, weights_bytes  # noqa: E402
from tests.feature_set import random_bars  # noqa: E402

N_BARS = 4000
TRAIN_STOP = 3000
MOVE_BARS = 8
CONFIG = TreesConfig(members=2, rounds=10, windows=1)


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return compute_features(with_moves(random_bars(N_BARS)))


def move_starts(n: int) -> np.ndarray:
    return np.linspace(150, TRAIN_STOP - 150, n).astype(int)


def with_moves(bars: Any) -> Any:
    """Steep climbs of MOVE_BARS where the labels are, after 24 flat bars for every second one."""
    prices = bars[["open", "high", "low", "close"]].to_numpy(copy=True)
    for number, start in enumerate(move_starts(60)):
        if number % 2:
            flat = prices[start - 24 : start]
            flat[:] = prices[start - 25, 3] + (flat - flat[:, :1]) * 0.1
        climb = 12.0 * np.arange(1, MOVE_BARS + 1)
        level = prices[start - 1, 3] + climb
        prices[start : start + MOVE_BARS] = np.stack(
            [level - 12, level + 1, level - 13, level], axis=1
        )
    out = bars.copy()
    out[["open", "high", "low", "close"]] = prices
    return out


def dataset(rows: np.ndarray, n: int = 60, **changes: Any) -> WindowDataset:
    start = move_starts(60)[:: 60 // n][:n]
    window_row = start - 40 - np.arange(n) % 20
    columns = {
        "rows": rows,
        "valid": valid_rows(np.zeros(len(rows), bool)),
        "window_row": window_row,
        "start_row": start,
        "end_row": start + MOVE_BARS - 1,
        "label": (np.arange(n) * (60 // n)) % 2 if n > 30 else np.arange(n) % 2,
        "min_row": np.zeros(n, np.int64),
        "stop_row": np.full(n, TRAIN_STOP),
        "window_id": np.arange(n),
    }
    return WindowDataset(**{**columns, **changes})


def untrained(**arguments: Any) -> JadeCompact:
    torch.manual_seed(0)
    return JadeCompact(hidden_size=8, longest_move=12, **arguments).eval()


def never() -> bool:
    return False


def grown(
    windows: WindowDataset,
    config: TreesConfig = CONFIG,
    seed: int = 0,
    recut: bool = True,
) -> JadeCompact:
    model = untrained()
    collate = Collate(windows, seed, recut=recut, mirrored=True)
    grow_trees(model, windows, config, seed=seed, collate=collate, should_stop=never)
    return model


def all_of(windows: WindowDataset) -> dict[str, Any]:
    return windows.gather(np.arange(len(windows)))


# --- what the trees are worth ---------------------------------------------------------------------


def test_trees_find_the_moves_and_their_types(rows: np.ndarray) -> None:
    windows = dataset(rows)
    batch = all_of(windows)
    output = grown(windows, TreesConfig(members=1, rounds=30, windows=1))(batch["x"])
    start, end = decode_spans(output["span_probs"])
    assert ((start - batch["start"]).abs() <= 1).float().mean() > 0.9
    assert ((end - batch["end"]).abs() <= 1).float().mean() > 0.9
    assert (output["logits"].argmax(1) == batch["label"]).float().mean() > 0.9

    start, _ = decode_spans(untrained()(batch["x"])["span_probs"])
    assert ((start - batch["start"]).abs() <= 1).float().mean() < 0.5


def test_an_answer_with_trees_keeps_the_contract(rows: np.ndarray) -> None:
    windows = dataset(rows)
    x = all_of(windows)["x"]
    output = grown(windows)(x)
    assert output.keys() == untrained()(x).keys()
    assert all(value.isfinite().all() for value in output.values())
    ones = torch.ones(len(x))
    for name in ("start_logits", "end_logits", "logits"):
        torch.testing.assert_close(output[name].exp().sum(1), ones, atol=1e-4, rtol=0)
    torch.testing.assert_close(output["span_probs"].sum((1, 2)), ones, atol=1e-4, rtol=0)


def test_with_trees_the_type_is_that_of_the_decoded_span(rows: np.ndarray) -> None:
    model = grown(dataset(rows))
    x = all_of(dataset(rows))["x"]
    with torch.no_grad():
        output = model(x)
        network = model.train()(x)
    assert torch.equal(output["logits"], found_type(output["span_probs"], output["bar_logits"]))
    of_window = torch.logsumexp(network["start_logits"][..., None] + network["bar_logits"], 1)
    torch.testing.assert_close(network["logits"], of_window)


def test_training_mode_is_the_networks_own_answer(rows: np.ndarray) -> None:
    """It is what is trained; so the trees change no gradient."""
    x = all_of(dataset(rows))["x"][:4]
    model = grown(dataset(rows))
    plain = untrained()
    for each in (model, plain):
        each.train()
        each.dropout = 0.0
    assert torch.equal(model(x)["span_probs"], plain(x)["span_probs"])


def test_upside_down_the_answer_is_the_same(rows: np.ndarray) -> None:
    """Of the trees: they are told no side where no class has one."""
    windows = dataset(rows)
    model = grown(windows)
    model.boosted.blend.copy_(torch.tensor([1.0, 0.0, 1.0, 0.0]))
    x = all_of(windows)["x"]
    output = model(x)
    turned = model(mirror(x))
    agree = (decode_spans(output["span_probs"])[0] == decode_spans(turned["span_probs"])[0]).float()
    assert agree.mean() > 0.9


def test_classes_with_a_direction_are_told_apart(rows: np.ndarray) -> None:
    """Bull and bear moves that differ in nothing but their side."""
    windows = dataset(rows)
    x = all_of(windows)["x"]
    turned = np.arange(len(windows)) // 2 % 2 == 1  # whatever came before the move
    x[turned] = mirror(x[turned])
    own = np.arange(len(windows)) * WINDOW
    directed = replace(
        windows,
        rows=x.reshape(-1, 11).numpy(),
        valid=np.ones(len(windows) * WINDOW, bool),
        window_row=own,
        start_row=own + windows.start_row - windows.window_row,
        end_row=own + windows.end_row - windows.window_row,
        label=turned.astype(np.int64),
        min_row=own,
        stop_row=own + WINDOW,
        mirrored_class=(1, 0),
    )
    both = torch.cat([x, mirror(x)])
    truth = np.concatenate([turned, ~turned])
    for classes, least, most in (((1, 0), 0.9, 1.0), ((0, 1), 0.45, 0.55)):
        config = TreesConfig(members=1, rounds=40, windows=1)
        model = grown(replace(directed, mirrored_class=classes), config, recut=False)
        model.boosted.blend.copy_(torch.tensor([1.0, 0.0, 1.0, 0.0]))
        right = (model(both)["logits"].argmax(1).numpy() == truth).mean()
        assert least <= right <= most


# --- what they see --------------------------------------------------------------------------------


def test_the_same_seed_grows_the_same_trees_and_another_does_not(rows: np.ndarray) -> None:
    windows = dataset(rows)
    config = CONFIG.model_copy(update={"windows": 120})
    assert weights_bytes(grown(windows, config)) == weights_bytes(grown(windows, config))
    assert weights_bytes(grown(windows, config)) != weights_bytes(grown(windows, config, seed=1))


def test_bars_outside_the_training_split_change_nothing(rows: np.ndarray) -> None:
    config = CONFIG.model_copy(update={"windows": 240})
    other = rows.copy()
    other[TRAIN_STOP:] = 0.5
    assert weights_bytes(grown(dataset(other), config)) == weights_bytes(
        grown(dataset(rows), config)
    )
    other[TRAIN_STOP - 300 :] = 0.5
    assert weights_bytes(grown(dataset(other), config)) != weights_bytes(
        grown(dataset(rows), config)
    )


def test_few_labels_are_cut_anew_and_many_are_not(rows: np.ndarray) -> None:
    windows = dataset(rows)
    collate = Collate(windows, 0, recut=True, mirrored=True)
    for wanted, copies in ((1, 1), (60, 1), (100, 2), (300, 5)):
        batches = list(copies_of(windows, wanted, collate))
        start = torch.cat([batch["start"] for batch in batches])
        assert len(start) == copies * len(windows)
        assert torch.equal(start[: len(windows)], all_of(windows)["start"])
        if copies > 1:
            assert not torch.equal(start[len(windows) : 2 * len(windows)], start[: len(windows)])


def test_lengths_are_those_of_the_labels(rows: np.ndarray) -> None:
    windows = dataset(rows)
    assert candidate_bars(windows, 50) == (MOVE_BARS, MOVE_BARS)
    shorter = windows.end_row.copy()
    shorter[::2] -= 3
    windows = replace(windows, end_row=shorter)
    assert candidate_bars(windows, 50) == (MOVE_BARS - 3, MOVE_BARS)
    assert candidate_bars(windows, 6) == (MOVE_BARS - 3, 6)


def test_grades_rise_to_the_move_itself() -> None:
    spans = boosting.Candidates(
        torch.tensor([[10, 11, 14, 30]]), torch.tensor([[17, 18, 21, 37]]), None, None
    )
    grades = grades_of(spans, torch.tensor([10]), torch.tensor([17]))
    assert grades.tolist() == [[6, 3, 1, 0]]


@pytest.mark.parametrize("n", [5, 10])
def test_few_labels_are_enough_for_trees(rows: np.ndarray, n: int) -> None:
    windows = dataset(rows, n)
    output = grown(windows)(all_of(windows)["x"])
    assert output["logits"].isfinite().all()


def test_a_class_with_one_label_is_enough(rows: np.ndarray) -> None:
    label = np.zeros(60, np.int64)
    label[7] = 1
    windows = dataset(rows, label=label)
    assert grown(windows)(all_of(windows)["x"])["logits"].isfinite().all()


@pytest.mark.parametrize("bars", [1, WINDOW])
def test_moves_of_any_length_grow_trees(rows: np.ndarray, bars: int) -> None:
    windows = dataset(rows)
    first = windows.start_row if bars == 1 else windows.window_row
    moves = replace(windows, start_row=first, end_row=first + bars - 1)
    model = JadeCompact(hidden_size=8, longest_move=max(2, bars)).eval()
    collate = Collate(moves, 0, recut=False, mirrored=False)
    grow_trees(model, moves, CONFIG, seed=0, collate=collate, should_stop=never)
    start, end = decode_spans(model(all_of(moves)["x"])["span_probs"])
    assert ((end - start + 1) <= max(2, bars)).all()


# --- weights --------------------------------------------------------------------------------------


def test_weights_bring_their_trees_where_lightgbm_is_not(rows: np.ndarray, tmp_path: Path) -> None:
    windows = dataset(rows)
    model = grown(windows)
    (tmp_path / "model.safetensors").write_bytes(weights_bytes(model))
    x = all_of(windows)["x"]
    np.save(tmp_path / "x.npy", x.numpy())
    np.save(tmp_path / "expected.npy", model(x)["span_probs"].detach().numpy())
    code = """
import sys
sys.modules["lightgbm"] = None
import numpy as np, torch
from moola.models.jade_core import JadeCompact
from moola.training.checkpoint import load_weights, read_weights
model = JadeCompact(hidden_size=8, longest_move=12).eval()
load_weights(model, read_weights(open("model.safetensors", "rb").read()))
probs = model(torch.from_numpy(np.load("x.npy")))["span_probs"].detach().numpy()
np.testing.assert_allclose(probs, np.load("expected.npy"), rtol=1e-5, atol=1e-7)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("recipe", "shown"),
    [
        (None, "an older one"),
        (torch.tensor(RECIPE - 1), str(RECIPE - 1)),
        (torch.zeros(999), "0.0"),
    ],
)
def test_weights_of_another_recipe_are_refused(recipe: Any, shown: str) -> None:
    """Their shapes would fit, and every prediction be wrong."""
    weights = untrained().state_dict()
    del weights["recipe"]
    if recipe is not None:
        weights["recipe"] = recipe
    with pytest.raises(DataError, match=f"of recipe {RECIPE}.*are of .{{0,2}}{shown}") as caught:
        load_weights(untrained(), weights)
    assert "train again, or use the version" in str(caught.value)
    assert len(str(caught.value)) < 250


def test_weights_without_some_trees_are_refused(rows: np.ndarray) -> None:
    weights = read_weights(weights_bytes(grown(dataset(rows))))
    for name in ("boosted.span_trees.column", "boosted.bars"):
        with pytest.raises(ArtifactError, match=name):
            load_weights(untrained(), {key: weights[key] for key in weights if key != name})


def test_damaged_trees_are_refused(rows: np.ndarray) -> None:
    weights = read_weights(weights_bytes(grown(dataset(rows))))
    for name, damage in (
        ("boosted.span_trees.column", lambda tensor: tensor + 10_000),
        ("boosted.bars", lambda tensor: tensor + 500),
        ("boosted.bars", lambda tensor: tensor - 500),
    ):
        with pytest.raises(ArtifactError, match="must be"):
            load_weights(untrained(), {**weights, name: damage(weights[name])})


# --- stopping, and a missing LightGBM -------------------------------------------------------------


def test_growing_stops_when_asked(rows: np.ndarray) -> None:
    windows = dataset(rows)
    collate = Collate(windows, 0, recut=True, mirrored=True)
    for after in (0, 1, 5, 25):
        asked = iter(range(after))

        def should_stop(asked: Any = asked) -> bool:
            return next(asked, None) is None

        model = untrained()
        with pytest.raises(Stopped):
            grow_trees(model, windows, CONFIG, seed=0, collate=collate, should_stop=should_stop)
        assert not model.boosted.is_grown


@pytest.mark.parametrize("error", [ImportError("no module"), OSError("libgomp.so.1: not there")])
def test_without_lightgbm_the_way_out_is_told(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def missing(name: str, *_: object) -> Any:
        raise error if name == "lightgbm" else AssertionError(name)

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(DataError, match=r"install moola\[train\], or .* trees.members = 0"):
        boosting.lightgbm_module()

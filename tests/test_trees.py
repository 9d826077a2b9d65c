"""Trees as tensors: they give what LightGBM gives, and take on only what is a tree."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
lightgbm = pytest.importorskip("lightgbm", reason="trees are grown with the extra `train`")

from moola.models.trees import Trees, no_trees  # noqa: E402
from moola.training.planting import rounded_down, tree_fields  # noqa: E402

N_COLUMNS = 6
QUIET = {"verbose": -1, "num_threads": 1, "use_missing": False, "min_data_in_leaf": 2}


def rows(n: int = 500, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, N_COLUMNS)).astype(np.float32)


def booster(seed: int = 0, **settings: Any) -> Any:
    x = rows(seed=seed)
    y = (x[:, 0] * x[:, 1] + x[:, 2] > 0) + (x[:, 3] > 1)
    return lightgbm.train(QUIET | settings, lightgbm.Dataset(x, y), 20)


def planted(*boosters: Any, n_outputs: int = 1) -> Trees:
    trees = Trees(N_COLUMNS, n_outputs)
    trees.plant(tree_fields([each.dump_model() for each in boosters], n_outputs))
    return trees


def edges(model: Any) -> np.ndarray:
    """Rows that lie on the thresholds and beside them, far outside, and missing."""
    thresholds = model.trees_to_dataframe()["threshold"].dropna().to_numpy()
    on = np.repeat(thresholds.astype(np.float32)[:, None], N_COLUMNS, axis=1)
    nearby = [np.nextafter(on, np.float32(side * np.inf)) for side in (-1, 1)]
    strange = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 3e38], np.float32)
    return np.concatenate([on, *nearby, np.repeat(strange[:, None], N_COLUMNS, axis=1)])


@pytest.mark.parametrize("leaves", [2, 7, 31, 64])
def test_the_sum_of_leaves_is_what_lightgbm_predicts(leaves: int) -> None:
    model = booster(objective="regression", num_leaves=leaves)
    x = np.concatenate([rows(seed=1), edges(model)])
    expected = model.predict(x)

    own = planted(model)(torch.from_numpy(x))[:, 0].numpy()
    np.testing.assert_allclose(own, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_gpu_walks_the_trees_as_a_cpu_does(seed: int) -> None:
    """Its steps of all rows at once, taken here, give the same bits."""
    model = booster(seed, objective="multiclass", num_class=3, num_leaves=15)
    trees = planted(model, n_outputs=3)
    x = torch.from_numpy(np.concatenate([rows(700, seed), edges(model)]))
    x = x.nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf)

    in_steps = trees._added_step_by_step(x, torch.zeros(len(x), 3, dtype=torch.float64))
    assert torch.equal(trees(x), in_steps)


def test_each_class_has_its_own_sum() -> None:
    model = booster(objective="multiclass", num_class=3)
    x = np.concatenate([rows(seed=1), edges(model)])

    own = planted(model, n_outputs=3)(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(own, model.predict(x, raw_score=True), rtol=1e-12, atol=1e-12)


def test_forests_are_averaged() -> None:
    models = [booster(seed, objective="regression") for seed in (0, 1)]
    x = rows(seed=2)
    expected = np.mean([model.predict(x) for model in models], axis=0)

    own = planted(*models)(torch.from_numpy(x))[:, 0].numpy()
    np.testing.assert_allclose(own, expected, rtol=1e-12, atol=1e-12)


def test_trees_without_a_split_give_their_constant() -> None:
    x = np.zeros((50, N_COLUMNS), np.float32)
    y = np.full(50, 3.0)
    model = lightgbm.train(QUIET | {"objective": "regression"}, lightgbm.Dataset(x, y), 3)

    own = planted(model)(torch.from_numpy(rows(5)))
    np.testing.assert_allclose(own[:, 0].numpy(), model.predict(rows(5)))


def test_any_number_of_rows_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    trees = planted(booster(objective="regression"))
    x = torch.from_numpy(rows(seed=1))
    at_once = trees(x)
    monkeypatch.setattr("moola.models.trees.ELEMENTS_AT_ONCE", 7 * trees.n_trees)
    assert torch.equal(trees(x), at_once)


def test_no_trees_add_nothing() -> None:
    assert torch.equal(Trees(N_COLUMNS, 2)(torch.ones(3, N_COLUMNS)), torch.zeros(3, 2).double())


@pytest.mark.parametrize("threshold", [0.1, 1 / 3, -0.1, 1e-40, 0.5, -30.7])
def test_a_threshold_rounded_down_parts_the_same_numbers(threshold: float) -> None:
    rounded = rounded_down(threshold)
    assert float(rounded) <= threshold
    above = np.nextafter(rounded, np.float32(np.inf))
    assert float(above) > threshold


# --- state dicts ----------------------------------------------------------------------------------


def test_a_state_dict_brings_its_trees() -> None:
    grown = planted(booster(objective="regression"))
    other = Trees(N_COLUMNS, 1)
    other.load_state_dict(grown.state_dict())
    x = torch.from_numpy(rows(seed=1))
    assert torch.equal(other(x), grown(x))
    assert other.depth == grown.depth > 1

    other.load_state_dict(Trees(N_COLUMNS, 1).state_dict())
    assert other.n_trees == 0


def loop(fields: dict[str, Any]) -> None:
    fields["child"][0, 1] = 0


def out_of_range(fields: dict[str, Any]) -> None:
    fields["child"][0, 0] = fields["child"].shape[1] - 1


def strange_column(fields: dict[str, Any]) -> None:
    fields["column"][0, 0] = N_COLUMNS


def strange_output(fields: dict[str, Any]) -> None:
    fields["output"][0] = -1


def open_leaf(fields: dict[str, Any]) -> None:
    fields["threshold"][0, -1] = 0.0


def two_parents(fields: dict[str, Any]) -> None:
    first, *_ = np.flatnonzero(fields["child"][0] != torch.arange(fields["child"].shape[1]))
    second = fields["child"][0, first]
    fields["child"][0, second] = fields["child"][0, second + 1]
    assert fields["child"][0, second] != second + 1


def too_many_leaves(fields: dict[str, Any]) -> None:
    n_more = 128 - fields["child"].shape[1]
    n_trees = len(fields["child"])
    for name, value in (("column", 0), ("threshold", torch.inf), ("value", 0.0)):
        more = torch.full((n_trees, n_more), value, dtype=fields[name].dtype)
        fields[name] = torch.cat([fields[name], more], dim=1)
    more = torch.arange(128 - n_more, 128).expand(n_trees, -1)
    fields["child"] = torch.cat([fields["child"], more], dim=1)


def short_column(fields: dict[str, Any]) -> None:
    fields["column"] = fields["column"][1:]


def other_type(fields: dict[str, Any]) -> None:
    fields["value"] = fields["value"].float()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (loop, "children of a tree's node must come after it"),
        (out_of_range, "children of a tree's node must come after it"),
        (strange_column, r"columns must be 0\.\.5"),
        (strange_output, r"output must be 0\.\.0"),
        (open_leaf, "threshold of a leaf must be infinite"),
        (two_parents, "a node of a tree must have one parent"),
        (too_many_leaves, "at most 64 leaves"),
        (short_column, "must be of one shape"),
        (other_type, "value of trees must be torch.float64"),
    ],
)
def test_what_is_no_tree_is_refused(damage: Callable[[dict[str, Any]], None], message: str) -> None:
    fields = {
        name: tensor.clone()
        for name, tensor in planted(booster(objective="regression")).state_dict().items()
    }
    damage(fields)
    with pytest.raises(RuntimeError, match=message):
        Trees(N_COLUMNS, 1).load_state_dict(fields)


def test_a_part_of_the_fields_is_refused() -> None:
    fields = no_trees()
    del fields["child"]
    with pytest.raises(RuntimeError, match="child"):
        Trees(N_COLUMNS, 1).load_state_dict(fields)

"""The presence model of a trained model: its trees grown on train, its scales fitted on validation.

Nothing of the model itself changes. The windows are those of the training labels, cut anew at
random places, and others of the same split that hold no whole move. Which spans of them are moves,
and which are none, is known from `moola.data.move_truth`; the others are left out.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moola import WINDOW
from moola.data.labels import LabelSet
from moola.data.move_truth import IS_MOVE, IS_NONE, IS_UNKNOWN, MoveTruth
from moola.data.splits import Split
from moola.features.arrays import Floats, Ints
from moola.models.jade_core import JadeCompact
from moola.models.presence import (
    N_MOVE_COLUMNS,
    UNMOVED,
    BestSpans,
    Presence,
    any_of,
    find_best,
    find_variants,
    logit_of,
)
from moola.models.price_path import PricePath, price_path
from moola.specs import PresenceConfig
from moola.training.batches import WindowDataset, setup_optimized_dataloader
from moola.training.boosting import one_horizon_each
from moola.training.data import TrainingData, rows_of_ranges
from moola.training.inference import INFERENCE_BATCH, no_progress
from moola.training.planting import tree_fields

FEW_WINDOWS = 1400  # with a move: where there are fewer labels, each is cut at several places ...
MOST_CUTS = 16  # ... up to so many, at random
LEAST_KNOWN_BARS = 21  # of a window that is taken for one without a move
STEP_BARS = 15  # from one window of validation to the next
LEAST_EXAMPLES = 10  # moves, and spans that are none, without which nothing can be learned

TREES: dict[str, Any] = {
    "objective": "binary",
    "num_leaves": 15,
    "max_depth": 5,  # what a tree costs to ask is its depth
    "learning_rate": 0.05,
    "min_data_in_leaf": 30,
    "feature_fraction": 0.5,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "lambda_l2": 5.0,
    "num_threads": 1,
    "deterministic": True,
    "force_row_wise": True,
    "verbose": -1,
}
# As with the type, a branch looks at one horizon of the state.
MOVE_TREES = TREES | {"interaction_constraints": one_horizon_each(N_MOVE_COLUMNS)}
SPAN_ROUNDS = 80
MOVE_ROUNDS = 250
MOVE_SHARE = 0.5  # of the variants of a span that is a move, on which the span trees are grown
NONE_SHARE = 0.12  # the same of a span that is none
RIDGE = 1e-3  # keeps scales finite where a number tells moves apart without a mistake
NEWTON_STEPS = 50


Pass = tuple[BestSpans, PricePath]  # of a batch of windows


class WindowViews(NamedTuple):
    """What W windows show of their K candidates.

    start, end    [W, K] offsets, 0..104
    descriptors   [W, K, S + D]
    told          [W, K, 2] as in `moola.models.presence.Candidates`
    types         [W, K, C]
    """

    start: Ints
    end: Ints
    descriptors: Tensor
    told: Tensor
    types: Floats

    def take(self, windows: NDArray[np.bool_]) -> "WindowViews":
        """Those of some windows, a mask of [W]."""
        chosen = torch.from_numpy(windows)
        return WindowViews(
            self.start[windows],
            self.end[windows],
            self.descriptors[chosen],
            self.told[chosen],
            self.types[windows],
        )


@dataclass(frozen=True)
class FitWindows:
    """Rows of the first bars of windows to fit on: those of labels, and those without a move."""

    with_move: Ints
    without_move: Ints


class PresenceFit(NamedTuple):
    """A presence model, what it was grown on, and what validation shows to it.

    presence   None where train or validation has too few moves, or too few places where none is
               known to be
    val_row    [W] rows of the first bars of validation's windows
    val_views  what they show; None with the presence model
    """

    presence: Presence | None
    windows: FitWindows
    val_row: Ints
    val_views: WindowViews | None


@torch.no_grad()
def view_windows(
    model: JadeCompact,
    presence: Presence,
    dataset: WindowDataset,
    *,
    device: str | torch.device = "cpu",
    on_windows: Callable[[int], None] = no_progress,
) -> WindowViews:
    """The candidates of every window, in order.

    `on_windows` is called with how many more windows are done.
    """
    return _views(presence, _passes(model, dataset, device), device, on_windows)


def _passes(
    model: JadeCompact,
    dataset: WindowDataset,
    device: str | torch.device,
) -> Iterator[Pass]:
    """The model's best spans of each batch of windows, and their prices."""
    model.to(device).eval()
    for batch in setup_optimized_dataloader(dataset, INFERENCE_BATCH):
        valid = batch["valid_mask"].to(device)
        x = batch["x"].to(device) * valid.unsqueeze(-1)
        path = price_path(x, model.range_period, model.atr_period)
        yield find_best(model(x, valid)), path


@torch.no_grad()
def _views(
    presence: Presence,
    passes: Iterable[Pass],
    device: str | torch.device,
    on_windows: Callable[[int], None] = no_progress,
) -> WindowViews:
    presence.to(device)
    parts = []
    for best, path in passes:
        candidates = presence.find_candidates(best, path)
        parts.append([tensor.cpu() for tensor in candidates])
        on_windows(len(candidates.start))

    presence.cpu()
    start, end, descriptors, told, types = (torch.cat(part) for part in zip(*parts, strict=True))
    return WindowViews(
        start.numpy(),
        end.numpy(),
        descriptors,
        told,
        types.double().numpy(),
    )


def joined_views(parts: Sequence[WindowViews]) -> WindowViews:
    """The views of all windows, one part after the other."""
    return WindowViews(
        np.concatenate([part.start for part in parts]),
        np.concatenate([part.end for part in parts]),
        torch.cat([part.descriptors for part in parts]),
        torch.cat([part.told for part in parts]),
        np.concatenate([part.types for part in parts]),
    )


def unlabelled_windows(
    rows: NDArray[np.float32],
    valid: NDArray[np.bool_],
    window_row: Ints,
) -> WindowDataset:
    """Windows with a label and a move that mean nothing."""
    return WindowDataset(
        rows=rows,
        valid=valid,
        window_row=window_row,
        start_row=window_row,
        end_row=window_row,
        label=np.zeros(len(window_row), np.int64),
        min_row=window_row,
        stop_row=window_row + WINDOW,
        window_id=window_row,
    )


def fit_windows(
    truth: MoveTruth,
    labels: LabelSet,
    ranges: Sequence[Split],
    config: PresenceConfig,
    seed: int,
) -> FitWindows:
    """Windows of the ranges of the train split: no bar of another split is in them.

    Each range, which is a market's own, has the same share of those without a move as of those with
    one.
    """
    rng = np.random.default_rng((seed, len(labels)))
    n_cuts = int(np.clip(min(FEW_WINDOWS, config.windows) // len(labels), 1, MOST_CUTS))
    chosen = rng.permutation(len(labels))[: config.windows]
    first = np.repeat(labels.first_anchor[chosen], n_cuts)
    last = np.repeat(labels.last_anchor[chosen], n_cuts)
    with_move = rng.integers(first, last + 1)

    without_move = []
    for split in ranges:
        free = truth.without_move(split, LEAST_KNOWN_BARS)
        inside = (with_move >= split.start) & (with_move < split.stop)
        n_free = min(len(free), round(config.windows * inside.mean()))
        without_move.append(rng.choice(free, n_free, replace=False) if n_free else free[:0])

    return FitWindows(np.sort(with_move), np.sort(np.concatenate(without_move)))


def fit_presence(
    model: JadeCompact,
    data: TrainingData,
    truth: MoveTruth,
    config: PresenceConfig,
    *,
    seed: int,
    device: str = "cpu",
) -> PresenceFit:
    """A presence model with its scales of spans and of windows."""
    windows = fit_windows(
        truth,
        data.labels["train"],
        data.ranges("train"),
        config,
        seed,
    )
    val_row = rows_of_ranges(data.ranges("val"), STEP_BARS)
    none = PresenceFit(None, windows, val_row, None)
    window_row = np.concatenate([windows.with_move, windows.without_move])
    with torch.no_grad():
        passes = list(_passes(model, _windows_at(data, window_row), device))
    variants, is_exact = _examples(passes, window_row, truth, seed)
    if not _both(is_exact):
        return none

    presence = Presence()
    presence.span_trees.plant(_grow(TREES, variants, is_exact, SPAN_ROUNDS, seed))
    views = _views(presence, passes, device)
    judged = judge_spans(views, window_row, truth)
    is_judged = judged != IS_UNKNOWN
    is_move = judged[is_judged] == IS_MOVE
    if not _both(is_move):
        return none

    descriptors = views.descriptors.numpy()[is_judged]
    presence.move_trees.plant(_grow(MOVE_TREES, descriptors, is_move, MOVE_ROUNDS, seed))
    val_views = view_windows(model, presence, _windows_at(data, val_row), device=device)
    if not _fit_scales(presence, val_views, val_row, truth):
        return none

    return PresenceFit(presence, windows, val_row, val_views)


def _examples(
    passes: Sequence[Pass],
    window_row: Ints,
    truth: MoveTruth,
    seed: int,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Descriptors [R, D] of variants of spans, and [R] whether they are moves to the bar.

    All that are, a share of the others of the same span, and fewer of the spans that are no move.
    """
    rng = np.random.default_rng((seed, len(window_row)))
    descriptors = []
    exact = []
    done = 0
    for best, path in passes:
        variants = find_variants(best, path)
        rows = window_row[done : done + len(variants.start), None, None]
        done += len(rows)
        first = rows + variants.start.cpu().numpy()  # [B, K, V]
        last = rows + variants.end.cpu().numpy()

        judged = truth.judge(first[..., UNMOVED].ravel(), last[..., UNMOVED].ravel())
        share = np.select([judged == IS_MOVE, judged == IS_NONE], [MOVE_SHARE, NONE_SHARE], 0.0)
        is_known = (judged != IS_UNKNOWN).reshape(first.shape[:2])[..., None]
        is_exact = truth.is_exact(first.ravel(), last.ravel()).reshape(first.shape) & is_known
        drawn = rng.random(first.shape) < share.reshape(first.shape[:2])[..., None]
        kept = is_exact | drawn
        descriptors.append(variants.descriptors.cpu().numpy()[kept])
        exact.append(is_exact[kept])

    return np.concatenate(descriptors), np.concatenate(exact)


def _windows_at(data: TrainingData, window_row: Ints) -> WindowDataset:
    return unlabelled_windows(data.features.rows, data.features.valid, window_row)


def judge_spans(
    views: WindowViews,
    window_row: Ints,
    truth: MoveTruth,
) -> Ints:
    """[W, K] IS_MOVE, IS_NONE or IS_UNKNOWN."""
    first = window_row[:, None] + views.start
    last = window_row[:, None] + views.end
    judged = truth.judge(first.ravel(), last.ravel())
    return judged.reshape(first.shape)


def _both(is_true: NDArray[np.bool_]) -> bool:
    """Whether there are enough of either kind to learn from."""
    n_true = int(is_true.sum())
    return min(n_true, is_true.size - n_true) >= LEAST_EXAMPLES


def _grow(
    trees: dict[str, Any],
    descriptors: NDArray[np.float32],
    is_true: NDArray[np.bool_],
    rounds: int,
    seed: int,
) -> dict[str, Tensor]:
    """The fields of trees that tell the true ones [N] by their descriptors [N, D]."""
    import lightgbm

    settings = trees | {"seed": seed % 2**31}
    table = lightgbm.Dataset(
        descriptors,
        is_true.astype(np.int64),
        params=settings,
    )
    booster = lightgbm.train(settings, table, rounds)
    return tree_fields([booster.dump_model()], 1)


# --- scales ---------------------------------------------------------------------------------------


def _fit_scales(
    presence: Presence,
    views: WindowViews,
    window_row: Ints,
    truth: MoveTruth,
) -> bool:
    """Whether there was enough to fit the scales of spans; those of windows stay 1 and 0 if not."""
    judged = judge_spans(views, window_row, truth)
    is_judged = judged != IS_UNKNOWN
    is_move = judged[is_judged] == IS_MOVE
    if not _both(is_move):
        return False

    numbers = presence.numbers(views.descriptors, views.told).numpy()
    presence.span_scale.copy_(fit_logistic(numbers[is_judged], is_move))

    holds = truth.holds_move(window_row)
    is_judged = holds != IS_UNKNOWN
    holds_one = holds[is_judged] == IS_MOVE
    if _both(holds_one):
        any_span = logit_of(any_of(presence.of_spans(views.descriptors, views.told))).numpy()
        presence.window_scale.copy_(fit_logistic(any_span[is_judged, None], holds_one))

    return True


def fit_logistic(columns: Floats, is_true: NDArray[np.bool_]) -> Tensor:
    """[D + 1] the weights of columns [N, D], and what is added, of a logistic regression.

    Newton's method on the mean log loss with a small ridge, from zero on: the same bits each time.
    """
    scale = columns.std(axis=0) + 1e-12
    centre = columns.mean(axis=0)
    design = np.column_stack([(columns - centre) / scale, np.ones(len(columns))])
    ridge = RIDGE * np.eye(design.shape[1])
    weights = np.zeros(design.shape[1])

    for _ in range(NEWTON_STEPS):
        probability = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
        slope = design.T @ (probability - is_true) / len(design) + ridge @ weights
        spread = probability * (1 - probability)
        curvature = (design * spread[:, None]).T @ design / len(design) + ridge
        step = np.linalg.solve(curvature, slope)
        weights = weights - step
        if np.abs(step).max() < 1e-10:
            break

    of_columns = weights[:-1] / scale
    added = weights[-1] - of_columns @ centre
    return torch.from_numpy(np.append(of_columns, added))

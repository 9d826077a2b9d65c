"""Grows the trees of a model on its labelled windows, with LightGBM, and plants them in it.

Spans are ranked by LambdaMART (Burges, 2010; LightGBM: Ke et al., NeurIPS 2017): a window is a
query, its strongest spans are the documents, and the nearer one comes to the labelled move, the
higher its grade. The type is learned from the state before the labelled move. Only this needs
LightGBM: the trees that it leaves in the model are tensors.
"""

import importlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moola.errors import DataError
from moola.models.boosted import Boosted
from moola.models.candidates import N_HORIZON_STATES, N_STATES, PER_HORIZON, Candidates
from moola.models.jade_core import JadeCompact
from moola.specs import TreesConfig
from moola.training.batches import Batch, Collate, WindowDataset
from moola.training.planting import tree_fields

Float32s = NDArray[np.float32]
Ints = NDArray[np.int64]
ShouldStop = Callable[[], bool]

DESCRIBED_AT_ONCE = 128  # windows
KNOWN_SPANS = 128  # candidates of a window that the trees are grown on
SEED_STEP = 1_000_003  # between the members' seeds

# The grade of a candidate: 4 x its IoU with the labelled move, and 2 more for the move itself.
IOU_GRADES = 4
EXACT_GRADES = 2
GAIN_OF_GRADE = [0, 1, 2, 3, 4, 6, 10]


def one_horizon_each(n_columns: int = N_STATES) -> list[list[int]]:
    """The columns of a state, which come first, horizon by horizon, each with all of no horizon."""
    of_none = list(range(N_HORIZON_STATES, n_columns))
    return [
        [*range(first, first + PER_HORIZON), *of_none]
        for first in range(0, N_HORIZON_STATES, PER_HORIZON)
    ]


COMMON: dict[str, Any] = {
    "num_threads": 1,
    "deterministic": True,
    "force_row_wise": True,
    "use_missing": False,
    "verbose": -1,
}
RANKER = COMMON | {
    "objective": "lambdarank",
    "label_gain": GAIN_OF_GRADE,
    "min_data_in_leaf": 20,
    "lambdarank_truncation_level": 10,  # most of the growing went into pairs further down
}
# A branch of a tree that tells the type looks at one horizon: a state has one.
CLASSIFIER = COMMON | {
    "objective": "multiclass",
    "num_leaves": 7,
    "min_data_in_leaf": 5,
    "learning_rate": 0.08,
    "feature_fraction": 0.6,
    "interaction_constraints": one_horizon_each(),
}


class Known(NamedTuple):
    """What trees are grown on, of N windows with K candidates each.

    rows    [N x K, D] the descriptors of the candidates
    grades  [N, K] how near each is to the labelled move
    states  [N, S] what came before the labelled move
    types   [N]
    """

    rows: Float32s
    grades: Ints
    states: Float32s
    types: Ints


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """The growing was asked to stop."""


def lightgbm_module() -> ModuleType:
    """Raises DataError where LightGBM is not installed or cannot be loaded."""
    try:
        return importlib.import_module("lightgbm")
    except (ImportError, OSError) as error:
        raise DataError(
            f"training grows trees with LightGBM, which cannot be loaded ({error}): "
            "install moola[train], or leave the trees out with trees.members = 0"
        ) from error


def grow_trees(
    model: JadeCompact,
    windows: WindowDataset,
    config: TreesConfig,
    *,
    seed: int,
    collate: Collate,
    should_stop: ShouldStop,
) -> None:
    """Give `model` the trees that were grown on these windows, and nothing else of them.

    `collate` cuts a window anew, and turns it where it may. Raises Stopped once `should_stop()`.
    """
    boosted = model.boosted
    boosted.bars.copy_(torch.tensor(candidate_bars(windows, model.longest_move)))
    boosted.sided.fill_(int(has_direction(windows)))
    known = known_windows(
        model,
        copies_of(windows, config.windows, collate),
        np.random.default_rng(seed),
        should_stop,
    )
    rankers = _grow(
        RANKER
        | {
            "num_leaves": config.leaves,
            "learning_rate": config.learning_rate,
            "feature_fraction": config.columns_fraction,
        },
        known.rows,
        known.grades.ravel(),
        np.full(len(known.grades), known.grades.shape[1]),
        config,
        config.rounds,
        seed,
        should_stop,
    )
    classifiers = _grow(
        CLASSIFIER | {"num_class": model.num_classes},
        known.states,
        known.types,
        None,
        config,
        max(1, config.rounds // 2),
        seed,
        should_stop,
    )
    _plant(boosted, rankers, classifiers, model.num_classes)


def candidate_bars(windows: WindowDataset, longest_move: int) -> tuple[int, int]:
    """The fewest and the most bars of a candidate: of any labelled move."""
    lengths = windows.end_row - windows.start_row + 1
    return int(lengths.min()), min(int(lengths.max()), longest_move)


def has_direction(windows: WindowDataset) -> bool:
    """Whether some class is not the same upside down."""
    classes = windows.mirrored_class
    return classes is not None and classes != tuple(range(len(classes)))


def copies_of(
    windows: WindowDataset,
    n_wanted: int,
    collate: Collate,
) -> Iterator[Batch]:
    """Batches of every window as labelled, then cut anew, as often as it takes to have n_wanted."""
    n_copies = max(1, round(n_wanted / len(windows))) if collate.recut else 1
    every = np.arange(len(windows))
    for copy in range(n_copies):
        collate.begin_epoch(copy)
        for first in range(0, len(every), DESCRIBED_AT_ONCE):
            some = every[first : first + DESCRIBED_AT_ONCE]
            yield windows.gather(some) if copy == 0 else collate(some)


@torch.no_grad()
def known_windows(
    model: JadeCompact,
    batches: Iterator[Batch],
    rng: np.random.Generator,
    should_stop: ShouldStop,
) -> Known:
    parts = []
    for batch in batches:
        if should_stop():
            raise Stopped
        spans = model.candidates(batch["x"], batch["valid_mask"])
        grades = grades_of(spans, batch["start"], batch["end"])
        kept = some_spans(grades, rng)
        window = np.arange(len(grades))[:, None]
        parts.append(
            (
                spans.descriptors.numpy()[window, kept].reshape(kept.size, -1),
                grades[window, kept],
                model.states(batch["x"], batch["valid_mask"], batch["start"], batch["end"]).numpy(),
                batch["label"].numpy(),
            )
        )

    return Known(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def some_spans(grades: Ints, rng: np.random.Generator) -> Ints:
    """[B, K] -> [B, KNOWN_SPANS] in order: all that have a grade, and others drawn at random."""
    lot = rng.random(grades.shape) - (grades > 0)
    drawn = np.argsort(lot, axis=1)[:, :KNOWN_SPANS]
    return np.sort(drawn, axis=1)


def grades_of(
    spans: Candidates,
    start: Tensor,
    end: Tensor,
) -> Ints:
    """[B, K] how good a find each candidate is where start..end [B] is the move."""
    true_start = start[:, None]
    true_end = end[:, None]
    shared = torch.minimum(spans.end, true_end) - torch.maximum(spans.start, true_start) + 1
    spanned = torch.maximum(spans.end, true_end) - torch.minimum(spans.start, true_start) + 1

    iou = shared.clamp(min=0) / spanned
    exact = (spans.start == true_start) & (spans.end == true_end)
    grades: Ints = ((IOU_GRADES * iou).round().long() + EXACT_GRADES * exact).numpy()

    return grades


def _grow(
    settings: dict[str, Any],
    rows: Float32s,
    targets: Ints,
    groups: Ints | None,
    config: TreesConfig,
    rounds: int,
    seed: int,
    should_stop: ShouldStop,
) -> list[Any]:
    """`members` boosters of the same data, which draw other columns."""
    lightgbm = lightgbm_module()
    table = lightgbm.Dataset(rows, targets, group=groups, params=settings, free_raw_data=False)

    def check(_: object) -> None:
        if should_stop():
            raise Stopped

    return [
        lightgbm.train(
            settings | {"seed": (seed + member * SEED_STEP) % 2**31},
            table,
            rounds,
            callbacks=[check],
        )
        for member in range(config.members)
    ]


def _plant(
    boosted: Boosted,
    rankers: list[Any],
    classifiers: list[Any],
    n_classes: int,
) -> None:
    boosted.span_trees.plant(tree_fields([ranker.dump_model() for ranker in rankers], 1))
    boosted.type_trees.plant(
        tree_fields([classifier.dump_model() for classifier in classifiers], n_classes)
    )

"""The labels of a fold: those of the past, and of what follows."""

from dataclasses import replace
from itertools import pairwise

import numpy as np

from moola.data.folds import FoldRanges, fold_cuts
from moola.data.labels import LabelSet, assign_ranges, nonzero_counts, split_in_order
from moola.data.splits import SPLITS
from moola.errors import DataError
from moola.specs import CrossValidation, RareClasses

Parts = tuple[dict[str, LabelSet], dict[str, int]]  # labels by split; reason -> left out


def fold_labels(
    labels: LabelSet,
    config: CrossValidation,
    folds: FoldRanges,
    rare_classes: RareClasses = "refuse",
) -> Parts:
    """The labels of a fold by split, and how many are in none, by reason.

    `folds` are those of the series which anchored labels point into. All folds have the same
    classes: "drop" leaves out of all of them what is too rare for a split of any. Raises DataError
    naming the fold that has too few.
    """
    if rare_classes != "drop":
        return _cut(labels, config, folds, rare_classes)

    kept = _without_rare_classes(labels, config, folds)
    return _cut(kept, config, folds, "refuse")


def _without_rare_classes(labels: LabelSet, config: CrossValidation, folds: FoldRanges) -> LabelSet:
    rare: set[str] = set()
    for fold in range(config.folds):
        one = config.model_copy(update={"fold": fold})
        parts, _ = _cut(labels, one, folds, "drop")
        rare |= set(labels.classes) - set(parts["train"].classes)

    if len(labels.classes) - len(rare) < 2:
        raise DataError(
            f"two classes must be left besides those too rare for a split of a fold, "
            f"{', '.join(sorted(rare))} (labels.rare_classes: drop, {labels.source})"
        )

    counts = {name: count for name, count in labels.class_counts().items() if name in rare}
    dropped = {f"{name} is too rare for a split of a fold (drop)": n for name, n in counts.items()}
    kept = labels.without_classes(rare)
    return replace(kept, left_out=labels.left_out | dropped)


def _cut(
    labels: LabelSet,
    config: CrossValidation,
    folds: FoldRanges,
    rare_classes: RareClasses,
) -> Parts:
    ranges = folds(config) if labels.anchored else {}
    try:
        if labels.anchored:
            return assign_ranges(labels, ranges, rare_classes)
        return _cut_in_order(labels, config, rare_classes)
    except DataError as error:
        raise DataError(
            f"cross_validate.folds: fold {config.fold} of 0..{config.folds - 1} has too few "
            f"labels: {error}"
        ) from error


def _cut_in_order(
    labels: LabelSet,
    config: CrossValidation,
    rare_classes: RareClasses,
) -> Parts:
    """Labels that carry their own bars: their order is taken for that of time."""
    cuts = fold_cuts(config)
    known = labels.take(np.arange(round(len(labels) * cuts[-1])))
    spans = zip(SPLITS, pairwise(cuts), strict=True)
    shares = {name: (stop - first) / cuts[-1] for name, (first, stop) in spans}

    parts, left_out = split_in_order(known, shares, rare_classes)
    left_out["after the fold's test"] = len(labels) - len(known)
    return parts, nonzero_counts(left_out)

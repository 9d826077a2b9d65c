"""The feature sets and label files that a train spec names, as inputs of the run."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from moola.data.label_files import LabelFile, open_label_file
from moola.data.market_labels import files_by_set
from moola.errors import DataError
from moola.runs.reading import describe_input_run, find_run
from moola.runs.records import InputRun, plain_component
from moola.runs.submit import input_name
from moola.runs.work_limit import mark_fetched
from moola.specs import COMPUTED_LABELS, TrainSpec
from moola.store import Store, fetch_uri
from moola.text import quoted

FEATURES = "features"  # the kinds of input; one of several is called KIND-NAME
LABELS = "labels"

# What a market may be called: in a label file, in tables, and in the name of an input.
MARKET_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,58}[A-Za-z0-9])?")


@dataclass(frozen=True)
class LabelInputs:
    """Files of labels by the input's name, and what each market reads of them."""

    inputs: Mapping[str, Path]
    by_market: Mapping[str, LabelFile]


def named_sets(spec: TrainSpec) -> list[tuple[str, str]]:
    """(name or "", run as the spec gives it) of each feature set that it names; [] for the newest.

    Raises DataError for a name that cannot be one.
    """
    given = spec.features
    if given is None:
        return []

    return [_named(text) for text in ([given] if isinstance(given, str) else given)]


def _named(text: str) -> tuple[str, str]:
    name, equals, run = text.rpartition("=")
    if not equals:
        return "", run
    if not MARKET_NAME.fullmatch(name):
        raise DataError(
            f"features: the name of a market is 1 to 60 letters, digits and . _ - among "
            f"them, got {quoted(name)} (NAME=RUN)"
        )
    try:
        plain_component(name)
    except ValueError as error:
        raise DataError(f"features: the name of a market {error}, got {quoted(name)}") from error
    return name, run


def require_fields_of_several(spec: TrainSpec, n_sets: int) -> None:
    """Raises DataError for fields that do not go with so many feature sets."""
    if n_sets < 2 and spec.splits.given:
        raise DataError(
            "splits of a train spec are for several feature sets; one has its own, cut by "
            "precompute: moola precompute --train-end DAY --val-end DAY (in the rerun of a run of "
            "several: --set 'splits={}')"
        )
    if spec.splits.given and spec.cross_validate is not None:
        raise DataError(
            "cross_validate makes the splits of its folds itself: give no splits beside it (in the "
            "rerun of a run that has some: --set 'splits={}')"
        )
    source = spec.labels.source
    if isinstance(source, str):
        return
    computed = [each for each in source if each in COMPUTED_LABELS]
    if computed:
        raise DataError(
            f"labels.source: a list is of files, got {computed[0]!r} in it; given alone, it is for "
            "all feature sets"
        )
    if len(source) != max(n_sets, 1):
        raise DataError(
            f"labels.source must be one file, or one for each feature set in their order: got "
            f"{len(source)} files for {max(n_sets, 1)} sets"
        )


def describe_sets(spec: TrainSpec, store: Store) -> dict[str, InputRun]:
    """Several feature sets by their names: the given one, or the run's id. In the spec's order.

    Raises DataError for one that is not there or is named twice.
    """
    sets: dict[str, InputRun] = {}
    for given, text in named_sets(spec):
        item = describe_input_run(store, find_run(store, text, "precompute"))
        name = given or item.run
        _require_new(sets, name, item)
        sets[name] = item
    return sets


def _require_new(sets: Mapping[str, InputRun], name: str, item: InputRun) -> None:
    for other, known in sets.items():
        if other.casefold() == name.casefold():
            raise DataError(f"features: two sets are called {name}: {known.run} and {item.run}")
        if known.run == item.run:
            raise DataError(f"features: the same set twice: {item.run} is {other} and {name}")


def label_inputs(
    spec: TrainSpec,
    sets: Mapping[str, InputRun],
    work: Path,
) -> LabelInputs:
    """The label files of several feature sets: none, one whose rows name their set, or one each.

    Raises DataError.
    """
    source = spec.labels.source
    if isinstance(source, str):
        if source in COMPUTED_LABELS:
            return LabelInputs({}, {})
        path = fetch_uri(source, work / "fetched", mark_fetched)
        runs = {name: item.run for name, item in sets.items()}
        return LabelInputs({LABELS: path}, files_by_set(open_label_file(path), runs))

    paths = _fetch_each(source, sets, work)
    return LabelInputs(
        {input_name(LABELS, name): path for name, path in paths.items()},
        {name: open_label_file(path) for name, path in paths.items()},
    )


def _fetch_each(
    sources: Sequence[str], sets: Mapping[str, InputRun], work: Path
) -> dict[str, Path]:
    return {
        name: fetch_uri(source, work / "fetched", mark_fetched)
        for name, source in zip(sets, sources, strict=True)
    }

"""A run that is there, prepared once more with changes to its spec."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moola.errors import ArtifactError, DataError
from moola.jobs.feature_sets import FEATURES, LABELS
from moola.jobs.inputs import is_bars
from moola.jobs.prepare import (
    NOT_IN_THE_ID,
    PreparedRun,
    prepare_precompute,
    prepare_train,
    shipped_spec,
)
from moola.runs.records import InputFile, SpecDocument
from moola.runs.submit import (
    input_file,
    input_name,
    input_run,
    pull_input,
    read_spec_document,
    several_inputs,
)
from moola.specs import (
    COMPUTED_LABELS,
    FILE_SOURCE,
    PrecomputeSpec,
    TrainSpec,
    parse_spec,
    read_spec,
    with_overrides,
)
from moola.store import Store
from moola.text import quoted


def prepare_rerun(
    store: Store,
    run_id: str,
    work: Path,
    overrides: Mapping[str, object],
    *,
    force: bool = False,
) -> PreparedRun:
    """The spec of a run with overrides on top, and the same inputs, pulled into `work`.

    Nothing that the store says names a file of this computer or what is rented: files come from the
    run's inputs, the machine from the shipped spec and the overrides. Raises DataError for a spec
    that is not valid with the overrides, ArtifactError for a run that is damaged.
    """
    document = read_spec_document(store, run_id)
    place = f"spec.json of {run_id} with the changes"
    if document.job == "train":
        fields = _shipped(TrainSpec, "train") | _stored(document, "features")
        fields = _with_train_inputs(store, document, fields, work, overrides)
        train = parse_spec(TrainSpec, with_overrides(fields, overrides), place=place)
        return prepare_train(train, store, work, force=force)

    if document.job != "precompute":
        raise ArtifactError(f"{run_id} is a run of no job of moola's: {quoted(document.job)}")
    fields = _shipped(PrecomputeSpec, "precompute") | _stored(document, "bars")
    files = [] if "bars" in overrides else _pull_bars(store, document, work)
    if files:
        fields["bars"] = str(files[0])
    precompute = parse_spec(PrecomputeSpec, with_overrides(fields, overrides), place=place)
    return prepare_precompute(precompute, work, force=force, files=files or None)


def _shipped(kind: type[PrecomputeSpec] | type[TrainSpec], job: str) -> dict[str, Any]:
    """The fields of the shipped spec that no run's document has."""
    shipped = read_spec(kind, shipped_spec(job))
    return shipped.model_dump(mode="json", include=set(NOT_IN_THE_ID))


def _stored(document: SpecDocument, *left_out: str) -> dict[str, Any]:
    """The fields of a run's spec, without those that name what is rented or a file."""
    names = document.spec.keys() - NOT_IN_THE_ID - set(left_out)
    return {name: document.spec[name] for name in names}


def _pull_bars(store: Store, document: SpecDocument, work: Path) -> list[Path]:
    """The files of bars that a run read, in their order; none for a synthetic market."""
    names = sorted(name for name in document.inputs if is_bars(name))
    return [_pull(store, document, name, work) for name in names]


def _pull(store: Store, document: SpecDocument, name: str, work: Path) -> Path:
    item = input_file(document, name)
    assert isinstance(item, InputFile)
    return pull_input(store, item, work)


def _with_train_inputs(
    store: Store,
    document: SpecDocument,
    fields: dict[str, Any],
    work: Path,
    overrides: Mapping[str, object],
) -> dict[str, Any]:
    several = several_inputs(document, FEATURES)
    if several:
        fields["features"] = [f"{name}={_run_of(document, name)}" for name in several]
    elif FEATURES in document.inputs:
        fields["features"] = input_run(document, FEATURES).run

    each = several_inputs(document, LABELS)
    _require_pairs(several, each, overrides)
    labels = fields.get("labels")
    source = labels.get("source") if isinstance(labels, dict) else None
    if "labels.source" in overrides or source in COMPUTED_LABELS:
        return fields
    if source == FILE_SOURCE and each:
        paths = [str(_pull(store, document, input_name(LABELS, name), work)) for name in each]
        return with_overrides(fields, {"labels.source": paths})
    if source != FILE_SOURCE or LABELS not in document.inputs:
        raise ArtifactError(
            f"labels.source of a stored spec must be {FILE_SOURCE} with an input, or one of "
            f"{', '.join(COMPUTED_LABELS)}, got {quoted(source)}"
        )
    path = _pull(store, document, LABELS, work)
    return with_overrides(fields, {"labels.source": str(path)})


def _require_pairs(
    sets: Mapping[str, object],
    files: Mapping[str, object],
    overrides: Mapping[str, object],
) -> None:
    """Raises DataError where one of two lists is new: a set would get the labels of another."""
    source = overrides.get("labels.source")
    gives_files = source is not None and not isinstance(source, str)
    gives_sets = FEATURES in overrides
    keeps_files = bool(files) and "labels.source" not in overrides
    if (sets and gives_files and not gives_sets) or (gives_sets and keeps_files):
        raise DataError(
            "features and labels.source go together, a file for each feature set in their order: "
            f"give both, or neither; the run has the sets {', '.join(sets)}"
        )


def _run_of(document: SpecDocument, name: str) -> str:
    return input_run(document, input_name(FEATURES, name)).run

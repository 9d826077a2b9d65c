"""What a job is made of before it is submitted: its run id, its spec document and its input files.

Everything that can be refused is refused here: nothing has been sent yet.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import pandas as pd

from moola.data.bars import read_bars_of
from moola.data.label_files import open_label_file
from moola.data.label_sources import check_labels, fetch_series
from moola.data.loading import fetch_bars
from moola.data.market_labels import check_market_labels
from moola.data.markets import lay_out
from moola.data.splits import split_windows
from moola.errors import DataError
from moola.jobs.feature_sets import (
    FEATURES,
    describe_sets,
    label_inputs,
    named_sets,
    require_fields_of_several,
)
from moola.jobs.inputs import name_files
from moola.runs.reading import describe_input_run, find_run
from moola.runs.records import InputFile, InputRun, SpecDocument
from moola.runs.submit import (
    describe_input,
    describe_run,
    input_file,
    input_name,
    put_input,
    read_spec_document,
    submit,
)
from moola.runs.survey import newest_run
from moola.runs.work_limit import mark_fetched
from moola.runs.workdir import require_writable
from moola.specs import (
    COMPUTED_LABELS,
    FILE_SOURCE,
    MachineConfig,
    PrecomputeSpec,
    TrainSpec,
    read_spec,
)
from moola.store import Store, fetch_uri

# Fields of a spec that are no part of a run's id, for they change no result or are resolved to
# what does.
NOT_IN_THE_ID = frozenset({"job", "machine"})


@dataclass(frozen=True)
class PreparedRun:
    """A run that can be submitted: `document` is its spec.json, `inputs` the local files it reads.

    `machine` says what to rent for it; it is no part of the document. `warnings` are about what it
    reads.
    """

    job: str
    run_id: str
    document: SpecDocument
    inputs: Mapping[str, Path]
    machine: MachineConfig
    warnings: tuple[str, ...] = ()

    def input_file(self, name: str) -> InputFile:
        """How a local file that the run reads is stored."""
        item = input_file(self.document, name)
        assert item is not None
        return item


def shipped_spec(job: str) -> Path:
    """The default spec of a job, which travels in the package."""
    return Path(str(resources.files("moola.jobs") / f"{job}.yaml"))


def prepare_precompute(
    spec: PrecomputeSpec,
    work: Path,
    *,
    force: bool = False,
    files: Sequence[Path] | None = None,
) -> PreparedRun:
    """A precompute run. Raises DataError for bars that break a rule: all are read.

    `files` are the spec's bars where they are here already.
    """
    inputs: dict[str, Path] = {}
    left_out = NOT_IN_THE_ID
    warnings: tuple[str, ...] = ()

    if spec.bars is not None:
        files = files or fetch_bars(spec.bars, work / "fetched")
        bars = read_bars_of(spec, files, spec.bars)
        split_windows(pd.DatetimeIndex(bars.frame.index), spec.splits)

        warnings = bars.series.warnings
        inputs = name_files(files)
        left_out |= {"bars", "synthetic"}  # the inputs' digests decide

    resolved = spec.model_dump(mode="json", exclude=set(left_out))
    described = {name: describe_input(path) for name, path in inputs.items()}
    run_id, document = describe_run("precompute", resolved, described, force=force)
    return PreparedRun(spec.job, run_id, document, inputs, spec.machine, warnings)


def prepare_train(
    spec: TrainSpec,
    store: Store,
    work: Path,
    *,
    force: bool = False,
) -> PreparedRun:
    """A train run. Raises DataError for what is not there, and for labels that break a rule.

    The feature set is the one that the spec names, or the newest, or there are several; labels that
    carry their own bars need none. Its bars are pulled into `work`, where the labels point into
    them: they are a tenth of what the job itself pulls, and stay for it.
    """
    sets = named_sets(spec)
    require_fields_of_several(spec, len(sets))
    encoder = _encoder_run(store, spec.encoder) if spec.encoder else None
    if len(sets) > 1:
        return _prepare_markets(spec, store, work, encoder, force=force)

    source = _one_source(spec)
    labels = spec.labels
    inputs: dict[str, Path] = {}
    file = None

    if source not in COMPUTED_LABELS:
        inputs["labels"] = fetch_uri(source, work / "fetched", mark_fetched)
        file = open_label_file(inputs["labels"])
        labels = labels.model_copy(update={"source": FILE_SOURCE})

    described: dict[str, InputFile | InputRun] = {
        name: describe_input(path) for name, path in inputs.items()
    }
    if encoder is not None:
        described["encoder"] = describe_input_run(store, encoder)

    series = None
    if sets or file is None or not file.has_own_bars:
        features = describe_input_run(store, _feature_run(sets, store))
        described[FEATURES] = features
        require_writable(work)
        series = fetch_series(store, features, work)

    check_labels(spec, file, series)
    resolved = spec.model_copy(update={"labels": labels, "encoder": encoder})
    resolved_json = resolved.model_dump(mode="json", exclude={*NOT_IN_THE_ID, "features", "splits"})
    run_id, document = describe_run("train", resolved_json, described, force=force)
    return PreparedRun(spec.job, run_id, document, inputs, spec.machine)


def _encoder_run(store: Store, name: str) -> str:
    """Raises DataError for a fold: it was trained on other cuts in time than this run."""
    run_id = find_run(store, name, "train")
    if read_spec_document(store, run_id).spec.get("cross_validate") is not None:
        raise DataError(
            f"encoder must be a run that is no fold of a cross-validation, got {run_id}: it may "
            "have seen what this one is tested on"
        )
    return run_id


def _prepare_markets(
    spec: TrainSpec,
    store: Store,
    work: Path,
    encoder: str | None,
    *,
    force: bool,
) -> PreparedRun:
    """A train run on several feature sets. Their order changes nothing: that of their names is
    taken."""
    sets = describe_sets(spec, store)
    files = label_inputs(spec, sets, work)
    require_writable(work)
    series = {name: fetch_series(store, sets[name], work) for name in sorted(sets)}
    markets = lay_out(series, spec.splits, spec.cross_validate)
    warnings = check_market_labels(spec, files.by_market, series, markets)

    described: dict[str, InputFile | InputRun] = {
        input_name(FEATURES, name): item for name, item in sets.items()
    }
    described |= {name: describe_input(path) for name, path in files.inputs.items()}
    if encoder is not None:
        described["encoder"] = describe_input_run(store, encoder)

    source = {"source": FILE_SOURCE} if files.inputs else {}
    labels = spec.labels.model_copy(update=source)
    resolved = spec.model_copy(update={"labels": labels, "encoder": encoder})
    left_out = {*NOT_IN_THE_ID, "features"}
    if not spec.splits.given:
        left_out.add("splits")
    resolved_json = resolved.model_dump(mode="json", exclude=left_out)
    run_id, document = describe_run("train", resolved_json, described, force=force)
    return PreparedRun(spec.job, run_id, document, files.inputs, spec.machine, warnings)


def _one_source(spec: TrainSpec) -> str:
    """Of the labels of one feature set: a list of one file is that file."""
    source = spec.labels.source
    return source if isinstance(source, str) else source[0]


def prepare_resume(spec: TrainSpec, store: Store, run: str) -> PreparedRun:
    """The train run that `run` names, to be resumed from its newest checkpoint.

    Only the machine is taken from `spec`. Raises DataError if there is no such run.
    """
    run_id = find_run(store, run, "train")
    document = read_spec_document(store, run_id)
    return PreparedRun("train", run_id, document, {}, spec.machine)


def _feature_run(sets: Sequence[tuple[str, str]], store: Store) -> str:
    """The one precompute run that is named, or the newest. Raises DataError if there is none."""
    if sets:
        return find_run(store, sets[0][1], "precompute")

    newest = newest_run(store, "precompute")
    if newest is None:
        raise DataError(
            f"features: no precompute run is committed in {store.url}; run precompute first"
        )
    return newest


def submit_shipped(job: str, store: Store, work: Path) -> str:
    """Submit the default spec of a job, or the one that MOOLA_SPEC names; -> run id."""
    path = Path(os.environ.get("MOOLA_SPEC") or shipped_spec(job))
    if job == "train":
        prepared = prepare_train(read_spec(TrainSpec, path), store, work)
    else:
        prepared = prepare_precompute(read_spec(PrecomputeSpec, path), work)

    for name, input_path in prepared.inputs.items():
        put_input(store, input_path, prepared.input_file(name))
    submit(store, prepared.run_id, prepared.document)
    return prepared.run_id

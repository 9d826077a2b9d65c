"""moola in a notebook: runs as objects, and what they made as data frames and arrays.

`import moola` offers all of it: `moola.connect`, `precompute`, `train`, `predict`. Each does what
the command of its name does, with the same settings (MOOLA_*, moola.toml).
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import typer
from pydantic import JsonValue

from moola.data.feature_set import BARS
from moola.data.windows import window_view
from moola.errors import DataError, MoolaError, TryAgainError
from moola.evaluation.result_documents import MetricsDocument
from moola.evaluation.run_tables import PREDICTIONS, read_history, read_table
from moola.features.arrays import Float32s
from moola.jobs.prepare import PreparedRun, prepare_precompute, prepare_train, shipped_spec
from moola.launch import Backend
from moola.launch.settings import Settings
from moola.launch.submit import submit_and_follow
from moola.runs.about import About, new_about, read_about
from moola.runs.binding import job_of
from moola.runs.reading import (
    RunState,
    find_run,
    pull_files,
    read_file_record,
    require_manifest,
    run_state,
)
from moola.runs.submit import input_run, read_spec_document, several_inputs
from moola.runs.survey import RunQuery, summarize_runs, survey_runs
from moola.runs.workdir import work_folder
from moola.specs import PrecomputeSpec, TrainSpec, parse_spec, read_spec
from moola.store import Store, open_store

if TYPE_CHECKING:  # torch is not needed for the rest
    from moola.evaluation.predict import LoadedModel

REPORT = "report.html"


class Run:
    """A run in a store. What it made is fetched when it is asked for, its digests checked.

    Every property raises ArtifactError where the run is not committed or a document is damaged.
    """

    def __init__(self, store: Store, run_id: str, work: Path) -> None:
        self.store = store
        self.id = run_id
        self.work = work

    def __repr__(self) -> str:
        return f"<run {self.id} in {self.store.url}>"

    @property
    def job(self) -> str:
        """`precompute` or `train`."""
        return job_of(self.id)

    @property
    def about(self) -> About:
        """Its name and tags."""
        return read_about(self.store, self.id)

    @property
    def spec(self) -> dict[str, JsonValue]:
        """The resolved spec: all that decides the result, but for the inputs."""
        return read_spec_document(self.store, self.id).spec

    @property
    def status(self) -> RunState:
        """Where it is now: `.state`, `.reason`, `.heartbeat`."""
        return run_state(self.store, self.id)

    @property
    def metrics(self) -> pd.DataFrame:
        """Of a train run on the test split: one row a metric.

        Columns: title, unit, value, low, high (interval), and a column for each trivial baseline.
        """
        manifest = require_manifest(self.store, self.id)
        test = read_file_record(self.store, manifest, "metrics.json", MetricsDocument).test
        rows = {
            name: {**metric.model_dump(exclude={"baselines"}), **metric.baselines}
            for name, metric in test.metrics.items()
        }
        return pd.DataFrame.from_dict(rows, orient="index")

    @property
    def history(self) -> pd.DataFrame:
        """Of a train run: one row an epoch, with losses, sigmas and validation scores."""
        return read_history(self.store, require_manifest(self.store, self.id))

    @property
    def predictions(self) -> pd.DataFrame:
        """Of a train run: one row a labelled window, what is true beside what is predicted."""
        return read_table(self.store, require_manifest(self.store, self.id), PREDICTIONS)

    @property
    def features(self) -> Float32s:
        """[N, T, F] every window, mapped from a file; of a train run those that it reads.

        The file holds the rows of the bars; a window is a view of 105 of them, not to be written.
        Raises DataError for a train run that reads several feature sets.
        """
        if self.job == "train":
            document = read_spec_document(self.store, self.id)
            several = several_inputs(document, "features")
            if several:
                listed = ", ".join(several)
                raise DataError(
                    f"{self.id} reads several feature sets, {listed}: ask each of its inputs' runs"
                )
            item = input_run(document, "features")
            return Run(self.store, item.run, self.work).features
        return window_view(np.load(self._pull(BARS), mmap_mode="r", allow_pickle=False))

    @property
    def report(self) -> Path:
        """The page of a train run, fetched."""
        return self._pull(REPORT)

    def pull(self, folder: Path | str, only: Iterable[str] | None = None) -> Path:
        """Fetch the stored files, or some, into a folder; -> the folder."""
        manifest = require_manifest(self.store, self.id)
        names = None if only is None else frozenset(only)
        pull_files(self.store, manifest, Path(folder), only=names)
        return Path(folder)

    def wait(self, timeout_s: float | None = None, poll_s: float = 2.0) -> "Run":
        """Wait until it has ended; -> itself. Raises TryAgainError if that takes too long.

        A run of this computer whose process was killed ends only when it is started again.
        """
        give_up_at = None if timeout_s is None else time.monotonic() + timeout_s
        while not self.status.state.is_final:
            if give_up_at is not None and time.monotonic() >= give_up_at:
                raise TryAgainError(f"{self.id} has not ended after {timeout_s:g} s")
            time.sleep(poll_s)
        return self

    def _pull(self, name: str) -> Path:
        folder = self.work / "pulled" / self.id
        self.pull(folder, only=[name])
        path = folder / name
        if not path.exists():
            raise DataError(f"a {self.job} run has no {name}: {self.id}")
        return path


FeatureSource = Run | str | Sequence[Run | str] | Mapping[str, Run | str] | None
LabelSource = Path | str | Sequence[Path | str] | None


def _labels_field(labels: Path | str | Sequence[Path | str]) -> str | list[str]:
    if isinstance(labels, Path | str):
        return str(labels)
    return [str(each) for each in labels]


def _features_field(
    features: Run | str | Sequence[Run | str] | Mapping[str, Run | str],
) -> str | list[str]:
    if isinstance(features, Run | str):
        return _run_name(features)
    if isinstance(features, Mapping):
        return [f"{name}={_run_name(run)}" for name, run in features.items()]
    return [_run_name(run) for run in features]


def _run_name(run: Run | str) -> str:
    return run.id if isinstance(run, Run) else run


class Connection:
    """A store, and the settings with which jobs are run."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store = open_store(settings.store)

    def __repr__(self) -> str:
        return f"<moola at {self.store.url}>"

    def run(self, name: str) -> Run:
        """The run of this id, or of the one that starts so. Raises DataError."""
        return Run(self.store, find_run(self.store, name), self.settings.work)

    def runs(
        self,
        last: int = 20,
        *,
        state: Iterable[str] = (),
        tag: Iterable[str] = (),
        name: str = "",
    ) -> pd.DataFrame:
        """The newest runs, by id: name, tags, state, reason and when it changed (UTC)."""
        query = RunQuery(frozenset(state), frozenset(tag), name)
        found = summarize_runs(self.store, survey_runs(self.store), last, query)
        rows = [
            (
                run.about.name,
                run.about.tags,
                run.shown_state,
                run.fault or run.reason,
                pd.Timestamp(run.changed, unit="s", tz="UTC"),
            )
            for run in found
        ]
        columns = ["name", "tags", "state", "reason", "changed"]
        return pd.DataFrame(rows, index=[run.run_id for run in found], columns=columns)

    def precompute(
        self,
        bars: Path | str | pd.DataFrame | None = None,
        *,
        name: str | None = None,
        tags: Iterable[str] = (),
        force: bool = False,
        yes: bool = False,
        **fields: object,
    ) -> Run:
        """As `precompute` of this module, in this store."""
        overrides = dict(fields)
        if isinstance(bars, pd.DataFrame):
            overrides["bars"] = str(_write_bars(bars, self.settings.work))
        elif bars is not None:
            overrides["bars"] = str(bars)
        spec = read_spec(PrecomputeSpec, shipped_spec("precompute"), overrides)
        run = prepare_precompute(spec, self.settings.work, force=force)
        return self._submit(run, name, tags, yes=yes)

    def train(
        self,
        labels: LabelSource = None,
        features: FeatureSource = None,
        *,
        name: str | None = None,
        tags: Iterable[str] = (),
        force: bool = False,
        yes: bool = False,
        **fields: object,
    ) -> Run:
        """As `train` of this module, in this store."""
        overrides = dict(fields)
        if labels is not None:
            overrides["labels.source"] = _labels_field(labels)
        if features is not None:
            overrides["features"] = _features_field(features)
        spec = read_spec(TrainSpec, shipped_spec("train"), overrides)
        run = prepare_train(spec, self.store, self.settings.work, force=force)
        return self._submit(run, name, tags, yes=yes)

    def _submit(
        self, prepared: PreparedRun, name: str | None, tags: Iterable[str], *, yes: bool
    ) -> Run:
        about = new_about(name, tags)
        run = Run(self.store, prepared.run_id, self.settings.work)
        try:
            submit_and_follow(self.settings, prepared, yes=yes, about=about)
        except typer.Exit as ending:
            raise _failure(run, ending.exit_code) from None
        return run


def _failure(run: Run, exit_code: int) -> MoolaError:
    """The error of a job that ended so; with the job's own exit code."""
    state = run.status
    error = MoolaError(f"{run.id} ended as {state.state}: {state.reason or 'no reason given'}")
    error.exit_code = exit_code
    return error


def connect(
    store: str | None = None,
    *,
    on: Backend | None = None,
    work: Path | str | None = None,
) -> Connection:
    """A store, `s3://bucket/prefix` or `file:///dir`; without one that of the settings.

    `on` says where jobs run. Raises DataError, AuthError or TryAgainError for a store that cannot
    be used, pydantic's ValidationError for settings that are not valid.
    """
    flags = {"store": store, "on": on, "work": work}
    settings = Settings.model_validate(
        {
            **Settings().model_dump(),
            **{name: value for name, value in flags.items() if value is not None},
        }
    )
    work_path = work_folder(str(settings.work))
    return Connection(settings.model_copy(update={"work": work_path}))


def precompute(
    bars: Path | str | pd.DataFrame | None = None,
    *,
    store: str | None = None,
    on: Backend | None = None,
    name: str | None = None,
    tags: Iterable[str] = (),
    force: bool = False,
    yes: bool = False,
    **fields: object,
) -> Run:
    """Compute a feature set from 1-minute bars and wait for it; -> its run.

    `bars` is a file, a folder or a pattern, or a frame with a UTC index and the columns open, high,
    low, close, volume; without them a synthetic market. `fields` are fields of the spec:
    `windows="virtual"`, `**{"features.zigzag_k": 1.5}`. `yes` rents without asking. Raises
    DataError for what breaks a rule, and MoolaError with the reason for a run that fails.
    """
    connection = connect(store, on=on)
    return connection.precompute(bars, name=name, tags=tags, force=force, yes=yes, **fields)


def train(
    labels: LabelSource = None,
    features: FeatureSource = None,
    *,
    store: str | None = None,
    on: Backend | None = None,
    name: str | None = None,
    tags: Iterable[str] = (),
    force: bool = False,
    yes: bool = False,
    **fields: object,
) -> Run:
    """Train a model and wait for it; -> its run.

    `labels` is a file, or `hindsight` or `planted`; `features` a precompute run, by default the
    newest. Several markets are trained on together where `features` are several runs, or name ->
    run; `labels` are then one file for each, in their order, or one whose column `features` names
    the market. The rest is as with `precompute`.
    """
    connection = connect(store, on=on)
    return connection.train(labels, features, name=name, tags=tags, force=force, yes=yes, **fields)


def predict(
    run: Run,
    frame: pd.DataFrame,
    every: int = 15,
    threshold: float | None = None,
) -> pd.DataFrame:
    """The moves that a train run's model finds in bars: one row a move, in time order.

    The columns are those of `moola predict`, a window every `every` bars is looked at, and what is
    less probable than `threshold` is left out (None: what validation chose). The frame is as for
    `precompute`. Raises DataError for bars that break a rule, and for a model that cannot tell
    whether there is a move.
    """
    from moola.evaluation.predict import predict_moves

    loaded, bars = _model_and_bars(run, frame, every)
    return predict_moves(loaded, bars, every, threshold)


def predict_windows(run: Run, frame: pd.DataFrame, every: int = 15) -> pd.DataFrame:
    """What the model says of each window, which it takes to hold a move: one row a window.

    The columns are those of `moola predict --windows FILE`. The rest is as with `predict`.
    """
    from moola.evaluation.predict import predict_bars

    loaded, bars = _model_and_bars(run, frame, every)
    return predict_bars(loaded.model, loaded.info, bars, every)


def _model_and_bars(
    run: Run, frame: pd.DataFrame, every: int
) -> "tuple[LoadedModel, pd.DataFrame]":
    from moola.data.bars import read_bars_of
    from moola.evaluation.predict import MODEL_FILES, load_model

    if every < 1:
        raise DataError(f"every must be at least 1, got {every}")
    path = _write_bars(frame, run.work)
    spec = parse_spec(PrecomputeSpec, {}, place="the defaults")
    bars = read_bars_of(spec, [path], "the frame").frame
    return load_model(run.pull(run.work / "models" / run.id, only=MODEL_FILES)), bars


def _write_bars(frame: pd.DataFrame, work: Path) -> Path:
    """A frame as a file, so that its bars are read and checked as those of any file.

    The name follows from the bytes: the same frame is the same input. Raises DataError.
    """
    import hashlib
    import io

    if not isinstance(frame.index, pd.DatetimeIndex) or frame.index.tz is None:
        raise DataError("a frame of bars must have an index of times with a zone, such as UTC")
    stream = io.BytesIO()
    frame.rename_axis("timestamp").reset_index().to_parquet(stream, index=False)
    data = stream.getvalue()

    folder = work / "fetched" / hashlib.sha256(data).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "bars.parquet"
    path.write_bytes(data)
    return path

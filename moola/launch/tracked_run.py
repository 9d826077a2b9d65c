"""What MLflow is told of a run: its spec, what was measured, and where the rest lies.

All of it comes from the store, so it is read as input is: typed, bounded, and cut to the sizes that
MLflow takes. Nothing is sent here.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain, islice
from numbers import Integral, Real

import pandas as pd

from moola.data.feature_records import FeatureMetadata
from moola.errors import ArtifactError
from moola.evaluation.metrics import HEADLINE
from moola.evaluation.result_documents import MetricsDocument
from moola.evaluation.run_tables import read_history
from moola.runs.about import read_about
from moola.runs.binding import job_of
from moola.runs.groups import NO_MEMBER, Member, flat_fields
from moola.runs.launches import all_launches, cost_of
from moola.runs.protocol import attempt_key
from moola.runs.reading import (
    RunState,
    read_attempt_manifest,
    read_file_record,
    require_manifest,
)
from moola.runs.records import InputRun, Manifest, SpecDocument, State
from moola.runs.redaction import safe_text
from moola.runs.submit import read_spec_document
from moola.store import Store
from moola.text import shortened

LONGEST_NAME = 250  # characters, of a parameter or metric; a limit of MLflow's
LONGEST_VALUE = 500  # of a parameter; servers before 2.8 take no longer one
LONGEST_TITLE = 1000  # of a member; patterns take long on a longer one
LONGEST_TAG = 5000  # the least of MLflow's limits
MOST_PARAMS = 1000
MOST_POINTS = 50_000  # of all metrics of a run
MOST_EPOCHS = 10_000

FORBIDDEN = re.compile(r"[^A-Za-z0-9_. -]+")  # in a name: what MLflow does not take, and /
GROUPS_OF_FIELDS = re.compile(r"\b(?:\w+\.)+(?=\w+=)")
FOLDERS = re.compile(r"(?<==)[^=]*/")  # of a file of somebody's computer
GIT_SHA = re.compile(r"[0-9a-f]{7,64}")
ATTEMPT_TIME = "%Y%m%dT%H%M%SZ"  # as an attempt's id begins
VALIDATION = "val_"  # how the history's columns of validation begin
NO_METRICS = frozenset({"stage", "epoch", "step"})  # columns of the history

RUN = "moola.run"
STORE = "moola.store"
NOTE = "mlflow.note.content"  # MLflow's name for the description


@dataclass(frozen=True)
class Point:
    """A value of a metric; `step` is the training's, 0 for what was measured once."""

    name: str
    value: float
    step: int = 0


@dataclass(frozen=True)
class TrackedRun:
    """A run that has ended, in MLflow's terms. Times in Unix milliseconds."""

    run_id: str
    name: str
    state: State
    started_ms: int
    ended_ms: int
    params: Mapping[str, str]
    points: Sequence[Point]
    tags: Mapping[str, str]


def tracked_run(
    store: Store, run_id: str, state: RunState, member: Member = NO_MEMBER
) -> TrackedRun:
    """A run that has ended. What is damaged of its results is named in the tag `moola.fault`.

    Raises ArtifactError where the spec, the name or a launch is damaged.
    """
    assert state.attempt is not None
    document = read_spec_document(store, run_id)
    about = read_about(store, run_id)
    launches = all_launches(store, run_id)
    if not member.group_id and launches and launches[-1].budget is not None:
        member = Member(launches[-1].budget.group)
    started_ms, ended_ms = _times_ms(state)

    points: list[Point] = []
    tags = {
        **_own_tags(store, run_id, state),
        **_input_runs(document),
        "moola.group": member.group_id,
        "moola.tags": " ".join(about.tags),
    }
    try:
        manifest = _manifest(store, run_id, state)
        tags["mlflow.source.git.commit"] = _git_sha(manifest)
        if manifest is not None and state.state is State.COMMITTED:
            points += islice(_measured(store, manifest), MOST_POINTS)
    except (ArtifactError, ValueError, TypeError, KeyError) as error:
        tags["moola.fault"] = str(error) or type(error).__name__
    if launches:
        points.append(Point("cost_usd", sum(cost_of(store, each)["cost"] for each in launches)))

    texts = {name: _text(value, LONGEST_TAG) for name, value in tags.items() if value}
    note = safe_text(_note(store, run_id, state.attempt))
    return TrackedRun(
        run_id=run_id,
        name=_text(about.name or short_title(member) or run_id, LONGEST_NAME),
        state=state.state,
        started_ms=started_ms,
        ended_ms=ended_ms,
        params=_params(document),
        points=points,
        tags={**texts, NOTE: note},
    )


def _own_tags(store: Store, run_id: str, state: RunState) -> dict[str, str]:
    """What the run is, where it lies and how it ended."""
    return {
        RUN: run_id,
        STORE: store.url,
        "moola.state": str(state.state),
        "moola.reason": state.reason,
        "moola.artifacts": f"{store.url}/{attempt_key(run_id, str(state.attempt), 'files')}",
        "mlflow.source.name": f"moola {job_of(run_id)}",
        "mlflow.source.type": "JOB",
    }


def _times_ms(state: RunState) -> tuple[int, int]:
    """(start, end) of the attempt; where one is not known, the other."""
    ended = datetime.now(UTC) if state.status is None else state.status.time
    try:
        started = datetime.strptime(str(state.attempt).partition("-")[0], ATTEMPT_TIME)
        started = min(started.replace(tzinfo=UTC), ended)
    except ValueError:  # digits that are no date
        started = ended
    return max(int(started.timestamp() * 1000), 0), max(int(ended.timestamp() * 1000), 0)


def _manifest(store: Store, run_id: str, state: RunState) -> Manifest | None:
    if state.state is State.COMMITTED:
        return require_manifest(store, run_id)
    return read_attempt_manifest(store, run_id, str(state.attempt))


def _git_sha(manifest: Manifest | None) -> str:
    sha = "" if manifest is None else str(manifest.provenance.get("git_sha"))
    return sha if GIT_SHA.fullmatch(sha) else ""


def _params(document: SpecDocument) -> dict[str, str]:
    """The fields of the spec by dotted name, and the inputs."""
    fields = islice(flat_fields(document).items(), MOST_PARAMS)
    return {clean_name(name): _text(value, LONGEST_VALUE) for name, value in fields}


def _input_runs(document: SpecDocument) -> dict[str, str]:
    runs = {name: item for name, item in document.inputs.items() if isinstance(item, InputRun)}
    return {clean_name(f"moola.input.{name}"): item.run for name, item in runs.items()}


def _note(store: Store, run_id: str, attempt_id: str) -> str:
    """The description, in Markdown: where the run lies. It holds no text of the run's."""
    url = store.url.replace("`", "")
    lines = [
        f"Artifacts: `{url}/{attempt_key(run_id, attempt_id, 'files')}`",
        "```",
        f"moola status {run_id} --store {url}",
        f"moola pull {run_id} --store {url}",
        "```",
    ]
    return "\n".join(lines)


# --- what was measured ------------------------------------------------------------------------


def _measured(store: Store, manifest: Manifest) -> Iterator[Point]:
    """What the job measured. Raises ArtifactError where a document is damaged."""
    if job_of(manifest.run_id) == "train":
        metrics = read_file_record(store, manifest, "metrics.json", MetricsDocument)
        return chain(_test_points(metrics), history_points(read_history(store, manifest)))
    return _feature_points(read_file_record(store, manifest, "metadata.json", FeatureMetadata))


def _test_points(document: MetricsDocument) -> Iterator[Point]:
    """On the test split: `test/f1_macro`, and of trivial rivals `trivial/f1_macro.majority_class`.

    The rivals' for the headline alone, and no intervals: each name is a chart of MLflow's.
    """
    metrics = document.test.metrics
    yield from _points("test", {name: metric.value for name, metric in metrics.items()})
    for name in HEADLINE:
        if name in metrics:
            rivals = metrics[name].baselines.items()
            yield from _points("trivial", {f"{name}.{rival}": value for rival, value in rivals})


def _feature_points(metadata: FeatureMetadata) -> Iterator[Point]:
    counts = {
        "n_bars": metadata.n_bars,
        "n_windows": metadata.n_windows,
        "valid_ratio": metadata.valid_ratio,
    }
    return _points("features", counts)


def history_points(history: pd.DataFrame) -> Iterator[Point]:
    """The learning curves: `train/loss`, `validation/f1`; of pretraining `pretrain/loss`."""
    if "step" not in history:
        return
    for row in history.head(MOST_EPOCHS).to_dict("records"):
        step = row["step"]
        if not isinstance(step, Integral) or not 0 <= int(step) < 1 << 53:
            continue

        stage = row.get("stage")
        section = "pretrain" if isinstance(stage, str) and stage == "pretrain" else "train"
        values = {str(name): value for name, value in row.items() if name not in NO_METRICS}
        scores = {name for name in values if name.startswith(VALIDATION)}
        trained = {name: value for name, value in values.items() if name not in scores}
        scored = {name.removeprefix(VALIDATION): values[name] for name in scores}
        yield from _points(section, trained, int(step))
        yield from _points("validation", scored, int(step))


def _points(section: str, values: Mapping[str, object], step: int = 0) -> Iterator[Point]:
    """Those that are numbers; MLflow draws the names of one section, SECTION/NAME, together."""
    for name, value in values.items():
        if isinstance(value, Real) and math.isfinite(value):
            yield Point(f"{section}/{clean_name(name)}"[:LONGEST_NAME], float(value), step)


# --- texts ------------------------------------------------------------------------------------


def clean_name(name: str) -> str:
    """A name as MLflow takes it: f1[a move] becomes f1.a move."""
    name = name.replace("[", ".").replace("]", "")
    return FORBIDDEN.sub("_", name).strip(". ")[:LONGEST_NAME] or "_"


def short_title(member: Member) -> str:
    """What tells a member from the others, without groups of fields and folders of files."""
    title = _text(member.title, LONGEST_TITLE)
    return FOLDERS.sub("", GROUPS_OF_FIELDS.sub("", title))


def _text(value: str, longest: int) -> str:
    return shortened(safe_text(value), longest)

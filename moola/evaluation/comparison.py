"""Runs beside each other: what differs in their specs, and in what was measured of them."""

import statistics
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import pandas as pd
from pydantic import JsonValue

from moola.errors import DataError
from moola.evaluation.result_documents import MetricDocument, MetricsDocument
from moola.evaluation.run_tables import read_history
from moola.runs.about import read_about
from moola.runs.reading import read_file_record, require_manifest
from moola.runs.records import InputRun, SpecDocument
from moola.runs.submit import read_spec_document
from moola.store import Store
from moola.text import shortened

MOST_RUNS = len(string.ascii_uppercase)
SEED = "training.seed"
FOLD = "cross_validate.fold"
REPEATS = (SEED, FOLD)  # in which runs differ that repeat one experiment
DIGITS = 12  # of a digest that is shown

Fields = dict[str, JsonValue]


@dataclass(frozen=True)
class ComparedRun:
    """A committed run. `fields`: its spec by dotted name, its inputs and the digest of its code."""

    letter: str
    run_id: str
    name: str
    fields: Fields
    metrics: Mapping[str, MetricDocument]
    history: pd.DataFrame | None = None


@dataclass(frozen=True)
class Spread:
    """A metric over runs that differ by seed or fold alone: mean and standard deviation."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class SeedGroup:
    """Two or more runs that differ by seed or fold alone, and the spread of each metric."""

    letters: str
    spreads: Mapping[str, Spread]


@dataclass(frozen=True)
class Comparison:
    """differences: field -> the value of each run; metrics: name -> the metric of each run, or None
    where it has none."""

    runs: Sequence[ComparedRun]
    differences: Mapping[str, Sequence[JsonValue]]
    metrics: Mapping[str, Sequence[MetricDocument | None]]
    seed_groups: Sequence[SeedGroup]

    def fields(self) -> dict[str, object]:
        """Ready for JSON: what `moola compare --json` prints."""
        runs = [{"run": run.run_id, "name": run.name or None} for run in self.runs]
        metrics = {
            name: [None if metric is None else metric.value for metric in each]
            for name, each in self.metrics.items()
        }
        groups = [
            {
                "runs": [run.run_id for run in self.runs if run.letter in group.letters],
                "mean": {name: spread.mean for name, spread in group.spreads.items()},
                "deviation": {name: spread.deviation for name, spread in group.spreads.items()},
            }
            for group in self.seed_groups
        ]
        return {
            "runs": runs,
            "differences": {name: list(values) for name, values in self.differences.items()},
            "metrics": metrics,
            "seeds": groups,
        }


def compare_runs(store: Store, run_ids: Sequence[str], *, histories: bool = False) -> Comparison:
    """Committed runs of one job beside each other; `histories` reads their learning curves too.

    Raises DataError for fewer than two runs, too many, one that is named twice or of another job,
    ArtifactError for one that is not committed or is damaged.
    """
    if not 2 <= len(run_ids) <= MOST_RUNS or len(set(run_ids)) < len(run_ids):
        raise DataError(
            f"compare takes 2 to {MOST_RUNS} different runs, got {len(run_ids)}: "
            f"{shortened(', '.join(run_ids))}; name those to compare"
        )
    jobs = {run_id.partition("-")[0] for run_id in run_ids}
    if len(jobs) > 1:
        raise DataError(f"compare takes runs of one job, got {', '.join(sorted(jobs))}")

    runs = [
        _read_run(store, letter, run_id, histories=histories)
        for letter, run_id in zip(string.ascii_uppercase, run_ids, strict=False)
    ]
    names = _names(run.fields for run in runs)
    values = {name: [run.fields.get(name) for run in runs] for name in names}
    metric_names = _names(run.metrics for run in runs)
    return Comparison(
        runs=runs,
        differences={name: each for name, each in values.items() if _differ(each)},
        metrics={name: [run.metrics.get(name) for run in runs] for name in metric_names},
        seed_groups=_seed_groups(runs),
    )


def _names(tables: Iterable[Mapping[str, object]]) -> list[str]:
    """The names in any of the tables, in the order in which they come first."""
    return list(dict.fromkeys(chain.from_iterable(tables)))


def _differ(values: Sequence[JsonValue]) -> bool:
    return any(value != values[0] for value in values)


def _read_run(store: Store, letter: str, run_id: str, *, histories: bool) -> ComparedRun:
    manifest = require_manifest(store, run_id)
    document = read_spec_document(store, run_id)
    metrics: Mapping[str, MetricDocument] = {}
    history = None
    if document.job == "train":
        metrics = read_file_record(store, manifest, "metrics.json", MetricsDocument).test.metrics
        history = read_history(store, manifest) if histories else None
    return ComparedRun(
        letter=letter,
        run_id=run_id,
        name=read_about(store, run_id).name or "",
        fields=fields_of(document),
        metrics=metrics,
        history=history,
    )


def fields_of(document: SpecDocument) -> Fields:
    """What decides a run's result: its spec by dotted name, its inputs, the digest of its code."""
    fields = dict(_dotted(document.spec))
    for name, item in document.inputs.items():
        shown = item.run if isinstance(item, InputRun) else item.sha256[:DIGITS]
        fields[f"inputs.{name}"] = shown
    fields["code"] = document.code_sha256[:DIGITS]
    return fields


def _dotted(group: Mapping[str, JsonValue], prefix: str = "") -> Iterable[tuple[str, JsonValue]]:
    for name, value in group.items():
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _seed_groups(runs: Sequence[ComparedRun]) -> list[SeedGroup]:
    """The runs that are alike but for seed and fold, two or more at a time."""
    groups: list[list[ComparedRun]] = []
    for run in runs:
        for group in groups:
            if without_repeats(group[0].fields) == without_repeats(run.fields):
                group.append(run)
                break
        else:
            groups.append([run])
    return [_seed_group(group) for group in groups if len(group) > 1]


def without_repeats(fields: Fields) -> Fields:
    """Without the seed and the fold."""
    return {name: value for name, value in fields.items() if name not in REPEATS}


def _seed_group(runs: Sequence[ComparedRun]) -> SeedGroup:
    letters = "".join(run.letter for run in runs)
    return SeedGroup(letters, spreads_of([run.metrics for run in runs]))


def spreads_of(tables: Sequence[Mapping[str, MetricDocument]]) -> dict[str, Spread]:
    """The spread of each metric that all of two or more runs have."""
    if len(tables) < 2:
        return {}

    spreads = {}
    for name in _names(tables):
        values = [table[name].value for table in tables if name in table]
        known = [value for value in values if value is not None]
        if len(known) == len(tables):
            spreads[name] = Spread(statistics.fmean(known), statistics.stdev(known))
    return spreads

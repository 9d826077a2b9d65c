"""Cross-validations of a group: runs that are alike but for fold and seed, taken together.

Each is an ordinary train run, whose test split is the fold's (`moola.data.label_folds`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from pydantic import JsonValue, ValidationError

from moola.errors import ArtifactError, DataError
from moola.evaluation.arrays import finite_or_none
from moola.evaluation.comparison import SEED, Fields, Spread, fields_of, spreads_of, without_repeats
from moola.evaluation.metrics import score
from moola.evaluation.predictions import Predictions, Targets
from moola.evaluation.result_documents import MetricDocument, MetricsDocument
from moola.evaluation.run_tables import PREDICTIONS, PROBABILITY, read_table
from moola.runs.reading import read_file_record, read_manifest
from moola.runs.records import SpecDocument
from moola.specs import CrossValidation
from moola.store import Store
from moola.store.background import map_in_background

READERS = 12  # requests under way at a time
NOT_COMMITTED = "not committed"

Values = dict[str, float | None]  # of metrics, by name


@dataclass(frozen=True)
class FoldRun:
    """A committed fold. `metrics`: of its test split; `predictions`: the rows of its windows."""

    run_id: str
    fold: int
    seed: int | None
    metrics: Mapping[str, MetricDocument]
    predictions: pd.DataFrame


@dataclass
class CrossValidated:
    """Runs that differ by fold and seed alone.

    differs  field -> value, of those in which this one differs from others of the group
    runs     by fold and seed
    left     run id -> why it is not among them
    """

    n_folds: int
    fields: Fields
    differs: dict[str, JsonValue] = field(default_factory=dict)
    runs: list[FoldRun] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)

    def spreads(self) -> dict[str, Spread]:
        """Mean and standard deviation over the runs, by metric; empty for fewer than two."""
        return spreads_of([run.metrics for run in self.runs])

    def of_all_windows(self) -> Values:
        """Every metric on the test windows of all runs together, by name."""
        return _scored(self.predictions()) if self.runs else {}

    def predictions(self) -> pd.DataFrame:
        """The out-of-fold predictions: the test windows of all runs, with run, fold and seed."""
        tables = []
        for run in self.runs:
            table = run.predictions.copy()
            table.insert(0, "run", run.run_id)
            table.insert(1, "fold", run.fold)
            table.insert(2, "seed", run.seed)
            tables.append(table)
        return pd.concat(tables, ignore_index=True)

    def document(self) -> dict[str, object]:
        """Ready for JSON."""
        spreads = self.spreads()
        runs = [
            {
                "run": run.run_id,
                "fold": run.fold,
                "seed": run.seed,
                "n_windows": len(run.predictions),
                "metrics": {name: metric.value for name, metric in run.metrics.items()},
            }
            for run in self.runs
        ]
        return {
            "folds": self.n_folds,
            "differs": self.differs,
            "runs": runs,
            "left": [{"run": run, "reason": reason} for run, reason in self.left.items()],
            "mean": {name: spread.mean for name, spread in spreads.items()},
            "deviation": {name: spread.deviation for name, spread in spreads.items()},
            "all_windows": self.of_all_windows(),
        }


def cross_validations(
    store: Store,
    documents: Mapping[str, SpecDocument],
) -> list[CrossValidated]:
    """Of runs, given by id -> spec.json, those that are folds, in the order of their first runs."""
    results: list[CrossValidated] = []
    folds = {run_id: _fold_of(document) for run_id, document in documents.items()}
    run_ids = [run_id for run_id, fold in folds.items() if fold is not None]
    answers = map_in_background(lambda run_id: _read_run(store, run_id), run_ids, READERS)

    for run_id, read in zip(run_ids, answers, strict=True):
        fold = folds[run_id]
        assert fold is not None
        fields = fields_of(documents[run_id])
        result = _with_fields(results, fold.folds, without_repeats(fields))
        if isinstance(read, str):
            result.left[run_id] = read
        else:
            metrics, predictions = read
            seed = fields.get(SEED)
            seed = seed if isinstance(seed, int) else None
            run = FoldRun(run_id, fold.fold, seed, metrics, predictions)
            _add(result, run)

    for result in results:
        result.runs.sort(key=lambda run: (run.fold, run.seed or 0))
        result.differs = _differs(result, results)
    return results


def _fold_of(document: SpecDocument) -> CrossValidation | None:
    try:
        return CrossValidation.model_validate(document.spec.get("cross_validate"))
    except ValidationError:
        return None


def _with_fields(
    results: list[CrossValidated],
    n_folds: int,
    fields: Fields,
) -> CrossValidated:
    """The one that has these fields: it is there, or is added."""
    for result in results:
        if result.fields == fields:
            return result
    results.append(CrossValidated(n_folds, fields))
    return results[-1]


def _add(result: CrossValidated, run: FoldRun) -> None:
    """What is pooled has the same columns."""
    others = result.runs[:1]
    if others and list(others[0].predictions) != list(run.predictions):
        result.left[run.run_id] = f"its predictions have other columns than {others[0].run_id}'s"
    else:
        result.runs.append(run)


def _differs(result: CrossValidated, results: Sequence[CrossValidated]) -> dict[str, JsonValue]:
    names = dict.fromkeys(name for other in results for name in other.fields)
    return {
        name: result.fields.get(name)
        for name in names
        if any(other.fields.get(name) != result.fields.get(name) for other in results)
    }


def _read_run(
    store: Store,
    run_id: str,
) -> tuple[Mapping[str, MetricDocument], pd.DataFrame] | str:
    """A run's metrics and its predictions on test; or why there are none."""
    try:
        manifest = read_manifest(store, run_id)
        if manifest is None:
            return NOT_COMMITTED
        metrics = read_file_record(store, manifest, "metrics.json", MetricsDocument).test.metrics
        table = read_table(store, manifest, PREDICTIONS)
        predictions = table[table["split"] == "test"]
        _scored(predictions)
    except KeyError as error:
        return f"{PREDICTIONS} has no column {error}"
    except (ArtifactError, DataError, ValueError, TypeError) as error:
        return str(error)
    return metrics, predictions


def _scored(table: pd.DataFrame) -> Values:
    """Every metric of a table of predictions, whose probabilities are scaled already."""
    columns = [name for name in table if str(name).startswith(PROBABILITY)]
    classes = tuple(str(name).removeprefix(PROBABILITY) for name in columns)
    predictions = Predictions(
        table[columns].to_numpy(np.float64),
        table["predicted_start"].to_numpy(np.int64),
        table["predicted_end"].to_numpy(np.int64),
    )
    targets = Targets(
        pd.Index(classes, dtype=object).get_indexer(pd.Index(table["label"], dtype=object)),
        table["expansion_start"].to_numpy(np.int64),
        table["expansion_end"].to_numpy(np.int64),
        classes,
    )
    values = score(predictions, targets)
    del values["ece"]  # of probabilities that are not scaled
    return {name: finite_or_none(value) for name, value in values.items()}

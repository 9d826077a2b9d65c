"""What a search makes better: a metric of the validation split, read back from committed runs."""

import math
from collections.abc import Sequence
from typing import Literal

from moola.errors import DataError
from moola.evaluation.metrics import catalogue
from moola.evaluation.result_documents import MetricsDocument
from moola.runs.reading import read_file_record, require_manifest
from moola.store import Store
from moola.text import quoted

Direction = Literal["minimize", "maximize"]  # Optuna's words
MAXIMIZE: Direction = "maximize"
MINIMIZE: Direction = "minimize"


def direction_of(objective: str, class_names: Sequence[str]) -> Direction:
    """Whether more of a metric is better, or less. Raises DataError for what is no objective."""
    better = {name: metric.better for name, metric in catalogue(class_names).items()}
    if not better.get(objective, 0):
        names = ", ".join(name for name, sign in better.items() if sign)
        raise DataError(f"--objective must be one of {names}; got {quoted(objective)}")
    return MAXIMIZE if better[objective] > 0 else MINIMIZE


def objective_value(store: Store, run_id: str, objective: str) -> float | None:
    """A metric of a committed run on its validation split; None where it is not defined.

    Raises ArtifactError for a run that is not committed, or damaged.
    """
    manifest = require_manifest(store, run_id)
    validation = read_file_record(store, manifest, "metrics.json", MetricsDocument).validation
    if validation is None or objective not in validation.metrics:
        return None
    value = validation.metrics[objective].value
    return value if value is not None and math.isfinite(value) else None

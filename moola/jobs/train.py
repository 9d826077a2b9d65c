"""The train job: a feature set and labels -> Jade, its metrics, gates and a report."""

import io
import logging
from collections.abc import Sequence

import pandas as pd

from moola.data.feature_set import to_json
from moola.evaluation import report, results
from moola.evaluation.find_moves import PresenceResults, detection_document, run_presence
from moola.evaluation.predict import MODEL, all_weights
from moola.evaluation.results import RunResults
from moola.evaluation.scoring import score_on
from moola.jobs.precompute import JSON, PARQUET
from moola.models.jade_core import JadeCompact
from moola.runs.attempt import Attempt
from moola.runs.records import SpecDocument
from moola.runs.submit import input_run, several_inputs
from moola.specs import TrainSpec, parse_spec
from moola.training import processes
from moola.training.checkpoint import WEIGHTS, weights_bytes
from moola.training.data import (
    TrainingData,
    fetch_features,
    fetch_labels,
    fetch_markets,
    split_labels,
)
from moola.training.device import choose_device, host_errors
from moola.training.fit import fit_run
from moola.training.loop import HistoryRow

log = logging.getLogger("moola")
SAFETENSORS = "application/x-safetensors"
HTML = "text/html"


@host_errors()
def run_train_job(attempt: Attempt, document: SpecDocument) -> None:
    """The job. `document` is the run's spec document.

    All ranks train; rank 0 evaluates and writes. The other ranks' `attempt` is one that was never
    entered. Raises DataError for labels that break a rule, TrainingError if the loss is not finite,
    TryAgainError where the GPU of this host fails.
    """
    spec = parse_spec(TrainSpec, document.spec, place=f"spec.json of {attempt.run_id}")
    device = choose_device(spec.device)
    with processes.process_group(device):
        attempt.stage("fetch features and labels")
        with processes.first_then_others():
            data = load_data(attempt, spec, document)
        log_labels(data, mirrored=spec.training.mirrored)
        score = score_on(data.labels["val"])
        encoder = input_run(document, "encoder") if spec.encoder is not None else None
        model, result = fit_run(attempt, spec, data, score, device, encoder)

    if processes.rank() == 0:
        evaluate_and_write(
            attempt,
            spec,
            document,
            data,
            model,
            result.history,
            device,
        )


def how_many_processes(spec: TrainSpec) -> int:
    """The processes that this machine trains with.

    Raises DataError where the device of the spec is not there.
    """
    device = choose_device(spec.device)
    return processes.process_count(
        spec.processes,
        device,
        spec.training.batch_size,
    )


def load_data(
    attempt: Attempt,
    spec: TrainSpec,
    document: SpecDocument,
) -> TrainingData:
    """What the run trains on. Raises DataError, also where a class has too few labels."""
    work = attempt.work.parent
    if several_inputs(document, "features"):
        return fetch_markets(attempt.store, work, spec, document)

    features = None
    if "features" in document.inputs:
        features = fetch_features(attempt.store, input_run(document, "features"), work)

    labels = fetch_labels(attempt.store, work, spec.labels, document, features)
    return split_labels(labels, features, spec)


def log_labels(data: TrainingData, *, mirrored: bool) -> None:
    for name, part in data.labels.items():
        log.info(
            "%s: %d labels, %s",
            name,
            len(part),
            part.class_counts(),
        )
    for reason, count in data.left_out.items():
        log.info("left out: %d labels, %s", count, reason)

    labels = data.labels["train"]
    has_direction = [name for name in labels.classes if name not in labels.mirror]
    if mirrored and has_direction:
        log.info(
            "not mirrored: windows of %s; labels.mirror says which class they turn into",
            ", ".join(has_direction),
        )


def evaluate_and_write(
    attempt: Attempt,
    spec: TrainSpec,
    document: SpecDocument,
    data: TrainingData,
    model: JadeCompact,
    history: Sequence[HistoryRow],
    device: str,
) -> None:
    """Evaluate on validation and test; store model, metrics, gates, history and report."""
    attempt.provenance[results.SPEED] = [round(epoch[results.SPEED], 1) for epoch in history]
    attempt.stage("evaluate")
    run_results = results.evaluate_model(model, spec, data, history, device)
    metrics = results.metrics_document(data, run_results)
    attempt.stage("find moves")
    found = run_presence(
        model,
        data,
        spec.presence,
        seed=spec.training.seed,
        device=device,
    )
    metrics["detection"] = detection_document(found)
    run_results = results.with_moves_found(run_results, found, data, spec)
    if run_results.markets:
        metrics["markets"] = run_results.markets

    attempt.stage("upload model, metrics and report")
    model_info = results.model_document(
        spec,
        document,
        data,
        run_results.temperature,
        found.document,
    )
    attempt.write(WEIGHTS, weights_bytes(all_weights(model, found.presence)), SAFETENSORS)
    attempt.write(MODEL, to_json(model_info.stored()), JSON)
    attempt.write("metrics.json", to_json(metrics), JSON)
    write_results(
        attempt,
        spec,
        document,
        data,
        run_results,
        found,
    )


def write_results(
    attempt: Attempt,
    spec: TrainSpec,
    document: SpecDocument,
    data: TrainingData,
    run_results: RunResults,
    found: PresenceResults,
) -> None:
    """Gates, history, predictions and the report."""
    predictions = results.prediction_table(data, run_results)
    attempt.write(
        "gates.json",
        to_json(results.gates_document(run_results)),
        JSON,
    )
    attempt.write(
        "history.parquet",
        parquet_bytes(run_results.history),
        PARQUET,
    )
    attempt.write(
        "predictions.parquet",
        parquet_bytes(predictions),
        PARQUET,
    )

    page_data = results.report_data(
        spec,
        document,
        data,
        run_results,
        found,
        attempt.usage_history(),
    )
    attempt.write(
        "report.html",
        report.render(page_data).encode(),
        HTML,
    )
    judged = [gate for gate in run_results.gates if gate.judged]
    log.info(
        "gates: %d of %d passed",
        sum(gate.passed for gate in judged),
        len(judged),
    )


def parquet_bytes(table: pd.DataFrame) -> bytes:
    stream = io.BytesIO()
    table.to_parquet(stream, index=False)
    return stream.getvalue()

"""The results of a train run: predictions, metrics, gates, history, and their documents."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moola import HIT_BARS, PRICES, WINDOW
from moola.data.labels import LabelSet
from moola.data.markets import market_of
from moola.data.splits import SPLITS
from moola.evaluation import metrics
from moola.evaluation.calibration import helpful_temperature, scale
from moola.evaluation.find_moves import PresenceResults
from moola.evaluation.gates import SIGMAS, Gate, all_passed, check_gates
from moola.evaluation.market_results import MarketResults, evaluate_markets
from moola.evaluation.metrics import Evaluation
from moola.evaluation.model_document import ModelDocument, PresenceDocument
from moola.evaluation.predictions import Predictions
from moola.evaluation.report_data import ReportData, ReportWindow, pick_windows
from moola.evaluation.run_tables import PROBABILITY
from moola.evaluation.scoring import as_predictions, as_targets
from moola.features import FEATURE_NAMES
from moola.models.jade_core import JadeCompact
from moola.runs.binding import run_id_of
from moola.runs.records import InputRun, SpecDocument, UsageHistory
from moola.runs.submit import input_file, input_name, input_run, several_inputs
from moola.specs import CrossValidation, TrainSpec
from moola.training.data import TrainingData
from moola.training.fit import longest_move
from moola.training.inference import infer
from moola.training.loop import VAL_F1, VAL_HIT, HistoryRow

# As the history's table and the report name what the loop records.
HISTORY_NAMES = {
    "pointer_loss": "loss_ptr",
    "type_loss": "loss_type",
    VAL_F1: "val_f1",
    VAL_HIT: f"val_hit{HIT_BARS}",
}
SPEED = "windows_per_s"  # of an epoch: it goes to the manifest, as it is another one each time
LOSSES = ("loss", "loss_ptr", "loss_type")


@dataclass(frozen=True)
class RunResults:
    """predictions: by split, scaled by the temperature, which was fitted on validation; unscaled:
    the same before that. markets: of each of several feature sets, by its name."""

    temperature: float
    predictions: Mapping[str, Predictions]
    unscaled: Mapping[str, Predictions]
    validation: Evaluation
    test: Evaluation
    history: pd.DataFrame
    gates: Sequence[Gate]
    markets: Mapping[str, MarketResults] = field(default_factory=dict)

    @property
    def all_gates_passed(self) -> bool:
        return all_passed(self.gates)


def evaluate_model(
    model: JadeCompact,
    spec: TrainSpec,
    data: TrainingData,
    epochs: Sequence[HistoryRow],
    device: str,
) -> RunResults:
    """Everything measured of a trained model. `epochs` is the history of its training."""
    outputs = {name: infer(model, data.windows[name], device=device) for name in SPLITS}
    temperature = helpful_temperature(outputs["val"].logits, data.labels["val"].label_index)

    unscaled = {name: as_predictions(outputs[name], data.labels[name].window_id) for name in SPLITS}
    evaluations = {
        name: metrics.evaluate(
            unscaled[name],
            as_targets(data.labels[name]),
            as_targets(data.labels["train"]),
            data.window_features(name),
            temperature=temperature,
            seed=spec.training.seed,
        )
        for name in ("val", "test")
    }

    history = pd.DataFrame(epochs).drop(columns=SPEED).rename(columns=HISTORY_NAMES)
    supervised = history[history["stage"] != "pretrain"]
    gates = check_gates(
        evaluations["val"],
        sigma_history={name: supervised[name] for name in SIGMAS},
        loss_history={name: supervised[name] for name in LOSSES},
        config=spec.gates,
        test=evaluations["test"],
    )

    return RunResults(
        temperature=temperature,
        predictions={name: _scaled(p, temperature) for name, p in unscaled.items()},
        unscaled=unscaled,
        validation=evaluations["val"],
        test=evaluations["test"],
        history=history,
        gates=gates,
    )


def with_moves_found(
    results: RunResults,
    found: PresenceResults,
    data: TrainingData,
    spec: TrainSpec,
) -> RunResults:
    """The results with the gates of finding moves, and those of each market."""
    markets = evaluate_markets(
        data,
        results.unscaled,
        found.markets,
        temperature=results.temperature,
        seed=spec.training.seed,
    )
    gates = [*results.gates, *found.gates(spec.gates)]
    return replace(results, gates=gates, markets=markets)


def _scaled(predictions: Predictions, temperature: float) -> Predictions:
    return replace(predictions, probabilities=scale(predictions.probabilities, temperature))


# --- documents ------------------------------------------------------------------------------------


def metrics_document(data: TrainingData, results: RunResults) -> dict[str, Any]:
    """metrics.json, but for what finding moves adds."""
    labels = {name: {"n": len(part), **part.class_counts()} for name, part in data.labels.items()}
    return {
        "validation": results.validation,
        "test": results.test,
        "left_out": data.left_out,
        "labels": labels,
    }


def gates_document(results: RunResults) -> dict[str, Any]:
    """gates.json."""
    return {
        "passed": results.all_gates_passed,
        "gates": [asdict(gate) for gate in results.gates],
    }


def model_document(
    spec: TrainSpec,
    document: SpecDocument,
    data: TrainingData,
    temperature: float,
    presence: PresenceDocument,
) -> ModelDocument:
    """model.json."""
    return ModelDocument(
        model=spec.model,
        classes=data.labels["train"].classes,
        temperature=temperature,
        feature_names=FEATURE_NAMES,
        feature_config=data.features.metadata.feature_config(),
        longest_move=longest_move(data.windows["train"]),
        own_bars=not data.labels["train"].anchored,
        feature_set=_feature_run(document),
        feature_sets=_feature_runs(document) or None,
        presence=presence,
        moola=document.moola,
    )


def _feature_run(document: SpecDocument) -> InputRun | None:
    """The run of the feature set; None where the labels carry their own bars and it names none."""
    return input_run(document, "features") if "features" in document.inputs else None


def _feature_runs(document: SpecDocument) -> dict[str, InputRun]:
    """Those of several feature sets, by the market's name."""
    return {
        name: input_run(document, input_name("features", name))
        for name in several_inputs(document, "features")
    }


def prediction_table(data: TrainingData, results: RunResults) -> pd.DataFrame:
    """One row per labelled window of every split: what is true, and what was predicted.

    Where there are several feature sets, `market` names the one that the window lies in.
    Probabilities are scaled by the temperature, as `predict` gives them.
    """
    parts = []
    for name, predictions in results.predictions.items():
        labels = data.labels[name]
        classes = np.array(labels.classes)
        columns = {
            "split": name,
            "window_id": labels.window_id,
            "window_start": data.features.times[labels.anchor] if labels.anchored else None,
            "label": classes[labels.label_index],
            "expansion_start": labels.start,
            "expansion_end": labels.end,
            "predicted_label": classes[predictions.label],
            "predicted_start": predictions.start,
            "predicted_end": predictions.end,
        }
        for k, class_name in enumerate(labels.classes):
            columns[f"{PROBABILITY}{class_name}"] = predictions.probabilities[:, k]
        part = pd.DataFrame(columns)
        if data.markets:
            part.insert(1, "market", _market_names(data, labels))
        parts.append(part)

    return pd.concat(parts, ignore_index=True)


def _market_names(data: TrainingData, labels: LabelSet) -> NDArray[np.object_]:
    """[N] of each label."""
    names = np.array([market.name for market in data.markets], object)
    return np.asarray(names[market_of(labels.anchor, data.markets)])


# --- the report's data ----------------------------------------------------------------------------


def report_data(
    spec: TrainSpec,
    document: SpecDocument,
    data: TrainingData,
    results: RunResults,
    found: PresenceResults,
    usage: UsageHistory | None = None,
) -> ReportData:
    """What report.html shows.

    But for `usage`, a run that was forced has the report of the one that was not.
    """
    labels = data.labels["test"]
    test = results.predictions["test"]
    picked = pick_windows(test, as_targets(labels))

    return ReportData(
        run_id=run_id_of(document.job, document.fingerprint),
        data_digest=_data_digest(document),
        label_source=labels.source,
        splits={name: _split_text(data, name) for name in SPLITS},
        seeds=[spec.training.seed],
        validation=results.validation,
        test=results.test,
        gates=results.gates,
        history=results.history,
        windows=[_report_window(data, test, i) for i in picked],
        facts={
            "features": _features_text(document),
            "left out": _left_out_text(data),
            **_fold_facts(spec.cross_validate),
        },
        gate_config=spec.gates,
        presence=found.document,
        detections=found.detections,
        markets=results.markets,
        usage=usage,
    )


def _data_digest(document: SpecDocument) -> str:
    """Of the feature set, of each of several, or of labels that carry their own bars."""
    several = _feature_runs(document)
    if several:
        return ", ".join(f"{name} {item.sha256}" for name, item in several.items())

    data_input = _feature_run(document) or input_file(document, "labels")
    assert data_input is not None
    return data_input.sha256


def _features_text(document: SpecDocument) -> str:
    several = _feature_runs(document)
    if several:
        return ", ".join(_named_run(name, item.run) for name, item in several.items())

    feature_set = _feature_run(document)
    return "of each window alone" if feature_set is None else feature_set.run


def _named_run(name: str, run: str) -> str:
    return run if name == run else f"{name} ({run})"


def _fold_facts(fold: CrossValidation | None) -> dict[str, str]:
    return {} if fold is None else {"fold": f"{fold.fold} of 0..{fold.folds - 1}"}


def _left_out_text(data: TrainingData) -> str:
    reasons = [f"{count} labels: {reason}" for reason, count in data.left_out.items()]
    return "; ".join(reasons) or "none"


def _split_text(data: TrainingData, split: str) -> str:
    labels = data.labels[split]
    counts = ", ".join(f"{n} {label}" for label, n in labels.class_counts().items())
    if not labels.anchored:
        return counts

    times = data.features.times
    first = times[labels.anchor].min()
    last = times[labels.anchor + WINDOW - 1].max()

    return f"{first:%Y-%m-%d} to {last:%Y-%m-%d}: {counts}"


def _report_window(
    data: TrainingData,
    test: Predictions,
    i: int,
) -> ReportWindow:
    """The i-th window of the test split."""
    labels = data.labels["test"]
    if labels.bars is None:
        first = labels.anchor[i]
        bars = data.features.bars.iloc[first : first + WINDOW]
        ohlc = bars[list(PRICES)].to_numpy()
        opened = f"{bars.index[0]:%Y-%m-%d %H:%M} UTC"
        if data.markets:
            opened = f"{_market_names(data, labels)[i]}, {opened}"
    else:
        ohlc = labels.bars[i]
        opened = ""
    return ReportWindow(
        window_id=str(labels.window_id[i]),
        opened=opened,
        ohlc=ohlc,
        label=labels.classes[labels.label_index[i]],
        start=int(labels.start[i]),
        end=int(labels.end[i]),
        predicted_label=labels.classes[test.label[i]],
        predicted_start=int(test.start[i]),
        predicted_end=int(test.end[i]),
        probability=float(test.probabilities[i].max()),
    )

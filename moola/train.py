"""Training: a feature set and labels -> Jade, its metrics beside their baselines, gates, and a report."""

import io
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from moola import WINDOW, metrics, report
from moola.errors import DataError
from moola.features import FEATURE_NAMES, N_FEATURES, FeatureConfig
from moola.labels import (
    LabelSet,
    assign_splits,
    hindsight_labels,
    place_windows,
    planted_labels,
    read_labels,
    require_examples,
    split_in_order,
)
from moola.metrics import Predictions, Targets
from moola.models import build_model
from moola.models.jade_core import JadeCompact, initialize_model_biases
from moola.precompute import JSON, MOVES, PARQUET
from moola.predict import MODEL, WEIGHTS, as_predictions
from moola.runs import Attempt, newest_checkpoint, pull_files, pull_input, require_manifest
from moola.signals import held_signals
from moola.specs import CrossValidation, TrainSpec
from moola.store import Store
from moola.training import loop, processes
from moola.training.batches import WindowDataset
from moola.training.checkpoint import Files, read_weights, weights_bytes
from moola.training.device import choose_device
from moola.windows import (
    FEATURE_SET_FILES,
    SPLITS,
    FeatureSet,
    Split,
    read_feature_set,
    to_json,
    window_view,
)

log = logging.getLogger("moola")
SAFETENSORS, HTML = "application/x-safetensors", "text/html"
ENCODER = "encoder."
VALIDATION_SHARE = 0.15  # of the time before a fold's test, its last part


@dataclass(frozen=True)
class Data:
    """What a run trains on: labels and windows by split, and the labels of each fold by its splits."""

    features: FeatureSet
    labels: dict[str, LabelSet]
    windows: dict[str, WindowDataset]
    left_out: dict[str, int]
    folds: tuple[dict[str, LabelSet], ...] = ()

    def targets(self, name: str) -> Targets:
        part = self.labels[name]
        return Targets(part.label_index, part.start, part.end, part.classes)

    def x(self, name: str) -> NDArray[np.float32]:
        """[N, T, F] the windows of a split."""
        windows = self.windows[name]
        return np.asarray(window_view(windows.rows)[windows.window_start])


def train(attempt: Attempt, document: dict[str, Any]) -> None:
    """The job. Raises DataError for labels that break a rule, TrainingError if the loss is not finite.

    Of several processes all train and the first does the rest; the others' `attempt` is one that was never entered.
    """
    spec = TrainSpec.model_validate(document["spec"])
    device = choose_device(spec.device)
    with processes.process_group(device):
        attempt.stage("fetch features and labels")
        with processes.first_then_others():
            features = fetch_features(attempt.store, document["inputs"]["features"]["run"], attempt.work.parent)
            data = load_data(attempt, spec, document["inputs"], features)
        for name, part in data.labels.items():
            log.info("%s: %d labels, %s", name, len(part), part.class_counts())
        for reason, count in data.left_out.items():
            log.info("left out: %d labels, %s", count, reason)
        model, result = fit(attempt, spec, data, device)
    if processes.rank() == 0:
        outputs(attempt, spec, document, data, model, result, device)


def how_many_processes(spec: TrainSpec) -> int:
    """The processes that this machine trains with. Raises DataError where the device asked for is not there."""
    return processes.process_count(spec.processes, choose_device(spec.device), spec.training.batch_size)


# --- data -------------------------------------------------------------------------------------------------------


def fetch_features(store: Store, run_id: str, work: Path) -> FeatureSet:
    """The feature set of a committed precompute run, pulled once into `work`."""
    folder = work / "features" / run_id
    wanted = (*FEATURE_SET_FILES, MOVES)
    pull_files(store, require_manifest(store, run_id), folder, only=wanted)
    return read_feature_set(folder, N_FEATURES)


def load_data(attempt: Attempt, spec: TrainSpec, inputs: Mapping[str, Any], features: FeatureSet) -> Data:
    """Labels from the source the spec names, in the run's splits. Raises DataError."""
    labels = load_labels(attempt, spec, inputs, features)
    if labels.anchored:
        parts, left_out = assign_splits(labels, features.splits)
    else:
        n_bars = {name: split.stop - split.start for name, split in features.splits.items()}
        parts, left_out = split_in_order(labels, {k: n / sum(n_bars.values()) for k, n in n_bars.items()})
    parts["train"] = draw(parts["train"], spec)
    folds = () if spec.cross_validate is None else all_folds(labels, len(features.rows), spec.cross_validate.folds)
    return Data(features, parts, {name: windows_of(part, features) for name, part in parts.items()}, left_out, folds)


def load_labels(attempt: Attempt, spec: TrainSpec, inputs: Mapping[str, Any], features: FeatureSet) -> LabelSet:
    config, times = spec.labels, features.times
    if "labels" in inputs:
        path = pull_input(attempt.store, inputs["labels"], attempt.work.parent)
        dropped = [pd.Timestamp(minute) for minute in features.metadata["dropped_minutes"]]
        feature_config = FeatureConfig.model_validate(features.metadata["config"])
        return read_labels(path, config, times=times, dropped=dropped, features=feature_config)
    if config.source == "planted":
        moves = attempt.work.parent / "features" / inputs["features"]["run"] / MOVES
        if not moves.exists():
            raise DataError(f"labels.source: planted needs synthetic bars; run {inputs['features']['run']} has none")
        return planted_labels(pd.read_parquet(moves), times, config)
    return place_windows(hindsight_labels(features.bars, config.hindsight), times, config, source="hindsight")


def draw(part: LabelSet, spec: TrainSpec) -> LabelSet:
    """`fraction` of the labels, at most `max_train_labels`, drawn by the seed, in time order. Raises DataError where
    a class has too few among them."""
    n = min(round(len(part) * spec.fraction), spec.max_train_labels or len(part))
    if n == len(part):
        return part
    rng = np.random.default_rng(spec.training.seed)
    drawn = part.take(np.sort(rng.permutation(len(part))[:n]))
    asked = f"fraction {spec.fraction}, max_train_labels {spec.max_train_labels}"
    require_examples(drawn, "training labels", f"of the {n} drawn from {len(part)} ({asked})")
    return drawn


def windows_of(part: LabelSet, features: FeatureSet) -> WindowDataset:
    """The windows of labels: cut from the series, or from the labels' own bars laid end to end."""
    if part.features is None or part.valid is None:
        return WindowDataset(
            features.rows, features.valid, part.anchor, part.start_bar, part.end_bar, part.label_index,
            part.first_anchor, part.last_anchor + WINDOW, part.window_id,
        )  # fmt: skip
    first = np.arange(len(part)) * WINDOW
    return WindowDataset(
        part.features.reshape(-1, N_FEATURES), part.valid.reshape(-1), first, first + part.start, first + part.end,
        part.label_index, first, first + WINDOW, part.window_id,
    )  # fmt: skip


# --- fitting ----------------------------------------------------------------------------------------------------


class RunHooks:
    """Takes what the loop says to the run protocol: heartbeat, log, checkpoints; and signals to the loop."""

    def __init__(self, attempt: Attempt, signal_came: Callable[[], int | None]) -> None:
        self._attempt, self._signal_came = attempt, signal_came
        self._note = ""

    def save_checkpoint(self, step: int, files: Files) -> None:
        self._attempt.checkpoint(step, files)

    def should_stop(self) -> bool:
        return self._signal_came() is not None

    def progress(self, event: Mapping[str, Any]) -> None:
        if event["kind"] == "step":
            note = f"epoch {event['epoch']}  loss {event['loss']:.3f}  {self._note}"
            self._attempt.show(event["stage"], event["stage_step"], event["steps"], "steps", note)
            return
        sigmas = f"sigma {event['sigma_ptr']:.2f} {event['sigma_type']:.2f}"
        scores = ""
        if "val_score" in event:
            scores = f"val F1 {event['val_f1_macro']:.3f}  Hit@3 {event['val_hit_centre_3']:.3f}  "
        self._note = f"{sigmas}  {scores}{event['windows_per_s']:,.0f} windows/s"
        log.info("%s epoch %d  loss %.3f  %s", event["stage"], event["epoch"], event["loss"], self._note)


def fit(attempt: Attempt, spec: TrainSpec, data: Data, device: str) -> tuple[JadeCompact, loop.TrainResult]:
    """Train on the run's splits, going on from its newest whole checkpoint if it has one."""
    found = processes.from_first(newest_checkpoint(attempt.store, attempt.run_id) if processes.rank() == 0 else None)
    if found:
        log.info("resuming after step %d", found[0])
    model = new_model(spec, data)
    if spec.encoder is not None:
        load_encoder(model, attempt.store, spec.encoder)
    with held_signals() as signal_came:
        hooks = RunHooks(attempt, signal_came)
        return model, fit_once(model, spec, data, hooks, device, resume=found[1] if found else None)


def fit_once(
    model: JadeCompact, spec: TrainSpec, data: Data, hooks: loop.Hooks, device: str, resume: Files | None = None
) -> loop.TrainResult:
    split = data.features.splits["train"]
    return loop.train(
        model,
        data.windows["train"],
        data.windows["val"],
        spec.training,
        lambda predicted: metrics.score(as_predictions(predicted), data.targets("val")),
        hooks,
        unlabelled=loop.Unlabelled(data.features.rows, data.features.valid, split.start, split.stop),
        resume=resume,
        device=device,
    )


def new_model(spec: TrainSpec, data: Data) -> JadeCompact:
    """An untrained model that knows how often each class is."""
    torch.manual_seed(spec.training.seed)
    config = data.features.metadata["config"]
    model = build_model(
        spec.model.name,
        input_size=data.features.rows.shape[1],
        hidden_size=spec.model.hidden_size,
        num_layers=spec.model.num_layers,
        dropout=spec.model.dropout,
        num_classes=len(spec.labels.classes),
        range_period=config["ema_range_period"],
        atr_period=config["atr_period"],
        longest_move=longest_move(data.windows["train"]),
    )
    # The sampler shows the classes equally often, whatever their counts.
    initialize_model_biases(model, [1] * len(spec.labels.classes))
    return model


def longest_move(windows: WindowDataset) -> int:
    """Bars: half as many again as the longest move that is trained on has, so that a longer one can still be found."""
    return int(np.clip(1.5 * (windows.end - windows.start + 1).max(), 2, WINDOW))


def load_encoder(model: JadeCompact, store: Store, run_id: str) -> None:
    """Start from the encoder of a committed train run. Raises ArtifactError or DataError if it does not fit."""
    items = {item["path"]: item for item in require_manifest(store, run_id)["files"]}
    weights = read_weights(store.get(items[WEIGHTS]["key"])) if WEIGHTS in items else {}
    encoder = {name: value for name, value in weights.items() if name.startswith(ENCODER)}
    mine = {name: value for name, value in model.state_dict().items() if name.startswith(ENCODER)}
    if {k: v.shape for k, v in encoder.items()} != {k: v.shape for k, v in mine.items()}:
        raise DataError(f"encoder: the model of run {run_id} must have an encoder of the same shape")
    model.load_state_dict(encoder, strict=False)


# --- cross-validation -------------------------------------------------------------------------------------------


def cross_validate(spec: TrainSpec, config: CrossValidation, data: Data, device: str) -> Any:
    """Forward-chaining folds x seeds: {"folds": one row per fit, "mean", "spread": standard deviation over fits}."""
    rows = []
    with held_signals() as signal_came:
        for fold, parts in enumerate(data.folds):
            windows = {name: windows_of(part, data.features) for name, part in parts.items()}
            for seed in config.seeds:
                training = spec.training.model_copy(update={"seed": seed})
                one = spec.model_copy(update={"training": training})
                features = replace(data.features, splits={"train": fold_train(data.features, fold, config.folds)})
                fold_data = Data(features, parts, windows, {})
                rows.append({"fold": fold, "seed": seed, **fit_fold(one, fold_data, device, signal_came)})
                log.info(
                    "fold %d seed %d  F1 %.3f  Hit@3 %.3f", fold, seed, rows[-1]["f1_macro"], rows[-1]["hit_centre_3"]
                )
    table = pd.DataFrame(rows)[["f1_macro", "hit_centre_3", "joint_success"]]
    return {"folds": rows, "mean": table.mean().to_dict(), "spread": table.std(ddof=0).to_dict()}


def fold_train(features: FeatureSet, fold: int, folds: int) -> Split:
    stop = round(len(features.rows) * (fold + 1) / (folds + 1) * (1 - VALIDATION_SHARE))
    return Split(0, stop - WINDOW + 1)


def all_folds(labels: LabelSet, n_bars: int, folds: int) -> tuple[dict[str, LabelSet], ...]:
    """The labels of every fold. Raises DataError naming the fold that has too few: before anything is trained."""
    found = []
    for fold in range(folds):
        try:
            found.append(fold_parts(labels, n_bars, fold, folds))
        except DataError as error:
            raise DataError(
                f"cross_validate.folds: fold {fold} of 0..{folds - 1} has too few labels: {error}"
            ) from error
    return tuple(found)


def fold_parts(labels: LabelSet, n_bars: int, fold: int, folds: int) -> dict[str, LabelSet]:
    """Train, val and test of a fold: the first part of the time, its last share for validation, and the next part."""
    known, stop = (fold + 1) / (folds + 1), (fold + 2) / (folds + 1)
    cuts = [0.0, known * (1 - VALIDATION_SHARE), known, stop]
    if labels.anchored:
        bars = [round(n_bars * cut) for cut in cuts]
        spans = zip(SPLITS, bars, bars[1:], strict=False)
        return assign_splits(labels, {name: Split(a, b - WINDOW + 1) for name, a, b in spans})[0]
    first = labels.take(np.arange(round(len(labels) * stop)))
    shares = {name: (b - a) / stop for name, a, b in zip(SPLITS, cuts, cuts[1:], strict=False)}
    return split_in_order(first, shares)[0]


def fit_fold(spec: TrainSpec, data: Data, device: str, signal_came: Callable[[], int | None]) -> dict[str, Any]:
    model = new_model(spec, data)
    fit_once(model, spec, data, QuietHooks(signal_came), device)
    predictions = as_predictions(loop.predict(model, data.windows["test"], device=device))
    found = metrics.score(predictions, data.targets("test"))
    counts = {f"n_{name}": len(part) for name, part in data.labels.items()}
    return {**counts, **{name: found[name] for name in ("f1_macro", "hit_centre_3", "joint_success")}}


class QuietHooks:
    """For fits that are not the run's own: no checkpoints, no log."""

    def __init__(self, signal_came: Callable[[], int | None] = lambda: None) -> None:
        self._signal_came = signal_came

    def save_checkpoint(self, step: int, files: Files) -> None: ...

    def progress(self, event: Mapping[str, Any]) -> None: ...

    def should_stop(self) -> bool:
        return self._signal_came() is not None


# --- outputs ----------------------------------------------------------------------------------------------------


def outputs(
    attempt: Attempt,
    spec: TrainSpec,
    document: dict[str, Any],
    data: Data,
    model: JadeCompact,
    result: loop.TrainResult,
    device: str,
) -> None:
    """Evaluate on validation and test, and store model, metrics, gates, history, predictions and report."""
    attempt.stage("evaluate")
    predicted = {name: loop.predict(model, data.windows[name], device=device) for name in SPLITS}
    temperature = metrics.fit_temperature(predicted["val"].logits, data.labels["val"].label_index)
    raw = {name: as_predictions(p, data.labels[name].window_id) for name, p in predicted.items()}
    predictions = {
        name: replace(p, probabilities=metrics.scale(p.probabilities, temperature)) for name, p in raw.items()
    }
    evaluations = {
        name: metrics.evaluate(
            raw[name], data.targets(name), data.targets("train"), data.x(name),
            temperature=temperature, seed=spec.training.seed,
        )
        for name in ("val", "test")
    }  # fmt: skip
    history = history_table(result)
    fitted = history[history["stage"] != "pretrain"]
    gates = metrics.check_gates(
        evaluations["val"],
        {name: fitted[name] for name in ("sigma_ptr", "sigma_type")},
        {name: fitted[name] for name in ("loss", "loss_ptr", "loss_type")},
        spec.gates,
        evaluations["test"],
    )
    found: dict[str, Any] = {"validation": evaluations["val"], "test": evaluations["test"], "left_out": data.left_out}
    found["labels"] = {name: {"n": len(p), **p.class_counts()} for name, p in data.labels.items()}
    if spec.cross_validate is not None:
        attempt.stage("cross-validate")
        found["cross_validation"] = cross_validate(spec, spec.cross_validate, data, device)
    attempt.stage("upload model, metrics and report")
    passed = [gate.passed for gate in gates]
    attempt.write(WEIGHTS, weights_bytes(model), SAFETENSORS)
    attempt.write(MODEL, to_json(model_document(spec, document, data, temperature)), JSON)
    attempt.write("metrics.json", to_json(found), JSON)
    attempt.write("gates.json", to_json({"passed": all(passed), "gates": [asdict(gate) for gate in gates]}), JSON)
    attempt.write("history.parquet", parquet(history), PARQUET)
    attempt.write("predictions.parquet", parquet(prediction_table(data, predictions)), PARQUET)
    page = report.render(report_data(attempt, spec, document, data, predictions["test"], evaluations, gates, history))
    attempt.write("report.html", page.encode(), HTML)
    log.info("gates: %d of %d passed", sum(passed), len(passed))


def history_table(result: loop.TrainResult) -> pd.DataFrame:
    """One row per epoch, columns as the report reads them."""
    names = {
        "pointer_loss": "loss_ptr",
        "type_loss": "loss_type",
        "val_f1_macro": "val_f1",
        "val_hit_centre_3": "val_hit3",
    }
    return pd.DataFrame(result.history).rename(columns=names)


def model_document(spec: TrainSpec, document: dict[str, Any], data: Data, temperature: float) -> dict[str, Any]:
    """model.json: all that is needed to use the weights."""
    return {
        "model": spec.model.model_dump(),
        "classes": list(spec.labels.classes),
        "temperature": temperature,
        "feature_names": list(FEATURE_NAMES),
        "feature_config": data.features.metadata["config"],
        "longest_move": longest_move(data.windows["train"]),
        "own_bars": not data.labels["train"].anchored,  # features of each window alone, not of the series
        "feature_set": document["inputs"]["features"],
        "moola": document["moola"],
    }


def parquet(table: pd.DataFrame) -> bytes:
    stream = io.BytesIO()
    table.to_parquet(stream, index=False)
    return stream.getvalue()


def prediction_table(data: Data, predictions: Mapping[str, Predictions]) -> pd.DataFrame:
    """One row per labelled window of every split: what is true, what was predicted, with which probability (scaled by
    the temperature, as `predict` gives them)."""
    parts = []
    for name, found in predictions.items():
        labels = data.labels[name]
        classes = np.array(labels.classes)
        opened = data.features.times[labels.anchor] if labels.anchored else None
        parts.append(
            pd.DataFrame(
                {
                    "split": name,
                    "window_id": labels.window_id,
                    "window_start": opened,
                    "label": classes[labels.label_index],
                    "expansion_start": labels.start,
                    "expansion_end": labels.end,
                    "predicted_label": classes[found.label],
                    "predicted_start": found.start,
                    "predicted_end": found.end,
                    **{f"probability_{c}": found.probabilities[:, k] for k, c in enumerate(classes)},
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def report_data(
    attempt: Attempt,
    spec: TrainSpec,
    document: dict[str, Any],
    data: Data,
    test: Predictions,
    evaluations: Mapping[str, Any],
    gates: list[metrics.Gate],
    history: pd.DataFrame,
) -> report.ReportData:
    labels = data.labels["test"]
    return report.ReportData(
        run_id=attempt.run_id,
        data_digest=document["inputs"]["features"]["sha256"],
        label_source=labels.source,
        splits={name: split_text(data, name) for name in SPLITS},
        seeds=[spec.training.seed],
        validation=evaluations["val"],
        test=evaluations["test"],
        gates=gates,
        history=history,
        windows=[shown(data, test, i) for i in report.pick_windows(test, data.targets("test"))],
        facts={"features": document["inputs"]["features"]["run"], "left out": left_out_text(data)},
        gate_config=spec.gates,
    )


def left_out_text(data: Data) -> str:
    return "; ".join(f"{count} labels: {reason}" for reason, count in data.left_out.items()) or "none"


def split_text(data: Data, name: str) -> str:
    part = data.labels[name]
    counts = ", ".join(f"{n} {label}" for label, n in part.class_counts().items())
    if not part.anchored:
        return counts
    times = data.features.times
    return f"{times[part.anchor.min()]:%Y-%m-%d} to {times[part.anchor.max() + WINDOW - 1]:%Y-%m-%d}: {counts}"


def shown(data: Data, test: Predictions, i: int) -> report.ShownWindow:
    labels, classes = data.labels["test"], data.labels["test"].classes
    if labels.bars is None:
        bars = data.features.bars.iloc[labels.anchor[i] : labels.anchor[i] + WINDOW]
        ohlc, opened = bars[["open", "high", "low", "close"]].to_numpy(), f"{bars.index[0]:%Y-%m-%d %H:%M} UTC"
    else:
        ohlc, opened = labels.bars[i], ""
    return report.ShownWindow(
        window_id=str(labels.window_id[i]),
        opened=opened,
        ohlc=ohlc,
        label=classes[labels.label_index[i]],
        start=int(labels.start[i]),
        end=int(labels.end[i]),
        predicted_label=classes[test.label[i]],
        predicted_start=int(test.start[i]),
        predicted_end=int(test.end[i]),
        probability=float(test.probabilities[i].max()),
    )

"""A model fitted to the run's data: made, given another run's encoder, trained, resumed."""

import logging
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from moola import WINDOW
from moola.errors import DataError
from moola.models import build_model
from moola.models.jade_core import JadeCompact, initialize_model_biases
from moola.runs.attempt import Attempt
from moola.runs.reading import newest_checkpoint, read_file, require_input_run
from moola.runs.records import InputRun
from moola.runs.signals import held_signals
from moola.specs import TrainSpec
from moola.store import Store
from moola.training import processes
from moola.training.batches import Collate, WindowDataset
from moola.training.boosting import grow_trees, lightgbm_module
from moola.training.checkpoint import WEIGHTS, Files, read_weights, require_recipe
from moola.training.data import TrainingData, rows_of_ranges
from moola.training.loop import (
    VAL_F1,
    VAL_HIT,
    VAL_SCORE,
    Event,
    Hooks,
    Score,
    TrainResult,
    train_model,
)
from moola.training.objectives import Unlabelled

log = logging.getLogger("moola")
ENCODER = "encoder."  # what the names of its weights begin with
LONGEST_MOVE_FACTOR = 1.5  # moves may be this many times as long as the longest trained on

ReceivedSignal = Callable[[], int | None]  # the stop signal that has come, if any


class RunHooks:
    """Reports the loop's progress to the run, and signals to the loop."""

    def __init__(
        self,
        attempt: Attempt,
        received_signal: ReceivedSignal,
    ) -> None:
        self._attempt = attempt
        self._received_signal = received_signal
        self._epoch_summary = ""

    def save_checkpoint(self, step: int, files: Files) -> None:
        self._attempt.checkpoint(step, files)

    def should_stop(self) -> bool:
        return self._received_signal() is not None

    def progress(self, event: Event) -> None:
        if event["kind"] == "step":
            self._show_step(event)
        else:
            self._log_epoch(event)

    def _show_step(self, event: Event) -> None:
        note = f"epoch {event['epoch']}  loss {event['loss']:.3f}  {self._epoch_summary}"
        self._attempt.show(
            event["stage"],
            event["stage_step"],
            event["steps"],
            "steps",
            note,
        )

    def _log_epoch(self, event: Event) -> None:
        sigmas = f"sigma {event['sigma_ptr']:.2f} {event['sigma_type']:.2f}"
        scores = ""
        if VAL_SCORE in event:
            scores = f"val F1 {event[VAL_F1]:.3f}  Hit@3 {event[VAL_HIT]:.3f}  "
        self._epoch_summary = f"{sigmas}  {scores}{event['windows_per_s']:,.0f} windows/s"
        log.info(
            "%s epoch %d  loss %.3f  %s",
            event["stage"],
            event["epoch"],
            event["loss"],
            self._epoch_summary,
        )


def never() -> None:
    """No signal has come."""


class QuietHooks:
    """For fits that are not the run's own: no checkpoints, no log."""

    def __init__(self, received_signal: ReceivedSignal = never) -> None:
        self._received_signal = received_signal

    def save_checkpoint(self, step: int, files: Files) -> None: ...

    def progress(self, event: Event) -> None: ...

    def should_stop(self) -> bool:
        return self._received_signal() is not None


def fit_run(
    attempt: Attempt,
    spec: TrainSpec,
    data: TrainingData,
    score: Score,
    device: str,
    encoder: InputRun | None = None,
) -> tuple[JadeCompact, TrainResult]:
    """The run's model, trained on from its newest whole checkpoint if it has one.

    `encoder` is the run whose encoder it starts from.
    """
    checkpoint = None
    if processes.rank() == 0:
        checkpoint = newest_checkpoint(attempt.store, attempt.run_id)
    checkpoint = processes.from_first(checkpoint)
    resume = None
    if checkpoint is not None:
        step, resume = checkpoint
        log.info("resuming after step %d", step)

    model = new_model(spec, data)
    if encoder is not None:
        load_encoder(model, attempt.store, encoder)
    with held_signals() as received_signal:
        hooks = RunHooks(attempt, received_signal)
        result = fit_model(model, spec, data, score, hooks, device, resume)
        return model, result


def fit_model(
    model: JadeCompact,
    spec: TrainSpec,
    data: TrainingData,
    score: Score,
    hooks: Hooks,
    device: str,
    resume: Files | None = None,
) -> TrainResult:
    """Train `model` on the data's training windows; `score` rates it on the validation windows.

    Raises DataError where trees are wanted and LightGBM is not there: before anything is trained.
    """
    if spec.trees.members:
        lightgbm_module()
    return train_model(
        model,
        data.windows["train"],
        data.windows["val"],
        spec.training,
        score,
        hooks,
        unlabelled=unlabelled_windows(spec, data),
        resume=resume,
        device=device,
        finish=partial(give_trees, model, spec, data, hooks),
    )


def unlabelled_windows(spec: TrainSpec, data: TrainingData) -> Unlabelled:
    """What pretraining reads: every window of the train split, with a label or without.

    The labelled ones alone in a fold of labels that carry their own bars: when those were is not
    known, so any window of the feature set may be one that the fold is tested on.
    """
    labelled = data.windows["train"]
    if spec.cross_validate is not None and not data.labels["train"].anchored:
        return Unlabelled(labelled.rows, labelled.valid, labelled.window_row)

    features = data.features
    step = 1 if features.is_series else WINDOW
    return Unlabelled(
        features.rows,
        features.valid,
        rows_of_ranges(data.ranges("train"), step),
    )


def give_trees(
    model: JadeCompact,
    spec: TrainSpec,
    data: TrainingData,
    hooks: Hooks,
) -> None:
    """Grow the trees of a trained model, on the CPU. Raises Stopped."""
    if not spec.trees.members:
        return

    training = spec.training
    windows = data.windows["train"]
    log.info("growing trees on %d labels", len(windows))
    collate = Collate(
        windows,
        training.seed,
        recut=training.recut,
        mirrored=training.mirrored,
    )
    model.cpu().eval()
    grow_trees(
        model,
        windows,
        spec.trees,
        seed=training.seed,
        collate=collate,
        should_stop=hooks.should_stop,
    )


def new_model(spec: TrainSpec, data: TrainingData) -> JadeCompact:
    """An untrained model of the spec, which takes all classes to be equally likely.

    The sampler shows the classes equally often, whatever their counts.
    """
    torch.manual_seed(spec.training.seed)
    n_classes = len(data.labels["train"].classes)
    config = data.features.metadata.feature_config()
    model = build_model(
        spec.model.name,
        input_size=data.features.rows.shape[1],
        hidden_size=spec.model.hidden_size,
        num_layers=spec.model.num_layers,
        dropout=spec.model.dropout,
        num_classes=n_classes,
        range_period=config.ema_range_period,
        atr_period=config.atr_period,
        longest_move=longest_move(data.windows["train"]),
    )
    initialize_model_biases(model, [1] * n_classes)

    return model


def longest_move(windows: WindowDataset) -> int:
    """Bars; longer than any move trained on, so that a longer one can still be found."""
    lengths = windows.end_row - windows.start_row + 1
    return int(np.clip(LONGEST_MOVE_FACTOR * lengths.max(), 2, WINDOW))


def load_encoder(
    model: JadeCompact,
    store: Store,
    item: InputRun,
) -> None:
    """Start from the encoder of a committed train run.

    Raises ArtifactError or DataError if it does not fit.
    """
    weights = read_weights(read_file(store, require_input_run(store, item), WEIGHTS))
    require_recipe(weights)
    encoder = {name: value for name, value in weights.items() if name.startswith(ENCODER)}

    shapes = {name: value.shape for name, value in encoder.items()}
    own_shapes = {
        name: value.shape for name, value in model.state_dict().items() if name.startswith(ENCODER)
    }
    if shapes != own_shapes:
        raise DataError(
            f"encoder: the model of run {item.run} must have an encoder of the same shape"
        )

    model.load_state_dict(encoder, strict=False)

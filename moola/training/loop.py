"""The stages of a training run: pretrain (fill in hidden spans), heads (encoder frozen), full.

The weights of the best epoch stay. The loop knows no store and no terminal: it hands checkpoints
and progress to `Hooks`. Every random number is drawn from the seed and the place in the run, or
from a generator whose state is in the checkpoint; so on the CPU a run that was killed at any step
and resumed ends with the same bits as one that was not.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from moola import HIT_BARS
from moola.errors import ArtifactError, DataError, TrainingError
from moola.models import JadeCompact
from moola.specs import TrainConfig
from moola.training.batches import (
    WINDOW_ID,
    Batch,
    WindowDataset,
    WindowLoader,
    setup_optimized_dataloader,
    validate_batch_schema,
)
from moola.training.boosting import Stopped
from moola.training.checkpoint import Files, load_weights, pack, unpack
from moola.training.device import can_compile
from moola.training.inference import ModelOutputs, infer
from moola.training.objectives import LOSS_PARTS, FillIn, Supervised, Unlabelled
from moola.training.optimizer import (
    STAGES,
    make_optimizer,
    set_learning_rates,
    trained_parameters,
)
from moola.training.processes import from_first, in_group

MIN_WINDOWS_PER_EPOCH = 512
MAX_WINDOWS_PER_EPOCH = 4096  # the trees see all labels, whatever the network is shown

HistoryRow = dict[str, Any]
Event = Mapping[str, Any]
# Of the validation windows, in order: must hold f1_macro and hit_centre_3; all of it goes into the
# history, each name with "val_" before it.
Score = Callable[[ModelOutputs], Mapping[str, float]]
VAL_F1 = "val_f1_macro"
VAL_HIT = f"val_hit_centre_{HIT_BARS}"
VAL_SCORE = "val_score"  # their mean, by which the best epoch is chosen


class Interrupted(Exception):  # noqa: N818 - nothing went wrong
    """The run was asked to stop and has handed over a checkpoint at which it can go on."""


class Hooks(Protocol):
    """What a run reports to. Only rank 0 calls `save_checkpoint` and `progress`."""

    def save_checkpoint(self, step: int, files: Files) -> None:
        """Keep `files` (name -> bytes) as the checkpoint after `step` steps."""

    def progress(self, event: Event) -> None:
        """`event["kind"]` is "step" (stage, epoch, step, steps, loss, ...) or "epoch" (a row of the
        history)."""

    def should_stop(self) -> bool:
        """True once the run is to end early, say after SIGTERM. Called after every step."""
        ...


@dataclass(frozen=True)
class TrainResult:
    """The model holds the best weights. `history`: a row per epoch; `best`: their row."""

    history: list[HistoryRow]
    best: HistoryRow


def nothing_more() -> None:
    """For runs that end with their last epoch."""


def no_loss_yet() -> list[float]:
    return [0.0] * len(LOSS_PARTS)


@dataclass
class Place:
    """Where a run is: `batch` batches of this epoch are done, `step` steps of the run."""

    stage: str = STAGES[0]
    epoch: int = 0
    batch: int = 0
    stage_step: int = 0
    step: int = 0
    sums: list[float] = field(default_factory=no_loss_yet)  # of this epoch's losses


def train_model(
    model: JadeCompact,
    train_set: WindowDataset,
    val_set: WindowDataset,
    config: TrainConfig,
    score: Score,
    hooks: Hooks,
    *,
    unlabelled: Unlabelled | None = None,
    resume: Files | None = None,
    device: str = "cpu",
    finish: Callable[[], None] = nothing_more,
) -> TrainResult:
    """Train `model` in place. `resume` is a checkpoint of the same run.

    `finish` is called by rank 0 once the model has its best weights; it may raise Stopped.

    Under torchrun with a process group set up, every process calls this with the same arguments.

    Raises TrainingError for a loss or gradient that is not finite, Interrupted after
    `hooks.should_stop()`, DataError for pretraining without unlabelled windows, ArtifactError for a
    checkpoint of another run.
    """
    if config.pretrain_epochs and unlabelled is None:
        raise DataError("pretraining needs unlabelled windows, got none")

    trainer = _Trainer(
        model,
        train_set,
        val_set,
        config,
        score,
        hooks,
        unlabelled,
        torch.device(device),
    )
    result = trainer.run(resume)
    if trainer.rank == 0:
        trainer.finish(finish)

    return result


def uses_bfloat16(device: torch.device, config: TrainConfig) -> bool:
    """Whether the objectives are computed in bfloat16: on CUDA, unless the config says no."""
    return device.type == "cuda" and config.mixed_precision


class _Trainer:
    def __init__(
        self,
        model: JadeCompact,
        train_set: WindowDataset,
        val_set: WindowDataset,
        config: TrainConfig,
        score: Score,
        hooks: Hooks,
        unlabelled: Unlabelled | None,
        device: torch.device,
    ) -> None:
        self.model = model.to(device)
        self.val_set = val_set
        self.config = config
        self.score = score
        self.hooks = hooks
        self.unlabelled = unlabelled
        self.device = device

        self.distributed = in_group()
        self.rank = dist.get_rank() if self.distributed else 0
        self.world_size = dist.get_world_size() if self.distributed else 1
        self.bfloat16 = uses_bfloat16(device, config)

        self.loader = self._train_loader(train_set)
        model.set_length_prior(torch.from_numpy(train_set.end_row - train_set.start_row + 1))
        self.fill_in = FillIn(model).to(device)  # holds the model: its weights are all there are

        self.place = Place()
        self.history: list[HistoryRow] = []
        self.best: HistoryRow | None = None
        self.best_weights: dict[str, Tensor] | None = None
        self.last_checkpoint: int | None = None
        self.saved_at = time.monotonic()

    def _train_loader(self, train_set: WindowDataset) -> WindowLoader:
        config = self.config
        enough = min(max(len(train_set), MIN_WINDOWS_PER_EPOCH), MAX_WINDOWS_PER_EPOCH)
        windows_per_epoch = config.windows_per_epoch or enough
        return setup_optimized_dataloader(
            train_set,
            config.batch_size,
            train=True,
            seed=config.seed,
            recut=config.recut,
            mirrored=config.mirrored,
            windows_per_epoch=windows_per_epoch,
            rank=self.rank,
            world_size=self.world_size,
            pin_memory=self.device.type == "cuda",
        )

    # --- stages and epochs ---

    def run(self, resume: Files | None) -> TrainResult:
        if self.config.deterministic:
            torch.use_deterministic_algorithms(True, warn_only=self.device.type == "cuda")
        torch.manual_seed(self.config.seed + self.rank)

        optimizer_state = self._restore(resume) if resume is not None else None
        for stage in STAGES[STAGES.index(self.place.stage) :]:
            if stage != self.place.stage:
                self.place = Place(stage, step=self.place.step)
            self._run_stage(stage, optimizer_state)
            optimizer_state = None

        if self.best is None or self.best_weights is None:
            raise TrainingError(
                f"no epoch could be scored (stage {self.place.stage}, step {self.place.step})"
            )

        load_weights(self.model, self.best_weights)

        return TrainResult(self.history, self.best)

    def _run_stage(
        self,
        stage: str,
        optimizer_state: dict[str, Any] | None,
    ) -> None:
        epochs = {
            "pretrain": self.config.pretrain_epochs,
            "heads": self.config.heads_epochs,
            "full": self.config.full_epochs,
        }[stage]
        self.model.encoder.requires_grad_(stage != "heads")
        objective = self._objective(stage)
        self.optimizer = make_optimizer(stage, self.model, self.fill_in, self.config)
        if optimizer_state is not None:
            self.optimizer.load_state_dict(optimizer_state)

        for epoch in range(self.place.epoch, epochs):
            if stage == "full" and self._out_of_patience():
                break
            self.place.epoch = epoch
            started = time.monotonic()
            resumed_at = self.place.batch
            self._run_epoch(stage, objective, epochs)

            seconds = max(time.monotonic() - started, 1e-9)
            n_windows = (self.place.batch - resumed_at) * self.config.batch_size
            self._finish_epoch(stage, n_windows / seconds)
            self.place.epoch = epoch + 1
            self.place.batch = 0
            self.place.sums = no_loss_yet()

    def _run_epoch(
        self,
        stage: str,
        objective: nn.Module,
        epochs: int,
    ) -> None:
        self.model.train()
        place = self.place
        stage_steps = epochs * self._n_batches(stage)
        for batch in self._batches(stage):
            set_learning_rates(
                self.optimizer,
                self.config,
                place.stage_step,
                stage_steps,
            )
            parts, stop = self._step(batch, objective)

            for k, part in enumerate(parts):
                place.sums[k] += part
            place.batch += 1
            place.stage_step += 1
            place.step += 1
            self._report_step(parts, stage_steps)

            if stop:
                self._stop()
            if time.monotonic() - self.saved_at >= 60 * self.config.checkpoint_minutes:
                self._save()

    def _finish_epoch(self, stage: str, windows_per_s: float) -> None:
        row: HistoryRow = {"stage": stage, "epoch": self.place.epoch, "step": self.place.step}
        for name, total in zip(LOSS_PARTS, self.place.sums, strict=True):
            row[name] = total / self._n_batches(stage)
        row["sigma_ptr"] = self.model.log_sigma_ptr.exp().item()
        row["sigma_type"] = self.model.log_sigma_type.exp().item()
        row["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        row["windows_per_s"] = windows_per_s
        if stage != "pretrain":
            self._validate(row)

        self.history.append(row)
        if self.rank == 0:
            self.hooks.progress({"kind": "epoch", **row})

    def _validate(self, row: HistoryRow) -> None:
        """Score the model on the validation windows into `row`; keep its weights if it is best."""
        outputs = infer(
            self.model,
            self.val_set,
            device=self.device,
            on_windows=lambda _: self._stop_if_requested(),
        )
        scores = {f"val_{name}": value for name, value in self.score(outputs).items()}
        # Those of rank 0: a best epoch or an end that two processes saw differently would part
        # them.
        row |= from_first(scores)
        row[VAL_SCORE] = 0.5 * (row[VAL_F1] + row[VAL_HIT])

        if self.best is None or row[VAL_SCORE] > self.best[VAL_SCORE]:
            self.best = row
            self.best_weights = {
                name: value.detach().cpu().clone()
                for name, value in self.model.state_dict().items()
            }

    def _out_of_patience(self) -> bool:
        full_epochs = [row["epoch"] for row in self.history if row["stage"] == "full"]
        if self.best is None or not full_epochs:
            return False

        best_epoch = self.best["epoch"] if self.best["stage"] == "full" else -1
        return bool(full_epochs[-1] - best_epoch >= self.config.patience_epochs)

    def finish(self, finish: Callable[[], None]) -> None:
        try:
            finish()
        except Stopped:
            self._stop()

    # --- batches and steps ---

    def _n_batches(self, stage: str) -> int:
        if stage == "pretrain":
            return math.ceil(self.config.pretrain_windows / self.config.batch_size)

        return len(self.loader)

    def _batches(self, stage: str) -> Iterator[Batch]:
        """The rest of this epoch's batches."""
        place = self.place
        if stage == "pretrain":
            for number in range(place.batch, self._n_batches(stage)):
                yield self._masked_batch(number)
            return

        # heads and full go through different epochs: what one drew the other does not draw again.
        epoch = 2 * place.epoch + (stage == "full")
        self.loader.set_epoch(epoch, skip=place.batch)
        for batch in self.loader:
            validate_batch_schema(batch)
            yield batch

    def _masked_batch(self, number: int) -> Batch:
        """This process's share of the epoch's batch `number` of unlabelled windows."""
        assert self.unlabelled is not None
        rng = np.random.default_rng((self.config.seed, self.place.epoch, number))
        share = slice(self.rank, None, self.world_size)

        return self.unlabelled.masked_batch(
            rng,
            self.config.batch_size,
            share,
        )

    def _objective(self, stage: str) -> nn.Module:
        objective: nn.Module = self.fill_in
        if stage != "pretrain":
            objective = Supervised(self.model, self.config.target_width_bars)
        if self.device.type == "cuda" and self.config.compile and can_compile():
            objective = torch.compile(objective)  # type: ignore[assignment]
        if not self.distributed:
            return objective

        # Pretraining leaves the heads out, `heads` the encoder: only what the stage trains may wait
        # for a gradient.
        self.model.requires_grad_(False)
        for parameter in trained_parameters(stage, self.model, self.fill_in):
            parameter.requires_grad_(True)

        return DistributedDataParallel(objective)

    def _step(
        self,
        batch: Batch,
        objective: nn.Module,
    ) -> tuple[list[float], bool]:
        """One optimizer step.

        -> the loss parts, averaged over the processes, and whether one of them is to stop.
        """
        tensors = {
            name: value.to(self.device, non_blocking=True)
            for name, value in batch.items()
            if isinstance(value, Tensor)
        }
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(
            self.device.type,
            dtype=torch.bfloat16,
            enabled=self.bfloat16,
        ):
            parts = objective(tensors)

        parts[0].backward()
        groups = self.optimizer.param_groups
        parameters = [parameter for group in groups for parameter in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, self.config.gradient_limit)

        *values, norm_value, stop = self._averaged(parts.detach(), norm.detach())
        if not (math.isfinite(values[0]) and math.isfinite(norm_value)):
            self._refuse(values[0], norm_value, batch)
        self.optimizer.step()

        return values, stop > 0

    def _averaged(self, parts: Tensor, norm: Tensor) -> list[float]:
        """Loss parts, gradient norm, and 1.0 for a request to stop: means over the processes."""
        stop = parts.new_tensor([float(self.hooks.should_stop())])
        values = torch.cat([parts, norm.reshape(1), stop])
        if self.distributed:
            dist.all_reduce(values)
            values /= self.world_size
        return list(values.tolist())

    def _refuse(self, loss: float, norm: float, batch: Batch) -> None:
        windows = ", ".join(map(str, batch[WINDOW_ID]))
        checkpoint = "none" if self.last_checkpoint is None else f"step {self.last_checkpoint}"
        raise TrainingError(
            f"loss and gradient must be finite, got loss {loss} and gradient norm {norm} "
            f"(stage {self.place.stage}, step {self.place.step + 1}, windows {windows}; "
            f"last good checkpoint: {checkpoint})"
        )

    def _report_step(
        self,
        parts: Sequence[float],
        stage_steps: int,
    ) -> None:
        if self.rank != 0:
            return

        event = {
            "kind": "step",
            "stage": self.place.stage,
            "epoch": self.place.epoch,
            "step": self.place.step,
            "stage_step": self.place.stage_step,
            "steps": stage_steps,
        }
        self.hooks.progress(event | dict(zip(LOSS_PARTS, parts, strict=True)))

    # --- stopping, saving, resuming ---

    def _stop_if_requested(self) -> None:
        requested = torch.tensor(float(self.hooks.should_stop()), device=self.device)
        if self.distributed:
            dist.all_reduce(requested)  # every process validates as many batches
        if requested > 0:
            self._stop()

    def _stop(self) -> None:
        self._save()
        raise Interrupted(f"stopped after step {self.place.step}, with a checkpoint")

    def _save(self) -> None:
        self.saved_at = time.monotonic()
        self.last_checkpoint = self.place.step
        if self.rank == 0:
            files = pack(
                self.fill_in.state_dict(),
                self.best_weights,
                self._state(),
            )
            self.hooks.save_checkpoint(self.place.step, files)

    def _state(self) -> dict[str, Any]:
        return {
            "config": self.config.model_dump_json(),
            "place": dict(vars(self.place)),
            "history": self.history,
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state() if self.device.type == "cuda" else None,
        }

    def _restore(self, files: Files) -> dict[str, Any]:
        """Go back to a checkpoint; returns the optimizer's state."""
        weights, best_weights, state = unpack(files)
        if state["config"] != self.config.model_dump_json():
            raise ArtifactError(
                f"a checkpoint is resumed with its own settings, {state['config']}, not with others"
            )

        load_weights(self.fill_in, weights)
        self.best_weights = best_weights
        self.place = Place(**state["place"])
        self.history = state["history"]
        self.best = state["best"]
        self.last_checkpoint = self.place.step

        if self.rank > 0:
            torch.manual_seed(self.config.seed + self.rank + self.world_size * self.place.step)
            return dict(state["optimizer"])

        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"])

        return dict(state["optimizer"])

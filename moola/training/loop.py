"""The stages of a training run: pretrain (fill in masked spans), heads (encoder frozen), full; the best weights stay.

The loop knows no store and no terminal: it hands checkpoints and progress to `Hooks`. Every random number is drawn
from the seed and the place in the run, or from a generator whose state is in the checkpoint; so on the CPU a run that
was killed at any step and resumed ends with the same bits as one that was not.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from moola import WINDOW
from moola.errors import ArtifactError, DataError, TrainingError
from moola.models import JadeCompact
from moola.models.jade_core import decode_spans
from moola.specs import TrainConfig
from moola.training.batches import Batch, WindowDataset, class_counts, setup_optimized_dataloader, validate_batch_schema
from moola.training.checkpoint import Files, load_weights, pack, unpack
from moola.training.device import can_compile
from moola.training.loss import uncertainty_loss
from moola.training.processes import from_first, in_group

STAGES = ("pretrain", "heads", "full")
LEAST_WINDOWS_PER_EPOCH = 512
MASKED_SPANS, MASKED_BARS = 2, (4, 12)  # pretraining hides this many spans of this many bars in a window
PARTS = ("loss", "pointer_loss", "type_loss")
EVALUATION_BATCH = 128


class Interrupted(Exception):  # noqa: N818 - nothing went wrong
    """The run was asked to stop and has handed over a checkpoint at which it can go on."""


class Hooks(Protocol):
    """What a run tells its surroundings. Only process 0 calls `save_checkpoint` and `progress`."""

    def save_checkpoint(self, step: int, files: Files) -> None:
        """Keep `files` (name -> bytes) as the checkpoint after `step` steps."""

    def progress(self, event: Mapping[str, Any]) -> None:
        """`event["kind"]` is "step" (stage, epoch, step, steps, loss, ...) or "epoch" (a row of the history)."""

    def should_stop(self) -> bool:
        """True once the run is to end early, say after SIGTERM. Asked after every step."""
        ...


@dataclass(frozen=True)
class Predicted:
    """Of N windows: logits [N, K] (log-probabilities), start and end [N] bars in the window, both inclusive."""

    logits: NDArray[np.float64]
    start: NDArray[np.int64]
    end: NDArray[np.int64]


# Of the validation windows, in order: must hold "f1_macro" and "hit_centre_3"; all of it goes into the history.
Score = Callable[[Predicted], Mapping[str, float]]


@dataclass(frozen=True)
class Unlabelled:
    """Windows to pretrain on: rows [n_bars, F] float32, valid [n_bars], windows that start in [first, stop)."""

    rows: NDArray[np.float32]
    valid: NDArray[np.bool_]
    first: int
    stop: int


@dataclass(frozen=True)
class TrainResult:
    """The model holds the best weights. `history`: one row per epoch; `best`: the row they are from."""

    history: list[dict[str, Any]]
    best: dict[str, Any]


@dataclass
class Place:
    """Where a run is: `batch` batches of this epoch are done, `step` steps of the run."""

    stage: str = STAGES[0]
    epoch: int = 0
    batch: int = 0
    stage_step: int = 0
    step: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0] * len(PARTS))  # of this epoch's losses


def train(
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
) -> TrainResult:
    """Train `model` in place. `resume` is a checkpoint of the same run. Under torchrun with a process group set up,
    every process calls this with the same arguments.

    Raises TrainingError for a loss or gradient that is not finite, Interrupted after `hooks.should_stop()`, DataError
    for pretraining without unlabelled windows, ArtifactError for a checkpoint of another run.
    """
    return _Run(model, train_set, val_set, config, score, hooks, unlabelled, torch.device(device)).train(resume)


@torch.no_grad()
def predict(
    model: JadeCompact,
    dataset: WindowDataset,
    *,
    device: str | torch.device = "cpu",
    on_windows: Callable[[int], None] = lambda _: None,
) -> Predicted:
    """What `model` says of every window, in order and as labelled (not re-cut); `on_windows` is told how many more are
    done."""
    model.to(device).eval()
    logits, spans = [], []
    for batch in setup_optimized_dataloader(dataset, EVALUATION_BATCH):
        output = model(batch["x"].to(device), batch["valid_mask"].to(device))
        logits.append(output["logits"].double().cpu())
        if model.predict_pointers:
            spans.append(torch.stack(decode_spans(output["span_probs"]), 1).cpu())
        else:
            spans.append(torch.tensor([[0, WINDOW - 1]]).expand(len(batch["x"]), 2))
        on_windows(len(batch["x"]))
    span = torch.cat(spans).numpy()  # [N, 2]
    return Predicted(torch.cat(logits).numpy(), span[:, 0], span[:, 1])


class Supervised(nn.Module):
    """Batch -> loss parts [3], in the order of PARTS."""

    def __init__(self, model: JadeCompact, width: float) -> None:
        super().__init__()
        self.model, self.width = model, width

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        output = self.model(batch["x"], batch["valid_mask"])
        return torch.stack(uncertainty_loss(output, batch, self.width))


class FillIn(nn.Module):
    """Pretraining: the encoder reads windows with hidden spans; a linear layer says what was there. Huber loss."""

    def __init__(self, model: JadeCompact) -> None:
        super().__init__()
        self.model = model
        self.reconstruct = nn.Linear(2 * model.encoder.hidden_size, model.input_size)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        h = self.model.encode(batch["x"], batch["valid_mask"] & ~batch["hidden"])  # [B, T, 2H]
        asked = (batch["hidden"] & batch["valid_mask"]).unsqueeze(-1)  # [B, T, 1]
        error = nn.functional.huber_loss(self.reconstruct(h), batch["x"], reduction="none") * asked
        # A mean of windows' means, so that it is the same however the windows are shared out among processes.
        loss = (error.mean(dim=2).sum(dim=1) / asked.sum(dim=(1, 2)).clamp(min=1)).mean()
        return torch.stack([loss, torch.zeros_like(loss), torch.zeros_like(loss)])


class _Run:
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
        if config.pretrain_epochs and unlabelled is None:
            raise DataError("pretraining needs unlabelled windows, got none")
        self.model, self.config, self.score, self.hooks, self.device = model.to(device), config, score, hooks, device
        self.val_set, self.unlabelled = val_set, unlabelled
        self.distributed = in_group()
        self.rank = dist.get_rank() if self.distributed else 0
        self.world_size = dist.get_world_size() if self.distributed else 1
        self.loader = setup_optimized_dataloader(
            train_set,
            config.batch_size,
            train=True,
            seed=config.seed,
            recut=config.recut,
            mirrored=config.mirrored,
            windows_per_epoch=config.windows_per_epoch or max(len(train_set), LEAST_WINDOWS_PER_EPOCH),
            rank=self.rank,
            world_size=self.world_size,
            pin_memory=device.type == "cuda",
        )
        model.set_length_prior(torch.from_numpy(train_set.end - train_set.start + 1))
        self.classes = class_counts(train_set.label)
        self.fill_in = FillIn(model).to(device)  # holds the model: its weights are all there are
        self.place, self.history = Place(), list[dict[str, Any]]()
        self.best: dict[str, Any] | None = None
        self.best_weights: dict[str, Tensor] | None = None
        self.last_checkpoint: int | None = None
        self.saved_at = time.monotonic()

    def train(self, resume: Files | None) -> TrainResult:
        if self.config.deterministic:
            torch.use_deterministic_algorithms(True, warn_only=self.device.type == "cuda")
        torch.manual_seed(self.config.seed + self.rank)
        optimizer_state = self._restore(resume) if resume is not None else None
        for stage in STAGES[STAGES.index(self.place.stage) :]:
            if stage != self.place.stage:
                self.place = Place(stage, step=self.place.step)
            self._train_stage(stage, optimizer_state)
            optimizer_state = None
        if self.best is None or self.best_weights is None:
            raise TrainingError(f"no epoch could be scored (stage {self.place.stage}, step {self.place.step})")
        load_weights(self.model, self.best_weights)
        return TrainResult(self.history, self.best)

    def _train_stage(self, stage: str, optimizer_state: dict[str, Any] | None) -> None:
        epochs = getattr(self.config, f"{stage}_epochs")
        self.model.encoder.requires_grad_(stage != "heads")
        objective = self._objective(stage)
        self.optimizer = self._optimizer(stage)
        if optimizer_state is not None:
            self.optimizer.load_state_dict(optimizer_state)
        for epoch in range(self.place.epoch, epochs):
            if stage == "full" and self._out_of_patience():
                break
            self.place.epoch = epoch
            started, done = time.monotonic(), self.place.batch
            self._train_epoch(stage, objective, epochs)
            seconds = max(time.monotonic() - started, 1e-9)
            self._finish_epoch(stage, (self.place.batch - done) * self.config.batch_size / seconds)
            self.place.epoch, self.place.batch = epoch + 1, 0
            self.place.sums = [0.0] * len(PARTS)

    def _train_epoch(self, stage: str, objective: nn.Module, epochs: int) -> None:
        self.model.train()
        n_batches = self._n_batches(stage)
        for batch in self._batches(stage):
            self._set_rates(epochs * n_batches)
            parts, stop = self._step(batch, objective)
            self.place.sums = [total + part for total, part in zip(self.place.sums, parts, strict=True)]
            self.place.batch += 1
            self.place.stage_step += 1
            self.place.step += 1
            self._report_step(parts, epochs * n_batches)
            if stop:
                self._stop()
            if time.monotonic() - self.saved_at >= 60 * self.config.checkpoint_minutes:
                self._save()

    def _step(self, batch: Batch, objective: nn.Module) -> tuple[list[float], bool]:
        """One optimizer step: the loss parts, averaged over the processes, and whether one of them is to stop."""
        on_device = {
            name: value.to(self.device, non_blocking=True) for name, value in batch.items() if isinstance(value, Tensor)
        }
        self.optimizer.zero_grad(set_to_none=True)
        with self._precision():
            parts = objective(on_device)
        parts[0].backward()
        norm = nn.utils.clip_grad_norm_(
            [p for group in self.optimizer.param_groups for p in group["params"]], self.config.gradient_limit
        )
        told = torch.cat(
            [parts.detach(), norm.detach().reshape(1), parts.new_tensor([float(self.hooks.should_stop())])]
        )
        if self.distributed:
            dist.all_reduce(told)
            told /= self.world_size
        *values, norm_value, stop = told.tolist()
        if not (math.isfinite(values[0]) and math.isfinite(norm_value)):
            self._refuse(values[0], norm_value, batch)
        self.optimizer.step()
        return values, stop > 0

    def _refuse(self, loss: float, norm: float, batch: Batch) -> None:
        windows = ", ".join(map(str, batch["window_id"]))
        raise TrainingError(
            f"loss and gradient must be finite, got loss {loss} and gradient norm {norm} (stage {self.place.stage}, "
            f"step {self.place.step + 1}, windows {windows}; last good checkpoint: "
            f"{'none' if self.last_checkpoint is None else f'step {self.last_checkpoint}'})"
        )

    def _finish_epoch(self, stage: str, windows_per_s: float) -> None:
        row: dict[str, Any] = {"stage": stage, "epoch": self.place.epoch, "step": self.place.step}
        row |= {name: total / self._n_batches(stage) for name, total in zip(PARTS, self.place.sums, strict=True)}
        row |= {f"sigma_{part}": getattr(self.model, f"log_sigma_{part}").exp().item() for part in ("ptr", "type")}
        row |= {"learning_rate": self.optimizer.param_groups[0]["lr"], "windows_per_s": windows_per_s}
        if stage != "pretrain":
            predicted = predict(
                self.model, self.val_set, device=self.device, on_windows=lambda _: self._stop_if_asked()
            )
            # Of process 0: a best epoch or an end that two processes saw differently would part them for ever.
            row |= from_first({f"val_{name}": value for name, value in self.score(predicted).items()})
            row["val_score"] = 0.5 * (row["val_f1_macro"] + row["val_hit_centre_3"])
            if self.best is None or row["val_score"] > self.best["val_score"]:
                self.best = row
                self.best_weights = {
                    name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()
                }
        self.history.append(row)
        if self.rank == 0:
            self.hooks.progress({"kind": "epoch", **row})

    def _out_of_patience(self) -> bool:
        scored = [row for row in self.history if row["stage"] == "full"]
        if self.best is None or not scored:
            return False
        since = scored[-1]["epoch"] - (self.best["epoch"] if self.best["stage"] == "full" else -1)
        return bool(since >= self.config.patience_epochs)

    def _objective(self, stage: str) -> nn.Module:
        objective: nn.Module = (
            self.fill_in if stage == "pretrain" else Supervised(self.model, self.config.target_width_bars)
        )
        if self.device.type == "cuda" and self.config.compile and can_compile():
            objective = torch.compile(objective)  # type: ignore[assignment]
        if not self.distributed:
            return objective
        # Pretraining leaves the heads out, `heads` the encoder: only what the stage trains may wait for a gradient.
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        for parameter in self._trained(stage):
            parameter.requires_grad_(True)
        return DistributedDataParallel(objective)

    def _trained(self, stage: str) -> list[nn.Parameter]:
        encoder = list(self.model.encoder.parameters())
        if stage == "pretrain":
            return encoder + list(self.fill_in.reconstruct.parameters())
        return self.model.head_parameters() + self._sigmas() + (encoder if stage == "full" else [])

    def _sigmas(self) -> list[nn.Parameter]:
        return [self.model.log_sigma_ptr, self.model.log_sigma_type]

    def _optimizer(self, stage: str) -> torch.optim.AdamW:
        encoder, decay = list(self.model.encoder.parameters()), self.config.weight_decay
        if stage == "pretrain":
            groups = [{"params": self._trained(stage), "weight_decay": decay, "part": 1.0}]
        else:
            groups = [
                {"params": self.model.head_parameters(), "weight_decay": decay, "part": 1.0},
                {"params": self._sigmas(), "weight_decay": 0.0, "part": 1.0},
            ]
        if stage == "full":
            groups.append({"params": encoder, "weight_decay": decay, "part": self.config.encoder_step})
        return torch.optim.AdamW(groups, lr=self.config.learning_rate, fused=True)

    def _set_rates(self, steps: int) -> None:
        """Linear warm-up, then half a cosine down to 0 at the stage's last step."""
        done, warm_up = self.place.stage_step, max(1, round(self.config.warm_up_fraction * steps))
        factor = min(1.0, (done + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * done / steps))
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * group["part"] * factor

    def _batches(self, stage: str) -> Iterator[Batch]:
        """The rest of this epoch's batches."""
        if stage == "pretrain":
            for number in range(self.place.batch, self._n_batches(stage)):
                yield self._hidden_spans(np.random.default_rng((self.config.seed, self.place.epoch, number)))
            return
        # heads and full go through different epochs: what one drew the other does not draw again
        self.loader.set_epoch(2 * self.place.epoch + (stage == "full"), skip=self.place.batch)
        for batch in self.loader:
            validate_batch_schema(batch)
            yield batch

    def _n_batches(self, stage: str) -> int:
        return (
            math.ceil(self.config.pretrain_windows / self.config.batch_size)
            if stage == "pretrain"
            else len(self.loader)
        )

    def _hidden_spans(self, rng: np.random.Generator) -> Batch:
        """A batch of unlabelled windows with the bars to hide: this process's share of it."""
        assert self.unlabelled is not None
        n = self.config.batch_size
        start = rng.integers(self.unlabelled.first, self.unlabelled.stop, n)
        length = rng.integers(MASKED_BARS[0], MASKED_BARS[1] + 1, (n, MASKED_SPANS, 1))
        first = rng.integers(0, WINDOW - length + 1)
        bars = np.arange(WINDOW)
        hidden = np.any((bars >= first) & (bars < first + length), axis=1)  # [B, T]
        share = slice(self.rank, None, self.world_size)
        rows = start[share, None] + bars
        return {
            "x": torch.from_numpy(self.unlabelled.rows[rows]),
            "valid_mask": torch.from_numpy(self.unlabelled.valid[rows]),
            "hidden": torch.from_numpy(hidden[share]),
            "window_id": start[share],
        }

    def _precision(self) -> AbstractContextManager[Any]:
        on = self.device.type == "cuda" and self.config.mixed_precision
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=on)

    def _report_step(self, parts: Iterable[float], steps: int) -> None:
        if self.rank == 0:
            place = self.place
            where = {"stage": place.stage, "epoch": place.epoch, "step": place.step}
            losses = dict(zip(PARTS, parts, strict=True))
            self.hooks.progress({"kind": "step", **where, "stage_step": place.stage_step, "steps": steps, **losses})

    def _stop_if_asked(self) -> None:
        asked = torch.tensor(float(self.hooks.should_stop()), device=self.device)
        if self.distributed:
            dist.all_reduce(asked)  # every process validates as many batches
        if asked > 0:
            self._stop()

    def _stop(self) -> None:
        self._save()
        raise Interrupted(f"stopped after step {self.place.step}, with a checkpoint")

    def _save(self) -> None:
        self.saved_at = time.monotonic()
        self.last_checkpoint = self.place.step
        if self.rank == 0:
            files = pack(self.fill_in.state_dict(), self.best_weights, self._state())
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
        weights, self.best_weights, state = unpack(files)
        if state["config"] != self.config.model_dump_json():
            raise ArtifactError(f"a checkpoint is resumed with its own settings, {state['config']}, not with others")
        load_weights(self.fill_in, weights)
        self.place, self.history, self.best = Place(**state["place"]), state["history"], state["best"]
        self.last_checkpoint = self.place.step
        if self.rank == 0:
            torch.set_rng_state(state["rng"])
            if state["cuda_rng"] is not None and self.device.type == "cuda":
                torch.cuda.set_rng_state(state["cuda_rng"])
        else:
            torch.manual_seed(self.config.seed + self.rank + self.world_size * self.place.step)
        return dict(state["optimizer"])

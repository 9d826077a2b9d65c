"""What each stage minimises: the error of filling in hidden spans, then the labels' loss."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from moola import WINDOW
from moola.models import JadeCompact
from moola.training.batches import WINDOW_ID, Batch
from moola.training.loss import uncertainty_loss

LOSS_PARTS = ("loss", "pointer_loss", "type_loss")  # in the order of an objective's result

# Pretraining hides this many spans of this many bars in a window.
MASKED_SPANS = 2
MIN_MASKED_BARS = 4
MAX_MASKED_BARS = 12


class Supervised(nn.Module):
    """Batch with labels -> loss parts [3], in the order of LOSS_PARTS."""

    def __init__(self, model: JadeCompact, width_bars: float) -> None:
        super().__init__()
        self.model = model
        self.width_bars = width_bars

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        output = self.model(batch["x"], batch["valid_mask"])
        return torch.stack(uncertainty_loss(output, batch, self.width_bars))


class FillIn(nn.Module):
    """Pretraining: the encoder reads windows with hidden spans, a linear layer fills them in.

    Batch with `hidden` -> loss parts [3]: the Huber loss of the hidden bars, and two zeros.
    """

    def __init__(self, model: JadeCompact) -> None:
        super().__init__()
        self.model = model
        self.reconstruct = nn.Linear(2 * model.encoder.hidden_size, model.input_size)

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        visible = batch["valid_mask"] & ~batch["hidden"]
        h = self.model.encode(batch["x"], visible)  # [B, T, 2H]
        filled_in = self.reconstruct(h)  # [B, T, F]

        scored = (batch["hidden"] & batch["valid_mask"]).unsqueeze(-1)  # [B, T, 1]
        error = functional.huber_loss(filled_in, batch["x"], reduction="none") * scored
        # A mean of windows' means, so that it is the same however the windows are shared out.
        n_scored = scored.sum(dim=(1, 2)).clamp(min=1)  # [B]
        loss = (error.mean(dim=2).sum(dim=1) / n_scored).mean()

        return torch.stack([loss, torch.zeros_like(loss), torch.zeros_like(loss)])


@dataclass(frozen=True)
class Unlabelled:
    """Windows to pretrain on: rows [n_bars, F] float32, valid [n_bars].

    window_row [N] are the rows of their first bars.
    """

    rows: NDArray[np.float32]
    valid: NDArray[np.bool_]
    window_row: NDArray[np.int64]

    def masked_batch(
        self,
        rng: np.random.Generator,
        batch_size: int,
        share: slice,
    ) -> Batch:
        """The `share` of a batch of random windows, each with spans to hide: `hidden` [B, T]."""
        window_row = self.window_row[rng.integers(0, len(self.window_row), batch_size)]
        shape = (batch_size, MASKED_SPANS, 1)
        length = rng.integers(MIN_MASKED_BARS, MAX_MASKED_BARS + 1, shape)
        first = rng.integers(0, WINDOW - length + 1)

        offsets = np.arange(WINDOW)
        in_span = (offsets >= first) & (offsets < first + length)  # [B, spans, T]
        hidden = np.any(in_span, axis=1)  # [B, T]
        rows = window_row[share, None] + offsets

        return {
            "x": torch.from_numpy(self.rows[rows]),
            "valid_mask": torch.from_numpy(self.valid[rows]),
            "hidden": torch.from_numpy(hidden[share]),
            WINDOW_ID: window_row[share],
        }

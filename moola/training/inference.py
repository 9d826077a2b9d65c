"""What a model gives for windows: logits of the type, and the decoded span."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from moola import WINDOW
from moola.models import JadeCompact
from moola.models.spans import decode_spans
from moola.training.batches import WindowDataset, setup_optimized_dataloader

INFERENCE_BATCH = 128


@dataclass(frozen=True)
class ModelOutputs:
    """Of N windows: logits [N, K] (log-probabilities); start and end [N], the offsets of the move's
    first and last bar, both inclusive."""

    logits: NDArray[np.float64]
    start: NDArray[np.int64]
    end: NDArray[np.int64]


def no_progress(_: int) -> None:
    """For callers that do not follow how many windows are done."""


@torch.no_grad()
def infer(
    model: JadeCompact,
    dataset: WindowDataset,
    *,
    device: str | torch.device = "cpu",
    on_windows: Callable[[int], None] = no_progress,
) -> ModelOutputs:
    """The model's outputs for every window, in order and as labelled (not re-cut).

    `on_windows` is called with how many more windows are done.
    """
    model.to(device).eval()
    logits = []
    spans = []
    for batch in setup_optimized_dataloader(dataset, INFERENCE_BATCH):
        x = batch["x"]
        output = model(x.to(device), batch["valid_mask"].to(device))
        logits.append(output["logits"].double().cpu())
        if model.predict_pointers:
            start, end = decode_spans(output["span_probs"])
            spans.append(torch.stack([start, end], dim=1).cpu())
        else:
            spans.append(torch.tensor([[0, WINDOW - 1]]).expand(len(x), 2))
        on_windows(len(x))

    span = torch.cat(spans).numpy()  # [N, 2]
    return ModelOutputs(
        torch.cat(logits).numpy(),
        start=span[:, 0],
        end=span[:, 1],
    )

"""The published design that Jade replaces: a BiLSTM whose outputs are averaged over the window."""

import numpy as np
import torch
from torch import Tensor, nn

from moola import WINDOW
from moola.evaluation.predictions import Predictions
from moola.features import N_FEATURES
from moola.training.batches import Batch, setup_optimized_dataloader
from moola.training.data import TrainingData

POOLED_HIDDEN = 96
POOLED_EPOCHS = 15
POOLED_WINDOWS = 512  # at least, in an epoch


class Pooled(nn.Module):
    """The mean of the BiLSTM's outputs gives type, centre and length.

    No place in the window is left in it.
    """

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.encoder = nn.LSTM(
            N_FEATURES,
            POOLED_HIDDEN,
            batch_first=True,
            bidirectional=True,
        )
        self.type_head = nn.Linear(2 * POOLED_HIDDEN, n_classes)
        self.pointer_head = nn.Linear(2 * POOLED_HIDDEN, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h, _ = self.encoder(x)  # [B, T, 2H]
        pooled = h.mean(1)  # [B, 2H]
        return self.type_head(pooled), torch.sigmoid(self.pointer_head(pooled))


def pooled_loss(model: Pooled, batch: Batch) -> Tensor:
    logits, pointer = model(batch["x"])
    centre = 0.5 * (batch["start"] + batch["end"]) / (WINDOW - 1)
    length = (batch["end"] - batch["start"] + 1) / WINDOW
    target = torch.stack([centre, length], 1).float()

    pointer_loss = nn.functional.huber_loss(pointer, target, delta=0.1)
    return nn.functional.cross_entropy(logits, batch["label"]) + 10 * pointer_loss


def pooled(data: TrainingData, seed: int) -> Predictions:
    torch.manual_seed(seed)
    model = Pooled(n_classes=len(data.labels["train"].classes))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    loader = setup_optimized_dataloader(
        data.windows["train"],
        train=True,
        seed=seed,
        windows_per_epoch=max(len(data.windows["train"]), POOLED_WINDOWS),
    )
    for epoch in range(POOLED_EPOCHS):
        loader.set_epoch(epoch)
        for batch in loader:
            loss = pooled_loss(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    with torch.no_grad():
        x = torch.from_numpy(data.window_features("test").copy())
        logits, pointer = model.eval()(x)
    centre = (pointer[:, 0] * (WINDOW - 1)).numpy()
    length = (pointer[:, 1] * WINDOW).numpy()
    start = np.clip(np.round(centre - (length - 1) / 2), 0, WINDOW - 1).astype(int)
    end = np.clip(np.round(centre + (length - 1) / 2), start, WINDOW - 1).astype(int)

    return Predictions(torch.softmax(logits, 1).numpy(), start, end)

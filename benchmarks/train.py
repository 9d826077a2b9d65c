"""What a training step costs beside a bare LSTM of the same shape, and what the loader costs.

    python -m benchmarks.train

One run, paired: the three take turns.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks.settings import STANDARD, data_of, feature_set, hindsight_setting
from moola import WINDOW
from moola.data.synthetic import make_market
from moola.features import N_FEATURES
from moola.models import JadeCompact
from moola.specs import MarketConfig, TrainConfig
from moola.training.batches import setup_optimized_dataloader, validate_batch_schema
from moola.training.data import TrainingData
from moola.training.fit import longest_move
from moola.training.loss import uncertainty_loss

BATCH = 32
HIDDEN = 96
ROUNDS = 9
STEPS = 10  # of each, in a round
WIDTH_BARS = TrainConfig().target_width_bars

Work = Callable[[], object]


def seconds(work: Work) -> float:
    """Of one step, over STEPS of them."""
    start = time.perf_counter()
    for _ in range(STEPS):
        work()
    return (time.perf_counter() - start) / STEPS


def training_data() -> TrainingData:
    features = feature_set(make_market(MarketConfig()).bars)
    setting = hindsight_setting("synthetic", features, STANDARD, clear=True)
    return data_of(setting, None, 0)


def training_step(data: TrainingData) -> tuple[Work, Work]:
    """A whole step of Jade as the loop takes it, loader included; and the loader alone."""
    loader = setup_optimized_dataloader(
        data.windows["train"], BATCH, train=True, windows_per_epoch=100_000 * BATCH
    )
    batches = iter(loader)
    model = JadeCompact(hidden_size=HIDDEN, longest_move=longest_move(data.windows["train"]))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> None:
        batch = next(batches)
        validate_batch_schema(batch)
        optimizer.zero_grad(set_to_none=True)
        output = model(batch["x"], batch["valid_mask"])
        uncertainty_loss(output, batch, WIDTH_BARS).total.backward()
        optimizer.step()

    return step, lambda: next(batches)


def bare_step(device: str = "cpu") -> Work:
    """Forward, backward and AdamW of an LSTM on the features alone."""
    lstm = nn.LSTM(
        N_FEATURES,
        HIDDEN,
        batch_first=True,
        bidirectional=True,
    ).to(device)
    optimizer = torch.optim.AdamW(lstm.parameters(), fused=True)
    values = np.random.default_rng(0).random((BATCH, WINDOW, N_FEATURES), np.float32)
    x = torch.from_numpy(values).to(device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        h, _ = lstm(x)
        h.square().mean().backward()
        optimizer.step()

    return step


def main() -> None:
    jade, load = training_step(training_data())
    bare = bare_step()
    jade()  # the first step of each is not timed
    bare()

    rounds = [(seconds(jade), seconds(bare), seconds(load)) for _ in range(ROUNDS)]
    jade_s, bare_s, load_s = (statistics.median(column) for column in zip(*rounds, strict=True))
    of_bare = statistics.median(bare / jade for jade, bare, _ in rounds)
    loader_lead = statistics.median(jade / load for jade, _, load in rounds)

    title = f"B = {BATCH}, H = {HIDDEN}, {torch.get_num_threads()} threads"
    table = Table("what", "windows/s", "ratio", "goal", title=title)
    table.add_row(
        "bare nn.LSTM: forward, backward, AdamW",
        f"{BATCH / bare_s:,.0f}",
        "",
        "",
    )
    table.add_row(
        "whole training step of Jade, loader included",
        f"{BATCH / jade_s:,.0f}",
        f"{of_bare:.2f} of it",
        "> 0.85",
    )
    table.add_row(
        "loader alone", f"{BATCH / load_s:,.0f}", f"{loader_lead:.0f} x the step", ">= 20 x"
    )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()

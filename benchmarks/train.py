"""What a training step costs beside a bare LSTM of the same shape, and what the loader costs; one run, paired.

python benchmarks/train.py
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.quality import Setting, data_of, feature_set, hindsight
from moola.models import JadeCompact
from moola.specs import MarketConfig
from moola.synthetic import make_market
from moola.train import longest_move
from moola.training.batches import setup_optimized_dataloader, validate_batch_schema
from moola.training.loss import uncertainty_loss

BATCH, PAIRS, STEPS = 32, 9, 10


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    for _ in range(STEPS):
        work()
    return (time.perf_counter() - start) / STEPS


def main() -> None:
    features = feature_set(make_market(MarketConfig()).bars)
    data = data_of(Setting("synthetic", features, hindsight(features)), None, 0)
    loader = setup_optimized_dataloader(data.windows["train"], BATCH, train=True, windows_per_epoch=100_000 * BATCH)
    batches = iter(loader)
    model = JadeCompact(longest_move=longest_move(data.windows["train"]))  # as the job makes it
    bare = nn.LSTM(11, 96, batch_first=True, bidirectional=True)
    optimizers = [torch.optim.AdamW(m.parameters(), fused=True) for m in (model, bare)]  # as the loop has it
    x = torch.from_numpy(np.random.default_rng(0).random((BATCH, 105, 11), np.float32))

    def step() -> None:
        batch = next(batches)
        validate_batch_schema(batch)
        optimizers[0].zero_grad(set_to_none=True)
        uncertainty_loss(model(batch["x"], batch["valid_mask"]), batch, 1.5)[0].backward()
        optimizers[0].step()

    def bare_step() -> None:
        optimizers[1].zero_grad(set_to_none=True)
        bare(x)[0].square().mean().backward()
        optimizers[1].step()

    step(), bare_step()
    pairs = [(seconds(step), seconds(bare_step), seconds(lambda: next(batches))) for _ in range(PAIRS)]
    ours, other, load = (statistics.median(column) for column in zip(*pairs, strict=True))
    table = Table("what", "windows/s", "ratio", "goal", title=f"B = {BATCH}, H = 96, {torch.get_num_threads()} threads")
    table.add_row("bare nn.LSTM: forward, backward, AdamW", f"{BATCH / other:,.0f}", "", "")
    ratio = statistics.median(b / a for a, b, _ in pairs)
    table.add_row(
        "whole training step of Jade, loader included", f"{BATCH / ours:,.0f}", f"{ratio:.2f} of it", "> 0.85"
    )
    ratio = statistics.median(a / c for a, _, c in pairs)
    table.add_row("loader alone", f"{BATCH / load:,.0f}", f"{ratio:.0f} x the step", ">= 20 x")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()

"""Training on a GPU: a step beside this CPU and a bare cuDNN LSTM, and a whole fit with metrics.

    python -m benchmarks.gpu              # needs a GPU that torch can use
    python -m benchmarks.gpu --seeds 3    # the fits' spread over three seeds

The steps take turns in one run. Metrics of the fits are those of the last 20 % of a synthetic
market: on the GPU they should differ from the CPU's by no more than the seeds do among themselves.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import mean, median, pstdev

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks.train import BATCH, HIDDEN, WIDTH_BARS, bare_step, training_data
from moola.evaluation.metrics import F1_MACRO, HIT_CENTRE, score
from moola.evaluation.scoring import as_predictions, as_targets, score_on
from moola.models import JadeCompact
from moola.specs import TrainConfig, TrainSpec
from moola.training.batches import setup_optimized_dataloader
from moola.training.data import TrainingData
from moola.training.device import can_compile, cuda_problem
from moola.training.fit import QuietHooks, fit_model, longest_move, new_model
from moola.training.inference import infer
from moola.training.objectives import Supervised

ROUNDS = 9
STEPS = 20  # of each, in a round

Step = Callable[[], object]


@dataclass(frozen=True)
class Variant:
    """How a step or a fit runs."""

    device: str
    bfloat16: bool = False
    compiled: bool = False

    @property
    def title(self) -> str:
        if self.device == "cpu":
            return f"CPU, {torch.get_num_threads()} threads"
        precision = "bfloat16" if self.bfloat16 else "float32"
        return f"GPU, {precision}{', compiled' if self.compiled else ''}"


def variants() -> list[Variant]:
    kinds = [Variant("cpu"), Variant("cuda"), Variant("cuda", bfloat16=True)]
    if can_compile():
        kinds += [
            Variant("cuda", compiled=True),
            Variant("cuda", bfloat16=True, compiled=True),
        ]
    return kinds


# --- steps ----------------------------------------------------------------------------------------


def batches_of(data: TrainingData) -> Iterator[dict[str, torch.Tensor]]:
    loader = setup_optimized_dataloader(
        data.windows["train"], BATCH, train=True, windows_per_epoch=1_000_000 * BATCH
    )
    for batch in loader:
        yield {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}


def jade_step(data: TrainingData, variant: Variant) -> Step:
    """A whole step as the loop takes it: loader, copy to the device, loss, gradient, AdamW."""
    model = JadeCompact(hidden_size=HIDDEN, longest_move=longest_move(data.windows["train"]))
    objective: nn.Module = Supervised(model, WIDTH_BARS).to(variant.device)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    if variant.compiled:
        objective = torch.compile(objective)  # type: ignore[assignment]
    batches = batches_of(data)

    def step() -> None:
        batch = {name: value.to(variant.device) for name, value in next(batches).items()}
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(variant.device, dtype=torch.bfloat16, enabled=variant.bfloat16):
            loss = objective(batch)[0]
        loss.backward()
        optimizer.step()

    return step


def seconds(step: Step, device: str) -> float:
    """Of one step, over STEPS of them."""
    start = time.perf_counter()
    for _ in range(STEPS):
        step()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / STEPS


def steps_table(data: TrainingData, kinds: list[Variant]) -> Table:
    steps = {kind.title: (jade_step(data, kind), kind.device) for kind in kinds}
    bare = "bare LSTM, GPU, float32"
    steps[bare] = (bare_step("cuda"), "cuda")

    for step, device in steps.values():  # what is first is compiled and not timed
        seconds(step, device)
    rounds = [{name: seconds(*pair) for name, pair in steps.items()} for _ in range(ROUNDS)]

    cpu = kinds[0].title
    table = Table("a training step", title=f"B = {BATCH}, H = {HIDDEN}; medians of {ROUNDS} rounds")
    for heading in ("ms", "windows/s", "times the CPU's rate", "of a bare LSTM's rate"):
        table.add_column(heading, justify="right")
    for name in steps:
        step_s = median(row[name] for row in rounds)
        table.add_row(
            name,
            f"{1000 * step_s:.2f}",
            f"{BATCH / step_s:,.0f}",
            f"{median(row[cpu] / row[name] for row in rounds):.2f}",
            f"{median(row[bare] / row[name] for row in rounds):.2f}",
        )

    return table


# --- whole fits -----------------------------------------------------------------------------------


def fit_on(data: TrainingData, variant: Variant, seed: int) -> tuple[float, float, float]:
    """Seconds, F1 and Hit@±3 of the test windows."""
    config = TrainConfig(
        seed=seed,
        mixed_precision=variant.bfloat16,
        compile=variant.compiled,
    )
    spec = TrainSpec(training=config)
    model = new_model(spec, data)
    start = time.perf_counter()
    fit_model(model, spec, data, score_on(data.labels["val"]), QuietHooks(), variant.device)
    elapsed_s = time.perf_counter() - start

    outputs = infer(model, data.windows["test"], device=variant.device)
    scores = score(as_predictions(outputs), as_targets(data.labels["test"]))
    return elapsed_s, scores[F1_MACRO], scores[HIT_CENTRE]


def fits_table(data: TrainingData, kinds: list[Variant], seeds: int) -> Table:
    table = Table("a whole fit", title=f"{len(data.labels['train'])} labels, {seeds} seeds")
    for heading in ("s", "F1 macro", "Hit@±3"):
        table.add_column(heading, justify="right")
    for kind in kinds:
        fits = [fit_on(data, kind, seed) for seed in range(seeds)]
        elapsed_s, f1, hits = zip(*fits, strict=True)
        table.add_row(kind.title, f"{mean(elapsed_s):.1f}", spread(f1), spread(hits))

    return table


def spread(values: tuple[float, ...]) -> str:
    return f"{mean(values):.3f} ± {pstdev(values):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    problem = cuda_problem()
    if problem:
        sys.exit(f"benchmarks.gpu needs a GPU: {problem}")

    console = Console(width=110)
    console.print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    data = training_data()
    kinds = variants()
    console.print(steps_table(data, kinds))
    console.print(fits_table(data, kinds, options.seeds))


if __name__ == "__main__":
    main()

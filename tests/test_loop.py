"""Training runs: what is learned, in which stage,
and that a killed run ends as if it had not been."""

import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from moola import WINDOW  # noqa: E402
from moola.errors import ArtifactError, DataError, TrainingError  # noqa: E402
from moola.models import JadeCompact, build_model  # noqa: E402
from moola.specs import TrainConfig  # noqa: E402
from moola.training.batches import WindowDataset  # noqa: E402
from moola.training.checkpoint import (  # noqa: E402
    BEST,
    STATE,
    WEIGHTS,
    pack,
    read_weights,
    unpack,
    weights_bytes,
)
from moola.training.inference import ModelOutputs, infer  # noqa: E402
from moola.training.loop import Interrupted, train_model, uses_bfloat16  # noqa: E402
from moola.training.objectives import Supervised, Unlabelled  # noqa: E402
from tests.test_batches import subset  # noqa: E402
from tests.test_launch import wait_for  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
SHORT = TrainConfig(
    batch_size=16,
    windows_per_epoch=48,
    pretrain_epochs=1,
    pretrain_windows=48,
    heads_epochs=1,
    full_epochs=2,
)


def rows(n_bars: int = 4000, seed: int = 0) -> np.ndarray[Any, Any]:
    """Features without a market behind them, but with values in range."""
    rng = np.random.default_rng(seed)
    x = rng.random((n_bars, 11), np.float32)
    x[:, 2] = 0.2 * (2 * x[:, 2] - 1)
    return x


def planted(n: int = 40, n_bars: int = 4000, seed: int = 0) -> WindowDataset:
    """Moves that can be learned: full bodies in the move,
    and before it wide (class 1) or narrow (class 0) bars."""
    rng = np.random.default_rng(seed)
    x = rows(n_bars, seed)
    start = np.linspace(200, n_bars - 200, n).astype(np.int64)
    end = start + rng.integers(5, 10, n)
    label = np.arange(n) % 2
    for s, e, kind in zip(start, end, label, strict=True):
        x[s : e + 1, 2] = 1.0
        x[s - 24 : s, 5] = 0.3 + 1.5 * kind
    return WindowDataset(
        rows=x,
        valid=np.ones(n_bars, np.bool_),
        window_row=start - rng.integers(24, 80, n),
        start_row=start,
        end_row=end,
        label=label,
        min_row=np.zeros(n, np.int64),
        stop_row=np.full(n, n_bars),
        window_id=np.arange(n),
    )


def score_on(data: WindowDataset) -> Any:
    def score(outputs: ModelOutputs) -> Mapping[str, float]:
        right = float((outputs.logits.argmax(1) == data.label).mean())
        centre = (data.start_row + data.end_row) / 2 - data.window_row
        return {
            "f1_macro": right,
            "hit_centre_3": float((np.abs((outputs.start + outputs.end) / 2 - centre) <= 3).mean()),
        }

    return score


class Recorder:
    """Hooks that keep everything; asks the run to stop after `stop_after` steps."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.checkpoints: list[tuple[int, dict[str, bytes]]] = []
        self.events: list[dict[str, Any]] = []
        self.calls = 0
        self.stop_after = stop_after

    def save_checkpoint(self, step: int, files: Mapping[str, bytes]) -> None:
        self.checkpoints.append((step, dict(files)))

    def progress(self, event: Mapping[str, Any]) -> None:
        self.events.append(dict(event))

    def should_stop(self) -> bool:
        self.calls += 1
        return self.stop_after is not None and self.calls >= self.stop_after


def model(**arguments: Any) -> JadeCompact:
    torch.manual_seed(0)
    return build_model("jade", **({"hidden_size": 8} | arguments))


def run(
    config: TrainConfig = SHORT, hooks: Any = None, data: WindowDataset | None = None, **more: Any
) -> Any:
    """(result, trained model) of a short run on planted windows."""
    data = data or planted()
    jade = more.pop("jade", None) or model()
    unlabelled = Unlabelled(data.rows, data.valid, np.arange(3000))
    result = train_model(
        jade, data, data, config, score_on(data), hooks or Recorder(), unlabelled=unlabelled, **more
    )
    return result, jade


def without_clock(result: Any) -> list[dict[str, Any]]:
    """The history without the clock."""
    return [
        {name: value for name, value in row.items() if name != "windows_per_s"}
        for row in result.history
    ]


def test_the_stages_follow_each_other() -> None:
    hooks = Recorder()
    result, _ = run(hooks=hooks)
    assert [row["stage"] for row in result.history] == ["pretrain", "heads", "full", "full"]
    steps = [event for event in hooks.events if event["kind"] == "step"]
    assert [event["step"] for event in steps] == list(range(1, 13))
    assert "val_score" not in result.history[0]
    assert result.best in result.history


def weights_after(stage_epochs: dict[str, int]) -> dict[str, Any]:
    epochs = {"pretrain_epochs": 0, "heads_epochs": 0, "full_epochs": 1} | stage_epochs
    hooks = Recorder(stop_after=3)  # before the first stage ends
    with pytest.raises(Interrupted):
        run(SHORT.model_copy(update=epochs), hooks)
    weights, _, _ = unpack(hooks.checkpoints[-1][1])
    return weights


@pytest.mark.parametrize(
    ("stage", "moves"),
    [("pretrain", {"encoder"}), ("heads", {"heads"}), ("full", {"encoder", "heads"})],
)
def test_a_stage_trains_what_it_should(stage: str, moves: set[str]) -> None:
    before = {f"model.{name}": value for name, value in model().named_parameters()}
    after = weights_after({f"{stage}_epochs": 1})
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    for part in ("encoder", "heads"):
        of_part = {
            name for name in before if name.startswith("model.encoder.") == (part == "encoder")
        }
        assert of_part & moved == (of_part if part in moves else set())


def test_planted_moves_are_learnt() -> None:
    config = TrainConfig(
        batch_size=16, windows_per_epoch=160, full_epochs=12, learning_rate=1e-2, encoder_step=1.0
    )
    result, jade = run(config, jade=model(hidden_size=16))
    assert result.best["val_f1_macro"] > 0.9
    assert result.best["val_hit_centre_3"] > 0.9
    data = planted()
    assert (
        score_on(data)(infer(jade, data))["f1_macro"] == result.best["val_f1_macro"]
    )  # the best weights stayed


def test_one_batch_is_learnt_by_heart() -> None:
    data = planted(n=8)
    jade = model(hidden_size=32, dropout=0.0)
    objective = Supervised(jade, 1.5)
    batch = data.gather(np.arange(8))
    optimizer = torch.optim.Adam(jade.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        parts = objective(batch)
        parts[0].backward()
        optimizer.step()
    assert parts[1] < 0.1  # the floor of both is 0
    assert parts[2] < 0.05


def test_the_best_epoch_is_kept_and_patience_ends_the_run() -> None:
    data = planted()
    scores = iter([0.3, 0.5, 0.4, 0.4, 0.4, 0.9])
    config = SHORT.model_copy(update={"pretrain_epochs": 0, "full_epochs": 5, "patience_epochs": 3})

    def score(_: ModelOutputs) -> dict[str, float]:
        value = next(scores)
        return {"f1_macro": value, "hit_centre_3": value}

    result = train_model(model(), data, data, config, score, Recorder())
    assert [row["val_score"] for row in result.history] == [0.3, 0.5, 0.4, 0.4, 0.4]
    assert result.best == result.history[1]


def test_the_first_of_equally_good_epochs_is_kept() -> None:
    data = planted()
    scores = iter([0.3, 0.5, 0.5])
    config = SHORT.model_copy(update={"pretrain_epochs": 0})

    def score(_: ModelOutputs) -> dict[str, float]:
        value = next(scores)
        return {"f1_macro": value, "hit_centre_3": value}

    result = train_model(model(), data, data, config, score, Recorder())
    assert result.best == result.history[1]


def test_the_score_of_an_epoch_is_the_mean_of_type_and_pointer() -> None:
    for row in run()[0].history[1:]:
        mean = (row["val_f1_macro"] + row["val_hit_centre_3"]) / 2
        assert row["val_score"] == pytest.approx(mean)


def test_a_gradient_is_scaled_down_to_its_limit() -> None:
    """AdamW's steps know no scale, but for its epsilon: below that they vanish."""
    config = SHORT.model_copy(update={"pretrain_epochs": 0, "weight_decay": 0.0})
    start = model().state_dict()
    moved = {}
    for limit in (1.0, 1e-12):
        _, jade = run(config.model_copy(update={"gradient_limit": limit}))
        head = jade.state_dict()["head.weight"]
        moved[limit] = (head - start["head.weight"]).abs().max().item()
    assert moved[1e-12] < 0.01 * moved[1.0]


def test_heads_and_full_draw_other_windows() -> None:
    """Seen in the losses of their first epochs, where nothing is learned."""
    hooks = Recorder()
    config = SHORT.model_copy(update={"pretrain_epochs": 0, "learning_rate": 1e-30})
    run(config, hooks, jade=model(dropout=0.0))
    steps = [event for event in hooks.events if event["kind"] == "step" and event["epoch"] == 0]
    heads = [event["loss"] for event in steps if event["stage"] == "heads"]
    full = [event["loss"] for event in steps if event["stage"] == "full"]
    assert len(heads) == len(full) == 3
    assert heads != pytest.approx(full, rel=1e-6)


def test_an_epoch_draws_at_least_512_windows() -> None:
    config = SHORT.model_copy(
        update={"pretrain_epochs": 0, "full_epochs": 1, "windows_per_epoch": None}
    )
    result, _ = run(config)
    assert [row["step"] for row in result.history] == [512 // 16, 2 * 512 // 16]


def test_pretraining_without_unlabelled_windows_is_refused() -> None:
    data = planted()
    with pytest.raises(DataError, match="pretraining needs unlabelled windows"):
        train_model(model(), data, data, SHORT, score_on(data), Recorder())


@pytest.mark.parametrize("step", [1, 3, 5, 8, 11])
def test_a_run_stopped_at_any_step_and_resumed_ends_with_the_same_bits(step: int) -> None:
    whole, whole_model = run()
    hooks = Recorder(stop_after=step)
    with pytest.raises(Interrupted):
        run(hooks=hooks)
    resumed, resumed_model = run(
        resume=hooks.checkpoints[-1][1], jade=build_model("jade", hidden_size=8)
    )
    assert without_clock(resumed) == without_clock(whole)
    assert weights_bytes(resumed_model) == weights_bytes(whole_model)


def test_another_seed_gives_another_run() -> None:
    assert without_clock(run()[0]) != without_clock(run(SHORT.model_copy(update={"seed": 1}))[0])


def test_a_stop_during_validation_leaves_a_checkpoint_too() -> None:
    config = SHORT.model_copy(update={"pretrain_epochs": 0})
    hooks = Recorder(stop_after=4)  # 3 steps of `heads`, then the first batch of its validation
    with pytest.raises(Interrupted):
        run(config, hooks)
    assert hooks.checkpoints[-1][0] == 3
    whole, _ = run(config)
    resumed, _ = run(config, resume=hooks.checkpoints[-1][1])
    assert without_clock(resumed) == without_clock(whole)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run(value: float) -> None:
    class Broken(Recorder):
        def progress(self, event: Mapping[str, Any]) -> None:
            if event["kind"] == "step" and event["step"] == 2:
                with torch.no_grad():
                    jade.head.bias.fill_(value)

    jade = model()
    config = SHORT.model_copy(update={"pretrain_epochs": 0, "checkpoint_minutes": 0})
    message = (
        r"must be finite, got loss \w+ .*stage heads, step 3, windows \d+, .*; "
        "last good checkpoint: step 2"
    )
    with pytest.raises(TrainingError, match=message):
        run(config, Broken(), jade=jade)


def test_without_a_checkpoint_the_message_says_none() -> None:
    jade = model()
    with torch.no_grad():
        jade.head.bias.fill_(float("nan"))
    with pytest.raises(TrainingError, match="last good checkpoint: none"):
        run(SHORT.model_copy(update={"pretrain_epochs": 0}), jade=jade)


CHILDREN = """
import os, pickle, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests import test_loop as t

folder = Path(sys.argv[1])

class OnDisk(t.Recorder):
    def save_checkpoint(self, step, files):
        if step > last_step:
            time.sleep(600)  # to be killed in, with the work of one step not yet saved
        part = folder / f"{last_step}.part"
        part.write_bytes(pickle.dumps(dict(files)))
        os.replace(part, folder / f"{last_step}.step-{step}")

for last_step in map(int, sys.argv[2:]):  # a process each, so that the imports are paid for once
    pid = os.fork()
    if not pid:
        t.run(t.SHORT.model_copy(update={"checkpoint_minutes": 0}), OnDisk())
        os._exit(0)
    print(pid, flush=True)
sys.exit(any(status != 9 for _, status in [os.wait() for _ in sys.argv[2:]]))
"""


def test_a_process_killed_with_9_in_each_stage_is_resumed_to_the_same_bits(tmp_path: Path) -> None:
    config = SHORT.model_copy(update={"checkpoint_minutes": 0})
    torch.set_num_threads(1)
    whole, whole_model = run(config)
    last_steps = (1, 4, 8)  # of 3 steps of pretrain, 3 of heads, 6 of full
    children = subprocess.Popen(
        [sys.executable, "-c", CHILDREN, str(tmp_path), *map(str, last_steps)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    for last_step in last_steps:
        assert children.stdout is not None
        pid = int(children.stdout.readline())
        path = tmp_path / f"{last_step}.step-{last_step}"
        wait_for(path.exists, str(path))
        os.kill(pid, signal.SIGKILL)
        resumed, resumed_model = run(config, resume=pickle.loads(path.read_bytes()))
        assert without_clock(resumed) == without_clock(whole)
        assert weights_bytes(resumed_model) == weights_bytes(whole_model)
    children.communicate(timeout=60)
    assert children.returncode == 0


@pytest.mark.parametrize(
    ("device", "mixed_precision", "expected"),
    [("cuda", True, True), ("cuda", False, False), ("cpu", True, False)],
)
def test_bfloat16_is_for_cuda_and_can_be_switched_off(
    device: str, mixed_precision: bool, expected: bool
) -> None:
    config = TrainConfig(mixed_precision=mixed_precision)
    assert uses_bfloat16(torch.device(device), config) is expected


def test_bfloat16_trains_with_nearly_the_same_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    """What CUDA does, on the CPU; oneDNN has no such LSTM for every processor."""
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    exact = without_clock(run()[0])
    monkeypatch.setattr("moola.training.loop.uses_bfloat16", lambda *_: True)
    rounded = without_clock(run()[0])
    for stage in ("pretrain", "heads", "full"):
        exact_losses = [row["loss"] for row in exact if row["stage"] == stage]
        rounded_losses = [row["loss"] for row in rounded if row["stage"] == stage]
        assert rounded_losses != exact_losses, stage
        assert rounded_losses == pytest.approx(exact_losses, rel=0.02), stage


TWO_PROCESSES = """
import json
import torch, torch.distributed as dist
torch.set_num_threads(1)
from tests import test_loop as t
dist.init_process_group("gloo")
result, _ = t.run(jade=t.model(dropout=0.0))
if dist.get_rank() == 0:
    print(json.dumps(t.without_clock(result)))
dist.destroy_process_group()
"""


def test_two_processes_have_the_losses_of_one() -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launch, "--no-python", sys.executable, "-c", TWO_PROCESSES],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    two = json.loads(done.stdout.strip().splitlines()[-1])
    one = without_clock(run(jade=model(dropout=0.0))[0])
    for name in ("loss", "pointer_loss", "type_loss", "sigma_ptr", "sigma_type"):
        ours = [row[name] for row in one]
        assert [row[name] for row in two] == pytest.approx(ours, rel=1e-3, abs=1e-5)


def checkpoint() -> dict[str, bytes]:
    hooks = Recorder(stop_after=8)
    with pytest.raises(Interrupted):
        run(hooks=hooks)
    return hooks.checkpoints[-1][1]


def test_a_checkpoint_holds_safetensors_and_state() -> None:
    files = checkpoint()
    assert set(files) == {WEIGHTS, BEST, STATE}
    assert {f"model.{name}" for name in model().state_dict()} < set(read_weights(files[WEIGHTS]))


def test_packing_and_unpacking_are_inverse() -> None:
    weights = {"a": torch.arange(3.0)}
    got, best, state = unpack(
        pack(weights, None, {"step": 3, "losses": [0.1], "rng": torch.get_rng_state()})
    )
    assert torch.equal(got["a"], weights["a"])
    assert best is None
    assert (state["step"], state["losses"]) == (3, [0.1])


def test_a_damaged_or_foreign_checkpoint_is_refused() -> None:
    files = checkpoint()
    with pytest.raises(ArtifactError, match=f"{STATE} is missing"):
        run(resume={WEIGHTS: files[WEIGHTS]})
    with pytest.raises(ArtifactError, match="whole safetensors file"):
        run(resume=files | {WEIGHTS: files[WEIGHTS][:-10]})
    with pytest.raises(ArtifactError, match="cannot be read"):
        run(resume=files | {STATE: files[STATE][:100]})
    with pytest.raises(ArtifactError, match="of the same model"):
        run(resume=files, jade=model(hidden_size=16))
    with pytest.raises(ArtifactError, match="resumed with its own settings"):
        run(SHORT.model_copy(update={"seed": 9}), resume=files)


def test_prediction_leaves_windows_as_labelled_and_in_order() -> None:
    data = planted(n=300, n_bars=20_000)
    jade = model()
    outputs = infer(jade, data)
    assert outputs.logits.shape == (300, 2)
    assert ((outputs.start >= 0) & (outputs.start <= outputs.end) & (outputs.end < WINDOW)).all()
    some = infer(jade, subset(data, np.array([250, 3])))
    assert np.allclose(some.logits, outputs.logits[[250, 3]], atol=1e-5)


def test_windows_of_their_own_bars_can_be_trained_on() -> None:
    data = planted()
    own = replace(data, min_row=data.window_row, stop_row=data.window_row + WINDOW)
    result, _ = run(SHORT.model_copy(update={"pretrain_epochs": 0}), data=own)
    assert len(result.history) == 3

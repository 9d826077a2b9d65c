"""Training and inference on a GPU give what the CPU gives. `pytest -m cuda` runs these alone."""

import copy
from collections.abc import Iterator

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from moola.models import JadeCompact  # noqa: E402
from moola.specs import TrainConfig  # noqa: E402
from moola.training.batches import setup_optimized_dataloader  # noqa: E402
from moola.training.checkpoint import read_weights, weights_bytes  # noqa: E402
from moola.training.device import can_compile  # noqa: E402
from moola.training.inference import infer  # noqa: E402
from moola.training.loop import Interrupted, train_model  # noqa: E402
from moola.training.objectives import Supervised  # noqa: E402
from tests.test_batches import subset  # noqa: E402
from tests.test_loop import Recorder, planted, score_on  # noqa: E402

DEVICE = "cuda"
HAS_GPU = torch.cuda.is_available()
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not HAS_GPU, reason="torch finds no GPU here"),
]

CONFIG = TrainConfig(
    batch_size=32,
    windows_per_epoch=512,
    pretrain_epochs=0,
    heads_epochs=1,
    full_epochs=8,
    compile=False,
)


@pytest.fixture(autouse=True)
def exact_float32() -> Iterator[None]:
    """Without TensorFloat-32, which rounds to 10 bits."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def model(seed: int = 0) -> JadeCompact:
    torch.manual_seed(seed)
    return JadeCompact(dropout=0.0, longest_move=20)


def batch_of(n: int = 32) -> dict[str, torch.Tensor]:
    batch = next(iter(setup_optimized_dataloader(planted(n), n)))
    return {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}


def on_device(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.to(DEVICE) for name, value in batch.items()}


def test_the_forward_pass_is_that_of_the_cpu() -> None:
    batch = batch_of()
    jade = model().eval()
    with torch.no_grad():
        expected = jade(batch["x"], batch["valid_mask"])
        jade.to(DEVICE)
        found = jade(batch["x"].to(DEVICE), batch["valid_mask"].to(DEVICE))

    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name].cpu(), value, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_step_has_the_loss_and_the_gradients_of_the_cpu(bfloat16: bool) -> None:
    batch = batch_of()
    on_cpu = Supervised(model(), 1.5)
    on_gpu = Supervised(copy.deepcopy(on_cpu.model), 1.5).to(DEVICE)

    expected = on_cpu(batch)
    expected[0].backward()
    with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=bfloat16):
        found = on_gpu(on_device(batch))
    found[0].backward()

    tolerance = 0.05 if bfloat16 else 1e-3
    torch.testing.assert_close(found.detach().cpu(), expected.detach(), rtol=tolerance, atol=1e-3)
    expected_norm = _gradient_norm(on_cpu)
    assert _gradient_norm(on_gpu) == pytest.approx(expected_norm, rel=3 * tolerance)


def _gradient_norm(objective: Supervised) -> float:
    gradients = [p.grad for p in objective.parameters() if p.grad is not None]
    assert gradients
    return float(torch.stack([gradient.norm().cpu() for gradient in gradients]).norm())


@pytest.mark.filterwarnings("ignore")  # of torch, while it compiles
@pytest.mark.skipif(not can_compile(), reason="torch.compile needs a C compiler")
def test_the_compiled_objective_is_the_plain_one() -> None:
    batch = on_device(batch_of())
    plain = Supervised(model(), 1.5).to(DEVICE)
    compiled = torch.compile(plain)

    torch.testing.assert_close(compiled(batch), plain(batch), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mixed_precision", [False, True])
def test_training_learns_what_it_learns_on_the_cpu(mixed_precision: bool) -> None:
    config = CONFIG.model_copy(update={"mixed_precision": mixed_precision})
    train = planted(120, n_bars=12_000)
    val = planted(40, seed=1)
    scores = {}
    for device in ("cpu", DEVICE):
        jade = model()
        train_model(jade, train, val, config, score_on(val), Recorder(), device=device)
        scores[device] = score_on(val)(infer(jade, val, device=device))

    for name, expected in scores["cpu"].items():
        assert scores[DEVICE][name] == pytest.approx(expected, abs=0.15), name


def test_a_stopped_training_goes_on_there_and_its_model_predicts_on_the_cpu() -> None:
    train = planted()
    val = planted(seed=1)
    config = CONFIG.model_copy(update={"full_epochs": 2})
    recorder = Recorder(stop_after=20)
    with pytest.raises(Interrupted):
        train_model(model(), train, val, config, score_on(val), recorder, device=DEVICE)

    checkpoint = recorder.checkpoints[-1][1]
    jade = model(seed=1)
    result = train_model(
        jade, train, val, config, score_on(val), Recorder(), resume=checkpoint, device=DEVICE
    )
    assert len(result.history) == config.heads_epochs + config.full_epochs

    some = subset(val, np.arange(8))
    on_gpu = infer(jade, some, device=DEVICE)
    loaded = model(seed=2)
    loaded.load_state_dict(read_weights(weights_bytes(jade)))
    on_cpu = infer(loaded, some, device="cpu")
    np.testing.assert_allclose(on_gpu.logits, on_cpu.logits, atol=1e-2)
    np.testing.assert_array_equal(on_gpu.start, on_cpu.start)

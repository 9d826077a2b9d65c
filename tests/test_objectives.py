"""Pretraining: which bars are hidden, and the error of filling them in."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from moola import WINDOW  # noqa: E402
from moola.models import JadeCompact  # noqa: E402
from moola.training.objectives import FillIn, Unlabelled  # noqa: E402

N_BARS = 1000


@pytest.fixture
def unlabelled() -> Unlabelled:
    """Row i holds the value i everywhere; the first 20 bars are not valid."""
    rows = np.repeat(np.arange(N_BARS, dtype=np.float32)[:, None], 11, axis=1)
    return Unlabelled(rows, np.arange(N_BARS) >= 20, np.arange(5, 500))


def test_two_spans_of_4_to_12_bars_are_hidden(unlabelled: Unlabelled) -> None:
    batch = unlabelled.masked_batch(np.random.default_rng(0), 2000, slice(None))
    edges = np.diff(batch["hidden"].numpy().astype(int), axis=1, prepend=0, append=0)
    n_spans = (edges == 1).sum(axis=1)
    n_hidden = batch["hidden"].sum(dim=1)
    assert set(n_spans.tolist()) == {1, 2}  # 1 where the two touch
    assert n_spans.mean() > 1.7
    assert n_hidden.min() >= 4
    assert n_hidden.max() <= 24
    assert n_hidden.float().mean().item() == pytest.approx(16, abs=1)
    assert batch["hidden"].any(dim=0).all()  # every bar of the window


def test_masked_windows_lie_where_they_may_start(unlabelled: Unlabelled) -> None:
    batch = unlabelled.masked_batch(np.random.default_rng(0), 5000, slice(None))
    first_rows = batch["x"][:, 0, 0].numpy().astype(int)
    assert (first_rows.min(), first_rows.max()) == (5, 499)
    assert (first_rows == batch["window_id"]).all()
    assert (batch["x"][:, :, 0].numpy() == first_rows[:, None] + np.arange(WINDOW)).all()
    assert (batch["valid_mask"].numpy() == (batch["x"][:, :, 0].numpy() >= 20)).all()


def test_the_processes_share_out_one_masked_batch(unlabelled: Unlabelled) -> None:
    def part(share: slice) -> dict[str, torch.Tensor]:
        return unlabelled.masked_batch(np.random.default_rng(3), 8, share)

    whole = part(slice(None))
    for rank in (0, 1):
        half = part(slice(rank, None, 2))
        assert torch.equal(half["x"], whole["x"][rank::2])
        assert torch.equal(half["hidden"], whole["hidden"][rank::2])


def test_the_error_is_that_of_hidden_valid_bars_a_mean_over_windows() -> None:
    """A reconstruction of 0 everywhere: Huber's 0.5 x^2 of what is hidden and valid."""
    fill_in = FillIn(JadeCompact(hidden_size=8))
    with torch.no_grad():
        fill_in.reconstruct.weight.zero_()
        fill_in.reconstruct.bias.zero_()
    x = torch.rand(3, WINDOW, 11)
    hidden = torch.zeros(3, WINDOW, dtype=torch.bool)
    hidden[0, 10:14] = True
    hidden[1, 18:30] = True
    valid = torch.ones(3, WINDOW, dtype=torch.bool)
    valid[:, :20] = False
    valid[0] = True

    parts = fill_in({"x": x, "valid_mask": valid, "hidden": hidden})
    first = 0.5 * x[0, 10:14].square().mean()
    second = 0.5 * x[1, 20:30].square().mean()
    assert parts[0].item() == pytest.approx((first + second).item() / 3)  # the third hides nothing
    assert parts[1:].tolist() == [0, 0]


def test_hidden_bars_are_not_read() -> None:
    fill_in = FillIn(JadeCompact(hidden_size=8)).eval()
    x = torch.rand(1, WINDOW, 11)
    hidden = torch.zeros(1, WINDOW, dtype=torch.bool)
    hidden[0, 40:50] = True
    valid = torch.ones(1, WINDOW, dtype=torch.bool)
    other = x.clone()
    other[0, 40:50] = 0.0
    expected = fill_in.reconstruct(fill_in.model.encode(other, valid))[0, 40:50]

    loss = fill_in({"x": x, "valid_mask": valid, "hidden": hidden})[0]
    error = torch.nn.functional.huber_loss(expected, x[0, 40:50])
    assert loss.item() == pytest.approx(error.item(), rel=1e-5)

"""The loss: worked out by hand where it can be, and its optimum where the sigmas must settle."""

import math
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from moola import WINDOW  # noqa: E402
from moola.errors import DataError  # noqa: E402
from moola.models import JadeCompact  # noqa: E402
from moola.training.loss import (  # noqa: E402
    kendall_loss,
    pointer_loss,
    soft_targets,
    type_loss,
    uncertainty_loss,
)

WIDTH = 1.5  # bars


def output_for(start: Any, end: Any, label: Any, sure: float = 1.0) -> dict[str, Any]:
    """Of a model that holds the soft targets themselves; the type with probability `sure`."""
    right = torch.nn.functional.one_hot(label, 2).float()
    bar = (sure * right + (1 - sure) * (1 - right)).clamp(1e-9).log()
    return {
        "logits": bar,
        "bar_logits": bar[:, None].expand(-1, WINDOW, 2),
        "start_logits": soft_targets(start, WIDTH).clamp(1e-30).log(),
        "end_logits": soft_targets(end, WIDTH).clamp(1e-30).log(),
        "sigma_ptr": torch.tensor(1.0),
        "sigma_type": torch.tensor(1.0),
    }


START = torch.tensor([0, 50, 90])
END = torch.tensor([7, 58, 104])
LABEL = torch.tensor([0, 1, 1])


def test_soft_targets_are_a_gaussian_around_the_bar() -> None:
    target = soft_targets(torch.tensor([50]), WIDTH)[0]
    assert target.sum().item() == pytest.approx(1.0)
    assert target.argmax().item() == 50
    assert (target[53] / target[50]).item() == pytest.approx(math.exp(-2.0), rel=1e-4)


def test_the_targets_themselves_have_no_pointer_loss() -> None:
    assert pointer_loss(output_for(START, END, LABEL), START, END, WIDTH).item() == pytest.approx(
        0.0, abs=1e-5
    )


def test_a_uniform_pointer_loses_what_is_worked_out_by_hand() -> None:
    uniform = torch.full((1, WINDOW), -math.log(WINDOW))
    output = {"start_logits": uniform, "end_logits": uniform}
    entropy = 0.5 * math.log(
        2 * math.pi * math.e * 1.5**2
    )  # of a Gaussian, here well inside the window
    bar = torch.tensor([50])
    assert pointer_loss(output, bar, bar, WIDTH).item() == pytest.approx(
        math.log(105) - entropy, abs=1e-3
    )


def test_a_shifted_pointer_loses_more() -> None:
    output = output_for(START, END, LABEL)
    losses = [pointer_loss(output, START + shift, END - shift, WIDTH).item() for shift in range(4)]
    assert losses == sorted(losses)
    assert losses[3] > losses[0] + 1


def test_a_coin_toss_loses_log_two_for_the_window_and_log_two_for_the_start() -> None:
    output = output_for(START, END, LABEL, sure=0.5)
    assert type_loss(output, LABEL, START, WIDTH).item() == pytest.approx(2 * math.log(2), rel=1e-5)
    assert type_loss(output, LABEL, None, WIDTH).item() == pytest.approx(math.log(2), rel=1e-5)


def test_a_sure_type_loses_nothing_when_right_and_much_when_wrong() -> None:
    output = output_for(START, END, LABEL, sure=1.0)
    assert type_loss(output, LABEL, START, WIDTH).item() == pytest.approx(0.0, abs=1e-5)
    assert type_loss(output, 1 - LABEL, START, WIDTH).item() > 20


def test_the_type_is_asked_for_at_the_start_only() -> None:
    output = output_for(START, END, LABEL, sure=1.0)
    wrong_elsewhere = output["bar_logits"].clone()
    wrong_elsewhere[1, 70:] = wrong_elsewhere[1, 70:].flip(-1)
    output["bar_logits"] = wrong_elsewhere
    assert type_loss(output, LABEL, START, WIDTH).item() == pytest.approx(0.0, abs=1e-5)
    wrong_at_start = output_for(START, END, LABEL, sure=1.0)["bar_logits"].clone()
    wrong_at_start[1, 45:55] = wrong_at_start[1, 45:55].flip(-1)
    output["bar_logits"] = wrong_at_start
    assert type_loss(output, LABEL, START, WIDTH).item() > 1


def test_kendall_is_the_published_formula() -> None:
    value = kendall_loss(
        torch.tensor(1.2), torch.tensor(0.6), torch.tensor(0.74), torch.tensor(2.0)
    )
    assert value.item() == pytest.approx(
        1.2 / (2 * 0.74**2) + 0.6 / (2 * 2.0**2) + math.log(0.74 * 2.0)
    )


@pytest.mark.parametrize(("pointer", "kind"), [(1.4, 0.7), (0.5, 0.3)])
def test_sigma_squared_settles_at_its_loss(pointer: float, kind: float) -> None:
    log_sigma = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.Adam([log_sigma], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        sigma = log_sigma.exp()
        kendall_loss(torch.tensor(pointer), torch.tensor(kind), sigma[0], sigma[1]).backward()
        optimizer.step()
    assert (log_sigma.detach().exp() ** 2).tolist() == pytest.approx([pointer, kind], rel=1e-3)


def test_gradients_reach_every_parameter() -> None:
    torch.manual_seed(0)
    model = JadeCompact(hidden_size=8)
    batch = {"label": LABEL, "start": START, "end": END}
    output = model(torch.rand(3, WINDOW, 11))
    uncertainty_loss(output, batch, WIDTH).total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_without_pointers_the_type_is_learnt_alone() -> None:
    model = JadeCompact(hidden_size=8, predict_pointers=False)
    output = model(torch.rand(3, WINDOW, 11))
    losses = uncertainty_loss(output, {"label": LABEL}, WIDTH)
    assert losses.pointer.item() == 0
    # sigma_type starts at 1
    assert losses.total.item() == pytest.approx(losses.type.item() / 2, rel=1e-5)
    assert losses.type.item() == pytest.approx(math.log(2), abs=0.2)


def test_a_batch_of_another_size_is_refused() -> None:
    batch = {"label": LABEL[:2], "start": START[:2], "end": END[:2]}
    with pytest.raises(DataError, match="must be of one size, got 3 and 2"):
        uncertainty_loss(output_for(START, END, LABEL), batch, WIDTH)

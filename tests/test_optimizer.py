"""Which parameters a stage trains, and how the learning rate goes."""

import math

import pytest

torch = pytest.importorskip("torch")

from moola.models import JadeCompact  # noqa: E402
from moola.specs import TrainConfig  # noqa: E402
from moola.training.objectives import FillIn  # noqa: E402
from moola.training.optimizer import (  # noqa: E402
    STAGES,
    make_optimizer,
    set_learning_rates,
    trained_parameters,
)

CONFIG = TrainConfig(learning_rate=0.1, encoder_step=0.25, weight_decay=0.03, warm_up_fraction=0.1)


@pytest.fixture
def model() -> JadeCompact:
    return JadeCompact(hidden_size=8)


@pytest.mark.parametrize("stage", STAGES)
def test_the_optimizer_holds_just_what_the_stage_trains(stage: str, model: JadeCompact) -> None:
    fill_in = FillIn(model)
    optimizer = make_optimizer(stage, model, fill_in, CONFIG)
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    trained = trained_parameters(stage, model, fill_in)
    assert sorted(map(id, held)) == sorted(map(id, trained))
    assert (model.encoder.weight_hh_l0 in set(held)) == (stage != "heads")
    assert (model.span in set(held)) == (stage != "pretrain")


def test_sigmas_do_not_decay_and_all_else_does(model: JadeCompact) -> None:
    optimizer = make_optimizer("full", model, FillIn(model), CONFIG)
    for group in optimizer.param_groups:
        is_sigma = any(parameter is model.log_sigma_ptr for parameter in group["params"])
        assert group["weight_decay"] == (0.0 if is_sigma else 0.03)


def test_the_rate_warms_up_and_falls_to_0_over_half_a_cosine(model: JadeCompact) -> None:
    """100 steps: 10 of warm-up."""
    optimizer = make_optimizer("heads", model, FillIn(model), CONFIG)
    rates = []
    for step in range(101):
        set_learning_rates(optimizer, CONFIG, step, stage_steps=100)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(0.1 * 0.1)
    assert rates[4] == pytest.approx(0.1 * 0.5 * 0.5 * (1 + math.cos(math.pi * 0.04)))
    assert rates[50] == pytest.approx(0.05)
    assert rates[100] == pytest.approx(0.0)
    assert rates.index(max(rates)) == 9


def test_encoder_and_sigmas_learn_at_their_share_of_the_rate(model: JadeCompact) -> None:
    optimizer = make_optimizer("full", model, FillIn(model), CONFIG)
    set_learning_rates(optimizer, CONFIG, 50, stage_steps=100)
    rates = {
        id(parameter): group["lr"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert rates[id(model.head.weight)] == pytest.approx(0.05)
    assert rates[id(model.log_sigma_ptr)] == pytest.approx(20 * 0.05)
    assert rates[id(model.encoder.weight_hh_l0)] == pytest.approx(0.25 * 0.05)

"""Which parameters a stage trains, how fast, and how the learning rate goes over the stage."""

import math

from torch import nn
from torch.optim import AdamW

from moola.models import JadeCompact
from moola.specs import TrainConfig
from moola.training.objectives import FillIn

STAGES = ("pretrain", "heads", "full")

SIGMA_STEP = 20.0  # at the step of the weights, sigma^2 is still twice its loss when training ends


def trained_parameters(
    stage: str,
    model: JadeCompact,
    fill_in: FillIn,
) -> list[nn.Parameter]:
    """pretrain: encoder and reconstruction; heads: all but the encoder; full: the whole model."""
    encoder = list(model.encoder.parameters())
    if stage == "pretrain":
        return encoder + list(fill_in.reconstruct.parameters())

    heads = model.head_parameters() + sigmas(model)
    return heads + encoder if stage == "full" else heads


def sigmas(model: JadeCompact) -> list[nn.Parameter]:
    return [model.log_sigma_ptr, model.log_sigma_type]


def make_optimizer(
    stage: str,
    model: JadeCompact,
    fill_in: FillIn,
    config: TrainConfig,
) -> AdamW:
    """AdamW over what the stage trains; `part` of a group is its share of the learning rate."""
    decay = config.weight_decay
    if stage == "pretrain":
        parameters = trained_parameters(stage, model, fill_in)
        groups = [{"params": parameters, "weight_decay": decay, "part": 1.0}]
    else:
        groups = [
            {"params": model.head_parameters(), "weight_decay": decay, "part": 1.0},
            {"params": sigmas(model), "weight_decay": 0.0, "part": SIGMA_STEP},
        ]
    if stage == "full":
        encoder = list(model.encoder.parameters())
        groups.append({"params": encoder, "weight_decay": decay, "part": config.encoder_step})

    return AdamW(groups, lr=config.learning_rate, fused=True)


def set_learning_rates(
    optimizer: AdamW,
    config: TrainConfig,
    steps_done: int,
    stage_steps: int,
) -> None:
    """Linear warm-up, then half a cosine down to 0 at the stage's last step."""
    warm_up_steps = max(1, round(config.warm_up_fraction * stage_steps))
    warm_up = min(1.0, (steps_done + 1) / warm_up_steps)
    factor = warm_up * 0.5 * (1 + math.cos(math.pi * steps_done / stage_steps))

    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * group["part"] * factor

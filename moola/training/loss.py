"""The training loss: two likelihoods weighted by learned uncertainties (Kendall, CVPR 2018)."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from moola import WINDOW
from moola.errors import DataError


class Losses(NamedTuple):
    """Scalars; `total` is the one to differentiate. `pointer` is 0 for a model without pointers."""

    total: Tensor
    pointer: Tensor
    type: Tensor


def soft_targets(bar: Tensor, width_bars: float) -> Tensor:
    """[...] int64 in 0..104 -> [..., T]: a Gaussian around `bar`, cut off at the window; sum 1.

    `width_bars` is its standard deviation.
    """
    return log_targets(bar, width_bars).exp()


def log_targets(bar: Tensor, width_bars: float) -> Tensor:
    """The logarithms of `soft_targets`, finite everywhere."""
    bars = torch.arange(WINDOW, device=bar.device)
    deviations = (bars - bar.unsqueeze(-1)) / width_bars  # [..., T]
    return torch.log_softmax(-0.5 * deviations**2, dim=-1)


def pointer_loss(
    output: Mapping[str, Tensor],
    start: Tensor,
    end: Tensor,
    width_bars: float,
) -> Tensor:
    """Mean over windows and both ends of KL(soft target || predicted distribution), in nats.

    0 at best, 2.8 for a uniform prediction. It is the cross-entropy less what no prediction can
    win, so sigma_ptr settles at its root.
    """
    target = log_targets(torch.stack([start, end]), width_bars)  # [2, B, T] log-probabilities
    predicted = torch.stack([output["start_logits"], output["end_logits"]])  # [2, B, T]
    divergence = (target.exp() * (target - predicted)).sum(dim=-1)  # [2, B]
    return divergence.mean()


def type_loss(
    output: Mapping[str, Tensor],
    label: Tensor,
    start: Tensor | None,
    width_bars: float,
) -> Tensor:
    """-log P(label | window) - log P(label | window, start), mean over windows, in nats.

    The first is the prediction's own loss. The second reads the type at the bars around the true
    start, so that the type is learned even while the start is not yet found; without a start it is
    left out.
    """
    loss = functional.nll_loss(output["logits"], label)
    if start is None:
        return loss

    bar_logits = output["bar_logits"]  # [B, T, K] log-probabilities
    index = label[:, None, None].expand(-1, WINDOW, 1)
    of_label = bar_logits.gather(2, index).squeeze(2)  # [B, T]
    at_start = (soft_targets(start, width_bars) * of_label).sum(dim=1)  # [B]

    return loss - at_start.mean()


def kendall_loss(
    pointer: Tensor,
    type_: Tensor,
    sigma_ptr: Tensor,
    sigma_type: Tensor,
) -> Tensor:
    """L_ptr / (2 sigma_ptr^2) + L_type / (2 sigma_type^2) + log(sigma_ptr sigma_type).

    At its optimum sigma^2 = L.
    """
    weighted_pointer = pointer / (2 * sigma_ptr**2)
    weighted_type = type_ / (2 * sigma_type**2)
    return weighted_pointer + weighted_type + torch.log(sigma_ptr * sigma_type)


def uncertainty_loss(
    output: Mapping[str, Tensor],
    batch: Mapping[str, Tensor],
    width_bars: float,
) -> Losses:
    """The loss of a model's output on a batch with label, start and end [B].

    Without pointers: the type's part alone. Raises DataError where output and batch differ in size.
    """
    n_output = len(output["logits"])
    n_batch = len(batch["label"])
    if n_output != n_batch:
        raise DataError(f"output and batch must be of one size, got {n_output} and {n_batch}")

    sigma_type = output["sigma_type"]
    if "start_logits" not in output:
        type_ = type_loss(output, batch["label"], None, width_bars)
        total = type_ / (2 * sigma_type**2) + sigma_type.log()
        return Losses(total, torch.zeros_like(type_), type_)

    pointer = pointer_loss(output, batch["start"], batch["end"], width_bars)
    type_ = type_loss(output, batch["label"], batch["start"], width_bars)
    total = kendall_loss(pointer, type_, output["sigma_ptr"], sigma_type)

    return Losses(total, pointer, type_)

"""The training loss: two likelihoods, weighted by uncertainties that are learnt (Kendall et al., CVPR 2018)."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from moola import WINDOW
from moola.errors import DataError

TARGET_WIDTH = 1.5  # bars: standard deviation of the soft targets of start and end


class Losses(NamedTuple):
    """Scalars; `total` is the one to differentiate. `pointer` is 0 for a model without pointers."""

    total: Tensor
    pointer: Tensor
    type: Tensor


def soft_targets(bar: Tensor, width: float = TARGET_WIDTH) -> Tensor:
    """[...] int64 in 0..104 -> [..., T]: a Gaussian over the bars around `bar`, cut off at the window, summing to 1."""
    return log_targets(bar, width).exp()


def log_targets(bar: Tensor, width: float = TARGET_WIDTH) -> Tensor:
    """The logarithms of `soft_targets`, finite everywhere."""
    bars = torch.arange(WINDOW, device=bar.device)
    return torch.log_softmax(-0.5 * ((bars - bar.unsqueeze(-1)) / width) ** 2, dim=-1)


def pointer_loss(output: Mapping[str, Tensor], start: Tensor, end: Tensor, width: float = TARGET_WIDTH) -> Tensor:
    """Mean over windows and both ends of KL(soft target || predicted distribution), in nats: 0 at best, 2.8 for a
    uniform prediction. It is the cross-entropy less what no prediction can win, so sigma_ptr settles at its root."""
    wanted = log_targets(torch.stack([start, end]), width)  # [2, B, T]
    predicted = torch.stack([output["start_logits"], output["end_logits"]])  # [2, B, T] log-probabilities
    return (wanted.exp() * (wanted - predicted)).sum(dim=-1).mean()


def type_loss(output: Mapping[str, Tensor], label: Tensor, start: Tensor | None, width: float = TARGET_WIDTH) -> Tensor:
    """-log P(label | window) - log P(label | window, start), mean over windows, in nats.

    The first is the prediction's own loss. The second asks for the type at the bars around the true start, so that the
    type is learnt even while the start is not yet found; without a start it is left out.
    """
    loss = torch.nn.functional.nll_loss(output["logits"], label)
    if start is None:
        return loss
    here = output["bar_logits"]  # [B, T, K] log-probabilities
    of_label = here.gather(2, label[:, None, None].expand(-1, WINDOW, 1)).squeeze(2)  # [B, T]
    return loss - (soft_targets(start, width) * of_label).sum(dim=1).mean()


def kendall_loss(pointer: Tensor, kind: Tensor, sigma_ptr: Tensor, sigma_type: Tensor) -> Tensor:
    """L_ptr / (2 sigma_ptr^2) + L_type / (2 sigma_type^2) + log(sigma_ptr sigma_type); at its optimum sigma^2 = L."""
    return pointer / (2 * sigma_ptr**2) + kind / (2 * sigma_type**2) + torch.log(sigma_ptr * sigma_type)


def uncertainty_loss(output: Mapping[str, Tensor], batch: Mapping[str, Tensor], width: float = TARGET_WIDTH) -> Losses:
    """The loss of a model's output on a batch with label, start and end [B]. Without pointers: the type's part alone.

    Raises DataError where output and batch are of different size.
    """
    if len(output["logits"]) != len(batch["label"]):
        raise DataError(f"output and batch must be of one size, got {len(output['logits'])} and {len(batch['label'])}")
    if "start_logits" not in output:
        kind = type_loss(output, batch["label"], None)
        sigma = output["sigma_type"]
        return Losses(kind / (2 * sigma**2) + sigma.log(), torch.zeros_like(kind), kind)
    pointer = pointer_loss(output, batch["start"], batch["end"], width)
    kind = type_loss(output, batch["label"], batch["start"], width)
    return Losses(kendall_loss(pointer, kind, output["sigma_ptr"], output["sigma_type"]), pointer, kind)

"""Boosted spans: trees that score the strongest spans of a window, and the type of each."""

from typing import Any

import torch
from torch import Tensor, nn

from moola.models.candidates import (
    N_COLUMNS,
    N_STATES,
    Candidates,
    Spans,
    candidates,
    motion_of,
    states_of,
)
from moola.models.price_path import PricePath
from moola.models.trees import Trees

SPAN_SCALE = 1.2  # by which the trees' score of a span is multiplied ...
NEURAL_SHARE = 0.25  # ... and the log-probability that the network gives it; of the type likewise
TYPE_SCALE = 1.0
NEURAL_TYPE_SHARE = 0.25
N_TYPED = 32  # the likeliest spans of a window, of which the type is asked


class Boosted(nn.Module):
    """The trees, the lengths of spans that they are asked about, and what weighs them.

    bars   [2] int64, the fewest and the most bars of a span
    sided  [] int64, 1 or 0: whether the trees know if prices rose or fell
    blend  [4] the weights of: the trees' score of a span, the network's log-probability of it, the
           trees' logits of a type, the network's
    """

    bars: Tensor
    sided: Tensor
    blend: Tensor

    def __init__(self, num_classes: int, longest_move: int) -> None:
        super().__init__()
        self.longest_move = longest_move
        self.span_trees = Trees(N_COLUMNS + N_STATES, 1)
        self.type_trees = Trees(N_STATES, num_classes)
        self.register_buffer("bars", torch.tensor([1, 2]))
        self.register_buffer("sided", torch.tensor(0))
        weights = [SPAN_SCALE, NEURAL_SHARE, TYPE_SCALE, NEURAL_TYPE_SHARE]
        self.register_buffer("blend", torch.tensor(weights))
        self.register_load_state_dict_pre_hook(_check_weights)  # type: ignore[no-untyped-call]

    @property
    def is_grown(self) -> bool:
        return self.span_trees.n_trees > 0

    def candidates(self, path: PricePath) -> Candidates:
        """The spans of each window that the trees are asked about."""
        shortest, longest = self.bars.tolist()
        return candidates(path, shortest, longest, sided=bool(self.sided))

    def states(self, path: PricePath, start: Tensor, end: Tensor) -> Tensor:
        """[B, S] what came before one span start..end [B] of each window."""
        span = Spans(start[:, None], end[:, None])
        return states_of(motion_of(path), span, sided=bool(self.sided))[:, 0]

    def scores(self, spans: Candidates) -> Tensor:
        """[B, K] logits of the spans."""
        scores = torch.as_tensor(self.span_trees(spans.descriptors.flatten(0, 1)))
        return scores.view(spans.start.shape).float()

    def type_logits(self, states: Tensor) -> Tensor:
        """[..., S] what came before spans -> [..., C] logits of the type, if that is the move."""
        logits = torch.as_tensor(self.type_trees(states.flatten(0, -2)))
        return logits.view(*states.shape[:-1], -1).float()


def _check_weights(
    module: Boosted,
    state_dict: dict[str, Any],
    prefix: str,
    *others: Any,
) -> None:
    """Names and shapes are torch's to check; that the lengths are some of the model's is not."""
    bars = state_dict.get(prefix + "bars", module.bars)
    in_order = bars.shape == (2,) and 1 <= bars[0] <= bars[1] <= module.longest_move
    if not in_order:
        error_messages = others[-1]
        error_messages.append(
            f"{prefix}bars must be two lengths within 1..{module.longest_move}, got {bars.tolist()}"
        )

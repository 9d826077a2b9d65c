"""Whether there is a move: a small model of its own, beside the one that says where.

    the model's span_probs --> the K best spans of a window that share no bar
          |                              |
          |             V spans with their ends moved --> span trees --> the best of each K
          |                                                  |               |
          |                                    how exact it seems    prices in and next to it,
          |                                                  |       and the state before it
          |                                                  |               |
          +--> its probability ------------------------------+---------------+--> move trees
                                                             |                        |
                                                             +--> logistic <----------+
                                                                      |--> P(it is a move)

Both kinds of trees are grown on windows of the train split, with and without a move; they see
prices alone, of which no model is surer where it was trained. What else is known of a span comes in
with a few numbers that are fitted on validation, and so is how what windows say adds up.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from moola import WINDOW
from moola.models.candidates import N_STATES, Spans, motion_of, states_of
from moola.models.move_descriptors import N_DESCRIPTORS, best_spans, mass_near, measure
from moola.models.price_path import PricePath
from moola.models.trees import Trees

CANDIDATES = 6  # spans of a window that are looked at
MOST_MOVED = 3  # bars by which each end of such a span is moved, both ways
UNMOVED = 24  # of the variants, the one that is not moved
N_MOVE_COLUMNS = N_STATES + N_DESCRIPTORS  # that tell a move; the state comes first
LEAST = 1e-6  # the smallest probability, and 1 less the largest


class BestSpans(NamedTuple):
    """The K best spans of each of B windows, the likeliest first.

    start, end   [B, K] bars 0..104, both inclusive
    likelihood   [B, K] log of the model's probability of a move there, if there is one
    types        [B, T, C] probabilities of the type of a move that starts at each bar
    """

    start: Tensor
    end: Tensor
    likelihood: Tensor
    types: Tensor


class Variants(NamedTuple):
    """The K best spans of each of B windows, each with its ends moved.

    start, end   [B, K, V] bars 0..104, both inclusive; the span itself is variant UNMOVED
    descriptors  [B, K, V, D]
    """

    start: Tensor
    end: Tensor
    descriptors: Tensor


class Candidates(NamedTuple):
    """The best variant of each of K spans of B windows.

    start, end   [B, K] bars 0..104, both inclusive
    descriptors  [B, K, S + D] the state before it, and the variant's own
    told         [B, K, 2] what is known of each beside its prices: how exact it seems, and the
                 likelihood
    types        [B, K, C] probabilities of the type, read off where the span starts
    """

    start: Tensor
    end: Tensor
    descriptors: Tensor
    told: Tensor
    types: Tensor


@torch.no_grad()
def find_best(output: Mapping[str, Tensor]) -> BestSpans:
    """From a model's forward pass over B windows."""
    probs = output["span_probs"]
    start, end = best_spans(probs, CANDIDATES)
    likelihood = mass_near(probs, start + end).clamp(min=LEAST).log()
    return BestSpans(start, end, likelihood, output["bar_logits"].exp())


@torch.no_grad()
def find_variants(best: BestSpans, path: PricePath) -> Variants:
    """Of the best spans of windows with these prices."""
    moved = torch.arange(-MOST_MOVED, MOST_MOVED + 1, device=best.start.device)
    by_start, by_end = torch.cartesian_prod(moved, moved).unbind(1)  # [V] each
    start = (best.start.unsqueeze(-1) + by_start).clamp(0, WINDOW - 2)
    end = (best.end.unsqueeze(-1) + by_end).clamp(max=WINDOW - 1)
    end = torch.maximum(end, start + 1)

    descriptors = measure(path, start.flatten(1), end.flatten(1))
    return Variants(start, end, descriptors.view(*start.shape, -1))


class Presence(nn.Module):
    """The probability that a span is a move, a window holds one, and a merged move is one.

    span_trees    which variant of a span a move would be
    move_trees    whether it is one
    span_scale    [4] of the move trees' score, of what else is told, and what is added
    window_scale  [2] of the logit of 1 - product of (1 - p) over a window's spans, and the rest
    move_scale    [2] the same for what the windows say of a merged move
    """

    span_scale: Tensor
    window_scale: Tensor
    move_scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.span_trees = Trees(N_DESCRIPTORS, 1)
        self.move_trees = Trees(N_MOVE_COLUMNS, 1)
        self.register_buffer("span_scale", torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64))
        self.register_buffer("window_scale", torch.tensor([1.0, 0.0], dtype=torch.float64))
        self.register_buffer("move_scale", torch.tensor([1.0, 0.0], dtype=torch.float64))

    @torch.no_grad()
    def find_candidates(self, best: BestSpans, path: PricePath) -> Candidates:
        """Of the best spans of B windows with these prices."""
        variants = find_variants(best, path)
        exactness, variant = _scores(self.span_trees, variants.descriptors).max(dim=2)  # [B, K]
        variant = variant.unsqueeze(-1)
        start = variants.start.gather(2, variant)[..., 0]
        end = variants.end.gather(2, variant)[..., 0]
        place = variant.unsqueeze(-1).expand(-1, -1, -1, N_DESCRIPTORS)
        first_bar = start.unsqueeze(-1).expand(-1, -1, best.types.shape[2])
        own = variants.descriptors.gather(2, place)[:, :, 0]
        state = states_of(motion_of(path), Spans(start, end), sided=False)

        return Candidates(
            start,
            end,
            torch.cat([state, own], dim=2),
            torch.stack([exactness, best.likelihood.double()], dim=2),
            best.types.gather(1, first_bar),
        )

    def numbers(self, descriptors: Tensor, told: Tensor) -> Tensor:
        """[B, K, S + D], [B, K, 2] -> [B, K, 3]: what the probability of a span is made of."""
        score = _scores(self.move_trees, descriptors)
        return torch.cat([score.unsqueeze(-1), told], dim=2)

    def of_spans(self, descriptors: Tensor, told: Tensor) -> Tensor:
        """[B, K, S + D], [B, K, 2] -> [B, K] the probability that each span is a move."""
        numbers = self.numbers(descriptors, told)
        return torch.sigmoid(numbers @ self.span_scale[:-1] + self.span_scale[-1])

    def of_windows(self, span_probs: Tensor) -> Tensor:
        """[B, K] of spans -> [B] the probability that the window holds a move."""
        return rescaled(any_of(span_probs), self.window_scale)

    def of_moves(self, probability: Tensor) -> Tensor:
        """[M] what windows say of merged moves -> [M] the probability that each is one."""
        return rescaled(probability, self.move_scale)


def _scores(trees: Trees, descriptors: Tensor) -> Tensor:
    """[..., D] -> [...] the log odds of the trees."""
    total: Tensor = trees(descriptors.flatten(0, -2))
    return total.view(descriptors.shape[:-1])


def any_of(span_probs: Tensor) -> Tensor:
    """[B, K] -> [B] the probability of at least one, if they were independent."""
    return 1 - (1 - span_probs).prod(dim=1)


def rescaled(probability: Tensor, scale: Tensor) -> Tensor:
    """The probability whose logit is scale[0] x that of the given one + scale[1]."""
    return torch.sigmoid(scale[0] * logit_of(probability) + scale[1])


def logit_of(probability: Tensor) -> Tensor:
    return torch.logit(probability.double(), eps=LEAST)

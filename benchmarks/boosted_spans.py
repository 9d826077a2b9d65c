"""The rival: gradient boosting over the strongest spans of a window.

    features [B, T, F] --> price path --> the strongest spans [B, K]
        --> descriptors of the span [B, K, D] ---------+
        --> the state before the span [B, K, S] --+----+--> LambdaRank: the span
                                                  +-------> classifier: the type

It reads the same 11 features as Jade. A span's descriptors say how far and how straight prices went
in it, what they did before and after, how a span one or two bars longer or shorter compares, and
how its strongest rivals do. Every descriptor is of the move's own direction: the mirrored window
has the same ones.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from moola import WINDOW
from moola.evaluation.predictions import Predictions
from moola.models.price_path import TINY, PricePath, price_path, trailing_mean
from moola.training.data import TrainingData

Floats = NDArray[np.float64]
Float32s = NDArray[np.float32]
Ints = NDArray[np.int64]

N_CANDIDATES = 256  # K
FIRST_START = 2  # bars that a span needs before it, for its ATR
ATR_BARS = (8, 16, 32)
BARS_BEFORE = (1, 2, 4, 8, 16)
BARS_AFTER = (1, 2, 4, 8)
STATE_BARS = (8, 12, 16, 24, 32, 48)
RESIZED = ((1, 0), (-1, 0), (0, 1), (0, -1), (-1, 1), (2, 0), (-2, 0), (0, 2), (0, -2))
LEAST_STRAIGHT = (0.0, 0.6, 0.7, 0.8)  # of the rivals that a span is compared with
DESCRIPTOR_LIMIT = 50.0
BATCH = 128  # windows described at a time
OUTSIDE = 1e9  # above any price of a path

# The grade of a candidate: 4 x its IoU with the true span, and 2 more for the span itself.
IOU_GRADES = 4
EXACT_GRADES = 2
GAIN_OF_GRADE = [0, 1, 2, 3, 4, 6, 10]
COMMON = {"learning_rate": 0.08, "num_threads": 1, "deterministic": True, "verbose": -1}
RANKER = COMMON | {
    "objective": "lambdarank",
    "label_gain": GAIN_OF_GRADE,
    "num_leaves": 15,
    "min_data_in_leaf": 20,
}
RANKER_ROUNDS = 200
CLASSIFIER = COMMON | {"objective": "multiclass", "num_leaves": 7, "min_data_in_leaf": 5}
CLASSIFIER_ROUNDS = 100


class Spans(NamedTuple):
    """[B, K] first and last bars of K spans in each of B windows."""

    start: Tensor
    end: Tensor


class Motion(NamedTuple):
    """Series of B windows, with what spans are measured in.

    atr        [B, T, 3] mean true range of the last 8, 16, 32 bars
    unit       [B, T] the mean of the three
    travelled  [B, T] the sum of |close - close before| up to and with each bar
    """

    path: PricePath
    atr: Tensor
    unit: Tensor
    travelled: Tensor


class Candidates(NamedTuple):
    """K spans of each of N windows: both ends [N, K], descriptors [N, K, D], states [N, K, S]."""

    start: Ints
    end: Ints
    descriptors: Float32s
    states: Float32s


# --- the model ------------------------------------------------------------------------------------


def boosted_spans(data: TrainingData, seed: int) -> Predictions | None:
    """Predictions of the test windows; None without LightGBM."""
    try:
        import lightgbm
    except ImportError:
        return None

    labels = data.labels["train"]
    lengths = labels.end - labels.start + 1
    longest = int(lengths.max())
    shortest = int(lengths.min())

    known = candidates(data.window_features("train"), shortest, longest)
    ranks = lightgbm.Dataset(
        ranker_rows(known),
        _grades(known, labels.start, labels.end).ravel(),
        group=np.full(len(labels), known.start.shape[1]),
    )
    ranker = lightgbm.train(RANKER | {"seed": seed}, ranks, RANKER_ROUNDS)

    true_states = states_of_spans(data.window_features("train"), labels.start, labels.end)
    types = lightgbm.Dataset(true_states, labels.label_index)
    settings = CLASSIFIER | {"seed": seed, "num_class": len(labels.classes)}
    classifier = lightgbm.train(settings, types, CLASSIFIER_ROUNDS)

    unseen = candidates(data.window_features("test"), shortest, longest)
    scores = np.asarray(ranker.predict(ranker_rows(unseen)))
    best = scores.reshape(unseen.start.shape).argmax(axis=1)
    row = np.arange(len(best))
    probabilities = np.asarray(classifier.predict(unseen.states[row, best]))

    return Predictions(
        probabilities,
        unseen.start[row, best],
        unseen.end[row, best],
    )


def ranker_rows(spans: Candidates) -> Float32s:
    """[N x K, D + S]: the state counts too, as a move without one of the classes is unlabelled."""
    rows = np.concatenate([spans.descriptors, spans.states], axis=-1)
    return rows.reshape(-1, rows.shape[-1])


def _grades(known: Candidates, start: Ints, end: Ints) -> Ints:
    """[N, K] how good a find each candidate is where start..end [N] is true."""
    true_start = start[:, None]
    true_end = end[:, None]
    shared = np.minimum(known.end, true_end) - np.maximum(known.start, true_start) + 1
    spanned = np.maximum(known.end, true_end) - np.minimum(known.start, true_start) + 1

    iou = np.maximum(shared, 0) / spanned
    exact = (known.start == true_start) & (known.end == true_end)
    grades: Ints = np.rint(IOU_GRADES * iou).astype(np.int64) + EXACT_GRADES * exact

    return grades


# --- candidates -----------------------------------------------------------------------------------


def candidates(
    features: Float32s,
    shortest: int,
    longest: int,
) -> Candidates:
    """The strongest spans of shortest..longest bars of windows [N, T, F], and what they are like.

    The strength of a span is its net move / ATR / sqrt(bars).
    """
    parts = []
    for first in range(0, len(features), BATCH):
        motion = motion_of(torch.from_numpy(features[first : first + BATCH].copy()))
        spans = strongest_spans(motion, shortest, longest)
        described = (describe(motion, spans), describe_states(motion, spans))
        parts.append([part.numpy() for part in (*spans, *described)])

    return Candidates(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def states_of_spans(
    features: Float32s,
    start: Ints,
    end: Ints,
) -> Float32s:
    """[N, S] what came before one span start..end [N] of each window [N, T, F]."""
    motion = motion_of(torch.from_numpy(features.copy()))
    spans = Spans(torch.from_numpy(start)[:, None], torch.from_numpy(end)[:, None])
    states: Float32s = describe_states(motion, spans)[:, 0].numpy()
    return states


def motion_of(x: Tensor) -> Motion:
    """Of windows [B, T, F]."""
    return motion_of_path(price_path(x))


def motion_of_path(path: PricePath) -> Motion:
    means = [trailing_mean(path.true_range, bars) for bars in ATR_BARS]
    atr = torch.stack(means, dim=-1) + TINY
    steps = path.close.diff(dim=1).abs()
    travelled = functional.pad(steps, (1, 0)).cumsum(1)

    return Motion(
        path,
        atr,
        atr.mean(-1),
        travelled,
    )


def strongest_spans(
    motion: Motion,
    shortest: int,
    longest: int,
) -> Spans:
    """The N_CANDIDATES strongest spans of each window."""
    first_bars = torch.arange(FIRST_START, WINDOW)
    start, length = torch.meshgrid(
        first_bars,
        torch.arange(shortest, longest + 1),
        indexing="ij",
    )
    end = start + length - 1
    inside = end < WINDOW

    n_windows = len(motion.unit)
    everywhere = Spans(
        start[inside].expand(n_windows, -1),
        end[inside].expand(n_windows, -1),
    )
    strength = _strength(motion, everywhere)
    best = strength.topk(min(N_CANDIDATES, strength.shape[1]), dim=1).indices

    return Spans(everywhere.start.gather(1, best), everywhere.end.gather(1, best))


# --- descriptors ----------------------------------------------------------------------------------


def describe(motion: Motion, spans: Spans) -> Tensor:
    """[B, K, D] of the spans, which are each other's rivals."""
    columns = [
        *_of_the_span(motion, spans),
        *_around_the_span(motion, spans),
        *_of_resized_spans(motion, spans),
        *_among_rivals(motion, spans),
        spans.start.float(),
        spans.end.float(),
    ]
    described = torch.stack(columns, dim=-1)
    return described.clamp(-DESCRIPTOR_LIMIT, DESCRIPTOR_LIMIT)


def _at(series: Tensor, bar: Tensor) -> Tensor:
    """[B, T] at bars [B, K]; outside the window, the value at its edge."""
    return series.gather(1, bar.clamp(0, WINDOW - 1))


def _net(motion: Motion, spans: Spans) -> Tensor:
    """[B, K] signed, from the close before a span to its last."""
    close = motion.path.close
    return _at(close, spans.end) - _at(close, spans.start - 1)


def _direction(motion: Motion, spans: Spans) -> Tensor:
    """[B, K] +1 or -1."""
    return torch.where(_net(motion, spans) >= 0, 1.0, -1.0)


def _strength(motion: Motion, spans: Spans) -> Tensor:
    """[B, K] |net move| / ATR before the span / sqrt(bars)."""
    bars = (spans.end - spans.start + 1).clamp(min=1)
    unit = _at(motion.unit, spans.start - 1)
    return _net(motion, spans).abs() / unit / bars.sqrt()


def _straightness(motion: Motion, spans: Spans) -> Tensor:
    """[B, K] |net move| / path."""
    travelled = _at(motion.travelled, spans.end) - _at(motion.travelled, spans.start - 1)
    return _net(motion, spans).abs() / (travelled + TINY)


def _of_the_span(motion: Motion, spans: Spans) -> list[Tensor]:
    """Its length, its net move in each ATR, also per sqrt(bar), and how straight it is."""
    bars = (spans.end - spans.start + 1).float()
    net = _net(motion, spans).abs()
    atrs = [_at(atr, spans.start - 1) for atr in motion.atr.unbind(-1)]
    far = [net / atr for atr in atrs]
    slowest = atrs[-1]

    return [
        bars,
        *far,
        *(distance / bars.sqrt() for distance in far),
        _straightness(motion, spans),
        *((atr / slowest).log() for atr in atrs[:-1]),
    ]


def _around_the_span(motion: Motion, spans: Spans) -> list[Tensor]:
    """Steps in the move's direction, in ATR: before it, after it, of its outer bars."""
    steps = [(spans.start - 1 - bars, spans.start - 1) for bars in BARS_BEFORE]
    steps += [(spans.end, spans.end + bars) for bars in BARS_AFTER]
    steps += [(spans.start + bar - 1, spans.start + bar) for bar in (0, 1)]
    steps.append((spans.end - 1, spans.end))

    close = motion.path.close
    per_unit = _direction(motion, spans) / _at(motion.unit, spans.start - 1)
    return [per_unit * (_at(close, last) - _at(close, first)) for first, last in steps]


def _of_resized_spans(motion: Motion, spans: Spans) -> list[Tensor]:
    """How much stronger it would be with its ends moved, in the ATR of the span as it is."""
    unit = _at(motion.unit, spans.start - 1)
    own = _strength(motion, spans)
    gains = []
    for earlier, later in RESIZED:
        start = (spans.start - earlier).clamp(1, WINDOW - 1)
        end = (spans.end + later).clamp(0, WINDOW - 1)
        bars = (end - start + 1).clamp(min=1)
        net = _net(motion, Spans(start, end)).abs()
        gains.append(net / unit / bars.sqrt() - own)

    return gains


def _among_rivals(motion: Motion, spans: Spans) -> list[Tensor]:
    """Its rank, and its lead over the best rival that shares a bar with it and that shares none."""
    strength = _strength(motion, spans)
    straight = _straightness(motion, spans)
    both = strength * straight

    starts_in_time = spans.start[:, :, None] <= spans.end[:, None, :]
    overlap = starts_in_time & starts_in_time.transpose(1, 2)  # [B, K, K]
    itself = torch.eye(overlap.shape[1], dtype=torch.bool)
    near = overlap & ~itself
    apart = ~overlap

    leads = []
    for rivals in (near, apart):
        leads.append(both - _best(both, rivals))
        for least in LEAST_STRAIGHT:
            straight_rivals = rivals & (straight >= least)[:, None, :]
            leads.append(strength - _best(strength, straight_rivals))

    rank = strength.argsort(dim=1, descending=True).argsort(dim=1)
    strongest = strength.max(dim=1, keepdim=True).values
    return [
        rank.float(),
        strength / (strongest + TINY),
        both,
        *leads,
    ]


def _best(worth: Tensor, rivals: Tensor) -> Tensor:
    """[B, K] the most that any rival [B, K, K] is worth [B, K]; 0 without a rival."""
    of_rivals = worth[:, None, :].masked_fill(~rivals, 0)
    return of_rivals.amax(dim=-1)


def describe_states(motion: Motion, spans: Spans) -> Tensor:
    """[B, K, S] the bars before each span, over several horizons, in the move's direction.

    Of each: their range, the leg up to the extreme, what was given back after it, both in ATR, the
    share given back, and how long ago the extreme was, as a fraction of the horizon.
    """
    is_up = (_direction(motion, spans) > 0)[..., None]
    unit = _at(motion.unit, spans.start - 1)
    columns = []
    for bars in STATE_BARS:
        ago = torch.arange(bars)
        bar = spans.start[..., None] - 1 - ago  # [B, K, bars]
        outside = bar < 0
        high = _at(motion.path.high, bar.flatten(1)).view(bar.shape)
        low = _at(motion.path.low, bar.flatten(1)).view(bar.shape)
        top = torch.where(is_up, high, -low).masked_fill(outside, -OUTSIDE)
        bottom = torch.where(is_up, low, -high).masked_fill(outside, OUTSIDE)

        extreme, peak = top.max(dim=-1)
        leg = extreme - _lowest(bottom, ago > peak[..., None], extreme)
        given_back = extreme - _lowest(bottom, ago < peak[..., None], extreme)
        columns += [
            (extreme - bottom.amin(dim=-1)) / unit,
            leg / unit,
            given_back / unit,
            (given_back / leg.clamp(min=TINY)).clamp(max=3),
            peak / bars,
        ]

    described = torch.stack(columns, dim=-1)
    return described.clamp(-DESCRIPTOR_LIMIT, DESCRIPTOR_LIMIT)


def _lowest(
    bottom: Tensor,
    chosen: Tensor,
    otherwise: Tensor,
) -> Tensor:
    """[B, K] the lowest of the chosen bars [B, K, bars]; `otherwise` where there are none."""
    lowest = bottom.masked_fill(~chosen, OUTSIDE).amin(dim=-1)
    return torch.where(lowest < OUTSIDE, lowest, otherwise)

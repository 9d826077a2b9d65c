"""The spans of a window that may be its move, and what is said of each of them.

    price path [B, T] --> strength of every span [B, L, T] --> the K strongest
                                   |                              |--> descriptors [B, K, D]
                                   +--> its rivals' ------------->+--> the state before [B, K, S]

Spans of `shortest` and more bars are worked on as [B, L, T]: row l holds those of shortest + l
bars, by their first bar. A span's descriptors say how far and how straight prices went in it, what
they did before and after, how it compares to itself with its ends moved, and how its strongest
rivals do. All are of the move's own direction, and free of the prices' unit: the mirrored window
has the same ones. Horizons are families, geometric or of every even number, none of which is
preferred: how a label rule measures is learned.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from moola import WINDOW
from moola.models.price_path import TINY, PricePath, shifted, trailing_mean

N_CANDIDATES = 256  # K
ATR_BARS = (8, 16, 32)
BARS_BEFORE = (1, 2, 4, 8, 16)
BARS_AFTER = (1, 2, 4, 8)
STATE_BARS = tuple(range(6, 52, 2))  # every even number: which one counts is learned
FAR_BARS = STATE_BARS  # of the ATRs in which a net move is given
PER_HORIZON = 5  # columns of a state
# Of bars by which both ends are moved outwards.
RESIZED = ((1, 0), (-1, 0), (0, 1), (0, -1), (-1, 1), (2, 0), (-2, 0), (0, 2), (0, -2))
# How straight a rival must be to count: 2 ** -1, -3/4, -1/2, -1/4.
LEAST_STRAIGHT = (0.5, 0.595, 0.707, 0.841)
LIMIT = 50.0  # of a descriptor
NOTHING = -1.0  # below the worth of any span
OUTSIDE = 1e9  # above any price of a path

N_HORIZON_STATES = PER_HORIZON * len(STATE_BARS)
N_STATES = N_HORIZON_STATES + len(ATR_BARS)  # with the ATRs compared, and the direction
N_COLUMNS = (
    (1 + len(FAR_BARS) + len(ATR_BARS) + 1)
    + (len(BARS_BEFORE) + len(BARS_AFTER) + 3)
    + len(RESIZED)
    + (3 + 2 * (2 + len(LEAST_STRAIGHT)))
    + 2
)


class Motion(NamedTuple):
    """The path of prices, with what spans are measured in.

    atr        [B, T, 3] mean true range of the last 8, 16, 32 bars
    far_atr    [B, T, 23] the same of the last 6, 8 .. 50, in which net moves are given
    unit       [B, T] the mean of `atr`
    travelled  [B, T] the sum of |close - close before| up to and with each bar
    """

    path: PricePath
    atr: Tensor
    far_atr: Tensor
    unit: Tensor
    travelled: Tensor


class Candidates(NamedTuple):
    """K spans of each of B windows.

    start, end   [B, K] first and last bar
    descriptors  [B, K, D]
    states       [B, K, S] what came before; the state is the last S of the D descriptors too
    """

    start: Tensor
    end: Tensor
    descriptors: Tensor
    states: Tensor


Step = tuple[Tensor, Tensor]  # from one bar [B, K] to another, a step for each span


class Spans(NamedTuple):
    """Spans by first and last bar: tensors that broadcast with each other."""

    start: Tensor
    end: Tensor


@torch.no_grad()
def candidates(
    path: PricePath,
    shortest: int,
    longest: int,
    *,
    sided: bool = False,
) -> Candidates:
    """The strongest spans of shortest..longest bars, and what they are like.

    The strength of a span is its net move / ATR / sqrt(bars). Unless `sided`, nothing tells whether
    prices rose or fell.
    """
    motion = motion_of(path)
    every = spans_of_lengths(shortest, longest, path.close.device)
    strength = strength_of(motion, every)  # [B, L, T]
    n_spans = int((every.end < WINDOW).sum())
    best = strength.flatten(1).topk(min(N_CANDIDATES, n_spans), dim=1)
    index = best.indices  # [B, K]

    n_starts = strength.shape[2]
    start = index % n_starts
    end = start + index // n_starts + shortest - 1
    spans = Spans(start, end)
    states = states_of(motion, spans, sided=sided)
    columns = [
        *of_the_span(motion, spans),
        *_around_the_span(motion, spans),
        *_of_resized_spans(motion, spans),
        *_among_rivals(motion, every, strength, index),
    ]
    described = torch.stack(columns, dim=-1).clamp(-LIMIT, LIMIT)
    place = torch.stack([start, end], dim=-1).float()

    return Candidates(
        start,
        end,
        torch.cat([described, place, states], dim=-1),
        states,
    )


def motion_of(path: PricePath) -> Motion:
    atr = _mean_ranges(path, ATR_BARS)
    steps = path.close.diff(dim=1).abs()
    travelled = functional.pad(steps, (1, 0)).cumsum(1)

    return Motion(path, atr, _mean_ranges(path, FAR_BARS), atr.mean(-1), travelled)


def _mean_ranges(path: PricePath, horizons: Sequence[int]) -> Tensor:
    """[B, T, horizons] the mean true range of the last so many bars."""
    means = [trailing_mean(path.true_range, bars) for bars in horizons]
    return torch.stack(means, dim=-1) + TINY


def spans_of_lengths(shortest: int, longest: int, device: torch.device) -> Spans:
    """[L, T] all spans of shortest..longest bars; some end outside the window."""
    start = torch.arange(WINDOW, device=device)
    bars = torch.arange(shortest, longest + 1, device=device)[:, None]
    return Spans(start.expand(len(bars), -1), start + bars - 1)


def strength_of(motion: Motion, spans: Spans) -> Tensor:
    """[B, L, T]; NOTHING where a span ends outside the window."""
    shape = (len(motion.unit), *spans.start.shape)
    flat = Spans(*(bars.flatten().expand(len(motion.unit), -1) for bars in spans))
    strength = _strength(motion, flat).view(shape)
    return strength.masked_fill(spans.end >= WINDOW, NOTHING)


# --- of one span ----------------------------------------------------------------------------------


def at_bar(series: Tensor, bar: Tensor) -> Tensor:
    """[B, T] at bars [B, K]; outside the window, the value at its edge."""
    return series.gather(1, bar.clamp(0, WINDOW - 1))


def net_move(motion: Motion, spans: Spans) -> Tensor:
    """[B, K] signed, from the close before a span to its last."""
    close = motion.path.close
    return at_bar(close, spans.end) - at_bar(close, spans.start - 1)


def _strength(motion: Motion, spans: Spans) -> Tensor:
    """[B, K] |net move| / ATR before the span / sqrt(bars)."""
    bars = (spans.end - spans.start + 1).clamp(min=1)
    unit = at_bar(motion.unit, spans.start - 1)
    return net_move(motion, spans).abs() / unit / bars.sqrt()


def _straightness(motion: Motion, spans: Spans) -> Tensor:
    """[B, K] |net move| / path."""
    travelled = at_bar(motion.travelled, spans.end) - at_bar(motion.travelled, spans.start - 1)
    return net_move(motion, spans).abs() / (travelled + TINY)


def of_the_span(motion: Motion, spans: Spans) -> list[Tensor]:
    """[B, K] each: its length, its net move in FAR_BARS' ATRs, in ATR_BARS' also per sqrt(bar), and
    how straight it is."""
    bars = (spans.end - spans.start + 1).float()
    net = net_move(motion, spans).abs()
    per_root_bar = net / bars.sqrt()

    return [
        bars,
        *(net / at_bar(atr, spans.start - 1) for atr in motion.far_atr.unbind(-1)),
        *(per_root_bar / at_bar(atr, spans.start - 1) for atr in motion.atr.unbind(-1)),
        _straightness(motion, spans),
    ]


def _compared_atrs(motion: Motion, spans: Spans) -> list[Tensor]:
    """[B, K] logs of the shorter ATRs before a span, relative to the longest."""
    *shorter, longest = (at_bar(atr, spans.start - 1) for atr in motion.atr.unbind(-1))
    return [(atr / longest).log() for atr in shorter]


def _around_the_span(motion: Motion, spans: Spans) -> list[Tensor]:
    """Steps in the move's direction, in ATR: before it, after it, of its outer bars."""
    steps = [(spans.start - 1 - bars, spans.start - 1) for bars in BARS_BEFORE]
    steps += [(spans.end, spans.end + bars) for bars in BARS_AFTER]
    steps += [(spans.start + bar - 1, spans.start + bar) for bar in (0, 1)]
    steps.append((spans.end - 1, spans.end))

    return directed_steps(motion, spans, steps)


def directed_steps(motion: Motion, spans: Spans, steps: Sequence[Step]) -> list[Tensor]:
    """[B, K] each: from close to close of a step, in the direction of its span's move, in ATR."""
    close = motion.path.close
    direction = torch.where(net_move(motion, spans) >= 0, 1.0, -1.0)
    per_unit = direction / at_bar(motion.unit, spans.start - 1)
    return [per_unit * (at_bar(close, last) - at_bar(close, first)) for first, last in steps]


def _of_resized_spans(motion: Motion, spans: Spans) -> list[Tensor]:
    """How much stronger it would be with its ends moved, in the ATR of the span as it is."""
    unit = at_bar(motion.unit, spans.start - 1)
    own = _strength(motion, spans)
    gains = []
    for earlier, later in RESIZED:
        start = (spans.start - earlier).clamp(1, WINDOW - 1)
        end = (spans.end + later).clamp(0, WINDOW - 1)
        bars = (end - start + 1).clamp(min=1)
        net = net_move(motion, Spans(start, end)).abs()
        gains.append(net / unit / bars.sqrt() - own)

    return gains


# --- among rivals ---------------------------------------------------------------------------------


def _among_rivals(
    motion: Motion,
    every: Spans,
    strength: Tensor,
    index: Tensor,
) -> list[Tensor]:
    """[B, K] its rank, and its lead over the best rivals that share bars with it and that do not.

    `index` [B, K] is where the candidates are among all spans [L x T].
    """
    flat = Spans(*(bars.flatten().expand(len(strength), -1) for bars in every))
    straight = _straightness(motion, flat).view_as(strength)
    is_span = strength > NOTHING
    both = (strength * straight).masked_fill(~is_span, NOTHING)

    worths = [both, strength]
    worths += [strength.masked_fill(straight < least, NOTHING) for least in LEAST_STRAIGHT]
    compared = [both] + [strength] * (1 + len(LEAST_STRAIGHT))
    near = _best_near(torch.stack(worths), int(every.end[0, 0]) + 1)  # [W, B, L, T]
    apart = _best_apart(torch.stack(worths), int(every.end[0, 0]) + 1)
    own = torch.stack(compared)

    leads = torch.cat([own - near.clamp(min=0), own - apart.clamp(min=0)])  # [2 W, B, L, T]
    wanted = index.expand(len(leads), -1, -1)
    of_candidates = leads.flatten(2).gather(2, wanted)

    chosen = strength.flatten(1).gather(1, index)  # strongest first
    rank = torch.arange(index.shape[1], device=index.device, dtype=chosen.dtype)
    return [
        rank.expand_as(chosen),
        chosen / (chosen[:, :1] + TINY),
        both.flatten(1).gather(1, index),
        *of_candidates.unbind(0),
    ]


def _best_near(worth: Tensor, shortest: int) -> Tensor:
    """[..., L, T] the most that another span that shares a bar with each is worth."""
    n_lengths, n_bars = worth.shape[-2:]
    longest = shortest + n_lengths - 1

    # Those that start before it and reach its first bar, which has any of up to `longest` - 1 bars
    # between.
    at_least = worth.flip(-2).cummax(-2).values.flip(-2)  # of this length or longer
    reach = []
    for ago in range(1, longest):
        row = max(ago + 1 - shortest, 0)
        moved = functional.pad(at_least[..., row, :], (ago, 0), value=NOTHING)
        reach.append(moved[..., :n_bars])
    nothing = torch.full_like(worth[..., 0, :], NOTHING)
    before = torch.stack([*reach, nothing]).amax(0)  # [..., T]

    # Those that start at the same bar, but have another length.
    shorter = functional.pad(worth.cummax(-2).values, (0, 0, 1, 0), value=NOTHING)[..., :-1, :]
    longer = functional.pad(at_least, (0, 0, 0, 1), value=NOTHING)[..., 1:, :]

    # Those that start later in it.
    of_start = at_least[..., 0, :]  # [..., T]
    later = [nothing]
    for ahead in range(1, longest):
        moved = functional.pad(of_start, (0, ahead), value=NOTHING)[..., ahead:]
        later.append(torch.maximum(later[-1], moved))
    inside = torch.stack(later[shortest - 1 :], dim=-2)  # [..., L, T]

    best = torch.maximum(torch.maximum(shorter, longer), inside)
    return torch.maximum(best, before[..., None, :])


def _best_apart(worth: Tensor, shortest: int) -> Tensor:
    """[..., L, T] the most that a span that shares no bar with each is worth."""
    n_lengths, n_bars = worth.shape[-2:]
    of_end = []
    for row in range(n_lengths):
        bars = shortest + row - 1
        moved = functional.pad(worth[..., row, :], (bars, 0), value=NOTHING)
        of_end.append(moved[..., :n_bars])
    ended = torch.stack(of_end).amax(0).cummax(-1).values
    before = functional.pad(ended, (1, 0), value=NOTHING)[..., :n_bars]

    of_start = worth.amax(-2)
    to_come = of_start.flip(-1).cummax(-1).values.flip(-1)  # at this bar or later
    after = []
    for row in range(n_lengths):
        bars = shortest + row
        after.append(functional.pad(to_come, (0, bars), value=NOTHING)[..., bars:])

    return torch.maximum(before[..., None, :], torch.stack(after, dim=-2))


# --- the state before a span ----------------------------------------------------------------------


@torch.no_grad()
def states_of(
    motion: Motion,
    spans: Spans,
    *,
    sided: bool,
) -> Tensor:
    """[B, K, S] the bars before each span, over several horizons, in the move's direction.

    Of each: their range, the leg up to the extreme, what was given back after it, both in ATR, the
    share given back, and how long ago the extreme was, as a fraction of the horizon. Then how the
    ATRs compare; and last the direction itself, +1 or -1, or 0 unless `sided`.
    """
    states = _states(motion)
    is_up = net_move(motion, spans) >= 0
    place = is_up * WINDOW + spans.start  # [B, K]
    wanted = place[..., None].expand(-1, -1, states.shape[-1])
    before = states.flatten(1, 2).gather(1, wanted)
    direction = torch.where(is_up, 1.0, -1.0) * sided
    rest = torch.stack([*_compared_atrs(motion, spans), direction], dim=-1)
    return torch.cat([before, rest], dim=-1)


class _Past(NamedTuple):
    """The bars before each bar, as far back as has been looked. [B, 2, T] each.

    extreme  the highest high
    peak     how many bars ago it was, the latest of equals
    low      the lowest low
    before   the lowest low before the peak, OUTSIDE where there is none
    since    the same since the peak
    """

    extreme: Tensor
    peak: Tensor
    low: Tensor
    before: Tensor
    since: Tensor


def _states(motion: Motion) -> Tensor:
    """[B, 2, T, S] before a move down, and a move up, from each bar on."""
    path = motion.path
    high = torch.stack([-path.low, path.high], dim=1)
    low = torch.stack([-path.high, path.low], dim=1)
    unit = shifted(motion.unit, (1,))[:, None, :, 0]

    nothing = torch.full_like(high, OUTSIDE)
    past = _Past(-nothing, torch.zeros_like(high), nothing, nothing, nothing)
    columns = []
    for ago in range(STATE_BARS[-1]):
        past = _further_back(
            past,
            _bars_ago(high, ago + 1, -OUTSIDE),
            _bars_ago(low, ago + 1, OUTSIDE),
            ago,
        )
        if ago + 1 in STATE_BARS:
            columns += _columns_of(past, unit, ago + 1)

    return torch.stack(columns, dim=-1).clamp(-LIMIT, LIMIT)


def _further_back(
    past: _Past,
    high: Tensor,
    low: Tensor,
    ago: int,
) -> _Past:
    """One bar more is seen."""
    is_higher = high > past.extreme
    return _Past(
        torch.maximum(past.extreme, high),
        past.peak.masked_fill(is_higher, ago),
        torch.minimum(past.low, low),
        torch.minimum(past.before, low).masked_fill(is_higher, OUTSIDE),
        torch.where(is_higher, past.low, past.since),
    )


def _columns_of(past: _Past, unit: Tensor, bars: int) -> list[Tensor]:
    """The PER_HORIZON columns of the last `bars` bars."""
    leg = past.extreme - torch.where(past.before < OUTSIDE, past.before, past.extreme)
    given_back = past.extreme - torch.where(past.since < OUTSIDE, past.since, past.extreme)
    return [
        (past.extreme - past.low) / unit,
        leg / unit,
        given_back / unit,
        (given_back / leg.clamp(min=TINY)).clamp(max=3),
        past.peak / bars,
    ]


def _bars_ago(series: Tensor, bars: int, fill: float) -> Tensor:
    """[..., T] the values so many bars ago; `fill` before the window."""
    return functional.pad(series, (bars, 0), value=fill)[..., :-bars]

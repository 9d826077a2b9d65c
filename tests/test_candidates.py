"""The spans that may be a window's move, and what is said of them."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from moola import WINDOW  # noqa: E402
from moola.models import candidates as module  # noqa: E402
from moola.models import price_path, spans  # noqa: E402
from moola.models.candidates import (  # noqa: E402
    N_COLUMNS,
    N_STATES,
    NOTHING,
    candidates,
    motion_of,
    spans_of_lengths,
    states_of,
    strength_of,
)
from moola.models.price_path import PricePath  # noqa: E402
from moola.specs import HindsightConfig  # noqa: E402

CPU = torch.device("cpu")


def some_path(seed: int = 1, n_windows: int = 2) -> PricePath:
    """[B, T] of a random walk."""
    rng = torch.Generator().manual_seed(seed)
    close = torch.randn(n_windows, WINDOW, generator=rng).cumsum(1)
    reach = torch.rand(2, n_windows, WINDOW, generator=rng)
    high = close + reach[0]
    low = close - reach[1]
    return PricePath(high - low, close, high, low)


def seen_otherwise(path: PricePath, factor: float) -> PricePath:
    """In another unit; upside down where the factor is negative."""
    edges = [factor * path.high, factor * path.low]
    return PricePath(
        abs(factor) * path.true_range,
        factor * path.close,
        torch.maximum(*edges),
        torch.minimum(*edges),
    )


@pytest.mark.parametrize(("shortest", "longest"), [(1, 2), (4, 16), (9, 9), (60, 105), (105, 105)])
def test_candidates_are_spans_in_the_window(shortest: int, longest: int) -> None:
    found = candidates(some_path(), shortest, longest)
    bars = found.end - found.start + 1
    assert ((found.start >= 0) & (found.end < WINDOW)).all()
    assert ((bars >= shortest) & (bars <= longest)).all()
    pairs = [set(zip(s.tolist(), e.tolist(), strict=True)) for s, e in zip(*found[:2], strict=True)]
    assert {len(each) for each in pairs} == {found.start.shape[1]}
    n_all = sum(WINDOW - bars + 1 for bars in range(shortest, longest + 1))
    assert found.start.shape[1] == min(module.N_CANDIDATES, n_all)
    assert found.descriptors.shape[2] == N_COLUMNS + N_STATES
    assert found.descriptors.isfinite().all()
    assert torch.equal(found.descriptors[..., -N_STATES:], found.states)


def test_the_strongest_spans_come_first() -> None:
    """Net move / mean of the three ATRs before / sqrt(bars), from the path by a plain loop."""
    path = some_path()
    found = candidates(path, 4, 16)
    reach = path.true_range[0].double().numpy()
    close = path.close[0].double().numpy()

    def strength(start: int, bars: int) -> float:
        known = max(start, 1)  # the window's first bar stands for the one before it
        unit = np.mean([reach[max(known - n, 0) : known].mean() for n in (8, 16, 32)])
        return abs(close[start + bars - 1] - close[known - 1]) / unit / math.sqrt(bars)

    every = [(strength(s, n), s, n) for n in range(4, 17) for s in range(WINDOW - n + 1)]
    best = sorted(every, reverse=True)[:50]
    assert found.start[0, :50].tolist() == [start for _, start, _ in best]
    assert found.end[0, :50].tolist() == [start + bars - 1 for _, start, bars in best]


def test_how_far_a_span_goes_is_told_in_the_atr_of_every_even_number_of_bars() -> None:
    path = some_path()
    found = candidates(path, 4, 16)
    reach = path.true_range[0].double().numpy()
    close = path.close[0].double().numpy()
    for place in (0, 17, 200):
        start, end = int(found.start[0, place]), int(found.end[0, place])
        before = max(start, 1)  # the window's first bar stands for the one before it
        net = abs(close[end] - close[before - 1])
        atrs = [reach[max(before - bars, 0) : before].mean() for bars in range(6, 51, 2)]
        own = found.descriptors[0, place]
        assert own[0] == end - start + 1
        assert own[1:24].tolist() == pytest.approx([net / atr for atr in atrs], rel=1e-3)


@pytest.mark.parametrize(("shortest", "longest"), [(1, 3), (4, 16), (7, 7)])
def test_the_best_rivals_are_those_of_a_plain_loop(shortest: int, longest: int) -> None:
    motion = motion_of(some_path())
    worth = strength_of(motion, spans_of_lengths(shortest, longest, CPU))
    near = module._best_near(worth[None], shortest)[0]
    apart = module._best_apart(worth[None], shortest)[0]

    rng = np.random.default_rng(0)
    own = {
        (start, start + shortest + row - 1): float(worth[0, row, start])
        for row in range(longest - shortest + 1)
        for start in range(WINDOW)
        if worth[0, row, start] > NOTHING
    }
    for index in rng.integers(0, len(own), 100):
        first, last = list(own)[index]
        others = {span: value for span, value in own.items() if span != (first, last)}
        sharing = [v for (s, e), v in others.items() if s <= last and e >= first]
        without = [v for (s, e), v in others.items() if s > last or e < first]
        row = last - first + 1 - shortest
        assert near[0, row, first].item() == pytest.approx(max(sharing, default=NOTHING))
        assert apart[0, row, first].item() == pytest.approx(max(without, default=NOTHING))


@pytest.mark.parametrize("factor", [-1.0, 4.0])
def test_descriptors_know_neither_the_side_nor_the_unit_of_the_prices(factor: float) -> None:
    found = candidates(some_path(), 4, 16)
    other = candidates(seen_otherwise(some_path(), factor), 4, 16)
    assert torch.equal(other.start, found.start)
    torch.testing.assert_close(other.descriptors, found.descriptors, rtol=1e-3, atol=1e-3)


def test_the_side_is_told_where_it_matters() -> None:
    path = some_path()
    found = candidates(path, 4, 16, sided=True)
    other = candidates(seen_otherwise(path, -1.0), 4, 16, sided=True)
    close = path.close
    before = close.gather(1, (found.start - 1).clamp(min=0))
    rises = close.gather(1, found.end) >= before
    assert torch.equal(found.states[..., -1], torch.where(rises, 1.0, -1.0))
    assert torch.equal(other.states[..., -1], -found.states[..., -1])


def test_states_are_those_of_the_bars_before() -> None:
    """Of a move up: range, leg to the high, what was given back, its share, and how long ago."""
    path = some_path()
    motion = motion_of(path)
    start, end, bars = 60, 69, 20
    span = module.Spans(torch.full((2, 1), start), torch.full((2, 1), end))
    states = states_of(motion, span, sided=False)[:, 0]
    first = 5 * module.STATE_BARS.index(bars)
    for window in range(2):
        up = bool(path.close[window, end] >= path.close[window, start - 1])
        before = slice(start - bars, start)
        high = (path.high if up else -path.low)[window, before].double().numpy()
        low = (path.low if up else -path.high)[window, before].double().numpy()
        unit = motion.unit[window, start - 1].item()
        peak = bars - 1 - int(np.argmax(high[::-1]))
        leg = high[peak] - min(low[:peak], default=high[peak])
        back = high[peak] - min(low[peak + 1 :], default=high[peak])
        share = min(back / max(leg, 1e-6), 3)
        expected = [
            (high[peak] - low.min()) / unit,
            leg / unit,
            back / unit,
            share,
            (bars - 1 - peak) / bars,
        ]
        assert states[window, first : first + 5].tolist() == pytest.approx(expected, rel=1e-3)
    assert (states[:, -1] == 0).all()


def test_every_descriptor_is_alive() -> None:
    found = candidates(some_path(n_windows=16), 4, 16, sided=True)
    assert (found.descriptors.flatten(0, 1).std(dim=0) > 0).all()


def test_no_constant_of_the_hindsight_rule_is_inside() -> None:
    """What labels are made by must be learned. Of how long
    the state and the ATR are no number is preferred."""
    rule = HindsightConfig()
    for family in (module.STATE_BARS, module.FAR_BARS):
        assert set(family) == set(range(family[0], family[-1] + 1, 2))

    horizons = {price_path.ATR_BARS, *price_path.RANGE_HORIZONS, *module.ATR_BARS}
    assert not horizons & {rule.atr_period, rule.state_bars}
    distances = {price_path.UNIT_ATR * knot for knot in spans.FAR_KNOTS}
    assert not distances & {rule.min_net_atr, rule.max_range_atr, rule.min_leg_atr}
    straight = {*spans.STRAIGHT_KNOTS, *module.LEAST_STRAIGHT}
    assert not straight & {rule.min_efficiency, *rule.give_back}

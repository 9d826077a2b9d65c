"""Sightings of overlapping windows, merged to moves: against an oracle, and by laws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moola import HIT_BARS, WINDOW
from moola.evaluation.moves import LEAST_PROBABILITY, Moves, Sightings, merge

EVERY = 15
N_TYPES = 2


def sightings_of(rows: list[tuple[int, int, int, float]]) -> Sightings:
    """(window row, first, last, probability); the type leans on the window's number."""
    window, first, last, probability = (np.array(column) for column in zip(*rows, strict=True))
    second = (window // EVERY % 10) / 10
    types = np.stack([1 - second, second], axis=1)
    return Sightings(window, first, last, probability.astype(float), types)


def oracle(sightings: Sightings, window_row: np.ndarray) -> list[dict[str, object]]:
    """The same rule, with sets and loops over everything."""
    left = [k for k in range(len(sightings)) if sightings.probability[k] >= LEAST_PROBABILITY]
    totals: dict[tuple[int, int], float] = {}
    for k in sorted(
        left, key=lambda k: (sightings.first[k], sightings.last[k], sightings.window_row[k])
    ):
        span = (int(sightings.first[k]), int(sightings.last[k]))
        totals[span] = totals.get(span, 0.0) + sightings.probability[k]

    found = []
    for span in sorted(totals, key=lambda span: (-totals[span], span)):
        own = [k for k in left if (sightings.first[k], sightings.last[k]) == span]
        if not own:
            continue
        bars = set(range(span[0], span[1] + 1))
        touching = [k for k in left if bars & set(range(sightings.first[k], sightings.last[k] + 1))]
        left = [k for k in left if k not in touching]
        best: dict[int, int] = {}
        holding = [w for w in window_row if w <= span[0] and span[1] < w + WINDOW]
        for k in touching:
            if sightings.window_row[k] not in holding:
                continue
            off = abs((sightings.first[k] + sightings.last[k]) / 2 - sum(span) / 2)
            window = int(sightings.window_row[k])
            if off <= HIT_BARS and (
                window not in best or sightings.probability[k] > sightings.probability[best[window]]
            ):
                best[window] = k
        total = sum(sightings.probability[k] for k in best.values())
        found.append(
            {
                "span": span,
                "n_agree": len(best),
                "n_windows": len(holding),
                "probability": total / len(holding),
                "type": sum(sightings.probability[k] * sightings.types[k] for k in best.values())
                / total,
                "best": max(best, key=lambda w: (sightings.probability[best[w]], -w)),
            }
        )
    return sorted(found, key=lambda row: row["span"])


@st.composite
def overlapping(draw: st.DrawFn) -> tuple[Sightings, np.ndarray]:
    """Windows of a short series, and a few spans that each of them sees, near true moves or not."""
    n_windows = draw(st.integers(1, 9))
    window_row = EVERY * np.arange(n_windows)
    moves = draw(st.lists(st.integers(0, 200), min_size=1, max_size=4))
    rows = []
    for window in window_row:
        for _ in range(draw(st.integers(0, 3))):
            start = draw(st.sampled_from(moves)) + draw(st.integers(-4, 4))
            start = int(np.clip(start, window, window + WINDOW - 1))
            end = min(start + draw(st.integers(0, 14)), window + WINDOW - 1)
            probability = draw(st.integers(0, 100)) / 100
            rows.append((int(window), start, int(end), probability))
    if not rows:
        rows.append((0, 3, 9, 0.5))
    return sightings_of(rows), window_row


@settings(deadline=None, max_examples=200)
@given(overlapping())
def test_merging_is_what_the_oracle_does(case: tuple[Sightings, np.ndarray]) -> None:
    sightings, window_row = case
    moves = merge(sightings, window_row)
    wanted = oracle(sightings, window_row)

    assert list(zip(moves.first, moves.last, strict=True)) == [row["span"] for row in wanted]
    assert moves.n_agree.tolist() == [row["n_agree"] for row in wanted]
    assert moves.n_windows.tolist() == [row["n_windows"] for row in wanted]
    np.testing.assert_allclose(moves.probability, [row["probability"] for row in wanted])
    for own, row in zip(moves.types, wanted, strict=True):
        np.testing.assert_allclose(own, row["type"])
    assert moves.best_window.tolist() == [row["best"] for row in wanted]


@settings(deadline=None, max_examples=200)
@given(overlapping())
def test_moves_share_no_bar_are_probable_and_seen(case: tuple[Sightings, np.ndarray]) -> None:
    sightings, window_row = case
    moves = merge(sightings, window_row)

    assert (moves.first[1:] > moves.last[:-1]).all()
    assert ((moves.probability > 0) & (moves.probability <= 1)).all()
    assert (moves.n_agree >= 1).all()
    assert (moves.n_agree <= moves.n_windows).all()
    np.testing.assert_allclose(moves.types.sum(axis=1), 1)
    seen = set(zip(sightings.first, sightings.last, strict=True))
    assert set(zip(moves.first, moves.last, strict=True)) <= seen
    assert np.isin(moves.best_window, window_row).all()
    assert (moves.best_window <= moves.first).all()
    assert (moves.last < moves.best_window + WINDOW).all()


@settings(deadline=None, max_examples=60)
@given(overlapping(), st.randoms(use_true_random=False))
def test_the_order_of_sightings_changes_nothing(case, random) -> None:
    sightings, window_row = case
    order = list(range(len(sightings)))
    random.shuffle(order)
    again = merge(sightings.take(np.array(order)), window_row)
    moves = merge(sightings, window_row)
    for name in ("first", "last", "n_agree", "best_window", "probability"):
        np.testing.assert_array_equal(getattr(again, name), getattr(moves, name))


def test_a_window_that_cuts_a_move_off_has_no_say() -> None:
    """The window of bars 0 to 104 sees the move up to its own end only."""
    window_row = EVERY * np.arange(4)
    cut_off = [(0, 100, 104, 0.99)]
    whole = [(15, 100, 106, 0.9), (30, 100, 106, 0.8)]
    moves = merge(sightings_of([*cut_off, *whole]), window_row)

    assert (moves.first.tolist(), moves.last.tolist()) == ([100], [106])
    assert (moves.n_agree.tolist(), moves.n_windows.tolist()) == ([2], [3])
    assert moves.probability[0] == pytest.approx((0.9 + 0.8) / 3)
    assert moves.best_window.tolist() == [15]


def test_one_move_that_three_windows_see_is_one_row() -> None:
    """As windows of bars 0, 15 and 30 see it, one of them a bar off; a fourth does not see it."""
    window_row = EVERY * np.arange(4)
    sightings = sightings_of([(0, 69, 75, 0.9), (15, 69, 75, 0.8), (30, 70, 75, 0.6)])
    moves = merge(sightings, window_row)

    assert (moves.first.tolist(), moves.last.tolist()) == ([69], [75])
    assert (moves.n_agree.tolist(), moves.n_windows.tolist()) == ([3], [4])
    assert moves.probability[0] == pytest.approx((0.9 + 0.8 + 0.6) / 4)
    assert moves.best_window.tolist() == [0]


def test_another_opinion_of_the_same_bars_goes() -> None:
    sightings = sightings_of([(0, 40, 49, 0.9), (15, 47, 60, 0.5)])
    moves = merge(sightings, EVERY * np.arange(2))
    assert (moves.first.tolist(), moves.n_agree.tolist()) == ([40], [1])
    assert moves.probability[0] == pytest.approx(0.45)


def test_nothing_seen_is_no_move() -> None:
    moves = merge(sightings_of([(0, 40, 49, 0.001)]), np.zeros(1, np.int64))
    assert isinstance(moves, Moves)
    assert len(moves) == 0
    assert moves.types.shape == (0, N_TYPES)

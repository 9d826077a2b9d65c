"""The presence model: what it is fitted on, the same bits for the same seed, and its files."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightgbm", reason="trees are grown with the extra `train`")

from moola.data.feature_records import FeatureMetadata  # noqa: E402
from moola.data.feature_set import FeatureSet  # noqa: E402
from moola.data.labels import NoMoves, assign_splits  # noqa: E402
from moola.data.move_truth import (  # noqa: E402
    IS_MOVE,
    IS_NONE,
    MoveTruth,
    forget_moves,
    move_truth,
)
from moola.data.pauses import pause_over, stretches  # noqa: E402
from moola.data.placement import place_windows  # noqa: E402
from moola.data.series import MINUTE_NS  # noqa: E402
from moola.data.splits import Split  # noqa: E402
from moola.data.windows import valid_rows  # noqa: E402
from moola.evaluation import find_moves as find_moves_module  # noqa: E402
from moola.evaluation.detection import Judged  # noqa: E402
from moola.evaluation.find_moves import (  # noqa: E402
    MODEL_FINDER,
    NOTHING_FOUND,
    find_moves,
    measure_windows,
    run_presence,
    window_probabilities,
)
from moola.evaluation.predict import all_weights  # noqa: E402
from moola.features import FeatureConfig, compute_features  # noqa: E402
from moola.models.jade_core import JadeCompact  # noqa: E402
from moola.models.presence import Presence, rescaled  # noqa: E402
from moola.specs import LabelConfig, PresenceConfig  # noqa: E402
from moola.training.checkpoint import load_weights, read_weights, weights_bytes  # noqa: E402
from moola.training.data import TrainingData, rows_of_ranges  # noqa: E402
from moola.training.presence import (  # noqa: E402
    STEP_BARS,
    fit_logistic,
    fit_presence,
    fit_windows,
    unlabelled_windows,
    view_windows,
)

N_BARS = 4000
TIMES = pd.date_range("2025-01-06", periods=N_BARS, freq="min", tz="UTC")
START = np.arange(200, 3800, 250)
END = START + 8
TRAIN = Split(0, 2000)  # windows; their bars end before row 2104
VAL = Split(2104, 3896)


def labels(**changed):
    moves = pd.DataFrame(
        {
            "label": ["consolidation", "retracement"] * (len(START) // 2) + ["retracement"],
            "state_start_bar": START - 24,
            "start_bar": START,
            "end_bar": END,
        }
    )
    made = place_windows(moves, TIMES, LabelConfig(), source="hindsight")
    return replace(made, **changed)


def in_train(whole):
    inside = whole.take((whole.anchor >= TRAIN.start) & (whole.anchor < TRAIN.stop))
    return replace(inside, last_anchor=np.minimum(inside.last_anchor, TRAIN.stop - 1))


def test_windows_to_fit_on_share_no_bar_with_another_split() -> None:
    truth = move_truth(labels(), N_BARS)
    windows = fit_windows(truth, in_train(labels()), [TRAIN], PresenceConfig(), seed=3)
    for rows in (windows.with_move, windows.without_move):
        assert len(rows) > 100
        assert rows.min() >= TRAIN.start
        assert rows.max() + 104 < VAL.start


def test_windows_without_a_move_hold_none_and_the_others_one() -> None:
    truth = move_truth(labels(), N_BARS)
    windows = fit_windows(truth, in_train(labels()), [TRAIN], PresenceConfig(), seed=3)
    assert (truth.holds_move(windows.with_move) == IS_MOVE).all()
    assert (truth.holds_move(windows.without_move) == IS_NONE).all()
    for row in windows.without_move:
        assert not ((row <= START) & (row + 104 >= END)).any()


def test_the_same_seed_draws_the_same_windows_and_another_others() -> None:
    truth = move_truth(labels(), N_BARS)
    draws = [
        fit_windows(truth, in_train(labels()), [TRAIN], PresenceConfig(), seed)
        for seed in (3, 3, 4)
    ]
    np.testing.assert_array_equal(draws[0].with_move, draws[1].with_move)
    np.testing.assert_array_equal(draws[0].without_move, draws[1].without_move)
    assert draws[0].with_move.tolist() != draws[2].with_move.tolist()


def test_none_rows_are_all_that_a_file_with_them_knows() -> None:
    stretch = NoMoves(np.array([300]), np.array([430]))
    truth = move_truth(labels(every_move=None, no_moves=stretch), N_BARS)
    assert truth is not None
    assert truth.kind == "none rows"
    free = truth.without_move(TRAIN, 21)
    # From the first that shows 21 bars of the stretch to the last before the move at 450..458.
    assert (free.min(), free.max()) == (300 + 21 - 105, 458 - 105)
    far = np.array([310, 500, 446])
    assert truth.judge(far, far + 8).tolist() == [
        0,
        -1,
        0,
    ]  # in the stretch; nowhere; beside a move


def test_a_file_without_them_has_a_background_that_counts_as_such() -> None:
    truth = move_truth(labels(every_move=None), N_BARS)
    assert truth is not None
    assert truth.kind == "background"
    assert truth.is_known.all()


def test_labels_that_were_not_drawn_are_not_known() -> None:
    whole = labels()
    drawn = in_train(whole).take(np.array([1]))
    truth = forget_moves(move_truth(whole, N_BARS), TRAIN, drawn)
    kept = START[(drawn.start_bar[0] == START) | (TRAIN.stop + 104 <= END)]
    assert truth.first.tolist() == kept.tolist()
    assert not truth.is_known[START[0] : END[0] + 1].any()
    assert truth.is_known.sum() == N_BARS - 9 * (len(START) - len(kept))


def test_a_truth_out_of_nothing_is_no_truth() -> None:
    own = labels(every_move=None, bars=np.ones((len(labels()), 105, 4)))
    assert move_truth(own, N_BARS) is None


def test_logistic_regression_finds_the_weights_that_made_the_data() -> None:
    rng = np.random.default_rng(0)
    told = rng.normal(size=(40_000, 2)) * [2.0, 0.1] + [1.0, 5.0]
    logit = 0.7 * told[:, 0] - 4.0 * told[:, 1] + 18.0
    is_true = rng.random(len(told)) < 1 / (1 + np.exp(-logit))
    np.testing.assert_allclose(fit_logistic(told, is_true).numpy(), [0.7, -4.0, 18.0], rtol=0.08)
    split = fit_logistic(np.array([[0.0], [1.0]]), np.array([False, True]))
    assert bool(torch.isfinite(split).all())


def test_scales_that_change_nothing_change_nothing() -> None:
    probability = torch.tensor([0.001, 0.3, 0.99])
    same = rescaled(probability, torch.tensor([1.0, 0.0], dtype=torch.float64))
    np.testing.assert_allclose(same.numpy(), probability.numpy(), rtol=1e-6)


def test_a_presence_model_is_read_back_from_the_weights_of_the_run() -> None:
    presence = Presence()
    presence.span_scale.copy_(torch.tensor([0.5, 0.25, 0.0, -1.0]))
    model = torch.nn.Linear(2, 3)
    weights = read_weights(weights_bytes(all_weights(model, presence)))
    own = {name[9:]: value for name, value in weights.items() if name.startswith("presence.")}
    again = Presence()
    load_weights(again, own)
    assert again.span_scale.tolist() == [0.5, 0.25, 0.0, -1.0]
    assert set(all_weights(model, None)) == {"weight", "bias"}


def test_a_move_that_no_window_can_hold_is_in_none() -> None:
    truth = MoveTruth(np.array([0]), np.array([104]), np.ones(400, np.bool_), "background")
    assert truth.holds_move(np.arange(3)).tolist() == [IS_MOVE, IS_NONE, IS_NONE]


def test_fitted_twice_the_presence_model_has_the_same_bits_and_finds_moves() -> None:
    """On a market with a plain jump as its moves, by a network that has learned nothing."""
    data = jumps()
    torch.manual_seed(0)
    model = JadeCompact(hidden_size=4, longest_move=12)
    fits = [fit_presence(model, data, data.truth, PresenceConfig(), seed=5) for _ in range(2)]
    fitted = [fit.presence for fit in fits]
    assert fitted[0] is not None
    assert fitted[1] is not None
    for name, tensor in fitted[0].state_dict().items():
        assert torch.equal(tensor, fitted[1].state_dict()[name]), name

    test_row = rows_of_ranges(data.ranges("test"), STEP_BARS)
    detection = measure_windows(fitted[0], model, data.features, data.truth, test_row)
    finders = detection["finders"]
    assert finders[MODEL_FINDER]["auc"] > 0.95
    assert (
        finders[MODEL_FINDER]["average_precision"] > 0.6
    )  # spans are those of an untaught network


def test_a_stretch_without_a_move_gives_none() -> None:
    data = jumps()
    torch.manual_seed(0)
    model = JadeCompact(hidden_size=4, longest_move=12)
    presence = fit_presence(model, data, data.truth, PresenceConfig(), seed=5).presence
    assert presence is not None
    quiet = jumps(n_moves=0)
    window_row = np.arange(105, 9000, 15)
    dataset = unlabelled_windows(quiet.features.rows, quiet.features.valid, window_row)
    views = view_windows(model, presence, dataset)
    moves = find_moves(presence, views, window_row, np.zeros(12_000, np.int64))
    assert (moves.probability < 0.5).all()


def test_no_move_reaches_over_a_pause() -> None:
    """The market closes in the midst of every other jump."""
    data = jumps()
    torch.manual_seed(0)
    model = JadeCompact(hidden_size=4, longest_move=12)
    presence = fit_presence(model, data, data.truth, PresenceConfig(), seed=5).presence
    assert presence is not None
    times = data.features.times.asi8.copy()
    for middle in data.truth.first[::2] + 3:
        times[middle:] += 60 * MINUTE_NS
    stretch = stretches(pd.DatetimeIndex(times), pause=30)

    window_row = np.arange(105, 11_800, 15)
    dataset = unlabelled_windows(data.features.rows, data.features.valid, window_row)
    views = view_windows(model, presence, dataset)
    moves = find_moves(presence, views, window_row, stretch)
    assert (stretch[moves.first] == stretch[moves.last]).all()
    before = find_moves(presence, views, window_row, np.zeros_like(stretch))
    assert not (stretch[before.first] == stretch[before.last]).all()
    alone = [
        window_probabilities(presence, views, window_row, each)
        for each in (stretch, np.zeros_like(stretch))
    ]
    assert (alone[0] <= alone[1]).all()
    assert (alone[0] < alone[1]).any()


def test_a_pause_is_a_session_break_or_what_a_labelled_move_reaches_over() -> None:
    times = pd.date_range("2024-03-08", periods=100, freq="min")
    later = times[50:] + pd.Timedelta(minutes=45)
    halted = times[:50].append(later)
    first, last = np.array([10, 48]), np.array([20, 49])

    assert pause_over(halted, first, last) == 30
    assert stretches(halted, 30).tolist() == [0] * 50 + [1] * 50
    assert pause_over(halted, first, last + 1) == 47  # from 00:49 to 01:35
    assert stretches(halted, 47).tolist() == [0] * 100
    two_markets = times.append(times)
    assert stretches(two_markets, 30).tolist() == [0] * 100 + [1] * 100


def test_a_model_that_finds_nothing_on_validation_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = jumps()
    torch.manual_seed(0)
    model = JadeCompact(hidden_size=4, longest_move=12)
    monkeypatch.setattr(
        find_moves_module,
        "_calibrate",
        lambda *_: Judged(np.zeros(0), *[np.zeros(0, np.bool_)] * 2, 4),
    )
    found = run_presence(model, data, PresenceConfig(), seed=5, device="cpu")
    assert found.presence is None
    assert found.document.threshold is None
    assert found.document.reason == NOTHING_FOUND


def jumps(n_moves: int = 150) -> TrainingData:
    """A quiet random walk in which prices jump up by 6 ATR over 6 bars, now and then."""
    rng = np.random.default_rng(7)
    n_bars = 12_000
    start = 100 + 78 * np.arange(n_moves)
    step = rng.normal(size=n_bars)
    for first in start:
        step[first : first + 6] = 3.0
    close = 10_000 + np.cumsum(step)
    opened = np.concatenate([[10_000.0], close[:-1]])
    high = np.maximum(opened, close) + rng.random(n_bars)
    low = np.minimum(opened, close) - rng.random(n_bars)
    times = pd.date_range("2025-01-06", periods=n_bars, freq="min", tz="UTC")
    bars = pd.DataFrame({"open": opened, "high": high, "low": low, "close": close}, index=times)

    rows = compute_features(bars, FeatureConfig())
    valid = valid_rows(np.zeros(n_bars, np.bool_))
    splits = {"train": Split(0, 7000), "val": Split(7104, 9000), "test": Split(9104, n_bars - 104)}
    features = FeatureSet(rows, valid, splits, FeatureMetadata(config={}), bars)
    if not n_moves:
        return TrainingData(features, {}, {}, {})

    moves = pd.DataFrame(
        {
            "label": np.where(np.arange(n_moves) % 2, "consolidation", "retracement"),
            "state_start_bar": start - 24,
            "start_bar": start,
            "end_bar": start + 5,
        }
    )
    labels = place_windows(moves, times, LabelConfig(), source="hindsight")
    parts, left_out = assign_splits(labels, splits)
    return TrainingData(features, parts, {}, left_out, move_truth(labels, n_bars))

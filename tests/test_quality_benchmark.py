"""What models are compared with: the label rule itself, boosted spans, and intervals by days."""

from datetime import date

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from benchmarks import boosted_spans, day_blocks  # noqa: E402
from benchmarks.ceiling import rule_on_windows  # noqa: E402
from benchmarks.settings import RULES, Setting, data_of, feature_set, hindsight_setting  # noqa: E402
from moola import WINDOW  # noqa: E402
from moola.data.synthetic import make_market  # noqa: E402
from moola.evaluation.metrics import HEADLINE, HIT_CENTRE, JOINT_SUCCESS, score  # noqa: E402
from moola.evaluation.predictions import Predictions, Targets  # noqa: E402
from moola.evaluation.scoring import as_targets  # noqa: E402
from moola.models.price_path import PricePath  # noqa: E402
from moola.specs import MarketConfig  # noqa: E402
from moola.training.data import TrainingData  # noqa: E402

HIT = HEADLINE.index(HIT_CENTRE)
JOINT = HEADLINE.index(JOINT_SUCCESS)


@pytest.fixture(scope="module")
def settings() -> dict[str, Setting]:
    """Twelve weeks of a synthetic market under each rule: the strongest move in its window."""
    market = make_market(MarketConfig(seed=5, start=date(2024, 1, 8), end=date(2024, 3, 29)))
    features = feature_set(market.bars)
    return {rule: hindsight_setting("market", features, rule, clear=True) for rule in RULES}


@pytest.fixture(scope="module")
def data(settings: dict[str, Setting]) -> TrainingData:
    return data_of(settings["standard"], None, 0)


def joint_of(predictions: Predictions, data: TrainingData) -> float:
    return score(predictions, as_targets(data.labels["test"]))[JOINT_SUCCESS]


def random_spans(n: int) -> Predictions:
    """Spans of 8 bars anywhere, and the types by the toss of a coin."""
    rng = np.random.default_rng(0)
    start = rng.integers(0, WINDOW - 8, n)
    types = np.eye(2)[rng.integers(0, 2, n)]
    return Predictions(types, start, start + 7)


# --- the ceiling ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_the_rule_on_a_window_alone_is_near_perfect_where_the_move_is_the_strongest(
    settings: dict[str, Setting], rule: str
) -> None:
    """Of every set of constants: 0.85 and more, where a random span has next to nothing."""
    setting = settings[rule]
    data = data_of(setting, None, 0)
    predictions = rule_on_windows(setting, data.labels["test"])
    assert predictions is not None

    ceiling = joint_of(predictions, data)
    assert ceiling >= 0.85
    assert ceiling > joint_of(random_spans(len(data.labels["test"])), data) + 0.5


def test_another_rule_on_the_window_is_no_ceiling(settings: dict[str, Setting]) -> None:
    """The variants differ: the constants of one do not give the labels of another."""
    data = data_of(settings["long"], None, 0)
    own = rule_on_windows(settings["long"], data.labels["test"])
    other = rule_on_windows(settings["standard"], data.labels["test"])
    assert own is not None
    assert other is not None

    assert joint_of(other, data) < joint_of(own, data) - 0.2


def test_labels_that_no_rule_made_have_no_ceiling(
    settings: dict[str, Setting], data: TrainingData
) -> None:
    without_rule = Setting("planted", settings["standard"].features, settings["standard"].labels)
    assert rule_on_windows(without_rule, data.labels["test"]) is None


# --- intervals by days ----------------------------------------------------------------------------


def overlapping_windows(n_days: int, per_day: int) -> tuple[Predictions, Targets]:
    """Every 5 bars a window on the same move of the day, which is found in all of them or in none.

    On every second day it is found.
    """
    day = np.repeat(np.arange(n_days), per_day)
    start = 90 - 5 * np.tile(np.arange(per_day), n_days)
    label = day % 3 % 2
    targets = Targets(label, start, start + 7, ("consolidation", "retracement"))

    found = day % 2 == 0
    predicted_start = np.where(found, start, start - 8)
    types = np.eye(2)[np.where(found, label, 1 - label)]
    return Predictions(types, predicted_start, predicted_start + 7), targets


def interval_widths(predictions: Predictions, targets: Targets, day: np.ndarray) -> np.ndarray:
    resampled = day_blocks.headline(predictions, targets, day_blocks.day_weights(day))
    low, high = day_blocks.interval(resampled)
    return high - low


def test_windows_that_share_bars_widen_the_interval() -> None:
    """10 windows a day with one outcome are worth one: sqrt(10) as wide, in every metric."""
    predictions, targets = overlapping_windows(n_days=40, per_day=10)
    by_days = interval_widths(predictions, targets, np.repeat(np.arange(40), 10))
    plain = interval_widths(predictions, targets, np.arange(400))

    assert np.all(by_days > 2 * plain)
    assert by_days[[HIT, JOINT]] == pytest.approx(np.sqrt(10) * plain[[HIT, JOINT]], rel=0.25)


def test_a_day_brings_all_its_windows() -> None:
    day = np.array([7, 7, 7, 9, 9, 30])
    weights = day_blocks.day_weights(day, resamples=200)

    assert np.all(weights[:, 0:3] == weights[:, :1])
    assert np.all(weights[:, 3] == weights[:, 4])
    assert np.all(weights[:, [0, 3, 5]].sum(axis=1) == 3)  # as many days as there are
    assert weights.max() > 1


def test_the_day_is_that_of_the_window(settings: dict[str, Setting], data: TrainingData) -> None:
    labels = data.labels["test"]
    times = settings["standard"].features.times
    day = day_blocks.day_of_window(labels, times)

    opened = times[labels.anchor].floor("D")
    assert np.array_equal(day, (opened - opened.floor("D")[0]).days + day[0])
    assert len(np.unique(day)) < len(labels)


# --- the rival ------------------------------------------------------------------------------------


def some_path(seed: int) -> PricePath:
    """[2, T] of a random walk."""
    rng = torch.Generator().manual_seed(seed)
    close = torch.randn(2, WINDOW, generator=rng).cumsum(1)
    reach = torch.rand(2, 2, WINDOW, generator=rng)
    high = close + reach[0]
    low = close - reach[1]
    return PricePath(high - low, close, high, low)


@pytest.mark.parametrize("factor", [-1.0, 4.0])
def test_descriptors_know_neither_the_side_nor_the_unit_of_the_prices(factor: float) -> None:
    """The mirrored path, and that in another unit: the same spans, and the same said of them."""
    path = some_path(1)
    edges = [factor * path.high, factor * path.low]
    other_path = PricePath(
        abs(factor) * path.true_range,
        factor * path.close,
        torch.maximum(*edges),
        torch.minimum(*edges),
    )
    motion = boosted_spans.motion_of_path(path)
    other = boosted_spans.motion_of_path(other_path)
    spans = boosted_spans.strongest_spans(motion, 4, 16)

    for describe in (boosted_spans.describe, boosted_spans.describe_states):
        torch.testing.assert_close(
            describe(other, spans), describe(motion, spans), rtol=1e-3, atol=1e-3
        )


def test_the_true_move_is_among_the_candidates(data: TrainingData) -> None:
    labels = data.labels["test"]
    spans = boosted_spans.candidates(data.window_features("test"), 4, 16)
    same = (spans.start == labels.start[:, None]) & (spans.end == labels.end[:, None])

    assert same.any(axis=1).mean() >= 0.95


def test_the_rival_lies_between_a_random_span_and_the_ceiling(
    settings: dict[str, Setting], data: TrainingData
) -> None:
    pytest.importorskip("lightgbm", reason="LightGBM comes with the extra `train`")
    n_test = len(data.labels["test"])
    few_labels = data_of(settings["standard"], 80, 0)
    predictions = boosted_spans.boosted_spans(few_labels, seed=0)
    ceiling = rule_on_windows(settings["standard"], data.labels["test"])
    assert predictions is not None
    assert ceiling is not None

    rival = joint_of(predictions, data)
    assert rival > joint_of(random_spans(n_test), data) + 0.5
    assert rival < joint_of(ceiling, data)

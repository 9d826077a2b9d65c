"""What a run trains on and the model it starts from; a fold learns from its own part alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

torch = pytest.importorskip("torch")

from moola import WINDOW  # noqa: E402
from moola.data.feature_records import FeatureMetadata  # noqa: E402
from moola.data.feature_set import FeatureSet  # noqa: E402
from moola.data.label_sources import draw_labels  # noqa: E402
from moola.data.labels import EveryMove, LabelSet  # noqa: E402
from moola.data.placement import place_windows  # noqa: E402
from moola.data.splits import Split  # noqa: E402
from moola.data.windows import valid_rows  # noqa: E402
from moola.errors import DataError  # noqa: E402
from moola.evaluation.calibration import helpful_temperature  # noqa: E402
from moola.evaluation.predict import all_weights  # noqa: E402
from moola.evaluation.results import evaluate_model  # noqa: E402
from moola.evaluation.scoring import as_predictions, score_on  # noqa: E402
from moola.features import FeatureConfig, compute_features  # noqa: E402
from moola.runs.attempt import Attempt  # noqa: E402
from moola.runs.reading import describe_input_run  # noqa: E402
from moola.runs.records import InputRun  # noqa: E402
from moola.runs.submit import describe_run, submit  # noqa: E402
from moola.specs import LabelConfig, TrainSpec  # noqa: E402
from moola.store import Store, open_store  # noqa: E402
from moola.training.checkpoint import WEIGHTS, Files, weights_bytes  # noqa: E402
from moola.training.data import TrainingData, split_labels, windows_of  # noqa: E402
from moola.training.fit import (  # noqa: E402
    QuietHooks,
    fit_model,
    load_encoder,
    longest_move,
    new_model,
)
from moola.training.inference import ModelOutputs, infer  # noqa: E402
from moola.training.loop import Interrupted  # noqa: E402
from moola.training.presence import fit_presence  # noqa: E402
from tests.feature_set import random_bars  # noqa: E402

N_BARS = 6000
N_LABELS = 200
MOVE_BARS = 8


def spec_of(seed: int = 0, hidden_size: int = 8) -> TrainSpec:
    training = {"full_epochs": 1, "heads_epochs": 0, "windows_per_epoch": 32, "seed": seed}
    trees = {"members": 1, "rounds": 3, "windows": 1}
    return TrainSpec.model_validate(
        {"model": {"hidden_size": hidden_size}, "training": training, "trees": trees}
    )


SPEC = spec_of()


@pytest.fixture(scope="module")
def features() -> FeatureSet:
    bars = random_bars(N_BARS)
    rows = compute_features(bars)
    splits = {"train": Split(0, 3400), "val": Split(3504, 4600), "test": Split(4704, 5896)}
    metadata = FeatureMetadata(config=FeatureConfig().model_dump())
    return FeatureSet(rows, valid_rows(np.zeros(N_BARS, bool)), splits, metadata, bars)


@pytest.fixture(scope="module")
def labels(features: FeatureSet) -> LabelSet:
    """Moves of 8 bars, evenly over the series, the classes in turn."""
    start = np.linspace(200, N_BARS - 200, N_LABELS).astype(int)
    moves = pd.DataFrame(
        {
            "label": ["consolidation", "retracement"] * (N_LABELS // 2),
            "state_start_bar": start - 24,
            "start_bar": start,
            "end_bar": start + MOVE_BARS - 1,
        }
    )
    return place_windows(moves, features.times, LabelConfig(), source="hindsight")


@pytest.fixture(scope="module")
def data(labels: LabelSet, features: FeatureSet) -> TrainingData:
    return split_labels(labels, features, SPEC)


# --- data -----------------------------------------------------------------------------------------


def test_the_windows_of_a_split_are_cut_where_its_labels_are(data: TrainingData) -> None:
    for name, part in data.labels.items():
        x = data.window_features(name)
        assert x.shape == (len(part), WINDOW, 11)
        for i in (0, len(part) - 1):
            batch = data.windows[name].gather(np.array([i]))
            assert (batch["x"][0].numpy() == x[i]).all()
            assert batch["start"].item() == part.start[i]
            assert batch["end"].item() == part.end[i]


@pytest.mark.parametrize("state_bars", [0, 60])
def test_a_recut_keeps_the_state_bars_of_the_labels(
    labels: LabelSet, features: FeatureSet, state_bars: int
) -> None:
    """The places of windows in training begin at just so many bars before the move."""
    freed = replace(
        labels,
        state_bars=state_bars,
        first_anchor=np.zeros_like(labels.anchor),
        last_anchor=np.full_like(labels.anchor, N_BARS - WINDOW),
    )
    windows = windows_of(freed, features)
    indices = np.repeat(np.arange(50, 150), 200)
    cut = windows.recut(indices, np.random.default_rng(0))
    start = windows.start_row[indices] - cut
    assert (start.min(), start.max()) == (state_bars, WINDOW - MOVE_BARS)


def test_labels_are_drawn_by_the_seed_and_stay_in_time_order(labels: LabelSet) -> None:
    def drawn(seed: int, **setting: float) -> list[str]:
        spec = TrainSpec.model_validate({"training": {"seed": seed}, **setting})
        return draw_labels(labels, spec).window_id.tolist()

    half = drawn(0, fraction=0.5)
    assert half == sorted(half)
    assert len(half) == N_LABELS // 2
    assert half == drawn(0, fraction=0.5)
    assert half != drawn(1, fraction=0.5)
    assert len(drawn(0, fraction=0.5, max_train_labels=10)) == 10
    assert drawn(0) == labels.window_id.tolist()


# --- model ----------------------------------------------------------------------------------------


def test_a_new_model_takes_the_classes_to_be_equally_likely(data: TrainingData) -> None:
    model = new_model(SPEC, data)
    with torch.no_grad():
        model.head.weight.zero_()
        logits = model(torch.from_numpy(data.window_features("val").copy()))["logits"]
    assert torch.allclose(logits.exp(), torch.full_like(logits, 0.5), atol=1e-5)


def test_a_new_model_depends_on_the_seed_alone(data: TrainingData) -> None:
    weights = weights_bytes(new_model(SPEC, data))
    assert weights_bytes(new_model(SPEC, data)) == weights
    assert weights_bytes(new_model(spec_of(seed=1), data)) != weights


def test_moves_half_as_long_again_as_the_longest_can_be_found(data: TrainingData) -> None:
    assert longest_move(data.windows["train"]) == MOVE_BARS * 3 // 2


def committed(store: Store, work: Path, weights: bytes) -> InputRun:
    """A train run with these weights, as another run's input."""
    run_id, document = describe_run("train", {"weights": len(weights)}, {})
    submit(store, run_id, document)
    with Attempt(store, run_id, work=work) as attempt:
        attempt.write(WEIGHTS, weights, "application/x-safetensors")
    return describe_input_run(store, run_id)


def test_a_model_starts_from_the_encoder_of_another_run(data: TrainingData, tmp_path: Path) -> None:
    store = open_store(tmp_path.as_uri())
    other = new_model(spec_of(seed=1), data)
    item = committed(store, tmp_path / "work", weights_bytes(other))

    model = new_model(SPEC, data)
    head = model.head.weight.clone()
    load_encoder(model, store, item)
    for name, value in model.encoder.state_dict().items():
        assert torch.equal(value, other.encoder.state_dict()[name]), name
    assert torch.equal(model.head.weight, head)


def test_an_encoder_of_another_shape_is_refused(data: TrainingData, tmp_path: Path) -> None:
    store = open_store(tmp_path.as_uri())
    wide = new_model(spec_of(hidden_size=16), data)
    item = committed(store, tmp_path / "work", weights_bytes(wide))
    with pytest.raises(DataError, match=f"run {item.run} must have an encoder of the same shape"):
        load_encoder(new_model(SPEC, data), store, item)


class StopsAt(QuietHooks):
    """Asks to stop the n-th time that it is asked, and keeps the last checkpoint."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n
        self.asked = 0
        self.files: Files | None = None

    def should_stop(self) -> bool:
        self.asked += 1
        return self.asked == self.n

    def save_checkpoint(self, step: int, files: Files) -> None:
        del step
        self.files = files


def test_a_run_stopped_while_its_trees_grow_ends_with_the_same_bits(data: TrainingData) -> None:
    score = score_on(data.labels["val"])

    def fitted(hooks: StopsAt, resume: Files | None = None) -> bytes:
        model = new_model(SPEC, data)
        fit_model(model, SPEC, data, score, hooks, "cpu", resume)
        return weights_bytes(model)

    undisturbed = StopsAt(0)
    expected = fitted(undisturbed)
    last = StopsAt(undisturbed.asked)  # within the trees, which are grown last
    with pytest.raises(Interrupted):
        fitted(last)

    assert last.files is not None
    resumed = StopsAt(0)
    assert fitted(resumed, last.files) == expected
    assert resumed.asked < undisturbed.asked
    assert b"boosted.span_trees.value" in expected


# --- scoring --------------------------------------------------------------------------------------


def test_logits_of_any_size_are_probabilities() -> None:
    zeros = np.zeros(2, np.int64)
    logits = np.array([[-2000.0, -2001.0], [1000.0, 0.0]])
    probabilities = as_predictions(ModelOutputs(logits, zeros, zeros)).probabilities
    sure = 1 / (1 + np.exp(-1))
    np.testing.assert_allclose(probabilities, [[sure, 1 - sure], [1, 0]], atol=1e-12)


def test_gates_look_at_supervised_epochs_alone(data: TrainingData) -> None:
    """In pretraining the sigmas are not trained, and there is no loss of pointer or type."""
    supervised = {"loss": 1.0, "pointer_loss": 1.0, "type_loss": 1.0}
    speed = {"windows_per_s": 1.0}
    row = {"epoch": 0, "step": 1, "sigma_ptr": 1.0, "sigma_type": 1.0, **supervised, **speed}
    epochs = [
        {**row, "stage": "pretrain", "loss": np.nan, "sigma_ptr": 9.0},
        {**row, "stage": "full"},
    ]
    spec = TrainSpec.model_validate(
        {**SPEC.model_dump(), "gates": {"settled_fraction": 1.0, "min_hit_centre_3": 0.0}}
    )
    results = evaluate_model(new_model(spec, data), spec, data, epochs, "cpu")
    values = {gate.name: gate.value for gate in results.gates}
    assert values["losses that are NaN or Inf"] == 0
    assert values["sigma_ptr, last 100% of training"] == 1.0
    assert results.history["stage"].tolist() == ["pretrain", "full"]


# --- a fold of a cross-validation -----------------------------------------------------------------

FOLD = {"folds": 2, "fold": 1}
TEST_BEGINS = 4000  # of 6,000 bars: the last third


def spec_of_fold(**fields: object) -> TrainSpec:
    presence = {"windows": 60}
    return TrainSpec.model_validate(
        {**SPEC.model_dump(), "cross_validate": FOLD, "presence": presence, **fields}
    )


def moved_from(labels: LabelSet, bar: int) -> LabelSet:
    """The other class, and moves that begin two bars later, wherever a move ends at `bar` or later.

    And there are moves over the bar itself.
    """
    every = labels.every_move
    assert every is not None
    is_later = labels.end_bar >= bar
    other_class = 1 - labels.label_index
    over = bar - np.arange(1, MOVE_BARS)  # where moves begin that lie over the bar
    first = np.append(every.first_bar + 2 * (every.last_bar >= bar), over)
    last = np.append(every.last_bar, over + MOVE_BARS - 1)

    return replace(
        labels,
        label_index=np.where(is_later, other_class, labels.label_index),
        start=labels.start + 2 * is_later,
        every_move=EveryMove(first, last),
    )


def learned(labels: LabelSet, features: FeatureSet) -> bytes:
    """What a run learns: weights of network, trees and presence model, and the temperature."""
    spec = spec_of_fold()
    data = split_labels(labels, features, spec)
    model = new_model(spec, data)
    fit_model(model, spec, data, score_on(data.labels["val"]), QuietHooks(), "cpu")
    logits = infer(model, data.windows["val"]).logits
    temperature = helpful_temperature(logits, data.labels["val"].label_index)

    assert data.truth is not None
    presence = fit_presence(model, data, data.truth, spec.presence, seed=0).presence
    assert presence is not None
    return weights_bytes(all_weights(model, presence)) + str(temperature).encode()


def test_a_fold_learns_nothing_from_what_it_is_tested_on(
    labels: LabelSet, features: FeatureSet
) -> None:
    """Labels from the test on say something else, and not a bit changes.

    The twin: labels of validation say something else, and bits change.
    """
    known = learned(labels, features)
    assert learned(moved_from(labels, TEST_BEGINS), features) == known
    assert learned(moved_from(labels, TEST_BEGINS - 300), features) != known


def test_a_fold_has_its_own_splits_and_draws_from_its_own_labels(
    labels: LabelSet, features: FeatureSet
) -> None:
    first_fold = spec_of_fold(cross_validate={"folds": 2, "fold": 0})
    data = split_labels(labels, features, spec_of_fold(fraction=0.5))
    assert data.features.splits == {
        "train": Split(0, 3296),
        "val": Split(3400, 3896),
        "test": Split(4000, 5896),
    }
    whole = split_labels(labels, features, spec_of_fold())
    assert len(data.labels["train"]) == round(len(whole.labels["train"]) / 2)
    assert len(data.labels["test"]) == len(whole.labels["test"])
    for name, part in whole.labels.items():
        split = data.features.splits[name]
        assert split.start <= part.first_anchor.min(), name
        assert part.last_anchor.max() < split.stop, name

    known = split_labels(labels, features, first_fold).truth
    assert known is not None
    assert known.is_known[:TEST_BEGINS].any()
    assert not known.is_known[TEST_BEGINS:].any(), "what comes after the test"
    assert known.last.max() < TEST_BEGINS

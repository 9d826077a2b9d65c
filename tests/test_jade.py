"""The network: shapes, where the type is read off, the decode,
and the price path worked out of the features."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

torch = pytest.importorskip("torch")

from moola import HIT_BARS, WINDOW  # noqa: E402
from moola.errors import DataError  # noqa: E402
from moola.features import FEATURE_NAMES, N_FEATURES, compute_features  # noqa: E402
from moola.models import build_model  # noqa: E402
from moola.models.jade_core import (  # noqa: E402
    JadeCompact,
    found_type,
    initialize_model_biases,
)
from moola.models.price_path import (  # noqa: E402
    ATR_BARS,
    N_CONTEXT,
    UNIT_ATR,
    context_features,
    price_path,
    shifted,
    trailing_max,
    trailing_mean,
)
from moola.models.spans import (  # noqa: E402
    N_DESCRIPTORS,
    at_last_bars,
    decode_spans,
    span_descriptors,
    starts_near,
)


def bars(n: int = 400, seed: int = 0, gap: float = 0.3) -> pd.DataFrame:
    """A random walk whose opens gap away from the last close."""
    rng = np.random.default_rng(seed)
    body, between = rng.normal(0, 1, n), rng.normal(0, gap, n)
    close = 1000 + np.cumsum(body + between)
    opened = close - body
    high = np.maximum(opened, close) + rng.exponential(0.5, n)
    low = np.minimum(opened, close) - rng.exponential(0.5, n)
    index = pd.date_range("2025-01-06", periods=n, freq="min", tz="UTC")
    return pd.DataFrame({"open": opened, "high": high, "low": low, "close": close}, index=index)


def windows(n: int = 4, seed: int = 0) -> Any:
    rows = compute_features(bars(seed=seed))
    return torch.from_numpy(np.stack([rows[100 + 30 * i :][:WINDOW] for i in range(n)]))


def small(**arguments: Any) -> JadeCompact:
    torch.manual_seed(0)
    return JadeCompact(hidden_size=8, **arguments)


def test_the_snippet_of_the_plan_runs_as_it_stands() -> None:
    model = JadeCompact(input_size=11, predict_pointers=True)
    output = model(torch.randn(4, 105, 11))
    assert "logits" in output
    assert "pointers" in output
    assert "sigma_ptr" in output
    assert "sigma_type" in output
    assert output["sigma_ptr"].item() == pytest.approx(math.exp(-0.30))
    assert output["sigma_type"].item() == pytest.approx(1.0)
    assert all(value.isfinite().all() for value in output.values())


def test_defaults_are_eleven_features_and_two_classes() -> None:
    model = JadeCompact()
    assert (model.input_size, model.num_classes, model.encoder.hidden_size) == (11, 2, 96)
    assert model.encoder.bidirectional


@pytest.mark.parametrize("width", [10, 12])
def test_another_feature_width_is_refused(width: int) -> None:
    with pytest.raises(DataError, match=f"input_size must be 11, got {width}"):
        JadeCompact(input_size=width)
    with pytest.raises(DataError, match=rf"x must be \[B, 105, 11\], got \[4, 105, {width}\]"):
        small()(torch.zeros(4, 105, width))


@pytest.mark.parametrize("longest", [1, 106])
def test_a_longest_move_that_is_none_is_refused(longest: int) -> None:
    with pytest.raises(DataError, match=f"longest_move must be 2..105 bars, got {longest}"):
        small(longest_move=longest)


def test_a_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(DataError, match=r"valid_mask must be \[2, 105\], got \[2, 104\]"):
        small()(windows(2), torch.ones(2, 104, dtype=torch.bool))


@pytest.mark.parametrize("name", ["sapphire", "opal", "Jade", ""])
def test_jade_is_the_only_model_name(name: str) -> None:
    with pytest.raises(DataError, match=f"must be one of jade, got {name!r}"):
        build_model(name)
    assert isinstance(build_model("jade", hidden_size=8), JadeCompact)


@pytest.mark.parametrize("training", [True, False])
def test_pointers_lie_in_the_unit_interval(training: bool) -> None:
    pointers = small().train(training)(windows())["pointers"]
    assert pointers.shape == (4, 2)
    assert ((pointers >= 0) & (pointers <= 1)).all()


def test_pointers_in_eval_mode_are_the_decoded_span() -> None:
    model = small().eval()
    output = model(windows())
    start, end = decode_spans(output["span_probs"])
    assert torch.allclose(output["pointers"][:, 0], 0.5 * (start + end) / 104)
    assert torch.allclose(output["pointers"][:, 1], (end - start + 1) / 105)


def test_without_pointers_only_the_type_is_told() -> None:
    output = small(predict_pointers=False)(windows())
    assert "pointers" not in output
    assert "start_logits" not in output
    assert output["logits"].shape == (4, 2)


def test_logits_are_log_probabilities() -> None:
    assert torch.allclose(
        small(num_classes=3)(windows())["logits"].exp().sum(1), torch.ones(4), atol=1e-5
    )


def test_the_type_is_read_off_at_the_start() -> None:
    # With all attention on bar 40, the type must be what bar_logits say there and nowhere else.
    model = small().eval()
    x = windows()
    with torch.no_grad():
        bar_logits = model(x)["bar_logits"]
        model.head = SureOfOneStart(model.head, 40)
        output = model(x)
    assert torch.allclose(output["logits"], torch.log_softmax(bar_logits[:, 40], -1), atol=1e-4)
    assert not torch.allclose(output["logits"], torch.log_softmax(bar_logits[:, 41], -1), atol=1e-4)


def test_the_type_of_a_window_with_two_moves_is_that_of_the_decoded_one() -> None:
    # 0.6 for moves around 30..39, of class 0; 0.4 for one at 70..79, surely of class 1. The window
    # as a whole is rather of class 1 (0.6 x 0.6 = 0.36 against 0.64); its found move is not.
    span_probs = torch.zeros(1, WINDOW, 20)
    span_probs[0, 30, 9] = 0.35
    span_probs[0, 31, 9] = 0.25
    span_probs[0, 70, 9] = 0.4
    types = torch.full((1, WINDOW, 2), 0.5)
    types[0, 30] = torch.tensor([0.6, 0.4])
    types[0, 31] = torch.tensor([0.6, 0.4])
    types[0, 70] = torch.tensor([0.0, 1.0])

    found = found_type(span_probs, types.log()).exp()
    assert torch.allclose(found, torch.tensor([[0.36 + 0.2, 0.24 + 0.2]]), atol=1e-6)


@pytest.mark.parametrize(("shift", "counts"), [(3, True), (4, False)])
def test_a_span_is_of_the_found_move_up_to_three_bars_away(shift: int, counts: bool) -> None:
    span_probs = torch.zeros(1, WINDOW, 20)
    span_probs[0, 30, 9] = 0.8
    span_probs[0, 30 + shift, 9] = 0.2
    nearby = starts_near(span_probs, torch.tensor([30]), torch.tensor([39]))
    assert nearby[0, 30] == pytest.approx(0.8)
    assert nearby[0, 30 + shift] == pytest.approx(0.2 * counts)


class SureOfOneStart(torch.nn.Module):
    """A head whose start is certain and whose type is another head's."""

    def __init__(self, head: Any, start: int) -> None:
        super().__init__()
        self.head, self.start = head, start

    def forward(self, h: Any) -> Any:
        scores = self.head(h)
        scores[..., 0] = 0.0
        scores[:, self.start, 0] = 100.0
        return scores


def test_every_bar_and_feature_reaches_the_output() -> None:
    model = small().eval()
    x = windows(1).requires_grad_()
    output = model(x)
    (output["start_logits"].square().sum() + output["end_logits"].square().sum()).backward()
    assert (x.grad[0] != 0).all()


def test_invalid_bars_are_not_read() -> None:
    model = small().eval()
    x, mask = windows(), torch.ones(4, WINDOW, dtype=torch.bool)
    mask[:, :20] = False
    other = x.clone()
    other[:, :20] = 1.0
    assert torch.equal(model(x, mask)["logits"], model(other, mask)["logits"])
    assert not torch.equal(model(x)["logits"], model(other)["logits"])


def test_initial_biases_predict_the_class_shares() -> None:
    model = small()
    initialize_model_biases(model, [30, 10])
    with torch.no_grad():
        model.head.weight.zero_()
        assert torch.allclose(
            model(windows())["logits"].exp(), torch.tensor([0.75, 0.25]), atol=1e-5
        )


@pytest.mark.parametrize("counts", [[30], [30, 0], [1, 2, 3]])
def test_counts_that_do_not_fit_the_classes_are_refused(counts: list[int]) -> None:
    with pytest.raises(DataError, match="class_counts must be 2 numbers above 0"):
        initialize_model_biases(small(), counts)


def spans_of(start: Any, end: Any, length: Any) -> Any:
    """[T], [T], [L] scores -> their softmax over the spans, span_probs [1, T, L], pair by pair."""
    logits = torch.full((1, WINDOW, len(length)), -1e4)
    for s in range(WINDOW):
        for bars in range(1, min(len(length), WINDOW - s) + 1):
            logits[0, s, bars - 1] = start[s] + end[s + bars - 1] + length[bars - 1]
    return torch.softmax(logits.flatten(1), dim=1).view(logits.shape)


def peaks(*bars_and_logits: tuple[int, float]) -> Any:
    logits = torch.full((WINDOW,), -20.0)
    for bar, logit in bars_and_logits:
        logits[bar] = logit
    return logits


@pytest.mark.parametrize(("start", "end"), [(0, 0), (0, 104), (104, 104), (40, 47), (41, 47)])
def test_a_sure_span_is_decoded_as_it_is(start: int, end: int) -> None:
    probs = spans_of(peaks((start, 0)), peaks((end, 0)), torch.zeros(WINDOW))
    assert [b.item() for b in decode_spans(probs)] == [start, end]


@pytest.mark.parametrize("longest", [2, 7, 32, WINDOW])
def test_a_decoded_span_lies_in_the_window_and_is_no_longer_than_may_be(longest: int) -> None:
    model = small(longest_move=longest).eval()
    with torch.no_grad():
        model.head.weight.mul_(100)
        start, end = decode_spans(model(windows())["span_probs"])
    assert ((start >= 0) & (start <= end) & (end < WINDOW) & (end - start < longest)).all()


def test_decoding_prefers_the_neighbourhood_with_more_probability() -> None:
    # The single likeliest pair is at 20..25, but three near pairs around 60..66 hold more together.
    start = peaks((20, 0.5), (59, 0.0), (60, 0.0), (61, 0.0))
    end = peaks((25, 0.5), (66, 0.0))
    s, e = (
        bar.item() for bar in decode_spans(spans_of(start, end, torch.zeros(20)))
    )  # none from 20 to 66
    assert abs((s + e) / 2 - 63) <= HIT_BARS / 2


def test_a_span_without_any_probability_is_never_decoded() -> None:
    """The centre between two spans has the most around it, but no span of its own."""
    probs = torch.zeros(1, WINDOW, 12)
    for start, end in [(20, 28), (22, 30)]:
        probs[0, start, end - start] = 0.5
    assert [bar.item() for bar in decode_spans(probs)] in ([20, 28], [22, 30])


@pytest.mark.parametrize("longest", [9, WINDOW])
@pytest.mark.parametrize("share_of_none", [0.0, 0.9, 0.999])
def test_decoding_agrees_with_a_plain_loop(longest: int, share_of_none: float) -> None:
    rng = np.random.default_rng(1)
    probs = spans_of(
        *(torch.from_numpy(rng.normal(0, 3, n)).float() for n in (WINDOW, WINDOW, longest))
    )
    probs[torch.from_numpy(rng.random(probs.shape) < share_of_none)] = 0.0
    spans = [(s, s + k) for s in range(WINDOW) for k in range(longest) if s + k < WINDOW]
    pairs = {(s, e): float(probs[0, s, e - s]) for s, e in spans}
    reward = {
        centre: sum(
            p * (1 - 0.5 * ((s + e - centre) / (2 * HIT_BARS)) ** 2)
            for (s, e), p in pairs.items()
            if abs(s + e - centre) <= 2 * HIT_BARS
        )
        for centre in {s + e for (s, e), p in pairs.items() if p > 0}
    }
    best = max(reward, key=lambda centre: reward[centre])
    expected = max((pair for pair in pairs if sum(pair) == best), key=lambda pair: pairs[pair])
    assert tuple(bar.item() for bar in decode_spans(probs)) == expected


@pytest.mark.parametrize("longest", [2, 9, WINDOW])
def test_spans_and_their_ends_are_the_sums_they_should_be(longest: int) -> None:
    """Scores of both ends, of the length and of the descriptors, over all spans;
    the marginals by a plain loop."""
    model, x = small(longest_move=longest).eval(), windows(2)
    model.set_length_prior([2] * 3 + [1])
    with torch.no_grad():
        model.span.normal_(std=0.05)
        output = model(x)
        scores = model.head(model.encode(x))
        worth = 10 * torch.einsum(
            "d,dblt->btl", model.span, span_descriptors(price_path(x), longest)[..., :WINDOW]
        )
        for i in range(2):
            expected = (
                spans_of(scores[i, :, 0], scores[i, :, 1], model.length_log_prior)[0]
                * worth[i].exp()
            )
            expected /= expected.sum()
            assert torch.allclose(output["span_probs"][i], expected, atol=1e-6)
            end = torch.zeros(WINDOW)
            for s in range(WINDOW):
                for k in range(min(longest, WINDOW - s)):
                    end[s + k] += expected[s, k]
            assert torch.allclose(output["start_logits"][i].exp(), expected.sum(1), atol=1e-6)
            assert torch.allclose(output["end_logits"][i].exp(), end, atol=1e-6)


def test_span_descriptors_are_those_of_the_bars() -> None:
    """Worked out from prices, span by span;
    the features tell them but for the rounding of the price path."""
    market = bars(gap=0.0)
    window = market.iloc[200 : 200 + WINDOW]
    x = torch.from_numpy(compute_features(market)[None, 200 : 200 + WINDOW])
    descriptors = span_descriptors(price_path(x), 12)[:, 0, :, :WINDOW].numpy()
    assert descriptors.shape == (N_DESCRIPTORS, 12, WINDOW)
    close, step = window.close.to_numpy(), window.close.diff().abs().to_numpy()
    previous = window.close.shift()
    reach = pd.concat(
        [window.high - window.low, (window.high - previous).abs(), (window.low - previous).abs()],
        axis=1,
    )
    atr = reach.max(axis=1).rolling(ATR_BARS).mean().to_numpy()
    free = (x[0, :, 5] < 3).numpy()  # the range of a clipped bar is not known
    compared = 0
    for s in range(30, WINDOW - 12):
        for k in range(12):
            if free[s - ATR_BARS : s + k + 1].all():
                net = abs(close[s + k] - close[s - 1])
                far, straight = net / atr[s - 1] / UNIT_ATR, net / step[s : s + k + 1].sum()
                assert descriptors[:3, k, s] == pytest.approx(
                    [far, straight, UNIT_ATR * far / math.sqrt(k + 1)], rel=0.03, abs=0.02
                )
                compared += 1
    assert compared > 100
    assert np.allclose(
        descriptors[6], np.maximum(descriptors[2] - 0.5, 0)
    )  # the first hinge of the third


def test_every_span_descriptor_is_alive_where_prices_drift() -> None:
    drift = bars().add(1.5 * np.arange(400), axis=0)
    drift["open"] -= 1.5
    drift["low"] -= 1.5
    x = torch.from_numpy(compute_features(drift)[None, 200 : 200 + WINDOW])
    descriptors = span_descriptors(price_path(x), 32)
    assert descriptors.isfinite().all()
    assert (descriptors[..., :WINDOW].std(dim=(1, 2, 3)) > 0).all()


def test_the_last_bar_of_a_span_is_the_windows_where_it_would_lie_outside() -> None:
    bars = at_last_bars(torch.arange(float(WINDOW))[None], 3)
    assert bars.shape == (1, 3, WINDOW + 2)
    assert bars[0, :, 50].tolist() == [50, 51, 52]
    assert bars[0, :, 104].tolist() == [104, 104, 104]


def test_the_length_prior_is_that_of_the_labels() -> None:
    model = small()
    model.set_length_prior([8] * 50 + [12] * 10)
    prior = model.length_log_prior.exp()
    assert prior.sum().item() == pytest.approx(1.0)
    assert prior.argmax().item() == 7  # lengths count from 1
    assert prior[11] > prior[20]
    # 50.5 of 8 bars, 0.5 of the others: a quarter of it is the neighbours'.
    smooth_7 = 0.25 * 50.5 + 0.5 * 0.5 + 0.25 * 0.5
    smooth_8 = 0.5 * 50.5 + 0.25 * 0.5 * 2
    assert (prior[6] / prior[7]).item() == pytest.approx(smooth_7 / smooth_8)
    assert (prior > 0).all()


def test_a_label_longer_than_the_longest_move_is_refused() -> None:
    with pytest.raises(DataError, match="longer than longest_move = 8 bars, got 9"):
        small(longest_move=8).set_length_prior([3, 9])


def test_the_price_path_is_that_of_the_bars() -> None:
    market = bars()
    rows = compute_features(market)
    window = market.iloc[200 : 200 + WINDOW]
    path = [
        series[0].numpy() for series in price_path(torch.from_numpy(rows[None, 200 : 200 + WINDOW]))
    ]
    spread = (window.high - window.low).to_numpy()
    unit = np.median(spread / (path[2] - path[3]))
    free = rows[200 : 200 + WINDOW, 5] < 3  # the range of a clipped bar is not known
    assert np.allclose((path[2] - path[3])[free] * unit, spread[free], rtol=0.02)
    steps = np.diff(window.close.to_numpy())
    path_steps = np.diff(path[1]) * unit
    without_gaps = (window.close - window.open).to_numpy()[1:]
    assert np.abs(path_steps - steps).mean() < 0.1 * np.abs(without_gaps - steps).mean()
    assert np.corrcoef(path_steps, steps)[0, 1] > 0.99


def test_the_price_path_of_flat_bars_is_finite() -> None:
    market = bars()
    market.iloc[150:260] = 1000.0
    for series in price_path(torch.from_numpy(compute_features(market)[None, 160 : 160 + WINDOW])):
        assert series.isfinite().all()


def test_context_ignores_the_scale_of_prices() -> None:
    market = bars()
    one, ten = (
        context_features(
            price_path(torch.from_numpy(compute_features(m)[None, 200 : 200 + WINDOW]))
        )
        for m in (market, market * 10)
    )
    assert one.shape == (1, WINDOW, N_CONTEXT)
    assert torch.allclose(one, ten, atol=1e-2)
    assert (one.std(dim=1) > 0).all()  # every column is alive


def test_trailing_series_agree_with_pandas() -> None:
    series = pd.Series(np.random.default_rng(0).normal(size=WINDOW))
    tensor = torch.tensor(series.to_numpy())[None]
    assert np.allclose(trailing_mean(tensor, 7)[0], series.rolling(7, min_periods=1).mean())
    assert np.allclose(trailing_max(tensor[None], 7)[0, 0], series.rolling(7, min_periods=1).max())
    ago, ahead = shifted(tensor, [7, -7])[0].T
    assert np.allclose(ago, series.shift(7).fillna(series[0]))
    assert np.allclose(ahead, series.shift(-7).fillna(series[WINDOW - 1]))


def test_the_number_of_inputs_is_that_of_the_features() -> None:
    assert small().encoder.input_size == N_FEATURES + N_CONTEXT


def test_dropout_changes_predictions_in_training_only() -> None:
    model = small(dropout=0.5)
    x = windows()
    model.train()
    assert not torch.equal(model(x)["logits"], model(x)["logits"])
    model.eval()
    assert torch.equal(model(x)["logits"], model(x)["logits"])


def test_dropout_keeps_the_mean_of_the_scores() -> None:
    """What is left is scaled up: over many masks the type's logits are those without dropout."""
    model = small(dropout=0.3, predict_pointers=False)
    x = windows(1).expand(4000, -1, -1)
    with torch.no_grad():
        dropped = model.train()(x)["bar_logits"].mean(dim=0)
        kept = model.eval()(x[:1])["bar_logits"][0]
    assert torch.allclose(dropped, kept, atol=0.02)


def test_bars_since_a_swing_are_brought_to_the_size_of_the_other_inputs() -> None:
    gain = small().input_gain
    x = windows(4) * gain
    since = [FEATURE_NAMES.index(name) for name in ("bars_since_SH_norm", "bars_since_SL_norm")]
    assert (gain != 1).nonzero().flatten().tolist() == since
    assert 0.1 < x[..., since].mean() < 3

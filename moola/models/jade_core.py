"""Jade: a BiLSTM over the 105 bars whose heads keep position, so that it can say where a move starts and ends.

    x [B, T, F] --> price path --> context [B, T, C] --+
        |                                              v
        +-------------------------------------------> BiLSTM --> h [B, T, 2H]
                                                                 |--> start_logits, end_logits [B, T]
                                                                 +--> bar_logits [B, T, K]: the type, were this
                                                                      the bar at which the move starts

    type = bar_logits' probabilities, averaged over the bars with the start distribution as attention

Two ideas carry the accuracy at a few hundred labels. The type of a window is the state of the market BEFORE the move,
so it is read off at the bar where the move starts: the forward half of the BiLSTM has seen just that state there, and
the average over the start distribution is right however unsure the start is. And the 11 features are ratios, from
which the relative path of prices can be worked out again (`price_path`): ranges and net moves over several horizons
then are inputs instead of something to be learnt.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from moola import WINDOW
from moola.errors import DataError
from moola.features import FEATURE_NAMES, N_FEATURES

OPEN_NORM, CLOSE_NORM, BODY_PCT, UPPER_WICK, LOWER_WICK, RANGE_Z, DIST_SH, DIST_SL, SINCE_SH, SINCE_SL, PROXY = range(
    N_FEATURES
)
NET_HORIZONS = (2, 4, 8, 16)  # bars over which a net move is told
RANGE_HORIZONS = (8, 16, 24, 48)  # bars over which a range is told
ATR_BARS = 20  # the unit of all context: mean true range of the last 20 bars
N_CONTEXT = 3 * len(NET_HORIZONS) + 2 * len(RANGE_HORIZONS) + 1  # 21: 32 inputs in all, 6 % faster than 29
CONTEXT_LIMIT = 4.0
SINCE_GAIN = 10.0  # bars since a swing / 105 is mostly below 0.1: brought to the size of the other inputs
HIT_BARS = 3  # `decode` looks for the centre that has the most probability within this many bars
FAR_BELOW = -1e4  # a log-probability that is none, finite so that no gradient becomes nan


class JadeCompact(nn.Module):
    """The network. `num_classes` types; without `predict_pointers` it only tells the type.

    `range_period` and `atr_period` are those of the FeatureConfig that made the features. Raises DataError for an input
    width other than that of the features.
    """

    length_log_prior: Tensor
    input_gain: Tensor

    def __init__(
        self,
        input_size: int = N_FEATURES,
        hidden_size: int = 96,
        num_layers: int = 1,
        num_classes: int = 2,
        predict_pointers: bool = True,
        dropout: float = 0.3,
        range_period: int = 20,
        atr_period: int = 10,
    ) -> None:
        super().__init__()
        if input_size != N_FEATURES:
            raise DataError(
                f"jade reads the {N_FEATURES} features {', '.join(FEATURE_NAMES)}; input_size must be {N_FEATURES}, "
                f"got {input_size}"
            )
        self.input_size, self.num_classes, self.predict_pointers = input_size, num_classes, predict_pointers
        self.range_period, self.atr_period = range_period, atr_period
        self.encoder = nn.LSTM(
            input_size + N_CONTEXT, hidden_size, num_layers, batch_first=True, bidirectional=True
        )  # [B, T, F + C] -> [B, T, 2H]
        self.dropout = dropout
        self.head = nn.Linear(2 * hidden_size, 2 + num_classes)  # start, end, one per type
        self.log_sigma_ptr = nn.Parameter(torch.tensor(-0.30))
        self.log_sigma_type = nn.Parameter(torch.tensor(0.00))
        gain = torch.ones(input_size)
        gain[[SINCE_SH, SINCE_SL]] = SINCE_GAIN
        self.register_buffer("input_gain", gain, persistent=False)
        self.register_buffer("length_log_prior", torch.zeros(WINDOW))  # [T] of a span of 1, 2, ..., T bars

    def encode(self, x: Tensor, valid_mask: Tensor | None = None) -> Tensor:
        """[B, T, F], [B, T] bool -> [B, T, 2H]. Bars that are not valid are read as zeros."""
        self._check(x, valid_mask)
        if valid_mask is not None:
            x = x * valid_mask.unsqueeze(-1)
        context = context_features(x, self.range_period, self.atr_period)  # [B, T, C]
        h, _ = self.encoder(torch.cat([x * self.input_gain, context.to(x.dtype)], dim=-1))  # [B, T, 2H]
        return torch.as_tensor(h)

    def forward(self, x: Tensor, valid_mask: Tensor | None = None) -> dict[str, Tensor]:
        """[B, T, F] -> logits [B, K], bar_logits [B, T, K] of the types, sigma_ptr, sigma_type, and

        start_logits, end_logits [B, T]; all logits are log-probabilities, over bars here and over types there
        pointers [B, 2]   centre = 0.5 (start + end) / 104 and length = (end - start + 1) / 105, both in [0, 1]:
                          of the decoded span in eval mode; in training mode of the expected start and end, which can
                          be differentiated.
        Raises DataError where the shape is not [B, 105, 11].
        """
        h = self.encode(x, valid_mask)  # [B, T, 2H]
        told = self._read(h).float()  # [B, T, 2 + K]
        span = torch.log_softmax(told[..., :2], dim=1)  # [B, T, 2] of the start, of the end
        bar_logits = torch.log_softmax(told[..., 2:], dim=-1)  # [B, T, K]
        logits = torch.logsumexp(span[..., :1] + bar_logits, dim=1)  # [B, K]
        output = {
            "logits": logits,
            "bar_logits": bar_logits,
            "sigma_ptr": self.log_sigma_ptr.exp(),
            "sigma_type": self.log_sigma_type.exp(),
        }
        if self.predict_pointers:
            output |= {"start_logits": span[..., 0], "end_logits": span[..., 1]}  # [B, T] each
            output["pointers"] = self._pointers(span)  # [B, 2]
        return output

    def _read(self, h: Tensor) -> Tensor:
        """[B, T, 2H] -> [B, T, 2 + K]: the head, with dropout in training."""
        if not (self.training and self.dropout):
            return torch.as_tensor(self.head(h))
        # One mask for all bars of a window (Gal and Ghahramani, 2016). It is laid on the weights, not on h: the same
        # product, for a hundredth of the multiplications.
        mask = functional.dropout(h.new_ones(len(h), 1, h.shape[2]), self.dropout)  # [B, 1, 2H]
        return torch.bmm(mask * self.head.weight, h.transpose(1, 2)).transpose(1, 2) + self.head.bias

    def decode(self, start_logits: Tensor, end_logits: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T] twice -> start, end [B] int64, 0 <= start <= end <= 104: see `decode_spans`."""
        return decode_spans(start_logits, end_logits, self.length_log_prior)

    def set_length_prior(self, lengths: Sequence[int] | Tensor) -> None:
        """Learn how long spans are from the lengths in bars of the training labels, smoothed by 2 bars."""
        counts = torch.bincount(torch.as_tensor(lengths, dtype=torch.int64) - 1, minlength=WINDOW).float() + 0.5
        kernel = torch.tensor([0.25, 0.5, 0.25]).view(1, 1, 3)
        smooth = functional.conv1d(counts.view(1, 1, -1), kernel, padding=1).flatten()  # [T]
        self.length_log_prior.copy_((smooth / smooth.sum()).log())

    def _pointers(self, span: Tensor) -> Tensor:
        """[B, T, 2] log-probabilities -> [B, 2] centre and length."""
        if self.training:
            start, end = (torch.arange(WINDOW, device=span.device, dtype=span.dtype) @ span.exp()).unbind(1)  # [B]
            end = torch.maximum(start, end)
        else:
            start, end = (bar.to(span.dtype) for bar in self.decode(span[..., 0], span[..., 1]))  # [B]
        return torch.stack([0.5 * (start + end) / (WINDOW - 1), (end - start + 1) / WINDOW], dim=1)

    def _check(self, x: Tensor, valid_mask: Tensor | None) -> None:
        if x.ndim != 3 or x.shape[1:] != (WINDOW, self.input_size):
            raise DataError(f"x must be [B, {WINDOW}, {self.input_size}], got {list(x.shape)}")
        if valid_mask is not None and valid_mask.shape != x.shape[:2]:
            raise DataError(f"valid_mask must be {list(x.shape[:2])}, got {list(valid_mask.shape)}")


def initialize_model_biases(model: JadeCompact, class_counts: Sequence[int] | Tensor) -> None:
    """Let an untrained model predict the classes as often as they are: type bias = log of the class's share.

    Raises DataError unless there is one count > 0 per class.
    """
    counts = torch.as_tensor(class_counts, dtype=torch.float32)
    if counts.shape != (model.num_classes,) or not bool((counts > 0).all()):
        raise DataError(f"class_counts must be {model.num_classes} numbers above 0, got {counts.tolist()}")
    with torch.no_grad():
        model.head.bias.zero_()
        model.head.bias[2:] = (counts / counts.sum()).log()


@torch.no_grad()
def decode_spans(start_logits: Tensor, end_logits: Tensor, length_log_prior: Tensor) -> tuple[Tensor, Tensor]:
    """The span (start, end) [B] int64 each, both inclusive, from logits [B, T] and a prior over lengths [T].

    P(start, end) ~ P(start) P(end) P(length), start <= end. The centre is the one with the most probability within
    HIT_BARS of it, nearer bars counting a little more; the span is the likeliest one of that centre. Where a window
    holds two moves this picks the likelier move, which the likeliest pair need not belong to.
    """
    batch, bars = start_logits.shape[0], torch.arange(WINDOW, device=start_logits.device)
    length = bars[None, :] - bars[:, None]  # [T, T] end - start
    pair = torch.log_softmax(start_logits, 1)[:, :, None] + torch.log_softmax(end_logits, 1)[:, None, :]  # [B, T, T]
    pair = pair + length_log_prior[length.clamp(min=0)] + torch.where(length < 0, FAR_BELOW, 0.0)
    pair = pair.reshape(batch, -1)  # [B, T * T]
    twice_centre = (bars[:, None] + bars[None, :]).reshape(-1)  # [T * T] start + end, 0..208
    mass = pair.new_zeros(batch, 2 * WINDOW - 1).index_add_(1, twice_centre, torch.softmax(pair, dim=1))
    offsets = torch.arange(-2 * HIT_BARS, 2 * HIT_BARS + 1, device=pair.device) / (2 * HIT_BARS)  # -1..1
    near = 1 - 0.5 * offsets**2  # [13]
    score = functional.conv1d(mass[:, None], near.to(mass)[None, None], padding=2 * HIT_BARS)[:, 0]  # [B, 209]
    best = score.argmax(dim=1, keepdim=True)  # [B, 1]
    chosen = pair.masked_fill(twice_centre[None] != best, -math.inf).argmax(dim=1)  # [B]
    return chosen // WINDOW, chosen % WINDOW


def price_path(x: Tensor, range_period: int = 20, atr_period: int = 10) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(true range, close, high, low), [B, T] each, of the bars behind the features [B, T, F], in one unit per window.

    Unit and level are unknown. range_z is the ratio of a bar's range to its running average, which gives the average
    from bar to bar, hence the ranges; bodies and wicks then give each bar. The gap between a close and the next open
    follows from a swing that both bars are measured against: its distance changed by the step from close to close, in
    ATR. Where no swing serves (it changed, or the distance is clipped) the gap is taken as 0.
    """
    alpha = 2 / (range_period + 1)
    z = x[..., RANGE_Z].clamp(0, min(3.0, 0.99 / alpha))
    # The running average obeys average[t] (1 - alpha z[t]) = (1 - alpha) average[t - 1].
    log_average = (math.log(1 - alpha) - torch.log1p(-alpha * z)).cumsum(1)
    reach = z * torch.exp((log_average - log_average.mean(1, keepdim=True)).clamp(-20, 20))  # [B, T] high - low
    body = x[..., BODY_PCT] * reach
    below_open, above_open = x[..., OPEN_NORM] * reach, (1 - x[..., OPEN_NORM]) * reach
    distance, since = x[..., [DIST_SH, DIST_SL]], x[..., [SINCE_SH, SINCE_SL]]  # [B, T, 2]
    trust = _trust(distance, since)  # [B, T - 1, 2]
    trusted = trust.sum(-1)
    # The distance from a high falls as the price rises.
    share = trust / trusted.clamp(min=1e-9).unsqueeze(-1) * trust.new_tensor([-1.0, 1.0])
    true_range, gap = reach, torch.zeros_like(body[:, 1:])
    for _ in range(2):  # the ATR needs the gaps and the gaps need the ATR: twice leaves a tenth of the error
        atr = trailing_mean(true_range, atr_period)
        step = (share * (distance * atr.unsqueeze(-1)).diff(dim=1)).sum(-1)  # [B, T - 1] close to close
        gap = torch.where(trusted > 0, step - body[:, 1:], 0.0).clamp(-atr[:, 1:], atr[:, 1:])
        reached = (above_open[:, 1:] + gap).relu() + (below_open[:, 1:] - gap).relu()
        true_range = torch.cat([reach[:, :1], reached], dim=1)
    close = (body + functional.pad(gap, (1, 0))).cumsum(1)
    return true_range, close, close + (1 - x[..., CLOSE_NORM]) * reach, close - x[..., CLOSE_NORM] * reach


def _trust(distance: Tensor, since: Tensor) -> Tensor:
    """[B, T, 2] twice -> [B, T - 1, 2]: 0 where two bars are not measured against the same swing; else the more, the
    nearer the swing."""
    aged = (since.diff(dim=1) - 1 / WINDOW).abs() < 1e-4
    inside = (distance[:, 1:].abs() < 2.999) & (distance[:, :-1].abs() < 2.999) & (since[:, 1:] < 2.99)
    return (aged & inside) / (0.05 + distance[:, 1:].abs())


@torch.no_grad()
def context_features(x: Tensor, range_period: int = 20, atr_period: int = 10) -> Tensor:
    """[B, T, F] -> [B, T, C]: what the last and the next few bars did, in ATR; each value within +-CONTEXT_LIMIT.

    Net move and efficiency of the last 2, 4, 8, 16 bars, net move of the next; range of the last 8, 16, 24, 48 bars and
    the close's place in it; and how the ATR compares with the window's last.
    """
    true_range, close, high, low = price_path(x.float(), range_period, atr_period)
    atr = trailing_mean(true_range, ATR_BARS) + 1e-6
    path = functional.pad(close.diff(dim=1).abs(), (1, 0)).cumsum(1)
    # [B, T, horizons] each: all horizons at once, as the number of operations is what takes time here
    close_then, path_then, atr_then = shifted(torch.stack([close, path, atr]), NET_HORIZONS)
    net = close.unsqueeze(-1) - close_then
    efficiency = net / (path.unsqueeze(-1) - path_then + 1e-6)
    coming = shifted(close, [-bars for bars in NET_HORIZONS]) - close.unsqueeze(-1)
    edges = torch.stack([high, -low], dim=1)  # [B, 2, T]
    top, fall = torch.stack([trailing_max(edges, bars) for bars in RANGE_HORIZONS], dim=-1).unbind(1)
    reach = top + fall
    place = (2 * close.unsqueeze(-1) - top + fall) / (reach + 1e-6)
    unit = atr.unsqueeze(-1)
    trend = (unit / unit[:, -1:]).log()
    columns = [net / atr_then / 4, efficiency, coming / unit / 4, reach / unit / 4 - 1, place, trend]
    return torch.cat(columns, dim=-1).clamp(-CONTEXT_LIMIT, CONTEXT_LIMIT)


def shifted(series: Tensor, horizons: Sequence[int]) -> Tensor:
    """[..., T] -> [..., T, horizons]: the value so many bars ago (negative: ahead), or the one at the window's edge."""
    last = series.shape[-1] - 1
    bars = torch.arange(last + 1, device=series.device)[:, None] - torch.tensor(horizons, device=series.device)
    return series[..., bars.clamp(0, last)]


def trailing_mean(series: Tensor, bars: int) -> Tensor:
    """[B, T] -> [B, T]: mean of the last (up to) `bars` values."""
    total = functional.pad(series.cumsum(1), (bars, 0))  # [B, bars + T]
    count = torch.arange(1, series.shape[1] + 1, device=series.device, dtype=series.dtype).clamp(max=bars)
    return (total[:, bars:] - total[:, :-bars]) / count


def trailing_max(series: Tensor, bars: int) -> Tensor:
    """[B, K, T] -> [B, K, T]: largest of the last (up to) `bars` values."""
    return functional.max_pool1d(functional.pad(series, (bars - 1, 0), value=-math.inf), bars, 1)

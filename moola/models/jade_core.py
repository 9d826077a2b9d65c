"""Jade: a BiLSTM over the 105 bars whose heads keep position, so that it can say where a move starts and ends.

    x [B, T, F] --> price path --> context [B, T, C] --+
        |                |                             v
        +----------------|--------------------------> BiLSTM --> h [B, T, 2H]
                         v                                       |--> a score per bar as start, and as end [B, T]
                  descriptors of spans --> a score per span --+  |        |
                                                              +-----------+--> span_probs [B, T, L]
                                                                 |
                                                                 +--> bar_logits [B, T, K]: the type, were this
                                                                      the bar at which the move starts

    start_logits, end_logits [B, T] = logs of span_probs, summed over what else a span has
    type = bar_logits' probabilities, averaged over the bars with the start distribution as attention

Three ideas carry the accuracy at a few hundred labels. The type of a window is the state of the market BEFORE the
move, so it is read off at the bar where the move starts: the forward half of the BiLSTM has seen just that state there,
and the average over the start distribution is right however unsure the start is. The 11 features are ratios, from
which the relative path of prices can be worked out again (`price_path`): ranges and net moves over several horizons
then are inputs instead of something to be learnt. And a move is a span, not two bars: how far and how straight prices
went between its ends is told of each span (`span_descriptors`), and what that is worth takes a dozen weights to learn.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

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
FAR_KNOTS = (0.5, 1.0, 2.0)  # where the worth of a span's net move, in 4 ATR or in ATR per sqrt(bar), may bend
STRAIGHT_KNOTS = (0.5, 0.75, 0.9)  # and that of its |net| / path
N_DESCRIPTORS = 3 + 2 * len(FAR_KNOTS) + len(STRAIGHT_KNOTS)
SPAN_GAIN = 10.0  # lets the few weights of a span's score move as fast as the sums of many in the heads
HIT_BARS = 3  # `decode` looks for the centre that has the most probability within this many bars
FAR_BELOW = -1e4  # the score of what cannot be: its probability is 0, and no gradient becomes nan
LEAST = 1e-37  # the smallest probability of which a logarithm is taken


class PricePath(NamedTuple):
    """[B, T] each, in one unit per window whose size and origin are unknown."""

    true_range: Tensor
    close: Tensor
    high: Tensor
    low: Tensor


class JadeCompact(nn.Module):
    """The network. `num_classes` types; without `predict_pointers` it only tells the type.

    `range_period` and `atr_period` are those of the FeatureConfig that made the features. No move is taken to be longer
    than `longest_move` bars, L: a step costs less where they are known to be short. Raises DataError for an input width
    other than that of the features, or a longest move outside 2..105.
    """

    length_log_prior: Tensor
    input_gain: Tensor
    outside: Tensor

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
        longest_move: int = WINDOW,
    ) -> None:
        super().__init__()
        if input_size != N_FEATURES:
            raise DataError(
                f"jade reads the {N_FEATURES} features {', '.join(FEATURE_NAMES)}; input_size must be {N_FEATURES}, "
                f"got {input_size}"
            )
        if not 2 <= longest_move <= WINDOW:
            raise DataError(f"longest_move must be 2..{WINDOW} bars, got {longest_move}")
        self.input_size, self.num_classes, self.predict_pointers = input_size, num_classes, predict_pointers
        self.range_period, self.atr_period = range_period, atr_period
        self.encoder = nn.LSTM(
            input_size + N_CONTEXT, hidden_size, num_layers, batch_first=True, bidirectional=True
        )  # [B, T, F + C] -> [B, T, 2H]
        self.dropout = dropout
        self.head = nn.Linear(2 * hidden_size, 2 + num_classes)  # start, end, one per type
        self.longest_move = longest_move
        if predict_pointers:
            self.span = nn.Parameter(torch.zeros(N_DESCRIPTORS))
        self.log_sigma_ptr = nn.Parameter(torch.tensor(-0.30))
        self.log_sigma_type = nn.Parameter(torch.tensor(0.00))
        gain = torch.ones(input_size)
        gain[[SINCE_SH, SINCE_SL]] = SINCE_GAIN
        self.register_buffer("input_gain", gain, persistent=False)
        self.register_buffer("length_log_prior", torch.zeros(longest_move))  # [L] of a span of 1, 2, ..., L bars
        last_bars = torch.arange(longest_move)[:, None] + torch.arange(row_length(longest_move))  # [L, R]
        self.register_buffer("outside", torch.where(last_bars >= WINDOW, FAR_BELOW, 0.0), persistent=False)

    def encode(self, x: Tensor, valid_mask: Tensor | None = None) -> Tensor:
        """[B, T, F], [B, T] bool -> [B, T, 2H]. Bars that are not valid are read as zeros."""
        return self._encode(x, valid_mask)[0]

    def forward(self, x: Tensor, valid_mask: Tensor | None = None) -> dict[str, Tensor]:
        """[B, T, F] -> logits [B, K], bar_logits [B, T, K] of the types, sigma_ptr, sigma_type, and

        span_probs [B, T, L]   of a move that starts at this bar and has 1, 2, ..., L bars
        start_logits, end_logits [B, T]; all logits are log-probabilities, over bars here and over types there
        pointers [B, 2]   centre = 0.5 (start + end) / 104 and length = (end - start + 1) / 105, both in [0, 1]:
                          of the decoded span in eval mode; in training mode of the expected start and end, which can
                          be differentiated.
        Raises DataError where the shape is not [B, 105, 11].
        """
        h, path = self._encode(x, valid_mask)  # [B, T, 2H]
        told = self._read(h).float()  # [B, T, 2 + K]
        bar_logits = torch.log_softmax(told[..., 2:], dim=-1)  # [B, T, K]
        output = {
            "bar_logits": bar_logits,
            "sigma_ptr": self.log_sigma_ptr.exp(),
            "sigma_type": self.log_sigma_type.exp(),
        }
        if self.predict_pointers:
            spans = self._spans(told[..., 0], told[..., 1], path)  # [B, L, R]
            start, end = spans[..., :WINDOW].sum(1), by_last_bar(spans).sum(1)  # [B, T]
            start_logits, end_logits = start.clamp(min=LEAST).log(), end.clamp(min=LEAST).log()
            span_probs = spans[..., :WINDOW].transpose(1, 2)  # [B, T, L]
            output |= {"span_probs": span_probs, "start_logits": start_logits, "end_logits": end_logits}
            output["pointers"] = self._pointers(span_probs, start, end)  # [B, 2]
        else:
            start_logits = torch.log_softmax(told[..., 0], dim=1)
        output["logits"] = torch.logsumexp(start_logits.unsqueeze(-1) + bar_logits, dim=1)  # [B, K]
        return output

    def _encode(self, x: Tensor, valid_mask: Tensor | None) -> tuple[Tensor, PricePath]:
        self._check(x, valid_mask)
        if valid_mask is not None:
            x = x * valid_mask.unsqueeze(-1)
        path = price_path(x.float(), self.range_period, self.atr_period)
        h, _ = self.encoder(torch.cat([x * self.input_gain, context_features(path).to(x.dtype)], dim=-1))  # [B, T, 2H]
        return torch.as_tensor(h), path

    def _spans(self, start: Tensor, end: Tensor, path: PricePath) -> Tensor:
        """Scores of the bars as start and as end, [B, T] each -> probabilities of the spans [B, L, R]."""
        told = span_descriptors(path, self.longest_move)  # [D, B, L, R]
        worth = torch.mv(told.flatten(1).t(), self.span).view(told.shape[1:])
        fixed = self.length_log_prior[:, None] + self.outside  # [L, R]
        score = SPAN_GAIN * worth + at_first_bars(start, self.longest_move) + at_last_bars(end, self.longest_move)
        return torch.softmax((score + fixed).flatten(1), dim=1).view(score.shape)

    def head_parameters(self) -> list[nn.Parameter]:
        """All weights but the encoder's and the sigmas."""
        return [*self.head.parameters(), *([self.span] if self.predict_pointers else [])]

    def _read(self, h: Tensor) -> Tensor:
        """[B, T, 2H] -> [B, T, 2 + K]: the head, with dropout in training."""
        if not (self.training and self.dropout):
            return torch.as_tensor(self.head(h))
        # One mask for all bars of a window (Gal and Ghahramani, 2016). It is laid on the weights, not on h: the same
        # product, for a hundredth of the multiplications.
        mask = functional.dropout(h.new_ones(len(h), 1, h.shape[2]), self.dropout)  # [B, 1, 2H]
        return torch.bmm(mask * self.head.weight, h.transpose(1, 2)).transpose(1, 2) + self.head.bias

    def set_length_prior(self, lengths: Sequence[int] | Tensor) -> None:
        """Learn how long spans are from the lengths in bars of the training labels, smoothed by 2 bars. Raises
        DataError for one longer than the longest move."""
        counts = torch.bincount(torch.as_tensor(lengths, dtype=torch.int64) - 1, minlength=self.longest_move).float()
        if len(counts) > self.longest_move:
            raise DataError(f"no move may be longer than longest_move = {self.longest_move} bars, got {len(counts)}")
        kernel = torch.tensor([0.25, 0.5, 0.25]).view(1, 1, 3)
        smooth = functional.conv1d((counts + 0.5).view(1, 1, -1), kernel, padding=1).flatten()  # [L]
        self.length_log_prior.copy_((smooth / smooth.sum()).log())

    def _pointers(self, span_probs: Tensor, start: Tensor, end: Tensor) -> Tensor:
        """[B, T, L], [B, T], [B, T] probabilities -> [B, 2] centre and length."""
        if self.training:
            bars = torch.arange(WINDOW, device=start.device, dtype=start.dtype)
            first, last = start @ bars, end @ bars  # [B]
        else:
            first, last = (bar.to(start.dtype) for bar in decode_spans(span_probs))  # [B]
        return torch.stack([0.5 * (first + last) / (WINDOW - 1), (last - first + 1) / WINDOW], dim=1)

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
def decode_spans(span_probs: Tensor) -> tuple[Tensor, Tensor]:
    """[B, T, L] -> the span (start, end) [B] int64 each, both inclusive, 0 <= start <= end <= 104.

    The centre is the one with the most probability within HIT_BARS of it, nearer bars counting a little more; the span
    is the likeliest one of that centre. Where a window holds two moves this picks the likelier move, which the
    likeliest span need not belong to.
    """
    batch, _, longest = span_probs.shape
    starts = torch.arange(WINDOW, device=span_probs.device)[:, None].expand(-1, longest)  # [T, L]
    ends = starts + torch.arange(longest, device=span_probs.device)
    inside = ends < WINDOW
    probs, twice_centre = span_probs[:, inside], (starts + ends)[inside]  # [B, S], [S] 0..208
    mass = probs.new_zeros(batch, 2 * WINDOW - 1).index_add_(1, twice_centre, probs)
    offsets = torch.arange(-2 * HIT_BARS, 2 * HIT_BARS + 1, device=probs.device) / (2 * HIT_BARS)  # -1..1
    near = 1 - 0.5 * offsets**2  # [13]
    score = functional.conv1d(mass[:, None], near.to(mass)[None, None], padding=2 * HIT_BARS)[:, 0]  # [B, 209]
    best = score.argmax(dim=1, keepdim=True)  # [B, 1]; with spans of 1 and of 2 bars every centre is one's
    chosen = probs.masked_fill(twice_centre[None] != best, -1.0).argmax(dim=1)  # [B]
    return starts[inside][chosen], ends[inside][chosen]


# Spans are worked on as [B, L, R]: row l holds the spans of l + 1 bars, by the bar at which they start. R = T + L - 1
# so that the rows, read as if they were one bar shorter each, hold them by the bar at which they end, without a copy.


def row_length(longest: int) -> int:
    """R. Columns T and above are of no span; nor are spans of which the last bar is T or above."""
    return WINDOW + longest - 1


def by_last_bar(spans: Tensor) -> Tensor:
    """[B, L, R] -> [B, L, T]: the same by the last bar of the span; where there is no such span, a column of none."""
    batch, longest, row = spans.shape
    return spans.flatten(1)[:, : longest * (row - 1)].view(batch, longest, row - 1)[..., :WINDOW]


def at_first_bars(series: Tensor, longest: int) -> Tensor:
    """[B, T] -> [B, 1, R]: the value at the bar at which a span starts."""
    return functional.pad(series, (0, longest - 1)).unsqueeze(1)


def at_last_bars(series: Tensor, longest: int) -> Tensor:
    """[B, T] -> [B, L, R]: the value at the last bar of each span; of spans that end outside, the window's last."""
    last = series[:, -1:].expand(-1, 2 * (longest - 1))
    return torch.cat([series, last], dim=1).unfold(1, row_length(longest), 1)


@torch.no_grad()
def span_descriptors(path: PricePath, longest: int) -> Tensor:
    """[D, B, L, R]: how far and how straight prices went from the close before a span to its last close.

    Net move in 4 ATR, the ATR being the mean true range of the ATR_BARS before the span; |net| / path; net move in
    ATR per square root of a bar, which is what a random walk's would be measured in; and hinges of the three, so that
    a sum of them can bend: rise to a bound, or count only from one on.
    """
    atr = trailing_mean(path.true_range, ATR_BARS) + 1e-6
    before, atr = (torch.cat([series[:, :1], series[:, :-1]], dim=1) for series in (path.close, atr))  # [B, T]
    travelled = functional.pad((path.close - before).abs(), (1, 0)).cumsum(1)  # [B, 1 + T]
    net = (at_last_bars(path.close, longest) - at_first_bars(before, longest)).abs()  # [B, L, R]
    way = (at_last_bars(travelled[:, 1:], longest) - at_first_bars(travelled[:, :-1], longest)).abs()
    bars = torch.arange(1, longest + 1, device=net.device)[:, None]  # [L, 1]
    told = net.new_empty(N_DESCRIPTORS, *net.shape)  # written in place: a step is mostly about memory here
    far, straight, fast = told[:3]
    torch.mul(net, at_first_bars(1 / (4 * atr), longest), out=far).clamp_(max=CONTEXT_LIMIT)
    torch.div(net, way + 1e-6, out=straight).clamp_(max=1.0)
    torch.mul(far, 4 / bars.sqrt(), out=fast)
    hinges = [(series, knot) for series in (far, fast) for knot in FAR_KNOTS]
    hinges += [(straight, knot) for knot in STRAIGHT_KNOTS]
    for column, (series, knot) in zip(told[3:], hinges, strict=True):
        torch.sub(series, knot, out=column).clamp_(min=0)
    return told


@torch.no_grad()
def price_path(x: Tensor, range_period: int = 20, atr_period: int = 10) -> PricePath:
    """The bars behind the features [B, T, F].

    range_z is the ratio of a bar's range to its running average, which gives the average
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
    distance, since = x[..., DIST_SH : DIST_SL + 1], x[..., SINCE_SH : SINCE_SL + 1]  # [B, T, 2]
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
    return PricePath(true_range, close, close + (1 - x[..., CLOSE_NORM]) * reach, close - x[..., CLOSE_NORM] * reach)


def _trust(distance: Tensor, since: Tensor) -> Tensor:
    """[B, T, 2] twice -> [B, T - 1, 2]: 0 where two bars are not measured against the same swing; else the more, the
    nearer the swing."""
    aged = (since.diff(dim=1) - 1 / WINDOW).abs() < 1e-4
    inside = (distance[:, 1:].abs() < 2.999) & (distance[:, :-1].abs() < 2.999) & (since[:, 1:] < 2.99)
    return (aged & inside) / (0.05 + distance[:, 1:].abs())


@torch.no_grad()
def context_features(path: PricePath) -> Tensor:
    """[B, T, C]: what the last and the next few bars did, in ATR; each value within +-CONTEXT_LIMIT.

    Net move and efficiency of the last 2, 4, 8, 16 bars, net move of the next; range of the last 8, 16, 24, 48 bars and
    the close's place in it; and how the ATR compares with the window's last.
    """
    true_range, close, high, low = path
    atr = trailing_mean(true_range, ATR_BARS) + 1e-6
    way = functional.pad(close.diff(dim=1).abs(), (1, 0)).cumsum(1)
    # [B, T, horizons] each: all horizons at once, as the number of operations is what takes time here
    close_then, way_then, atr_then = shifted(torch.stack([close, way, atr]), NET_HORIZONS)
    net = close.unsqueeze(-1) - close_then
    efficiency = net / (way.unsqueeze(-1) - way_then + 1e-6)
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

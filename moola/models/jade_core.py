"""Jade: a BiLSTM over the 105 bars whose heads keep position, and trees that rank spans of bars.

    x [B, T, F] --> price path --> context [B, T, C] --+
        |                |                             v
        +----------------|--------------------------> BiLSTM --> h [B, T, 2H]
                         v                                       |--> a score per bar as start,
                  descriptors of spans --> a score per span --+  |    and as end [B, T]
                                                              |  |        |
                                                              +-----------+--> span_probs [B, T, L]
                                                                 |
                                                                 +--> bar_logits [B, T, K]: the
                                                                      type, if the move started at
                                                                      this bar

    price path --> the strongest spans --> trees: a score per span, and its type
                                             |--> blended into span_probs and bar_logits

    start_logits, end_logits [B, T] = logs of span_probs, summed over what else a span has
    logits [B, K] = log of bar_logits' probabilities, averaged over the bars with the start
                    distribution as attention; with trees, of the spans around the decoded one

Three ideas carry the accuracy at a few hundred labels. The type of a window is the state of the
market BEFORE the move, so it is read off at the bar where the move starts: the forward half of the
BiLSTM has seen just that state there, and the average over the start distribution is right however
unsure the start is. The 11 features are ratios, from which the relative path of prices can be
worked out again (`price_path`): ranges and net moves over several horizons then are inputs instead
of something to be learned. And a move is a span, not two bars: how far and how straight prices went
between its ends is computed for each span (`span_descriptors`), and what that is worth takes a
dozen weights to learn.

The trees (`moola.models.boosted`) are grown once the network is trained, on what is said of spans
among their rivals. A model without trees, and any in training mode, gives the network's answer.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from moola import WINDOW
from moola.errors import DataError
from moola.features import FEATURE_NAMES, N_FEATURES
from moola.models.boosted import N_TYPED, Boosted
from moola.models.candidates import Candidates
from moola.models.price_path import (
    N_CONTEXT,
    SINCE_SH,
    SINCE_SL,
    PricePath,
    context_features,
    price_path,
)
from moola.models.spans import (
    N_DESCRIPTORS,
    at_first_bars,
    at_last_bars,
    by_last_bar,
    decode_spans,
    row_length,
    span_descriptors,
    starts_near,
)

# Bars since a swing / 105 is mostly below 0.1: brought to the size of the other inputs.
SINCE_GAIN = 10.0
# Lets the few weights of a span's score move as fast as the sums of many in the heads.
SPAN_GAIN = 10.0
FAR_BELOW = -1e4  # the score of what cannot be: its probability is 0, and no gradient becomes nan
RECIPE = 2  # raised by each change of what weights mean: of inputs, descriptors and their units
LEAST = 1e-37  # the smallest probability of which a logarithm is taken
LENGTH_SMOOTHING = (0.25, 0.5, 0.25)  # of the counts of neighbouring lengths


class JadeCompact(nn.Module):
    """The network: K = `num_classes` types; without `predict_pointers` it predicts only the type.

    `range_period` and `atr_period` are those of the FeatureConfig that made the features. No move
    is taken to be longer than L = `longest_move` bars: a step costs less where moves are known to
    be short. Raises DataError for an input width other than that of the features, or a longest move
    outside 2..105.
    """

    recipe: Tensor  # [] int64
    length_log_prior: Tensor  # [L] of a span of 1, 2, ..., L bars
    input_gain: Tensor  # [F]
    outside: Tensor  # [L, R] FAR_BELOW where a span would end outside the window, else 0

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
                f"jade reads the {N_FEATURES} features {', '.join(FEATURE_NAMES)}; "
                f"input_size must be {N_FEATURES}, got {input_size}"
            )
        if not 2 <= longest_move <= WINDOW:
            raise DataError(f"longest_move must be 2..{WINDOW} bars, got {longest_move}")

        self.input_size = input_size
        self.num_classes = num_classes
        self.predict_pointers = predict_pointers
        self.dropout = dropout
        self.range_period = range_period
        self.atr_period = atr_period
        self.longest_move = longest_move

        self.encoder = nn.LSTM(
            input_size + N_CONTEXT,
            hidden_size,
            num_layers,
            batch_first=True,
            bidirectional=True,
        )  # [B, T, F + C] -> [B, T, 2H]
        self.head = nn.Linear(2 * hidden_size, 2 + num_classes)  # start, end, one per type
        if predict_pointers:
            self.span = nn.Parameter(torch.zeros(N_DESCRIPTORS))
            self.boosted = Boosted(num_classes, longest_move)
        self.log_sigma_ptr = nn.Parameter(torch.tensor(-0.30))
        self.log_sigma_type = nn.Parameter(torch.tensor(0.00))

        gain = torch.ones(input_size)
        gain[[SINCE_SH, SINCE_SL]] = SINCE_GAIN
        self.register_buffer("input_gain", gain, persistent=False)
        self.register_buffer("length_log_prior", torch.zeros(longest_move))
        self.register_buffer("recipe", torch.tensor(RECIPE))
        self.register_buffer(
            "outside",
            _outside(longest_move),
            persistent=False,
        )

    def encode(
        self,
        x: Tensor,
        valid_mask: Tensor | None = None,
    ) -> Tensor:
        """[B, T, F], [B, T] bool -> [B, T, 2H]. Bars that are not valid are read as zeros."""
        return self._encode(x, valid_mask)[0]

    def forward(
        self,
        x: Tensor,
        valid_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """[B, T, F] -> logits [B, K], bar_logits [B, T, K] of the types, sigma_ptr, sigma_type, and

        logits [B, K]          of the window's type; with trees that of the decoded span, all types
                               being as likely if the move is elsewhere
        span_probs [B, T, L]   of a move that starts at this bar and has 1, 2, ..., L bars
        start_logits, end_logits [B, T]
        pointers [B, 2]        centre = 0.5 (start + end) / 104, length = (end - start + 1) / 105,
                               both in [0, 1]: of the decoded span in eval mode; in training mode of
                               the expected start and end, which can be differentiated.

        All logits are log-probabilities: those of start and end over bars, the others over types.
        Raises DataError where the shape is not [B, 105, 11].
        """
        h, path = self._encode(x, valid_mask)  # [B, T, 2H]
        scores = self._read(h).float()  # [B, T, 2 + K]
        bar_logits = torch.log_softmax(scores[..., 2:], dim=-1)  # [B, T, K]
        output = {
            "sigma_ptr": self.log_sigma_ptr.exp(),
            "sigma_type": self.log_sigma_type.exp(),
        }

        asks_trees = self.predict_pointers and self.boosted.is_grown and not self.training
        if self.predict_pointers:
            spans = self._spans(scores[..., 0], scores[..., 1], path)  # [B, L, R]
            if asks_trees:
                spans, bar_logits = self._blend(spans, bar_logits, path)
            start = spans[..., :WINDOW].sum(1)  # [B, T]
            end = by_last_bar(spans).sum(1)  # [B, T]
            span_probs = spans[..., :WINDOW].transpose(1, 2)  # [B, T, L]
            start_logits = start.clamp(min=LEAST).log()
            output["span_probs"] = span_probs
            output["start_logits"] = start_logits
            output["end_logits"] = end.clamp(min=LEAST).log()
            output["pointers"] = self._pointers(span_probs, start, end)  # [B, 2]
        else:
            start_logits = torch.log_softmax(scores[..., 0], dim=1)  # [B, T]

        output["bar_logits"] = bar_logits
        if asks_trees:
            output["logits"] = found_type(span_probs, bar_logits)  # [B, K]
        else:
            output["logits"] = torch.logsumexp(start_logits.unsqueeze(-1) + bar_logits, dim=1)
        return output

    @torch.no_grad()
    def candidates(
        self,
        x: Tensor,
        valid_mask: Tensor | None = None,
    ) -> Candidates:
        """The spans of [B, T, F] that the trees are asked about, and what is said of them."""
        return self.boosted.candidates(self._path(self._visible(x, valid_mask)))

    @torch.no_grad()
    def states(
        self,
        x: Tensor,
        valid_mask: Tensor,
        start: Tensor,
        end: Tensor,
    ) -> Tensor:
        """[B, S] what came before the span start..end [B] of each window of [B, T, F]."""
        path = self._path(self._visible(x, valid_mask))
        return self.boosted.states(path, start, end)

    def head_parameters(self) -> list[nn.Parameter]:
        """All weights but the encoder's and the sigmas."""
        parameters = list(self.head.parameters())
        if self.predict_pointers:
            parameters.append(self.span)
        return parameters

    def set_length_prior(self, lengths: Sequence[int] | Tensor) -> None:
        """Learn how long spans are from the lengths in bars of the training labels.

        Counts are smoothed over neighbouring lengths. Raises DataError for a length above the
        longest move.
        """
        index = torch.as_tensor(lengths, dtype=torch.int64) - 1
        counts = torch.bincount(index, minlength=self.longest_move).float()
        if len(counts) > self.longest_move:
            raise DataError(
                f"no move may be longer than longest_move = {self.longest_move} bars, "
                f"got {len(counts)}"
            )

        kernel = torch.tensor(LENGTH_SMOOTHING).view(1, 1, -1)
        padded = functional.conv1d(
            (counts + 0.5).view(1, 1, -1),
            kernel,
            padding=1,
        )
        smooth = padded.flatten()  # [L]
        self.length_log_prior.copy_((smooth / smooth.sum()).log())

    def _encode(
        self,
        x: Tensor,
        valid_mask: Tensor | None,
    ) -> tuple[Tensor, PricePath]:
        x = self._visible(x, valid_mask)
        path = self._path(x)
        context = context_features(path).to(x.dtype)  # [B, T, C]
        h, _ = self.encoder(torch.cat([x * self.input_gain, context], dim=-1))  # [B, T, 2H]

        return torch.as_tensor(h), path

    def _visible(self, x: Tensor, valid_mask: Tensor | None) -> Tensor:
        """[B, T, F] with zeros for bars that are not valid."""
        self._check(x, valid_mask)
        return x if valid_mask is None else x * valid_mask.unsqueeze(-1)

    def _path(self, x: Tensor) -> PricePath:
        return price_path(x.float(), self.range_period, self.atr_period)

    def _read(self, h: Tensor) -> Tensor:
        """[B, T, 2H] -> [B, T, 2 + K]: the head, with dropout in training."""
        if not (self.training and self.dropout):
            return torch.as_tensor(self.head(h))

        # One mask for all bars of a window (Gal and Ghahramani, 2016). It is laid on the weights,
        # not on h: the same product, for a hundredth of the multiplications.
        ones = h.new_ones(len(h), 1, h.shape[2])
        weights = functional.dropout(ones, self.dropout) * self.head.weight  # [B, 2 + K, 2H]
        scores = torch.bmm(weights, h.transpose(1, 2))  # [B, 2 + K, T]

        return scores.transpose(1, 2) + self.head.bias

    def _spans(
        self,
        start: Tensor,
        end: Tensor,
        path: PricePath,
    ) -> Tensor:
        """Scores of the bars as start and as end, [B, T] each -> probabilities [B, L, R]."""
        descriptors = span_descriptors(path, self.longest_move)  # [D, B, L, R]
        worth = torch.mv(descriptors.flatten(1).t(), self.span).view(descriptors.shape[1:])
        fixed = self.length_log_prior[:, None] + self.outside  # [L, R]

        score = (
            SPAN_GAIN * worth
            + at_first_bars(start, self.longest_move)
            + at_last_bars(end, self.longest_move)
        )

        return torch.softmax((score + fixed).flatten(1), dim=1).view(score.shape)

    def _blend(
        self,
        spans: Tensor,
        bar_logits: Tensor,
        path: PricePath,
    ) -> tuple[Tensor, Tensor]:
        """The network's spans [B, L, R] and bar_logits [B, T, K], with the trees' opinion of both.

        A span that is no candidate of the trees is impossible.
        """
        span_scale, neural_share, type_scale, neural_type_share = self.boosted.blend
        candidates = self.boosted.candidates(path)
        place = (candidates.end - candidates.start) * spans.shape[2] + candidates.start  # [B, C]
        own = spans.flatten(1).gather(1, place).clamp(min=LEAST).log()
        scores = span_scale * self.boosted.scores(candidates) + neural_share * own
        probs = torch.softmax(scores, dim=1)
        blended = torch.zeros_like(spans).flatten(1).scatter(1, place, probs).view_as(spans)

        likeliest = probs.topk(min(N_TYPED, probs.shape[1]), dim=1)
        index = likeliest.indices.unsqueeze(-1)  # [B, M, 1]
        width = candidates.states.shape[-1]
        states = candidates.states.gather(1, index.expand(-1, -1, width))
        first_bar = candidates.start.unsqueeze(-1).gather(1, index)
        first_bar = first_bar.expand(-1, -1, self.num_classes)
        own_types = bar_logits.gather(1, first_bar)
        type_logits = type_scale * self.boosted.type_logits(states) + neural_type_share * own_types

        # Of all likely spans that start at a bar; the network's own where there is none.
        joint = likeliest.values.unsqueeze(-1) * torch.softmax(type_logits, dim=-1)  # [B, M, K]
        of_start = torch.zeros_like(bar_logits).scatter_add(1, first_bar, joint)  # [B, T, K]
        total = of_start.sum(-1, keepdim=True)
        of_trees = (of_start / total.clamp(min=LEAST)).clamp(min=LEAST).log()

        return blended, torch.where(total > LEAST, of_trees, bar_logits)

    def _pointers(
        self,
        span_probs: Tensor,
        start: Tensor,
        end: Tensor,
    ) -> Tensor:
        """[B, T, L], [B, T], [B, T] probabilities -> [B, 2] centre and length."""
        if self.training:
            bars = torch.arange(WINDOW, device=start.device, dtype=start.dtype)
            first = start @ bars  # [B]
            last = end @ bars  # [B]
        else:
            decoded_start, decoded_end = decode_spans(span_probs)
            first = decoded_start.to(start.dtype)
            last = decoded_end.to(start.dtype)

        centre = 0.5 * (first + last) / (WINDOW - 1)
        length = (last - first + 1) / WINDOW

        return torch.stack([centre, length], dim=1)

    def _check(self, x: Tensor, valid_mask: Tensor | None) -> None:
        if x.ndim != 3 or x.shape[1:] != (WINDOW, self.input_size):
            raise DataError(f"x must be [B, {WINDOW}, {self.input_size}], got {list(x.shape)}")
        if valid_mask is not None and valid_mask.shape != x.shape[:2]:
            raise DataError(f"valid_mask must be {list(x.shape[:2])}, got {list(valid_mask.shape)}")


def found_type(span_probs: Tensor, bar_logits: Tensor) -> Tensor:
    """[B, T, L], [B, T, K] -> [B, K] log-probabilities of the type of the decoded span.

    A window may hold two moves of different types. So the type is read off where those spans start
    that have their centre within HIT_BARS of the decoded one's; for the rest of the probability,
    with which the move is elsewhere, each type is as likely.
    """
    nearby = starts_near(span_probs, *decode_spans(span_probs))  # [B, T]
    elsewhere = (1 - nearby.sum(1, keepdim=True)).clamp(min=0)  # [B, 1]
    types = bar_logits.exp()  # [B, T, K]
    probs = torch.einsum("bt,btk->bk", nearby, types) + elsewhere / types.shape[2]
    return probs.clamp(min=LEAST).log()


def _outside(longest: int) -> Tensor:
    """[L, R] what is added to the scores: FAR_BELOW where a span ends outside the window."""
    extra_bars = torch.arange(longest)[:, None]
    last_bars = extra_bars + torch.arange(row_length(longest))
    return torch.where(last_bars >= WINDOW, FAR_BELOW, 0.0)


def initialize_model_biases(model: JadeCompact, class_counts: Sequence[int] | Tensor) -> None:
    """Let an untrained model predict the classes as often as they are: bias = log of the share.

    Raises DataError unless there is one count > 0 per class.
    """
    counts = torch.as_tensor(class_counts, dtype=torch.float32)
    if counts.shape != (model.num_classes,) or not bool((counts > 0).all()):
        raise DataError(
            f"class_counts must be {model.num_classes} numbers above 0, got {counts.tolist()}"
        )

    with torch.no_grad():
        model.head.bias.zero_()
        model.head.bias[2:] = (counts / counts.sum()).log()

"""What a report shows of a train run, taken together from its data and its results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from moola import HIT_BARS, WINDOW
from moola.errors import DataError
from moola.evaluation.arrays import Floats
from moola.evaluation.detection import Detection
from moola.evaluation.gates import Gate
from moola.evaluation.market_results import MarketResults
from moola.evaluation.metrics import Evaluation
from moola.evaluation.model_document import PresenceDocument
from moola.evaluation.predictions import Predictions, Targets, joint_success
from moola.runs.records import UsageHistory
from moola.specs import GateConfig


@dataclass(frozen=True)
class ReportWindow:
    """A window with what is true and what was predicted of it.

    ohlc [T, 4] open, high, low, close; spans are bars 0..104, inclusive; opened: the first bar's
    time, for people.
    """

    window_id: str
    opened: str
    ohlc: Floats
    label: str
    start: int
    end: int
    predicted_label: str
    predicted_start: int
    predicted_end: int
    probability: float  # of the predicted label

    def __post_init__(self) -> None:
        ohlc = np.asarray(self.ohlc, np.float64)
        if ohlc.shape != (WINDOW, 4) or not np.isfinite(ohlc).all():
            raise DataError(
                f"ohlc must be finite [{WINDOW}, 4], got {list(ohlc.shape)} "
                f"(window {self.window_id})"
            )

    @property
    def right(self) -> bool:
        """Joint success: the type is right and the centre near enough."""
        twice_off = abs(self.start + self.end - self.predicted_start - self.predicted_end)
        return self.label == self.predicted_label and 0.5 * twice_off <= HIT_BARS


@dataclass(frozen=True)
class ReportData:
    """What a report shows. validation and test are results of `moola.evaluation.metrics.evaluate`.

    history has the columns stage, epoch, step, loss, loss_ptr, loss_type, sigma_ptr, sigma_type,
    val_f1, val_hit3; NaN where a row has no such value. label_source is "hindsight", "planted" or
    the name of a label file. splits and facts are printed as they are: name -> text. gate_config
    has the band that sigmas should settle in. presence and detections (by split) are about finding
    moves; None and empty where that was not measured. markets: the results of each of several.
    usage is what the machine was used for: it is another one each time, as nothing else here is.
    """

    run_id: str
    data_digest: str
    label_source: str
    splits: Mapping[str, str]
    seeds: Sequence[int]
    validation: Evaluation
    test: Evaluation
    gates: Sequence[Gate]
    history: pd.DataFrame
    windows: Sequence[ReportWindow]
    facts: Mapping[str, str] = field(default_factory=dict)
    presence: PresenceDocument | None = None
    detections: Mapping[str, Detection] = field(default_factory=dict)
    markets: Mapping[str, MarketResults] = field(default_factory=dict)
    gate_config: GateConfig = field(default_factory=GateConfig)
    usage: UsageHistory | None = None


def pick_windows(
    predictions: Predictions,
    targets: Targets,
    n_each: int = 6,
) -> list[int]:
    """Up to n_each right and n_each wrong windows, spread evenly over the split."""
    right = joint_success(predictions, targets)
    picked: list[int] = []
    for group in (np.flatnonzero(right), np.flatnonzero(~right)):
        n = min(n_each, len(group))
        places = np.linspace(0, len(group) - 1, n).round().astype(int)
        picked += group[places].tolist()

    return picked

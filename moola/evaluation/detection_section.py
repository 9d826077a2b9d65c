"""The report's section on finding moves: whether a window holds one, where, and how sure it is."""

from collections.abc import Mapping
from html import escape

from moola import HIT_BARS
from moola.data.move_truth import NO_MOVE_TEXTS
from moola.evaluation import pictures
from moola.evaluation.detection import CalibrationBin, Detection
from moola.evaluation.formats import format_value
from moola.evaluation.model_document import PresenceDocument

SHOWN_SPLIT = "test"
NOT_MEASURED = "<p>Not measured.</p>"


def detection_section(
    presence: PresenceDocument | None,
    detections: Mapping[str, Detection],
) -> str:
    """HTML. Says why where the model cannot tell whether there is a move."""
    if presence is None:
        return NOT_MEASURED

    shown = detections.get(SHOWN_SPLIT)
    if presence.threshold is None or shown is None:
        return (
            f"<p>The model cannot say whether there is a move: {escape(presence.reason or '')}.</p>"
        )

    caption = "Test split: how many of the moves found are right"
    return (
        f"<p>{_how_it_was_fitted(presence)}</p>"
        f"{_finders_table(detections)}"
        f"<figure><figcaption>{caption}</figcaption>"
        f"{pictures.detection_curves(shown, caption)}</figure>"
        f"{_calibration_table(shown)}"
    )


def _how_it_was_fitted(presence: PresenceDocument) -> str:
    assert presence.no_moves is not None
    return (
        f"Fitted on {presence.windows_with_move:,} windows of the train split with a move and "
        f"{presence.windows_without_move:,} without: {NO_MOVE_TEXTS[presence.no_moves]}. "
        f"A move is right if its centre is within {HIT_BARS} bars of a known one. "
        f"Threshold <b>{presence.threshold:.2f}</b>, chosen on validation: precision "
        f"{format_value(presence.precision)}, recall {format_value(presence.recall)} there."
    )


def _finders_table(detections: Mapping[str, Detection]) -> str:
    head = ""
    for split in detections:
        head += f"<th>AUC, window holds a move ({split})</th>"
        head += f"<th>Average precision of moves ({split})</th>"
    names = next(iter(detections.values()))["finders"]
    rows = "".join(_finder_row(name, detections) for name in names)
    counts = "; ".join(
        f"{split}: {detection['n_windows']:,} windows, of which "
        f"{detection['share_with_move'] or 0:.0%} hold a move, {detection['n_moves']:,} moves"
        for split, detection in detections.items()
    )

    return (
        f"<table><thead><tr><th>Finder</th>{head}</tr></thead><tbody>{rows}</tbody></table>"
        f"<p>{counts}.</p>"
    )


def _finder_row(name: str, detections: Mapping[str, Detection]) -> str:
    cells = ""
    for detection in detections.values():
        finder = detection["finders"][name]
        cells += f"<td>{format_value(finder['auc'])}</td>"
        cells += f"<td>{format_value(finder['average_precision'])}</td>"

    return f"<tr><th>{escape(name)}</th>{cells}</tr>"


def _calibration_table(detection: Detection) -> str:
    rows = "".join(_calibration_row(bin_) for bin_ in detection["calibration"])
    return (
        "<table><thead><tr><th>Where it says</th><th>Moves found</th><th>Mean probability</th>"
        f"<th>Right</th></tr></thead><tbody>{rows}</tbody></table>"
    )


def _calibration_row(bin_: CalibrationBin) -> str:
    return (
        f"<tr><th>{bin_['low']:.2f} to {bin_['high']:.2f}</th><td>{bin_['count']:,}</td>"
        f"<td>{format_value(bin_['probability'])}</td><td>{format_value(bin_['right'])}</td></tr>"
    )

"""The report's section on several markets: each beside all of them, and beside its best rival."""

from collections.abc import Mapping, Sequence
from html import escape

from moola.evaluation.detection import Detection
from moola.evaluation.formats import best_baseline, format_value, interval_text
from moola.evaluation.market_results import MARKET_SPLITS, MarketResults
from moola.evaluation.metrics import HEADLINE, Evaluation, MeasuredMetric

ALL_MARKETS = "all together"
OWN_FINDERS = 2  # the first finders of a detection: the model, in two ways
FINDER_TITLES = {"auc": "AUC, window holds a move", "average_precision": "Average precision"}


def market_section(
    markets: Mapping[str, MarketResults],
    pooled: Mapping[str, Evaluation],
    detections: Mapping[str, Detection],
) -> str:
    """HTML. `pooled` and `detections` are those of all markets, by split."""
    titles = [metric["title"] for metric in _headline(next(iter(pooled.values())))]
    titles += FINDER_TITLES.values()
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    rows = ""
    for split in MARKET_SPLITS:
        rows += _row(ALL_MARKETS, split, pooled[split], detections.get(split))
        for name, market in markets.items():
            evaluation = market["validation"] if split == "validation" else market["test"]
            rows += _row(name, split, evaluation, market["detection"][split])

    return (
        "<p>Below each value its interval and the best of what knows nothing, on the same windows. "
        "The baselines of a market know its own training labels. Gates are judged on all markets "
        "together.</p>"
        f"<table><thead><tr><th>Market</th><th>Split</th><th>Windows</th>{head}</tr></thead>"
        f"<tbody>{rows}</tbody></table>{_counts_table(markets)}"
    )


def _headline(evaluation: Evaluation) -> Sequence[MeasuredMetric]:
    return [evaluation["metrics"][name] for name in HEADLINE]


def _row(
    name: str,
    split: str,
    evaluation: Evaluation | None,
    detection: Detection | None,
) -> str:
    cells = "<td>0</td>" + "<td></td>" * len(HEADLINE)
    if evaluation is not None:
        cells = f"<td>{evaluation['n_windows']:,}</td>"
        cells += "".join(_metric_cell(metric) for metric in _headline(evaluation))

    cells += "".join(_finder_cell(detection, field) for field in FINDER_TITLES)
    return f"<tr><th>{escape(name)}</th><td>{split}</td>{cells}</tr>"


def _metric_cell(metric: MeasuredMetric) -> str:
    rival, value = best_baseline(metric)
    return (
        f"<td><b>{format_value(metric['value'])}</b><br>{interval_text(metric)}<br>"
        f"{escape(rival)}: {format_value(value)}</td>"
    )


def _finder_cell(detection: Detection | None, field: str) -> str:
    if detection is None:
        return "<td></td>"

    values = {
        name: finder["auc"] if field == "auc" else finder["average_precision"]
        for name, finder in detection["finders"].items()
    }
    names = list(values)
    rivals = {name: values[name] or 0.0 for name in names[OWN_FINDERS:]}
    best = max(rivals, key=lambda name: rivals[name])
    return (
        f"<td><b>{format_value(values[names[0]])}</b><br>"
        f"{escape(best)}: {format_value(values[best])}</td>"
    )


def _counts_table(markets: Mapping[str, MarketResults]) -> str:
    rows = ""
    for name, market in markets.items():
        cells = "".join(f"<td>{counts['n']:,}</td>" for counts in market["labels"].values())
        rows += f"<tr><th>{escape(name)}</th><td>{escape(market['run'])}</td>{cells}</tr>"

    splits = "".join(f"<th>Labels, {name}</th>" for name in next(iter(markets.values()))["labels"])
    return (
        f"<table><thead><tr><th>Market</th><th>Feature set</th>{splits}</tr></thead>"
        f"<tbody>{rows}</tbody></table>"
    )

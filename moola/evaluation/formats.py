"""Values of metrics as people read them, in the terminal and in the report."""

from moola.evaluation.baselines import BASELINE_TITLES
from moola.evaluation.metrics import MeasuredMetric


def format_value(value: float | None, unit: str = "fraction") -> str:
    """Fractions to 3 digits, bars to 2, a dash for what is undefined."""
    if value is None:
        return "–"

    return f"{value:.2f}" if unit == "bars" else f"{value:.3f}"


def metric_title(metric: MeasuredMetric) -> str:
    """With the unit where it is no fraction."""
    return metric["title"] + (", bars" if metric["unit"] == "bars" else "")


def baseline_cells(metric: MeasuredMetric) -> list[str]:
    """One cell per baseline, in the order of their titles; empty for one of another metric."""
    values = metric["baselines"]
    unit = metric["unit"]
    return [format_value(values[name], unit) if name in values else "" for name in BASELINE_TITLES]


def interval_text(metric: MeasuredMetric) -> str:
    if metric["low"] is None:
        return ""

    unit = metric["unit"]
    return f"{format_value(metric['low'], unit)} to {format_value(metric['high'], unit)}"


def best_baseline(metric: MeasuredMetric) -> tuple[str, float | None]:
    """Title and value; of a metric that no baseline defines, the first title and None."""
    defined = {name: value for name, value in metric["baselines"].items() if value is not None}
    if not defined:
        return BASELINE_TITLES[next(iter(metric["baselines"]))], None

    best = max(defined, key=lambda name: metric["better"] * defined[name])
    return BASELINE_TITLES[best], defined[best]

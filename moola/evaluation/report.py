"""One self-contained HTML page of a train run: tables and pictures, no network, nothing unescaped.

Pictures are data URIs, made in `moola.evaluation.pictures`.
"""

from collections.abc import Mapping, Sequence
from html import escape

import pandas as pd

from moola import HIT_BARS, WINDOW
from moola.evaluation import pictures
from moola.evaluation.baselines import BASELINE_TITLES
from moola.evaluation.detection_section import detection_section
from moola.evaluation.formats import (
    baseline_cells,
    best_baseline,
    format_value,
    interval_text,
    metric_title,
)
from moola.evaluation.gates import Gate
from moola.evaluation.market_section import market_section
from moola.evaluation.metrics import HEADLINE, Evaluation, MeasuredMetric
from moola.evaluation.report_data import ReportData, ReportWindow
from moola.evaluation.style import CSS
from moola.evaluation.usage_picture import usage_curves
from moola.runs.records import UsageHistory
from moola.specs import GateConfig
from moola.text import time_text

LABEL_NOTES = {
    "hindsight": (
        "Hindsight labels: found in these bars by a rule that sees the future. "
        "This run tests the machinery. "
        "It says nothing about anyone's judgement and is not a trading result."
    ),
    "planted": (
        "Planted labels: the true moves of a synthetic market. This run tests the machinery. "
        "It says nothing about any traded market."
    ),
}
KIND_TITLES = {"type": "Type", "pointer": "Pointer", "joint": "Both"}
CONTENT_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
RIGHT_COLOUR = "0,114,178"
WRONG_COLOUR = "213,94,0"


def render(data: ReportData) -> str:
    """The whole page. The same data give the same bytes."""
    with pictures.drawing():
        return _page(data)


def _page(data: ReportData) -> str:
    sections = {
        "Gates": _gates(data.gates),
        "Metrics": _metrics(data.test, data.validation),
        **_markets(data),
        "Training": _training(data.history, data.gate_config),
        "Type: confusion and calibration": _type_section(data.test),
        "Pointer: hits against tolerance": _pointer_section(data.test),
        "Finding moves": detection_section(data.presence, data.detections),
        "Windows": _windows(data.windows),
    }
    if data.usage is not None:  # another one each time: it stands behind all that is not
        sections["Use of the machine"] = _usage_section(data.usage)
    body = "".join(
        f"<section><h2>{title}</h2>{content}</section>" for title, content in sections.items()
    )
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{CONTENT_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>moola {escape(data.run_id)}</title><style>{CSS}</style></head>"
        f"<body><main>{_head(data)}{body}</main></body></html>\n"
    )


# --- head -----------------------------------------------------------------------------------------


def _head(data: ReportData) -> str:
    facts = {
        "Run": data.run_id,
        "Data digest": data.data_digest,
        "Labels": data.label_source,
        "Classes": ", ".join(data.test["class_names"]),
        "Seeds": ", ".join(map(str, data.seeds)),
        **{f"Split: {name}": text for name, text in data.splits.items()},
        **data.facts,
    }
    rows = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in facts.items()
    )
    note = LABEL_NOTES.get(data.label_source, "")
    banner = f'<p class="note">{escape(note)}</p>' if note else ""
    head = f"<header><h1>moola: training run</h1>{banner}<dl>{rows}</dl></header>"

    return head + _cards(data.test)


def _cards(test: Evaluation) -> str:
    """The four numbers to read first: interval and best trivial baseline beside the value."""
    level = f"{test['interval']['level']:.0%}"
    cards = ""
    for name in HEADLINE:
        metric = test["metrics"][name]
        baseline, trivial = best_baseline(metric)
        interval = f"{interval_text(metric)} ({level})"
        cards += _card(metric, interval, f"{baseline}: {format_value(trivial)}")

    before = f"before: {format_value(test['metrics']['ece']['value'])}"
    temperature = f"temperature: {test['temperature']:.2f}"
    cards += _card(test["metrics"]["ece_scaled"], before, temperature)

    return f'<div class="cards">{cards}</div>'


def _card(metric: MeasuredMetric, *lines: str) -> str:
    small = "".join(f"<div>{escape(line)}</div>" for line in lines)
    return (
        f'<div class="card"><div class="name">{escape(metric["title"])}</div>'
        f'<div class="big">{format_value(metric["value"])}</div>'
        f"<div>test split</div>{small}</div>"
    )


# --- gates and metrics ----------------------------------------------------------------------------


def _gates(gates: Sequence[Gate]) -> str:
    judged = [gate for gate in gates if gate.judged]
    n_failed = sum(not gate.passed for gate in judged)
    verdict = f"{n_failed} of {len(judged)} gates fail." if n_failed else "All gates pass."
    rows = "".join(_gate_row(gate) for gate in gates)

    return (
        f"<p>{verdict} Judged on the validation split; the test value and the plan's band are "
        "there to compare and decide nothing.</p>"
        "<table><thead><tr><th>Gate</th><th>Validation</th><th>Must be</th><th></th><th>Test</th>"
        f"</tr></thead><tbody>{rows}</tbody></table>"
    )


def _gate_row(gate: Gate) -> str:
    value = format_value(gate.value)
    if gate.bound == "0":  # a count
        value = value.removesuffix(".000")
    bound = escape(gate.bound.replace(">=", "≥"))
    test = "" if gate.test is None else format_value(gate.test)

    return (
        f"<tr><th>{escape(gate.name)}</th><td>{value}</td>"
        f"<td>{bound}</td>{_verdict(gate)}<td>{test}</td></tr>"
    )


def _verdict(gate: Gate) -> str:
    if not gate.judged:
        return f"<td>{'inside' if gate.passed else 'outside'}</td>"
    return '<td class="pass">✓ pass</td>' if gate.passed else '<td class="fail">✗ FAIL</td>'


def _metrics(test: Evaluation, validation: Evaluation) -> str:
    titles = "".join(f"<th>{escape(title)}</th>" for title in BASELINE_TITLES.values())
    rows = ""
    for kind, heading in KIND_TITLES.items():
        rows += f'<tr class="group"><th colspan="9">{heading}</th></tr>'
        for name, metric in test["metrics"].items():
            if metric["kind"] == kind:
                rows += _metric_row(name, metric, validation["metrics"][name])

    return (
        f"<p>{_how_to_read(test, validation)}</p>"
        "<table><thead><tr><th>Metric</th><th>Test</th><th>Interval</th><th>Lead</th>"
        f"{titles}<th>Validation</th></tr></thead><tbody>{rows}</tbody></table>"
    )


def _markets(data: ReportData) -> dict[str, str]:
    """The section, where there are several markets."""
    if not data.markets:
        return {}

    pooled = {"validation": data.validation, "test": data.test}
    return {"Markets": market_section(data.markets, pooled, data.detections)}


def _how_to_read(test: Evaluation, validation: Evaluation) -> str:
    interval = test["interval"]
    return (
        f"Test split, {test['n_windows']:,} windows (validation: {validation['n_windows']:,}), "
        "beside predictors that know nothing. "
        f"Intervals: {interval['level']:.0%}, percentile bootstrap over windows taken as "
        f"independent, {interval['resamples']:,} resamples. "
        "<b>Lead</b> is the distance to the best trivial baseline, positive where the model is "
        'better: <span class="pass">✓</span> the interval excludes the baseline, '
        '<span class="fail">✗</span> the model is worse; per class and in calibration, where '
        "always saying the same wins by construction, it is left out. "
        "Fractions unless bars are named. "
        "Joint success of a trivial pointer is with the majority class."
    )


def _metric_row(
    name: str,
    metric: MeasuredMetric,
    validation: MeasuredMetric,
) -> str:
    unit = metric["unit"]
    lead = "<td></td>" if _won_by_construction(name) else _lead(metric)
    trivial = "".join(f"<td>{cell}</td>" for cell in baseline_cells(metric))

    return (
        f"<tr><th>{escape(metric_title(metric))}</th>"
        f'<td class="value">{format_value(metric["value"], unit)}</td>'
        f'<td class="interval">{interval_text(metric)}</td>'
        f"{lead}{trivial}"
        f"<td>{format_value(validation['value'], unit)}</td></tr>"
    )


def _won_by_construction(name: str) -> bool:
    """Whether always saying the same wins: one class's recall is then 1, the shares calibrated."""
    return "[" in name or name.startswith("ece")


def _lead(metric: MeasuredMetric) -> str:
    """How far the model is ahead of the best trivial baseline, and whether the interval says so."""
    _, best = best_baseline(metric)
    if best is None or metric["value"] is None:
        return "<td></td>"

    better = metric["better"]
    lead = better * (metric["value"] - best)
    nearest = metric["low"] if better > 0 else metric["high"]
    if lead < 0:
        css_class, mark = "fail", " ✗"
    elif nearest is not None and better * (nearest - best) > 0:
        css_class, mark = "pass", " ✓"
    else:
        css_class, mark = "", ""
    digits = 2 if metric["unit"] == "bars" else 3

    return f'<td class="{css_class}">{lead:+.{digits}f}{mark}</td>'.replace("-", "−")


# --- sections with pictures -----------------------------------------------------------------------


def _training(history: pd.DataFrame, config: GateConfig) -> str:
    loss = "Loss in each stage"
    sigma = "Learned task sigmas; the plan's band is shaded"
    score = "Scores on the validation split"

    return (
        _figure(loss, pictures.loss_curves(history, loss))
        + _figure(sigma, pictures.sigma_curves(history, config, sigma))
        + _figure(score, pictures.score_curves(history, score))
    )


def _type_section(test: Evaluation) -> str:
    caption = "Reliability: how often the model is right at each confidence"
    picture = _figure(caption, pictures.reliability_curves(test, caption))
    return f'<div class="pair"><div>{_confusion(test)}</div>{picture}</div>'


def _confusion(evaluation: Evaluation) -> str:
    """Counts and shares of each true class; the darker the cell the larger the share."""
    names = [escape(name) for name in evaluation["class_names"]]
    rows = ""
    for i, counts in enumerate(evaluation["confusion"]):
        cells = ""
        for j, count in enumerate(counts):
            share = count / max(1, sum(counts))
            colour = RIGHT_COLOUR if i == j else WRONG_COLOUR
            style = f"background:rgba({colour},{0.08 + 0.6 * share:.2f})"
            cells += f'<td style="{style}"><b>{count:,}</b><br>{share:.0%}</td>'
        rows += f"<tr><th>{names[i]}</th>{cells}</tr>"

    head = "".join(f"<th>{name}</th>" for name in names)

    return (
        '<table class="confusion"><caption>Rows: true. Columns: predicted. '
        "Share of the true class below the count."
        f"</caption><thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody></table>"
    )


def _pointer_section(test: Evaluation) -> str:
    caption = "Fraction of windows whose centre is found within so many bars; band: interval"
    return _figure(caption, pictures.hit_curve(test, caption))


def _usage_section(usage: UsageHistory) -> str:
    caption = f"Over the time at work; a point stands for {time_text(usage.every_s)}"
    if len(usage.starts) > 1:
        caption += "; dashed: another attempt went on"
    return _figure(caption, usage_curves(usage, caption))


def _figure(caption: str, picture: str | None) -> str:
    content = picture or "<p>Nothing was recorded.</p>"
    return f"<figure><figcaption>{escape(caption)}</figcaption>{content}</figure>"


# --- windows --------------------------------------------------------------------------------------


def _windows(windows: Sequence[ReportWindow]) -> str:
    right = [window for window in windows if window.right]
    wrong = [window for window in windows if not window.right]
    groups: Mapping[str, Sequence[ReportWindow]] = {
        f"Right: the type, and the centre within {HIT_BARS} bars": right,
        "Wrong": wrong,
    }
    grids = ""
    for heading, group in groups.items():
        cells = "".join(_window(window) for window in group)
        cells = cells or "<p>None among the windows shown.</p>"
        grids += f'<h3>{heading}</h3><div class="grid">{cells}</div>'

    return (
        '<p class="legend"><span class="true-key"></span> true expansion '
        '<span class="predicted-key"></span> predicted expansion. '
        f"Hollow candles rise, filled ones fall; bars 0 to {WINDOW - 1}.</p>{grids}"
    )


def _window(window: ReportWindow) -> str:
    css_class = "pass" if window.label == window.predicted_label else "fail"
    predicted = f'<span class="{css_class}">{escape(window.predicted_label)}</span>'
    return (
        f'<figure class="window">{pictures.candles(window)}'
        f"<figcaption><b>{escape(window.window_id)}</b> {escape(window.opened)}<br>"
        f"true: {escape(window.label)}, {window.start} to {window.end}<br>"
        f"predicted: {predicted}, {window.predicted_start} to {window.predicted_end} "
        f"(p = {window.probability:.2f})</figcaption></figure>"
    )

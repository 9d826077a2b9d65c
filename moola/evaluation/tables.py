"""The metrics and gates of a train run as tables for the terminal."""

from collections.abc import Mapping, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from moola.evaluation.baselines import BASELINE_TITLES
from moola.evaluation.formats import baseline_cells, format_value, metric_title
from moola.evaluation.gates import Gate
from moola.evaluation.metrics import HEADLINE, Evaluation, MeasuredMetric
from moola.evaluation.result_documents import EvaluationDocument

PASS = Text("pass", style="green")
FAIL = Text("FAIL", style="bold red")


def metrics_table(evaluation: Evaluation, title: str) -> Table:
    """Every metric with its unit, interval and trivial baselines; it fits into 80 columns."""
    n_windows = evaluation["n_windows"]
    table = Table(
        "metric",
        title=f"{title} ({n_windows} windows); fractions, unless bars are named",
        box=box.SIMPLE_HEAD,
        title_justify="left",
        padding=0,
        collapse_padding=True,
    )
    interval = f"{evaluation['interval']['level']:.0%} interval"
    for heading in ("value", interval, *BASELINE_TITLES.values()):
        table.add_column(
            heading.replace(" ", "\n"),
            justify="right",
            no_wrap=True,
        )
    for metric in evaluation["metrics"].values():
        table.add_row(Text(metric_title(metric)), *_metric_cells(metric))

    return table


def _metric_cells(metric: MeasuredMetric) -> list[str]:
    unit = metric["unit"]
    interval = ""
    if metric["low"] is not None:
        interval = f"{format_value(metric['low'], unit)}–{format_value(metric['high'], unit)}"
    return [format_value(metric["value"], unit), interval, *baseline_cells(metric)]


def markets_table(
    markets: Mapping[str, EvaluationDocument | None],
    pooled: EvaluationDocument,
) -> Table:
    """The headline metrics of each market, and of all, each beside its best trivial baseline."""
    titles = [pooled.metrics[name].title for name in HEADLINE]
    table = Table("market", title="Markets (test): value / best of the trivial baselines")
    for heading in ("windows", *titles):
        table.add_column(heading, justify="right")
    for name, evaluation in {**markets, "all together": pooled}.items():
        n_windows = 0 if evaluation is None else evaluation.n_windows
        cells = [] if evaluation is None else _headline_cells(evaluation)
        table.add_row(Text(name), str(n_windows), *cells)

    return table


def _headline_cells(evaluation: EvaluationDocument) -> list[str]:
    cells = []
    for name in HEADLINE:
        metric = evaluation.metrics[name]
        known = [value for value in metric.baselines.values() if value is not None]
        rival = max(known) if known else None
        cells.append(f"{format_value(metric.value)} / {format_value(rival)}")

    return cells


def gates_table(gates: Sequence[Gate]) -> Table:
    """Every gate: the validation value it is judged by, its bound, the verdict, the test value."""
    table = Table("gate", title="Gates (judged on validation)")
    for heading in ("validation", "must be", "", "test"):
        table.add_column(heading, justify="right")
    for gate in gates:
        test = "" if gate.test is None else format_value(gate.test)
        table.add_row(
            Text(gate.name),
            format_value(gate.value),
            Text(gate.bound),
            _verdict(gate),
            test,
        )

    return table


def _verdict(gate: Gate) -> Text:
    if not gate.judged:
        return Text("inside" if gate.passed else "outside")
    return PASS if gate.passed else FAIL

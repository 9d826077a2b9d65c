"""The report: every section there, hostile names harmless, nothing fetched, nothing left behind."""

import base64
import dataclasses
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moola import WINDOW
from moola.errors import DataError
from moola.evaluation.detection import Detection, Judged, measure_detection
from moola.evaluation.gates import check_gates
from moola.evaluation.metrics import evaluate
from moola.evaluation.model_document import PresenceDocument
from moola.evaluation.predictions import Predictions, Targets
from moola.evaluation.report import render
from moola.evaluation.report_data import ReportData, ReportWindow, pick_windows
from moola.features import N_FEATURES
from moola.runs.records import UsageHistory
from moola.specs import GateConfig

pytest.importorskip("matplotlib")

HOSTILE = "<script>alert('x')</script>\"&$\\frac{"
COLUMNS = [
    "stage",
    "epoch",
    "step",
    "loss",
    "loss_ptr",
    "loss_type",
    "sigma_ptr",
    "sigma_type",
    "val_f1",
    "val_hit3",
]


def evaluation_of(seed: int, names: tuple[str, ...], n: int = 60):
    rng = np.random.default_rng(seed)
    start = rng.integers(5, 80, n)
    targets = Targets(np.arange(n) % len(names), start, start + 9, names)
    predictions = Predictions(rng.dirichlet(np.ones(len(names)), n), start + 2, start + 11)
    return evaluate(
        predictions,
        targets,
        targets,
        np.zeros((n, WINDOW, N_FEATURES)),
        temperature=1.5,
        resamples=50,
    )


def history_of(*stages: str, rows: int = 6) -> pd.DataFrame:
    frames = []
    for stage in stages:
        frame = pd.DataFrame(1.0, index=range(rows), columns=COLUMNS).assign(
            stage=stage, epoch=0, step=range(rows)
        )
        frame["loss"] = np.linspace(2, 1, rows)
        if stage == "pretrain":
            frame.loc[:, "loss_ptr":] = np.nan
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def window_of(
    name: str = "w1", label: str = "a", predicted: str = "a", off: int = 0, **changed
) -> ReportWindow:
    close = 100 + np.sin(np.arange(WINDOW) / 9)
    ohlc = np.stack([close - 0.1, close + 0.3, close - 0.4, close], axis=1)
    window = ReportWindow(
        name, "2025-01-06 14:30 UTC", ohlc, label, 40, 49, predicted, 40 + off, 49 + off, 0.8
    )
    return dataclasses.replace(window, **changed)


def data_of(names: tuple[str, ...] = ("consolidation", "retracement"), **changed) -> ReportData:
    validation, test = evaluation_of(0, names), evaluation_of(1, names)
    sigmas = {"sigma_ptr": [1.2], "sigma_type": [3.0]}
    data = ReportData(
        run_id="20260101T000000Z-train-abcd",
        data_digest="sha256:0123",
        label_source="hindsight",
        splits={"train": "2025-01-06 to 2025-02-14", "test": "2025-03-03 to 2025-03-28"},
        seeds=[7, 8],
        validation=validation,
        test=test,
        gates=check_gates(validation, sigmas, {"loss": [1.0]}, GateConfig(), test),
        history=pd.DataFrame(columns=COLUMNS),
        windows=[],
    )
    return dataclasses.replace(data, **changed)


def whole_data() -> ReportData:
    return data_of(
        history=history_of("pretrain", "heads", "full"),
        windows=[window_of(), window_of("w2", off=9), window_of("w3", predicted="b")],
    )


class Page(HTMLParser):
    """Tags, text by tag, and the attributes that could fetch something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.source = text
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text: dict[str, list[str]] = {}
        self.sources: list[str] = []
        self.feed(text)
        assert self.open == [], "every tag is closed"

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.sources += [v for k, v in attrs if k in ("src", "href", "srcset", "data", "action")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        if self.open:
            self.text.setdefault(self.open[-1], []).append(data)

    def all_text(self) -> str:
        return " ".join(" ".join(parts) for tag, parts in self.text.items() if tag != "style")


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(render(whole_data()))


def test_every_section_is_there(page: Page) -> None:
    assert page.text["h2"] == [
        "Gates",
        "Metrics",
        "Training",
        "Type: confusion and calibration",
        "Pointer: hits against tolerance",
        "Finding moves",
        "Windows",
    ]
    assert page.tags.count("img") == 3 + 2 + 3  # curves; reliability and hits; windows


GPU_HISTORY = UsageHistory(
    every_s=60.0,
    cpu_cores=(1.0, 2.0, None, 4.0),
    memory_mb=(1000.0, 2000.0, 3000.0, 4000.0),
    gpu=(0.5, 0.6, 0.7, 0.8),
    gpu_memory_mb=(9000.0,) * 4,
    starts=(0, 2),
)
CPU_HISTORY = UsageHistory(
    every_s=0.5, cpu_cores=(1.0,), memory_mb=(1000.0,), gpu=(None,), gpu_memory_mb=(None,)
)


def pictures_of(page: str) -> list[str]:
    encoded = re.findall(r"data:image/svg\+xml;base64,([^\"]+)", page)
    return [base64.b64decode(each).decode() for each in encoded]


@pytest.mark.parametrize(
    ("history", "n_panels", "every", "n_attempts"),
    [(GPU_HISTORY, 3, "60 s", 2), (CPU_HISTORY, 2, "0.5 s", 1)],
)
def test_use_of_the_machine_comes_last_and_changes_nothing_before_it(
    history: UsageHistory, n_panels: int, every: str, n_attempts: int
) -> None:
    without = render(whole_data())
    page = render(dataclasses.replace(whole_data(), usage=history))
    before, heading, section = page.partition("<section><h2>Use of the machine")
    assert heading
    assert without.startswith(before)
    assert f"a point stands for {every}" in section
    assert ("another attempt" in section) is (n_attempts > 1)
    assert Page(page).sources
    (picture,) = pictures_of(section)
    assert len(re.findall(r'id="axes_\d+"', picture)) == n_panels
    assert "NaN" not in picture


def test_a_history_of_which_nothing_is_known_has_no_picture() -> None:
    nothing = UsageHistory(every_s=1.0)
    page = render(dataclasses.replace(whole_data(), usage=nothing))
    assert "Nothing was recorded" in page.partition("Use of the machine")[2]


def test_the_head_says_what_was_trained(page: Page) -> None:
    text = page.all_text()
    for expected in (
        "20260101T000000Z-train-abcd",
        "sha256:0123",
        "2025-01-06 to 2025-02-14",
        "7, 8",
        "hindsight",
    ):
        assert expected in text
    assert "not a trading result" in text


def test_only_hindsight_and_planted_labels_carry_their_warning() -> None:
    planted, own = (
        render(data_of(label_source=source)) for source in ("planted", "my_labels.parquet")
    )
    assert "Planted labels: the true moves of a synthetic market" in planted
    assert "tests the machinery" not in own
    assert "my_labels.parquet" in own


def test_tables_show_gates_metrics_baselines_and_intervals(page: Page) -> None:
    data = data_of()
    text = page.all_text()
    n_failed = sum(gate.judged and not gate.passed for gate in data.gates)
    assert f"{n_failed} of 8 gates fail." in text
    assert "outside" in text
    for gate in data.gates:
        assert gate.name in text
    for metric in data.test["metrics"].values():
        assert metric["title"] in text
        assert "bars" in metric["unit"] or f"{metric['value']:.3f}" in text
        if metric["low"] is not None and metric["unit"] == "fraction":
            assert f"{metric['low']:.3f} to {metric['high']:.3f}" in text
    for baseline in ("majority class", "whole window", "mean pointer", "strongest run"):
        assert baseline in page.text["th"]


@pytest.mark.parametrize(
    ("metric", "lead"),
    [
        ({"value": 0.6, "low": 0.5, "high": 0.7}, '<td class="pass">+0.200 ✓</td>'),
        ({"value": 0.6, "low": 0.4, "high": 0.7}, '<td class="">+0.200</td>'),
        ({"value": 0.3, "low": 0.2, "high": 0.5}, '<td class="fail">−0.100 ✗</td>'),
        ({"value": 0.6, "low": None, "high": None}, '<td class="">+0.200</td>'),
        ({"value": None, "low": None, "high": None}, "<td></td>"),
    ],
)
def test_the_lead_is_over_the_best_baseline_and_sure_where_the_interval_excludes_it(
    metric: dict[str, float | None], lead: str
) -> None:
    baselines = {"whole_window": 0.1, "mean_pointer": 0.4, "strongest_run": None}
    assert lead in row_of("iou", metric | {"baselines": baselines})


def test_of_errors_the_smallest_baseline_is_the_best() -> None:
    baselines = {"whole_window": 9.0, "mean_pointer": 4.0, "strongest_run": 5.0}
    metric = {"value": 3.0, "low": 2.0, "high": 3.5, "baselines": baselines}
    assert '<td class="pass">+1.00 ✓</td>' in row_of("mae_centre_bars", metric)
    metric["high"] = 4.5
    assert '<td class="">+1.00</td>' in row_of("mae_centre_bars", metric)


def row_of(name: str, changed: dict[str, Any]) -> str:
    """The row of one metric on the page, its values changed."""
    data = data_of()
    metric = data.test["metrics"][name]
    metric.update(changed)
    page = render(data)
    start = page.index(f"<tr><th>{metric['title']}")
    return page[start : page.index("</tr>", start)]


def detection() -> Detection:
    """Of four moves, two found and right, one found and wrong."""
    found = Judged(np.array([0.9, 0.7, 0.3]), np.arange(3) < 2, np.arange(3) == 2, 4)
    holds = np.array([1, 1, 0, -1])
    scores = np.array([0.9, 0.4, 0.6, 0.1])
    return measure_detection({"model": (scores, found), "<b>run": (1 - scores, found)}, holds)


def test_finding_moves_has_its_section() -> None:
    presence = PresenceDocument(
        no_moves="background",
        windows_with_move=1234,
        windows_without_move=987,
        threshold=0.42,
        precision=0.8125,
        recall=0.625,
    )
    found = {"validation": detection(), "test": detection()}
    page = Page(render(data_of(presence=presence, detections=found)))
    text = page.all_text()
    assert "1,234 windows of the train split with a move and 987 without: background" in text
    assert "0.42" in page.text["b"]
    assert "precision 0.812, recall 0.625" in text
    assert "<b>run" in text  # escaped: it is text, not a tag
    assert "test: 3 windows, of which 67% hold a move, 4 moves" in text


def test_a_model_that_cannot_tell_says_so() -> None:
    page = Page(render(data_of(presence=PresenceDocument(reason="for <some> reason"))))
    assert "cannot say whether there is a move: for <some> reason." in page.all_text()


def test_gates_that_fail_and_pass_look_different() -> None:
    data = data_of()
    passing = [dataclasses.replace(gate, passed=True) for gate in data.gates]
    failing = [dataclasses.replace(gate, passed=False) for gate in data.gates]
    good, bad = (render(dataclasses.replace(data, gates=gates)) for gates in (passing, failing))
    assert (good.count("✗ FAIL"), good.count("✓ pass")) == (0, 8)
    assert (bad.count("✗ FAIL"), bad.count("✓ pass")) == (8, 0)
    assert "All gates pass." in good
    assert "8 of 8 gates fail." in bad


def test_windows_are_sorted_into_right_and_wrong(page: Page) -> None:
    assert window_of(off=3).right
    assert not window_of(off=4).right
    assert not window_of(predicted="b").right
    text = page.source
    right, wrong = text.index("Right: the type"), text.index("<h3>Wrong")
    assert right < text.index(">w1<") < wrong < text.index(">w2<") < text.index(">w3<")


def test_hostile_names_are_escaped_everywhere() -> None:
    data = data_of(
        names=(HOSTILE, "b" + HOSTILE),
        run_id=HOSTILE,
        data_digest=HOSTILE,
        label_source=HOSTILE,
        splits={HOSTILE: HOSTILE},
        facts={HOSTILE: HOSTILE},
        windows=[window_of(HOSTILE, HOSTILE, HOSTILE, opened=HOSTILE)],
        history=history_of("pretrain", HOSTILE),
    )
    data = dataclasses.replace(
        data, gates=[dataclasses.replace(g, name=HOSTILE, bound=HOSTILE) for g in data.gates]
    )
    page = Page(render(data))
    assert "script" not in page.tags
    assert page.all_text().count(HOSTILE) > 20  # read back by a parser, each is the name again


def test_nothing_is_fetched(page: Page) -> None:
    text = page.source
    assert not re.search(r"https?://|//[a-z]|url\(|@import", re.sub(r'src="data:[^"]+"', "", text))
    assert page.sources
    assert all(source.startswith("data:image/") for source in page.sources)
    assert "default-src 'none'" in text
    for source in page.sources:
        if source.startswith("data:image/svg+xml"):
            svg = base64.b64decode(source.split(",", 1)[1]).decode()
            assert not re.search(r"""(href|src)=["'](?!#)""", svg)


def test_the_same_data_give_the_same_bytes() -> None:
    data = data_of(history=history_of("full"), windows=[window_of()])
    assert render(data) == render(data)


def test_a_report_leaves_no_figure_and_no_setting_behind() -> None:
    import matplotlib as mpl
    from matplotlib import _pylab_helpers

    before = dict(mpl.rcParams)
    render(data_of(windows=[window_of()]))
    assert dict(mpl.rcParams) == before
    assert _pylab_helpers.Gcf.get_all_fig_managers() == []


@pytest.mark.parametrize(
    "history",
    [
        history_of("full", rows=1),
        history_of("pretrain"),
        history_of("heads", "full", rows=700),
        history_of("full").assign(loss=np.nan, sigma_ptr=np.inf),
        pd.DataFrame(columns=COLUMNS),
    ],
    ids=["one row", "no supervised stage", "smoothed", "diverged", "empty"],
)
def test_odd_histories_are_drawn(history: pd.DataFrame) -> None:
    text = render(data_of(history=history))
    assert ("Nothing was recorded" in text) == (
        history.empty or set(history["stage"]) == {"pretrain"}
    )


def test_three_classes_flat_bars_and_no_windows_are_drawn() -> None:
    flat = np.full((WINDOW, 4), 5.0)
    text = render(
        data_of(
            names=("a", "b", "c"),
            windows=[window_of(ohlc=flat, predicted_start=0, predicted_end=104)],
        )
    )
    assert "None among the windows shown" in text  # of the wrong ones


def test_a_window_of_another_length_or_with_holes_is_refused() -> None:
    with pytest.raises(DataError, match=r"\[105, 4\], got \[104, 4\] \(window w1\)"):
        window_of(ohlc=np.ones((104, 4)))
    with pytest.raises(DataError, match="finite"):
        window_of(ohlc=np.full((WINDOW, 4), np.nan))


def test_picked_windows_are_half_right_half_wrong_and_spread_over_the_split() -> None:
    n = 100
    start = np.full(n, 20)
    targets = Targets(np.zeros(n, int), start, start + 5, ("a", "b"))
    p = np.tile([0.9, 0.1], (n, 1))
    p[::2] = [0.1, 0.9]  # even windows have the wrong type
    far = np.where(np.arange(n) >= 50, 30, 0)  # the second half points elsewhere
    picked = pick_windows(Predictions(p, start + far, start + 5 + far), targets, n_each=3)
    assert picked[:3] == [1, 25, 49]  # right: the odd ones of the first half
    assert (picked[3], picked[-1], len(picked)) == (0, 99, 6)
    assert len(pick_windows(Predictions(p, start, start + 5), targets, n_each=200)) == n

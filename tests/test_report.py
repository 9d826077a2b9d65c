"""The report: every section there, hostile names harmless, nothing fetched, nothing left behind."""

import base64
import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from moola import WINDOW
from moola.errors import DataError
from moola.features import N_FEATURES
from moola.metrics import Predictions, Targets, check_gates, evaluate
from moola.report import ReportData, ShownWindow, pick_windows, render, write_report
from moola.specs import GateConfig

pytest.importorskip("matplotlib")

HOSTILE = "<script>alert('x')</script>\"&$\\frac{"
COLUMNS = ["stage", "epoch", "step", "loss", "loss_ptr", "loss_type", "sigma_ptr", "sigma_type", "val_f1", "val_hit3"]


def evaluation_of(seed: int, names: tuple[str, ...], n: int = 60):
    rng = np.random.default_rng(seed)
    start = rng.integers(5, 80, n)
    targets = Targets(np.arange(n) % len(names), start, start + 9, names)
    predictions = Predictions(rng.dirichlet(np.ones(len(names)), n), start + 2, start + 11)
    return evaluate(predictions, targets, targets, np.zeros((n, WINDOW, N_FEATURES)), temperature=1.5, resamples=50)


def history_of(*stages: str, rows: int = 6) -> pd.DataFrame:
    frames = []
    for stage in stages:
        frame = pd.DataFrame(1.0, index=range(rows), columns=COLUMNS).assign(stage=stage, epoch=0, step=range(rows))
        frame["loss"] = np.linspace(2, 1, rows)
        if stage == "pretrain":
            frame.loc[:, "loss_ptr":] = np.nan
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def window_of(name: str = "w1", label: str = "a", predicted: str = "a", off: int = 0, **changed) -> ShownWindow:
    close = 100 + np.sin(np.arange(WINDOW) / 9)
    ohlc = np.stack([close - 0.1, close + 0.3, close - 0.4, close], axis=1)
    shown = ShownWindow(name, "2025-01-06 14:30 UTC", ohlc, label, 40, 49, predicted, 40 + off, 49 + off, 0.8)
    return dataclasses.replace(shown, **changed)


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
        "Windows",
    ]
    assert page.tags.count("img") == 3 + 2 + 3  # curves; reliability and hits; windows


def test_the_head_says_what_was_trained(page: Page) -> None:
    text = page.all_text()
    for expected in ("20260101T000000Z-train-abcd", "sha256:0123", "2025-01-06 to 2025-02-14", "7, 8", "hindsight"):
        assert expected in text
    assert "not a trading result" in text


def test_only_hindsight_and_planted_labels_carry_their_warning() -> None:
    planted, own = (render(data_of(label_source=source)) for source in ("planted", "my_labels.parquet"))
    assert "Planted labels: the true moves of a synthetic market" in planted
    assert "tests the machinery" not in own
    assert "my_labels.parquet" in own


def test_tables_show_gates_metrics_baselines_and_intervals(page: Page) -> None:
    data = data_of()
    text = page.all_text()
    assert f"{sum(not gate.passed for gate in data.gates)} of 6 gates fail." in text
    for gate in data.gates:
        assert gate.name in text
    for metric in data.test["metrics"].values():
        assert metric["title"] in text
        assert "bars" in metric["unit"] or f"{metric['value']:.3f}" in text
        if metric["low"] is not None and metric["unit"] == "fraction":
            assert f"{metric['low']:.3f} to {metric['high']:.3f}" in text
    for baseline in ("majority class", "whole window", "mean pointer", "strongest run"):
        assert baseline in page.text["th"]


def test_gates_that_fail_and_pass_look_different() -> None:
    data = data_of()
    passing = [dataclasses.replace(gate, passed=True) for gate in data.gates]
    failing = [dataclasses.replace(gate, passed=False) for gate in data.gates]
    good, bad = (render(dataclasses.replace(data, gates=gates)) for gates in (passing, failing))
    assert (good.count("✗ FAIL"), good.count("✓ pass")) == (0, 6)
    assert (bad.count("✗ FAIL"), bad.count("✓ pass")) == (6, 0)
    assert "All gates pass." in good
    assert "6 of 6 gates fail." in bad


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
    data = dataclasses.replace(data, gates=[dataclasses.replace(g, name=HOSTILE, bound=HOSTILE) for g in data.gates])
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


def test_the_same_data_give_the_same_bytes(tmp_path: Path) -> None:
    data = data_of(history=history_of("full"), windows=[window_of()])
    write_report(tmp_path / "a.html", data)
    write_report(tmp_path / "b.html", data)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


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
    assert ("Nothing was recorded" in text) == (history.empty or set(history["stage"]) == {"pretrain"})


def test_three_classes_flat_bars_and_no_windows_are_drawn() -> None:
    flat = np.full((WINDOW, 4), 5.0)
    text = render(data_of(names=("a", "b", "c"), windows=[window_of(ohlc=flat, predicted_start=0, predicted_end=104)]))
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

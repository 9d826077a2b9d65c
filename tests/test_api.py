"""moola in a notebook: that of the pages runs, and its objects hold what the commands give."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("torch", reason="training needs the extra `train`")

import moola
from moola.errors import ArtifactError, DataError, MoolaError, TryAgainError
from moola.features import compute_features
from moola.launch import local
from moola.runs.about import add_about, new_about
from moola.runs.attempt import end_attempt
from moola.runs.protocol import attempt_id_now
from moola.store import Store
from tests.feature_set import random_bars
from tests.notebooks import NOTEBOOK, code_cells, execute
from tests.runs import committed_run, submitted_run
from tests.test_listing import failed_run

Names = dict[str, Any]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Names]:
    """The names that the notebook has at its end; its code was run."""
    folder = tmp_path_factory.mktemp("notebook")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MOOLA_WORK", str(folder / "work"))
        patch.delenv("MOOLA_STORE", raising=False)
        found: Names = {"folder": folder}
        for code in code_cells(json.loads(NOTEBOOK.read_text())):
            execute(code, found)
        yield found


def test_the_notebook_is_executed_and_holds_no_path() -> None:
    notebook = json.loads(NOTEBOOK.read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    assert all(cell["outputs"] for cell in cells)
    assert "/tmp" not in NOTEBOOK.read_text()
    assert "/root" not in NOTEBOOK.read_text()


def test_features_are_views_of_a_mapped_file(names: Names) -> None:
    features = names["features"]
    windows = features.features
    base = windows
    while base.base is not None and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)
    assert not windows.flags.writeable

    bars = pd.read_parquet(
        features.pull(names["folder"] / "b", only=["bars.parquet"]) / "bars.parquet"
    )
    rows = compute_features(bars.set_index("timestamp"))
    assert windows.shape == (len(rows) - 104, 105, 11)
    np.testing.assert_array_equal(windows[1234], rows[1234 : 1234 + 105])
    np.testing.assert_array_equal(names["model"].features[7], windows[7])


def test_tables_are_those_that_pull_fetches(names: Names) -> None:
    model = names["model"]
    folder = model.pull(names["folder"] / "pulled")
    predictions = pd.read_parquet(folder / "predictions.parquet")
    pd.testing.assert_frame_equal(model.predictions, predictions)
    pd.testing.assert_frame_equal(model.history, pd.read_parquet(folder / "history.parquet"))
    measured = json.loads((folder / "metrics.json").read_text())["test"]["metrics"]
    assert list(model.metrics.index) == list(measured)
    assert model.metrics.loc["f1_macro", "value"] == measured["f1_macro"]["value"]
    assert model.report.read_bytes() == (folder / "report.html").read_bytes()
    assert model.spec["model"]["hidden_size"] == 8
    assert model.about.tags == ("demo",)


def test_predictions_are_those_of_the_command(names: Names) -> None:
    bars = names["bars"]
    folder = names["folder"]
    bars.to_parquet(folder / "new.parquet")
    command = [sys.executable, "-m", "moola", "predict", names["model"].id]
    options = ["--bars", "new.parquet", "--threshold", "0", "--windows", "windows.parquet"]
    subprocess.run([*command, *options], check=True, capture_output=True, cwd=folder)

    for predicted, file in (
        (names["moves"], "moves.parquet"),
        (moola.predict_windows(names["model"], bars), "windows.parquet"),
    ):
        expected = pd.read_parquet(folder / file)
        assert len(expected)
        pd.testing.assert_frame_equal(predicted, expected, check_exact=False, rtol=1e-5)


def test_bars_that_break_a_rule_are_refused_as_those_of_a_file(names: Names) -> None:
    bars = random_bars(200)
    bars.iloc[5, bars.columns.get_loc("high")] = 1.0
    with pytest.raises(DataError, match="high"):
        moola.predict(names["model"], bars)
    with pytest.raises(DataError, match="times with a zone"):
        moola.predict(names["model"], bars.tz_localize(None))
    with pytest.raises(DataError, match="at least 105 good bars"):
        moola.predict(names["model"], random_bars(50))
    with pytest.raises(DataError, match="every must be at least 1"):
        moola.predict(names["model"], bars, every=0)


def test_the_same_work_is_not_done_twice(names: Names) -> None:
    again = names["market"].precompute(windows="virtual", **{"synthetic.end": "2025-02-14"})
    assert again.id == names["features"].id


# --- without a model ------------------------------------------------------------------------------


def test_a_run_of_any_store_is_found_and_shown(store: Store, tmp_path: Path) -> None:
    market = moola.connect(store.url, work=tmp_path / "work")
    run_id = committed_run(store, tmp_path, n=1)
    add_about(store, run_id, new_about("one", ["x"]))
    run = market.run(run_id[:14])
    assert (run.id, run.job, run.about.name) == (run_id, "precompute", "one")
    assert run.spec == {"n": 1}
    assert run.status.state == "committed"
    assert run.wait() is run
    table = market.runs(tag=["x"])
    assert list(table.index) == [run_id]
    assert table.loc[run_id, "state"] == "committed"
    with pytest.raises(ArtifactError, match=r"no metrics\.json"):
        _ = run.metrics
    with pytest.raises(DataError, match="no bars_11d"):
        _ = run.features


def test_waiting_ends_with_the_run_or_the_time(store: Store, tmp_path: Path) -> None:
    market = moola.connect(store.url, work=tmp_path / "work")
    waiting = submitted_run(store)
    with pytest.raises(TryAgainError, match="has not ended after 0 s"):
        market.run(waiting).wait(timeout_s=0)
    assert market.run(failed_run(store, tmp_path, n=2)).wait(timeout_s=0).status.reason


def test_a_job_that_fails_raises_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_to_end(_: object, store: Store, __: str, run_id: str) -> int:
        end_attempt(store, run_id, attempt_id_now(), "failed", "bars must be good", 3)
        return 3

    monkeypatch.setattr(local, "run_to_end", run_to_end)
    market = moola.connect((tmp_path / "store").as_uri(), work=tmp_path / "work")
    with pytest.raises(MoolaError, match="ended as failed: bars must be good") as failed:
        market.precompute(random_bars())
    assert failed.value.exit_code == 3


def test_the_same_frame_is_the_same_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "run_to_end", lambda *_: 0)
    market = moola.connect((tmp_path / "store").as_uri(), work=tmp_path / "work")
    first, second = (market.precompute(random_bars()) for _ in range(2))
    assert first.id == second.id
    assert market.precompute(random_bars(seed=2)).id != first.id


def test_importing_moola_imports_nothing_else() -> None:
    code = "import sys, moola; print(sorted({'numpy', 'pydantic', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
    with pytest.raises(AttributeError, match="no attribute 'rocket'"):
        _ = moola.rocket  # type: ignore[attr-defined]

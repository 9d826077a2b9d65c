"""The command that finds moves in new bars with a trained model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moola.cli.options import (
    FETCHED,
    LayoutOption,
    ReadingSetOption,
    RunArgument,
    StoreOption,
    SymbolOption,
    WorkOption,
    ZoneOption,
    read_settings,
    reading_overrides,
    require_table_path,
)
from moola.cli.results import committed_run

if TYPE_CHECKING:
    import pandas as pd

    from moola.evaluation.predict import LoadedModel
    from moola.launch.settings import Settings


def predict(
    run: RunArgument,
    bars: Annotated[
        str, typer.Option(help="1-minute bars: a file, a folder or a pattern; path or s3://")
    ],
    every: Annotated[int, typer.Option(min=1, help="bars from one window to the next")] = 15,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="smallest probability of a move that is kept; default: what validation chose",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="where the moves go: .parquet or .csv")] = Path(
        "moves.parquet"
    ),
    windows: Annotated[
        Path | None,
        typer.Option(help="a table of every window as well, each taken to hold a move"),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="a page of the bars with the moves on them as well")
    ] = None,
    layout: LayoutOption = None,
    symbol: SymbolOption = None,
    timezone: ZoneOption = None,
    set_: ReadingSetOption = None,
    store: StoreOption = None,
    work: WorkOption = None,
) -> None:
    """Find moves in new bars with a trained model.

    Of each move: its first and last minute, its type, and how probable both are.
    """
    _prepare_outputs(out, windows, html)
    settings = read_settings(store, work)
    run_id, loaded = _load(settings, run)

    wants_moves = windows is None or html is not None or loaded.presence is not None
    kept_from = _threshold(loaded, threshold) if wants_moves else 0.0
    frame = _read_bars(settings, bars, reading_overrides(set_, layout, symbol, timezone))

    if windows is not None:
        _write_windows(loaded, frame, every, windows)
    if wants_moves:
        moves = _write_moves(loaded, frame, every, kept_from, out)
        if html is not None:
            _write_page(frame, moves, kept_from, run_id, html)


def moves_text(moves: "pd.DataFrame", threshold: float) -> str:
    """How many moves were found, in words."""
    count = "no move" if moves.empty else f"{len(moves):,} moves"
    return f"{count} with a probability of {threshold:.2f} or more"


def _prepare_outputs(out: Path, windows: Path | None, html: Path | None) -> None:
    """Make their folders. Raises BadParameter for an ending that is not written."""
    for name, path in (("--out", out), ("--windows", windows)):
        if path is not None:
            require_table_path(name, path)
    if html is not None and html.suffix.lower() != ".html":
        raise typer.BadParameter(f"--html must end in .html, got {html}")

    for path in (out, windows, html):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)


def _load(settings: "Settings", run: str) -> "tuple[str, LoadedModel]":
    """The train run that is meant, and its model."""
    from moola.jobs.process import limit_openmp_spinning

    limit_openmp_spinning()  # before torch is imported
    from moola.evaluation.predict import MODEL, load_model
    from moola.runs.reading import find_run, pull_files
    from moola.runs.work_limit import keep_within_limit, mark_used
    from moola.store import open_store
    from moola.training.checkpoint import WEIGHTS

    keep_within_limit(settings.work, settings.work_limit_gb)
    run_store = open_store(settings.store)
    run_id = find_run(run_store, run, "train")
    manifest, _ = committed_run(run_store, run_id)

    folder = settings.work / "models" / run_id
    mark_used(folder)
    pull_files(run_store, manifest, folder, only=(WEIGHTS, MODEL))
    return run_id, load_model(folder)


def _threshold(loaded: "LoadedModel", given: float | None) -> float:
    from moola.evaluation.predict import require_presence

    chosen = require_presence(loaded)
    return chosen if given is None else given


def _read_bars(
    settings: "Settings",
    bars: str,
    overrides: dict[str, object],
) -> "pd.DataFrame":
    from moola.data.bars import read_bars_of
    from moola.data.loading import fetch_bars
    from moola.specs import PrecomputeSpec, parse_spec, with_overrides

    spec = parse_spec(PrecomputeSpec, with_overrides({}, overrides), place="the options")
    files = fetch_bars(bars, settings.work / FETCHED)
    return read_bars_of(spec, files, bars).frame


def _write_windows(
    loaded: "LoadedModel",
    frame: "pd.DataFrame",
    every: int,
    path: Path,
) -> None:
    from moola.evaluation.predict import predict_bars
    from moola.evaluation.run_tables import write_table
    from moola.launch.console import print_text
    from moola.launch.progress import count_bar

    with count_bar("windows", _n_windows(frame, every), "windows") as advance:
        table = predict_bars(loaded.model, loaded.info, frame, every, advance)

    write_table(table, path)
    print_text(f"{len(table):,} windows, one every {every} bars: {path}")
    if loaded.presence is None:
        print_text("no moves: the run's model cannot tell whether there is one; train again")


def _write_moves(
    loaded: "LoadedModel",
    frame: "pd.DataFrame",
    every: int,
    kept_from: float,
    path: Path,
) -> "pd.DataFrame":
    from moola.evaluation.predict import predict_moves
    from moola.evaluation.run_tables import write_table
    from moola.launch.console import print_text
    from moola.launch.progress import count_bar

    with count_bar("predict", _n_windows(frame, every), "windows") as advance:
        moves = predict_moves(loaded, frame, every, kept_from, advance)

    write_table(moves, path)
    print_text(f"{moves_text(moves, kept_from)} in {len(frame):,} bars: {path}")
    return moves


def _write_page(
    frame: "pd.DataFrame",
    moves: "pd.DataFrame",
    kept_from: float,
    run_id: str,
    path: Path,
) -> None:
    from moola.evaluation.moves_page import render_moves
    from moola.launch.console import print_text

    path.write_text(render_moves(frame, moves, kept_from, run_id), encoding="utf-8")
    print_text(f"the bars with the moves on them: {path}")


def _n_windows(frame: "pd.DataFrame", every: int) -> int:
    from moola import WINDOW

    return (len(frame) - WINDOW) // every + 1

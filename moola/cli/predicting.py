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
from moola.text import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

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

    wants_moves = windows is None or html is not None or _finds_moves(loaded, every)
    kept_from = _threshold(loaded, threshold, every) if wants_moves else 0.0
    overrides = reading_overrides(set_, layout, symbol, timezone)
    frame = _read_bars(settings, bars, overrides, (out, windows, html))

    if windows is not None:
        _write_windows(loaded, frame, every, windows)
    if wants_moves:
        moves = _write_moves(loaded, frame, every, kept_from, out)
        if html is not None:
            _write_page(frame, moves, kept_from, run_id, html)


def _prepare_outputs(out: Path, windows: Path | None, html: Path | None) -> None:
    """Make their folders. Raises BadParameter for an ending that is not written, and for one file
    twice.
    """
    for name, path in (("--out", out), ("--windows", windows)):
        if path is not None:
            require_table_path(name, path)
    if html is not None and html.suffix.lower() != ".html":
        raise typer.BadParameter(f"--html must end in .html, got {html}")
    if windows is not None and windows.resolve() == out.resolve():
        raise typer.BadParameter(f"--out and --windows must be two files, got {out} twice")

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


def _finds_moves(loaded: "LoadedModel", every: int) -> bool:
    from moola.evaluation.predict import most_apart

    return loaded.presence is not None and every <= most_apart(loaded.info)


def _threshold(loaded: "LoadedModel", given: float | None, every: int) -> float:
    """The probability from which moves are kept. Raises DataError where none could be found."""
    from moola.evaluation.predict import require_dense, require_presence

    chosen = require_presence(loaded)
    require_dense(every, loaded.info)
    return chosen if given is None else given


def _read_bars(
    settings: "Settings",
    bars: str,
    overrides: dict[str, object],
    outputs: "Sequence[Path | None]",
) -> "pd.DataFrame":
    """Raises BadParameter where an output is one of the files of bars."""
    from moola.data.bars import read_bars_of
    from moola.data.loading import fetch_bars
    from moola.specs import PrecomputeSpec, parse_spec, with_overrides

    spec = parse_spec(PrecomputeSpec, with_overrides({}, overrides), place="the options")
    files = fetch_bars(bars, settings.work / FETCHED)
    read = {file.resolve() for file in files}
    for path in outputs:
        if path is not None and path.resolve() in read:
            raise typer.BadParameter(f"{path} holds the bars, and would be overwritten")
    return read_bars_of(spec, files, bars).frame


def _write_windows(
    loaded: "LoadedModel",
    frame: "pd.DataFrame",
    every: int,
    path: Path,
) -> None:
    from moola.evaluation.predict import most_apart, predict_bars, window_rows
    from moola.evaluation.run_tables import write_table
    from moola.launch.console import print_text
    from moola.launch.progress import count_bar

    n_windows = len(window_rows(len(frame), every))
    with count_bar("windows", n_windows, "windows") as advance:
        table = predict_bars(loaded.model, loaded.info, frame, every, advance)

    write_table(table, path)
    print_text(f"{counted(len(table), 'window')}, one every {every} bars: {path}")
    if loaded.presence is None:
        print_text("no moves: the run's model cannot tell whether there is one; train again")
    elif not _finds_moves(loaded, every):
        print_text(f"no moves: for them --every must be at most {most_apart(loaded.info)}")


def _write_moves(
    loaded: "LoadedModel",
    frame: "pd.DataFrame",
    every: int,
    kept_from: float,
    path: Path,
) -> "pd.DataFrame":
    from moola.evaluation.moves_page import moves_text
    from moola.evaluation.predict import predict_moves, settled_row, window_rows
    from moola.evaluation.run_tables import write_table
    from moola.launch.console import print_text
    from moola.launch.progress import count_bar

    n_windows = len(window_rows(len(frame), every, settled_row(loaded.info, len(frame))))
    with count_bar("predict", n_windows, "windows") as advance:
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

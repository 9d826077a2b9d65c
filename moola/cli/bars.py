"""The command that shows what is understood of bars."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moola.cli.options import (
    FETCHED,
    LayoutOption,
    ReadingSetOption,
    SymbolOption,
    WorkOption,
    ZoneOption,
    read_settings,
    reading_overrides,
)
from moola.errors import DataError

if TYPE_CHECKING:
    from moola.data.inspection import Inspection


def show_bars(
    bars: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="a file, a folder or a pattern; path, file:// or s3://"
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="as JSON")] = False,
    html: Annotated[Path | None, typer.Option(help="write a page with a picture there")] = None,
    layout: LayoutOption = None,
    symbol: SymbolOption = None,
    timezone: ZoneOption = None,
    set_: ReadingSetOption = None,
    work: WorkOption = None,
) -> None:
    """Show what is understood of bars; exit 3 if precompute would refuse them.

    Layout, columns, times, gaps, rolls, and the command that reads them.
    """
    from moola.data.inspection import inspect_bars
    from moola.data.loading import fetch_bars
    from moola.evaluation.bars_page import render_inspection
    from moola.launch.console import print_json
    from moola.specs import PrecomputeSpec, parse_spec, with_overrides

    fields = with_overrides({}, reading_overrides(set_, layout, symbol, timezone))
    spec = parse_spec(PrecomputeSpec, fields, place="the options")
    files = fetch_bars(bars, read_settings(work=work).work / FETCHED)
    found = inspect_bars(spec, files, bars)

    if html is not None:
        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_text(render_inspection(found))
    if as_json:
        print_json(found.as_dict())
    else:
        _print_screen(found)
    if found.refused is not None:
        raise typer.Exit(DataError.exit_code)


def _print_screen(found: "Inspection") -> None:
    from rich.table import Table
    from rich.text import Text

    from moola.data.bars_text import inspection_lines
    from moola.launch.console import print_table, print_text

    table = Table.grid(padding=(0, 2))
    for heading, text in inspection_lines(found):
        table.add_row(Text(heading), Text(text))
    for warning in found.warnings:
        table.add_row(Text("warning", style="yellow"), Text(warning))
    print_table(table)
    if found.refused is not None:
        print_text(f"refused: {found.refused}")
    elif found.command is not None:
        print_text(found.command)

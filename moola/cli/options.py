"""Options that several commands share, and the settings that they give."""

import os
import re
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from moola.errors import DataError
from moola.launch import Backend
from moola.runs.redaction import require_clean_keys
from moola.text import quoted, shortened

if TYPE_CHECKING:
    from pydantic import ValidationError

    from moola.launch.settings import Settings
    from moola.store import Store

# Fields that are names and formats, such as %d/%m/%Y and ;, which YAML would read otherwise.
QUOTES = re.compile(r"^(['\"])(.*)\1$")
TEXT_FIELDS = re.compile(r"layout\..*|.*\.time_format")
GROUP_PREFIX = "group-"  # tells a group's id from a run's
TABLES = (".parquet", ".csv")  # what predictions are written as
FETCHED = "fetched"  # in the work folder: objects that a command reads

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="a run's id, or the start of it")]
StoreOption = Annotated[
    str | None,
    typer.Option(help="s3://bucket/prefix or file:///dir  [MOOLA_STORE]"),
]
WorkOption = Annotated[
    Path | None,
    typer.Option(help="scratch directory  [MOOLA_WORK]"),
]
OnOption = Annotated[
    Backend | None,
    typer.Option("--on", help="where the job runs  [MOOLA_ON]"),
]
SpecOption = Annotated[
    Path | None,
    typer.Option("--spec", help="a job spec (YAML) instead of the shipped one"),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="set any field of the spec"),
]
ImageOption = Annotated[
    str | None,
    typer.Option(help="NAME@sha256:..., or a tag to look up  [MOOLA_IMAGE_CPU, _GPU]"),
]
YesOption = Annotated[
    bool,
    typer.Option("--yes", "-y", help="rent without asking"),
]
DetachOption = Annotated[
    bool,
    typer.Option(
        "--detach",
        help="return once all is uploaded and a launch is claimed; `moola tend` does the rest",
    ),
]
ForceOption = Annotated[
    bool,
    typer.Option("--force", help="compute even if the same run is committed"),
]
DryRunOption = Annotated[
    bool,
    typer.Option("--dry-run", help="print what would run; send and write nothing"),
]
NameOption = Annotated[
    str | None,
    typer.Option(help="what the run is called; no part of its id"),
]
TagOption = Annotated[
    list[str] | None,
    typer.Option("--tag", metavar="TAG", help="a word to find the run by; may be given again"),
]
JsonOption = Annotated[
    bool,
    typer.Option("--json", help="as JSON, and nothing else on standard output"),
]
WatchOption = Annotated[
    bool,
    typer.Option("--watch", help="look again and again; Ctrl-C ends it, and no run"),
]
ZoneOption = Annotated[
    str | None,
    typer.Option(help="zone of naive times in the bars, such as America/New_York"),
]
# The same values as in the specs, which take too long to import for --help.
LayoutName = Literal[
    "auto",
    "databento",
    "firstrate",
    "kibot",
    "ninjatrader",
    "sierra",
    "tradestation",
    "tradingview",
    "histdata",
    "metatrader",
    "binance",
    "ib",
    "polygon",
    "dukascopy",
    "barchart",
    "yfinance",
]
LayoutOption = Annotated[
    LayoutName | None,
    typer.Option(help="whose layout the bars have; auto: as the file shows"),
]
ReadingSetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="how bars are read: layout.time=Date ..."),
]
SymbolOption = Annotated[
    str | None,
    typer.Option(help="the instrument to read, where the bars hold several"),
]

work_in_use: ContextVar[Path | None] = ContextVar("work_in_use", default=None)  # for a report


def read_settings(
    store: str | None = None,
    work: Path | None = None,
    on: Backend | None = None,
    image: str | None = None,
) -> "Settings":
    """The settings, with the flags that were given on top. Raises BadParameter."""
    from pydantic import ValidationError

    from moola.launch.settings import Settings
    from moola.runs.workdir import work_folder

    flags: dict[str, Any] = given(
        {
            "store": store,
            "work": work,
            "on": on,
            "image_cpu": image,
            "image_gpu": image,
        }
    )
    require_clean_keys(os.environ)
    try:
        settings = Settings(**flags)
    except ValidationError as error:
        raise _bad_settings(_validation_text(error)) from error
    except (ValueError, RecursionError) as error:  # no TOML, no JSON, no UTF-8
        raise _bad_settings(f"must be readable: {shortened(str(error))}") from error

    settings = settings.model_copy(update={"work": work_folder(str(settings.work))})
    work_in_use.set(settings.work)
    return settings


def _bad_settings(problem: str) -> typer.BadParameter:
    return typer.BadParameter(f"settings (flags, MOOLA_*, moola.toml): {problem}")


def read_store(store: str | None) -> "Store":
    """The store of the settings, or the one that the flag names."""
    from moola.store import open_store

    return open_store(read_settings(store).store)


def given(flags: Mapping[str, object]) -> dict[str, object]:
    """The flags that were given: those that are not None."""
    return {name: value for name, value in flags.items() if value is not None}


def one_or_all(values: Sequence[str] | None) -> str | list[str] | None:
    """What an option gave that may be given again: its only value, or all; None without one."""
    if not values:
        return None
    return values[0] if len(values) == 1 else list(values)


def require_table_path(option: str, path: Path) -> None:
    """Raises BadParameter for an ending that is not written."""
    if path.suffix.lower() not in TABLES:
        raise typer.BadParameter(f"{option} must end in .parquet or .csv, got {path}")


def spec_overrides(assignments: list[str] | None, flags: Mapping[str, object]) -> dict[str, object]:
    """Field -> value, from FIELD=VALUE pairs and from flags, which win. Raises BadParameter.

    The value of a pair is read as YAML, so that 0.5, null and [1, 2] are what they look like; of
    TEXT_FIELDS as text.
    """
    overrides = dict(_read_assignment(text) for text in assignments or [])
    return {**overrides, **given(flags)}


def reading_overrides(
    assignments: list[str] | None,
    layout: LayoutName | None,
    symbol: str | None,
    timezone: str | None,
) -> dict[str, object]:
    """Field -> value, from --set and the flags that say how bars are read. Raises BadParameter."""
    flags = {
        "layout.name": layout,
        "layout.instrument": symbol,
        "timezone": timezone,
    }
    return spec_overrides(assignments, flags)


def _read_assignment(text: str) -> tuple[str, object]:
    from moola.specs.yaml_text import read_yaml

    field, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"--set takes FIELD=VALUE, got {quoted(text)}")
    if TEXT_FIELDS.fullmatch(field):
        return field, None if value == "null" else QUOTES.sub(r"\2", value)
    try:
        return field, read_yaml(value)
    except DataError as error:
        raise typer.BadParameter(
            f"--set takes FIELD=VALUE, the value as YAML, got {quoted(text)}: {error}"
        ) from error


def _validation_text(error: "ValidationError") -> str:
    from moola.specs.reading import SHOWN_FAULTS, fault_text

    return "; ".join(map(fault_text, error.errors(include_url=False)[:SHOWN_FAULTS]))

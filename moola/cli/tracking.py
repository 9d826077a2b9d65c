"""The command that tells MLflow of runs: track."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from moola.cli.options import GROUP_PREFIX, StoreOption, read_settings
from moola.errors import DataError
from moola.runs.redaction import TRACKING

if TYPE_CHECKING:
    from moola.runs.groups import Member
    from moola.store import Store

NamesArgument = Annotated[
    list[str], typer.Argument(metavar="RUN|GROUP", help="ids or their starts; group-... for all of")
]


def track(names: NamesArgument, store: StoreOption = None) -> None:
    """Tell MLflow of runs that have ended, or of what is new of them.

    Runs are told by themselves as they end; this is for those from before, and for a server that
    was down. Told again, a run stays one run there.
    """
    from moola.launch.console import print_text
    from moola.launch.tracking import require_tracking
    from moola.launch.tracking import track as track_run
    from moola.store import open_store

    settings = read_settings(store)
    if not settings.tracking.address:
        raise DataError(f"track needs the address of an MLflow server: set {TRACKING}")
    require_tracking(settings.tracking)

    run_store = open_store(settings.store)
    for run_id, member in _runs(run_store, names):
        is_told = track_run(settings.tracking, run_store, run_id, member)
        print_text(f"{run_id}: {'in MLflow' if is_told else 'has not ended'}")


def _runs(store: "Store", names: list[str]) -> Iterator[tuple[str, "Member"]]:
    """The named runs, and the members of the named groups."""
    from moola.runs.groups import NO_MEMBER, Member, differences, find_group, read_group
    from moola.runs.reading import find_run
    from moola.runs.submit import read_spec_document

    for name in names:
        if not name.startswith(GROUP_PREFIX):
            yield find_run(store, name), NO_MEMBER
            continue

        group = read_group(store, find_group(store, name))
        specs = [read_spec_document(store, run_id) for run_id in group.members]
        for run_id, differs in zip(group.members, differences(specs), strict=True):
            title = " ".join(f"{field}={text}" for field, text in differs.items())
            yield run_id, Member(group.id, title)

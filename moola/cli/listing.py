"""The commands that find runs and say what they are called: list and tag."""

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from moola.cli.options import (
    JsonOption,
    NameOption,
    RunArgument,
    StoreOption,
    TagOption,
    WatchOption,
    read_settings,
    read_store,
)

if TYPE_CHECKING:
    from moola.cli.tables import RunRow
    from moola.launch.settings import Settings
    from moola.runs.survey import RunQuery, RunSummary, Survey
    from moola.runs.watching import WatchedRun
    from moola.store import Store

MOST_STRANGERS = 3  # named by `list`


# The same values as in the records, which take too long to import for --help.
class StateName(StrEnum):
    SUBMITTED = "submitted"
    WAITING = "waiting"
    RUNNING = "running"
    COMMITTED = "committed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TERMINATED = "terminated"
    TIMED_OUT = "timed_out"
    INFRA_LOST = "infra_lost"
    STALLED = "stalled"
    CRASH_LOOP = "crash_loop"
    NO_CAPACITY = "no_capacity"
    LAUNCH_FAILED = "launch_failed"
    DAMAGED = "damaged"
    HALF_REMOVED = "half_removed"


def list_runs(
    last: Annotated[int, typer.Option(min=1, metavar="N", help="show the newest N runs")] = 20,
    state: Annotated[
        list[StateName] | None,
        typer.Option(
            "--state", metavar="STATE", help="only runs in this state; may be given again"
        ),
    ] = None,
    tag: Annotated[
        list[str] | None,
        typer.Option("--tag", metavar="TAG", help="only runs with this tag; may be given again"),
    ] = None,
    name: Annotated[
        str, typer.Option(metavar="PATTERN", help="only runs of this name; * is any text")
    ] = "",
    watch: WatchOption = False,
    as_json: JsonOption = False,
    store: StoreOption = None,
) -> None:
    """List the newest runs in the store, with their state."""
    from moola.cli.tables import runs_table
    from moola.launch.console import print_json, print_table, print_text
    from moola.runs.survey import RunQuery, summarize_runs, survey_runs
    from moola.store import open_store
    from moola.text import quoted

    query = RunQuery(frozenset(state or ()), frozenset(tag or ()), name)
    settings = read_settings(store)
    run_store = open_store(settings.store)
    if watch:
        _watch(settings, run_store, last, query, as_json=as_json)
        return

    survey = survey_runs(run_store)
    summaries = summarize_runs(run_store, survey, last, query)
    if as_json:
        print_json(_document(run_store.url, survey, summaries))
        return

    print_table(runs_table([_run_row(summary) for summary in summaries]))
    older = len(survey.runs) - len(summaries)
    if older and query.asks_nothing:
        print_text(f"and {older} older runs: moola list --last {len(survey.runs)}")
    if survey.strangers:
        first = ", ".join(quoted(stranger) for stranger in survey.strangers[:MOST_STRANGERS])
        print_text(f"{len(survey.strangers)} names in runs/ are no run's: {first}")


def _watch(
    settings: "Settings", store: "Store", last: int, query: "RunQuery", *, as_json: bool
) -> None:
    """Open runs first, in an order that stays while they run."""
    from moola.cli.watching import live_document, watch_runs
    from moola.launch.live import never
    from moola.launch.live_table import runs_table
    from moola.runs.survey import survey_runs
    from moola.runs.watching import RunWatcher

    watcher = RunWatcher(store)
    survey = None

    def look() -> "list[WatchedRun]":
        nonlocal survey
        survey = survey_runs(store)
        runs = watcher.newest(survey, last, query)
        started = sorted(
            (run for run in runs if run.is_open),
            key=lambda run: (run.summary.attempt or "", run.run_id),
            reverse=True,
        )
        return [*started, *(run for run in runs if not run.is_open)]

    def document(runs: "Sequence[WatchedRun]") -> dict[str, object]:
        assert survey is not None
        rows = [{**_run_document(run.summary), **live_document(run)} for run in runs]
        return {**_document(store.url, survey, []), "runs": rows}

    watch_runs(settings, look, runs_table, document, as_json=as_json, is_over=never)


def _run_row(run: "RunSummary") -> "RunRow":
    from moola.cli.tables import RunRow

    name = " ".join([run.about.name or "", *(f"#{tag}" for tag in run.about.tags)]).strip()
    state = f"silent for {run.silent_s:.0f} s" if run.is_silent else run.shown_state
    return RunRow(run.attempt or "-", run.run_id, state, run.reason, name)


def _document(store_url: str, survey: "Survey", runs: "list[RunSummary]") -> dict[str, object]:
    return {
        "store": store_url,
        "runs": [_run_document(run) for run in runs],
        "n_runs": len(survey.runs),
        "strangers": list(survey.strangers),
    }


def _run_document(run: "RunSummary") -> dict[str, object]:
    from moola.runs.binding import job_of

    return {
        "run": run.run_id,
        "job": job_of(run.run_id),
        "name": run.about.name,
        "tags": list(run.about.tags),
        "state": run.shown_state,
        "reason": run.reason,
        "attempt": run.attempt or None,
        "silent_s": run.silent_s,
        "changed": _time_text(run.changed or None),
        "committed": _time_text(run.committed),
    }


def _time_text(time_s: float | None) -> str | None:
    """Unix seconds as ISO 8601, UTC."""
    from datetime import UTC, datetime

    from moola.runs.records import iso_text

    return None if time_s is None else iso_text(datetime.fromtimestamp(time_s, UTC))


def tag_run(
    run: RunArgument,
    name: NameOption = None,
    tag: TagOption = None,
    without: Annotated[
        list[str] | None,
        typer.Option("--without", metavar="TAG", help="a tag to take away; may be given again"),
    ] = None,
    store: StoreOption = None,
) -> None:
    """Give a run a name and tags, by which `list` finds it; without options, show them."""
    from moola.launch.console import print_text
    from moola.runs.about import add_about, new_about
    from moola.runs.reading import find_run

    given = new_about(name, tag or ())
    run_store = read_store(store)
    run_id = find_run(run_store, run)
    about = add_about(run_store, run_id, given, without or ())
    tags = ", ".join(about.tags) or "none"
    print_text(f"{run_id}: name {about.name or 'none'}, tags {tags}")

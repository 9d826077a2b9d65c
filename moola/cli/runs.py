"""The commands that look at a run, and stop it: status, logs and cancel."""

import contextlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from moola.cli.options import (
    JsonOption,
    RunArgument,
    StoreOption,
    WatchOption,
    read_settings,
)
from moola.errors import EXIT_CANCELLED, ArtifactError, LaunchError, TryAgainError

if TYPE_CHECKING:
    from moola.launch.run_log import RunLog
    from moola.launch.settings import Settings
    from moola.runs.watching import WatchedRun
    from moola.store import Store

LONGEST_LOG_POLL_S = 1.0


def status(
    run: RunArgument,
    watch: WatchOption = False,
    as_json: JsonOption = False,
    store: StoreOption = None,
) -> None:
    """Show where a run is, as JSON.

    State, stage, progress, reason, and the machines it was given. With --watch as a picture, or
    lines where there is no terminal, until the run ends; with --json too a document a line.
    """
    from moola.launch.console import print_json
    from moola.runs.about import read_about
    from moola.runs.launches import all_launches, cost_of
    from moola.runs.reading import find_run, run_state
    from moola.runs.submit import read_spec_document
    from moola.store import open_store

    settings = read_settings(store)
    run_store = open_store(settings.store)
    run_id = find_run(run_store, run)
    read_spec_document(run_store, run_id)
    if watch:
        _watch(settings, run_store, run_id, as_json=as_json)
        return

    about = read_about(run_store, run_id)
    document = {
        "run": run_id,
        "name": about.name,
        "tags": list(about.tags),
        **run_state(run_store, run_id).fields(),
    }
    launches = [cost_of(run_store, launch) for launch in all_launches(run_store, run_id)]
    if launches:
        document["launches"] = launches
    print_json(document)


def _watch(settings: "Settings", store: "Store", run_id: str, *, as_json: bool) -> None:
    """Until the run has ended.

    Raises ArtifactError where it is damaged, TryAgainError as `follow.has_ended` does.
    """
    from moola.cli.watching import watch_runs
    from moola.launch.follow import silent_error
    from moola.launch.live_table import run_view
    from moola.runs.survey import survey_run
    from moola.runs.watching import RunWatcher

    watcher = RunWatcher(store)

    def is_over(runs: "Sequence[WatchedRun]") -> bool:
        (run,) = runs
        if run.summary.fault:
            raise ArtifactError(run.summary.fault)
        if run.summary.is_silent and not run.launches:
            raise silent_error(run_id, run.summary.silent_s)
        return not run.is_open

    watch_runs(
        settings,
        look=lambda: watcher.all(survey_run(store, run_id), [run_id]),
        draw=lambda runs, _: run_view(runs[0]),
        document=lambda runs: _watched_document(runs[0]),
        as_json=as_json,
        is_over=is_over,
    )


def _watched_document(run: "WatchedRun") -> dict[str, object]:
    """As `moola status` prints it without --watch. Raises ArtifactError for a damaged run."""
    from moola.runs.reading import RunState

    summary = run.summary
    if summary.state is None:
        raise ArtifactError(summary.fault)
    silent_s = None if summary.silent_s is None else round(summary.silent_s, 1)
    state = RunState(summary.state, summary.attempt, summary.status, run.heartbeat, silent_s)
    document = {
        "run": run.run_id,
        "name": summary.about.name,
        "tags": list(summary.about.tags),
        **state.fields(),
    }
    return {**document, "launches": list(run.launches)} if run.launches else document


def logs(
    run: RunArgument,
    follow: Annotated[bool, typer.Option("--follow", help="go on until the run ends")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="each line as a JSON object on a line of its own")
    ] = False,
    store: StoreOption = None,
) -> None:
    """Show the log of a run's newest attempt.

    Ctrl-C leaves the run alone.
    """
    from moola.launch import follow as following
    from moola.launch.console import output, print_text, terminal
    from moola.runs.reading import find_run, run_state
    from moola.store import open_store

    settings = read_settings(store)
    run_store = open_store(settings.store)
    run_id = find_run(run_store, run)
    attempt_id = run_state(run_store, run_id).attempt
    if attempt_id is None:
        print_text(f"{run_id} has not started", terminal())
        return

    log = _open_log(settings, run_store, run_id, attempt_id, live=follow)
    try:
        if not follow:
            following.show_records(log, output(), as_json=as_json)
            return
        following.follow(
            log,
            output(),
            has_ended=lambda: following.has_ended(run_store, run_id),
            poll_s=min(LONGEST_LOG_POLL_S, settings.watch.poll_s),
            as_json=as_json,
        )
    except KeyboardInterrupt:
        print_text(f"no longer following; to come back: moola logs {run_id} --follow", terminal())
        raise typer.Exit(EXIT_CANCELLED) from None
    finally:
        log.close()


def _open_log(
    settings: "Settings", store: "Store", run_id: str, attempt_id: str, *, live: bool
) -> "RunLog":
    """An attempt's log.

    With `live` also the live stream of the attempt's machine, where it has one and there is a key.
    """
    from moola.launch.run_log import LiveLines, RunLog
    from moola.runs.launches import newest_launch

    launch = newest_launch(store, run_id) if live and os.environ.get("RUNPOD_API_KEY") else None
    if launch is None or launch.attempt != attempt_id:
        return RunLog(store, run_id, attempt_id)

    from moola.launch.rented.machines import find_pod
    from moola.providers import open_pods

    pods = open_pods(settings.pods)
    pod = None
    with contextlib.suppress(LaunchError, TryAgainError):  # the store has the log as well
        pod = find_pod(pods, launch)
    live_lines = None if pod is None else LiveLines(pods, pod.id)
    return RunLog(store, run_id, attempt_id, live_lines)


def cancel(run: RunArgument, store: StoreOption = None) -> None:
    """Stop a run and end its machine."""
    from moola.cli.rented import open_session
    from moola.launch import local
    from moola.launch.console import print_text
    from moola.launch.endings import Endings
    from moola.runs.reading import find_run
    from moola.store import open_store

    settings = read_settings(store)
    run_store = open_store(settings.store)
    run_id = find_run(run_store, run)
    if _is_rented(run_store, run_id):
        state = open_session(run_id, store).cancel()
    else:
        state = local.cancel(run_store, run_id)
    print_text(f"{run_id}: {state}")
    endings = Endings(settings)
    endings.tell(run_store, run_id)
    endings.tell_groups(run_store)


def _is_rented(store: "Store", run_id: str) -> bool:
    """Is the newest attempt one on a rented machine, as far as the records can be read?"""
    from moola.runs.launches import newest_attempt, newest_launch

    try:
        launch = newest_launch(store, run_id)
        return launch is not None and launch.attempt == newest_attempt(store, run_id)
    except ArtifactError:
        return True

"""Follows an attempt on a rented machine: shows its log until it has a final state."""

import time

from moola.errors import LaunchError, TryAgainError
from moola.launch.follow import show_records
from moola.launch.progress import HeartbeatBar
from moola.launch.rented.context import RunContext
from moola.launch.rented.live_log import with_last_lines
from moola.launch.rented.observer import Observer
from moola.launch.rented.request import without_secrets
from moola.launch.run_log import LiveLines, RunLog
from moola.runs.launches import Launch, RentedMachine


def follow(run: RunContext, launch: Launch, machine: RentedMachine) -> None:
    """Show the log until the attempt has a final state, given by itself or by this launcher."""
    live_lines = LiveLines(run.pods, machine.pod_id)
    observer = Observer(run.watch, run.store, run.pods, launch, machine, live_lines.recent)
    log = RunLog(run.store, run.run_id, launch.attempt, live_lines)
    try:
        with HeartbeatBar(run.console, run.store, run.run_id, launch.attempt) as bar:
            while not _show_progress(run, launch, observer, live_lines, log, bar):
                time.sleep(run.watch.poll_s)
    finally:
        log.close()


def show_stored_log(run: RunContext, launch: Launch) -> None:
    """Print the log of an attempt that has ended."""
    show_records(RunLog(run.store, run.run_id, launch.attempt), run.console)


def _show_progress(
    run: RunContext,
    launch: Launch,
    observer: Observer,
    live_lines: LiveLines,
    log: RunLog,
    bar: HeartbeatBar,
) -> bool:
    """Print what is new in the log; -> is the attempt over?

    It is asked before the log is read, so that the last lines are shown. A store that does not
    answer is asked again the next time.
    """
    try:
        is_over = _is_over(run, launch, observer, live_lines)
        show_records(log, run.console)
        bar.update()
    except TryAgainError as error:
        run.say(f"no answer, trying again: {error}")
        return False
    return is_over


def _is_over(run: RunContext, launch: Launch, observer: Observer, live_lines: LiveLines) -> bool:
    """Has the attempt a final state, or has it been given one now?

    The reason of one that is given here has the machine's last lines in it.
    """
    if run.final_state(launch) is not None:
        return True

    try:
        ending = observer.ending()
    except (LaunchError, TryAgainError) as error:  # the job goes on, and the store tells its end
        run.say(f"no answer, trying again: {error}")
        return False
    if ending is None:
        return False

    if ending.state == "infra_lost":  # the job's last word may still be on its way
        time.sleep(run.watch.poll_s)
    reason = without_secrets(with_last_lines(ending.reason, live_lines.recent()))
    run.end_attempt(launch, ending.state, reason, ending.exit_code)
    return True

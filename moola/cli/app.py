"""Submit jobs, follow them, check and fetch what they made.

Exit codes: 0 done, 1 gate failed, 2 usage, 3 bad input, 4 artifact missing or corrupt, 5 training
diverged, 6 launch refused, 70 a fault of moola's, 75 try again, 124 time limit, 130 cancelled
(Ctrl-C), 143 terminated (SIGTERM).
"""

import gc
import os
import signal
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from moola.cli import (
    bars,
    comparing,
    jobs,
    listing,
    predicting,
    removal,
    rented,
    results,
    runs,
    searching,
    setup,
    stores,
    sweeps,
    tracking,
)
from moola.cli.options import work_in_use
from moola.errors import EXIT_CANCELLED, EXIT_DONE, DataError, exit_code_of, is_disk_full
from moola.runs.redaction import safe_output

DEBUG = "MOOLA_DEBUG"  # as in moola.runs.faults, which is imported where something fails

app = typer.Typer(
    help=__doc__,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
store_app = typer.Typer(help="Look after the store.", no_args_is_help=True)
sweep_app = typer.Typer(help="Run a job many times, as one group.", no_args_is_help=True)


@app.callback()
def start(
    debug: Annotated[
        bool, typer.Option("--debug", help="show the traceback of an error  [MOOLA_DEBUG]")
    ] = False,
) -> None:
    if debug:
        os.environ[DEBUG] = "1"  # also for the process of a job


app.command("bars")(bars.show_bars)
app.command("precompute")(jobs.precompute)
app.command("train")(jobs.train)
app.command("rerun")(comparing.rerun)
app.add_typer(sweep_app, name="sweep")
app.command("search")(searching.search)
app.command("group")(sweeps.show_group)
app.command("predict")(predicting.predict)
app.command("verify")(results.verify)
app.command("pull")(results.pull)
app.command("list")(listing.list_runs)
app.command("tag")(listing.tag_run)
app.command("track")(tracking.track)
app.command("compare")(comparing.compare)
app.command("status")(runs.status)
app.command("logs")(runs.logs)
app.command("attach")(rented.attach)
app.command("cancel")(runs.cancel)
app.command("reap")(rented.reap)
app.command("tend")(rented.tend)
app.command("cost")(rented.cost)
app.command("remove")(removal.remove)
app.command("gc")(removal.gc)
app.command("doctor")(setup.doctor)
app.command("spec")(setup.show_spec)
app.add_typer(store_app, name="store")
sweep_app.command("precompute")(sweeps.sweep_precompute)
sweep_app.command("train")(sweeps.sweep_train)
store_app.command("check")(stores.check)
store_app.command("sweep")(stores.sweep)


def main() -> None:
    """Run the command that the arguments name; exits with its exit code."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with safe_output():
        exit_code = run(sys.argv[1:])
    gc.freeze()  # no last collection: a third of a second after pandas, for nothing
    raise SystemExit(exit_code)


def run(arguments: Sequence[str]) -> int:
    """Run a command -> its exit code, one of those above."""
    work_in_use.set(None)
    try:
        exit_code = _run_command(arguments)
        sys.stdout.flush()
    except Exception as error:
        exit_code = _tell(error)
        _drop_what_cannot_be_written()
    return exit_code


def _run_command(arguments: Sequence[str]) -> int:
    try:
        # The same name also as `python -m moola` and `python deploy/launch.py`.
        app(args=_with_debug_first(arguments), prog_name="moola")
    except KeyboardInterrupt:
        return EXIT_CANCELLED
    except SystemExit as ending:  # typer has told what was wrong
        return ending.code if isinstance(ending.code, int) else EXIT_DONE
    return EXIT_DONE


def _with_debug_first(arguments: Sequence[str]) -> list[str]:
    """--debug may stand anywhere; it is an option of `moola` itself."""
    if "--debug" not in arguments:
        return list(arguments)
    return ["--debug", *(argument for argument in arguments if argument != "--debug")]


def _tell(error: Exception) -> int:
    """Tell what an error was -> its exit code."""
    from moola.launch.console import print_error, print_text, terminal
    from moola.runs.faults import describe_end, is_debugging, traceback_text

    if isinstance(error, OSError) and not is_disk_full(error):
        error = DataError(str(error))  # a file of the user's: the store raises errors of its own
    if is_debugging(os.environ):
        print_text(traceback_text(error), terminal())
    print_error(describe_end(error, work_in_use.get()))
    return exit_code_of(error)


def _drop_what_cannot_be_written() -> None:
    """Python tries once more at its end, and complains, where standard output is a full disk."""
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


if __name__ == "__main__":
    main()

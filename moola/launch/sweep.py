"""A sweep: the runs of a group, submitted together and run to their end.

Whatever can be refused of any of them is refused before anything is sent.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import typer

from moola.jobs.prepare import PreparedRun
from moola.launch.capacity import this_computer
from moola.launch.console import print_table, print_text, terminal
from moola.launch.endings import MemberEndings, require_told
from moola.launch.group_notices import tell_group_end
from moola.launch.group_table import group_tables
from moola.launch.member_progress import MemberProgress
from moola.launch.members import LocalMembers, first_failure
from moola.launch.settings import Settings
from moola.launch.submit import upload_inputs
from moola.runs.environment import beat_s
from moola.runs.groups import Group, group_of, put_group
from moola.runs.heartbeat import BEAT_S
from moola.runs.reading import read_manifest
from moola.runs.submit import read_spec_document, submit
from moola.runs.usage import usage
from moola.runs.workdir import require_writable
from moola.store import Store, open_store
from moola.store.background import map_in_background

READERS = 12  # requests under way at a time


@dataclass(frozen=True)
class Sweep:
    """The runs of a sweep, each once. `titles` tells them apart: run id -> text.

    `study` is the name of a search whose trials these are; their group is written at its end.
    """

    job: str
    runs: tuple[PreparedRun, ...]
    titles: Mapping[str, str]
    study: str = ""

    @property
    def group(self) -> Group:
        return group_of(self.job, self.titles)

    @property
    def name(self) -> str:
        """What brings its runs together for people."""
        return self.study or self.group.id


class Ended(NamedTuple):
    """Run id -> exit code, of the runs that were not committed; did a person stop them?"""

    exit_codes: Mapping[str, int]
    is_stopped: bool


NOTHING_LEFT = Ended({}, is_stopped=False)


class Runner(Protocol):
    """A place where the runs of a sweep are run."""

    def at_once(self, runs: Sequence[PreparedRun]) -> int:
        """How many of these runs are run at once."""

    def run(self, sweep: Sweep) -> Ended:
        """Submit the runs that are not committed, and run them to their end."""


def sweep_of(job: str, members: Sequence[tuple[str, PreparedRun]], study: str = "") -> Sweep:
    """The sweep of (title, run) pairs; runs that are the same work are one, by its first title."""
    titles: dict[str, str] = {}
    runs: dict[str, PreparedRun] = {}
    for title, run in members:
        titles.setdefault(run.run_id, title)
        runs.setdefault(run.run_id, run)
    return Sweep(job, tuple(runs.values()), titles, study)


def run_sweep(settings: Settings, sweep: Sweep, *, parallel: int | None = None) -> None:
    """Submit the runs that are not committed, and run them here.

    Raises typer.Exit with the exit code of the first run that failed.
    """
    require_told(settings)
    store = open_store(settings.store)
    ended = LocalRunner(settings, store, parallel).run(sweep)
    finish(store, sweep, ended.exit_codes)


def finish(store: Store, sweep: Sweep, exit_codes: Mapping[str, int]) -> None:
    """Tell of the group's end, and show how its members stand.

    Raises typer.Exit with the first exit code that is not 0.
    """
    if exit_codes:
        tell_group_end(store, sweep.group.id, is_left=True)
    show_group(store, sweep.group)
    exit_code = first_failure(exit_codes)
    if exit_code:
        raise typer.Exit(exit_code)


def runs_left(store: Store, sweep: Sweep) -> list[PreparedRun]:
    """The runs that are not committed. What stands for the others is checked to be theirs."""

    def is_left(run: PreparedRun) -> bool:
        if read_manifest(store, run.run_id) is None:
            return True
        read_spec_document(store, run.run_id)
        return False

    answers = map_in_background(is_left, sweep.runs, READERS)
    return [run for run, is_one in zip(sweep.runs, answers, strict=True) if is_one]


def submit_group(store: Store, sweep: Sweep, runs: Sequence[PreparedRun]) -> None:
    """Upload what these runs read, write their specs, and then the group that names all."""
    submit_runs(store, runs)
    if sweep.study:
        return

    group = sweep.group
    put_group(store, group)
    n_done = len(sweep.runs) - len(runs)
    print_text(
        f"{group.id}: {len(sweep.runs)} runs, {n_done} of them committed already", terminal()
    )


def submit_runs(store: Store, runs: Sequence[PreparedRun]) -> None:
    """Upload what these runs read, each file once, and write their specs."""
    uploaded: set[str] = set()
    for run in runs:
        keys = {run.input_file(name).key for name in run.inputs}
        if not keys <= uploaded:
            upload_inputs(store, run)
        uploaded |= keys
        submit(store, run.run_id, run.document)


@dataclass(frozen=True)
class LocalRunner:
    """This computer; `parallel` runs at once, or as many as cores and memory allow."""

    settings: Settings
    store: Store
    parallel: int | None

    def at_once(self, runs: Sequence[PreparedRun]) -> int:
        """How many of these runs are run at once."""
        gpus = gpus_for(runs)
        most = min(len(runs), len(gpus) or len(runs))
        return self.parallel or this_computer().jobs_at_once(most)

    def run(self, sweep: Sweep) -> Ended:
        """Submit the runs that are not committed, and run them to their end."""
        left = runs_left(self.store, sweep)
        if left:
            require_writable(self.settings.work)
            beat_s(os.environ, BEAT_S)  # the jobs would refuse it, but only once all is uploaded

        submit_group(self.store, sweep, left)
        return self._run(sweep, left) if left else NOTHING_LEFT

    def _run(self, sweep: Sweep, left: Sequence[PreparedRun]) -> Ended:
        at_once = self.at_once(left)
        threads = this_computer().threads_of_each(at_once)
        gpus = gpus_for(left)
        members = LocalMembers(self.settings, self.store, sweep.job, at_once, threads, gpus)

        noun = "thread" if threads == 1 else "threads"
        print_text(f"{at_once} at once, {threads} {noun} each", terminal())
        titles = {run.run_id: sweep.titles[run.run_id] for run in left}
        endings = MemberEndings(self.settings, self.store, sweep.name, sweep.titles)
        with MemberProgress(terminal(), self.store, titles, endings.tell) as progress:
            exit_codes = members.run(list(titles), progress)
        return Ended(exit_codes, progress.is_stopped)


def gpus_for(runs: Sequence[PreparedRun]) -> tuple[str, ...]:
    """The GPUs of this computer that the runs may use, by their numbers; () where they use none."""
    if all(run.job != "train" or run.document.spec.get("device") == "cpu" for run in runs):
        return ()

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(number for number in visible.split(",") if number)
    return tuple(str(number) for number in range(len(usage().gpus)))


def show_group(store: Store, group: Group) -> None:
    """Show how the members stand, and how to come back."""
    for table in group_tables(store, group):
        print_table(table)
    print_text(f"to see it again: moola group {group.id}", terminal())

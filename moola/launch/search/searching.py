"""A search: rounds of trials, each an ordinary train run, until there are as many as are wanted.

A round is as many trials as run at once. Killed at any point, the same command goes on: trials that
are left open in the study are run first, and a run that is committed costs nothing.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import typer

from moola.errors import EXIT_CANCELLED, EXIT_DONE, EXIT_TERMINATED, DataError, TryAgainError
from moola.evaluation.comparison import Fields, fields_of
from moola.jobs.prepare import PreparedRun
from moola.launch.console import print_table, print_text, terminal
from moola.launch.endings import require_told
from moola.launch.grid import Overrides, require_not_fixed
from moola.launch.group_notices import tell_group_end
from moola.launch.members import first_failure
from moola.launch.search.objective import direction_of, objective_value
from moola.launch.search.space import Range, Space, short_text, title_of_point
from moola.launch.search.study import Definition, SearchStudy, Trial, open_study
from moola.launch.search.trials import best_text, check_told, trials_table, write_group
from moola.launch.settings import Settings
from moola.launch.sweep import NOTHING_LEFT, Ended, LocalRunner, Runner, sweep_of
from moola.runs.groups import MAX_MEMBERS
from moola.runs.protocol import canonical_json
from moola.runs.records import SpecDocument
from moola.store import Store, open_store

NAME_DIGITS = 12
MOST_FAILURES_IN_A_ROW = 3  # of trials, or of a round where that has more
TO_BE_REPEATED = (TryAgainError.exit_code, EXIT_TERMINATED)  # the trial stays open
Prepare = Callable[[Overrides], PreparedRun]


@dataclass(frozen=True)
class Search:
    """What is searched. `sample` is the run of one point; `prepare` raises DataError for a bad one.

    n_trials  in all, earlier commands' and failed ones among them
    seed      of the draws
    """

    definition: Definition
    n_trials: int
    seed: int
    prepare: Prepare
    sample: PreparedRun
    study: str

    @property
    def name(self) -> str:
        """Of its study: a fingerprint of all that decides the trials, where none was given."""
        if self.study:
            return self.study
        digest = hashlib.sha256(canonical_json([self.definition.document(), self.seed]))
        return f"search-{digest.hexdigest()[:NAME_DIGITS]}"


def plan_search(
    space: Space,
    fixed: Mapping[str, object],
    prepare: Prepare,
    *,
    objective: str,
    n_trials: int,
    seed: int,
    study: str = "",
) -> Search:
    """A search whose corners were prepared: a bad bound or value is refused here, as DataError."""
    require_not_fixed(space.dimensions, fixed)
    if n_trials > MAX_MEMBERS:
        raise DataError(f"--trials must be at most {MAX_MEMBERS:,}, got {n_trials:,}")

    points = list(space.corners())
    corners = [prepare(point) for point in points]
    _require_floats(space, corners[0].document)
    if points[0] != points[1] and corners[0].run_id == corners[1].run_id:
        raise DataError(f"--over {', '.join(space.dimensions)}: these values change no run")

    documents = [run.document for run in corners]
    direction = direction_of(objective, _class_names(documents[0]))
    definition = Definition(space, objective, direction, _common(documents, space))
    return Search(definition, n_trials, seed, prepare, corners[0], study)


def _require_floats(space: Space, document: SpecDocument) -> None:
    """Raises DataError for a range of floats of a field that takes whole numbers alone."""
    fields = fields_of(document)
    for name, dimension in space.dimensions.items():
        is_of_floats = isinstance(dimension, Range) and isinstance(dimension.low, float)
        if is_of_floats and isinstance(fields.get(name), int):
            raise DataError(f"--over {name} takes whole numbers, got {dimension.text()}")


def _class_names(document: SpecDocument) -> list[str]:
    labels = document.spec["labels"]
    classes = labels["classes"] if isinstance(labels, dict) else None
    return [str(name) for name in classes] if isinstance(classes, list) else []


def _common(documents: Sequence[SpecDocument], space: Space) -> Fields:
    """What all runs of a search have in common: fields of the spec, inputs, code."""
    first, *others = [fields_of(document) for document in documents]
    searched = tuple(space.dimensions)
    return {
        name: value
        for name, value in first.items()
        if not any(name == each or name.startswith(f"{each}.") for each in searched)
        and all(name in other and other[name] == value for other in others)
    }


# --- the rounds -------------------------------------------------------------------------------


def run_search(
    settings: Settings, search: Search, *, parallel: int | None, storage_url: str | None
) -> None:
    """Go on with a search until it has all its trials, and show them.

    Raises typer.Exit with the exit code of a run where the search cannot go on, and what
    `open_study` raises.
    """
    require_told(settings)
    store = open_store(settings.store)
    study = open_study(store, storage_url, search.name, search.definition, search.seed)
    trials = study.trials()
    check_told(store, study, trials)

    exit_code = EXIT_DONE
    if _n_left(search, trials) or _open_ones(trials):
        print_text(f"{study.place}: {len(trials)} of {search.n_trials} trials so far", terminal())
        with _open_runner(settings, store, search, parallel) as runner:
            exit_code = _Rounds(store, study, search, runner).run()

    trials = study.trials()
    if trials:
        print_table(trials_table(study, trials))
    if exit_code:
        print_text("the same command goes on with it", terminal())
        raise typer.Exit(exit_code)
    _show_end(store, study, trials)


def _show_end(store: Store, study: SearchStudy, trials: Sequence[Trial]) -> None:
    best = best_text(study, trials)
    if not best:
        raise DataError(
            f"no trial of {study.place} has a value of {study.definition.objective}: look at "
            "`moola logs RUN` of one of its runs"
        )
    print_text(best)
    group = write_group(store, trials)
    if group is not None:
        tell_group_end(store, group.id, is_left=True)
        print_text(f"its runs: moola group {group.id}; moola compare {group.id}", terminal())


def _open_ones(trials: Sequence[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.outcome == "running"]


def _n_left(search: Search, trials: Sequence[Trial]) -> int:
    return max(search.n_trials - len(trials), 0)


@contextlib.contextmanager
def _open_runner(
    settings: Settings, store: Store, search: Search, parallel: int | None
) -> Iterator[Runner]:
    """Where the trials run, as many at once in each round."""
    runs = [search.sample] * search.n_trials
    if settings.on == "ray":
        from moola.launch.on_ray.sweep import open_runner

        with open_runner(settings, store, runs, parallel) as on_ray:
            yield replace(on_ray, parallel=on_ray.at_once(runs))
    else:
        here = LocalRunner(settings, store, parallel)
        yield replace(here, parallel=here.at_once(runs))


@dataclass
class _Rounds:
    """The rounds of a search by this launcher."""

    store: Store
    study: SearchStudy
    search: Search
    runner: Runner
    _failures: list[int] = field(default_factory=list)  # exit codes, since a trial had a value

    def run(self) -> int:
        """Rounds until there are enough trials; -> 0, or the exit code that ends the search."""
        while trials := self._next():
            exit_code = self._round(trials)
            if exit_code:
                return exit_code
        return EXIT_DONE

    def _next(self) -> list[Trial]:
        """The trials that are left open in the study, else new ones."""
        trials = self.study.trials()
        at_once = self.runner.at_once([self.search.sample])
        n_new = min(at_once, _n_left(self.search, trials))
        return _open_ones(trials) or [self.study.ask() for _ in range(n_new)]

    def _round(self, trials: Sequence[Trial]) -> int:
        """Run trials and tell how they ended; -> 0, or the exit code that ends the search."""
        numbers = ", ".join(str(trial.number) for trial in trials)
        noun = "trial" if len(trials) == 1 else "trials"
        print_text(f"{noun} {numbers} of {self.search.n_trials}, counted from 0", terminal())

        n_failures = len(self._failures)
        runs = self._prepared(trials)
        ended = NOTHING_LEFT
        if runs:
            members = [(title_of_point(trial.point), run) for trial, run in runs]
            ended = self.runner.run(sweep_of("train", members, self.study.name))
        open_codes = list(filter(None, [self._tell(trial, run, ended) for trial, run in runs]))

        if ended.is_stopped or open_codes:
            return first_failure(ended.exit_codes) or EXIT_CANCELLED
        is_all = len(self._failures) - n_failures == len(trials)
        if is_all and len(self._failures) >= MOST_FAILURES_IN_A_ROW:
            print_text(f"the last {len(self._failures)} trials have all failed", terminal())
            return self._failures[0]
        return EXIT_DONE

    def _prepared(self, trials: Sequence[Trial]) -> list[tuple[Trial, PreparedRun]]:
        """The trials with their runs. A point that can be no run is told as failed."""
        runs = []
        for trial in trials:
            try:
                run = self.search.prepare(trial.point)
            except DataError as error:
                self._fail(trial, error.exit_code, str(error))
                continue
            self.study.name_run(trial, run.run_id)
            runs.append((trial, run))
        return runs

    def _tell(self, trial: Trial, run: PreparedRun, ended: Ended) -> int:
        """Tell how a trial ended; -> 0, or the exit code of one that stays open."""
        exit_code = ended.exit_codes.get(run.run_id, EXIT_DONE)
        if exit_code in TO_BE_REPEATED or (ended.is_stopped and exit_code == EXIT_CANCELLED):
            return exit_code
        if exit_code:
            self._fail(trial, exit_code, f"{run.run_id} ended with {exit_code}")
            return EXIT_DONE

        objective = self.search.definition.objective
        value = objective_value(self.store, run.run_id, objective)
        if value is None:
            reason = f"{run.run_id} has no value of {objective} on its validation split"
            self._fail(trial, DataError.exit_code, reason)
            return EXIT_DONE
        self.study.tell(trial, value)
        self._failures.clear()
        print_text(f"trial {trial.number}: {objective} {short_text(value)}", terminal())
        return EXIT_DONE

    def _fail(self, trial: Trial, exit_code: int, reason: str) -> None:
        print_text(f"trial {trial.number} failed: {reason}", terminal())
        self.study.tell(trial, None)
        self._failures.append(exit_code)

"""The trials of a search as they stand: checked against their runs, as a table, as a group."""

import math
from collections.abc import Sequence

from rich.table import Column, Table

from moola.errors import ArtifactError
from moola.launch.console import one_line
from moola.launch.search.objective import MAXIMIZE, objective_value
from moola.launch.search.space import set_arguments, short_text
from moola.launch.search.study import Definition, SearchStudy, Trial
from moola.runs.groups import Group, group_of, put_group
from moola.runs.protocol import SPEC, run_key
from moola.runs.reading import read_commit
from moola.store import Store
from moola.store.background import map_in_background

READERS = 12  # requests under way at a time
MOST_ROWS = 20


def check_told(store: Store, study: SearchStudy, trials: Sequence[Trial]) -> None:
    """Raises ArtifactError where a study says of a committed run what the run does not say.

    A run that was removed says nothing.
    """

    def measured(trial: Trial) -> float | None:
        if read_commit(store, trial.run_id) is None:
            return trial.value
        return objective_value(store, trial.run_id, study.definition.objective)

    complete = [trial for trial in trials if trial.outcome == "complete"]
    values = map_in_background(measured, complete, READERS)
    for trial, value in zip(complete, values, strict=True):
        assert trial.value is not None
        if value is None or not math.isclose(value, trial.value):  # a database may round
            raise ArtifactError(
                f"{study.place} is damaged: trial {trial.number} has the value {trial.value}, and "
                f"its run {trial.run_id} has {value}"
            )


def ranked(trials: Sequence[Trial], definition: Definition) -> list[Trial]:
    """Those with a value, best first; the others behind them, by number."""
    sign = -1 if definition.direction == MAXIMIZE else 1

    def place(trial: Trial) -> tuple[bool, float, int]:
        value = 0.0 if trial.value is None else sign * trial.value
        return trial.value is None, value, trial.number

    return sorted(trials, key=place)


def trials_table(study: SearchStudy, trials: Sequence[Trial]) -> Table:
    """The best trials, a row each."""
    definition = study.definition
    fields = list(definition.space.dimensions)
    order = "highest" if definition.direction == MAXIMIZE else "lowest"
    n_failed = sum(trial.outcome == "failed" for trial in trials)
    failed = f", {n_failed} failed" if n_failed else ""
    table = Table(
        Column("trial", no_wrap=True, justify="right"),
        Column("run", no_wrap=True),
        Column("value", no_wrap=True, justify="right"),
        *[Column(one_line(name)) for name in _short_names(fields)],
        title=(
            f"{study.name}: {len(trials)} trials{failed}\n"
            f"validation {definition.objective}, {order} first"
        ),
    )
    shown = ranked(trials, definition)[:MOST_ROWS]
    for trial in shown:
        value = trial.outcome if trial.value is None else short_text(trial.value)
        values = [short_text(trial.point[field]) for field in fields]
        table.add_row(str(trial.number), trial.run_id or "-", value, *map(one_line, values))
    if len(trials) > len(shown):
        table.caption = f"and {len(trials) - len(shown)} more"
    return table


def _short_names(fields: Sequence[str]) -> list[str]:
    """The last part of each dotted name; all of it where two would be alike."""
    last = [field.rpartition(".")[2] for field in fields]
    return [
        name if last.count(name) == 1 else field for name, field in zip(last, fields, strict=True)
    ]


def best_text(study: SearchStudy, trials: Sequence[Trial]) -> str:
    """The best trial, and how to go on with its point; "" where none has a value."""
    best = next(iter(ranked(trials, study.definition)), None)
    if best is None or best.value is None:
        return ""
    return (
        f"best: trial {best.number}, {best.run_id}, {study.definition.objective} "
        f"{short_text(best.value)}\n"
        f"its point: {set_arguments(best.point)}\n"
        f"once more with another seed: moola rerun {best.run_id} --set training.seed=1"
    )


def write_group(store: Store, trials: Sequence[Trial]) -> Group | None:
    """The group of the trials' runs, those that are in the store; None for none."""

    def is_there(trial: Trial) -> bool:
        return bool(trial.run_id) and store.exists(run_key(trial.run_id, SPEC))

    answers = map_in_background(is_there, trials, READERS)
    there = [trial.run_id for trial, is_one in zip(trials, answers, strict=True) if is_one]
    if not there:
        return None
    group = group_of("train", there)
    put_group(store, group)
    return group

"""How the members of a group stand, as a table and as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Column, Table

from moola.errors import ArtifactError
from moola.launch.console import one_line
from moola.runs.groups import Group, differences
from moola.runs.reading import run_state
from moola.runs.records import SpecDocument, State
from moola.runs.submit import read_spec_document
from moola.runs.survey import RunSummary
from moola.store import Store
from moola.store.background import map_in_background

if TYPE_CHECKING:  # numpy takes longer to import than a table to print
    from moola.evaluation.cross_validation import CrossValidated

READERS = 12  # requests under way at a time
LONGEST_ID = 28  # characters of a run's id that are shown
DAMAGED = "damaged"


@dataclass(frozen=True)
class MemberState:
    """A member: what tells it from the others, and how it stands. `differs` is field -> value.

    `document` is None where it is damaged.
    """

    run_id: str
    state: str
    reason: str
    differs: dict[str, str]
    document: SpecDocument | None = None


def member_states(store: Store, group: Group) -> list[MemberState]:
    """All members, in the order of what tells them apart. One that is damaged stops no other."""
    answers = list(map_in_background(lambda run_id: _read(store, run_id), group.members, READERS))
    documents = [document for document, _, _ in answers if document is not None]
    rows = iter(differences(documents))

    states = []
    for run_id, (document, state, reason) in zip(group.members, answers, strict=True):
        differs = {} if document is None else next(rows)
        states.append(MemberState(run_id, state, reason, differs, document))
    return sorted(states, key=_place)


def _read(store: Store, run_id: str) -> tuple[SpecDocument | None, str, str]:
    """(spec.json, state, reason) of a run; what is damaged is the reason."""
    document = None
    try:
        document = read_spec_document(store, run_id)
        run = run_state(store, run_id)
    except ArtifactError as error:
        return document, DAMAGED, str(error)

    state = f"silent for {run.silent_s:.0f} s" if run.is_silent else str(run.state)
    return document, state, "" if run.state is State.COMMITTED else run.reason


def _place(member: MemberState) -> tuple[list[tuple[bool, float, str]], str]:
    """Numbers in their order, and before texts."""
    return [_sort_key(text) for text in member.differs.values()], member.run_id


def _sort_key(text: str) -> tuple[bool, float, str]:
    try:
        return False, float(text), ""
    except ValueError:
        return True, 0.0, text


def group_tables(store: Store, group: Group) -> list[Table]:
    """How the members stand, and what those that are folds of a cross-validation give together."""
    members = member_states(store, group)
    tables = [members_table(group, members)]

    cross_validated = cross_validations_of(store, members)
    if cross_validated:
        from moola.evaluation.cross_validation_table import cross_validation_table

        tables.append(cross_validation_table(cross_validated))
    return tables


def cross_validations_of(store: Store, members: Sequence[MemberState]) -> "list[CrossValidated]":
    """Those of the members' whose specs can be read; no more is read of a group without folds."""
    documents = {
        member.run_id: member.document
        for member in members
        if member.document is not None and member.document.spec.get("cross_validate") is not None
    }
    if not documents:
        return []

    from moola.evaluation.cross_validation import cross_validations

    return cross_validations(store, documents)


def members_table(group: Group, members: list[MemberState]) -> Table:
    """One row a member: its id, state, what tells it from the others, and the reason."""
    fields = max((list(member.differs) for member in members), key=len)
    table = Table(
        Column("run", no_wrap=True, max_width=LONGEST_ID),
        Column("state", no_wrap=True),
        *[Column(one_line(field)) for field in fields],
        Column("reason", overflow="ellipsis"),
        title=f"{group.id}: {summary(members)}",
    )
    for member in members:
        values = [member.differs.get(field, "-") for field in fields]
        table.add_row(*map(one_line, (member.run_id, member.state, *values, member.reason)))
    return table


def summary(members: list[MemberState]) -> str:
    """How many are in which state: 3 committed, 1 failed."""
    counts: dict[str, int] = {}
    for member in members:
        word = "silent" if member.state.startswith("silent") else member.state
        counts[word] = counts.get(word, 0) + 1
    return ", ".join(f"{count} {word}" for word, count in sorted(counts.items()))


def group_document(store: Store, group: Group) -> dict[str, object]:
    """Ready for JSON: what `moola group --json` prints."""
    members = member_states(store, group)
    return {
        "group": group.id,
        "job": group.job,
        "members": [member_document(member) for member in members],
        "cross_validation": [each.document() for each in cross_validations_of(store, members)],
    }


def member_document(member: MemberState) -> dict[str, object]:
    """Ready for JSON."""
    return {
        "run": member.run_id,
        "state": member.state,
        "reason": member.reason,
        "differs": member.differs,
    }


def member_of(run: RunSummary, differs: dict[str, str]) -> MemberState:
    """A member by what a survey has found of it."""
    state = f"silent for {run.silent_s:.0f} s" if run.is_silent else run.shown_state
    return MemberState(run.run_id, state, run.reason, differs)


def plan_table(group: Group, titles: Mapping[str, str]) -> Table:
    """For a dry run: the runs that the group would have."""
    table = Table(
        Column("run", no_wrap=True, max_width=LONGEST_ID),
        Column("", overflow="fold"),
        title=f"{group.id}: {len(titles)} runs",
    )
    for run_id, title in titles.items():
        table.add_row(run_id, title)
    return table

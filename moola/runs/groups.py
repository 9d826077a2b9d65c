"""Groups: a document in the store that names the runs of a sweep.

    groups/<group_id>/group.json    write-once: the job, and the ids of the members

Members are ordinary runs with ordinary ids. A group's id is a fingerprint of theirs, so the same
sweep is the same group, and what its document names can be checked against its id.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Self

from pydantic import (
    Field,
    JsonValue,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from moola.errors import ArtifactError, DataError
from moola.runs.binding import FINGERPRINT_DIGITS, job_of
from moola.runs.protocol import REMOVED, canonical_json
from moola.runs.records import InputRun, Record, RunId, SpecDocument, Usd, read_record
from moola.store import Store
from moola.text import quoted

MAX_MEMBERS = 1000
GROUPS = "groups"
DOCUMENT = "group.json"

GroupId = Annotated[str, StringConstraints(pattern=rf"^group-[0-9a-f]{{{FINGERPRINT_DIGITS}}}$")]
_GROUP_ID: TypeAdapter[str] = TypeAdapter(GroupId)


class Budget(Record):
    """What the runs of a group may cost and rent together, whoever launches them. USD."""

    group: GroupId
    max_spend: Usd
    max_machines: Annotated[int, Field(ge=1, le=MAX_MEMBERS)]


class Group(Record):
    """group.json: runs of one job, their ids sorted, each named once."""

    job: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
    members: tuple[RunId, ...] = Field(min_length=1, max_length=MAX_MEMBERS)

    @model_validator(mode="after")
    def _check_members(self) -> Self:
        if list(self.members) != sorted(set(self.members)):
            raise ValueError("members must be sorted, each named once")

        for member in self.members:
            if job_of(member) != self.job:
                raise ValueError(f"members must be {self.job} runs, got {quoted(member)}")
        return self

    @property
    def id(self) -> str:
        """The fingerprint of the members' ids."""
        digest = hashlib.sha256(canonical_json(list(self.members))).hexdigest()
        return f"group-{digest[:FINGERPRINT_DIGITS]}"


@dataclass(frozen=True)
class Member:
    """A run's place in a group: the group's id, and what tells the run from the others."""

    group_id: str = ""
    title: str = ""


NO_MEMBER = Member()


def group_of(job: str, run_ids: Iterable[str]) -> Group:
    """The group of these runs. Raises DataError for none or too many."""
    members = tuple(sorted(set(run_ids)))
    if not 1 <= len(members) <= MAX_MEMBERS:
        raise DataError(f"a group must have 1 to {MAX_MEMBERS:,} runs, got {len(members):,}")
    return Group(job=job, members=members)


def put_group(store: Store, group: Group) -> None:
    """Write the group's document. The same group again changes nothing.

    Raises ArtifactError for a group that is being removed.
    """
    document = {"schema": 1, **group.model_dump(mode="json")}
    store.put_once(group_key(group.id), canonical_json(document))
    if is_being_removed(store, group.id):
        raise ArtifactError(
            f"{group.id} is half removed from {store.url}: moola remove {group.id} finishes it"
        )


def is_being_removed(store: Store, group_id: str) -> bool:
    """Whether somebody has begun to remove the group."""
    return store.exists(group_key(group_id, REMOVED))


def read_group(store: Store, group_id: str) -> Group:
    """A group's document.

    Raises ArtifactError if it is missing, damaged, or names other runs than its id stands for.
    """
    key = group_key(group_id)
    group = read_record(store, key, Group)
    if group.id != group_id:
        raise ArtifactError(
            f"{key} in {store.url} was changed after it was written: its members are those of "
            f"{group.id}"
        )
    return group


def find_group(store: Store, name: str) -> str:
    """A group's whole id from its start, with or without `group-`.

    Raises DataError if no group, or more than one, starts so.
    """
    start = name if name.startswith("group-") else f"group-{name}"
    names = store.children(GROUPS)
    matches = [each for each in names if is_group_id(each) and each.startswith(start)]
    if len(matches) != 1:
        listed = ", ".join(matches) or "none"
        raise DataError(
            f"GROUP must be a group's id or the start of exactly one, got {quoted(name)}: "
            f"{listed} ({store.url})"
        )
    return matches[0]


def is_group_id(name: str) -> bool:
    """Whether a name can be that of a group."""
    try:
        _GROUP_ID.validate_python(name)
    except ValidationError:
        return False
    return True


def group_key(group_id: str, *parts: str) -> str:
    """A key below a group; without parts that of its document."""
    return "/".join((GROUPS, group_id, *(parts or (DOCUMENT,))))


# --- what differs -----------------------------------------------------------------------------


def differences(documents: Sequence[SpecDocument]) -> list[dict[str, str]]:
    """For each run the fields and inputs in which not all of them are alike, name -> text."""
    rows = [flat_fields(document) for document in documents]
    names = sorted({name for row in rows for name in row})
    differing = [name for name in names if len({row.get(name) for row in rows}) > 1]
    return [{name: row.get(name, "-") for name in differing} for row in rows]


def flat_fields(document: SpecDocument) -> dict[str, str]:
    """The fields of a spec by dotted name, and its inputs, as texts."""
    fields = dict(_leaves(document.spec))
    for name, item in document.inputs.items():
        fields[name] = item.run if isinstance(item, InputRun) else item.name
    return fields


def _leaves(fields: Mapping[str, JsonValue], prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _text(value)


def _text(value: JsonValue) -> str:
    return value if isinstance(value, str) else canonical_json(value).decode()

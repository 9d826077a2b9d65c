"""Removing groups: the runs first, then the ledger, and the document that names the runs last.

`groups/<group_id>/REMOVED.json` is written before anything is deleted, and deleted after all else.
A sweep looks for it after it has written the group's document, and whoever removes looks at the
runs after the mark: one of the two sees the other. The ledger goes only when no run of the group
has anything left in the store, so that the money of an open group is never forgotten.
"""

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from moola.errors import ArtifactError, DataError
from moola.runs.groups import (
    GROUPS,
    Group,
    group_key,
    is_being_removed,
    is_group_id,
    read_group,
)
from moola.runs.protocol import REMOVED, canonical_json, now_text, run_key
from moola.runs.removal import (
    read_text,
    readers_in,
    removal_order,
    remove_runs,
    state_under_way,
)
from moola.runs.survey import READERS, survey_runs
from moola.store import Store
from moola.store.background import map_in_background

log = logging.getLogger("moola")


def groups_in(store: Store) -> list[Group]:
    """All groups of a store; one that is damaged names no run, and is passed over."""
    names = [name for name in store.children(GROUPS) if is_group_id(name)]
    groups = map_in_background(lambda name: _read_or_none(store, name), names, READERS)
    return [group for group in groups if group is not None]


def _read_or_none(store: Store, group_id: str) -> Group | None:
    try:
        return read_group(store, group_id)
    except ArtifactError as error:
        if store.exists(group_key(group_id)):  # else a folder that the server has kept
            log.warning("passed over: %s", error)
        return None


# --- one group --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Removed:
    """What came of the removal of a group: `stay` is run -> why, of those that were kept."""

    is_gone: bool
    stay: dict[str, str]


def members_of(store: Store, group_id: str) -> list[str]:
    """The runs of a group, [] of one whose removal has come so far that its document is gone.

    Raises ArtifactError for a group that is missing or damaged.
    """
    if _has_lost_its_document(store, group_id):
        return []
    return list(read_group(store, group_id).members)


def _has_lost_its_document(store: Store, group_id: str) -> bool:
    return is_being_removed(store, group_id) and not store.exists(group_key(group_id))


def require_group_removable(store: Store, group_id: str) -> None:
    """Raises DataError for a group of which a run is under way, ArtifactError for a damaged one."""
    members = members_of(store, group_id)
    states = map_in_background(lambda run_id: state_under_way(store, run_id), members, READERS)
    under_way = [run_id for run_id, state in zip(members, states, strict=True) if state is not None]
    if under_way:
        raise DataError(
            f"a group with runs under way cannot be removed: {', '.join(under_way[:3])} of "
            f"{len(under_way)} in {group_id}; first: moola cancel {under_way[0]}"
        )


def remove_group(
    store: Store,
    group_id: str,
    on_removed: Callable[[str, int], None] | None = None,
) -> Removed:
    """Remove the runs of a group, and then the group.

    A run that another group names stays with that one; one that another run reads stays, and the
    group with it. Raises AuthError, before anything is marked, for a key that may not delete, and
    DataError where a run is under way.
    """
    _mark(store, group_id)
    try:
        require_group_removable(store, group_id)
    except (ArtifactError, DataError):
        store.delete(group_key(group_id, REMOVED))
        raise

    survey = survey_runs(store)
    members = members_of(store, group_id)
    found = {run.run_id for run in survey.runs}.intersection(members)
    shared = _shared(store, group_id, found)
    readers = readers_in(store, survey)
    order = removal_order(sorted(found - shared.keys()), readers)
    read = found.difference(order, shared)
    stay = {run_id: read_text(run_id, readers[run_id]) for run_id in read}
    stay |= remove_runs(store, order, on_removed)
    if stay:
        store.delete(group_key(group_id, REMOVED))
        return Removed(False, stay | shared)

    own = [run_id for run_id in members if run_id not in shared]
    is_gone = delete_group(store, group_id, own)
    return Removed(is_gone, shared if is_gone else {})


def _mark(store: Store, group_id: str) -> None:
    """The mark is deleted before it is written: a key that may not delete is refused here."""
    key = group_key(group_id, REMOVED)
    if not store.exists(key):
        store.delete(key)
        store.put(key, canonical_json({"time": now_text()}))


def _shared(store: Store, group_id: str, members: Collection[str]) -> dict[str, str]:
    """Run -> why it stays: another group names it too."""
    kept: dict[str, str] = {}
    for group in groups_in(store):
        if group.id != group_id and not is_being_removed(store, group.id):
            shared = set(members).intersection(group.members)
            kept |= {run_id: f"{run_id} is also a run of {group.id}" for run_id in shared}

    return kept


def delete_group(store: Store, group_id: str, members: Collection[str]) -> bool:
    """Delete the ledger and the document of a group without runs; -> whether they are gone.

    They stay where a run has come back meanwhile. The ledger goes from its last entry on: killed
    half way, what is left is a ledger still.
    """
    _mark(store, group_id)
    if any(_has_objects(store, run_id) for run_id in members):
        store.delete(group_key(group_id, REMOVED))
        return False

    document = group_key(group_id)
    mark = group_key(group_id, REMOVED)
    keys = _keys_of(store, group_id)
    for key in sorted(keys - {document, mark}, reverse=True):
        store.delete(key)
    store.delete(document)
    store.delete(mark)
    return True


def _has_objects(store: Store, run_id: str) -> bool:
    return bool(store.list_page(run_key(run_id, "")).entries)


def _keys_of(store: Store, group_id: str) -> set[str]:
    prefix = group_key(group_id, "")
    keys: set[str] = set()
    more: str | None = None
    while True:
        page = store.list_page(prefix, more)
        keys |= {entry.key for entry in page.entries}
        more = page.more
        if more is None:
            return keys


# --- all groups -------------------------------------------------------------------------------


def choose_groups(
    store: Store, groups: Sequence[Group], run_ids: Collection[str], removed: Collection[str]
) -> dict[str, tuple[str, ...]]:
    """Group -> its runs, of the groups of which no run is left once `removed` are.

    With those whose removal has come so far that they have no document any more: () for runs.
    """
    left = set(run_ids) - set(removed)
    chosen = {group.id: group.members for group in groups if not left.intersection(group.members)}
    known = {group.id for group in groups}
    for name in store.children(GROUPS):
        if is_group_id(name) and name not in known and _has_lost_its_document(store, name):
            chosen[name] = ()
    return chosen

"""Removing runs: what another run reads stays, and a removal that was killed can be finished.

REMOVED.json is written first and deleted last, so that a run is whole, or marked, or gone. Whoever
submits a run looks for the marks of what it reads after its own spec.json is written, and whoever
removes looks for readers after the mark is: one of the two sees the other.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from moola.errors import ArtifactError, DataError
from moola.runs.groups import Group
from moola.runs.launches import newest_launch
from moola.runs.protocol import COMMIT, REMOVED, SPEC, canonical_json, now_text, run_key
from moola.runs.reading import run_state
from moola.runs.records import InputRun, State
from moola.runs.submit import read_spec_document
from moola.runs.survey import READERS, RunSummary, Survey, summarize_runs, survey_runs
from moola.store import Store
from moola.store.background import map_in_background

log = logging.getLogger("moola")

LOST_AFTER_S = 3600.0  # of silence, of an attempt that is on no rented machine

Readers = Mapping[str, frozenset[str]]  # run -> the runs that read it


# --- who reads whom ---------------------------------------------------------------------------


def readers_in(store: Store, survey: Survey) -> Readers:
    """Which runs read which, by their specs.

    One whose spec is damaged could not be started again, and is passed over.
    """
    run_ids = [run.run_id for run in survey.runs if run.has_spec]
    readers: dict[str, frozenset[str]] = {}
    read_by_each = map_in_background(lambda run_id: _read_by(store, run_id), run_ids, READERS)
    for reader, read in zip(run_ids, read_by_each, strict=True):
        for run_id in read - {reader}:
            readers[run_id] = readers.get(run_id, frozenset()) | {reader}
    return readers


def _read_by(store: Store, run_id: str) -> frozenset[str]:
    try:
        document = read_spec_document(store, run_id)
    except ArtifactError as error:
        log.warning("passed over: %s", error)
        return frozenset()
    inputs = document.inputs.values()
    return frozenset(item.run for item in inputs if isinstance(item, InputRun))


# --- removing ---------------------------------------------------------------------------------


def require_removable(store: Store, run_id: str) -> None:
    """Raises DataError for a run that is under way, or that another one reads."""
    if not _is_whole(store, run_id):
        return
    state = state_under_way(store, run_id)
    if state is not None:
        raise DataError(
            f"a run under way cannot be removed: {run_id} is {state}; first: moola cancel {run_id}"
        )
    readers = readers_in(store, survey_runs(store)).get(run_id)
    if readers:
        raise DataError(read_text(run_id, readers))


def _is_whole(store: Store, run_id: str) -> bool:
    """Is nobody removing it? Without a spec it is what a process left that was at a removed run."""
    return not store.exists(run_key(run_id, REMOVED)) and store.exists(run_key(run_id, SPEC))


def state_under_way(store: Store, run_id: str) -> State | None:
    """The state of a run with an attempt or a launch that has not ended; None for any other.

    Raises ArtifactError for a damaged run.
    """
    if not _is_whole(store, run_id):
        return None
    state = run_state(store, run_id)
    is_rented = newest_launch(store, run_id) is not None
    if state.attempt is None or has_ended(state.state, state.silent_s, is_rented=is_rented):
        return None
    return state.state


def has_ended(state: State, silent_s: float | None, *, is_rented: bool) -> bool:
    """Has it a final state, or was it killed together with the launcher, which records the end?

    The end of a rented machine is recorded by `attach`, `cancel`, `tend` or `reap`.
    """
    is_lost = silent_s is not None and silent_s > LOST_AFTER_S
    return state.is_final or (is_lost and not is_rented)


def read_text(run_id: str, readers: Collection[str]) -> str:
    """Why a run stays that others read."""
    return f"a run that another one reads is not removed: {', '.join(sorted(readers))} of {run_id}"


def remove_runs(
    store: Store,
    run_ids: Sequence[str],
    on_removed: Callable[[str, int], None] | None = None,
) -> dict[str, str]:
    """Remove runs, in this order; -> run -> why it stays, for those that another run reads.

    `on_removed` is called with each run and the number of its objects. Raises AuthError, before
    anything is marked, for a key that may not delete.
    """
    for run_id in run_ids:
        _mark(store, run_id)

    readers = readers_in(store, survey_runs(store))
    stay: dict[str, str] = {}
    for run_id in run_ids:  # readers stand before what they read
        others = readers.get(run_id, frozenset()) - (set(run_ids) - stay.keys())
        if others and store.exists(run_key(run_id, COMMIT)):
            store.delete(run_key(run_id, REMOVED))
            stay[run_id] = read_text(run_id, others)

    for run_id in run_ids:
        if run_id not in stay:
            n_objects = _delete_objects(store, run_id)
            if on_removed is not None:
                on_removed(run_id, n_objects)
    return stay


def _mark(store: Store, run_id: str) -> None:
    """Mark a run as one that is being removed.

    The mark is deleted before it is written: a key that may not delete is refused here.
    """
    key = run_key(run_id, REMOVED)
    if not store.exists(key):
        store.delete(key)
        store.put(key, canonical_json({"time": now_text()}))


def _delete_objects(store: Store, run_id: str) -> int:
    """Delete what a marked run has in the store; -> how many objects. The commit goes first."""
    mark = run_key(run_id, REMOVED)
    spec = run_key(run_id, SPEC)
    commit = run_key(run_id, COMMIT)
    n_objects = 1 + store.exists(commit)  # and the spec
    store.delete(commit)

    for keys in _pages(store, run_key(run_id, "")):
        rest = [key for key in keys if key not in (mark, spec)]
        for _ in map_in_background(store.delete, rest, READERS):
            n_objects += 1

    store.delete(spec)
    store.delete(mark)
    return n_objects


def _pages(store: Store, prefix: str) -> Iterator[list[str]]:
    more: str | None = None
    while True:
        page = store.list_page(prefix, more)
        yield [entry.key for entry in page.entries]
        more = page.more
        if more is None:
            return


# --- which runs to remove ---------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """A run that `gc` looked at: whether it is to be removed, and why."""

    run_id: str
    is_removed: bool
    why: str


def choose_runs(
    store: Store,
    *,
    keep_last: int | None = None,
    older_than_s: float | None = None,
    groups: Sequence[Group] = (),
) -> list[Candidate]:
    """All runs, those to be removed first and in the order in which they can be.

    Of each job the newest `keep_last` stay, committed ones and others counted apart; so does what
    changed less than `older_than_s` ago by the store's clock, is under way or damaged, or is read
    by a run that stays, and the runs of those `groups` of which one has not ended. The removal of a
    run that has lost its commit is finished.
    """
    survey = survey_runs(store)
    summaries = summarize_runs(store, survey, len(survey.runs))
    rented = frozenset(run.run_id for run in survey.runs if run.launches)
    kept = _kept(summaries, rented, survey.now, keep_last, older_than_s)
    kept = {**_members_of_open(groups, summaries, rented), **kept}
    removed = [run.run_id for run in summaries if run.run_id not in kept]

    readers = readers_in(store, survey)
    order = removal_order(removed, readers)
    for run_id in removed:
        if run_id not in order:
            kept[run_id] = read_text(run_id, readers[run_id] - set(order))
    chosen = [Candidate(run_id, True, _why_removed(keep_last, older_than_s)) for run_id in order]
    return chosen + [Candidate(run_id, False, why) for run_id, why in kept.items()]


def removal_order(run_ids: Sequence[str], readers: Readers) -> list[str]:
    """Those of the runs that no other run reads, in an order in which they can be removed."""
    order: list[str] = []
    while True:  # each round those that no run reads any more
        free = [
            run_id
            for run_id in run_ids
            if run_id not in order and readers.get(run_id, frozenset()) <= set(order)
        ]
        if not free:
            return order
        order += free


def _members_of_open(
    groups: Sequence[Group], summaries: Sequence[RunSummary], rented: Collection[str]
) -> dict[str, str]:
    """Run -> why it stays: its sweep goes on, or can, and counts on what is committed."""
    whole = [run for run in summaries if not run.is_half_removed or run.committed is not None]
    unended = {
        run.run_id
        for run in whole
        if run.state is not None
        and not has_ended(run.state, run.silent_s, is_rented=run.run_id in rented)
    }
    kept: dict[str, str] = {}
    for group in groups:
        if unended.intersection(group.members):
            names = {run.run_id for run in whole}.intersection(group.members)
            kept |= dict.fromkeys(names, f"a run of {group.id}, which has not ended")
    return kept


def _kept(
    summaries: Sequence[RunSummary],
    rented: Collection[str],
    now: float,
    keep_last: int | None,
    older_than_s: float | None,
) -> dict[str, str]:
    """Run -> why it stays, whoever reads it; the newest run comes first."""
    kept: dict[str, str] = {}
    counts: dict[tuple[str, bool], int] = {}

    for run in summaries:
        if run.is_half_removed and run.committed is None:
            continue  # beside a commit the mark is only a word of whoever can write here
        if run.state is None:
            kept[run.run_id] = f"damaged: {run.fault}"
            continue
        if not has_ended(run.state, run.silent_s, is_rented=run.run_id in rented):
            kept[run.run_id] = f"{run.state}"
            continue

        kind = (run.run_id.partition("-")[0], run.committed is not None)
        counts[kind] = counts.get(kind, 0) + 1
        if keep_last is not None and counts[kind] <= keep_last:
            kept[run.run_id] = f"one of the newest {keep_last} of its kind"
        elif older_than_s is not None and now - run.changed <= older_than_s:
            kept[run.run_id] = "not old enough"
    return kept


def _why_removed(keep_last: int | None, older_than_s: float | None) -> str:
    reasons = []
    if keep_last is not None:
        reasons.append(f"not one of the newest {keep_last} of its kind")
    if older_than_s is not None:
        reasons.append(f"unchanged for more than {older_than_s / 86_400:g} days")
    return "; ".join(reasons)

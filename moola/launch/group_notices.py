"""Word of how a group ended, once for each end, by whoever sees it first.

`groups/<group_id>/notified/<digest>.json` is the claim, made before the notice is sent. The digest
is of the members' newest attempts and states: a group that is gone on with ends anew.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from moola.errors import ArtifactError
from moola.launch.notices import (
    addresses,
    cost_text,
    costs_of,
    line_of,
    metrics_of,
    require_addresses,
    say,
    send,
)
from moola.runs.groups import Group, group_key, read_group
from moola.runs.protocol import canonical_json, now_text
from moola.runs.reading import run_state
from moola.runs.records import State
from moola.runs.redaction import safe_text
from moola.store import Store
from moola.store.background import map_in_background
from moola.text import shortened

NOTIFIED = "notified"  # the folder of a group's claims
DAMAGED = "damaged"
READERS = 12  # requests under way at a time
MOST_REASONS = 5  # members whose reasons are named
LONGEST_REASON = 200  # characters of each
DIGEST_DIGITS = 16


@dataclass(frozen=True)
class _Member:
    """How a member stands; `state` is DAMAGED where that cannot be read."""

    run_id: str
    attempt: str | None
    state: str
    reason: str

    @property
    def has_begun(self) -> bool:
        return self.state == DAMAGED or self.attempt is not None

    @property
    def has_ended(self) -> bool:
        return self.state == DAMAGED or (self.has_begun and State(self.state).is_final)


def tell_group_end(
    store: Store,
    group_id: str,
    environment: Mapping[str, str] = os.environ,
    *,
    is_left: bool = False,
) -> None:
    """Send word of a group of which all runs have ended, unless somebody has.

    `is_left`: nobody will begin those that have not begun, for their launcher has ended; they keep
    the group open otherwise. What fails is printed, not raised.
    """
    urls = addresses(environment)
    if not urls:
        return
    try:
        group = read_group(store, group_id)
        read = map_in_background(lambda run_id: _read(store, run_id), group.members, READERS)
        members = list(read)
        if not all(one.has_ended or (is_left and not one.has_begun) for one in members):
            return
        require_addresses(environment)
        if _claim(store, group, members):
            title = f"moola: {group_id} {_counts(members)}"
            send(urls, title, group_notice_text(store, group, members))
    except Exception as error:  # whatever it is, the group has ended as it has
        say(f"no notice of the end of {group_id} was sent: {error}")


def _read(store: Store, run_id: str) -> _Member:
    try:
        run = run_state(store, run_id)
    except ArtifactError as error:
        return _Member(run_id, None, DAMAGED, str(error))
    return _Member(run_id, run.attempt, str(run.state), run.reason)


def _claim(store: Store, group: Group, members: list[_Member]) -> bool:
    end = [[one.run_id, one.attempt, one.state] for one in members]
    digest = hashlib.sha256(canonical_json(end)).hexdigest()[:DIGEST_DIGITS]
    key = group_key(group.id, NOTIFIED, f"{digest}.json")
    return store.create(key, canonical_json({"time": now_text()}))


# --- what it says -----------------------------------------------------------------------------


def group_notice_text(store: Store, group: Group, members: list[_Member]) -> str:
    """Counts of states, the first reasons, cost, and mean and best of the key metrics."""
    others = [one for one in members if one.state != State.COMMITTED]
    reasons = [one for one in others if one.reason]
    committed = [one.run_id for one in members if one.state == State.COMMITTED]
    lines = [f"{len(members)} {group.job} runs: {_counts(members)}"]
    for one in reasons[:MOST_REASONS]:
        lines.append(f"{one.run_id} {one.state}: {shortened(one.reason, LONGEST_REASON)}")
    if len(reasons) > MOST_REASONS:
        lines.append(f"and {len(reasons) - MOST_REASONS} more with a reason")

    lines.append(line_of(lambda: _cost(store, group)))
    if group.job == "train" and committed:
        lines.append(line_of(lambda: _metrics(store, committed)))
    lines.append(f"moola group {group.id} --store {store.url}")
    return safe_text("\n".join(filter(None, lines)))


def _counts(members: list[_Member]) -> str:
    counts = Counter(one.state for one in members)
    return ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))


def _cost(store: Store, group: Group) -> str:
    """Of all machines of its runs, also of other launchers."""
    read = map_in_background(lambda run_id: costs_of(store, run_id), group.members, READERS)
    return cost_text([cost for costs in read for cost in costs])


def _metrics(store: Store, run_ids: list[str]) -> str:
    """Mean and best on test, of the runs whose metrics can be read; a line for each metric."""
    from moola.evaluation.formats import format_value
    from moola.evaluation.metrics import HEADLINE

    read = list(map_in_background(lambda run_id: metrics_of(store, run_id), run_ids, READERS))
    lines = []
    for name in HEADLINE:  # of each of which more is better
        found = {
            run_id: metrics[name]
            for run_id, metrics in zip(run_ids, read, strict=True)
            if metrics is not None and name in metrics and metrics[name].value is not None
        }
        if not found:
            continue
        values = {run_id: metric.value or 0.0 for run_id, metric in found.items()}
        best = max(values, key=lambda run_id: values[run_id])
        unit = found[best].unit
        mean = format_value(sum(values.values()) / len(values), unit)
        lines.append(
            f"{found[best].title}: mean {mean} of {len(values)}, best "
            f"{format_value(values[best], unit)} ({best})"
        )
    return "\n".join(lines)

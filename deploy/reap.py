"""Ends machines of ours that have no business any more: for cron, and for a person who wants to be sure.

Only a machine whose name one of this store's launches has is touched; everything else is listed and left alone.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from rich.table import Table

from deploy.pods import Pod, PodApi, PodStatus
from deploy.remote import Remote
from deploy.settings import Settings, WatchConfig
from deploy.tail import clock_text
from deploy.watch import last_sign
from moola import errors
from moola.errors import TryAgainError
from moola.launches import Launch, newest_launch, read_rented, run_of_pod_name
from moola.store import Store


@dataclass(frozen=True)
class Verdict:
    """What was found of a machine, and whether it was ended."""

    pod: Pod
    run_id: str
    ended: bool
    why: str
    failed: bool = False  # it should have been ended and is still there


def reap(settings: Settings, store: Store, pods: PodApi) -> list[Verdict]:
    """Look at every machine with a name like ours; end those that are done, late, silent or given up."""
    verdicts = []
    for pod, launch in owners(store, pods):
        if launch is None:
            verdicts.append(Verdict(pod, "", False, f"not launched from {store.url}: left alone"))
            continue
        remote = Remote(settings, store, pods, launch.run_id)
        ending = _reason_to_end(remote, launch, pod, settings.watch)
        if ending is None:
            until = clock_text(_deadline(remote, launch, pod))
            verdicts.append(Verdict(pod, launch.run_id, False, f"at work until {until} at the latest"))
            continue
        state, why, exit_code = ending
        if state is not None:
            remote.end(launch, state, why, exit_code)
        try:
            remote.end_pod(pod.id, at_once=True)
        except TryAgainError as error:  # the others have their turn all the same
            verdicts.append(Verdict(pod, launch.run_id, False, f"{why}; {error}", failed=True))
        else:
            verdicts.append(Verdict(pod, launch.run_id, True, why))
    return verdicts


def _reason_to_end(
    remote: Remote, launch: Launch, pod: Pod, watch: WatchConfig
) -> tuple[str | None, str, int | None] | None:
    """(final state to give, why, exit code); None if the machine is at work."""
    state = remote.final_state(launch)
    if state is not None or remote.committed():
        return (
            None if state else "infra_lost",
            f"its attempt ended as {state}" if state else "the run is committed",
            None,
        )
    newest = newest_launch(remote.store, launch.run_id)
    if newest is not None and newest.n != launch.n:
        return "infra_lost", f"given up for launch {newest.n}", None
    now = time.time()
    if now > _deadline(remote, launch, pod) + watch.grace_s:
        return "timed_out", "past its deadline", errors.EXIT_TIME_LIMIT
    beat = last_sign(remote.store, launch)
    if beat is not None:
        quiet = now - datetime.fromisoformat(beat["time"]).timestamp()
        return ("stalled", f"no heartbeat for {quiet:.0f} s", None) if quiet > watch.stalled_after_s else None
    started = pod.created.timestamp() if pod.created else launch.time
    if now - started > watch.start_timeout_s:
        return "infra_lost", f"the job did not start within {watch.start_timeout_s:.0f} s", None
    return None


def _deadline(remote: Remote, launch: Launch, pod: Pod) -> float:
    rented = read_rented(remote.store, launch) or remote.record(launch, pod)
    return rented.deadline


def owners(store: Store, pods: PodApi) -> Iterator[tuple[Pod, Launch | None]]:
    """Each machine with a name like ours, and its launch in this store; None for another bucket's."""
    for pod in pods.list():
        found = run_of_pod_name(pod.name)
        if found is None or pod.status is PodStatus.GONE:
            continue
        launch = Launch.read(store, *found)
        yield pod, launch if launch is not None and launch.pod_name == pod.name else None


def verdict_table(verdicts: list[Verdict]) -> Table:
    """For people and cron mails."""
    table = Table("pod", "name", "run", "USD/h", "", "")
    for one in verdicts:
        price = f"{one.pod.price_per_hour:.3f}"
        table.add_row(
            one.pod.id,
            one.pod.name,
            one.run_id or "-",
            price,
            "ended" if one.ended else "NOT ENDED" if one.failed else "left",
            one.why,
        )
    return table

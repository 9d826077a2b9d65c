"""The end of a run's machines, and of a run that is cancelled."""

import contextlib
import time

from moola import errors
from moola.errors import ArtifactError, LaunchError, TryAgainError
from moola.launch.rented.context import RunContext
from moola.providers.base import Pod, PodStatus
from moola.providers.runpod.account import end_by_hand
from moola.runs.launches import all_launches, read_rented
from moola.runs.pod_names import parse_pod_name, store_tag
from moola.runs.protocol import CANCEL, canonical_json, now_text
from moola.runs.records import State

ENDS_ITSELF = (PodStatus.RUNNING, PodStatus.UNKNOWN)  # may still do so, in its time of grace


def end_pods(run: RunContext) -> None:
    """End every pod of the run that has no work any more, and wait until it is gone.

    That is the pod of each launch which has a final state or is not the newest, and all pods once
    the run is committed; only pods whose names tell that they belong to this store. Raises
    TryAgainError if one could not be ended.
    """
    launches = all_launches(run.store, run.run_id)
    is_committed = run.is_committed()
    without_work = set()
    for launch in launches:
        is_newest = launch.n == len(launches)
        if is_committed or not is_newest or run.final_state(launch) is not None:
            without_work.add(launch.pod_name)

    for pod in list_pods(run):
        if pod.name not in without_work or pod.status is PodStatus.GONE:
            continue
        if is_of_run(run, pod):
            end_pod(run, pod.id)
        else:
            run.say(
                f"pod {pod.id} ({pod.name}) does not tell that it belongs to {run.store.url}, and "
                f"is left alone; to end it by hand: {end_by_hand(pod.id)}"
            )


def end_all_pods(run: RunContext) -> None:
    """End every pod that has the name of this run and store, whatever is recorded of it."""
    for pod in list_pods(run):
        if is_of_run(run, pod) and pod.status is not PodStatus.GONE:
            end_pod(run, pod.id)


def is_of_run(run: RunContext, pod: Pod) -> bool:
    """Does the pod's own name tell that it belongs to this run and store?"""
    name = parse_pod_name(pod.name)
    tag = store_tag(run.store.url)
    return name is not None and (name.run_id, name.store_tag) == (run.run_id, tag)


def list_pods(run: RunContext) -> list[Pod]:
    """All pods of the account, asked for until they come: what is not seen is not ended."""
    give_up_at = time.monotonic() + run.watch.settle_s
    while True:
        try:
            return run.pods.list()
        except (LaunchError, TryAgainError) as error:
            if time.monotonic() >= give_up_at:
                raise
            run.say(f"the provider does not list its machines, trying again: {error}")
        time.sleep(run.watch.poll_s)


def end_pod(run: RunContext, pod_id: str, *, at_once: bool = False) -> None:
    """Wait `grace_s` for a pod to end itself, unless `at_once`; then terminate it until it is gone.

    Raises TryAgainError if it is still there `settle_s` later.
    """
    watch = run.watch
    grace_s = 0.0 if at_once else watch.grace_s
    terminate_at = time.monotonic() + grace_s
    give_up_at = terminate_at + watch.settle_s

    while (status := pod_status(run, pod_id)) is not PodStatus.GONE:
        now = time.monotonic()
        if now >= give_up_at:
            raise TryAgainError(
                f"pod {pod_id} could not be ended, it is {status}: "
                "run `moola reap`, or end it by hand"
            )
        if now >= terminate_at or status not in ENDS_ITSELF:
            with contextlib.suppress(LaunchError, TryAgainError):
                run.pods.terminate(pod_id)
        time.sleep(min(watch.poll_s, watch.grace_s))


def pod_status(run: RunContext, pod_id: str) -> PodStatus:
    """Where a pod is; UNKNOWN where the provider does not answer, or with a word we do not know."""
    try:
        pod = run.pods.get(pod_id)
    except (LaunchError, TryAgainError):
        return PodStatus.UNKNOWN
    return PodStatus.GONE if pod is None else pod.status


def cancel_run(run: RunContext) -> str:
    """Ask the newest attempt to stop, and end its machine if it does not; -> its final state.

    Where a record of the run is damaged its machines are ended all the same, by their names, and
    the ArtifactError that names the record is raised after that.
    """
    try:
        state = _stop_attempt(run)
        end_pods(run)
    except ArtifactError as error:
        end_all_pods(run)
        raise ArtifactError(
            f"{error}; every machine with the name of this run was ended"
        ) from error
    return state


def _stop_attempt(run: RunContext) -> str:
    """Ask the newest attempt to stop, and give it up if it does not; -> its final state."""
    launch = run.require_launch()
    state = run.final_state(launch)
    if state != State.COMMITTED:
        run.store.put(launch.key(CANCEL), canonical_json({"time": now_text()}))

    if state is None:
        has_machine = read_rented(run.store, launch) is not None
        grace_s = run.watch.grace_s if has_machine else 0.0
        end_at = time.monotonic() + grace_s
        while (state := run.final_state(launch)) is None and time.monotonic() < end_at:
            time.sleep(run.watch.poll_s)

    if state is None:
        state = run.end_attempt(launch, "cancelled", "asked for", errors.EXIT_CANCELLED)
    return state

"""Terminates moola pods whose run has finished, expired or gone silent.

For cron, and for a person who wants to be sure. Only a pod whose own name says that it belongs to
this store is touched; every other pod with a moola name is listed and left alone. One damaged
record is reported, and neither hides nor saves any other machine.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.table import Column, Table

from moola.errors import ArtifactError, TryAgainError
from moola.launch.console import clock_text
from moola.launch.rented import machines
from moola.launch.rented.context import RunContext
from moola.launch.rented.ending import end_pod
from moola.launch.rented.live_log import ending_in, read_last_lines, with_last_lines
from moola.launch.rented.request import without_secrets
from moola.launch.rented.signs import last_sign
from moola.launch.rented.verdict import Ages, Ending, verdict
from moola.launch.settings import Settings
from moola.providers.base import Pod, PodApi, PodStatus
from moola.providers.runpod.account import end_by_hand
from moola.runs.launches import Launch, read_rented
from moola.runs.pod_names import PodName, parse_pod_name, store_tag
from moola.store import Store

LIVE_LOG_S = 5.0  # for the log of a machine that is ended without a word in the store
EARLY_LOG_S = 2.0  # for that of a machine that has not said a word yet
LONGEST_POD_ID = 16  # characters that are shown


@dataclass(frozen=True)
class Reaped:
    """A pod that `reap` looked at, and whether it was ended."""

    pod: Pod
    run_id: str  # "" where the store has no launch of that name
    ended: bool
    why: str
    failed: bool = False  # it is still there and should not be, or a record of it is damaged


@dataclass(frozen=True)
class Judgement:
    """Why a machine is to be ended, None if it is at work, and which of its records are damaged."""

    ending: Ending | None
    damages: tuple[str, ...] = ()


def reap(settings: Settings, store: Store, pods: PodApi) -> list[Reaped]:
    """Look at every moola pod; end those that are finished, late, silent or given up."""
    reaped = []
    for pod in pods.list():
        name = parse_pod_name(pod.name)
        if name is not None and pod.status is not PodStatus.GONE:
            run = RunContext(settings, store, pods, name.run_id)
            reaped.append(_reap_pod(run, pod, name))
    return reaped


def _reap_pod(run: RunContext, pod: Pod, name: PodName) -> Reaped:
    not_ours = Reaped(pod, "", ended=False, why=f"not launched from {run.store.url}: left alone")
    is_of_store = name.store_tag == store_tag(run.store.url)
    if not is_of_store and name.store_tag is not None:
        return not_ours

    try:
        launch = Launch.read(run.store, name.run_id, name.n)
    except ArtifactError as error:
        if not is_of_store:
            return not_ours
        return _reap_unrecorded(run, pod, damage=str(error))

    if launch is None or launch.pod_name != pod.name:
        return _reap_unrecorded(run, pod) if is_of_store else not_ours
    if not is_of_store:
        why = (
            "launched by an earlier version, which did not name the store: left alone; "
            f"to end it by hand: {end_by_hand(pod.id)}"
        )
        return Reaped(pod, launch.run_id, ended=False, why=why)
    return _reap_launched(run, pod, launch)


def _reap_unrecorded(run: RunContext, pod: Pod, damage: str = "") -> Reaped:
    """A pod that this store's launcher named, and of whose launch there is no readable record.

    It may be at work, but not for longer than a machine without a proof may be.
    """
    if machines.latest_end(run, pod, is_damaged=bool(damage)) < run.pods.now():
        reason = damage or f"no launch in {run.store.url} names it, and its time is over"
        return _end(run, pod, reason, is_damaged=bool(damage))
    why = damage or f"not launched from {run.store.url}: left alone"
    return Reaped(pod, run.run_id if damage else "", ended=False, why=why, failed=bool(damage))


def _reap_launched(run: RunContext, pod: Pod, launch: Launch) -> Reaped:
    judgement = judge(run, launch, pod)
    damages = list(judgement.damages)
    ending = judgement.ending

    if ending is None:
        until = clock_text(machines.deadline(run, launch, pod))
        why = "; ".join([f"at work until {until} at the latest", *damages])
        return Reaped(pod, launch.run_id, ended=False, why=why, failed=bool(damages))

    try:
        if run.final_state(launch) is None:
            lines = read_last_lines(run.pods, pod.id, LIVE_LOG_S)
            reason = without_secrets(with_last_lines(ending.reason, lines))
            run.end_attempt(launch, ending.state, reason, ending.exit_code)
    except ArtifactError as error:  # the machine is ended all the same
        if str(error) not in damages:
            damages.append(str(error))
    why = "; ".join([ending.reason, *damages])
    return _end(run, pod, why, is_damaged=bool(damages))


def _end(run: RunContext, pod: Pod, why: str, *, is_damaged: bool) -> Reaped:
    try:
        end_pod(run, pod.id, at_once=True)
    except TryAgainError as error:  # the other pods have their turn all the same
        return Reaped(pod, run.run_id, ended=False, why=f"{why}; {error}", failed=True)
    return Reaped(pod, run.run_id, ended=True, why=why, failed=is_damaged)


# --- what is to be ended ----------------------------------------------------------------------

Question = Callable[[RunContext, Launch, Pod], Ending | None]


def judge(run: RunContext, launch: Launch, pod: Pod) -> Judgement:
    """Why the pod is to be ended, and as what its attempt if that has not ended.

    A question whose answer is damaged is passed over for the next one.
    """
    damages: list[str] = []
    for question in QUESTIONS:
        try:
            ending = question(run, launch, pod)
        except ArtifactError as error:
            damages.append(str(error))
            continue
        if ending is not None:
            return Judgement(ending, tuple(damages))
    return Judgement(None, tuple(damages))


def _has_ended(run: RunContext, launch: Launch, _: Pod) -> Ending | None:
    state = run.final_state(launch)
    return None if state is None else Ending(state, f"its attempt ended as {state}")


def _is_committed(run: RunContext, _: Launch, __: Pod) -> Ending | None:
    return Ending("infra_lost", "the run is committed") if run.is_committed() else None


def _is_given_up(run: RunContext, launch: Launch, _: Pod) -> Ending | None:
    newest = run.newest_launch()
    if newest is None or newest.n == launch.n:
        return None
    return Ending("infra_lost", f"given up for launch {newest.n}")


def _is_unrecorded(run: RunContext, launch: Launch, pod: Pod) -> Ending | None:
    """A machine that its launcher did not live to record is recorded now."""
    if read_rented(run.store, launch) is None:
        machines.record(run, launch, pod)
    return None


def _is_late(run: RunContext, launch: Launch, pod: Pod) -> Ending | None:
    return verdict(Ages(_past_deadline_s(run, launch, pod)), run.watch)


def _cannot_start(run: RunContext, launch: Launch, pod: Pod) -> Ending | None:
    """Of a machine without a word in the store: its log may say why, such as of an image."""
    if last_sign(run.store, launch) is not None:
        return None
    return ending_in(read_last_lines(run.pods, pod.id, EARLY_LOG_S), launch.image)


def _is_silent(run: RunContext, launch: Launch, pod: Pod) -> Ending | None:
    """Silent, or never started. A heartbeat that cannot be read is damage while it is new."""
    past_deadline_s = _past_deadline_s(run, launch, pod)
    sign = last_sign(run.store, launch)
    if sign is None:
        unstarted_s = run.pods.now() - machines.created_at(run, launch, pod)
        return verdict(Ages(past_deadline_s, unstarted_s=unstarted_s), run.watch)

    ending = verdict(Ages(past_deadline_s, silent_s=sign.silent_s()), run.watch)
    if ending is None and sign.damage is not None:
        raise sign.damage
    return ending


def _past_deadline_s(run: RunContext, launch: Launch, pod: Pod) -> float:
    return run.pods.now() - machines.deadline(run, launch, pod)


QUESTIONS: tuple[Question, ...] = (
    _has_ended,
    _is_committed,
    _is_given_up,
    _is_unrecorded,
    _is_late,
    _cannot_start,
    _is_silent,
)


def reap_table(pods: Sequence[Reaped]) -> Table:
    """For people and cron mails."""
    table = Table(
        Column("pod", no_wrap=True, max_width=LONGEST_POD_ID),
        Column("name", overflow="fold"),
        Column("run", overflow="fold"),
        Column("USD/h", no_wrap=True),
        Column("", no_wrap=True),
        Column("", overflow="fold"),
    )
    for reaped in pods:
        outcome = "left"
        if reaped.ended:
            outcome = "ended"
        elif reaped.failed:
            outcome = "NOT ENDED"

        table.add_row(
            reaped.pod.id,
            reaped.pod.name,
            reaped.run_id or "-",
            f"{reaped.pod.price_per_hour:.3f}",
            outcome,
            reaped.why,
        )
    return table

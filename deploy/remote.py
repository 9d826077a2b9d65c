"""Sees a run on a rented machine through to its end: rent, follow, end the machine, try again.

The bucket is the server: everything this needs is in the store and in the provider's list of machines, so another
process on another computer can take over at any moment. What is done here is done in an order that leaves no machine
behind: the claim before the request, the record after it, the machine's end before the next claim.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from deploy import plan as plans
from deploy import tail
from deploy.follow import LiveLines, RunLog
from deploy.patience import NotAnsweredError
from deploy.pods import Pod, PodApi, PodStatus
from deploy.settings import Settings
from deploy.watch import Watch
from moola import errors
from moola.errors import ArtifactError, LaunchError, MoolaError, NoCapacityError, TryAgainError
from moola.launches import (
    RENTING,
    Launch,
    Rented,
    all_launches,
    claim,
    cost_of,
    newest_launch,
    read_rented,
    record_rented,
)
from moola.protocol import (
    CANCEL,
    COMMIT,
    FINAL_STATES,
    STATUS,
    canonical_json,
    now_text,
    read_json_or_none,
    run_key,
)
from moola.runs import end_attempt, require_manifest
from moola.specs import MachineConfig
from moola.store import Store

WAITING = "waiting"  # the state of an attempt whose launcher is looking for a machine
PROVIDER = "runpod"


@dataclass
class Remote:
    """One run on rented machines, as one launcher sees it."""

    settings: Settings
    store: Store
    pods: PodApi
    run_id: str
    console: Console = field(default_factory=tail.terminal)
    claimed: set[int] = field(default_factory=set)  # launches that are this launcher's own

    # -- the whole way --

    def launch(self, job: str, image: str, machine: MachineConfig) -> int:
        """Rent a machine for the run and see it through; -> exit code. One that is under way is followed instead."""
        newest = newest_launch(self.store, self.run_id)
        if newest is None or self.final_state(newest) is not None:
            self.end_pods()  # what an earlier launcher left behind
            self.claim(1 if newest is None else newest.n + 1, job, image, plans.machine_json(machine))
        else:
            self.say(f"{self.run_id} is under way already, as attempt {newest.attempt}")
        return self.see_through()

    def attended(self, work: Callable[[], int]) -> int:
        """Do `work` with a person watching: Ctrl-C leaves the run alone and says how to come back."""
        try:
            return work()
        except KeyboardInterrupt:
            command, launch = "python deploy/launch.py", newest_launch(self.store, self.run_id)
            goes_on = launch is not None and read_rented(self.store, launch) is not None
            what = (
                "goes on, and ends its machine by itself" if goes_on else "has no machine yet, and nobody looks for one"
            )
            self.say(
                f"\nno longer watching; {self.run_id} {what}.\n"
                f"  to watch again:  {command} attach {self.run_id}\n  to stop it:      {command} cancel {self.run_id}"
            )
            return errors.EXIT_CANCELLED

    def see_through(self) -> int:
        """Follow the newest launch to its end, and those that take its place; -> exit code of the run.

        Raises LaunchError or AuthError where the provider refuses, TryAgainError where a machine cannot be ended.
        """
        while True:
            launch = newest_launch(self.store, self.run_id)
            if launch is None:
                raise ArtifactError(f"run {self.run_id} was never launched on a rented machine ({self.store.url})")
            state = self.final_state(launch)
            if state is None:
                state = self.run_launch(launch)
            else:  # it was over before this launcher came
                self.show_log(launch)
            self.end_pods()
            if self.committed():
                return self.report_committed()
            if not self.try_again(launch, state):
                return self.report_failed(launch, state)

    def claim(self, n: int, job: str, image: str, machine: dict[str, Any], retries: int = 0) -> None:
        """Claim launch n; where another launcher was first, that one is followed."""
        if (launch := claim(self.store, self.run_id, n, job, image, machine, retries)) is not None:
            self.claimed.add(n)
            waiting = {"state": WAITING, "time": now_text(), "reason": "looking for a machine"}
            self.store.put(launch.key(STATUS), canonical_json(waiting))

    def run_launch(self, launch: Launch) -> str:
        """From a claim to the attempt's final state."""
        rented = read_rented(self.store, launch)
        if rented is None:
            rented = self.rent(launch) if launch.n in self.claimed else self.adopt(launch)
        if rented is not None:
            self.say(
                f"{rented.type_id} in {rented.data_center or 'some data center'}, {rented.price_per_hour:.3f} USD/h, "
                f"until {tail.clock_text(rented.deadline)} at the latest (pod {rented.pod_id})"
            )
            self.follow(launch, rented)
        return self.final_state(launch) or "infra_lost"  # without one it was given up for a newer launch

    def try_again(self, launch: Launch, state: str) -> bool:
        """Claim the next launch if the spec allows it for this state; whether there is one to follow now."""
        newest = newest_launch(self.store, self.run_id)
        if newest is not None and newest.n > launch.n:  # another launcher was quicker
            return True
        if self.store.exists(launch.key(CANCEL)):  # asked for while the attempt was ending in some other way
            return False
        status = read_json_or_none(self.store, launch.key(STATUS)) or {}
        if status.get("orphan"):  # no machine was there: this is no further attempt but the same one
            self.claim(launch.n + 1, launch.job, launch.image, launch.machine, launch.retries)
            return True
        machine = MachineConfig.model_validate(launch.machine)
        reason = {"terminated": "preempted"}.get(state, state)
        if state == "failed" and status.get("exit_code") == TryAgainError.exit_code:
            reason = "try_again"
        if reason not in machine.retry.on or launch.retries >= machine.retry.times:
            return False
        if (spent := self.spent()) >= machine.max_spend:
            self.say(f"{state}; no further attempt: {spent:.2f} USD of max_spend {machine.max_spend:g} are spent")
            return False
        self.say(f"{state}: {status.get('reason', '')}; attempt {launch.n + 1} follows")
        self.claim(launch.n + 1, launch.job, launch.image, launch.machine, launch.retries + 1)
        return True

    # -- rent --

    def adopt(self, launch: Launch) -> Rented | None:
        """The machine of another launcher's launch, which is waited for while that launcher is at work.

        None if the attempt ended instead; it is ended as infra_lost where that launcher is gone and left no machine.
        """
        beat: bytes | None = None
        changed = time.monotonic()
        while True:
            if (rented := read_rented(self.store, launch)) is not None:
                return rented
            try:
                if (pod := self.find_pod(launch)) is not None:
                    return self.record(launch, pod)
            except TryAgainError:
                changed = time.monotonic()  # there may be a machine: nothing is given up unseen
            if self.final_state(launch) is not None:
                return None
            if (seen := self.store.get_or_none(launch.key(RENTING))) != beat:
                beat, changed = seen, time.monotonic()
            if time.monotonic() - changed > self.settings.watch.settle_s:
                self.give_up(launch)
                return None
            time.sleep(self.settings.watch.poll_s)

    def give_up(self, launch: Launch) -> None:
        """End a launch that has neither a launcher nor a machine; the one that follows is no further attempt."""
        if self.end(launch, "infra_lost", "its launcher went away before there was a machine") == "infra_lost":
            status = read_json_or_none(self.store, launch.key(STATUS)) or {}
            self.store.put(launch.key(STATUS), canonical_json({**status, "orphan": True}))

    @contextlib.contextmanager
    def renting(self, launch: Launch) -> Iterator[None]:
        """While the block runs, others see that this launcher is at it: one call to the provider may take minutes."""
        done = threading.Event()

        def beat() -> None:
            while not done.is_set():
                with contextlib.suppress(MoolaError):
                    self.store.put(launch.key(RENTING), canonical_json({"time": now_text()}))
                done.wait(self.settings.watch.settle_s / 4)

        thread = threading.Thread(target=beat, name="renting", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def given_up(self, launch: Launch) -> bool:
        """Did someone end this launch, or claim the next one?"""
        newest = newest_launch(self.store, self.run_id)
        return self.final_state(launch) is not None or newest is None or newest.n != launch.n

    def rent(self, launch: Launch) -> Rented | None:
        """Ask for the candidates in order, round by round, until one is there; None if the attempt ended instead."""
        machine = MachineConfig.model_validate(launch.machine)
        give_up = launch.time + machine.max_wait_for_capacity.total_seconds()
        tried: list[str] = []
        with self.renting(launch):
            while not self.given_up(launch):
                try:
                    pod = self.ask_round(launch, machine, tried)
                except LaunchError as error:
                    self.end(launch, "launch_failed", str(error), errors.LaunchError.exit_code)
                    raise
                if pod is not None:
                    return self.record(launch, pod)
                if self.given_up(launch):
                    break
                if time.time() >= give_up:
                    self.end(launch, "no_capacity", "; ".join(tried[-12:]), errors.NoCapacityError.exit_code)
                    break
                self.say(f"no machine yet: {tried[-1]}; asking again in {self.settings.watch.capacity_poll_s:g} s")
                self.wait_for_capacity(launch)
        return None

    def ask_round(self, launch: Launch, machine: MachineConfig, tried: list[str]) -> Pod | None:
        """Ask for each candidate once; `tried` gets a line for each that was refused or passed over."""
        try:
            offers = self.pods.offers(plans.candidates(machine, self.pods))
        except TryAgainError as error:
            tried.append(f"the provider's catalog does not answer: {error}")
            return None
        for choice in plans.choose(machine, offers):
            name = choice.offer.name
            if choice.why_not:
                tried.append(f"{name}: {choice.why_not}")
                continue
            if self.given_up(launch):
                return None
            deadline = plans.deadline_of(machine, choice.price, self.spent(), time.time())
            try:
                return self.pods.create(plans.pod_request(self.settings, launch, choice.offer, deadline))
            except NoCapacityError as error:
                tried.append(f"{name}: {error}")
            except TryAgainError as error:
                if isinstance(error, NotAnsweredError) and error.harmless:
                    tried.append(f"{name}: {error}")
                    continue
                if (pod := self.settle(launch)) is None:
                    self.end(launch, "infra_lost", f"whether a machine was made could not be settled: {error}")
                return pod
        return None

    def wait_for_capacity(self, launch: Launch) -> None:
        """A pause, cut short where someone gives the launch up."""
        until = time.monotonic() + self.settings.watch.capacity_poll_s
        while time.monotonic() < until and not self.given_up(launch):
            time.sleep(min(self.settings.watch.poll_s, self.settings.watch.capacity_poll_s))

    def settle(self, launch: Launch) -> Pod | None:
        """After an answer that never came: the machine, if it turns up in the provider's list in time."""
        until = time.monotonic() + self.settings.watch.settle_s
        while time.monotonic() < until:
            with contextlib.suppress(TryAgainError):
                if (pod := self.find_pod(launch)) is not None:
                    return pod
            time.sleep(self.settings.watch.poll_s)
        return None

    def find_pod(self, launch: Launch) -> Pod | None:
        return next((pod for pod in self.pods.list() if pod.name == launch.pod_name), None)

    def record(self, launch: Launch, pod: Pod) -> Rented:
        """Write down what was rented."""
        machine = MachineConfig.model_validate(launch.machine)
        created = pod.created.timestamp() if pod.created else time.time()
        told = pod.env.get("MOOLA_DEADLINE")
        deadline = float(told) if told else plans.deadline_of(machine, pod.price_per_hour, 0.0, created)
        gpu = machine.gpu
        return record_rented(
            self.store,
            launch,
            Rented(
                pod_id=pod.id,
                pod_name=pod.name,
                provider=PROVIDER,
                kind="cpu" if gpu is None else "gpu",
                type_id=pod.type_id or "unknown",
                count=machine.cpu.vcpus if machine.cpu else gpu.count if gpu else 0,
                cloud=machine.cloud,
                data_center=pod.data_center,
                price_per_hour=pod.price_per_hour,
                created=created,
                deadline=deadline,
            ),
        )

    # -- follow --

    def follow(self, launch: Launch, rented: Rented) -> None:
        """Show the log until the attempt has a final state, which is given to it if it cannot say so itself."""
        watch = Watch(self.settings.watch, self.store, self.pods, launch, rented)
        log = RunLog(self.store, self.run_id, launch.attempt, LiveLines(self.pods, rented.pod_id))
        try:
            with tail.Bar(self.console, self.store, self.run_id, launch.attempt) as bar:
                while not self.show_news(launch, watch, log, bar):
                    time.sleep(self.settings.watch.poll_s)
        finally:
            log.close()

    def show_news(self, launch: Launch, watch: Watch, log: RunLog, bar: tail.Bar) -> bool:
        """Print what is new in the log; whether the attempt is over. A store that does not answer is asked again."""
        try:
            over = self.is_over(launch, watch)
            for line in log.lines():
                tail.show(self.console, line)
            bar.update()
            return over
        except TryAgainError as error:
            self.say(f"no answer, trying again: {error}")
            return False

    def show_log(self, launch: Launch) -> None:
        """Print the stored log of an attempt that has ended."""
        for line in RunLog(self.store, self.run_id, launch.attempt).lines():
            tail.show(self.console, line)

    def is_over(self, launch: Launch, watch: Watch) -> bool:
        """Has the attempt a final state, or has it been given one now, since it cannot say so itself?"""
        if self.final_state(launch) is not None:
            return True
        try:
            found = watch.ending()
        except (LaunchError, TryAgainError) as error:  # the job goes on without us, and the store tells how it ends
            self.say(f"no answer, trying again: {error}")
            return False
        if found is None:
            return False
        if found[0] == "infra_lost":  # its last word may still be on its way
            time.sleep(self.settings.watch.poll_s)
        self.end(launch, *found)
        return True

    # -- the end --

    def end_pods(self) -> None:
        """End every machine of this run that has no business any more, and wait until it is gone."""
        launches = all_launches(self.store, self.run_id)
        over = self.committed()
        ended = {one.pod_name for one in launches if over or one.n < len(launches) or self.final_state(one) is not None}
        for pod in self.all_pods():
            if pod.name in ended and pod.status is not PodStatus.GONE:
                self.end_pod(pod.id)

    def all_pods(self) -> list[Pod]:
        """The provider's list, asked for until it comes: what is not seen is not ended."""
        until = time.monotonic() + self.settings.watch.settle_s
        while True:
            try:
                return self.pods.list()
            except (LaunchError, TryAgainError) as error:
                if time.monotonic() >= until:
                    raise
                self.say(f"the provider does not show its machines, trying again: {error}")
            time.sleep(self.settings.watch.poll_s)

    def end_pod(self, pod_id: str, *, at_once: bool = False) -> None:
        """Let a machine end itself for a while, then end it. Raises TryAgainError if it is there all the same."""
        watch = self.settings.watch
        grace = time.monotonic() + (0.0 if at_once else watch.grace_s)
        patience = grace + watch.settle_s
        while (status := self.pod_status(pod_id)) is not PodStatus.GONE:
            if time.monotonic() >= patience:
                raise TryAgainError(
                    f"pod {pod_id} could not be ended, it is {status}: run `launch.py reap`, or end it by hand"
                )
            if time.monotonic() >= grace or status not in (PodStatus.RUNNING, PodStatus.UNKNOWN):
                with contextlib.suppress(LaunchError, TryAgainError):
                    self.pods.terminate(pod_id)
            time.sleep(min(watch.poll_s, watch.grace_s))

    def pod_status(self, pod_id: str) -> PodStatus:
        """Where a machine is; UNKNOWN where the provider does not say, or in no word that we know."""
        try:
            pod = self.pods.get(pod_id)
        except (LaunchError, TryAgainError):
            return PodStatus.UNKNOWN
        return PodStatus.GONE if pod is None else pod.status

    def end(self, launch: Launch, state: str, reason: str, exit_code: int | None = None) -> str:
        return end_attempt(self.store, self.run_id, launch.attempt, state, reason, exit_code)

    def cancel(self) -> str:
        """Ask the newest attempt to stop; end its machine if it does not. -> its final state."""
        launch = newest_launch(self.store, self.run_id)
        if launch is None:
            raise ArtifactError(f"run {self.run_id} was never launched on a rented machine ({self.store.url})")
        state = self.final_state(launch)
        if state != "committed":
            self.store.put(launch.key(CANCEL), canonical_json({"time": now_text()}))
        if state is None:
            at_work = read_rented(self.store, launch) is not None
            until = time.monotonic() + (self.settings.watch.grace_s if at_work else 0.0)
            while (state := self.final_state(launch)) is None and time.monotonic() < until:
                time.sleep(self.settings.watch.poll_s)
        state = state or self.end(launch, "cancelled", "asked for", errors.EXIT_CANCELLED)
        self.end_pods()
        return state

    # -- what is known --

    def committed(self) -> bool:
        return self.store.exists(run_key(self.run_id, COMMIT))

    def final_state(self, launch: Launch) -> str | None:
        """How the attempt ended; None while it has not."""
        state = (read_json_or_none(self.store, launch.key(STATUS)) or {}).get("state")
        return str(state) if state in FINAL_STATES else None

    def spent(self) -> float:
        """USD that the run's launches have cost so far."""
        return sum(float(cost_of(self.store, launch)["cost"]) for launch in all_launches(self.store, self.run_id))

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def report_committed(self) -> int:
        manifest = require_manifest(self.store, self.run_id)
        check_files(self.store, manifest["files"])
        self.say(f"committed {self.run_id}: {len(manifest['files'])} files, {self.spent():.4f} USD")
        return errors.EXIT_DONE

    def report_failed(self, launch: Launch, state: str) -> int:
        status = read_json_or_none(self.store, launch.key(STATUS)) or {}
        self.say(f"{self.run_id} ended as {state}: {status.get('reason') or 'no reason given'}")
        self.say(f"what happens next: {FINAL_STATES[state]}")
        return int(status.get("exit_code") or errors.MoolaError.exit_code)


def check_files(store: Store, items: list[dict[str, object]]) -> None:
    """Every file of a manifest is there in its full length. Raises ArtifactError. `pull` and `verify` check digests."""
    for item in items:
        head = store.head(str(item["key"]))
        if head is None or head.size != item["size"]:
            found = "missing" if head is None else f"{head.size} B"
            raise ArtifactError(
                f"{item['path']} must have {item['size']} B in the store, it is {found} ({item['key']})"
            )

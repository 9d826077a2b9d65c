"""Rents the machine of a launch: the claim before the request, the record after it.

A machine that a launcher has asked for can be found by its name in the provider's list, whatever
became of the answer and of the launcher; that is why another launcher can take over at any moment.
"""

import contextlib
import threading
import time
from collections.abc import Iterator

from moola.errors import DataError, LaunchError, MoolaError, NoCapacityError, TryAgainError
from moola.launch.rented.budget import reserve, settle
from moola.launch.rented.context import RunContext
from moola.launch.rented.machines import confirmed, find_pod, record
from moola.launch.rented.plan import candidates, choose, deadline_of
from moola.launch.rented.request import pod_request
from moola.launch.rented.store_access import require_reachable
from moola.launch.rented.terms import Terms
from moola.providers.base import Pod
from moola.providers.retry import TransientError
from moola.runs.group_ledger import Room
from moola.runs.launches import (
    RENTING,
    Launch,
    RentedMachine,
    all_launches,
    claim,
    launch_key,
    read_rented,
)
from moola.runs.protocol import STATUS, canonical_json, now_text
from moola.runs.records import State

MOST_REASONS = 12  # of the refusals named in an attempt's reason
HEARTBEATS_PER_SETTLE = 4  # of a launcher that is renting, before others take it for dead


class Renting:
    """Claims launches of a run, and gets a machine for each: by renting it, or from another."""

    def __init__(self, context: RunContext) -> None:
        self.context = context

    def claim(self, n: int, terms: Terms, retries: int = 0) -> None:
        """Claim launch n; where another launcher was first, its launch is followed."""
        launch = claim(
            self.context.store,
            self.context.run_id,
            n,
            terms.job,
            terms.image,
            terms.machine,
            retries,
            budget=terms.budget,
            key=self.context.signing_key(),
        )
        if launch is None:
            return

        self.context.claimed[n] = launch
        status = {"state": State.WAITING, "time": now_text(), "reason": "looking for a machine"}
        self.context.store.put(launch.key(STATUS), canonical_json(status))

    def machine_of(self, launch: Launch) -> RentedMachine | None:
        """The machine of a launch; None if the attempt ended.

        It is rented now if this launcher has claimed the launch. That of another launcher is looked
        for: what is recorded in the store makes this one rent nothing.
        """
        own = self.context.claimed.get(launch.n)
        if own is not None and not self.context.ledger.has_requested(launch.n):
            return self.rent(own)

        machine = read_rented(self.context.store, launch)
        if machine is not None:
            return confirmed(self.context, launch, machine)
        return self.adopt(launch)

    # -- the launch is another launcher's --

    def adopt(self, launch: Launch) -> RentedMachine | None:
        """The machine of another launcher's launch, waited for while that launcher is at work.

        None if the attempt ended instead. It is ended as infra_lost where that launcher is gone
        and left no machine.
        """
        watch = self.context.watch
        heartbeat: bytes | None = None
        changed = time.monotonic()

        while True:
            machine = read_rented(self.context.store, launch)
            if machine is not None:
                return confirmed(self.context, launch, machine)

            try:
                pod = find_pod(self.context.pods, launch)
                if pod is not None:
                    return record(self.context, launch, pod)
            except TryAgainError:
                changed = time.monotonic()  # there may be a machine: nothing is given up unseen

            if self.context.final_state(launch) is not None:
                return None

            newest = self.context.store.get_or_none(launch.key(RENTING))
            if newest != heartbeat:
                heartbeat = newest
                changed = time.monotonic()
            if time.monotonic() - changed > watch.settle_s:
                self.give_up(launch)
                return None
            time.sleep(watch.poll_s)

    def give_up(self, launch: Launch) -> None:
        """End a launch with neither a launcher nor a machine; the next is no further attempt."""
        reason = "its launcher went away before there was a machine"
        state = self.context.end_attempt(launch, "infra_lost", reason)
        if state == State.INFRA_LOST:
            self.mark_orphan(launch)

    def mark_orphan(self, launch: Launch) -> None:
        """Note that an attempt ended without a machine: the next launch is no further attempt."""
        status = self.context.status(launch)
        if status is not None:
            orphan = status.model_copy(update={"orphan": True}).model_dump(mode="json")
            self.context.store.put(launch.key(STATUS), canonical_json(orphan))

    # -- the launch is this launcher's own --

    def rent(self, launch: Launch) -> RentedMachine | None:
        """Ask for the candidates in order, round by round, until there is a machine.

        None if the attempt ended instead: given up by somebody, or no_capacity in time. Raises
        LaunchError where the provider refuses for good, DataError where the request may not be
        made.
        """
        machine = launch.machine_config()
        refusals: list[str] = []

        with self.heartbeat(launch):
            room = self.wait_for_budget(launch)
            give_up_at = time.monotonic() + machine.max_wait_for_capacity.total_seconds()
            while not self.is_given_up(launch):
                try:
                    pod = self.ask_candidates(launch, room, refusals)
                except (DataError, LaunchError) as error:
                    self.context.end_attempt(launch, "launch_failed", str(error), error.exit_code)
                    raise

                if pod is not None:
                    self.context.ledger.rented(launch.n, pod.price_per_hour)
                    return record(self.context, launch, pod)
                if self.is_given_up(launch):
                    return None
                if time.monotonic() >= give_up_at:
                    reason = "; ".join(refusals[-MOST_REASONS:])
                    self.context.end_attempt(
                        launch, "no_capacity", reason, NoCapacityError.exit_code
                    )
                    return None

                self.context.say(
                    f"no machine yet: {refusals[-1]}; "
                    f"asking again in {self.context.watch.capacity_poll_s:g} s"
                )
                self.wait_for_capacity(launch)
        return None

    def rent_once(self, launch: Launch) -> RentedMachine | None:
        """Ask for each candidate once, for one who does not wait; None if there is no machine.

        Then the attempt ends as no_capacity, and the next launch is no further attempt while
        `max_wait_for_capacity` has not passed. Raises as `rent` does.
        """
        refusals: list[str] = []
        with self.heartbeat(launch):
            try:
                room = self.room_for(launch)
                pod = None
                if room.is_free:
                    pod = self.ask_candidates(launch, room, refusals)
            except (DataError, LaunchError) as error:
                self.context.end_attempt(launch, "launch_failed", str(error), error.exit_code)
                raise

            if pod is not None:
                self.context.ledger.rented(launch.n, pod.price_per_hour)
                return record(self.context, launch, pod)

            reason = room.why_not or "; ".join(refusals[-MOST_REASONS:])
            longest_s = launch.machine_config().max_wait_for_capacity.total_seconds()
            is_over = room.is_free and self.waited_s(launch) >= longest_s
            state = self.context.end_attempt(
                launch, "no_capacity", reason, NoCapacityError.exit_code
            )
            settle(self.context, launch)
            if state == State.NO_CAPACITY and not is_over:
                self.mark_orphan(launch)
        return None

    def waited_s(self, launch: Launch) -> float:
        """Seconds since a machine was asked for first, for this attempt, by the store's clock.

        Launches that took each other's place without a machine are one attempt.
        """
        store = self.context.store
        waited_s = 0.0
        for earlier in reversed(all_launches(store, launch.run_id)[: launch.n - 1]):
            status = self.context.status(earlier)
            is_same_attempt = status is not None and status.orphan
            if not is_same_attempt or earlier.retries != launch.retries:
                break
            if store.exists(earlier.key(RENTING)):
                record = store.get_dated(launch_key(launch.run_id, earlier.n))
                waited_s = max(waited_s, (record.age_s if record else None) or 0.0)
        return waited_s

    def room_for(self, launch: Launch) -> Room:
        """The room that the group's budget has for the launch, set aside if there is any.

        Raises LaunchError where there will never be any.
        """
        if launch.budget is None:
            return Room(is_free=True)
        return reserve(self.context, launch, launch.budget)

    def wait_for_budget(self, launch: Launch) -> Room:
        """Wait until the group's budget has room for the launch, or the launch is given up.

        A launch for which it will never have room is ended.
        """
        while True:
            try:
                room = self.room_for(launch)
            except (DataError, LaunchError) as error:
                self.context.end_attempt(launch, "launch_failed", str(error), error.exit_code)
                raise
            except TryAgainError as error:
                room = Room(is_free=False, why_not=str(error))
            if room.is_free or self.is_given_up(launch):
                return room
            self.context.say(f"waiting for the budget of the group: {room.why_not}")
            self.wait_for_capacity(launch)

    def ask_candidates(self, launch: Launch, room: Room, refusals: list[str]) -> Pod | None:
        """Ask for each candidate for which there is room once; None if none could be had.

        `refusals` gets a line for each that was refused or passed over.
        """
        pods = self.context.pods
        machine = launch.machine_config()
        require_reachable(pods)
        try:
            offers = pods.offers(candidates(machine, pods), machine.min_cuda)
        except TryAgainError as error:
            refusals.append(f"the provider's catalog does not answer: {error}")
            return None

        for choice in choose(machine, offers):
            if choice.why_not:
                refusals.append(f"{choice.offer.name}: {choice.why_not}")
                continue
            if choice.price > room.price_per_hour:
                refusals.append(f"{choice.offer.name}: dearer than what was set aside for")
                continue
            if self.is_given_up(launch):
                return None

            now = self.context.pods.now()
            deadline = deadline_of(machine, choice.price, self.context.spent(), now)
            request = pod_request(self.context.settings, launch, choice.offer, deadline)
            self.context.ledger.requested(launch.n)
            try:
                return self.context.pods.create(request)
            except NoCapacityError as error:
                refusals.append(f"{choice.offer.name}: {error}")
            except TransientError as error:
                if not error.had_no_effect:
                    return self.settle(launch, error)
                refusals.append(f"{choice.offer.name}: {error}")
            except TryAgainError as error:
                return self.settle(launch, error)
        return None

    def settle(self, launch: Launch, error: TryAgainError) -> Pod | None:
        """After an answer that never came: the pod, if it is listed within `settle_s`.

        Otherwise the attempt is ended, so that no second machine is rented beside a late one.
        """
        give_up_at = time.monotonic() + self.context.watch.settle_s
        while time.monotonic() < give_up_at:
            with contextlib.suppress(TryAgainError):
                pod = find_pod(self.context.pods, launch)
                if pod is not None:
                    return pod
            time.sleep(self.context.watch.poll_s)

        reason = f"whether a machine was made could not be settled: {error}"
        self.context.end_attempt(launch, "infra_lost", reason)
        return None

    def wait_for_capacity(self, launch: Launch) -> None:
        """A pause between two rounds, cut short where somebody gives the launch up."""
        watch = self.context.watch
        end_at = time.monotonic() + watch.capacity_poll_s
        while time.monotonic() < end_at and not self.is_given_up(launch):
            time.sleep(min(watch.poll_s, watch.capacity_poll_s))

    def is_given_up(self, launch: Launch) -> bool:
        """Did somebody end this launch, or claim the next one?"""
        newest = self.context.newest_launch()
        if newest is None or newest.n != launch.n:
            return True
        return self.context.final_state(launch) is not None

    @contextlib.contextmanager
    def heartbeat(self, launch: Launch) -> Iterator[None]:
        """While the block runs, others see that this launcher is alive.

        It beats in a thread, since one call to the provider may take minutes.
        """
        done = threading.Event()
        pause_s = self.context.watch.settle_s / HEARTBEATS_PER_SETTLE

        def beat() -> None:
            while not done.is_set():
                with contextlib.suppress(MoolaError):
                    now = canonical_json({"time": now_text()})
                    self.context.store.put(launch.key(RENTING), now)
                done.wait(pause_s)

        thread = threading.Thread(target=beat, name="renting", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

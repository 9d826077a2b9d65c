"""Tells when an attempt on a rented machine is over: by its own word, or by what its silence means."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deploy.pods import PodStatus
from moola import errors
from moola.errors import LaunchError, TryAgainError
from moola.launches import Launch, Rented
from moola.protocol import HEARTBEAT, STATUS, read_json_or_none
from moola.store import Store

if TYPE_CHECKING:
    from deploy.remote import Remote

Ending = tuple[str, str, int | None]  # final state, reason, exit code


class Watch:
    """Tells when an attempt on a machine is over, and gives it a final state where it cannot speak for itself."""

    def __init__(self, remote: "Remote", launch: Launch, rented: Rented) -> None:
        self._remote, self._launch, self._rented = remote, launch, rented
        self._settings = remote.settings.watch
        self._pod_asked = float("-inf")
        self._beat: object = None
        self._beat_changed = time.monotonic()
        self._uptime = 0.0
        self._checks: tuple[Callable[[], Ending | None], ...] = (
            self._machine_gone,
            self._late,
            self._silent,
        )

    def over(self) -> bool:
        """Has the attempt a final state, or has it been given one now?"""
        remote, launch = self._remote, self._launch
        if remote.final_state(launch) is not None:
            return True
        for check in self._checks:
            found = check()
            if found is not None:
                state, reason, exit_code = found
                if state == "infra_lost":  # its last word may still be on its way
                    time.sleep(self._settings.poll_s)
                remote.end(launch, state, reason, exit_code)
                return True
        return False

    def _machine_gone(self) -> Ending | None:
        if time.monotonic() - self._pod_asked < self._settings.pod_poll_s:
            return None
        self._pod_asked = time.monotonic()
        try:
            pod = self._remote.pods.get(self._rented.pod_id)
        except (LaunchError, TryAgainError) as error:  # the job goes on without us, and the store tells how it ends
            self._remote.say(f"the provider does not say how the machine is: {error}")
            return None
        if pod is None or pod.status in (PodStatus.GONE, PodStatus.STOPPED, PodStatus.FAILED):
            word = "gone" if pod is None else pod.provider_status
            return "infra_lost", f"the machine is {word} and the job left no final status", None
        if pod.uptime_s is not None:
            if pod.uptime_s < self._uptime - 1:
                return "crash_loop", f"the container was started again after {self._uptime:.0f} s", None
            self._uptime = pod.uptime_s
        return None

    def _late(self) -> Ending | None:
        if time.time() < self._rented.deadline + self._settings.grace_s:
            return None
        return (
            "timed_out",
            "max_runtime or max_spend was reached, and the job did not stop by itself",
            errors.EXIT_TIME_LIMIT,
        )

    def _silent(self) -> Ending | None:
        """By how the heartbeat changes, not by its time: the machine's clock may be another."""
        store, launch, now = self._remote.store, self._launch, time.monotonic()
        beat = last_sign(store, launch)
        if beat is not None and beat != self._beat:
            self._beat, self._beat_changed = beat, now
        quiet = now - self._beat_changed
        if self._beat is not None and quiet > self._settings.stalled_after_s:
            return "stalled", f"no heartbeat for {quiet:.0f} s", None
        if self._beat is None and time.time() - self._rented.created > self._settings.start_timeout_s:
            limit = self._settings.start_timeout_s
            return "infra_lost", f"the job did not start within {limit:.0f} s: is the image's download stuck?", None
        return None


def last_sign(store: Store, launch: Launch) -> dict[str, Any] | None:
    """The last sign of life of an attempt's job, with its "time": its heartbeat, before the first one the status."""
    beat = read_json_or_none(store, launch.key(HEARTBEAT))
    if beat is not None:
        return beat
    status = read_json_or_none(store, launch.key(STATUS)) or {}
    return status if status.get("state") == "running" else None

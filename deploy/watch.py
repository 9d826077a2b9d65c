"""Tells when an attempt on a rented machine is over: by its own word, or by what its silence means."""

import time
from collections.abc import Callable
from typing import Any

from deploy.pods import PodApi, PodStatus
from deploy.settings import WatchConfig
from moola import errors
from moola.errors import LaunchError, MoolaError, TryAgainError
from moola.launches import Launch, Rented
from moola.protocol import HEARTBEAT, STATUS, read_json_or_none
from moola.store import Store

Ending = tuple[str, str, int | None]  # final state, reason, exit code


class Watch:
    """Looks at an attempt on a machine from outside."""

    def __init__(self, config: WatchConfig, store: Store, pods: PodApi, launch: Launch, rented: Rented) -> None:
        self._config, self._store, self._pods, self._launch, self._rented = config, store, pods, launch, rented
        self._pod_asked = float("-inf")
        self._beat: object = None
        self._beat_changed = time.monotonic()
        self._uptime = 0.0
        self._checks: tuple[Callable[[], Ending | None], ...] = (self._machine_gone, self._late, self._silent)

    def ending(self) -> Ending | None:
        """What the attempt has to be ended with, as far as can be seen from outside; None while it is at work.

        Raises LaunchError or TryAgainError where the provider or the store does not answer, and no other check found
        anything.
        """
        problem: MoolaError | None = None
        for check in self._checks:
            try:
                if (found := check()) is not None:
                    return found
            except (LaunchError, TryAgainError) as error:
                problem = error
        if problem is not None:
            raise problem
        return None

    def _machine_gone(self) -> Ending | None:
        if time.monotonic() - self._pod_asked < self._config.pod_poll_s:
            return None
        self._pod_asked = time.monotonic()
        pod = self._pods.get(self._rented.pod_id)
        if pod is None or pod.status in (PodStatus.GONE, PodStatus.STOPPED, PodStatus.FAILED):
            word = "gone" if pod is None else pod.provider_status
            return "infra_lost", f"the machine is {word} and the job left no final status", None
        if pod.uptime_s is not None:
            if pod.uptime_s < self._uptime - 1:
                return "crash_loop", f"the container was started again after {self._uptime:.0f} s", None
            self._uptime = pod.uptime_s
        return None

    def _late(self) -> Ending | None:
        if time.time() < self._rented.deadline + self._config.grace_s:
            return None
        return (
            "timed_out",
            "max_runtime or max_spend was reached, and the job did not stop by itself",
            errors.EXIT_TIME_LIMIT,
        )

    def _silent(self) -> Ending | None:
        """By how the heartbeat changes, not by its time: the machine's clock may be another."""
        now = time.monotonic()
        beat = last_sign(self._store, self._launch)
        if beat is not None and beat != self._beat:
            self._beat, self._beat_changed = beat, now
        quiet = now - self._beat_changed
        if self._beat is not None and quiet > self._config.stalled_after_s:
            return "stalled", f"no heartbeat for {quiet:.0f} s", None
        if self._beat is None and time.time() - self._rented.created > self._config.start_timeout_s:
            limit = self._config.start_timeout_s
            return "infra_lost", f"the job did not start within {limit:.0f} s: is the image's download stuck?", None
        return None


def last_sign(store: Store, launch: Launch) -> dict[str, Any] | None:
    """The last sign of life of an attempt's job, with its "time": its heartbeat, before the first one the status."""
    beat = read_json_or_none(store, launch.key(HEARTBEAT))
    if beat is not None:
        return beat
    status = read_json_or_none(store, launch.key(STATUS)) or {}
    return status if status.get("state") == "running" else None

"""Observes an attempt on a rented machine from the launcher: its pod, and its job's heartbeat."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from moola.errors import LaunchError, MoolaError, TryAgainError
from moola.launch.rented.live_log import ending_in
from moola.launch.rented.signs import Pulse
from moola.launch.rented.verdict import Ages, Ending, verdict
from moola.launch.settings import WatchConfig
from moola.providers.base import LogLine, PodApi, PodStatus
from moola.runs.launches import Launch, RentedMachine
from moola.store import Store

ENDED = (PodStatus.GONE, PodStatus.STOPPED, PodStatus.FAILED)
UPTIME_ROUNDING_S = 1.0  # an uptime that falls by more means a restart


class Observer:
    """Looks at an attempt again and again, and remembers what it saw before.

    Silence is how long the heartbeat has not changed; the machine's age is the provider's.
    `live_lines` gives the newest lines of the machine's live log.
    """

    def __init__(
        self,
        config: WatchConfig,
        store: Store,
        pods: PodApi,
        launch: Launch,
        machine: RentedMachine,
        live_lines: Callable[[], Sequence[LogLine]] = tuple,
    ) -> None:
        self._config = config
        self._pods = pods
        self._launch = launch
        self._machine = machine
        self._live_lines = live_lines

        self._pod_checked = float("-inf")
        self._uptime_s = 0.0
        self._pulse = Pulse(store, launch)

    def ending(self) -> Ending | None:
        """What the attempt has to be ended as, as far as can be seen; None while it is at work.

        Raises LaunchError or TryAgainError where the provider or the store does not answer, and
        what is known without it is no reason to end the attempt.
        """
        ending = ending_in(self._live_lines(), self._launch.image)
        if ending is not None:
            return ending

        problem: MoolaError | None = None
        try:
            ending = self._check_pod()
            if ending is not None:
                return ending
        except (LaunchError, TryAgainError) as error:
            problem = error

        past_deadline_s = self._pods.now() - self._machine.deadline
        late = verdict(Ages(past_deadline_s), self._config)
        if late is not None:  # whatever the store may answer
            return late

        try:
            ending = self._check_silence(past_deadline_s)
        except (LaunchError, TryAgainError) as error:
            problem = error
        if ending is None and problem is not None:
            raise problem
        return ending

    def _check_pod(self) -> Ending | None:
        """Has the machine gone, or its container been started again? Asked once in `pod_poll_s`."""
        now = time.monotonic()
        if now - self._pod_checked < self._config.pod_poll_s:
            return None
        self._pod_checked = now

        pod = self._pods.get(self._machine.pod_id)
        is_own = pod is not None and pod.name == self._launch.pod_name
        if pod is None or not is_own or pod.status in ENDED:
            status = pod.provider_status if pod is not None and is_own else "gone"
            return Ending("infra_lost", f"the machine is {status} and the job left no final status")

        if pod.uptime_s is not None:
            if pod.uptime_s < self._uptime_s - UPTIME_ROUNDING_S:
                return Ending(
                    "crash_loop", f"the container was started again after {self._uptime_s:.0f} s"
                )
            self._uptime_s = pod.uptime_s

        return None

    def _check_silence(self, past_deadline_s: float) -> Ending | None:
        """Has the job been silent for too long, or never given a sign of life?

        A heartbeat that cannot be read is one for as long as it changes: the job may be at work.
        """
        silent_s = self._pulse.silent_s()
        if silent_s is None:
            unstarted_s = self._pods.now() - self._machine.created
            return verdict(Ages(past_deadline_s, unstarted_s=unstarted_s), self._config)

        ending = verdict(Ages(past_deadline_s, silent_s=silent_s), self._config)
        if ending is not None and self._pulse.damage is not None:
            return replace(ending, reason=f"{ending.reason}; {self._pulse.damage}")
        return ending

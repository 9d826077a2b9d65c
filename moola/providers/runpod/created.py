"""The pod that a create has made, whatever happened to its answer: none may run unnoticed."""

import time

from moola.errors import LaunchError, TryAgainError
from moola.providers.base import Pod, PodApi, PodStatus
from moola.providers.retry import TransientError

LOOKUP_WAITS = (0, 1, 2, 4, 8)  # before each look into the list, in units of the first retry's wait


def find_created(api: PodApi, name: str, failure: TransientError, first_wait_s: float) -> Pod:
    """The pod that a create without a usable answer has made, found by its name.

    Raises the failure if it had no effect, else TryAgainError if the pod is not there, or the list
    cannot be had.
    """
    if failure.had_no_effect:
        raise failure

    started = time.monotonic()
    for units in LOOKUP_WAITS:
        time.sleep(units * first_wait_s)
        try:
            pods = api.list()
        except TryAgainError as error:
            raise TryAgainError(
                f"{failure}; whether pod {name} was made could not be settled: {error}"
            ) from error

        for pod in pods:
            if pod.name == name:
                return pod

    lookups = f"{len(LOOKUP_WAITS)} look-ups in {time.monotonic() - started:.0f} s"
    raise TryAgainError(
        f"{failure}; {lookups} found no pod {name}, but it could not be settled: "
        "it may still appear"
    )


def require_known_status(api: PodApi, pod: Pod) -> Pod:
    """The pod just made. One with an unknown status is terminated before the LaunchError."""
    if pod.status is PodStatus.UNKNOWN:
        api.terminate(pod.id)
        raise LaunchError(
            f"pod {pod.id} came with the unknown status {pod.provider_status!r} and was terminated"
        )
    return pod

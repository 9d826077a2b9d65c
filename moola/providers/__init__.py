"""Providers of rented machines, one package each; RunPod is the only one so far.

`registry` asks where their images come from.

A second provider is a package beside `runpod/` with a client that has the methods of
`moola.providers.base.PodApi`, and a branch in `open_pods`. If its machines can end themselves, it
also has a `terminate_self` for `moola.jobs.entry` to call.
"""

from moola.errors import LaunchError
from moola.providers.base import PodApi
from moola.providers.runpod.rest import RestPods


def open_pods(backend: str, key: str | None = None) -> PodApi:
    """A provider's client: RunPod over REST v2 ("rest") or by the `runpod` package ("sdk").

    A key that is missing or wrong raises AuthError with the first call. Raises LaunchError for
    another backend.
    """
    if backend == "rest":
        return RestPods(key)

    if backend == "sdk":
        from moola.providers.runpod.graphql import SdkPods

        return SdkPods(key)

    raise LaunchError(f"unknown backend for RunPod: {backend!r}; there are rest and sdk")

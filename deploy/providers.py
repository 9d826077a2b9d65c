"""The two ways to reach RunPod, by name."""

from deploy.pods import PodApi
from deploy.runpod import RestPods
from moola.errors import LaunchError


def open_pods(backend: str, key: str | None = None) -> PodApi:
    """RunPod by REST v2 ("rest") or by the `runpod` package ("sdk"). AuthError comes with the first call."""
    if backend == "rest":
        return RestPods(key)
    if backend == "sdk":
        from deploy.runpod_sdk import SdkPods  # the package takes seconds to import

        return SdkPods(key)
    raise LaunchError(f"unknown backend for RunPod: {backend!r}; there are rest and sdk")

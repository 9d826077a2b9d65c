"""A pod ends itself, with nothing but its environment: an exit alone would start it again."""

import logging
import re
from collections.abc import Callable, Mapping

import httpx

from moola.errors import AuthError, LaunchError
from moola.providers.retry import TransientError, with_retries
from moola.providers.runpod.account import (
    API_KEY,
    BASE_URL,
    BASE_URL_VARIABLE,
    READ_TIMEOUT_S,
    TERMINATE_KEY,
    USER_AGENT,
    checked_key,
)
from moola.providers.runpod.answers import refusal
from moola.providers.runpod.rest import RestPods

log = logging.getLogger(__name__)

POD_ID = "RUNPOD_POD_ID"
OPERATION = "podTerminate"


def terminate_self(environment: Mapping[str, str]) -> bool:
    """Terminate the pod this runs in. Never raises; False if neither way worked.

    Which key may do it differs from pod to pod, so both are tried: RUNPOD_TERMINATE_API_KEY (a
    restricted key of the account) over REST, then RUNPOD_API_KEY (the pod's own) over GraphQL,
    where it has worked when REST refused it.
    """
    ways: tuple[tuple[str, Callable[[str, str, str], None]], ...] = (
        (TERMINATE_KEY, _terminate_over_rest),
        (API_KEY, _terminate_over_graphql),
    )
    pod_id = environment.get(POD_ID, "")
    base_url = environment.get(BASE_URL_VARIABLE) or BASE_URL

    for key_name, terminate in ways:
        try:
            if not re.fullmatch(r"[\w-]+", pod_id):
                raise LaunchError(f"{POD_ID} is no pod's id: {pod_id!r}")

            key = environment.get(key_name)
            if not key:
                raise AuthError(f"{key_name} is not set")

            terminate(base_url, key, pod_id)
            return True
        except Exception as error:  # whatever it is, the next way must be tried
            log.warning("pod could not end itself with %s: %s", key_name, error)

    return False


def _terminate_over_rest(base_url: str, key: str, pod_id: str) -> None:
    RestPods(key, base_url=base_url).terminate(pod_id)


def _terminate_over_graphql(base_url: str, key: str, pod_id: str) -> None:
    """Raises unless the pod is terminated or gone."""
    query = f'mutation {{ {OPERATION}(input: {{podId: "{pod_id}"}}) }}'
    headers = {"User-Agent": USER_AGENT, "Authorization": f"Bearer {checked_key(key)}"}

    def post() -> dict[str, object]:
        try:
            response = httpx.post(
                f"{base_url}/graphql",
                json={"query": query},
                headers=headers,
                timeout=READ_TIMEOUT_S,
            )
            answer = response.json() if response.is_success else {}
        except (httpx.RequestError, ValueError) as error:
            raise TransientError(f"RunPod: {OPERATION}: {type(error).__name__}") from error

        if not response.is_success:
            raise refusal(response, OPERATION)
        return dict(answer)

    _require_terminated(with_retries(post))


def _require_terminated(answer: Mapping[str, object]) -> None:
    """Raises LaunchError unless a GraphQL answer says that the pod is terminated or gone."""
    errors = answer.get("errors")
    messages = [str(error.get("message")) for error in errors] if isinstance(errors, list) else []
    if any("pod not found" in message for message in messages):
        return

    data = answer.get("data")
    is_confirmed = isinstance(data, Mapping) and OPERATION in data
    if messages or not is_confirmed:
        detail = "; ".join(messages) or "no such key in the answer"
        raise LaunchError(f"RunPod: {OPERATION}: {detail}")

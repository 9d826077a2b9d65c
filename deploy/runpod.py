"""RunPod over its REST API v2, and how a pod ends itself."""

import builtins
import json
import logging
import os
import re
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import httpx

from deploy.patience import NotAnsweredError, Pace, patiently
from deploy.pods import BillingRecord, Candidate, Cloud, LogLine, Offer, Pod, PodApi, PodRequest, PodStatus
from deploy.runpod_answers import MachineType, MissingError, billing_of, lines_of, offer_of, pod_of, read, refusal
from moola import __version__
from moola.errors import AuthError, LaunchError, TryAgainError

log = logging.getLogger(__name__)

BASE_URL = "https://api.runpod.io"
USER_AGENT = f"moola/{__version__}"  # the edge turns some default agents away
CONNECT_S, READ_S = 10.0, 30.0
SILENCE_S = 20.0  # of a log stream; a keepalive comes every 15 s
MOST_TAIL = 5000  # lines of history that a log stream may be asked for
LOOK_UPS = (0, 1, 2, 4, 8)  # when a pod is looked for after a create without an answer, in units of the first retry


def checked_key(key: str | None) -> str | None:
    """The key of the argument or of RUNPOD_API_KEY, None if there is none. AuthError if it cannot be sent as it is."""
    key = (key or os.environ.get("RUNPOD_API_KEY", "")).strip()
    if key and not re.fullmatch(r"[!-~]+", key):
        raise AuthError("RUNPOD_API_KEY has a blank or a character that is not ASCII in it")
    return key or None


def looked_up(api: PodApi, name: str, why: NotAnsweredError, first_wait_s: float) -> Pod:
    """The pod that a create without a usable answer has made. TryAgainError if there is none, or nobody can say."""
    if why.harmless:
        raise why
    started = time.monotonic()
    for units in LOOK_UPS:
        time.sleep(units * first_wait_s)
        try:
            found = [pod for pod in api.list() if pod.name == name]
        except TryAgainError as error:
            raise TryAgainError(f"{why}; whether pod {name} was made could not be settled: {error}") from error
        if found:
            return found[0]
    waited = f"{len(LOOK_UPS)} look-ups in {time.monotonic() - started:.0f} s"
    raise TryAgainError(f"{why}; {waited} found no pod {name}, but it could not be settled: it may still appear")


def understood(api: PodApi, pod: Pod) -> Pod:
    """The pod just made. In a status we do not know it is terminated before the LaunchError that names it."""
    if pod.status is PodStatus.UNKNOWN:
        api.terminate(pod.id)
        raise LaunchError(f"pod {pod.id} came with the unknown status {pod.provider_status!r} and was terminated")
    return pod


class RestPods:
    """PodApi over REST v2. Thread-safe.

    The key is the argument or RUNPOD_API_KEY, the address `base_url` or RUNPOD_API_BASE_URL. `read_s` is how long an
    answer may take, `silence_s` how long a log stream may be silent before it ends, `first_wait_s` the first pause
    before a retry.
    """

    def __init__(
        self,
        key: str | None = None,
        *,
        base_url: str | None = None,
        read_s: float = READ_S,
        silence_s: float = SILENCE_S,
        first_wait_s: float = 0.5,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        checked = checked_key(key)
        headers = {"User-Agent": USER_AGENT} | ({"Authorization": f"Bearer {checked}"} if checked else {})
        self._http = httpx.Client(
            base_url=base_url or os.environ.get("RUNPOD_API_BASE_URL") or BASE_URL,
            headers=headers,
            timeout=httpx.Timeout(read_s, connect=CONNECT_S),
            transport=transport,
        )
        self._has_key, self._silence_s, self._first_wait_s = bool(checked), silence_s, first_wait_s
        self._pace = Pace()
        weakref.finalize(self, self._http.close)

    # PodApi

    def body(self, request: PodRequest) -> dict[str, Any]:
        """The CreatePodRequest. `min_cuda` is for GPUs; arguments go as JSON, since a plain string would be split."""
        wanted, count = request.candidate, request.candidate.count
        size = {"vcpuCount": count} if wanted.kind == "cpu" else {"count": count}  # without it no machine matches
        if wanted.kind == "gpu" and request.min_cuda:
            size |= {"minCudaVersion": request.min_cuda}  # type: ignore[dict-item]
        optional = {
            "dataCenterIds": list(request.data_centers),
            "args": json.dumps({"cmd": list(request.args)}) if request.args else "",
            "registry": request.registry,
        }
        return {
            "name": request.name,
            "image": request.image,
            wanted.kind: {"id": wanted.type_id, **size},
            "cloud": wanted.cloud,
            "disk": request.disk_gb,
            "env": dict(request.env),
            "startSsh": False,
            "startJupyter": False,
            **{name: value for name, value in optional.items() if value},
        }

    def create(self, request: PodRequest) -> Pod:
        """See PodApi. A create is sent again after 429 or where no connection came about, and never otherwise."""
        hide = tuple(request.env.values())
        try:
            made = self._json("POST", "/v2/pods", safe=False, hide=hide, json=self.body(request))
            if not isinstance(made.get("id"), str):
                raise NotAnsweredError("RunPod: POST /v2/pods: an answer without an id")
        except NotAnsweredError as error:
            pod = looked_up(self, request.name, error, self._first_wait_s)
        else:
            pod = self._read_or_ended(made)
        return understood(self, pod)

    def get(self, pod_id: str) -> Pod | None:
        try:
            pod = pod_of(self._json("GET", f"/v2/pods/{pod_id}"))
        except MissingError:
            return None
        return None if pod.status is PodStatus.GONE else pod

    def list(self) -> builtins.list[Pod]:
        return [pod_of(shown, any_status=True) for shown in self._pages("/v2/pods", "pods")]

    def terminate(self, pod_id: str) -> None:
        try:
            patiently(lambda: self._once("DELETE", f"/v2/pods/{pod_id}"), first_wait_s=self._first_wait_s)
        except MissingError:
            return

    def logs(self, pod_id: str, after: str | None = None) -> Iterator[LogLine]:
        """See PodApi. RunPod withholds even the headers until there is a line."""
        headers = {"Last-Event-ID": after} if after else {}
        timeout = httpx.Timeout(self._silence_s, connect=CONNECT_S)
        self._ready()
        try:
            with self._http.stream(
                "GET", f"/v2/pods/{pod_id}/logs", params={"tail": MOST_TAIL}, headers=headers, timeout=timeout
            ) as answer:
                self._pace.learn(answer.headers)
                if not answer.is_success:
                    answer.read()
                    raise refusal(answer, f"GET /v2/pods/{pod_id}/logs")
                for line in lines_of(answer.iter_bytes()):
                    if line.id != after:  # should the resume point itself be sent again
                        yield line
        except (httpx.ReadTimeout, MissingError):
            return
        except httpx.RequestError as error:
            raise TryAgainError(f"RunPod: the log stream of pod {pod_id} dropped: {type(error).__name__}") from error

    def offers(self, candidates: Sequence[Candidate]) -> builtins.list[Offer]:
        groups = {(c.kind, c.count, c.cloud) for c in candidates}
        shown = {group: self._catalog(*group) for group in sorted(groups)}
        return [offer_of(c, shown[c.kind, c.count, c.cloud].get(c.type_id)) for c in candidates]

    def catalog(self, kind: Literal["cpu", "gpu"], cloud: Cloud = "SECURE") -> builtins.list[Offer]:
        types = self._catalog(kind, 1 if kind == "gpu" else 2, cloud).values()
        sizes = [(t, 1 if kind == "gpu" else t.vcpu.get("min", 2)) for t in types]
        return [offer_of(Candidate(kind, t.id, count, cloud), t) for t, count in sizes]

    def billing(self, pod_ids: Sequence[str]) -> builtins.list[BillingRecord]:
        """One call per pod; hourly records of the last 30 days."""
        asked = [{"podId": pod_id, "bucketSize": "hour"} for pod_id in pod_ids]
        return [billing_of(shown) for which in asked for shown in self._pages("/v2/billing/pods", "records", **which)]

    # calls

    def _read_or_ended(self, made: dict[str, Any]) -> Pod:
        """The pod just made. If it cannot be read it is terminated before the error: nobody would look after it."""
        try:
            return pod_of(made, any_status=True)
        except LaunchError:
            self.terminate(made["id"])
            raise

    def _catalog(self, kind: str, count: int, cloud: str) -> dict[str, MachineType]:
        size = {"count": count, "cloud": cloud} if kind == "gpu" else {"vcpuCount": count}
        shown = self._pages(f"/v2/catalog/{kind}s", f"{kind}s", include="AVAILABILITY", product="POD", **size)
        types = [read(MachineType, one, "the catalog") for one in shown]
        return {one.id: one for one in types}

    def _pages(self, path: str, key: str, **params: Any) -> Iterator[dict[str, Any]]:
        """The items of a list. There is one page today; clients of the vendor already follow a cursor."""
        cursor = None
        while True:
            page = self._json("GET", path, params=params | ({"cursor": cursor} if cursor else {}))
            yield from page.get(key) or []
            before, cursor = cursor, page.get("nextCursor") or (page.get("pagination") or {}).get("nextCursor")
            if not cursor or cursor == before:
                return

    def _json(self, method: str, path: str, *, safe: bool = True, **how: Any) -> dict[str, Any]:
        """The object in an answer. NotAnsweredError where there is none."""

        def once() -> dict[str, Any]:
            answer = self._once(method, path, **how)
            try:
                shown = answer.json()
            except ValueError:
                shown = None
            if not isinstance(shown, dict):
                raise NotAnsweredError(f"RunPod: {method} {path}: {answer.status_code} without a JSON object")
            return shown

        return patiently(once, safe=safe, first_wait_s=self._first_wait_s)

    def _once(self, method: str, path: str, *, hide: tuple[str, ...] = (), **sent: Any) -> httpx.Response:
        self._ready()
        try:
            answer = self._http.request(method, path, **sent)
        except httpx.RequestError as error:
            unsent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
            raise NotAnsweredError(f"RunPod: {method} {path}: {type(error).__name__}", harmless=unsent) from error
        self._pace.learn(answer.headers)
        if not answer.is_success:
            raise refusal(answer, f"{method} {path}", hide)
        return answer

    def _ready(self) -> None:
        """Before a call: there is a key, and it is time."""
        if not self._has_key:
            raise AuthError("no key for RunPod: set RUNPOD_API_KEY")
        self._pace.wait()


# a pod ends itself


def terminate_self(environment: Mapping[str, str]) -> bool:
    """End the pod this runs in, with nothing but its environment. Never raises; False if no way worked.

    Which key may do it differs from pod to pod, so both are tried: RUNPOD_TERMINATE_API_KEY (a restricted key of the
    account) over REST, then RUNPOD_API_KEY (the pod's own) over GraphQL, where it has worked and REST refused it.
    """
    pod_id = environment.get("RUNPOD_POD_ID", "")
    base_url = environment.get("RUNPOD_API_BASE_URL") or BASE_URL
    for name, way in (("RUNPOD_TERMINATE_API_KEY", _end_over_rest), ("RUNPOD_API_KEY", _end_over_graphql)):
        try:
            if not re.fullmatch(r"[\w-]+", pod_id):
                raise LaunchError(f"RUNPOD_POD_ID is no pod's id: {pod_id!r}")
            if not environment.get(name):
                raise AuthError(f"{name} is not set")
            way(base_url, environment[name], pod_id)
            return True
        except Exception as error:  # whatever it is, the next way must be tried
            log.warning("pod could not end itself with %s: %s", name, error)
    return False


def _end_over_rest(base_url: str, key: str, pod_id: str) -> None:
    RestPods(key, base_url=base_url).terminate(pod_id)


def _end_over_graphql(base_url: str, key: str, pod_id: str) -> None:
    """Raises unless the pod is terminated or gone."""
    query = f'mutation {{ podTerminate(input: {{podId: "{pod_id}"}}) }}'
    headers = {"User-Agent": USER_AGENT, "Authorization": f"Bearer {checked_key(key)}"}
    what = "podTerminate"

    def once() -> dict[str, Any]:
        try:
            answer = httpx.post(f"{base_url}/graphql", json={"query": query}, headers=headers, timeout=READ_S)
            shown = answer.json() if answer.is_success else {}
        except (httpx.RequestError, ValueError) as error:
            raise NotAnsweredError(f"RunPod: {what}: {type(error).__name__}") from error
        if not answer.is_success:
            raise refusal(answer, what)
        return dict(shown)

    shown = patiently(once)
    errors = [str(error.get("message")) for error in shown.get("errors") or []]
    gone = any("pod not found" in message for message in errors)
    if not gone and (errors or "podTerminate" not in (shown.get("data") or {})):
        raise LaunchError(f"RunPod: {what}: {'; '.join(errors) or 'no such key in the answer'}")

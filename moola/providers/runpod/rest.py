"""RunPod over its REST API v2."""

import builtins
import json
import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import httpx

from moola.errors import AuthError, LaunchError, TryAgainError
from moola.providers.base import (
    BillingRecord,
    Candidate,
    Cloud,
    Kind,
    LogLine,
    Offer,
    Pod,
    PodRequest,
    PodStatus,
)
from moola.providers.clock import ProviderClock
from moola.providers.rate_limit import RateLimiter
from moola.providers.retry import TransientError, with_retries
from moola.providers.runpod.account import (
    BASE_URL,
    BASE_URL_VARIABLE,
    NO_KEY,
    PROVIDER,
    READ_TIMEOUT_S,
    USER_AGENT,
    checked_key,
    is_local,
)
from moola.providers.runpod.answers import (
    MachineType,
    MissingError,
    read_answer,
    read_billing,
    read_log_lines,
    read_offer,
    read_pod,
    refusal,
)
from moola.providers.runpod.created import find_created, require_known_status

CONNECT_TIMEOUT_S = 10.0
LOG_SILENCE_S = 20.0  # after which a log stream is given up; a keepalive comes every 15 s
LOG_HISTORY_LINES = 5000  # the most that a log stream may be asked for
SMALLEST_VCPUS = 2
UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)

Json = dict[str, object]


class RestPods:
    """PodApi over REST v2. Thread-safe.

    key            of the account; default: RUNPOD_API_KEY
    base_url       default: RUNPOD_API_BASE_URL, then RunPod's own
    read_s         how long an answer may take
    silence_s      how long a log stream may be silent before it ends
    first_wait_s   the first pause before a retry
    """

    provider = PROVIDER

    def __init__(
        self,
        key: str | None = None,
        *,
        base_url: str | None = None,
        read_s: float = READ_TIMEOUT_S,
        silence_s: float = LOG_SILENCE_S,
        first_wait_s: float = 0.5,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        checked = checked_key(key)
        headers = {"User-Agent": USER_AGENT}
        if checked:
            headers["Authorization"] = f"Bearer {checked}"

        self._base_url = base_url or os.environ.get(BASE_URL_VARIABLE) or BASE_URL
        self._http = httpx.Client(
            base_url=self._base_url,
            headers=headers,
            timeout=httpx.Timeout(read_s, connect=CONNECT_TIMEOUT_S),
            transport=transport,
        )
        self._key = checked
        self._clock = ProviderClock()
        self._silence_s = silence_s
        self._first_wait_s = first_wait_s
        self.rate_limiter = RateLimiter()
        weakref.finalize(self, self._http.close)

    # -- PodApi --

    @property
    def account_key(self) -> str | None:
        return self._key

    @property
    def machines_are_local(self) -> bool:
        return is_local(self._base_url)

    def now(self) -> float:
        return self._clock.now()

    def body(self, request: PodRequest) -> dict[str, Any]:
        """The CreatePodRequest of the published schema.

        `min_cuda` is for GPUs alone. Arguments go as JSON, since RunPod would split plain text.
        """
        candidate = request.candidate
        machine: dict[str, str | int] = {"id": candidate.type_id}  # without a size none matches
        if candidate.kind == "cpu":
            machine["vcpuCount"] = candidate.count
        else:
            machine["count"] = candidate.count
            if request.min_cuda:
                machine["minCudaVersion"] = request.min_cuda

        body: dict[str, Any] = {
            "name": request.name,
            "image": request.image,
            candidate.kind: machine,
            "cloud": candidate.cloud,
            "disk": request.disk_gb,
            "env": dict(request.env),
            "startSsh": False,
            "startJupyter": False,
        }
        if request.data_centers:
            body["dataCenterIds"] = list(request.data_centers)
        if request.args:
            body["args"] = json.dumps({"cmd": list(request.args)})
        if request.registry:
            body["registry"] = request.registry
        return body

    def create(self, request: PodRequest) -> Pod:
        """See PodApi. Sent again only after 429 or where no connection came about."""
        secrets = tuple(request.env.values())
        try:
            answer = self._json(
                "POST",
                "/v2/pods",
                idempotent=False,
                secrets=secrets,
                body=self.body(request),
            )
            if not isinstance(answer.get("id"), str):
                raise TransientError("RunPod: POST /v2/pods: an answer without an id")
        except TransientError as error:
            pod = find_created(self, request.name, error, self._first_wait_s)
        else:
            pod = self._read_or_terminate(answer)
        return require_known_status(self, pod)

    def get(self, pod_id: str) -> Pod | None:
        try:
            pod = read_pod(self._json("GET", f"/v2/pods/{pod_id}"))
        except MissingError:
            return None
        return None if pod.status is PodStatus.GONE else pod

    def list(self) -> builtins.list[Pod]:
        return [read_pod(item, any_status=True) for item in self._pages("/v2/pods", "pods")]

    def terminate(self, pod_id: str) -> None:
        def delete() -> httpx.Response:
            return self._request("DELETE", f"/v2/pods/{pod_id}")

        try:
            with_retries(delete, first_wait_s=self._first_wait_s)
        except MissingError:
            return

    def logs(self, pod_id: str, after: str | None = None) -> Iterator[LogLine]:
        """See PodApi. RunPod withholds even the headers until there is a line."""
        self._prepare_call()
        path = f"/v2/pods/{pod_id}/logs"
        stream = self._http.stream(
            "GET",
            path,
            params={"tail": LOG_HISTORY_LINES},
            headers={"Last-Event-ID": after} if after else {},
            timeout=httpx.Timeout(self._silence_s, connect=CONNECT_TIMEOUT_S),
        )
        try:
            with stream as response:
                self.rate_limiter.learn(response.headers)
                if not response.is_success:
                    response.read()
                    raise refusal(response, f"GET {path}")

                for line in read_log_lines(response.iter_bytes()):
                    if line.id != after:  # the line resumed behind may be sent again
                        yield line
        except (httpx.ReadTimeout, MissingError):
            return
        except httpx.RequestError as error:
            raise TryAgainError(
                f"RunPod: the log stream of pod {pod_id} dropped: {type(error).__name__}"
            ) from error

    def offers(
        self, candidates: Sequence[Candidate], min_cuda: str | None = None
    ) -> builtins.list[Offer]:
        groups = sorted({(one.kind, one.count, one.cloud) for one in candidates})
        catalogs = {group: self._catalog(*group, min_cuda=min_cuda) for group in groups}

        offers = []
        for candidate in candidates:
            catalog = catalogs[candidate.kind, candidate.count, candidate.cloud]
            offers.append(read_offer(candidate, catalog.get(candidate.type_id)))
        return offers

    def catalog(self, kind: Kind, cloud: Cloud = "SECURE") -> builtins.list[Offer]:
        count = 1 if kind == "gpu" else SMALLEST_VCPUS
        offers = []
        for machine_type in self._catalog(kind, count, cloud).values():
            if kind == "cpu":
                count = machine_type.vcpu.get("min", SMALLEST_VCPUS)
            candidate = Candidate(kind, machine_type.id, count, cloud)
            offers.append(read_offer(candidate, machine_type))
        return offers

    def billing(self, pod_ids: Sequence[str]) -> builtins.list[BillingRecord]:
        """One call per pod; hourly records of the last 30 days."""
        records = []
        for pod_id in pod_ids:
            items = self._pages("/v2/billing/pods", "records", podId=pod_id, bucketSize="hour")
            records += [read_billing(item) for item in items]
        return records

    # -- calls --

    def _read_or_terminate(self, answer: Mapping[str, object]) -> Pod:
        """The pod just made. One that cannot be read is terminated: nobody would look after it."""
        try:
            return read_pod(answer, any_status=True)
        except LaunchError:
            self.terminate(str(answer["id"]))
            raise

    def _catalog(
        self, kind: Kind, count: int, cloud: Cloud, *, min_cuda: str | None = None
    ) -> dict[str, MachineType]:
        """The machine types of a kind by id, with stock for machines of that size."""
        size: dict[str, str | int] = {"vcpuCount": count}
        if kind == "gpu":
            size = {"count": count, "cloud": cloud}
            if min_cuda is not None:
                size["minCudaVersion"] = min_cuda

        items = self._pages(
            f"/v2/catalog/{kind}s", f"{kind}s", include="AVAILABILITY", product="POD", **size
        )
        machine_types = [read_answer(MachineType, item, "the catalog") for item in items]
        return {machine_type.id: machine_type for machine_type in machine_types}

    def _pages(self, path: str, key: str, **params: str | int) -> Iterator[object]:
        """The items of a list. There is one page today; the vendor's clients follow a cursor."""
        cursor: str | None = None
        while True:
            page_params = params if cursor is None else {**params, "cursor": cursor}
            page = self._json("GET", path, params=page_params)
            items = page.get(key) or []
            if not isinstance(items, list):
                raise LaunchError(f"RunPod's answer about {key} cannot be read: it must be a list")
            yield from items

            previous = cursor
            cursor = _next_cursor(page)
            if cursor is None or cursor == previous:
                return

    def _json(
        self,
        method: str,
        path: str,
        *,
        idempotent: bool = True,
        secrets: Sequence[str] = (),
        params: Mapping[str, str | int] | None = None,
        body: Mapping[str, object] | None = None,
    ) -> Json:
        """The object in an answer. Raises TransientError where there is none."""

        def call() -> Json:
            response = self._request(method, path, secrets=secrets, params=params, body=body)
            try:
                answer = response.json()
            except ValueError:
                answer = None
            if not isinstance(answer, dict):
                raise TransientError(
                    f"RunPod: {method} {path}: {response.status_code} without a JSON object"
                )
            return answer

        return with_retries(call, idempotent=idempotent, first_wait_s=self._first_wait_s)

    def _request(
        self,
        method: str,
        path: str,
        *,
        secrets: Sequence[str] = (),
        params: Mapping[str, str | int] | None = None,
        body: Mapping[str, object] | None = None,
    ) -> httpx.Response:
        """A successful response to one request. `secrets` are quoted in no error."""
        self._prepare_call()
        try:
            response = self._http.request(method, path, params=params, json=body)
        except httpx.RequestError as error:
            raise TransientError(
                f"RunPod: {method} {path}: {type(error).__name__}",
                had_no_effect=isinstance(error, UNSENT),
            ) from error

        self.rate_limiter.learn(response.headers)
        self._clock.learn(response.headers)
        if not response.is_success:
            raise refusal(response, f"{method} {path}", secrets)
        return response

    def _prepare_call(self) -> None:
        """Wait until the next call is due. Raises AuthError without a key."""
        if not self._key:
            raise AuthError(NO_KEY)
        self.rate_limiter.wait()


def _next_cursor(page: Mapping[str, object]) -> str | None:
    """Where the next page of a list starts, in either place that the vendor's clients know."""
    cursor = page.get("nextCursor")
    pagination = page.get("pagination")
    if not cursor and isinstance(pagination, Mapping):
        cursor = pagination.get("nextCursor")
    return str(cursor) if cursor else None

"""RunPod over GraphQL by the `runpod` package 1.12, for accounts that have no REST v2 yet.

What the package cannot do is refused.
"""

import builtins
import importlib
import os
import re
import shlex
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, NoReturn, TypeVar

from moola.errors import AuthError, LaunchError, MoolaError, NoCapacityError, TryAgainError
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
from moola.providers.rate_limit import RateLimiter
from moola.providers.retry import TransientError, with_retries
from moola.providers.runpod.account import (
    API_KEY,
    BASE_URL,
    BASE_URL_VARIABLE,
    NO_KEY,
    PROVIDER,
    checked_key,
    is_local,
)
from moola.providers.runpod.answers import is_no_capacity, unknown_status, without_secrets
from moola.providers.runpod.created import find_created, require_known_status

T = TypeVar("T")

STATUS = {  # of `desiredStatus`: what is wanted; RUNNING without a runtime is still starting
    "CREATED": PodStatus.STARTING,
    "RUNNING": PodStatus.RUNNING,
    "RESTARTING": PodStatus.RUNNING,
    "EXITED": PodStatus.STOPPED,
    "PAUSED": PodStatus.STOPPED,
    "DEAD": PodStatus.FAILED,
    "TERMINATED": PodStatus.GONE,
}
CREATE_FIELD = {"cpu": "deployCpuPod", "gpu": "podFindAndDeployOnDemand"}
GB_PER_VCPU = {"c": 2, "g": 4, "m": 8}  # by the last letter of a CPU flavour
TEMPLATE = ', templateId: "runpod-ubuntu"'  # which the package adds to every CPU pod
UNQUOTABLE = re.compile(r'["\\\x00-\x1f]')  # would end the string: the package escapes nothing


class SdkPods:
    """PodApi by the package's query builder and transport: its own create call takes no key.

    RUNPOD_API_BASE_URL is the package's own variable.
    """

    provider = PROVIDER

    def __init__(self, key: str | None = None, *, first_wait_s: float = 0.5) -> None:
        self._key = checked_key(key)
        self._first_wait_s = first_wait_s
        self._runpod = import_runpod()
        self._rate_limiter = RateLimiter()

    # -- PodApi --

    @property
    def account_key(self) -> str | None:
        return self._key

    @property
    def machines_are_local(self) -> bool:
        return is_local(os.environ.get(BASE_URL_VARIABLE) or BASE_URL)

    def now(self) -> float:
        """By this computer's clock: the package does not show the headers of an answer."""
        return time.time()

    def body(self, request: PodRequest) -> dict[str, Any]:
        """The GraphQL request. Raises LaunchError for what the package cannot send."""
        require_supported(request)
        candidate = request.candidate
        if candidate.kind == "cpu":
            machine: dict[str, str | int] = {"instance_id": instance_id(candidate)}
        else:
            machine = {
                "gpu_type_id": candidate.type_id,
                "gpu_count": candidate.count,
                "volume_in_gb": 0,
            }

        mutations = importlib.import_module("runpod.api.mutations.pods")
        query: str = mutations.generate_pod_deployment_mutation(
            request.name,
            request.image,
            cloud_type=candidate.cloud,
            support_public_ip=False,
            start_ssh=False,
            data_center_id=next(iter(request.data_centers), None),
            container_disk_in_gb=request.disk_gb,
            docker_args=shlex.join(request.args),
            env=request.env,
            **machine,
        )
        return {"query": query.replace(TEMPLATE, "")}

    def create(self, request: PodRequest) -> Pod:
        query = self.body(request)["query"]
        field = CREATE_FIELD[request.candidate.kind]

        def create() -> str:
            return str(self._run_query(query)[field]["id"])

        try:
            secrets = tuple(request.env.values())
            pod_id = self._call(create, "create", idempotent=False, secrets=secrets)
        except TransientError as error:
            pod = find_created(self, request.name, error, self._first_wait_s)
        else:
            pod = self._read_or_terminate(pod_id)
        return require_known_status(self, pod)

    def get(self, pod_id: str) -> Pod | None:
        pod = self._read_pod(pod_id)
        if pod is None or pod.status is PodStatus.GONE:
            return None
        if pod.status is PodStatus.UNKNOWN:
            raise unknown_status(pod_id, pod.provider_status, STATUS)
        return pod

    def list(self) -> builtins.list[Pod]:
        def get_pods() -> builtins.list[Pod]:
            return [read_pod(item) for item in self._runpod.get_pods(api_key=self._key)]

        return self._call(get_pods, "list")

    def terminate(self, pod_id: str) -> None:
        require_quotable("the pod's id", pod_id)
        mutations = importlib.import_module("runpod.api.mutations.pods")
        query = mutations.generate_pod_terminate_mutation(pod_id)

        try:
            self._call(lambda: self._run_query(query)["podTerminate"], "terminate")
        except LaunchError as error:
            if "not found" not in str(error):
                raise

    def logs(self, pod_id: str, after: str | None = None) -> Iterator[LogLine]:
        raise NotImplementedError("the runpod package has no logs; the REST backend has")

    def offers(
        self,
        candidates: Sequence[Candidate],
        min_cuda: str | None = None,  # noqa: ARG002  # the request with it is refused
    ) -> builtins.list[Offer]:
        """Of GPUs alone. How much stock there is the package does not tell, nor where."""
        return [self._offer(candidate) for candidate in candidates]

    def catalog(self, kind: Kind, cloud: Cloud = "SECURE") -> builtins.list[Offer]:
        refuse(f"a catalog with prices ({kind}, {cloud})")

    def billing(self, pod_ids: Sequence[str]) -> builtins.list[BillingRecord]:
        refuse(f"billing records (of {', '.join(pod_ids)})")

    # -- calls --

    def _offer(self, candidate: Candidate) -> Offer:
        if candidate.kind == "cpu":
            refuse(f"prices of CPU machines ({candidate.type_id})")
        require_quotable("the GPU type", candidate.type_id)

        def get_gpu() -> dict[str, Any]:
            gpu: dict[str, Any] = self._runpod.get_gpu(
                candidate.type_id, candidate.count, api_key=self._key
            )
            return gpu

        try:
            gpu = self._call(get_gpu, "get_gpu")
        except NoCapacityError:
            return Offer(candidate, candidate.type_id, None, "none", 0.0)
        return read_offer(candidate, gpu)

    def _read_pod(self, pod_id: str) -> Pod | None:
        require_quotable("the pod's id", pod_id)
        answer = self._call(lambda: self._runpod.get_pod(pod_id, api_key=self._key), "get")
        return None if answer is None else read_pod(answer)

    def _read_or_terminate(self, pod_id: str) -> Pod:
        """The pod just made, whose price and status the create did not tell.

        One that cannot be read is terminated: nobody would look after it.
        """
        try:
            pod = self._read_pod(pod_id)
        except MoolaError:
            self.terminate(pod_id)
            raise
        if pod is None:
            raise TryAgainError(f"RunPod (GraphQL): pod {pod_id} was made and is gone already")
        return pod

    def _run_query(self, query: str) -> dict[str, Any]:
        """The data of an answer."""
        transport = importlib.import_module("runpod.api.graphql")
        answer = transport.run_graphql_query(query, api_key=self._key)
        return dict(answer["data"])

    def _call(
        self,
        call: Callable[[], T],
        what: str,
        *,
        idempotent: bool = True,
        secrets: Sequence[str] = (),
    ) -> T:
        """The call's value, with retries, and with the package's errors turned into ours."""
        if not self._key:
            raise AuthError(NO_KEY)

        def attempt() -> T:
            self._rate_limiter.wait()
            try:
                return call()
            except Exception as error:  # whatever the transport and the answer's shape raise
                # from None: the package's error quotes the query, and the env in it
                raise translated(error, what, secrets) from None

        return with_retries(attempt, idempotent=idempotent, first_wait_s=self._first_wait_s)


def import_runpod() -> ModuleType:
    """The installed `runpod` package. Raises LaunchError if there is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("runpod")
    except ImportError as error:
        raise LaunchError(
            "the sdk backend needs the package runpod 1.12: pip install 'moola[runpod]'"
        ) from error


def translated(error: Exception, what: str, secrets: Sequence[str] = ()) -> MoolaError:
    """Our error for one of the package's: its class and its prose are all there is to go by."""
    import requests

    errors = importlib.import_module("runpod.error")
    detail = without_secrets(str(error), secrets)
    message = f"RunPod (GraphQL): {what}: {detail or type(error).__name__}"

    if isinstance(error, errors.AuthenticationError):
        return AuthError(f"{message} (is {API_KEY} right?)")
    if isinstance(error, errors.QueryError):
        return error_of_detail(detail, message)
    if isinstance(error, ValueError) and "No GPU found" in str(error):
        return NoCapacityError(message)
    if isinstance(error, requests.RequestException | KeyError | TypeError | AttributeError):
        is_unsent = isinstance(error, requests.ConnectTimeout)
        is_unsent |= "NewConnectionError" in repr(error)
        return TransientError(
            f"RunPod (GraphQL): {what}: {type(error).__name__}", had_no_effect=is_unsent
        )
    return error if isinstance(error, MoolaError) else LaunchError(message)


def error_of_detail(detail: str, message: str) -> MoolaError:
    """Our error for the prose of a GraphQL error."""
    lower = detail.lower()
    if is_no_capacity(detail):
        return NoCapacityError(message)
    if any(wording in lower for wording in ("unauthorized", "access denied", "forbidden")):
        return AuthError(f"{message} (the key lacks the scope)")
    if any(wording in lower for wording in ("rate limit", "too many requests")):
        return TransientError(message, had_no_effect=True)
    return LaunchError(message)


def read_pod(answer: Mapping[str, Any]) -> Pod:
    """A pod as GraphQL shows it; the status is UNKNOWN where STATUS lacks the word."""
    provider_status = str(answer["desiredStatus"])
    status = STATUS.get(provider_status, PodStatus.UNKNOWN)
    uptime_s = None
    if status is PodStatus.RUNNING:
        if answer.get("runtime") is None:
            status = PodStatus.STARTING
        else:
            uptime_s = answer.get("uptimeSeconds")

    env: dict[str, str] = {}
    for assignment in answer.get("env") or []:
        name, _, value = assignment.partition("=")
        env[name] = value

    return Pod(
        id=answer["id"],
        name=answer["name"],
        status=status,
        provider_status=provider_status,
        image=answer.get("imageName") or "",
        price_per_hour=float(answer.get("costPerHr") or 0.0),
        uptime_s=uptime_s,
        env=env,
    )


def read_offer(candidate: Candidate, gpu: Mapping[str, Any]) -> Offer:
    """A candidate as `get_gpu` shows it; a price somewhere means that there is stock somewhere."""
    cloud = candidate.cloud.lower()
    is_offered = gpu.get(f"{cloud}Cloud")
    unit_price = gpu.get(f"{cloud}Price") if is_offered else None
    price = round(unit_price * candidate.count, 6) if unit_price else None

    lowest_price = gpu.get("lowestPrice") or {}
    is_in_stock = bool(price and lowest_price.get("uninterruptablePrice"))
    return Offer(
        candidate=candidate,
        name=gpu.get("displayName") or candidate.type_id,
        price_per_hour=price,
        stock="unknown" if is_in_stock else "none",
        memory_gb=gpu["memoryInGb"],
    )


def instance_id(candidate: Candidate) -> str:
    """A CPU machine's name in GraphQL: cpu3c with 2 vCPUs is cpu3c-2-4; the 4 is GB."""
    gb_per_vcpu = GB_PER_VCPU.get(candidate.type_id[-1:])
    if gb_per_vcpu is None:
        raise LaunchError(
            "the runpod package needs the memory of a CPU machine, "
            f"unknown for {candidate.type_id!r}"
        )
    return f"{candidate.type_id}-{candidate.count}-{candidate.count * gb_per_vcpu}"


def require_supported(request: PodRequest) -> None:
    """Raises LaunchError for whatever in a request the package cannot pass on."""
    if request.registry:
        refuse("credentials for a private image")
    if len(request.data_centers) > 1:
        refuse(f"more than one data centre ({', '.join(request.data_centers)})")
    if request.min_cuda and request.candidate.kind == "gpu":
        refuse(f"a lowest CUDA version ({request.min_cuda})")

    require_quotable("the name", request.name)
    require_quotable("the image", request.image)
    require_quotable("the machine", request.candidate.type_id)
    require_quotable("the arguments", shlex.join(request.args))
    require_quotable("the data centre", "".join(request.data_centers))
    for name, value in request.env.items():
        require_quotable(f"the name of the variable {name!r}", name)
        require_quotable(f"the variable {name!r}", value)


def require_quotable(what: str, text: str) -> None:
    """Raises LaunchError for characters that would end the string they are put into."""
    if UNQUOTABLE.search(text):
        refuse(f"a quote, a backslash or a line break in a string: {what} has one")


def refuse(what: str) -> NoReturn:
    raise LaunchError(f"the runpod package does not offer {what}; the REST backend does")

"""RunPod through the `runpod` package 1.12, for accounts still on GraphQL. What it cannot do is refused."""

import builtins
import importlib
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NoReturn, TypeVar

from deploy.patience import NotAnsweredError, Pace, patiently
from deploy.pods import BillingRecord, Candidate, Cloud, LogLine, Offer, Pod, PodRequest, PodStatus
from deploy.runpod import checked_key, looked_up, understood
from deploy.runpod_answers import NO_CAPACITY, hidden
from moola.errors import AuthError, LaunchError, MoolaError, NoCapacityError, TryAgainError

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
GB_PER_VCPU = {"c": 2, "g": 4, "m": 8}  # by the last letter of a CPU flavour
TEMPLATE = ', templateId: "runpod-ubuntu"'  # which the package adds to every CPU pod


class SdkPods:
    """PodApi over the package, by its query builder and its transport: its create call takes no key.

    RUNPOD_API_BASE_URL is the package's own variable.
    """

    def __init__(self, key: str | None = None, *, first_wait_s: float = 0.5) -> None:
        self._key, self._first_wait_s = checked_key(key), first_wait_s
        self._runpod, self._pace = package(), Pace()

    def body(self, request: PodRequest) -> dict[str, Any]:
        """The GraphQL request. LaunchError for what the package cannot send."""
        wanted = request.candidate
        refuse_what_is_missing(request)
        size: dict[str, Any] = {"gpu_type_id": wanted.type_id, "gpu_count": wanted.count, "volume_in_gb": 0}
        if wanted.kind == "cpu":
            size = {"instance_id": instance_id(wanted)}
        query = self._part("api.mutations.pods").generate_pod_deployment_mutation(
            request.name,
            request.image,
            cloud_type=wanted.cloud,
            support_public_ip=False,
            start_ssh=False,
            data_center_id=next(iter(request.data_centers), None),
            container_disk_in_gb=request.disk_gb,
            docker_args=shlex.join(request.args),
            env=request.env,
            **size,
        )
        return {"query": query.replace(TEMPLATE, "")}

    def create(self, request: PodRequest) -> Pod:
        query = self.body(request)["query"]
        field = "deployCpuPod" if request.candidate.kind == "cpu" else "podFindAndDeployOnDemand"
        try:
            pod_id = self._ask(
                lambda: self._run(query)[field]["id"], "create", safe=False, hide=tuple(request.env.values())
            )
        except NotAnsweredError as error:
            pod = looked_up(self, request.name, error, self._first_wait_s)
        else:
            pod = self._shown_or_ended(str(pod_id))
        return understood(self, pod)

    def get(self, pod_id: str) -> Pod | None:
        pod = self._shown(pod_id)
        if pod and pod.status is PodStatus.UNKNOWN:
            raise LaunchError(
                f"pod {pod_id} has the status {pod.provider_status!r}, which is none of {', '.join(STATUS)}"
            )
        return None if pod and pod.status is PodStatus.GONE else pod

    def list(self) -> builtins.list[Pod]:
        return self._ask(lambda: [pod_of(shown) for shown in self._runpod.get_pods(api_key=self._key)], "list")

    def terminate(self, pod_id: str) -> None:
        plain("the pod's id", pod_id)
        query = self._part("api.mutations.pods").generate_pod_terminate_mutation(pod_id)
        try:
            self._ask(lambda: self._run(query)["podTerminate"], "terminate")
        except LaunchError as error:
            if "not found" not in str(error):
                raise

    def logs(self, pod_id: str, after: str | None = None) -> Iterator[LogLine]:
        raise NotImplementedError("the runpod package has no logs; the REST backend has")

    def offers(self, candidates: Sequence[Candidate]) -> builtins.list[Offer]:
        """Of GPUs alone. How much stock there is the package does not say, nor where."""
        return [self._offer(candidate) for candidate in candidates]

    def catalog(self, kind: Literal["cpu", "gpu"], cloud: Cloud = "SECURE") -> builtins.list[Offer]:
        refuse(f"a catalog with prices ({kind}, {cloud})")

    def billing(self, pod_ids: Sequence[str]) -> builtins.list[BillingRecord]:
        refuse(f"billing records (of {', '.join(pod_ids)})")

    def _offer(self, candidate: Candidate) -> Offer:
        if candidate.kind == "cpu":
            refuse(f"prices of CPU machines ({candidate.type_id})")
        plain("the GPU type", candidate.type_id)
        ask = self._runpod.get_gpu
        try:
            shown = self._ask(lambda: ask(candidate.type_id, candidate.count, api_key=self._key), "get_gpu")
        except NoCapacityError:
            return Offer(candidate, candidate.type_id, None, "none", 0.0)
        unit = shown.get(f"{candidate.cloud.lower()}Price") if shown.get(f"{candidate.cloud.lower()}Cloud") else None
        free = (shown.get("lowestPrice") or {}).get("uninterruptablePrice")
        price = round(unit * candidate.count, 6) if unit else None
        stock: Literal["none", "unknown"] = "unknown" if price and free else "none"
        return Offer(candidate, shown.get("displayName") or candidate.type_id, price, stock, shown["memoryInGb"])

    # calls

    def _shown(self, pod_id: str) -> Pod | None:
        plain("the pod's id", pod_id)
        shown = self._ask(lambda: self._runpod.get_pod(pod_id, api_key=self._key), "get")
        return None if shown is None else pod_of(shown)

    def _shown_or_ended(self, pod_id: str) -> Pod:
        """The pod just made, whose price and status the create did not tell. If it cannot be shown it is terminated
        before the error: nobody would look after it."""
        try:
            pod = self._shown(pod_id)
        except MoolaError:
            self.terminate(pod_id)
            raise
        if pod is None:
            raise TryAgainError(f"RunPod (GraphQL): pod {pod_id} was made and is gone already")
        return pod

    def _part(self, name: str) -> ModuleType:
        return importlib.import_module(f"runpod.{name}")

    def _run(self, query: str) -> dict[str, Any]:
        """The data of an answer."""
        data = self._part("api.graphql").run_graphql_query(query, api_key=self._key)["data"]
        return dict(data)

    def _ask(self, call: Callable[[], T], what: str, *, safe: bool = True, hide: Sequence[str] = ()) -> T:
        """The call's value, with the package's errors turned into ours; tried again as `patiently` says."""
        if not self._key:
            raise AuthError("no key for RunPod: set RUNPOD_API_KEY")

        def once() -> T:
            self._pace.wait()
            try:
                return call()
            except Exception as error:  # the package lets through whatever its transport and the answer's shape raise
                raise refusal(error, what, hide) from None  # it would quote the query, and the env in it

        return patiently(once, safe=safe, first_wait_s=self._first_wait_s)


def package() -> ModuleType:
    """The installed `runpod`. LaunchError if there is none.

    `python deploy/launch.py` has put deploy/ on the path, where that name is our own file: it is left out meanwhile.
    """
    before, here = sys.path, Path(__file__).resolve().parent
    sys.path = [entry for entry in before if Path(entry).resolve() != here]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("runpod")
    except ImportError as error:
        raise LaunchError("the sdk backend needs the package runpod 1.12: pip install 'moola[runpod]'") from error
    finally:
        sys.path = before


def refusal(error: Exception, what: str, hide: Sequence[str] = ()) -> MoolaError:
    """Our error for one of the package's: all that can be told apart is the class, and the prose of a GraphQL error."""
    import requests

    errors, prose = importlib.import_module("runpod.error"), hidden(str(error), hide)
    message = f"RunPod (GraphQL): {what}: {prose or type(error).__name__}"
    if isinstance(error, errors.AuthenticationError):
        return AuthError(f"{message} (is RUNPOD_API_KEY right?)")
    if isinstance(error, errors.QueryError):
        return of_prose(prose, message)
    if isinstance(error, ValueError) and "No GPU found" in str(error):
        return NoCapacityError(message)
    if isinstance(error, requests.RequestException | KeyError | TypeError | AttributeError):
        unsent = isinstance(error, requests.ConnectTimeout) or "NewConnectionError" in repr(error)
        return NotAnsweredError(f"RunPod (GraphQL): {what}: {type(error).__name__}", harmless=unsent)
    return error if isinstance(error, MoolaError) else LaunchError(message)


def of_prose(prose: str, message: str) -> MoolaError:
    """Our error for the text of a GraphQL error."""
    low = prose.lower()
    if any(words in low for words in NO_CAPACITY):
        return NoCapacityError(message)
    if any(words in low for words in ("unauthorized", "access denied", "forbidden")):
        return AuthError(f"{message} (the key lacks the scope)")
    if any(words in low for words in ("rate limit", "too many requests")):
        return NotAnsweredError(message, harmless=True)
    return LaunchError(message)


def pod_of(shown: dict[str, Any]) -> Pod:
    """A pod of ours from GraphQL's; the status is UNKNOWN where STATUS lacks the word."""
    word, runtime = str(shown["desiredStatus"]), shown.get("runtime")
    status = STATUS.get(word, PodStatus.UNKNOWN)
    running = status is PodStatus.RUNNING and runtime is not None
    if status is PodStatus.RUNNING and not running:
        status = PodStatus.STARTING
    return Pod(
        id=shown["id"],
        name=shown["name"],
        status=status,
        provider_status=word,
        image=shown.get("imageName") or "",
        price_per_hour=float(shown.get("costPerHr") or 0.0),
        uptime_s=shown.get("uptimeSeconds") if running else None,
        env=dict(pair.partition("=")[::2] for pair in shown.get("env") or []),
    )


def instance_id(candidate: Candidate) -> str:
    """A CPU machine's name in GraphQL: cpu3c with 2 vCPUs is cpu3c-2-4, the last number being GB."""
    gb = GB_PER_VCPU.get(candidate.type_id[-1:])
    if gb is None:
        raise LaunchError(f"the runpod package needs the memory of a CPU machine, unknown for {candidate.type_id!r}")
    return f"{candidate.type_id}-{candidate.count}-{candidate.count * gb}"


def refuse_what_is_missing(request: PodRequest) -> None:
    """LaunchError for each wish that the package cannot pass on."""
    if request.registry:
        refuse("credentials for a private image")
    if len(request.data_centers) > 1:
        refuse(f"more than one data centre ({', '.join(request.data_centers)})")
    if request.min_cuda and request.candidate.kind == "gpu":
        refuse(f"a lowest CUDA version ({request.min_cuda})")
    texts = {"the name": request.name, "the image": request.image, "the machine": request.candidate.type_id}
    texts |= {"the arguments": shlex.join(request.args), "the data centre": "".join(request.data_centers)}
    for name, value in request.env.items():
        texts |= {f"the name of the variable {name!r}": name, f"the variable {name!r}": value}
    for what, text in texts.items():
        plain(what, text)


def plain(what: str, text: str) -> None:
    """LaunchError for characters that would end the string they are put into: the package escapes nothing."""
    if re.search(r'["\\\x00-\x1f]', text):
        refuse(f"a quote, a backslash or a line break in a string: {what} has one")


def refuse(what: str) -> NoReturn:
    raise LaunchError(f"the runpod package does not offer {what}; the REST backend does")

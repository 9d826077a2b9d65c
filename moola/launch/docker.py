"""Runs a job in a container on this machine, under the conditions of a rented machine.

Image, entry point, environment and user are the same. The root is read-only, there are no
capabilities, memory is limited, and one directory can be written to. The job speaks the run
protocol itself, so its log is read from the store.
"""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from moola.errors import LaunchError
from moola.launch.console import print_text, terminal
from moola.launch.local import follow_process
from moola.launch.settings import Settings
from moola.runs.attempt import end_attempt
from moola.runs.protocol import attempt_id_now
from moola.runs.records import State
from moola.store import Store

IMAGES = {"precompute": "moola:cpu", "train": "moola:gpu"}
LIMITS = (
    "--read-only",
    "--cap-drop",
    "ALL",
    "--security-opt",
    "no-new-privileges",
    "--pids-limit",
    "4096",
)
WORK_IN_CONTAINER = "/var/moola"
STORE_IN_CONTAINER = "/store"
WORK_VOLUME = "moola-work"  # what an interrupted upload needs; `docker volume rm` frees it
PATH_VARIABLES = {  # AWS_* that name files of this machine: of no use in a container
    "AWS_CA_BUNDLE",
    "AWS_CONFIG_FILE",
    "AWS_PROFILE",
    "AWS_SHARED_CREDENTIALS_FILE",
}
LOOPBACK = {"localhost", "127.0.0.1", "::1"}
ENGINE_FAILED = 125  # exit code of `docker run` itself
KILLED = 137  # 128 + SIGKILL


@dataclass(frozen=True)
class Image:
    """An image of the local engine.

    `id` is what it is run by; `digest` goes into the manifest.
    """

    name: str
    id: str
    digest: str


def find_image(name: str) -> Image:
    """The image of a tag or digest, pulled if the name has a registry or owner.

    Raises LaunchError that says what to do.
    """
    inspection = _docker("image", "inspect", name)
    if inspection.returncode and "/" in name:
        _docker("pull", "--quiet", name)
        inspection = _docker("image", "inspect", name)
    if inspection.returncode:
        message = inspection.stderr.strip()
        raise LaunchError(f"image: {name} is not on this machine{_remedy(name)} ({message})")

    details = json.loads(inspection.stdout)[0]
    pushed_as = details.get("RepoDigests") or [""]
    _, _, digest = pushed_as[0].partition("@")
    return Image(name, details["Id"], digest or details["Id"])


def _remedy(image_name: str) -> str:
    kind = image_name.removeprefix("moola:")
    if kind in ("cpu", "gpu"):
        return f"; build it: bash deploy/image/build.sh build {kind}"
    return " and could not be fetched"


def run_to_end(settings: Settings, store: Store, job: str, run_id: str, image: Image) -> int:
    """Run a job and show its log; -> its exit code. Ctrl-C and SIGTERM are passed on to it.

    Raises LaunchError if the engine cannot run the image.
    """
    attempt_id = attempt_id_now()
    console = terminal()
    container = f"moola-{run_id}-{attempt_id}"

    command = run_command(settings, job, run_id, attempt_id, image, container)
    process = subprocess.Popen(  # docker passes signals on to the container
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        exit_code = follow_process(process, console, store, run_id, attempt_id)
        reason = _reason_killed(container, settings.docker_memory)
    finally:
        _docker("rm", "--force", "--volumes", container)

    if exit_code == ENGINE_FAILED:
        raise LaunchError(f"the engine could not run {image.name}; its message is above")
    if reason is not None:
        end_attempt(store, run_id, attempt_id, State.INFRA_LOST, reason, exit_code)
        print_text(reason, console)
    return exit_code


def run_command(
    settings: Settings,
    job: str,
    run_id: str,
    attempt_id: str,
    image: Image,
    container: str,
) -> list[str]:
    """`docker run` of a job in a container of this name."""
    variables = {
        "MOOLA_JOB": job,
        "MOOLA_RUN": run_id,
        "MOOLA_ATTEMPT": attempt_id,
        "MOOLA_WORK": WORK_IN_CONTAINER,
        "MOOLA_WORK_LIMIT_GB": str(settings.work_limit_gb),
        "MOOLA_IMAGE_DIGEST": image.digest,
    }
    limits = [
        *LIMITS,
        "--memory",
        settings.docker_memory,
        "--memory-swap",
        settings.docker_memory,
    ]
    if settings.store.startswith("file:"):
        variables["MOOLA_STORE"] = f"file://{STORE_IN_CONTAINER}"
        store_options = _folder_options(settings)
    else:
        variables["MOOLA_STORE"] = settings.store
        store_options = _s3_options()
    gpu_options = ["--gpus", "all"] if job == "train" and gpus() else []
    assignments = [f"{name}={value}" for name, value in variables.items()]

    return [
        "docker",
        "run",
        "--name",
        container,
        *limits,
        *store_options,
        *gpu_options,
        *_each_with("--env", assignments),
        image.id,
    ]


def _folder_options(settings: Settings) -> list[str]:
    """For a store in a folder: it is mounted, and the container runs as its owner, offline."""
    store = _folder(settings.store)
    work = settings.work.expanduser().resolve() / "docker"
    for path in (store, work):
        path.mkdir(parents=True, exist_ok=True)

    mounts = [
        f"type=bind,src={store},dst={STORE_IN_CONTAINER}",
        f"type=bind,src={work},dst={WORK_IN_CONTAINER}",
    ]
    user = f"{os.getuid()}:{os.getgid()}"
    return ["--user", user, "--network", "none", *_each_with("--mount", mounts)]


def _s3_options() -> list[str]:
    """For a store on S3: the container runs as the image's own user.

    It is in the host's network if that S3 is on this machine's loopback. AWS_* are given by name,
    so that no value is on a command line; what ~/.aws/config says of the place is given beside.
    """
    from moola.store.s3_access import resolve_access

    access = resolve_access()
    mount = ["--mount", f"type=volume,src={WORK_VOLUME},dst={WORK_IN_CONTAINER}"]
    network = ["--network", "host"] if is_on_loopback(access.endpoint) else []

    names = sorted(name for name in os.environ if name.startswith("AWS_"))
    passed_on = [name for name in names if name not in PATH_VARIABLES]
    resolved = access.environment()
    passed_on += [f"{name}={value}" for name, value in resolved.items() if name not in names]
    return [*mount, *network, *_each_with("--env", passed_on)]


def is_on_loopback(endpoint: str | None) -> bool:
    """Is the endpoint of a store one of this machine's own?"""
    try:
        return urlsplit(endpoint or "").hostname in LOOPBACK
    except ValueError:  # no URL: the store refuses it
        return False


def _each_with(option: str, values: list[str]) -> list[str]:
    """The option before each of the values."""
    return [word for value in values for word in (option, value)]


def _folder(store_url: str) -> Path:
    parts = urlsplit(store_url)
    return Path(parts.netloc.removeprefix("localhost") + parts.path).resolve()


def gpus() -> list[str]:
    """The GPUs of this machine, one line each, as nvidia-smi names them."""
    if shutil.which("nvidia-smi") is None:
        return []
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return listing.stdout.splitlines()


def engine_version() -> str:
    """The version of the engine. Raises LaunchError that says what to do."""
    if shutil.which("docker") is None:
        raise LaunchError("no `docker` on PATH: install Docker Engine, or use --on local")

    info = _docker("info", "--format", "{{.ServerVersion}}")
    if info.returncode:
        *_, last_line = ["", *info.stderr.strip().splitlines()]
        raise LaunchError(f"the engine does not answer: {last_line}")
    return info.stdout.strip()


def _reason_killed(container: str, memory: str) -> str | None:
    """Why a container was killed; None if its job ended by itself."""
    inspection = _docker("inspect", "--format", "{{json .State}}", container)
    if inspection.returncode:
        return None

    state = json.loads(inspection.stdout)
    if state.get("OOMKilled"):
        return (
            f"out of memory: the container's limit is {memory}; raise MOOLA_DOCKER_MEMORY, and "
            "the same command resumes the run"
        )
    if state.get("ExitCode") == KILLED:
        return "the container was killed; the same command resumes the run"
    return None


def _docker(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)

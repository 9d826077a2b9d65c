"""Runs a job in a container of this machine's engine, under what a rented machine would give it.

The same image, entry point, environment and user; a read-only root, no capabilities, a memory limit, one writable
directory. The job speaks the run protocol itself, so the log comes from the store.
"""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from deploy import tail
from deploy.local import watch
from deploy.settings import Settings
from moola.errors import LaunchError
from moola.protocol import attempt_id_now
from moola.runs import end_attempt
from moola.store import Store

IMAGES = {"precompute": "moola:cpu", "train": "moola:gpu"}
MEMORY = "8g"  # what the default rented machine for precompute has
WORK, STORE = "/var/moola", "/store"  # in the container
VOLUME = "moola-work"  # keeps what an interrupted upload needs; `docker volume rm moola-work` frees it
FILES_OF_THE_HOST = {"AWS_CA_BUNDLE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"}  # paths: no use in a container
LOOPBACK = {"localhost", "127.0.0.1", "::1"}
ENGINE_FAILED = 125  # docker run's own exit code
KILLED = 137  # 128 + SIGKILL


@dataclass(frozen=True)
class Image:
    """An image of the local engine: its name, the id it is run by, and the digest that goes into the manifest."""

    name: str
    id: str
    digest: str


def find_image(name: str) -> Image:
    """The image of a tag or digest, fetched if it names a registry. Raises LaunchError that says what to do."""
    found = _docker("image", "inspect", name)
    if found.returncode and "/" in name:
        _docker("pull", "--quiet", name)
        found = _docker("image", "inspect", name)
    if found.returncode:
        raise LaunchError(f"image: {name} is not on this machine{_to_do(name)} ({found.stderr.strip()})")
    details = json.loads(found.stdout)[0]
    pushed = next(iter(details.get("RepoDigests") or []), "")
    return Image(name, details["Id"], pushed.partition("@")[2] or details["Id"])


def run_to_end(settings: Settings, store: Store, job: str, run_id: str, image: Image, *, memory: str = MEMORY) -> int:
    """Run the job and show its log as it is written. Ctrl-C and SIGTERM are passed on. -> the job's exit code."""
    attempt_id, console = attempt_id_now(), tail.terminal()
    name = f"moola-{run_id}-{attempt_id}"
    command = run_command(settings, job, run_id, attempt_id, image, name=name, memory=memory)
    # docker passes signals on to the container
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        exit_code, reason = watch(child, console, store, run_id, attempt_id), _why_it_died(name, memory)
    finally:
        _docker("rm", "--force", "--volumes", name)
    if exit_code == ENGINE_FAILED:
        raise LaunchError(f"the engine could not run {image.name}; what it said is above")
    if reason:
        end_attempt(store, run_id, attempt_id, "infra_lost", reason, exit_code)
        console.print(reason)
    return exit_code


def run_command(
    settings: Settings, job: str, run_id: str, attempt_id: str, image: Image, *, name: str, memory: str
) -> list[str]:
    """`docker run` of a job. AWS_* go by name, so that no value is on a command line.

    A store in a folder is mounted, and the container runs as its owner, without a network. For a store on S3 it runs
    as the image's own user; if that S3 is on this machine's loopback, in the host's network.
    """
    variables = {
        "MOOLA_JOB": job,
        "MOOLA_RUN": run_id,
        "MOOLA_ATTEMPT": attempt_id,
        "MOOLA_WORK": WORK,
        "MOOLA_IMAGE_DIGEST": image.digest,
    }
    command = ["docker", "run", "--name", name, *LIMITS, "--memory", memory, "--memory-swap", memory]
    if settings.store.startswith("file:"):
        folder, work = _folder(settings.store), settings.work.expanduser().resolve() / "docker"
        for path in (folder, work):
            path.mkdir(parents=True, exist_ok=True)
        variables["MOOLA_STORE"] = f"file://{STORE}"
        command += ["--user", f"{os.getuid()}:{os.getgid()}", "--network", "none"]
        command += ["--mount", f"type=bind,src={folder},dst={STORE}", "--mount", f"type=bind,src={work},dst={WORK}"]
    else:
        variables["MOOLA_STORE"] = settings.store
        command += ["--mount", f"type=volume,src={VOLUME},dst={WORK}"]
        command += ["--network", "host"] if _on_loopback() else []
        names = [key for key in os.environ if key.startswith("AWS_") and key not in FILES_OF_THE_HOST]
        command += [part for key in sorted(names) for part in ("--env", key)]
    command += ["--gpus", "all"] if job == "train" and gpus() else []
    command += [part for key, value in variables.items() for part in ("--env", f"{key}={value}")]
    return [*command, image.id]


LIMITS = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--pids-limit", "4096")


def gpus() -> list[str]:
    """The GPUs of this machine, one line each, as nvidia-smi names them."""
    if shutil.which("nvidia-smi") is None:
        return []
    return subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout.splitlines()


def doctor(images: dict[str, str] | None = None) -> list[tuple[str, bool, str]]:
    """(what, whether it is in order, what was found or what to do) of the engine and the images."""
    if shutil.which("docker") is None:
        return [("docker", False, "no `docker` on PATH: install Docker Engine, or use --on local")]
    info = _docker("info", "--format", "{{.ServerVersion}}")
    if info.returncode:
        return [("docker", False, f"the engine does not answer: {info.stderr.strip().splitlines()[-1]}")]
    rows = [("docker", True, f"engine {info.stdout.strip()}")]
    for job, name in (images or IMAGES).items():
        try:
            rows.append((f"image for {job}", True, f"{name}, {find_image(name).digest}"))
        except LaunchError as error:
            rows.append((f"image for {job}", False, str(error)))
    found = gpus()
    rows.append(("GPUs", True, "; ".join(found) or "none: training runs on the CPU where the spec allows it"))
    return rows


def _why_it_died(name: str, memory: str) -> str | None:
    """What the job could not say itself; None if it ended by itself, or said so."""
    found = _docker("inspect", "--format", "{{json .State}}", name)
    state: dict[str, Any] = json.loads(found.stdout) if found.returncode == 0 else {}
    if state.get("OOMKilled"):
        return f"out of memory: the container's limit is {memory} (--memory); the same command resumes the run"
    return "the container was killed; the same command resumes the run" if state.get("ExitCode") == KILLED else None


def _folder(store_url: str) -> Path:
    parts = urlsplit(store_url)
    return Path(parts.netloc.removeprefix("localhost") + parts.path).resolve()


def _on_loopback() -> bool:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    return urlsplit(endpoint).hostname in LOOPBACK


def _to_do(name: str) -> str:
    kind = name.removeprefix("moola:")
    return f"; build it: bash deploy/image.sh build {kind}" if kind in ("cpu", "gpu") else " and could not be fetched"


def _docker(*args: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["docker", *args], capture_output=True, text=True, check=False)

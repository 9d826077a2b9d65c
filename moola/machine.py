"""What a process runs on and uses: provenance for manifests, memory and GPU use for heartbeats.

No names of hosts or users, no values of the environment.
"""

import csv
import functools
import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import moola
from moola.errors import DataError

CGROUP = Path("/sys/fs/cgroup")
PACKAGES = ("numpy", "pandas", "pyarrow", "numba", "pydantic", "boto3", "torch")
MEMORY_FILES = {  # cgroup v2, then v1
    "used": ("memory.current", "memory/memory.usage_in_bytes"),
    "limit": ("memory.max", "memory/memory.limit_in_bytes"),
    "events": ("memory.events", "memory/memory.oom_control"),
}
NO_LIMIT = 1 << 60  # bytes; v1 shows a number near this where there is none


def environment() -> dict[str, Any]:
    """Provenance of this process: code, versions, machine."""
    versions = {name: version for name in PACKAGES if (version := _version(name))}
    return {
        "moola": moola.__version__,
        "code_sha256": code_sha256(),
        **_git(),
        "image_digest": os.environ.get("MOOLA_IMAGE_DIGEST"),
        "versions": {"python": platform.python_version(), **versions},
        "machine": {"system": platform.system(), "machine": platform.machine(), "cpus": os.cpu_count()},
        "peak_memory_mb": _peak_memory_mb(),
    }


@functools.cache
def code_sha256() -> str:
    """Digest of the library's own source: names and bytes of every .py file of the package."""
    root = Path(moola.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def spin_less() -> None:
    """To be called before torch is imported, which reads this once: GNU OpenMP's threads wait for each other by
    spinning; on a machine that is busy with something else, a training step took 1,369 ms instead of 74."""
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def usage() -> dict[str, Any]:
    """{"memory_mb", "memory_limit_mb"} of the container and {"gpus": [{"use", "memory_mb"}]}; what is not known is
    left out."""
    found: dict[str, Any] = {}
    for name, kind in (("memory_mb", "used"), ("memory_limit_mb", "limit")):
        value = _cgroup_number(kind)
        if value is not None and value < NO_LIMIT:
            found[name] = round(value / 1e6, 1)
    gpus = _gpu_use()
    return found | ({"gpus": gpus} if gpus else {})


def out_of_memory_kills() -> int:
    """How many processes of this container the kernel has ended for want of memory."""
    for line in _cgroup_text("events").splitlines():
        name, _, value = line.partition(" ")
        if name == "oom_kill":
            return int(value)
    return 0


def memory_limit_mb() -> float | None:
    """The container's memory limit; None where there is none."""
    limit = _cgroup_number("limit")
    return None if limit is None or limit >= NO_LIMIT else limit / 1e6


def _cgroup_text(kind: str) -> str:
    for name in MEMORY_FILES[kind]:
        try:
            return (CGROUP / name).read_text()
        except OSError:
            continue
    return ""


def _cgroup_number(kind: str) -> int | None:
    text = _cgroup_text(kind).strip()
    return int(text) if text.isdigit() else None


def _gpu_use() -> list[dict[str, float]]:
    """Of each GPU: `use` as a fraction of the time, and memory; nothing where there is no NVIDIA driver."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits"]
    try:
        out = subprocess.run(query, capture_output=True, text=True, check=True, timeout=5).stdout
        rows = csv.reader(out.splitlines())
        return [{"use": float(use) / 100, "memory_mb": round(float(mib) * 1.048576, 1)} for use, mib in rows]
    except (OSError, ValueError, subprocess.SubprocessError):
        return []


def require_writable(folder: Path) -> None:
    """Raises DataError where the work directory cannot be made or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DataError(f"MOOLA_WORK must be a directory that can be written to: {error} ({folder})") from error


def _peak_memory_mb() -> float | None:
    """The most memory this process has held, in MB; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    per_mb = 1e3 if platform.system() == "Linux" else 1e6  # kB there, bytes on macOS
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / per_mb, 1)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git() -> dict[str, Any]:
    """{"git_sha", "git_dirty"}: from the image's environment, else from the checkout, else None."""
    if os.environ.get("MOOLA_GIT_SHA"):
        return {"git_sha": os.environ["MOOLA_GIT_SHA"], "git_dirty": False}
    git = ["git", "-C", str(Path(moola.__file__).parent)]
    try:
        sha = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return {"git_sha": None, "git_dirty": None}
    return {"git_sha": sha, "git_dirty": bool(dirty.strip())}

"""Provenance of this process, for manifests: code, versions, machine, memory.

No names of hosts or users, no values of the environment.
"""

import functools
import hashlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import moola
from moola.runs.records import Provenance

PACKAGES = ("numpy", "pandas", "pyarrow", "numba", "pydantic", "boto3", "torch")


def process_provenance() -> Provenance:
    """What made a run's artifacts: moola, its code and commit, image, versions and machine."""
    versions: Provenance = {"python": platform.python_version()}
    for package in PACKAGES:
        version = _version(package)
        if version is not None:
            versions[package] = version

    machine: Provenance = {
        "system": platform.system(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
    }
    return {
        "moola": moola.__version__,
        "code_sha256": code_sha256(),
        **_git(),
        "image_digest": os.environ.get("MOOLA_IMAGE_DIGEST") or None,
        "versions": versions,
        "machine": machine,
        "peak_memory_mb": _peak_memory_mb(),
    }


@functools.cache
def code_sha256() -> str:
    """Digest of the library's own source: names and bytes of every .py file of the package."""
    root = Path(moola.__file__).parent
    digest = hashlib.sha256()

    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        digest.update(f"{name}\0".encode())
        digest.update(path.read_bytes())
        digest.update(b"\0")
    return digest.hexdigest()


def _peak_memory_mb() -> float | None:
    """The most memory this process has held, in MB; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    per_mb = 1e3 if platform.system() == "Linux" else 1e6  # kB there, bytes on macOS
    return round(peak / per_mb, 1)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git() -> Provenance:
    """{"git_sha", "git_dirty"}: from the image's environment, else the checkout, else None."""
    image_sha = os.environ.get("MOOLA_GIT_SHA")
    if image_sha:
        return {"git_sha": image_sha, "git_dirty": False}

    try:
        sha = _git_output("rev-parse", "HEAD")
        changes = _git_output("status", "--porcelain")
    except (OSError, subprocess.CalledProcessError):
        return {"git_sha": None, "git_dirty": None}
    return {"git_sha": sha, "git_dirty": bool(changes)}


def _git_output(*arguments: str) -> str:
    folder = str(Path(moola.__file__).parent)
    completed = subprocess.run(
        ["git", "-C", folder, *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return completed.stdout.strip()

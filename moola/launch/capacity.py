"""How many jobs this computer takes at once, and how many threads each of them may use.

A job's share of the cores reaches it by the variables that its numerical libraries read at their
start, so that the jobs together start no more threads of work than there are cores.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from moola.runs.usage import memory_limit_mb

MEMORY_OF_A_JOB_GB = 2.0  # more than either job was measured to take: docs/pages/results.md
MEMORY_KEPT_FREE_GB = 1.0
CPU_MAX = Path("/sys/fs/cgroup/cpu.max")  # cgroup v2: "quota period", or "max period"
MEMINFO = Path("/proc/meminfo")

# OpenMP counts for torch and Arrow; the others have counts of their own.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


@dataclass(frozen=True)
class Capacity:
    """What jobs may use of this computer. `memory_gb` is None where that is not known."""

    cores: int
    memory_gb: float | None

    def jobs_at_once(self, most: int) -> int:
        """How many of `most` jobs run at once: what cores and memory allow, one at least."""
        jobs = min(most, self.cores)
        if self.memory_gb is not None:
            free_gb = self.memory_gb - MEMORY_KEPT_FREE_GB
            jobs = min(jobs, int(free_gb / MEMORY_OF_A_JOB_GB))
        return max(jobs, 1)

    def threads_of_each(self, jobs: int) -> int:
        """The threads of each of so many jobs at once."""
        return max(self.cores // jobs, 1)


def this_computer() -> Capacity:
    """The cores that this process may use, and the memory that is free."""
    return Capacity(_cores(), _free_memory_gb())


def thread_environment(threads: int, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that bound a job's threads. A lower bound that `environ` has stays."""
    return {name: str(_lower(threads, environ.get(name, ""))) for name in THREAD_VARIABLES}


def _lower(threads: int, text: str) -> int:
    return min(threads, int(text)) if text.isdigit() and int(text) > 0 else threads


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = _core_quota()
    return cores if quota is None else max(min(cores, int(quota)), 1)


def _core_quota() -> float | None:
    """How many cores a container may keep busy; None where there is no limit."""
    try:
        quota, period = CPU_MAX.read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _free_memory_gb() -> float | None:
    limits_mb = [mb for mb in (_available_mb(), memory_limit_mb()) if mb is not None]
    return min(limits_mb) / 1000 if limits_mb else None


def _available_mb() -> float | None:
    """Linux's own estimate of what can be had without swapping; None elsewhere."""
    try:
        lines = MEMINFO.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024 / 1e6
    return None

"""What a job uses: cores and memory of its container, by the cgroup, and GPUs by nvidia-smi.

Outside of a container it is what this process uses.
"""

import csv
import os
import shutil
import subprocess
import time
from pathlib import Path

from moola.runs.records import GpuUsage, Usage

CGROUP = Path("/sys/fs/cgroup")
MEMORY_FILES = {  # cgroup v2, then v1
    "used": ("memory.current", "memory/memory.usage_in_bytes"),
    "limit": ("memory.max", "memory/memory.limit_in_bytes"),
    "events": ("memory.events", "memory/memory.oom_control"),
}
CPU_FILES = {  # name -> (its line or "", parts of a second); cgroup v2, then v1
    "cpu.stat": ("usage_usec", 1_000_000),
    "cpuacct/cpuacct.usage": ("", 1_000_000_000),
}
STATM = Path("/proc/self/statm")  # pages; the second number are those in memory
NO_LIMIT = 1 << 60  # bytes; v1 shows a number near this where there is none
MB_PER_MIB = (1 << 20) / 1e6


class CpuMeter:
    """How many cores were at work since the last look."""

    def __init__(self) -> None:
        self._cpu_s = _cpu_s()
        self._looked_s = time.monotonic()

    def cores(self) -> float | None:
        """On average since the last call, or since this meter was made; None without a time."""
        cpu_s = _cpu_s()
        now_s = time.monotonic()
        used_s = cpu_s - self._cpu_s
        passed_s = now_s - self._looked_s
        self._cpu_s = cpu_s
        self._looked_s = now_s
        return max(used_s, 0.0) / passed_s if passed_s > 0 else None


def usage(cpu_cores: float | None = None) -> Usage:
    """Memory and GPUs, beside the cores that a meter measured. What is not known is left out."""
    known: dict[str, object] = {}
    used_mb = _memory_mb("used") or _process_memory_mb()
    limit_mb = memory_limit_mb()
    gpus = _gpus()

    if cpu_cores is not None:
        known["cpu_cores"] = round(cpu_cores, 2)
    if used_mb is not None:
        known["memory_mb"] = round(used_mb, 1)
    if limit_mb is not None:
        known["memory_limit_mb"] = round(limit_mb, 1)
    if gpus:
        known["gpus"] = gpus
    return Usage.model_validate(known)


def memory_limit_mb() -> float | None:
    """The container's memory limit; None where there is none."""
    return _memory_mb("limit")


def out_of_memory_kills() -> int:
    """How many processes of this container the kernel has killed for want of memory."""
    for line in _cgroup_text("events").splitlines():
        name, _, value = line.partition(" ")
        if name == "oom_kill":
            return int(value)
    return 0


def _memory_mb(kind: str) -> float | None:
    text = _cgroup_text(kind).strip()
    if not text.isdigit() or int(text) >= NO_LIMIT:
        return None
    return int(text) / 1e6


def _process_memory_mb() -> float | None:
    """What this process has in memory; None where the system does not tell it so."""
    text = _first_text(STATM)
    return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6 if text else None


def _cpu_s() -> float:
    """Seconds that cores have worked, of the container if this is one, else of this process."""
    if _memory_mb("used") is not None:
        for name, (line_name, parts) in CPU_FILES.items():
            for line in _first_text(CGROUP / name).splitlines():
                label, _, value = line.rpartition(" ")
                if label == line_name:
                    return int(value) / parts
    return time.process_time()


def _cgroup_text(kind: str) -> str:
    return _first_text(*(CGROUP / name for name in MEMORY_FILES[kind]))


def _first_text(*paths: Path) -> str:
    """The text of the first file that can be read; "" if none can."""
    for path in paths:
        try:
            return path.read_text()
        except OSError:
            continue
    return ""


def _gpus() -> tuple[GpuUsage, ...]:
    """How each GPU is used; () without an NVIDIA driver."""
    if shutil.which("nvidia-smi") is None:
        return ()

    query = [
        "nvidia-smi",
        "--query-gpu=utilization.gpu,memory.used",
        "--format=csv,noheader,nounits",
    ]
    try:
        completed = subprocess.run(
            query,
            capture_output=True,
            text=True,
            check=True,
            timeout=5,
        )
        rows = csv.reader(completed.stdout.splitlines())
        return tuple(_gpu(percent, mib) for percent, mib in rows)
    except (OSError, ValueError, subprocess.SubprocessError):
        return ()


def _gpu(percent: str, mib: str) -> GpuUsage:
    return GpuUsage(use=float(percent) / 100, memory_mb=round(float(mib) * MB_PER_MIB, 1))

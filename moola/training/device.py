"""Where training runs: why torch cannot use a GPU here, and whether it can compile.

Both are found out before any work is done.
"""

import contextlib
import ctypes
import logging
import os
import shutil
from collections.abc import Iterator

import torch

from moola.errors import DataError, TryAgainError
from moola.runs.environment import MOST_GPUS, read_count

log = logging.getLogger("moola")

# CUDA's major version -> the oldest driver that runs it: NVIDIA's "CUDA Compatibility", minor
# versions.
MIN_DRIVER = {11: 450, 12: 525, 13: 580}
C_COMPILERS = ("gcc", "clang", "cc")

# Errors of CUDA that come from the machine, and not from what was computed on it: NVIDIA's CUDA
# runtime API, cudaError_t.
HARDWARE_ERRORS = (
    "uncorrectable ecc error",
    "hardware stack error",
    "nvlink error",
    "gpu is lost",
    "devices are busy or unavailable",
    "no cuda-capable device",
    "system not yet initialized",
    "system has unsupported display driver",
    "driver version is insufficient",
    "initialization error",
    "cuda error: unknown error",
)


def choose_device(requested: str) -> str:
    """cpu or cuda, for `device` of a spec: cpu, cuda or auto.

    Raises DataError where CUDA is requested and there is none. A machine that was rented for its
    GPUs (MOOLA_GPUS of them) requests it unless the spec says cpu: its price is a GPU's. Raises
    TryAgainError where one of those is missing or broken: another host has others.
    """
    if requested == "cpu":
        return "cpu"

    rented_gpus = read_count(os.environ, "MOOLA_GPUS", 0, most=MOST_GPUS)
    problem = cuda_problem()
    if problem is None:
        if rented_gpus:
            require_working_gpus(rented_gpus)
        return "cuda"

    if rented_gpus and torch.version.cuda is not None:
        raise TryAgainError(f"the GPUs of this host cannot be used: {problem}")
    if rented_gpus:
        reason = f"this machine was rented for {rented_gpus} GPUs"
    elif requested == "cuda":
        reason = "device: cuda needs a GPU"
    else:
        return "cpu"
    raise DataError(f"{reason}, but {problem}. device: cpu trains without")


def require_working_gpus(count: int) -> None:
    """Compute something on each of the GPUs that were rented. Raises TryAgainError."""
    n_gpus = torch.cuda.device_count()
    if n_gpus < count:
        raise TryAgainError(f"this host was rented for {count} GPUs, and {n_gpus} answer")

    for index in range(count):
        try:
            ones = torch.ones(64, 64, device=f"cuda:{index}")
            total = float((ones @ ones).sum())
        except RuntimeError as error:
            raise TryAgainError(f"GPU {index} of this host is broken: {error}") from error
        if total != 64**3:
            raise TryAgainError(f"GPU {index} of this host computes wrong: {total} for {64**3}")


@contextlib.contextmanager
def host_errors() -> Iterator[None]:
    """Raises an error of CUDA that is the host's, such as one of its memory, as TryAgainError."""
    try:
        yield
    except RuntimeError as error:
        message = str(error)
        if not any(words in message.lower() for words in HARDWARE_ERRORS):
            raise
        summary = message.partition("\n")[0]
        raise TryAgainError(f"the GPU of this host failed: {summary}") from error


def cuda_problem() -> str | None:
    """What keeps torch from using a GPU, and what to do about it; None where nothing does."""
    if torch.cuda.is_available():
        return None

    return explain(torch.version.cuda, driver_cuda())


def explain(built_for: str | None, driver: tuple[int, int] | None) -> str:
    """Why no GPU can be used.

    `built_for` is the CUDA version torch was built for (None: without CUDA), `driver` the newest
    one that the installed driver knows (None: no driver).
    """
    if built_for is None:
        return "this torch was built without CUDA; install one with it, or use the image moola:gpu"

    major = int(built_for.split(".")[0])
    needs = f"torch was built for CUDA {built_for}, which needs an NVIDIA driver"
    if major in MIN_DRIVER:
        needs += f" >= {MIN_DRIVER[major]}"

    if driver is None:
        return (
            f"{needs}; no driver is here "
            "(in a container: docker run --gpus all, with NVIDIA's container toolkit)"
        )

    known = f"{driver[0]}.{driver[1]}"
    if driver[0] < major:
        return f"{needs}; the driver here knows CUDA up to {known}: take a host with a newer driver"

    return f"{needs}; the driver here is new enough (CUDA {known}), but no GPU answers"


def driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA version the installed driver supports, such as (12, 8); None without one."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int(0)
    if driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None

    return version.value // 1000, version.value % 1000 // 10


def can_compile() -> bool:
    """Whether torch.compile finds a C compiler; logs it where there is none, as in our images."""
    if c_compiler() is not None:
        return True

    log.info("no C compiler here: training runs without torch.compile")
    return False


def c_compiler() -> str | None:
    """The C compiler torch.compile would use; None where there is none.

    Triton builds a small C file for each kernel it launches.
    """
    from_environment = os.environ.get("CC")
    if from_environment:
        return shutil.which(from_environment)

    for name in C_COMPILERS:
        path = shutil.which(name)
        if path is not None:
            return path

    return None

"""Where training runs: why torch cannot use a GPU here, and whether it can compile, said before any work is done."""

import ctypes
import logging
import os
import shutil

import torch

from moola.errors import DataError

log = logging.getLogger("moola")

# What a driver must be for the CUDA that torch was built with: NVIDIA's "CUDA Compatibility", minor versions.
LEAST_DRIVER = {11: 450, 12: 525, 13: 580}


def choose_device(asked: str) -> str:
    """cpu or cuda, for `device` of a spec: cpu, cuda or auto.

    Raises DataError where CUDA is asked for and there is none. A machine that was rented for its GPUs (MOOLA_GPUS of
    them) asks for it unless the spec says cpu: its price is a GPU's.
    """
    if asked == "cpu":
        return "cpu"
    problem = cuda_problem()
    rented = int(os.environ.get("MOOLA_GPUS", "0"))
    if problem is not None and (asked == "cuda" or rented):
        where = f"this machine was rented for {rented} GPUs" if rented else "device: cuda needs a GPU"
        raise DataError(f"{where}, but {problem}. device: cpu trains without")
    return "cuda" if problem is None else "cpu"


def cuda_problem() -> str | None:
    """What keeps torch from using a GPU, in words that say what to do; None where nothing does."""
    if torch.cuda.is_available():
        return None
    return explain(torch.version.cuda, driver_cuda())


def explain(built_for: str | None, driver: tuple[int, int] | None) -> str:
    """The reason, from the CUDA version torch was built for (None: without) and the newest one the driver knows."""
    if built_for is None:
        return "this torch was built without CUDA; install one with it, or use the image moola:gpu"
    least = LEAST_DRIVER.get(int(built_for.split(".")[0]))
    needs = f"torch was built for CUDA {built_for}, which needs an NVIDIA driver" + (f" >= {least}" if least else "")
    if driver is None:
        return f"{needs}; no driver is here (in a container: docker run --gpus all, with NVIDIA's container toolkit)"
    if driver[0] < int(built_for.split(".")[0]):
        return f"{needs}; the driver here knows CUDA up to {driver[0]}.{driver[1]}: take a host with a newer driver"
    return f"{needs}; the driver here is new enough (CUDA {driver[0]}.{driver[1]}), but no GPU answers"


def driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA version the installed driver supports, such as (12, 8); None where there is no driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int(0)
    if driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return version.value // 1000, version.value % 1000 // 10


def can_compile() -> bool:
    """Whether torch.compile finds a C compiler, as it does not in our images; the log says so where there is none."""
    if c_compiler() is not None:
        return True
    log.info("no C compiler here: training runs without torch.compile")
    return False


def c_compiler() -> str | None:
    """The C compiler torch.compile would use; None where there is none, as in our images: Triton builds a small C
    file for each kernel it launches."""
    named = os.environ.get("CC")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, ("gcc", "clang", "cc"))), None)

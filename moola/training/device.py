"""Why torch cannot use a GPU here, and whether it can compile: what to say before any work is done."""

import ctypes
import os
import shutil

import torch

# What a driver must be for the CUDA that torch was built with: NVIDIA's "CUDA Compatibility", minor versions.
LEAST_DRIVER = {11: 450, 12: 525, 13: 580}


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


def c_compiler() -> str | None:
    """The C compiler torch.compile would use; None where there is none, as in our images: Triton builds a small C
    file for each kernel it launches."""
    named = os.environ.get("CC")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, ("gcc", "clang", "cc"))), None)

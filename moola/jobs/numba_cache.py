"""Where numba finds the functions that an image's build compiled, though the image is read-only.

numba looks for its cache only below folders it can write to. So each function's files are copied
from the image (MOOLA_NUMBA_CACHE) to the work folder before numba looks; what is missing is
compiled and kept there. NUMBA_CACHE_LOCATOR_CLASSES names the class. The files hold for any CPU
only if NUMBA_CPU_NAME, such as `generic`, is the same at build and at run time.
"""

import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Self

from numba.core.caching import UserProvidedCacheLocator


class BakedCacheLocator(UserProvidedCacheLocator):  # type: ignore[misc,unused-ignore]
    """A function's cache files below $MOOLA_WORK/numba, copied from the image's."""

    def __init__(self, py_func: Callable[..., object], py_file: str) -> None:
        super().__init__(py_func, py_file)  # type: ignore[no-untyped-call]

        folder = self.get_suitable_cache_subpath(py_file)  # type: ignore[no-untyped-call]
        baked = Path(os.environ["MOOLA_NUMBA_CACHE"], folder)
        target = Path(os.environ["MOOLA_WORK"], "numba", folder)

        self._cache_path = str(target)
        copy_baked(baked, target)

    @classmethod
    def from_function(cls, py_func: Callable[..., object], py_file: str) -> Self:
        locator = cls(py_func, py_file)
        locator.ensure_cache_path()  # type: ignore[no-untyped-call]
        return locator


@functools.cache  # once for all functions of a folder
def copy_baked(baked: Path, target: Path) -> None:
    """Copy what the image holds; a file takes its name when it is whole, for others may read it."""
    target.mkdir(parents=True, exist_ok=True)

    for path in baked.glob("*"):
        part = target / f"{path.name}.{os.getpid()}"
        shutil.copyfile(path, part)
        part.replace(target / path.name)

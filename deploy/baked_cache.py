"""Where numba finds compiled functions in an image: what the build compiled, although the image is read-only.

numba looks for its cache only below folders it can write to. So each function's files are copied from the image
(MOOLA_NUMBA_CACHE) to the work directory before numba looks; what they lack is compiled and kept there.
NUMBA_CACHE_LOCATOR_CLASSES names the class. The files hold for any CPU only if NUMBA_CPU_NAME is the same at build and
at run time, such as `generic`.
"""

import functools
import os
import shutil
from pathlib import Path
from typing import Any

from numba.core.caching import UserProvidedCacheLocator


class BakedCacheLocator(UserProvidedCacheLocator):  # type: ignore[misc,unused-ignore]
    """A function's cache files below $MOOLA_WORK/numba, laid out from the image's."""

    def __init__(self, py_func: Any, py_file: str) -> None:
        super().__init__(py_func, py_file)  # type: ignore[no-untyped-call]
        folder = self.get_suitable_cache_subpath(py_file)  # type: ignore[no-untyped-call]
        self._cache_path = str(Path(os.environ["MOOLA_WORK"], "numba", folder))
        lay_out(Path(os.environ["MOOLA_NUMBA_CACHE"], folder), Path(self._cache_path))

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> Any:
        locator = cls(py_func, py_file)
        locator.ensure_cache_path()  # type: ignore[no-untyped-call]
        return locator


@functools.cache  # once for all functions of a folder
def lay_out(baked: Path, target: Path) -> None:
    """Copy what the image holds; each file takes its name when it is whole, as other processes may be reading."""
    target.mkdir(parents=True, exist_ok=True)
    for path in baked.glob("*"):
        part = target / f"{path.name}.{os.getpid()}"
        shutil.copyfile(path, part)
        part.replace(target / path.name)

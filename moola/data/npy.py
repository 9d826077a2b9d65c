"""The header of a .npy file, checked before anything of the array is allocated."""

import io
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy

from moola.errors import ArtifactError
from moola.features.arrays import Array

HEADER_BYTES = 1 << 16  # a header is shorter


class NpyHeader(NamedTuple):
    """What a .npy file says of its array, and where its bytes begin."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int

    @property
    def file_bytes(self) -> int:
        """The size of a whole file with this header."""
        n_values = 1
        for length in self.shape:
            n_values *= length
        return self.offset + n_values * self.dtype.itemsize


def read_header(stream: IO[bytes]) -> NpyHeader:
    """The header of a C-ordered array of plain numbers. Raises ValueError for anything else."""
    version = npy.read_magic(stream)
    if version == (1, 0):
        shape, is_fortran, dtype = npy.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, is_fortran, dtype = npy.read_array_header_2_0(stream)
    else:
        raise ValueError(f"must be .npy of version 1.0 or 2.0, got {version}")

    if dtype.kind not in "bif" or is_fortran or any(length < 0 for length in shape):
        order = "F" if is_fortran else "C"
        raise ValueError(f"must be numbers in C order, got {dtype} {list(shape)} in {order} order")
    return NpyHeader(shape, dtype, stream.tell())


def read_array(data: bytes) -> Array:
    """The array in the bytes of a .npy file. Raises ValueError, before anything is allocated."""
    header = read_header(io.BytesIO(data[:HEADER_BYTES]))
    _require_size(header, len(data))
    return np.frombuffer(data, header.dtype, offset=header.offset).reshape(header.shape)


def load_array(path: Path, dtype: type[np.generic], *, mapped: bool = False) -> Array:
    """The array of a .npy file, in memory or mapped. Raises ArtifactError that names the file.

    The header is held to `dtype` and to the file's size before anything is allocated.
    """
    try:
        with path.open("rb") as stream:
            header = read_header(io.BytesIO(stream.read(HEADER_BYTES)))
        _require_size(header, path.stat().st_size)
        if header.dtype != dtype:
            raise ValueError(f"must be {np.dtype(dtype)}, got {header.dtype}")
        if 0 in header.shape:
            raise ValueError(f"must not be empty, got {list(header.shape)}")
        return np.asanyarray(np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False))
    except (ValueError, OSError, EOFError) as error:
        raise ArtifactError(f"{path} is damaged: {error}") from error


def _require_size(header: NpyHeader, size: int) -> None:
    if size != header.file_bytes:
        raise ValueError(
            f"{header.dtype} {list(header.shape)} take {header.file_bytes:,} bytes, "
            f"the file has {size:,}"
        )

"""Files below a folder, read and written without following a link that lies in it.

What is fetched from a store goes where a manifest says, into a folder that others may have written
to: nothing outside it is touched.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from moola.errors import DataError

HAS_FOLDER_HANDLES = os.open in os.supports_dir_fd  # not on Windows
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
BINARY = getattr(os, "O_BINARY", 0)  # Windows only
NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # nobody may ever write to a named pipe
FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)

PERMISSIONS = 0o666  # less the process's umask


class Folder:
    """A folder, which may be reached by a link, and the files below it, which may not.

    Paths are relative, with `/` between their parts. Raises DataError where a part of one is a
    link or no plain file.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def open_to_read(self, path: str) -> FileIO | None:
        """A file, opened; None if there is none."""
        with contextlib.suppress(FileNotFoundError):
            return self._open(path, os.O_RDONLY)
        return None

    def open_to_append(self, path: str) -> FileIO:
        """A file to read and append to; it and its folders are made where they are missing."""
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
        stream = self._open(path, flags, make_folders=True)
        if os.fstat(stream.fileno()).st_nlink > 1:  # it has another name, perhaps elsewhere
            stream.close()
            self.remove(path)
            stream = self._open(path, flags | os.O_EXCL)
        return stream

    def write(self, path: str, data: bytes) -> None:
        """Write a small file, replacing what is there."""
        part = part_name(path)
        with self.open_to_append(part) as stream:
            stream.truncate(0)
            write_all(stream, data)
        self.rename(part, path)

    def rename(self, path: str, new_path: str) -> None:
        """Give a file another name in its folder, replacing what has it."""
        name = new_path.rpartition("/")[2]
        with self._parent(path) as (parent, old_name):
            if isinstance(parent, Path):
                (parent / old_name).replace(parent / name)
            else:
                os.replace(old_name, name, src_dir_fd=parent, dst_dir_fd=parent)

    def remove(self, path: str) -> None:
        """Remove a file."""
        with self._parent(path) as (parent, name):
            if isinstance(parent, Path):
                (parent / name).unlink()
            else:
                os.unlink(name, dir_fd=parent)

    def _open(self, path: str, flags: int, *, make_folders: bool = False) -> FileIO:
        flags |= NO_FOLLOW | NO_WAIT | BINARY
        with self._parent(path, make=make_folders) as (parent, name), self._refused_links(path):
            if isinstance(parent, Path):
                _refuse_link(parent / name)
                handle = os.open(parent / name, flags, PERMISSIONS)
            else:
                handle = os.open(name, flags, PERMISSIONS, dir_fd=parent)

        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise DataError(f"{self.root / path} must be a plain file: remove what is there")
        is_written = bool(flags & os.O_RDWR)
        return FileIO(handle, "a+" if is_written else "r")

    @contextlib.contextmanager
    def _parent(self, path: str, *, make: bool = False) -> Iterator[tuple[int | Path, str]]:
        """(the folder of a path: a handle of it, or where there are none its path; the name)."""
        *folders, name = path.split("/")
        if make:
            self.root.mkdir(parents=True, exist_ok=True)

        if not HAS_FOLDER_HANDLES:
            yield self._checked_parent(folders, make=make), name
            return

        handle = os.open(self.root, FOLDER)
        try:
            for folder in folders:
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(folder, dir_fd=handle)
                with self._refused_links(path):
                    inner = os.open(folder, FOLDER | NO_FOLLOW, dir_fd=handle)
                os.close(handle)
                handle = inner
            yield handle, name
        finally:
            os.close(handle)

    def _checked_parent(self, folders: list[str], *, make: bool) -> Path:
        parent = self.root
        for folder in folders:
            parent /= folder
            _refuse_link(parent)
            if make:
                parent.mkdir(exist_ok=True)
        return parent

    @contextlib.contextmanager
    def _refused_links(self, path: str) -> Iterator[None]:
        """Opening a link as if it were none fails with one of two numbers."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise _link_error(self.root / path) from error
            raise


def write_all(stream: FileIO, data: bytes | memoryview) -> None:
    """Write all of `data`; an unbuffered file may take less at a time."""
    rest = memoryview(data)
    while rest:
        written = stream.write(rest)
        rest = rest[written:]


def part_name(path: str) -> str:
    """Where the bytes of a file are until they are complete and verified."""
    return f"{path}.part"


def _refuse_link(path: Path) -> None:
    if path.is_symlink():
        raise _link_error(path)


def _link_error(path: Path) -> DataError:
    return DataError(
        f"no link in the folder is followed, and every folder on the way must be one: {path}; "
        "remove what is in the way, or choose an empty folder"
    )

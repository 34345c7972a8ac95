"""A file that is whole or not there: written beside its place, brought to the disk, and renamed."""

from __future__ import annotations

import errno
import os
import stat
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, BinaryIO

import numpy as np

from ravine.backends import cpu

__all__ = ["check_target", "older", "reading", "rotate", "sync_folder", "temporary", "told", "write"]

_PIECE = 1 << 20
#: What a file system says that has no hard links.
_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK}


def _check_kind(path: str) -> None:
    """Refuse what exists and is no file: a folder, or a pipe, on which one would wait."""
    if os.path.exists(path) and not os.path.isfile(path):
        kind = IsADirectoryError if os.path.isdir(path) else OSError
        raise kind(f"path: expected a file, got {path!r}, which is none; give another name")


def check_target(target: str) -> None:
    """Find before any work what the file system would only say in its end, and less clearly."""
    _check_kind(target)
    folder = os.path.dirname(target)
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"path: no folder {folder!r}; make it with os.makedirs, or give another path")


@contextmanager
def told(target: str, then: str) -> Iterator[None]:
    """Say of an error of the file system what it means for the checkpoint."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"save: {error.strerror}; {then}", target) from error


def _descriptor(path: str, flags: int, mode: int = 0o777) -> tuple[list[int], Callable[[], Any], Callable[[], Any]]:
    """Return an empty list, what opens a file into it, and what closes it: each one call into C.

    Signals' handlers run between Python's own instructions, never inside such a call. So a KeyboardInterrupt finds the
    file not yet open, or in the list; between ``os.open`` and an assignment it would lose the descriptor, and its lock.
    """
    files: list[int] = []
    opening = partial(files.extend, map(os.open, [path], [flags | os.O_CLOEXEC], [mode]))
    return files, opening, partial(deque, map(os.close, files), 0)


@contextmanager
def temporary(target: str) -> Iterator[tuple[int, str]]:
    """Give an empty file beside the target, which nobody else writes; remove it unless it was renamed.

    Its name is always the same: what a killed process has left is used again. The lock ends with the process, so it
    tells such a file from one that is being written.
    """
    import fcntl

    folder, name = os.path.split(target)
    path = os.path.join(folder, f".{name}.saving")
    ours = False
    while not ours:
        # Not truncated yet: it may be another's, and by now even be the checkpoint.
        files, opening, closing = _descriptor(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            with told(target, "nothing was written"):
                opening()
                try:
                    fcntl.flock(files[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise RuntimeError(
                        f"save: someone else is saving to {target!r} now; give each its own file"
                    ) from None
                except OSError:
                    pass  # a file system without locks: nothing tells, and two who save there at once are on their own
                ours = _is(files[0], path)  # else the one who held the lock has renamed or removed it meanwhile
                if ours:
                    os.ftruncate(files[0], 0)
                    if os.path.exists(target):
                        os.fchmod(files[0], stat.S_IMODE(os.stat(target).st_mode))
            if ours:
                yield files[0], path
        finally:
            try:
                # Before the lock goes. After the renaming there is none; if this fails, the next save uses the file.
                with suppress(OSError):
                    if ours and _is(files[0], path):
                        os.unlink(path)
            finally:
                closing()


def _is(file: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def write(file: int, array: Any, place: int) -> str:
    """Write an array's elements in C order, from a place in the file on; return the checksum of what was written."""
    # One array at a time, so that those of a device need no second room here.
    host: np.ndarray[Any, Any] = np.asarray(cpu.put(array), order="C")
    data = memoryview(host.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
    os.lseek(file, place, os.SEEK_SET)
    checksum = 0
    for begin in range(0, len(data), _PIECE):
        # A copy: whoever else may write to the array, checksum and file agree.
        piece = memoryview(bytes(data[begin : begin + _PIECE]))
        checksum = zlib.crc32(piece, checksum)
        while piece:
            piece = piece[os.write(file, piece) :]  # it may write less than all
    return f"{checksum:08x}"


def rotate(target: str, keep: int) -> None:
    """Give the present file the name .1, that one .2, …; at each moment the target's name has a whole file."""
    names = [target, *(f"{target}.{i}" for i in range(1, keep))]
    if keep == 1 or not os.path.exists(target):
        return
    if os.path.exists(names[1]) and os.path.samefile(target, names[1]):
        return  # done already, by a save that was killed before it could rename
    for older, newer in reversed(list(zip(names[2:], names[1:-1], strict=True))):
        if os.path.exists(newer):
            os.replace(newer, older)
    with suppress(FileNotFoundError):
        os.unlink(names[1])  # with keep=2 the oldest; else a link that leads nowhere
    try:
        os.link(target, names[1])
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        os.replace(target, names[1])  # for a moment no file has the name; `load` then says which has


def sync_folder(target: str) -> None:
    """Make the renaming last."""
    files, opening, closing = _descriptor(os.path.dirname(target), os.O_RDONLY | os.O_DIRECTORY)
    try:
        opening()
        os.fsync(files[0])
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot
            raise
    finally:
        closing()


@contextmanager
def reading(name: str) -> Iterator[BinaryIO]:
    """Open a checkpoint."""
    _check_kind(name)
    files, opening, closing = _descriptor(name, os.O_RDONLY)
    try:
        try:
            opening()
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, f"no such checkpoint{older(name)}", name) from error
        with open(files[0], "rb", closefd=False) as file:
            yield file
    finally:
        closing()


def older(name: str) -> str:
    """Name the file that ``keep`` has kept, if there is one."""
    target = os.path.realpath(name)
    found = next(filter(os.path.exists, (f"{target}.{i}" for i in range(1, 100))), None)
    return f"; the one saved before it is {found!r}: load that, if you want to" if found else ""

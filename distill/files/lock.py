"""A lock on a folder, which the system takes back when the process that holds it ends, however it ends."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)

#: The locked file in a folder; it is there while the lock is held, and after a process that was killed.
NAME = ".lock"
#: Where the byte lies that Windows locks: behind what is written, so that it can be read.
_BYTE = 4096
#: What a file system says that has no locks at all; anything else is a fault of this one lock.
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK)
#: Seconds between two words to who waits.
SAY_EVERY = 30.0


class InUse(ValueError):
    """Another run holds a folder.

    Attributes:
        folder: which one.
    """

    def __init__(self, folder: Path, said: str) -> None:
        super().__init__(said)
        self.folder = folder


@contextlib.contextmanager
def hold(folder: Path, wait: float = 0.5, name: str = NAME) -> Iterator[None]:
    """Hold a folder for as long as the context lasts.

    Args:
        folder: must exist.
        wait: how long to try, seconds; who waits for long is told so.
        name: of the locked file; another one holds a part of the folder by itself, such as its table.

    Raises:
        InUse: another process, or another call in this one, holds it.
        OSError: it cannot be written.
    """
    path, began = folder / name, time.monotonic()
    told = began
    while (descriptor := _take(path)) is None:
        now = time.monotonic()
        if now > began + wait:
            raise InUse(
                folder,
                f"{folder} is in use by another run ({_holder(path)}); wait until it ends, or choose another output_dir=",
            )
        if now > told + SAY_EVERY:
            log.info("waiting for %s, which is in use (%s), for %.0f s", folder, _holder(path), now - began)
            told = now
        time.sleep(0.05)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows removes no open file; an unlocked one is as good as none
            path.unlink()
        os.close(descriptor)


def _take(path: Path) -> int | None:
    """Open and lock a file; None where it is locked, or was removed meanwhile by the one who held it."""
    descriptor, taken = os.open(path, os.O_RDWR | os.O_CREAT, 0o666), False
    try:
        taken = _lock(descriptor) and _same(descriptor, path)
        if taken:
            os.truncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
            return descriptor
    except BaseException:
        if taken:  # such as on a full disk
            with contextlib.suppress(OSError):
                path.unlink()
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _lock(descriptor: int) -> bool:
    """Tell whether an open file could be locked; true with a warning on a file system that has no locks.

    Raises:
        OSError: it cannot be locked for another reason.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, _BYTE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            os.lseek(descriptor, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        log.warning("this file system has no locks (%s): let no two runs write into one folder", error)
    return True


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") or "just starting"
    except OSError:
        return "just ending"

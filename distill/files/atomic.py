"""Files that are whole or not there, and their checksums."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import get_ident

#: Names of what is being written: of a file or folder of any kind, and of a file whose ending tells a library its format.
HALF = (".*.tmp", ".*.part.*")


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


#: Digests by what the file system says of a file; its time of change (ctime) cannot be set, as its time of writing can.
_KNOWN: dict[tuple[object, ...], str] = {}


def sha256_once(path: Path) -> str:
    """Hex digest of a large file, read once per process as long as the file system says that it is the same file."""
    real = path.resolve()
    said = real.stat()
    key = (real, said.st_dev, said.st_ino, said.st_size, said.st_mtime_ns, said.st_ctime_ns)
    if key not in _KNOWN:
        _KNOWN[key] = sha256(real)
    return _KNOWN[key]


def _writer() -> str:
    """This process and thread, so that no two write to the same name."""
    return f"{os.getpid()}-{get_ident()}"


def _of(path: Path, error: OSError, temporary: Path) -> OSError:
    """The error of writing to a temporary name, as one of the file that was to be written."""
    if error.errno is None or error.filename not in (None, str(temporary)):
        return error
    return OSError(error.errno, error.strerror, str(path))


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace a file, so that a reader sees the old or the new one, never a part; on failure nothing changes.

    Raises:
        OSError: it cannot be written; names ``path``.
    """
    temporary = path.with_name(f".{path.name}.{_writer()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise _of(path, error, temporary) from error
        raise


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a name beside ``path`` to write to, which then takes its place; on failure nothing changes.

    Raises:
        OSError: it cannot be written; names ``path``.
    """
    part = path.with_name(f".{path.stem}.{_writer()}.part{path.suffix}")
    try:
        yield part
        with part.open("r+b") as file:  # else a power failure may leave an empty file of this name
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise _of(path, error, part) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def is_half(path: Path) -> bool:
    """Tell whether a file or folder is one that is being written, by its name."""
    return any(path.match(pattern) for pattern in HALF)


def clear(folder: Path) -> None:
    """Remove what killed processes left half written anywhere in a folder, which the caller holds; others are at work on none."""
    for pattern in HALF:
        for path in list(folder.rglob(pattern)):
            with suppress(OSError):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

"""Files that are whole or not there, and their checksums."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


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


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace a file, so that a reader sees the old or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)

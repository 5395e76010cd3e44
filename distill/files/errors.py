"""Errors as one line."""

from __future__ import annotations

import re
from pathlib import Path


def no_file(path: Path) -> str:
    """Why a path that is no file is none: ``is a folder`` or ``is not there``."""
    return "is a folder" if path.is_dir() else "is not there"


def line_of(error: BaseException) -> str:
    """What an error says, in one line; of the system's, the file and the plain words, without a number."""
    said = str(error)
    if isinstance(error, OSError) and error.strerror:
        said = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    said = re.sub(r" \(os error \d+\)", "", said)  # of what is written in Rust
    return " ".join(said.split()) or type(error).__name__


def is_text(text: str) -> bool:
    """Tell whether a text can be written; what a terminal or a file of another encoding gives may hold halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def first_line(error: object) -> str:
    """The first line of what an error says, for those of other libraries that say much; its kind where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)

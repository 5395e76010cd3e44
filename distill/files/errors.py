"""Errors as one line."""

from __future__ import annotations

import re


def line_of(error: BaseException) -> str:
    """What an error says, in one line; of the system's, the file and the plain words, without a number."""
    said = str(error)
    if isinstance(error, OSError) and error.strerror:
        said = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    said = re.sub(r" \(os error \d+\)", "", said)  # of what is written in Rust
    return " ".join(said.split()) or type(error).__name__

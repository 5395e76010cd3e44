"""Paths as users write them."""

from __future__ import annotations

from pathlib import Path


def user_path(text: str | Path) -> Path:
    """Return a path with the home folder in place of ``~`` or ``~user``.

    Raises:
        ValueError: there is no such home folder.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"{text} begins with a home folder that is not known here; write the path without ~, or put ./ before it"
        ) from error


def nearest(path: Path) -> Path:
    """Return a path itself if it is there, or the nearest folder above it that is."""
    whole = path.absolute()
    return next(each for each in (whole, *whole.parents) if each.exists())

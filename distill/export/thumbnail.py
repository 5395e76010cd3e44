"""A small picture of a run, from what is in its folder."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image, UnidentifiedImageError

#: Largest side of a thumbnail, pixels: thousands of them make one page, and its quality as JPEG.
SIZE, QUALITY = 96, 75
#: Pixels between the pictures of a contact sheet, of which there are four in a row, and the side of a preview's pictures.
GAP, COLUMNS, PREVIEW = 4, 4, 64


#: Where a finished run has its own.
NAME = "thumbnail.jpg"


def thumbnail(folder: Path) -> str:
    """A run's small picture as JPEG in base64, the one that it wrote or else a new one; empty where there is none."""
    try:
        found = (folder / NAME).read_bytes()
    except OSError:
        found = draw(folder)
    return base64.b64encode(found).decode()


def sheets(folder: Path) -> list[tuple[int, Path]]:
    """A run's previews, each with its step, in the order of the steps."""
    found = (folder / "previews").glob("step-*.png")
    return sorted((int(path.stem[5:]), path) for path in found if path.stem[5:].isdecimal())


def draw(folder: Path) -> bytes:
    """Draw the front of a run's object as JPEG; empty where there is no picture that can be read.

    It is the first picture of contact.png, else of the last preview, else image.png, the scene of a run with ``scene=image``.
    """
    previews = [path for _, path in sheets(folder)][-1:]
    for path in (folder / "contact.png", *previews, folder / "image.png"):
        try:
            with Image.open(path) as sheet:
                wide = {
                    "contact.png": (sheet.width - (COLUMNS - 1) * GAP) // COLUMNS,
                    "image.png": sheet.width,
                }
                side = wide.get(path.name, PREVIEW)
                front = sheet.crop((0, 0, side, min(side, sheet.height))).convert("RGB")
        except (OSError, UnidentifiedImageError, ValueError):
            continue
        front.thumbnail((SIZE, SIZE))
        out = io.BytesIO()
        front.save(out, "JPEG", quality=QUALITY)
        return out.getvalue()
    return b""

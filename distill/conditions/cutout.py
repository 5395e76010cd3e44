"""Prepare a user's picture: read it, cut the object out, centre it over white."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from distill.conditions.background import plain_background
from distill.conditions.choices import BACKGROUNDS
from distill.files.atomic import sha256
from distill.files.colour_profile import in_srgb
from distill.files.errors import no_file
from distill.files.grey import eight_bits
from distill.files.paths import user_path

log = logging.getLogger(__name__)

#: What rembg may cut out with, the best first; both are under the Apache licence.
NETWORKS = ("u2net", "u2netp")
#: Largest side that an object is cut out at, and that a picture is read at, pixels.
LARGEST, READ = 1024, 8192
#: Least side of a picture, pixels: the models see it at 32 and more, and of less no shape can be told.
LEAST = 16
#: Alpha from which a pixel is seen, and the share of a picture that an alpha channel hides if it cuts an object out.
SEEN, SEPARATES = 128, 0.03
#: How files of other kinds begin, and what is near the beginning of a text.
_BEGINNINGS = {
    b"%PDF": "a PDF", b"%!PS": "a drawing in PostScript", b"8BPS": "a picture of Photoshop", b"gimp xcf": "a picture of GIMP",
    b"\xff\x0a": "a picture in JPEG XL", b"\0\0\0\x0cJXL ": "a picture in JPEG XL", b"\x76\x2f\x31\x01": "a picture in OpenEXR",
    b"glTF": "a mesh in GLB", b"PK\x03\x04": "an archive", b"\x1aE\xdf\xa3": "a video",
}  # fmt: skip
_TAGS = {b"<svg": "a drawing in SVG", b"<html": "a web page", b"<!doctype html": "a web page"}
_REMEDIES = {
    "a mesh in GLB": "to give it a texture, write mesh=FILE",
    "a video": "save one of its frames as PNG or JPEG",
    "a web page": "save the picture that it shows",
    "an archive": "unpack it",
    "an empty file": "save the picture again",
}
#: Alpha below which even an object of glass cannot be seen.
GLASS = 16


@dataclass(frozen=True)
class Cutout:
    """An object over white.

    Attributes:
        rgb: in [0, 1], shape ``[3, size, size]``.
        mask: its coverage in [0, 1], shape ``[1, size, size]``.
    """

    rgb: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Frame:
    """A square part of a picture, which may reach beyond it: its left and top edge, and its side, pixels."""

    left: float
    top: float
    side: float

    def times(self, scale: float) -> Frame:
        """The same part of a picture that is so many times as large."""
        return Frame(self.left * scale, self.top * scale, self.side * scale)


def cut_out(
    path: str | Path, size: int, *, background: str = "auto", recentre: bool = True, fill: float = 0.75
) -> tuple[Cutout, Frame]:
    """Read a picture of one object.

    Args:
        path: of any common format; an alpha channel tells what the object is, else its background is removed.
        size: height and width of the result, pixels.
        background: see ``without_background``.
        recentre: put the object in the middle and scale its longer side to ``fill`` of the picture; else the whole
            picture is used, made square.
        fill: share of the picture's side.

    Returns:
        The object, and the part of the picture that it was taken from, for maps that belong to it.

    Raises:
        ValueError: it is no picture, or has no object that can be told from its background; in one line.
    """
    image = without_background(path, background)
    frame = frame_of(np.asarray(image.getchannel("A")), str(path), fill if recentre else None)
    return over_white(image, frame, size), frame


def without_background(path: str | Path, background: str = "auto") -> Image.Image:
    """Read a picture as RGBA, its alpha channel the object.

    Args:
        path: of any common format.
        background: ``auto`` removes a plain background where there is no alpha channel; ``keep`` takes the whole
            picture for the object; ``rembg`` has the package of that name find the object with U2-Net.

    Raises:
        ValueError: see ``cut_out``.
    """
    if background not in BACKGROUNDS:
        raise ValueError(f"reference.background must be one of {', '.join(BACKGROUNDS)}, got {background!r}")
    image = read_rgba(Path(path))
    if min(image.size) < LEAST:
        raise ValueError(
            f"image must be at least {LEAST} x {LEAST} pixels, got {image.width} x {image.height} in {path}; give a larger picture"
        )
    alpha = np.asarray(image.getchannel("A"))
    if background == "keep" or (background == "auto" and (alpha < SEEN).mean() >= SEPARATES):
        return image
    cut = _by_rembg if background == "rembg" else partial(_without_plain, name=str(path))
    return _finely(image, cut)


def _finely(image: Image.Image, cut: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Cut a picture's object out: found in the whole picture made small, then cut out once more from around where it is."""
    small = cut(_at_most(image, LARGEST))
    if small.size == image.size:
        return small
    scale = image.width / small.width
    rows, columns = (np.flatnonzero((np.asarray(small.getchannel("A")) > 127).any(axis)) for axis in (1, 0))
    alpha = Image.new("L", image.size, 0)
    if len(rows):
        margin = 4 + max(len(rows), len(columns)) // 4
        near = (
            max(int(columns[0]) - margin, 0), max(int(rows[0]) - margin, 0),
            min(int(columns[-1]) + 1 + margin, small.width), min(int(rows[-1]) + 1 + margin, small.height),
        )  # fmt: skip
        left, top, right, bottom = (round(edge * scale) for edge in near)
        box = (left, top, min(right, image.width), min(bottom, image.height))
        part = image.crop(box)
        coarse = small.getchannel("A").resize(part.size, Image.Resampling.BICUBIC, near)
        alpha.paste(_again(part, coarse, cut), box)
    image.putalpha(alpha)
    return image


def _again(part: Image.Image, coarse: Image.Image, cut: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Coverage in a part of a picture, cut out again; as it was found coarsely where that finds something else."""
    try:
        found = cut(_at_most(part, LARGEST)).getchannel("A").resize(part.size, Image.Resampling.BICUBIC)
    except ValueError:
        return coarse
    fine, rough = np.asarray(found) > 127, np.asarray(coarse) > 127
    # An object of few pixels is a staircase at first, and still the same object.
    return found if (fine & rough).sum() > 0.5 * (fine | rough).sum() else coarse


def _at_most(image: Image.Image, largest: int) -> Image.Image:
    """A picture whose longer side is at most so many pixels."""
    scale = largest / max(image.size)
    if scale >= 1:
        return image
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    return image.resize(size, Image.Resampling.BOX)


def _without_plain(image: Image.Image, name: str) -> Image.Image:
    """Remove the plain background of a picture whose alpha channel separates nothing, such as a card with round corners.

    Raises:
        ValueError: the background is not plain, and all of the picture is opaque.
    """
    rgb, alpha = np.array(image.convert("RGB")), np.asarray(image.getchannel("A"))
    hidden = alpha < SEEN
    if hidden.any():
        border = np.zeros_like(hidden)
        border[[0, -1], :] = border[:, [0, -1]] = True
        shown = border & ~hidden
        rgb[hidden] = np.median(rgb[shown if shown.any() else ~hidden], axis=0)
    try:
        kept = plain_background(rgb, name)
    except ValueError:
        if not hidden.any():
            raise
        log.warning(
            "the alpha channel of %s hides hardly anything; what it shows is used as the object", name
        )
        return image
    if hidden.any():
        log.warning("the alpha channel of %s hides hardly anything; its plain background is removed", name)
    image.putalpha(Image.fromarray(np.minimum(kept, alpha) if hidden.any() else kept))
    return image


def over_white(image: Image.Image, frame: Frame, size: int) -> Cutout:
    """The part of an RGBA picture in a frame, over white, ``size`` pixels wide and high."""
    rgba = torch.from_numpy(np.asarray(placed(image, frame, size), np.float32) / 255).movedim(-1, 0)
    rgb, mask = rgba[:3], rgba[3:]
    return Cutout(rgb * mask + (1 - mask), mask.clone())


def read_rgba(path: Path, largest: int = READ, option: str = "image", *, data: bool = False) -> Image.Image:
    """Open any common picture, upright, in sRGB, 8 bits a channel, its longer side at most ``largest`` pixels.

    Args:
        path: of the file.
        largest: its longer side at most, pixels.
        option: that names it, for errors.
        data: it shows no colours but values such as depth, which are as they are stored, whatever colour profile the file has.

    Raises:
        ValueError: it is not there, or no picture.
    """
    if not path.is_file():
        raise ValueError(
            f"{option} must be a picture file, and {path} {no_file(path)}; give its path from the current folder, or in full"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", Image.DecompressionBombWarning
            )  # a phone's picture may be as large
            opened = Image.open(path)
        with opened:
            opened.load()
            profile = None if data else opened.info.get("icc_profile")
            image = in_srgb(eight_bits(ImageOps.exif_transpose(opened)), profile, str(path))
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{option} must be a picture of at most {2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6:.0f} million pixels, and {path} has more; "
            "save it smaller"
        ) from error
    except (OSError, SyntaxError, ValueError) as error:
        if kind := _other_kind(path):
            remedy = _REMEDIES.get(kind, "save it as PNG or JPEG")
            raise ValueError(f"{path} is {kind}, which cannot be read here; {remedy}") from error
        raise ValueError(
            f"{option} must be a picture (PNG, JPEG, WebP, ...), and {path} cannot be read: {error}"
        ) from error
    return _at_most(image, largest)


def _other_kind(path: Path) -> str:
    """What a file is that is no picture which can be read, by how it begins; empty if that is unknown, or the file cannot be read at all."""
    try:
        with path.open("rb") as file:
            head = file.read(1024)
    except OSError:
        return ""
    if not head:
        return "an empty file"
    brand = head[8:12]
    if head[4:8] == b"ftyp":
        still = brand in (b"mif1", b"msf1") or brand[:3] in (b"hei", b"hev", b"avi")
        other = "a raw picture of a camera" if brand == b"crx " else "a video"
        return "a picture in HEIC or AVIF, as phones save them" if still else other
    if head[:4] == b"RIFF" and brand == b"AVI ":
        return "a video"
    known = next((kind for start, kind in _BEGINNINGS.items() if head.startswith(start)), "")
    text = b"" if b"\0" in head else head.lower()  # a damaged picture may hold any word
    return known or next((kind for tag, kind in _TAGS.items() if tag in text), "")


def of_fewer_pixels(
    image: Image.Image, frame: Frame, largest: int = LARGEST
) -> tuple[Image.Image, Frame, float]:
    """A picture made so small that its frame is at most ``largest`` pixels, that frame in it, and the scale."""
    scale = min(1.0, largest / frame.side)
    if scale == 1:
        return image, frame, scale
    small = image.resize(
        (max(round(image.width * scale), 1), max(round(image.height * scale), 1)), Image.Resampling.BOX
    )
    return small, frame.times(scale), scale


def frame_of(alpha: NDArray[np.uint8], name: str, fill: float | None) -> Frame:
    """The square about an object whose longer side is ``fill`` of it; None for the whole picture, made square.

    Raises:
        ValueError: there is no object, or it is smaller than eight pixels.
    """
    seen = alpha > 127
    if not seen.any() and alpha.max(initial=0) >= GLASS:
        log.warning(
            "%s is nowhere more than half opaque; what is at least half as opaque as its most is framed", name
        )
        seen = alpha > alpha.max() // 2
    rows, columns = (np.flatnonzero(seen.any(axis)) for axis in (1, 0))
    if not len(rows):
        raise ValueError(f"{name} is fully transparent; give a picture that shows an object")
    height, width = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
    if max(height, width) < 8:
        raise ValueError(
            f"the object in {name} is {width} x {height} pixels; give a picture where it has at least 8"
        )
    if fill is None:
        tall, wide = alpha.shape
        side = max(tall, wide)
        return Frame((wide - side) / 2, (tall - side) / 2, side)
    side = max(height, width) / fill
    middle = (columns[0] + width / 2, rows[0] + height / 2)
    return Frame(middle[0] - side / 2, middle[1] - side / 2, side)


def placed(image: Image.Image, frame: Frame, size: int) -> Image.Image:
    """A frame of a picture, resized; beyond the picture it is transparent or black."""
    if frame.side > READ:  # beyond a large picture there may be far more than in it
        image, frame, _ = of_fewer_pixels(image, frame, max(LARGEST, size))
    left, top = round(frame.left), round(frame.top)
    side = max(round(frame.side), 1)
    part = image.crop((left, top, left + side, top + side))
    return part.resize((size, size), Image.Resampling.BOX if side > size else Image.Resampling.BICUBIC)


def read_map(path: str | Path, frame: Frame, size: int, of: tuple[int, int], option: str = "image") -> Tensor:
    """A map that belongs to a picture, such as its depth, cut as it was: in [0, 1], shape ``[3, size, size]``.

    Args:
        path: a picture of the same shape.
        frame: of the picture.
        size: height and width of the result, pixels.
        of: the picture's own width and height.
        option: that names the map, for errors.

    Raises:
        ValueError: it is no picture, or of another shape.
    """
    image = read_rgba(user_path(path), option=option, data=True).convert("RGB")
    if image.size != of:
        raise ValueError(
            f"{option}: {path} must be as large as the image, {of[0]} x {of[1]}, got {image.size[0]} x {image.size[1]}"
        )
    return torch.from_numpy(np.asarray(placed(image, frame, size), np.float32) / 255).movedim(-1, 0)


def rembg_model() -> tuple[str, Path]:
    """The network that rembg cuts out with, U2-Net or its small version: rembg's name for it, and its file.

    rembg would download what it misses, some of it under licences that forbid commercial use, so the file is looked for first:
    where rembg keeps it now, and where earlier versions did.

    Raises:
        ValueError: there is none; says where it was looked for and how to get it.
    """
    own = os.environ.get("U2NET_HOME")
    data = os.environ.get("XDG_DATA_HOME")
    home = own or os.environ.get("REMBG_HOME") or (f"{data}/rembg" if data else "~/.rembg")
    earlier = own or f"{data or '~'}/.u2net"
    for name in NETWORKS:
        for folder in (f"{home}/models/{name}", earlier):
            if (file := user_path(folder) / f"{name}.onnx").is_file():
                return name, file
    raise ValueError(
        f"reference.background=rembg cuts out with the network U2-Net, whose file is neither {home}/models/u2net/u2net.onnx nor "
        f"{earlier}/u2net.onnx, and nothing is downloaded unasked; put it there, or fetch it once with: python -c "
        "\"import rembg; rembg.new_session('u2net')\""
    )


def describe_rembg() -> dict[str, str]:
    """Name, licence and file of the network that rembg cuts out with, for a manifest."""
    name, file = rembg_model()
    return {"name": f"rembg's {name}", "licence": "Apache-2.0", "file": file.name, "sha256": sha256(file)}


def _by_rembg(image: Image.Image) -> Image.Image:
    try:
        import rembg
    except (ImportError, SystemExit) as error:  # it ends the process where it misses its runtime
        raise ValueError(
            "reference.background=rembg needs the package rembg; pip install 'rembg[cpu]'"
        ) from error
    name, _ = rembg_model()
    found: Any = rembg.remove(image.convert("RGB"), session=rembg.new_session(name))
    return found.convert("RGBA")

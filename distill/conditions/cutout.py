"""Prepare a user's picture: read it, cut the object out, centre it over white."""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

log = logging.getLogger(__name__)

#: How pictures are cut out.
BACKGROUNDS = ("auto", "keep", "rembg")
#: What rembg may cut out with, the best first; both are under the Apache licence.
NETWORKS = ("u2net", "u2netp")
#: Largest side that is worked on, pixels.
LARGEST = 1024
#: How far from the background's colour is still background, of 255.
TOLERANCE = 16
#: Share of the border that may be something else than the background: the object may touch it.
BORDER_SHARE = 0.25
#: Alpha from which a pixel is seen, and the share of a picture that an alpha channel hides if it cuts an object out.
SEEN, SEPARATES = 128, 0.03
#: Widest frame around a picture, of its shorter side.
LINE = 0.03
#: A part smaller than this share of the largest is a speck.
SPECK = 0.03
#: A part that spans this share of the picture both ways, and fills less than that of its box, is a line around it.
AROUND, THIN = 0.8, 0.15


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
    image = read_rgba(Path(path))
    alpha = np.asarray(image.getchannel("A"))
    if background not in BACKGROUNDS:
        raise ValueError(f"reference.background must be one of {', '.join(BACKGROUNDS)}, got {background!r}")
    if background == "rembg":
        image = _by_rembg(image)
    elif background == "auto" and (alpha < SEEN).mean() < SEPARATES:
        image = _without_plain(image, str(path))
    return image


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
            "the alpha channel of %s hides hardly anything; what it shows is taken for the object", name
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


def read_rgba(path: Path, largest: int = LARGEST) -> Image.Image:
    """Open any common picture, upright, 8 bits a channel, its longer side at most ``largest`` pixels.

    Raises:
        ValueError: it is not there, or no picture.
    """
    if not path.is_file():
        raise ValueError(f"image must be a picture file, and {path} is not there")
    try:
        with Image.open(path) as opened:
            opened.load()
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):  # 16 bits of grey, which a plain conversion would clip
                grey = np.asarray(image, np.float64) / 65535
                image = Image.fromarray((grey.clip(0, 1) * 255).round().astype(np.uint8))
            image = image.convert("RGBA")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise ValueError(
            f"image must be a picture (PNG, JPEG, WebP, ...), and {path} cannot be read: {error}"
        ) from error
    if max(image.size) > largest:
        image.thumbnail((largest, largest), Image.Resampling.BOX)
    return image


def plain_background(rgb: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
    """Coverage of what differs from a picture's plain background, 0 or 255, shape ``[h, w]``; without a frame around it.

    Raises:
        ValueError: see ``standing_out``.
    """
    inner = unframed(rgb)
    if inner is not None:
        with contextlib.suppress(ValueError):  # what looked like a frame was the background
            return standing_out(inner, name)
    return standing_out(rgb, name)


def unframed(rgb: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    """A picture whose outermost line of one colour is painted like the plain colour inside it; None without such a line."""
    side = min(rgb.shape[:2])
    widest = max(2, round(LINE * side))
    if side < 4 * widest:
        return None
    rings = [_ring(rgb, depth) for depth in range(2 * widest)]
    if rings[0] is None:
        return None
    for depth in range(1, widest):
        beyond = rings[depth : depth + widest]
        colour = beyond[0]
        if colour is None or np.abs(colour - rings[0]).max() <= TOLERANCE:
            continue  # still the line, or its soft edge
        if any(ring is None or np.abs(ring - colour).max() > TOLERANCE for ring in beyond):
            continue  # no plain colour that goes on inside
        painted = np.empty_like(rgb)
        painted[:] = colour
        within = np.s_[depth : rgb.shape[0] - depth, depth : rgb.shape[1] - depth]
        painted[within] = rgb[within]
        return painted
    return None


def _ring(rgb: NDArray[np.uint8], depth: int) -> NDArray[np.float64] | None:
    """The colour of the pixels so far from a picture's edge, None where they have no single one."""
    inside = rgb[depth : rgb.shape[0] - depth, depth : rgb.shape[1] - depth].astype(float)
    ring = np.concatenate([inside[0], inside[-1], inside[:, 0], inside[:, -1]])
    colour = np.median(ring, axis=0)
    plain = (np.abs(ring - colour).max(-1) > TOLERANCE).mean() <= 0.02
    return colour if plain else None


def standing_out(rgb: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
    """Coverage of what differs from the colour of a picture's border, 0 or 255, shape ``[h, w]``.

    The background is what looks like the border and hangs together with it; parts that it does not reach, such as the
    hole of a handle, count where they have its very colour.

    Raises:
        ValueError: the border is not of one colour, or nothing differs from it.
    """
    from scipy import ndimage

    border = np.concatenate([rgb[0], rgb[-1], rgb[:, 0], rgb[:, -1]]).astype(int)
    colour = np.median(border, axis=0)
    off = np.abs(border - colour).max(-1)
    if (off > TOLERANCE).mean() > BORDER_SHARE:
        raise ValueError(
            f"the background of {name} is not plain, so the object cannot be cut out; give a picture with an alpha "
            "channel, or use reference.background=rembg (pip install 'distill3d[rembg]')"
        )
    away = np.abs(rgb.astype(int) - colour).max(-1)
    noise = 2 + np.percentile(off[off <= TOLERANCE], 95)
    parts, count = ndimage.label(away <= TOLERANCE)
    outside = np.zeros(count + 1, bool)
    outside[np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))] = True
    own = ndimage.maximum(away, parts, np.arange(count + 1))
    empty = outside | (np.asarray(own) <= noise)
    empty[0] = False  # what differs
    mask = np.where(empty[parts], 0, 255).astype(np.uint8)
    mask[~worthy(mask > 0)] = 0
    if not mask.any():
        raise ValueError(
            f"nothing in {name} stands out from its background; give a picture with an alpha channel"
        )
    return mask


def worthy(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The parts of an object: no specks, letters of a watermark or frame lines beside it; shape ``[h, w]``."""
    from scipy import ndimage

    parts, count = ndimage.label(mask, np.ones((3, 3)))
    areas = np.bincount(parts.ravel(), minlength=count + 1)
    areas[0] = 0
    kept = areas >= SPECK * areas.max()
    for number, (rows, columns) in enumerate(ndimage.find_objects(parts), start=1):
        height, width = rows.stop - rows.start, columns.stop - columns.start
        around = min(height / mask.shape[0], width / mask.shape[1]) > AROUND
        if around and areas[number] < THIN * height * width and areas[number] < areas.max():
            kept[number] = False
    kept[0] = False
    found: NDArray[np.bool_] = kept[parts]
    return found


def frame_of(alpha: NDArray[np.uint8], name: str, fill: float | None) -> Frame:
    """The square about an object whose longer side is ``fill`` of it; None for the whole picture, made square.

    Raises:
        ValueError: there is no object, or it is smaller than eight pixels.
    """
    rows, columns = (np.flatnonzero((alpha > 127).any(axis)) for axis in (1, 0))
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
    left, top = round(frame.left), round(frame.top)
    side = max(round(frame.side), 1)
    part = image.crop((left, top, left + side, top + side))
    return part.resize((size, size), Image.Resampling.BOX if side > size else Image.Resampling.BICUBIC)


def read_map(path: str | Path, frame: Frame, size: int, of: tuple[int, int]) -> Tensor:
    """A map that belongs to a picture, such as its depth, cut as it was: in [0, 1], shape ``[3, size, size]``.

    Args:
        path: a picture of the same shape.
        frame: of the picture.
        size: height and width of the result, pixels.
        of: the picture's own width and height.

    Raises:
        ValueError: it is no picture, or of another shape.
    """
    image = read_rgba(Path(path)).convert("RGB")
    if image.size != of:
        raise ValueError(
            f"{path} must be as large as the image, {of[0]} x {of[1]}, got {image.size[0]} x {image.size[1]}"
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
            if (file := Path(folder).expanduser() / f"{name}.onnx").is_file():
                return name, file
    raise ValueError(
        f"reference.background=rembg cuts out with the network U2-Net, whose file is neither {home}/models/u2net/u2net.onnx nor "
        f"{earlier}/u2net.onnx, and nothing is downloaded unasked; put it there, or fetch it once with: python -c "
        "\"import rembg; rembg.new_session('u2net')\""
    )


def _by_rembg(image: Image.Image) -> Image.Image:
    try:
        import rembg
    except (ImportError, SystemExit) as error:  # it ends the process where it misses its runtime
        raise ValueError(
            "reference.background=rembg needs the package rembg; pip install 'distill3d[rembg]'"
        ) from error
    name, _ = rembg_model()
    found: Any = rembg.remove(image.convert("RGB"), session=rembg.new_session(name))
    return found.convert("RGBA")

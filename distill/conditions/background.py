"""Tell an object from a plain background: without the frame around a picture, specks, watermarks and a soft shadow."""

from __future__ import annotations

import contextlib
import logging

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)

#: How far from the background's colour is still background, of 255.
TOLERANCE = 16
#: Share of the border that may be something else than the background: the object may touch it.
BORDER_SHARE = 0.25
#: Widest frame around a picture, of its shorter side.
LINE = 0.03
#: A part smaller than this share of the largest is a speck.
SPECK = 0.03
#: A part that spans this share of the picture both ways, and fills less than that of its box, is a line around it.
AROUND, THIN = 0.8, 0.15
#: A shadow is the background's colour, darker: how far from that it may be, of 255, and how dark at most.
SAME_HUE, DARKEST = 6, 0.35
#: Largest change from a pixel to the next in a soft shadow, of 255, in a picture of 256 pixels; less in larger ones.
SOFT = 8.0


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
            continue  # no plain colour that continues inside
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
            f"the background of {name} is not plain, so the object cannot be cut out; give a picture with a transparent "
            "background, or use reference.background=rembg (pip install 'rembg[cpu]')"
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
    mask[shadow(rgb, mask > 0, colour, name)] = 0
    if not mask.any():
        raise ValueError(
            f"nothing in {name} stands out from its background; give a picture with a transparent one"
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


def shadow(
    rgb: NDArray[np.uint8], mask: NDArray[np.bool_], colour: NDArray[np.float64], name: str
) -> NDArray[np.bool_]:
    """The soft shadow that an object casts on its background, shape ``[h, w]``: darker background that begins without an edge.

    What is darker background by its colour may as well be a grey object. It is a shadow where it fades into the background,
    and less than half of all that stands out; else it is kept, and said.
    """
    from scipy import ndimage

    none = np.zeros_like(mask)
    values = rgb.astype(float)
    darker = (values @ colour) / max(float(colour @ colour), 1.0)
    like = np.abs(values - darker[..., None] * colour).max(-1) <= SAME_HUE
    step = SOFT * min(1.0, 256 / max(rgb.shape[:2]))
    grey = ndimage.gaussian_filter(values.mean(-1), 1)
    smooth = np.hypot(ndimage.sobel(grey, 0), ndimage.sobel(grey, 1)) / 8 <= max(step, 1.5)
    candidate = mask & like & (darker < 1) & (darker > DARKEST) & smooth
    parts, count = ndimage.label(candidate)
    if not count:
        return none
    fading = candidate & ndimage.binary_dilation(~mask) & (np.abs(values - colour).max(-1) < 2 * TOLERANCE)
    edge = mask & ndimage.binary_dilation(~mask)
    around = np.asarray(ndimage.sum(edge, parts, np.arange(count + 1)))
    soft = np.asarray(ndimage.sum(fading, parts, np.arange(count + 1)))
    areas = np.bincount(parts.ravel(), minlength=count + 1)
    found = (soft > 0.5 * np.maximum(around, 1)) & (areas > 0.005 * mask.sum())
    found[0] = False
    cast = found[parts]
    if not cast.any():
        doubtful = (mask & like & (darker < 0.95) & (darker > DARKEST)).sum() / max(mask.sum(), 1)
        if 0.05 < doubtful < 0.5:
            log.warning(
                "%.0f%% of what stands out in %s is its background, darker, with an edge: treated as the object, though it may be "
                "a shadow; a picture with an alpha channel leaves no doubt",
                100 * doubtful,
                name,
            )
        return none
    # Its dark core under the object and the seam along it are no longer smooth.
    cast = mask & ndimage.binary_dilation(cast, iterations=3, mask=mask & like & (darker < 1)) | cast
    if cast.sum() > 0.5 * mask.sum():
        log.warning(
            "most of what stands out in %s is its background, darker: treated as the object, not as a shadow; a picture with an "
            "alpha channel leaves no doubt",
            name,
        )
        return none
    log.warning("a shadow in %s is removed; an alpha channel avoids ambiguity", name)
    return cast & mask

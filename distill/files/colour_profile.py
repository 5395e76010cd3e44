"""Colour profiles of pictures: phones store wider colours than sRGB, and printers' pictures are CMYK."""

from __future__ import annotations

import io
import logging

from PIL import Image, ImageCms

log = logging.getLogger(__name__)

#: Modes that pictures are brought to before a profile is applied to them, without what is transparent.
_PLAIN = {"P": "RGB", "PA": "RGB", "RGBA": "RGB", "YCbCr": "RGB", "LA": "L", "1": "L"}
#: A colour that sRGB does not have becomes its nearest one; all others stay.
_INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC


def in_srgb(image: Image.Image, profile: bytes | None, name: str) -> Image.Image:
    """A picture of any mode as RGBA in sRGB (ICC.1:2022); without a profile, it is read as sRGB.

    Args:
        image: 8 bits a channel.
        profile: the ICC profile of its file, None where it has none.
        name: of its file, for a warning where the profile is broken or of another kind of picture, and is left out.
    """
    rgba = image.convert("RGBA")
    if not profile:
        return rgba
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        plain = image.convert(_PLAIN.get(image.mode, image.mode))
        if plain.mode == "L" and source.profile.xcolor_space.strip() == "RGB":
            plain = plain.convert("RGB")
        found = ImageCms.profileToProfile(plain, source, ImageCms.createProfile("sRGB"), _INTENT, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        log.warning("the colour profile of %s cannot be used (%s); its colours are read as sRGB", name, error)
        return rgba
    assert found is not None  # it is only where a picture is changed in its place
    found.putalpha(rgba.getchannel("A"))
    return found

"""Pictures of a finished scene: a turntable video and a contact sheet."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from distill.cameras import Cameras, turntable
from distill.contracts import View
from distill.export.choices import ELEVATION_DEG, FRAMES, PICTURE_SIZE
from distill.files.atomic import replacing
from distill.files.paths import user_path

Picture = NDArray[np.uint8]


def to_uint8(image: Tensor) -> Picture:
    """Round a picture in [0, 1] to bytes, any shape; values outside are clipped, NaN becomes 0."""
    clean = torch.nan_to_num(image.detach().float(), nan=0.0).clamp(0, 1)
    return (clean * 255).round().to(torch.uint8).cpu().numpy()


def write_pictures(folder: Path, view: View, options: Mapping[str, Any]) -> dict[str, float]:
    """Write contact.png and turntable.mp4 into a folder; returns the seconds that each took.

    Args:
        folder: exists; files of these names are replaced.
        view: renders the scene.
        options: ``frames`` of the turntable, ``picture_size`` in pixels, a multiple of 16, and ``elevation_deg``.
    """
    seconds: dict[str, float] = {}
    size, elevation_deg = options["picture_size"], options["elevation_deg"]
    with timed(seconds, "contact"):
        write_contact_sheet(view, folder / "contact.png", size=size, elevation_deg=elevation_deg)
    with timed(seconds, "turntable"):
        write_turntable(
            view, folder / "turntable.mp4", frames=options["frames"], size=size, elevation_deg=elevation_deg
        )
    return seconds


@contextmanager
def timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    """Record under ``part`` how many seconds the context took."""
    start = time.perf_counter()
    yield
    seconds[part] = round(time.perf_counter() - start, 3)


def write_turntable(
    view: View,
    path: Path | str,
    *,
    frames: int = FRAMES,
    size: int = PICTURE_SIZE,
    fps: int = 30,
    elevation_deg: float = ELEVATION_DEG,
) -> None:
    """Write one turn around the scene as an H.264 video that browsers play and that loops smoothly.

    Args:
        view: takes the pictures.
        path: an .mp4 file; its folder exists.
        frames: pictures per turn.
        size: of the square pictures in pixels, a multiple of 16.
        fps: frames per second.
        elevation_deg: of the camera above the horizon.

    Raises:
        ValueError: ``frames``, ``size`` or ``fps`` is out of range.
    """
    if size < 16 or size % 16 or frames < 1 or fps < 1:
        raise ValueError(
            "Expected size a multiple of 16 and at least 1 frame and frame per second, got "
            f"size={size}, frames={frames}, fps={fps}; the defaults are {PICTURE_SIZE}, {FRAMES} and 30."
        )
    import imageio_ffmpeg  # a large package that only a video needs

    with replacing(user_path(path)) as part:
        video = imageio_ffmpeg.write_frames(
            str(part),
            (size, size),
            fps=fps,
            codec="libx264",
            quality=8,
            pix_fmt_out="yuv420p",
            macro_block_size=16,
            ffmpeg_log_level="error",
            output_params=["-movflags", "+faststart"],
        )
        with closing(video):
            video.send(None)
            for picture in _pictures(view, turntable(frames, elevation_deg), size):
                video.send(picture)


def write_contact_sheet(
    view: View, path: Path | str, *, size: int, elevation_deg: float = ELEVATION_DEG, gap: int = 4
) -> None:
    """Write eight pictures around the scene, starting at the front, as a sheet of two rows of four."""
    sheet = np.full((2 * size + gap, 4 * size + 3 * gap, 3), 255, np.uint8)
    for index, picture in enumerate(_pictures(view, turntable(8, elevation_deg), size)):
        row, column = divmod(index, 4)
        top, left = row * (size + gap), column * (size + gap)
        sheet[top : top + size, left : left + size] = picture
    with replacing(user_path(path)) as part:
        Image.fromarray(sheet).save(part)


def _pictures(view: View, cameras: Cameras, size: int) -> Iterator[Picture]:
    """Take pictures one at a time: a renderer's memory grows with the batch."""
    for index in range(len(cameras)):
        one = cameras.part(index, index + 1)
        with torch.no_grad():
            yield np.ascontiguousarray(to_uint8(view(one, size, size).rgb[0]))

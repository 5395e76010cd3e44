"""The input picture of a run: read, placed before its camera, looked at by the novel-view model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

from distill.cameras import orbit
from distill.conditions.cutout import (
    Frame,
    describe_rembg,
    frame_of,
    of_fewer_pixels,
    over_white,
    read_map,
    without_background,
)
from distill.conditions.framing import settled
from distill.conditions.recognition import AzimuthEstimate, better_wording
from distill.conditions.start import LEVEL_DEG, STEEP_DEG, drawn_views, ring
from distill.contracts import View
from distill.embedded.prompt import named_by
from distill.export.pictures import to_uint8
from distill.files.atomic import replacing, sha256
from distill.files.paths import user_path
from distill.priors.graphs import check_graphs
from distill.priors.novel_view.elevation import Estimate, draw_around, estimate_elevation
from distill.priors.novel_view.pipeline import NovelViewPipeline, read_conditioning
from distill.priors.novel_view.prior import NovelViewPrior
from distill.priors.source import Source, find_novel_view
from distill.priors.whole import check_weights
from distill.renderers.reference import Drawn, Reference

log = logging.getLogger(__name__)

EMBEDDED = Path(__file__).parents[1] / "embedded" / "novel_view"
#: Views that are drawn around a picture's object, to find its elevation and to begin with.
VIEWS = 8
#: How much finer than the model's pictures the one is that renders are compared with: it is moved by parts of a pixel.
FINER = 4
#: What is nearly white has all of red, green and blue above this, and much of an object is this share of its pixels.
NEARLY_WHITE, MUCH = 0.8, 0.2


@dataclass(frozen=True)
class Picture:
    """An input picture.

    Attributes:
        path: of its file.
        reference: what it shows and its camera.
        prior: the novel-view model that looked at it.
        frame: the part of the file that it is, pixels.
        estimate: of its elevation, where none was given.
        facing: of its azimuth, where it was estimated.
        wordings: of the prompt, with their denoising errors, the prompt as it is first; empty where no colour was looked for.
        drawn: views that the model drew of it, where the scene begins with them.
        backdrop: what the scene is trained over in place of its own background; empty for that.
        cut_by: the network that cut the object out, with its licence and its file's SHA-256, where one did.
    """

    path: Path
    reference: Reference
    prior: NovelViewPrior
    frame: Frame
    estimate: Estimate | None = None
    facing: AzimuthEstimate | None = None
    wordings: dict[str, float] = field(default_factory=dict)
    drawn: Drawn | None = None
    backdrop: str = ""
    cut_by: dict[str, str] | None = None

    @property
    def wording(self) -> str:
        """The wording of the prompt that the prior is asked for, empty where no colour was looked for."""
        return better_wording(self.wordings) if self.wordings else ""

    def seen_from(self, facing: AzimuthEstimate) -> Picture:
        """The same picture, taken from an azimuth that was estimated."""
        before = self.reference.camera
        azimuth = torch.full_like(before.azimuth_deg, facing.azimuth_deg)
        camera = orbit(azimuth, before.elevation_deg, before.distance, before.fov_y_deg)
        reference, prior = replace(self.reference, camera=camera), replace(self.prior, reference=camera)
        return replace(self, reference=reference, prior=prior, facing=facing)

    def describe(self) -> dict[str, Any]:
        """Describe the picture for a manifest."""
        camera = self.reference.camera
        said: dict[str, Any] = {
            "file": self.path.name,
            "sha256": sha256(self.path),
            "novel_view": self.prior.name,
            "encoder": self.prior.pipeline.encoder.id,
            "frame": [round(value, 2) for value in (self.frame.left, self.frame.top, self.frame.side)],
            "elevation_deg": round(camera.elevation_deg.item(), 2),
            "elevation": "estimated" if self.estimate else "given",
            "azimuth_deg": round(camera.azimuth_deg.item(), 2),
            "azimuth": "estimated" if self.facing else "given",
            **({"cut_out_by": self.cut_by} if self.cut_by else {}),
            **({"backdrop": self.backdrop} if self.backdrop else {}),
        }
        if self.estimate:
            said["elevation_fits"] = {
                f"{angle:g}": round(fit, 4) for angle, fit in self.estimate.fits.items()
            }
        if self.wordings:
            said["prompt"] = self.wording
            said["prompt_errors"] = {text: round(error, 4) for text, error in self.wordings.items()}
        if self.facing:
            said["azimuth_errors"] = {
                f"{angle:g}": round(error, 4) for angle, error in self.facing.errors.items()
            }
        return said


def model_of(name: str) -> Source:
    """The novel-view model of a name, ``embedded``, a folder or one on the hub, whose files are whole.

    Raises:
        ValueError: there is none, or a file is missing, cut short or a pointer of Git LFS.
    """
    source = find_novel_view(name, EMBEDDED)
    for part in ("unet", "vae"):
        if (source.folder / part).is_dir():
            check_weights(source.folder, part)
    read_conditioning(source.folder)
    return source


@lru_cache(maxsize=1)
def _cut_out(path: Path, written: int, background: str) -> Image.Image:
    return without_background(path, background)


def _object_of(config: DictConfig) -> Image.Image:
    """A configuration's picture without its background, which is removed once for all who ask for it.

    Raises:
        ValueError: it cannot be used, in one line.
    """
    path = user_path(config.image)
    return _cut_out(path, path.stat().st_mtime_ns if path.exists() else 0, config.reference.background)


def framed(config: DictConfig) -> tuple[Image.Image, Frame]:
    """A configuration's picture without its background, and the frame about its object, of the picture's own pixels.

    Raises:
        ValueError: it cannot be used, in one line.
    """
    said, path = config.reference, user_path(config.image)
    image = _object_of(config)
    return image, frame_of(np.asarray(image.getchannel("A")), str(path), said.fill if said.recentre else None)


def is_nearly_white(config: DictConfig) -> bool:
    """Tell whether so much of a configuration's object is nearly white that over white, it might be left empty.

    Raises:
        ValueError: the picture cannot be used, in one line.
    """
    rgba = np.asarray(_object_of(config))
    inside = rgba[rgba[..., 3] > 0.9 * 255, :3]
    return bool((inside.min(axis=1) > NEARLY_WHITE * 255).mean() >= MUCH) if len(inside) else False


def maps_of(
    config: DictConfig, frame: Frame, of: tuple[int, int], size: int
) -> tuple[Tensor | None, Tensor | None]:
    """Depth, ``[1, size, size]``, and normals, ``[3, size, size]``, of a configuration's picture; None where none is given.

    Raises:
        ValueError: one is no picture, or of another shape than the picture.
    """
    said = config.reference
    depth, normal = (
        read_map(said[name], frame, size, of, f"reference.{name}") if said[name] else None
        for name in ("depth", "normal")
    )
    depth = None if depth is None else depth[:1]
    return depth, None if normal is None else torch.nn.functional.normalize(normal * 2 - 1, dim=0)


def is_asked(config: DictConfig | Mapping[str, Any]) -> bool:
    """Tell whether a run asks the novel-view model: always without a prompt, and with one in a mixture with a term of its own.

    Otherwise it has no say in where the object's axis is, for it may know nothing of such objects.
    """
    terms = config["guidance"].get("terms") or []
    return not config["prompt"].strip() or any(term.get("prior") == "novel_view" for term in terms)


def look_at(config: DictConfig, device: torch.device) -> Picture:
    """Read a configuration's picture, estimate its elevation where none is given, and show it to the model.

    Raises:
        ValueError: the picture, a map of it, or the model cannot be used, in one line.
    """
    from distill.priors.dtypes import default_dtype

    said, path = config.reference, user_path(config.image)
    source = find_novel_view(config.novel_view, EMBEDDED)
    check_graphs(config.prior_options.graphs, device)
    # What is wrong with the picture is said before the model is loaded.
    image, frame = framed(config)
    maps_of(config, frame, image.size, size=8)
    if source.folder == EMBEDDED and not config.prompt.strip():
        name = named_by(path)
        helps = (
            f"as in: distill {name!r} image={config.image}" if name else "if 'distill priors things' lists it"
        )
        log.info(
            "the bundled novel-view model knows sixteen kinds of simple object; of others, a prompt with the object's name helps, %s",
            helps,
        )
    fourth = None if said.fourth == "auto" else said.fourth
    pipeline = NovelViewPipeline.load(
        source.folder, fourth=fourth, device=device, dtype=default_dtype(device)
    )
    size = pipeline.size
    if said.recentre and is_asked(config):
        small, near, scale = of_fewer_pixels(image, frame)
        frame = settled(pipeline, small, near, said.fill).times(1 / scale)
    found, fine = over_white(image, frame, size), over_white(image, frame, FINER * size)
    depth, normal = maps_of(config, frame, image.size, FINER * size)
    elevation, estimate, around = said.elevation_deg, None, None
    g = torch.Generator().manual_seed(config.seed)
    if elevation is None:
        log.info("estimating the picture's elevation (reference.elevation_deg=DEGREES gives it)")
        around = draw_around(pipeline, found.rgb, generator=g, views=VIEWS)
        estimate = estimate_elevation(around, distance=said.distance, fov_y_deg=said.fov_y_deg)
        elevation = estimate.elevation_deg
        log.info("the picture's elevation is about %.0f degrees", elevation)
    drawn = None
    if said.start == "samples":
        drawn = begin_with(config, pipeline, found.rgb, around, float(elevation), g)
    camera = orbit(
        torch.tensor([float(said.azimuth_deg or 0)]),
        torch.tensor([float(elevation)]),
        said.distance,
        said.fov_y_deg,
    ).to(device)
    depth, normal = (None if given is None else given.to(device) for given in (depth, normal))
    reference = Reference(camera, fine.rgb.to(device), fine.mask.to(device), depth, normal)
    graphs = config.prior_options.graphs
    prior = NovelViewPrior.of(
        pipeline, found.rgb.to(device), camera, config.novel_view, graphs=graphs, source=source
    )
    cut_by = describe_rembg() if said.background == "rembg" else None
    return Picture(path, reference, prior, frame, estimate, drawn=drawn, cut_by=cut_by)


def begin_with(
    config: DictConfig,
    pipeline: NovelViewPipeline,
    rgb: Tensor,
    around: Tensor | None,
    elevation_deg: float,
    generator: torch.Generator,
) -> Drawn:
    """The views that a scene begins with: those that its elevation was found with, else drawn now.

    Around a picture from far up or down, which hardly shows the sides, they are drawn at ``LEVEL_DEG``.
    """
    said, height = config.reference, elevation_deg
    if abs(height) > STEEP_DEG:
        height, around = LEVEL_DEG, None
    if around is None:
        log.info("drawing %d views to begin with (reference.start=none begins with nothing)", VIEWS)
        rise = height - elevation_deg
        around = draw_around(
            pipeline, rgb, generator=generator, views=VIEWS, rise_deg=rise, from_deg=elevation_deg
        )
    cameras = ring(said.azimuth_deg, height, VIEWS, said.distance, said.fov_y_deg)
    return drawn_views(around.to(pipeline.device), cameras)


def write_beside(picture: Picture, view: View, path: Path, size: int) -> None:
    """Write the picture as it was used and the render from its camera side by side."""
    reference = picture.reference.resized(size)
    with torch.no_grad():
        drawn = view(picture.reference.camera, size, size).rgb[0]
    both = [to_uint8(reference.rgb.movedim(0, -1)), to_uint8(drawn)]
    with replacing(path) as part:
        Image.fromarray(np.concatenate(both, axis=1)).save(part)

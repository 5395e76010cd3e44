"""ImageDream's input picture: read, cut out, encoded once, and added to the embeddings of a run's prompts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from distill.cameras import Cameras
from distill.conditions.cutout import Frame, describe_rembg, over_white
from distill.conditions.picture import framed
from distill.contracts import Condition, Conditioner, Embedding, Render, Step
from distill.files.atomic import sha256
from distill.files.paths import user_path
from distill.priors.diffusion import DiffusionPrior
from distill.priors.multi_view.image_prompt import LATENT, TOKENS

#: Roles whose predictions guidance leads away from: they are without the picture.
WITHOUT = ("uncond", "negative")


@dataclass(frozen=True)
class ImagePrompted:
    """An input picture of a prior.

    Attributes:
        path: of its file.
        given: what embeddings have of it, one row.
        none: what they have of no picture, one row.
        frame: the part of the file that it is, pixels.
        pixel: whether the prior takes it as a view.
        cut_by: the network that cut the object out, with its licence and its file's SHA-256, where one did.
    """

    path: Path
    given: Embedding
    none: Embedding
    frame: Frame
    pixel: bool
    cut_by: dict[str, str] | None = None

    def describe(self) -> dict[str, Any]:
        """Describe the picture for a manifest."""
        return {
            "file": self.path.name,
            "sha256": sha256(self.path),
            "ip_mode": "pixel" if self.pixel else "local",
            "frame": [round(value, 2) for value in (self.frame.left, self.frame.top, self.frame.side)],
            **({"cut_out_by": self.cut_by} if self.cut_by else {}),
        }


def show(config: DictConfig, prior: DiffusionPrior) -> ImagePrompted:
    """Read a configuration's picture, its object over white, and encode it.

    Raises:
        ValueError: the picture or the image encoder cannot be used, in one line.
    """
    assert prior.picture is not None
    image, frame = framed(config)
    found = over_white(image, frame, prior.image_size)
    given, none = prior.look(found.rgb[None])
    cut_by = describe_rembg() if config.reference.background == "rembg" else None
    return ImagePrompted(user_path(config.image), given, none, frame, prior.picture.pixel, cut_by)


def with_image(cond: Condition, given: Embedding, none: Embedding) -> Condition:
    """Add a picture to every embedding of a condition, except the reference embeddings of guidance.

    Args:
        cond: of any number of rows.
        given: the picture's tokens, and its latent where the prior takes it as a view; one row, or as many.
        none: the same of no picture.
    """

    def add(role: str, embedding: Embedding) -> Embedding:
        rows = len(next(iter(embedding.values())))
        own = none if role in WITHOUT else given
        return {**embedding, **{name: value.expand(rows, *value.shape[1:]) for name, value in own.items()}}

    return replace(cond, prompts={role: add(role, each) for role, each in cond.prompts.items()})


def image_of(cond: Condition) -> tuple[Embedding, Embedding] | None:
    """Return what ``with_image`` added to a condition; None where there is no picture."""
    if TOKENS not in cond.text:
        return None

    def own(embedding: Embedding) -> Embedding:
        return {name: embedding[name] for name in (TOKENS, LATENT) if name in embedding}

    return own(cond.text), own(cond.uncond)


def prompted(condition: Conditioner, picture: ImagePrompted) -> Conditioner:
    """Add a picture to a condition."""

    def conditioned(cameras: Cameras, step: Step, render: Render | None = None) -> Condition:
        return with_image(condition(cameras, step, render), picture.given, picture.none)

    return conditioned

"""The novel-view model that ships: small, safe, and it makes use of the pose on objects it has never seen."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distill.cameras import Cameras, orbit
from distill.conditions.picture import EMBEDDED
from distill.embedded import world
from distill.lab.novel_view.render import from_world, picture
from distill.priors.novel_view.pipeline import NovelViewPipeline
from distill.priors.novel_view.pose import relative_cameras

pytestmark = pytest.mark.weights
KINDS = ("chair", "car", "robot", "teapot", "house", "duck", "mug", "rocket")
HEIGHTS = (20.0, -5.0, 50.0, 10.0, 35.0)
TURNS = (60.0, 120.0, 180.0, 240.0)


def photographs(kind: str) -> tuple[Tensor, Cameras]:
    """A held-out object over white from the front right and from four other sides and heights, ``[5, 3, 64, 64]``."""
    colour = next(name for name in world.COLOURS if world.held_out(name, kind))
    surface = from_world(f"{colour}-{kind}-0200", 2)
    azimuth = torch.tensor([30.0, *(30.0 + turn for turn in TURNS)])
    cameras = orbit(azimuth, torch.tensor(HEIGHTS), 3.2, 40.0)
    ones = [Cameras(*(value[i : i + 1] for value in vars(cameras).values())) for i in range(5)]
    rgba = torch.stack([torch.from_numpy(picture(surface, one, 64, 2)) for one in ones]).movedim(-1, 1) / 255
    return rgba[:, :3] * rgba[:, 3:] + 1 - rgba[:, 3:], cameras


def test_it_is_small_and_holds_nothing_but_tensors_and_text() -> None:
    files = [path for path in EMBEDDED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 16 * 2**20
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md", ".jpg"}


def denoising_error(shift: int = 0, turn: float = 0.0) -> float:
    """Mean squared error of the noise-free picture that it sees at high noise, told another pose.

    Args:
        shift: the pose is that of the picture so many places further.
        turn: of the camera that it is told, degrees.
    """
    pipeline, errors = NovelViewPipeline.load(EMBEDDED), []
    for number, kind in enumerate(KINDS):
        truth, cameras = photographs(kind)
        given = Cameras(*(v[:1] for v in vars(cameras).values()))
        told = orbit(cameras.azimuth_deg[1:] + turn, cameras.elevation_deg[1:], 3.2, 40.0)
        pose = relative_cameras(given, told).roll(shift, 0)
        x, t = pipeline.space.encode(truth[1:]), torch.tensor([960, 970, 980, 990])
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(number))
        abar = pipeline.scheduler.alphas_cumprod[t][:, None, None, None]
        x_t = abar.sqrt() * x + (1 - abar).sqrt() * noise
        found = pipeline.predict_noise(x_t, t, pipeline.look(truth[0]), pose)
        # In units of velocity, as it was trained: the error of the noise over the signal's scale.
        errors.append(((found - noise) / abar.sqrt()).square().mean())
    return torch.stack(errors).mean().item()


def test_the_pose_helps_it_on_what_it_has_never_seen() -> None:
    """Told the true turn and height, it sees through the noise better than told any of the three others."""
    right, *wrong = (denoising_error(shift) for shift in range(4))
    assert right < 0.9 * min(wrong)


def test_the_turn_alone_helps_it_on_what_it_has_never_seen() -> None:
    """Told the true height and a wrong turn, it sees worse."""
    right, *wrong = (denoising_error(turn=turn) for turn in (0.0, 90.0, 180.0, 270.0))
    assert right < 0.95 * min(wrong)

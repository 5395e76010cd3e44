"""The novel-view model that ships: small, safe, and it turns objects it has never seen as asked."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distill.embedded import world
from distill.novelview.pipeline import NovelViewPipeline
from distill.novelview.pose import relative_cameras
from distill.novelview.render import from_world, picture
from distill.novelview.seen import EMBEDDED
from distill.samplers.cameras import Cameras, orbit

pytestmark = pytest.mark.weights
KINDS = ("chair", "car", "robot", "teapot", "house", "table")
TURNS = (60.0, 120.0, 180.0, 240.0)


def photographs(kind: str) -> tuple[Tensor, Cameras]:
    """A held-out object over white from the front right and from four other sides, ``[5, 3, 64, 64]``."""
    colour = next(name for name in world.COLOURS if world.held_out(name, kind))
    surface = from_world(f"{colour}-{kind}-0200", 2)
    azimuth = torch.tensor([30.0, *(30.0 + turn for turn in TURNS)])
    cameras = orbit(azimuth, torch.full((5,), 20.0), 3.2, 40.0)
    ones = [Cameras(*(value[i : i + 1] for value in vars(cameras).values())) for i in range(5)]
    rgba = torch.stack([torch.from_numpy(picture(surface, one, 64, 2)) for one in ones]).movedim(-1, 1) / 255
    return rgba[:, :3] * rgba[:, 3:] + 1 - rgba[:, 3:], cameras


def test_it_is_small_and_holds_nothing_but_tensors_and_text() -> None:
    files = [path for path in EMBEDDED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 16e6
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md", ".jpg"}


def test_it_turns_what_it_has_never_seen_as_asked() -> None:
    """Its views are nearer to the true ones than to those of another turn, and nearer than the input is."""
    pipeline = NovelViewPipeline.load(EMBEDDED)
    own, other, copied = [], [], []
    for kind in KINDS:
        truth, cameras = photographs(kind)
        given, asked = (
            Cameras(*(v[part] for v in vars(cameras).values())) for part in (slice(0, 1), slice(1, 5))
        )
        pose = relative_cameras(given, asked)
        noise = [torch.Generator().manual_seed(number) for number in range(4)]
        drawn = pipeline(truth[0], pose, generator=noise, steps=20, scale=2.0)
        own.append((drawn - truth[1:]).square().mean())
        other.append((drawn - truth[1:].roll(1, 0)).square().mean())
        copied.append((truth[:1] - truth[1:]).square().mean())
    mean_own, mean_other, mean_copied = (torch.stack(values).mean().item() for values in (own, other, copied))
    assert mean_own < 0.8 * mean_other
    assert mean_own < 0.8 * mean_copied

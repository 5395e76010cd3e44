"""Views of one object, which a multi-view prior takes together, have one random background and stand in one light."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from scenes import SCENES, small_library, surface
from torch import Tensor
from usual import optimiser_of

from distill.cameras import turntable
from distill.contracts import Step
from distill.forecast.network import Counting
from distill.renderers.hyper_conv import hyper_conv
from distill.renderers.hyper_grid import hyper_grid
from distill.renderers.nerf import HashGridScene
from distill.run.assembly.assemble import assemble
from distill.run.config.compose import compose_config


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def with_random_background(name: str) -> Any:
    """A scene with something random behind it."""
    small: Any = {
        "levels": 2,
        "log2_table_size": 8,
        "hidden_width": 8,
        "march_steps": 24,
        "occupancy_resolution": 8,
    }
    made: dict[str, Callable[[], Any]] = {
        "grey": lambda: HashGridScene(**small, background="grey"),
        "share": lambda: HashGridScene(**small, background="white", random_background=1.0),
        "learned share": lambda: HashGridScene(**small, background="learned", random_background=1.0),
        "hyper_grid": lambda: hyper_grid(**small, background="random", embeddings=small_library()),
        "hyper_conv": lambda: hyper_conv(finest_resolution=8, features=2, channels=(4,), background="random",
                                         embeddings=small_library()),
    }  # fmt: skip
    return made[name]() if name in made else SCENES[name]()


@pytest.mark.parametrize("name", ["grey", "share", "learned share", "hyper_grid", "hyper_conv", "hash_grid", "surface", "sdf",
                                  "spheres", "particles of hash_grid"])  # fmt: skip
def test_views_of_an_object_have_one_random_background(name: str) -> None:
    scene = with_random_background(name)
    scene.update(Step(), optimiser_of(scene), generator())
    assert "together" in scene.features
    # So wide that the pictures' corners see nothing of the scene.
    cameras = turntable(8, fov_y_deg=90)

    def corners(count: int, **told: Any) -> Tensor:
        seen = scene.render(cameras[:count], 8, 8, generator=generator(3), **told)
        assert (seen.opacity[:, 0, 0] == 0).all()
        return seen.rgb.detach()[:, 0, 0]

    # Two objects have the two colours that two pictures have, four times each.
    assert torch.equal(corners(8, together=4), corners(2).repeat_interleave(4, 0))
    assert len(corners(8, together=4).unique(dim=0)) == 2
    # By themselves they are drawn as ever: the first numbers are the colours.
    alone, g = corners(8), generator(3)
    assert len(alone.unique(dim=0)) == 8 and torch.equal(alone, corners(8, together=1))
    if name in ("grey", "spheres"):
        wanted = 0.5 + 0.5 * torch.rand(8, 1, generator=g).expand(8, 3)
    else:
        wanted = torch.rand(8, 4, generator=g)[:, 1:] if "share" in name else torch.rand(8, 3, generator=g)
    torch.testing.assert_close(alone, wanted)


def test_views_of_a_lit_material_stand_in_one_light() -> None:
    scene = surface(material="pbr", background="white")
    camera = turntable(1)[torch.zeros(8, dtype=torch.long)]
    seen = scene.render(camera, 8, 8, generator=generator(), together=4).rgb
    assert torch.equal(seen[:4], seen[:1].expand(4, -1, -1, -1)) and torch.equal(
        seen[4:], seen[4:5].expand(4, -1, -1, -1)
    )
    assert not torch.equal(seen[0], seen[4])
    apart = scene.render(camera, 8, 8, generator=generator()).rgb
    assert all(not torch.equal(one, apart[0]) for one in apart[1:])


@pytest.mark.parametrize("views", [1, 4])
def test_a_run_tells_its_scene_how_many_views_are_of_one_object(views: int) -> None:
    prior = Counting()
    prior.views = views
    words = ["prompt=a mug", "prior=mvdream", f"prior_options.views={views}", "cameras=groups", "render.batch=8", "preset=none",
             "scene.background=random", "scene.levels=2", "scene.log2_table_size=8", "scene.march_steps=16"]  # fmt: skip
    job = assemble(compose_config([*words, f"cameras.views={views}"]), prior)
    for render in (job.render, job.frugal):
        assert render is not None
        corner = render(turntable(8, fov_y_deg=90), 8, 8, generator=generator(3)).rgb[:, 0, 0]
        drawn = torch.rand(8 // views, 3, generator=generator(3))
        torch.testing.assert_close(corner.detach(), drawn.repeat_interleave(views, 0))

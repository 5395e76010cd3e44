"""Volume rendering: closed forms, an independent compositor, and properties of scenes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import nerfacc
import plain_torch
import pytest
import torch
from torch import Tensor, nn
from usual import optimiser_of

from distill.cameras import Cameras, orbit
from distill.contracts import Render, Step
from distill.renderers import HashGridScene, _warp, render
from distill.renderers.march import Samples, composite, march
from distill.renderers.occupancy import occupancy_grid, update_occupancy
from distill.renderers.patch import patched
from distill.renderers.volume import convexity, finite_difference_normals, opacity_penalties, towards_light

CPU = torch.device("cpu")


class Analytic(nn.Module):
    """A scene given by formulas; what ``render`` asks of a scene and nothing else."""

    def __init__(self, density: Callable[[Tensor], Tensor], steps: int = 64, albedo: float = 0.25) -> None:
        super().__init__()
        self.parameter = nn.Parameter(torch.zeros(1))
        self.density = density
        self.albedo = albedo
        self.step_size = 2 * math.sqrt(3) / steps
        self.occupancy = occupancy_grid(32)

    def query(self, points: Tensor) -> tuple[Tensor, Tensor]:
        return self.density(points), torch.full_like(points, self.albedo)

    def backdrop(
        self, directions: Tensor, generator: torch.Generator | None = None, together: int = 1
    ) -> Tensor:
        return torch.ones_like(directions)


def _ball(
    sigma: float, radius: float, centre: tuple[float, float, float] = (0, 0, 0)
) -> Callable[[Tensor], Tensor]:
    return lambda x: sigma * ((x - torch.tensor(centre)).norm(dim=1) < radius).float()


def _front(azimuth: float = 0.0, elevation: float = 0.0, distance: float = 3.2, fov: float = 40.0) -> Cameras:
    return orbit(torch.tensor([azimuth]), torch.tensor([elevation]), distance, fov)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _scene(**options: Any) -> HashGridScene:
    return HashGridScene(**{"levels": 4, "finest_resolution": 32, "log2_table_size": 12, **options})


def _packed(counts: list[int], step: float) -> Samples:
    ray = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    distance = torch.arange(len(ray)) * step
    return Samples(ray, distance, torch.zeros(len(ray), 3), torch.tensor(counts, dtype=torch.int32), step)


# Compositing


def test_composite_has_the_numbers_worked_out_by_hand() -> None:
    # Half of the light is stopped at each sample: density * step = ln 2.
    samples = _packed([2, 0, 1], step=0.5)
    density = torch.full((3,), math.log(2) / 0.5)
    sums, opacity, weights = composite(density, torch.tensor([[8.0], [4.0], [6.0]]), samples)
    torch.testing.assert_close(weights, torch.tensor([0.5, 0.25, 0.5]))
    torch.testing.assert_close(opacity, torch.tensor([0.75, 0.0, 0.5]))
    torch.testing.assert_close(sums, torch.tensor([[5.0], [0.0], [3.0]]))


def test_composite_agrees_with_nerfacc_in_values_and_gradients() -> None:
    rays, n, step = 37, 11, 0.07
    g = _generator()
    density = (20 * torch.rand(rays, n, generator=g)).requires_grad_()
    values = torch.rand(rays, n, 5, generator=g).requires_grad_()
    starts = torch.arange(n).expand(rays, n) * step
    weights, _, _ = nerfacc.render_weight_from_density(starts, starts + step, density)
    dense = [nerfacc.accumulate_along_rays(weights, values), weights.sum(1), weights.flatten()]
    samples = _packed([n] * rays, step)
    packed = composite(density.flatten(), values.view(-1, 5), samples)
    for a, b in zip(packed, dense, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    upstream = [torch.randn(x.shape, generator=g) for x in packed]
    ours, theirs = (torch.autograd.grad(list(x), [density, values], upstream) for x in (packed, dense))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_composite_of_nothing_is_nothing() -> None:
    density = torch.zeros(0, requires_grad=True)
    sums, opacity, _ = composite(density, torch.zeros(0, 4), _packed([0, 0], 0.1))
    assert sums.shape == (2, 4)
    assert not opacity.any()
    (sums.sum() + opacity.sum()).backward()


# Marching


def test_samples_lie_on_their_rays_inside_the_cube_one_step_apart() -> None:
    origins, directions = (x.view(-1, 3) for x in _front(30, 20).rays(12, 12))
    jitter = torch.rand(144, generator=_generator())
    samples = march(origins, directions, jitter, occupancy_grid(8), 0.1)
    on_ray = origins[samples.ray] + samples.distance[:, None] * directions[samples.ray]
    torch.testing.assert_close(samples.points, on_ray, atol=1e-5, rtol=0)
    assert samples.points.abs().max() <= 1 + 1e-5
    assert torch.equal(torch.bincount(samples.ray, minlength=144), samples.counts.long())
    same_ray = samples.ray[1:] == samples.ray[:-1]
    torch.testing.assert_close(samples.distance.diff()[same_ray], torch.full((int(same_ray.sum()),), 0.1))


def test_a_ray_along_an_axis_has_the_samples_counted_by_hand() -> None:
    # From x = 3 towards -x it enters at t = 2 and leaves at 4: eight steps of a quarter.
    samples = march(
        torch.tensor([[3.0, 0, 0]]),
        torch.tensor([[-1.0, 0, 0]]),
        torch.tensor([0.5]),
        occupancy_grid(4),
        0.25,
    )
    torch.testing.assert_close(samples.distance, 2.125 + 0.25 * torch.arange(8))


def test_a_camera_inside_the_cube_sees_only_ahead() -> None:
    samples = march(
        torch.zeros(1, 3), torch.tensor([[0.0, 0, 1]]), torch.tensor([0.5]), occupancy_grid(4), 0.25
    )
    torch.testing.assert_close(samples.points[:, 2], 0.125 + 0.25 * torch.arange(4))


def test_only_occupied_cells_are_sampled_and_none_of_theirs_is_missed() -> None:
    grid = occupancy_grid(8)
    everywhere = occupancy_grid(8)
    grid.binaries[0] = torch.rand(8, 8, 8, generator=_generator()) < 0.1
    origins, directions = (x.view(-1, 3) for x in _front(70, -10).rays(16, 16))
    jitter = torch.rand(256, generator=_generator(1))
    some, all_ = (march(origins, directions, jitter, g, 0.06) for g in (grid, everywhere))
    cell = ((all_.points + 1) * 4).long().clamp(0, 7)
    kept = grid.binaries[0][tuple(cell.T)]
    assert 0 < len(some.ray) < len(all_.ray)
    assert torch.equal(some.points, all_.points[kept])
    assert torch.equal(some.ray, all_.ray[kept])


def test_rays_that_miss_the_cube_have_no_samples() -> None:
    samples = march(
        torch.tensor([[3.0, 3, 3]]), torch.tensor([[1.0, 0, 0]]), torch.tensor([0.5]), occupancy_grid(4), 0.1
    )
    assert len(samples.ray) == 0
    assert samples.counts.tolist() == [0]


@pytest.mark.skipif(not plain_torch.kernels_on_the_cpu(), reason="Warp cannot compile for the CPU here")
@pytest.mark.parametrize("occupied", [1.0, 0.3])
def test_marching_and_pictures_are_those_of_plain_torch(
    occupied: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = occupancy_grid(16)
    grid.binaries[0] = torch.rand(16, 16, 16, generator=_generator()) < occupied
    origins, directions = (x.view(-1, 3) for x in _front(70, -10).rays(24, 24))
    jitter = torch.rand(24 * 24, generator=_generator(1))
    found, expected = (each(origins, directions, jitter, grid, 0.054) for each in (march, plain_torch.march))
    # A sample at a cell's edge may be on either side of it.
    same = found.counts == expected.counts
    assert same.float().mean() > 0.99
    for name in ("distance", "points"):
        one, other = (getattr(each, name)[same[each.ray]] for each in (found, expected))
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)

    def run() -> list[Tensor]:
        scene = _scene(blob_scale=20.0)
        scene.occupancy.binaries[0] = scene.occupancy.binaries[0] & (
            torch.rand(32, 32, 32, generator=_generator()) < occupied
        )
        picture = render(scene, _front(), 24, 24, generator=_generator(2))
        weight = torch.linspace(-1, 1, picture.rgb.numel()).view_as(picture.rgb)
        (picture.rgb * weight).sum().backward()
        grads = [p.grad for p in scene.parameters() if p.grad is not None]
        return [picture.rgb.detach(), picture.opacity.detach(), *grads]

    kernels = run()
    monkeypatch.setattr(_warp, "load", lambda *_: pytest.fail("a kernel was loaded"))
    with plain_torch.without_kernels():
        plain = run()
    assert len(kernels) > 3
    for one, other in zip(kernels, plain, strict=True):
        assert (one - other).norm() < 2e-3 * other.norm()


# Pictures


def test_opacity_of_a_homogeneous_ball_is_the_closed_form() -> None:
    sigma, radius, size = 1.5, 0.7, 24
    picture = render(Analytic(_ball(sigma, radius), steps=2000), _front(), size, size)
    origins, directions = _front().rays(size, size)
    nearest = (origins - (origins * directions).sum(-1, keepdim=True) * directions).norm(dim=-1)
    chord = 2 * (radius**2 - nearest**2).clamp(min=0).sqrt()
    expected = 1 - torch.exp(-sigma * chord)
    torch.testing.assert_close(picture.opacity[..., 0], expected, atol=3e-3, rtol=0)
    # Colour 0.25 over white.
    torch.testing.assert_close(picture.rgb[..., 0], 1 - 0.75 * expected, atol=3e-3, rtol=0)


def test_depth_of_a_dense_ball_is_the_distance_to_its_surface() -> None:
    picture = render(Analytic(_ball(500.0, 0.5), steps=2000), _front(), 33, 33)
    assert picture.depth[0, 16, 16, 0] == pytest.approx(3.2 - 0.5, abs=5e-3)
    assert picture.depth[0, 0, 0, 0] == 0


def test_a_ball_on_the_objects_left_appears_on_the_right_from_the_front() -> None:
    scene = Analytic(_ball(200.0, 0.2, (0, 0.6, 0)))
    columns = render(scene, _front(0), 32, 32).opacity[0, :, :, 0].sum(0)
    assert columns[16:].sum() > 20
    assert columns[:16].sum() == 0
    assert render(scene, _front(180), 32, 32).opacity[0, :, 16:].sum() == 0


def test_a_ball_above_appears_in_the_upper_half() -> None:
    opacity = render(Analytic(_ball(200.0, 0.2, (0, 0, 0.6))), _front(45), 32, 32).opacity[0]
    assert opacity[:16].sum() > 20
    assert opacity[16:].sum() == 0


def test_normals_of_a_soft_ball_point_outwards() -> None:
    picture = render(
        Analytic(lambda x: 60 * torch.sigmoid(30 * (0.6 - x.norm(dim=1)))), _front(), 33, 33, normals=True
    )
    assert picture.normal is not None
    centre = picture.normal[0, 16, 16]
    torch.testing.assert_close(centre, torch.tensor([1.0, 0, 0]), atol=0.02, rtol=0)
    length = picture.normal.norm(dim=-1)
    hit = picture.opacity[..., 0] > 0.01
    torch.testing.assert_close(length[hit], torch.ones(int(hit.sum())), atol=1e-4, rtol=0)
    assert not length[picture.opacity[..., 0] == 0].any()


def test_finite_difference_normals_are_exact_for_a_linear_density() -> None:
    class Slope:
        @staticmethod
        def density(x: Tensor) -> Tensor:
            return x @ torch.tensor([1.0, -2.0, 2.0])

    slope: Any = Slope

    points = torch.rand(10, 3, generator=_generator())
    expected = torch.tensor([-1.0, 2.0, -2.0]) / 3
    torch.testing.assert_close(
        finite_difference_normals(slope, points), expected.expand(10, 3), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize(
    ("density", "expected"),
    [
        (lambda depth: torch.nn.functional.softplus(1000 * depth), 0.9),
        (lambda depth: torch.nn.functional.softplus(3000 * depth), 1.7),
        (lambda depth: (depth / 0.03).clamp(max=8).exp(), 5.1),
        (lambda depth: (depth / 0.01).clamp(max=8).exp(), 13.9),
    ],
)
def test_finite_difference_normals_of_a_steep_sphere_are_off_by_what_is_documented(
    density: Any, expected: float
) -> None:
    """The normals that are seen, against those of the sphere, along rays that hit it within 0.8 of its radius; degrees."""
    g, step = _generator(), 0.0025
    along = torch.nn.functional.normalize(torch.randn(300, 3, generator=g), dim=-1)
    aside = torch.nn.functional.normalize(along.cross(torch.randn(300, 3, generator=g), dim=-1), dim=-1)
    reach = 0.4 * torch.rand(300, 1, generator=g).sqrt()
    points = along[:, None] * torch.arange(-0.8, 0.2, step)[:, None] + (aside * reach)[:, None]

    class Sphere:
        @staticmethod
        def density(x: Tensor) -> Tensor:
            return density(0.5 - x.norm(dim=-1))

    sphere: Any = Sphere
    depth = Sphere.density(points) * step
    weights = torch.exp(depth - depth.cumsum(1)) * (1 - torch.exp(-depth))
    normals = finite_difference_normals(sphere, points.view(-1, 3)).view_as(points)
    seen, true = (
        torch.nn.functional.normalize((weights[..., None] * n).sum(1), dim=-1)
        for n in (normals, torch.nn.functional.normalize(points, dim=-1))
    )
    angle = torch.rad2deg(torch.acos((seen * true).sum(-1).clamp(-1, 1)))
    assert float(angle.mean()) == pytest.approx(expected, abs=0.15 + 0.03 * expected)


def test_light_at_the_camera_makes_the_middle_bright_and_the_rim_dark() -> None:
    scene = Analytic(lambda x: 300 * torch.sigmoid(60 * (0.6 - x.norm(dim=1))), steps=256, albedo=0.5)
    lit = render(scene, _front(), 65, 65, shading="lambertian").rgb[0, 32, :, 0]
    bare = render(scene, _front(), 65, 65, shading="textureless").rgb[0, 32, :, 0]
    assert lit[32] == pytest.approx(0.5, abs=0.02)
    assert bare[32] == pytest.approx(1.0, abs=0.02)
    rim = int((render(scene, _front(), 65, 65).opacity[0, 32, :, 0] > 0.99).nonzero()[0])
    assert lit[rim] < 0.3


def test_chunks_do_not_change_a_picture() -> None:
    scene = _scene(background="learned")
    whole, pieces = (render(scene, _front(20), 20, 20, normals=True, chunk_rays=n) for n in (10_000, 37))
    assert torch.equal(whole.rgb, pieces.rgb)
    assert torch.equal(whole.depth, pieces.depth)


@pytest.mark.parametrize(
    "options",
    [
        {"shading": "toon"},
        {"penalties": ("beauty",)},
        {"chunk_rays": 0},
    ],
)
def test_unknown_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expect"):
        render(_scene(), _front(), 4, 4, **options)


# Scenes


def test_gradients_reach_every_parameter_and_match_finite_differences() -> None:
    scene = _scene(background="learned", blob_scale=3.0)
    with torch.no_grad():
        scene.grid.mul_(1000)
    camera = _front(25, 15)

    def loss() -> Tensor:
        picture = render(scene, camera, 12, 12)
        return (picture.rgb * torch.linspace(0, 1, 12)[:, None]).sum() + picture.depth.mean()

    loss().backward()
    for name, parameter in scene.named_parameters():
        assert parameter.grad is not None, name
        at = int(parameter.grad.abs().argmax())
        slope = float(parameter.grad.flatten()[at])
        with torch.no_grad():
            flat = parameter.view(-1)
            flat[at] += 1e-2
            up = float(loss())
            flat[at] -= 2e-2
            down = float(loss())
            flat[at] += 1e-2
        assert (up - down) / 2e-2 == pytest.approx(slope, rel=0.03, abs=2e-3), name


def test_the_same_seed_makes_the_same_scene_and_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    a, b, c = _scene(seed=3), _scene(seed=_generator(3)), _scene(seed=4)
    a.update(Step(), optimiser_of(a), _generator())
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.grid, c.grid)
    assert a.grid.abs().max() <= 1e-4


@pytest.mark.parametrize("background", ["white", "grey", "random", "learned"])
def test_the_same_generator_makes_the_same_training_picture(background: str) -> None:
    scene = _scene(background=background)
    options: dict[str, Any] = {"shading": "lambertian", "penalties": ("orientation", "smoothness")}
    pictures = [render(scene, _front(), 16, 16, generator=_generator(s), **options) for s in (1, 1, 2)]
    assert torch.equal(pictures[0].rgb, pictures[1].rgb)
    assert torch.equal(pictures[0].penalties["smoothness"], pictures[1].penalties["smoothness"])
    assert not torch.equal(pictures[0].rgb, pictures[2].rgb)


def test_backgrounds_are_what_they_are_called() -> None:
    directions = torch.nn.functional.normalize(torch.randn(3, 4, 5, 3, generator=_generator()), dim=-1)
    grey = _scene(background="grey").backdrop(directions, _generator())
    colour = _scene(background="random").backdrop(directions, _generator())
    assert grey.shape == colour.shape == (3, 1, 1, 3)
    assert torch.equal(grey[..., 0], grey[..., 2])
    assert not torch.equal(colour[..., 0], colour[..., 2])
    assert (grey[0] != grey[1]).all()
    assert (_scene(background="grey").backdrop(directions) == 1).all()
    assert torch.equal(
        _scene(background=[0.1, 0.2, 0.3]).backdrop(directions)[2, 0, 0], torch.tensor([0.1, 0.2, 0.3])
    )
    learned = _scene(background="learned").backdrop(directions)
    assert learned.shape == directions.shape
    assert learned.std() > 0.01


@pytest.mark.parametrize(
    "options",
    [
        {"background": "blue"},
        {"background": (0.1, 0.2)},
        {"background": (0, 0, 300)},
        {"density_activation": "sine"},
        {"progressive_levels": (0, 0.5)},
        {"progressive_levels": (1, 0.5, 0.5)},
        {"progressive_levels": (1, 0.5, 0.1, 0.2)},
        {"backend": "numpy"},
        {"backend": "tinycudann"},
        {"occupancy_resolution": 1},
    ],
)
def test_a_scene_refuses_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expect"):
        _scene(**options)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("softplus", math.log1p(math.exp(2.0))), ("exp", math.exp(2.0)), ("relu", 2.0)],
)
def test_the_blob_alone_is_the_density_where_the_network_says_nothing(name: str, expected: float) -> None:
    scene = _scene(density_activation=name, blob_scale=4.0, blob_radius=0.5)
    with torch.no_grad():
        scene.grid.zero_()
    density, albedo = scene.query(torch.tensor([[0.0, 0.25, 0.0]]))  # 4 (1 - 0.25 / 0.5) = 2
    assert density.item() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(albedo, torch.full((1, 3), 0.5))
    torch.testing.assert_close(scene.density(torch.tensor([[0.0, 0.25, 0.0]])), density)


@pytest.mark.parametrize("backend", ["torch", "fused"])
def test_exponential_density_is_bounded_but_its_gradient_does_not_vanish(backend: str) -> None:
    scene = _scene(density_activation="exp", blob_scale=60.0, backend=backend)
    density = scene.density(torch.zeros(1, 3))
    assert density.item() == pytest.approx(math.exp(15), rel=1e-5)
    density.backward()
    last: Any = scene.mlp[-1]
    assert last.bias.grad[0] == pytest.approx(math.exp(15), rel=1e-5)


def test_levels_open_one_by_one() -> None:
    scene = _scene(levels=4, progressive_levels=(1, 0.5))
    seen, optimiser = [], optimiser_of(scene)
    for step, progress in enumerate((0.0, 0.16, 0.17, 0.34, 0.5, 0.9)):
        scene.update(Step(step, progress), optimiser, _generator())
        seen.append(int(scene.active_levels))
    assert seen == [1, 1, 2, 3, 4, 4]


def test_levels_open_from_a_step_on_as_published() -> None:
    # threestudio: 8 of 16 levels up to step 2,000 of 10,000, then one more every 500 steps.
    scene = _scene(levels=16, progressive_levels=(8, 0.6, 0.2))
    optimiser = optimiser_of(scene)
    for step in (0, 1, 1999, 2000, 2001, 2499, 2500, 2999, 3000, 5499, 5500, 5999, 6000, 9999):
        scene.update(Step(1, step / 10_000), optimiser, _generator())
        assert int(scene.active_levels) == min(16, 8 + max(0, step - 2000) // 500), step


def test_a_larger_cube_shows_the_same_object_in_other_units() -> None:
    # The same field in a cube of half the edge, seen from half as far, is the same picture at half the depth.
    for backend in ("torch", "auto"):
        options: dict[str, Any] = {"backend": backend, "march_steps": 48, "blob_scale": 8.0}
        small, large = _scene(blob_radius=0.25, **options), _scene(blob_radius=0.5, radius=2.0, **options)
        large.load_state_dict(small.state_dict())
        far, near = _front(40, 20, 3.0), _front(40, 20, 1.5)
        inner = _Denser(small)
        with torch.no_grad():
            a = render(inner, near, 12, 12, penalties=("z_variance",))
            b = large.render(far, 12, 12, penalties=("z_variance",))
        torch.testing.assert_close(a.rgb, b.rgb)
        torch.testing.assert_close(2 * a.depth, b.depth)
        torch.testing.assert_close(4 * a.penalties["z_variance"], b.penalties["z_variance"])
        points = torch.rand(50, 3, generator=_generator()) - 0.5
        density, albedo = large.field()(2 * points)
        torch.testing.assert_close(density, small.density(points))
        torch.testing.assert_close(albedo, small.query(points)[1])


class _Denser(nn.Module):
    """A scene of twice the density: what one unit of length stops, half of it does."""

    def __init__(self, scene: HashGridScene) -> None:
        super().__init__()
        self.scene, self.step_size, self.occupancy = scene, scene.step_size, scene.occupancy

    def query(self, points: Tensor) -> tuple[Tensor, Tensor]:
        density, albedo = self.scene.query(points)
        return 2 * density, albedo

    def density(self, points: Tensor) -> Tensor:
        return 2 * self.scene.density(points)

    def backdrop(
        self, directions: Tensor, generator: torch.Generator | None = None, together: int = 1
    ) -> Tensor:
        return self.scene.backdrop(directions, generator, together)


def test_a_share_of_training_pictures_has_a_random_colour_behind_it() -> None:
    scene = _scene(background=[0.25, 0.5, 0.75], random_background=0.3)
    directions = torch.zeros(4000, 1, 1, 3)
    assert torch.equal(scene.backdrop(directions)[0, 0, 0], torch.tensor([0.25, 0.5, 0.75]))
    drawn = scene.backdrop(directions, _generator())[:, 0, 0]
    own = (drawn == torch.tensor([0.25, 0.5, 0.75])).all(-1)
    # Four standard deviations of a share of 4000.
    assert float(own.float().mean()) == pytest.approx(0.7, abs=0.029)
    assert drawn[~own].mean(0).tolist() == pytest.approx([0.5] * 3, abs=0.04)
    learned = _scene(background="learned", random_background=1.0)
    assert len(learned.backdrop(torch.zeros(5, 2, 2, 3), _generator()).flatten(1, 2).unique(dim=1)[0]) == 1
    assert torch.equal(learned.backdrop(directions), _scene(background="learned").backdrop(directions))


def test_parameter_groups_hold_every_parameter_once() -> None:
    scene = _scene(background="learned")
    groups = scene.parameter_groups()
    assert set(groups) == {"encoding", "mlp", "background"}
    grouped = [id(p) for group in groups.values() for p in group.parameters]
    assert sorted(grouped) == sorted(id(p) for p in scene.parameters())
    assert set(_scene().parameter_groups()) == {"encoding", "mlp"}


@pytest.mark.parametrize(("threshold", "most"), [(1e-2, 0.05), (1e-5, 1e-4)])
def test_skipping_empty_cells_hardly_changes_the_picture(threshold: float, most: float) -> None:
    scene = _scene(blob_scale=20.0, occupancy_threshold=threshold)
    with torch.no_grad():
        full = render(scene, _front(40, 10), 32, 32)
        scene.update(Step(), optimiser_of(scene), _generator())
        skipped = render(scene, _front(40, 10), 32, 32)
    assert 0.02 < scene.occupancy.binaries.float().mean() < 0.5
    difference = (full.rgb - skipped.rgb).abs()
    assert difference.max() < most
    assert difference.mean() < most / 20


def test_occupancy_finds_the_ball_and_forgets_it_once_gone() -> None:
    grid = occupancy_grid(16)
    update_occupancy(grid, _ball(50.0, 0.5), 0.05, _generator())
    share = float(grid.binaries.float().mean())
    assert share == pytest.approx(4 / 3 * math.pi * 0.5**3 / 8, rel=0.25)
    for _ in range(40):
        update_occupancy(grid, _ball(50.0, 0.2), 0.05, _generator())
    assert float(grid.binaries.float().mean()) < 0.3 * share


def test_an_empty_scene_stays_learnable() -> None:
    grid = occupancy_grid(8)
    update_occupancy(grid, lambda x: torch.zeros(len(x)), 0.05, _generator())
    assert grid.binaries.all()


def test_a_state_dict_restores_pictures_and_updates_bitwise() -> None:
    options: dict[str, Any] = {"progressive_levels": (2, 0.8), "background": "learned"}
    scene, copy = _scene(**options), _scene(**options, seed=9)
    g = _generator()
    optimiser = torch.optim.Adam(scene.parameters(), 1e-2)
    for step in (0, 16, 32):
        scene.update(Step(step, step / 64), optimiser, g)
        render(scene, _front(), 8, 8, generator=g).rgb.mean().backward()
        optimiser.step()
    copy.load_state_dict(scene.state_dict())
    pictures: list[Render] = []
    for each in (scene, copy):
        each.update(Step(48, 0.75), optimiser, _generator(5))
        pictures.append(render(each, _front(10), 16, 16, generator=_generator(6)))
    assert torch.equal(scene.occupancy.binaries, copy.occupancy.binaries)
    assert torch.equal(pictures[0].rgb, pictures[1].rgb)
    assert torch.equal(pictures[0].depth, pictures[1].depth)


# Penalties


def test_opacity_penalties_have_the_numbers_worked_out_by_hand() -> None:
    found = opacity_penalties(torch.tensor([0.0, 0.5]), ("sparsity", "opaqueness", "orientation"))
    assert set(found) == {"sparsity", "opaqueness"}
    assert float(found["sparsity"]) == pytest.approx((0.1 + math.sqrt(0.26)) / 2, rel=1e-5)
    clear = -0.001 * math.log(0.001) - 0.999 * math.log(0.999)
    assert float(found["opaqueness"]) == pytest.approx((math.log(2) + clear) / 2, rel=1e-5)


def test_opaqueness_pushes_opacity_away_from_one_half() -> None:
    opacity = torch.tensor([0.3, 0.7], requires_grad=True)
    opacity_penalties(opacity, ("opaqueness",))["opaqueness"].backward()
    # d/do of the entropy is log((1 - o) / o), halved by the mean.
    torch.testing.assert_close(opacity.grad, torch.tensor([math.log(7 / 3), math.log(3 / 7)]) / 2)


def test_opaqueness_has_no_gradient_where_rays_hit_or_miss() -> None:
    """The published one: the binary entropy of the opacity clamped to [0.001, 0.999]."""
    opacity = torch.tensor([0.0, 0.0005, 0.002, 0.5, 0.998, 0.9999], requires_grad=True)
    found = opacity_penalties(opacity, ("opaqueness",))["opaqueness"]
    inside = [0.001, 0.001, 0.002, 0.5, 0.998, 0.999]
    entropy = [-o * math.log(o) - (1 - o) * math.log(1 - o) for o in inside]
    assert found.item() == pytest.approx(sum(entropy) / 6, rel=1e-5)
    found.backward()
    slopes = [0.0, 0.0, math.log(0.998 / 0.002), 0.0, math.log(0.002 / 0.998), 0.0]
    torch.testing.assert_close(opacity.grad, torch.tensor(slopes) / 6, rtol=1e-4, atol=1e-6)


def test_orientation_is_averaged_over_the_rays_that_hit() -> None:
    """The published sum w max(0, n . d)^2 / (number of rays with opacity above 0), written out; in a batch, by picture."""
    scene = Analytic(lambda x: 2 * (x[:, 0] + 2))
    found = []
    for fov in (70.0, 25.0):
        camera = _front(fov=fov)
        seen = render(scene, camera, 12, 12, penalties=("orientation",), chunk_rays=50)
        origins, directions = (rays.reshape(-1, 3) for rays in camera.rays(12, 12))
        samples = march(origins, directions, torch.full((144,), 0.5), scene.occupancy, scene.step_size)
        density, colour = scene.query(samples.points)
        _, opacity, weights = composite(density, colour, samples)
        normals = finite_difference_normals(scene, samples.points)
        total = (weights * (normals * directions[samples.ray]).sum(-1).clamp(min=0) ** 2).sum()
        hits = int((opacity > 0).sum())
        assert (0 < hits < 144) == (fov == 70.0)
        found.append(seen.penalties["orientation"])
        torch.testing.assert_close(found[-1], total / hits, rtol=1e-5, atol=1e-7)
    two = Cameras.joined([_front(fov=70.0), _front(fov=25.0)])
    both = render(scene, two, 12, 12, penalties=("orientation",)).penalties["orientation"]
    torch.testing.assert_close(both, (found[0] + found[1]) / 2, rtol=1e-5, atol=1e-7)


def test_orientation_counts_only_normals_that_face_away() -> None:
    # Density grows towards the camera at +x: the outward normals point to -x, along the rays.
    away = Analytic(lambda x: 2 * (x[:, 0] + 2))
    towards = Analytic(lambda x: 2 * (2 - x[:, 0]))
    narrow = _front(fov=1.0)
    bad, good = (render(s, narrow, 3, 3, penalties=("orientation",)) for s in (away, towards))
    assert float(bad.penalties["orientation"]) == pytest.approx(float(bad.opacity.mean()), rel=1e-2)
    assert float(good.penalties["orientation"]) == 0


def test_smoothness_is_zero_on_a_slope_and_positive_on_a_ripple() -> None:
    flat = Analytic(lambda x: 2 * (2 - x[:, 0]))
    ripple = Analytic(lambda x: 3 + torch.sin(40 * x).sum(1))
    values = [
        float(
            render(s, _front(), 6, 6, generator=_generator(), penalties=("smoothness",)).penalties[
                "smoothness"
            ]
        )
        for s in (flat, ripple)
    ]
    assert values[0] < 1e-4
    assert values[1] > 0.05


@pytest.mark.parametrize("training", [False, True])
def test_smoothness_of_a_ball_is_that_of_points_two_hundredths_apart(training: bool) -> None:
    """Normals x / |x| differ by |e| / |x|, e across x: two components, each 0.02 or of that standard deviation."""
    ball = Analytic(lambda x: 100 * (1.5 - x.norm(dim=1)))
    generator = _generator() if training else None
    seen = render(ball, _front(fov=1.0), 40, 40, generator=generator, penalties=("smoothness",))
    radius = 3.2 - float(seen.depth.mean())
    assert float(seen.opacity.min()) > 0.99 and 0.9 < radius < 1
    assert float(seen.penalties["smoothness"]) == pytest.approx(2 * (0.02 / radius) ** 2, rel=0.1)


def test_a_colour_is_drawn_for_each_object_and_no_more() -> None:
    """Four pictures, three of an object, are of two objects: the second one's is cut."""
    for background, numbers in (("random", 3), ("grey", 1)):
        scene, drawn, by_hand = _scene(background=background), _generator(), _generator()
        found = scene.backdrop(torch.ones(4, 2, 2, 3), drawn, 3)[:, 0, 0]
        assert torch.equal(found[0], found[1]) and torch.equal(found[1], found[2])
        assert not torch.equal(found[2], found[3])
        torch.rand(2 * numbers, generator=by_hand)
        assert torch.equal(drawn.get_state(), by_hand.get_state())


def test_penalties_are_computed_only_when_asked_for() -> None:
    assert not render(_scene(), _front(), 4, 4).penalties
    every = ("sparsity", "opaqueness", "orientation", "smoothness")
    found = render(_scene(), _front(), 4, 4, penalties=every).penalties
    assert set(found) == set(every)
    assert all(value.ndim == 0 and value.requires_grad for value in found.values())


@pytest.mark.gpu
def test_a_picture_on_cuda_agrees_with_the_cpu() -> None:
    scene = _scene(blob_scale=20.0)
    camera = _front(40, 10)
    # Without the CPU's kernels, which a GPU machine may lack.
    with plain_torch.without_kernels():
        expected = render(scene, camera, 32, 32)
    scene.cuda()
    picture = render(scene, camera, 32, 32)
    assert (picture.rgb.cpu() - expected.rgb).abs().max() < 0.02


def test_the_box_around_what_is_occupied_follows_every_change() -> None:
    grid = occupancy_grid(8)
    origins, directions = (part.view(-1, 3) for part in _front().rays(16, 16))
    jitter = torch.full((len(origins),), 0.5)

    def count() -> int:
        return len(march(origins, directions, jitter, grid, 0.05).points)

    whole = count()
    grid.binaries[:, :4] = False  # in place
    half = count()
    assert 0.3 * whole < half < 0.7 * whole
    grid.binaries = torch.ones_like(grid.binaries)  # another tensor, perhaps in the first one's memory
    assert count() == whole
    grid.binaries = torch.zeros_like(grid.binaries)
    assert count() == 0
    grid.binaries.fill_(True)
    assert count() == whole
    with torch.inference_mode():
        grid.binaries = torch.ones_like(grid.binaries)
        assert count() == whole


def test_the_variance_of_depth_is_that_of_two_walls() -> None:
    # Two thin walls 0.6 apart: half of the light is stopped by the first, all the rest by the second, so that the variance is
    # 0.5 * 0.5 * 0.6^2 = 0.09, up to what the walls' own thickness adds.
    steps = 400
    thick = 2 * math.sqrt(3) / steps

    def walls(x: Tensor) -> Tensor:
        first = math.log(2) / (2 * thick) * ((x[:, 0] - 0.3).abs() < thick).float()
        return first + 1e4 * ((x[:, 0] + 0.3).abs() < thick).float()

    seen = render(Analytic(walls, steps), _front(fov=1.0), 3, 3, penalties=("z_variance",))
    assert float(seen.penalties["z_variance"]) == pytest.approx(0.09, rel=0.02)


def test_the_variance_of_depth_counts_rays_that_stop_half_of_the_light_and_has_a_gradient() -> None:
    scene = _scene(blob_scale=20.0)
    camera = _front(30, 10)
    seen = scene.render(camera, 16, 16, penalties=("z_variance",))
    # Independently: the sums of w t and w t^2 along each ray.
    origins, directions = (value.view(-1, 3) for value in camera.rays(16, 16))
    samples = march(origins, directions, torch.full((256,), 0.5), scene.occupancy, scene.step_size)
    density, _ = scene.query(samples.points)
    _, opacity, weights = composite(density, samples.distance[:, None], samples)
    w, t = weights.detach().double(), samples.distance.double()
    sums = (
        torch.zeros(256, 3).double().index_add(0, samples.ray, w[:, None] * torch.stack([t**0, t, t**2], 1))
    )
    mean, square = (sums[:, 1:] / sums[:, :1].clamp(min=1e-5)).unbind(1)
    expected = (square - mean.square())[opacity > 0.5].mean()
    torch.testing.assert_close(seen.penalties["z_variance"].double(), expected, rtol=1e-3, atol=1e-6)
    seen.penalties["z_variance"].backward()
    assert scene.grid.grad is not None and float(scene.grid.grad.abs().sum()) > 0


def test_convexity_is_minus_the_sine_between_neighbours() -> None:
    # Normals that turn about the z axis by a constant angle from column to column, seen as (n + 1) / 2.
    angle = torch.arange(8) * 0.1
    turning = torch.stack([angle.cos(), angle.sin(), torch.zeros(8)], -1).expand(1, 8, 8, 3)
    picture = (turning + 1) / 2
    a, b = picture[0, :, :-1], picture[0, :, 1:]
    expected = -(a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]).mean()
    found = convexity(turning, torch.ones(1, 8, 8, 1))
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    # A sphere bulges towards the camera, a bowl away from it: from above, where z is along the view, their signs differ.
    x, y = torch.meshgrid(torch.linspace(-0.7, 0.7, 64), torch.linspace(0.7, -0.7, 64), indexing="xy")
    sphere = torch.stack([x, y, (1 - x**2 - y**2).sqrt()], -1)[None]
    bowl = sphere * torch.tensor([-1.0, -1.0, 1.0])
    whole = torch.ones(1, 64, 64, 1)
    assert float(convexity(sphere, whole)) < float(convexity(bowl, whole))


def test_normals_are_shown_as_colours_and_light_may_be_soft() -> None:
    scene = Analytic(_ball(500.0, 0.5))
    seen = render(scene, _front(fov=2.0), 3, 3, shading="normals")
    assert seen.normal is not None
    torch.testing.assert_close(seen.rgb, (seen.normal + 1) / 2, atol=0.03, rtol=0)
    # White surfaces that face the light are lit fully, whatever share of it comes from everywhere; others by that share.
    away = _front(fov=30.0)
    fixed = render(scene, away, 24, 24, shading="textureless", generator=_generator(3))
    soft = render(scene, away, 24, 24, shading="textureless", soft_light=True, generator=_generator(3))
    assert not torch.equal(fixed.rgb, soft.rgb)
    looking = render(scene, away, 24, 24, shading="textureless", soft_light=True)
    assert torch.equal(looking.rgb, render(scene, away, 24, 24, shading="textureless").rgb)


@pytest.mark.parametrize("hidden_layers", [0, 1, 2])
def test_weights_begin_uniform_with_the_variance_that_keeps_that_of_what_they_are_given(
    hidden_layers: int,
) -> None:
    """He et al. 2015: 2 / n before a ReLU; 1 / n for a layer alone. A uniform law reaches sqrt(3) deviations to each side."""
    scene = _scene(levels=16, hidden_width=64, hidden_layers=hidden_layers, seed=1)
    head = [value.detach() for value in scene.weights.head]
    for weight, bias in zip(head[::2], head[1::2], strict=True):
        variance = (2 if hidden_layers else 1) / weight.shape[1]
        assert float(weight.mean()) == pytest.approx(0, abs=4 * math.sqrt(variance / weight.numel()))
        # The square of a uniform number varies by 4 / 5 of the variance's square.
        spread = 4 * math.sqrt(0.8 / weight.numel())
        assert float(weight.square().mean()) == pytest.approx(variance, rel=spread)
        assert 0.9 < float(weight.abs().max()) / math.sqrt(3 * variance) <= 1
        assert not bias.any()


def test_light_comes_from_the_camera_and_in_training_from_around_it() -> None:
    """The direction of c + e / 2, e normal: its mean cosine with c is an integral over e along c and across it."""
    cameras = orbit(torch.full((20_000,), 30.0), torch.full((20_000,), 20.0), 3.2, 40.0)
    towards = cameras.c2w[:, :3, 2]
    torch.testing.assert_close(towards_light(cameras, "lambertian", None), towards)
    torch.testing.assert_close(towards_light(cameras, "albedo", _generator()), towards)
    light = towards_light(cameras, "lambertian", _generator())
    torch.testing.assert_close(light.norm(dim=1), torch.ones(20_000))
    # By quadrature over the normal law: along c, 1 + a / 2; across it, a radius of law r exp(-r^2 / 2).
    a, r = torch.meshgrid(torch.linspace(-6, 6, 601), torch.linspace(0.005, 6, 600), indexing="ij")
    law = torch.exp(-(a**2) / 2) * r * torch.exp(-(r**2) / 2)
    along = (1 + a / 2) / ((1 + a / 2) ** 2 + (r / 2) ** 2).sqrt()
    expected = float((law * along).sum() / law.sum())
    assert float((light * towards).sum(1).mean()) == pytest.approx(expected, abs=0.01)


def test_the_depth_of_fog_is_the_mean_of_where_light_stops() -> None:
    """Fog of density s from a to a + L: a + 1 / s - L exp(-s L) / (1 - exp(-s L))."""
    fog = Analytic(lambda x: torch.full_like(x[:, 0], 0.7), steps=2000)
    seen = render(fog, _front(fov=0.1), 1, 1)
    through = math.exp(-0.7 * 2)
    assert float(seen.opacity) == pytest.approx(1 - through, abs=1e-3)
    assert float(seen.depth) == pytest.approx(2.2 + 1 / 0.7 - 2 * through / (1 - through), abs=2e-3)


@pytest.mark.parametrize("background", ["white", "grey", "random", "learned", [0.1, 0.2, 0.3]])
@pytest.mark.parametrize("drawn", [True, False])
def test_a_render_says_what_is_behind_it(background: Any, drawn: bool) -> None:
    scene = _scene(background=background)
    generator = _generator() if drawn else None
    cameras = orbit(torch.tensor([0.0, 120.0, 240.0]), torch.tensor([20.0] * 3), 3.2, 60.0)
    render = scene.render(cameras, 8, 8, generator=generator, together=2)
    assert render.background is not None
    corners = render.opacity[:, 0, 0] < 1e-6  # rays that pass the cube
    assert corners.all()
    torch.testing.assert_close(render.rgb[:, 0, 0], render.background.expand_as(render.rgb)[:, 0, 0])
    parts = [scene.render(cameras.part(i, i + 1), 8, 8) for i in range(3)]
    if not drawn:
        torch.testing.assert_close(Render.joined(parts).backdrop(), render.backdrop())


def test_batches_over_backgrounds_of_any_shape_are_joined() -> None:
    shapes = [(1, 1, 1, 3), (2, 1, 1, 1), (3,), (2, 4, 4, 3)]
    parts = [
        Render(
            torch.zeros(2, 4, 4, 3),
            torch.zeros(2, 4, 4, 1),
            torch.zeros(2, 4, 4, 1),
            background=torch.full(shape, 0.1 * i),
        )
        for i, shape in enumerate(shapes)
    ]
    joined = Render.joined(parts)
    assert joined.background is not None
    assert joined.backdrop()[:, 0, 0, 0].tolist() == pytest.approx([0, 0, 0.1, 0.1, 0.2, 0.2, 0.3, 0.3])
    white = Render.joined([replace(part, background=None) for part in parts])
    assert white.background is None and (white.backdrop() == 1).all()


@pytest.mark.parametrize("background", ["grey", "learned"])
def test_a_window_and_what_is_around_it_are_over_one_background(background: str) -> None:
    scene = _scene(background=background)
    cameras = orbit(torch.tensor([0.0]), torch.tensor([20.0]), 3.2, 60.0)
    render = patched(scene.render, 8, 8)(cameras, 32, 32, generator=_generator())
    assert render.background is not None
    behind = render.background.expand_as(render.rgb)
    empty = render.opacity[..., 0] < 1e-6
    assert empty.sum() > 200
    # Around the window both are resized alike.
    torch.testing.assert_close(render.rgb[empty], behind[empty], atol=1e-3, rtol=0)

"""A surface as a signed distance: its opacity, its distances and derivatives by closed forms, what is trained, and a second stage."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from test_run import OPTIONS, QUICK, command, error_of
from torch import Tensor
from usual import optimiser_of

import distill
from distill import renderers
from distill.cameras import turntable
from distill.contracts import Render, Step
from distill.export.mesh import depth_of
from distill.export.zero_set import _on_grid, extract_zero_set, zero_set
from distill.files.checkpoint import save_checkpoint
from distill.job import State
from distill.renderers import second_stage
from distill.renderers.grids import interpolated
from distill.renderers.image import ImageScene
from distill.renderers.nerf import HashGridScene
from distill.renderers.sdf import SdfScene, optical_depth
from distill.run.assembly import initial
from distill.run.config.compose import compose_config

SMALL: dict[str, Any] = {"levels": 2, "log2_table_size": 8, "hidden_width": 8, "detail": 16}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def nodes(resolution: int) -> Tensor:
    axis = torch.linspace(-1, 1, resolution)
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)


def ball_field(blob_scale: float = 60.0, **options: Any) -> HashGridScene:
    """A field whose hash grid is empty: softplus(s (1 - |x| / 0.5)), and a colour of one value everywhere."""
    field = HashGridScene(
        levels=2, log2_table_size=8, hidden_width=8, blob_scale=blob_scale, occupancy_resolution=32, **options
    )
    with torch.no_grad():
        field.grid.zero_()
        list(field.mlp.parameters())[-1].copy_(torch.tensor([0.0, 1.0, -1.0, 0.5]))
    field.update(Step(), optimiser_of(field), torch.Generator().manual_seed(0))
    return field


def on_plane(normal: Tensor, offset: float, width: float) -> SdfScene:
    """The half space n . x < offset, in a shell so wide that no cell is skipped."""
    scene = SdfScene(**SMALL, resolution=9, width=(width, width), march_steps=40, occupancy_resolution=4)
    scene.base.copy_(nodes(9) @ normal - offset)
    scene.fit_shell()
    assert scene.occupancy.binaries.all()
    return scene


def test_a_rays_opacity_through_a_plane_is_the_closed_form() -> None:
    normal, offset, width = torch.tensor([0.6, 0.0, 0.8]), 0.1, 0.5
    scene = on_plane(normal, offset, width)
    cameras = turntable(2, 30.0)
    found = scene.render(cameras, 6, 6).opacity[..., 0]
    origins, directions = cameras.rays(6, 6)
    compared = 0
    for index in itertools.product(range(2), range(6), range(6)):
        origin, direction = origins[index].double(), directions[index].double()
        ends = torch.stack([(-1 - origin) / direction, (1 - origin) / direction])
        near, far = ends.amin(0).amax().item(), ends.amax(0).amin().item()
        if near >= far:
            assert found[index] == 0
            continue
        # Sections follow one another from where the ray enters; outside the cube, where the last may end, is no plane.
        count = math.floor((far - near) / scene.step_size + 0.5)
        if near + count * scene.step_size > far:
            continue
        compared += 1
        places = [origin + t * direction for t in (near, near + count * scene.step_size)]
        first, last = (float(place @ normal.double() - offset) / width for place in places)
        wanted = 1 - (1 + math.exp(-first)) / (1 + math.exp(-last)) if last < first else 0.0
        assert found[index].item() == pytest.approx(wanted, abs=2e-5)
    assert compared > 10


def test_the_depth_of_sections_telescopes_and_is_half_at_the_surface() -> None:
    cuts = torch.tensor([0.9, 0.4, 0.39, 0.0, -0.3, -0.9], dtype=torch.float64)
    depth = optical_depth(cuts[:-1], cuts[1:], 0.1)
    through = torch.exp(-depth.cumsum(0))
    wanted = torch.sigmoid(cuts[1:] / 0.1) / torch.sigmoid(cuts[0] / 0.1)
    torch.testing.assert_close(through, wanted)
    assert through[2].item() == pytest.approx(0.5, abs=1e-3)
    assert optical_depth(cuts[1:], cuts[:-1], 0.1).abs().max() == 0  # on the way out
    ends = torch.rand(2, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: optical_depth(x[0] + 1, x[1], 0.2), (ends,))


def test_the_distance_to_a_balls_isosurface_is_that_of_the_ball() -> None:
    s, level, resolution = 10.0, 3.0, 48
    density = ball_field(s).density(nodes(resolution).view(-1, 3)).view((resolution,) * 3)
    found = second_stage.distances(torch.from_numpy(depth_of(density.detach().numpy(), level)))
    radius = 0.5 * (1 - math.log(math.exp(level) - 1) / s)
    h = 2 / (resolution - 1)
    # Along an edge, f = log softplus(u), u linear in |x|, has |f'' / f'| <= |u'| + 1 / |x|: linear interpolation misplaces a vertex by
    # at most h^2 / 8 of it. A triangle in a cell, whose sides are chords of at most 3^0.5 h, lies at most 3 h^2 / (8 r) inside.
    tolerance = h**2 / 8 * (s / 0.5 + 1 / radius) + 3 * h**2 / (8 * radius)
    assert tolerance < 0.2 * h
    assert (found - (nodes(resolution).norm(dim=-1) - radius)).abs().max().item() < tolerance


def test_a_cavity_that_no_picture_shows_is_filled() -> None:
    field: Any = ball_field()
    shell = field.density

    def hollow(points: Tensor) -> Tensor:
        return torch.where(points.norm(dim=1) < 0.25, 0.0, shell(points))

    field.density = hollow
    radius = 0.5 * (1 - math.log(math.exp(3.0) - 1) / 60)
    density = field.density(nodes(24).view(-1, 3)).view(24, 24, 24)
    depth = torch.from_numpy(depth_of(density.detach().numpy(), 3.0))
    found = second_stage.distances(depth)[12, 12, 12].item()  # a node next to the middle
    assert found == pytest.approx(math.sqrt(3) / 23 - radius, abs=0.02)


def surface_of(density: Any, resolution: int) -> tuple[float, Tensor]:
    """The level and the depth of a field with a density, whose pictures are half opaque where it is above 10."""
    field: Any = ball_field()
    field.density = density
    cameras = second_stage.views()
    masks = second_stage.largest(field, density, 0.0, cameras, (96, 96)) > 10
    return second_stage.surface_of(field, cameras, masks, resolution)


def mesh_of(depth: Tensor) -> trimesh.Trimesh:
    return trimesh.Trimesh(*zero_set(-depth.numpy()), process=False)


def test_a_rough_field_becomes_a_smooth_surface_of_the_same_size() -> None:
    """A ball of radius 0.5 with white noise, on a grid of 64 nodes, in the logarithm of its density."""
    noise = torch.randn(64, 64, 64, generator=torch.Generator().manual_seed(0))

    def density(points: Tensor) -> Tensor:
        return 20 * torch.exp(30 * (0.5 - points.norm(dim=-1)) + interpolated(noise, points))

    level, depth = surface_of(density, 64)
    rough = mesh_of(
        torch.from_numpy(depth_of(density(nodes(64).view(-1, 3)).view(64, 64, 64).numpy(), level))
    )
    smooth = mesh_of(depth)
    assert abs(rough.euler_number - 2) > 20 and smooth.euler_number == 2
    # Where the noise is strongest along a ray, the silhouette ends: outside of the mean radius of the level 10.
    radii = np.linalg.norm(smooth.vertices, axis=1)
    assert radii.std() < 0.02 and 0.5 + math.log(2) / 30 < radii.mean() < 0.5 + (math.log(2) + 3) / 30


def test_a_field_that_is_too_thin_to_be_smoothed_is_not(caplog: pytest.LogCaptureFixture) -> None:
    """Rods of radius 0.015 and 0.1; the blur's standard deviation is 0.03."""

    def rod(radius: float) -> Any:
        return lambda points: torch.where(
            (points[:, :2].norm(dim=-1) < radius) & (points[:, 2].abs() < 0.5), 300.0, 0.0
        )

    _, thick = surface_of(rod(0.1), 128)
    assert not caplog.messages and len(thick.unique()) > 1000
    _, thin = surface_of(rod(0.015), 128)
    (message,) = caplog.messages
    assert message.startswith("the field is so thin that it is not smoothed")
    inside = nodes(128)[thin > 0]
    assert len(inside) > 100 and inside[:, :2].norm(dim=-1).max() < 0.015


@pytest.mark.slow
def test_pictures_do_not_jump_when_a_field_becomes_a_surface() -> None:
    field = ball_field(background=(0.2, 0.4, 0.6))
    scene = SdfScene(**{**SMALL, "background": (0.2, 0.4, 0.6)}, resolution=48)
    found = second_stage.begin(scene, field)
    assert found["silhouette_iou"] >= 0.97 and found["psnr_db"] >= 28
    points = torch.rand(100, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
    assert torch.equal(scene.query(points)[1], field.query(points)[1])
    # At a depth z below the rim, where the density is 120 z, a ray that passes there meets 160 z^1.5 (2 r)^0.5 in all: half of the
    # light, ln 2, at z = 0.027.
    radius = 0.3 - scene.distance(torch.tensor([[0.3, 0.0, 0.0]])).item()
    assert radius == pytest.approx(0.473, abs=0.01)
    with pytest.raises(ValueError, match="same hash grid and network"):
        second_stage.begin(SdfScene(**{**SMALL, "levels": 3}), field)


def test_cubes_of_other_sizes_keep_their_scale() -> None:
    field = ball_field(radius=1.5)
    scene = SdfScene(**SMALL, radius=1.5, resolution=48)
    second_stage.begin(scene, field)
    there = torch.tensor([[1.2, 0.0, 0.0], [0.3, 0.0, 0.0]])
    torch.testing.assert_close(
        scene.signed_distance(there), torch.tensor([1.2, 0.3]) - 0.473, atol=0.02, rtol=0
    )
    assert scene.render(turntable(1), 9, 9).depth[0, 4, 4].item() == pytest.approx(3.2 - 0.473, abs=0.03)


@pytest.mark.parametrize("stage", ["field", "surface"])
def test_a_mesh_ends_where_a_smaller_cube_does_as_its_pictures_do(stage: str) -> None:
    """A pillar along z, of radius 0.3, in a cube of edge 1.2."""
    radius, spacing = 0.6, 2 / 40
    scene: Any
    if stage == "surface":
        scene = SdfScene(**SMALL, radius=radius, resolution=33)
        scene.base.copy_(nodes(33)[..., :2].norm(dim=-1) - 0.5)
        scene.fit_shell()
    else:
        scene = ball_field(radius=radius)
        scene.density = lambda points: 50 * (0.5 - points[:, :2].norm(dim=-1)).clamp(min=0)  # in radii
        scene.query = lambda points, weights=None: (scene.density(points), points.new_ones(len(points), 3))
    density, colour = scene.field()(torch.tensor([[0.0, 0, 0.59], [0.0, 0, 0.61], [0.0, 0.95, 0.0]]))
    assert density[0] > 0 and density[1:].tolist() == [0, 0] and colour.isfinite().all()

    def view(*given: Any) -> Render:
        return scene.render(*given).detached()

    (writer,) = scene.assets().values()
    made = writer.mesh(
        view if stage == "surface" else pillar,
        {"resolution": 41, "iso": 2.0, "texture_size": 64},
    )
    low, high = made.vertices.min(0), made.vertices.max(0)
    # Nodes are at the cube's sides, and what is cut ends at most one of their distances further out.
    assert radius - 1e-3 <= high[2] <= radius + spacing and -radius - spacing <= low[2] <= -radius + 1e-3
    assert np.abs(high[:2] - 0.3).max() < spacing
    if stage == "surface":
        assert scene.signed_distance(torch.tensor([[0.0, 0, 0.7], [0.0, 0, 0.9]])).tolist() == pytest.approx([0.1, 0.3])  # fmt: skip


def pillar(cameras: Any, height: int, width: int) -> Render:
    """Pictures that choose nothing, for a level that is given."""
    rgb, one = torch.ones(len(cameras), height, width, 3), torch.ones(len(cameras), height, width, 1)
    return Render(rgb, one, one)


def test_an_empty_field_has_no_second_stage() -> None:
    field = ball_field()
    with torch.no_grad():
        list(field.mlp.parameters())[-1][0] = -200.0
    with pytest.raises(ValueError, match="holds an empty scene"):
        second_stage.begin(SdfScene(**SMALL), field)


def test_gradients_match_finite_differences() -> None:
    scene = SdfScene(**SMALL, resolution=24, width=(0.05, 0.05), march_steps=64, occupancy_resolution=8)
    scene.fit_shell()
    bias = list(scene.change.mlp.parameters())[-1]
    weight = torch.rand(1, 8, 8, 3, generator=torch.Generator().manual_seed(2))

    def loss() -> Tensor:
        seen = scene.render(turntable(1), 8, 8, shading="lambertian", penalties=["eikonal"])
        return (weight * seen.rgb).sum() + seen.opacity.sum() + seen.penalties["eikonal"]

    loss().backward()
    slope = bias.grad
    assert slope is not None and slope[[0, 2, 3]].abs().max() == 0  # of four numbers, one is the change
    values = []
    for change in (0.02, -0.02):
        with torch.no_grad():
            bias[1] += change
            values.append(loss().item())
            bias[1] -= change
    assert slope[1].item() == pytest.approx((values[0] - values[1]) / 0.04, rel=0.01)


def test_samples_of_the_shell_have_gradients() -> None:
    scene = SdfScene(**SMALL, resolution=24, width=(0.05, 0.05), march_steps=64)
    scene.fit_shell()
    asked: list[Tensor] = []
    made: list[Tensor] = []

    def query(points: Tensor) -> tuple[Tensor, Tensor]:
        asked.append(points)
        made.append(torch.full((len(points), 3), 0.5, requires_grad=True))
        return points[:, 0], made[-1]

    change: Any = scene.change
    change.query = query
    scene.render(turntable(1), 24, 24).opacity.sum().backward()
    grad = torch.cat([value.grad[:, 0] for value in made if value.grad is not None])
    near = (torch.cat(asked).norm(dim=1) - 0.5).abs() < 0.1
    assert near.sum() > 1000
    assert (grad[near] != 0).float().mean() > 0.4  # all but those of sections on the way out


@pytest.mark.parametrize("generator", [None, torch.Generator().manual_seed(0)])
def test_penalties_of_a_ball(generator: torch.Generator | None) -> None:
    scene = SdfScene(**SMALL, resolution=64)
    scene.fit_shell()

    def penalties() -> dict[str, float]:
        found = scene.render(turntable(1), 4, 4, generator=generator, penalties=["eikonal", "curvature"])
        return {name: value.item() for name, value in found.penalties.items()}

    # The shell's cells are within 0.15 of the ball of 0.5. Interpolation over h adds at most h^2 / 8 of the Laplacian, 2 / |x|, to a
    # distance, so 3^0.5 h / (8 |x|) to a slope and 0.5 / |x| to a Laplacian; differences of |x| itself are off by h^2 / |x|^2.
    h, low, high = 2 / 63, 0.35, 0.65
    flat = penalties()
    assert flat["eikonal"] < (math.sqrt(3) * h / (8 * low) + (h / low) ** 2) ** 2
    assert 1.5 / high < flat["curvature"] < 2.5 / low
    scene.base *= 2
    scene.fit_shell()
    twice = penalties()
    assert twice["eikonal"] == pytest.approx(1, abs=0.05)
    assert 3 / high < twice["curvature"] < 5 / low
    normal = scene.render(turntable(1), 9, 9, normals=True).normal
    assert normal is not None
    torch.testing.assert_close(
        normal[0, 4, 4], turntable(1).c2w[0, :3, 2], atol=0.02, rtol=0
    )  # towards the camera


@pytest.mark.parametrize(("background", "behind"), [("white", set()), ("learned", {"background"})])
def test_shape_and_texture_are_trained_in_their_times(background: str, behind: set[str]) -> None:
    times: dict[str, Any] = {"geometry": (0.0, 0.5), "texture": (0.5, 1.0)}
    scene = SdfScene(**SMALL, **times, resolution=16, background=background, occupancy_resolution=8)
    optimiser, g = optimiser_of(scene), torch.Generator().manual_seed(0)

    def moved(progress: float, shading: str) -> set[str]:
        scene.update(Step(0, progress), optimiser, g)
        groups = scene.parameter_groups()
        before = {name: [p.clone() for p in group.parameters] for name, group in groups.items()}
        optimiser.zero_grad(set_to_none=True)
        scene.render(turntable(1), 8, 8, generator=g, shading=shading).rgb.sum().backward()
        optimiser.step()
        return {
            name
            for name, group in groups.items()
            if any(not torch.equal(*pair) for pair in zip(before[name], group.parameters, strict=True))
        }

    assert moved(0.0, "normals") == {"geometry"}
    assert moved(0.49, "lambertian") == {"geometry"}
    assert moved(0.5, "albedo") == {"encoding", "mlp"} | behind
    assert "geometry" not in moved(0.9, "normals")  # shows nothing that is trained, and does not fail
    assert scene.width == pytest.approx(0.015 * (1 / 3) ** 0.9)
    gaps: list[dict[str, Any]] = [
        {"geometry": (0.0, 0.4), "texture": (0.5, 1.0)},
        {"geometry": (0.0, 0.0), "texture": (0.0, 0.9)},
    ]
    for wrong in gaps:
        with pytest.raises(ValueError, match=r"cover all of training.*nothing would be trained"):
            SdfScene(**SMALL, **wrong)
    with pytest.raises(ValueError, match="geometry as two fractions"):
        SdfScene(**SMALL, geometry=(0.5, 0.2))


def test_the_zero_set_of_a_ball_is_closed_and_outwards() -> None:
    vertices, faces = zero_set((nodes(24).norm(dim=-1) - 0.5).numpy())
    h = 2 / 23
    # Along an edge |x| bends by at most 1 / |x|, so that the zero of its chord is off by at most h^2 / (8 r).
    assert np.abs(np.linalg.norm(vertices, axis=1) - 0.5).max() < h**2 / (8 * (0.5 - h))
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    assert mesh.is_watertight and mesh.volume == pytest.approx(4 / 3 * math.pi * 0.125, rel=0.05)
    cut = trimesh.Trimesh(*zero_set((nodes(24).norm(dim=-1) - 1.2).numpy()), process=False)
    assert cut.is_watertight and cut.bounds == pytest.approx(
        np.array([[-1 - h / 2] * 3, [1 + h / 2] * 3]), abs=1e-3
    )
    assert len(zero_set(np.ones((8, 8, 8), np.float32))[1]) == 0


def test_a_mesh_lies_at_distance_0() -> None:
    scene = SdfScene(**SMALL, resolution=48)
    scene.fit_shell()
    with torch.no_grad():
        list(scene.change.mlp.parameters())[-1][1] = 1.0  # 0.2 tanh(1 / 2) further in
    scene.fit_shell()

    def view(*asked: Any) -> Render:
        return scene.render(*asked).detached()

    mesh = extract_zero_set(scene.signed_distance, view, resolution=64, faces=2000)
    radius = 0.5 - 0.2 * math.tanh(0.5)
    assert np.linalg.norm(mesh.vertices, axis=1) == pytest.approx(radius, abs=0.01)
    assert mesh.iso_level == 0 and mesh.silhouette_iou > 0.95


@pytest.mark.slow
def test_a_second_stage_from_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = {**OPTIONS, "iterations": 2, "export.enabled": False}
    distill.generate("a red mug", output_dir="first", **{**quick, "scene.log2_table_size": 12})
    words = ["scene=sdf", "init=first", "scene.resolution=24", *QUICK, "iterations=2", "output_dir=second"]
    assert command("a red mug", *words) == 0
    said = json.loads(Path("second/manifest.json").read_text())
    assert said["conversion"]["init"] == "first"
    assert said["conversion"]["silhouette_iou"] > 0.8 and said["conversion"]["psnr_db"] > 20
    assert said["export"]["iso_level"] == 0 and Path("second/mesh.glb").is_file()
    # A second stage can itself be gone on from.
    third = [
        "scene=sdf",
        "init=second",
        "scene.resolution=24",
        "scene.geometry=[0,0]",
        *QUICK,
        "iterations=1",
    ]
    third += ["scene.log2_table_size=12", "export.enabled=false"]
    assert command("a red mug", *third, "output_dir=third") == 0
    assert "conversion" not in json.loads(Path("third/manifest.json").read_text())

    Path("flat/checkpoints").mkdir(parents=True)
    Path("flat/config.yaml").write_text("scene:\n  _target_: distill.renderers.image.ImageScene\n")
    for options, why in [
        ([], "begins with the field of an earlier run, and there is none; add init="),
        (["init=gone"], "gone has no checkpoints"),
        (["init=flat"], "holds ImageScene, which is no field"),
        (["init=first", "scene.levels=3"], "levels 12, not 3"),
        (
            ["init=first", "scene.geometry=[0,0.5]", "scene.texture=[0,0.5]"],
            "nothing would be trained from 0.5 on",
        ),
        (["init=first", "export.iso=3"], "export.iso=3.0 would do nothing"),
        (["init=first", "export.blur_width=0"], "export.blur_width=0.0 would do nothing"),
    ]:
        assert why in error_of(capsys, "a red mug", "scene=sdf", *options)
    assert "needs a scene that computes it" in error_of(capsys, "a red mug", "penalties.eikonal=1")


@pytest.mark.parametrize("kind", [SdfScene, HashGridScene])
@pytest.mark.parametrize("before", ["learned", "white"])
@pytest.mark.parametrize("now", ["learned", "white"])
def test_averages_go_to_the_parameters_that_they_are_of(before: str, now: str, kind: Any) -> None:
    """A learnt background is the last of a field's groups and one in the middle of a signed distance's."""

    def groups(background: str) -> dict[str, list[Tensor]]:
        options = {name: value for name, value in SMALL.items() if kind is SdfScene or name != "detail"}
        options |= {"background": background} | ({"resolution": 8} if kind is SdfScene else {})
        return {name: list(group.parameters) for name, group in kind(**options).parameter_groups().items()}

    own, saved = groups(now), groups(before)
    names = {id(value): name for side in (own, saved) for name, values in side.items() for value in values}
    pairs = initial.paired(
        [p for values in own.values() for p in values], [p for values in saved.values() for p in values]
    )
    assert all(names[id(one)] == names[id(other)] and one.shape == other.shape for one, other in pairs)
    both = own.keys() & saved.keys()
    assert len(pairs) == sum(len(own[name]) for name in both) and "encoding" in both


def test_averages_of_other_settings_are_one_line() -> None:
    with pytest.raises(ValueError, match="other shapes"):
        initial.paired([torch.zeros(2), torch.zeros(3)], [torch.zeros(2), torch.zeros(4)])


@pytest.mark.parametrize(("before", "now"), [("learned", "white"), ("white", "learned")])
def test_a_run_begins_with_the_averages_of_a_surface_over_another_background(
    before: str, now: str, tmp_path: Path
) -> None:
    def scene(background: str) -> SdfScene:
        return SdfScene(**SMALL, background=background, resolution=8)

    first, second = scene(before), scene(now)
    state = State(first, optimiser_of(first), torch.Generator())
    state.average = [p.detach() + 1 for p in state.parameters()]
    save_checkpoint(tmp_path / "checkpoints", 1, state.state_dict(), keep=1)
    (tmp_path / "config.yaml").write_text("iterations: 1\n")
    initial.start_from(tmp_path, second, torch.device("cpu"))
    theirs, ours = first.parameter_groups(), second.parameter_groups()
    for name in ("encoding", "mlp", "geometry"):
        pairs = zip(theirs[name].parameters, ours[name].parameters, strict=True)
        assert all(torch.equal(one + 1, other) for one, other in pairs)


def test_a_field_is_per_scene_unit_and_nothing_beyond_the_cube() -> None:
    """Deep inside, light is stopped within the width of the shell, which is in scene units: 1 / 0.05."""
    scene = SdfScene(**SMALL, resolution=9, width=(0.05, 0.05), radius=2.0)
    scene.base.copy_(nodes(9)[..., 0] * 0 - 0.9)
    density, _ = scene.field()(torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.99, 0.0], [0.0, 2.01, 0.0]]))
    assert density.tolist() == pytest.approx([20, 20, 0], rel=1e-3)


def test_what_is_no_distance_is_outside() -> None:
    def distance(points: Tensor) -> Tensor:
        found = points.norm(dim=-1) - 0.5
        return torch.where(points[:, 0] > 0.8, torch.nan, found)

    ball = trimesh.Trimesh(*zero_set(_on_grid(distance, 24, chunk=1000)), process=False)
    assert ball.is_watertight
    np.testing.assert_allclose(ball.bounds, [[-0.5] * 3, [0.5] * 3], atol=0.01)


@pytest.mark.parametrize(("bias", "sign"), [(30.0, 1), (-30.0, -1)])
def test_a_distance_is_changed_by_at_most_its_reach_in_scene_units(bias: float, sign: int) -> None:
    scene = SdfScene(**SMALL, resolution=9, reach=0.3, radius=2.0)
    scene.base.copy_(nodes(9)[..., 0])
    with torch.no_grad():
        list(scene.change.mlp.parameters())[-1].fill_(bias)
    points = torch.tensor([[0.5, 0.0, 0.0], [-1.5, 0.2, 1.0]])
    torch.testing.assert_close(scene.signed_distance(points), points[:, 0] + sign * 0.3, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("prior", "weight"),
    [("embedded", 0.3), ("things", 0.3), ("views", 0.3), ("sd-1.5", 0.0), ("mvdream", 0.0)],
)
def test_curvature_is_penalised_where_the_weight_was_measured(prior: str, weight: float) -> None:
    config = compose_config(["prompt=a red mug", "scene=sdf", "init=x", f"prior={prior}"])
    assert config.penalties.curvature == weight


class Mine(SdfScene):
    """A signed distance of one's own, which has all that the library's has."""


class Owned(ImageScene):
    """A scene of one's own that begins with a field: a picture, of the colour in the field's middle, at so many levels."""

    features = frozenset({"from_field"})
    field_options = ("levels",)

    def __init__(self, *, levels: int = 3, seed: Any = 0) -> None:
        super().__init__(seed=seed)
        self.levels = levels

    def begin_with_field(self, field: HashGridScene) -> dict[str, float]:
        assert len(field.layout.levels) == self.levels
        middle = field.field()  # any of its methods
        assert middle is not None
        return {"density": middle(torch.zeros(1, 3))[0].item()}


class Promised(ImageScene):
    """A scene that says that it begins with a field, and does not know how."""

    features = frozenset({"from_field"})


@pytest.fixture
def own_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renderers, "_registered", {})
    for scene in (Mine, Owned, Promised):
        renderers.register(scene)


@pytest.mark.slow
@pytest.mark.usefixtures("own_scenes")
def test_a_registered_scene_that_begins_with_a_field_is_treated_as_the_librarys(tmp_path: Path) -> None:
    """From a field, from a run of its own, and as a stage; options that it must share follow, and others are refused."""
    quick = {
        **OPTIONS,
        "iterations": 1,
        "export.enabled": False,
        "scene.levels": 2,
        "scene.log2_table_size": 8,
    }
    distill.generate("a red mug", output_dir="first", **quick)
    small = {**OPTIONS, "iterations": 1, "export.enabled": False}
    for name in ("scene.march_steps", "scene.occupancy_resolution", "scene.log2_table_size"):
        small.pop(name, None)
    made = distill.generate(
        "a red mug", output_dir="second", init="first", scene="mine", **{**small, "scene.resolution": 24}
    )
    assert isinstance(made.scene, Mine) and made.manifest["conversion"]["silhouette_iou"] > 0.8
    assert compose_config(["prompt=a red mug", "scene=mine", "init=first"]).scene.levels == 2
    assert compose_config(["prompt=a red mug", "scene=mine", "init=second"]).scene.levels == 2
    third = compose_config(["prompt=a red mug", "init=second"])
    assert third.scene._target_.endswith(".Mine")
    initial.check_init(third)
    for words, why in [
        (["scene=sdf", "init=second"], "holds Mine, which is no field; scene=sdf begins with a run of scene=hash_grid"),
        (["scene=mine", "init=first", "scene.levels=3"], "levels 2, not 3"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=why):
            initial.check_init(compose_config(["prompt=a red mug", *words]))
    for words, why in [
        (["scene=mine"], "the scene Mine begins with the field of an earlier run, and there is none"),
        (["scene=mine", "init=first", "export.iso=3"], "export.iso=3.0 would do nothing"),
    ]:
        with pytest.raises(ValueError, match=why):
            compose_config(["prompt=a red mug", *words])
    staged = compose_config(
        ["prompt=a red mug", "stages=[field,surface]", "stage.surface.scene=mine", "scene.levels=2"]
    )
    assert staged.scene._target_.endswith(".Mine") and staged.scene.levels == 2


@pytest.mark.usefixtures("own_scenes")
def test_a_scene_that_is_no_distance_begins_with_a_field_by_the_contract_alone() -> None:
    """Its figures are in the manifest, and it has just the options that it names from the field."""
    quick = {
        **OPTIONS,
        "iterations": 1,
        "export.enabled": False,
        "scene.levels": 2,
        "scene.log2_table_size": 8,
    }
    first = distill.generate("a red mug", output_dir="first", **quick)
    small = {name: value for name, value in quick.items() if not name.startswith("scene.")}
    made = distill.generate("a red mug", output_dir="second", init="first", scene="owned", **small)
    field = first.scene.field()
    assert field is not None and isinstance(made.scene, Owned) and made.scene.levels == 2
    density = made.manifest["conversion"].pop("density")
    assert density == pytest.approx(field(torch.zeros(1, 3))[0].item())
    with pytest.raises(ValueError, match="levels 2, not 3"):
        initial.check_init(
            compose_config(["prompt=a red mug", "init=first", "scene=owned", "scene.levels=3"])
        )
    assert compose_config(["prompt=a red mug", "init=first", "scene=owned", "export.iso=3"]).export.iso == 3
    with pytest.raises(
        ValueError, match="Promised has the feature from_field and no method begin_with_field"
    ):
        compose_config(["prompt=a red mug", "init=first", "scene=promised"])

"""Light from all around: closed forms against sums over a sphere of directions, and the material of a textured mesh."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

from distill.cameras import orbit, turntable
from distill.meshes.read import read_surface, surface_of
from distill.renderers import environment as env
from distill.renderers.surface import METALLIC, ROUGHNESS, SurfaceScene

Fields = dict[str, Tensor]


def sphere(count: int = 40_000) -> Tensor:
    """Directions that each stand for an equal part of the sphere (a Fibonacci lattice)."""
    index = torch.arange(count, dtype=torch.float64) + 0.5
    z, angle = 1 - 2 * index / count, math.pi * (1 + math.sqrt(5)) * index
    across = (1 - z.square()).sqrt()
    return torch.stack([across * angle.cos(), across * angle.sin(), z], dim=-1)


def radiance(light: env.Environment, directions: Tensor) -> Tensor:
    """The first environment's light, added up lobe by lobe."""
    found = light.ambient[0].double().expand(len(directions), 3)
    for colour, axis, sharpness in zip(light.colour[0], light.axis[0], light.sharpness[0], strict=True):
        lobe = torch.exp(sharpness.double() * (directions @ axis.double() - 1))
        found = found + lobe[:, None] * colour.double()
    return found


def drawn(seed: int, count: int = 1) -> env.Environment:
    return env.draw(count, torch.Generator().manual_seed(seed))


NORMALS = normalize(torch.tensor([[0.3, -0.2, 0.9], [-1.0, 0.5, -0.1]]), dim=-1)


@pytest.mark.parametrize("light", [drawn(0), drawn(1), env.studio(1)], ids=["drawn", "another", "studio"])
def test_the_mean_light_is_the_sum_over_all_directions(light: env.Environment) -> None:
    assert radiance(light, sphere()).mean().item() == pytest.approx(env.MEAN, abs=1e-4)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("normal", NORMALS)
def test_what_is_scattered_is_the_cosines_sum(seed: int, normal: Tensor) -> None:
    light, directions = drawn(seed), sphere()
    cosine = (directions @ normal.double()).clamp(min=0)
    exact = 4 * (radiance(light, directions) * cosine[:, None]).mean(0)  # over pi, and 4 pi of sphere
    # Beyond degree 2 sharp lobes leave a remainder, at most that of the cosine itself: 3/32, at the horizon, of 4 MEAN.
    torch.testing.assert_close(
        env.irradiance(light, normal[None])[0].double(), exact, atol=0.1 * env.MEAN, rtol=0.05
    )


def test_a_broad_lobe_is_scattered_without_remainder() -> None:
    directions, axis = sphere(), NORMALS[1]
    light = env.Environment(torch.zeros(1, 3), torch.ones(1, 1, 3), axis[None, None], torch.ones(1, 1))
    for normal in (*NORMALS, -axis):
        cosine = (directions @ normal.double()).clamp(min=0)
        exact = 4 * (radiance(light, directions) * cosine[:, None]).mean(0)
        found = env.irradiance(light, normal[None])[0].double()
        torch.testing.assert_close(found, exact, atol=2e-3, rtol=0)


@pytest.mark.parametrize("roughness", [0.2, 0.5, 1.0])
def test_what_is_mirrored_is_the_lobes_sum(roughness: float) -> None:
    light, directions, way = drawn(2), sphere(), NORMALS[0]
    weight = torch.exp((directions @ way.double() - 1) / (2 * roughness**4))
    exact = (radiance(light, directions) * weight[:, None]).sum(0) / weight.sum()
    found = env.reflected(light, way[None], torch.tensor([[roughness]]))[0]
    torch.testing.assert_close(found.double(), exact, atol=1e-4, rtol=1e-3)


def test_a_mirror_shows_the_light_from_there() -> None:
    light = drawn(3)
    found = env.reflected(light, NORMALS[:1], torch.tensor([[0.02]]))[0]
    torch.testing.assert_close(found.double(), radiance(light, NORMALS[:1].double())[0], atol=1e-4, rtol=1e-4)


def even(value: float = 0.5) -> env.Environment:
    """The same light from everywhere."""
    return env.Environment(
        torch.full((1, 3), value), torch.zeros(1, 1, 3), torch.tensor([[[0.0, 0, 1]]]), torch.ones(1, 1)
    )


def shown(light: env.Environment, albedo: float, roughness: float, metallic: float, cosine: float) -> float:
    """Linear green of a surface whose normal is +z, seen at an angle."""
    ray = torch.tensor([[math.sqrt(1 - cosine**2), 0.0, -cosine]])
    parts = (torch.full((1, 3), albedo), torch.tensor([[roughness]]), torch.tensor([[metallic]]))
    return float(env.to_linear(env.lit(*parts, torch.tensor([[0.0, 0, 1]]), ray, light))[0, 1])


@pytest.mark.parametrize("roughness", [0.3, 0.6, 1.0])
@pytest.mark.parametrize("cosine", [1.0, 0.7, 0.3])
@pytest.mark.parametrize("white", [1.0, 0.5])
def test_what_is_no_metal_reflects_under_even_light_what_gltfs_material_does(
    roughness: float, cosine: float, white: float
) -> None:
    """The whole of appendix B.3.5, (1 - F) c / pi + F D V times the cosine, summed over the directions to the light."""
    out = sphere()
    out = out[out[:, 2] > 0]
    view = torch.tensor([math.sqrt(1 - cosine**2), 0.0, cosine], dtype=torch.float64)
    half, z, square = normalize(out + view, dim=-1), out[:, 2], roughness**4
    mirrors = env.DIELECTRIC + (1 - env.DIELECTRIC) * (1 - half @ view) ** 5
    spread = square / (math.pi * (half[:, 2].square() * (square - 1) + 1).square())

    def shadow(z: Tensor) -> Tensor:
        return (square + (1 - square) * z.square()).sqrt()

    visible = 0.5 / (cosine * shadow(z) + z * shadow(view[2]))
    base = ((white + 0.055) / 1.055) ** 2.4
    whole = (1 - mirrors) * base / math.pi + mirrors * spread * visible
    exact = float((whole * z).mean()) * 2 * math.pi
    assert shown(even(), white, roughness, 0.0, cosine) == pytest.approx(0.5 * exact, abs=0.01)


def test_under_even_light_nothing_is_brighter_than_it_and_a_smooth_metal_is_its_colour() -> None:
    # Smooth and head on, what is not scattered is mirrored; a rough one loses what bounces between its facets.
    assert shown(even(), 1.0, 0.1, 0.0, 1.0) == pytest.approx(0.5, abs=0.002)
    assert shown(even(), 1.0, 1.0, 0.0, 1.0) == pytest.approx(0.5 * 0.972, abs=0.003)
    grey = 0.5
    linear = ((grey + 0.055) / 1.055) ** 2.4
    assert shown(even(), grey, 0.1, 1.0, 1.0) == pytest.approx(0.5 * linear, rel=0.05)
    # Anything is a mirror at a grazing angle (Fresnel).
    assert shown(even(), 0.0, 0.1, 0.0, 0.02) > 10 * shown(even(), 0.0, 0.1, 0.0, 1.0)


@pytest.mark.parametrize("roughness", [0.2, 0.4, 0.8, 1.0])
@pytest.mark.parametrize("cosine", [0.3, 0.9])
def test_the_reflectance_under_even_light_is_the_integral_over_directions(
    roughness: float, cosine: float
) -> None:
    """GGX with Smith's shadowing (Walter et al. 2007; Heitz 2014), over the directions to the light rather than over facets."""
    square, side = roughness**4, 600
    view = torch.tensor([math.sqrt(1 - cosine**2), 0.0, cosine], dtype=torch.float64)
    middle = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    down, turn = torch.meshgrid(middle * math.pi / 2, middle * 2 * math.pi, indexing="ij")
    out = torch.stack([down.sin() * turn.cos(), down.sin() * turn.sin(), down.cos()], dim=-1)
    half = normalize(out + view, dim=-1)
    spread = square / (math.pi * (half[..., 2].square() * (square - 1) + 1).square())

    def shadow(z: Tensor) -> Tensor:
        return (square + (1 - square) * z.square()).sqrt()

    z = out[..., 2]
    visible = 0.5 / (cosine * shadow(z) + z * shadow(view[2]))
    weight = spread * visible * z * down.sin() * (math.pi / 2) * (2 * math.pi) / side**2
    grazing = (1 - half @ view) ** 5
    exact = ((weight * (1 - grazing)).sum(), (weight * grazing).sum())
    found = env.scattering(torch.tensor([[cosine]]), torch.tensor([[roughness]]))
    for value, true in zip(found, exact, strict=True):
        assert float(value) == pytest.approx(float(true), abs=0.01)


def test_colours_are_coded_and_decoded() -> None:
    colour = torch.linspace(0, 1, 101).requires_grad_()
    torch.testing.assert_close(env.to_srgb(env.to_linear(colour)), colour, atol=1e-5, rtol=0)
    assert float(env.to_linear(torch.tensor(0.5))) == pytest.approx(0.21404, abs=1e-5)
    env.to_srgb(colour).sum().backward()
    assert colour.grad is not None and torch.isfinite(colour.grad).all()


def test_a_materials_gradients_are_those_of_finite_differences() -> None:
    light = drawn(4)[torch.zeros(2, dtype=torch.long)]
    light = env.Environment(*(value.double() for value in vars(light).values()))
    normal = NORMALS.double()
    ray = normalize(-normal + torch.tensor([[0.3, 0.1, 0.0]], dtype=torch.float64), dim=-1)

    def of(albedo: Tensor, roughness: Tensor, metallic: Tensor) -> Tensor:
        return env.lit(0.3 * albedo, roughness, metallic, normal, ray, light)

    values = [torch.rand(2, n, dtype=torch.float64) * 0.5 + 0.3 for n in (3, 1, 1)]
    assert torch.autograd.gradcheck(of, [value.requires_grad_() for value in values])


# --- on a mesh ----------------------------------------------------------------------------------


def ball(**options: Any) -> SurfaceScene:
    scene = trimesh.Scene([trimesh.creation.icosphere(subdivisions=3)])
    mesh = surface_of(Path("ball.glb"), scene, np.eye(3, dtype=np.float32), frozenset())
    small: dict[str, Any] = {"levels": 4, "log2_table_size": 10, "finest_resolution": 32}
    return SurfaceScene(mesh, **{**small, "material": "pbr", **options})


def test_a_material_keeps_within_its_bounds_and_begins_without_metal() -> None:
    scene = ball()
    assert scene.finish is not None
    points = torch.rand(100, 3) * 2 - 1
    rough, metal = scene.material(points)
    assert 0.4 < rough.mean() < 0.6 and metal.max() < 0.2
    for group in scene.finish.parameter_groups().values():
        for parameter in group.parameters:
            parameter.data.mul_(1000)
    for value, (low, high) in zip(scene.material(points), (ROUGHNESS, METALLIC), strict=True):
        assert value.min() >= low - 1e-6 and value.max() <= high + 1e-6
    with pytest.raises(ValueError, match="use material=pbr"):
        ball(material="albedo").material(points)


def test_the_light_is_another_for_each_picture_in_training_and_stands_still_otherwise() -> None:
    scene, side = ball(), orbit(torch.tensor([20.0, 20.0]), torch.tensor([10.0, 10.0]), 3.2, 40.0)
    one, other = scene.render(side, 24, 24, generator=torch.Generator().manual_seed(0)).rgb
    assert (one - other).abs().max() > 0.1
    again = scene.render(side, 24, 24, generator=torch.Generator().manual_seed(0)).rgb
    assert torch.equal(again[0], one)
    still = scene.render(side, 24, 24).rgb
    torch.testing.assert_close(still[0], still[1], atol=1e-6, rtol=0)
    # A sphere turns its middle to the camera: the studio's light is in the frame of the object.
    front, back = scene.render(turntable(2, 15.0), 24, 24).rgb[:, 12, 12]
    assert front.mean() > back.mean() + 0.03
    plain = ball(material="albedo").render(side, 24, 24).rgb
    assert plain[0, 12, 12].std() < 0.05


def test_all_grids_learn_and_parts_of_a_picture_are_lit_as_the_whole() -> None:
    scene, side = ball(), orbit(torch.tensor([20.0, 80.0]), torch.tensor([10.0, 30.0]), 3.2, 40.0)

    def gradients(**options: Any) -> list[Tensor]:
        scene.zero_grad()
        scene.render(
            side, 16, 16, generator=torch.Generator().manual_seed(1), **options
        ).rgb.square().sum().backward()
        parameters = [p for g in scene.parameter_groups().values() for p in g.parameters]
        assert all(p.grad is not None for p in parameters)
        return [p.grad.clone() for p in parameters if p.grad is not None]

    whole = gradients()
    # Of the colour a grid and three layers, of the finish as many, each with gradients of its own.
    alone = [p for group in ball(material="albedo").parameter_groups().values() for p in group.parameters]
    assert scene.finish is not None and len(whole) == 2 * len(alone) > 0
    assert all(g.abs().max() > 0 for g in whole)
    for one, other in zip(whole, gradients(chunk_rays=64, recompute=True), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


#: Roughness and metallic of two materials that are kept, and the colour of both.
KEPT = {"chrome": (0.1, 1.0), "chalk": (0.95, 0.0)}
GREY = 0.6


def kept_balls(textured: bool) -> SurfaceScene:
    """A ball of chrome, one of chalk, and one that is learnt, beside one another; the finish as factors, or in a texture."""
    scene = trimesh.Scene()
    for place, (name, (rough, metal)) in enumerate({**KEPT, "learnt": (1.0, 1.0)}.items()):
        made = trimesh.creation.icosphere(subdivisions=3)
        made.apply_translation([0, 2.5 * place, 0])
        linear = ((GREY + 0.055) / 1.055) ** 2.4
        material = PBRMaterial(name=name, baseColorFactor=[linear, linear, linear, 1.0], roughnessFactor=rough, metallicFactor=metal)  # fmt: skip
        if textured:
            material.roughnessFactor, material.metallicFactor = 1.0, 1.0
            texel = np.array([[[7, round(255 * rough), round(255 * metal)]]], np.uint8)
            material.metallicRoughnessTexture = Image.fromarray(texel.repeat(2, 0).repeat(2, 1))
        made.visual = TextureVisuals(uv=np.random.default_rng(0).random((len(made.vertices), 2)), material=material)  # fmt: skip
        scene.add_geometry(made, geom_name=name)
    mesh = surface_of(Path("three.glb"), scene, np.eye(3, dtype=np.float32), frozenset(KEPT))
    return SurfaceScene(mesh, material="pbr", samples=1, levels=2, log2_table_size=8, finest_resolution=16)


@pytest.mark.parametrize("textured", [False, True])
def test_kept_parts_show_their_own_roughness_and_metallic(textured: bool) -> None:
    scene = kept_balls(textured)
    found = {}
    for number, part in enumerate(scene.mesh.parts):
        if not part.kept:
            continue
        face = torch.from_numpy(np.flatnonzero(scene.mesh.part == number))
        weight = torch.full((len(face), 3), 1 / 3)
        normal = scene._normals(face, weight, torch.tensor([[-1.0, 0.0, 0.0]]).expand(len(face), 3))
        toward = (normal[:, 0] > 0.3).nonzero()[:, 0]
        middle = scene.triangles[face[toward]].mean(1)
        ray = torch.tensor([[-1.0, 0.0, 0.0]]).expand(len(toward), 3)
        style = scene._style(turntable(1), "albedo", False, False, None, 1)
        seen = scene._trace((middle - 0.01 * ray)[:, None], ray[:, None], torch.zeros(len(toward), dtype=torch.long), style)[0]  # fmt: skip
        rough, metal = (torch.full((len(toward), 1), value) for value in KEPT[part.material])
        light = env.studio(1)[torch.zeros(len(toward), dtype=torch.long)]
        wanted = env.lit(torch.full((len(toward), 3), GREY), rough, metal, normal[toward], ray, light)
        torch.testing.assert_close(seen, wanted, atol=2e-3, rtol=0)  # a texture has 255 steps
        found[part.material] = seen
    # The learnt finish is between these two, and would make them alike.
    assert (found["chrome"] - found["chalk"]).abs().mean() > 0.05


def test_the_file_has_roughness_in_green_and_metallic_in_blue(tmp_path: Path) -> None:
    scene = ball()
    writer = scene.assets()["mesh"]
    writer(tmp_path, lambda *_: pytest.fail("no picture is needed"), {"texture_size": 64})
    (mesh,) = trimesh.load_scene(tmp_path / "mesh.glb").geometry.values()
    material = mesh.visual.material
    assert (material.metallicFactor, material.roughnessFactor) == (1.0, 1.0)
    packed = np.asarray(material.metallicRoughnessTexture.convert("RGB"), np.float64)
    rough, metal = scene.material(torch.from_numpy(np.array(mesh.vertices, np.float32)))
    assert (packed[..., 0] == 255).all()
    low, high = 255 * float(rough.min()) - 3, 255 * float(rough.max()) + 3
    assert low <= packed[..., 1].min() and packed[..., 1].max() <= high
    low, high = 255 * float(metal.min()) - 3, 255 * float(metal.max()) + 3
    assert low <= packed[..., 2].min() and packed[..., 2].max() <= high
    reading = {"up": "auto", "front": "auto", "keep": [], "init_texture": False}
    assert len(read_surface({"file": str(tmp_path / "mesh.glb"), **reading}).faces) == len(scene.mesh.faces)

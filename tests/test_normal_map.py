"""The normal map of a textured mesh: frames and normals by hand, gradients, the baked texture and the written file."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import khronos
import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

from distill.cameras import orbit
from distill.meshes.read import RADIUS, surface_of
from distill.meshes.tangents import in_tangent_space, tangents
from distill.renderers import environment as env
from distill.renderers.surface import PERTURBATION, SurfaceScene
from distill.run.config.compose import compose_config

SIDE = orbit(torch.tensor([20.0, 80.0]), torch.tensor([10.0, 30.0]), 3.2, 40.0)


def scene_of(scene: trimesh.Scene, *keep: str, **options: Any) -> SurfaceScene:
    mesh = surface_of(Path("toy.glb"), scene, np.eye(3, dtype=np.float32), frozenset(keep))
    small: dict[str, Any] = {"levels": 4, "log2_table_size": 10, "finest_resolution": 32}
    return SurfaceScene(mesh, **{**small, "material": "pbr", "normal_map": True, **options})


def ball(**options: Any) -> SurfaceScene:
    made = trimesh.creation.icosphere(subdivisions=3)
    assert len(made.vertex_normals)  # those of a file
    return scene_of(trimesh.Scene([made]), **options)


@torch.no_grad()
def bumpy(scene: SurfaceScene) -> SurfaceScene:
    """Draw a perturbation that differs from place to place."""
    assert scene.perturbation is not None
    generator = torch.Generator().manual_seed(5)
    scene.perturbation.grid.uniform_(-1, 1, generator=generator)
    *_, weight, _ = scene.perturbation.mlp.parameters()
    weight.uniform_(-1, 1, generator=generator)
    return scene


def directions(count: int, seed: int) -> Tensor:
    return normalize(torch.randn(count, 3, generator=torch.Generator().manual_seed(seed)), dim=-1)


# --- frames and normals -------------------------------------------------------------------------

#: Two by three, in the plane of x and z, seen from -y.
QUAD = np.array([[0, 0, 0], [2, 0, 0], [2, 0, 3], [0, 0, 3]], np.float32)
QUAD_FACES = np.array([[0, 1, 2], [0, 2, 3]])


@pytest.mark.parametrize(("v_along_x", "w"), [(False, 1.0), (True, -1.0)])
def test_a_quads_tangent_is_where_u_grows_and_its_bitangent_where_v_does(v_along_x: bool, w: float) -> None:
    x, _, z = QUAD.T
    uv = np.stack([z / 3, x / 2 if v_along_x else 1 - x / 2], axis=1)
    normals = np.tile(np.array([0, -1, 0], np.float32), (4, 1))
    found = tangents(QUAD, QUAD_FACES, uv, normals)
    np.testing.assert_allclose(found, [[0, 0, 1, w]] * 4, atol=1e-6)
    bitangent = np.cross(normals, found[:, :3]) * found[:, 3:]
    np.testing.assert_allclose(bitangent, [[1 if v_along_x else -1, 0, 0]] * 4, atol=1e-6)
    # A normal that is not the plane's: the tangent keeps at right angles to it.
    leaning = np.tile(np.array([0, -0.8, 0.6], np.float32), (4, 1))
    np.testing.assert_allclose(tangents(QUAD, QUAD_FACES, uv, leaning), [[0, 0.6, 0.8, w]] * 4, atol=1e-6)


def test_coordinates_that_tell_nothing_leave_some_frame() -> None:
    normals = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1], [0.6, 0, 0.8]], np.float32)
    found = tangents(QUAD, QUAD_FACES, np.zeros((4, 2), np.float32), normals)
    np.testing.assert_allclose(np.linalg.norm(found[:, :3], axis=1), 1, atol=1e-6)
    np.testing.assert_allclose((found[:, :3] * normals).sum(1), 0, atol=1e-6)
    assert (found[:, 3] == 1).all()


def test_a_normal_is_perturbed_by_the_tangent_part_alone() -> None:
    up = torch.tensor([[0.0, 0.0, 1.0]])
    for height in (0.0, 7.0, -2.0):
        found = env.perturbed(up, torch.tensor([[0.3, -0.4, height]]))
        torch.testing.assert_close(found, torch.tensor([[0.3, -0.4, 1.0]]) / math.sqrt(1.25))
    normal = directions(1000, 0)
    assert torch.equal(env.perturbed(normal, torch.zeros(1000, 3)), normal)
    # The corners of its cube are the farthest that a perturbation can be.
    corners = PERTURBATION * directions(1000, 1).sign()
    tilted = env.perturbed(normal, corners)
    torch.testing.assert_close(tilted.norm(dim=1), torch.ones(1000))
    assert (tilted * normal).sum(1).min() >= math.cos(math.radians(45)) - 1e-6


def test_a_frame_tells_the_perturbed_normal() -> None:
    normal, vector = directions(50, 0), directions(50, 1)
    tangent = normalize(torch.linalg.cross(normal, directions(50, 2)), dim=-1)
    for w in (1.0, -1.0):
        n = in_tangent_space(vector, 3 * normal, torch.cat([2 * tangent, torch.full((50, 1), w)], dim=1))
        x, y, z = n.split(1, dim=1)
        bitangent = w * torch.linalg.cross(normal, tangent)
        torch.testing.assert_close(x * tangent + y * bitangent + z * normal, env.perturbed(normal, vector), atol=1e-5, rtol=0)  # fmt: skip


def test_gradients_are_those_of_finite_differences() -> None:
    normal, ray = directions(3, 0).double(), directions(3, 1).double()
    normal = torch.where((normal * ray).sum(1, keepdim=True) > 0, -normal, normal)
    light = env.draw(3, torch.Generator().manual_seed(2))
    light = env.Environment(*(value.double() for value in vars(light).values()))
    grey, half = torch.full((3, 3), 0.3).double(), torch.full((3, 1), 0.5).double()

    def lit(vector: Tensor) -> Tensor:
        return env.lit(grey, half, half, env.perturbed(normal, vector), ray, light)

    vector = (0.3 * directions(3, 3)).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: env.perturbed(normal, v), [vector])
    assert torch.autograd.gradcheck(lit, [vector])
    assert torch.autograd.gradcheck(lit, [torch.zeros_like(vector).requires_grad_()])


# --- the scene ----------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["fused", "torch"])
def test_the_first_pictures_are_those_without_it_to_the_bit(backend: str) -> None:
    drawn = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    plain, scene = (ball(normal_map=on, seed=seed, backend=backend) for on, seed in zip((False, True), drawn, strict=True))  # fmt: skip
    assert torch.equal(drawn[0].get_state(), drawn[1].get_state())
    for shading in ("albedo", "lambertian", "normals"):
        looking = [one.render(SIDE, 16, 16, shading=shading).rgb for one in (scene, plain)]
        assert torch.equal(*looking)
    seen = [
        one.render(SIDE, 16, 16, generator=torch.Generator().manual_seed(1)).rgb for one in (scene, plain)
    ]
    assert torch.equal(*seen)
    for rgb in seen:
        rgb.square().sum().backward()
    for name, parameter in plain.named_parameters():
        found, wanted = scene.get_parameter(name).grad, parameter.grad
        assert found is not None and wanted is not None and torch.equal(found, wanted), name


def test_the_gradient_reaches_the_grid() -> None:
    scene = ball()
    assert scene.perturbation is not None
    scene.render(SIDE, 16, 16).rgb.square().sum().backward()
    first, _, last, _ = (parameter.grad for parameter in scene.perturbation.mlp.parameters())
    assert first is not None and not first.any()  # it is multiplied by 0
    assert last is not None and last.any()
    bumpy(scene).zero_grad()
    scene.render(SIDE, 16, 16).rgb.square().sum().backward()
    grid = scene.perturbation.grid
    assert grid.grad is not None and grid.grad.any()
    assert {id(p) for g in scene.parameter_groups().values() for p in g.parameters} == {
        id(p) for p in scene.parameters()
    }
    # A step along it does what the gradient says.
    step = 1e-2 * grid.grad / grid.grad.norm()
    with torch.no_grad():
        sums = []
        for sign in (1, -1):
            grid.add_(step, alpha=sign)
            sums.append(scene.render(SIDE, 16, 16).rgb.double().square().sum())
            grid.sub_(step, alpha=sign)
    assert float(sums[0] - sums[1]) == pytest.approx(2 * float((grid.grad * step).sum()), rel=0.03)
    # The mesh keeps its own normals, for ControlNets and penalties.
    own, plain = (one.render(SIDE, 16, 16, normals=True).normal for one in (scene, ball(normal_map=False)))
    assert own is not None and plain is not None and torch.equal(own, plain)


def middles(scene: SurfaceScene, faces: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Faces' middles, their outward normals, and those perturbed, seen from outside."""
    weight = torch.full((len(faces), 3), 1 / 3)
    outward = normalize(scene.triangles[faces].mean(1) - scene.triangles[faces].mean((0, 1)), dim=-1)
    facing = scene._normals(faces, weight, -outward)
    return weight, facing, scene._perturbed(faces, weight, facing).detach()


@pytest.mark.parametrize("mirror", [False, True])
def test_what_is_placed_again_has_its_bumps_turned_and_a_back_has_dents(mirror: bool) -> None:
    made = trimesh.creation.icosphere(subdivisions=2)
    assert len(made.vertex_normals)
    linear = trimesh.transformations.rotation_matrix(1.1, (1, 2, 3))[:3, :3]
    if mirror:
        linear = linear @ np.diag([1.0, -1, 1])
    scene = trimesh.Scene()
    scene.add_geometry(made, geom_name="one", node_name="first")
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = 0.7 * linear, (3, 0, 0)
    scene.graph.update("second", "world", matrix=matrix, geometry="one")
    found = bumpy(scene_of(scene))
    first, second = torch.arange(len(found.mesh.faces)).view(2, -1)
    turn = torch.from_numpy(linear).float()
    _, plain, bent = middles(found, first)
    weight, turned, again = middles(found, second)
    torch.testing.assert_close(turned, plain @ turn.T, atol=1e-4, rtol=0)
    torch.testing.assert_close(again, bent @ turn.T, atol=2e-3, rtol=0)
    assert (bent - plain).norm(dim=1).mean() > 0.1
    torch.testing.assert_close(found._perturbed(first, weight, -plain).detach(), -bent)


def test_kept_parts_keep_their_normals() -> None:
    scene = trimesh.Scene()
    for place, name in enumerate(("kept", "learnt")):
        made = trimesh.creation.icosphere(subdivisions=1)
        made.apply_translation([0, 2.5 * place, 0])
        made.visual = TextureVisuals(material=PBRMaterial(name=name))
        scene.add_geometry(made, geom_name=name)
    found = bumpy(scene_of(scene, "kept"))
    kept = torch.tensor([part.kept for part in found.mesh.parts])[torch.from_numpy(found.mesh.part)]
    for here, same in ((kept, True), (~kept, False)):
        _, facing, bent = middles(found, here.nonzero()[:, 0])
        assert torch.equal(facing, bent) == same


def test_it_is_refused_without_the_material_or_the_mesh() -> None:
    with pytest.raises(ValueError, match=r"^normal_map=true .* got material=albedo; use material=pbr$"):
        ball(material="albedo")
    with pytest.raises(ValueError, match="use normal_map=true"):
        ball(normal_map=False).perturbations(torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"^scene.normal_map=True would do nothing: add scene.material=pbr"):
        compose_config(["prompt=x", "mesh=a.glb", "scene.normal_map=true"])
    with pytest.raises(ValueError, match="normal_map"):
        compose_config(["prompt=x", "scene.normal_map=true"])
    words = ["prompt=x", "mesh=a.glb", "scene.material=pbr", "scene.normal_map=true"]
    assert compose_config(words).scene.normal_map is True


# --- the file -----------------------------------------------------------------------------------


def written(scene: SurfaceScene, folder: Path, size: int) -> tuple[dict[str, Any], list[Any], Any]:
    """A GLB's JSON, its accessors as arrays, and its normal map, decoded, the first row on top."""
    scene.assets()["mesh"](folder, lambda *_: pytest.fail("no picture is needed"), {"texture_size": size})
    content = (folder / "mesh.glb").read_bytes()
    (length,) = struct.unpack_from("<I", content, 12)
    tree = json.loads(content[20 : 20 + length])
    binary = content[28 + length :]

    def view(index: int) -> bytes:
        view = tree["bufferViews"][index]
        start = view.get("byteOffset", 0)
        return binary[start : start + view["byteLength"]]

    widths, types = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}, {5126: "<f4", 5125: "<u4"}
    arrays = [
        np.frombuffer(view(a["bufferView"]), types[a["componentType"]]).reshape(-1, widths[a["type"]])
        for a in tree["accessors"]
    ]
    (material,) = tree["materials"]
    source = tree["textures"][material["normalTexture"]["index"]]["source"]
    (folder / "map.png").write_bytes(view(tree["images"][source]["bufferView"]))
    pixels = np.asarray(Image.open(folder / "map.png"), np.float64)
    assert pixels.shape == (size, size, 3)
    return tree, arrays, pixels / 255 * 2 - 1


@pytest.mark.parametrize("smooth", [True, False])
def test_the_normal_map_has_the_scenes_normals_in_the_files_frames(smooth: bool, tmp_path: Path) -> None:
    made = trimesh.creation.icosphere(subdivisions=1)
    assert not smooth or len(made.vertex_normals)
    scene = bumpy(scene_of(trimesh.Scene([made])))
    size = 128
    tree, arrays, texels = written(scene, tmp_path, size)
    (primitive,) = (p for mesh in tree["meshes"] for p in mesh["primitives"])
    attributes = {name: arrays[index] for name, index in primitive["attributes"].items()}
    assert set(attributes) == {"POSITION", "TEXCOORD_0", "NORMAL", "TANGENT"}
    corner = arrays[primitive["indices"]].reshape(-1, 3)
    position, uv = (attributes[name][corner].astype(np.float64) for name in ("POSITION", "TEXCOORD_0"))
    assert smooth == (len(position) * 3 > len(attributes["POSITION"]))  # flat triangles share no vertices
    unit, w = attributes["TANGENT"][:, :3], attributes["TANGENT"][:, 3]
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose((unit * attributes["NORMAL"]).sum(1), 0, atol=1e-5)
    assert set(np.unique(w)) <= {-1.0, 1.0}
    normal, tangent = (attributes[name][corner].astype(np.float64) for name in ("NORMAL", "TANGENT"))
    # A grid of texel centres against all faces; glTF counts v from the top. Those well within a face are checked.
    row, column = np.divmod(np.arange(0, size * size, 7), size)
    centre = np.stack([column, row, np.ones_like(row)]).astype(np.float64)
    places = np.concatenate([uv * size - 0.5, np.ones((len(uv), 3, 1))], axis=2)
    weights = np.linalg.inv(places.transpose(0, 2, 1)) @ centre
    face, texel = np.nonzero(weights.min(1) > 0.02)
    weight = weights.transpose(0, 2, 1)[face, texel]
    assert len(face) > 400 and len(np.unique(texel)) == len(texel)

    def at(values: Any) -> Any:
        return np.einsum("nc,nck->nk", weight, values[face])

    point, n, t = at(position), at(normal), at(tangent[..., :3])
    n /= np.linalg.norm(n, axis=1, keepdims=True)
    t -= n * (n * t).sum(1, keepdims=True)
    t /= np.linalg.norm(t, axis=1, keepdims=True)
    x, y, z = np.split(texels[row[texel], column[texel]], 3, axis=1)
    found = x * t + y * np.cross(n, t) * tangent[face, 0, 3:] + z * n
    vector = scene.perturbations(torch.from_numpy(RADIUS * point).float()).detach().double()
    wanted = env.perturbed(torch.from_numpy(n), vector).numpy()
    np.testing.assert_allclose(found, wanted, atol=0.012)  # a texture has 255 steps
    assert np.linalg.norm(wanted - n, axis=1).mean() > 0.1
    # The picture's right is where u grows, and its top where v of glTF shrinks.
    edges, steps = position[:, 1:] - position[:, :1], uv[:, 1:] - uv[:, :1]
    grows = np.linalg.inv(steps) @ edges
    right, down = grows[face, 0], grows[face, 1]
    assert ((right * t).sum(1) > 0).mean() > 0.95
    assert ((down * np.cross(n, t) * tangent[face, 0, 3:]).sum(1) < 0).mean() > 0.95
    if not smooth:
        across = np.cross(edges[face, 0], edges[face, 1])
        np.testing.assert_allclose(across / np.linalg.norm(across, axis=1, keepdims=True), n, atol=1e-4)


@pytest.mark.parametrize("smooth", [True, False])
def test_the_khronos_validator_finds_nothing(smooth: bool, tmp_path: Path) -> None:
    made = trimesh.creation.icosphere(subdivisions=2)
    assert not smooth or len(made.vertex_normals)
    scene = bumpy(scene_of(trimesh.Scene([made])))
    written(scene, tmp_path, 64)
    assert khronos.wrong(tmp_path / "mesh.glb") == []


def test_without_perturbation_the_map_is_plain(tmp_path: Path) -> None:
    _, _, texels = written(ball(), tmp_path, 64)
    assert np.abs(texels - (0, 0, 1)).max() <= 1.01 / 255

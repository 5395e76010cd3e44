"""Renders of a user's meshes, or of the embedded world's objects, in the layout that ``views`` reads.

Objects are centred, their longest side scaled to 1, and seen from cameras around them (Zero-1-to-3's protocol: a
distance between 1.5 and 2.2, a field of view of 49.13 degrees, directions even over the sphere). Light is soft and
fixed in the world. Files of glTF, OBJ and most of PLY have y up and their front towards +z; here z is up and +x the front.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm
from trimesh.ray.ray_pyembree import RayMeshIntersector

from distill.cameras import Cameras, orbit
from distill.embedded.raycast import shade
from distill.export.frame import srgb_to_linear
from distill.files.atomic import write_atomic
from distill.lab.novel_view.pairs import mixed
from distill.lab.novel_view.placing import in_ball, within
from distill.meshes.look import to_srgb
from distill.priors.novel_view.pose import world_to_camera

log = logging.getLogger(__name__)

Array = NDArray[np.floating[Any]]
SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".stl", ".off")
#: From y up and front +z to z up and front +x.
Y_UP = np.array([[0.0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])


@dataclass(frozen=True)
class Protocol:
    """Camera and light settings of the renders.

    Attributes:
        views: pictures of each object from ``elevation_deg``.
        steep: further pictures of each, from ``steep_deg``.
        size: their height and width, pixels.
        distance: range of the cameras' distances; the object's longest side is 1.
        elevation_deg: range of the cameras' elevations, drawn evenly over the sphere between them.
        steep_deg: range of the elevations of ``steep``, equally likely angles, straight above and below among them.
        fov_y_deg: range of the vertical field of view, degrees; one for each object.
        scale: range that an object's size is multiplied by; one for each object.
        samples: rays per pixel along each axis.
        seed: of the cameras; each object has its own, by the end of its name, eight bytes, and its length.
        up: ``y`` or ``z``, the meshes' upward axis.
        lights_deg: each object's lights are turned about the vertical axis by up to so much, to either side.
        offset: each object is moved away from the axis that the cameras go round, once for all of its pictures, by up to so much
            in any direction, scene units; by less where it would leave a picture.
    """

    views: int = 12
    size: int = 256
    distance: tuple[float, float] = (1.5, 2.2)
    elevation_deg: tuple[float, float] = (-90.0, 90.0)
    fov_y_deg: tuple[float, float] = (49.13, 49.13)
    scale: tuple[float, float] = (1.0, 1.0)
    samples: int = 2
    seed: int = 0
    up: str = "y"
    lights_deg: float = 0.0
    steep: int = 0
    steep_deg: tuple[float, float] = (-89.9, 89.9)
    offset: float = 0.0

    @property
    def pictures(self) -> int:
        """All pictures of an object."""
        return self.views + self.steep


def _generator(protocol: Protocol, uid: str, *more: int) -> torch.Generator:
    number = int.from_bytes(uid.encode()[-8:].rjust(8, b"\0"), "little")
    return torch.Generator().manual_seed(mixed(protocol.seed, number, len(uid), *more))


def _between(low: float, high: float, count: int, g: torch.Generator) -> torch.Tensor:
    return low + (high - low) * torch.rand(count, generator=g)


def draw_lights(protocol: Protocol, uid: str) -> float:
    """Return the rotation of an object's lights in degrees, the same at every call."""
    ends = (-protocol.lights_deg, protocol.lights_deg)
    return _between(*ends, 1, _generator(protocol, uid, 1)).item()


def draw_scale(protocol: Protocol, uid: str) -> float:
    """Return the factor on an object's size, the same at every call."""
    return _between(*protocol.scale, 1, _generator(protocol, uid, 2)).item()


def draw_cameras(protocol: Protocol, uid: str) -> Cameras:
    """An object's cameras, the same at every call."""
    g, count = _generator(protocol, uid), protocol.views
    azimuth = _between(-180.0, 180.0, count, g)
    # Even over the sphere: the height, not the angle, is uniform.
    low, high = (math.sin(math.radians(end)) for end in protocol.elevation_deg)
    elevation = torch.rad2deg(torch.asin(_between(low, high, count, g)))
    distance = _between(*protocol.distance, count, g)
    # Of a generator of their own: the usual views are the same with them and without.
    g, count = _generator(protocol, uid, 5), protocol.steep
    azimuth = torch.cat([azimuth, _between(-180.0, 180.0, count, g)])
    elevation = torch.cat([elevation, _between(*protocol.steep_deg, count, g)])
    distance = torch.cat([distance, _between(*protocol.distance, count, g)])
    fov = _between(*protocol.fov_y_deg, 1, _generator(protocol, uid, 3)).item()
    return orbit(azimuth, elevation, distance, fov)


def displacement(protocol: Protocol, uid: str, corners: Array, cameras: Cameras) -> Array:
    """Where an object stands, relative to the axis, the same at every call, shape ``[3]``."""
    number = int(torch.randint(2**62, (1,), generator=_generator(protocol, uid, 4)))
    return within(corners, in_ball(np.random.default_rng(number), protocol.offset), cameras)


@dataclass(frozen=True)
class Surface:
    """Triangles with what colours them.

    Attributes:
        mesh: all of them.
        colour: ``(faces, barycentric) -> sRGB``, shapes ``[n]`` and ``[n, 3]`` to ``[n, 3]``.
    """

    mesh: trimesh.Trimesh
    colour: Callable[[NDArray[np.integer[Any]], Array], Array]


def load_surface(path: Path, up: str = "y") -> Surface:
    """Read a mesh file with its colours or textures, centred, its longest side 1, z up.

    Raises:
        ValueError: it cannot be read, or has no surface.
    """
    try:
        loaded: Any = trimesh.load(path, force="scene")
        meshes = [
            g for g in loaded.dump(concatenate=False) if isinstance(g, trimesh.Trimesh) and len(g.faces)
        ]
    except Exception as error:  # readers of many formats fail in many ways
        raise ValueError(
            f"{path} is no readable mesh: {type(error).__name__} {str(error).splitlines()[:1]}"
        ) from error
    if not meshes:
        raise ValueError(f"{path} has no faces")
    starts = np.cumsum([0, *(len(mesh.faces) for mesh in meshes)])
    linear = path.suffix.lower() in (".glb", ".gltf")
    parts = [_colour_of(mesh, linear) for mesh in meshes]
    whole = trimesh.Trimesh(
        np.concatenate([mesh.vertices for mesh in meshes]),
        np.concatenate([m.faces + offset for m, offset in zip(meshes, _offsets(meshes), strict=True)]),
        process=False,
    )
    if not np.isfinite(whole.vertices).all() or whole.extents.max() <= 0:
        raise ValueError(f"{path} has vertices that are not finite, or all in one place")
    if up == "y":
        whole.apply_transform(Y_UP)
    whole.apply_translation(-whole.bounds.mean(0))
    whole.apply_scale(1 / whole.extents.max())

    def colour(faces: NDArray[np.integer[Any]], barycentric: Array) -> Array:
        found = np.empty((len(faces), 3))
        for part, start, end in zip(parts, starts[:-1], starts[1:], strict=True):
            rows = (faces >= start) & (faces < end)
            if rows.any():
                found[rows] = part(faces[rows] - start, barycentric[rows])
        return found

    return Surface(whole, colour)


def _offsets(meshes: Sequence[trimesh.Trimesh]) -> NDArray[np.integer[Any]]:
    return np.cumsum([0, *(len(mesh.vertices) for mesh in meshes[:-1])])


def _colour_of(mesh: trimesh.Trimesh, linear: bool) -> Callable[[NDArray[np.integer[Any]], Array], Array]:
    """A mesh's texture times its base colour, or its vertex or face colours, sRGB in [0, 1].

    Args:
        mesh: with its colours.
        linear: its factors and vertex colours are linear light, as in glTF, and no colours of the screen.
    """

    def shown(light: Array) -> Array:
        return np.asarray(to_srgb(light) if linear else light)

    visual: Any = mesh.visual
    if isinstance(visual, trimesh.visual.TextureVisuals):
        material: Any = visual.material
        image = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
        factor = getattr(material, "baseColorFactor", None)
        base = np.ones(3) if factor is None else np.asarray(factor, float)[:3] / 255
        if image is not None and visual.uv is not None:
            picture, uv = image.convert("RGB"), np.asarray(visual.uv)

            def textured(faces: NDArray[np.integer[Any]], barycentric: Array) -> Array:
                where = (uv[mesh.faces[faces]] * barycentric[..., None]).sum(1)
                texel = trimesh.visual.color.uv_to_interpolated_color(where, picture)
                colours = np.asarray(np.asarray(texel)[:, :3] / 255, np.float32)
                return shown((srgb_to_linear(colours) if linear else colours) * base)

            return textured
        plain = shown(np.asarray(material.main_color, float)[:3] / 255)
        return lambda faces, barycentric: np.tile(plain, (len(faces), 1))
    if visual.kind == "face":
        by_face = np.asarray(visual.face_colors, float)[:, :3] / 255
        return lambda faces, barycentric: shown(by_face[faces])
    by_vertex = np.asarray(visual.vertex_colors, float)[:, :3] / 255
    return lambda faces, barycentric: shown((by_vertex[mesh.faces[faces]] * barycentric[..., None]).sum(1))


def picture(
    surface: Surface, camera: Cameras, size: int, samples: int, lights_deg: float = 0.0
) -> NDArray[np.uint8]:
    """One camera's picture, straight-alpha RGBA, shape ``[size, size, 4]``; the lights turned about z."""
    fine = size * samples
    origins, directions = (rays[0].double().numpy().reshape(-1, 3) for rays in camera.rays(fine, fine))
    intersector = RayMeshIntersector(surface.mesh)
    face = np.asarray(intersector.intersects_first(origins, directions))
    hit = face >= 0
    triangles, normals = surface.mesh.triangles[face[hit]], surface.mesh.face_normals[face[hit]]
    o, d = origins[hit], directions[hit]
    across = (normals * d).sum(-1)
    depth = ((triangles[:, 0] - o) * normals).sum(-1) / np.where(np.abs(across) < 1e-9, -1e-9, across)
    barycentric = trimesh.triangles.points_to_barycentric(triangles, o + depth[:, None] * d, method="cross")
    # Thin parts are often modelled with one face: both of its sides are lit as seen.
    facing = np.where(across[:, None] > 0, -normals, normals)
    turn = trimesh.transformations.rotation_matrix(-math.radians(lights_deg), [0, 0, 1])[:3, :3]
    lit = shade(facing @ turn.T)
    rgba = np.zeros((len(face), 4))
    rgba[hit, :3] = surface.colour(face[hit], barycentric.clip(0, 1)) * lit[:, None]
    rgba[hit, 3] = 1
    mean = rgba.reshape(size, samples, size, samples, 4).mean((1, 3))
    mean[..., :3] /= mean[..., 3:].clip(1e-6)
    return (mean.clip(0, 1) * 255).round().astype(np.uint8)


def render_object(make: Callable[[], Surface], uid: str, out: Path, protocol: Protocol) -> str | None:
    """Write an object's folder, whole or not at all; returns what was wrong, or None."""
    final, temporary = out / uid, out / f".{uid}.tmp"
    if final.is_dir():
        return None
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        surface, cameras, lights = make(), draw_cameras(protocol, uid), draw_lights(protocol, uid)
        surface.mesh.apply_scale(draw_scale(protocol, uid))
        if protocol.offset:
            corners = np.asarray(surface.mesh.vertices)
            surface.mesh.apply_translation(displacement(protocol, uid, corners, cameras))
        matrices = world_to_camera(cameras).double().numpy()
        for index in range(protocol.pictures):
            one = cameras.part(index, index + 1)
            rgba = picture(surface, one, protocol.size, protocol.samples, lights)
            Image.fromarray(rgba).save(temporary / f"{index:03d}.png")
            np.save(temporary / f"{index:03d}.npy", matrices[index])
    except ValueError as error:
        shutil.rmtree(temporary)
        return str(error)
    temporary.rename(final)
    return None


def from_world(uid: str, seed: int) -> Surface:
    """An object of the embedded world, of a shape and shade of its own: ``red-mug-0003``.

    It keeps the world's size, its farthest point 0.95 from the centre, as the scenes that are made of it have.
    """
    from distill.embedded import shapes, world

    colour, kind, number = uid.split("-")
    g = np.random.default_rng(mixed(seed, world.KINDS.index(kind), int(number)))
    parts = shapes.build(kind, lambda value: value * float(g.uniform(0.85, 1.15)))
    paint = np.clip(np.array(world.COLOURS[colour]) + 0.02 * g.standard_normal(3), 0, 1)
    colours = np.concatenate(
        [np.tile(paint if p.paint is None else p.paint, (len(p.mesh.faces), 1)) for p in parts]
    )
    return Surface(shapes.joined(parts), lambda faces, barycentric: colours[faces])


def render_all(
    jobs: Mapping[str, Callable[[], Surface]], out: Path, protocol: Protocol, *, workers: int = 1
) -> dict[str, str]:
    """Render objects on several cores; those that are there already are left alone.

    Args:
        jobs: what makes each object, by its name; it must be one that another process can be sent.
        out: of the folders and ``valid_paths.json``.
        protocol: how they are seen.
        workers: processes.

    Returns:
        What was wrong, by object; they have no folder.
    """
    out.mkdir(parents=True, exist_ok=True)
    claim(out, protocol)
    wrong: dict[str, str] = {}
    bar = partial(tqdm, total=len(jobs), desc="rendering", unit="object", disable=not jobs)
    if workers <= 1:
        done = ((uid, render_object(make, uid, out, protocol)) for uid, make in jobs.items())
        wrong = {uid: said for uid, said in bar(done) if said}
    else:
        # Threads of one process would fight with those of the others.
        with ProcessPoolExecutor(
            workers, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            sent = {pool.submit(render_object, make, uid, out, protocol): uid for uid, make in jobs.items()}
            for future in bar(as_completed(sent)):
                if said := future.result():
                    wrong[sent[future]] = said
    for uid, said in wrong.items():
        log.warning("%s is left out: %s", uid, said)
    found = {path.name for path in out.iterdir() if path.is_dir() and not path.name.startswith(".")}
    # In the order they were asked for, because a training holds out the last; then what was there before.
    there = [*(uid for uid in jobs if uid in found), *sorted(found - jobs.keys())]
    write_atomic(out / "valid_paths.json", json.dumps(there, indent=0) + "\n")
    return wrong


def claim(out: Path, protocol: Protocol) -> None:
    """Remember how a folder's objects were seen.

    Raises:
        ValueError: it holds renders by another protocol.
    """
    path, said = out / "protocol.json", json.loads(json.dumps(vars(protocol)))
    if path.exists():
        # Options that an earlier version did not have were what they are by default.
        before = json.loads(json.dumps(vars(Protocol()))) | json.loads(path.read_text())
        for name, value in said.items():
            if before[name] != value:
                raise ValueError(
                    f"{out} holds renders with {name} {before[name]}, not {value}; choose another folder, or the same options"
                )
    write_atomic(path, json.dumps(said, indent=2) + "\n")


def name_of(path: Path, taken: Mapping[str, Any]) -> str:
    """A folder name for a mesh: its stem, with a number where another file has it."""
    stem = "".join(c if c.isalnum() or c in "-_" else "-" for c in path.stem) or "object"
    name, number = stem, 2
    while name in taken:
        name, number = f"{stem}-{number}", number + 1
    return name


def find_meshes(inputs: Sequence[Path]) -> list[Path]:
    """Mesh files among the inputs, folders searched.

    Raises:
        ValueError: there is none, or an input is not there.
    """
    found: list[Path] = []
    for path in inputs:
        if not path.exists():
            raise ValueError(f"{path} is not there")
        inside = (
            sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        )
        found += inside
    if not found:
        among = (
            f"among {', '.join(map(str, inputs))}"
            if inputs
            else "is given; add some before the output, or --world N"
        )
        raise ValueError(f"no mesh ({', '.join(SUFFIXES)}) {among}")
    return found

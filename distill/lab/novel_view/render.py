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
import signal
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import active_children, get_context
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
from distill.lab.novel_view.sources import RECORD, record_of, refusal
from distill.lab.novel_view.views import objects_in
from distill.meshes.gltf import load_gltf
from distill.meshes.look import Known, colours_of, to_srgb
from distill.meshes.obj import load_obj
from distill.meshes.surface import Look, Unfit
from distill.priors.novel_view.pose import world_to_camera

log = logging.getLogger(__name__)

Array = NDArray[np.floating[Any]]
#: Renders of objects that are still to be made, by their names.
Work = Mapping[str, Callable[[], str | None]]
GLTF = (".glb", ".gltf")
#: Faces of less area, as a share of the square of their longest side, are collapsed to points or lines.
LEAST_AREA = 1e-10
#: What the readers of ``mesh=`` say of its options, and what a render says instead.
WORDS = {
    "mesh.init_texture=true needs": "a render needs",
    ", or leave the option out": "",
    "which mesh= does not read": "which is not read here",
}
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
        ValueError: it cannot be read, some of its colours cannot, or it has no surface.
    """
    try:
        pieces = _pieces(path)
    except Unfit as error:
        raise ValueError(_for_renders(error)) from error
    except Exception as error:  # readers of many formats fail in many ways
        raise ValueError(
            f"{path} is no readable mesh: {type(error).__name__} {str(error).splitlines()[:1]}"
        ) from error
    if not pieces:
        raise ValueError(f"{path} has no faces")
    starts = np.cumsum([0, *(len(piece.faces) for piece in pieces)])
    offsets = np.cumsum([0, *(len(piece.vertices) for piece in pieces[:-1])])
    vertices = np.concatenate([piece.vertices for piece in pieces])
    faces = np.concatenate([piece.faces + offset for piece, offset in zip(pieces, offsets, strict=True)])
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise ValueError(f"{path} has faces of vertices that are not there; export it again")
    whole = trimesh.Trimesh(vertices, faces, process=False)
    if not np.isfinite(whole.vertices).all() or whole.extents.max() <= 0:
        raise ValueError(f"{path} has vertices that are not finite, or all in one place")
    if not whole.area > LEAST_AREA * whole.extents.max() ** 2:
        raise ValueError(f"{path} has faces without area, all collapsed to points or lines; export it again")
    if up == "y":
        whole.apply_transform(Y_UP)
    whole.apply_translation(-whole.bounds.mean(0))
    whole.apply_scale(1 / whole.extents.max())
    linear = path.suffix.lower() in GLTF

    def colour(faces: NDArray[np.integer[Any]], barycentric: Array) -> Array:
        found = np.empty((len(faces), 3))
        for piece, start, end in zip(pieces, starts[:-1], starts[1:], strict=True):
            rows = (faces >= start) & (faces < end)
            if rows.any():
                found[rows] = _colours(piece.look, faces[rows] - start, barycentric[rows], linear)
        return found

    return Surface(whole, colour)


@dataclass(frozen=True)
class _Piece:
    """A geometry where it is placed, and its look."""

    vertices: Array
    faces: NDArray[np.integer[Any]]
    look: Look


def _pieces(path: Path) -> list[_Piece]:
    linear = path.suffix.lower() in GLTF
    scene = (load_gltf if linear else load_obj)(path, frozenset(), True)
    known, looks, pieces = Known(), dict[str, Look](), list[_Piece]()
    for node in scene.graph.nodes_geometry:
        matrix, named = scene.graph[node]
        name = str(named)
        mesh = scene.geometry[name]
        if not isinstance(mesh, trimesh.Trimesh) or not len(mesh.faces):
            continue
        if name not in looks:  # what is placed several times has one
            looks[name], _ = colours_of(mesh, known)
        vertices = np.asarray(mesh.vertices) @ matrix[:3, :3].T + matrix[:3, 3]
        pieces.append(_Piece(vertices, np.asarray(mesh.faces), looks[name]))
    return pieces


def _for_renders(error: Unfit) -> str:
    """What a reader says of a file, without the options of ``mesh=``, whose reader it is."""
    said = str(error)
    for before, after in WORDS.items():
        said = said.replace(before, after)
    return said


def _colours(look: Look, faces: NDArray[np.integer[Any]], barycentric: Array, linear: bool) -> Array:
    """A look's colours at points, sRGB; between corners, those of glTF are mixed as light."""
    if linear and look.texture is None:
        light = srgb_to_linear(look.corners.numpy()[faces])
        mixed_light = (light * barycentric[..., None]).sum(1)
        return np.asarray(to_srgb(mixed_light))
    found = look.colours(
        torch.from_numpy(faces.astype(np.int64)), torch.from_numpy(barycentric.astype(np.float32))
    )
    return np.asarray(found.numpy(), np.float64)


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


def render_object(
    make: Callable[[], Surface], uid: str, out: Path, protocol: Protocol, source: Path | None = None
) -> str | None:
    """Write an object's folder, whole or not at all; returns what was wrong, or None.

    Args:
        make: its surface.
        uid: its name.
        out: of the folder.
        protocol: how it is seen.
        source: the file that it is made of, which the folder remembers: one of another file is left alone, and that is wrong.
    """
    final, temporary = out / uid, out / f".{uid}.tmp"
    try:
        record = record_of(source) if source is not None else None
        if final.is_dir():
            return refusal(final, record) if record is not None else None
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        _write_views(make(), uid, temporary, protocol)
        if record is not None:
            (temporary / RECORD).write_text(json.dumps(record, indent=2) + "\n", "utf-8")
        temporary.rename(final)
    except ValueError as error:
        return str(error)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return None


def _write_views(surface: Surface, uid: str, folder: Path, protocol: Protocol) -> None:
    cameras, lights = draw_cameras(protocol, uid), draw_lights(protocol, uid)
    surface.mesh.apply_scale(draw_scale(protocol, uid))
    if protocol.offset:
        corners = np.asarray(surface.mesh.vertices)
        surface.mesh.apply_translation(displacement(protocol, uid, corners, cameras))
    matrices = world_to_camera(cameras).double().numpy()
    for index in range(protocol.pictures):
        one = cameras.part(index, index + 1)
        rgba = picture(surface, one, protocol.size, protocol.samples, lights)
        Image.fromarray(rgba).save(folder / f"{index:03d}.png")
        np.save(folder / f"{index:03d}.npy", matrices[index])


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
    jobs: Mapping[str, Callable[[], Surface]],
    out: Path,
    protocol: Protocol,
    *,
    workers: int,
    sources: Mapping[str, Path],
) -> dict[str, str]:
    """Render objects on several cores; those that are there already are left alone.

    Args:
        jobs: what makes each object, by its name; it must be one that another process can be sent.
        out: of the folders and ``valid_paths.json``, which is written even if the rendering is interrupted.
        protocol: how they are seen.
        workers: processes.
        sources: the files that objects are made of, by their names.

    Returns:
        What was wrong, by object; they have no folder, or one of another file.
    """
    out.mkdir(parents=True, exist_ok=True)
    claim(out, protocol)
    work = {
        uid: partial(render_object, make, uid, out, protocol, sources.get(uid)) for uid, make in jobs.items()
    }
    wrong: dict[str, str] = {}
    bar = tqdm(total=len(jobs), desc="rendering", unit="object", disable=not jobs)
    try:
        with bar:
            for uid, said in _in_turn(work) if workers <= 1 else _in_processes(work, workers):
                bar.update()
                if said:
                    wrong[uid] = said
    finally:
        found = set(objects_in(out))
        # In the order they were asked for, because a training holds out the last; then what was there before.
        there = [*(uid for uid in jobs if uid in found), *sorted(found - jobs.keys())]
        listed = out / "valid_paths.json"
        if there or listed.exists():
            write_atomic(listed, json.dumps(there, indent=0) + "\n")
    for uid, said in wrong.items():
        log.warning("%s is left out: %s", uid, said)
    return wrong


def _in_turn(work: Work) -> Iterator[tuple[str, str | None]]:
    for uid, run in work.items():
        yield uid, run()


def _in_processes(work: Work, workers: int) -> Iterator[tuple[str, str | None]]:
    """Results as they come, by name; if it is closed or fails before the last, the processes end at once."""
    others, sent = set(active_children()), dict[Future[str | None], str]()
    # Threads of one process would fight with those of the others.
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        try:
            with _interrupts_held():
                for uid, run in work.items():
                    sent[pool.submit(run)] = uid
            for future in as_completed(sent):
                yield sent[future], future.result()
        except BaseException:
            # What waits fails with its processes; if it were cancelled, the pool's thread would stumble over that.
            for process in set(active_children()) - others:
                process.terminate()
            raise


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Keep Ctrl-C from this thread until the end, and for good from the processes that it starts: it goes to all of a terminal's."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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

"""A closed mesh from a density field, its iso-level chosen by comparing silhouettes with the renders."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import igl
import numpy as np
import torch
import trimesh
from numpy.typing import NDArray
from scipy import sparse
from scipy.ndimage import gaussian_filter
from scipy.sparse.csgraph import connected_components
from skimage.measure import marching_cubes
from trimesh.ray.ray_pyembree import RayMeshIntersector

from distill.cameras import orbit
from distill.contracts import Field, View
from distill.export.choices import BLUR_WIDTH, FACES, MIN_COMPONENT, RESOLUTION
from distill.silhouettes import silhouette_iou
from distill.viewing import DISTANCE, FOV_Y_DEG
from distill.wording import counted

#: Where depths are cut off, natural logarithm of the density over that of the surface.
DEEPEST = 3.0

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

#: Origins and directions of the rays of some pictures, and which of them meet the object, shape ``[views, height, width]``.
Silhouettes = tuple[Floats, Floats, NDArray[np.bool_]]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Mesh:
    """Triangles in the internal frame: z up, front towards +x, cube [-1, 1]^3.

    Attributes:
        vertices: shape ``[v, 3]``.
        faces: counter-clockwise seen from outside, shape ``[f, 3]``.
        normals: unit, outward, shape ``[v, 3]``.
        uv: texture coordinates in [0, 1], (0, 0) at the picture's lower left, shape ``[v, 2]``.
        texture: sRGB, row 0 at the top, uint8, shape ``[height, width, 3]``.
        colours: of the vertices, sRGB in [0, 1], shape ``[v, 3]``.
        iso_level: the density that the surface lies at, per scene unit.
        silhouette_iou: mean agreement of the mesh's silhouettes with the renders', in [0, 1].
    """

    vertices: Floats
    faces: Ints
    normals: Floats
    uv: Floats | None = None
    texture: NDArray[np.uint8] | None = None
    colours: Floats | None = None
    iso_level: float = math.nan
    silhouette_iou: float = math.nan


def extract_mesh(
    query: Field,
    view: View,
    *,
    resolution: int = RESOLUTION,
    faces: int = FACES,
    iso: float | None = None,
    min_component: float = MIN_COMPONENT,
    blur_width: float = BLUR_WIDTH,
    smoothing: int = 5,
    chunk: int = 262_144,
    device: torch.device | str = "cpu",
) -> Mesh:
    """Turn a density field into a closed mesh, each of whose edges has two faces.

    Marching cubes over the cube [-1, 1]^3 of a blurred logarithm of the density, Taubin smoothing of the voxel steps, then
    decimation. An object that the cube cuts is closed half a voxel outside it.

    Args:
        query: the field; called without gradients on points on ``device``.
        view: takes the pictures whose silhouettes choose the iso-level.
        resolution: grid nodes along each edge of the cube, at least 8.
        faces: about this many triangles, if the mesh has more; one with many holes through it keeps more.
        iso: density of the surface, per scene unit; None chooses it.
        min_component: drop floaters: connected components that enclose less than this share of what the largest one encloses, and the
            walls of inner cavities. 1 keeps the largest alone, 0 everything.
        blur_width: standard deviation, in scene units, of a Gaussian over the field, at least 0. A distilled field is rough, which
            would give the mesh pits and tunnels. Parts that are thinner than about twice this width may be lost; 0 keeps them, and is used
            where nothing else would be left.
        smoothing: rounds of Taubin smoothing, which removes voxel steps without shrinking; 0 for none.
        chunk: points per query.
        device: where ``query`` wants its points.

    Raises:
        ValueError: the field is empty, or an option is out of range.
    """
    _check_options(resolution, faces, iso, min_component, blur_width)
    density = on_grid(lambda points: evaluate(query, points, chunk, device)[0], resolution, chunk)
    # A NaN would reach the file as invalid JSON; an infinity would break the interpolation.
    np.nan_to_num(density, copy=False, nan=0.0, posinf=1e6, neginf=0.0)
    pictures = _silhouettes(view, size=96)
    for width in (blur_width, 0.0):
        level = _choose_level(density, pictures, min_component, width) if iso is None else iso
        vertices, triangles = _isosurface(density, level, 1, min_component, width)
        if len(triangles):
            break
        _log.warning(
            "the object is so thin that a blur of %g scene units leaves nothing of it: no blur is used", width
        )
    vertices = smooth(vertices, triangles, smoothing)
    vertices, triangles = decimate(vertices, triangles, faces)
    iou = _silhouette_iou(vertices, triangles, pictures)
    tell(f"mesh at density {level:.3g}", vertices, triangles, iou)
    return Mesh(vertices, triangles, vertex_normals(vertices, triangles), iso_level=level, silhouette_iou=iou)


def tell(what: str, vertices: Floats, faces: Ints, iou: float) -> None:
    """Say what a mesh is like: its faces, its pieces, and how well its silhouettes agree with the renders'; warn if the cube cuts it."""
    pieces, _ = connected_components(adjacency(faces, len(vertices)), directed=False)
    _log.info(
        "%s: %s in %s, silhouette IoU with the renders %.3f",
        what,
        counted(len(faces), "face"),
        counted(pieces, "piece"),
        iou,
    )
    if (np.abs(vertices) > 1).any():
        _log.warning("the object reaches the edge of the scene, where its mesh is cut off")


def _check_options(
    resolution: int, faces: int, iso: float | None, min_component: float, blur_width: float
) -> None:
    """Refuse options of a mesh that are out of range."""
    right = resolution >= 8 and faces >= 4 and (iso is None or 0 < iso < math.inf)
    if not (right and 0 <= blur_width < math.inf and 0 <= min_component <= 1):
        raise ValueError(
            f"Expected resolution >= 8, faces >= 4, iso > 0, min_component in [0, 1] and blur_width >= 0, got {resolution}, {faces}, {iso}, "
            f"{min_component} and {blur_width}; the defaults are {RESOLUTION}, {FACES}, None (automatic), {MIN_COMPONENT} and {BLUR_WIDTH}."
        )


def evaluate(
    query: Field, points: Floats, chunk: int = 262_144, device: torch.device | str = "cpu"
) -> tuple[Floats, Floats]:
    """Query a field in chunks: density ``[n]`` and albedo ``[n, 3]`` at points ``[n, 3]``, no gradients."""
    density = np.empty(len(points), np.float32)
    albedo = np.empty((len(points), 3), np.float32)
    with torch.no_grad():
        for start in range(0, len(points), chunk):
            part = slice(start, start + chunk)
            found = query(torch.from_numpy(np.ascontiguousarray(points[part])).to(device))
            density[part], albedo[part] = (value.float().cpu().numpy() for value in found)
    return density, albedo


def smooth(vertices: Floats, faces: Ints, rounds: int) -> Floats:
    """Smooth without shrinking: alternate a Laplacian step of 0.5 with one of -0.53 (Taubin 1995)."""
    mean = _means(faces, len(vertices))
    for step in (0.5, -0.53) * rounds:
        vertices = vertices + np.float32(step) * (mean @ vertices - vertices)
    return vertices.astype(np.float32)


def vertex_normals(vertices: Floats, faces: Ints) -> Floats:
    """Outward unit normals, the faces' averaged by their angles at the vertex, shape ``[v, 3]``.

    How a flat side is cut into triangles does not change them, as it would change averages by area. Slivers, which decimation
    leaves and whose own normals are far off, count less: a face by the square of its shape, 0 for a line and 1 for an equilateral
    triangle, where that is below 0.3.

    Source: Thürmer and Wüthrich 1998, Computing vertex normals from polygonal facets, J. Graphics Tools 3(1).
    """
    corners = vertices[faces].astype(np.float64)
    after, before = np.roll(corners, -1, axis=1) - corners, np.roll(corners, 1, axis=1) - corners
    cross = np.cross(after, before)
    doubled_area = np.linalg.norm(cross, axis=2, keepdims=True)
    angle = np.arctan2(doubled_area, (after * before).sum(2, keepdims=True))
    edges = np.maximum((after**2).sum((1, 2)), 1e-30)[:, None, None]
    shape = np.minimum(2 * math.sqrt(3) * doubled_area / edges / 0.3, 1)
    weighted = (shape**2 * angle * cross / np.maximum(doubled_area, 1e-30)).reshape(-1, 3)
    summed = np.stack([np.bincount(faces.ravel(), axis, len(vertices)) for axis in weighted.T], axis=1)
    length = np.linalg.norm(summed, axis=1, keepdims=True)
    # glTF wants unit normals even where faces cancel out.
    return np.where(length > 1e-20, summed / np.maximum(length, 1e-20), (0, 0, 1)).astype(np.float32)


def on_grid(values: Callable[[Floats], Floats], resolution: int, chunk: int) -> Floats:
    """Values at the nodes of a grid over the cube, shape ``[resolution] * 3``, x first.

    Args:
        values: of points ``[n, 3]``, shape ``[n]``.
        resolution: nodes along each edge.
        chunk: points at a time; all points at once would take ten times the memory of the values.
    """
    axis = np.linspace(-1, 1, resolution, dtype=np.float32)
    found = np.empty(resolution**3, np.float32)
    for start in range(0, len(found), chunk):
        nodes = np.unravel_index(np.arange(start, min(start + chunk, len(found))), (resolution,) * 3)
        found[start : start + chunk] = values(np.stack([axis[index] for index in nodes], axis=1))
    return found.reshape((resolution,) * 3)


def depth_of(density: Floats, level: float, blur_width: float = 0.0) -> Floats:
    """Natural logarithm of the density over a level, within ``DEEPEST`` of 0, blurred; positive inside.

    At an object's rim the density grows about exponentially, so that of the logarithm, coarse and fine grids have the surface at the
    same place.

    Args:
        density: at the nodes of a grid over the cube [-1, 1]^3, shape ``[r, r, r]``.
        level: density of the surface.
        blur_width: standard deviation of the Gaussian, in the unit of the cube; 0 for none.
    """
    depth = density / np.float32(level)
    # In place: at 512 nodes along an edge, a copy takes half a gigabyte.
    np.log(np.clip(depth, math.exp(-DEEPEST), math.exp(DEEPEST), out=depth), out=depth)
    if blur_width:
        gaussian_filter(depth, blur_width * (len(depth) - 1) / 2, mode="nearest", output=depth)
    return depth


def _isosurface(
    density: Floats, level: float, stride: int, min_component: float, blur_width: float
) -> tuple[Floats, Ints]:
    """Marching cubes on every ``stride``-th node, closed at the cube's sides by an empty rim; without floaters."""
    top = float(density.max())
    if top <= level:
        raise ValueError(
            f"Expected a density above {level:.3g} somewhere in [-1, 1]^3, got at most {top:.3g} (an empty "
            "scene): train longer, try another seed, or pass a lower iso."
        )
    above = depth_of(density[::stride, ::stride, ::stride], level, blur_width)
    if above.max() <= 0:  # nothing that is this dense is as wide as the blur, or as a coarse grid's steps
        return np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int64)
    off_level(above)
    above = np.pad(above, 1, constant_values=-DEEPEST)
    vertices, faces, _, _ = marching_cubes(above, 0, gradient_direction="ascent", allow_degenerate=False)
    spacing = 2 * stride / (len(density) - 1)
    vertices = ((vertices - 1) * spacing - 1).astype(np.float32)
    faces = faces.astype(np.int64)
    return without_floaters(vertices, faces, min_component)


def off_level(values: Floats) -> None:
    """Move values on a grid that are close to 0 away from it, in place.

    A surface through a node has triangles without area there. Marching cubes drops them, which leaves holes.
    """
    steepest = 0.0
    for axis in range(3):
        steps = np.diff(values, axis=axis)
        steepest = max(steepest, float(steps.max()), -float(steps.min()))
        del steps  # before the next ones are made
    least = np.float32(1e-4 * steepest)
    near = (values < least) & (values > -least)
    values[near] = np.copysign(least, values[near])


def without_floaters(vertices: Floats, faces: Ints, min_component: float) -> tuple[Floats, Ints]:
    """Keep the connected components that enclose at least this share of what the largest encloses; 0 keeps everything.

    The wall of a cavity faces inwards, so that what it encloses is negative, and it may be so ragged that it has more
    faces than the object's outside.
    """
    if not min_component or not len(faces):
        return vertices, faces
    _, label = connected_components(adjacency(faces, len(vertices)), directed=False)
    face_label = label[faces[:, 0]]
    a, b, c = (vertices[faces[:, corner]].astype(np.float64) for corner in range(3))
    enclosed = np.bincount(face_label, (a * np.cross(b, c)).sum(1))
    largest = enclosed.max()
    return _compact(vertices, faces[(enclosed >= min(min_component * largest, largest))[face_label]])


def decimate(vertices: Floats, faces: Ints, target: int) -> tuple[Floats, Ints]:
    """Collapse edges until about ``target`` faces are left, by the quadric error metric (Garland and Heckbert 1997).

    An edge is kept where its collapse would leave one with more than two faces, so that a surface with holes through it may
    keep more faces. A mesh that has such an edge is returned as it is, with a warning.
    """
    if len(faces) <= target:
        return vertices, faces
    fewer, kept, *_ = igl.qslim(np.asarray(vertices, np.float64), faces, target)
    if not len(kept):
        _log.warning(
            "the mesh keeps its %d faces: parts of it touch in an edge, which cannot be simplified",
            len(faces),
        )
        return vertices, faces
    fewer, kept = _compact(np.asarray(fewer, np.float32), np.asarray(kept, np.int64))
    return unfold(fewer, kept), kept


def unfold(vertices: Floats, faces: Ints) -> Floats:
    """Move the corners of folded faces to the middle of their neighbours, as long as fewer faces are folded after it.

    A collapse may push a corner across an edge, and the face there then lies upside down on its neighbours: a dark line in
    renders, and a fold in prints. A round that changes the enclosed volume by more than 1% is undone. Corners with only three edges stay, since they
    may be the tips of sharp shapes.
    """
    mean, links = _means(faces, len(vertices)), np.bincount(faces.ravel(), minlength=len(vertices))
    found = folded(vertices, faces)
    for _ in range(5):
        corners = np.unique(faces[found])
        corners = corners[links[corners] > 3]
        moved = vertices.copy()
        moved[corners] = mean[corners] @ vertices
        left, before = folded(moved, faces), _volume(vertices, faces)
        if left.sum() >= found.sum() or abs(_volume(moved, faces) - before) > 0.01 * abs(before):
            break
        vertices, found = moved, left
    return vertices


def _volume(vertices: Floats, faces: Ints) -> float:
    a, b, c = (vertices[faces[:, corner]].astype(np.float64) for corner in range(3))
    return float((a * np.cross(b, c)).sum() / 6)


def folded(vertices: Floats, faces: Ints) -> NDArray[np.bool_]:
    """Say which faces lie upside down on the three faces around them, shape ``[f]``.

    The cosines of the angles to them have a sum of -3 then, and less than -1.25 where it is nearly so. The base of a pyramid
    that is flatter than a regular tetrahedron has such a sum, too.
    """
    a, b, c = (vertices[faces[:, corner]].astype(np.float64) for corner in range(3))
    normal = np.cross(b - a, c - a)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-30)
    one, other = trimesh.graph.face_adjacency(faces).T
    cosine = (normal[one] * normal[other]).sum(1)
    summed = np.bincount(one, cosine, len(faces)) + np.bincount(other, cosine, len(faces))
    return np.asarray(summed < -1.25)


def _compact(vertices: Floats, faces: Ints) -> tuple[Floats, Ints]:
    """Drop vertices that no face uses."""
    used, inverse = np.unique(faces, return_inverse=True)
    return vertices[used], inverse.reshape(-1, 3).astype(np.int64)


def adjacency(faces: Ints, count: int) -> sparse.csr_matrix:
    """Return which vertices share an edge, as a symmetric 0/1 matrix."""
    start, end = faces[:, [0, 1, 2]].ravel(), faces[:, [1, 2, 0]].ravel()
    rows, columns = np.concatenate([start, end]), np.concatenate([end, start])
    links = sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), (count, count))
    links.data[:] = 1  # an edge is met once from each of its two faces
    return links


def _means(faces: Ints, count: int) -> sparse.csr_matrix:
    """Return the matrix that takes values of vertices to the means over their neighbours."""
    links = adjacency(faces, count)
    return sparse.diags(1 / np.maximum(np.asarray(links.sum(1)).ravel(), 1)) @ links


def _silhouettes(view: View, size: int) -> Silhouettes:
    """Return the masks of pixels that are more than half opaque, from six sides, alternately low and high."""
    azimuth = torch.arange(6, dtype=torch.float32) * 60
    cameras = orbit(azimuth, torch.tensor([10.0, 40.0]).repeat(3), DISTANCE, FOV_Y_DEG)
    with torch.no_grad():
        opacity = view(cameras, size, size).opacity
    origins, directions = (rays.reshape(-1, 3).numpy() for rays in cameras.rays(size, size))
    return origins, directions, (opacity[..., 0] > 0.5).cpu().numpy()


def _silhouette_iou(vertices: Floats, faces: Ints, pictures: Silhouettes) -> float:
    """Mean over the pictures of intersection over union between mesh and pictures; 0 for an empty mesh."""
    if len(faces) == 0:
        return 0.0
    origins, directions, there = pictures
    caster = RayMeshIntersector(trimesh.Trimesh(vertices, faces, process=False))
    mesh = caster.intersects_any(origins, directions).reshape(there.shape)
    return float(silhouette_iou(torch.from_numpy(mesh), torch.from_numpy(there)).mean())


def _choose_level(density: Floats, pictures: Silhouettes, min_component: float, blur_width: float) -> float:
    """Choose the density whose isosurface has the renders' silhouettes, on a coarse grid.

    First from ln 2 / 2, which half-hides what is behind the whole cube, to well past the density that
    does so within one voxel; then twice more around the best, three times finer. Of levels that are as
    good, the middle one.
    """
    if not pictures[-1].any():
        raise ValueError(
            "Expected an object in the renders, got none that is half opaque from any side (an empty scene): "
            "train longer, try another seed, or pass iso."
        )
    stride = max(1, len(density) // 64)
    spacing = 2 * stride / (len(density) - 1)
    low = math.log(math.log(2) / 2)
    high = math.log(max(min(0.9 * float(density.max()), 8 * math.log(2) / spacing), 1e-3))
    if low >= high:  # fog that hides only over the cube's whole depth
        return 0.5 * float(density.max())
    scores: dict[float, float] = {}
    step = (high - low) / 8
    candidates = [low + step * index for index in range(9)]
    for _ in range(3):
        for candidate in candidates:
            surface = _isosurface(density, math.exp(candidate), stride, min_component, blur_width)
            scores[candidate] = _silhouette_iou(*surface, pictures)
        good = sorted(level for level, score in scores.items() if score > max(scores.values()) - 1e-3)
        best = good[len(good) // 2]
        candidates = [min(best + step * third / 3, high) for third in (-2, -1, 1, 2)]
        step /= 3
    return math.exp(best)

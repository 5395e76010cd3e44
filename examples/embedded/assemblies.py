"""Objects put together at random from solids, so that a novel-view model learns to turn what it has never seen.

Random shapes are enough to teach a network of views what real objects look like from elsewhere (LRM-Zero, Xie et al. 2024,
arXiv:2406.09371). Three quarters of these are symmetric, as furniture is: their left is the mirror image of their right.
"""

from __future__ import annotations

import colorsys
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
from numpy.typing import NDArray
from safetensors.torch import load_file
from trimesh import creation
from trimesh.transformations import rotation_matrix

from distill.embedded.shapes import Colour, Part
from distill.lab.novel_view.memory import Store
from distill.lab.novel_view.pairs import mixed
from distill.lab.novel_view.world_renders import WorldOptions, on_cores, render_parts, write_tensors

#: Tells these objects' draws from those of other shapes with the same seed.
STREAM = 77
X, Y, Z = np.eye(3)
#: Up to so many solids, or mirrored pairs, are added to the first one.
MOST = 6
#: Shares of the objects that are symmetric, and that have legs.
SYMMETRIC, LEGS = 0.75, 0.3
#: Objects of a file.
BLOCK = 500


def random_colour(g: np.random.Generator) -> Colour:
    """A grey, a wood or any colour."""
    kind = g.random()
    if kind < 0.35:
        level = g.choice([g.uniform(0.85, 0.98), g.uniform(0.3, 0.8), g.uniform(0.05, 0.25)])
        red, green, blue = (level + g.normal(0, 0.02, 3)).clip(0.02, 0.98)
    elif kind < 0.6:
        red, green, blue = colorsys.hsv_to_rgb(
            g.uniform(0.04, 0.11), g.uniform(0.3, 0.8), g.uniform(0.25, 0.8)
        )
    else:
        red, green, blue = colorsys.hsv_to_rgb(g.random(), g.uniform(0.3, 1), g.uniform(0.3, 1))
    return float(red), float(green), float(blue)


def _box(g: np.random.Generator, size: NDArray[Any]) -> trimesh.Trimesh:
    return creation.box(extents=size)


def _ball(g: np.random.Generator, size: NDArray[Any]) -> trimesh.Trimesh:
    return creation.icosphere(subdivisions=2, radius=0.5).apply_scale(size)


def _rod(g: np.random.Generator, size: NDArray[Any]) -> trimesh.Trimesh:
    mesh = creation.cylinder(radius=0.5, height=1, sections=24)
    length = int(g.integers(3))
    if length < 2:
        mesh.apply_transform(rotation_matrix(np.pi / 2, Y if length == 0 else X))
    if g.random() < 0.7:  # round, not an ellipse
        size = np.where(np.arange(3) == length, size, size[(length + 1) % 3])
    return mesh.apply_scale(size)


def _cone(g: np.random.Generator, size: NDArray[Any]) -> trimesh.Trimesh:
    mesh = creation.cone(radius=0.5, height=1, sections=24).apply_translation(-Z / 2)
    if g.random() < 0.3:
        mesh.apply_transform(rotation_matrix(np.pi, X))
    return mesh.apply_scale(size)


def _ring(g: np.random.Generator, size: NDArray[Any]) -> trimesh.Trimesh:
    mesh = creation.torus(0.38, g.uniform(0.05, 0.12), major_sections=24, minor_sections=10)
    axis = int(g.integers(3))
    if axis:
        mesh.apply_transform(rotation_matrix(np.pi / 2, Y if axis == 1 else X))
    return mesh.apply_scale(size[0])


def _turned(g: np.random.Generator, size: NDArray[Any]) -> trimesh.Trimesh:
    """As from a lathe."""
    along = np.linspace(0, 1, 9)
    radius = np.interp(along, np.linspace(0, 1, 4), g.uniform(0.12, 0.5, 4))
    profile = [(0.0, -0.5), *zip(radius, along - 0.5, strict=True), (0.0, 0.5)]
    return creation.revolve(np.array(profile), sections=24).apply_scale((size[0], size[0], size[2]))


def _stone(g: np.random.Generator, size: NDArray[Any]) -> trimesh.Trimesh:
    return trimesh.convex.convex_hull(g.uniform(-0.5, 0.5, (8, 3))).apply_scale(size)


#: How often each is drawn.
SOLIDS = {_box: 0.36, _ball: 0.14, _rod: 0.16, _cone: 0.07, _ring: 0.07, _turned: 0.12, _stone: 0.08}


def solid(g: np.random.Generator, symmetric: bool) -> trimesh.Trimesh:
    """A solid of about 0.1 to 1 in each direction, at the origin; a symmetric one is its own mirror image, left to right."""
    often = {kind: share for kind, share in SOLIDS.items() if not (symmetric and kind is _stone)}
    share = np.array(list(often.values()))
    kind = list(often)[int(g.choice(len(often), p=share / share.sum()))]
    mesh = kind(g, np.exp(g.uniform(np.log(0.12), 0.0, 3)))
    if g.random() < 0.15:
        axis = Y if symmetric else (X, Y, Z)[int(g.integers(3))]
        mesh.apply_transform(rotation_matrix(g.uniform(-0.6, 0.6), axis))
    return mesh


def mirrored(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    """The other half of a pair, across the plane of x and z."""
    other: trimesh.Trimesh = mesh.copy()
    return other.apply_transform(np.diag([1.0, -1.0, 1.0, 1.0]))


def beside(base: NDArray[Any], mesh: trimesh.Trimesh, g: np.random.Generator, on_plane: bool) -> None:
    """Move a solid against a side of a box, ``[2, 3]``, more often the top or the bottom, so far that their boxes overlap.

    Args:
        base: of another solid.
        mesh: is moved.
        g: draws where.
        on_plane: its middle lies on the plane of x and z, which must cross the base.
    """
    size = mesh.bounds[1] - mesh.bounds[0]
    axis = int(g.choice(3, p=[1 / 3, 0, 2 / 3] if on_plane else [0.25, 0.25, 0.5]))
    upper = bool(g.random() < 0.5)
    place = base.mean(0) if g.random() < 0.5 else g.uniform(base[0], base[1])
    away = size[axis] * g.uniform(0.1, 0.4)
    place[axis] = base[1, axis] + away if upper else base[0, axis] - away
    if on_plane:
        place[1] = 0.0
    mesh.apply_translation(place - mesh.bounds.mean(0))


def legs(bounds: NDArray[Any], boxes: bool, g: np.random.Generator) -> list[trimesh.Trimesh]:
    """Four legs that hold up what fills a box, ``[2, 3]``: at its corners if those are solid, and further in if it is round."""
    radius, height, square = g.uniform(0.03, 0.08), g.uniform(0.3, 1.0), bool(g.random() < 0.5)
    middle, half = bounds.mean(0), (bounds[1] - bounds[0]) / 2
    reach = np.maximum(half - radius, 0) * (1.0 if boxes else 0.6)
    # Into a box a little, into what is round as far as its middle.
    top, low = (bounds[0, 2] + 0.02 if boxes else middle[2]), bounds[0, 2] - height
    made = []
    for ahead in (-1, 1):
        for left in (-1, 1):
            leg = (
                creation.box(extents=(2 * radius, 2 * radius, top - low)) if square
                else creation.cylinder(radius=radius, height=top - low, sections=12)
            )  # fmt: skip
            place = (middle[0] + ahead * reach[0], middle[1] + left * reach[1], (top + low) / 2)
            made.append(leg.apply_translation(place))
    return made


def bounds_of(meshes: list[trimesh.Trimesh]) -> NDArray[Any]:
    """The box around meshes, ``[2, 3]``."""
    corners = np.array([mesh.bounds for mesh in meshes])
    return np.stack([corners[:, 0].min(0), corners[:, 1].max(0)])


def build(g: np.random.Generator) -> list[Part]:
    """Put an object together, in one to four colours, centred on its bounding box, its farthest point 0.95 from the origin."""
    palette = [random_colour(g) for _ in range(int(g.choice([1, 2, 3, 4], p=[0.25, 0.4, 0.25, 0.1])))]
    symmetric = g.random() < SYMMETRIC
    groups = [[solid(g, symmetric)]]
    for _ in range(int(g.integers(0, MOST + 1))):
        middle = symmetric and g.random() < 0.35
        mesh = solid(g, middle)
        if g.random() < 0.7:
            mesh.apply_scale(g.uniform(0.3, 0.9))
        # In a symmetric object, what is alone in its group lies on the plane.
        others = [each for group in groups for each in group if not middle or len(group) == 1]
        beside(others[int(g.integers(len(others)))].bounds, mesh, g, middle)
        groups.append([mesh, mirrored(mesh)] if symmetric and not middle else [mesh])
    if g.random() < LEGS:
        lowest = min(groups, key=lambda group: group[0].bounds[0, 2])
        bounds = bounds_of(lowest)
        filled = sum(mesh.volume / np.prod(mesh.bounds[1] - mesh.bounds[0]) for mesh in lowest) / len(lowest)
        groups.append(legs(bounds, len(lowest) > 1 or filled > 0.95, g))
    whole = [each for group in groups for each in group]
    stretch = np.exp(g.normal(0, 0.25, 3))
    for mesh in whole:
        mesh.apply_scale(stretch)
    centre = bounds_of(whole).mean(0)
    reach = max(float(np.linalg.norm(mesh.vertices - centre, axis=1).max()) for mesh in whole)
    for mesh in whole:
        mesh.apply_translation(-centre).apply_scale(0.95 / reach)
    paints = [palette[int(g.integers(len(palette)))] for _ in groups]
    return [Part(mesh, paint) for group, paint in zip(groups, paints, strict=True) for mesh in group]


def render(options: WorldOptions, number: int) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """One object's pictures over white, ``[views, 3, size, size]``, and its cameras' positions, ``[views, 3]``."""
    g = np.random.default_rng(mixed(options.seed, STREAM, number))
    layers, positions = render_parts(options, build(g), g)
    white = layers[..., :3].astype(np.uint16) + 255 - layers[..., 4:]
    return np.moveaxis(white.clip(0, 255).astype(np.uint8), -1, 1), positions


def store(options: WorldOptions, count: int, folder: Path, workers: int = 1) -> Store:
    """Render so many objects on several cores, or read those of them that ``folder`` has; there each ``BLOCK`` is written.

    Args:
        options: cameras, lights and sizes; ``shapes`` has no meaning here.
        count: of objects; the first ones are the same for any number.
        folder: of the files.
        workers: processes.
    """
    key = mixed(repr(replace(options, shapes=0)))
    blocks = [range(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK)]
    paths = [folder / f"assemblies-{key:016x}-{block.start}-{block.stop}.safetensors" for block in blocks]
    left = [(block, path) for block, path in zip(blocks, paths, strict=True) if not path.exists()]
    numbers = [number for block, _ in left for number in block]
    made = on_cores(partial(render, options), numbers, workers, "assembly")
    for block, path in left:
        rows = list(islice(made, len(block)))
        pictures, positions = (torch.from_numpy(np.concatenate(part)) for part in zip(*rows, strict=True))
        write_tensors(path, {"pictures": pictures, "positions": positions}, options)
    found = [load_file(path) for path in paths]
    pictures, positions = (torch.cat([part[name] for part in found]) for name in ("pictures", "positions"))
    first = torch.arange(count + 1) * (len(pictures) // count)
    return Store(
        pictures, positions.float(), first, tuple(f"assembly-{number:05d}" for number in range(count))
    )

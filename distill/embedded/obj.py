"""Wavefront OBJ models with their materials, out of an archive, placed as the embedded world's objects are.

OBJ files have y up and their front towards +z; the world has z up and its front towards +x.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distill.files.grey import eight_bits
from distill.meshes.mtl import materials_of, text_in

Array = NDArray[np.floating[Any]]
#: The file of a name, as bytes; a ``KeyError`` if there is none, as ``zipfile.ZipFile.read`` has it.
Read = Callable[[str], bytes]

#: The farthest point of a placed model is so far from the origin, as in ``shapes.build``.
RADIUS = 0.95
#: Textures are shrunk to this side at most: pictures of 64 pixels show no more, and finer ones flicker.
TEXTURE = 256
#: The file's axes that become x, y and z: its front +z is the world's +x, its up +y the world's +z.
_TO_WORLD = [2, 0, 1]
#: An option of a map, with its values: numbers, switches, or a channel's letter.
_OPTION = re.compile(r"^-(?:imfchan\s+\w|type\s+\w+|\w+(?:\s+(?:-?[\d.]+|on|off))*)\s+")


@dataclass(frozen=True)
class Material:
    """A material: colour, texture and opacity of faces.

    Attributes:
        colour: sRGB in [0, 1]; a texture stands in its place where there is one.
        opacity: from 0 to 1.
        texture: sRGB and opacity, uint8, shape ``[h, w, 4]``, the first row on top.
    """

    colour: tuple[float, float, float] = (0.8, 0.8, 0.8)
    opacity: float = 1.0
    texture: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Model:
    """Triangles with materials.

    Attributes:
        vertices: shape ``[vertices, 3]``.
        faces: shape ``[faces, 3]``.
        uv: texture coordinates of each face's corners, v upwards, shape ``[faces, 3, 2]``.
        material: index into ``materials``, shape ``[faces]``.
        materials: see ``Material``.
    """

    vertices: Array
    faces: NDArray[np.integer[Any]]
    uv: Array
    material: NDArray[np.integer[Any]]
    materials: tuple[Material, ...]

    def areas(self) -> Array:
        """Each face's area, shape ``[faces]``."""
        a, b, c = np.moveaxis(self.vertices[self.faces], 1, 0)
        return np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2


def _texture(read: Read, path: str) -> NDArray[np.uint8]:
    try:
        image = eight_bits(Image.open(io.BytesIO(read(path)))).convert("RGBA")
    except KeyError:
        raise ValueError(f"the map {PurePosixPath(path).name} is missing") from None
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(
            f"the map {PurePosixPath(path).name} is no readable picture: {type(error).__name__}"
        ) from None
    image.thumbnail((TEXTURE, TEXTURE), Image.Resampling.BOX)
    return np.asarray(image)


def _materials(read: Read, path: str) -> dict[str, Material]:
    """The materials of an MTL file, by name; none where the file is missing.

    Raises:
        ValueError: a line or a texture cannot be read.
    """
    try:
        text = text_in(read(path))
    except KeyError:
        return {}
    return {
        name: _material(values, read, PurePosixPath(path).parent)
        for name, values in materials_of(text, PurePosixPath(path).name).items()
    }


def _material(values: Mapping[str, str], read: Read, folder: PurePosixPath) -> Material:
    """A material of the values that an MTL file gives it."""
    numbers = {
        key: [min(max(float(word), 0.0), 1.0) for word in values[key].split()]
        for key in ("kd", "d")
        if key in values
    }
    made = Material()
    if "kd" in numbers:
        r, g, b = numbers["kd"]
        made = replace(made, colour=(r, g, b))
    if "d" in numbers:
        made = replace(made, opacity=numbers["d"][0])
    if "map_kd" in values:
        name = values["map_kd"]
        while match := _OPTION.match(name):
            name = name[match.end() :]
        made = replace(made, texture=_texture(read, str(folder / name.replace("\\", "/"))))
    return made


@dataclass
class _Lines:
    """What has been read of an OBJ file's lines."""

    vertices: list[list[float]]
    uv: list[list[float]]
    corners: list[tuple[int, int]]
    material: list[int]
    names: list[str]


def _face(lines: _Lines, words: list[str], material: int) -> None:
    """Add a polygon as a fan of triangles; negative indices count back from the last vertex."""
    corners = []
    for word in words:
        parts = word.split("/")
        at, tex = int(parts[0]), int(parts[1]) if len(parts) > 1 and parts[1] else 0
        at = at - 1 if at > 0 else len(lines.vertices) + at
        tex = tex - 1 if tex > 0 else len(lines.uv) + tex if tex else -1
        corners.append((at, tex))
    for index in range(1, len(corners) - 1):
        lines.corners += (corners[0], corners[index], corners[index + 1])
        lines.material.append(material)


def _parse(text: str) -> tuple[_Lines, list[str]]:
    """An OBJ file's lines and the material files that it names."""
    lines, libraries, current = _Lines([], [], [], [], [""]), [], 0
    for line in text.replace("\\\n", " ").splitlines():
        words = line.split()
        if not words:
            continue
        key = words[0]
        if key == "v":
            lines.vertices.append([float(word) for word in words[1:4]])
        elif key == "vt":
            lines.uv.append([float(word) for word in words[1:3]])
        elif key == "f":
            _face(lines, words[1:], current)
        elif key == "usemtl":
            name = " ".join(words[1:])
            if name not in lines.names:
                lines.names.append(name)
            current = lines.names.index(name)
        elif key == "mtllib":
            libraries.append(line.strip()[6:].strip())
    return lines, libraries


def read(files: Read, path: str) -> Model:
    """Read a model with its materials and textures.

    Args:
        files: gives the bytes of a file by its path.
        path: of the OBJ file; its materials and textures lie beside it.

    Raises:
        ValueError: the model or a texture is missing or cannot be read, or it has no faces.
    """
    try:
        text = text_in(files(path))
    except KeyError:
        raise ValueError(f"the model {path} is missing") from None
    try:
        lines, libraries = _parse(text)
        vertices = np.array(lines.vertices, dtype=float).reshape(-1, 3)
        corners = np.array(lines.corners, dtype=np.int64).reshape(-1, 3, 2)
    except (ValueError, IndexError) as error:
        raise ValueError(f"the model {path} is broken: {error}") from None
    faces = corners[..., 0]
    if not len(faces) or faces.min() < 0 or faces.max() >= len(vertices) or not np.isfinite(vertices).all():
        raise ValueError(f"the model {path} is broken: no faces, or faces of vertices that are not there")
    named: dict[str, Material] = {}
    for library in libraries:
        named |= _materials(files, str(PurePosixPath(path).parent / library))
    uv = np.array([*lines.uv, [0.0, 0.0]]).reshape(-1, 2)
    index = np.where(corners[..., 1] < len(lines.uv), corners[..., 1], -1)
    materials = tuple(named.get(name, Material()) for name in lines.names)
    seen = np.array([one.opacity > 0 for one in materials])[np.array(lines.material)]
    if not seen.any():
        raise ValueError(f"the model {path} is broken: all of its faces are invisible")
    return Model(vertices, faces[seen], uv[index][seen], np.array(lines.material)[seen], materials)


def placed(model: Model, turn: Array, size: tuple[float, float, float]) -> Model:
    """Turn a model upright, give it its size, and place it as the world's objects are.

    Args:
        model: as it was read.
        turn: rotation of column vectors in the file's axes, shape ``[3, 3]``; afterwards y is up and +z the front.
        size: width, height and depth after the turn, in any unit.

    Returns:
        The model with z up and its front towards +x, centred on its bounding box, its farthest point ``RADIUS`` from the
        origin.

    Raises:
        ValueError: all of its vertices are in one place.
    """
    vertices = model.vertices @ turn.T
    used = vertices[np.unique(model.faces)]
    low, high = used.min(0), used.max(0)
    extent = high - low
    if extent.max() <= 0:
        raise ValueError("the model is broken: all of its vertices are in one place")
    # A flat side has no size to be given.
    scale = np.where(extent > 1e-6 * extent.max(), np.array(size) / np.maximum(extent, 1e-12), 1.0)
    vertices = ((vertices - (low + high) / 2) * scale)[:, _TO_WORLD]
    reach = np.linalg.norm(vertices[np.unique(model.faces)], axis=1).max()
    return replace(model, vertices=vertices * (RADIUS / reach))


def colours(model: Model, faces: NDArray[np.integer[Any]], barycentric: Array) -> Array:
    """Return colour and opacity at points of the surface.

    Args:
        model: the surface.
        faces: which face each point is on, shape ``[points]``.
        barycentric: where on it, shape ``[points, 3]``.

    Returns:
        sRGB and opacity in [0, 1], shape ``[points, 4]``; textures repeat and are read without interpolation.
    """
    found = np.empty((len(faces), 4), np.float32)
    of = model.material[faces]
    for index, material in enumerate(model.materials):
        here = of == index
        if not here.any():
            continue
        if material.texture is None:
            found[here] = (*material.colour, material.opacity)
            continue
        height, width = material.texture.shape[:2]
        u, v = np.moveaxis((model.uv[faces[here]] * barycentric[here][..., None]).sum(1), -1, 0)
        column = (np.nan_to_num(u) % 1 * width).astype(int).clip(0, width - 1)
        row = ((1 - np.nan_to_num(v) % 1) * height).astype(int).clip(0, height - 1)
        found[here] = material.texture[row, column] / 255
        found[here, 3] *= material.opacity
    return found


def is_plain(material: Material) -> bool:
    """Return whether a material has one colour and is not of glass."""
    return material.texture is None and material.opacity > 0.9


def painted(model: Model, colour: tuple[float, float, float] | None) -> NDArray[np.bool_]:
    """Return which materials have a plain colour, shape ``[materials]``; it is compared in steps of 1/255."""

    def steps(values: tuple[float, float, float]) -> list[int]:
        return [round(255 * value) for value in values]

    return np.array(
        [colour is not None and is_plain(m) and steps(m.colour) == steps(colour) for m in model.materials]
    )

"""The kinds of object in the embedded world, built from solids; z up, front towards +x.

Every builder takes ``vary``, a function that returns its argument times a factor near one. Passing the
identity gives the canonical object; a random ``vary`` gives its siblings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import trimesh
from trimesh import creation
from trimesh.transformations import rotation_matrix

Vary = Callable[[float], float]
Colour = tuple[float, float, float]

WHITE: Colour = (0.93, 0.93, 0.92)
CREAM: Colour = (0.96, 0.88, 0.72)
GREY: Colour = (0.55, 0.56, 0.58)
DARK: Colour = (0.14, 0.14, 0.16)
WOOD: Colour = (0.50, 0.33, 0.18)
GLASS: Colour = (0.60, 0.80, 0.92)
CARROT: Colour = (0.98, 0.52, 0.10)
LIGHT: Colour = (0.99, 0.93, 0.60)


@dataclass(frozen=True)
class Part:
    """A closed solid and its paint, sRGB in [0, 1]; None stands for the colour that the prompt names."""

    mesh: trimesh.Trimesh
    paint: Colour | None = None


def joined(parts: list[Part]) -> trimesh.Trimesh:
    """All parts as one mesh, in their order."""
    whole = trimesh.util.concatenate([part.mesh for part in parts])
    assert isinstance(whole, trimesh.Trimesh)
    return whole


def _move(mesh: trimesh.Trimesh, x: float = 0, y: float = 0, z: float = 0) -> trimesh.Trimesh:
    return mesh.apply_translation([x, y, z])


def _turn(mesh: trimesh.Trimesh, degrees: float, axis: tuple[float, float, float]) -> trimesh.Trimesh:
    return mesh.apply_transform(rotation_matrix(np.deg2rad(degrees), axis))


def _box(x: float, y: float, z: float) -> trimesh.Trimesh:
    return creation.box(extents=(x, y, z))


def _ball(radius: float, stretch: tuple[float, float, float] = (1, 1, 1)) -> trimesh.Trimesh:
    return creation.icosphere(subdivisions=3, radius=radius).apply_scale(stretch)


def _rod(radius: float, height: float, axis: str = "z") -> trimesh.Trimesh:
    rod = creation.cylinder(radius=radius, height=height, sections=48)
    if axis == "x":
        return _turn(rod, 90, (0, 1, 0))
    if axis == "y":
        return _turn(rod, 90, (1, 0, 0))
    return rod


def _lathe(profile: list[tuple[float, float]]) -> trimesh.Trimesh:
    """Revolve a closed profile of (radius, z) points around z."""
    return creation.revolve(np.array(profile, dtype=float), sections=64)


def sphere(vary: Vary) -> list[Part]:
    return [Part(_ball(1.0))]


def cube(vary: Vary) -> list[Part]:
    return [Part(_box(1, vary(1), vary(1)))]


def cylinder(vary: Vary) -> list[Part]:
    return [Part(_rod(vary(0.5), 1.3))]


def cone(vary: Vary) -> list[Part]:
    return [Part(creation.cone(radius=vary(0.62), height=1.4, sections=64))]


def torus(vary: Vary) -> list[Part]:
    return [Part(creation.torus(0.68, vary(0.25), major_sections=64, minor_sections=32))]


def mug(vary: Vary) -> list[Part]:
    radius, height, wall = vary(0.5), 1.15, 0.07
    h = height / 2
    body = _lathe(
        [(0, -h), (radius, -h), (radius, h), (radius - wall, h), (radius - wall, -h + wall), (0, -h + wall)]
    )
    handle = creation.torus(vary(0.3), 0.09, major_sections=48, minor_sections=16)
    handle = _move(_turn(handle, 90, (1, 0, 0)), x=radius + 0.08)
    # The handle points to the mug's own right, as for someone who drinks facing us.
    return [Part(body), Part(_turn(handle, -90, (0, 0, 1)))]


def table(vary: Vary) -> list[Part]:
    width, depth, leg = vary(1.5), vary(1.1), 0.95
    top = _move(_box(depth, width, 0.15), z=leg / 2 + 0.07)
    legs = [
        _move(_box(0.16, 0.16, leg), x=sx * (depth / 2 - 0.1), y=sy * (width / 2 - 0.1))
        for sx in (-1, 1)
        for sy in (-1, 1)
    ]
    return [Part(top)] + [Part(one) for one in legs]


def chair(vary: Vary) -> list[Part]:
    width, seat, back = 0.85, vary(0.75), vary(0.95)
    parts = [_move(_box(width, width, 0.15), z=0)]
    parts.append(_move(_box(0.15, width, back), x=-(width - 0.15) / 2, z=back / 2))
    parts += [
        _move(_box(0.15, 0.15, seat), x=sx * (width - 0.15) / 2, y=sy * (width - 0.15) / 2, z=-seat / 2)
        for sx in (-1, 1)
        for sy in (-1, 1)
    ]
    return [Part(one) for one in parts]


def snowman(vary: Vary) -> list[Part]:
    low, high = vary(0.55), vary(0.36)
    head_z = low + 0.75 * high
    nose = _turn(creation.cone(radius=0.08, height=0.36, sections=24), 90, (0, 1, 0))
    eyes = [_move(_ball(0.055), x=high * 0.88, y=sy * 0.14, z=head_z + 0.13) for sy in (-1, 1)]
    buttons = [_move(_ball(0.055), x=low * 0.99, z=z) for z in (-0.02, 0.2)]
    return [
        Part(_ball(low)),
        Part(_move(_ball(high), z=head_z)),
        Part(_move(nose, x=high * 0.9, z=head_z), CARROT),
        *(Part(dot, DARK) for dot in eyes + buttons),
        Part(_move(_rod(high * 0.85, 0.06), z=head_z + high * 0.83), DARK),
        Part(_move(_rod(high * 0.55, 0.34), z=head_z + high * 0.83 + 0.17), DARK),
    ]


def mushroom(vary: Vary) -> list[Part]:
    radius = vary(0.7)
    angles = np.linspace(0, np.pi / 2, 17)
    dome = [(0.0, 0.0)] + [(radius * np.cos(a), 0.55 * np.sin(a)) for a in angles]
    stem = _lathe([(0, -0.75), (0.26, -0.75), (0.2, -0.35), (0.2, 0.05), (0, 0.05)])
    spots = [
        _move(
            _ball(0.11),
            radius * 0.8 * np.cos(a) * np.cos(lift),
            radius * 0.8 * np.sin(a) * np.cos(lift),
            0.5 * np.sin(lift) + 0.06,
        )
        for a, lift in [(0.0, 0.6), (1.26, 0.7), (2.51, 0.6), (3.77, 0.7), (5.03, 0.6), (0.6, 1.35)]
    ]
    return [Part(_lathe(dome)), Part(stem, CREAM), *(Part(spot, WHITE) for spot in spots)]


def house(vary: Vary) -> list[Part]:
    depth, width, wall = vary(1.0), vary(1.2), 0.75
    ridge = wall / 2 + 0.55
    eave, x = width / 2 + 0.1, depth / 2 + 0.1
    points = [(sx * x, y, z) for sx in (-1, 1) for y, z in ((-eave, wall / 2), (eave, wall / 2), (0, ridge))]
    roof = trimesh.convex.convex_hull(np.array(points))
    door = _move(_box(0.06, 0.26, 0.46), x=depth / 2, z=-wall / 2 + 0.23)
    windows = [_move(_box(0.06, 0.24, 0.24), x=depth / 2, y=sy * 0.38, z=0.06) for sy in (-1, 1)]
    chimney = _move(_box(0.18, 0.18, 0.5), x=-0.22, y=0.3, z=wall / 2 + 0.42)
    return [
        Part(_box(depth, width, wall), CREAM),
        Part(roof),
        Part(door, WOOD),
        *(Part(window, GLASS) for window in windows),
        Part(chimney, GREY),
    ]


def rocket(vary: Vary) -> list[Part]:
    radius, height = vary(0.38), 1.0
    t = np.linspace(0, 1, 17)
    nose = [(0.0, 0.0), *((radius * np.cos(a * np.pi / 2), 0.62 * a) for a in t)]
    window = _move(_rod(0.15, 0.1, "x"), x=radius - 0.03, z=0.22)
    fins = []
    for angle in (60, 180, 300):
        outline = np.array([(0, 0), (0.38, -0.28), (0.38, -0.05), (0, 0.5)])
        points = [(radius * 0.8 + r, y, z) for r, z in outline for y in (-0.045, 0.045)]
        fin = _move(trimesh.convex.convex_hull(np.array(points)), z=-height / 2)
        fins.append(_turn(fin, angle, (0, 0, 1)))
    return [
        Part(_rod(radius, height)),
        Part(_move(_lathe(nose), z=height / 2), WHITE),
        Part(window, GLASS),
        *(Part(fin, DARK) for fin in fins),
    ]


def car(vary: Vary) -> list[Part]:
    length, width = vary(1.7), 0.8
    body = _move(_box(length, width, 0.36), z=0)
    cabin = trimesh.convex.convex_hull(
        np.array(
            [
                (x, sy * y, z)
                for sy in (-1, 1)
                for x, y, z in (
                    (-0.72, 0.38, 0.17),
                    (0.34, 0.38, 0.17),
                    (-0.6, 0.31, 0.5),
                    (0.08, 0.31, 0.5),
                )
            ]
        )
    )
    wheels = [
        _move(_rod(0.23, 0.16, "y"), x=sx * length * 0.3, y=sy * width / 2, z=-0.2)
        for sx in (-1, 1)
        for sy in (-1, 1)
    ]
    lamps = [_move(_box(0.05, 0.17, 0.13), x=length / 2, y=sy * 0.26, z=0.04) for sy in (-1, 1)]
    return [
        Part(body),
        Part(cabin, GLASS),
        *(Part(wheel, DARK) for wheel in wheels),
        *(Part(lamp, LIGHT) for lamp in lamps),
    ]


def duck(vary: Vary) -> list[Part]:
    body = _ball(0.55, (1.25, 0.9, vary(0.8)))
    tail = _turn(creation.cone(radius=0.24, height=0.5, sections=32), -60, (0, 1, 0))
    beak = _ball(0.17, (1.3, 0.9, 0.45))
    eyes = [_move(_ball(0.06), x=0.68, y=sy * 0.2, z=0.72) for sy in (-1, 1)]
    return [
        Part(body),
        Part(_move(tail, x=-0.5, z=0.12)),
        Part(_move(_ball(vary(0.36)), x=0.45, z=0.6)),
        Part(_move(beak, x=0.86, z=0.54), CARROT),
        *(Part(eye, DARK) for eye in eyes),
    ]


def robot(vary: Vary) -> list[Part]:
    body, head = vary(0.7), 0.42
    top = 0.4 + head / 2 + 0.06
    arms = [_move(_box(0.16, 0.16, 0.62), y=sy * (body / 2 + 0.12), z=0.02) for sy in (-1, 1)]
    legs = [_move(_box(0.2, 0.2, 0.45), y=sy * 0.18, z=-0.6) for sy in (-1, 1)]
    eyes = [_move(_rod(0.08, 0.08, "x"), x=head / 2, y=sy * 0.13, z=top + 0.04) for sy in (-1, 1)]
    panel = _move(_box(0.06, 0.34, 0.26), x=0.22, z=0.08)
    return [
        Part(_box(0.44, body, 0.8)),
        Part(_move(_box(head, 0.56, head), z=top)),
        *(Part(limb, GREY) for limb in arms + legs),
        *(Part(eye, DARK) for eye in eyes),
        Part(panel, LIGHT),
        Part(_move(_rod(0.05, 0.3), z=top + head / 2 + 0.12), GREY),
    ]


def teapot(vary: Vary) -> list[Part]:
    radius = vary(0.55)
    body = _ball(radius, (1, 1, 0.85))
    spout = _turn(creation.cone(radius=0.24, height=0.7, sections=32), 55, (0, 1, 0))
    handle = _turn(creation.torus(0.29, 0.08, major_sections=48, minor_sections=16), 90, (1, 0, 0))
    return [
        Part(body),
        Part(_move(spout, x=radius * 0.75, z=-0.05)),
        Part(_move(handle, x=-radius - 0.1, z=0.05)),
        Part(_move(_rod(0.26, 0.08), z=radius * 0.82), WHITE),
        Part(_move(_ball(0.1), z=radius * 0.82 + 0.12), WHITE),
    ]


KINDS: dict[str, Callable[[Vary], list[Part]]] = {
    builder.__name__: builder
    for builder in (
        sphere,
        cube,
        cylinder,
        cone,
        torus,
        mug,
        table,
        chair,
        snowman,
        mushroom,
        house,
        rocket,
        car,
        duck,
        robot,
        teapot,
    )
}

#: Kinds whose front and back a picture tells apart.
ORIENTED = ("mug", "chair", "snowman", "house", "rocket", "car", "duck", "robot", "teapot")


def build(kind: str, vary: Vary = float) -> list[Part]:
    """Build one object, centred on its bounding box, its farthest point 0.95 from the origin."""
    parts = KINDS[kind](vary)
    vertices = np.concatenate([part.mesh.vertices for part in parts])
    centre = (vertices.min(0) + vertices.max(0)) / 2
    scale = 0.95 / np.linalg.norm(vertices - centre, axis=1).max()
    for part in parts:
        part.mesh.apply_translation(-centre)
        part.mesh.apply_scale(scale)
    return parts

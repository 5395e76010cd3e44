"""The benchmark on real meshes: what it reads of OBJ and GLB files, what it takes for the same mesh, and what it asks for."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distill.embedded import shapes, things, world
from distill.meshes.read import read_surface
from distill.meshes.write import Paints, write_textured

FOLDER = Path(__file__).parents[1] / "examples" / "benchmarks"

#: A prism: a quadrilateral, a pentagon that counts back from the last vertex, and a triangle, in two objects and materials.
PRISM = """mtllib prism.mtl
o base
v 0 0 0
v 1 0 0
v 1 0 -1
v 0 0 -1
vn 0 1 0
usemtl oak
f 1//1 2//1 3//1 4//1
l 1 2
o roof top
v 0 1 0
v 1 1 0
v 2 1.5 0
v 1 2 0
v 0 2 0
usemtl oak
f -5 -4 -3 -2 -1
usemtl tin
f 1 2 5
"""


@pytest.fixture
def real_meshes(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("real_meshes")


@pytest.fixture
def prism(tmp_path: Path) -> Path:
    (tmp_path / "prism.mtl").write_text("newmtl oak\nKd 0.5 0.3 0.1\nnewmtl tin\nKd 0.7 0.7 0.7\n")
    (tmp_path / "prism.obj").write_text(PRISM)
    return tmp_path / "prism.obj"


def test_an_objs_polygons_are_fans_and_its_parts_are_objects_with_materials(
    real_meshes: Any, prism: Path
) -> None:
    found = real_meshes.read_obj(prism)
    assert found.parts == {"base_oak": 2, "roof top_oak": 3, "roof top_tin": 1}
    assert found.corners.shape == (6, 3, 3)
    # The pentagon's last triangle, and the one after it.
    np.testing.assert_array_equal(found.corners[4], [[0, 1, 0], [1, 2, 0], [0, 2, 0]])
    np.testing.assert_array_equal(found.corners[5], [[0, 0, 0], [1, 0, 0], [0, 1, 0]])


def test_triangles_are_the_same_in_another_order_but_not_turned_over_or_moved(real_meshes: Any) -> None:
    rng = np.random.default_rng(0)
    # Few values, so that corners coincide and triangles repeat.
    corners = rng.integers(-1, 2, (60, 3, 3)).astype(np.float32)
    shuffled = np.stack([np.roll(one, rng.integers(3), 0) for one in corners[rng.permutation(60)]])
    assert real_meshes.same_triangles(corners, shuffled)
    single = corners[:1] + np.arange(9, dtype=np.float32).reshape(1, 3, 3) * 3
    assert not real_meshes.same_triangles(single, single[:, ::-1])
    assert not real_meshes.same_triangles(single, np.nextafter(single, np.float32(9)))
    assert not real_meshes.same_triangles(single, np.concatenate([single, single]))


def test_a_textured_prism_is_the_prism_and_its_picture_has_the_paint(
    real_meshes: Any, prism: Path, tmp_path: Path
) -> None:
    reading = {"up": "auto", "front": "auto", "keep": [], "init_texture": False}
    surface = read_surface({"file": str(prism), **reading})
    paint = torch.tensor([[0.2, 0.4, 0.6]])
    write_textured(
        surface, Paints(lambda points: paint.expand(len(points), 3)), tmp_path / "out.glb", size=64
    )
    given, made = real_meshes.read_obj(prism), real_meshes.read_glb(tmp_path / "out.glb")
    assert real_meshes.wrong(given, made) == []
    assert [image.shape for image in made.images] == [(64, 64, 3)]
    assert (made.images[0] == [51, 102, 153]).all()
    # A part fewer, and so fewer triangles.
    prism.write_text(PRISM.replace("f 1 2 5\n", "").replace("o base", "o floor"))
    told = real_meshes.wrong(real_meshes.read_obj(prism), made)
    assert told == ["other triangles", "3 parts of 2, such as floor_oak"]


def test_a_divided_mesh_has_the_same_area_and_parts_and_enough_faces(real_meshes: Any, prism: Path) -> None:
    def area(corners: Any) -> float:
        edges = corners[:, 1:].astype(float) - corners[:, :1]
        return float(np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=1).sum() / 2)

    before = real_meshes.read_obj(prism)
    after = real_meshes.read_obj(real_meshes.subdivided(prism, 50))
    assert len(after.corners) == 6 * 16
    assert sorted(after.parts.values()) == [16 * count for count in sorted(before.parts.values())]
    assert area(after.corners) == pytest.approx(area(before.corners), rel=1e-6)


def test_twenty_meshes_of_the_table_are_asked_for_in_words_that_the_prior_knows(real_meshes: Any) -> None:
    there = {thing.id for thing in things.table()}
    assert len(real_meshes.MESHES) == 20 and {*real_meshes.MESHES} <= there
    known = {world.caption(colour, kind) for colour in world.COLOURS for kind in shapes.KINDS}
    assert {*real_meshes.MESHES.values()} <= known


def test_an_archive_that_is_not_there_is_one_line(real_meshes: Any, tmp_path: Path) -> None:
    thing = next(thing for thing in things.table() if thing.id in real_meshes.MESHES)
    with pytest.raises(ValueError, match=r"is not there; fetch it with examples/embedded/fetch_things\.py"):
        real_meshes.unpack(thing, tmp_path, tmp_path / "given")

"""Files open in Blender with their name, place, texture and material; skipped where its Python module is not installed."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_export_formats import EDGES, MIDDLE, TILE, crate

from distill.export.choices import FORMATS
from distill.export.files import save_meshes

#: Says what Blender makes of a file. In a process of its own, since its module takes over the process that imports it.
LOOK = """
import json, sys
import bpy
from mathutils import Vector
path = sys.argv[1]
read = {"glb": bpy.ops.import_scene.gltf, "obj": bpy.ops.wm.obj_import, "ply": bpy.ops.wm.ply_import,
        "stl": bpy.ops.wm.stl_import, "usdz": bpy.ops.wm.usd_import}
bpy.ops.wm.read_factory_settings(use_empty=True)
read[path.rpartition(".")[2]](filepath=path)
found = []
for one in bpy.context.scene.objects:
    if not one.visible_get():
        continue
    corners = [list(one.matrix_world @ Vector(corner)) for corner in one.bound_box]
    materials = []
    for slot in one.material_slots:
        nodes = {node.type: node for node in slot.material.node_tree.nodes}
        shader, picture = nodes["BSDF_PRINCIPLED"], nodes.get("TEX_IMAGE")
        image = picture and picture.image
        materials.append({
            "metallic": shader.inputs["Metallic"].default_value, "roughness": shader.inputs["Roughness"].default_value,
            "size": image and list(image.size), "space": image and image.colorspace_settings.name,
            "name": image and image.name.partition(".")[0], "corner": image and [round(255 * value) for value in image.pixels[:3]],
        })
    found.append({"name": one.name, "faces": len(one.data.polygons), "uv": len(one.data.uv_layers), "materials": materials,
                  "low": [min(axis) for axis in zip(*corners)], "high": [max(axis) for axis in zip(*corners)]})
print("FOUND" + json.dumps(found))
"""


def seen(path: Path) -> list[dict[str, Any]]:
    """The visible objects that Blender makes of a file, all of them meshes."""
    done = subprocess.run([sys.executable, "-c", LOOK, str(path)], capture_output=True, text=True, check=True)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("FOUND")]
    found: list[dict[str, Any]] = json.loads(line.removeprefix("FOUND"))
    return found


@pytest.mark.skipif(
    importlib.util.find_spec("bpy") is None, reason="Blender is not installed: pip install bpy"
)
@pytest.mark.parametrize("kind", FORMATS)
def test_blender_opens_each_format(kind: str, tmp_path: Path) -> None:
    save_meshes(crate(), tmp_path, formats=[kind], name="crate")
    (one,) = seen(tmp_path / f"crate.{kind}")
    assert (one["name"], one["faces"]) == ("crate", 12)
    # Files have the front along +z and y up. Blender turns formats that say so to z up, with the front along -y.
    size, middle = np.subtract(one["high"], one["low"]), np.add(one["high"], one["low"]) / 2
    front, left, top = EDGES
    if kind in ("glb", "obj", "usdz"):
        np.testing.assert_allclose(size, [left, front, top], atol=1e-4)
        np.testing.assert_allclose(middle, [MIDDLE[1], -MIDDLE[0], MIDDLE[2]], atol=1e-4)
    else:
        np.testing.assert_allclose(size, [left, top, front], atol=1e-4)
        np.testing.assert_allclose(middle, [MIDDLE[1], MIDDLE[2], MIDDLE[0]], atol=1e-4)
    if kind in ("ply", "stl"):
        assert one["materials"] == []
        return
    (material,) = one["materials"]
    assert one["uv"] == 1 and material["metallic"] == 0 and material["roughness"] > 0.89
    # Blender's pictures begin at the lower left: the fourth side's colour.
    assert (material["size"], material["space"]) == ([3 * TILE, 2 * TILE], "sRGB")
    assert material["name"] == "crate"
    assert material["corner"] == [170, 160, 70]


@pytest.mark.skipif(
    importlib.util.find_spec("bpy") is None, reason="Blender is not installed: pip install bpy"
)
def test_blender_shows_the_full_mesh_of_a_file_with_levels_alone(tmp_path: Path) -> None:
    save_meshes(crate(), tmp_path, formats=["glb"], name="crate", lods=2, lod_as="msft")
    (one,) = seen(tmp_path / "crate.glb")
    assert (one["name"], one["faces"]) == ("crate", 12)


@pytest.mark.skipif(
    importlib.util.find_spec("bpy") is None, reason="Blender is not installed: pip install bpy"
)
@pytest.mark.parametrize("kind", ["ply", "stl"])
def test_formats_that_blender_does_not_turn_stand_upright_with_z_up(kind: str, tmp_path: Path) -> None:
    save_meshes(crate(), tmp_path, formats=[kind], name="crate", up="z", pivot="ground", size_m=0.4)
    (one,) = seen(tmp_path / f"crate.{kind}")
    # Half as large: the front's edge along x, the left's along y, the top's from the ground up.
    np.testing.assert_allclose([one["low"], one["high"]], [[-0.1, -0.05, 0], [0.1, 0.05, 0.4]], atol=1e-5)

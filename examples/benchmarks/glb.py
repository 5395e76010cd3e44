"""Views of an exported GLB."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import trimesh

from distill.contracts import View
from distill.export.drawn import mesh_view
from distill.export.mesh import Mesh

#: Rays along each side of a pixel.
RAYS = 3
#: Of the axes of GLB, y up and front +z, to the world's.
FROM_GLB = np.array([[0.0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])


def view_of(path: Path) -> View:
    """Return a view of a textured GLB over white, each pixel a mean over ``RAYS`` x ``RAYS`` rays."""
    read = cast(trimesh.Trimesh, trimesh.load(path, force="mesh"))
    read.apply_transform(FROM_GLB)
    visual: Any = read.visual
    texture = np.asarray(visual.material.baseColorTexture.convert("RGB"))
    return mesh_view(Mesh(read.vertices, read.faces, read.vertex_normals, visual.uv, texture), RAYS)

"""Export a finished scene: mesh files, a video and contact sheets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from distill.contracts import Field, View
from distill.export.choices import (
    BLUR_WIDTH,
    ELEVATION_DEG,
    FACES,
    FRAMES,
    MIN_COMPONENT,
    PICTURE_SIZE,
    RESOLUTION,
    TEXTURE_SIZE,
)
from distill.export.colours import LARGEST, paint_of
from distill.export.drawn import mesh_view
from distill.export.files import save_meshes
from distill.export.frame import Pivot, Up
from distill.export.mesh import Mesh, extract_mesh
from distill.export.pictures import timed, write_contact_sheet, write_pictures
from distill.export.texture import bake_texture, colour_vertices
from distill.export.zero_set import extract_zero_set
from distill.files.paths import user_path


def export_asset(
    query: Field,
    view: View,
    folder: Path | str,
    *,
    resolution: int = RESOLUTION,
    faces: int = FACES,
    iso: float | None = None,
    min_component: float = MIN_COMPONENT,
    blur_width: float = BLUR_WIDTH,
    texture_size: int = TEXTURE_SIZE,
    frames: int = FRAMES,
    picture_size: int = PICTURE_SIZE,
    elevation_deg: float = ELEVATION_DEG,
    up: Up = "y",
    formats: Sequence[str] | None = None,
    name: str = "mesh",
    pivot: Pivot = "scene",
    size_m: float | None = None,
    lods: int = 0,
    lod_as: str = "files",
) -> dict[str, Any]:
    """Write contact.png, turntable.mp4 and the mesh, by default mesh.glb, mesh.obj (with .mtl and .png) and mesh.ply, and mesh-sides.png.

    The pictures come first: an empty scene still has them when the mesh fails.

    Args:
        query: the scene's density and albedo at points on the CPU.
        view: takes the pictures.
        folder: created if need be; files of these names are replaced.
        resolution: of the grid that the mesh is made on, nodes per edge.
        faces: at most about this many triangles.
        iso: density of the surface, per scene unit; None chooses it.
        min_component: smallest component that is kept, as a fraction of the largest one's volume.
        blur_width: standard deviation of the Gaussian that smooths the field, scene units.
        texture_size: in texels along each side.
        frames: of the turntable.
        picture_size: of the video and of the sheet's pictures, in pixels, a multiple of 16.
        elevation_deg: of the pictures' cameras.
        up: "y" or "z", the mesh files' upward axis.
        formats: of glb, obj, ply, stl and usdz; this and what follows is as in ``distill.export.files.save_meshes``.
        name: of the mesh files, and of the object and the material in them.
        pivot: where the origin is: ``scene``, ``centre`` or ``ground``.
        size_m: the largest extent in metres.
        lods: simplified meshes besides the full one.
        lod_as: ``files``, ``msft`` or ``both``.

    Returns:
        ``seconds`` by part, ``iso_level``, ``silhouette_iou``, ``vertices`` and ``faces``, ``meshes`` and with levels ``lods``.

    Raises:
        ValueError: the scene is empty, an option is out of range, or a package is missing.
    """
    folder = user_path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {"frames": frames, "picture_size": picture_size, "elevation_deg": elevation_deg}
    meshes = {
        "resolution": resolution, "faces": faces, "iso": iso, "min_component": min_component,
        "blur_width": blur_width, "texture_size": texture_size, "up": up, "formats": formats, "name": name, "pivot": pivot, "size_m": size_m, "lods": lods,
        "lod_as": lod_as,
    }  # fmt: skip
    seconds = write_pictures(folder, view, pictures)
    figures = MeshWriter(query)(folder, view, pictures | meshes)
    return {**figures, "seconds": seconds | figures["seconds"]}


@dataclass(frozen=True)
class MeshWriter:
    """Writes a mesh with a baked texture, by default as mesh.glb, mesh.obj (with .mtl and .png) and mesh.ply, and a sheet of its sides.

    Attributes:
        query: the scene's density and albedo at points on the CPU.
        distance: its signed distance, negative inside, whose zero set is then the surface, whatever ``iso`` is; at points on the
            CPU, scene units.
    """

    query: Field
    distance: Callable[[Tensor], Tensor] | None = None

    def __call__(self, folder: Path, view: View, options: Mapping[str, Any]) -> dict[str, Any]:
        """Write it; options and figures are those of ``export_asset``. Without those of pictures, no sheet is written."""
        seconds: dict[str, float] = {}
        with timed(seconds, "mesh"):
            bare = self._bare(view, options)
        with timed(seconds, "texture"):
            mesh = self._textured(bare, view, options)
        with timed(seconds, "files"):
            written = save_meshes(mesh, folder, **{name: options[name] for name in SAVING if name in options})
        if "picture_size" in options:
            with timed(seconds, "mesh_sheet"):
                sheet = folder / f"{options.get('name', 'mesh')}-sides.png"
                size = min(options["picture_size"], LARGEST_SIDE)
                elevation_deg = options.get("elevation_deg", ELEVATION_DEG)
                write_contact_sheet(mesh_view(mesh), sheet, size=size, elevation_deg=elevation_deg)
        return {
            "seconds": seconds,
            "iso_level": mesh.iso_level,
            "silhouette_iou": mesh.silhouette_iou,
            "vertices": len(bare.vertices),
            "faces": len(mesh.faces),
            **written,
        }

    def mesh(self, view: View, options: Mapping[str, Any]) -> Mesh:
        """Make the mesh that is written, with its texture and its vertices' colours.

        Args:
            view: takes the pictures whose silhouettes the mesh's are compared with, and whose colours it has.
            options: those of ``export``; of those that shape or colour a mesh, what is not there has its default.

        Raises:
            ValueError: there is no surface, or an option is out of range.
        """
        return self._textured(self._bare(view, options), view, options)

    def _bare(self, view: View, options: Mapping[str, Any]) -> Mesh:
        chosen: dict[str, Any] = {name: options.get(name, usual) for name, usual in SHAPING.items()}
        if self.distance is None:
            return extract_mesh(self.query, view, **chosen)
        del chosen["iso"], chosen["blur_width"]
        return extract_zero_set(self.distance, view, **chosen)

    def _textured(self, bare: Mesh, view: View, options: Mapping[str, Any]) -> Mesh:
        size = options.get("texture_size", TEXTURE_SIZE)
        paint = paint_of(self.query, view, picture_size=min(size // 2, LARGEST))
        return bake_texture(colour_vertices(bare, paint), paint, size=size)


#: Most pixels along the pictures of a mesh: rays on the CPU take 0.7 s for eight pictures of 192 pixels, and 23 s for 1024.
LARGEST_SIDE = 512
#: Options of ``extract_mesh`` with their defaults, and those of ``save_meshes``.
SHAPING = {
    "resolution": RESOLUTION,
    "faces": FACES,
    "iso": None,
    "min_component": MIN_COMPONENT,
    "blur_width": BLUR_WIDTH,
}
SAVING = ("formats", "name", "pivot", "size_m", "lods", "lod_as", "up")

"""Export a finished scene: mesh files, a video and a contact sheet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from distill.contracts import Field, View, Writer
from distill.export.files import Up, save_mesh
from distill.export.mesh import extract_mesh
from distill.export.pictures import timed, write_pictures
from distill.export.texture import bake_texture, colour_vertices
from distill.export.zero_set import extract_zero_set


def export_asset(
    query: Field,
    view: View,
    folder: Path | str,
    *,
    resolution: int = 128,
    faces: int = 10_000,
    iso: float | None = None,
    largest_component: bool = True,
    texture_size: int = 512,
    frames: int = 60,
    picture_size: int = 192,
    elevation_deg: float = 15.0,
    up: Up = "y",
) -> dict[str, Any]:
    """Write contact.png, turntable.mp4, mesh.glb, mesh.obj (with .mtl and .png) and mesh.ply.

    The pictures come first: an empty scene still has them when the mesh fails.

    Args:
        query: the scene's density and albedo at points on the CPU.
        view: takes the pictures.
        folder: created if need be; files of these names are replaced.
        resolution: of the grid that the mesh is made on, nodes per edge.
        faces: at most about this many triangles.
        iso: density of the surface, per scene unit; None chooses it.
        largest_component: drop floaters.
        texture_size: in texels along each side.
        frames: of the turntable.
        picture_size: of the video and of the sheet's pictures, in pixels, a multiple of 16.
        elevation_deg: of the pictures' cameras.
        up: "y" or "z", the mesh files' upward axis.

    Returns:
        ``seconds`` by part, ``iso_level``, ``silhouette_iou``, ``vertices`` and ``faces``.

    Raises:
        ValueError: the scene is empty, or an option is out of range.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {"frames": frames, "picture_size": picture_size, "elevation_deg": elevation_deg}
    meshes = {
        "resolution": resolution, "faces": faces, "iso": iso, "largest_component": largest_component,
        "texture_size": texture_size, "up": up,
    }  # fmt: skip
    seconds = write_pictures(folder, view, pictures)
    figures = mesh_writer(query)(folder, view, meshes)
    return {**figures, "seconds": seconds | figures["seconds"]}


def mesh_writer(query: Field, distance: Callable[[Tensor], Tensor] | None = None) -> Writer:
    """Return the writer of mesh.glb, mesh.obj (with .mtl and .png) and mesh.ply.

    It takes the options ``resolution``, ``faces``, ``iso``, ``largest_component``, ``texture_size`` and ``up`` of
    ``export_asset``, and returns ``seconds`` by part, ``iso_level``, ``silhouette_iou``, ``vertices`` and ``faces``.

    Args:
        query: the scene's density and albedo at points on the CPU.
        distance: its signed distance, negative inside, whose zero set is then the surface, whatever ``iso`` is; at points on the
            CPU, scene units.
    """

    def write(folder: Path, view: View, options: Mapping[str, Any]) -> dict[str, Any]:
        seconds: dict[str, float] = {}
        chosen = {name: options[name] for name in ("resolution", "faces", "largest_component")}
        with timed(seconds, "mesh"):
            if distance is None:
                mesh = extract_mesh(query, view, iso=options["iso"], **chosen)
            else:
                mesh = extract_zero_set(distance, view, **chosen)
        with timed(seconds, "texture"):
            textured = bake_texture(mesh, query, size=options["texture_size"])
        with timed(seconds, "files"):
            up = options["up"]
            save_mesh(colour_vertices(mesh, query), folder / "mesh.ply", up=up)
            save_mesh(textured, folder / "mesh.obj", up=up)
            save_mesh(textured, folder / "mesh.glb", up=up)
        return {
            "seconds": seconds,
            "iso_level": mesh.iso_level,
            "silhouette_iou": mesh.silhouette_iou,
            "vertices": len(mesh.vertices),
            "faces": len(mesh.faces),
        }

    return write

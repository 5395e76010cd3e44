"""Everything a finished scene leaves behind: mesh files, a video and a contact sheet."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from distill.contracts import View
from distill.export.files import Up, save_mesh
from distill.export.mesh import Query, extract_mesh
from distill.export.pictures import write_contact_sheet, write_turntable
from distill.export.texture import bake_texture, colour_vertices


def export_asset(
    query: Query,
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
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Write contact.png, turntable.mp4, mesh.glb, mesh.obj (with .mtl and .png) and mesh.ply.

    The pictures come first: an empty scene still has them when the mesh fails.

    Args:
        query: the scene's density and albedo at points on ``device``.
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
        device: where ``query`` wants its points.

    Returns:
        ``seconds`` by part, ``iso_level``, ``silhouette_iou``, ``vertices`` and ``faces``.

    Raises:
        ValueError: the scene is empty, or an option is out of range.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, float] = {}
    with _timed(seconds, "contact"):
        write_contact_sheet(view, folder / "contact.png", size=picture_size, elevation_deg=elevation_deg)
    with _timed(seconds, "turntable"):
        write_turntable(
            view,
            folder / "turntable.mp4",
            frames=frames,
            size=picture_size,
            elevation_deg=elevation_deg,
        )
    with _timed(seconds, "mesh"):
        mesh = extract_mesh(
            query,
            view,
            resolution=resolution,
            faces=faces,
            iso=iso,
            largest_component=largest_component,
            device=device,
        )
    with _timed(seconds, "texture"):
        textured = bake_texture(mesh, query, size=texture_size, device=device)
    with _timed(seconds, "files"):
        save_mesh(colour_vertices(mesh, query, device=device), folder / "mesh.ply", up=up)
        save_mesh(textured, folder / "mesh.obj", up=up)
        save_mesh(textured, folder / "mesh.glb", up=up)
    return {
        "seconds": seconds,
        "iso_level": mesh.iso_level,
        "silhouette_iou": mesh.silhouette_iou,
        "vertices": len(mesh.vertices),
        "faces": len(mesh.faces),
    }


@contextmanager
def _timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[part] = round(time.perf_counter() - start, 3)

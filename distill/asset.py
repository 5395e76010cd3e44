"""A finished asset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.contracts import Scene, View
from distill.files.paths import user_path

if TYPE_CHECKING:
    from distill.export.frame import Pivot, Up
    from distill.export.mesh import Mesh


@dataclass(frozen=True)
class Asset:
    """A scene made from a prompt.

    Attributes:
        prompt: what was asked for.
        folder: where its files are.
        scene: the trained scene.
        view: takes pictures of it: ``asset.view(cameras, height, width)``.
        manifest: what made it, as in ``manifest.json``.
        particles: the assets of a run with several, whose own scene is then the first one's; else empty.
        export: options of ``export`` that the run has; what is not there has its default.
    """

    prompt: str
    folder: Path
    scene: Scene
    view: View
    manifest: dict[str, Any]
    particles: tuple[Asset, ...] = ()
    export: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def mesh(self) -> Mesh:
        """The run's mesh with texture and vertex colours, extracted on first access.

        It is shaped by the run's options ``export.resolution``, ``faces``, ``iso``, ``min_component``, ``blur_width`` and ``texture_size``, and
        in the scene's frame.

        Raises:
            ValueError: the scene is empty, or it is made of something else than a field.
        """
        from distill.export.asset import MeshWriter

        writer, query = self.scene.assets().get("mesh"), self.scene.field()
        if query is None:
            raise ValueError(
                "this scene has no field to make a mesh of; what it is made of is in its folder, or choose scene=hash_grid"
            )
        # A scene may write its field otherwise, or not at all.
        own = writer if isinstance(writer, MeshWriter) else MeshWriter(query)
        return own.mesh(self.view, self.export)

    def save(
        self,
        path: str | Path,
        *,
        formats: Sequence[str] | None = None,
        name: str | None = None,
        pivot: Pivot = "scene",
        size_m: float | None = None,
        lods: int = 0,
        lod_as: str = "files",
        up: Up = "y",
    ) -> Path:
        """Write the mesh: one file, ``asset.save("mug.glb")``, or with formats a folder, ``asset.save("mug", formats=["glb", "usdz"])``.

        Args:
            path: a file that ends in .glb, .obj, .ply, .stl or .usdz, in small letters or capitals; or with ``formats`` a folder, created if need be. Files of the
                same names are replaced, and with an OBJ its own MTL and PNG.
            formats: of glb, obj, ply, stl and usdz.
            name: of the files in the folder, and of the object and its material in them, by default ``mesh``; a single file is
                named by its path.
            pivot: where the origin is: as in the ``scene``, the ``centre`` of the bounding box, or on the ``ground`` beneath it.
            size_m: the largest extent in metres; None leaves one scene unit one metre.
            lods: simplified meshes besides the full one, each of half the faces of the one before.
            lod_as: where they go: ``files`` such as mug_lod1.glb, ``msft`` (into the GLB, as MSFT_lod), or ``both``.
            up: "y" or "z", the files' upward axis.

        Returns:
            The path of what is written; a leading ``~`` is expanded.

        Raises:
            OSError: it cannot be written there.
            ValueError: another suffix, formats beside the path of a file, an option is out of range, a package is missing, the scene is empty, or an OBJ's MTL or PNG
                would replace what is not its own.
        """
        from distill.export.choices import FORMATS, check_files
        from distill.export.files import write_meshes

        path, single = user_path(path), formats is None
        if single and name is not None:
            raise ValueError(
                f"name= is for a folder, with formats=; {path} names its file itself, leave it out"
            )
        ending = path.suffix.removeprefix(".")
        if formats is not None and ending.lower() in FORMATS:
            raise ValueError(
                f"with formats=, path is a folder, and {path} ends as a file does; leave out formats= for that file, or the ending for a folder"
            )
        kinds = [ending] if formats is None else formats
        check_files([ending.lower()] if formats is None else formats, name or "mesh", lods, lod_as)
        folder, stem = (path.parent, path.stem) if single else (path, name or "mesh")
        write_meshes(
            self.mesh, folder, formats=kinds, name=stem, pivot=pivot, size_m=size_m, lods=lods, lod_as=lod_as, up=up
        )  # fmt: skip
        return path

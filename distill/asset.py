"""A finished asset."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.contracts import Scene, View

if TYPE_CHECKING:
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
    """

    prompt: str
    folder: Path
    scene: Scene
    view: View
    manifest: dict[str, Any]
    particles: tuple[Asset, ...] = ()

    @cached_property
    def mesh(self) -> Mesh:
        """The textured mesh, made when first asked for.

        Raises:
            ValueError: the scene is empty.
        """
        from distill.export.mesh import extract_mesh
        from distill.export.texture import bake_texture

        field = self.scene.field()
        if field is None:
            raise ValueError(
                "this scene has no field to make a mesh of; what it is made of is in its folder, or choose scene=hash_grid"
            )
        bare = extract_mesh(field, self.view, faces=10_000)
        return bake_texture(bare, field)

    def save(self, path: str | Path) -> Path:
        """Write the mesh as ``.glb``, ``.obj`` or ``.ply``.

        Raises:
            ValueError: another suffix, or the scene is empty.
        """
        from distill.export.files import save_mesh

        save_mesh(self.mesh, Path(path))
        return Path(path)

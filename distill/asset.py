"""A finished asset."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.contracts import View

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
    scene: Any
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

        if not hasattr(self.scene, "query"):
            raise ValueError("a picture has no mesh; make a scene that fills space (leave out scene=image)")
        device = next(self.scene.parameters()).device
        bare = extract_mesh(self.scene.query, self.view, faces=10_000, device=device)
        return bake_texture(bare, self.scene.query, device=device)

    def save(self, path: str | Path) -> Path:
        """Write the mesh as ``.glb``, ``.obj`` or ``.ply``.

        Raises:
            ValueError: another suffix, or the scene is empty.
        """
        from distill.export.files import save_mesh

        save_mesh(self.mesh, Path(path))
        return Path(path)

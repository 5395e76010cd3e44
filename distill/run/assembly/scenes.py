"""The scene of a configuration, with the mesh that it textures where there is one; what an earlier run says of its own; looking at one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from distill.cameras import Cameras
from distill.contracts import Render, Scene, View
from distill.files.paths import user_path
from distill.options import names_of
from distill.run.config.plugins import features_of
from distill.run.folder.settings import read
from distill.run.several.generator import CHANGEABLE

#: Options that say which mesh a scene textures, and how it stands.
SHAPED = ("file", "up", "front", "keep")


def scene_maker(config: DictConfig, **own: Any) -> Callable[..., Scene]:
    """Return what makes the scene of a configuration from ``seed``; reads its mesh, once.

    Args:
        config: of the run.
        **own: options of the scene in place of the configuration's.

    Raises:
        ValueError: the mesh cannot be used, in one line.
    """
    make: Callable[..., Scene] = instantiate(config.scene, _convert_="all", **own)
    if "mesh" not in features_of(config):
        return make
    from distill.meshes.read import read_surface

    return partial(make, read_surface(config.mesh))


def scene_of_run(folder: str, known: Mapping[str, Callable[..., Any]]) -> dict[str, Any]:
    """Options that an earlier run's scene has and that one which begins with it must have, too: ``scene`` and ``scene.*``.

    A learnt background is among them, for it would be lost, and the mesh that it textures.

    Args:
        folder: of the run.
        known: scenes by name.

    Returns:
        Empty where the folder says nothing that can be read; ``initial.check_init`` says so.
    """
    try:
        before: Any = OmegaConf.to_container(read(user_path(folder)), resolve=True)
    except (
        ValueError,
        OmegaConfBaseException,
    ):  # of a home folder that is not there, of the file, of what it refers to
        return {}
    said, textures = (part if isinstance(part := before.get(key), dict) else {} for key in ("scene", "mesh"))
    names = {f"{made.__module__}.{made.__qualname__}": name for name, made in known.items()}
    name = names.get(str(said.get("_target_")))
    if name is None:
        return {}
    textured = "mesh" in getattr(known[name], "features", ())
    if textured and not textures.keys() >= {*SHAPED}:
        return {}
    mesh = {f"mesh.{key}": textures[key] for key in SHAPED} if textured else {}
    own = names_of(known[name])
    kept = {key: value for key, value in said.items() if key in own and key not in CHANGEABLE}
    kept |= {"background": "learned"} if said.get("background") == "learned" else {}
    return {"scene": name, **{f"scene.{key}": value for key, value in kept.items()}, **mesh}


def edits(config: DictConfig) -> bool:
    """Tell whether a run changes what there is already, an earlier run's scene or a mesh's own texture, as its prompts say."""
    return bool(config.source_prompt and (config.init or config.mesh.init_texture))


def background_of(config: DictConfig) -> dict[str, Any]:
    """Options of a scene's background that follow from what a run does, in place of the configuration's; empty for the latter.

    Raises:
        ValueError: the picture cannot be used, in one line.
    """
    own: dict[str, Any] = {}
    if edits(config):  # what is edited and its source must differ in the object alone
        own |= {"background": "white"} if config.scene.get("background") in ("grey", "random") else {}
        own |= {"random_background": 0.0} if config.scene.get("random_background") else {}
    elif config.image and config.reference.backdrop and config.scene.get("background") == "white":
        from distill.conditions.picture import is_nearly_white

        own |= {"background": "grey"} if is_nearly_white(config) else {}
    return own


def look(scene: Scene, device: torch.device) -> View:
    """Return what renders a scene without gradient."""

    @torch.no_grad()
    def view(cameras: Cameras, height: int, width: int) -> Render:
        return scene.render(cameras.to(device), height, width)

    return view

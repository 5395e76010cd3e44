"""The scene of a configuration, with the mesh that it textures where there is one; and what an earlier run says of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from distill.contracts import Scene
from distill.files.paths import user_path
from distill.options import options_of
from distill.run.generator import CHANGEABLE


def scene_maker(config: DictConfig, **own: Any) -> Callable[..., Scene]:
    """Return what makes the scene of a configuration from ``seed``; reads its mesh, once.

    Args:
        config: of the run.
        **own: options of the scene in place of the configuration's.

    Raises:
        ValueError: the mesh cannot be used, in one line.
    """
    make: Callable[..., Scene] = instantiate(config.scene, _convert_="all", **own)
    if "mesh" not in get_object(config.scene._target_).features:
        return make
    from distill.meshes.read import read_surface

    return partial(make, read_surface(config.mesh))


def scene_of_run(folder: str, known: Mapping[str, Callable[..., Any]]) -> dict[str, Any]:
    """Options that an earlier run's scene has and that one which begins with it must have, too: ``scene`` and ``scene.*``.

    A learnt background is among them, for it would be lost.

    Args:
        folder: of the run.
        known: scenes by name.

    Returns:
        Empty where the folder says nothing that can be read; ``initial.check_init`` says so.
    """
    try:
        before: Any = OmegaConf.to_container(OmegaConf.load(user_path(folder) / "config.yaml"), resolve=True)
        said = dict(before["scene"])
        names = {f"{made.__module__}.{made.__qualname__}": name for name, made in known.items()}
        name = names[said["_target_"]]
    except Exception:  # of a file that is no YAML, or holds something else
        return {}
    own = {item.name for item in dataclasses.fields(options_of(known[name])) if not item.name.startswith("_")}
    kept = {key: value for key, value in said.items() if key in own and key not in CHANGEABLE}
    kept |= {"background": "learned"} if said.get("background") == "learned" else {}
    return {"scene": name, **{f"scene.{key}": value for key, value in kept.items()}}

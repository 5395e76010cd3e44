"""The scene of a configuration, with the mesh that it textures where there is one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from hydra.utils import get_object, instantiate
from omegaconf import DictConfig

from distill.contracts import Scene


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

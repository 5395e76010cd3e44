"""The settings of the earlier run that ``init`` names, and what follows from them for a second stage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig, OmegaConf

from distill.files.paths import user_path
from distill.run.config.plugins import plugins
from distill.run.folder.settings import NAME, Unreadable, read
from distill.run.several.generator import PLAIN


def takes_field(scene: object) -> bool:
    """Tell whether a scene, given by what makes it, begins with the field of an earlier run."""
    return "from_field" in getattr(scene, "features", ())


def field_options(scene: object) -> tuple[str, ...]:
    """The options that a scene which begins with a field must share with it; none of another scene."""
    return tuple(getattr(scene, "field_options", ())) if takes_field(scene) else ()


def read_settings(folder: str) -> DictConfig:
    """Read the settings of a run.

    Raises:
        ValueError: its ``config.yaml`` cannot be read.
    """
    try:
        found = read(user_path(folder))
        if not isinstance(found.get("scene"), DictConfig):
            raise Unreadable(user_path(folder) / NAME, "it names no scene")
    except Unreadable as error:
        raise ValueError(f"{error}; init must be the folder of an earlier run") from error
    return found


def follows_from(folder: str, made: Callable[..., Any]) -> dict[str, Any]:
    """Return the options of a second stage that follow from its field, or from one before it; none where the folder holds neither.

    What is wrong with the folder is said when the scene is made.

    Args:
        folder: of the earlier run.
        made: what makes the second stage's scene.
    """
    try:
        scene = read_settings(folder).scene
    except ValueError:
        return {}
    if scene.get("_target_") not in (PLAIN, f"{made.__module__}.{made.__qualname__}"):
        return {}
    plain: Any = OmegaConf.to_container(scene)
    return {f"scene.{name}": plain[name] for name in field_options(made) if name in plain}


def holds_field(earlier: DictConfig, config: DictConfig) -> bool:
    """Tell whether an earlier run's scene is a field, which a second stage converts, rather than a second stage itself.

    Args:
        earlier: settings of the earlier run.
        config: of a run whose scene begins with a field.

    Raises:
        ValueError: it is neither.
    """
    target, own = str(earlier.scene.get("_target_")), str(config.scene._target_)
    if target not in (PLAIN, own):
        targets = {
            f"{made.__module__}.{made.__qualname__}": name for name, made in plugins()["scene"].items()
        }
        name = targets.get(own, own)
        raise ValueError(
            f"init={config.init} holds {target.rpartition('.')[2]}, which is no field; scene={name} begins with a run of scene=hash_grid"
        )
    return target == PLAIN

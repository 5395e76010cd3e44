"""The settings of the earlier run that ``init`` names, and what follows from them for a second stage."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

from distill.files.errors import first_line
from distill.files.paths import user_path
from distill.run.generator import PLAIN

#: The scene that begins with a field.
SECOND = "distill.renderers.sdf.SdfScene"
#: Options of a field that its second stage has too.
SHARED = (
    "levels", "features", "log2_table_size", "base_resolution", "finest_resolution", "hidden_width", "hidden_layers", "radius",
    "background", "random_background", "precision",
)  # fmt: skip


def read_settings(folder: str) -> DictConfig:
    """Read the settings of a run.

    Raises:
        ValueError: its ``config.yaml`` cannot be read.
    """
    path = user_path(folder) / "config.yaml"
    try:
        found = OmegaConf.load(path)
        if not isinstance(found, DictConfig) or not isinstance(found.scene, DictConfig):
            raise TypeError("it names no scene")
    except Exception as error:  # of a file that is not there, is no YAML, or holds something else
        raise ValueError(
            f"{path} cannot be read ({first_line(error)}); init must be the folder of an earlier run"
        ) from error
    return found


def follows_from(folder: str) -> dict[str, Any]:
    """Return the options of a second stage that follow from its field, or from one before it; none where the folder holds neither.

    What is wrong with the folder is said when the scene is made.
    """
    try:
        scene = read_settings(folder).scene
    except ValueError:
        return {}
    if scene.get("_target_") not in (PLAIN, SECOND):
        return {}
    plain: Any = OmegaConf.to_container(scene)
    return {f"scene.{name}": plain[name] for name in SHARED if name in plain}


def holds_field(earlier: DictConfig, folder: str) -> bool:
    """Tell whether an earlier run's scene is a field, which a second stage converts, rather than a second stage itself.

    Raises:
        ValueError: it is neither.
    """
    target = str(earlier.scene.get("_target_"))
    if target not in (PLAIN, SECOND):
        raise ValueError(
            f"init={folder} holds {target.rpartition('.')[2]}, which is no field; scene=sdf begins with a run of scene=hash_grid"
        )
    return target == PLAIN

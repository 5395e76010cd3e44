"""Checks of a configuration before anything is loaded: ``check`` makes those of every run, a file for each thing that is checked.

What is checked beside what it is about: a library and a generator in ``run.several.generator``, several seeds in
``run.several.seeding``, an earlier run in ``run.assembly.initial``, a prior in ``run.assembly.prior``, the files of an export in ``export.choices``.
"""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from distill.files.errors import first_line
from distill.run.checks.guidance import check_own_priors, check_second_prompts, check_sums
from distill.run.checks.image import check_image
from distill.run.checks.scene import check_scene
from distill.run.checks.texts import check_control, check_perp_neg, check_texts
from distill.run.checks.timesteps import check_range
from distill.run.checks.values import check_known, check_values
from distill.run.config.schema import PARTS


def check(config: DictConfig, loaded: bool = False) -> None:
    """Check every value against its type and the rules beside it, and what does not go together.

    Args:
        config: of a run.
        loaded: whether its prior is given rather than loaded by its name.

    Raises:
        ValueError: a value is out of range, or does not go with another.
    """
    try:
        values: Any = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise ValueError(f"could not read the options: {first_line(error)}") from error
    if missing := sorted(
        name for name in OmegaConf.missing_keys(config) if name.partition(".")[0] not in PARTS
    ):
        raise ValueError(f"{missing[0]} must have a value, got ???; give it one, or leave it out")
    targets = check_values(values)
    check_texts(values)
    check_scene(values, targets["scene"])
    for name, target in targets.items():
        check_known(name, target, values[name])
    check_range(config, targets["timesteps"])
    check_perp_neg(values)
    check_own_priors(values)
    check_sums(values, targets["guidance"])
    check_second_prompts(values, targets["guidance"])
    if values["image"]:
        check_image(values, targets["guidance"], targets["scene"])
    check_control(values, loaded)

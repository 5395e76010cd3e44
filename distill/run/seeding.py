"""Which seeds a run has, where several are asked for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf


def literal(text: str) -> str:
    """A text in which OmegaConf sees no interpolation, and which it gives back unchanged."""
    # A backslash before ${ keeps it literal; one that the text itself has there must be doubled first.
    return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)


def several(config: DictConfig) -> bool:
    """Tell whether a run has a folder for each of its seeds."""
    return bool(config.seeds > 1 or config.retries)


def one_seed(config: DictConfig, number: int, folder: Path, judge: str | None) -> DictConfig:
    """The configuration of one seed of a run, in a folder of its own, ``seed-`` and the seed.

    Args:
        config: of the run.
        number: which seed, from 0; it is added to ``config.seed``.
        folder: of the run.
        judge: that scores it, if any does.
    """
    seed = config.seed + number
    changes: dict[str, Any] = {
        "seed": seed, "seeds": 1, "retries": 0, "keep": "all", "judge": judge, "resume": True,
        "output_dir": literal(str(folder / f"seed-{seed}")),
    }  # fmt: skip
    one = OmegaConf.merge(config, OmegaConf.create(changes))
    assert isinstance(one, DictConfig)
    return one


def check_seeds(config: DictConfig) -> None:
    """Check what several seeds and their judge do not go with.

    Raises:
        ValueError: a judge has no words to judge by, or there are several scenes in a run to choose among.
    """
    if config.seed + config.seeds + config.retries > 2**64:
        raise ValueError(
            f"the last of seeds={config.seeds} from seed={config.seed} on is too large; start at a smaller seed="
        )
    if config.keep != "best" and config.judge is None:
        return
    option = "keep=best" if config.keep == "best" else "judge="
    if not config.prompt.strip() and config.prompts is None:
        raise ValueError(
            f"{option} compares pictures with the prompt, and there is none; add a prompt, or leave it out"
        )
    if config.keep == "best" and config.particles > 1:
        raise ValueError("keep=best chooses among runs of one scene; leave out particles=, or keep=best")

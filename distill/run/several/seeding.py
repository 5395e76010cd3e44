"""Which seeds a run has, where several are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from distill.run.config.overrides import literal


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


def check_seeds(values: Mapping[str, Any]) -> None:
    """Check what several seeds and their judge do not go with.

    Raises:
        ValueError: a judge has no words to judge by, or there are several scenes in a run to choose among.
    """
    seed, seeds = values["seed"], values["seeds"]
    if seed + seeds + values["retries"] > 2**64:
        raise ValueError(
            f"the last of seeds={seeds} from seed={seed} on is too large; start at a smaller seed="
        )
    best = values["keep"] == "best"
    if not best and values["judge"] is None:
        return
    option = "keep=best" if best else "judge="
    if not values["prompt"].strip() and values["prompts"] is None:
        raise ValueError(
            f"{option} compares pictures with the prompt, and there is none; add a prompt, or leave it out"
        )
    if best and values["particles"] > 1:
        raise ValueError("keep=best chooses among runs of one scene; leave out particles=, or keep=best")

"""One asset per line of a file of prompts."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from distill.contracts import Prior
from distill.files.lock import InUse, hold
from distill.run.assemble import assemble, check_prior, open_prior, pick_device
from distill.run.checks import check_prompt
from distill.run.execute import carry_out
from distill.run.folders import claim, is_finished

log = logging.getLogger(__name__)


def run_prompts(config: DictConfig) -> dict[str, str]:
    """Make one asset per line of ``config.prompts``, loading the prior once.

    Finished ones are skipped, and those that another process is at work on; unfinished ones are resumed, and a failure does
    not stop the rest.

    Returns:
        Prompt to ``finished``, ``skipped``, or the error.

    Raises:
        ValueError: the file cannot be read or has no prompts.
    """
    wanted = read_prompts(config)
    root = Path(config.output_dir or "outputs").expanduser()
    device = pick_device(config.device)
    check_prior(config, device)
    prior = open_prior(config, device)
    return {prompt: _run_one(config, prompt, root, prior) for prompt in wanted}


def read_prompts(config: DictConfig) -> list[str]:
    """The prompts of ``config.prompts``: a line each, without empty lines, comments and repetitions.

    Raises:
        ValueError: the file cannot be read or has no prompts.
    """
    path = Path(config.prompts).expanduser()
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"prompts must be a text file with one prompt per line, but {path} cannot be read: {error}"
        ) from error
    wanted = list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if not wanted:
        raise ValueError(f"prompts must be a text file with one prompt per line, but {path} has none")
    return wanted


def _run_one(config: DictConfig, prompt: str, root: Path, prior: Prior) -> str:
    changes: Mapping[str, Any] = {
        "prompt": prompt.replace("${", r"\${"),
        "prompts": None,
        "output_dir": None,
        "resume": True,
    }
    one = OmegaConf.merge(config, OmegaConf.create(dict(changes)))
    assert isinstance(one, DictConfig)
    try:
        check_prompt(one)
        folder = claim(one, root)
        with hold(folder):
            if is_finished(folder):
                log.info("%s: finished before, in %s", prompt, folder)
                return "skipped"
            one.output_dir = str(folder)
            carry_out(one, folder, assemble(one, prior), time.perf_counter())
    except InUse as busy:
        log.info("%s: %s", prompt, busy)
        return "skipped"
    except (ValueError, OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        log.error("%s: %s", prompt, reason)
        return reason
    return "finished"

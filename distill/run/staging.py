"""What a run of several stages assembles, and what its manifest says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from distill.contracts import Prior
from distill.job import Job
from distill.ranks import ALONE, Ranks
from distill.run import stages
from distill.run.assemble import assemble
from distill.run.failures import noted
from distill.run.prior import check_prior


def begin(config: DictConfig, prior: Prior | None, ranks: Ranks = ALONE) -> Job:
    """Assemble a run, of several stages the first, for ``carry_out``; arguments as of ``run``.

    Raises:
        ValueError: something in the configuration is wrong, in one line.
    """
    if config.prompts is not None and not config.prompt:
        raise ValueError(
            f"one asset is made of one prompt, got none beside prompts={config.prompts}; give each of its lines to distill.generate, or run "
            "distill prompts=FILE, which makes all of them"
        )
    if not config.earlier:
        return assemble(config, prior, ranks)
    return assemble_stage(stages.plan(config, Path())[0], config, prior)


def assemble_stage(one: DictConfig, of: DictConfig, prior: Prior | None) -> Job:
    """Assemble a stage, with the prior that another configuration's run has where both name the same."""
    same = alike(one, of)
    if same and prior and one.max_vram:
        check_prior(one, prior.device)  # what fits in the memory is another thing in each stage
    return assemble(one, prior if same else None)


def alike(one: DictConfig, other: DictConfig) -> bool:
    """Tell whether two configurations name the same prior, loaded in the same way."""
    return all(one[name] == other[name] for name in ("prior", "prior_options"))


def kept(config: DictConfig, job: Job, prior: Prior | None) -> Prior | None:
    """The prior that a further run of a configuration can have, after ``begin`` made a job; that of a picture is loaded with it."""
    return job.prior if config.prompt and alike(stages.plan(config, Path())[0], config) else prior


def told_of(
    folder: Path, iterations: int, place: stages.Place, seconds: dict[str, float]
) -> list[dict[str, Any]]:
    """What a manifest says of each stage; the time that those before the last took is added to ``seconds``.

    Args:
        folder: of the run.
        iterations: of the last stage.
        place: of the last stage.
        seconds: of the last stage, by what they were for.
    """
    rows: list[dict[str, Any]] = []
    for name in place.folders:
        said = noted(folder / name)
        took = sum(said.get("seconds", {}).values())
        row = {
            "stage": name.partition("-")[2],
            "folder": name,
            "iterations": said.get("iterations"),
            "seconds": round(took, 1),
        }
        rows.append({**row, "conversion": said["conversion"]} if "conversion" in said else row)
    seconds["earlier"] = sum(row["seconds"] for row in rows)
    return [*rows, {"stage": place.name, "folder": ".", "iterations": iterations}]

"""What a run of several stages assembles, and what its manifest says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from distill.contracts import Prior
from distill.devices import pick_device
from distill.job import Job
from distill.ranks import ALONE, Ranks
from distill.run.assembly.assemble import assemble
from distill.run.assembly.prior import check_prior, check_student, students_of
from distill.run.folder.failures import noted
from distill.run.several import stages


def begin(config: DictConfig, prior: Prior | None, ranks: Ranks = ALONE) -> Job:
    """Assemble a run, of several stages the first, for ``carry_out``; arguments as for ``run``.

    Raises:
        ValueError: something in the configuration is wrong, in one line.
    """
    if not config.earlier:
        return assemble(config, prior, ranks)
    check_priors(config, pick_device(config.device), given=prior is not None)
    return assemble_stage(stages.plan(config, Path())[0], config, prior)


def check_priors(config: DictConfig, device: torch.device, given: bool = False) -> None:
    """Check the prior of each stage of a run before anything is loaded, see ``check_prior``; what the losses start from, too.

    Args:
        config: of the run.
        device: to load them on.
        given: the one that the configuration names is loaded.

    Raises:
        ValueError: one cannot be used.
    """
    for one in stages.plan(config, Path()):
        if given and alike(one, config):
            for path in students_of(one):
                check_student(path)
        else:
            check_prior(one, device)


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

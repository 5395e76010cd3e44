"""Several seeds of a prompt: each is a run in a folder of its own, and the one that a judge prefers becomes the whole run's."""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from omegaconf import DictConfig

from distill.asset import Asset
from distill.contracts import Prior
from distill.devices import pick_device
from distill.export.thumbnail import NAME as THUMBNAIL
from distill.files.atomic import clear, replacing
from distill.files.errors import line_of
from distill.files.lock import NAME as LOCK
from distill.files.lock import hold
from distill.job import Job
from distill.live.desk import Desk
from distill.run.folder.failures import (
    OF_A_SEED,
    NoSeedFinished,
    check_collapse,
    forget,
    note,
    noted,
    noting,
    state_of,
)
from distill.run.folder.finished import reopened
from distill.run.folder.folders import claim, is_finished
from distill.run.folder.manifest import finish
from distill.run.folder.stored import finished_otherwise, renew
from distill.run.several.judge import judge_of
from distill.run.several.seeding import one_seed
from distill.run.several.stages import plan
from distill.run.several.staging import begin, kept

log = logging.getLogger(__name__)

#: Files of a seed's own that the whole run has its own of.
OWN = ("config.yaml", "manifest.json", "report.html", LOCK)
#: What a manifest says of one seed alone.
OF_ONE = ("judge", "score", "export", "files", "particles", "skipped_steps", "stages")


class Carry(Protocol):
    """Trains, exports and describes an assembled run, see ``distill.run.execute.carry_out``."""

    def __call__(
        self, config: DictConfig, folder: Path, job: Job, started: float, desk: Desk | None = None, /
    ) -> Asset: ...


class Made(NamedTuple):
    """One seed: its line for the manifest, its configuration, its manifest, and its asset where this process made it."""

    row: dict[str, Any]
    config: DictConfig
    manifest: Mapping[str, Any]
    asset: Asset | None

    @property
    def folder(self) -> Path:
        return Path(self.config.output_dir)


def run_seeds(
    config: DictConfig, folder: Path, prior: Prior | None, carry: Carry, desk: Desk | None = None
) -> Made:
    """Make ``config.seeds`` assets in a held folder, with up to ``config.retries`` further seeds for those that fail.

    Finished seeds are not made again, so an interrupted run continues where it was. With ``keep=best``, or one seed, the files
    of the best or the only one are linked into the folder itself.

    Args:
        config: of the run.
        folder: its folder.
        prior: a loaded prior; None loads the one that the configuration names, once.
        carry: makes one of them.
        desk: of the page that shows the run, if one does.

    Returns:
        The best seed, or the first one that is finished.

    Raises:
        NoSeedFinished: all of them failed; says how.
    """
    clear(folder)
    renew(folder, config, written=False)  # finished seeds stay as they are
    forget(folder)
    with noting(config, folder):
        return _run_seeds(config, folder, prior, carry, desk)


def _run_seeds(
    config: DictConfig, folder: Path, prior: Prior | None, carry: Carry, desk: Desk | None
) -> Made:
    made: list[Made] = []
    best: Made | None = None
    for number in range(config.seeds + config.retries):
        if sum(each.row["state"] == "finished" for each in made) == config.seeds:
            break
        one, prior = _make(config, number, folder, prior, carry, desk)
        if one.row["state"] == "finished" and (best is None or better(one.row, best.row, config.keep)):
            best = one
        # Of all scenes only the one that is returned stays in memory.
        made = [each._replace(asset=None) for each in (*made, one)]
    rows = [each.row for each in made]
    if best is None:
        error = NoSeedFinished("; ".join(f"{row['folder']}: {row['why']}" for row in rows))
        note(folder, {"prompt": config.prompt, "seed": config.seed, "seeds": rows}, error)
        raise error
    finish(folder, _manifest(config, folder, best, made))
    return best


def better(row: Mapping[str, Any], than: Mapping[str, Any], keep: str) -> bool:
    """Tell whether a finished seed is to be preferred; the first of equals is kept, and a score that is not a number never wins."""

    def rank(score: float | None) -> float:
        return -math.inf if score is None or math.isnan(score) else score  # a manifest has null for nan

    return keep == "best" and rank(row["score"]) > rank(than["score"])


def _make(
    config: DictConfig, number: int, folder: Path, prior: Prior | None, carry: Carry, desk: Desk | None
) -> tuple[Made, Prior | None]:
    """Make one seed, unless it is finished or has failed for good; returns the prior, too."""
    one = one_seed(config, number, folder, judge_of(config))
    own, asset, why = claim(one), None, ""
    state, started = "finished", time.perf_counter()
    with hold(own):
        if is_finished(own):
            if said := finished_otherwise(own, one):
                log.warning("%s: seed %d: %s", config.prompt, one.seed, said)
        else:
            log.info("%s: seed %d", config.prompt, one.seed)
            try:
                if config.watchdog:
                    check_collapse(own)
                with noting(one, own):
                    job = begin(one, prior)
                    prior = kept(one, job, prior)
                    asset = carry(one, own, job, started, desk)
            except OF_A_SEED as error:
                state, why = state_of(error), line_of(error)
                log.error("%s: seed %d: %s", config.prompt, one.seed, why)
        manifest = noted(own)
    row = {
        "folder": own.name, "seed": one.seed, "state": state, "score": manifest.get("score"),
        "seconds": round(sum(manifest.get("seconds", {}).values()), 1),
    }  # fmt: skip
    return Made({**row, "why": why} if why else row, one, manifest, asset), prior


def _manifest(config: DictConfig, folder: Path, best: Made, made: Sequence[Made]) -> dict[str, Any]:
    """What a finished run's manifest says, after the best seed's files are linked to where it is to have them."""
    manifest = {**best.manifest, "seed": config.seed, "seeds": [each.row for each in made]}
    if config.keep == "best" or config.seeds == 1:
        adopt(best.folder, folder)
        manifest |= {"seed": best.row["seed"], "chosen": best.row["folder"]}
        log.info("%s: the files of %s are kept", config.prompt, best.row["folder"])
    else:
        if (best.folder / THUMBNAIL).is_file():
            shutil.copy2(best.folder / THUMBNAIL, folder / THUMBNAIL)
        manifest = {name: value for name, value in manifest.items() if name not in OF_ONE}
    parts = [each.manifest.get("seconds", {}) for each in made]
    names = dict.fromkeys(name for part in parts for name in part)
    manifest["seconds"] = {name: sum(part.get(name, 0.0) for part in parts) for name in names}
    return manifest


def adopt(own: Path, folder: Path) -> None:
    """Link a seed's files, checkpoints and previews included, to the same names below the run's folder; copy where links are not possible."""
    for path in sorted(own.rglob("*")):
        name = path.relative_to(own)
        if not path.is_file() or name.as_posix() in OWN:
            continue
        there = folder / name
        there.parent.mkdir(parents=True, exist_ok=True)
        with replacing(there) as part:
            try:
                os.link(path, part)
            except OSError:
                shutil.copy2(path, part)


def reopen(made: Made, prior: Prior | None) -> Asset:
    """The asset of a seed that an earlier process finished, on the device of a given prior as one made with it would be."""
    device = prior.device if prior else pick_device(made.config.device)
    return reopened(made.folder, plan(made.config, made.folder)[-1], device, "resume=true")

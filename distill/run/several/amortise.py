"""Train a generator: one scene learns the prompts of a library, and then makes scenes of unseen prompts without training."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from distill.arguments import library_scene
from distill.conditions.prompt_library import Prompts, read_library
from distill.contracts import Generator, Prior
from distill.export.wall import write_wall
from distill.files.atomic import write_atomic
from distill.files.checkpoint import load_checkpoint
from distill.files.lock import hold
from distill.files.paths import user_path
from distill.job import Job
from distill.live.desk import Desk
from distill.live.server import watched
from distill.ranks import ALONE, Ranks
from distill.run.assembly.assemble import assemble
from distill.run.config.compose import compose_config
from distill.run.config.overrides import as_overrides
from distill.run.execute import given, noting_training, train
from distill.run.folder.folders import check_unused, claim, to_resume
from distill.run.folder.manifest import describe, finish
from distill.run.folder.stored import stored_in
from distill.run.journal import seconds_before
from distill.run.several.generator import LIBRARY, amortised, describe_generator, library_of, tell_taken
from distill.wording import counted

log = logging.getLogger(__name__)

#: Steps for each prompt that are too few for shapes, and those after which generators were as good as single runs.
FEW, USUAL = 10, 100


def amortise(
    prompts: str | Path,
    *,
    output_dir: str | Path | None = None,
    prior: object = None,
    scene: str | None = None,
    **options: Any,
) -> Path:
    """Train one generator for a library of prompts; ``distill.generate(prompt, generator=FOLDER)`` makes scenes with it.

    Args:
        prompts: a JSON file with the lists ``train``, ``validation`` and ``held_out``, or a text file with a prompt to learn in
            each line.
        output_dir: where its files go; by default a new folder under ``outputs``.
        prior: as for ``distill.generate``.
        scene: ``hyper_grid`` or ``hyper_conv``; by default that of an ``experiment=`` for libraries, else ``hyper_grid``.
        **options: as on the command line.

    Returns:
        The generator's folder.

    Raises:
        ValueError: an option or a prompt is wrong, in one line.
    """
    named, loaded = given(prior)
    overrides: dict[str, Any] = {"prompts": str(prompts), **named, **options}
    overrides |= {"scene": scene} if scene is not None else {}
    if output_dir is not None:
        overrides["output_dir"] = str(output_dir)
    words = as_overrides(overrides)
    config = compose_config([*words, *library_scene(words)], loaded=loaded is not None)
    return run_library(config, loaded)


def run_library(config: DictConfig, prior: Prior | None = None, ranks: Ranks = ALONE) -> Path:
    """Train the generator of a configuration, or continue with it; returns its folder.

    Args:
        config: of the run.
        prior: a loaded prior, which saves loading it again.
        ranks: the processes that share the prompts of each step, of which this is the first.

    Raises:
        ValueError: something in the configuration or in the library is wrong, in one line.
        Interrupted: a signal asked the run to stop; a checkpoint holds where it was.
        Diverged: too many steps in a row were not finite.
    """
    started = time.perf_counter()
    if not amortised(config):
        raise ValueError(
            f"scene={config.scene._target_.rpartition('.')[2]} is of one prompt and learns no library; add scene=hyper_grid"
        )
    set_accumulate(config, ranks.size)
    check_unused(config)
    library = library_of(config)
    if config.resume and (there := to_resume(config)):
        check_library(there, library)
    ranks.meet()
    with watched(config) as desk:
        job = assemble(config, prior, ranks)
        folder = claim(config)
        with hold(folder):
            carry_out(config, folder, library, job, started, desk)
    return folder


def set_accumulate(config: DictConfig, processes: int) -> None:
    """Say in a configuration how many prompts a step takes: one for each process, if it does not say so.

    Raises:
        ValueError: the run that is resumed takes another number, or its settings cannot be read.
    """
    if config.optimiser.accumulate is None:
        config.optimiser.accumulate = processes
    folder = user_path(config.output_dir) if config.output_dir else None
    if config.resume and folder and (stored := stored_in(folder)):
        before = OmegaConf.select(stored, "optimiser.accumulate")
        if before not in (None, config.optimiser.accumulate):
            raise ValueError(
                f"{folder} takes {counted(before, 'prompt')} in each step, and this would be {config.optimiser.accumulate}; add "
                f"optimiser.accumulate={before}, which any number of processes that divides it can share"
            )


def carry_out(
    config: DictConfig,
    folder: Path,
    library: Prompts,
    job: Job,
    started: float,
    desk: Desk | None = None,
) -> None:
    """Train and describe an assembled generator in a folder that is held; arguments and failures as for ``execute.carry_out``."""
    check_library(folder, library)
    with noting_training(config, folder, job):
        _carry_out(config, folder, library, job, started, desk)


def _carry_out(
    config: DictConfig, folder: Path, library: Prompts, job: Job, started: float, desk: Desk | None
) -> None:
    keep(folder, library)
    scene = cast(Generator, job.scenes[0])
    saved = load_checkpoint(folder / "checkpoints", job.prior.device) if config.resume else None
    if saved:
        job.state.load_state_dict(saved)
        log.info("resuming %s at step %d", folder, job.state.step)
    describe_generator(folder, config, scene.options, scene.state_dict()["prompts.embeddings"].shape[1])
    count, loaded = len(library.train), time.perf_counter()
    spent = seconds_before(folder / "metrics.jsonl", job.state.step)
    tell_length(config, library)
    tell_taken(config, library)
    train(
        config, folder, job, desk,
        notes=partial(seen, scene, count), show=partial(show, folder, library, job),
    )  # fmt: skip
    show(folder, library, job, config.iterations)
    manifest = describe(config, job)
    manifest |= {"prompts": {name: len(prompts) for name, prompts in library.lists().items()}}
    manifest["seconds"] = {"load": loaded - started, "train": spent + time.perf_counter() - loaded}
    finish(folder, manifest)
    log.info('results in %s; make a scene with: distill "PROMPT" generator=%s', folder, folder)


def tell_length(config: DictConfig, library: Prompts) -> None:
    """Say how many steps each prompt of a library gets, and whether that is few."""
    count, at_once = len(library.train), config.optimiser.accumulate
    each = config.iterations * at_once / count
    log.info("%s to learn, %.4g steps for each", counted(count, "prompt"), each)
    if library.repeated:
        log.warning("%s of %s left out", counted(library.repeated, "repeated prompt"), config.prompts)
    if each < FEW:
        enough = math.ceil(USUAL * count / at_once)
        log.warning("%.3g steps for each prompt are few; iterations=%d makes them %d", each, enough, USUAL)


def check_library(folder: Path, library: Prompts) -> None:
    """Check that a folder is of no other library.

    Raises:
        ValueError: it is.
    """
    path = folder / LIBRARY
    if path.exists() and read_library(str(path)).lists() != library.lists():
        raise ValueError(
            f"{folder} learns another library, the one in its {LIBRARY}; give that one as prompts=, or choose another output_dir="
        )


def keep(folder: Path, library: Prompts) -> None:
    """Keep the library beside the generator."""
    path = folder / LIBRARY
    if not path.exists():
        write_atomic(path, json.dumps(library.lists(), indent=1, ensure_ascii=False) + "\n")


def seen(scene: Generator, count: int) -> Mapping[str, float]:
    """How many prompts were drawn so far, and how often each of them, for the log."""
    return {"prompts_seen": scene.seen(), "rounds": round(scene.seen() / count, 3)}


def show(folder: Path, library: Prompts, job: Job, step: int) -> None:
    """Write a sheet of some prompts, and add it to the wall; the report, which marks a finished run, waits for the end."""
    labels = library.previewed()
    learnt = set(library.train)
    write_wall(folder, step, job.views, [(text, text in learnt) for text in labels])

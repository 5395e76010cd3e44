"""Train a novel-view model: ``accelerate launch -m distill.lab.novel_view.train data=RENDERS encoder=FOLDER recipe=paper``.

It trains the design of Zero-1-to-3 and Efficient-3DiM, and with ``code=true`` that of the bundled model: first a code that
turns with the camera, then the UNet, which is told of it.

Which pairs, timesteps, noise and dropped conditions a sample gets follows from the seed and its running number alone, so
that a resumed training, or one on another number of processes, continues as the first would have. With ``in_memory=true``,
they follow from a generator that is saved.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from distill.files.paths import user_path
from distill.lab.novel_view import loop
from distill.lab.novel_view.cache import build_cache
from distill.lab.novel_view.code_stage import train_code
from distill.lab.novel_view.config import TrainConfig, check, claim, compose, recipes, refuse
from distill.lab.novel_view.in_memory import train_in_memory
from distill.lab.novel_view.objective import loss_of, make_sampler
from distill.lab.novel_view.pairs import Pairs
from distill.lab.novel_view.progress import Progress, averaged, make_optimiser
from distill.lab.novel_view.samples import Samples, collate, numbers_of, open_views
from distill.lab.novel_view.stages import freeze_code
from distill.lab.novel_view.start import open_pipeline, trains_code
from distill.lab.novel_view.validation import measure_samples, validate, validation_pairs
from distill.priors.novel_view.features import load_encoder
from distill.run.journal import Interrupted
from distill.run.signals import stop_signals
from distill.usage import Parser

if TYPE_CHECKING:
    from accelerate import Accelerator

    from distill.lab.novel_view.views import Views
    from distill.priors.novel_view.pipeline import NovelViewPipeline

__all__ = [
    "Samples",
    "TrainConfig",
    "collate",
    "loss_of",
    "main",
    "make_optimiser",
    "make_sampler",
    "measure_samples",
    "numbers_of",
    "open_pipeline",
    "open_views",
    "train",
    "validation_pairs",
]

log = logging.getLogger(__name__)


def train(config: TrainConfig) -> Path:
    """Train, or continue; returns the folder of the finished model.

    Raises:
        ValueError: something in the configuration is wrong, in one line.
        Interrupted: a signal asked to stop; a checkpoint holds where it was.
    """
    from accelerate import Accelerator
    from accelerate.utils import set_seed

    check(config)  # what is wrong is said before anything is made
    trackers = None if config.tracker == "none" or config.in_memory else config.tracker
    folder = user_path(config.output_dir)
    precision = "no" if config.in_memory else config.precision
    accelerator = Accelerator(mixed_precision=precision, log_with=trackers, project_dir=str(folder))
    if config.in_memory and accelerator.num_processes > 1:
        raise ValueError(f"in_memory=true trains in one process, got {accelerator.num_processes}")
    if accelerator.is_main_process:
        refuse(folder, config)
    set_seed(config.seed)
    encoder = load_encoder(user_path(config.encoder), layers=config.layers, device=accelerator.device)
    views, held_out = open_views(config).split(config.held_out)
    pipeline = open_pipeline(config, encoder)
    with accelerator.main_process_first():
        if accelerator.is_main_process:  # a folder is taken once all that the training reads is there
            claim(folder, config)
    if config.in_memory:
        return train_in_memory(config, pipeline, views, held_out, device=accelerator.device)
    with accelerator.main_process_first():
        cache = build_cache(views, encoder, user_path(config.cache)) if config.cache else None
    pipeline.model.to(accelerator.device)
    if pipeline.vae is not None:
        pipeline.vae.to(accelerator.device)
    samples = Samples(Pairs(views, config.seed, 2**62), cache)
    if trackers:
        shown = {
            name: value if isinstance(value, (int, float, str)) else str(value)
            for name, value in asdict(config).items()
        }
        accelerator.init_trackers("novelview", shown)
    with stop_signals() as stop:
        state = _stages(config, folder, accelerator, pipeline, samples, held_out, stop)
    accelerator.end_training()
    with averaged(state):
        if accelerator.is_main_process:
            pipeline.save(folder / "model")
    log.info("the model is in %s", folder / "model")
    return folder / "model"


def _stages(
    config: TrainConfig,
    folder: Path,
    accelerator: Accelerator,
    pipeline: NovelViewPipeline,
    samples: Samples,
    held_out: Views,
    stop: threading.Event,
) -> Progress:
    """The code, where there is one that is not trained yet, and then the UNet."""
    from diffusers.training_utils import EMAModel

    if trains_code(config):
        train_code(config, folder / "code", accelerator, pipeline, samples, held_out, stop)
    freeze_code(pipeline.model)
    optimiser, schedule = make_optimiser(pipeline.model, config)
    average = EMAModel(pipeline.model.parameters(), decay=config.ema) if config.ema else None
    state = Progress(pipeline.model, optimiser, schedule, average)
    sampler = make_sampler(config, pipeline.scheduler.config.num_train_timesteps)
    course = loop.Course(
        "training", config, folder, samples,
        lambda model, batch, done: loss_of(pipeline, model, batch, sampler, config, done),
        partial(validate, config, folder, pipeline=pipeline, views=held_out),
    )  # fmt: skip
    if config.resume and loop.resume(course, state, accelerator):
        log.info("resuming %s at update %d", folder, state.update)
    loop.run(course, state, accelerator, stop)
    if state.update < config.iterations:
        accelerator.end_training()
        raise Interrupted(
            f"stopped at update {state.update} of {config.iterations}; continue with resume=true: {folder}"
        )
    return state


def main(arguments: Sequence[str] | None = None) -> None:
    """Compose the configuration of Hydra options and train."""
    parser = Parser(
        prog="python -m distill.lab.novel_view.train",
        description="Train a novel-view model on renders of distill-views, in one process or started by accelerate launch -m.",
        epilog="example: python -m distill.lab.novel_view.train recipe=embedded data=renders output_dir=trained",
    )
    parser.add_argument(
        "options",
        nargs="*",
        metavar="NAME=VALUE",
        help=f"recipe=NAME, one of {', '.join(recipes())}, and the options that distill/lab/novel_view/config.py describes",
    )
    options = parser.parse_args(arguments).options
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        train(compose(options))
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(130)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()

"""The first stage of a training with a rotated code: the code alone learns to draw thumbnails, from samples by number."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from distill.files.lines import json_of
from distill.files.paths import user_path
from distill.lab.novel_view import loop
from distill.lab.novel_view.config import TrainConfig
from distill.lab.novel_view.objective import Drawing, drawing_loss, thumbnails
from distill.lab.novel_view.pace import WARMUP
from distill.lab.novel_view.pairs import draw_indices
from distill.lab.novel_view.progress import Progress, scheduled
from distill.lab.novel_view.samples import Samples, collate
from distill.lab.novel_view.stages import CodeRecipe
from distill.lab.novel_view.start import is_novel_view
from distill.lab.novel_view.validation import validation_pairs
from distill.priors.novel_view.code import Draft, Turn
from distill.priors.novel_view.pipeline import NovelViewPipeline
from distill.run.journal import Interrupted

if TYPE_CHECKING:
    from accelerate import Accelerator

    from distill.lab.novel_view.pairs import Pair
    from distill.lab.novel_view.views import Views
    from distill.priors.novel_view.features import Encoder

log = logging.getLogger(__name__)

#: Height and width of a thumbnail that the UNet is not told.
THUMBNAIL = 16
#: Pictures whose mean a thumbnail begins with.
SOME = 256


def code_config(config: TrainConfig) -> TrainConfig:
    """A training's options for its first stage: the rates are ``stages.CodeRecipe``'s, whatever the batch is made of."""
    plain = CodeRecipe()
    return replace(
        config, iterations=config.code_iterations, batch=config.code_batch, accumulate=1, ema=0.0,
        learning_rate=config.code_rate, final_rate=plain.final * config.code_rate, weight_decay=plain.weight_decay,
        warmup=round(WARMUP * config.code_iterations),
    )  # fmt: skip


def prepare(config: TrainConfig, turn: Turn, samples: Samples) -> Progress:
    """The code with a thumbnail, which begins as the mean of some targets; one that the UNet is not told is left out later."""
    device = next(turn.parameters()).device
    # Of its own seed, so that nothing else that is drawn depends on whether the UNet is given the thumbnail.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        draft = turn.draft or Draft(turn.options.hidden, THUMBNAIL).to(device)
    drawing = Drawing(turn.code, draft).requires_grad_(True).train()
    progress = Progress(drawing, *scheduled([{"params": list(drawing.parameters())}], code_config(config)))
    if turn.draft is not None and is_novel_view(user_path(config.init)):
        return progress  # it keeps the mean that it was trained with
    pairs = samples.pairs
    places = [draw_indices(n, len(pairs.views), pairs.views.count, pairs.seed) for n in range(SOME)]
    read = [pairs.views.read(pairs.views.uids[place], target)[0] for place, _, target in places]
    with torch.no_grad():
        draft.mean.copy_(thumbnails(torch.stack(read), draft.size).mean(0))
    return progress


def train_code(
    config: TrainConfig,
    folder: Path,
    accelerator: Accelerator,
    pipeline: NovelViewPipeline,
    samples: Samples,
    held_out: Views,
    stop: threading.Event,
) -> None:
    """Train the code, or continue.

    Raises:
        Interrupted: a signal asked to stop; a checkpoint holds where it was.
    """
    turn, own = pipeline.model.turn, code_config(config)
    assert turn is not None
    folder.mkdir(parents=True, exist_ok=True)
    state = prepare(config, turn, samples)
    drawing = state.model
    assert isinstance(drawing, Drawing)
    loss = partial(drawing_loss, pipeline.encoder, drawing.draft.size)
    course = loop.Course(
        "the code", own, folder, samples, lambda model, batch, done: loss(model, batch),
        lambda now: validate(folder, pipeline.encoder, now, validation_pairs(config, held_out)),
        "code/",
    )  # fmt: skip
    if config.resume and loop.resume(course, state, accelerator):
        log.info("resuming %s at update %d", folder, state.update)
    loop.run(course, state, accelerator, stop)
    if state.update < own.iterations:
        raise Interrupted(
            f"stopped at update {state.update} of {own.iterations} of the code; continue with resume=true: {folder.parent}"
        )
    accelerator.free_memory()


@torch.no_grad()
def validate(folder: Path, encoder: Encoder, state: Progress, pairs: Sequence[Pair]) -> dict[str, float]:
    """The loss on fixed pairs of held-out objects, written down."""
    drawing = state.model
    assert isinstance(drawing, Drawing)
    batch = collate([(number, pair, None) for number, pair in enumerate(pairs)])
    found = {"loss": drawing_loss(encoder, drawing.draft.size, drawing.eval(), batch).item()}
    drawing.train()
    with (folder / "validation.jsonl").open("a") as file:
        file.write(json_of({"step": state.update, **found}))
    return found

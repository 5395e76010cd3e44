"""A training from pictures and features in memory: the code, where there is one, then the UNet, each resumable."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distill.files.checkpoint import load_checkpoint, save_checkpoint
from distill.files.lines import json_of
from distill.files.paths import user_path
from distill.lab.novel_view import memory, stages
from distill.lab.novel_view.config import TrainConfig, law_of
from distill.lab.novel_view.evaluate import oriented
from distill.lab.novel_view.start import is_novel_view, trains_code
from distill.priors.novel_view.pipeline import NovelViewPipeline
from distill.run.journal import Interrupted, keep_lines_before
from distill.run.signals import stop_signals

if TYPE_CHECKING:
    from distill.lab.novel_view.views import Views

log = logging.getLogger(__name__)

#: Updates between looks at the clock; in between, work piles up on a GPU and not here.
ASK_EVERY = 20


@dataclass(frozen=True)
class Limits:
    """What bounds a training from outside.

    Attributes:
        began: ``time.perf_counter()`` from which ``minutes`` count; None is now.
        reserve: seconds of ``minutes`` that the caller needs afterwards.
    """

    began: float | None = None
    reserve: float = 0.0


def recipes(config: TrainConfig) -> tuple[stages.CodeRecipe, stages.UNetRecipe]:
    """Hyperparameters of both stages."""
    code = stages.CodeRecipe(batch=config.code_batch, learning_rate=config.code_rate, keep=config.code_keep)
    unet = stages.UNetRecipe(
        config.batch, config.learning_rate, config.final_rate / config.learning_rate, config.token_rate,
        config.weight_decay, config.clip_norm, config.dropout, law_of(config), config.ema, config.precision == "bf16",
    )  # fmt: skip
    return code, unet


def train_in_memory(
    config: TrainConfig, pipeline: NovelViewPipeline, views: Views, held_out: Views, *, device: torch.device
) -> Path:
    """Read and encode all pictures of some renders, train on them, and save the model; returns its folder.

    Raises:
        ValueError: the model works on latents, or the training has diverged.
        Interrupted: a signal asked to stop; a checkpoint holds where it was.
    """
    stages.refuse_latents(pipeline)
    pipeline.model.to(device)
    stores = (memory.from_views(part).to(device) for part in (views, held_out))
    seen, unseen = (memory.encoded(store, pipeline.encoder) for store in stores)
    folder = user_path(config.output_dir)
    with stop_signals() as stop:
        fit(config, pipeline, seen, unseen, asked=stop.is_set)
    pipeline.save(folder / "model")
    log.info("the model is in %s", folder / "model")
    return folder / "model"


def fit(
    config: TrainConfig,
    pipeline: NovelViewPipeline,
    seen: memory.Encodings,
    unseen: memory.Encodings,
    *,
    asked: Callable[[], bool],
    saved: Callable[[NovelViewPipeline], None] | None = None,
    limits: Limits | None = None,
) -> None:
    """Train both stages, or what is left of them, and leave the averaged weights in the model.

    Args:
        config: the options; checkpoints and metrics go to ``code`` and ``unet`` in its ``output_dir``.
        pipeline: with the model to train, on the pictures' device.
        seen: what is trained on.
        unseen: objects that are measured on, with as many pictures each.
        asked: whether to stop; looked at every ``ASK_EVERY`` updates.
        saved: is given the averaged model whenever a checkpoint is written.
        limits: of ``minutes``.

    Raises:
        ValueError: the training has diverged, or a checkpoint is of another network.
        Interrupted: it was asked to stop; a checkpoint holds where it was.
    """
    limits, root = limits or Limits(), user_path(config.output_dir)
    began = time.perf_counter() if limits.began is None else limits.began
    has_code = pipeline.model.turn is not None and trains_code(config)
    earlier = _fit_code(config, pipeline, seen, unseen, root / "code", asked) if has_code else 0.0
    if earlier is None:
        raise Interrupted(f"stopped in the code's training; continue with resume=true: {root}")
    seconds = None
    if config.minutes is not None:
        spent = earlier + time.perf_counter() - began
        seconds = max(60 * config.minutes - spent - limits.reserve, 1.0)
    if not _fit_unet(config, pipeline, seen, unseen, root / "unet", asked, saved, seconds):
        raise Interrupted(f"stopped in the UNet's training; continue with resume=true: {root}")


def _fit_code(
    config: TrainConfig, pipeline: NovelViewPipeline, seen: memory.Encodings, unseen: memory.Encodings, folder: Path,
    asked: Callable[[], bool],
) -> float | None:  # fmt: skip
    """The first stage, or what is left of it; returns the seconds of earlier parts of it once it is finished, else None."""
    turn, (recipe, _) = pipeline.model.turn, recipes(config)
    assert turn is not None
    seconds = None if config.minutes is None else 60 * config.minutes * config.code_share
    pace = stages.Pace(None if seconds else config.code_iterations, seconds)
    stage = stages.code_stage(
        turn, seen, recipe, pace, config.seed, new=not is_novel_view(user_path(config.init))
    )
    pairs = memory.fixed_pairs(unseen.store)

    def measure() -> dict[str, float]:
        return summed_up(stages.drafts_right(turn, stage.modules["draft"], unseen, pairs), unseen.store.uids)

    watch = Watch(folder, measure, config, asked)
    watch.resume(stage, pipeline.device)
    earlier = pace.used
    stages.fit_code(stage, seen, recipe, watch)
    watch.finish(stage)
    return None if watch.stopped else earlier


def _fit_unet(
    config: TrainConfig, pipeline: NovelViewPipeline, seen: memory.Encodings, unseen: memory.Encodings, folder: Path,
    asked: Callable[[], bool], saved: Callable[[NovelViewPipeline], None] | None, seconds: float | None,
) -> bool:  # fmt: skip
    """The second stage, or what is left of it; returns whether it is finished, with the averaged weights in the model."""
    _, recipe = recipes(config)
    pace = stages.Pace(None if seconds else config.iterations, seconds)
    stage = stages.unet_stage(pipeline, recipe, pace, config.seed)
    pairs = memory.fixed_pairs(unseen.store)

    def measure() -> dict[str, float]:
        with stages.averaged(stage):
            if saved is not None:
                saved(pipeline)
            return summed_up(stages.one_step(pipeline, unseen, pairs), unseen.store.uids)

    watch = Watch(folder, measure, config, asked)
    watch.resume(stage, pipeline.device)
    stages.fit_unet(stage, pipeline, seen, recipe, watch)
    watch.finish(stage)
    if watch.stopped:
        return False
    stages.averaged(stage).__enter__()
    pipeline.model.eval().requires_grad_(False)
    return True


def summed_up(found: dict[str, Tensor], uids: tuple[str, ...]) -> dict[str, float]:
    """Means over all objects and, where there are some, over those of the world's kinds that have a front."""
    front = oriented(uids).get("oriented", set())
    rows = torch.tensor([uid in front for uid in uids], device=found["mse"].device)
    means = {name: value.mean().item() for name, value in found.items()}
    if not front:
        return means
    return means | {f"{name}_oriented": value[rows].mean().item() for name, value in found.items()}


class Watch:
    """Called after each update: says how it goes, saves every so often, and stops when asked to.

    Args:
        folder: of the stage's checkpoints and ``metrics.jsonl``.
        measure: what to say of the model when it is saved.
        config: of the training.
        asked: whether to stop.
    """

    def __init__(
        self,
        folder: Path,
        measure: Callable[[], dict[str, float]],
        config: TrainConfig,
        asked: Callable[[], bool],
    ) -> None:
        self.folder, self.measure, self.asked = folder, measure, asked
        self.every, self.kept = 60 * config.save_minutes, config.keep_checkpoints
        self.since = self.saved = time.perf_counter()
        self.total: Tensor | None = None
        self.count = 0
        self.first = -1
        self.stopped = False

    def resume(self, stage: stages.Stage, device: torch.device) -> None:
        """Go on from the newest checkpoint, if there is one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        found = load_checkpoint(self.folder / "checkpoints", device)
        if found:
            try:
                stage.load_state_dict(found)
            except (RuntimeError, ValueError) as error:
                raise ValueError(
                    f"{self.folder / 'checkpoints'} is of another network; resume with the same init=, encoder= and code"
                ) from error
            log.info("%s continues at update %d", self.folder.name, stage.pace.update)
        self.first = stage.pace.update if found else -1
        keep_lines_before(self.folder / "metrics.jsonl", stage.pace.update + 1)

    def finish(self, stage: stages.Stage) -> None:
        """Save what a finished stage has made."""
        if not self.stopped and stage.pace.update > self.first:
            self.keep(stage)

    def __call__(self, stage: stages.Stage, loss: Tensor) -> bool:
        self.total = loss.clone() if self.total is None else self.total + loss
        self.count += 1
        if self.count % ASK_EVERY == 0 or stage.pace.done >= 1:
            now = time.perf_counter()
            if now - self.since > 5 or stage.pace.done >= 1:
                self.say(stage)
            elif self.total is not None and self.total.is_cuda:
                torch.cuda.synchronize()
            self.stopped = self.asked()
            if self.stopped or now - self.saved > self.every:
                self.keep(stage)
        return self.stopped

    def say(self, stage: stages.Stage) -> None:
        """Log the mean loss since the last time.

        Raises:
            ValueError: it is no number any more.
        """
        assert self.total is not None
        mean, rate = self.total.item() / self.count, self.count / (time.perf_counter() - self.since)
        done, update = stage.pace.done, stage.pace.update
        log.info("%s %5.1f%% update %d loss %.5f %.2f/s", self.folder.name, 100 * done, update, mean, rate)
        if not mean < 1e3:
            raise ValueError("the training has diverged; take a lower rate")
        self.total, self.count, self.since = None, 0, time.perf_counter()

    def keep(self, stage: stages.Stage) -> None:
        """Write a checkpoint and say how good it is."""
        spent = time.perf_counter()
        save_checkpoint(self.folder / "checkpoints", stage.pace.update, stage.state_dict(), keep=self.kept)
        found = {"step": stage.pace.update, "seconds": round(stage.pace.spent, 1), **self.measure()}
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json_of(found))
        log.info("%s %s", self.folder.name, " ".join(f"{name} {value:.4g}" for name, value in found.items()))
        self.saved = time.perf_counter()
        stage.pace.used -= self.saved - spent  # saving is no training
        self.since += self.saved - spent

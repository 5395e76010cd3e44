"""The updates of a novel-view training that reads its samples by number, in one process or several."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from distill.files.checkpoint import load_checkpoint, save_checkpoint, steps_in
from distill.files.lines import json_of
from distill.lab.novel_view.config import TrainConfig
from distill.lab.novel_view.progress import Progress
from distill.lab.novel_view.samples import Batch, Samples, collate, numbers_of
from distill.priors.attention import differentiable
from distill.run.journal import keep_lines_before

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Course:
    """A stage of a training: what is made small, by which options, and how it is measured.

    Attributes:
        name: shown beside its bar.
        config: its own options; ``iterations``, ``batch``, ``accumulate`` and the rates count.
        folder: of its checkpoints and metrics.
        samples: by number.
        loss: of the model, which may be wrapped for several processes, on a batch, at a share of the stage.
        validate: measures the stage so far, writes it down and returns it.
        prefix: of its figures' names for a tracker.
    """

    name: str
    config: TrainConfig
    folder: Path
    samples: Samples
    loss: Callable[[nn.Module, Batch, float], Tensor]
    validate: Callable[[Progress], dict[str, float]]
    prefix: str = ""


def resume(course: Course, state: Progress, accelerator: Accelerator) -> bool:
    """Go on from the newest checkpoint of a stage; returns whether there is one."""
    saved = load_checkpoint(course.folder / "checkpoints", accelerator.device)
    if saved:
        state.load_state_dict(saved)
        if accelerator.scaler and saved["scaler"]:  # the CPU has none
            accelerator.scaler.load_state_dict(saved["scaler"])
    return bool(saved)


def saved_state(state: Progress, accelerator: Accelerator) -> dict[str, Any]:
    """What a checkpoint holds: the progress, and with ``precision=fp16`` the scale of the gradients."""
    scaler = accelerator.scaler.state_dict() if accelerator.scaler else None
    return {**state.state_dict(), "scaler": scaler}


def run(course: Course, state: Progress, accelerator: Accelerator, stop: threading.Event) -> None:
    """Make a stage's updates that are left, until it is asked to stop."""
    config, main = course.config, accelerator.is_main_process
    # The schedule is stepped here, once per update: a prepared one would step once per process.
    model, optimiser = accelerator.prepare(state.model, state.optimiser)
    batches = _batches(course, state.update, accelerator)
    if main:
        for name in ("metrics.jsonl", "validation.jsonl"):
            keep_lines_before(course.folder / name, state.update + 1)
    bar = tqdm(
        total=config.iterations, initial=state.update, desc=course.name, unit="update", disable=not main
    )
    since, noted = time.perf_counter(), state.update
    while state.update < config.iterations:
        total = _update(course, state, accelerator, model, optimiser, batches)
        bar.update()
        if state.update % config.log_every == 0 or state.update == config.iterations:
            mean, now = accelerator.reduce(total, "mean").item(), time.perf_counter()
            _note(course, state, accelerator, mean, (state.update - noted) / (now - since))
            bar.set_postfix(loss=f"{mean:.4f}", refresh=False)
            since, noted = now, state.update
        due = config.validate_every and state.update % config.validate_every == 0
        if main and (due or state.update == config.iterations):
            found = course.validate(state)
            shown = {f"{course.prefix}validation/{name}": value for name, value in found.items()}
            accelerator.log(shown, state.update)
            since, noted = time.perf_counter(), state.update
        asked = torch.tensor(float(stop.is_set()), device=accelerator.device)
        stopping = bool(accelerator.reduce(asked).item())
        last = state.update == config.iterations
        due = stopping or last or state.update % config.checkpoint_every == 0
        # A loss that is not finite harms nothing where half precision left its update out.
        if main and (due or not math.isfinite(total.item())) and not finite_weights(state.model):
            raise ValueError(diverged(course, state.update))
        if main and due:
            saved, kept = saved_state(state, accelerator), config.keep_checkpoints
            save_checkpoint(course.folder / "checkpoints", state.update, saved, kept)
        if stopping:
            break
    bar.close()


def finite_weights(model: nn.Module) -> bool:
    return all(bool(weights.isfinite().all()) for weights in model.parameters())


def diverged(course: Course, update: int) -> str:
    """Say that a model is lost, and what to continue from; nothing is saved after it."""
    kept = steps_in(course.folder / "checkpoints")
    last = f"the last checkpoint is {kept[0]}" if kept else "there is no checkpoint yet"
    return (
        f"the training has diverged: its weights are not finite after update {update}, and are not saved; {last}; begin again with a "
        "lower learning_rate, more warmup or precision=no"
    )


def _batches(course: Course, start: int, accelerator: Accelerator) -> Iterator[Batch]:
    """A process's batches from update ``start`` on."""
    place, processes = accelerator.process_index, accelerator.num_processes
    samples: Any = course.samples
    loader: DataLoader[Any] = DataLoader(
        samples,
        batch_sampler=numbers_of(course.config, start, place, processes),
        num_workers=course.config.workers,
        collate_fn=collate,
        persistent_workers=False,
    )
    return iter(loader)


def _update(
    course: Course,
    state: Progress,
    accelerator: Accelerator,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    batches: Iterator[Batch],
) -> Tensor:
    """One update; returns this process's mean loss, on the device."""
    config = course.config
    total = torch.zeros((), device=accelerator.device)
    for micro in range(config.accumulate):
        last = micro == config.accumulate - 1
        with nullcontext() if last else accelerator.no_sync(model), accelerator.autocast(), differentiable():
            loss = course.loss(model, next(batches), state.update / config.iterations)
            accelerator.backward(loss / config.accumulate)
        total += loss.detach() / config.accumulate
    if config.clip_norm:
        accelerator.clip_grad_norm_(model.parameters(), config.clip_norm)
    optimiser.step()
    state.schedule.step()
    optimiser.zero_grad(set_to_none=True)
    state.update += 1
    if state.average:
        state.average.step(state.model.parameters())
    return total


def _note(course: Course, state: Progress, accelerator: Accelerator, loss: float, rate: float) -> None:
    """Write the loss and the rates of an update down; ``rate`` is updates per second."""
    if not accelerator.is_main_process:
        return
    config = course.config
    line = {
        "step": state.update,
        "loss": loss,
        "learning_rate": state.schedule.get_last_lr()[0],
        "samples_per_second": rate * config.batch * config.accumulate * accelerator.num_processes,
    }
    with (course.folder / "metrics.jsonl").open("a") as file:
        file.write(json_of(line))
    shown = {f"{course.prefix}{name}": value for name, value in line.items() if name != "step"}
    accelerator.log(shown, state.update)

"""The ablation's trainings: what is special to each, and how one is made and measured, from pictures in memory.

Every training of one length begins from the embedded prior, sees the same number of pairs in an order that follows from its
seed, and is measured on the same held-out objects. The code of a seed is trained once, before the UNets that are told by it.
"""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from distill.files.atomic import write_atomic
from distill.files.lines import json_of
from distill.lab.novel_view import memory, stages, world_renders
from distill.lab.novel_view.evaluate import choose_pairs, evaluate, oriented
from distill.lab.novel_view.levels import Law
from distill.lab.novel_view.start import from_prior
from distill.priors.novel_view.code import Turn, TurnOptions
from distill.priors.novel_view.features import Encoder, load_encoder
from distill.priors.novel_view.pipeline import NovelViewPipeline

#: The thumbnail that a code learns to draw, whether or not the UNet is given it.
DRAFT = 16


@dataclass(frozen=True)
class Row:
    """What is special to a training.

    Attributes:
        encoder: ``clip`` or ``dino``.
        amalgamation: add its maps to the UNet.
        turn: a rotated code and what the UNet is told of it, or None for the paper's pose token.
        law: of the timesteps.
        flat: leave the learning rate at its peak.
    """

    encoder: str = "dino"
    amalgamation: bool = True
    turn: TurnOptions | None = None
    law: Law = field(default_factory=lambda: Law("normal"))
    flat: bool = False


#: Table 1 of the paper.
PAPER_ROWS = {
    "uniform + CLIP": Row("clip", amalgamation=False, law=Law("uniform")),
    "Gaussian + CLIP": Row("clip", amalgamation=False),
    "Gaussian + DINO": Row(amalgamation=False),
    "Gaussian + CLIP + amalgamation": Row("clip"),
    "Gaussian + DINO + amalgamation": Row(),
}
BASELINE, FULL = "uniform + CLIP", "Gaussian + DINO + amalgamation"
WHOLE, POWER = "code: all three", "code: all three, power law"
#: The paper's last row with a rotated code, told in several ways.
CODE_ROWS = {
    "code: tokens": Row(turn=TurnOptions(4, film=False, draft=0)),
    "code: FiLM": Row(turn=TurnOptions(0, film=True, draft=0)),
    "code: draft": Row(turn=TurnOptions(0, film=False, draft=DRAFT)),
    WHOLE: Row(turn=TurnOptions(4, film=True, draft=DRAFT)),
    POWER: Row(turn=TurnOptions(4, film=True, draft=DRAFT), law=Law("power")),
}
ROWS = {**PAPER_ROWS, **CODE_ROWS}
#: Fig. 6: mean and standard deviation of the timesteps, thousandths of all; short trainings of the paper's last row.
LAWS = (
    (1000, 200), (700, 200), (500, 200), (300, 200), (0, 200),
    (1000, 100), (1000, 300), (1000, 400), (1000, 500),
)  # fmt: skip


def law_name(mean: int, std: int) -> str:
    return f"mean {mean}, std {std}"


#: Beside the laws: the best of them at a learning rate that does not fall.
FLAT = "constant rate"
SHORT_ROWS = {law_name(m, s): Row(law=Law("normal", mean=m / 1000, std=s / 1000)) for m, s in LAWS} | {
    FLAT: Row(flat=True)
}


@dataclass(frozen=True)
class Setup:
    """What all trainings of an ablation share.

    Attributes:
        work: folder of the renders, the codes and the cells.
        encoders: folders of the encoders by name.
        prior: folder that the UNets begin from.
        device: of everything.
        world: renders to train on.
        unseen: renders to measure on.
        colours: of each shape.
        batch: pairs of an update.
        rate: peak of the UNet's learning rate.
        code: the code's training.
        code_updates: its length.
        points: of the validation's curve.
        steps: of the sampler.
        scale: of guidance.
    """

    work: Path
    encoders: Mapping[str, str]
    prior: Path
    device: str
    world: world_renders.WorldOptions
    unseen: world_renders.WorldOptions
    colours: int = 1
    batch: int = 128
    rate: float = 8e-4
    code: stages.CodeRecipe = field(default_factory=stages.CodeRecipe)
    code_updates: int = 2000
    points: int = 8
    steps: int = 20
    scale: float = 2.0

    def render(self, workers: int) -> None:
        """Make the renders, unless they are there."""
        world_renders.cached_shapes([self.world, self.unseen], self.work, workers)


@dataclass(frozen=True)
class Cell:
    """One training to be made.

    Attributes:
        name: of its row.
        seed: its own.
        updates: how long it is.
        deadline: ``time.time()`` at which it is given up.
    """

    name: str
    seed: int
    updates: int
    deadline: float = float("inf")

    @property
    def row(self) -> Row:
        return (ROWS | SHORT_ROWS)[self.name]

    @property
    def over(self) -> bool:
        return time.time() > self.deadline

    def folder(self, work: Path) -> Path:
        return work / "cells" / f"{re.sub('[^a-zA-Z0-9]+', '-', self.name).lower()}-{self.seed}"


class Late(Exception):
    """There was no time left for a training."""


class Bench:
    """An ablation's pictures and encoders, once in a process; encodings are made when they are first wanted."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        known, new = world_renders.cached_shapes([setup.world, setup.unseen], setup.work)
        self.store = world_renders.painted(known, colours=setup.colours, device=setup.device)
        held_out = world_renders.painted(
            new, held_out=True, colours=1, seed=setup.unseen.seed, device=setup.device
        )
        self.held_out = held_out
        # Evaluation reads picture by picture, which a busy GPU answers slowly.
        self.views = held_out.to("cpu").views()
        self._seen: dict[str, tuple[Encoder, memory.Seen, memory.Seen]] = {}

    def seen(self, name: str) -> tuple[Encoder, memory.Seen, memory.Seen]:
        """An encoder by name, and what it makes of the pictures to train on and to measure on."""
        if name not in self._seen:
            encoder = load_encoder(self.setup.encoders[name], device=self.setup.device)
            known, new = (memory.encoded(part, encoder) for part in (self.store, self.held_out))
            self._seen[name] = encoder, known, new
        return self._seen[name]

    @cached_property
    def pairs(self) -> Tensor:
        """Condition and target of one pair of each held-out object, indices."""
        return memory.fixed_pairs(self.held_out)


def code_path(work: Path, seed: int) -> Path:
    return work / "codes" / f"{seed}.safetensors"


def train_code(bench: Bench, seed: int, deadline: float = float("inf")) -> None:
    """Train the code of a seed and the draft that it draws, unless that was done before.

    Raises:
        Late: the deadline came first.
    """
    setup, path = bench.setup, code_path(bench.setup.work, seed)
    if path.exists():
        return
    encoder, seen, unseen = bench.seen("dino")
    torch.manual_seed(seed)
    turn = Turn(encoder.map_widths, encoder.grid, 1, 1, TurnOptions(0, film=False, draft=DRAFT))
    turn.to(setup.device)
    stage = stages.code_stage(turn, seen, setup.code, stages.Pace(updates=setup.code_updates), seed)
    stages.fit_code(stage, seen, setup.code, lambda stage, loss: time.time() > deadline)
    draft = stage.modules["draft"]
    if stage.pace.done < 1:
        raise Late
    found = stages.drafts_right(turn, draft, unseen, bench.pairs)
    said = {name: value.mean().item() for name, value in found.items()}
    said |= {"seconds": stage.pace.spent, "updates": setup.code_updates, "batch": setup.code.batch}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path.with_suffix(".json"), json.dumps(said, indent=1) + "\n")
    parts = {"code": turn.code, "draft": draft}
    weights = {
        f"{name}.{key}": v.cpu() for name, part in parts.items() for key, v in part.state_dict().items()
    }
    save_file(weights, path.with_name(f".{path.name}.tmp"))
    path.with_name(f".{path.name}.tmp").replace(path)


def take_code(turn: Turn, path: Path) -> None:
    """Give a model the code of a seed, and its draft where the UNet is given it."""
    weights = load_file(path)
    for name, part in {"code": turn.code, "draft": turn.draft}.items():
        if part is None:
            continue
        part.load_state_dict(
            {key.removeprefix(f"{name}."): v for key, v in weights.items() if key.startswith(f"{name}.")}
        )


def begun(
    bench: Bench, cell: Cell, trained: bool = True
) -> tuple[NovelViewPipeline, stages.Stage, stages.UNetRecipe]:
    """A cell's model and its stage before the first update; ``trained``: with its seed's code."""
    setup, row = bench.setup, cell.row
    encoder = bench.seen(row.encoder)[0]
    pipeline = from_prior(
        setup.prior,
        encoder,
        turn=row.turn,
        amalgamation=row.amalgamation,
        size=setup.world.size,
        seed=cell.seed,
        device=setup.device,
    )
    if pipeline.model.turn is not None and trained:
        take_code(pipeline.model.turn, code_path(setup.work, cell.seed))
    recipe = stages.UNetRecipe(batch=setup.batch, learning_rate=setup.rate, law=row.law)
    recipe = replace(recipe, final=1.0) if row.flat else recipe
    stage = stages.unet_stage(pipeline, recipe, stages.Pace(updates=cell.updates), cell.seed)
    return pipeline, stage, recipe


def train_cell(bench: Bench, cell: Cell) -> None:
    """Train, measure and write a cell's record, unless that was done before.

    Raises:
        Late: the deadline came first; nothing is written.
        ValueError: the training has diverged.
    """
    folder = cell.folder(bench.setup.work)
    if (folder / "record.json").exists():
        return
    if cell.over:
        raise Late
    _, seen, unseen = bench.seen(cell.row.encoder)
    pipeline, stage, recipe = begun(bench, cell)
    curve: list[dict[str, float]] = []
    marks = {max(1, round(cell.updates * (i + 1) / bench.setup.points)) for i in range(bench.setup.points)}

    def after(stage: stages.Stage, loss: Tensor) -> bool:
        if stage.pace.update in marks:
            curve.append(measured(pipeline, stage, unseen, bench.pairs))
        return cell.over

    stages.fit_unet(stage, pipeline, seen, recipe, after)
    if stage.pace.done < 1:
        raise Late
    seconds = stage.pace.spent
    summary = assess(bench, pipeline, stage, folder / "evaluation")
    setup = bench.setup
    record = {
        "name": cell.name, "seed": cell.seed, "updates": cell.updates, "batch": setup.batch, "seconds": seconds,
        "objects": len(bench.store), "pictures": len(bench.store.pictures), "unseen": len(bench.held_out),
        "code": setup.code_updates * setup.code.batch if cell.row.turn else 0, "hardware": hardware(setup.device),
        "figures": summary["figures"], "validation": curve,
    }  # fmt: skip
    write_atomic(folder / "record.json", json_of(record, indent=1))


def measured(
    pipeline: NovelViewPipeline, stage: stages.Stage, unseen: memory.Seen, pairs: Tensor
) -> dict[str, float]:
    """A point of the validation's curve: the loss over all timesteps alike, and how well the asked side is drawn.

    Raises:
        ValueError: the loss is not a number.
    """
    started = time.perf_counter()
    point: dict[str, float] = {"step": stage.pace.update, "seconds": stage.pace.spent}
    device = pairs.device
    with stages.averaged(stage), torch.no_grad():
        g = torch.Generator(device).manual_seed(0)
        losses = []
        for _ in range(2):
            t = Law("uniform").draw(0.0, len(pairs), len(pipeline.scheduler.alphas_cumprod), g)
            for part, times in zip(pairs.split(160), t.split(160), strict=True):
                condition, target = part.unbind(1)
                losses.append(stages.denoising(pipeline, unseen, condition, target, times, g).item())
        found = stages.one_step(pipeline, unseen, pairs)
    point["loss"] = statistics.fmean(losses)
    point |= {f"view_{name}": value.mean().item() for name, value in found.items()}
    if not point["loss"] < 1e3:
        raise ValueError("the training has diverged; take a lower rate")
    stage.pace.used -= time.perf_counter() - started  # measuring is no training
    return point


def assess(bench: Bench, pipeline: NovelViewPipeline, stage: stages.Stage, out: Path) -> dict[str, Any]:
    """Draw one view of each held-out object with the averaged weights, and measure it."""
    setup, views = bench.setup, bench.views
    batch = 160 if torch.device(setup.device).type == "cuda" else 16

    def draw(rgb: Tensor, pose: Tensor, generator: Any) -> Tensor:
        return pipeline(rgb, pose, generator=generator, steps=setup.steps, scale=setup.scale, batch=batch)

    with stages.averaged(stage):
        return evaluate(
            draw, views, choose_pairs(views, 1, 0), out, groups=oriented(views.uids), progress=False, batch=batch,
            about={"steps": setup.steps, "scale": setup.scale},
        )  # fmt: skip


@dataclass(frozen=True)
class Pace:
    """How fast one process is beside the others.

    Attributes:
        rate: updates a second of the most costly row.
        code: seconds of a code's update.
        measuring: seconds that a training's measurements take in all.
    """

    rate: float
    code: float
    measuring: float


def pace_of(bench: Bench, seconds: float, out: Path) -> Pace:
    """Train for so many seconds, and measure once."""
    cell = Cell(WHOLE, 0, 10**9)
    pipeline, stage, recipe = begun(bench, cell, trained=False)
    _, seen, unseen = bench.seen(cell.row.encoder)
    turn = pipeline.model.turn
    assert turn is not None
    watch = _Watch(seconds / 4)
    setup, length = bench.setup, stages.Pace(updates=10**9)
    code_stage = stages.code_stage(turn, seen, setup.code, length)
    stages.fit_code(code_stage, seen, setup.code, watch)
    code_stage.modules.eval().requires_grad_(False)
    code = 1 / watch.rate
    watch = _Watch(seconds)
    stages.fit_unet(stage, pipeline, seen, recipe, watch)
    rate = watch.rate
    started = time.perf_counter()
    measured(pipeline, stage, unseen, bench.pairs)
    points = setup.points * (time.perf_counter() - started)
    started = time.perf_counter()
    assess(bench, pipeline, stage, out)
    return Pace(rate, code, points + time.perf_counter() - started)


class _Watch:
    """Stops after some seconds, the first updates, which set things up, not counted."""

    def __init__(self, seconds: float, first: int = 3) -> None:
        self.seconds, self.first, self.since, self.rate = seconds, first, 0.0, 0.0

    def __call__(self, stage: stages.Stage, loss: Tensor) -> bool:
        # Waiting for a GPU after each update would slow it down.
        if stage.pace.update < self.first or stage.pace.update % 3:
            return False
        loss.item()
        spent = time.perf_counter() - self.since
        if stage.pace.update == self.first:
            self.since = time.perf_counter()
            return False
        self.rate = (stage.pace.update - self.first) / spent
        return spent > self.seconds


def hardware(device: str) -> str:
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else "CPU"

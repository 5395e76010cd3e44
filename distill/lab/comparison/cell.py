"""One cell of a comparison: an asset made and measured."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.cameras import turntable
from distill.contracts import Render, Step
from distill.embedded.judge import Judge
from distill.files.errors import first_line
from distill.job import Job, State
from distill.lab.comparison import figures
from distill.lab.comparison.cost import compose
from distill.lab.comparison.counted import Counted
from distill.lab.comparison.figures import gradient_profile
from distill.lab.comparison.records import VIEWS, Cell
from distill.lab.truth import Source, asked
from distill.loop import Diverged, OutOfMemory, train
from distill.parts.made import check_own_prior
from distill.run.assembly.assemble import assemble
from distill.run.assembly.conditioning import texts_of


def run_cell(
    cell: Cell,
    wanted: Mapping[str, Any],
    prior: Counted,
    judge: Judge,
    folder: Path,
    every: int,
    stop: threading.Event,
    source: Source,
) -> dict[str, Any]:
    """Train and measure one asset; a failure of the training is part of the record, and one of measuring is raised."""
    from PIL import Image

    config = compose(wanted, cell.prompt, cell.seed)
    check_own_prior(prior.prior, texts_of(config, prior)[0], config.render.batch)
    job, before, caption = assemble(config, prior), prior.calls, asked(cell.prompt, source).caption
    field = job.scenes[0].field()
    assert field is not None  # see check_measurable
    points: list[dict[str, float]] = []
    rows: list[Tensor] = []
    unmeasured: list[Exception] = []
    clock = {"seconds": 0.0, "since": time.perf_counter()}

    def on_step(state: State, metrics: dict[str, float], picture: Render) -> bool:
        clock["seconds"] += time.perf_counter() - clock["since"]
        if state.step % every == 0 or state.step == config.iterations:
            try:
                scores, row = seen_by(judge, job, caption)
                spent = {"seconds": clock["seconds"], "calls": prior.calls - before}
                points.append({"step": state.step, **spent, **scores})
                rows.append(row)
            except Exception as error:  # raised after the training, in which a failure counts as the loss's
                unmeasured.append(error)
        clock["since"] = time.perf_counter()
        return bool(unmeasured or stop.is_set())

    record: dict[str, Any] = {**vars(cell), "options": dict(wanted), "points": points, "error": None}
    whole = True
    try:
        train(job, on_step)
    except Diverged as error:
        record["error"] = first_line(error)
    except (OutOfMemory, OSError):
        raise  # of the machine; the cell is made when there is room
    except Exception as error:
        # A custom loss fails in any way, and the others are compared all the same.
        whole, said = False, (str(error).splitlines() or [""])[0]
        record["error"] = f"{type(error).__name__}: {said}"
    if unmeasured:
        raise unmeasured[0]
    if stop.is_set() and job.state.step < config.iterations:
        return record
    record |= {"seconds": clock["seconds"], "calls": prior.calls - before, "skipped": job.state.skipped}
    record["final"] = figures.measure(job.views[0], field, cell.prompt, judge, source)
    if whole:
        record["gradient"] = profile(job, config.seed)
    folder.mkdir(parents=True, exist_ok=True)
    # A row for every point of the curves, the finished asset last.
    if rows:
        Image.fromarray((torch.cat(rows) * 255).round().byte().numpy()).save(folder / VIEWS)
    return record


def seen_by(judge: Judge, job: Job, caption: str) -> tuple[dict[str, float], Tensor]:
    """A judge's scores of a scene as it is now, and its pictures side by side, ``[size, views * size, 3]``."""
    seen, _ = figures.pictures_of(job.views[0])
    return figures.judge_scores(judge, seen, caption), seen.permute(2, 0, 3, 1).flatten(1, 2)


def profile(job: Job, seed: int) -> list[dict[str, float]]:
    """Measure how large and how noisy the loss's gradient is on the finished asset's own pictures."""
    prior, cameras = job.prior, turntable(4)
    render = job.views[0](cameras, 64, 64)
    x = prior.encode(render.rgb.movedim(-1, 1))
    step = Step(progress=0.99, uniform=torch.full((4,), 0.5))
    cond = job.condition(cameras.to(prior.device), step, render)
    return gradient_profile(job.guidance, prior, x, cond, torch.Generator().manual_seed(seed))

"""Running a comparison: one cell per method, prompt and seed, each kept as it is finished."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.checkpoint import write_atomic
from distill.config import as_overrides, compose_config
from distill.contracts import Embedding, Prior, Render
from distill.embedded.judge import Judge, load_judge
from distill.folders import folder_name
from distill.journal import Interrupted, stop_signals
from distill.loop import Diverged, State
from distill.loop import train as train_scene

log = logging.getLogger(__name__)

#: Every method with its options, as ``distill.generate`` takes them.
METHODS: dict[str, dict[str, Any]] = {
    "sds": {"guidance": "sds"},
    "tp_sds": {"guidance": "sds", "timesteps": "dreamtime"},
    "csd": {"guidance": "csd"},
    "asd": {"experiment": "scaledreamer"},
    "vsd": {"guidance": "vsd"},
    "sdi": {"experiment": "sdi"},
}
PROMPTS = (
    "a blue chair",
    "a green mug",
    "an orange house",
    "a red rocket",
    "a purple duck",
    "a yellow car",
    "a brown mushroom",
    "a pink teapot",
)


@dataclass(frozen=True)
class Cell:
    """One asset of a comparison."""

    method: str
    prompt: str
    seed: int

    def folder(self, root: Path) -> Path:
        return root / "cells" / self.method / f"{folder_name(self.prompt)}-{self.seed}"


class Counted:
    """A prior that counts the pictures its network is asked about."""

    def __init__(self, prior: Any) -> None:
        self.prior, self.calls = prior, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.prior, name)

    def predict_noise(self, x_t: Tensor, t: Tensor, cond: Embedding) -> Tensor:
        self.calls += len(x_t)
        result: Tensor = self.prior.predict_noise(x_t, t, cond)
        return result

    def forward(self, x_t: Tensor, t: Tensor, cond: Embedding) -> Tensor:
        self.calls += len(x_t)
        result: Tensor = self.prior.forward(x_t, t, cond)
        return result


def compare(
    methods: Mapping[str, Mapping[str, Any]] | None = None,
    prompts: Sequence[str] = PROMPTS,
    seeds: Sequence[int] = (0, 1),
    *,
    output_dir: str | Path,
    prior: Any = None,
    iterations: int = 400,
    budget: str = "steps",
    measure_every: int = 50,
    **options: Any,
) -> Path:
    """Make and measure every cell, then write the report; rerun to go on where it stopped.

    Args:
        methods: options of ``distill.generate`` by a name of one's choice; ``METHODS`` by default.
        prompts: of the embedded world.
        seeds: of each.
        output_dir: where cells, ``results.csv``, ``curves.csv``, ``grid.png`` and ``report.html`` go.
        prior: a loaded prior shared by all cells; the embedded one by default.
        iterations: of each cell, or with ``budget="calls"`` of the first method's: the others get as many
            as make the same number of network evaluations.
        budget: ``steps`` or ``calls``.
        measure_every: steps between two points of the curves; measuring does not count as time.
        **options: for all cells.

    Returns:
        The report's path.

    Raises:
        ValueError: an option is wrong, in one line.
        Interrupted: a signal asked to stop; what is finished is kept.
    """
    from distill.comparison.report import write_report
    from distill.priors import load_prior

    if budget not in ("steps", "calls"):
        raise ValueError(f"budget must be steps or calls, got {budget!r}")
    chosen = {name: dict(wanted) for name, wanted in (methods or METHODS).items()}
    root, model, judge = Path(output_dir), Counted(prior or load_prior()), load_judge()
    cells = [Cell(name, prompt, seed) for prompt in prompts for seed in seeds for name in chosen]
    settings = {name: {"iterations": iterations, **options, **wanted} for name, wanted in chosen.items()}
    if budget == "calls":
        costs = {name: calls_per_step(settings[name], prompts[0], model) for name in chosen}
        first = next(iter(costs.values()))
        for name, cost in costs.items():
            settings[name]["iterations"] = max(1, round(iterations * first / cost))
    with stop_signals() as stop:
        for number, cell in enumerate(cells, start=1):
            folder, wanted = cell.folder(root), settings[cell.method]
            if finished(folder, wanted):
                continue
            record = run_cell(cell, wanted, model, judge, folder, measure_every, stop)
            if stop.is_set():
                raise Interrupted(f"stopped after {number - 1} of {len(cells)} cells; run again to go on")
            write_atomic(folder / "cell.json", json.dumps(record) + "\n")
            said = (
                record["error"] or f"R {record['final']['r_precision']:.2f}, IoU {record['final']['iou']:.2f}"
            )
            log.info("%d of %d: %s, %s, seed %d: %s", number, len(cells), *vars(cell).values(), said)
    return write_report(root, [json.loads((cell.folder(root) / "cell.json").read_text()) for cell in cells])


def finished(folder: Path, wanted: Mapping[str, Any]) -> bool:
    """Whether a cell was finished with these options.

    Raises:
        ValueError: it was finished with others.
    """
    path = folder / "cell.json"
    if not path.exists():
        return False
    made = json.loads(path.read_text())["options"]
    if made != json.loads(json.dumps(wanted)):
        raise ValueError(f"{folder} was made with {made}, not {dict(wanted)}; choose another output_dir")
    return True


def compose(wanted: Mapping[str, Any], prompt: str, seed: int) -> Any:
    return compose_config(as_overrides({"prompt": prompt, "seed": seed, **wanted}))


def calls_per_step(wanted: Mapping[str, Any], prompt: str, prior: Counted) -> int:
    """Pictures that the prior's network is asked about in one step."""
    from distill.run import build, make_condition

    config = compose(wanted, prompt, 0)
    parts = build(config, prior)
    condition, before = make_condition(config, prior, parts.scene), prior.calls
    once = parts.settings
    train_scene(
        parts.state, prior, parts.guidance, condition, parts.render, parts.cameras, parts.timesteps, once,
        lambda *_: True,
    )  # fmt: skip
    return prior.calls - before


def run_cell(
    cell: Cell, wanted: Mapping[str, Any], prior: Counted, judge: Judge, folder: Path, every: int, stop: Any
) -> dict[str, Any]:
    """Train and measure one asset; a failure is part of the record."""
    from PIL import Image

    from distill.comparison import figures
    from distill.run import build, make_condition

    config = compose(wanted, cell.prompt, cell.seed)
    parts = build(config, prior)
    condition, before = make_condition(config, prior, parts.scene), prior.calls
    points: list[dict[str, float]] = []
    clock = {"seconds": 0.0, "since": time.perf_counter()}

    def on_step(state: State, metrics: dict[str, float], picture: Render) -> bool:
        clock["seconds"] += time.perf_counter() - clock["since"]
        if state.step % every == 0 or state.step == config.iterations:
            seen, _ = figures.pictures_of(parts.view)
            scores = figures.judge_scores(judge, seen, cell.prompt)
            points.append({"step": state.step, "seconds": clock["seconds"], **scores})
        clock["since"] = time.perf_counter()
        return bool(stop.is_set())

    record: dict[str, Any] = {**vars(cell), "options": dict(wanted), "points": points, "error": None}
    try:
        train_scene(
            parts.state, prior, parts.guidance, condition, parts.render, parts.cameras, parts.timesteps,
            parts.settings, on_step,
        )  # fmt: skip
    except Diverged as error:
        record["error"] = str(error).splitlines()[0]
    if stop.is_set():
        return record
    record |= {"seconds": clock["seconds"], "calls": prior.calls - before, "skipped": parts.state.skipped}
    record["final"] = figures.measure(parts.view, parts.scene.query, cell.prompt, judge, prior.device)
    record["gradient"] = profile(config, parts, prior, condition)
    folder.mkdir(parents=True, exist_ok=True)
    seen, _ = figures.pictures_of(parts.view)
    strip = (seen.permute(2, 0, 3, 1).flatten(1, 2) * 255).round().byte().numpy()
    Image.fromarray(strip).save(folder / "views.png")
    return record


def profile(config: Any, parts: Any, prior: Prior, condition: Any) -> list[dict[str, float]]:
    """How large and how noisy the loss's gradient is on the finished asset's own pictures."""
    from dataclasses import replace

    from distill.comparison.figures import gradient_profile
    from distill.samplers.cameras import turntable

    cameras = turntable(4)
    x = prior.encode(parts.view(cameras, 64, 64).rgb.movedim(-1, 1))
    cond = replace(condition(cameras.to(prior.device)), progress=0.99, uniform=torch.full((4,), 0.5))
    return gradient_profile(parts.guidance, prior, x, cond, torch.Generator().manual_seed(config.seed))

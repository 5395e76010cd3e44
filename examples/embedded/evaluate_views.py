"""Evaluate a multi-view prior's samples with the judge: a ring of four views of every pair of a colour and a kind.

Use it after ``train_views.py``. All 128 rings take some minutes on one core:

    python examples/embedded/evaluate_views.py --work ~/embedded --prior views

The results, ``views.md`` and ``views.png``, are written to the folder of ``--work``. The last rows are mean distances between the judge's features of neighbouring views: more than the truth's where the views of an object
disagree, less where its sides are too much alike.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import dataset
import torch
import train_judge
from evaluate_prior import Verdict, draw_sheet, judge_all, place, summary, table, true_pictures
from torch import Tensor
from tqdm import tqdm

from distill.cameras import Cameras, orbit
from distill.embedded import captions, raycast, shapes, world
from distill.embedded.judge import Judge, load_judge
from distill.lab.comparison.figures import neighbours
from distill.priors import load_prior
from distill.priors.diffusion import DiffusionPrior
from distill.priors.multi_view.attention import VIEWS
from distill.priors.sampling import sample
from distill.viewing import DISTANCE, FOV_Y_DEG

ELEVATION_DEG = 15.0
#: The world's directions are so far apart, degrees.
TURN = 360 / len(world.DIRECTIONS)


def pairs() -> list[tuple[str, str]]:
    return [(colour, kind) for kind in world.KINDS for colour in world.COLOURS]


def azimuths(number: int) -> list[float]:
    """Of the ring that is drawn of the pair of this number: rings begin at each of the four directions of a quarter turn."""
    return [(number % 4) * TURN + view * 360 / VIEWS for view in range(VIEWS)]


def rings(numbers: list[int]) -> Cameras:
    """Cameras of the rings of these pairs, in consecutive rows."""
    every = torch.tensor([azimuth for number in numbers for azimuth in azimuths(number)])
    rows = len(every)
    return orbit(every, torch.full((rows,), ELEVATION_DEG), torch.full((rows,), DISTANCE), FOV_Y_DEG)


def pictures_of(prior: DiffusionPrior, steps: int, scale: float, seed: int, at_once: int = 8) -> Tensor:
    """Sample the ring of each pair, in [0, 1], ``[4 pairs, 3, 64, 64]``."""
    g, every, made = torch.Generator().manual_seed(seed), pairs(), []
    for start in tqdm(range(0, len(every), at_once), "sampling"):
        numbers = list(range(start, min(start + at_once, len(every))))
        prompts = [world.caption(*every[number]) for number in numbers for _ in range(VIEWS)]
        x = sample(prior, prompts, generator=g, steps=steps, scale=scale, clip=1.0, cameras=rings(numbers))
        made.append(prior.decode(x).clamp(0, 1).cpu())
    return torch.cat(made)


def true_rings() -> Tensor:
    """The true object of each pair in the same views, over white."""
    made = []
    for number, (colour, kind) in enumerate(pairs()):
        seen = raycast.render(shapes.build(kind), rings([number]), dataset.SIZE)
        rgb = torch.tensor(world.COLOURS[colour])
        painted, tint, alpha = (
            torch.as_tensor(each).float() for each in (seen.painted, seen.tint, seen.alpha)
        )
        made.append((painted + tint[..., None] * rgb + (1 - alpha[..., None])).movedim(-1, 1))
    return torch.cat(made).clamp(0, 1)


def apart(judge: Judge, images: Tensor) -> float:
    """The mean distance between neighbouring views, over all rings."""
    return sum(neighbours(judge, ring) for ring in images.split(VIEWS)) / (len(images) // VIEWS)


def verdicts_of(judge: Judge, images: Tensor, candidates: list[str]) -> list[Verdict]:
    asked = [
        (colour, kind, round(azimuth / TURN) % len(world.DIRECTIONS))
        for number, (colour, kind) in enumerate(pairs())
        for azimuth in azimuths(number)
    ]
    return judge_all(judge, images, asked, candidates)


def parse_options(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for the new ground-truth renders and the results"
    )
    parser.add_argument("--prior", default="views", help="'views' or a folder")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--scale", type=float, default=3.0, help="classifier-free guidance scale")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--sheet", type=Path, help="the rings; WORK/views.png by default")
    parser.add_argument("--table", type=Path, help="what was measured; WORK/views.md by default")
    options = parser.parse_args(words)
    try:
        place(options, sheet="views.png", table="views.md")
    except OSError as error:
        parser.error(f"{error.filename} cannot be made: {error.strerror}; choose another folder")
    return options


def main() -> None:
    options = parse_options()
    prior, judge = load_prior(options.prior, options.device), load_judge()
    if prior.views != VIEWS:
        raise ValueError(f"--prior must be a prior of {VIEWS} views, and {options.prior} takes {prior.views}")
    candidates = [captions.write(*meaning) for meaning in captions.of(())]
    dataset.build(options.work / "fresh", shapes_per_kind=4, seed=train_judge.FRESH_SEED)
    truth = judge_all(judge, *true_pictures(options.work / "fresh", 4, options.seed), candidates)
    images, true = pictures_of(prior, options.steps, options.scale, options.seed), true_rings()
    verdicts = verdicts_of(judge, images, candidates)
    said = [
        f"{options.steps} DDIM steps, guidance scale {options.scale:g}, seed {options.seed}, judged among {len(candidates)} captions",
        summary(truth, verdicts),
        f"| neighbouring views | distance |\n|---|---|\n| samples | {apart(judge, images):.3f} |\n| truth | {apart(judge, true):.3f} |",
        table(verdicts),
    ]
    options.table.write_text("\n\n".join(said) + "\n", encoding="utf-8")
    print("\n\n".join(said))
    colours = list(world.COLOURS)
    # A row for each kind, each in another colour.
    shown = [number * len(colours) + number % len(colours) for number in range(len(world.KINDS))]
    picked = torch.cat([images[VIEWS * number : VIEWS * (number + 1)] for number in shown])
    labels = [" ".join(pairs()[number]) for number in shown]
    draw_sheet(picked, labels, [f"view {view + 1}" for view in range(VIEWS)], options.sheet)
    print("wrote", options.table, options.sheet)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")

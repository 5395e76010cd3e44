"""Evaluate a prior's samples with the judge, on trained and on held-out pairs.

Run from this folder, after ``train_prior.py``:
    python evaluate_prior.py --work ~/embedded --prior embedded
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import dataset
import numpy as np
import torch
import train_judge
from PIL import Image, ImageDraw
from torch import Tensor
from tqdm import tqdm

from distill.embedded import world
from distill.embedded.judge import Judge, load_judge
from distill.embedded.shapes import ORIENTED
from distill.priors import load_prior
from distill.priors.diffusion import DiffusionPrior
from distill.priors.sampling import sample


@dataclass(frozen=True)
class Verdict:
    """A sample's request, and the judge's verdict on it."""

    colour: str
    kind: str
    pair_right: bool
    view_near: bool


def requests(per_pair: int) -> list[tuple[str, str, int]]:
    """Colour, kind and direction of every sample; each kind is asked for from all sixteen directions."""
    pairs = [(colour, kind) for kind in world.KINDS for colour in world.COLOURS]
    stride = max(1, 16 // per_pair)
    return [(c, k, (p + j * stride) % 16) for p, (c, k) in enumerate(pairs) for j in range(per_pair)]


def pictures_of(
    prior: DiffusionPrior,
    asked: list[tuple[str, str, int]],
    steps: int,
    scale: float,
    seed: int,
    batch: int = 32,
) -> Tensor:
    """Sample one picture in [0, 1] for each request, ``[requests, 3, height, width]``."""
    g = torch.Generator().manual_seed(seed)
    made = []
    for start in tqdm(range(0, len(asked), batch), "sampling"):
        prompts = [world.caption(c, k, world.DIRECTIONS[v]) for c, k, v in asked[start : start + batch]]
        clip = None if prior.latent else 1.0
        x = sample(prior, prompts, generator=g, steps=steps, scale=scale, clip=clip)
        made.append(prior.decode(x).clamp(0, 1).cpu())
    return torch.cat(made)


def judge_all(judge: Judge, images: Tensor, asked: list[tuple[str, str, int]]) -> list[Verdict]:
    best = judge.rank(images, world.all_captions())[:, 0].tolist()
    verdicts = []
    for image, guess, (colour, kind, direction) in zip(images, best, asked, strict=True):
        views = [world.caption(colour, kind, view) for view in world.DIRECTIONS]
        gap = abs(int(judge.rank(image[None], views)[0, 0]) - direction)
        right = world.all_captions()[guess] == world.caption(colour, kind)
        verdicts.append(Verdict(colour, kind, right, min(gap, 16 - gap) <= 1))
    return verdicts


def true_pictures(folder: Path, per_pair: int, seed: int) -> tuple[Tensor, list[tuple[str, str, int]]]:
    """Return new ground-truth renders, each in a random colour over white: the score of a perfect prior."""
    g = torch.Generator().manual_seed(seed)
    fresh = dataset.Pictures(folder, g)
    level = torch.nonzero(fresh.view < 16)[:, 0]
    index = level[torch.randperm(len(level), generator=g)[: 128 * per_pair]]
    colour = torch.randint(len(world.COLOURS), (len(index),), generator=g)
    names = list(world.COLOURS)
    columns = (x.tolist() for x in (colour, fresh.kind[index], fresh.view[index]))
    asked = [(names[c], world.KINDS[k], v) for c, k, v in zip(*columns, strict=True)]
    return train_judge.plain(fresh, index, colour), asked


def share(hits: list[bool]) -> str:
    """A share in per cent with its binomial standard error."""
    if not hits:
        return "-"
    p = sum(hits) / len(hits)
    return f"{100 * p:.1f} ± {100 * math.sqrt(p * (1 - p) / len(hits)):.1f}"


def table(verdicts: list[Verdict]) -> str:
    """Markdown: per kind, the share of samples with the right colour and kind."""
    lines = ["| kind | trained pairs, % | held-out pair, % |", "|---|---|---|"]
    for kind in world.KINDS:
        own = [v for v in verdicts if v.kind == kind]
        seen = [v.pair_right for v in own if not world.held_out(v.colour, kind)]
        new = [v.pair_right for v in own if world.held_out(v.colour, kind)]
        lines.append(f"| {kind} | {share(seen)} | {share(new)} |")
    return "\n".join(lines)


def summary(truth: list[Verdict], verdicts: list[Verdict]) -> str:
    """Markdown: the judge's own accuracy, and the prior's."""
    seen = [v.pair_right for v in verdicts if not world.held_out(v.colour, v.kind)]
    new = [v.pair_right for v in verdicts if world.held_out(v.colour, v.kind)]
    rows = [
        ("new ground-truth renders: colour and kind right", [v.pair_right for v in truth]),
        ("samples, trained pairs: colour and kind right", seen),
        ("samples, held-out pairs: colour and kind right", new),
        ("new ground-truth renders: direction within 22.5°, oriented kinds", near(truth)),
        ("samples: direction within 22.5°, oriented kinds", near(verdicts)),
    ]
    lines = ["| measured by the judge | % | pictures |", "|---|---|---|"]
    return "\n".join(lines + [f"| {name} | {share(hits)} | {len(hits)} |" for name, hits in rows])


def near(verdicts: list[Verdict]) -> list[bool]:
    return [v.view_near for v in verdicts if v.kind in ORIENTED]


def draw_sheet(images: Tensor, kinds: list[str], views: list[str], path: Path, cell: int = 96) -> None:
    """Write a labelled sheet: a row for each kind, a column for each direction."""
    left, top = 110, 26
    sheet = Image.new("RGB", (left + cell * len(views), top + cell * len(kinds)), "white")
    pen = ImageDraw.Draw(sheet)
    for column, words in enumerate(view.removesuffix(" view") for view in views):
        pen.text((left + column * cell + cell // 2, top // 2), words, "black", anchor="mm")
    for row, kind in enumerate(kinds):
        pen.text((left - 8, top + row * cell + cell // 2), kind, "black", anchor="rm")
        for column in range(len(views)):
            pixels = images[row * len(views) + column].permute(1, 2, 0).mul(255).round().byte().numpy()
            picture = Image.fromarray(np.ascontiguousarray(pixels)).resize(
                (cell, cell), Image.Resampling.BICUBIC
            )
            sheet.paste(picture, (left + column * cell, top + row * cell))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for the new ground-truth renders")
    parser.add_argument("--prior", default="embedded", help="'embedded' or a folder")
    parser.add_argument("--per-pair", type=int, default=4, help="samples of each of the 128 pairs")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--scale", type=float, default=3.0, help="classifier-free guidance scale")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="one sample a pair, 15 steps, a small sheet")
    parser.add_argument("--sheet", type=Path, default=Path("samples.png"))
    parser.add_argument("--table", type=Path, default=Path("prior.md"))
    options = parser.parse_args()
    if options.quick:
        options.per_pair, options.steps = 1, 15
    return options


def main() -> None:
    options = parse_options()
    dataset.build(options.work / "fresh", shapes_per_kind=4, seed=train_judge.FRESH_SEED)
    judge, prior = load_judge(), load_prior(options.prior, options.device)
    truth = judge_all(judge, *true_pictures(options.work / "fresh", options.per_pair, options.seed))
    asked = requests(options.per_pair)
    made = pictures_of(prior, asked, options.steps, options.scale, options.seed)
    verdicts = judge_all(judge, made, asked)
    setup = f"{options.steps} DDIM steps, guidance scale {options.scale:g}, seed {options.seed}"
    text = f"{setup}\n\n{summary(truth, verdicts)}\n\n{table(verdicts)}\n"
    print(text)
    options.table.write_text(text)

    directions = list(range(0, 16, 4 if options.quick else 2))
    colours = list(world.COLOURS)
    rows = [(colours[k % 8], kind, v) for k, kind in enumerate(world.KINDS) for v in directions]
    sheet = pictures_of(prior, rows, options.steps, options.scale, options.seed + 1)
    labels = [f"{colours[k % 8]} {kind}" for k, kind in enumerate(world.KINDS)]
    draw_sheet(sheet, labels, [world.DIRECTIONS[v] for v in directions], options.sheet)
    print(f"wrote {options.table} and {options.sheet}")


if __name__ == "__main__":
    main()

"""Evaluate a prior's samples with the judge, on trained and on held-out pairs, and of real objects with --pack.

Use it after ``train_prior.py``. A sample takes about half a second on one core, and all of them ten minutes at most:

    python examples/embedded/evaluate_prior.py --work ~/embedded --prior embedded --pack ~/things/pack
    python examples/embedded/evaluate_prior.py --work ~/embedded --prior ~/embedded/prior --pack ~/things/pack --judge ~/judge/weights \
        --things 1752 --names names.csv --keep 0.5    # and leave the names out of the prior's names.json that are not learnt

The tables and sheets, ``prior.md``, ``samples.png`` and ``things.png``, are written to the folder of ``--work``.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import dataset
import evaluate_things
import numpy as np
import torch
import train_judge
from evaluate_judge import alike
from evaluate_things import share
from PIL import Image, ImageDraw
from torch import Tensor
from tqdm import tqdm

from distill.embedded import captions, things, world
from distill.embedded.judge import SHIPPED, Judge, load_judge
from distill.embedded.shapes import ORIENTED
from distill.embedded.vocabulary import NAMES, read_names, write_names
from distill.embedded.vocabulary import SHIPPED as PRIORS
from distill.lab.truth import check_words
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


def prompts_of(asked: list[tuple[str, str, int]]) -> list[str]:
    return [world.caption(colour, kind, world.DIRECTIONS[view]) for colour, kind, view in asked]


def pictures_of(
    options: argparse.Namespace, prior: DiffusionPrior, prompts: list[str], seed: int, batch: int = 32
) -> Tensor:
    """Sample one picture in [0, 1] for each prompt, ``[prompts, 3, height, width]``."""
    g = torch.Generator().manual_seed(seed)
    made = []
    for start in tqdm(range(0, len(prompts), batch), "sampling"):
        some = prompts[start : start + batch]
        clip = None if prior.latent else 1.0
        x = sample(
            prior, some, generator=g, steps=options.steps, scale=options.scale, interval=options.interval,
            clip=clip,
        )  # fmt: skip
        made.append(prior.decode(x).clamp(0, 1).cpu())
    return torch.cat(made)


def judge_all(
    judge: Judge, images: Tensor, asked: list[tuple[str, str, int]], candidates: list[str]
) -> list[Verdict]:
    """The judge's verdict on each picture, its first caption of all candidates."""
    best = judge.rank(images, candidates)[:, 0].tolist()
    verdicts = []
    for image, guess, (colour, kind, direction) in zip(images, best, asked, strict=True):
        views = [world.caption(colour, kind, view) for view in world.DIRECTIONS]
        gap = abs(int(judge.rank(image[None], views)[0, 0]) - direction)
        right = candidates[guess] == world.caption(colour, kind)
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


def place(options: argparse.Namespace, **names: str) -> None:
    """Put each file that is written and has no place of its own into ``--work``, and make the folders of all of them.

    Args:
        options: with a ``work`` folder; a path that is None gets its place.
        **names: of the files, by option.
    """
    for option, name in names.items():
        path = getattr(options, option) or options.work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        setattr(options, option, path)


def check_together(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse options that do not go together, or are out of range, by ending the program."""
    if options.things is not None and (options.pack is None or options.things < 1):
        parser.error("--things is a number of samples of the things in --pack, and at least 1")
    if options.no_judge and (options.pack is None or options.judge):
        parser.error("--no-judge is for --pack, and takes no --judge")
    if (options.names or options.keep is not None) and (options.pack is None or options.no_judge):
        parser.error("--names and --keep are for --pack, and for a --judge that knows things")
    if options.keep is not None:
        named = options.prior not in PRIORS and (Path(options.prior) / NAMES).is_file()
        if not (0 < options.keep <= 1 and named):
            parser.error("--keep is a share in (0, 1], and --prior then a folder with a names.json")
    if not 0 <= options.interval[0] <= options.interval[1] <= 1:
        parser.error("--interval is two shares in [0, 1], the lower first")


def parse_options(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for the new ground-truth renders and the results"
    )
    parser.add_argument("--prior", default="embedded", help="'embedded', 'things' or a folder")
    parser.add_argument(
        "--per-pair", type=int, help="samples of each of the 128 pairs: 4, or 2 beside things"
    )
    parser.add_argument("--pack", type=Path, help="folder of the pictures of things: samples of them too")
    parser.add_argument(
        "--judge", type=Path, help="folder of another judge than the bundled `things`, for --pack"
    )
    parser.add_argument(
        "--no-judge", action="store_true", help="only of things, and only what they are nearest to"
    )
    parser.add_argument("--things", type=int, help="samples of things in all; one of each name by default")
    parser.add_argument(
        "--names",
        type=Path,
        help="a table to write: how many samples of each thing are right",
    )
    parser.add_argument(
        "--keep", type=float, metavar="SHARE",
        help="leave things out of the prior's names.json of whose samples a smaller share is right: by the judge, or by the nearest "
        "true picture, of that name or one that means the same",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--scale", type=float, default=3.0, help="classifier-free guidance scale")
    parser.add_argument(
        "--interval", type=float, nargs=2, default=(0.0, 1.0), metavar=("FROM", "TO"),
        help="shares of the timesteps between which guidance applies; all by default",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="one sample a pair, 15 steps, a small sheet")
    parser.add_argument("--sheet", type=Path, help="samples of the kinds; WORK/samples.png by default")
    parser.add_argument("--things-sheet", type=Path, help="samples of things; WORK/things.png by default")
    parser.add_argument("--table", type=Path, help="what was measured; WORK/prior.md by default")
    options = parser.parse_args(words)
    check_together(parser, options)
    if options.per_pair is None:
        options.per_pair = 2 if options.pack else 4
    if options.quick:
        options.per_pair, options.steps = 1, 15
        options.things = options.things or 64
    try:
        place(options, sheet="samples.png", things_sheet="things.png", table="prior.md")
    except OSError as error:
        parser.error(f"{error.filename} cannot be made: {error.strerror}; choose another folder")
    return options


def evaluate_kinds(
    options: argparse.Namespace, judge: Judge, prior: DiffusionPrior, candidates: list[str]
) -> str:
    """Sample all pairs of the world, draw the sheet of kinds, and return the tables."""
    dataset.build(options.work / "fresh", shapes_per_kind=4, seed=train_judge.FRESH_SEED)
    fresh = true_pictures(options.work / "fresh", options.per_pair, options.seed)
    truth = judge_all(judge, *fresh, candidates)
    asked = requests(options.per_pair)
    made = pictures_of(options, prior, prompts_of(asked), options.seed)
    verdicts = judge_all(judge, made, asked, candidates)
    directions = list(range(0, 16, 4 if options.quick else 2))
    colours = list(world.COLOURS)
    rows = [(colours[k % 8], kind, v) for k, kind in enumerate(world.KINDS) for v in directions]
    sheet = pictures_of(options, prior, prompts_of(rows), options.seed + 1)
    labels = [f"{colours[k % 8]} {kind}" for k, kind in enumerate(world.KINDS)]
    draw_sheet(sheet, labels, [world.DIRECTIONS[v] for v in directions], options.sheet)
    return f"{summary(truth, verdicts)}\n\n{table(verdicts)}\n"


def evaluate_names(
    options: argparse.Namespace,
    judge: Judge | None,
    prior: DiffusionPrior,
    pack: things.Pack,
    said: Sequence[captions.Meaning],
) -> str:
    """Sample things, draw 64 of the samples, and return the tables, without a judge only the share that is nearest to their name."""
    asked = evaluate_things.requests(pack.things, options.things or len(things.names(pack.things)))
    prompts = [one.prompt for one in asked]
    made = pictures_of(options, prior, prompts, options.seed + 2)
    shown = evaluate_things.chosen(len(asked))
    evaluate_things.draw_sheet(made[shown], [asked[index] for index in shown], options.things_sheet)
    plain = [index for index, one in enumerate(asked) if one.colour is None]
    near = evaluate_things.nearest_names(pack, made[plain]) if plain else []
    hits = [name == asked[index].name for name, index in zip(near, plain, strict=True)]
    told = f"Of {len(hits)} samples of things as they are, {share(hits)}% are nearest to a true picture of their name."
    if judge is None:
        rows = zip(plain, near, hits, strict=True)
        wrong = [f"{asked[index].name} ({name})" for index, name, hit in rows if not hit]
        return f"{told}\n\nThe others, and what they are nearest to: {', '.join(wrong) or 'none'}.\n"
    fresh = evaluate_things.true_pictures(pack, asked)
    truth, right = (evaluate_things.judge_right(judge, x, asked, said) for x in (fresh, made))
    counted = f"{evaluate_things.summary(asked, truth, right)}\n\n{told}"
    nearest: list[str | None] = [None] * len(asked)
    for index, name in zip(plain, near, strict=True):
        nearest[index] = name
    counts = learnt(asked, evaluate_things.told(judge, made, said), nearest)
    if options.names:
        write_counts(options.names, counts)
    if options.keep is not None:
        counted += f"\n\n{keep(Path(options.prior), counts, options.keep)}"
    return f"{counted}\n\n{evaluate_things.worst(asked, truth, right)}\n"


def learnt(
    asked: Iterable[evaluate_things.Request], *told: Iterable[str | None]
) -> dict[str, tuple[int, int]]:
    """Of each name, how many of its samples are right, and how many there are.

    Args:
        asked: of each sample.
        *told: what each sample is said to be, by the judge for one and by the nearest true picture for another, None where that
            is not known; a sample is right where one of these is its name, or what people call the same.
    """
    hits: dict[str, list[bool]] = defaultdict(list)
    for one, *names in zip(asked, *told, strict=True):
        hits[one.name].append(
            any(name is not None and (name == one.name or alike(name, one.name)) for name in names)
        )
    return {name: (sum(own), len(own)) for name, own in sorted(hits.items())}


def keep(folder: Path, counts: Mapping[str, tuple[int, int]], least: float) -> str:
    """Leave names out of a prior's ``names.json`` of whose samples less than a share are right; returns what was done.

    Names that were not sampled stay.
    """
    rows = read_names(folder / NAMES)
    shares = {name: right / count for name, (right, count) in counts.items()}
    kept = [row for row in rows if shares.get(row[0], 1.0) >= least]
    write_names(folder, kept)
    return f"{folder / NAMES} has {len(kept)} of {len(rows)} names: those with at least {least:.0%} of their samples right, or none made."


def write_counts(path: Path, counts: Mapping[str, tuple[int, int]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(
            [("name", "right", "samples"), *((name, *own) for name, own in counts.items())]
        )


def main() -> None:
    options = parse_options()
    pack = None if options.pack is None else things.read_pack(options.pack)
    judge = (
        None
        if options.no_judge
        else load_judge(folder=options.judge or SHIPPED["embedded" if pack is None else "things"])
    )
    said = captions.of(() if pack is None else pack.things)
    candidates = [captions.write(*meaning) for meaning in said]
    if judge:
        check_words(candidates, judge)
    prior = load_prior(options.prior, options.device)
    within = (
        ""
        if tuple(options.interval) == (0, 1)
        else " within {:g} to {:g} of the timesteps".format(*options.interval)
    )
    setup = f"{options.steps} DDIM steps, guidance scale {options.scale:g}{within}, seed {options.seed}, "
    parts = [setup + (f"judged among {len(candidates)} captions" if judge else "without a judge")]
    if pack is not None:
        parts.append(evaluate_names(options, judge, prior, pack, said))
        print(parts[-1], flush=True)
    if judge:
        parts.append(evaluate_kinds(options, judge, prior, candidates))
        print(parts[-1])
    options.table.write_text("\n\n".join(parts), encoding="utf-8")
    sheets = [options.sheet] if judge else []
    print(
        "wrote",
        ", ".join(map(str, [options.table, *sheets, *([] if pack is None else [options.things_sheet])])),
    )


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")

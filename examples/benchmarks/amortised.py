"""Benchmark of generators: what one network for a library makes of trained and of held-out prompts, beside runs of one prompt.

The library is the embedded world's: 112 pairs of a colour and a kind to learn, and 16 that are held out, from the prior's training
too. With --things, it is every name that ``prior=things`` knows, once: in a trained colour where it can be chosen, else as it is; held
out are 16 of the names, fewer of a small library, in the colour that the prior has not seen them in. The metrics are those of quality.py: the judge's R-precision at 1
among all captions, and silhouette IoU with the truth, of things with --archives alone. Each budget, in steps for each prompt, is a
training of its own, as it is for a single prompt; so the rows are the amortisation curve. With several losses and sizes of the
library, the rows say which losses scale (Ma et al. 2024, arXiv:2407.02040). An interrupted benchmark continues when started again.

    python examples/benchmarks/amortised.py --output ~/amortised --steps 25,50,100,200,400
    python examples/benchmarks/amortised.py --output ~/losses --losses sds,csd,vsd,asd --sizes 16,112 --steps 100 --singles 0
    python examples/benchmarks/amortised.py --output ~/library --things --archives ~/things --sizes 395 --steps 25
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
from measuring import table as format_table
from quality import KINDS, SIZE, make, measure, parse_value

import distill
from distill.conditions import prompt_library, prompts
from distill.contracts import Prior, View
from distill.embedded import things, vocabulary, world
from distill.lab.truth import Source, origin
from distill.run.assembly.initial import open_generator
from distill.run.assembly.scenes import look
from distill.run.journal import Interrupted
from distill.run.several.amortise import amortise

Row = dict[str, Any]
QUIET = {"log.tensorboard": False, "export.enabled": False}
#: Names that are held out in a colour, of a library of things.
HELD_OUT = 16


class Lists(NamedTuple):
    """A library: prompts to learn, prompts that are held out, and where their truths come from."""

    learnt: list[str]
    held_out: list[str]
    source: Source


def pairs(held_out: bool) -> list[str]:
    """Captions of the pairs that are held out from the prior's training, or of the others, kinds and colours taking turns."""
    colours, kinds = list(world.COLOURS), list(world.KINDS)
    turns = [
        (colours[(i + j) % len(colours)], kind) for i in range(len(colours)) for j, kind in enumerate(kinds)
    ]
    return [world.caption(*pair) for pair in turns if world.held_out(*pair) == held_out]


def kinds(size: int) -> Lists:
    """So many pairs of the embedded world, the first sixteen of fourteen kinds or more, and those that are held out."""
    return Lists(pairs(False)[:size], pairs(True), KINDS)


def known_names() -> tuple[str, ...]:
    """The things that ``prior=things`` knows."""
    known = vocabulary.of_prior("things")
    assert known is not None
    return known.things


def named(size: int, archives: Path | None) -> Lists:
    """So many names, each once, and at most ``HELD_OUT`` of them in the colour that is held out from the prior's training.

    Trained colours take turns, so that a colour is seen on many names, and a name in one colour. The names are in an order that is
    drawn once: a smaller library is the beginning of a larger one, and from about thirty names on, what is held out is the same.
    """
    known = vocabulary.of_prior("things")
    assert known is not None
    learnt, unseen, turns = [], [], cycle(world.COLOURS)
    for name in Random(0).sample(known.things, len(known.things))[:size]:
        article, paintable = known.names[name]
        if not paintable:
            learnt.append(things.caption(name, article))
            continue
        colour = next(each for each in turns if not things.held_out(each, name))
        learnt.append(things.caption(name, article, colour))
        kept = next(each for each in world.COLOURS if things.held_out(each, name))
        unseen.append(things.caption(name, article, kept))
    return Lists(learnt, unseen[:HELD_OUT], Source(archives, size=SIZE, fine=SIZE))


def train(folder: Path, lists: Lists, steps: int, loss: str, overrides: dict[str, Any]) -> Path:
    """Train a generator, or continue with it; returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "library.json"
    said = json.dumps({"train": lists.learnt, "held_out": lists.held_out}, indent=1) + "\n"
    if file.exists() and file.read_text() != said:
        raise ValueError(f"{folder} has another library; choose another --output")
    file.write_text(said)
    made, iterations = folder / "generator", steps * len(lists.learnt)
    if (made / "manifest.json").exists():
        return made
    every = max(iterations // 10, 1)
    told: dict[str, Any] = {
        "log.preview_every": every,
        "log.checkpoint_every": min(every, 500),
        **QUIET,
        **overrides,
    }
    return amortise(file, output_dir=made, guidance=loss, iterations=iterations, resume=made.exists(), **told)


def views_of(folder: Path, prior: Prior) -> Callable[[str], View]:
    """Returns what makes the scene of a prompt with a generator, and renders it."""
    generator = open_generator(folder, prior.device)

    def view(prompt: str) -> View:
        (told,) = prompt_library.embed(prior, [prompts.asked(prior, prompt)])
        return look(generator.scene_of(told), prior.device)

    return view


def measured(folder: Path, wanted: Sequence[str], prior: Prior, source: Source) -> list[Row]:
    """Measure a generator on some prompts, or read what was measured."""
    result = folder / "measured.json"
    rows: dict[str, Row] = json.loads(result.read_text()) if result.exists() else {}
    view = views_of(folder, prior)
    for prompt in wanted:
        if prompt not in rows or rows[prompt]["truth"] != origin(prompt, source):
            rows[prompt] = measure(view(prompt), prompt, source)[0]
            result.write_text(json.dumps(rows, indent=1) + "\n")
    return [rows[prompt] for prompt in wanted]


def mean(rows: Sequence[Row], key: str) -> float | None:
    """The mean of what is known; None if nothing is."""
    known = [row[key] for row in rows if row[key] is not None]
    return sum(known) / len(known) if known else None


def means(rows: Sequence[Row], group: str) -> Row:
    return {f"{group}_{key}": mean(rows, key) for key in ("r_precision", "iou")} | {group: len(rows)}


def compare(options: argparse.Namespace, loss: str, size: int, steps: int, prior: Prior) -> Row:
    """One row: a generator's figures on trained and held-out prompts, and those of runs of one prompt each."""
    overrides = dict(options.overrides)
    scene = {} if options.scene == "hyper_grid" else {"scene": options.scene}
    lists = named(size, options.archives) if options.things else kinds(size)
    name = f"{'things-' if options.things else ''}{options.scene}-{loss}-{size}-{steps}"
    folder = train(options.output / name, lists, steps, loss, overrides | scene)
    row: Row = {"scene": options.scene, "loss": loss, "size": size, "steps": steps}
    for group, wanted in (("trained", lists.learnt), ("held_out", lists.held_out)):
        row |= means(measured(folder, wanted[: options.measured], prior, lists.source), group)
    alone = []
    for prompt in lists.learnt[: options.singles]:
        own = options.output / "singles" / f"{loss}-{steps}" / prompt.replace(" ", "-")
        told = {"iterations": steps, "guidance": loss, **QUIET, **of_one(overrides)}
        alone.append(make(prompt, own, told, distill.generate, lists.source))
    return row | means(alone, "single")


def of_one(overrides: dict[str, Any]) -> dict[str, Any]:
    """The overrides that are not of the generator's scene."""
    return {name: value for name, value in overrides.items() if not name.startswith("scene")}


def shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def table(rows: Sequence[Row]) -> str:
    """Markdown: a line for each generator."""
    groups = ("trained", "held_out", "single")
    titles = [f"{group.replace('_', ' ')} {what}" for group in groups for what in ("R-precision@1", "IoU")]
    lines = [
        [
            row["scene"], row["loss"], str(row["size"]), str(row["steps"]),
            *(shown(row[f"{group}_{key}"]) for group in groups for key in ("r_precision", "iou")),
        ]
        for row in rows
    ]  # fmt: skip
    return format_table(["scene", "loss", "prompts", "steps a prompt", *titles], lines)


def numbers(text: str) -> list[int]:
    """Read whole numbers of at least 1, with commas between."""
    found = [int(each) for each in text.split(",")]
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"expected numbers of at least 1, got {text!r}")
    return found


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("amortised"))
    parser.add_argument("--scene", choices=("hyper_grid", "hyper_conv"), default="hyper_grid")
    parser.add_argument("--losses", type=lambda text: text.split(","), default=["asd"], metavar="A,B")
    parser.add_argument("--things", action="store_true", help="names of real objects, not the embedded world")
    parser.add_argument("--archives", type=Path, help="folder of the things' archives, for their true meshes")
    parser.add_argument(
        "--sizes", type=numbers, metavar="N,N", help="prompts to learn; by default all: 112, or every name"
    )
    parser.add_argument("--steps", type=numbers, default=[100], metavar="N,N", help="for each prompt")
    parser.add_argument(
        "--measured", type=int, default=16, help="trained prompts, and held-out ones, to measure"
    )
    parser.add_argument("--singles", type=int, default=16, help="of the trained prompts, as many runs of one")
    parser.add_argument(
        "--set", type=parse_value, nargs="*", default=[], metavar="KEY=VALUE", dest="overrides"
    )
    options = parser.parse_args()
    if options.archives and not options.things:
        parser.error("--archives is for --things")
    most = len(known_names() if options.things else pairs(False))
    options.sizes = options.sizes or [most]
    if max(options.sizes) > most:
        parser.error(f"--sizes are at most {most}, got {max(options.sizes)}")
    return options


def main() -> None:
    options = parse_options()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    prior = distill.load_prior("things" if options.things else "embedded", device)
    rows: list[Row] = []
    for loss in options.losses:
        for size in options.sizes:
            for steps in options.steps:
                rows.append(compare(options, loss, size, steps, prior))
                # Rewritten after each row, so that an interrupted benchmark still leaves its figures.
                (options.output / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
                (options.output / "results.md").write_text(table(rows) + "\n")
                print(table(rows[-1:]), flush=True)
    print(table(rows))


if __name__ == "__main__":
    try:
        main()
    except Interrupted as stopped:
        print(f"{stopped}; run this again to continue", file=sys.stderr)
        sys.exit(130)
    except ValueError as error:
        sys.exit(f"error: {error}")

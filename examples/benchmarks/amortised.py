"""Benchmark of generators: what one network for a library makes of trained and of held-out prompts, beside runs of one prompt.

The library is the embedded world's: 112 pairs of a colour and a kind to learn, and 16 that are held out, from the prior's training
too. The metrics are those of quality.py: the judge's R-precision at 1 among all captions, and silhouette IoU with the truth. Each
budget, in steps for each prompt, is a training of its own, as it is for a single prompt; so the rows are the amortisation curve.
With several losses and sizes of the library, the rows say which losses scale (Ma et al. 2024, arXiv:2407.02040). An interrupted
benchmark continues when started again.

    python examples/benchmarks/amortised.py --output ~/amortised --steps 25,50,100,200,400
    python examples/benchmarks/amortised.py --output ~/losses --losses sds,csd,vsd,asd --sizes 16,112 --steps 100 --singles 0
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from measuring import table as format_table
from quality import make, measure, parse_value

import distill
from distill.conditions import prompt_library, prompts
from distill.contracts import Prior, View
from distill.embedded import world
from distill.run.amortise import amortise
from distill.run.initial import open_generator
from distill.run.scenes import look

Row = dict[str, Any]
QUIET = {"log.tensorboard": False, "export.enabled": False}


def pairs(held_out: bool) -> list[str]:
    """Captions of the pairs that are held out from the prior's training, or of the others, kinds and colours taking turns."""
    colours, kinds = list(world.COLOURS), list(world.KINDS)
    turns = [
        (colours[(i + j) % len(colours)], kind) for i in range(len(colours)) for j, kind in enumerate(kinds)
    ]
    return [world.caption(*pair) for pair in turns if world.held_out(*pair) == held_out]


def spread(texts: Sequence[str], count: int) -> list[str]:
    """So many of some texts, evenly chosen."""
    return [texts[i * len(texts) // count] for i in range(min(count, len(texts)))]


def train(folder: Path, size: int, steps: int, loss: str, overrides: dict[str, Any]) -> Path:
    """Train a generator, or go on with it; returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "library.json"
    lists = {"train": pairs(False)[:size], "held_out": pairs(True)}
    file.write_text(json.dumps(lists, indent=1) + "\n")
    made, iterations = folder / "generator", steps * size
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


def measured(folder: Path, wanted: Sequence[str], prior: Prior) -> list[Row]:
    """Measure a generator on some prompts, or read what was measured."""
    result = folder / "measured.json"
    rows: dict[str, Row] = json.loads(result.read_text()) if result.exists() else {}
    view = views_of(folder, prior)
    for prompt in wanted:
        if prompt not in rows:
            rows[prompt] = measure(view(prompt), prompt)[0]
            result.write_text(json.dumps(rows, indent=1) + "\n")
    return [rows[prompt] for prompt in wanted]


def mean(rows: Sequence[Row], key: str) -> float | None:
    return sum(row[key] for row in rows) / len(rows) if rows else None


def means(rows: Sequence[Row], group: str) -> Row:
    return {f"{group}_{key}": mean(rows, key) for key in ("r_precision", "iou")} | {group: len(rows)}


def compare(options: argparse.Namespace, loss: str, size: int, steps: int, prior: Prior) -> Row:
    """One row: a generator's figures on trained and held-out prompts, and those of runs of one prompt each."""
    overrides = dict(options.overrides)
    scene = {} if options.scene == "hyper_grid" else {"scene": options.scene}
    folder = train(
        options.output / f"{options.scene}-{loss}-{size}-{steps}", size, steps, loss, overrides | scene
    )
    trained, held = pairs(False)[:size], pairs(True)
    row: Row = {"scene": options.scene, "loss": loss, "size": size, "steps": steps}
    row |= means(measured(folder, spread(trained, options.measured), prior), "trained")
    row |= means(measured(folder, spread(held, options.measured), prior), "held_out")
    alone = []
    for prompt in spread(trained, options.singles) if options.singles else []:
        own = options.output / "singles" / f"{loss}-{steps}" / prompt.replace(" ", "-")
        told = {"iterations": steps, "guidance": loss, **QUIET, **of_one(overrides)}
        alone.append(make(prompt, own, told, distill.generate))
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
    parser.add_argument(
        "--sizes", type=numbers, default=[112], metavar="N,N", help="prompts to learn, at most 112"
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
    if max(options.sizes) > len(pairs(False)):
        parser.error(f"--sizes are at most {len(pairs(False))}, got {max(options.sizes)}")
    return options


def main() -> None:
    options = parse_options()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    prior = distill.load_prior("embedded", device)
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
    except ValueError as error:
        sys.exit(f"error: {error}")

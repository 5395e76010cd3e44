"""Benchmark of the Janus problem: kinds of object with a front, made through a prior of single pictures and through one of four views.

The prompts are those of quality.py whose kind has a front, and the losses are compared as in ``distill.compare``: uniform timesteps,
the same steps and pictures in each. Of every asset, the script measures the Janus rate (the share of the three views from behind
that look more like a front to the judge), R-precision at 1, the silhouette IoU with the truth, and the mean distance between the
judge's features of neighbouring views, beside the truth's. An interrupted run continues when started again; several processes share
the work.

    python examples/benchmarks/janus.py --output ~/janus
    python examples/benchmarks/janus.py ~/views/prior --output ~/janus --losses sds --seeds 1 --part 1/2
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from measuring import finished, share
from measuring import table as format_table
from quality import PROMPTS, measured_with, save_strip

import distill
from distill.contracts import View
from distill.embedded import shapes
from distill.files.atomic import write_atomic
from distill.lab.comparison import figures
from distill.lab.comparison.methods import METHODS
from distill.lab.truth import SHAPES, asked, best_shape, judge_of, matches, truths
from distill.priors.preset import told_cameras

Made = dict[str, Any]
#: Prompts of kinds that look different from in front and behind.
ORIENTED = tuple(prompt for prompt in PROMPTS if asked(prompt, SHAPES).name in shapes.ORIENTED)
LOSSES = ("sds", "csd", "asd", "vsd")
#: A row's figures: title and key.
FIGURES = (
    ("Janus rate", "janus"),
    ("R-precision@1", "r_precision"),
    ("IoU", "iou"),
    ("neighbouring views", "neighbours"),
    ("of the truth", "true_neighbours"),
)


class Cell(NamedTuple):
    """One asset."""

    way: str
    loss: str
    prompt: str
    seed: int

    def folder(self, root: Path) -> Path:
        return root / self.way / self.loss / f"{self.prompt.replace(' ', '-')}-{self.seed}"


def ways(prior: str) -> dict[str, Made]:
    """Options of each way to predict: by the text prior, and by a multi-view prior with four views and with one."""
    return {
        "single": {"prior": "embedded"},
        "four": {"prior": prior},
        "one": {"prior": prior, "prior_options.views": 1},
    }


def measure(view: View, prompt: str) -> tuple[Made, torch.Tensor]:
    """Figures of one asset; returns its true front as well, ``[3, size, size]``."""
    judge = judge_of(SHAPES, [prompt])
    rgb, opacity = figures.pictures_of(view)
    best = best_shape(matches(view, truths(prompt, SHAPES), rgb, opacity))
    made = {
        "janus": figures.janus(judge, rgb, best.truth, best.offset_deg),
        "r_precision": figures.judge_scores(judge, rgb, asked(prompt, SHAPES).caption)["r_precision"],
        "iou": best.iou,
        "neighbours": figures.neighbours(judge, rgb),
        "true_neighbours": figures.neighbours(judge, best.truth.rgb),
        **measured_with(prompt, SHAPES),
    }
    return made, best.truth.rgb[0]


def make(cell: Cell, root: Path, options: Made) -> Made:
    """Make and measure one asset, or read the measurement of an earlier run, if the judge is the same."""
    folder = cell.folder(root)
    result, own = folder / "janus.json", folder / "asset"
    made: Made | None = finished(result, options, measured_with(cell.prompt, SHAPES))
    if made is not None:
        return made
    told = {"export.enabled": False, "log.tensorboard": False, **options}
    asset = distill.generate(
        cell.prompt, output_dir=str(own), resume=own.exists(), seed=cell.seed, **METHODS[cell.loss] | told
    )
    measured, front = measure(asset.view, cell.prompt)
    save_strip(asset.view, front, folder / "strip.png")
    made = {**cell._asdict(), "overrides": options, "seconds": asset.manifest["seconds"]["train"], **measured}
    write_atomic(result, json.dumps(made, indent=1) + "\n")
    return made


def mean(rows: Iterable[Mapping[str, Any]], key: str) -> str:
    """The mean over prompts of the mean over seeds, with its standard error over prompts."""
    of: dict[str, list[float]] = {}
    for row in rows:
        of.setdefault(row["prompt"], []).append(row[key])
    means = torch.tensor([sum(values) / len(values) for values in of.values()])
    error = f" ± {means.std() / len(means) ** 0.5:.3f}" if len(means) > 1 else ""
    return f"{means.mean():.3f}{error}"


def table(rows: list[Made]) -> str:
    """Markdown: a line for each loss and way."""
    of: dict[tuple[str, str], list[Made]] = {}
    for row in rows:
        of.setdefault((row["loss"], row["way"]), []).append(row)
    lines = [
        [loss, way, str(len(found)), *(mean(found, key) for _, key in FIGURES)]
        for (loss, way), found in of.items()
    ]
    return format_table(["loss", "prior", "assets", *(title for title, _ in FIGURES)], lines)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "prior", nargs="?", default="views", help="the bundled prior of four views, or a folder"
    )
    parser.add_argument("--output", type=Path, default=Path("janus"))
    parser.add_argument(
        "--losses", type=lambda text: text.split(","), default=["sds", "csd", "asd"], metavar="A,B"
    )
    parser.add_argument("--ways", type=lambda text: text.split(","), metavar="A,B", help="only these rows")
    parser.add_argument("--prompts", type=int, default=len(ORIENTED), help="only the first so many")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--part", type=share, default=(1, 1), help="k/n: the k-th of n shares of the work")
    options = parser.parse_args()
    if unknown := [loss for loss in options.losses if loss not in LOSSES]:
        parser.error(f"--losses are {', '.join(LOSSES)}, got {', '.join(unknown)}")
    if not told_cameras(options.prior):
        parser.error(f"expected a prior of four views, whose network is given cameras, got {options.prior}")
    known = ways(options.prior)
    options.ways = options.ways or list(known)
    if unknown := [way for way in options.ways if way not in known]:
        parser.error(f"--ways are {', '.join(known)}, got {', '.join(unknown)}")
    if not 1 <= options.prompts <= len(ORIENTED) or min(options.seeds, options.iterations) < 1:
        parser.error(f"--prompts is 1 to {len(ORIENTED)}, and --seeds and --iterations are at least 1")
    return options


def main() -> None:
    options = parse_options()
    known, (number, parts) = ways(options.prior), options.part
    cells = [
        Cell(way, loss, prompt, seed)
        for seed in range(options.seeds)
        for loss in options.losses
        for prompt in ORIENTED[: options.prompts]
        for way in options.ways
    ]
    told = {way: {"iterations": options.iterations, **known[way]} for way in options.ways}
    for cell in cells[number - 1 :: parts]:
        made = make(cell, options.output, told[cell.way])
        print(
            f"{', '.join(map(str, cell))}: Janus {made['janus']:.2f}, R {made['r_precision']:.2f}", flush=True
        )
    found = [cell.folder(options.output) / "janus.json" for cell in cells]
    rows = [json.loads(path.read_text()) for path in found if path.exists()]
    write_atomic(options.output / "results.md", table(rows) + "\n")
    print(table(rows))


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")

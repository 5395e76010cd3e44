"""Compare losses on the embedded prior: the same prompts, seeds and budget, measured against the ground truth.

An interrupted run continues when started again; run one command for each --part to use several cores. --claims adds the
methods that test the papers' claims. --exact uses the exact prior of each prompt instead of the network (without VSD,
which trains one). --things compares SDS at two scales, CSD, ASD and VSD, each with and without DreamTime's timesteps, on
names of real objects with several variants, for a prior that knows them. --pictures N also makes up to four objects from one
picture each, through the embedded novel-view model; --prompts 0 leaves the prompts out.
    python examples/benchmarks/compare.py --output ~/comparison --methods sds csd asd --prompts 4 --seeds 2
    python examples/benchmarks/compare.py --output ~/variants --things --archives ~/things --seeds 3 --iterations 300 --part 1/2
"""

from __future__ import annotations

import argparse
import csv
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from measuring import share
from pictured import OBJECTS, THROUGH, compare_pictures

import distill
from distill.devices import pick_device
from distill.embedded.exact import exact_prior
from distill.files.paths import user_path
from distill.lab.comparison.methods import METHODS, MORE_PROMPTS, ON_THINGS, PROMPTS, THINGS, VARIANTS
from distill.lab.truth import Source, check, judge_of
from distill.run.journal import Interrupted


def parse_options(every: Mapping[str, Any]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("comparison"))
    known = list(dict.fromkeys([*every, *THROUGH]))
    parser.add_argument("--methods", nargs="+", choices=known)
    parser.add_argument("--claims", action="store_true", help="all methods and variants, claims judged")
    parser.add_argument("--exact", action="store_true", help="on each prompt's exact prior")
    parser.add_argument("--things", action="store_true", help=f"on {len(THINGS)} names of real objects")
    parser.add_argument("--archives", type=Path, help="folder of the things' archives, for their true meshes")
    parser.add_argument("--pack", type=Path, help="folder of their pictures, where there are no archives")
    parser.add_argument("--judge", type=Path, help="folder of a judge that was trained on things")
    parser.add_argument("--prior", help="another bundled prior, or a folder")
    parser.add_argument(
        "--prompts", type=int, help="the first so many, of 16 or of the things; 0 for pictures alone"
    )
    parser.add_argument(
        "--pictures",
        type=int,
        default=0,
        help="also make the first so many objects from a picture, at most 4",
    )
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--budget", default="steps", choices=("steps", "calls"))
    parser.add_argument("--part", type=share, default=(1, 1), help="k/n: the k-th of n shares of the work")
    options = parser.parse_args()
    if options.prompts is None:
        options.prompts = len(THINGS) if options.things else len(PROMPTS)
    if min(options.prompts, options.seeds, options.iterations) < 1 and not options.pictures:
        parser.error("--prompts, --seeds and --iterations must be at least 1")
    if options.exact and (options.things or options.prior):
        parser.error(
            "--exact has a prior of its own for each prompt of the world; leave out --things and --prior"
        )
    if (options.archives or options.pack or options.judge) and not options.things:
        parser.error("--archives, --pack and --judge are for --things")
    of_pictures = [name for name in options.methods or () if name not in every]
    if of_pictures and not options.pictures:
        parser.error(f"{', '.join(of_pictures)}: for pictures alone; add --pictures N, or leave it out")
    if options.pictures and not through(options, every):
        parser.error("none of --methods makes objects from pictures; choose others, or leave out --pictures")
    if options.prompts and not of_words(options, every):
        parser.error(
            "none of --methods is for prompts (--exact leaves VSD out); choose others, or add --pictures N --prompts 0"
        )
    for name in ("output", "archives", "pack", "judge"):
        if (path := getattr(options, name)) is not None:
            setattr(options, name, user_path(path))
    return options


def of_words(options: argparse.Namespace, every: Mapping[str, Any]) -> dict[str, Any]:
    """The chosen methods that prompts are compared by."""
    usual = ON_THINGS if options.things else {**METHODS, **VARIANTS} if options.claims else METHODS
    chosen = options.methods or list(usual)
    return {name: every[name] for name in chosen if name in every and not (options.exact and "vsd" in name)}


def through(options: argparse.Namespace, every: Mapping[str, Any]) -> dict[str, Any]:
    """The chosen methods that objects are made by from pictures; those that differ in the scale of text alone have no counterpart."""
    chosen = options.methods or list(of_words(options, every))
    return {name: wanted for name, wanted in THROUGH.items() if options.claims or name in chosen}


def main() -> None:
    every = {**METHODS, **VARIANTS, **ON_THINGS}
    options = parse_options(every)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.pictures:
        print(
            compare_pictures(
                through(options, every),
                OBJECTS[: options.pictures],
                output_dir=options.output,
                iterations=options.iterations,
            ).read_text()
        )
    if not options.prompts:
        return
    more: dict[str, Any] = {"prior": exact_prior, "scene.background": "white"} if options.exact else {}
    source = Source(options.archives, options.pack, judge=options.judge)
    prompts = (THINGS if options.things else (*PROMPTS, *MORE_PROMPTS))[: options.prompts]
    if options.prior:
        check(prompts, source, judge_of(source, prompts))
        more["prior"] = distill.load_prior(options.prior, device=pick_device("auto"))
    report = distill.compare(
        of_words(options, every),
        prompts,
        range(options.seeds),
        output_dir=options.output,
        iterations=options.iterations,
        budget=options.budget,
        part=options.part,
        source=source,
        **more,
    )
    for claim in csv.DictReader((options.output / "claims.csv").open()):
        print(f"{claim['verdict']}: {claim['claim']}: {claim['numbers']}")
    print(report)


if __name__ == "__main__":
    try:
        main()
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(130)
    except ValueError as error:
        sys.exit(f"error: {error}")

"""Compare losses on the embedded prior: the same prompts, seeds and budget, measured against the ground truth.

An interrupted run continues when started again; run one command for each --part to use several cores. --claims adds the
methods that test the papers' claims. --exact uses the exact prior of each prompt instead of the network (without VSD,
which trains one).
    python compare.py --output ~/comparison --methods sds csd asd --prompts 4 --seeds 2
"""

from __future__ import annotations

import argparse
import csv
import logging
import sys
from pathlib import Path
from typing import Any

import distill
from distill.embedded.exact import exact_prior
from distill.lab.comparison.pictured import OBJECTS, THROUGH, compare_pictures
from distill.lab.comparison.run import METHODS, MORE_PROMPTS, PROMPTS, VARIANTS
from distill.lab.comparison.shares import share
from distill.run.journal import Interrupted


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("comparison"))
    every = {**METHODS, **VARIANTS}
    known = list(dict.fromkeys([*every, *THROUGH]))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=known)
    parser.add_argument("--claims", action="store_true", help="all methods and variants, claims judged")
    parser.add_argument("--exact", action="store_true", help="on each prompt's exact prior")
    parser.add_argument(
        "--prompts",
        type=int,
        default=len(PROMPTS),
        help="the first so many, at most 16; 0 for pictures alone",
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
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    chosen = every if options.claims else options.methods
    if min(options.prompts, options.seeds, options.iterations) < 1 and not options.pictures:
        parser.error("--prompts, --seeds and --iterations must be at least 1")
    if options.pictures:
        # Methods that differ in the scale of text alone have no counterpart.
        through = {name: wanted for name, wanted in THROUGH.items() if options.claims or name in chosen}
        print(
            compare_pictures(
                through,
                OBJECTS[: options.pictures],
                output_dir=options.output,
                iterations=options.iterations,
            ).read_text()
        )
    if not options.prompts:
        return
    exact: dict[str, Any] = {"prior": exact_prior, "scene.background": "white"} if options.exact else {}
    report = distill.compare(
        {name: every[name] for name in chosen if name in every and not (options.exact and "vsd" in name)},
        (*PROMPTS, *MORE_PROMPTS)[: options.prompts],
        range(options.seeds),
        output_dir=options.output,
        iterations=options.iterations,
        budget=options.budget,
        part=options.part,
        **exact,
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

"""Compare losses on the embedded prior: the same prompts, seeds and budget, measured against the truth.

Interrupt and rerun to go on.
    python compare.py --output ~/comparison --methods sds csd asd --prompts 4 --seeds 2
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import distill
from distill.comparison.run import METHODS, PROMPTS


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("comparison"))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), help="only the first so many")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--budget", default="steps", choices=("steps", "calls"))
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    report = distill.compare(
        {name: METHODS[name] for name in options.methods},
        PROMPTS[: options.prompts],
        range(options.seeds),
        output_dir=options.output,
        iterations=options.iterations,
        budget=options.budget,
    )
    print(report)


if __name__ == "__main__":
    main()

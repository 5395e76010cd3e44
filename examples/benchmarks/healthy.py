"""How far finished runs stayed from what the watchdog stops, from what they left: metrics of each step, and previews.

    python examples/benchmarks/quality.py --output ~/quality
    python examples/benchmarks/healthy.py ~/quality --output healthy.md

Every folder with ``metrics.jsonl`` below the given ones is a run. For each: the extremes of the mean opacity over all steps, the smallest
contrast of its previews (the largest difference within a picture of any channel, of the picture where it is largest), and the longest time,
in steps, that its opacity alone was what ``distill.run.watchdog`` calls empty or full; a run is stopped after 100 of them, or a twentieth.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from measuring import table
from PIL import Image

from distill.files.atomic import write_atomic
from distill.run.watchdog import COLOUR, EMPTY, FULL, Sight, kind_of

TITLES = ("run", "steps", "least opacity", "most opacity", "least contrast", "steps found wrong")


def longest(opacities: list[float]) -> int:
    """The most steps in a row whose mean opacity is of the same kind of collapse."""
    most, run, before = 0, 0, ""
    for step, opacity in enumerate(opacities):
        kind = kind_of(Sight(step, opacity, outline=1.0, contrast=1.0))
        run = run + 1 if kind and kind == before else bool(kind)
        most, before = max(most, run), kind
    return most


def contrast(path: Path) -> float:
    """The contrast of a preview's pictures, which are 64 pixels wide and high."""
    sheet = np.asarray(Image.open(path).convert("RGB"), float) / 255
    tiles = sheet.reshape(sheet.shape[0] // 64, 64, sheet.shape[1] // 64, 64, 3)
    return float((tiles.max((1, 3)) - tiles.min((1, 3))).max())


def measure(folder: Path) -> list[str]:
    """A run's row."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    said = [json.loads(line)["opacity"] for line in lines]
    opacities = [float("nan") if opacity is None else float(opacity) for opacity in said]
    seen = [contrast(path) for path in folder.glob("previews/step-*.png")]
    name = folder.parent.name if folder.name == "asset" else folder.name
    figures = [min(opacities), max(opacities), min(seen, default=float("nan"))]
    return [name, str(len(opacities)), *(f"{each:.3g}" for each in figures), str(longest(opacities))]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, help="a Markdown file for the table")
    given = parser.parse_args()
    runs = sorted({path.parent for folder in given.folders for path in folder.rglob("metrics.jsonl")})
    if not runs:
        parser.error(
            f"no run with metrics.jsonl in {', '.join(map(str, given.folders))}; give folders of runs"
        )
    text = table(TITLES, [measure(run) for run in runs])
    print(text)
    print(f"{len(runs)} runs; empty is below {EMPTY}, full above {FULL}, one colour below {COLOUR:.3f}")
    if given.output:
        write_atomic(given.output, text + "\n")


if __name__ == "__main__":
    main()

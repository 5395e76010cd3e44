"""Search each loss's options on the embedded prior: five settings, the same prompts and steps for every loss.

The prompts are of kinds that the comparison of losses does not use. A setting's score is the mean of R-precision and
silhouette IoU; the best one is adopted if it beats the defaults by more than 0.02. An interrupted run continues when started
again.
    python examples/embedded/tune_guidance.py --output ~/tuning --losses csd asd
"""

from __future__ import annotations

import argparse
import csv
import logging
import statistics
from pathlib import Path
from typing import Any

import distill
from distill.files.atomic import write_atomic
from distill.lab.comparison.report import as_csv

PROMPTS = ("a blue robot", "a red table", "a purple snowman")
SEARCH: dict[str, list[dict[str, Any]]] = {
    "sds": [{"scale": scale} for scale in (1, 2, 4, 7.5, 20)],
    "csd": [
        {},
        {"weighting": "uniform"},
        {"weighting": "fantasia3d"},
        {"empty": -0.9, "random": -0.1},
        {"empty": -0.7, "random": -0.3},
    ],
    "asd": [
        {},
        {"scale": 4},
        {"scale": 2},
        {"scale": 4, "eta": 0.3},
        {"scale": 2, "eta": 0.3},
    ],
    "vsd": [
        {},
        {"learning_rate": 1e-3, "warmup": 50},
        {"scale": 2, "learning_rate": 1e-3, "warmup": 50},
        {"scale": 4, "learning_rate": 1e-3, "warmup": 50},
        {"scale": 2, "learning_rate": 1e-2, "warmup": 50},
    ],
    "nfsd": [{}, {"scale": 4}, {"scale": 2}, {"scale": 2, "threshold": 0.4}, {"weighting": "uniform"}],
    "ism": [
        {},
        {"scale": 4},
        {"scale": 2},
        {"scale": 2, "interval": 0.16},
        {"scale": 2, "inversion_steps": 2},
    ],
    "sdi": [
        {},
        {"scale": 2, "inversion_scale": -2},
        {"inversion_steps": 4},
        {"scale": 2, "inversion_scale": -2, "inversion_steps": 4},
        {"scale": 2, "inversion_scale": 1, "inversion_steps": 4},
    ],
}
#: A loss that needs a negative prompt gets one in the manner of its authors.
SHARED: dict[str, dict[str, Any]] = {"nfsd": {"negative_prompt": "unrealistic, blurry, low quality, ugly"}}


def search(loss: str, prior: Any, root: Path, iterations: int) -> list[dict[str, Any]]:
    """Return one line per setting, the best first."""
    methods = {
        " ".join(f"{key}={value}" for key, value in setting.items()) or "defaults": {
            "guidance": loss,
            **SHARED.get(loss, {}),
            **{f"guidance.{key}": value for key, value in setting.items()},
        }
        for setting in SEARCH[loss]
    }
    # What is tuned already must not stand in for the signature's own defaults.
    untuned: dict[str, Any] = {"tuned/guidance": "none"}
    distill.compare(
        methods,
        PROMPTS,
        (0,),
        output_dir=root / loss,
        prior=prior,
        iterations=iterations,
        measure_every=iterations,
        **untuned,
    )
    lines = []
    with (root / loss / "results.csv").open() as file:
        cells = list(csv.DictReader(file))
    for name in methods:
        own = [cell for cell in cells if cell["method"] == name]
        r, iou = (statistics.fmean(float(cell[key]) for cell in own) for key in ("r_precision", "iou"))
        seconds = statistics.fmean(float(cell["seconds"]) for cell in own)
        lines.append(
            {
                "loss": loss,
                "setting": name,
                "score": (r + iou) / 2,
                "r_precision": r,
                "iou": iou,
                "seconds": seconds,
            }
        )
    return sorted(lines, key=lambda line: -line["score"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("tuning"))
    parser.add_argument("--losses", nargs="+", default=list(SEARCH), choices=list(SEARCH))
    parser.add_argument("--iterations", type=int, default=200)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    prior = distill.load_prior()
    for loss in options.losses:
        lines = search(loss, prior, options.output, options.iterations)
        write_atomic(options.output / f"{loss}.csv", as_csv(lines))
        for line in lines:
            print(
                f"{loss}: {line['setting']}: R {line['r_precision']:.3f}, IoU {line['iou']:.3f}", flush=True
            )


if __name__ == "__main__":
    main()

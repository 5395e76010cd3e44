"""Ablation of Efficient-3DiM: its Table 1, Fig. 6 and Fig. 7 on a small scale, on the embedded world.

Every cell is a training run from the embedded prior on the same pairs, evaluated on held-out pairs of colour and kind. An
interrupted run continues when started again; run one command for each --part to use several cores.

    distill-views render --world 10 renders --size 64 --fov 40 40 --distance 3.0 3.4 --elevation -10 60
    python embedded/train_encoder.py --renders renders --work encoder
    python ablate_novelview.py --renders renders --encoder encoder/encoder --output ablation
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import re
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from distill.embedded.judge import SHIPPED as JUDGE
from distill.files.atomic import write_atomic
from distill.lab.comparison.shares import share
from distill.lab.novel_view.ablation import FLAT, LAWS, ROWS, law_name, write_report
from distill.lab.novel_view.evaluate import choose_pairs, evaluate
from distill.lab.novel_view.train import TrainConfig, open_views, train
from distill.priors.novel_view.pipeline import NovelViewPipeline
from distill.priors.source import EMBEDDED
from distill.run.journal import Interrupted

#: What short trainings have beside their timesteps.
SHORT = {"encoder": "dino", "warmup": 50}


def cells(options: argparse.Namespace) -> Iterator[tuple[str, int, dict[str, Any], int]]:
    """Yield name, seed, special settings and updates of every training run."""
    for seed in range(options.seeds):
        for name, special in ROWS.items():
            yield name, seed, special, options.updates
        for mean, std in LAWS:
            law = {"mean": mean / 1000, "std": std / 1000, **SHORT}
            yield law_name(mean, std), seed, law, options.short
        yield FLAT, seed, {"flat": True, **SHORT}, options.short


def config_of(
    options: argparse.Namespace, seed: int, special: dict[str, Any], updates: int, folder: Path
) -> TrainConfig:
    """Return the embedded recipe with a cell's special settings."""
    ConfigStore.instance().store(name="novelview_schema", node=TrainConfig)
    with initialize_config_module("distill.conf.novelview", version_base="1.3"):
        recipe: Any = OmegaConf.to_container(compose("train", overrides=["recipe=embedded"]))
    encoders = {"clip": str(JUDGE), "dino": str(options.encoder)}
    said = dict(special, encoder=encoders[special["encoder"]])
    if said.pop("flat", False):
        said["final_rate"] = recipe["learning_rate"]
    every = {
        "data": str(options.renders), "init": str(EMBEDDED), "output_dir": str(folder), "seed": seed,
        "iterations": updates, "validate_every": updates // (6 if updates > options.short else 3), "validation_pairs": 256,
        "validation_samples": 64, "checkpoint_every": updates // 5, "keep_checkpoints": 1, "tracker": "none",
        "resume": True,
    }  # fmt: skip
    return TrainConfig(**(recipe | every | said))


def run_cell(
    options: argparse.Namespace, name: str, seed: int, special: dict[str, Any], updates: int
) -> None:
    """Train and evaluate, unless that was done before."""
    folder = options.output / "cells" / f"{re.sub('[^a-zA-Z0-9]+', '-', name).lower()}-{seed}"
    if (folder / "record.json").exists():
        return
    config = config_of(options, seed, special, updates, folder)
    pipeline = NovelViewPipeline.load(train(config))
    _, held_out = open_views(config).split(config.held_out)
    pairs = choose_pairs(held_out, 1)[:: options.thin]
    draw = partial(draw_views, pipeline)
    summary = evaluate(draw, held_out, pairs, folder / "evaluation", progress=False)
    curve = [json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines()]
    record = {
        "name": name, "seed": seed, "updates": updates, "batch": config.batch, "figures": summary["figures"],
        "validation": curve,
    }  # fmt: skip
    write_atomic(folder / "record.json", json.dumps(record, indent=1) + "\n")
    shutil.rmtree(folder / "checkpoints")
    shutil.rmtree(folder / "model")


def draw_views(pipeline: NovelViewPipeline, rgb: Any, pose: Any, generator: torch.Generator) -> Any:
    return pipeline(rgb, pose, generator=generator, steps=20)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--renders", type=Path, required=True)
    parser.add_argument("--encoder", type=Path, required=True, help="of train_encoder.py")
    parser.add_argument("--output", type=Path, default=Path("ablation"))
    parser.add_argument("--updates", type=int, default=1200, help="of a row of Table 1")
    parser.add_argument("--short", type=int, default=300, help="updates of a law of Fig. 6")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each row")
    parser.add_argument("--thin", type=int, default=2, help="measure on every n-th held-out object")
    parser.add_argument("--part", type=share, default=(1, 1), help="k/n: the k-th of n shares of the work")
    parser.add_argument("--only", default="", help="cells whose name holds this text")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    first, shares = options.part
    wanted = [cell for cell in cells(options) if options.only in cell[0]]
    for number, cell in enumerate(wanted):
        if number % shares == first - 1:
            print(f"{number + 1} of {len(wanted)}: {cell[0]}, seed {cell[1]}", flush=True)
            run_cell(options, *cell)
    report = write_report(options.output)
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

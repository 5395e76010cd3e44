"""Measure the time that mixed precision and cached features save in novel-view training, in one run.

It compares an update in float32 that encodes its input pictures, the same in bfloat16, and with cached features, as
``distill.lab.novel_view.stages`` makes them for the paper's design. The network is initialised from a prior, by default the
embedded one. Pictures are kept in memory, so disk access is not timed.

    python examples/benchmarks/novelview_training.py --output ~/ablation    # also writes costs.json, for the ablation's report
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from distill.conditions.picture import EMBEDDED
from distill.embedded.vocabulary import SHIPPED
from distill.files.atomic import write_atomic
from distill.lab.novel_view import memory, stages
from distill.lab.novel_view.start import from_prior
from distill.priors.novel_view.features import load_encoder

#: Objects of noise, and pictures of each.
OBJECTS, VIEWS = 32, 4


def noise(size: int, device: str) -> memory.Store:
    """Pictures of noise and cameras; what is on them takes no time."""
    g = torch.Generator().manual_seed(0)
    pictures = torch.randint(256, (OBJECTS * VIEWS, 3, size, size), generator=g, dtype=torch.uint8)
    positions = torch.randn(OBJECTS * VIEWS, 3, generator=g)
    first = torch.arange(OBJECTS + 1) * VIEWS
    return memory.Store(pictures, positions, first, tuple(map(str, range(OBJECTS)))).to(device)


def main(words: Sequence[str] | None = None) -> None:
    """Of the command line, or of these words."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--init", type=Path, default=SHIPPED["embedded"])
    parser.add_argument("--encoder", type=Path, default=EMBEDDED / "image_encoder")
    parser.add_argument("--size", type=int, default=64, help="of the pictures, pixels")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="folder for costs.json")
    options = parser.parse_args(words)
    device = torch.device(options.device)
    encoder = load_encoder(options.encoder, device=device)
    pipeline = from_prior(options.init, encoder, turn=None, device=device)
    store = noise(options.size, options.device)
    live, cached = memory.Live(store, encoder), memory.encoded(store, encoder)
    recipe = stages.UNetRecipe(batch=options.batch, bf16=False)
    mixed = replace(recipe, bf16=True)
    ways: dict[str, tuple[memory.Encodings, stages.UNetRecipe]] = {
        "plain": (live, recipe),
        "mixed": (live, mixed),
        "cached": (cached, mixed),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    stage = stages.unet_stage(pipeline, recipe, stages.Pace(updates=10**9))

    def once(stage: stages.Stage, loss: Tensor) -> bool:
        return True

    for number in range(options.rounds + 2):
        for name, (seen, chosen) in ways.items():
            begin = clock(device)
            stages.fit_unet(stage, pipeline, seen, chosen, once)
            if number >= 2:  # the first ones set things up
                taken[name].append(1000 * (clock(device) - begin))
    costs = {name: statistics.median(values) for name, values in taken.items()}
    where = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads"
    )
    print(f"{where}; {options.batch} pairs of {options.size} x {options.size} pixels an update")
    for name, cost in costs.items():
        print(
            f"{name:>8} {cost:8.1f} ms  {1 - cost / costs['plain']:6.1%} saved  {1000 * options.batch / cost:6.1f} pairs/s"
        )
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        write_atomic(options.output / "costs.json", json.dumps({**costs, "hardware": where}, indent=1) + "\n")


def clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()

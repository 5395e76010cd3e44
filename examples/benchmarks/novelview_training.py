"""Measure the time that mixed precision and cached features save in novel-view training, in one run.

It compares an update in float32 that encodes its input pictures, the same in half precision, and with cached features. The
network is initialised from a prior, by default the embedded one. Pictures are kept in memory, so disk access is not timed.
    python novelview_training.py --output ~/ablation    # also writes costs.json, for the ablation's report
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from distill.conditions.picture import EMBEDDED
from distill.files.atomic import write_atomic
from distill.lab.novel_view.cache import build_cache
from distill.lab.novel_view.pairs import Pairs
from distill.lab.novel_view.train import (
    Samples,
    TrainConfig,
    collate,
    loss_of,
    make_optimiser,
    make_sampler,
    open_pipeline,
)
from distill.lab.novel_view.views import Views
from distill.priors.novel_view.features import load_encoder
from distill.priors.source import EMBEDDED as PRIOR


def pictures(size: int, uid: str, index: int) -> tuple[Tensor, Tensor]:
    """A picture of noise and a camera; what is on it takes no time."""
    g = torch.Generator().manual_seed(100 * int(uid) + index)
    return torch.rand(3, size, size, generator=g), torch.randn(3, generator=g)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--init", type=Path, default=PRIOR)
    parser.add_argument("--encoder", type=Path, default=EMBEDDED / "image_encoder")
    parser.add_argument("--size", type=int, default=64, help="of the pictures, pixels")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="folder for costs.json")
    options = parser.parse_args()
    device = torch.device(options.device)
    config = TrainConfig(
        init=str(options.init), encoder=str(options.encoder), size=options.size, batch=options.batch
    )
    encoder = load_encoder(options.encoder, device=device)
    pipeline = open_pipeline(config, encoder)
    pipeline.model.to(device)
    if pipeline.vae is not None:
        pipeline.vae.to(device)
    optimiser, _ = make_optimiser(pipeline.model, config)
    sampler = make_sampler(config, pipeline.scheduler.config.num_train_timesteps)
    views = Views([str(number) for number in range(32)], 4, partial(pictures, options.size))

    with tempfile.TemporaryDirectory() as folder:
        cache = build_cache(views, encoder, Path(folder), progress=False)
        pairs = Pairs(views, 0, 2**31)

        def update(mixed: bool, cached: bool, start: int) -> None:
            samples = Samples(pairs, cache if cached else None)
            batch = collate([samples[start + i] for i in range(options.batch)])
            with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
                loss = loss_of(pipeline, pipeline.model, batch, sampler, config, 0.0)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()

        ways: dict[str, Callable[[int], None]] = {
            "plain": partial(update, False, False),
            "mixed": partial(update, True, False),
            "cached": partial(update, True, True),
        }
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(options.rounds + 2):
            for name, way in ways.items():
                begin = clock(device)
                way(number * options.batch)
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

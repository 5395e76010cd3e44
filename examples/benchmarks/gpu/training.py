"""How fast the embedded models train: pictures a second."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import dataset
import novelview_training
import torch
import train_prior
from record import Record


def prior_rate(work: Path, device: torch.device, batch: int, steps: int) -> float:
    """Pictures a second of the prior's training, drawing and captioning them included."""
    pictures = dataset.Pictures(work / "pictures", torch.Generator().manual_seed(0), device)
    tokens = train_prior.Tokens(train_prior.tokenizer_for(train_prior.SHIPPED, None))
    data = train_prior.Data(pictures, None, tokens)
    options = argparse.Namespace(
        device=str(device),
        work=work / "nothing",
        start=train_prior.SHIPPED,
        text_side=None,
        text_updates=None,
    )
    run = train_prior.start(options, data)
    abar, gradient = train_prior.make_scheduler().alphas_cumprod.to(device), train_prior.gradient_on(device)

    def take(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            train_prior.train_step(run, run.unet, data, abar, batch, 0.5, gradient=gradient)
        assert run.loss > 0  # reading it waits for the device
        return time.perf_counter() - started

    take(min(3, steps))
    return batch * steps / take(steps)


def novel_view_rates(work: Path, device: torch.device, batch: int, rounds: int) -> dict[str, float]:
    """Pairs a second of the novel-view model's training, plain, in mixed precision and with cached features."""
    folder = work / f"novel-view-{batch}"
    words = ["--batch", batch, "--rounds", rounds, "--device", device, "--output", folder]
    novelview_training.main([str(word) for word in words])
    costs = json.loads((folder / "costs.json").read_text())
    return {name: 1000 * batch / costs[name] for name in ("plain", "mixed", "cached")}


def run(record: Record, work: Path, output: Path, device: torch.device, dry: bool) -> None:
    """The prior: small batches as it is trained with, and larger ones."""
    started = time.perf_counter()
    dataset.build(work / "pictures", shapes_per_kind=1, seed=0)
    record.note(f"Pictures were rendered in {time.perf_counter() - started:.1f} s.")
    for batch in (2,) if dry else (16, 128, 512):
        rate = prior_rate(work, device, batch, 1 if dry else 15)
        record.row("The prior", {"batch": batch, "pictures a second": rate})


def novel_view(record: Record, work: Path, output: Path, device: torch.device, dry: bool) -> None:
    """The novel-view model, whose inputs are noise: their drawing is not timed."""
    for batch, rounds in ((2, 1),) if dry else ((16, 6), (64, 4)):
        rates = novel_view_rates(work, device, batch, rounds)
        record.row("The novel-view model, pairs a second", {"batch": batch, **rates})

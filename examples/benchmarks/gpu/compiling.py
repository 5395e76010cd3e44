"""torch.compile and CUDA graphs on the embedded prior's network: what they save, and how long the first call takes."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import torch
from measuring import Clock
from record import Record

from distill.priors import load_prior

#: Rows of a step of the default run: four pictures with the prompt and without.
ROWS = 8


def timed(
    record: Record, name: str, device: torch.device, rounds: int, dry: bool, **options: bool | None
) -> None:
    """Predictions of a prior that is loaded with some options; a row."""
    dtype = torch.float32 if dry else torch.bfloat16
    prior = load_prior("embedded", device, dtype, graphs=options.get("graphs"))
    if options.get("compile"):
        # Compiling all of it for a CPU takes minutes.
        part = prior.network.mid_block.resnets[0] if dry else prior.network
        part.compile(backend="eager" if dry else "inductor")
    g = torch.Generator().manual_seed(0)
    rows = 1 if dry else ROWS
    x = torch.randn(rows, *prior.shape, generator=g).to(device)
    t = torch.randint(20, 980, (rows,), generator=g).to(device)
    told = {key: value.repeat(rows, 1, 1) for key, value in prior.embed(["a red mug"]).items()}
    started, clock = time.perf_counter(), Clock(device)
    prior.predict_noise(x, t, told)
    first = clock.wait() - started
    ready = 1 if dry else 4
    for number in range(rounds + ready):
        if number == ready:  # the first ones record graphs
            clock.parts.clear()
        with clock("call"):
            prior.predict_noise(x, t, told)
    record.row(
        "The embedded network, a guided prediction of four pictures",
        {"how": name, "first call, s": first, "ms": statistics.median(clock.parts["call"])},
    )


def run(record: Record, work: Path, output: Path, device: torch.device, dry: bool) -> None:
    """Without, with either, with both."""
    rounds, cuda = (1 if dry else 50), device.type == "cuda"
    timed(record, "kernel by kernel", device, rounds, dry, graphs=False)
    if cuda:
        timed(record, "CUDA graph", device, rounds, dry, graphs=True)
    timed(record, "compiled", device, rounds, dry, graphs=False, compile=True)
    if cuda:
        timed(record, "compiled, CUDA graph", device, rounds, dry, graphs=True, compile=True)

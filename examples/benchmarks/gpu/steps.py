"""A step at Stable Diffusion 1.5's size, part by part, beside the network's own passes and the memory's forecast."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import random_prior
import torch
from one_step import PARTS, measure
from record import Record, Row

from distill.forecast.cost import cost
from distill.priors.source import find
from distill.run.assembly.prior import open_prior
from distill.run.config.compose import compose_config
from distill.run.config.overrides import as_overrides


@dataclass(frozen=True)
class Case:
    """What a row measures."""

    loss: str = "sds"
    size: int = 64
    dtype: str = "bfloat16"
    backend: str = "warp"
    compile: bool = False
    graphs: bool = True


#: The most telling first: with and without CUDA graphs, every loss, then larger pictures.
CASES = (
    Case("sds", 64),
    Case("sds", 64, graphs=False),
    Case("asd", 64),
    Case("sds", 512),
    Case("csd", 64),
    Case("vsd", 64),
    Case("vsd", 512),
)
MORE = (
    Case("sds", 256),
    Case("asd", 512),
    Case("csd", 512),
    Case("sds", 64, "float16"),
    Case("sds", 512, "float16"),
    Case("vsd", 64, "float16"),
    Case("sds", 64, backend="torch"),
    Case("sds", 512, backend="torch"),
)
COMPILED = (
    Case("sds", 64, graphs=False),
    Case("sds", 64, compile=True, graphs=False),
    Case("sds", 64, compile=True),
)
#: Of a try on the CPU.
SMALL = {
    "prior_options.image_size": 64, "scene.levels": 4, "scene.log2_table_size": 12, "scene.march_steps": 32,
    "scene.occupancy_resolution": 16,
}  # fmt: skip
#: Layers of a prior for a try on the CPU: counting a network's operations takes as long for each layer, however narrow.
SHALLOW = {"vae": 1, "text_encoder": 1, "unet": 1}


def prior_folder(work: Path, device: torch.device, dry: bool) -> Path:
    """The prior with random weights, written by the first part that wants it."""
    folder = work / "sd15"
    if not folder.exists():
        part = work / f"sd15-{os.getpid()}"
        random_prior.write(part, 8 if dry else 1, device, SHALLOW if dry else None)
        part.rename(folder)
    return folder


def configured(case: Case, folder: Path, device: torch.device, dry: bool) -> Any:
    """A run's configuration; the scene stays the blob it begins as, which random weights would dissolve."""
    still = {"scene.encoding_lr": 0, "scene.mlp_lr": 0, "scene.background_lr": 0}
    return compose_config(
        as_overrides(
            {
                "prompt": "a red mug", "device": str(device), "prior": str(folder), "prior_options.dtype": case.dtype,
                "prior_options.compile": case.compile, "guidance": case.loss, "render.size": case.size,
                # Always where there can be some; a case without them leaves them away.
                "prior_options.graphs": device.type == "cuda",
                "scene.backend": case.backend, **still, **(SMALL if dry else {}),
            }
        )
    )  # fmt: skip


def row_of(case: Case, prior: Any, config: Any, device: torch.device, steps: int) -> Row:
    """Measure a case, and forecast its memory."""
    found = measure(config, prior, min(steps, 6), steps)
    forecast = cost(config, find(config.prior), device)
    parts = {f"{part} ms": round(found[part], 2) for part in PARTS if part in found}
    return {
        **vars(case),
        "samples": found["samples"],
        **parts,
        "step / network": found["step / network"],
        "without VAE / network": found["without VAE / network"],
        "peak GiB": found["peak GiB"],
        "first step, forecast GiB": forecast.first_peak / 2**30,
        "at most, forecast GiB": forecast.peak / 2**30,
    }


def measure_all(
    cases: Sequence[Case], record: Record, work: Path, device: torch.device, dry: bool, title: str
) -> None:
    """A row for each case that can be measured, a note for each other one."""
    started = time.perf_counter()
    folder = prior_folder(work, device, dry)
    record.note(f"The prior was written in {time.perf_counter() - started:.1f} s.")
    prior, loaded = None, None
    for case in cases:
        if dry:
            case = Case(case.loss, 16 if case.size == 64 else 24, "float32", case.backend, graphs=False)
        config = configured(case, folder, device, dry)
        try:
            # VSD leaves its layers in the network, so that what follows it wants a new one.
            if prior is None or loaded != (case.dtype, case.compile):
                prior = None
                gc.collect()
                prior, loaded = open_prior(config, device), (case.dtype, case.compile)
            used = prior if case.graphs else replace(prior, graphs=None)
            record.row(title, row_of(case, used, config, device, 1 if dry else 12))
        except (RuntimeError, ValueError) as error:
            if dry:
                raise
            record.note(f"{case}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
            prior = None
        if case.loss == "vsd":
            prior = None


def run(record: Record, work: Path, output: Path, device: torch.device, dry: bool) -> None:
    """Every loss in bfloat16."""
    cases = (Case("sds", 64), Case("vsd", 512)) if dry else CASES
    measure_all(cases, record, work, device, dry, "Steps at Stable Diffusion 1.5's size")


def more(record: Record, work: Path, output: Path, device: torch.device, dry: bool) -> None:
    """In float16, and with the hash grid in plain torch."""
    measure_all(MORE[-1:] if dry else MORE, record, work, device, dry, "Other precisions and backends")


def compiled(record: Record, work: Path, output: Path, device: torch.device, dry: bool) -> None:
    """With the network compiled."""
    measure_all(COMPILED[:1] if dry else COMPILED, record, work, device, dry, "The network compiled")

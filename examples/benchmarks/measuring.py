"""Time, memory, the hardware's name, tables and shares of the work, for the benchmarks."""

from __future__ import annotations

import argparse
import json
import platform
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from distill.lab.comparison.cost import resident_mib


class Clock:
    """Milliseconds by part; waits for the device at both ends."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.parts = device, dict[str, list[float]]()

    def wait(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = self.wait()
        yield
        self.parts.setdefault(part, []).append((self.wait() - start) * 1000)


def reset_peak(device: torch.device) -> None:
    """Measure the largest memory from now on; where neither CUDA nor Linux can, it stays the process's so far."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_gib(device: torch.device) -> float:
    """The largest memory since ``reset_peak``: what torch had allocated on CUDA, elsewhere the process's resident size."""
    mib = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else resident_mib()
    return mib / 2**10


def hardware(device: torch.device) -> str:
    """Return the name of the hardware."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if device.type == "cpu" and about.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {device.type}, {torch.get_num_threads()} threads"


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    rule = ["---"] * len(titles)
    return "\n".join(f"| {' | '.join(row)} |" for row in (titles, rule, *rows))


def finished(
    result: Path, overrides: Mapping[str, Any], measured_with: Mapping[str, Any] | None = None
) -> Any:
    """Return what an earlier run measured of an asset, or None if it has not been measured, or with something else.

    Args:
        result: file of the measurement.
        overrides: that the asset is made with.
        measured_with: what else the figures depend on, by key of the measurement.

    Raises:
        ValueError: it was made with other overrides.
    """
    if not result.exists():
        return None
    made = json.loads(result.read_text())
    if made["overrides"] != overrides:
        raise ValueError(
            f"{result.parent} was made with {made['overrides']}, not {overrides}; choose another --output"
        )
    same = all(made.get(key) == value for key, value in (measured_with or {}).items())
    return made if same else None


def share(text: str) -> tuple[int, int]:
    """``"2/3"``, the second of three shares, as ``(2, 3)``; for ``type=`` of an argument.

    Raises:
        argparse.ArgumentTypeError: it is no such share.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"must be k/n with 1 <= k <= n, got {text}")
    return int(found[1]), int(found[2])

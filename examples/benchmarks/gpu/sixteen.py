"""The quality of sixteen assets, made some at a time: a run of the embedded prior leaves most of a GPU and of its host idle.

python sixteen.py --prompts "a blue sphere" "a red cube" --work FOLDER --device cuda
makes and measures some of them, as one of the processes that the report starts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import quality
import torch
from record import Record

import distill

DOCUMENTED = Path(__file__).resolve().parents[3] / "docs" / "benchmarks.md"
#: Processes at a time.
WORKERS = 8
SMALL = {"iterations": 2, "render.size": 16, "render.batch": 1}


def documented(text: str) -> dict[str, tuple[float, float]]:
    """The CPU's R-precision and IoU by prompt, from the table in the documentation."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"
    ]
    return {
        row[0]: (float(row[2]), float(row[4])) for row in rows if row[0] in quality.PROMPTS and len(row) == 7
    }


def result(prompt: str, work: Path) -> Path:
    return work / prompt.replace(" ", "-")


def make(prompt: str, work: Path, device: str, dry: bool) -> None:
    """One asset without its files, measured; nothing if it is there."""
    overrides: dict[str, Any] = {"device": device, "export.enabled": False, "log.tensorboard": False}
    quality.make(prompt, result(prompt, work), overrides | (SMALL if dry else {}), distill.generate)


def start(prompts: Sequence[str], folder: Path, device: torch.device) -> list[subprocess.Popen[bytes]]:
    """Processes that make all of them, each its share."""
    count = min(WORKERS, len(prompts))
    variables = {**os.environ, "OMP_NUM_THREADS": str(max((os.cpu_count() or 1) // count, 1))}
    command = [sys.executable, __file__, "--work", str(folder), "--device", str(device), "--prompts"]
    return [subprocess.Popen([*command, *prompts[number::count]], env=variables) for number in range(count)]


def run(record: Record, work: Path, output: Path, device: torch.device, dry: bool) -> None:
    """A row for each asset, as far as the time goes; no seconds, for they compute side by side."""
    folder, prompts = work / "quality", quality.PROMPTS[:1] if dry else quality.PROMPTS
    if dry:  # in this process: another would import for seconds what this one has
        make(prompts[0], folder, str(device), True)
    started = [] if dry else start(prompts, folder, device)
    before, told = documented(DOCUMENTED.read_text()), set[str]()
    running = True
    while running:
        running = any(process.poll() is None for process in started)
        for prompt in prompts:
            if prompt not in told and (file := result(prompt, folder) / "quality.json").exists():
                told.add(prompt)
                tell(record, prompt, file, before)
        time.sleep(0.2)
    if told:
        rows = record.tables["Assets"]
        for name in ("R-precision@1", "IoU"):
            record.note(
                f"{name}: a mean of {sum(row[name] for row in rows) / len(rows):.3f} over {len(rows)} assets."
            )
    if any(process.returncode for process in started):
        raise SystemExit(f"{len(told)} of {len(prompts)} assets were made")


def tell(record: Record, prompt: str, file: Path, before: dict[str, tuple[float, float]]) -> None:
    made, cpu = json.loads(file.read_text()), before.get(prompt, (None, None))
    record.row(
        "Assets",
        {
            "prompt": prompt, "R-precision@1": made["r_precision"], "on the CPU": cpu[0], "IoU": made["iou"],
            "IoU on the CPU": cpu[1], "turned by": made["azimuth_offset_deg"],
        },
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", nargs="+", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    for prompt in options.prompts:
        make(prompt, options.work, options.device, False)


if __name__ == "__main__":
    main()

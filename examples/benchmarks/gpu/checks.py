"""The tests that need a GPU, one row each."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from record import Record

ROOT = Path(__file__).resolve().parents[3]
#: Files with such tests; the benchmarks' own is what other parts run.
FILES = ("tests/test_gpu.py", "tests/test_field.py", "tests/test_encoding.py", "tests/test_nerf.py")


def run(record: Record, work: Path, output: Path, device: torch.device, dry: bool) -> None:
    """All of them."""
    check(record, work / "tests.xml", FILES, "", 0 if dry else 4)


def graphs(record: Record, work: Path, output: Path, device: torch.device, dry: bool) -> None:
    """Those of CUDA graphs alone."""
    check(record, work / "graph-tests.xml", FILES[:1], "graphs or kernel_by_kernel", 0 if dry else 4)


def check(record: Record, results: Path, files: Sequence[str], chosen: str, processes: int) -> None:
    """Let pytest run tests side by side, or in this process; a failure is a row, and what it said is in the log."""
    results.unlink(missing_ok=True)
    options = [
        "-m",
        "gpu",
        "-k",
        chosen,
        "-p",
        "no:cacheprovider",
        "-v",  # so that the log names what failed, even where the tests are stopped
        "--tb=short",
        f"--junitxml={results}",
    ]
    words = [*options, "-n", str(processes), *(str(ROOT / file) for file in files)]
    if processes:
        subprocess.run([sys.executable, "-m", "pytest", *words], cwd=ROOT, check=False)
    else:  # a new one would import for seconds what this one has
        pytest.main(words)
    for case in ElementTree.parse(results).getroot().iter("testcase"):
        outcome, said = "passed", ""
        for kind in ("failure", "error", "skipped"):
            if (found := case.find(kind)) is not None:
                outcome, said = kind, found.get("message", "")
        record.row(
            "Tests",
            {
                "test": case.get("name"),
                "outcome": outcome,
                "seconds": float(case.get("time", 0)),
                "said": said[:200],
            },
        )
    if not record.tables:
        raise SystemExit("no test was found")

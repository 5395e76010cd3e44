"""The tests that need a GPU, one row each."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import torch
from record import Record

ROOT = Path(__file__).resolve().parents[3]
#: Files with such tests; the benchmarks' own is what other parts run.
FILES = ("tests/test_gpu.py", "tests/test_encoding.py", "tests/test_nerf.py")


def run(record: Record, work: Path, output: Path, device: torch.device, dry: bool) -> None:
    """Let pytest run them side by side; a failure is a row, and what it said is in the log."""
    results = work / "tests.xml"
    results.unlink(missing_ok=True)
    # Nerfacc's kernels take minutes to build.
    chosen = [
        "-m",
        "gpu",
        "-k",
        "not nerfacc",
        "-p",
        "no:cacheprovider",
        "-q",
        "--tb=short",
        f"--junitxml={results}",
    ]
    spread = ["-n", "0" if dry else "4"]
    subprocess.run([sys.executable, "-m", "pytest", *chosen, *spread, *FILES], cwd=ROOT, check=False)
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

"""The tests that rest on diffusers, transformers and the rest, on their lowest and newest versions: ``make compat``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
#: The same in both: every other version comes with gigabytes of CUDA.
TORCH = "torch==2.13.0"
INSTALLS = {
    "lowest": ["--constraint", "constraints-lowest.txt"],
    "newest": ["--upgrade", "--upgrade-strategy", "eager"],
}
TESTS = [
    "imports", "source", "priors", "families", "control", "prior_sampling", "forecast", "vsd", "real_priors", "novelview_model",
    "novelview_pipeline", "novelview_prior", "novelview_shipped", "novelview_train", "judge", "metrics", "config", "export",
    "run",
]  # fmt: skip
SHOWN = ("torch", "diffusers", "transformers", "huggingface_hub", "peft", "numpy")
COUNTS = ("passed", "failed", "skipped", "minutes")


def prepare(name: str) -> Path:
    """Install the package into the environment ``.venv-compat/NAME``, made where there is none; its Python."""
    folder = ROOT / ".venv-compat" / name
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    wanted = [TORCH, "--editable", ".", "pytest", "hypothesis"]
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", *INSTALLS[name], *wanted], cwd=ROOT, check=True
    )
    return python


def versions(python: Path) -> dict[str, str]:
    listed = subprocess.check_output([python, "-m", "pip", "list", "--format=json"])
    return {package["name"].replace("-", "_"): package["version"] for package in json.loads(listed)}


def test(python: Path) -> dict[str, str]:
    """Run the tests; how many passed, failed and were skipped. None at all counts as a failure."""
    files = [f"tests/test_{name}.py" for name in TESTS]
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        settings = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run([python, "-m", "pytest", "-q", f"--junitxml={report}", *files], cwd=ROOT, env=settings)
        suite = ElementTree.parse(report).find("testsuite") if report.exists() else None
    minutes = f"{(time.monotonic() - started) / 60:.0f}"
    if suite is None:
        return dict(zip(COUNTS, ("0", "1", "0", minutes), strict=True))
    total, failures, errors, skipped = (
        int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")
    )
    failed = failures + errors
    return dict(zip(COUNTS, (str(total - failed - skipped), str(failed), str(skipped), minutes), strict=True))


def main(names: list[str]) -> int:
    rows = []
    for name in names or INSTALLS:
        python = prepare(name)
        found = versions(python)
        rows.append({"": name} | {package: found[package] for package in SHOWN} | test(python))
    table = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    return int(any(row["failed"] != "0" for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Train the bundled models on a GPU, for so many minutes in all; run again to continue.

    python examples/benchmarks/gpu/train.py prior --minutes 8 --work build/gpu-train/prior
    python examples/benchmarks/gpu/train.py views --minutes 8
    python examples/benchmarks/gpu/train.py judge --minutes 5 --things ~/things/pack --channels 64 128 320

It renders the pictures first, which takes a minute on sixteen cores, and saves every minute. The model is written where ``--output``
says, by default a prior or a novel-view model into the working tree, another into ``--work``. Other options are those of the scripts
in ``examples/embedded``.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from report import ROOT, environment

EMBEDDED = ROOT / "examples" / "embedded"
#: Scripts by what they train, and whether they write into the working tree where no folder is given.
KINDS = {
    "prior": ("train_prior.py", True),
    "novel_view": ("train_novel_view.py", True),
    "views": ("train_views.py", False),
    "judge": ("train_judge.py", False),
}
#: Seconds from a signal to the last file.
GRACE = 60


def run(command: Sequence[object], minutes: float) -> int:
    """Run a training, and ask it to save and stop when its time is over; returns its exit code."""
    process = subprocess.Popen([str(part) for part in command], cwd=ROOT, env=environment("cuda"))
    try:
        return process.wait(60 * minutes)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.send_signal(signal.SIGINT)
    try:
        return process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def train(script: str, work: Path, output: Path | None, minutes: float, options: Sequence[str]) -> int:
    """Run a script of ``examples/embedded``, whose rates and timesteps move with the time that is spent."""
    command = [sys.executable, EMBEDDED / script, "--work", work, "--save-minutes", 1, "--minutes", minutes]
    given = ["--output", output] if output else []
    return run([*command, *given, *options], minutes + GRACE / 60)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=KINDS)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--work", type=Path, help="for pictures and states; by default under build/gpu-train")
    parser.add_argument("--output", type=Path, help="folder of the model")
    options, others = parser.parse_known_args()
    work = (options.work or ROOT / "build" / "gpu-train" / options.what).resolve()
    work.mkdir(parents=True, exist_ok=True)
    script, in_place = KINDS[options.what]
    output = options.output or (None if in_place else work / "model")
    started = time.perf_counter()
    code = train(script, work, output and output.resolve(), options.minutes, others)
    print(f"{options.what}: exit code {code} after {(time.perf_counter() - started) / 60:.1f} minutes")
    raise SystemExit(code)


if __name__ == "__main__":
    main()

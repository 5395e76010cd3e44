"""Time a queue of prompts against as many single runs: one process that loads the prior and its text encoders once, against n that do.

    python examples/benchmarks/many_prompts.py --prompts 8 iterations=1 export.enabled=false
    python examples/benchmarks/many_prompts.py --prompts 16 prior=/tmp/sd15 iterations=50 device=cuda

Each way begins with an empty cache of embeddings, so that text encoders are loaded as for new prompts. Prints seconds per prompt and their ratio.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from distill.embedded import world


def seconds(commands: Sequence[Sequence[str]], cache: Path) -> float:
    """Wall-clock time of commands of ``distill``, one after another.

    Raises:
        SystemExit: one of them fails.
    """
    started = time.perf_counter()
    for words in commands:
        done = subprocess.run(
            [sys.executable, "-m", "distill", *words],
            env={**os.environ, "DISTILL_CACHE": str(cache)}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(
                f"many_prompts: {' '.join(words)} failed: {done.stderr.strip().splitlines()[-1]}"
            )
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("options", nargs="*", help="of the runs")
    parser.add_argument("--prompts", type=int, default=8)
    given = parser.parse_args()
    prompts = world.all_captions()[: given.prompts]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "list.txt").write_text("\n".join(prompts) + "\n")
        queue = [[f"prompts={folder / 'list.txt'}", *given.options, f"output_dir={folder / 'queue'}"]]
        alone = [[text, *given.options, f"output_dir={folder / str(i)}"] for i, text in enumerate(prompts)]
        one = seconds(queue, folder / "cache-queue")
        many = seconds(alone, folder / "cache-alone")
    count = len(prompts)
    print(f"{count} prompts in one queue: {one:.1f} s, {one / count:.2f} s each")
    print(f"{count} single runs:          {many:.1f} s, {many / count:.2f} s each")
    print(f"a queue takes {one / many:.2f} of the time, {count / one * 3600:.0f} prompts an hour")


if __name__ == "__main__":
    main()

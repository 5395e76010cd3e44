"""Kill the workers of a queue at random: nothing is lost, nothing is done twice, and one table covers all.

    python examples/soak/queue_kills.py --prompts 1000 --workers 2 --every 3 --output /tmp/queue

So many prompts of one step each are made by workers that share one file; every few seconds one of them is killed (SIGKILL) and started again.
At the end, the same command must find everything finished. A fault is: a prompt without a finished run, or with two; a finished run that was
written again; a half-written file; a worker that ends with anything but success or the kill; a table that misses a run. The exit code is 1 if
there was one. ``--kills`` ends the killing after so many. Needs a system with fork.
"""

from __future__ import annotations

import argparse
import csv
import random
import time
from collections import Counter
from collections.abc import Sequence
from itertools import islice, product
from pathlib import Path

from small import SMALL, kill, preload, run, start, torn, wait

from distill.embedded import world

#: A run of one step, without what takes longest to write.
ONE_STEP = [
    *(word for word in SMALL if not word.startswith(("iterations", "log"))), "iterations=1", "log.tensorboard=false",
    "log.checkpoint_every=0", "log.preview_every=0", "export.enabled=false", "view_words=none",
]  # fmt: skip


def prompts(count: int) -> list[str]:
    """So many different prompts: each kind in each colour, from each direction and in each phrasing; there are 8,192."""
    every = product(range(len(world.TEMPLATES)), world.DIRECTIONS, world.COLOURS, world.KINDS)
    return list(dict.fromkeys(world.caption(c, k, view, form) for form, view, c, k in islice(every, count)))


def finished(root: Path) -> dict[str, tuple[int, int]]:
    """When each finished run was written, by its folder; a run that is done twice is written twice."""
    found = {}
    for path in root.glob("*/report.html"):
        said = path.stat()
        found[path.parent.name] = said.st_mtime_ns, said.st_ino
    return found


def check(root: Path, wanted: list[str], first_seen: dict[str, tuple[int, int]], log: Path) -> list[str]:
    """Everything that is wrong with what the workers left."""
    from distill.run.folder.folders import folder_name

    if not root.is_dir():
        return [f"nothing was made; see {log}"]
    faults = []
    now, names = finished(root), {folder_name(text) for text in wanted}
    faults += [f"lost: {name}" for name in sorted(names - now.keys())]
    faults += [
        f"twice, in another folder: {path.name}"
        for path in root.iterdir()
        if path.is_dir() and path.name not in names
    ]
    faults += [f"written again: {name}" for name, said in first_seen.items() if now.get(name) != said]
    said = Counter(
        line.split("results in ")[1].split(":")[0]
        for line in log.read_text().splitlines()
        if "results in " in line
    )
    faults += [f"done {count} times: {name}" for name, count in said.items() if count > 1]
    # The file of a lock stays where the process that held it was killed, and holds nothing.
    faults += [f"left half written: {name}" for name in torn(root) if not name.endswith(".lock")]
    with (root / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    if Counter(row["prompt"] for row in rows if row["state"] == "finished") != Counter(wanted):
        faults.append("the table has other prompts than the list")
    return faults


def place(output: Path, count: int) -> tuple[Path, Path, Path, list[str]]:
    """Where runs go, the list of prompts, which is written, the log, and the prompts."""
    output.mkdir(parents=True, exist_ok=True)
    root, listed, log = (output / name for name in ("runs", "prompts.txt", "log.txt"))
    wanted = prompts(count)
    listed.write_text("\n".join(wanted) + "\n")
    return root, listed, log, wanted


def told(faults: Sequence[str], root: Path) -> int:
    """Print the faults that were found; returns the exit code."""
    for fault in faults[:20]:
        print(f"fault: {fault}")
    print(f"{len(finished(root))} finished; {len(faults)} faults")
    return 1 if faults else 0


def main() -> int:
    """Run the script; returns its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--every", type=float, default=3.0, help="mean seconds between kills")
    parser.add_argument("--kills", type=int, default=10**9, help="at most so many")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument(
        "--output", type=Path, required=True, help="an empty folder for what is made, and for log.txt"
    )
    options = parser.parse_args()
    root, listed, log, wanted = place(options.output, options.prompts)
    log.touch()
    preload()
    arguments = [f"prompts={listed}", *ONE_STEP, f"output_dir={root}"]
    chance, kills, faults, began = random.Random(options.seed), 0, list[str](), time.monotonic()
    first_seen: dict[str, tuple[int, int]] = {}
    workers = [start(arguments, log) for _ in range(options.workers)]
    due = time.monotonic() + chance.expovariate(1 / options.every)
    while workers:
        time.sleep(0.05)
        first_seen = {**finished(root), **first_seen}
        for pid in list(workers):
            if (code := wait(pid, 0)) is not None:
                workers.remove(pid)
                faults += [f"a worker ended with {code}; see {log}"] if code else []
        if workers and kills < options.kills and time.monotonic() >= due:
            pid = workers.pop(chance.randrange(len(workers)))
            if kill(pid) == -9:
                kills += 1
                print(
                    f"{len(first_seen)} of {len(wanted)} finished, {kills} kills, {time.monotonic() - began:.0f} s",
                    flush=True,
                )
            workers.append(start(arguments, log))
            due = time.monotonic() + chance.expovariate(1 / options.every)
    # What a worker was killed at is left for the next time that someone asks.
    for words in (arguments, arguments, ["summary", str(root)]):
        if code := run(words, log):
            faults.append(f"{words[0]} ended with {code} at the end; see {log}")
    faults += check(root, wanted, first_seen, log)
    print(
        f"queue_kills: {len(wanted)} prompts, {options.workers} workers, {kills} kills, {time.monotonic() - began:.0f} s"
    )
    return told(faults, root)


if __name__ == "__main__":
    raise SystemExit(main())

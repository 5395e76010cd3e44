"""Kill runs at random moments and resume them: in the end they are the same bits as runs that nobody killed.

    python examples/soak/kills.py --kills 200 --output /tmp/kills

A run and a queue of prompts are killed (SIGKILL) at random moments, half of them while a file is being written, and resumed until
they are finished, over and over. After each: the final scene, its mesh and pictures are the bytes of an uninterrupted run; no
half-written file and no file beyond that run's is left; what was finished before a kill is unchanged; no process ends with anything
but success or the kill. One line sums up, and the exit code is 1 if any of this failed. Needs a system with fork.
"""

from __future__ import annotations

import argparse
import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from small import SMALL, TORN, digest, kill, names, preload, results, run, start, torn, wait

PROMPTS = ("a red mug", "a blue table", "a green cone")


@dataclass
class Tally:
    """What was done, and what went wrong."""

    kills: int = 0
    while_writing: int = 0
    finished: int = 0
    faults: list[str] = field(default_factory=list)


def finished_files(root: Path) -> dict[Path, str]:
    """Digests of all files of runs that are finished, whose report is there."""
    done = [path.parent for path in root.rglob("report.html")]
    return {
        path: digest(path)
        for folder in done
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def kill_at_random(pid: int, root: Path, seconds: float, chance: random.Random) -> tuple[int, bool]:
    """Kill a process at a random moment, or, in every other case, when it next writes a file; its exit code."""
    code = wait(pid, chance.uniform(0, seconds))
    if code is not None:
        return code, False
    if chance.random() < 0.5:
        return kill(pid), False
    patience = time.monotonic() + seconds
    while time.monotonic() < patience:
        if any(TORN.fullmatch(path.name) and path.name != ".lock" for path in root.rglob(".*")):
            return kill(pid), True
        if (code := wait(pid, 0)) is not None:
            return code, False
    return kill(pid), False


def killed_until_finished(
    arguments: Sequence[str], root: Path, log: Path, seconds: float, chance: random.Random, tally: Tally
) -> None:
    """Start, kill and resume until it finishes by itself; adds to the tally."""
    queue = any(text.startswith("prompts=") for text in arguments)
    while True:
        before = finished_files(root) if queue else {}
        code, writing = kill_at_random(start(arguments, log), root, seconds, chance)
        tally.kills += code == -9
        tally.while_writing += code == -9 and writing
        if lost := [path for path, was in before.items() if not path.is_file() or digest(path) != was]:
            tally.faults.append(f"{lost[0]} was finished, and a kill changed it")
        if code not in (0, -9):
            tally.faults.append(f"{' '.join(arguments[:2])} ended with {code}; see {log}")
            return
        if code == 0:
            return
        seconds *= 1.1  # on a busy machine no process would ever come to an end


def compare(made: Path, wanted: Path, tally: Tally) -> None:
    """Compare a folder of finished runs with the one that nobody killed."""
    if left := torn(made):
        tally.faults.append(f"left half written: {left[0]} in {made}")
    if names(made) != names(wanted):
        tally.faults.append(f"other files in {made}: {sorted(names(made) ^ names(wanted))[:3]}")
        return
    for report in sorted(wanted.rglob("report.html")):
        own = made / report.parent.relative_to(wanted)
        mine, theirs = results(own), results(report.parent)
        tally.faults += [f"{name} of {own} has other bytes" for name in theirs if mine[name] != theirs[name]]
        tally.finished += 1


def main() -> int:
    """Run the script; returns its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="at least so many in all")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument(
        "--output", type=Path, required=True, help="a folder for what is made, and for log.txt"
    )
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    listed, log = options.output / "prompts.txt", options.output / "log.txt"
    listed.write_text("\n".join(PROMPTS) + "\n")
    preload()
    kinds = {"run": ["a red mug", *SMALL], "queue": [f"prompts={listed}", *SMALL]}
    lasts = {}
    for kind, arguments in kinds.items():
        shutil.rmtree(options.output / f"{kind}-whole", ignore_errors=True)
        began = time.monotonic()
        if code := run([*arguments, f"output_dir={options.output / f'{kind}-whole'}"], log):
            print(f"kills: the uninterrupted {kind} ended with {code}; see {log}")
            return 1
        lasts[kind] = time.monotonic() - began
    chance, tally, began = random.Random(options.seed), Tally(), time.monotonic()
    while tally.kills < options.kills:
        for kind, arguments in kinds.items():
            folder = options.output / kind
            shutil.rmtree(folder, ignore_errors=True)
            again = ["resume=true"] if kind == "run" else []
            killed_until_finished(
                [*arguments, *again, f"output_dir={folder}"], folder, log, lasts[kind], chance, tally
            )
            compare(folder, options.output / f"{kind}-whole", tally)
        print(
            f"{tally.kills} kills, {len(tally.faults)} faults, {time.monotonic() - began:.0f} s", flush=True
        )
    for fault in tally.faults:
        print(f"fault: {fault}")
    print(
        f"kills: {tally.kills} kills, {tally.while_writing} of them while a file was written; {tally.finished} runs finished and were "
        f"compared; {len(tally.faults)} faults"
    )
    return 1 if tally.faults else 0


if __name__ == "__main__":
    raise SystemExit(main())

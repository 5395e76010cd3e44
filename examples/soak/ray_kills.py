"""Kill the workers of Ray at random while they make the assets of a list: each asset is there, once, and the list comes to its end.

    python examples/soak/ray_kills.py --prompts 6 --kills 1 --every 20 --output /tmp/ray

``examples/queues/ray_prompts.py`` makes assets of one step each with two workers on this machine; now and then one that is at work is killed
(SIGKILL). A fault is: an exit code other than 0, a prompt without a finished run or with two, a finished run that was written again, a
half-written file, a table that misses a run. Needs ``ray``, and a system with signals.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from queue_kills import ONE_STEP, check, finished, place, told

SCRIPT = Path(__file__).parents[1] / "queues" / "ray_prompts.py"


def below(pid: int) -> set[int]:
    """Ids of the processes that a process has started, those that they have started, and so on."""
    said = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(child): int(parent) for child, parent in map(str.split, said.splitlines())}
    found: set[int] = set()
    new = {pid}
    while new := {child for child, parent in parents.items() if parent in new} - found:
        found |= new
    return found


def workers(root: Path, driver: int) -> list[int]:
    """Process ids of those that hold the folder of an asset, as their locks say, and that a driver has started.

    A lock that is left of a process that was killed may have the number of a stranger's by now.
    """
    found = []
    for path in root.glob("*/.lock"):
        try:
            words = path.read_text().split()
        except OSError:
            continue
        if words[:1] == ["process"] and not (path.parent / "report.html").exists():
            found.append(int(words[1]))
    ours = below(driver) if found else set()
    return [pid for pid in found if pid in ours]


def main() -> int:
    """Run the script; returns its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompts", type=int, default=6)
    parser.add_argument("--kills", type=int, default=1)
    parser.add_argument("--every", type=float, default=20.0, help="mean seconds between kills")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument(
        "--output", type=Path, required=True, help="an empty folder for what is made, and for log.txt"
    )
    options = parser.parse_args()
    root, listed, log, wanted = place(options.output, options.prompts)
    command = [sys.executable, str(SCRIPT), str(listed), "--workers", "2", *ONE_STEP, f"output_dir={root}"]
    chance, kills, killed, began = random.Random(options.seed), 0, set[int](), time.monotonic()
    first_seen: dict[str, tuple[int, int]] = {}
    with log.open("w") as out:
        running = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        due = 0.0  # the first one is killed as soon as it is at work
        while running.poll() is None:
            time.sleep(0.01)
            first_seen = {**finished(root), **first_seen}
            busy = [pid for pid in workers(root, running.pid) if pid not in killed]
            if busy and kills < options.kills and time.monotonic() >= due:
                pid = chance.choice(busy)
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
                kills += 1
                due = time.monotonic() + chance.expovariate(1 / options.every)
                print(f"killed {pid}: {kills} kills, {time.monotonic() - began:.0f} s", flush=True)
    faults = [f"the script ended with {running.returncode}; see {log}"] if running.returncode else []
    faults += check(root, wanted, first_seen, log)
    print(f"ray_kills: {len(wanted)} prompts, 2 workers, {kills} kills, {time.monotonic() - began:.0f} s")
    return told(faults, root)


if __name__ == "__main__":
    raise SystemExit(main())

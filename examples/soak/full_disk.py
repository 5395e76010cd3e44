"""Fill the disk at each write of a run, its checkpoints and its export: one clear line, and a resumed run ends at the same bits.

    python examples/soak/full_disk.py --output /tmp/full

A small file system (tmpfs, mounted here, for which the script must be root) is filled by a file beside the run's, so that the run finds
room for a given number of kilobytes more; this number grows from 0 until a run gets through, so that the disk is full in each of its
writes. Where nothing may be mounted, RLIMIT_FSIZE limits the size of single files instead, and that is said. After each failure: the exit
code is not 0, one line begins with ``distill: error:`` and no traceback is printed, nothing half written is left, and the newest
checkpoint can be loaded and is no older than the newest before. Then the space is freed, and ``resume=true`` ends at the bytes of a run
that always had room. One line sums up; the exit code is 1 if any of this failed.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from small import SMALL, preload, results, start, torn, wait

#: What the file system holds, bytes; a run takes much less.
ROOM = 32 << 20


def mounted(folder: Path) -> bool:
    """Mount a small file system; false where that is not permitted."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(folder)]
    return (
        shutil.which("mount") is not None
        and subprocess.run(words, capture_output=True, check=False).returncode == 0
    )


def fill(folder: Path, left: int) -> None:
    """Fill a file system except for so many bytes."""
    filler = folder / "filler"
    filler.unlink(missing_ok=True)
    free = shutil.disk_usage(folder).free
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(free - left, 1))


def limited(arguments: Sequence[str], log: Path, limit: int) -> int | None:
    """Run with a limit on the size of each file, bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        pid = start(arguments, log)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    return wait(pid)


def newest(folder: Path) -> int:
    """Step of the newest checkpoint that can be loaded, 0 where there is none."""
    from distill.files.checkpoint import load_checkpoint

    saved = load_checkpoint(folder / "checkpoints")
    return int(saved["step"]) if saved else 0


def faults_of(code: int | None, said: str, folder: Path, before: int) -> list[str]:
    """What is wrong after a run that found no room."""
    found = []
    errors = [line for line in said.splitlines() if "distill: error:" in line]
    if code not in (1, 2) or len(errors) != 1:
        found.append(f"exit code {code} and {len(errors)} lines of errors: {said[-300:]!r}")
    if "Traceback (most recent" in said:
        found.append(f"a traceback: {said[-600:]!r}")
    left = [name for name in torn(folder) if not name.endswith(".lock")] if folder.is_dir() else []
    if left:
        found.append(f"left half written: {left[0]}")
    if (now := newest(folder)) < before:
        found.append(f"the newest checkpoint was of step {before}, and is of step {now}")
    return found


def main() -> int:
    """Run the script; returns its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="a folder for what is made")
    parser.add_argument("--step", type=int, default=16, help="KiB of room more from one run to the next")
    options = parser.parse_args()
    disk, log = options.output / "disk", options.output / "log.txt"
    small = mounted(disk)
    how = "a full file system (tmpfs)" if small else "RLIMIT_FSIZE, for no file system may be mounted"
    preload()
    words = ["a red mug", *SMALL, "log.tensorboard=false", "resume=true"]
    try:
        return every_write(words, disk, log, options.step << 10, fill if small else None, how)
    finally:
        if small:
            subprocess.run(["umount", str(disk)], check=True)


def every_write(
    words: Sequence[str], disk: Path, log: Path, step: int, fill: Callable[[Path, int], None] | None, how: str
) -> int:
    """Let runs find more and more room; returns the exit code."""
    folder = disk / "run"
    if (code := wait(start([*words, f"output_dir={folder}"], log))) != 0:
        print(f"full_disk: the run with room ended with {code}; see {log}")
        return 1
    wanted = results(folder)
    shutil.rmtree(folder)
    faults, full, left, resumed = list[str](), 0, 0, 0
    while True:
        before = newest(folder) if folder.is_dir() else 0
        log.write_text("")
        if fill:
            fill(disk, left)
            code = wait(start([*words, f"output_dir={folder}"], log))
            (disk / "filler").unlink()
        else:
            code = limited([*words, f"output_dir={folder}"], log, left + 1)
        if code == 0:
            break
        full += 1
        faults += [
            f"with {left >> 10} KiB: {said}"
            for said in faults_of(code, log.read_text(errors="replace"), folder, before)
        ]
        if full % 4 == 0:  # continue with room
            if (code := wait(start([*words, f"output_dir={folder}"], log))) != 0:
                faults.append(f"with room again it ended with {code}")
            elif results(folder) != wanted:
                faults.append(f"after {left >> 10} KiB and with room again, it has other bytes")
            resumed += 1
        shutil.rmtree(
            folder, ignore_errors=True
        )  # the next fails in its own place, not where this one continued
        left += step
    if results(folder) != wanted:
        faults.append("the run that just found room has other bytes")
    for fault in faults:
        print(f"fault: {fault}")
    print(
        f"full_disk: by {how}, {full} runs found no room, with 0 to {(left - step) >> 10} KiB in steps of {step >> 10}; {resumed} of them "
        f"were resumed with room and compared; {len(faults)} faults"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())

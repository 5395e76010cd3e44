"""Ablation of Efficient-3DiM and of the rotated code on the embedded world: Table 1, Fig. 6 and Fig. 7 on a small scale.

Every training begins from the embedded prior, sees equally many pairs in an order that follows from its seed, and is measured
on held-out pairs of colour and kind. Pictures and features are kept in memory, and several processes share the device.

    python examples/embedded/train_clip.py --pictures package/assets --output clip
    python examples/embedded/train_encoder.py --work encoder
    python examples/novel_view_ablation/ablate_novelview.py --work ablation --clip clip --dino encoder/encoder --minutes 170 --processes 2    # two CPU cores
    python examples/novel_view_ablation/ablate_novelview.py --work ablation --clip clip --dino encoder/encoder --minutes 4.8                  # one GPU

The number of updates is chosen so that all fits the minutes, and is the same for all rows; ``--updates`` sets it instead. All
rows of a seed come before the next seed's, so what is finished when time is over can be compared. Run it again to continue with what
is missing. ``--report`` writes the tables, claims and pictures of the finished trainings again, and ``--docs`` puts them in a page.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterable
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cells
import torch
from ablation_report import write_docs, write_report

from distill.conditions.picture import EMBEDDED
from distill.embedded.vocabulary import SHIPPED
from distill.files.atomic import write_atomic
from distill.lab.novel_view import stages, world_renders

BEGAN = time.time()
ROOT = Path(__file__).resolve().parents[2]
COSTS = ROOT / "examples" / "benchmarks" / "novelview_training.py"
#: Seconds kept for the report, and the share of the measured pace that is counted on.
RESERVE, CAUTION = 12.0, 0.88
#: A law of Fig. 6 is so many times shorter than a row of Table 1.
SHORTER = 3
#: What the report is made of, and what is brought back with ``--bring``.
FILES = ("report.html", "table.csv", "claims.csv", "samples.png", "ablation.md", "costs.json", "plan.json")

#: Options that all trainings of a comparison must share.
PLANNED = (
    "updates", "seeds", "size", "batch", "rate", "code_updates", "code_batch", "shapes", "colours", "unseen", "points", "steps",
)  # fmt: skip

#: Where NVIDIA's MPS keeps its pipes and logs.
MPS = ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY")

#: In a process that trains: its pictures.
BENCH: cells.Bench | None = None


def say(text: str) -> None:
    print(f"[{time.time() - BEGAN:6.1f} s] {text}", flush=True)


def begin(setup: cells.Setup) -> None:
    """What each process does first."""
    global BENCH
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")
    BENCH = cells.Bench(setup)


def bench() -> cells.Bench:
    assert BENCH is not None
    return BENCH


def measure_pace(seconds: float) -> cells.Pace:
    with tempfile.TemporaryDirectory() as folder:
        return cells.pace_of(bench(), seconds, Path(folder))


def train_code(seed: int, deadline: float) -> str:
    cells.train_code(bench(), seed, deadline)
    return f"code, seed {seed}"


def train_cell(cell: cells.Cell) -> str:
    """Train a cell, once the code of its seed is there."""
    path = cells.code_path(bench().setup.work, cell.seed)
    while cell.row.turn and not path.exists():
        if cell.over:
            raise cells.Late
        time.sleep(0.2)
    cells.train_cell(bench(), cell)
    return f"{cell.name}, seed {cell.seed}"


def setup_of(options: argparse.Namespace) -> cells.Setup:
    """What the options say that all trainings share.

    Raises:
        ValueError: an encoder is not there.
    """
    for name in ("clip", "dino"):
        if not (getattr(options, name) / "config.json").is_file():
            raise ValueError(
                f"--{name} must be a folder of an image encoder, with a config.json, and {getattr(options, name)} has none; "
                f"examples/embedded/train_{'clip' if name == 'clip' else 'encoder'}.py makes one"
            )
    world = world_renders.WorldOptions(shapes=options.shapes, views=12, steep=0, size=options.size, seed=0)
    unseen = replace(world, shapes=options.unseen, fov_y_deg=(40.0, 40.0), lights_deg=0.0, seed=1000)
    return cells.Setup(
        work=options.work, encoders={"clip": str(options.clip), "dino": str(options.dino)}, prior=options.prior,
        device=options.device, world=world, unseen=unseen, colours=options.colours, batch=options.batch,
        rate=options.rate, code=stages.CodeRecipe(batch=options.code_batch), code_updates=options.code_updates,
        points=options.points, steps=options.steps,
    )  # fmt: skip


class SharedGPU:
    """Lets processes use a GPU side by side, where NVIDIA's MPS is there and works; else they take turns.

    Meanwhile what mixed precision and caching save is measured, in a process of its own, which tells whether it works.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.served = options, False
        self.thread = threading.Thread(target=self._prepare)
        self.thread.start()

    def _prepare(self) -> None:
        on_gpu = torch.device(self.options.device).type == "cuda"
        if on_gpu and shutil.which("nvidia-cuda-mps-control"):
            folder = tempfile.mkdtemp(prefix="mps-")
            places = dict.fromkeys(MPS, folder)
            told = os.environ | places
            try:
                subprocess.run(
                    ["nvidia-cuda-mps-control", "-d"], env=told, timeout=10, check=True, capture_output=True
                )
                self.served = True
                if self._costs(told, 45):
                    os.environ.update(places)
                    return
            except (OSError, subprocess.SubprocessError):
                pass
            self.end(told)
        self._costs(dict(os.environ), 120)

    def _costs(self, environment: dict[str, str], seconds: float) -> bool:
        options = self.options
        known = not options.costs or (options.work / "costs.json").exists()
        if known and not self.served:
            return True
        command = [sys.executable, COSTS, "--device", options.device, "--output", options.work]
        command += ["--batch", options.batch, "--rounds", options.cost_rounds]
        done = subprocess.run(
            [str(part) for part in command], env=environment, timeout=seconds, capture_output=True, text=True
        )
        say(f"costs: {(done.stdout if done.returncode == 0 else done.stderr[-300:]).strip()}")
        return done.returncode == 0

    def end(self, environment: dict[str, str] | None = None) -> None:
        """Stop serving."""
        if self.served:
            try:
                subprocess.run(
                    ["nvidia-cuda-mps-control"],
                    input="quit\n",
                    text=True,
                    env=environment,
                    timeout=10,
                    capture_output=True,
                )
            except (OSError, subprocess.SubprocessError) as error:
                say(f"MPS was not ended: {error}")
            for name in MPS:
                os.environ.pop(name, None)
        self.served = False


def wanted(options: argparse.Namespace, names: Iterable[str]) -> list[str]:
    return [name for name in names if options.only in name]


def plan(options: argparse.Namespace, pool: ProcessPoolExecutor) -> dict[str, Any]:
    """Updates of a row and of a law, and how many seeds: as they were, as they are asked for, or as time allows."""
    path = options.work / "plan.json"
    asked = {name: getattr(options, name) for name in PLANNED}
    if path.exists():
        before: dict[str, Any] = json.loads(path.read_text())
        if other := [name for name, value in asked.items() if before.get("asked", asked)[name] != value]:
            flag = f"--{other[0].replace('_', '-')}"
            raise ValueError(
                f"{path} is of trainings with {flag} {before['asked'][other[0]]}, not {asked[other[0]]}; give what they have to continue "
                "with them, or another --work"
            )
        return before
    seeds, rows, laws = (
        options.seeds,
        len(wanted(options, cells.ROWS)),
        len(wanted(options, cells.SHORT_ROWS)),
    )
    if options.updates:
        updates = options.updates
    else:
        count = options.processes
        found = [pool.submit(measure_pace, options.pace_seconds) for _ in range(count)]
        paces = [future.result() for future in found]
        rate, taken = sum(pace.rate for pace in paces) / count, max(pace.measuring for pace in paces)
        code = max(pace.code for pace in paces) * options.code_updates
        say(
            f"{count} processes make {rate * count:.1f} updates a second in all, measure in {taken:.1f} s and train a code in "
            f"{code:.1f} s"
        )
        left = 60 * options.minutes - (time.time() - BEGAN) - RESERVE

        def fitting(seeds: int) -> int:
            # Each law is a third of a row; each training is measured. What does not fill the processes evenly is waste.
            spare = left * count - code * seeds - taken * (seeds * rows + laws)
            return int(CAUTION * rate * spare / (seeds * rows + laws / SHORTER))

        while seeds > 1 and fitting(seeds) < options.least:
            seeds -= 1
        updates = fitting(seeds)
        if updates < 2 * options.points:
            raise ValueError(
                f"--minutes {options.minutes:g} leave {max(updates, 0)} updates for a training; give more time"
            )
    said = {
        "updates": updates,
        "short": max(updates // SHORTER, 1),
        "seeds": seeds,
        "batch": options.batch,
        "asked": asked,
    }
    write_atomic(path, json.dumps(said) + "\n")
    return said


def jobs_of(options: argparse.Namespace, said: dict[str, Any]) -> list[Any]:
    """What is to be trained, in order: codes, then rows seed by seed, the laws after the first seed."""
    deadline = BEGAN + 60 * options.minutes - RESERVE / 2
    jobs: list[Any] = [(train_code, seed, deadline) for seed in range(said["seeds"])]
    for seed in range(said["seeds"]):
        jobs += [
            (train_cell, cells.Cell(name, seed, said["updates"], deadline))
            for name in wanted(options, cells.ROWS)
        ]
        if seed == 0:
            jobs += [
                (train_cell, cells.Cell(name, 0, said["short"], deadline))
                for name in wanted(options, cells.SHORT_ROWS)
            ]
    return jobs


def bring(options: argparse.Namespace) -> None:
    """Copy what is there to ``--bring``, the cells as one tar file."""
    if not options.bring or not (options.work / "cells").is_dir():
        return
    options.bring.mkdir(parents=True, exist_ok=True)
    new = options.bring / ".cells.tar.new"
    with tarfile.open(new, "w") as archive:
        for path in sorted((options.work / "cells").glob("*/record.json")):
            archive.add(path.parent, f"cells/{path.parent.name}")
        for path in sorted((options.work / "codes").glob("*.json")):
            archive.add(path, f"codes/{path.name}")
        for name in ("costs.json", "plan.json"):
            if (options.work / name).exists():
                archive.add(options.work / name, name)
    new.replace(options.bring / "cells.tar")
    for name in FILES:
        if (options.work / name).exists() and name not in ("costs.json", "plan.json"):
            shutil.copy(options.work / name, options.bring / name)


def pool_of(options: argparse.Namespace, setup: cells.Setup) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(options.processes, get_context("spawn"), begin, (setup,))


def run(options: argparse.Namespace) -> None:
    """Render, plan and train all that is missing."""
    setup = setup_of(options)
    options.work.mkdir(parents=True, exist_ok=True)
    gpu = SharedGPU(options)
    pool: ProcessPoolExecutor | None = None
    try:
        setup.render(options.workers)
        say("rendered")
        gpu.thread.join()
        say("with MPS" if gpu.served else "without MPS")
        pool = pool_of(options, setup)
        try:
            said = plan(options, pool)
        except (RuntimeError, BrokenExecutor) as error:
            if not gpu.served:
                raise
            say(f"once more without MPS: {str(error)[:300]}")
            pool.shutdown(cancel_futures=True)
            gpu.end()
            pool = pool_of(options, setup)
            said = plan(options, pool)
        say(f"plan: {said}")
        waiting: list[Future[str]] = [pool.submit(*job) for job in jobs_of(options, said)]
        saved = time.time()
        for future in as_completed(waiting):
            try:
                say(future.result())
            except cells.Late:
                pass
            except Exception as error:  # one training's failure is no other's
                say(f"failed: {type(error).__name__}: {str(error)[:300]}")
            if time.time() - saved > 10:
                bring(options)
                saved = time.time()
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)
        gpu.end()
    bring(options)


#: What depends on the device where it is not given.
BY_DEVICE: dict[str, dict[str, Any]] = {
    "cuda": {"processes": 10, "batch": 128, "code_updates": 2000, "code_batch": 512, "shapes": 120, "pace_seconds": 4.0},
    "cpu": {"processes": os.cpu_count() or 1, "batch": 16, "code_updates": 1500, "code_batch": 256, "shapes": 40, "pace_seconds": 30.0},
}  # fmt: skip
COUNTS = (
    "processes", "seeds", "batch", "shapes", "colours", "unseen", "points", "steps", "code_updates", "code_batch",
)  # fmt: skip


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("ablation"), help="renders, cells and the report")
    parser.add_argument("--clip", type=Path, default=Path("clip"), help="folder of train_clip.py's tower")
    parser.add_argument(
        "--dino", type=Path, default=EMBEDDED / "image_encoder", help="folder of an image encoder"
    )
    parser.add_argument("--prior", type=Path, default=SHIPPED["embedded"], help="that the UNets begin from")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--bring", type=Path, help="folder for a copy of the results, in a few files, as they come"
    )
    parser.add_argument("--report", action="store_true", help="train nothing")
    parser.add_argument("--docs", type=Path, help="page to write the tables into, between its marks")
    add_training_options(parser)
    options = parser.parse_args()
    for name, value in BY_DEVICE[torch.device(options.device).type].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    for name in ("work", "clip", "dino", "bring", "docs"):
        if getattr(options, name) is not None:
            setattr(options, name, getattr(options, name).expanduser())
    for name in COUNTS:
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(options, name)}")
    return options


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Options of what is trained, and for how long."""
    parser.add_argument("--size", type=int, default=64, help="of the prior's pictures, pixels")
    parser.add_argument("--only", default="", help="rows and laws whose name holds this text")
    parser.add_argument("--minutes", type=float, default=170.0, help="of everything")
    parser.add_argument(
        "--processes", type=int, help="that train at a time; 10 on a GPU, one for each core on a CPU"
    )
    parser.add_argument("--updates", type=int, help="of a row of Table 1, instead of as many as fit")
    parser.add_argument("--least", type=int, default=200, help="rather fewer seeds than fewer updates")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each row, at most")
    parser.add_argument("--batch", type=int, help="pairs of an update; 128 on a GPU, 16 on a CPU")
    parser.add_argument("--rate", type=float, default=8e-4)
    parser.add_argument("--code-updates", type=int, help="2000 on a GPU, 1500 on a CPU")
    parser.add_argument("--code-batch", type=int, help="512 on a GPU, 256 on a CPU")
    parser.add_argument("--shapes", type=int, help="of each kind; 120 on a GPU, 40 on a CPU")
    parser.add_argument("--colours", type=int, default=1, help="of each shape")
    parser.add_argument("--unseen", type=int, default=10, help="shapes of each kind to measure on")
    parser.add_argument("--points", type=int, default=8, help="of the validation's curve")
    parser.add_argument("--steps", type=int, default=20, help="of the sampler")
    parser.add_argument("--pace-seconds", type=float, help="to measure the pace; 4 on a GPU, 30 on a CPU")
    parser.add_argument(
        "--costs",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure what precision and caching save",
    )
    parser.add_argument(
        "--cost-rounds", type=int, default=12, help="updates to measure what precision and caching save"
    )
    parser.add_argument("--workers", type=int, default=max((os.cpu_count() or 1) - 1, 1), help="that render")


def main() -> None:
    options = parse_options()
    if not options.report:
        run(options)
    page = write_report(options.work)
    for claim in csv.DictReader((options.work / "claims.csv").open()):
        print(f"{claim['verdict']}: {claim['claim']}: {claim['numbers']}")
    if options.docs:
        write_docs(options.work, options.docs)
    bring(options)
    say(str(page))


if __name__ == "__main__":
    # Whoever ends it leaves no process behind that still trains.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")

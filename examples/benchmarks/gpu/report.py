"""What a GPU does with this library, in a few minutes: tests, the main job, steps of a real prior's size, a profile, training.

python examples/benchmarks/gpu/report.py --output build/gpu-report
runs each part as a process of its own with a time limit, the most valuable first, or in the order of ``--parts``. What comes out
is written at once, as report.md and report.json; a part that fails or takes too long is recorded with its error, and the rest goes
on. Run again, it skips what is finished. ``--dry`` runs every part on the CPU with a tiny prior.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
#: Where the parts import from, beside installed packages.
IMPORTS = (HERE, HERE.parent, ROOT / "examples" / "embedded", ROOT / "tests")
#: Seconds that a part may take, by name and in order of value; each is a module's ``run`` or the function after the colon.
PARTS: Mapping[str, tuple[str, float]] = {
    "profile": ("profiling", 60),
    "diffusers": ("compared", 60),
    "asset": ("asset", 60),
    "quality": ("sixteen", 90),
    "graph-tests": ("checks:graphs", 60),
    "tests": ("checks", 90),
    "steps": ("steps", 80),
    "novel-view": ("training:novel_view", 45),
    "vae": ("vae", 30),
    "compile": ("compiling", 75),
    "more-steps": ("steps:more", 60),
    "training": ("training", 45),
    "large": ("large", 50),
    # Compiling a network of Stable Diffusion's size took longer than 75 s.
    "compile-large": ("steps:compiled", 200),
}


def environment(device: str) -> dict[str, str]:
    """Of a part's process: what it imports comes from this checkout's scripts and from installed packages alone."""
    found = [*map(str, IMPORTS), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    return {
        **os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(found)), "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", **hidden,
    }  # fmt: skip


def run_part(command: Sequence[str], limit: float, log: Path, variables: Mapping[str, str]) -> str:
    """Run a process and all that it starts; returns what went wrong, empty for nothing."""
    with log.open("a") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=dict(variables), stdout=file, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(max(limit, 1))
        except subprocess.TimeoutExpired:
            return f"stopped after {limit:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if not code:
        return ""
    last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"exit code {code}: {last[-1][:400] if last else 'no word'}"


def tail(log: Path, lines: int = 60) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else ""


def read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else {}


def assemble(work: Path, output: Path, state: Mapping[str, Any]) -> None:
    """Write the report from what every part has found so far."""
    from record import markdown, write

    parts = {name: {**state["parts"][name], **read(work / f"{name}.json")} for name in state["parts"]}
    (name_of_device,) = state["hardware"].values()
    told = {**state, "hardware": name_of_device, "parts": parts}
    write(output / "report.json", json.dumps(told, indent=1) + "\n")
    summary = [
        {"part": name, "outcome": part["outcome"], "seconds": part.get("seconds"), "error": part.get("error")}
        for name, part in parts.items()
    ]
    blocks = [f"# {name_of_device}", state["about"], markdown(summary)]
    for name, part in parts.items():
        blocks.append(f"## {name}")
        blocks += part.get("notes", [])
        for title, rows in part.get("tables", {}).items():
            blocks += [f"### {title}", markdown(rows)]
        if part.get("error"):
            blocks.append(f"```\n{tail(work / f'{name}.log', 25)}\n```")
    write(output / "report.md", "\n\n".join(blocks) + "\n")
    logs = [f"==== {name}\n{tail(work / f'{name}.log', 400)}\n" for name in parts]
    write(output / "log.txt", "\n".join(logs))


def hardware(device: str) -> str:
    """The device's name; asked of a process, so that this one holds no memory of the GPU."""
    asked = f"import torch; from measuring import hardware; print(hardware(torch.device({device!r})))"
    done = subprocess.run(
        [sys.executable, "-c", asked], env=environment(device), capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown hardware"


def versions() -> str:
    """Of Python and of what the parts use, as it is installed now."""
    found = []
    for name in ("distill3d", "torch", "diffusers", "transformers", "warp-lang", "nerfacc", "numpy"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    return f"Python {platform.python_version()}, {os.cpu_count()} CPU cores; {', '.join(found)}"


def report(names: Sequence[str], output: Path, work: Path, device: str, dry: bool, seconds: float) -> bool:
    """Run the parts that are not finished; returns whether all are, now."""
    sys.path[:0] = [str(path) for path in IMPORTS if str(path) not in sys.path]
    output.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    state: dict[str, Any] = {"parts": {}, **read(work / "state.json"), "about": versions()}
    if device not in state.get("hardware", {}):  # asking takes seconds
        state["hardware"] = {device: hardware(device)}
    end = time.perf_counter() + seconds
    left_over = [name for name in names if state["parts"].get(name, {}).get("outcome") != "finished"]
    if dry and left_over:
        try_all(left_over, output, work, device)
    for name in left_over:
        left = end - time.perf_counter()
        started, error = time.perf_counter(), "no time was left"
        done = work / f"{name}.done"
        if dry:
            error = "" if done.exists() else "see the log"
        elif left > 5:
            command = [*command_of(output, work, device), "--one", name]
            (work / f"{name}.log").unlink(missing_ok=True)
            error = run_part(command, min(PARTS[name][1], left), work / f"{name}.log", environment(device))
        taken = round(float(done.read_text()) if dry and not error else time.perf_counter() - started, 1)
        outcome = "failed" if error else "finished"
        state["parts"][name] = {"outcome": outcome, "seconds": taken, **({"error": error} if error else {})}
        (work / "state.json").write_text(json.dumps(state))
        assemble(work, output, state)
        print(f"{name}: {outcome} in {taken} s {error}", flush=True)
    return all(state["parts"][name]["outcome"] == "finished" for name in names)


def command_of(output: Path, work: Path, device: str) -> list[str]:
    return [
        sys.executable, str(HERE / "report.py"), "--output", str(output.resolve()), "--work", str(work.resolve()),
        "--device", device,
    ]  # fmt: skip


def try_all(names: Sequence[str], output: Path, work: Path, device: str) -> None:
    """Run parts with next to nothing to do in one process, whose imports take longer than they do."""
    for name in names:
        for ending in ("done", "log"):
            (work / f"{name}.{ending}").unlink(missing_ok=True)
    log = work / f"{names[0]}.log"
    run_part([*command_of(output, work, device), "--dry", "--one", *names], 1800, log, environment(device))


def several(names: Sequence[str], output: Path, work: Path, device: str) -> None:
    """Run parts in this process, with next to nothing to do; each leaves a mark when it is done."""
    failed = []
    for name in names:
        started = time.perf_counter()
        try:
            one(name, output, work, device, True)
            (work / f"{name}.done").write_text(str(time.perf_counter() - started))
        except (Exception, SystemExit):
            failed.append(name)
            traceback.print_exc()
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def one(name: str, output: Path, work: Path, device: str, dry: bool) -> None:
    """Run a part in this process."""
    import torch
    from record import Record

    module, _, function = PARTS[name][0].partition(":")
    record = Record(work / f"{name}.json")
    getattr(importlib.import_module(module), function or "run")(
        record, work, output, torch.device(device), dry
    )
    record.save()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("build/gpu-report"), help="at most eight files")
    parser.add_argument("--work", type=Path, help="what lies between; by default beside the output")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--seconds", type=float, default=900, help="for all parts that are run now")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dry", action="store_true", help="all parts on the CPU, with next to nothing to do")
    parser.add_argument("--one", nargs="+", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = "cpu" if options.dry else options.device
    work = options.work or options.output.with_name(f"{options.output.name}-work")
    if options.one and options.dry:
        several(options.one, options.output, work, device)
    elif options.one:
        one(options.one[0], options.output, work, device, False)
    elif not report(options.parts, options.output, work, device, options.dry, options.seconds):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

"""Time and memory of a loss's step, measured in a separate process, so nothing else raises the peak.

python -m distill.lab.comparison.cost '{"guidance": "asd"}' "a red mug" MODULE...

The modules are those in which custom parts are registered.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from distill.contracts import Prior, Render
from distill.devices import pick_device
from distill.job import State
from distill.loop import train
from distill.parts.registered import homes
from distill.priors import load_prior
from distill.run.assembly.assemble import assemble
from distill.run.config.compose import compose_config
from distill.run.config.overrides import as_overrides
from distill.usage import Parser

STEPS, WARM = 14, 4
#: Begins the line of an error.
PROG = "python -m distill.lab.comparison.cost"


def measure_cost(wanted: Mapping[str, Any], prompt: str) -> dict[str, float]:
    """Measure a method in a new process; nothing else should run beside it.

    Returns:
        ``step_ms``, the median of ten steps after four; ``peak_mib``, the process's largest resident size; and
        ``training_mib``, by how much the steps raised it. On CUDA both sizes are what torch had allocated there.

    Raises:
        RuntimeError: the process failed; says why.
    """
    modules = sorted(homes - {"__main__"})
    command = [sys.executable, "-m", __name__, json.dumps(dict(wanted)), prompt, *modules]
    found_as_here = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=found_as_here)
    if done.returncode:
        # One that was killed says nothing.
        last = (done.stderr.strip().splitlines() or [f"it ended with exit code {done.returncode}"])[-1]
        last = last.removeprefix(f"{PROG}: error: ")
        own = "; a part that the script itself registers is not known there: register it in a module that the script imports"
        raise RuntimeError(
            f"could not measure the cost in a new process: {last}{own if '__main__' in homes else ''}"
        )
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def resident_mib() -> float:
    """The process's largest resident size so far."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not ru_maxrss, which a child inherits from its parent.
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    import resource

    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / 2**20 if sys.platform == "darwin" else size / 2**10


def compose(wanted: Mapping[str, Any], prompt: str, seed: int) -> DictConfig:
    """Compose a cell's configuration; its prior is loaded once for all of them."""
    return compose_config(as_overrides({"prompt": prompt, "seed": seed, **wanted}), loaded=True)


def few_steps(
    config: DictConfig, prior: Prior, steps: int, after: Callable[[], None] = lambda: None, start: int = 0
) -> None:
    """Train a scene for some steps and forget it, to measure what they cost; ``after`` is called after each step."""

    def on_step(state: State, metrics: dict[str, float], render: Render) -> bool:
        after()
        return state.step >= start + steps

    job = assemble(config, prior)
    job.state.step = start
    train(job, on_step)


def _method(text: str) -> dict[str, Any]:
    """A method's options, of JSON."""
    try:
        wanted = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected JSON, got {text!r}: {error}") from error
    if not isinstance(wanted, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object of options, got {text!r}")
    return wanted


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure one method in this process, and print the figures as JSON."""
    parser = Parser(
        prog=PROG,
        description=(__doc__ or "").splitlines()[0],
        epilog=f"""example: {PROG} '{{"guidance": "asd"}}' 'a red mug'""",
    )
    parser.add_argument("method", type=_method, help="its options of a run, as a JSON object")
    parser.add_argument("prompt")
    parser.add_argument("module", nargs="*", help="in which custom parts are registered")
    given = parser.parse_args(arguments)
    for module in given.module:
        # A method that needs none of its parts is measured all the same.
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    steps = given.method.get("iterations", STEPS)
    wanted = {**given.method, "iterations": max(STEPS, steps) if isinstance(steps, int) else steps}
    try:
        config = compose(wanted, given.prompt, 0)
        prior = load_prior(config.prior, pick_device(config.device))
    except ValueError as error:
        parser.error(str(error))
    print(json.dumps(_measured(config, prior)))


def _measured(config: DictConfig, prior: Prior) -> dict[str, float]:
    """What ``measure_cost`` returns, of this process."""
    cuda = prior.device.type == "cuda"

    def size() -> float:
        return torch.cuda.max_memory_allocated(prior.device) / 2**20 if cuda else resident_mib()

    loaded, ends = size(), []

    def on_step() -> None:
        if cuda:
            torch.cuda.synchronize(prior.device)
        ends.append(time.perf_counter())

    few_steps(config, prior, STEPS, on_step)
    steps = [1000 * (later - before) for before, later in zip(ends[WARM - 1 :], ends[WARM:], strict=False)]
    return {"step_ms": statistics.median(steps), "peak_mib": size(), "training_mib": size() - loaded}


if __name__ == "__main__":
    main()

"""How much memory a loss needs: a few steps in a process of their own, whose peak nothing else has raised.

python -m distill.comparison.memory '{"guidance": "asd"}' "a red mug"
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

STEPS = 3


def peak_memory(wanted: Mapping[str, Any], prompt: str) -> dict[str, float]:
    """Measure a method in a new process.

    Returns:
        ``peak_mib``, of the whole process, and ``training_mib``, what the steps added to what was loaded. On
        CUDA both are what torch had allocated there.

    Raises:
        RuntimeError: the process failed; says why.
    """
    command = [sys.executable, "-m", __name__, json.dumps(dict(wanted)), prompt]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"could not measure memory: {done.stderr.strip().splitlines()[-1]}")
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def _resident_mib() -> float:
    """The process's largest resident size so far."""
    import resource

    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / 2**20 if sys.platform == "darwin" else size / 2**10


def main() -> None:
    import torch

    from distill.comparison.run import compose, few_steps
    from distill.priors import load_prior
    from distill.run import pick_device

    wanted, prompt = json.loads(sys.argv[1]), sys.argv[2]
    config = compose(wanted, prompt, 0)
    prior = load_prior("embedded", pick_device(config.device))
    cuda = prior.device.type == "cuda"

    def now() -> float:
        return torch.cuda.max_memory_allocated(prior.device) / 2**20 if cuda else _resident_mib()

    loaded = now()
    few_steps(config, prior, STEPS)
    print(json.dumps({"peak_mib": now(), "training_mib": now() - loaded}))


if __name__ == "__main__":
    main()

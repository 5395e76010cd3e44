"""Make the assets of a file of prompts on the machines of a Ray cluster, one prompt at a time.

    pip install 'distill3d[ray]'
    python examples/queues/ray_prompts.py list.txt --workers 2 output_dir=runs iterations=400       # this machine
    python examples/queues/ray_prompts.py list.txt --workers 64 --gpus 1 --address auto output_dir=/shared/runs prior=sd-2.1-base

Each worker is an actor that loads the prior once; the driver gives a prompt to each that is free. What is finished is skipped, so the same
command goes on after anything. If a worker dies, its prompt goes back to the queue and a new worker takes its place; a prompt that was
given ``--tries`` times to workers that died is given up. All workers write below one folder, which must be on a file system that they share.
At the end there is one table over all (``distill summary``).
"""

from __future__ import annotations

import argparse
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from distill.run.batch import Row, embed_first, finished_before, make_one, read_prompts, tell
from distill.run.compose import compose_config, quote, quote_text
from distill.run.folders import check_root
from distill.run.summary import as_text, summarise


class Worker:
    """A process with a prior: Ray makes it an actor."""

    def __init__(self, config: DictConfig, root: str) -> None:
        from distill.run.assemble import open_prior, pick_device

        self.config, self.root = config, Path(root)
        self.prior = open_prior(config, pick_device(config.device))

    def embed(self, prompts: Sequence[str]) -> None:
        """Embed prompts at once, so that the text encoders are loaded once; ``DISTILL_CACHE`` keeps them for all workers."""
        embed_first(self.config, prompts, self.prior)

    def make(self, prompt: str) -> Row:
        """Make the asset of one prompt; a failure is in its row."""
        return make_one(self.config, prompt, self.root, self.prior)


def fitting(there: Mapping[str, float], each: Mapping[str, float]) -> int:
    """How many workers that need so much each fit a cluster; one that never starts would hold its prompt forever.

    Raises:
        ValueError: not even one does.
    """
    most = min((int(there.get(name, 0.0) / need) for name, need in each.items() if need), default=10**9)
    if most < 1:
        raise ValueError(
            f"a worker needs {dict(each)} of a cluster that has {dict(there)}; choose other --cpus and --gpus"
        )
    return most


def make_all(
    config: DictConfig,
    prompts: Sequence[str],
    root: Path,
    workers: int,
    gpus: float = 0.0,
    cpus: float = 1.0,
    tries: int = 3,
) -> list[Row]:
    """Make the assets of prompts with workers of a Ray that is started.

    Args:
        config: of the queue, with ``prompts=``.
        prompts: whose assets to make.
        root: the folder for all, which the workers share.
        workers: how many actors.
        gpus: of each actor; Ray shows each its own.
        cpus: of each actor.
        tries: how many workers may die of one prompt.

    Returns:
        A row for each prompt, in the order in which they ended.
    """
    import ray

    workers = min(workers, len(prompts), fitting(ray.cluster_resources(), {"CPU": cpus, "GPU": gpus}))
    actor: Any = ray.remote(num_gpus=gpus, num_cpus=cpus)(Worker)
    waiting = deque((prompt, 1) for prompt in prompts)
    rows: list[Row] = []
    at_work: dict[Any, tuple[Any, str, int]] = {}

    def give(worker: Any) -> None:
        if waiting:
            prompt, tried = waiting.popleft()
            at_work[worker.make.remote(prompt)] = (worker, prompt, tried)

    first = actor.remote(config, str(root))
    ray.get(first.embed.remote(list(prompts)))
    give(first)
    for _ in range(workers - 1):
        give(actor.remote(config, str(root)))
    while at_work:
        (done,), _ = ray.wait(list(at_work), num_returns=1)
        worker, prompt, tried = at_work.pop(done)
        try:
            rows.append(ray.get(done))
        except ray.exceptions.RayActorError as error:
            print(f"{prompt}: its worker died ({str(error).splitlines()[0]})", file=sys.stderr)
            if tried < tries:
                waiting.append((prompt, tried + 1))
            else:
                rows.append(Row(prompt, f"{tries} workers died of it", "", 0.0))
            worker = actor.remote(config, str(root)) if waiting else None
        if worker is not None:
            give(worker)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script; returns its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("prompts", help="a text file with one prompt per line")
    parser.add_argument("options", nargs="*", help="of the runs, such as iterations=400 prior=FOLDER")
    parser.add_argument("--workers", type=int, default=2, help="how many actors")
    parser.add_argument("--gpus", type=float, default=0.0, help="of each actor, such as 1")
    parser.add_argument("--cpus", type=float, default=1.0, help="of each actor, above 0")
    parser.add_argument("--tries", type=int, default=3, help="workers that may die of one prompt")
    parser.add_argument(
        "--address", help="of a running cluster, such as auto; without it, Ray is started on this machine"
    )
    given = parser.parse_intermixed_args(arguments)
    try:
        config = compose_config([f"prompts={quote(given.prompts)}", *map(quote_text, given.options)])
        prompts, root = read_prompts(config), check_root(config)
    except ValueError as error:
        print(f"ray_prompts: {error}", file=sys.stderr)
        return 2
    done = finished_before(config, root)
    left = [prompt for prompt in prompts if not done(prompt)]
    print(f"{len(prompts) - len(left)} of {len(prompts)} prompts were finished before")
    import ray

    ray.init(address=given.address, include_dashboard=False, log_to_driver=True)
    try:
        rows = (
            make_all(config, left, root, given.workers, given.gpus, given.cpus, given.tries) if left else []
        )
    except (ray.exceptions.RayError, ValueError) as error:
        print(f"ray_prompts: no worker can start: {' '.join(str(error).split())[-300:]}", file=sys.stderr)
        return 1
    finally:
        ray.shutdown()
    tell(rows, root / "batch-ray.csv")
    print(as_text(summarise(root)[0]))
    return 0 if all(row.state in ("finished", "skipped") for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())

"""Make the assets of a file of prompts on the machines of a Ray cluster, one prompt at a time.

    pip install '.[ray]'
    python examples/queues/ray_prompts.py list.txt --workers 2 output_dir=runs iterations=400       # this machine
    python examples/queues/ray_prompts.py list.txt --workers 64 --gpus 1 --address auto output_dir=/shared/runs prior=sd-2.1-base

Each worker is an actor that loads the prior once; the driver gives a prompt to each that is free. What is finished is skipped, so the same
command continues after anything. If a worker dies, its prompt goes back to the queue and a new worker takes its place; a prompt that was
given ``--tries`` times to workers that died is given up, and one that fails is listed in the table. All workers write below one folder, which
must be on a file system that they share. With ``shard=i/n``, the list is every n-th prompt. At the end there is one table over all
(``distill summary``).
"""

from __future__ import annotations

import argparse
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from distill.devices import pick_device
from distill.run.assembly.prior import open_prior
from distill.run.config.overrides import quote, quote_text
from distill.run.folder.folders import check_root
from distill.run.folder.summary import as_text, summarise
from distill.run.folder.table import Row, tell
from distill.run.several.batch import check_parts, embed_first, finished_ones, make_one
from distill.run.several.queue import Part, Queue, by_prior, compose_queue, table_of


class Worker:
    """A process with a prior: Ray makes it an actor.

    Args:
        parts: of a queue, which share the prior.
        root: the folder for all assets.
    """

    def __init__(self, parts: Sequence[Part], root: str) -> None:
        self.parts, self.root = parts, Path(root)
        config = parts[0].config
        self.prior = open_prior(config, pick_device(config.device))

    def embed(self) -> None:
        """Embed prompts at once, so that the text encoders are loaded once; ``DISTILL_CACHE`` keeps them for all workers."""
        for config, prompts in self.parts:
            embed_first(config, prompts, self.prior)

    def make(self, prompt: str) -> Row:
        """Make the asset of one prompt; a failure is in its row."""
        config = next(part.config for part in self.parts if prompt in part.prompts)
        return make_one(config, prompt, self.root, self.prior)


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
    parts: Sequence[Part],
    root: Path,
    workers: int,
    gpus: float = 0.0,
    cpus: float = 1.0,
    tries: int = 3,
) -> Iterator[Row]:
    """Make the assets of prompts with workers of a Ray that is started.

    Args:
        parts: with the prompts whose assets to make, one at least; they share a prior.
        root: the folder for all, which the workers share.
        workers: how many actors.
        gpus: of each actor; Ray shows each its own.
        cpus: of each actor.
        tries: how many workers may die of one prompt.

    Yields:
        A row for each prompt, in the order in which they end.

    Raises:
        ValueError: no worker fits the cluster.
        ray.exceptions.RayError: the first worker does not start.
    """
    import ray

    prompts = [prompt for part in parts for prompt in part.prompts]
    workers = min(workers, len(prompts), fitting(ray.cluster_resources(), {"CPU": cpus, "GPU": gpus}))
    actor: Any = ray.remote(num_gpus=gpus, num_cpus=cpus)(Worker)
    waiting = deque((prompt, 1) for prompt in prompts)
    at_work: dict[Any, tuple[Any, str, int]] = {}

    def give(worker: Any) -> None:
        if waiting:
            prompt, tried = waiting.popleft()
            at_work[worker.make.remote(prompt)] = (worker, prompt, tried)

    first = actor.remote(parts, str(root))
    try:
        ray.get(first.embed.remote())
    except ray.exceptions.RayTaskError as error:
        print(f"the prompts are embedded run by run: {line_of(error)}", file=sys.stderr)
    give(first)
    for _ in range(workers - 1):
        give(actor.remote(parts, str(root)))
    while at_work:
        (done,), _ = ray.wait(list(at_work), num_returns=1)
        worker, prompt, tried = at_work.pop(done)
        row: Row | None = None
        try:
            row = ray.get(done)
        except ray.exceptions.RayTaskError as error:  # the prompt has failed; its worker is as before
            row = Row(prompt, line_of(error), "", 0.0)
        except ray.exceptions.RayError as error:
            print(f"{prompt}: its worker died ({str(error).splitlines()[0]})", file=sys.stderr)
            if tried < tries:
                waiting.append((prompt, tried + 1))
            else:
                row = Row(prompt, f"{tries} workers died of it", "", 0.0)
            worker = actor.remote(parts, str(root)) if waiting else None
        if worker is not None:
            give(worker)
        if row:
            yield row


def line_of(error: BaseException) -> str:
    """What an error of Ray says, in one line: of a traceback, its last line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(lines[-1].split())[:300]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script; returns its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("prompts", help="a text file with one prompt per line, or a library in JSON")
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
        queue = compose_queue([f"prompts={quote(given.prompts)}", *map(quote_text, given.options)])
        root, left = to_make(queue, given.gpus)
        if find_spec("ray") is None:
            raise ValueError("this script needs the package ray; install it with pip install ray")
    except ValueError as error:
        print(f"ray_prompts: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    rows = list[Row]()
    try:
        if left:
            work(left, root, given, rows)
    except KeyboardInterrupt:
        return 130
    except ValueError as error:
        print(f"ray_prompts: error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        print(f"ray_prompts: error: {error}", file=sys.stderr)
        return 1
    finally:  # whatever ended the work
        if rows:
            tell(rows, (path := table_of(queue.config)).with_name(path.name.replace("batch", "batch-ray")))
    try:
        print(as_text(summarise(root)[0]))
    except ValueError as error:
        print(f"ray_prompts: error: {error}", file=sys.stderr)
        return 1
    return 1 if any(row.failed for row in rows) else 0


def to_make(queue: Queue, gpus: float) -> tuple[Path, list[Part]]:
    """Check a queue before any worker is started; returns the folder for all and the parts with prompts that are not finished.

    Raises:
        ValueError: something in the configuration is wrong, in one line.
    """
    config = queue.config
    if config.view:
        raise ValueError("view=true shows the runs of one process, and Ray's are many; leave it out")
    root = check_root(config).absolute()
    if not queue.parts:
        raise ValueError(f"shard={config.shard} has none of the prompts of {config.prompts}")
    done, left = finished_ones(queue, root)
    print(f"{len(done)} of {sum(len(part.prompts) for part in queue.parts)} prompts were finished before")
    if left:
        # The workers have the GPUs; this machine may have none. With max_vram, this chooses what all of them do.
        check_parts(left, torch.device("cuda") if gpus else pick_device(config.device))
    return root, left


def work(left: Sequence[Part], root: Path, given: argparse.Namespace, rows: list[Row]) -> None:
    """Start Ray, and append a row for each prompt as it ends; the workers of one prior come after those of another.

    Raises:
        ValueError: no worker fits the cluster.
        RuntimeError: no worker starts, or Ray itself fails.
    """
    import ray

    try:
        ray.init(address=given.address, include_dashboard=False, log_to_driver=True)
    except (OSError, ray.exceptions.RayError) as error:  # a cluster that is not there is a ConnectionError
        raise RuntimeError(f"Ray does not start: {line_of(error)}") from error
    try:
        for parts in by_prior(left):
            for row in make_all(parts, root, given.workers, given.gpus, given.cpus, given.tries):
                rows.append(row)
    except ray.exceptions.RayError as error:
        raise RuntimeError(f"no worker can start: {line_of(error)}") from error
    finally:
        ray.shutdown()


if __name__ == "__main__":
    raise SystemExit(main())

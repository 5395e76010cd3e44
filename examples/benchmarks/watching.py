"""Time a training step with nobody looking and with one viewer, beside a step without a page.

Run ``python examples/benchmarks/watching.py``; with ``--steps 5 --rounds 2`` it takes seconds. One run goes through all three ways in
turn, a few steps each, so other load on the machine affects them equally.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from distill import loop
from distill.live.desk import Desk
from distill.live.server import listen
from distill.run.assembly.assemble import assemble
from distill.run.config.compose import compose_config
from distill.run.journal import Journal


@contextlib.contextmanager
def viewer(port: int) -> Iterator[list[int]]:
    """What an open page asks for: a large picture as soon as the last one has come, the state twice a second."""
    leave, seen = threading.Event(), [0]

    def get(path: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        return answer.status

    def pictures() -> None:
        while not leave.is_set():
            seen[0] += get("/frame?azimuth=30&size=256") == 200

    def states() -> None:
        while not leave.wait(0.5):
            get("/state?run=1&since=0")

    threads = [threading.Thread(target=each, daemon=True) for each in (pictures, states)]
    for thread in threads:
        thread.start()
    yield seen
    leave.set()


def measure(words: list[str], steps: int, rounds: int) -> dict[str, float]:
    """Seconds of a step by way, medians over the rounds, and the pictures that the viewer got per second."""
    config = compose_config(
        [
            *words,
            f"iterations={3 * steps * (rounds + 1)}",
            "log.tensorboard=false",
            "log.preview_every=0",
            "log.checkpoint_every=0",
        ]
    )
    job, desk = assemble(config), Desk()
    server = listen("127.0.0.1", 0, desk)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    times: dict[str, list[float]] = {"without": [], "nobody": [], "viewer": []}
    pictures = 0
    with tempfile.TemporaryDirectory() as name:
        folder, stop = Path(name), threading.Event()
        journal = Journal(folder, config.log, config.iterations, 0, job.views, stop)
        desk.begin(config.prompt, folder, config.iterations, 0, job.views, stop)
        gradients = loop.retrying(job)

        def some() -> float:
            start = time.perf_counter()
            for _ in range(steps):
                seen, metrics = loop.step(job, gradients)
                journal(job.state, metrics, seen.render)
            return (time.perf_counter() - start) / steps

        for turn in range(rounds + 1):
            for way in times:
                journal.desk = None if way == "without" else desk
                with (
                    viewer(int(server.server_address[1]))
                    if way == "viewer"
                    else contextlib.nullcontext([0]) as seen
                ):
                    took = some()
                    pictures += seen[0] if turn else 0
                # The viewer's last wish is met outside the measurement.
                desk.rest_until = 0.0
                if desk.looks:
                    desk.attend(job.state.step, {}, partial(int))
                if turn:  # the first round warms up
                    times[way].append(took)
        journal.close()
    server.shutdown()
    found = {way: statistics.median(each) for way, each in times.items()}
    for way in ("nobody", "viewer"):
        ratios = [a / b for a, b in zip(times[way], times["without"], strict=True)]
        found[f"{way} / without"] = statistics.median(ratios)
    return {**found, "pictures per second": pictures / (steps * sum(times["viewer"]))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("options", nargs="*", help="of the run, e.g. prior=DIR device=cuda")
    parser.add_argument("--steps", type=int, default=20, help="in a row, of each way")
    parser.add_argument("--rounds", type=int, default=6)
    given = parser.parse_args()
    words = (
        given.options
        if any(word.startswith("prompt=") for word in given.options)
        else [*given.options, "prompt='a red mug'"]
    )
    found = measure(words, given.steps, given.rounds)
    print(json.dumps({name: round(value, 4) for name, value in found.items()}, indent=1))


if __name__ == "__main__":
    main()

"""What a training step costs, part by part, over the diffusion model's forward pass alone; all in one run.

The step is the main job's, with its default settings, in the thick of training.
python examples/benchmarks/step.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from distill.config import compose_config
from distill.guidance.terms import predict
from distill.priors import load_prior
from distill.renderers.hashgrid import encode
from distill.renderers.march import composite, march
from distill.run import build, make_condition


class Clock:
    """Milliseconds by part; waits for the device at both ends."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.parts = device, dict[str, list[float]]()

    def wait(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def __call__(self, part: str, work: Callable[[], Any]) -> Any:
        start = self.wait()
        result = work()
        self.parts.setdefault(part, []).append((self.wait() - start) * 1000)
        return result

    def median(self, part: str) -> float:
        return statistics.median(self.parts[part])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompt", default="a red mug")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--warm-steps", type=int, default=150, help="steps before measuring: the scene must be sparse"
    )
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=4)
    options = parser.parse_args()
    device, batch = torch.device(options.device), options.batch
    clock = Clock(device)
    g = torch.Generator().manual_seed(0)
    prior = load_prior("embedded", device)
    config = compose_config([f"prompt={options.prompt}", f"device={options.device}"])
    parts = build(config, prior)
    scene, optimiser = parts.scenes[0], parts.state.optimiser
    condition = make_condition(config, prior, parts)

    def step(number: int) -> None:
        progress = number / config.iterations
        views = parts.cameras(progress, batch, g).to(device)
        t = parts.timesteps(progress, batch, g).to(device)
        clock("occupancy", lambda: scene.update(number, progress, g))
        picture = clock("render", lambda: parts.render(scene, views, 64, 64, generator=g))
        x = prior.encode(picture.rgb.movedim(-1, 1))
        noise = torch.randn(x.shape, generator=g).to(device)
        cond = condition(views)
        grad = clock("prior and loss", lambda: parts.guidance(prior, x.detach(), cond, t, noise))
        clock("backward", lambda: x.backward(grad / batch))
        clock("optimiser", optimiser.step)
        optimiser.zero_grad(set_to_none=True)
        # Beside each step, in the same weather: the network alone, and the render's parts again.
        clock("network alone", lambda: predict(prior, x.detach(), t, cond.text, cond.uncond))
        inside(views)

    @torch.no_grad()
    def inside(views: object) -> None:
        origins, directions = (part.view(-1, 3) for part in views.rays(64, 64))  # type: ignore[attr-defined]
        jitter = torch.full((len(origins),), 0.5, device=device)
        samples = clock(
            "  march", lambda: march(origins, directions, jitter, scene.occupancy, scene.step_size)
        )
        unit = samples.points * 0.5 + 0.5
        features = clock("  encode", lambda: encode(unit, scene.grid, scene.layout))
        clock("  MLP", lambda: scene.mlp(features))
        density, colour = scene.query(samples.points)
        clock("  composite", lambda: composite(density, colour, samples))
        clock.parts.setdefault("samples", []).append(len(samples.points))

    for number in range(options.warm_steps + options.steps):
        if number == options.warm_steps:
            clock.parts.clear()
        step(number)

    whole = sum(clock.median(part) for part in ("render", "prior and loss", "backward", "optimiser"))
    occupancy = statistics.mean(clock.parts["occupancy"])  # once in 16 steps, so its mean
    whole += occupancy
    alone = clock.median("network alone")
    print(
        f"{device}, {torch.get_num_threads()} threads, {batch} views of 64x64, {clock.median('samples'):.0f} samples"
    )
    for part in (
        "occupancy",
        "render",
        "  march",
        "  encode",
        "  MLP",
        "  composite",
        "prior and loss",
        "backward",
        "optimiser",
    ):
        cost = occupancy if part == "occupancy" else clock.median(part)
        print(f"{part:<16}{cost:8.1f} ms")
    print(f"{'step':<16}{whole:8.1f} ms")
    print(f"{'network alone':<16}{alone:8.1f} ms")
    print(f"a step costs {whole / alone:.2f} times the network's forward pass alone")


if __name__ == "__main__":
    main()

"""Time the hash-grid encoding's backends side by side, and a rendering step.

Run ``python examples/benchmarks/encoding.py``; with ``--points 20000 --repeats 2`` it takes seconds.
The backends alternate within each repeat, so other load on the machine affects them equally.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from distill.cameras import turntable
from distill.contracts import Step
from distill.job import make_optimiser
from distill.renderers.hashgrid import encode, hash_layout
from distill.renderers.nerf import HashGridScene


def seconds(action: Callable[[], object], device: torch.device) -> float:
    """Wall-clock time of one call, including the device's queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def time_encodings(
    names: list[str], count: int, repeats: int, device: torch.device
) -> dict[str, tuple[float, float]]:
    """Median seconds of the forward and of the backward pass, by backend."""
    generator = torch.Generator().manual_seed(0)
    layout = hash_layout(levels=16, features=2, log2_table_size=15, base_resolution=16, finest_resolution=512)
    points = torch.rand(count, 3, generator=generator).to(device)
    params = (torch.rand(layout.num_params, generator=generator) - 0.5).to(device).requires_grad_()
    upstream = torch.randn(count, layout.width, generator=generator).to(device)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for repeat in range(repeats + 1):
        for name in names:
            out: list[torch.Tensor] = []
            forward = seconds(partial(_append, out, points, params, layout, name), device)
            backward = seconds(partial(torch.autograd.grad, out, params, upstream), device)
            if repeat > 0:  # the first compiles kernels
                times[name].append((forward, backward))
    return {name: (statistics.median(f), statistics.median(b)) for name, (f, b) in _columns(times).items()}


def _append(out: list[torch.Tensor], *arguments: Any) -> None:
    out.append(encode(*arguments))


def _columns(times: dict[str, list[tuple[float, float]]]) -> dict[str, tuple[list[float], list[float]]]:
    return {name: ([f for f, _ in pairs], [b for _, b in pairs]) for name, pairs in times.items()}


def time_rendering(repeats: int, device: torch.device) -> tuple[float, float]:
    """Median seconds of four 64 x 64 pictures forward and backward, and the share of pixels that are hit."""
    scene = HashGridScene(blob_scale=25.0, blob_radius=0.75).to(device)
    generator = torch.Generator().manual_seed(0)
    scene.update(Step(), make_optimiser(scene, (0.9, 0.99), 1e-15, 0.0), generator)
    cameras = turntable(4).to(device)

    def step() -> None:
        scene.render(cameras, 64, 64, generator=generator).rgb.square().mean().backward()

    step()
    with torch.no_grad():
        hit = (scene.render(cameras, 64, 64).opacity > 0.5).float().mean().item()
    return statistics.median(seconds(step, device) for _ in range(repeats)), hit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=262_144)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--backends", nargs="+", default=["torch", "warp"])
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    times = time_encodings(arguments.backends, arguments.points, arguments.repeats, device)
    print(f"{arguments.points} points, 16 levels x 2 features, 2^15 table, {torch.get_num_threads()} threads")
    base = sum(times[arguments.backends[0]])
    for name, (forward, backward) in times.items():
        ratio = base / (forward + backward)
        print(
            f"{name:>12}: forward {forward * 1e3:8.1f} ms  backward {backward * 1e3:8.1f} ms  {ratio:6.1f}x"
        )
    step, hit = time_rendering(arguments.repeats, device)
    print(f"four 64 x 64 pictures, {hit:.0%} of pixels hit, forward and backward: {step * 1e3:.1f} ms")


if __name__ == "__main__":
    main()

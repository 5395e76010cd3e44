"""Time a configuration's training step, part by part, and the network's share of it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from measuring import Clock, peak_gib, reset_peak
from omegaconf import OmegaConf
from torch import Tensor

from distill.contracts import Condition, Step
from distill.forecast.network import calls_of
from distill.guidance.terms import predict
from distill.job import Job
from distill.loop import clipped
from distill.renderers.march import composite, march
from distill.run.assembly.assemble import assemble
from distill.transfer import send

#: What a render is made of, and the rest of a step, in order.
RENDER = ("march", "field", "composite")
PARTS = (
    "occupancy", "render", *RENDER, "encode", "prior and loss", "backward", "encode back", "learner", "optimiser",
    "step", "network",
)  # fmt: skip
#: Options that change a step's course, and what they are where it is measured.
FIXED = {
    "particles": 1, "render.at_once": None, "render.patch": None, "render.latent_until": 0.0, "prior_options.control": None
}  # fmt: skip


def measure(config: Any, prior: Any, warm_steps: int, steps: int) -> dict[str, float]:
    """Time steps of a configuration, as in ``distill.loop.train`` but without penalties.

    Returns:
        ``PARTS`` by name, medians in milliseconds, without those that the loss has not; ``encode back``, the VAE's share, is
        in ``backward``. ``step / network``, and ``without VAE / network``, less both of the VAE's. ``samples`` on all rays of a
        step. ``peak GiB``, the most that a step took, the prior included.

    Raises:
        ValueError: a gradient is not finite, or an option changes a step's course.
    """
    for name, value in FIXED.items():
        if OmegaConf.select(config, name) != value:
            raise ValueError(f"steps are measured without {name}=; leave it out")
    job, batch, device = assemble(config, prior), config.render.batch, prior.device
    learner = job.state.learner
    rows = [2 * batch] if learner else calls_of(job.guidance, batch)
    clock, samples, peaks = Clock(device), list[int](), list[float]()
    for number in range(warm_steps + steps):
        if number == warm_steps:
            for kept in (clock.parts, samples, peaks):
                kept.clear()
        reset_peak(device)
        x, t, cond = timed_step(config, job, clock, number)
        peaks.append(peak_gib(device))
        # Beside each step, in the same weather: the network alone, and the render's parts again.
        with clock("network"):
            network_alone(prior, learner, rows, x, t, cond)
        samples.append(inside(clock, job.scenes[0], cond.cameras, config.render.size))
    return figures(clock, samples, peaks)


def timed_step(config: Any, job: Job, clock: Clock, number: int) -> tuple[Tensor, Tensor, Condition]:
    """Do one training step and time its parts; returns the latents, the timesteps and the condition.

    Raises:
        ValueError: a gradient is not finite.
    """
    prior, optimiser, learner, g = job.prior, job.state.optimiser, job.state.learner, job.state.generator
    batch, size, device = config.render.batch, config.render.size, prior.device
    progress = number / config.iterations
    with clock("occupancy"):
        job.scenes[0].update(Step(number, progress), optimiser, g)
    with clock("step"):
        cameras = job.cameras(progress, batch, g)
        views = cameras.to(device)
        with clock("render"):
            picture = job.render(views, size, size, generator=g)
        image = picture.rgb.movedim(-1, 1)
        cut = image.detach().requires_grad_()  # tells the VAE's way back from the renderer's
        with clock("encode"):
            x = prior.encode(cut)
        t = send(job.timesteps(progress, batch, g), device)
        noise = send(torch.randn(x.shape, generator=g), device).to(x)
        uniform = send(torch.rand(batch, generator=g), device)
        cond = replace(job.condition(cameras, Step(number, progress, uniform), picture), cameras=views)
        with clock("prior and loss"), torch.no_grad():
            grad = job.guidance(prior, x.detach(), cond, t, noise)
        optimiser.zero_grad(set_to_none=True)
        with clock("backward"):
            with clock("encode back"):
                x.backward(grad / batch)
            image.backward(cut.grad)
        x = x.detach()
        if learner:
            with clock("learner"):
                learner.learn(prior, x, cond, g)
        with clock("optimiser"):
            norm = clipped(job.state.parameters(), 0.0).item()
            optimiser.step()
    if not math.isfinite(norm):
        raise ValueError(
            f"expected finite gradients, got one of norm {norm} in step {number}; try --dtype float32"
        )
    return x, t, cond


def figures(clock: Clock, samples: Sequence[int], peaks: Sequence[float]) -> dict[str, float]:
    """Summarise measured steps, as ``measure`` returns them."""
    found = {part: statistics.median(clock.parts[part]) for part in PARTS if part in clock.parts}
    found["occupancy"] = statistics.mean(clock.parts["occupancy"])  # once in 16 steps, so its mean
    found["step"] += found["occupancy"]
    without = found["step"] - found["encode"] - found["encode back"]
    return {
        **found,
        "step / network": found["step"] / found["network"],
        "without VAE / network": without / found["network"],
        "samples": statistics.median(samples),
        "peak GiB": max(peaks),
    }


def network_alone(
    prior: Any, learner: Any, rows: Sequence[int], x: Tensor, t: Tensor, cond: Condition
) -> None:
    """Run only the network evaluations of a step.

    Args:
        prior: the frozen diffusion model.
        learner: VSD, whose copy predicts once and learns; None for losses that learn nothing.
        rows: of the prior's calls, multiples of the batch.
        x: latents, shape ``[batch, channel, height, width]``.
        t: timesteps, shape ``[batch]``.
        cond: the embeddings.
    """
    for count in rows:
        predict(prior, x, t, cond, *["text"] * (count // len(x)))
    if learner is not None:
        student = learner.student
        with torch.no_grad():
            student.predict_noise(x, t, cond.text, cond.cameras)
        for _ in range(learner.updates):
            student.predict_noise(x, t, cond.text, cond.cameras).sum().backward()


@torch.no_grad()
def inside(clock: Clock, scene: Any, views: Any, size: int) -> int:
    """Time the parts of a render separately; returns the number of samples."""
    origins, directions = (part.view(-1, 3) for part in views.rays(size, size))
    jitter = torch.full((len(origins),), 0.5, device=clock.device)
    with clock("march"):
        samples = march(origins, directions, jitter, scene.occupancy, scene.step_size)
    with clock("field"):
        density, colour = scene.query(samples.points)
    with clock("composite"):
        composite(density, colour, samples)
    return len(samples.points)

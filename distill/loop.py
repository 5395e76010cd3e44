"""The optimiser loop: render, evaluate the prior, step."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from distill.cameras import Cameras
from distill.contracts import Condition, Prior, Render, Renderer, ShadedRenderer, Step
from distill.job import Job, OnStep, Settings, State, views_at_once, views_of_a_process
from distill.parts.step import check_learnt, check_render, check_traced, drawing_nothing, gradient_of
from distill.ranks import Ranks, streams
from distill.samplers.timesteps import check_drawn
from distill.transfer import send
from distill.wording import counted

log = logging.getLogger(__name__)

#: Share of steps that are left out of which a run says nothing.
FEW = 0.1


class Diverged(RuntimeError):
    """Too many consecutive steps had non-finite gradients."""


class OutOfMemory(RuntimeError):
    """A step did not fit the device's memory, and neither did a smaller one."""


def train(job: Job, on_step: OnStep = lambda *_: None) -> State:
    """Optimise the scene with the guidance loss.

    Args:
        job: the parts; its state is advanced in place.
        on_step: called after each step.

    Raises:
        Diverged: ``settings.max_bad_steps`` steps in a row had gradients, the scene's or the guidance's own, that are not
            finite, or all steps of a run that is at its end.
        OutOfMemory: a step does not fit, not even with less memory.
    """
    state, settings, bad = job.state, job.settings, 0
    metrics: dict[str, float] = {}
    gradients, first = retrying(job), True
    while state.step < settings.iterations:
        before = state.generator.get_state()
        try:
            seen, metrics = first_step(job, gradients) if first else step(job, gradients)
        except OutOfMemory:
            state.generator.set_state(before)  # a run that is resumed here begins with this step
            raise
        first, learnt = False, metrics.get("learner_loss", 0.0)
        bad = 0 if math.isfinite(metrics["grad_norm"]) and math.isfinite(learnt) else bad + 1
        if bad >= settings.max_bad_steps:
            raise Diverged(_why(metrics, bad, state.step - 1))
        if on_step(state, metrics, seen.render):
            break
    if metrics and state.skipped == state.step == settings.iterations:
        raise Diverged(_why(metrics, state.skipped, state.step - 1))
    tell_skipped(state)
    return state


def tell_skipped(state: State) -> None:
    """Warn of skipped steps, if there are more than a few."""
    if state.skipped > FEW * state.step:
        log.warning(
            "%d of %d steps were skipped, because their gradients were not finite", state.skipped, state.step
        )


@dataclass(frozen=True)
class Seen:
    """Inputs of the prior for some views, detached, and the resulting gradient."""

    x: Tensor
    t: Tensor
    cond: Condition
    grad: Tensor
    render: Render
    learnt: float | None = None


class Gradients(Protocol):
    """Accumulates the gradient of one prompt's views in the scene's parameters."""

    def __call__(self, job: Job, now: Step, cameras: Cameras, generator: torch.Generator, /) -> Seen: ...


def step(job: Job, gradients: Gradients | None = None) -> tuple[Seen, dict[str, float]]:
    """Train for one step: update the scene, render it, evaluate the prior, update the parameters.

    Args:
        job: the parts; its state is advanced in place.
        gradients: ``accumulate`` by default; ``train`` gives one that tries again with less memory.

    Returns:
        What the prior was given and returned, for the last prompt of this process, and the step's metrics.
    """
    state, settings, ranks = job.state, job.settings, job.ranks
    now, parameters = Step(state.step, state.step / settings.iterations), list[nn.Parameter]()
    prompts = range(settings.accumulate)
    own, seen = ranks.share(prompts) if settings.accumulate > 1 else prompts, list[Seen]()
    for prompt, g in zip(prompts, streams(state.generator, settings.accumulate), strict=True):
        now = replace(now, drawn=state.step * settings.accumulate + prompt)
        # Of every prompt, so that all processes know what is where.
        state.scene.update(now, state.optimiser, g)
        if prompt in own:
            before = [parameter.grad for parameter in parameters]
            cameras = job.cameras(now.progress, settings.batch, g)
            seen.append((gradients or accumulate)(job, now, cameras, g))
            parameters = state.parameters()
            _plus(parameters, before)
    ranks.add(parameters)
    _divide(parameters, settings.accumulate)
    metrics = _measure(state.step, seen, clipped(parameters, settings.clip_norm), ranks)
    if math.isfinite(metrics["grad_norm"]):
        move(state, settings, now.progress)
    else:
        state.skipped += 1
    state.step += 1
    return seen[-1], metrics


def first_step(job: Job, gradients: Gradients) -> tuple[Seen, dict[str, float]]:
    """A ``step`` that warns of random numbers from torch's global generator, which neither the seed nor a checkpoint fixes."""
    device = job.prior.device
    told = list[str]()

    def guidance(*given: Any) -> Tensor:
        with drawing_nothing("the loss", device, told):
            return job.guidance(*given)

    with drawing_nothing(
        "a part of the run (scene, cameras, timesteps, prior or what the loss learns)", device, told
    ):
        found = step(replace(job, guidance=guidance), gradients)
    for said in told[:1]:
        log.warning("%s", said)
    return found


def _plus(parameters: Sequence[nn.Parameter], before: Sequence[Tensor | None]) -> None:
    """Add earlier gradients, none at first."""
    for parameter, earlier in zip(parameters, before or [None] * len(parameters), strict=True):
        if earlier is not None:
            parameter.grad = earlier if parameter.grad is None else earlier.add_(parameter.grad)


def _divide(parameters: Sequence[nn.Parameter], count: int) -> None:
    """Divide gradients by a number."""
    if count > 1:
        torch._foreach_div_([p.grad for p in parameters if p.grad is not None], float(count))


def clipped(parameters: Sequence[nn.Parameter], largest: float) -> Tensor:
    """Scale gradients down to a norm of at most ``largest``, 0 for no limit; returns their original norm, a scalar."""
    if largest:
        return nn.utils.clip_grad_norm_(parameters, largest)
    # With no bound, clipping would multiply every gradient by 1.
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def accumulate(job: Job, now: Step, cameras: Cameras, generator: torch.Generator) -> Seen:
    """Accumulate the gradient of a prompt's views, ``settings.at_once`` at a time, and train the guidance if it learns.

    Args:
        job: the parts.
        now: where in training the step is.
        cameras: all of the prompt's views; where processes share them, this one renders its own.
        generator: of all that is random.
    """
    state, at_once = job.state, views_at_once(job)
    state.optimiser.zero_grad(set_to_none=True)
    blocks = cameras.split(views_of_a_process(job))
    parts = [part for block in blocks for part in block.split(at_once)]
    drawn = list(zip(parts, streams(generator, len(parts)), strict=True))
    own = job.ranks.share(drawn) if len(blocks) > 1 else drawn
    seen = joined([see(job, now, part, stream) for part, stream in own])
    if state.learner:
        learnt = check_learnt(state.learner.learn(job.prior, seen.x, seen.cond, generator, at_once))
        seen = replace(seen, learnt=learnt)
    return seen


def see(job: Job, now: Step, cameras: Cameras, generator: torch.Generator) -> Seen:
    """Render some of a step's views, evaluate the prior, and add their share of the step's gradient to the scene's.

    Args:
        job: the parts.
        now: where in training the step is.
        cameras: where they are drawn, on the CPU; the renderer and the loss get them on the prior's device.
        generator: of all that is random.
    """
    prior, settings, count = job.prior, job.settings, len(cameras)
    there = cameras.to(prior.device)
    size = 8 * round(settings.size(now.progress) / 8)
    latent = now.progress < settings.latent_until
    take: Renderer = job.render
    if settings.shading:  # of a scene that can be shaded, which alone has shares of pictures
        take = partial(cast(ShadedRenderer, take), shading=settings.shading(now.progress, generator))
    render = take(there, size, size, generator=generator, normals=latent or settings.normals)
    check_render(render, (count, size, size), settings.penalties, normals=latent or settings.normals)
    x = as_latent(render, prior) if latent else prior.encode(render.rgb.movedim(-1, 1))
    check_traced(x)
    objects = count // prior.views
    drawn = check_drawn(prior, job.timesteps(now.progress, objects, generator), objects)
    t = send(drawn.repeat_interleave(prior.views), prior.device)
    noise = send(torch.randn(x.shape, generator=generator), x.device).to(x)
    uniform = send(torch.rand(objects, generator=generator).repeat_interleave(prior.views), prior.device)
    cond = replace(job.condition(cameras, replace(now, uniform=uniform), render), cameras=there)
    grad = gradient_of(job.guidance, prior, x.detach(), cond, t, noise)

    share = count / settings.batch
    weighted = [share * settings.penalties[k](now.progress) * value for k, value in render.penalties.items()]
    of_loss = grad * settings.guidance_weight(now.progress) / (1 if settings.summed else settings.batch)
    weighted = [value for value in weighted if value.requires_grad]  # a given shape's opacity does not
    torch.autograd.backward([x, *weighted], [of_loss, *[None] * len(weighted)])
    return Seen(x.detach(), t, cond, grad, render.detached())


def retrying(job: Job) -> Gradients:
    """Return an ``accumulate`` that, once a step runs out of memory, renders with less memory and half as many views at a time."""
    smaller: Job | None = None

    def gradients(given: Job, now: Step, cameras: Cameras, generator: torch.Generator) -> Seen:
        nonlocal smaller
        before = generator.get_state()
        try:
            return accumulate(smaller or given, now, cameras, generator)
        except torch.OutOfMemoryError as error:
            if smaller or job.frugal is None:
                raise OutOfMemory(
                    _too_large(now.index, views_at_once(smaller or job), job.prior.views)
                ) from error
        # Not in the handler, which keeps the failed step's tensors alive.
        fewer = replace(job.settings, at_once=max(1, views_at_once(job) // 2))
        smaller = replace(job, settings=fewer, render=job.frugal)
        log.warning(
            "step %d did not fit in memory; continuing with %s at a time",
            now.index,
            counted(views_at_once(smaller), "view"),
        )
        generator.set_state(before)
        torch.cuda.empty_cache()
        return gradients(given, now, cameras, generator)

    return gradients


def joined(parts: Sequence[Seen]) -> Seen:
    """Concatenate the results of a step's parts."""
    if len(parts) == 1:
        return parts[0]
    return Seen(
        x=torch.cat([part.x for part in parts]),
        t=torch.cat([part.t for part in parts]),
        grad=torch.cat([part.grad for part in parts]),
        cond=Condition.joined([part.cond for part in parts]),
        render=Render.joined([part.render for part in parts]),
    )


def as_latent(render: Render, prior: Prior) -> Tensor:
    """Stack normals and opacity as the four channels of a latent, in [-1, 1], shape ``[batch, 4, height, width]``.

    They are close enough to a latent for a prior to shape a scene's first, coarse form without the VAE.

    Source: Chen et al. 2023 (Fantasia3D), arXiv:2303.13873, Sec. 3.2.
    """
    assert render.normal is not None
    x = torch.cat([render.normal * render.opacity, 2 * render.opacity - 1], dim=-1).movedim(-1, 1)
    return nn.functional.interpolate(x, prior.shape[1:], mode="bilinear", antialias=True)


def _too_large(step: int, at_once: int, least: int) -> str:
    """Say what did not fit, and the remedies; ``least`` views are taken together in any case."""
    return (
        f"step {step} did not fit the device's memory, not even with {counted(at_once, 'view')} at a time; continue with resume=true and "
        f"render.at_once={least}, render.recompute=true, prior_options.checkpointing=true, or max_vram=, which chooses; or start "
        "again with a smaller render.size or prior_options.image_size, render.patch=64, or a smaller prior"
    )


def _why(metrics: Mapping[str, float], bad: int, step: int) -> str:
    """Say what was not finite, and the remedy."""
    if math.isfinite(metrics["grad_norm"]):
        what = "the gradient of what the guidance learns"
        remedy = (
            "start again with a lower guidance.learning_rate, or with prior_options.dtype=bfloat16 or float32"
        )
    elif math.isfinite(metrics["guidance_rms"]):
        what = "the scene's gradient"
        remedy = "start again with lower learning rates (scene.encoding_lr, scene.mlp_lr) or guidance.scale"
    else:
        what = "what the prior and the loss gave"
        remedy = "check the loss, the weighting, the scene or the cameras if they are your own, load the prior in float32 (prior_options.dtype=float32), or check its weights"
    return f"{what} was not finite in {counted(bad, 'step')} in a row, the last of them step {step}; {remedy}"


def move(state: State, settings: Settings, progress: float) -> None:
    """Take the optimiser's step at the rates of this point in training, and update the moving average."""
    factor = settings.final_lr + (1 - settings.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))
    for group in state.optimiser.param_groups:
        group["lr"] = group["peak_lr"] * factor
    state.optimiser.step()
    if settings.ema:
        parameters = [p.detach() for p in state.parameters()]
        if state.average is None or [p.shape for p in state.average] != [p.shape for p in parameters]:
            state.average = [p.clone() for p in parameters]
        torch._foreach_lerp_(state.average, parameters, 1 - settings.ema)


def _measure(step: int, seen: Sequence[Seen], norm: Tensor, ranks: Ranks) -> dict[str, float]:
    """Return a step's metrics, means over its prompts and over all processes."""
    each = [
        {
            "t": one.t.float().mean(),
            "guidance_rms": one.grad.square().mean(),
            "opacity": one.render.opacity.mean(),
            **one.render.penalties,
        }
        for one in seen
    ]
    names = list(each[0])
    rows = torch.stack([torch.stack([one[name].detach().float() for name in names]) for one in each])
    # One transfer for all of them: each .item() would wait for the device.
    *means, size = torch.cat([ranks.mean(rows.mean(0)), norm.detach().float().view(1)]).tolist()
    numbers = dict(zip(names, means, strict=True)) | {"grad_norm": size}
    numbers["guidance_rms"] = math.sqrt(numbers["guidance_rms"])
    learnt = [one.learnt for one in seen if one.learnt is not None]
    return {"step": step, **numbers, **({"learner_loss": sum(learnt) / len(learnt)} if learnt else {})}

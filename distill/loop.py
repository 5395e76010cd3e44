"""The optimiser loop: render, ask the prior, step."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from distill.cameras import Cameras
from distill.contracts import (
    CameraSampler,
    Condition,
    Conditioner,
    Guidance,
    Learner,
    Prior,
    Render,
    Renderer,
    Scene,
    Step,
    TimestepSampler,
    View,
)
from distill.ranks import ALONE, Ranks, streams
from distill.samplers.schedules import Ramp
from distill.samplers.timesteps import check_timesteps
from distill.transfer import send

if TYPE_CHECKING:
    from distill.conditions.picture import Picture

log = logging.getLogger(__name__)


class Diverged(RuntimeError):
    """Too many steps in a row had gradients that are not finite."""


class OutOfMemory(RuntimeError):
    """A step did not fit the device's memory, and neither did a smaller one."""


@dataclass
class State:
    """Everything that changes during a run, and so everything a checkpoint holds.

    Attributes:
        scene: what is optimised.
        optimiser: its optimiser; each parameter group keeps its peak rate under ``peak_lr``.
        generator: the run's only source of randomness, on the CPU.
        step: steps done.
        skipped: steps skipped for gradients that are not finite.
        average: exponential moving average of the parameters, None where it is off.
        learner: the guidance, if it has parameters of its own, else None.
    """

    scene: Scene
    optimiser: torch.optim.Optimizer
    generator: torch.Generator
    step: int = 0
    skipped: int = 0
    average: list[Tensor] | None = None
    learner: Learner | None = None

    def parameters(self) -> list[nn.Parameter]:
        """Return the scene's parameters, group by group."""
        return [p for group in self.scene.parameter_groups().values() for p in group.parameters]

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds."""
        return {
            "scene": dict(self.scene.state_dict()),
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(),
            "step": self.step,
            "skipped": self.skipped,
            "average": self.average,
            "learner": self.learner.state_dict() if self.learner else None,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go back to a checkpoint.

        Raises:
            ValueError: it is of a guidance without parameters, and this one has some.
        """
        self.scene.load_state_dict(saved["scene"])
        # A scene that had grown has other parameters now.
        kinds = [group.parameters for group in self.scene.parameter_groups().values() if group.parameters]
        for group, parameters in zip(self.optimiser.param_groups, kinds, strict=True):
            group["params"] = list(parameters)
        self.optimiser.load_state_dict(saved["optimiser"])
        self.generator.set_state(saved["generator"].cpu())
        self.step, self.skipped, self.average = saved["step"], saved["skipped"], saved["average"]
        if self.learner:
            if saved.get("learner") is None:
                raise ValueError(
                    "the checkpoint is of a guidance without parameters; resume with the same guidance="
                )
            self.learner.load_state_dict(saved["learner"])


@dataclass(frozen=True)
class Settings:
    """Settings of the loop; every weight and size can be a schedule.

    Attributes:
        iterations: steps in all.
        batch: pictures per step, or per prompt of a library.
        at_once: of these, how many are rendered and given to the prior at a time, their gradients added up; None for
            all of them that a process has.
        accumulate: prompts of a library per step, the mean of whose gradients is taken; each begins with an ``update`` of the
            scene.
        latent_until: fraction of training up to which normals and opacity stand in for the prior's latent.
        normals: render normals in every step, for a ControlNet.
        size: height and width rendered, pixels; rounded to multiples of 8.
        guidance_weight: of the loss.
        summed: the loss is summed over the batch, not averaged.
        penalties: weights of the renderer's regularisers.
        shading: says, at a point in training, how the next pictures are lit, drawing from the generator; None leaves it to the
            renderer.
        clip_norm: largest gradient norm over all parameters, 0 for none.
        final_lr: factor on every learning rate at the end, reached along a cosine.
        ema: decay of the parameters' moving average, 0 for none.
        max_bad_steps: skipped steps in a row after which the run stops.
    """

    iterations: int
    batch: int = 4
    at_once: int | None = None
    accumulate: int = 1
    latent_until: float = 0.0
    normals: bool = False
    size: Ramp = field(default_factory=lambda: Ramp(64))
    guidance_weight: Ramp = field(default_factory=lambda: Ramp(1.0))
    summed: bool = False
    penalties: Mapping[str, Ramp] = field(default_factory=dict)
    shading: Callable[[float, torch.Generator], str] | None = None
    clip_norm: float = 0.0
    final_lr: float = 1.0
    ema: float = 0.0
    max_bad_steps: int = 20


@dataclass(frozen=True)
class Job:
    """A run's parts, ready for ``train``.

    Attributes:
        state: where to start; advanced in place.
        prior: the frozen diffusion model.
        guidance: the loss, e.g. ``distill.guidance.sds`` with its options bound.
        condition: makes the condition of a step's pictures.
        render: renders the scene for training.
        cameras: draws where from.
        timesteps: draws at which noise levels.
        settings: iterations, sizes, weights.
        frugal: renders the same with less memory; used, with half as many views at a time, from a step on that does not
            fit the device's memory. None for never.
        scenes: the scenes that are trained: one, or the particles.
        views: render each of them for viewing.
        picture: the input picture of a run that has one.
        drawn: tells which of the scenes the last step has trained.
        ranks: the processes that share the prompts of a step; where there is one prompt, its views.
        conversion: of a second stage, how its pictures differ from its field's.
    """

    state: State
    prior: Prior
    guidance: Guidance
    condition: Conditioner
    render: Renderer
    cameras: CameraSampler
    timesteps: TimestepSampler
    settings: Settings
    frugal: Renderer | None = None
    scenes: Sequence[Scene] = ()
    views: Sequence[View] = ()
    picture: Picture | None = None
    drawn: Callable[[], int] = lambda: 0
    ranks: Ranks = ALONE
    conversion: Mapping[str, float] = field(default_factory=dict)


#: Called after each step with the state, the step's metrics and its pictures; returning True stops the run there.
OnStep = Callable[[State, dict[str, float], Render], bool | None]


def make_optimiser(
    scene: Scene, betas: tuple[float, float] = (0.9, 0.99), eps: float = 1e-15, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """Make AdamW with one group per kind of parameter, each at the scene's own rate; without weight decay, that is Adam.

    One kernel reads and writes all that a parameter has, on CPU and CUDA: a hash grid is larger than the caches.
    """
    kinds = [group for group in scene.parameter_groups().values() if group.parameters]
    groups = [{"params": list(group.parameters), "lr": group.rate, "peak_lr": group.rate} for group in kinds]
    every = [parameter for group in kinds for parameter in group.parameters]
    known = every and all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in every)
    fused = True if known else None
    return torch.optim.AdamW(groups, betas=betas, eps=eps, weight_decay=weight_decay, fused=fused)


@torch.no_grad()
def take(scene: Scene, values: Sequence[Tensor]) -> None:
    """Copy values, for example a moving average, into a scene's parameters, group by group."""
    parameters = [p for group in scene.parameter_groups().values() for p in group.parameters]
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def train(job: Job, on_step: OnStep = lambda *_: None) -> State:
    """Optimise the scene with the guidance loss.

    Args:
        job: the parts; its state is advanced in place.
        on_step: called after each step.

    Raises:
        Diverged: ``settings.max_bad_steps`` steps in a row had gradients, the scene's or the guidance's own, that are not
            finite.
        OutOfMemory: a step does not fit, not even with less memory.
    """
    state, settings, bad = job.state, job.settings, 0
    gradients = retrying(job)
    while state.step < settings.iterations:
        before = state.generator.get_state()
        try:
            seen, metrics = step(job, gradients)
        except OutOfMemory:
            state.generator.set_state(before)  # a run that is resumed here begins with this step
            raise
        learnt = metrics.get("learner_loss", 0.0)
        bad = 0 if math.isfinite(metrics["grad_norm"]) and math.isfinite(learnt) else bad + 1
        if bad >= settings.max_bad_steps:
            raise Diverged(_why(metrics, bad, state.step - 1))
        if on_step(state, metrics, seen.render):
            break
    return state


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
    """Train for one step: update the scene, render it, ask the prior, move the parameters.

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
    """Scale gradients down to a norm of at most ``largest``, 0 for any; returns the norm that they had, a scalar."""
    if largest:
        return nn.utils.clip_grad_norm_(parameters, largest)
    # With no bound, clipping would multiply every gradient by 1.
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def accumulate(job: Job, now: Step, cameras: Cameras, generator: torch.Generator | None = None) -> Seen:
    """Accumulate the gradient of a prompt's views, ``settings.at_once`` at a time, and train the guidance if it learns.

    Args:
        job: the parts.
        now: where in training the step is.
        cameras: all of the prompt's views; where processes share them, this one renders its own.
        generator: of all that is random; the run's by default.
    """
    state, at_once = job.state, views_at_once(job)
    g = generator or state.generator
    state.optimiser.zero_grad(set_to_none=True)
    blocks = cameras.split(views_of_a_process(job))
    parts = [part for block in blocks for part in block.split(at_once)]
    drawn = list(zip(parts, streams(g, len(parts)), strict=True))
    own = job.ranks.share(drawn) if len(blocks) > 1 else drawn
    seen = joined([see(job, now, part, stream) for part, stream in own])
    if state.learner:
        seen = replace(seen, learnt=state.learner.learn(job.prior, seen.x, seen.cond, g, at_once))
    return seen


def see(job: Job, now: Step, cameras: Cameras, generator: torch.Generator | None = None) -> Seen:
    """Render some of a step's views, ask the prior, and add their share of the step's gradient to the scene's.

    Args:
        job: the parts.
        now: where in training the step is.
        cameras: where they are drawn, on the CPU; the renderer and the loss get them on the prior's device.
        generator: of all that is random; the run's by default.
    """
    prior, settings, count = job.prior, job.settings, len(cameras)
    g = generator or job.state.generator
    there = cameras.to(prior.device)
    size = 8 * round(settings.size(now.progress) / 8)
    latent = now.progress < settings.latent_until
    # Only renderers of scenes that can be shaded are told how.
    style: dict[str, Any] = {"shading": settings.shading(now.progress, g)} if settings.shading else {}
    render = job.render(there, size, size, generator=g, normals=latent or settings.normals, **style)
    x = as_latent(render, prior) if latent else prior.encode(render.rgb.movedim(-1, 1))
    objects = count // prior.views
    drawn = job.timesteps(now.progress, objects, g)
    check_timesteps(prior, drawn)
    t = send(drawn.repeat_interleave(prior.views), prior.device)
    noise = send(torch.randn(x.shape, generator=g), x.device).to(x)
    uniform = send(torch.rand(objects, generator=g).repeat_interleave(prior.views), prior.device)
    cond = replace(job.condition(cameras, replace(now, uniform=uniform), render), cameras=there)
    with torch.no_grad():
        grad = job.guidance(prior, x.detach(), cond, t, noise)

    share = count / settings.batch
    weighted = [share * settings.penalties[k](now.progress) * value for k, value in render.penalties.items()]
    of_loss = grad * settings.guidance_weight(now.progress) / (1 if settings.summed else settings.batch)
    weighted = [value for value in weighted if value.requires_grad]  # a given shape's opacity does not
    torch.autograd.backward([x, *weighted], [of_loss, *[None] * len(weighted)])
    return Seen(x.detach(), t, cond, grad, render.detached())


def views_of_a_process(job: Job) -> int:
    """Return how many of a prompt's views each process has: a share where there is one prompt to share, else all of them."""
    return job.settings.batch // (job.ranks.size if job.settings.accumulate == 1 else 1)


def views_at_once(job: Job) -> int:
    """Return how many views are in memory at a time: a multiple of those that the prior takes together."""
    most = views_of_a_process(job)
    wanted = min(job.settings.at_once or most, most)
    return max(wanted // job.prior.views, 1) * job.prior.views


def retrying(job: Job) -> Gradients:
    """Return ``accumulate`` that, from a step on that runs out of memory, renders frugally and half as many views at a time."""
    smaller: Job | None = None

    def gradients(job: Job, now: Step, cameras: Cameras, generator: torch.Generator) -> Seen:
        nonlocal smaller
        before = generator.get_state()
        try:
            return accumulate(smaller or job, now, cameras, generator)
        except torch.OutOfMemoryError as error:
            if smaller or job.frugal is None:
                raise OutOfMemory(_too_large(now.index, views_at_once(smaller or job))) from error
        # Not in the handler, which keeps the failed step's tensors alive.
        fewer = replace(job.settings, at_once=max(1, views_at_once(job) // 2))
        smaller = replace(job, settings=fewer, render=job.frugal)
        log.warning(
            "step %d did not fit the memory; from here on %d views at a time",
            now.index,
            views_at_once(smaller),
        )
        generator.set_state(before)
        torch.cuda.empty_cache()
        return gradients(job, now, cameras, generator)

    return gradients


def joined(parts: Sequence[Seen]) -> Seen:
    """Concatenate what a step's parts gave."""
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


def _too_large(step: int, at_once: int) -> str:
    """Say what did not fit, and the remedies."""
    return (
        f"step {step} did not fit the device's memory, not even with {at_once} views at a time; go on with resume=true and "
        "render.at_once=1, render.recompute=true, prior_options.checkpointing=true, or max_vram=, which chooses; or start "
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
        remedy = (
            "load the prior in float32 (distill.load_prior with dtype=torch.float32), or check its weights"
        )
    return f"{what} was not finite in {bad} steps in a row, the last of them step {step}; {remedy}"


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

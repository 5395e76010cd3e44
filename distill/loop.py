"""The optimiser loop: render, ask the prior, step."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from distill.cameras import Cameras
from distill.contracts import (
    CameraSampler,
    Condition,
    Guidance,
    Learner,
    Prior,
    Render,
    Renderer,
    Scene,
    TimestepSampler,
)
from distill.samplers.schedules import Ramp

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

    scene: Any
    optimiser: torch.optim.Optimizer
    generator: torch.Generator
    step: int = 0
    skipped: int = 0
    average: list[Tensor] | None = None
    learner: Learner | None = None

    def parameters(self) -> list[nn.Parameter]:
        return [p for group in self.scene.parameter_groups().values() for p in group]

    def state_dict(self) -> dict[str, Any]:
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
        self.scene.load_state_dict(saved["scene"])
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
    """How the loop runs; every weight and size may move over training.

    Attributes:
        iterations: steps in all.
        batch: pictures per step.
        at_once: of these, how many are rendered and shown to the prior at a time, their gradients added up; None for
            all of them.
        latent_until: fraction of training up to which the prior is shown normals and opacity as if they were its latent.
        normals: render normals in every step, for what the prior is told of the pictures.
        size: height and width rendered, pixels; rounded to multiples of 8.
        penalties: weights of the renderer's regularisers.
        clip_norm: largest gradient norm over all parameters, 0 for none.
        final_lr: factor on every learning rate at the end, reached along a cosine.
        ema: decay of the parameters' moving average, 0 for none.
        max_bad_steps: skipped steps in a row after which the run stops.
    """

    iterations: int
    batch: int = 4
    at_once: int | None = None
    latent_until: float = 0.0
    normals: bool = False
    size: Ramp = field(default_factory=lambda: Ramp(64))
    penalties: Mapping[str, Ramp] = field(default_factory=dict)
    clip_norm: float = 0.0
    final_lr: float = 1.0
    ema: float = 0.0
    max_bad_steps: int = 20


def make_optimiser(
    scene: Scene, rates: Mapping[str, float], betas: tuple[float, float] = (0.9, 0.99), eps: float = 1e-15
) -> torch.optim.Optimizer:
    """Adam with one group per kind of parameter.

    Raises:
        ValueError: a kind of parameter has no rate.
    """
    groups = []
    for name, parameters in scene.parameter_groups().items():
        if name not in rates:
            raise ValueError(
                f"no learning rate for the scene's {name!r} parameters; rates: {', '.join(rates)}"
            )
        if parameters:
            groups.append({"params": parameters, "lr": rates[name], "peak_lr": rates[name]})
    return torch.optim.Adam(groups, betas=betas, eps=eps)


def train(
    state: State,
    prior: Prior,
    guidance: Guidance,
    condition: Callable[[Cameras], Condition],
    render: Renderer,
    cameras: CameraSampler,
    timesteps: TimestepSampler,
    settings: Settings,
    on_step: Callable[[State, dict[str, float], Render], bool | None] = lambda *_: None,
    smaller: Renderer | None = None,
    tell: Callable[[Condition, Render], Condition] = lambda cond, _: cond,
) -> State:
    """Shape a scene until the prior is content with its pictures.

    Args:
        state: where to start; advanced in place.
        prior: the frozen diffusion model.
        guidance: the loss, e.g. ``distill.guidance.sds`` with its options bound.
        condition: embeddings for a batch of cameras.
        render: takes the pictures.
        cameras: draws where from.
        timesteps: draws at which noise levels.
        settings: iterations, sizes, weights.
        on_step: called after each step with the state, the step's metrics and its pictures; returning True
            stops the run there.
        smaller: takes the same pictures with less memory; used, with half as many views at a time, from a step on that
            does not fit the device's.
        tell: adds to a step's condition what the prior is told of the pictures, see ``distill.conditions.control``.

    Raises:
        Diverged: ``settings.max_bad_steps`` steps in a row had gradients that are not finite.
        OutOfMemory: a step does not fit, not even so.
    """
    g, bad, at_once = state.generator, 0, min(settings.at_once or settings.batch, settings.batch)
    while state.step < settings.iterations:
        progress, before = state.step / settings.iterations, g.get_state()
        state.scene.update(state.step, progress, g)
        views = cameras(progress, settings.batch, g).to(prior.device)
        draws, seen = g.get_state(), None
        while seen is None:
            try:
                state.optimiser.zero_grad(set_to_none=True)
                parts = [see(state, prior, guidance, condition, render, timesteps, settings, some, tell)
                         for some in views.split(at_once)]  # fmt: skip
                whole = joined(parts)
                learner = state.learner
                learnt = learner.learn(prior, whole.x, whole.cond, g, at_once) if learner else None
                seen = whole
            except torch.OutOfMemoryError as error:
                if smaller is None:
                    g.set_state(before)  # a run that is resumed here begins with this step
                    raise OutOfMemory(_too_large(state.step, at_once)) from error
            if seen is None and smaller:  # not in the handler, which keeps the failed step's tensors alive
                at_once, render, smaller = max(1, at_once // 2), smaller, None
                log.warning(
                    "step %d did not fit the memory; from here on %d views at a time", state.step, at_once
                )
                g.set_state(draws)
                torch.cuda.empty_cache()

        norm = nn.utils.clip_grad_norm_(state.parameters(), settings.clip_norm or math.inf)
        metrics = _measure(state.step, seen, norm)
        if learnt is not None:
            metrics["learner_loss"] = learnt
        if math.isfinite(metrics["grad_norm"]):
            bad = 0
            _step(state, settings, progress)
        else:
            bad += 1
            state.skipped += 1
            if bad >= settings.max_bad_steps:
                raise Diverged(_why(metrics, bad, state.step))
        state.step += 1
        if on_step(state, metrics, seen.picture):
            break
    return state


@dataclass(frozen=True)
class Seen:
    """What a step saw of some views: the prior's input, without gradient, and what came of it."""

    x: Tensor
    t: Tensor
    cond: Condition
    grad: Tensor
    picture: Render


def see(
    state: State,
    prior: Prior,
    guidance: Guidance,
    condition: Callable[[Cameras], Condition],
    render: Renderer,
    timesteps: TimestepSampler,
    settings: Settings,
    views: Cameras,
    tell: Callable[[Condition, Render], Condition],
) -> Seen:
    """Render some of a step's views, ask the prior, and add their share of the step's gradient to the scene's."""
    g, progress, count = state.generator, state.step / settings.iterations, len(views)
    size = 8 * round(settings.size(progress) / 8)
    latent = progress < settings.latent_until
    wanted = {"normals": True} if latent or settings.normals else {}
    picture = render(state.scene, views, size, size, generator=g, **wanted)
    x = as_latent(picture, prior) if latent else prior.encode(picture.rgb.movedim(-1, 1))
    t = timesteps(progress, count, g).to(prior.device)
    noise = torch.randn(x.shape, generator=g).to(x)
    uniform = torch.rand(count, generator=g).to(prior.device)
    cond = replace(tell(condition(views), picture), progress=progress, uniform=uniform)
    with torch.no_grad():
        grad = guidance(prior, x.detach(), cond, t, noise)

    share = count / settings.batch
    weighted = [
        share * settings.penalties[name](progress) * value for name, value in picture.penalties.items()
    ]
    torch.autograd.backward([x, *weighted], [grad / settings.batch, *[None] * len(weighted)])
    return Seen(x.detach(), t, cond, grad, picture.detached())


def joined(parts: Sequence[Seen]) -> Seen:
    """What a step saw of all its views."""
    if len(parts) == 1:
        return parts[0]
    tensors = {name: torch.cat([getattr(part, name) for part in parts]) for name in ("x", "t", "grad")}
    return Seen(
        **tensors,
        cond=Condition.joined([part.cond for part in parts]),
        picture=Render.joined([part.picture for part in parts]),
    )


def as_latent(picture: Render, prior: Any) -> Tensor:
    """Normals and opacity as the four channels of a latent, in [-1, 1], shape ``[batch, 4, side, side]``.

    What a latent looks like is near enough to them for a prior to shape a scene's first, coarse form, and no VAE is asked.

    Source: Chen et al. 2023 (Fantasia3D), arXiv:2303.13873, Sec. 3.2.
    """
    assert picture.normal is not None
    x = torch.cat([picture.normal * picture.opacity, 2 * picture.opacity - 1], dim=-1).movedim(-1, 1)
    return nn.functional.interpolate(x, prior.shape[1:], mode="bilinear", antialias=True)


def _too_large(step: int, at_once: int) -> str:
    """What did not fit, and the remedies."""
    return (
        f"step {step} did not fit the device's memory, not even with {at_once} views at a time; go on with resume=true and "
        "render.at_once=1, render.recompute=true, prior_options.checkpointing=true, or max_vram=, which chooses; or start "
        "again with a smaller render.size or prior_options.image_size, render.patch=64, or a smaller prior"
    )


def _why(metrics: Mapping[str, float], bad: int, step: int) -> str:
    """What was not finite, and the remedy."""
    if math.isfinite(metrics["guidance_rms"]):
        what = "the scene's gradient"
        remedy = "start again with lower learning rates (optimiser.encoding, optimiser.mlp) or guidance.scale"
    else:
        what = "what the prior and the loss gave"
        remedy = (
            "load the prior in float32 (distill.load_prior with dtype=torch.float32), or check its weights"
        )
    return f"{what} was not finite in {bad} steps in a row, the last of them step {step}; {remedy}"


def _step(state: State, settings: Settings, progress: float) -> None:
    factor = settings.final_lr + (1 - settings.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))
    for group in state.optimiser.param_groups:
        group["lr"] = group["peak_lr"] * factor
    state.optimiser.step()
    if settings.ema:
        parameters = [p.detach() for p in state.parameters()]
        if state.average is None:
            state.average = [p.clone() for p in parameters]
        torch._foreach_lerp_(state.average, parameters, 1 - settings.ema)


def _measure(step: int, seen: Seen, norm: Tensor) -> dict[str, float]:
    values = {
        "t": seen.t.float().mean(),
        "guidance_rms": seen.grad.square().mean().sqrt(),
        "grad_norm": norm,
        "opacity": seen.picture.opacity.mean(),
        **seen.picture.penalties,
    }
    # One transfer for all of them: each .item() would wait for the device.
    numbers = torch.stack([value.detach().float() for value in values.values()]).tolist()
    return {"step": step, **dict(zip(values, numbers, strict=True))}

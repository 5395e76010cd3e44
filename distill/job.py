"""The state, settings and parts of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from distill.contracts import (
    CameraSampler,
    Conditioner,
    Group,
    Guidance,
    Learner,
    Prior,
    Render,
    Renderer,
    Scene,
    TimestepSampler,
    View,
)
from distill.ranks import ALONE, Ranks
from distill.samplers.schedules import Ramp

if TYPE_CHECKING:
    from distill.conditions.image_prompt import ImagePrompted
    from distill.conditions.picture import Picture


@dataclass
class State:
    """Everything that changes during a run and is saved in a checkpoint.

    Attributes:
        scene: what is optimised.
        optimiser: its optimiser; each parameter group keeps its peak rate under ``peak_lr``.
        generator: the run's only source of randomness, on the CPU.
        step: steps done.
        skipped: steps skipped for gradients that are not finite.
        average: exponential moving average of the parameters, None where it is off.
        learner: the guidance, if it has parameters of its own, else None.
        code: digests of the code of the run's parts, as ``distill.run.config.plugins.code_of`` gives them; a checkpoint has those it was made with.
    """

    scene: Scene
    optimiser: torch.optim.Optimizer
    generator: torch.Generator
    step: int = 0
    skipped: int = 0
    average: list[Tensor] | None = None
    learner: Learner | None = None
    code: Mapping[str, str] = field(default_factory=dict)

    def parameters(self) -> list[nn.Parameter]:
        """Return the scene's parameters, group by group."""
        return [p for group in self.scene.parameter_groups().values() for p in group.parameters]

    def state_dict(self) -> dict[str, Any]:
        """Return the contents of a checkpoint."""
        return {
            "scene": dict(self.scene.state_dict()),
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(),
            "step": self.step,
            "skipped": self.skipped,
            "average": self.average,
            "learner": self.learner.state_dict() if self.learner else None,
            "code": dict(self.code),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore a checkpoint.

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
    """Settings of the loop; every weight and size can be a schedule. Their defaults are those of ``distill.run.config.schema``.

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
    batch: int
    at_once: int | None
    accumulate: int
    latent_until: float
    normals: bool
    size: Ramp
    guidance_weight: Ramp
    summed: bool
    penalties: Mapping[str, Ramp]
    shading: Callable[[float, torch.Generator], str] | None
    clip_norm: float
    final_lr: float
    ema: float
    max_bad_steps: int


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
        picture: the input picture of a run that has one, before its camera or as the prior is shown it.
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
    picture: Picture | ImagePrompted | None = None
    drawn: Callable[[], int] = lambda: 0
    ranks: Ranks = ALONE
    conversion: Mapping[str, float] = field(default_factory=dict)


#: Called after each step with the state, the step's metrics and its pictures; returning True stops the run there.
OnStep = Callable[[State, dict[str, float], Render], bool | None]


def make_optimiser(
    scene: Scene, betas: tuple[float, float], eps: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Make AdamW with one group per kind of parameter, each at the scene's own rate; without weight decay, that is Adam.

    One kernel reads and writes all that a parameter has, on CPU and CUDA: a hash grid is larger than the caches.

    Raises:
        ValueError: the scene gives no groups of parameters, or all of them are empty.
    """
    given = scene.parameter_groups()
    if not isinstance(given, Mapping) or not all(isinstance(group, Group) for group in given.values()):
        raise ValueError(
            f"the parameter_groups of a scene must be a dictionary of distill.contracts.Group, got {str(given)[:80]!r}"
        )
    kinds = [group for group in given.values() if group.parameters]
    if not kinds:
        raise ValueError("the parameter_groups of a scene have no parameters; name in them what is trained")
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


def views_of_a_process(job: Job) -> int:
    """Return the number of a prompt's views per process: a share if processes share one prompt, else all."""
    return job.settings.batch // (job.ranks.size if job.settings.accumulate == 1 else 1)


def views_at_once(job: Job) -> int:
    """Return how many views are in memory at a time: a multiple of those that the prior takes together."""
    most = views_of_a_process(job)
    wanted = min(job.settings.at_once or most, most)
    return max(wanted // job.prior.views, 1) * job.prior.views

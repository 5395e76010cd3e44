"""Train a novel-view model that is told by a rotated code, from pictures in memory: first the code, then the UNet.

The code learns alone to draw the target's thumbnail, about a hundred times cheaper a pair than with the UNet, and is
frozen. Then the UNet learns with its conditioning, from the highest noise levels, where a view is decided, down to the
lowest, where its grain is. Either stage lasts a number of updates or of minutes, and its rates follow the share of them
that is over; it can stop after any update and continue later.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from distill.lab.novel_view import objective
from distill.lab.novel_view.levels import Law
from distill.lab.novel_view.memory import Encodings
from distill.lab.novel_view.pace import Pace as Pace
from distill.lab.novel_view.pace import learning_rate as learning_rate
from distill.priors.attention import differentiable
from distill.priors.dtypes import mixed
from distill.priors.novel_view.code import Draft, Turn
from distill.priors.novel_view.model import NovelView
from distill.priors.novel_view.pipeline import Given, NovelViewPipeline
from distill.priors.predictions import from_noise

#: Pairs of pictures from less far above or below the horizon are usual, degrees.
KEPT_DEG = 45.0


@dataclass(frozen=True)
class CodeRecipe:
    """Hyperparameters of the first stage.

    Attributes:
        batch: pairs of an update.
        learning_rate: peak.
        final: share of it at the end.
        weight_decay: of AdamW.
        clip_norm: largest gradient norm.
        keep: weight of a loss that keeps the codes of usual pairs as they are, while a trained code learns from steep pictures:
            the mean squared change since the stage began, over the codes' mean square. 0 leaves it out. A pair is usual if
            neither of its pictures is steep, see ``KEPT_DEG``.
    """

    batch: int = 256
    learning_rate: float = 1e-3
    final: float = 0.02
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    keep: float = 0.0


@dataclass(frozen=True)
class UNetRecipe:
    """Hyperparameters of the second stage.

    Attributes:
        batch: pairs of an update.
        learning_rate: peak, of the UNet.
        final: share of it at the end.
        conditioning: the conditioning's rate over the UNet's.
        weight_decay: of AdamW.
        clip_norm: largest gradient norm.
        dropout: probability of each way to drop the condition.
        law: of the timesteps.
        ema: decay of the weights' moving average.
        bf16: compute in bfloat16 where that is exact enough.
    """

    batch: int = 32
    learning_rate: float = 8e-4
    final: float = 0.05
    conditioning: float = 2.0
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    dropout: float = 0.05
    law: Law = field(default_factory=Law)
    ema: float = 0.999
    bf16: bool = True


@dataclass
class Stage:
    """State of a stage of training.

    Attributes:
        modules: what is trained, by name.
        optimiser: of their parameters.
        pace: how far it is.
        generator: of everything drawn, on the device.
        average: of the parameters, empty for none.
        before: the code as it was when its stage began, where it is to be kept.
    """

    modules: nn.ModuleDict
    optimiser: torch.optim.Optimizer
    pace: Pace
    generator: torch.Generator
    average: list[Tensor] = field(default_factory=list)
    before: nn.Module | None = None

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [p for p in self.modules.parameters() if p.requires_grad]

    def state_dict(self) -> dict[str, Any]:
        return {
            "modules": dict(self.modules.state_dict()),
            "optimiser": self.optimiser.state_dict(),
            "pace": self.pace.state_dict(),
            "generator": self.generator.get_state(),
            "average": self.average,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.modules.load_state_dict(saved["modules"])
        self.optimiser.load_state_dict(saved["optimiser"])
        # A fused optimiser walks over memory, and what was saved lies in the plain order of dimensions.
        for parameter, state in self.optimiser.state.items():
            for name, value in state.items():
                if value.shape == parameter.shape:
                    state[name] = torch.empty_like(parameter).copy_(value)
        self.pace.load_state_dict(saved["pace"])
        self.generator.set_state(saved["generator"].cpu())
        for mine, theirs in zip(self.average, saved["average"], strict=True):
            mine.copy_(theirs)


#: Called after every update with the loss, still on the device; true asks to stop.
After = Callable[[Stage, Tensor], bool]


def thumbnails(seen: Encodings, index: Tensor, size: int) -> Tensor:
    """Pictures in [-1, 1], averaged over areas, shape ``[n, 3, size, size]``."""
    return objective.thumbnails(seen.store.rgb(index), size)


def code_stage(
    turn: Turn, seen: Encodings, recipe: CodeRecipe, pace: Pace, seed: int = 0, *, new: bool = True
) -> Stage:
    """Prepare the code for its training; a draft that the UNet is not to be told is trained beside it and left out.

    Args:
        turn: with the code.
        seen: what is trained on.
        recipe: hyperparameters.
        pace: of the stage.
        seed: of what is drawn.
        new: begin the draft as the mean of some pictures; one that has been trained keeps the mean that it was trained with.
    """
    device = seen.store.pictures.device
    draft = turn.draft or Draft(turn.options.hidden, 16).to(device)
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        # Drawn in either case, so that the pairs are the same.
        some = torch.randint(len(seen.store.pictures), (4096,), generator=generator, device=device)
        if new or turn.draft is None:
            draft.mean.copy_(thumbnails(seen, some, draft.size).mean(0))
    modules = nn.ModuleDict({"code": turn.code, "draft": draft}).requires_grad_(True).train()
    optimiser = torch.optim.AdamW(
        modules.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
    )
    before = deepcopy(turn.code).requires_grad_(False).eval() if recipe.keep else None
    return Stage(modules, optimiser, pace, generator, before=before)


def fit_code(stage: Stage, seen: Encodings, recipe: CodeRecipe, after: After) -> None:
    """Learn to draw targets' thumbnails from codes, by their squared error; then freeze the code."""
    code, draft = stage.modules["code"], stage.modules["draft"]
    assert isinstance(draft, Draft)
    stage.pace.start()
    while (done := stage.pace.done) < 1:
        _set_rate(stage.optimiser, recipe.learning_rate * learning_rate(done, recipe.final))
        condition, target = seen.store.draw(recipe.batch, stage.generator)
        maps, pose = seen.features(condition).maps, seen.store.pose(condition, target)
        found = code(maps, pose)
        loss = nn.functional.mse_loss(draft(found), thumbnails(seen, target, draft.size))
        if stage.before is not None:
            usual = ~(seen.store.steep(condition, KEPT_DEG) | seen.store.steep(target, KEPT_DEG))
            loss = loss + recipe.keep * moved(found[usual], stage.before, maps[usual], pose[usual])
        _update(stage, loss, recipe.clip_norm)
        if after(stage, loss.detach()):
            return
    stage.modules.eval().requires_grad_(False)


def moved(found: Tensor, before: nn.Module, maps: Tensor, pose: Tensor) -> Tensor:
    """Squared difference of codes from an earlier code's of the same pictures, over the mean square of the latter."""
    with torch.no_grad():
        was = before(maps, pose)
    return (found - was).square().sum() / was.square().sum().clamp(min=1e-12)


def unet_stage(pipeline: NovelViewPipeline, recipe: UNetRecipe, pace: Pace, seed: int = 0) -> Stage:
    """Prepare the UNet and its conditioning for their training, all but the code and its draft.

    Raises:
        ValueError: the model works on latents.
    """
    refuse_latents(pipeline)
    model, device = pipeline.model, pipeline.device
    model.requires_grad_(True).train()
    freeze_code(model)
    model.unet.to(memory_format=torch.channels_last)
    told = [p for n, p in model.named_parameters() if p.requires_grad and not n.startswith("unet.")]
    groups = [{"params": list(model.unet.parameters())}, {"params": told}]
    for group, rate in zip(groups, (1.0, recipe.conditioning), strict=True):
        group["rate"] = rate  # type: ignore[assignment]
    optimiser = torch.optim.AdamW(
        groups, recipe.learning_rate, betas=(0.9, 0.99), weight_decay=recipe.weight_decay, fused=True
    )
    generator = torch.Generator(device).manual_seed(seed)
    stage = Stage(nn.ModuleDict({"model": model}), optimiser, pace, generator)
    stage.average = [p.detach().clone() for p in stage.parameters]
    return stage


def refuse_latents(pipeline: NovelViewPipeline) -> None:
    """Refuse a model that works on latents, whose pictures would have to be encoded again at each update.

    Raises:
        ValueError: in one line.
    """
    if pipeline.vae is not None:
        raise ValueError("training in memory is for models of pixels; train this one with in_memory=false")


def freeze_code(model: NovelView) -> None:
    """Keep a code and its thumbnail, where there are any, as their own stage left them."""
    if model.turn is None:
        return
    for part in (model.turn.code, model.turn.draft):
        if part is not None:
            part.requires_grad_(False).eval()
            # What is left of the last update would count when the UNet's gradients are clipped.
            part.zero_grad(set_to_none=True)


def fit_unet(
    stage: Stage, pipeline: NovelViewPipeline, seen: Encodings, recipe: UNetRecipe, after: After
) -> None:
    """Learn to denoise targets by the squared error of the UNet's own kind of prediction, unweighted."""
    g, device = stage.generator, pipeline.device
    steps = len(pipeline.scheduler.alphas_cumprod)
    stage.pace.start()
    while (done := stage.pace.done) < 1:
        _set_rate(stage.optimiser, recipe.learning_rate * learning_rate(done, recipe.final))
        condition, target = seen.store.draw(recipe.batch, g)
        t = recipe.law.draw(done, recipe.batch, steps, g)
        u = torch.rand(recipe.batch, generator=g, device=device)
        keep_token = u >= 2 * recipe.dropout
        keep_latent = (u < recipe.dropout) | (u >= 3 * recipe.dropout)
        with mixed(device, recipe.bf16), differentiable():
            loss = denoising(pipeline, seen, condition, target, t, g, keep_token, keep_latent)
        _update(stage, loss, recipe.clip_norm)
        decay = min(recipe.ema, (1 + stage.pace.update) / (10 + stage.pace.update))
        with torch.no_grad():
            torch._foreach_lerp_(stage.average, [p.detach() for p in stage.parameters], 1 - decay)
        if after(stage, loss.detach()):
            return


def denoising(
    pipeline: NovelViewPipeline,
    seen: Encodings,
    condition: Tensor,
    target: Tensor,
    t: Tensor,
    generator: torch.Generator,
    keep_token: Tensor | None = None,
    keep_latent: Tensor | None = None,
) -> Tensor:
    """Mean squared error of the network's own kind of prediction, unweighted.

    Args:
        pipeline: of a model of pixels.
        seen: the pictures.
        condition: indices of the given ones, shape ``[batch]``.
        target: indices of the wanted ones, shape ``[batch]``.
        t: timesteps, shape ``[batch]``.
        generator: of the noise, on the device.
        keep_token: see ``NovelView.forward``.
        keep_latent: likewise.
    """
    with torch.no_grad(), torch.autocast(t.device.type, enabled=False):
        x, latent = (_folded(pipeline, seen.store.rgb(index)) for index in (target, condition))
        noise = torch.randn(x.shape, generator=generator, device=generator.device)
        level = pipeline.scheduler.alphas_cumprod.to(x)[t][:, None, None, None]
        alpha, sigma = level.sqrt(), (1 - level).sqrt()
        x_t = alpha * x + sigma * noise
        goal = from_noise(pipeline.scheduler.config.prediction_type, noise, x_t, alpha, sigma)
        pose = seen.store.pose(condition, target)
        # Encoded here, or a frozen encoder would be rounded as what is trained is.
        told = seen.features(condition)
    predicted = pipeline.model(x_t, t, latent, told, pose, keep_token, keep_latent)
    return nn.functional.mse_loss(predicted.float(), goal)


def _folded(pipeline: NovelViewPipeline, rgb: Tensor) -> Tensor:
    return pipeline.space.encode(rgb).contiguous(memory_format=torch.channels_last)


def _set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate * group.get("rate", 1.0)


def _update(stage: Stage, loss: Tensor, clip_norm: float) -> None:
    stage.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(stage.modules.parameters(), clip_norm)
    stage.optimiser.step()
    stage.pace.update += 1


class averaged:  # noqa: N801
    """The averaged parameters, for as long as the context lasts."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    def _swap(self) -> None:
        with torch.no_grad():
            for mine, mean in zip(self.stage.parameters, self.stage.average, strict=True):
                kept = mine.clone()
                mine.copy_(mean)
                mean.copy_(kept)

    def __enter__(self) -> None:
        self._swap()

    def __exit__(self, *error: object) -> None:
        self._swap()


@torch.no_grad()
def drafts_right(turn: Turn, draft: nn.Module, seen: Encodings, pairs: Tensor) -> dict[str, Tensor]:
    """Measure whether a draft is most like the true thumbnail that was asked for, among all of the object's.

    Args:
        turn: with the code.
        draft: its thumbnails.
        seen: objects that each have as many pictures.
        pairs: condition and target, indices, shape ``[pairs, 2]``.

    Returns:
        ``mse``, ``right`` and ``away_deg``, each of shape ``[pairs]``.
    """
    assert isinstance(draft, Draft)
    condition, target = pairs.unbind(1)
    drawn = draft(turn.code(seen.features(condition).maps, seen.store.pose(condition, target)))
    return nearest(drawn, seen, target, draft.size)


@torch.no_grad()
def nearest(drawn: Tensor, seen: Encodings, target: Tensor, size: int) -> dict[str, Tensor]:
    """Compare pictures in [-1, 1] with the true ones of the same objects; see ``drafts_right``."""
    views = int(seen.store.first[1])
    start = target // views * views
    others = start[:, None] + torch.arange(views, device=target.device)
    truth = thumbnails(seen, others.flatten(), size).unflatten(0, others.shape)
    errors = (drawn[:, None] - truth).square().mean((2, 3, 4)) / 4  # of pictures in [0, 1]
    best = errors.argmin(1)
    azimuth = torch.atan2(seen.store.positions[:, 1], seen.store.positions[:, 0])
    turn = azimuth[start + best] - azimuth[target]
    away = torch.rad2deg(torch.atan2(turn.sin(), turn.cos()).abs())
    own = target - start
    return {"mse": errors.gather(1, own[:, None])[:, 0], "right": (best == own).float(), "away_deg": away}


@torch.no_grad()
def one_step(pipeline: NovelViewPipeline, seen: Encodings, pairs: Tensor) -> dict[str, Tensor]:
    """The noise-free picture that the model sees at one high noise level, compared as by ``nearest``."""
    timestep = 990
    device, found = seen.store.pictures.device, []
    g = torch.Generator().manual_seed(0)
    for part in pairs.split(160):
        condition, target = part.unbind(1)
        x = pipeline.space.encode(seen.store.rgb(target))
        noise = torch.randn(x.shape, generator=g).to(device)
        t = torch.full((len(part),), timestep, device=device)
        level = pipeline.scheduler.alphas_cumprod[timestep].to(device)
        x_t = level.sqrt() * x + (1 - level).sqrt() * noise
        given = _given(pipeline, seen, condition)
        told = pipeline.predict_noise(x_t, t, given, seen.store.pose(condition, target))
        clean = pipeline.space.decode((x_t - (1 - level).sqrt() * told) / level.sqrt()).clamp(0, 1) * 2 - 1
        found.append(nearest(clean, seen, target, clean.shape[-1]))
    return {name: torch.cat([part[name] for part in found]) for name in found[0]}


def _given(pipeline: NovelViewPipeline, seen: Encodings, condition: Tensor) -> Given:
    return Given(pipeline.space.encode(seen.store.rgb(condition)), seen.features(condition))

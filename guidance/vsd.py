"""Variational score distillation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from distill.contracts import Condition, Embedding, Prior
from distill.domains import Count, Fraction, NotNegative, Range
from distill.files.paths import user_path
from distill.guidance import made_for_prior
from distill.guidance.terms import Weighting, add_noise, predict_guided, weight
from distill.samplers.schedules import at
from distill.transfer import send


def variational_score(
    prior: Prior,
    x: Tensor,
    cond: Condition,
    t: Tensor,
    noise: Tensor,
    rendered: Callable[[Tensor], Tensor],
    *,
    scale: float,
    weighting: str,
) -> Tensor:
    """Return VSD's gradient for any prediction ``rendered(x_t)`` of the noise under the rendered distribution."""
    x_t = add_noise(prior, x, t, noise)
    guided = predict_guided(prior, x_t, t, cond, scale)
    with torch.no_grad():
        own = rendered(x_t)
    return (weight(prior, t, weighting) * (guided - own)).detach()


@made_for_prior
class VSD:
    r"""Compare the prior with a copy of itself that is trained on the renders.

    .. math:: g = w(t) [\hat\epsilon_s(x_t; c, t) - \epsilon_\phi(x_t; c, t, y)]
    .. math:: \min_\phi E \|\epsilon_\phi(x_t; c, t, y) - \epsilon\|^2, \quad t \sim U[0, T)

    The copy is the prior with LoRA layers and an embedding of the camera y; see ``distill.priors.adapter``.
    Calling it changes nothing; ``learn`` trains the copy.

    Args:
        prior: the frozen diffusion model, a diffusers network inside.
        generator: random numbers for the initial weights.
        priors: not used.
        scale: classifier-free guidance scale of the frozen prior, dimensionless; the copy has none.
        weighting: ``sigma_squared`` (1 - abar), ``uniform``, ``fantasia3d`` or ``hifa`` (sigma / alpha).
        rank: rank of the LoRA layers.
        alpha: LoRA's outputs are scaled by ``alpha / rank``.
        targets: suffixes of the names of the layers that get a LoRA.
        cameras: give the copy the camera.
        view_text: give the copy the prompt with view words, like the prior; otherwise the prompt without them, as in both
            public codes.
        camera_dropout: probability that the copy is trained without the camera.
        learning_rate: peak learning rate of the copy.
        warmup: updates over which its rate rises linearly.
        updates: updates of the copy per step.
        lora: a file or folder that ``save`` wrote, to start from; empty for a new one. The camera embedding is initialised again.
        prediction: the copy's error is measured in ``epsilon`` or in ``v_prediction``, which is
            ``1 / abar`` times as large and weighs noisy timesteps more.

    Returns:
        Called with ``prior, x, cond, t, noise``: dL/dx, same shape as ``x``, shape ``[batch, channel, height,
        width]``, detached, not averaged over the batch.

    Raises:
        ValueError: the prior cannot take LoRA layers, ``lora`` is another network's, or an option is not known.

    Source: Wang et al. 2023 (ProlificDreamer), arXiv:2305.16213. Differs: the camera embedding starts at
    zero, so that the copy begins as the prior itself.
    """

    def __init__(
        self,
        prior: Prior,
        generator: torch.Generator,
        priors: Mapping[str, Prior] | None = None,
        *,
        scale: float = 7.5,
        weighting: Weighting = "sigma_squared",
        rank: Count = 4,
        alpha: Count = 4,
        targets: Sequence[str] = ("to_q", "to_k", "to_v", "to_out.0"),
        cameras: bool = True,
        view_text: bool = False,
        camera_dropout: Fraction = 0.1,
        learning_rate: NotNegative = 1e-4,
        warmup: Annotated[int, Range(0)] = 500,
        updates: Annotated[int, Range(0)] = 1,
        lora: str = "",
        prediction: Literal["epsilon", "v_prediction"] = "epsilon",
    ) -> None:
        from distill.priors.adapter import Student

        if prediction not in ("epsilon", "v_prediction"):
            raise ValueError(f"guidance.prediction must be epsilon or v_prediction, got {prediction!r}")
        self.scale, self.weighting, self.prediction = scale, weighting, prediction
        self.updates, self.warmup, self.done, self.view_text = updates, warmup, 0, view_text
        self.training = {"learning_rate": learning_rate, "camera_dropout": camera_dropout}
        self.student = Student(
            prior, rank=rank, alpha=alpha, targets=targets, cameras=cameras, generator=generator
        )
        if lora:
            self.student.load(user_path(lora))
        fused = True if self.student.device.type == "cuda" else None
        self.optimiser = torch.optim.AdamW(self.student.trainable(), lr=1e-4, fused=fused)
        self.scaler = torch.amp.GradScaler(self.student.device.type, init_scale=1.0)

    def __call__(self, prior: Prior, x: Tensor, cond: Condition, t: Tensor, noise: Tensor) -> Tensor:
        def rendered(x_t: Tensor) -> Tensor:
            return self.student.predict_noise(x_t, t, self.text(cond), cond.cameras)

        options = at({"scale": self.scale, "weighting": self.weighting}, cond.step.progress)
        return variational_score(prior, x, cond, t, noise, rendered, **options)

    def learn(
        self,
        prior: Prior,
        x: Tensor,
        cond: Condition,
        generator: torch.Generator,
        at_once: int | None = None,
    ) -> float:
        """Train the copy on the current renders, ``at_once`` pictures at a time.

        Returns:
            Its mean squared error; nan if the last update was skipped because its gradient was not finite.
        """
        error, now, batch = 0.0, at(self.training, cond.step.progress), len(x)
        # The gradient of a mean over a million numbers would underflow in half precision: it is that of about their sum, and
        # a power of two is divided out again without rounding. Where that overflows, the scaler halves it.
        enlarged = 2.0 ** round(math.log2(x.numel()))

        def each(draw: Tensor) -> Tensor:
            """Return one number per object, the same for the views that the prior takes together."""
            return draw.repeat_interleave(prior.views)

        for _ in range(self.updates):
            drawn = torch.randint(prior.num_timesteps, (batch // prior.views,), generator=generator)
            t = send(each(drawn), x.device)
            noise = send(torch.randn(x.shape, generator=generator), x.device).to(x)
            kept = torch.rand(batch // prior.views, generator=generator) >= now["camera_dropout"]
            keep = send(each(kept), x.device).to(x)
            x_t = add_noise(prior, x.detach(), t, noise)
            self.optimiser.zero_grad(set_to_none=True)
            losses = []
            for begin in range(0, batch, at_once or batch):
                some = slice(begin, begin + (at_once or batch))
                own = cond.part(some.start, some.stop)
                with torch.enable_grad():
                    predicted = self.student.predict_noise(
                        x_t[some], t[some], self.text(own), own.cameras, keep[some]
                    )
                    squared = (predicted - noise[some]).square()
                    if self.prediction == "v_prediction":
                        squared = squared / prior.alpha(t[some]) ** 2
                    loss = squared.mean() * (len(predicted) / batch)
                    self.scaler.scale(loss * enlarged).backward()
                losses.append(loss.detach())
            grads = [p.grad for p in self.student.trainable() if p.grad is not None]
            self.scaler.unscale_(self.optimiser)
            torch._foreach_div_(grads, enlarged)
            sizes = torch.stack(torch._foreach_norm(grads)).sum()
            self.done += 1
            for group in self.optimiser.param_groups:
                group["lr"] = now["learning_rate"] * min(1.0, self.done / max(self.warmup, 1))
            # A gradient that overflows in half precision would stay in the optimiser's averages for ever.
            error, size = torch.stack([torch.stack(losses).sum().float(), sizes.float()]).tolist()
            if math.isfinite(error) and math.isfinite(size):
                self.optimiser.step()
            else:
                error = math.nan
            self.scaler.update()
        return error

    def text(self, cond: Condition) -> Embedding:
        """Return the prompt embedding for the LoRA; a condition without ``plain`` has no view words."""
        return cond.text if self.view_text else cond.prompts.get("plain", cond.text)

    def save(self, folder: Path) -> None:
        """Write the LoRA to ``folder``, as safetensors that ``load_lora_adapter`` of diffusers reads."""
        self.student.save(folder)

    def state_dict(self) -> dict[str, Any]:
        return {
            "student": self.student.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "done": self.done,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.student.load_state_dict(saved["student"])
        self.optimiser.load_state_dict(saved["optimiser"])
        self.scaler.load_state_dict(saved["scaler"])
        self.done = saved["done"]


#: The name that ``guidance=vsd`` asks for.
vsd = VSD

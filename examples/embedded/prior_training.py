"""How the UNet of an embedded prior learns: what changes meanwhile, one update, and the loop that saves and stops.

``train_prior.py`` and ``train_views.py`` differ in their networks, pictures and captions.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm
from transformers import CLIPTextModel

from distill.priors.dtypes import mixed
from distill.run.journal import stop_signals

PATCH = 4


def make_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        timestep_spacing="trailing",
    )


def patchify(images: Tensor) -> Tensor:
    return nn.functional.pixel_unshuffle(images, PATCH).contiguous(memory_format=torch.channels_last)


def learning_rate(done: float, peak: float) -> float:
    """Linear warm-up over 1%, then cosine to 2% of the peak."""
    return peak * min(done / 0.01, 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(done, 1))))


def timestep_exponent(done: float, last: float = 0.7) -> float:
    """Exponent ``p`` of ``t = 1000 u**p``: 0.12 (half of the timesteps above 920) rising to ``last`` at 70%.

    Where a view differs is decided at the noisiest timesteps and learnt last: begun there, it comes many times
    sooner, and what the less noisy ones need comes quickly after.
    """
    return 0.12 + (last - 0.12) * min(done / 0.7, 1.0)


@dataclass
class Run:
    """Everything that changes while the UNet trains."""

    unet: UNet2DConditionModel
    encoder: CLIPTextModel
    optimiser: torch.optim.Optimizer
    ema: list[Tensor]
    generator: torch.Generator
    seen: int = 0
    loss: float = 0.0
    seconds: float = 0.0

    @classmethod
    def begin(
        cls,
        unet: UNet2DConditionModel,
        encoder: CLIPTextModel,
        generator: torch.Generator,
        device: torch.device,
    ) -> Run:
        """A run that has seen nothing, on a device; the text encoder is frozen."""
        unet.to(device=device, memory_format=torch.channels_last)
        encoder.eval().requires_grad_(False).to(device)
        optimiser = torch.optim.AdamW(
            unet.parameters(), lr=1e-4, betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )
        ema = [parameter.detach().clone() for parameter in unet.parameters()]
        return cls(unet, encoder, optimiser, ema, generator)

    def averaged(self) -> dict[str, Tensor]:
        """The moving average under the parameters' names."""
        names = [name for name, _ in self.unet.named_parameters()]
        return {name: value.cpu().clone() for name, value in zip(names, self.ema, strict=True)}

    def save(self, path: Path, words: Mapping[str, int], begun: str = "") -> None:
        """Write all of it, with the tokenizer's words and what tells the prior apart that the training began as."""
        state = {
            "words": dict(words),
            "begun": begun,
            "unet": self.unet.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "ema": self.ema,
            "seen": self.seen,
            "loss": self.loss,
            "seconds": self.seconds,
            "generator": self.generator.get_state(),
            "text_encoder": self.encoder.state_dict(),
        }
        temporary = path.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, path)

    def load(self, path: Path, device: torch.device, words: Mapping[str, int], begun: str = "") -> None:
        """Take over a saved state; arguments as of ``save``.

        Raises:
            ValueError: it is of a training on other names, or of one that began as another prior.
        """
        state = torch.load(path, map_location=device, weights_only=True)
        if state.get("words", dict(words)) != dict(words):
            raise ValueError(
                f"{path} is of a training on other names: give the --things or the --start it was begun with, or another --work"
            )
        if state.get("begun", begun) != begun:
            raise ValueError(
                f"{path} is of a training that began as another prior: give the --start it was begun with, or another --work"
            )
        self.unet.load_state_dict(state["unet"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.encoder.load_state_dict(state["text_encoder"])
        self.ema, self.seen = [value.detach() for value in state["ema"]], state["seen"]
        self.loss, self.seconds = state.get("loss", 0.0), state.get("seconds", 0.0)
        self.generator.set_state(state["generator"].cpu())


def learn(
    run: Run, model: Any, images: Tensor, cond: Tensor, abar: Tensor, exponent: float, views: int = 1,
    target: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None, **told: Any,
) -> None:  # fmt: skip
    """One update on some pictures: v-prediction's squared error, unweighted.

    Args:
        run: whose UNet learns.
        model: the UNet, perhaps compiled.
        images: in [-1, 1], shape ``[n, 3, height, width]``.
        cond: the captions' tokens, shape ``[n, tokens, width]``.
        abar: of the scheduler, on the device.
        exponent: of the timesteps, see ``timestep_exponent``.
        views: so many consecutive pictures have one timestep.
        target: what is to be predicted, given the noisy pictures, their timesteps and their v; by default the v.
        **told: what the UNet is told besides.
    """
    device, g, n = abar.device, run.generator, len(images)
    x, objects = patchify(images.to(device)), n // views
    # Stratified over the batch, for less variance.
    u = (torch.arange(objects) + torch.rand(objects, generator=g)) / objects
    t = (u**exponent * 1000).long().clamp(max=999).repeat_interleave(views).to(device)
    noise = torch.randn(x.shape, generator=g).to(device)
    alpha, sigma = abar[t].sqrt()[:, None, None, None], (1 - abar[t]).sqrt()[:, None, None, None]
    # So few tokens in such narrow heads are attended to faster by plain products: 0.43 instead of 0.47 s for 16 pictures.
    attention = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
    noisy, wanted = alpha * x + sigma * noise, alpha * noise - sigma * x
    with attention, mixed(device):
        wanted = target(noisy, t, wanted) if target else wanted
        v = model(noisy, t, cond, **told).sample
    loss = (v.float() - wanted).square().mean()
    run.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(run.unet.parameters(), 1.0)
    run.optimiser.step()
    run.seen += n
    steps = run.seen / n
    with torch.no_grad():
        decay = min(0.999, (1 + steps) / (10 + steps))
        torch._foreach_lerp_(run.ema, list(run.unet.parameters()), 1 - decay)
    run.loss = 0.99 * run.loss + 0.01 * loss.item() if run.loss else loss.item()


def check_amounts(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End with one line where a training would have nothing to do."""
    for name in ("images", "batch"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    if options.minutes is not None and options.minutes <= 0:
        parser.error(f"--minutes must be above 0, got {options.minutes:g}")
    if options.save_minutes < 0:
        parser.error(f"--save-minutes must be at least 0, got {options.save_minutes:g}")


def train(
    run: Run, options: argparse.Namespace, update: Callable[[float], object], save: Callable[[], None]
) -> None:
    """Train until ``--images`` are seen or ``--minutes`` are over, or a signal asks to stop; save now and then, and at the end.

    Args:
        run: goes on from where it is.
        options: have ``images``, ``minutes``, ``batch``, ``peak_lr``, ``last_exponent``, ``save_minutes``, ``work`` and ``output``.
        update: does one update on ``options.batch`` pictures, given the exponent of its timesteps.
        save: writes the run and the prior.
    """
    total = None if options.minutes else options.images
    progress = tqdm(total=total, initial=run.seen, unit="img", mininterval=10)
    saved, began = time.time(), time.time() - run.seconds
    with stop_signals() as stop:
        while not stop.is_set():
            run.seconds = time.time() - began
            done = run.seconds / (60 * options.minutes) if options.minutes else run.seen / options.images
            if done >= 1:
                break
            for group in run.optimiser.param_groups:
                group["lr"] = learning_rate(done, options.peak_lr)
            update(timestep_exponent(done, options.last_exponent))
            progress.update(options.batch)
            progress.set_postfix(loss=f"{run.loss:.4f}", refresh=False)
            if time.time() - saved > 60 * options.save_minutes:
                save()
                saved = time.time()
    save()
    progress.close()
    print(f"{run.seen} images, loss {run.loss:.4f}; state in {options.work}, prior in {options.output}")

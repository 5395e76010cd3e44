"""How the UNet of an embedded prior learns: what changes meanwhile, one update, and the loop that saves and stops.

``train_prior.py`` and ``train_views.py`` differ in their networks, pictures and captions.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from dataset import noise_for
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm
from transformers import CLIPTextModel

from distill.priors.attention import differentiable
from distill.priors.dtypes import mixed
from distill.priors.graphs import Record, Recorder
from distill.run.signals import stop_signals
from distill.transfer import send

PATCH = 4
#: Exponent that the timesteps of a training from nothing begin with.
FIRST_EXPONENT = 0.12
#: A UNet, perhaps compiled: what it predicts of noisy pictures at timesteps, given the captions' tokens, is its ``sample``.
Model = Callable[..., Any]
#: What is to be predicted, given the noisy pictures, their timesteps and their v.
Target = Callable[[Tensor, Tensor, Tensor], Tensor]


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


def timestep_exponent(done: float, last: float = 0.7, first: float = FIRST_EXPONENT) -> float:
    """Exponent ``p`` of ``t = 1000 u**p``: from ``first`` (0.12: half of the timesteps above 920) to ``last`` at 70%.

    Where a view differs is decided at the noisiest timesteps and learnt last: begun there, it comes many times
    sooner, and what the less noisy ones need comes quickly after.
    """
    return first + (last - first) * min(done / 0.7, 1.0)


@dataclass
class Run:
    """Everything that changes while the UNet trains."""

    unet: UNet2DConditionModel
    encoder: CLIPTextModel
    optimiser: torch.optim.Optimizer
    ema: list[Tensor]
    generator: torch.Generator
    seen: int = 0
    seconds: float = 0.0
    #: The moving average of the loss, on the device so that no update waits for it; None before the first.
    average: Tensor | None = None

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

    @property
    def loss(self) -> float:
        """The moving average of the loss; 0 before the first update."""
        return 0.0 if self.average is None else self.average.item()

    def follow(self, loss: Tensor) -> None:
        """Let the moving average follow an update's loss."""
        self.average = loss.clone() if self.average is None else self.average.lerp(loss, 0.01)

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
        """Take over a saved state; arguments as for ``save``.

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
        self.seconds, loss = state.get("seconds", 0.0), state.get("loss", 0.0)
        self.average = torch.tensor(loss, device=device) if loss else None
        self.generator.set_state(state["generator"].cpu())


@dataclass
class Lesson:
    """What one update learns from, on the device.

    Attributes:
        x: patches of the pictures, shape ``[n, 48, height / 4, width / 4]``.
        noise: in the same shape.
        t: timesteps, shape ``[n]``.
        cond: the captions' tokens, shape ``[n, tokens, width]``.
        told: what the UNet is given besides.
    """

    x: Tensor
    noise: Tensor
    t: Tensor
    cond: Tensor
    told: dict[str, Tensor] = field(default_factory=dict)

    def copy(self) -> Lesson:
        x, noise, t, cond, *_ = map(Tensor.clone, self.tensors())
        return Lesson(x, noise, t, cond, {name: each.clone() for name, each in self.told.items()})

    def tensors(self) -> list[Tensor]:
        return [self.x, self.noise, self.t, self.cond, *self.told.values()]


class Gradient(Protocol):
    """Computes an update's loss, a scalar, and leaves the gradient of it in the network's parameters."""

    def __call__(
        self, network: nn.Module, model: Model, lesson: Lesson, abar: Tensor, target: Target | None = None, /
    ) -> Tensor: ...


def gradient(
    network: nn.Module, model: Model, lesson: Lesson, abar: Tensor, target: Target | None = None
) -> Tensor:
    """The gradient of v-prediction's squared error, unweighted.

    Args:
        network: whose parameters get it.
        model: the network, perhaps compiled.
        lesson: what is learnt from.
        abar: of the scheduler, on the device.
        target: what is to be predicted; by default the v.
    """
    x, noise, t = lesson.x, lesson.noise, lesson.t
    alpha, sigma = abar[t].sqrt()[:, None, None, None], (1 - abar[t]).sqrt()[:, None, None, None]
    # So few tokens in such narrow heads are attended to faster by plain products: 0.43 instead of 0.47 s for 16 pictures.
    attention = sdpa_kernel(SDPBackend.MATH) if x.device.type == "cpu" else differentiable()
    noisy, wanted = alpha * x + sigma * noise, alpha * noise - sigma * x
    with attention, mixed(x.device):
        wanted = target(noisy, t, wanted) if target else wanted
        v = model(noisy, t, lesson.cond, **lesson.told).sample
    loss = (v.float() - wanted).square().mean()
    network.zero_grad(set_to_none=True)
    loss.backward()
    return loss.detach()


class Recorded:
    """Computes ``gradient`` from a CUDA graph, which is recorded at the first update.

    All updates must have the shapes of the first one, and its network, model, ``abar`` and target.

    A small network's kernels are shorter than it takes to launch them one by one.

    Args:
        record: a ``distill.priors.graphs.Recorder``, or what stands for one.
    """

    def __init__(self, record: Record) -> None:
        self.record = record
        self.replay: Callable[[], None] | None = None

    def __call__(
        self, network: nn.Module, model: Model, lesson: Lesson, abar: Tensor, target: Target | None = None
    ) -> Tensor:
        if self.replay is None:
            self.lesson = lesson.copy()
            self.replay, self.loss = self.record(lambda: gradient(network, model, self.lesson, abar, target))
            self.gradients = [(each, each.grad) for each in network.parameters()]
        for kept, new in zip(self.lesson.tensors(), lesson.tensors(), strict=True):
            kept.copy_(new)
        self.replay()
        for parameter, found in self.gradients:  # another graph of the network has its own
            parameter.grad = found
        return self.loss


def gradient_on(device: torch.device) -> Gradient:
    """What computes the gradient of updates of one shape there: on a GPU, from a graph."""
    return Recorded(Recorder(device)) if device.type == "cuda" else gradient


def learn(
    run: Run, model: Model, images: Tensor, cond: Tensor, abar: Tensor, exponent: float, views: int = 1,
    target: Target | None = None, gradient: Gradient = gradient, **told: Tensor,
) -> None:  # fmt: skip
    """One update on some pictures.

    Args:
        run: whose UNet learns.
        model: the UNet, perhaps compiled.
        images: in [-1, 1], shape ``[n, 3, height, width]``.
        cond: the captions' tokens, shape ``[n, tokens, width]``.
        abar: of the scheduler, on the device.
        exponent: of the timesteps, see ``timestep_exponent``.
        views: so many consecutive pictures have one timestep.
        target: what is to be predicted; by default the v.
        gradient: computes the loss and its gradient.
        **told: what the UNet is given besides.
    """
    device, g, n = abar.device, run.generator, len(images)
    x, objects = patchify(send(images, device)), n // views
    # Stratified over the batch, for less variance.
    u = (torch.arange(objects) + torch.rand(objects, generator=g)) / objects
    t = send((u**exponent * 1000).long().clamp(max=999).repeat_interleave(views), device)
    loss = gradient(run.unet, model, Lesson(x, noise_for(x, g), t, cond, told), abar, target)
    nn.utils.clip_grad_norm_(run.unet.parameters(), 1.0)
    run.optimiser.step()
    run.seen += n
    steps = run.seen / n
    with torch.no_grad():
        decay = min(0.999, (1 + steps) / (10 + steps))
        torch._foreach_lerp_(run.ema, list(run.unet.parameters()), 1 - decay)
    run.follow(loss)


def add_timesteps(parser: argparse.ArgumentParser) -> None:
    """Options of which timesteps are trained on, see ``timestep_exponent``."""
    parser.add_argument(
        "--first-exponent", type=float, default=FIRST_EXPONENT,
        help=f"p of t = 1000 u^p at the beginning, {FIRST_EXPONENT} by default; larger where --start knows the pictures already",
    )  # fmt: skip
    parser.add_argument("--last-exponent", type=float, default=0.7, help="p at the end; small is noisy")


def check_amounts(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End with one line where amounts or exponents of timesteps are out of range."""
    for name in ("images", "batch"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    for name in ("first", "last"):
        if not 0 < getattr(options, f"{name}_exponent") < math.inf:
            parser.error(
                f"--{name}-exponent must be a finite number above 0, got {getattr(options, f'{name}_exponent'):g}"
            )
    if options.minutes is not None and not 0 < options.minutes < math.inf:
        parser.error(f"--minutes must be above 0, got {options.minutes:g}")
    if options.save_minutes < 0:
        parser.error(f"--save-minutes must be at least 0, got {options.save_minutes:g}")


def train(
    run: Run, options: argparse.Namespace, update: Callable[[float], object], save: Callable[[], None]
) -> None:
    """Train until ``--images`` are seen or ``--minutes`` are over, or a signal asks to stop; save now and then, and at the end.

    Args:
        run: continues from where it is.
        options: have ``images``, ``minutes``, ``batch``, ``peak_lr``, ``save_minutes``, ``work`` and ``output``, and those of
            ``add_timesteps``.
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
            update(timestep_exponent(done, last=options.last_exponent, first=options.first_exponent))
            # Only where it was printed: to read the loss waits for the GPU.
            if progress.update(options.batch):
                progress.set_postfix(loss=f"{run.loss:.4f}", refresh=False)
            if time.time() - saved > 60 * options.save_minutes:
                save()
                saved = time.time()
    save()
    progress.close()
    print(f"{run.seen} images, loss {run.loss:.4f}; state in {options.work}, prior in {options.output}")

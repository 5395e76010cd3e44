"""Data passed between the parts: prompts, a step's condition, pictures, parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from distill.cameras import Cameras
from distill.transfer import send

#: Named tensors that condition a network, the batch dimension first: what text encoders make of prompts.
Embedding = Mapping[str, Tensor]


class Prompt(str):
    """A prompt whose ending is kept when a text encoder truncates it: ``head``, then ``tail``, such as ``", front view"``.

    To a prior that does not know it, it is the whole text.
    """

    head: str
    tail: str

    def __new__(cls, head: str, tail: str) -> Self:
        made = super().__new__(cls, head + tail)
        made.head, made.tail = head, tail
        return made


@dataclass(frozen=True)
class Step:
    """A point in training.

    Attributes:
        index: steps done before this one.
        progress: fraction of training done, in [0, 1).
        uniform: a random number in [0, 1) per picture, shape ``[batch]``, for losses that draw a second timestep; the same
            for all views that a multi-view prior takes at once.
        drawn: prompts of a library drawn before this one's, by all steps; None for one in each step, as many as ``index``.
    """

    index: int = 0
    progress: float = 0.0
    uniform: Tensor | None = None
    drawn: int | None = None

    def part(self, begin: int, end: int) -> Step:
        """Return the step of the pictures from ``begin`` up to but not including ``end``."""
        return replace(self, uniform=None if self.uniform is None else self.uniform[begin:end])


@dataclass(frozen=True)
class Condition:
    """Conditioning of one step's batch: prompts, cameras and the training step.

    Attributes:
        prompts: embeddings by role: ``text`` (the prompt) and ``uncond`` (no prompt, for classifier-free guidance); where
            they are given ``negative``, ``source`` (the prompt of what is edited), ``plain`` (the prompt without view
            words), and ``away_0`` and ``away_1`` (the views that Perp-Neg pushes away).
        cameras: where the pictures were taken from.
        step: where in training the step is.
        source_x: pictures of what is edited, in the prior's space.
        away: Perp-Neg's weights of ``away_0`` and ``away_1``, at most 0, shape ``[batch, 2]``; on the CPU, so that which
            pictures are changed is known without waiting for the device.
    """

    prompts: Mapping[str, Embedding]
    cameras: Cameras | None = None
    step: Step = field(default_factory=Step)
    source_x: Tensor | None = None
    away: Tensor | None = None

    @property
    def text(self) -> Embedding:
        """The prompt's embedding."""
        return self.prompts["text"]

    @property
    def uncond(self) -> Embedding:
        """The empty prompt's embedding."""
        return self.prompts["uncond"]

    @property
    def origin(self) -> str:
        """The reference prompt of guidance: ``negative`` if a negative prompt is given, else ``uncond``."""
        return "negative" if "negative" in self.prompts else "uncond"

    def part(self, begin: int, end: int) -> Condition:
        """Return the condition of the pictures from ``begin`` up to but not including ``end``."""
        rows = {
            role: {name: value[begin:end] for name, value in embedding.items()}
            for role, embedding in self.prompts.items()
        }
        return Condition(
            rows,
            self.cameras and self.cameras.part(begin, end),
            self.step.part(begin, end),
            None if self.source_x is None else self.source_x[begin:end],
            None if self.away is None else self.away[begin:end],
        )

    @staticmethod
    def joined(parts: Sequence[Condition]) -> Condition:
        """Concatenate parts: the inverse of ``part``."""

        def cat(values: Sequence[Tensor | None]) -> Tensor | None:
            given = [value for value in values if value is not None]
            return torch.cat(given) if given else None

        first = parts[0]
        prompts = {
            role: {name: torch.cat([part.prompts[role][name] for part in parts]) for name in embedding}
            for role, embedding in first.prompts.items()
        }
        cameras = [part.cameras for part in parts if part.cameras]
        return Condition(
            prompts,
            Cameras.joined(cameras) if cameras else None,
            replace(first.step, uniform=cat([part.step.uniform for part in parts])),
            cat([part.source_x for part in parts]),
            cat([part.away for part in parts]),
        )


@dataclass(frozen=True)
class Render:
    """Pictures of a scene, channels last.

    Attributes:
        rgb: composited over the background, in [0, 1], shape ``[batch, height, width, 3]``.
        opacity: in [0, 1], shape ``[batch, height, width, 1]``.
        depth: expected distance along the ray in scene units, 0 where empty, ``[batch, height, width, 1]``.
        normal: unit, in world space, 0 where empty, ``[batch, height, width, 3]``; None unless asked for.
        penalties: unweighted regularisers that only the renderer can compute, scalars by name.
        background: the colours that ``rgb`` is composited over, of its shape or broadcasting to it; None for white.
    """

    rgb: Tensor
    opacity: Tensor
    depth: Tensor
    normal: Tensor | None = None
    penalties: Mapping[str, Tensor] = field(default_factory=dict)
    background: Tensor | None = None

    def detached(self) -> Render:
        """Return the pictures without gradient."""
        return Render(
            self.rgb.detach(),
            self.opacity.detach(),
            self.depth.detach(),
            None if self.normal is None else self.normal.detach(),
            {name: value.detach() for name, value in self.penalties.items()},
            None if self.background is None else self.background.detach(),
        )

    def backdrop(self) -> Tensor:
        """Return the colours behind the object, of the shape of ``rgb``."""
        return torch.ones_like(self.rgb) if self.background is None else self.background.expand_as(self.rgb)

    @staticmethod
    def joined(parts: Sequence[Render]) -> Render:
        """Concatenate batches; the penalties become means over pictures."""
        counts = torch.tensor([len(part.rgb) for part in parts])
        shares = send(counts / counts.sum(), parts[0].rgb.device).to(parts[0].rgb)
        normals = [part.normal for part in parts if part.normal is not None]
        penalties = {
            name: (shares * torch.stack([part.penalties[name] for part in parts])).sum()
            for name in parts[0].penalties
        }
        return Render(
            torch.cat([part.rgb for part in parts]),
            torch.cat([part.opacity for part in parts]),
            torch.cat([part.depth for part in parts]),
            torch.cat(normals) if normals else None,
            penalties,
            None if parts[0].background is None else torch.cat([part.backdrop() for part in parts]),
        )


class Group(NamedTuple):
    """Parameters of a scene that share a learning rate."""

    parameters: Sequence[nn.Parameter]
    rate: float


#: Density (per scene unit, shape ``[n]``) and albedo in [0, 1] (``[n, 3]``) at points ``[n, 3]`` in the cube [-1, 1]^3.
Field = Callable[[Tensor], tuple[Tensor, Tensor]]


#: Renders one scene without gradient: cameras, height, width.
View = Callable[[Cameras, int, int], Render]


class Draw(NamedTuple):
    """The prompts that a step draws from a library: ``amount`` of the way from the ``first`` to the ``second``, by number."""

    first: int
    second: int
    amount: float

"""The contracts between the parts. Nothing here is inherited from: anything of the right shape fits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from distill.cameras import Cameras

#: What a prior's text encoders make of a batch of prompts: named tensors, the batch dimension first.
Embedding = Mapping[str, Tensor]


@dataclass(frozen=True)
class Condition:
    """What the pictures of one step should show, and where in training the step is.

    Attributes:
        text: the prompts' embedding.
        uncond: the empty prompt's embedding, for classifier-free guidance.
        negative: a negative prompt's embedding, where one is given.
        source: the embedding of a prompt that describes what is edited, where one is given.
        source_x: pictures of what is edited, in the prior's space, where they are given.
        cameras: where the pictures were taken from.
        progress: fraction of training done, in [0, 1).
        plain: the prompt's embedding without view words, where the prompt has them.
        seen: a novel-view model that has looked at the input picture, where one is given.
        uniform: a random number in [0, 1) per picture, shape ``[batch]``, for losses that draw a second
            timestep.
    """

    text: Embedding
    uncond: Embedding
    negative: Embedding | None = None
    source: Embedding | None = None
    source_x: Tensor | None = None
    cameras: Cameras | None = None
    progress: float = 0.0
    plain: Embedding | None = None
    uniform: Tensor | None = None
    seen: Any = None

    def part(self, begin: int, end: int) -> Condition:
        """Of the pictures from ``begin`` up to but not including ``end``."""

        def rows(embedding: Embedding | None) -> Any:
            return embedding and {name: value[begin:end] for name, value in embedding.items()}

        return replace(
            self,
            **{name: rows(getattr(self, name)) for name in ("text", "uncond", "negative", "source", "plain")},
            source_x=None if self.source_x is None else self.source_x[begin:end],
            cameras=self.cameras and self.cameras.part(begin, end),
            uniform=None if self.uniform is None else self.uniform[begin:end],
        )

    @staticmethod
    def joined(parts: Sequence[Condition]) -> Condition:
        """Undo ``part``."""

        def rows(name: str) -> Any:
            first, *_ = values = [getattr(part, name) for part in parts]
            if first is None:
                return None
            if isinstance(first, Tensor):
                return torch.cat(values)
            return {key: torch.cat([value[key] for value in values]) for key in first}

        tensors = ("text", "uncond", "negative", "source", "source_x", "plain", "uniform")
        cameras = Cameras.joined([part.cameras for part in parts if part.cameras])
        found = {name: rows(name) for name in tensors}
        return replace(parts[0], **found, cameras=cameras if parts[0].cameras else None)


@dataclass(frozen=True)
class Render:
    """Pictures of a scene, channels last.

    Attributes:
        rgb: composited over the background, in [0, 1], shape ``[batch, height, width, 3]``.
        opacity: in [0, 1], shape ``[batch, height, width, 1]``.
        depth: expected distance along the ray in scene units, 0 where empty, ``[batch, height, width, 1]``.
        normal: unit, in world space, 0 where empty, ``[batch, height, width, 3]``; None unless asked for.
        penalties: unweighted regularisers that only the renderer can compute, scalars by name.
    """

    rgb: Tensor
    opacity: Tensor
    depth: Tensor
    normal: Tensor | None = None
    penalties: Mapping[str, Tensor] = field(default_factory=dict)

    def detached(self) -> Render:
        """The same without gradient."""
        return Render(
            self.rgb.detach(),
            self.opacity.detach(),
            self.depth.detach(),
            None if self.normal is None else self.normal.detach(),
            {name: value.detach() for name, value in self.penalties.items()},
        )

    @staticmethod
    def joined(parts: Sequence[Render]) -> Render:
        """Several batches as one; the penalties are means over pictures."""
        counts = torch.tensor([len(part.rgb) for part in parts])
        shares = (counts / counts.sum()).to(parts[0].rgb)
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
        )


class Trainable(Protocol):
    """The network inside a prior that LoRA layers can be added to."""

    @property
    def network(self) -> nn.Module: ...

    @property
    def clock(self) -> str:
        """Name of the network's module that embeds the timestep; its last layer is ``linear_2``."""
        ...

    def forward(self, x_t: Tensor, t: Tensor, cond: Embedding, cameras: Cameras | None = None) -> Tensor:
        """Predict the noise as ``Prior.predict_noise`` does, with gradient to the network's parameters."""
        ...


class Prior(Protocol):
    """A frozen diffusion model. How it predicts (noise, v, flow) stays inside."""

    @property
    def name(self) -> str:
        """The name or path that it was loaded by."""
        ...

    @property
    def device(self) -> torch.device: ...

    @property
    def image_size(self) -> int:
        """Height and width in pixels of the pictures that it encodes."""
        ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one encoded picture."""
        ...

    @property
    def latent(self) -> bool:
        """Whether it works on a VAE's latents."""
        ...

    @property
    def num_timesteps(self) -> int: ...

    @property
    def views(self) -> int:
        """Number of pictures of one object that it denoises together: consecutive in a batch, at one timestep."""
        ...

    @property
    def trainable(self) -> Trainable | None:
        """The network that LoRA layers can be added to, or None."""
        ...

    @property
    def has_control(self) -> bool:
        """Whether it has a ControlNet, whose picture each embedding must then carry."""
        ...

    def describe(self) -> dict[str, Any]:
        """Describe the weights for a manifest, as JSON: ``prior``, ``loras`` and ``controlnet`` (None without one)."""
        ...

    def embed(self, prompts: list[str]) -> Embedding:
        """Encode prompts; done once per run."""
        ...

    def encode(self, image: Tensor) -> Tensor:
        """Map pictures in [0, 1], ``[batch, 3, height, width]``, to the model's space, differentiably."""
        ...

    def decode(self, x: Tensor) -> Tensor:
        """Map ``[batch, *shape]`` back to pictures, ``[batch, 3, image_size, image_size]``, differentiably, unclipped."""
        ...

    def show(self, pictures: Tensor) -> Tensor:
        """Prepare pictures in [0, 1], ``[batch, 3, image_size, image_size]``, for the ControlNet.

        Raises:
            ValueError: there is no ControlNet.
        """
        ...

    def alpha(self, t: Tensor) -> Tensor:
        """Signal scale sqrt(abar_t), shape ``[batch, 1, 1, 1]``."""
        ...

    def sigma(self, t: Tensor) -> Tensor:
        """Noise scale sqrt(1 - abar_t), shape ``[batch, 1, 1, 1]``."""
        ...

    def predict_noise(
        self, x_t: Tensor, t: Tensor, cond: Embedding, cameras: Cameras | None = None
    ) -> Tensor:
        """Predict the noise in ``x_t``, same shape, without gradient to the model's parameters.

        ``cameras``, one for each picture, are needed by priors that are conditioned on them.
        """
        ...


class Guidance(Protocol):
    """A loss: the gradient dL/dx that a prior gives a clean picture. Deterministic: t and noise are drawn outside."""

    def __call__(self, prior: Prior, x: Tensor, cond: Condition, t: Tensor, noise: Tensor, /) -> Tensor: ...


@runtime_checkable
class Learner(Protocol):
    """A guidance with parameters of its own, trained beside the scene and saved with it."""

    def learn(
        self,
        prior: Prior,
        x: Tensor,
        cond: Condition,
        generator: torch.Generator,
        at_once: int | None = None,
        /,
    ) -> float:
        """Train on the pictures of a step, ``at_once`` of them in memory at a time; returns the loss, for the log."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, saved: dict[str, Any], /) -> Any: ...


class TimestepSampler(Protocol):
    """Integer timesteps, shape ``[batch]``, for a point in training; ``progress`` is in [0, 1)."""

    def __call__(self, progress: float, batch: int, generator: torch.Generator, /) -> Tensor: ...


class CameraSampler(Protocol):
    """Cameras for a point in training; ``progress`` is in [0, 1)."""

    def __call__(self, progress: float, batch: int, generator: torch.Generator, /) -> Cameras: ...


class Scene(Protocol):
    """What is optimised: a module with named groups of parameters, and state that follows training."""

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by kind (``encoding``, ``mlp``, ``background``), so that each has its own rate."""
        ...

    def update(self, step: int, progress: float, generator: torch.Generator) -> None:
        """Bring state that is not learnt (occupancy, active levels) up to date before a step."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any], /) -> Any: ...


class Field(Protocol):
    """A scene that fills space, in the cube [-1, 1]^3: what a mesh is made from."""

    def query(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Density (per scene unit, shape ``[n]``) and albedo in [0, 1] (``[n, 3]``) at points ``[n, 3]``."""
        ...


class Renderer(Protocol):
    """Takes pictures of a scene."""

    def __call__(
        self,
        scene: Any,
        cameras: Cameras,
        height: int,
        width: int,
        *,
        generator: torch.Generator | None = None,
        normals: bool = False,
    ) -> Render:
        """Render; with a generator for training (jittered samples, random background), without for looking."""
        ...


#: Takes finished pictures of one scene: cameras, height, width.
View = Callable[[Cameras, int, int], Render]


class Exporter(Protocol):
    """Writes a scene to a file."""

    def __call__(self, scene: Any, path: Path, /) -> None: ...

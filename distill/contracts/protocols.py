"""The interfaces of the parts, as protocols; no class has to inherit from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from distill.cameras import Cameras
from distill.contracts.data import Condition, Draw, Embedding, Field, Group, Render, Step, View


@runtime_checkable
class Prior(Protocol):
    """A frozen diffusion model; its parametrisation (noise, v, flow) is internal."""

    @property
    def name(self) -> str:
        """The name that it was loaded by."""
        ...

    @property
    def device(self) -> torch.device: ...

    @property
    def image_size(self) -> int:
        """Height and width in pixels of the pictures that it works on."""
        ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of ``encode``'s result."""
        ...

    @property
    def latent(self) -> bool:
        """True for a latent diffusion model, False for one in pixel space."""
        ...

    @property
    def words(self) -> bool:
        """True for a text-conditioned model, False for one that is conditioned on a picture."""
        ...

    @property
    def views(self) -> int:
        """Pictures of one object that it takes together, in consecutive rows at one timestep; 1 for most."""
        ...

    @property
    def num_timesteps(self) -> int: ...

    @property
    def trainable(self) -> Trainable | None:
        """The network that VSD adds its LoRA to; None if not available."""
        ...

    @property
    def has_control(self) -> bool:
        """True if a ControlNet is loaded."""
        ...

    def embed(self, prompts: list[str]) -> Embedding:
        """Encode prompts; done once per run."""
        ...

    def encode(self, image: Tensor) -> Tensor:
        """Map pictures in [0, 1], ``[batch, 3, height, width]``, to the model's space, differentiably."""
        ...

    def decode(self, x: Tensor) -> Tensor:
        """Decode to pictures, differentiably and without clipping."""
        ...

    def show(self, pictures: Tensor) -> Tensor:
        """Encode pictures in [0, 1] for the ControlNet.

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
        """Predict the noise in ``x_t``, same shape, without gradient, neither to the model's parameters nor to ``x_t``.

        Args:
            x_t: noised pictures in the prior's space, shape ``[batch, ...]``; of a multi-view prior, ``views``
                consecutive rows show one object.
            t: timesteps, shape ``[batch]``.
            cond: the conditioning.
            cameras: where the pictures were taken from; ignored by most priors.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Return the origin of the weights, for an asset's manifest."""
        ...


class Trainable(Protocol):
    """A prior's network, for losses that train adapters inside it."""

    @property
    def network(self) -> nn.Module:
        """The denoiser, a module of diffusers that takes adapters."""
        ...

    @property
    def clock(self) -> str:
        """Name of the module in it that embeds the time; it has a layer ``linear_2``."""
        ...

    def forward(self, x_t: Tensor, t: Tensor, cond: Embedding, cameras: Cameras | None = None) -> Tensor:
        """Predict the noise as ``Prior.predict_noise`` does, with gradient to the network's parameters."""
        ...


class Guidance(Protocol):
    """A loss: the gradient dL/dx that a prior gives a clean picture. Deterministic: t and noise are drawn outside.

    It is called without gradients (``torch.no_grad``), with an ``x`` that has none, and leaves what it is given unchanged. One that
    differentiates does so inside ``torch.enable_grad``, as ``distill.guidance.terms.through_pixels`` does.
    """

    def __call__(self, prior: Prior, x: Tensor, cond: Condition, t: Tensor, noise: Tensor, /) -> Tensor: ...


@runtime_checkable
class Learner(Protocol):
    """A guidance with its own parameters, trained along with the scene and saved with it, or with another state that a step changes.

    It has all four methods; calling it changes nothing.
    """

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

    def save(self, folder: Path, /) -> None:
        """Write the trained parameters into an existing folder, in a format that other programs read."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state, as tensors, numbers and texts in dictionaries and lists, for the checkpoint."""
        ...

    def load_state_dict(self, saved: dict[str, Any], /) -> object:
        """Go back to a state."""
        ...


class TimestepSampler(Protocol):
    """Integer timesteps on the CPU, shape ``[batch]``, for a point in training; ``progress`` is in [0, 1).

    They follow from the arguments alone, for a sampler has no state in a checkpoint: all that is random comes from the generator.
    """

    def __call__(self, progress: float, batch: int, generator: torch.Generator, /) -> Tensor: ...


class CameraSampler(Protocol):
    """As many cameras as the batch, on the CPU, for a point in training; ``progress`` is in [0, 1).

    They follow from the arguments alone, as timesteps do.
    """

    def __call__(self, progress: float, batch: int, generator: torch.Generator, /) -> Cameras: ...


class Conditioner(Protocol):
    """Makes the condition of a step's pictures."""

    def __call__(self, cameras: Cameras, step: Step, render: Render | None = None, /) -> Condition:
        """Return the condition for some pictures.

        Args:
            cameras: where the pictures are taken from. The loop gives them on the CPU, so that their angles can be read
                without waiting for the device, and puts its copy on the device into a condition that holds them.
            step: where in training the step is.
            render: what they show, for a ControlNet.
        """
        ...


class Scene(Protocol):
    """A scene representation: a torch module that renders itself. What makes it takes ``seed``, a number or a generator.

    ``features`` says what its ``render`` can do, so that what it cannot is refused before training: ``sides`` (it looks
    different from different sides), ``volume`` (it fills the cube [-1, 1]^3), ``mesh`` (it colours a
    ``distill.meshes.surface.Surface``, its constructor's first argument, and has ``begin_with_colours(generator)``),
    ``normals``, ``shading``, ``chunks`` (it takes ``chunk_rays`` and ``recompute``), ``together`` (it takes
    ``together``: so many consecutive pictures are of one object and have the same random background), ``background`` (it
    takes ``background="grey"``, and its renders say what is behind the object), ``library`` (it is a ``Generator``),
    ``distance`` (its mesh is where a signed distance is 0, whatever ``export.iso`` and ``export.blur_width`` are),
    ``from_field`` (it begins with the field of an earlier run: it has ``begin_with_field(field)``, which is given the trained
    ``distill.renderers.HashGridScene`` on the scene's device and returns figures for the manifest, numbers by name, and if need be
    ``field_options``, the names of its options that must have the field's values), and the names of the penalties that it computes.
    """

    @property
    def features(self) -> frozenset[str]:
        """Features that ``render`` supports; a class attribute is enough."""
        ...

    def parameter_groups(self) -> dict[str, Group]:
        """Return the scene's parameters by kind, each with its learning rate."""
        ...

    def update(self, step: Step, optimiser: torch.optim.Optimizer, generator: torch.Generator, /) -> None:
        """Update state that is not learnt (occupancy, active levels) before a step.

        A scene that grows or prunes replaces parameters here, in ``optimiser`` too.
        """
        ...

    def render(
        self,
        cameras: Cameras,
        height: int,
        width: int,
        *,
        generator: torch.Generator | None = None,
        normals: bool = False,
        penalties: Sequence[str] = (),
    ) -> Render:
        """Render; with a generator for training (jittered samples, random background), without for viewing.

        Args:
            cameras: one picture each.
            height: pixels.
            width: pixels.
            generator: of all that is random.
            normals: whether normals are wanted.
            penalties: which penalties are wanted, by name; scenes with the features ``shading``, ``chunks`` and
                ``together`` take the keywords ``shading``, ``chunk_rays`` and ``recompute``, and ``together``, besides.
        """
        ...

    def field(self) -> Field | None:
        """Return the density and colour that a mesh is extracted from; None for scenes without."""
        ...

    def assets(self) -> Mapping[str, Writer]:
        """Return the writers of the scene's own files, by name; pictures are written for every scene with sides.

        ``{"mesh": distill.export.asset.MeshWriter(self.field())}`` writes the mesh of a field.
        """
        ...

    def to(self, device: torch.device, /) -> Self: ...

    def zero_grad(self, set_to_none: bool = True) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any], /) -> object: ...


class Generator(Scene, Protocol):
    """A scene for every prompt of a library: its ``update`` draws the prompt that it represents until the next.

    Which one follows from ``Step.index`` (or ``Step.drawn``) alone, so a step that is done again draws the same.

    Its maker takes ``embeddings``, shape ``[prompts, width]``, beside ``seed``.
    """

    @property
    def options(self) -> Mapping[str, Any]:
        """Options of ``scene=hash_grid`` for the scene of one prompt."""
        ...

    def drawn(self) -> Draw:
        """Return the last draw."""
        ...

    def seen(self) -> int:
        """Return how many prompts were drawn so far, repetitions counted."""
        ...

    def scene_of(self, embedding: Tensor) -> Scene:
        """Make the scene of one prompt, in the library or not, from its embedding, shape ``[width]``.

        It is an ordinary scene, of ``options``, and shares nothing with the generator.
        """
        ...


class Renderer(Protocol):
    """Renders the scene that is trained; where ``Settings.shading`` chooses each step's shading, it is a ``ShadedRenderer``."""

    def __call__(
        self,
        cameras: Cameras,
        height: int,
        width: int,
        *,
        generator: torch.Generator | None = None,
        normals: bool = False,
    ) -> Render: ...


class ShadedRenderer(Renderer, Protocol):
    """Renders a scene with the feature ``shading``: it can be told how the pictures are shaded, which is else the renderer's own."""

    def __call__(
        self,
        cameras: Cameras,
        height: int,
        width: int,
        *,
        generator: torch.Generator | None = None,
        normals: bool = False,
        shading: str = ...,
    ) -> Render:
        """Render; ``shading`` is one of ``distill.renderers.volume.SHADINGS``."""
        ...


class Writer(Protocol):
    """A writer of one kind of file."""

    def __call__(self, folder: Path, view: View, options: Mapping[str, Any], /) -> dict[str, Any]:
        """Write into ``folder``; returns figures for the manifest.

        Args:
            folder: exists; files of the same names are replaced.
            view: renders the scene.
            options: those of ``export``, by name. Those of pictures (``frames``, ``picture_size``, ``elevation_deg``) are missing where
                meshes alone are wanted, as by ``distill export``.

        Raises:
            ValueError: there is nothing to write, for example no surface.
        """
        ...

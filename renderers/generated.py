"""A hash-grid scene for every prompt of a library, with weights predicted from the prompt's embedding."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from distill.cameras import Cameras
from distill.contracts import Draw, Field, Group, Render, Step, Writer
from distill.renderers.nerf import HashGridScene, Weights, render_cube
from distill.renderers.prompt_library import Library
from distill.renderers.shared_options import Make, takes_options_of

if TYPE_CHECKING:
    from nerfacc import OccGridEstimator

#: Width of the embedding of the one prompt that a scene without a library has.
_WIDTH = 64


class Offsets(NamedTuple):
    """Offsets of a prompt to the weights that all prompts share; None for no offset.

    Attributes:
        grid: shape of the grid's entries.
        head: the network's weights and biases, alternating, flattened and concatenated.
    """

    grid: Tensor | None = None
    head: Tensor | None = None


@dataclass
class _Bound:
    """A hash-grid scene with other weights, as the renderer needs it."""

    scene: HashGridScene
    weights: Weights
    occupancy: OccGridEstimator
    step_size: float

    def query(self, points: Tensor) -> tuple[Tensor, Tensor]:
        return self.scene.query(points, self.weights)

    def density(self, points: Tensor) -> Tensor:
        return self.scene.density(points, self.weights)

    def backdrop(
        self, directions: Tensor, generator: torch.Generator | None = None, together: int = 1
    ) -> Tensor:
        return self.scene.backdrop(directions, generator, together)

    def parameters(self) -> Any:
        return self.scene.parameters()


class GeneratedScene(nn.Module):
    """Scenes of many prompts; every ``update`` draws the one to render until the next.

    The weights of a prompt's scene are the plain scene's parameters, which all prompts share, plus the network's offsets, so
    each can be converted to a ``HashGridScene`` (``scene_of``).

    Args:
        plain: the scene that all prompts share.
        network: maps a prepared embedding, shape ``[width]``, to ``Offsets``.
        rate: learning rate of the network, peak.
        options: those that ``plain`` was made with.
        embeddings: of the library's prompts, shape ``[prompts, width]``; None for one prompt of zeros.
        share: fraction of the steps that interpolate between two prompts.
        generator: of the sampler.

    Source: Lorraine et al. 2023 (ATT3D), arXiv:2306.07349; Ma et al. 2024 (ScaleDreamer), arXiv:2407.02040, Sec. 4.
    """

    features: ClassVar[frozenset[str]] = HashGridScene.features | {"library"}

    def __init__(
        self,
        plain: HashGridScene,
        network: nn.Module,
        rate: float,
        options: dict[str, Any],
        embeddings: Tensor | None,
        share: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.plain, self.network, self.rate, self.options = plain, network, rate, options
        known = torch.zeros(1, _WIDTH) if embeddings is None else embeddings
        self.prompts = Library(known, plain.occupancy.occs.numel(), share, generator)

    def parameter_groups(self) -> dict[str, Group]:
        """Return the plain scene's parameters by kind, and ``network``."""
        return {**self.plain.parameter_groups(), "network": Group(list(self.network.parameters()), self.rate)}

    def weights_of(self, embedding: Tensor) -> Weights:
        """Return the weights of a prompt's scene, with gradient to all parameters; embedding of shape ``[width]``."""
        grid, head = self.plain.weights
        added: Offsets = self.network(self.prompts.prepared(embedding))
        if added.grid is not None:
            grid = grid + added.grid
        if added.head is not None:
            parts = added.head.split([value.numel() for value in head])
            head = tuple(own + part.view_as(own) for own, part in zip(head, parts, strict=True))
        return Weights(grid, head)

    def drawn(self) -> Draw:
        """The prompt, or pair of prompts, of the last ``update``."""
        return self.prompts.drawn()

    def seen(self) -> int:
        """Number of prompts drawn so far, including repetitions."""
        return self.prompts.count

    def update(self, step: Step, optimiser: torch.optim.Optimizer, generator: torch.Generator) -> None:
        """Draw the step's prompt, activate the levels that are due, and evaluate which cells of its scene are occupied."""
        self.prompts.draw(step.index if step.drawn is None else step.drawn)
        self.plain.open_levels(step.progress)
        with torch.no_grad():
            density = partial(self.plain.density, weights=self.weights_of(self.prompts.embedding()))
        plain = self.plain
        self.prompts.refresh(plain.occupancy, density, plain.step_size, generator, plain.occupancy_threshold)

    def render(
        self,
        cameras: Cameras,
        height: int,
        width: int,
        *,
        generator: torch.Generator | None = None,
        normals: bool = False,
        penalties: Sequence[str] = (),
        **options: Any,
    ) -> Render:
        """Render the scene of the prompt that was drawn; options as for ``distill.renderers.volume.render``."""
        options |= {"generator": generator, "normals": normals, "penalties": penalties}
        weights = self.weights_of(self.prompts.embedding())
        bound = _Bound(self.plain, weights, self.plain.occupancy, self.plain.step_size)
        return render_cube(bound, self.plain.radius, cameras, height, width, **options)

    def field(self) -> Field:
        """Return the field of the prompt that was drawn, without gradient."""
        with torch.no_grad():
            return partial(self.plain.look_up, self.weights_of(self.prompts.embedding()))

    def assets(self) -> dict[str, Writer]:
        """Return the writer of mesh files of the prompt that was drawn."""
        from distill.export.asset import MeshWriter

        return {"mesh": MeshWriter(self.field())}

    @torch.no_grad()
    def scene_of(self, embedding: Tensor) -> HashGridScene:
        """Make the scene of one prompt, an ordinary hash grid that shares nothing with this one.

        Args:
            embedding: of the prompt, in the library or not, shape ``[width]``.
        """
        made = copy.deepcopy(self.plain)
        found = self.weights_of(embedding.to(self.plain.grid.device))
        for own, value in zip((made.grid, *made.mlp.parameters()), (found.grid, *found.head), strict=True):
            own.copy_(value)
        made.settle()
        return made


def generates(*without: str, **defaults: Any) -> Callable[[Make], Make]:
    """Add the options of ``HashGridScene`` to a function that makes a ``GeneratedScene``; usable as a decorator.

    Args:
        without: options that it does not take.
        **defaults: of options whose default is another one here.
    """
    take = takes_options_of(HashGridScene, without=without, **defaults)

    def decorate(make: Make) -> Make:
        made = take(make)
        vars(made)["features"] = GeneratedScene.features
        return made

    return decorate


def linear(fan_in: int, fan_out: int, generator: torch.Generator, bound: float) -> nn.Linear:
    """Make a linear layer, uniform in [-bound, bound] with bias 0, without using torch's global generator."""
    layer = nn.utils.skip_init(nn.Linear, fan_in, fan_out)
    nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def width_of(embeddings: Tensor | None) -> int:
    """Return the width of a prompt's embedding."""
    return _WIDTH if embeddings is None else embeddings.shape[1]

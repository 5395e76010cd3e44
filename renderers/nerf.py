"""A neural radiance field on a hash grid, with its occupancy and background."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from distill.cameras import Cameras
from distill.contracts import Field, Group, Render, Step, Writer
from distill.domains import Count, Fraction, Length, NotNegative, Positive, Range
from distill.renderers.hashgrid import choose_backend, encode, has_warp
from distill.renderers.layout import hash_layout
from distill.renderers.occupancy import occupancy_grid, settle, update_occupancy
from distill.renderers.volume import PENALTIES, Volume, render
from distill.transfer import send

BACKGROUNDS = ("white", "grey", "random", "learned")


class _TruncatedExp(torch.autograd.Function):
    """exp, bounded above, whose gradient does not vanish where it is bounded."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.clamp(max=15).exp()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return grad * y


#: Most features, and most hidden units, of the fused kernel: a point's are in registers or in the nearest cache.
MAX_FUSED = 128
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softplus": nn.functional.softplus,
    "exp": _TruncatedExp.apply,
    "relu": torch.relu,
}


#: Options that a scene has whose albedo is a hash grid and whose shape is something else.
OF_ALBEDO = (
    "levels", "features", "log2_table_size", "base_resolution", "finest_resolution", "hidden_width", "hidden_layers", "background",
    "random_background", "backend", "precision", "encoding_lr", "mlp_lr", "background_lr",
)  # fmt: skip


def _mlp(sizes: Sequence[int], generator: torch.Generator) -> nn.Sequential:
    """Linear layers with ReLU between, drawn from the generator (He et al. 2015, uniform), biases 0."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        # Skipping torch's own initialisation leaves its global generator alone.
        linear = nn.utils.skip_init(nn.Linear, fan_in, fan_out)
        bound = math.sqrt(6 / fan_in) if layers or len(sizes) > 2 else math.sqrt(3 / fan_in)
        nn.init.uniform_(linear.weight, -bound, bound, generator=generator)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


class Weights(NamedTuple):
    """The weights that a hash-grid scene is evaluated with: its own parameters, or replacements.

    Attributes:
        grid: entries of the hash grid, shape ``[layout.num_params]``.
        head: weight and bias of each layer of the network, alternating.
    """

    grid: Tensor
    head: tuple[Tensor, ...]


class HashGridScene(nn.Module):
    r"""Density and albedo in a cube around the origin: a hash grid, then a small network.

    .. math:: \sigma(x) = a(f(x) + s (1 - |x| / r)), \quad rgb(x) = \mathrm{sigmoid}(g(x))

    Args:
        levels: levels of the hash grid, coarse to fine.
        features: numbers per grid entry: 1, 2, 4 or 8.
        log2_table_size: binary logarithm of a level's largest size.
        base_resolution: resolution of the coarsest level, vertices along the cube's edge.
        finest_resolution: resolution of the finest level, vertices along the cube's edge.
        hidden_width: width of the network's hidden layers.
        hidden_layers: number of the network's hidden layers.
        radius: half of the cube's edge, scene units. A larger cube leaves more empty space around the object; the mesh is
            extracted from [-1, 1]^3 in any case.
        blob_scale: s, the density before activation added at the centre of the initial scene.
        blob_radius: r, the distance from the centre at which the added density is 0, scene units.
        density_activation: a, the activation that maps the network's output to a density: ``softplus``, ``exp`` or ``relu``.
        background: ``white``; ``grey`` or ``random`` (a random grey or colour for each training picture, or for all views of
            an object that a multi-view prior takes together; white when viewing); ``learned`` (a small network on the ray's
            direction); or an RGB triple in [0, 1].
        random_background: fraction of training pictures, or of objects, with a random background colour instead of
            ``background``.
        march_steps: steps along the cube's diagonal, which determines the step length.
        occupancy_resolution: cells along an axis.
        occupancy_threshold: opacity of one step below which a cell is skipped.
        occupancy_every: training steps between updates of the occupancy.
        progressive_levels: ``(start, until)`` or ``(start, until, since)``: start with ``start`` levels, and add the rest one
            by one, evenly spaced after progress ``since`` (0 by default), the last at ``until``; null starts with all.
        backend: ``fused`` evaluates the grid, the network and the activations in one Warp kernel, in single precision, for
            one hidden layer; others are for the encoding only, see ``hashgrid.encode``. ``auto`` is ``fused`` if possible.
        precision: precision in which the hash grid's entries are read, ``float32`` or ``float16``, which halves the bandwidth
            of a large grid; they are trained in float32.
        encoding_lr: learning rate of the hash grid, peak.
        mlp_lr: learning rate of the network, peak.
        background_lr: learning rate of a learned background, peak.
        seed: of the initial parameters, or a generator to draw them from.

    Raises:
        ValueError: an option is outside its range.

    Source: Mueller et al. 2022, arXiv:2201.05989; the density blob is Poole et al. 2022, arXiv:2209.14988,
    App. A.2, written as Lin et al. 2022 (arXiv:2211.10440) do, inside the activation.
    """

    features: ClassVar[frozenset[str]] = frozenset(
        {"sides", "volume", "normals", "shading", "chunks", "together", "background", *PENALTIES}
    )
    active_levels: Tensor

    def __init__(
        self,
        *,
        levels: Count = 12,
        features: Literal[1, 2, 4, 8] = 2,
        log2_table_size: Annotated[int, Range(3, 24)] = 15,
        base_resolution: Annotated[int, Range(1, 65536)] = 8,
        finest_resolution: Annotated[int, Range(1, 65536)] = 128,
        hidden_width: Count = 32,
        hidden_layers: Annotated[int, Range(0)] = 1,
        radius: Positive = 1.0,
        blob_scale: float = 10.0,
        blob_radius: Positive = 0.5,
        density_activation: Literal["softplus", "exp", "relu"] = "softplus",
        background: Literal["white", "grey", "random", "learned"]
        | Annotated[Sequence[float], Length.exactly(3), Range(0, 1)] = "white",
        random_background: Fraction = 0.0,
        march_steps: Count = 64,
        occupancy_resolution: Count = 32,
        occupancy_threshold: Fraction = 0.01,
        occupancy_every: Count = 16,
        progressive_levels: tuple[Count, Annotated[float, Range(0, 1, above=True)]]
        | tuple[Count, Annotated[float, Range(0, 1, above=True)], Annotated[float, Range(0, 1, below=True)]]
        | None = None,
        backend: Literal["auto", "fused", "torch", "warp", "tinycudann"] = "auto",
        precision: Literal["float32", "float16"] = "float32",
        encoding_lr: NotNegative = 0.01,
        mlp_lr: NotNegative = 0.01,
        background_lr: NotNegative = 0.001,
        seed: int | torch.Generator = 0,
    ) -> None:
        super().__init__()
        _check(precision, density_activation, background, progressive_levels, levels)
        generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
        self.layout = hash_layout(levels, features, log2_table_size, base_resolution, finest_resolution)
        self.grid = nn.Parameter(
            torch.empty(self.layout.num_params).uniform_(-1e-4, 1e-4, generator=generator)
        )
        choose_backend(backend, self.grid)
        self.fusible = _fusible(backend, hidden_layers, hidden_width, self.layout.width)
        self.mlp = _mlp([self.layout.width, *[hidden_width] * hidden_layers, 4], generator)
        self.background = background if isinstance(background, str) else tuple(background)
        self.background_mlp = _mlp([15, 16, 3], generator) if background == "learned" else None
        self.random_background = random_background
        # The field is kept in [-1, 1]^3, whatever the cube's size: lengths are divided by the radius, densities multiplied.
        self.radius, self.blob_scale, self.blob_radius = radius, blob_scale, blob_radius / radius
        self.density_activation = density_activation
        self.step_size = 2 * math.sqrt(3) / march_steps
        self.occupancy_threshold, self.occupancy_every = occupancy_threshold, occupancy_every
        self.progressive_levels = progressive_levels
        self.backend, self.rounded = backend, precision == "float16"
        self.rates = {"encoding": encoding_lr, "mlp": mlp_lr, "background": background_lr}
        start = levels if progressive_levels is None else progressive_levels[0]
        self.register_buffer("active_levels", torch.tensor(start))
        # The same number on the CPU: reading the buffer would wait for the device.
        self._active = start
        self.occupancy = occupancy_grid(occupancy_resolution)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._active = int(self.active_levels)

    def parameter_groups(self) -> dict[str, Group]:
        """Return the scene's parameters by kind: ``encoding``, ``mlp``, and ``background`` if learned."""
        parameters = {"encoding": [self.grid], "mlp": list(self.mlp.parameters())}
        if self.background_mlp is not None:
            parameters["background"] = list(self.background_mlp.parameters())
        return {name: Group(values, self.rates[name]) for name, values in parameters.items()}

    @property
    def weights(self) -> Weights:
        """Return the scene's own parameters."""
        return Weights(self.grid, tuple(self.mlp.parameters()))

    def open_levels(self, progress: float) -> None:
        """Activate the grid levels that are due at a fraction of training; active levels, also from an earlier run, stay active."""
        due = total = len(self.layout.levels)
        if self.progressive_levels is not None:
            start, until, since = (*self.progressive_levels, 0.0)[:3]
            # Fractions of a run are rounded: 2,500 of 10,000 steps must not fall short of a quarter.
            done = (progress - since) / (until - since) * (1 + 1e-9) + 1e-9
            due = min(total, start + max(0, int((total - start) * done)))
        if due > self._active:
            self._active = due
            self.active_levels.fill_(due)

    def settle(self) -> None:
        """Determine which cells are occupied, independently of earlier state and deterministically."""
        settle(self.occupancy, self.density, self.step_size, self.occupancy_threshold)

    def update(self, step: Step, optimiser: torch.optim.Optimizer, generator: torch.Generator) -> None:
        """Activate the levels that are due and, at regular intervals, evaluate which cells are occupied.

        Args:
            step: of training.
            optimiser: not used: the number of parameters stays.
            generator: drawn from on the steps that evaluate the cells.
        """
        self.open_levels(step.progress)
        if step.index % self.occupancy_every == 0:
            update_occupancy(
                self.occupancy, self.density, self.step_size, generator, self.occupancy_threshold
            )

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
        """Render the scene; see ``distill.renderers.volume.render`` for the other options."""
        options |= {"generator": generator, "normals": normals, "penalties": penalties}
        return render_cube(self, self.radius, cameras, height, width, **options)

    def field(self) -> Field:
        """Return the density per scene unit and the albedo at points in scene units, on any device."""
        return partial(self.look_up, None)

    def look_up(self, weights: Weights | None, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return the density per scene unit and the albedo at points in scene units, on any device; weights as for ``query``.

        Outside the cube, where no picture looks, the density is 0 and the albedo that of the nearest point inside.
        """
        points = points.to(self.grid.device) / self.radius
        density, albedo = self.query(points.clamp(-1, 1), weights)
        return torch.where((points.abs() <= 1).all(-1), density, 0.0) / self.radius, albedo

    def assets(self) -> dict[str, Writer]:
        """Return the writer of mesh files."""
        from distill.export.asset import MeshWriter

        return {"mesh": MeshWriter(self.field())}

    def query(self, points: Tensor, weights: Weights | None = None) -> tuple[Tensor, Tensor]:
        """Return the density per radius, ``[n]``, and the albedo in [0, 1], ``[n, 3]``, at points ``[n, 3]`` in radii.

        Args:
            points: where.
            weights: used instead of its own; the gradient goes to them.
        """
        if self._fits(points):
            density, albedo = self._evaluate(points, weights or self.weights)
            return self._per_radius(density), albedo
        raw, colour = self._network(points, weights or self.weights).split([1, 3], dim=1)
        return self._density(points, raw), torch.sigmoid(colour)

    def density(self, points: Tensor, weights: Weights | None = None) -> Tensor:
        """Return only the density, shape ``[n]``; arguments as for ``query``."""
        if self._fits(points):
            return self._per_radius(self._evaluate(points, weights or self.weights)[0])
        return self._density(points, self._network(points, weights or self.weights)[:, :1])

    def _fits(self, points: Tensor) -> bool:
        """Whether one kernel evaluates the field here; it has no gradient to the points."""
        if self.backend not in ("auto", "fused") or not self.fusible or points.requires_grad:
            return False
        return choose_backend(self.backend, self.grid) == "warp"

    def _evaluate(self, points: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
        from distill.renderers._warp_field import evaluate_warp

        weight1, bias1, weight2, bias2 = weights.head
        network = (weight1, bias1, weight2, bias2)
        blob = (self.blob_scale, self.blob_radius)
        return evaluate_warp(
            points, weights.grid, network, self.layout, self._active, self.density_activation, blob, self.rounded
        )  # fmt: skip

    def _network(self, points: Tensor, weights: Weights) -> Tensor:
        unit, grid = torch.add(0.5, points, alpha=0.5), weights.grid
        if self.rounded:
            grid = grid + (grid.half().to(grid) - grid).detach()
        x = encode(unit, grid, self.layout, self.backend, self._active)
        for weight, bias in zip(weights.head[:-2:2], weights.head[1:-2:2], strict=True):
            x = torch.relu(nn.functional.linear(x, weight, bias))
        return nn.functional.linear(x, *weights.head[-2:])

    def _density(self, points: Tensor, raw: Tensor) -> Tensor:
        blob = self.blob_scale - (self.blob_scale / self.blob_radius) * points.norm(dim=1)
        return self._per_radius(ACTIVATIONS[self.density_activation](raw[:, 0] + blob))

    def _per_radius(self, density: Tensor) -> Tensor:
        return density if self.radius == 1 else self.radius * density

    def backdrop(
        self, directions: Tensor, generator: torch.Generator | None = None, together: int = 1
    ) -> Tensor:
        """Return the background colour, shape ``[batch, height, width, 3]`` or broadcasting to it.

        Args:
            directions: of the rays, shape ``[batch, height, width, 3]``.
            generator: draws one colour per object for a random background; None for viewing.
            together: pictures of one object, in consecutive rows.
        """
        ground = self._ground(directions, generator, together)
        if not self.random_background or generator is None:
            return ground
        drawn = _per_object(len(directions), 4, together, generator)
        drawn = send(drawn, directions.device).to(directions)
        return torch.where(drawn[..., :1] < self.random_background, drawn[..., 1:], ground)

    def _ground(self, directions: Tensor, generator: torch.Generator | None, together: int) -> Tensor:
        if self.background_mlp is not None:
            waves = [f(k * directions) for k in (1, 2) for f in (torch.sin, torch.cos)]
            return torch.sigmoid(self.background_mlp(torch.cat([directions, *waves], dim=-1)))
        if isinstance(self.background, tuple):
            colour = send(torch.tensor(self.background, dtype=directions.dtype), directions.device)
            return colour.expand(len(directions), 1, 1, 3)
        if self.background == "white" or generator is None:
            return directions.new_ones(len(directions), 1, 1, 3)
        channels = 1 if self.background == "grey" else 3
        colour = _per_object(len(directions), channels, together, generator)
        if self.background == "grey":
            colour = 0.5 + 0.5 * colour
        return send(colour, directions.device).to(directions).expand(-1, 1, 1, 3)


def _per_object(pictures: int, numbers: int, together: int, generator: torch.Generator) -> Tensor:
    """Draw uniform numbers for each object, the same for its pictures, ``[pictures, 1, 1, numbers]``."""
    objects = -(-pictures // together)
    drawn = torch.rand(objects, 1, 1, numbers, generator=generator, device=generator.device)
    return drawn.repeat_interleave(together, 0)[:pictures]


def render_cube(
    scene: Volume, radius: float, cameras: Cameras, height: int, width: int, **options: Any
) -> Render:
    """Render a field stored in radii, from cameras in scene units; options as for ``distill.renderers.volume.render``."""
    if radius == 1:
        return render(scene, cameras, height, width, **options)
    found = render(scene, cameras.scaled(1 / radius), height, width, **options)
    variance = {name: radius**2 * value for name, value in found.penalties.items() if name == "z_variance"}
    return replace(found, depth=radius * found.depth, penalties={**found.penalties, **variance})


def _fusible(backend: str, layers: int, hidden: int, features: int) -> bool:
    """Tell whether grid and network fit one kernel.

    Raises:
        ValueError: the kernel is asked for, and they do not fit it, or Warp is missing.
    """
    fits = layers == 1 and max(hidden, features) <= MAX_FUSED
    if backend == "fused" and not (fits and has_warp()):
        raise ValueError(
            f"backend 'fused' expects Warp, one hidden layer, and at most {MAX_FUSED} features and hidden units; got "
            f"{layers} layers of {hidden} and {features} features; use backend 'auto'"
        )
    return fits


def _check(
    precision: str,
    activation: str,
    background: str | Sequence[float],
    progressive: Sequence[float] | None,
    levels: int,
) -> None:
    if precision not in ("float32", "float16"):
        raise ValueError(f"expected precision float32 or float16, got {precision!r}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"expected density_activation in {', '.join(ACTIVATIONS)}; got {activation!r}")
    named = isinstance(background, str) and background in BACKGROUNDS
    triple = not isinstance(background, str) and len(background) == 3 and all(0 <= c <= 1 for c in background)
    if not named and not triple:
        raise ValueError(
            f"expected background in {', '.join(BACKGROUNDS)} or three numbers in [0, 1]; got {background!r}"
        )
    if progressive is None:
        return
    since = progressive[2] if len(progressive) == 3 else 0
    if not (
        len(progressive) in (2, 3) and 1 <= progressive[0] <= levels and 0 <= since < progressive[1] <= 1
    ):
        raise ValueError(
            f"expected progressive_levels (start in 1..{levels}, until in (0, 1]), and perhaps since in [0, until); got "
            f"{progressive!r}"
        )

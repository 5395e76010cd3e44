"""A surface as the zero set of a signed distance, rendered by the marcher as a thin shell around it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, softplus

from distill.cameras import Cameras
from distill.contracts import Field, Group, Render, Step, Writer
from distill.domains import Count, Length, NotNegative, Positive, Range
from distill.renderers import volume
from distill.renderers.grids import interpolated, nodes
from distill.renderers.march import Samples
from distill.renderers.nerf import OF_ALBEDO, HashGridScene, render_cube
from distill.renderers.occupancy import occupancy_grid
from distill.renderers.shared_options import takes_options_of
from distill.transfer import send

#: Penalties that ask for a distance, beside those of ``volume.PENALTIES``.
PENALTIES = ("eikonal", "curvature")
#: Points in the shell on which a step's penalties are evaluated.
_POINTS = 4096
#: Half the shell in widths of the opacity's rise: the logistic function leaves 1 / (1 + exp(4)), 2%, beyond it.
_BAND = 4.0
#: Radius of the ball that a scene is before it begins with a field, in halves of the cube's edge.
_BALL = 0.5

Interval = Annotated[Sequence[float], Length.exactly(2), Range(0, 1)]


def optical_depth(enter: Tensor, leave: Tensor, width: float) -> Tensor:
    r"""Return the optical depth of a section of a ray from the signed distances at its ends.

    .. math:: \tau = \max(0, \log\Phi(d_{in} / w) - \log\Phi(d_{out} / w)), \quad \Phi(x) = 1 / (1 + e^{-x})

    Along a ray that goes in, the sections' sum telescopes: its opacity is :math:`1 - \Phi(d_{last} / w) / \Phi(d_{first} / w)`
    however long they are. The opacity is a half where the distance is 0, seen from outside, whatever the angle.

    Args:
        enter: signed distances where the ray enters each section, negative inside, shape ``[n]``.
        leave: where it leaves them.
        width: w, of the logistic function, in the distances' unit.

    Source: Wang et al. 2021 (NeuS), arXiv:2106.10689, Eq. 13, whose opacity is :math:`1 - e^{-\tau}`.
    """
    return torch.relu(softplus(-leave / width) - softplus(-enter / width))


class SdfScene(nn.Module):
    r"""The second stage of a field: a signed distance and an albedo in a cube, :math:`d(x) = d_0(x) + r \tanh(f(x) / 2)`.

    The distance :math:`d_0`, of the field's surface, is stored on a grid; f is a small hash grid with a network, initially 0.
    The albedo is the field's hash grid and network. The two share no parameters, so that training one does not change the
    other. ``begin_with_field`` makes one of a finished field; before that it is a ball.

    The other options are those of ``HashGridScene`` for the albedo and its training, and ``radius``; a field and
    its second stage have the same hash grid and network.

    Args:
        resolution: nodes of the distance's grid along the cube's edge.
        detail: vertices of f's finest level along the cube's edge.
        reach: r, how far the surface may move, scene units.
        width: width of the shell in which the opacity rises, at the beginning and at the end of training, with a constant ratio from
            step to step; scene units, see ``optical_depth``.
        geometry: fractions of training between which the shape is trained; ``[0, 0]`` freezes it.
        texture: fractions of training between which the albedo and a learned background are trained; ``[0, 0]`` freezes them.
        march_steps: steps along the cube's diagonal, which determines the step length.
        occupancy_resolution: cells along an axis; those that the shell does not touch are skipped.
        occupancy_every: training steps between updates of these cells.
        geometry_lr: learning rate of f, peak.
        seed: of the initial parameters, or a generator to draw them from.

    Raises:
        ValueError: an option is outside its range, or at some time neither shape nor albedo is trained.
    """

    features: ClassVar[frozenset[str]] = HashGridScene.features | {"from_field", "distance", *PENALTIES}
    field_options: ClassVar[tuple[str, ...]] = (
        "levels", "features", "log2_table_size", "base_resolution", "finest_resolution", "hidden_width", "hidden_layers", "radius",
        "background", "random_background", "precision",
    )  # fmt: skip
    base: Tensor
    progress: Tensor

    @takes_options_of(HashGridScene, only=(*OF_ALBEDO, "radius"))
    def __init__(
        self,
        *,
        resolution: Annotated[int, Range(8)] = 96,
        detail: Annotated[int, Range(8, 65536)] = 64,
        reach: Positive = 0.2,
        width: Annotated[Sequence[float], Length.exactly(2), Range(0, above=True)] = (0.015, 0.005),
        geometry: Interval = (0.0, 1.0),
        texture: Interval = (0.0, 1.0),
        march_steps: Count = 128,
        occupancy_resolution: Annotated[int, Range(2)] = 64,
        occupancy_every: Count = 16,
        geometry_lr: NotNegative = 0.005,
        seed: int | torch.Generator = 0,
        **grid: Any,
    ) -> None:
        super().__init__()
        _check(geometry, texture)
        generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
        radius = grid.pop("radius")
        grid |= {"blob_scale": 0.0, "occupancy_resolution": 2, "seed": generator}
        # Only its albedo and background are asked for.
        self.colours = HashGridScene(**grid)
        # Its first colour is a half to begin with, which stands for no change. Shaped alike, one kernel evaluates both.
        self.change = HashGridScene(
            **{**grid, "base_resolution": 8, "finest_resolution": detail, "background": "white"}
        )
        nn.init.zeros_(self.change.weights.head[-2])
        self.radius, self.reach = radius, reach / radius
        self.widths = (width[0] / radius, width[1] / radius)
        self.trained = {"geometry": tuple(geometry), "texture": tuple(texture)}
        self.step_size = 2 * math.sqrt(3) / march_steps
        self.occupancy_every, self.geometry_lr = occupancy_every, geometry_lr
        ball = nodes(resolution, torch.device("cpu")).norm(dim=-1) - _BALL
        self.register_buffer("base", ball.view((resolution,) * 3))
        self.register_buffer("progress", torch.zeros(()))
        self._progress = 0.0  # the same on the CPU: reading the buffer would wait for the device
        self.occupancy = occupancy_grid(occupancy_resolution)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._progress = float(self.progress)

    def parameter_groups(self) -> dict[str, Group]:
        """Return the scene's parameters by kind: ``encoding`` and ``mlp`` of the albedo, ``geometry``, and a learned ``background``."""
        shape = Group([self.change.grid, *self.change.mlp.parameters()], self.geometry_lr)
        return {**self.colours.parameter_groups(), "geometry": shape}

    @property
    def width(self) -> float:
        """Return the width of the opacity's rise at this point of training, radii."""
        first, last = self.widths
        return float(first * (last / first) ** self._progress)

    def trains(self, part: str) -> bool:
        """Tell whether ``geometry`` or ``texture`` is trained at this point of training."""
        since, until = self.trained[part]
        return since <= self._progress < until

    def begin_with_field(self, field: HashGridScene) -> dict[str, float]:
        """Begin with a field's surface, albedo and background.

        Args:
            field: has the same hash grid and network, and the same radius.

        Returns:
            ``level``, the density of the surface, per scene unit; ``silhouette_iou`` and ``psnr_db``, of the scene's pictures and
            the field's.

        Raises:
            ValueError: the field is empty, or has another hash grid or network.
        """
        from distill.renderers import second_stage

        return second_stage.begin(self, field)

    def begin_with(self, field: HashGridScene, distance: Tensor) -> None:
        """Initialise from a field's albedo and background, and a surface.

        Args:
            field: has the same hash grid and network.
            distance: signed distances at the grid's nodes, x first, radii, shape ``[resolution] * 3``.

        Raises:
            ValueError: the field has another hash grid or network.
        """
        if [p.shape for p in field.weights.head] != [p.shape for p in self.colours.weights.head] or (
            field.layout != self.colours.layout
        ):
            raise ValueError(
                "expected a field with the same hash grid and network; give the scene the field's options"
            )
        taken = {
            name: value for name, value in field.state_dict().items() if not name.startswith("occupancy")
        }
        if self.colours.background_mlp is None or field.background_mlp is None:
            taken = {name: value for name, value in taken.items() if not name.startswith("background_mlp")}
        self.colours.load_state_dict(taken, strict=False)
        with torch.no_grad():
            self.base.copy_(distance)
        self.fit_shell()

    def update(self, step: Step, optimiser: torch.optim.Optimizer, generator: torch.Generator) -> None:
        """Narrow the opacity's rise and, at regular intervals, find the cells that the shell touches.

        Args:
            step: of training.
            optimiser: not used: the number of parameters stays.
            generator: not used: cells are evaluated at their centres.
        """
        self._progress = step.progress
        self.progress.fill_(step.progress)
        if step.index % self.occupancy_every == 0:
            self.fit_shell()

    @torch.no_grad()
    def fit_shell(self) -> None:
        """Mark the cells in which a sample's section may touch the shell: distances change no faster than places do."""
        cells = self.occupancy.binaries.shape[-1]
        centre = (torch.arange(cells, device=self.base.device) + 0.5) * (2 / cells) - 1
        points = torch.stack(torch.meshgrid(centre, centre, centre, indexing="ij"), dim=-1).view(-1, 3)
        near = _BAND * self.width + self.step_size / 2 + math.sqrt(3) / cells
        distance = torch.cat([self.distance(part) for part in points.split(2**18)])
        found = (distance.abs() <= near).view(1, cells, cells, cells)
        self.occupancy.binaries.copy_(found if bool(found.any()) else torch.ones_like(found))

    def distance(self, points: Tensor) -> Tensor:
        """Return the signed distance, negative inside, ``[n]``, at points ``[n, 3]``; both in radii."""
        with torch.no_grad():
            base = interpolated(self.base, points)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trains("geometry")):
            change = self.change.query(points)[1][:, 0]
        return base + self.reach * (2 * change - 1)

    def query(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return the density per radius at perpendicular incidence, ``[n]``, and the albedo, ``[n, 3]``, at points ``[n, 3]`` in radii."""
        return self.density(points), self._albedo(points)

    def density(self, points: Tensor) -> Tensor:
        """Return only the density: minus the derivative of the transmittance's logarithm, per radius."""
        return torch.sigmoid(-self.distance(points) / self.width) / self.width

    def _albedo(self, points: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trains("texture")):
            return self.colours.query(points)[1]

    def along(self, samples: Samples, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean density in the sections of samples, and their albedo; see ``volume.Medium``."""
        half = 0.5 * samples.step * directions[samples.ray]
        ends = self.distance(torch.cat([samples.points - half, samples.points + half]))
        enter, leave = ends.chunk(2)
        return optical_depth(enter, leave, self.width) / samples.step, self._albedo(samples.points)

    def normals(self, points: Tensor) -> Tensor:
        """Return outward unit normals, ``[n, 3]``, from distances one node of the grid away."""
        return normalize(self._around(points)[0], dim=-1, eps=1e-6)

    def _around(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """The distance's gradient ``[n, 3]`` and its mean at the corners of a tetrahedron around each point, ``[n]``."""
        corners = send(torch.tensor(volume.TETRAHEDRON, dtype=points.dtype), points.device)
        there = (points + self.spacing * corners[:, None]).view(-1, 3)
        distance = self.distance(there).view(4, -1)
        return distance.T @ corners / (4 * self.spacing), distance.mean(0)

    @property
    def spacing(self) -> float:
        """Return the edge of a cell of the distance's grid, radii."""
        return 2 / (len(self.base) - 1)

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
        r"""Render the scene; see ``distill.renderers.volume.render`` for the other options and penalties.

        ``eikonal``: (\|grad d\| - 1)^2, so that d stays a distance (Gropp et al. 2020, arXiv:2002.10099, Eq. 2). ``curvature``:
        \|laplacian d\|, twice the surface's mean curvature, per scene unit. Both are means over random points of the shell.
        """
        own = [name for name in penalties if name in PENALTIES]
        options |= {"generator": generator, "normals": normals, "medium": self}
        options["penalties"] = [name for name in penalties if name not in own]
        found = render_cube(self, self.radius, cameras, height, width, **options)
        if own:
            found = replace(found, penalties={**found.penalties, **self._penalties(own, generator)})
        if torch.is_grad_enabled() and generator is not None and not found.rgb.requires_grad:
            # What shows nothing that is trained, such as normals of a shape that is kept, has a gradient of 0.
            found = replace(found, rgb=found.rgb + 0 * self.colours.grid[0])
        return found

    def _penalties(self, names: Sequence[str], generator: torch.Generator | None) -> dict[str, Tensor]:
        points = self._in_shell(generator)
        slope, mean = self._around(points)
        found = {"eikonal": (slope.norm(dim=-1) - 1).square().mean()}
        if "curvature" in names:
            # To second order, the mean over a tetrahedron's corners is larger by half of the spacing's square times it.
            laplacian = (mean - self.distance(points)) * (2 / self.spacing**2)
            found["curvature"] = laplacian.abs().mean() / self.radius
        return {name: found[name] for name in names}

    def _in_shell(self, generator: torch.Generator | None) -> Tensor:
        """Random points in the cells that the shell touches; without a generator, centres of cells."""
        full = self.occupancy.binaries[0].nonzero()
        if generator is None:
            chosen = torch.arange(_POINTS, device=full.device) * len(full) // _POINTS
            offset: Tensor | float = 0.5
        else:
            drawn = torch.rand(_POINTS, 4, generator=generator, device=generator.device)
            drawn = send(drawn, full.device)
            chosen, offset = (drawn[:, 0] * len(full)).long().clamp(max=len(full) - 1), drawn[:, 1:]
        return (full[chosen] + offset) * (2 / self.occupancy.binaries.shape[-1]) - 1

    def field(self) -> Field:
        """Return the density per scene unit and the albedo at points in scene units, on any device.

        Outside the cube, the density is 0 and the albedo that of the nearest point inside.
        """

        def look_up(points: Tensor) -> tuple[Tensor, Tensor]:
            points = points.to(self.base.device) / self.radius
            density, albedo = self.query(points.clamp(-1, 1))
            return torch.where(_beyond(points) > 0, 0.0, density) / self.radius, albedo

        return look_up

    def signed_distance(self, points: Tensor) -> Tensor:
        """Return the signed distance ``[n]`` at points ``[n, 3]`` in scene units, on any device; points beyond the cube are outside."""
        points = points.to(self.base.device) / self.radius
        distance, beyond = self.distance(points.clamp(-1, 1)), _beyond(points)
        return torch.where(beyond > 0, torch.maximum(distance, beyond), distance) * self.radius

    def assets(self) -> dict[str, Writer]:
        """Return the writer of mesh files, of the surface where the distance is 0."""
        from distill.export.asset import MeshWriter

        return {"mesh": MeshWriter(self.field(), self.signed_distance)}

    def backdrop(
        self, directions: Tensor, generator: torch.Generator | None = None, together: int = 1
    ) -> Tensor:
        """Return the background colour, see ``HashGridScene.backdrop``; a learned one is trained with the albedo."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trains("texture")):
            return self.colours.backdrop(directions, generator, together)


def _beyond(points: Tensor) -> Tensor:
    """How far points ``[n, 3]``, in radii, are beyond a side of the cube, ``[n]``; negative inside."""
    return points.abs().amax(-1) - 1


def _check(geometry: Sequence[float], texture: Sequence[float]) -> None:
    """Refuse intervals that leave a time at which nothing is trained."""
    for name, (since, until) in (("geometry", geometry), ("texture", texture)):
        if since > until:
            raise ValueError(
                f"expected {name} as two fractions of training, the first no larger, got {[since, until]}"
            )
    done = 0.0
    for since, until in sorted((each[0], each[1]) for each in (geometry, texture) if each[1] > each[0]):
        if since > done:
            break
        done = max(done, until)
    if done < 1:
        raise ValueError(
            f"expected geometry and texture to cover all of training, [0, 1] together, got {list(geometry)} and {list(texture)}: "
            f"nothing would be trained from {done:g} on"
        )

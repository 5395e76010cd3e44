"""Volume rendering of a field: marching, shading, compositing, and the penalties only it can compute."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint

from distill.cameras import Cameras
from distill.contracts import Render
from distill.renderers.choices import SHADINGS
from distill.renderers.march import Samples, composite, march
from distill.transfer import send

if TYPE_CHECKING:
    from nerfacc import OccGridEstimator

PENALTIES = ("sparsity", "opaqueness", "orientation", "smoothness", "z_variance", "convexity")
#: Those that need normals.
_OF_NORMALS = frozenset({"orientation", "smoothness", "convexity"})
#: Of the light that falls on a surface, the share that comes from everywhere.
AMBIENT = 0.1
#: Corners around a point, whose mean is the point: a gradient from four values.
TETRAHEDRON = ((1.0, -1.0, -1.0), (-1.0, -1.0, 1.0), (-1.0, 1.0, -1.0), (1.0, 1.0, 1.0))
#: Half the edge of a cell of the default grid's finest level, scene units.
_NORMAL_STEP = 0.008


class Volume(Protocol):
    """The part of a scene that ``render`` needs: a field in the cube [-1, 1]^3, an occupancy grid and a background."""

    occupancy: OccGridEstimator
    step_size: float

    def query(self, points: Tensor) -> tuple[Tensor, Tensor]: ...

    def density(self, points: Tensor) -> Tensor: ...

    def backdrop(
        self, directions: Tensor, generator: torch.Generator | None = None, together: int = 1
    ) -> Tensor: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...


class Medium(Protocol):
    """How a scene stops light where that is no density at points: opacity may depend on where a ray goes."""

    def along(self, samples: Samples, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean density in each sample's section, ``[m]``, and its albedo, ``[m, 3]``.

        Args:
            samples: each stands for half a step before it and half a step behind.
            directions: of the rays, unit, shape ``[rays, 3]``.
        """
        ...

    def normals(self, points: Tensor) -> Tensor:
        """Return outward unit normals at points, both ``[n, 3]``."""
        ...


@dataclass(frozen=True)
class _Options:
    normals: bool
    shading: str
    penalties: tuple[str, ...]
    generator: torch.Generator | None
    ambient: float
    medium: Medium | None

    @property
    def wants_normals(self) -> bool:
        return self.normals or self.shading != "albedo" or bool(_OF_NORMALS & {*self.penalties})


@dataclass(frozen=True)
class _Rays:
    origins: Tensor
    directions: Tensor
    jitter: Tensor
    light: Tensor

    def part(self, begin: int, end: int) -> _Rays:
        return _Rays(*(value[begin:end] for value in vars(self).values()))


@dataclass(frozen=True)
class _Traced:
    """Sums along rays: colour, distance and, if wanted, normal; penalties of each ray, before they are averaged."""

    sums: Tensor
    opacity: Tensor
    penalties: dict[str, Tensor]


def render(
    scene: Volume,
    cameras: Cameras,
    height: int,
    width: int,
    *,
    generator: torch.Generator | None = None,
    normals: bool = False,
    shading: str = "albedo",
    soft_light: bool = False,
    penalties: Sequence[str] = (),
    chunk_rays: int = 16384,
    recompute: bool = False,
    together: int = 1,
    medium: Medium | None = None,
) -> Render:
    """Render a scene that fills space.

    Args:
        scene: a ``HashGridScene`` or any module with the same methods; rendered where its parameters are.
        cameras: one picture each.
        height: pixels.
        width: pixels.
        generator: for training: jitters the samples, draws random backgrounds and lights. Without, the
            samples are in the middle of their steps and the light is at the camera.
        normals: whether to render normals, at the cost of four more densities per sample.
        shading: ``albedo``; ``lambertian``, lit; ``textureless``, lit and white; or ``normals``, whose colour
            is (n + 1) / 2.
        soft_light: in training, make a random share of the light ambient, instead of a tenth.
        penalties: which to compute, some of ``PENALTIES``.
        chunk_rays: rays at a time, which bounds memory when viewing, and with ``recompute`` also in training.
        recompute: store only the pixels of a chunk, and render it again in the backward pass: the same gradient with
            the memory of one chunk and the time of one more rendering.
        together: number of consecutive pictures of one object, which share a random background.
        medium: opacity and normals of the scene; by default from its density and the density's gradient.

    Returns:
        Pictures with the named penalties, each a scalar.

    Raises:
        ValueError: an option is not known, or a size is below 1.
    """
    check(height, width, shading, penalties, chunk_rays)
    device = next(scene.parameters()).device
    cameras = cameras.to(device)
    origins, directions = cameras.rays(height, width)
    backdrop = scene.backdrop(directions, generator, together)
    light = towards_light(cameras, shading, generator)[:, None, None].expand_as(directions).reshape(-1, 3)
    # Before the jitter, of which a window and what is around it draw different numbers: both have the same light.
    ambient = float(_uniform(1, generator, torch.device("cpu"))) if soft_light and generator else AMBIENT
    jitter = _uniform(origins[..., 0].numel(), generator, device)
    options = _Options(normals, shading, tuple(penalties), generator, ambient, medium)
    rays = _Rays(origins.view(-1, 3), directions.view(-1, 3), jitter, light)
    trace = _trace_twice if recompute and torch.is_grad_enabled() else _trace
    traced = [trace(scene, rays.part(i, i + chunk_rays), options) for i in range(0, len(jitter), chunk_rays)]
    sums, opacity = (torch.cat(parts) for parts in zip(*((t.sums, t.opacity) for t in traced), strict=True))
    per_ray = {name: torch.cat([t.penalties[name] for t in traced]) for name in traced[0].penalties}
    found = {name: _over_rays(name, value, opacity, len(cameras)) for name, value in per_ray.items()}
    return _assemble(sums, opacity, backdrop, (len(cameras), height, width), options, found)


def check(height: int, width: int, shading: str, penalties: Sequence[str], chunk_rays: int) -> None:
    if min(height, width, chunk_rays) < 1:
        raise ValueError(f"expected sizes of at least 1, got {height} x {width} in chunks of {chunk_rays}")
    if shading not in SHADINGS:
        raise ValueError(f"expected shading in {', '.join(SHADINGS)}; got {shading!r}")
    if unknown := [name for name in penalties if name not in PENALTIES]:
        raise ValueError(f"expected penalties in {', '.join(PENALTIES)}; got {', '.join(unknown)}")


def _uniform(n: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    if generator is None:
        return torch.full((n,), 0.5, device=device)
    return send(torch.rand(n, generator=generator, device=generator.device), device)


def towards_light(cameras: Cameras, shading: str, generator: torch.Generator | None) -> Tensor:
    """Return the unit direction towards the light of each picture, ``[batch, 3]``: the camera's, jittered in training.

    Source: Poole et al. 2022, arXiv:2209.14988, App. A.2. Differs: the light is directional, so that its
    direction is the same for the whole picture.
    """
    towards = normalize(cameras.c2w[:, :3, 3], dim=-1)
    if generator is None or shading in ("albedo", "normals"):
        return towards
    noise = torch.randn(towards.shape, generator=generator, device=generator.device)
    return normalize(towards + 0.5 * send(noise, towards.device).to(towards), dim=-1)


def _trace(scene: Volume, rays: _Rays, options: _Options) -> _Traced:
    """March, query, shade and composite some rays."""
    samples = march(rays.origins, rays.directions, rays.jitter, scene.occupancy, scene.step_size)
    medium = options.medium
    density, colour = medium.along(samples, rays.directions) if medium else scene.query(samples.points)
    normals = _normals(scene, samples.points, options) if options.wants_normals else None
    if normals is not None and options.shading != "albedo":
        light = rays.light[samples.ray]
        colour = shade(colour, normals, light, options.shading, options.ambient)
    spread = _from_the_middle(rays, samples) if "z_variance" in options.penalties else None
    seen = [colour, samples.distance[:, None], *(value for value in (normals, spread) if value is not None)]
    sums, opacity, weights = composite(density, torch.cat(seen, dim=1), samples)
    penalties: dict[str, Tensor] = {}
    if normals is not None:
        penalties |= _sample_penalties(scene, rays, samples, normals, weights.detach(), options)
    if spread is not None:
        sums, moments = sums[:, :-2], sums[:, -2:]
        penalties["z_variance"] = _z_variance(moments, opacity)
    return _Traced(sums, opacity, penalties)


def _from_the_middle(rays: _Rays, samples: Samples) -> Tensor:
    """Distance of each sample behind the point of its ray that is next to the origin, and its square, ``[m, 2]``.

    Measured from there rather than from the camera, the variance is not lost to rounding.
    """
    middle = -(rays.origins * rays.directions).sum(-1)
    behind = samples.distance - middle[samples.ray]
    return torch.stack([behind, behind.square()], dim=1)


def _z_variance(moments: Tensor, opacity: Tensor) -> Tensor:
    """Variance of depth along each ray that stops more than half of the light, 0 along others, ``[rays]``.

    Source: Zhu et al. 2023 (HiFA), arXiv:2305.18766, Eq. 12.
    """
    mean, square = (moments / opacity.clamp(min=1e-5)[:, None]).unbind(1)
    return (square - mean.square()) * (opacity.detach() > 0.5)


def _trace_twice(scene: Volume, rays: _Rays, options: _Options) -> _Traced:
    """``_trace``, whose intermediate values are thrown away and computed again for the gradient."""
    generator = options.generator
    before: Any = generator.get_state() if generator else None
    again = False

    def traced() -> _Traced:
        nonlocal again
        if not again or generator is None or before is None:
            again = True
            return _trace(scene, rays, options)
        # What was drawn the first time is drawn again; torch's own checkpoints know only its global generators.
        now = generator.get_state()
        generator.set_state(before)
        try:
            return _trace(scene, rays, options)
        finally:  # torch leaves early, once it has what it needs
            generator.set_state(now)

    found: _Traced = checkpoint(traced, use_reentrant=False, preserve_rng_state=False)
    return found


def _normals(scene: Volume, points: Tensor, options: _Options) -> Tensor:
    return options.medium.normals(points) if options.medium else finite_difference_normals(scene, points)


def finite_difference_normals(scene: Volume, points: Tensor, step: float = _NORMAL_STEP) -> Tensor:
    """Return outward unit normals: minus the density's gradient, from the corners of a tetrahedron around each point.

    Four densities rather than six, and no second derivative of the encoding. The error is of first order in the step, where six give
    one of second order: on a sphere of radius 0.5 whose density is the softplus of a depth times 1000, what is seen is 0.9 degrees off
    in the mean, and 1.7 at 3000; where the density is an exponential that grows by e in 0.03, 5 degrees, and in 0.01, 14.

    Args:
        scene: has ``density``.
        points: shape ``[n, 3]``.
        step: from the point to a corner along each axis, scene units.

    Returns:
        Shape ``[n, 3]``; 0 where the density is flat.
    """
    corners = send(torch.tensor(TETRAHEDRON, dtype=points.dtype), points.device)
    around = (points + step * corners[:, None]).view(-1, 3)
    density = scene.density(around).view(4, -1)
    return normalize(-(density.T @ corners), dim=-1, eps=1e-6)


def shade(albedo: Tensor, normals: Tensor, light: Tensor, shading: str, ambient: float = AMBIENT) -> Tensor:
    """Lambert's law with ambient light: albedo * (ambient + diffuse * max(0, n . l)); or the normals as colours."""
    if shading == "normals":
        return (normals + 1) / 2
    lit = ambient + (1 - ambient) * (normals * light).sum(-1, keepdim=True).clamp(min=0)
    return lit.expand_as(albedo) if shading == "textureless" else albedo * lit


def _sample_penalties(
    scene: Volume, rays: _Rays, samples: Samples, normals: Tensor, weights: Tensor, options: _Options
) -> dict[str, Tensor]:
    """Penalties on samples, weighted by how visible they are (the weights detached), summed along each ray.

    ``orientation``: w max(0, n . d)^2, d the ray's direction: normals that face away from the camera
    (Verbin et al. 2022, arXiv:2112.03907, Eq. 11; the weights are detached as Poole et al. 2022 do).
    ``smoothness``: w |n(x) - n(x + e)|^2, e normal with a standard deviation of 0.02 scene units
    (after Zhang et al. 2021, arXiv:2106.01970, Sec. 3.2). Without a generator e is (0.02, 0.02, 0.02).
    """
    found = {}

    def along(values: Tensor) -> Tensor:
        return values.new_zeros(len(rays.origins)).index_add(0, samples.ray, values)

    if "orientation" in options.penalties:
        away = (normals * rays.directions[samples.ray]).sum(-1).clamp(min=0)
        found["orientation"] = along(weights * away.square())
    if "smoothness" in options.penalties:
        near = _normals(scene, samples.points + _nudge(samples.points, options.generator), options)
        found["smoothness"] = along(weights * (normals - near).square().sum(-1))
    return found


#: The opacity above which a ray counts, for penalties that are averaged over some rays.
_LEAST = {"orientation": 0.0, "z_variance": 0.5}


def _over_rays(name: str, value: Tensor, opacity: Tensor, pictures: int) -> Tensor:
    """Average a penalty over rays: ``orientation`` over those of each picture that hit something (opacity above 0),
    ``z_variance`` over those that stop more than half of the light.

    threestudio divides by the hits of the whole batch, which is the same for one picture; by picture, a batch may be rendered
    in parts.
    """
    if name not in _LEAST:
        return value.mean()
    hit = (opacity.detach() > _LEAST[name]).view(pictures, -1).sum(1).clamp(min=1)
    return (value.view(pictures, -1).sum(1) / hit).mean()


def _nudge(points: Tensor, generator: torch.Generator | None, scale: float = 0.02) -> Tensor:
    if generator is None:
        return torch.full_like(points, scale)
    drawn = torch.randn(points.shape, generator=generator, device=generator.device)
    return scale * send(drawn, points.device).to(points)


def opacity_penalties(opacity: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Return the penalties on opacities among ``names``, averaged over rays.

    ``sparsity``: sqrt(o^2 + 0.01), so that empty space stays empty (Poole et al. 2022, arXiv:2209.14988,
    App. A.2). ``opaqueness``: the binary entropy in nats, so that rays hit or miss (after Lombardi et al.
    2019, arXiv:1906.07751), without gradient within 1e-3 of either, as threestudio has it.

    Args:
        opacity: in [0, 1], any shape.
        names: penalties to compute; others are ignored.
    """
    found = {}
    if "sparsity" in names:
        found["sparsity"] = (opacity.square() + 0.01).sqrt().mean()
    if "opaqueness" in names:
        inside = opacity.clamp(1e-3, 1 - 1e-3)
        found["opaqueness"] = torch.nn.functional.binary_cross_entropy(inside, inside)
    return found


def convexity(normal: Tensor, opacity: Tensor, side: int = 8) -> Tensor:
    r"""Penalise concavity: minus the mean sine of the angle between neighbouring normals about the z axis, a scalar.

    The normals, as the picture :math:`(n + 1) / 2` times the opacity, are resized to a few pixels; from left to right and from
    bottom to top, the third component of neighbours' cross products is averaged. As in the authors' code, it is that of the
    world's frame, not of the camera's.

    Args:
        normal: unit vectors, shape ``[batch, height, width, 3]``.
        opacity: in [0, 1], shape ``[batch, height, width, 1]``.
        side: of the small picture, pixels.

    Source: Lukoianov et al. 2024, arXiv:2405.15891, and the authors' code in threestudio.
    """
    picture = ((normal + 1) / 2 * opacity).movedim(-1, 1)
    small = torch.nn.functional.interpolate(picture, (side, side), mode="bilinear").movedim(1, -1)
    across = torch.linalg.cross(small[:, :, :-1], small[:, :, 1:])[..., 2]
    upwards = torch.linalg.cross(small[:, 1:], small[:, :-1])[..., 2]
    return -(across.mean() + upwards.mean())


def _assemble(
    sums: Tensor,
    opacity: Tensor,
    backdrop: Tensor,
    shape: tuple[int, int, int],
    options: _Options,
    penalties: dict[str, Tensor],
) -> Render:
    """Put rays back into pictures, over the background."""
    sums, opacity = sums.view(*shape, -1), opacity.view(*shape, 1)
    rgb = sums[..., :3] + (1 - opacity) * backdrop
    # Not the sum itself: that would read as near wherever a picture is half transparent.
    depth = sums[..., 3:4] / opacity.clamp(min=1e-6)
    normal = normalize(sums[..., 4:7], dim=-1, eps=1e-6) if options.wants_normals else None
    if normal is not None and "convexity" in options.penalties:
        penalties = {**penalties, "convexity": convexity(normal, opacity)}
    penalties = {**penalties, **opacity_penalties(opacity, options.penalties)}
    return Render(rgb, opacity, depth, normal, penalties, backdrop)

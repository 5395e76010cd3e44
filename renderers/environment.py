"""Light from all around and materials under it: lobes of light, the colours that glTF's metallic-roughness material shows.

Everything is a closed form, so it runs in torch on any device and has gradients. Light is linear; pictures and albedo are sRGB.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, normalize

from distill.transfer import send

#: Reflectance of what is no metal, seen head on (glTF 2.0, appendix B.3.5).
DIELECTRIC = 0.04
#: Lobes of an environment that is drawn.
LOBES = 4
#: Mean light over all directions: a white surface then has this linear value on average, and highlights have room above.
MEAN = 0.7


@dataclass(frozen=True)
class Environment:
    r"""Light that comes from direction l, :math:`L(l) = a + \sum_k c_k \exp(\lambda_k (l \cdot m_k - 1))`, for each picture.

    Attributes:
        ambient: a, linear, shape ``[n, 3]``.
        colour: c, linear, shape ``[n, lobes, 3]``.
        axis: m, unit, shape ``[n, lobes, 3]``.
        sharpness: lambda, above 0, shape ``[n, lobes]``.
    """

    ambient: Tensor
    colour: Tensor
    axis: Tensor
    sharpness: Tensor

    def __getitem__(self, index: Tensor) -> Environment:
        """The environments of some pictures, in that order, possibly many times."""
        return Environment(*(value[index] for value in vars(self).values()))

    def to(self, device: torch.device) -> Environment:
        """Copy them to a device."""
        return Environment(*(send(value, device) for value in vars(self).values()))

    def scaled(self, mean: float = MEAN) -> Environment:
        """Scale each so that its light, averaged over all directions and colours, is ``mean``."""
        found = self.ambient.mean(-1) + (self.colour.mean(-1) * _moments(self.sharpness)[0]).sum(-1) / 2
        scale = mean / found
        return Environment(
            self.ambient * scale[:, None],
            self.colour * scale[:, None, None],
            self.axis,
            self.sharpness,
        )


def studio(count: int) -> Environment:
    """The light that finished assets are shown in, for so many pictures: a key at the front, a fill, a rim, and soft light.

    It stands still while the camera turns; z is up and the front +x.
    """
    axis = torch.tensor([[1.0, 0.6, 1.0], [0.6, -1.2, 0.3], [-1.0, 0.3, 0.8]])
    colour = torch.tensor([[2.2, 2.1, 2.0], [0.7, 0.75, 0.8], [1.2, 1.2, 1.3]])
    found = Environment(
        torch.full((1, 3), 0.35),
        colour[None],
        normalize(axis, dim=-1)[None],
        torch.tensor([[6.0, 2.0, 10.0]]),
    ).scaled()
    return found[torch.zeros(count, dtype=torch.long)]


def draw(count: int, generator: torch.Generator) -> Environment:
    """Draw so many environments: soft light, and lobes from all sides, mostly above, from broad to sharp and slightly tinted."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator, device=generator.device)

    axis = torch.randn(count, LOBES, 3, generator=generator, device=generator.device)
    axis[..., 2] = axis[..., 2] + 0.5
    sharpness = 1.5 * (40 / 1.5) ** uniform(LOBES)
    # A sharp lobe is as strong as a broad one: each is given its share of the light, not its height.
    share = uniform(LOBES) / _moments(sharpness)[0]
    tint = 1 + 0.3 * (uniform(LOBES, 3) - 0.5)
    ambient = (0.1 + 0.4 * uniform(1)).expand(-1, 3)
    return Environment(ambient, share[..., None] * tint, normalize(axis, dim=-1), sharpness).scaled()


def _moments(sharpness: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Integrals over x in [-1, 1] of exp(s (x - 1)) times 1, x and x^2, for s above 0."""
    far = torch.exp(-2 * sharpness)
    zeroth = (1 - far) / sharpness
    first = (1 + far - zeroth) / sharpness
    second = (1 - far - 2 * first) / sharpness
    return zeroth, first, second


def irradiance(light: Environment, normal: Tensor) -> Tensor:
    """The light that a surface scatters if it is white: the mean over the half sphere, weighted by the cosine.

    Source: Ramamoorthi and Hanrahan 2001, "An Efficient Representation for Irradiance Environment Maps": the cosine keeps
    spherical harmonics up to degree 2. A lobe's coefficients are those of its axis.

    Args:
        light: of each point.
        normal: unit, shape ``[n, 3]``.

    Returns:
        Linear, shape ``[n, 3]``.
    """
    cosine = (light.axis * normal[:, None]).sum(-1)
    zeroth, first, second = _moments(light.sharpness)
    # (2l + 1)/(4 pi) A_l 2 pi int P_l exp, over pi, with A = pi, 2 pi / 3, pi / 4.
    weight = zeroth / 2 + first * cosine + 5 / 16 * (3 * second - zeroth) * (3 * cosine.square() - 1) / 2
    return light.ambient + (weight.clamp(min=0)[..., None] * light.colour).sum(1)


def reflected(light: Environment, direction: Tensor, roughness: Tensor) -> Tensor:
    """The light from around a direction, blurred as a rough surface does.

    The blur is the lobe exp(s (l . r - 1)) with s = 1 / (2 roughness^4): the GGX distribution's, as Wang et al. 2009,
    "All-Frequency Rendering of Dynamic, Spatially-Varying Reflectance", approximate it, seen head on (Karis 2013, "Real Shading in
    Unreal Engine 4", makes the same assumption).

    Args:
        light: of each point.
        direction: of the mirrored ray, unit, shape ``[n, 3]``.
        roughness: glTF's, in (0, 1], shape ``[n, 1]``.

    Returns:
        Linear, shape ``[n, 3]``.
    """
    blur = 1 / (2 * roughness.pow(4))
    # The product of two lobes is a lobe about the sum of their axes, which are as long as they are sharp. How much shorter the
    # sum is than both together is said without a difference of large numbers.
    joined = (light.sharpness[..., None] * light.axis + (blur * direction)[:, None]).norm(dim=-1)
    apart = (light.axis - direction[:, None]).square().sum(-1)
    shorter = light.sharpness * blur * apart / (joined + light.sharpness + blur)
    both = torch.exp(-shorter) * -torch.expm1(-2 * joined) / joined
    alone = -torch.expm1(-2 * blur) / blur
    return light.ambient + ((both / alone)[..., None] * light.colour).sum(1)


def scattering(cosine: Tensor, roughness: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and bias of the reflectance under even light, GGX with Smith's shadowing: the second sum of Karis 2013.

    Args:
        cosine: of the angle between the normal and the direction to the camera, in [0, 1], shape ``[n, 1]``.
        roughness: in [0, 1], shape ``[n, 1]``.

    Returns:
        Both of shape ``[n, 1]``, from a table of integrals.
    """
    where = (2 * torch.cat([cosine, roughness], dim=1) - 1)[None, None]
    table = send(_table(), cosine.device).to(cosine)
    found = grid_sample(table, where, align_corners=True, padding_mode="border")[0, :, 0]
    return found[0, :, None], found[1, :, None]


@lru_cache(maxsize=1)
def _table(side: int = 32, samples: int = 64) -> Tensor:
    """Integrals over microfacets, ``[1, 2, roughness, cosine]``: those with 1 - (1 - v . h)^5 and with (1 - v . h)^5.

    Facets are taken evenly from the distribution of GGX; Smith's shadowing is the one correlated by height (Heitz 2014).
    """
    ends = torch.linspace(0, 1, side, dtype=torch.float64).clamp(min=1e-3)
    square = ends.pow(4)[:, None, None, None]  # of alpha, roughness^2
    cosine = ends[:, None, None]
    middle = (torch.arange(samples, dtype=torch.float64) + 0.5) / samples
    share, turn = middle[:, None], 2 * math.pi * middle
    height = ((1 - share) / (1 + (square - 1) * share)).sqrt()
    toward = (1 - cosine.square()).sqrt() * (1 - height.square()).sqrt() * turn.cos() + cosine * height
    below = 2 * toward * height - cosine  # the mirrored ray's height

    def shadow(z: Tensor) -> Tensor:
        return (square + (1 - square) * z.square()).sqrt()

    z = below.clamp(min=1e-9)
    seen = 2 * z * toward.clamp(min=0) / (height * (cosine * shadow(z) + z * shadow(cosine)))
    seen = torch.where(below > 0, seen, 0.0)
    grazing = (1 - toward.clamp(0, 1)) ** 5
    return torch.stack([(seen * (1 - grazing)).mean((-1, -2)), (seen * grazing).mean((-1, -2))])[None].float()


def lit(
    albedo: Tensor, roughness: Tensor, metallic: Tensor, normal: Tensor, ray: Tensor, light: Environment
) -> Tensor:
    """The colour that a material shows: what it scatters and what it mirrors.

    Args:
        albedo: sRGB in [0, 1], shape ``[n, 3]``.
        roughness: in (0, 1], shape ``[n, 1]``.
        metallic: in [0, 1], shape ``[n, 1]``.
        normal: unit, towards the camera, shape ``[n, 3]``.
        ray: direction from the camera, unit, shape ``[n, 3]``.
        light: of each point.

    Returns:
        sRGB in [0, 1], shape ``[n, 3]``; what is brighter than white is white.
    """
    base = to_linear(albedo)
    cosine = -(normal * ray).sum(-1, keepdim=True)
    scale, bias = scattering(cosine.clamp(min=0), roughness)
    head_on = DIELECTRIC * (1 - metallic) + base * metallic
    mirrored = reflected(light, normalize(ray + 2 * cosine * normal, dim=-1), roughness)
    # What is no metal scatters 1 - F of the light (glTF 2.0, B.3.5), F = f + (1 - f) (1 - v . h)^5 with f = 0.04 and h halfway between
    # the directions to the camera and to the light. The mean of (1 - v . h)^5, weighted by the light's cosine, is 0.0001 for a
    # surface that is seen head on, 0.005 at 60 degrees and 0.027 at the horizon, which is left out.
    scattered = (1 - metallic) * (1 - DIELECTRIC) * base * irradiance(light, normal)
    return to_srgb(scattered + mirrored * (head_on * scale + bias))


def perturbed(normal: Tensor, vector: Tensor) -> Tensor:
    """Tilt normals by the part of a vector that is tangent to the surface, whose length is the tangent of the angle.

    Where the vector is 0, the normal comes back to the bit.

    Args:
        normal: unit, shape ``[n, 3]``.
        vector: shape ``[n, 3]``.

    Returns:
        Unit, shape ``[n, 3]``.
    """
    along = vector - normal * (normal * vector).sum(-1, keepdim=True)
    return (normal + along) / (1 + along.square().sum(-1, keepdim=True)).sqrt()


def to_linear(colour: Tensor) -> Tensor:
    """Decode sRGB (IEC 61966-2-1), values in [0, 1]."""
    return torch.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)


def to_srgb(colour: Tensor) -> Tensor:
    """Encode linear values as sRGB, in [0, 1]."""
    inside = colour.clamp(0, 1)
    # The power's slope at 0 is infinite, and would be multiplied by 0 where the other piece is taken.
    return torch.where(
        inside <= 0.0031308, inside * 12.92, 1.055 * inside.clamp(min=0.0031308) ** (1 / 2.4) - 0.055
    )

"""Known views, an input picture and those drawn from it, and a scene's distances to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate

from distill.cameras import Cameras
from distill.contracts import Render, Renderer
from distill.transfer import send

#: Distances of the view that the picture shows.
OWN_VIEW = ("reference_rgb", "reference_mask", "reference_depth", "reference_normal")
#: Distances to the picture: of its own view, and of the colours of a step's views.
PENALTIES = (*OWN_VIEW, "reference_palette")
#: The shading of pictures that show the plain colours.
ALBEDO = "albedo"
#: Pixels and directions in which colours are compared.
PIXELS, PROJECTIONS = 2048, 16
#: Distances to drawn views.
START = ("start_rgb", "start_mask")


@dataclass(frozen=True)
class Reference:
    """An input picture and the camera that took it; channels first, square.

    Attributes:
        camera: a batch of one.
        rgb: over white, in [0, 1], shape ``[3, size, size]``.
        mask: coverage in [0, 1], shape ``[1, size, size]``.
        depth: any measure that grows towards the camera, shape ``[1, size, size]``, or None.
        normal: unit, in the camera's frame (x right, y up, z towards the camera), ``[3, size, size]``, or None.
    """

    camera: Cameras
    rgb: Tensor
    mask: Tensor
    depth: Tensor | None = None
    normal: Tensor | None = None

    def resized(self, size: int) -> Reference:
        """Return the reference at another size, with the same camera."""
        if size == self.rgb.shape[-1]:
            return self
        mode = "area" if size < self.rgb.shape[-1] else "bilinear"

        def at_size(value: Tensor) -> Tensor:
            return interpolate(value[None], (size, size), mode=mode)[0]

        depth, normal = (None if value is None else at_size(value) for value in (self.depth, self.normal))
        return Reference(self.camera, at_size(self.rgb), at_size(self.mask), depth, normal)

    def shifted(self, right: Tensor, up: Tensor) -> Reference:
        """Return what a window of the picture's size shows that is moved; the camera stays, see ``Cameras.window``.

        Args:
            right: how far the window is moved, as a share of the picture's side, a scalar.
            up: likewise. Beyond the picture's edge, its outermost pixels are repeated.
        """
        offset = 2 * torch.stack([right, -up]).to(self.rgb)
        theta = torch.cat([torch.eye(2).to(offset), offset[:, None]], dim=1)
        grid = affine_grid(theta[None], [1, 1, *self.rgb.shape[1:]], align_corners=False)

        def moved(value: Tensor) -> Tensor:
            return grid_sample(value[None], grid, padding_mode="border", align_corners=False)[0]

        depth, normal = (None if value is None else moved(value) for value in (self.depth, self.normal))
        return Reference(self.camera, moved(self.rgb), moved(self.mask), depth, normal)


def _of_object(seen: Render) -> Tensor:
    """The colours of renders, without a gradient to a learned background: it must not take the object's place."""
    if seen.background is None or not seen.background.requires_grad:
        return seen.rgb
    return seen.rgb - (1 - seen.opacity) * (seen.background - seen.background.detach())


def distances(seen: Render, reference: Reference, names: Sequence[str] = OWN_VIEW) -> dict[str, Tensor]:
    """Compute the distances in ``names`` between a render and the reference, scalars by name.

    ``reference_rgb`` and ``reference_mask`` are mean squared errors of colour, over the render's background, and of opacity;
    ``reference_depth`` is one minus the correlation of nearness inside the mask, so that neither scale nor shift
    matters; ``reference_normal`` is one minus the mean cosine inside the mask.

    Args:
        seen: the render, a batch of one.
        reference: of the same size.
        names: distances to compute.

    Raises:
        ValueError: a map is asked for that the reference or the render lacks.
    """
    inside = (reference.mask[0] > 0.5) & (seen.opacity[0, ..., 0].detach() > 0.5)
    found: dict[str, Tensor] = {}
    for name in names:
        if name == "reference_rgb":
            # What is empty must look like whatever is behind it: over white alone, white parts could be empty.
            known = reference.rgb - (1 - reference.mask) * (1 - seen.backdrop().detach()[0].movedim(-1, 0))
            found[name] = (_of_object(seen)[0] - known.movedim(0, -1)).square().mean()
        elif name == "reference_mask":
            found[name] = (seen.opacity[0] - reference.mask.movedim(0, -1)).square().mean()
        elif name == "reference_depth":
            if reference.depth is None:
                raise ValueError("penalties.reference_depth needs reference.depth=FILE")
            found[name] = 1 - correlation(-seen.depth[0, ..., 0][inside], reference.depth[0][inside])
        else:
            if reference.normal is None:
                raise ValueError("penalties.reference_normal needs reference.normal=FILE")
            if seen.normal is None:
                raise ValueError("the reference's view was rendered without normals")
            world = torch.einsum("ij,jhw->hwi", reference.camera.c2w[0, :3, :3], reference.normal)
            cosine = (seen.normal[0] * world).sum(-1)[inside]
            found[name] = 1 - cosine.mean() if len(cosine) else seen.opacity.sum() * 0 + 1
    return found


@dataclass(frozen=True)
class Drawn:
    """Views of an object that a model drew, before a scene of it is distilled; channels first, square.

    Attributes:
        cameras: of the views, on the CPU.
        rgb: over white, in [0, 1], shape ``[views, 3, size, size]``.
        mask: 1 where the object is and 0 where it is not, shape ``[views, 1, size, size]``.
        sure: 1 where ``mask`` is known, 0 elsewhere, same shape.
    """

    cameras: Cameras
    rgb: Tensor
    mask: Tensor
    sure: Tensor

    def resized(self, size: int) -> Drawn:
        """Return the views at another size, with the same cameras."""
        if size == self.rgb.shape[-1]:
            return self
        mode = "area" if size < self.rgb.shape[-1] else "bilinear"
        rgb, mask, sure = (
            interpolate(value, (size, size), mode=mode) for value in (self.rgb, self.mask, self.sure)
        )
        return Drawn(self.cameras, rgb, mask, sure)


def start_distances(
    seen: Render, cameras: Cameras, drawn: Drawn, names: Sequence[str] = START
) -> dict[str, Tensor]:
    """Compute how far renders are from the drawn views of the same cameras, scalars by name.

    ``start_rgb`` is the mean squared error of colour over white, ``start_mask`` that of opacity where the mask is known;
    both are means over all renders, and 0 for those whose camera is none of the drawn views'.

    Args:
        seen: over any background.
        cameras: of the renders, as many.
        drawn: of the same size.
        names: which.
    """
    known = drawn.cameras.to(cameras.c2w.device).c2w.flatten(1)
    same = (cameras.c2w.flatten(1)[:, None] == known[None]).all(-1)
    which, counts = same.float().argmax(1), same.any(1).float()[:, None, None, None]
    found: dict[str, Tensor] = {}
    if "start_rgb" in names:
        white = seen.rgb + (1 - seen.opacity) * (1 - seen.backdrop().detach())
        off = white - drawn.rgb[which].movedim(1, -1)
        found["start_rgb"] = (counts * off.square()).mean()
    if "start_mask" in names:
        off = seen.opacity - drawn.mask[which].movedim(1, -1)
        found["start_mask"] = (counts * drawn.sure[which].movedim(1, -1) * off.square()).mean()
    return found


def compared(training: Renderer, drawn: Drawn, names: Sequence[str]) -> Renderer:
    """Return a renderer that also returns the distances to drawn views as penalties.

    Args:
        training: takes a step's pictures.
        drawn: the views.
        names: of the penalties, some of ``START``.
    """

    def take(
        cameras: Cameras,
        height: int,
        width: int,
        *,
        generator: torch.Generator | None = None,
        normals: bool = False,
        **style: Any,
    ) -> Render:
        picture = training(cameras, height, width, generator=generator, normals=normals, **style)
        off = start_distances(picture, cameras, drawn.resized(height), names)
        return replace(picture, penalties={**picture.penalties, **off})

    return take


def palette_distance(seen: Render, reference: Reference, generator: torch.Generator) -> Tensor:
    r"""Compute how far the colours of renders are from those of the reference, wherever on the object they are, a scalar.

    It is the squared sliced Wasserstein distance between the colours of pixels that are drawn inside the silhouettes,

    .. math:: \frac{1}{KN} \sum_{k=1}^{K} \sum_{i=1}^{N} \left( (a u_k)_{(i)} - (b u_k)_{(i)} \right)^2

    with ``N`` pixels of all renders, ``a``, and as many of the reference, ``b``, each sorted along ``K`` random unit vectors ``u``;
    0 if nothing is seen. The background that shines through is taken out of a pixel's colour.

    Args:
        seen: of any number of views, over any background.
        reference: of any size.
        generator: draws pixels and vectors, on any device.

    Source: Bonneel et al. 2015, "Sliced and Radon Wasserstein barycenters of measures", Sec. 3.
    """

    def drawn(rgb: Tensor, opacity: Tensor, behind: Tensor) -> Tensor | None:
        inside = (opacity.detach() > 0.5).nonzero()[:, 0]
        if not len(inside):
            return None
        some = torch.randint(len(inside), (PIXELS,), generator=generator, device=generator.device)
        at = inside[send(some, inside.device)]
        return (rgb[at] - (1 - opacity[at, None]) * behind[at]) / opacity[at, None]

    ours = drawn(
        _of_object(seen).flatten(0, 2), seen.opacity.flatten(), seen.backdrop().detach().flatten(0, 2)
    )
    picture = reference.rgb.flatten(1).T
    known = drawn(picture, reference.mask.flatten(), torch.ones_like(picture))
    if ours is None or known is None:
        return seen.opacity.sum() * 0
    vectors = torch.randn(3, PROJECTIONS, generator=generator, device=generator.device)
    vectors = send(vectors / vectors.norm(dim=0), ours.device).to(ours)
    off = (ours @ vectors).sort(dim=0).values - (known.to(ours) @ vectors).sort(dim=0).values
    return off.square().mean()


def within_a_pixel(reference: Reference, size: int, generator: torch.Generator) -> tuple[Reference, Cameras]:
    """Return the reference at another size, moved by up to half a pixel in each direction, and a camera that sees it so."""
    offset = (torch.rand(2, generator=generator, device=generator.device) - 0.5) / size
    right, up = offset.to(reference.rgb)
    return reference.shifted(right, up).resized(size), reference.camera.window(right, up, 1.0)


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Return Pearson's correlation of two lists of numbers; 0 if there are fewer than two or either is constant."""
    if len(a) < 2:
        return a.sum() * 0
    a, b = a - a.mean(), b - b.mean()
    return (a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-8)


def beside(
    training: Renderer, look: Renderer, reference: Reference, names: Sequence[str], shading: str = ALBEDO
) -> Renderer:
    """Return a renderer that also renders the reference's view and returns the distances from the reference as penalties.

    With a generator, the view is moved by up to half a pixel in each step: rays that always pass through the centres of the same
    pixels would leave the space between them free, which other views show as dots.

    Args:
        training: takes a step's pictures.
        look: takes the reference's; the same as for viewing but with a generator.
        reference: the input.
        names: of its penalties. The palette's is 0 for pictures that do not show the plain colours.
        shading: of the step's pictures, where a call says none.
    """

    sizes: dict[int, Reference] = {}

    def at_size(size: int) -> Reference:
        if size not in sizes:
            sizes[size] = reference.resized(size)
        return sizes[size]

    def take(
        cameras: Cameras,
        height: int,
        width: int,
        *,
        generator: torch.Generator | None = None,
        normals: bool = False,
        **style: Any,
    ) -> Render:
        picture = training(cameras, height, width, generator=generator, normals=normals, **style)
        wants = "reference_normal" in names
        if generator is None:
            known, camera = at_size(height), reference.camera
        else:
            known, camera = within_a_pixel(reference, height, generator)
        own = [name for name in names if name in OWN_VIEW]
        off: dict[str, Tensor] = {}
        if own:
            seen = look(camera, height, width, generator=generator, normals=wants)
            off = distances(seen, known, own)
        if "reference_palette" in names:
            draws = generator or torch.Generator().manual_seed(0)
            plain = style.get("shading", shading) == ALBEDO
            colours = palette_distance(picture, known, draws) if plain else picture.opacity.sum() * 0
            off["reference_palette"] = colours
        return replace(picture, penalties={**picture.penalties, **off})

    return take

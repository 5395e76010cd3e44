"""A mesh with fixed shape and learned colour: rays are cast at its triangles, and a hash grid gives the colour at the hits."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint

from distill.cameras import Cameras
from distill.contracts import Group, Render, Step, View, Writer
from distill.domains import Range
from distill.meshes.surface import Look, Surface
from distill.renderers import environment, volume
from distill.renderers.hashgrid import has_warp
from distill.renderers.nerf import OF_ALBEDO, HashGridScene
from distill.renderers.shared_options import takes_options_of

log = logging.getLogger(__name__)


#: Of a material, what a network can make of it (Chen et al. 2023, Fantasia3D, arXiv:2303.13873): no mirror, and no bare metal.
ROUGHNESS, METALLIC = (0.08, 0.9), (0.0, 0.9)
#: Each coordinate of what normals are perturbed by is within this, so that they tilt by 45 degrees at most.
PERTURBATION = 1 / math.sqrt(3)
#: Smoother than this a file's own material is not shown: the lobe of a perfect mirror is infinitely sharp.
_MIRROR = 0.02
#: What is not learnt yet is this much less likely to be metal than not.
_NO_METAL = math.exp(2)


@dataclass(frozen=True)
class _Style:
    """How pictures are shaded: the light of each, its share from everywhere, and the environment for materials."""

    kind: str
    light: Tensor
    ambient: float
    normals: bool
    around: environment.Environment | None


class SurfaceScene(nn.Module):
    r"""A given mesh with a learnt colour, :math:`rgb(x) = \mathrm{sigmoid}(g(x))` at the point x where a ray meets it.

    Opacity, depth and normals are those of the triangles, and have no gradient. Both sides of a triangle are visible, and have
    the same colour.

    With ``material="pbr"`` a second grid learns roughness and metallic, and pictures show the material in the light of an
    environment instead of the plain colour: a random one for each picture in training, so that lighting is not baked into the
    colour, and a studio's otherwise.

    With ``normal_map``, a third grid also perturbs the shading normals, :math:`n' \propto n + v - (n \cdot v) n` with v(x) in
    a cube of half-side ``PERTURBATION``, 0 at the start. In any tangent frame, v has two numbers; the frame of texture coordinates is chosen
    when the map is baked, so that training needs no coordinates, and there are no seams.

    The other options are those of ``HashGridScene`` for the albedo and its training: the grid, the network, the background,
    ``backend`` (of the grid and the network; rays are always cast by Warp), ``precision`` and learning rates.

    Args:
        mesh: of ``distill.meshes.read.read_surface``.
        material: ``albedo``, only a colour, or ``pbr``.
        normal_map: perturb the normals of a ``pbr`` material.
        samples: rays along each side of a pixel; a pixel has the square of this number of rays, which smooths edges.
        seed: of the initial parameters, or a generator to draw them from.

    Raises:
        ValueError: an option is outside its range, or Warp is not installed.
    """

    features: ClassVar[frozenset[str]] = frozenset(
        {"sides", "normals", "shading", "chunks", "mesh", "together", "background"}
    )
    triangles: Tensor
    paint: Tensor
    normals: Tensor
    origin: Tensor
    kept: Tensor
    fingerprint: Tensor

    @takes_options_of(HashGridScene, only=OF_ALBEDO)
    def __init__(
        self,
        mesh: Surface,
        *,
        material: Literal["albedo", "pbr"] = "albedo",
        normal_map: bool = False,
        samples: Annotated[int, Range(1, 16)] = 2,
        seed: int | torch.Generator = 0,
        **grid: Any,
    ) -> None:
        super().__init__()
        if not has_warp():
            raise ValueError(
                "scene=surface casts rays with Warp, which is not installed here; pip install warp-lang"
            )
        if samples < 1:
            raise ValueError(f"expected samples of at least 1, got {samples}")
        if material not in ("albedo", "pbr"):
            raise ValueError(f"expected material albedo or pbr, got {material!r}")
        if normal_map and material != "pbr":
            raise ValueError(
                f"normal_map=true perturbs the normals of material=pbr, got material={material}; use material=pbr"
            )
        self.mesh, self.samples = mesh, samples
        # Only a grid's three colours are asked for, and the first's background; its density has no gradient.
        grid |= {"blob_scale": 0.0, "occupancy_resolution": 2, "seed": seed}
        self.colours = HashGridScene(**grid)
        self.perturbation: HashGridScene | None = None
        if normal_map:
            # Not drawn from a generator that is given, so that all else is drawn as without.
            self.perturbation = HashGridScene(**{**grid, "background": "white", "seed": 0})
            nn.init.zeros_(self.perturbation.mlp[-1].weight)  # type: ignore[arg-type]
        self.finish: HashGridScene | None = None
        if material == "pbr":
            # A material varies less than a colour, and the loss says little of it: coarse levels alone keep noise out.
            grid |= {"levels": (grid["levels"] + 1) // 2, "background": "white"}
            grid["finest_resolution"] = max(grid["base_resolution"], grid["finest_resolution"] // 4)
            self.finish = HashGridScene(**grid)
        # What a file says again need not be in every checkpoint; of it, a number that tells whether it is the same file.
        self.register_buffer("fingerprint", torch.tensor(mesh.fingerprint()))
        self._hold("triangles", mesh.corners)
        self._hold("paint", mesh.paint)
        self._hold("normals", mesh.normals)
        self._hold("origin", mesh.origin)
        self.placed_again = bool((self.origin != torch.arange(len(mesh.faces))).any())
        kept = [part.kept for part in mesh.parts]
        self._hold("kept", torch.tensor(kept)[torch.from_numpy(mesh.part)])
        self._there: dict[torch.device, Any] = {}

    def _hold(self, name: str, values: Any) -> None:
        self.register_buffer(name, torch.as_tensor(values), persistent=False)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        saved = state_dict.get(f"{prefix}fingerprint")
        if saved is not None and int(saved) != int(self.fingerprint):
            raise ValueError(
                f"the checkpoint was trained on another mesh than {self.mesh.file}, or with other mesh.* options; give it the same, "
                "or start again in another output_dir="
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def parameter_groups(self) -> dict[str, Group]:
        """Return the scene's parameters by kind: ``encoding``, ``mlp``, and ``background`` if learned."""
        groups = self.colours.parameter_groups()
        for other in (self.finish, self.perturbation):
            own = other.parameter_groups() if other is not None else {}
            for name in own:
                groups[name] = Group([*groups[name].parameters, *own[name].parameters], groups[name].rate)
        return groups

    def update(self, step: Step, optimiser: torch.optim.Optimizer, generator: torch.Generator) -> None:
        """Do nothing: all of its state is learnt."""

    def render(
        self,
        cameras: Cameras,
        height: int,
        width: int,
        *,
        generator: torch.Generator | None = None,
        normals: bool = False,
        penalties: Sequence[str] = (),
        shading: str = "albedo",
        soft_light: bool = False,
        chunk_rays: int = 16384,
        recompute: bool = False,
        together: int = 1,
    ) -> Render:
        """Render the scene; see ``distill.renderers.volume.render`` for the options.

        Depth and normals are means over those of a pixel's rays that hit; normals face the camera. With ``shading="albedo"``, a
        ``pbr`` material is lit by an environment. Perturbed normals are used for lighting and ``shading="normals"``; the normals of
        the result are the mesh's.

        Raises:
            ValueError: an option is not known, a size is below 1, or a penalty is asked for: a fixed shape has none.
        """
        if penalties:
            raise ValueError(
                f"scene=surface computes no penalties, got {', '.join(penalties)}; leave them out"
            )
        volume.check(height, width, shading, (), chunk_rays)
        device, n, batch = self.paint.device, self.samples, len(cameras)
        cameras = cameras.to(device)
        origins, directions = (
            # A pixel's rays follow one another.
            rays.view(batch, height, n, width, n, 3).transpose(2, 3).reshape(-1, n * n, 3)
            for rays in cameras.rays(height * n, width * n)
        )
        backdrop = self.colours.backdrop(cameras.rays(height, width)[1], generator, together)
        style = self._style(cameras, shading, normals, soft_light, generator, together)
        picture = torch.arange(batch, device=device).repeat_interleave(height * width)
        kept = (
            torch.is_grad_enabled() and not recompute
        )  # all of it is kept for the way back, so parts would save nothing
        size = len(picture) if kept else max(1, chunk_rays // (n * n))
        traced = []
        for chunk in (slice(i, i + size) for i in range(0, len(picture), size)):
            rays = origins[chunk], directions[chunk], picture[chunk]
            if recompute and torch.is_grad_enabled():
                traced.append(
                    checkpoint(self._trace, *rays, style, use_reentrant=False, preserve_rng_state=False)
                )
            else:
                traced.append(self._trace(*rays, style))
        colour, opacity, depth, normal = (
            torch.cat(parts).view(batch, height, width, -1) for parts in zip(*traced, strict=True)
        )
        rgb = colour + (1 - opacity) * backdrop
        return Render(rgb, opacity, depth, normal if style.normals else None, background=backdrop)

    def _style(
        self,
        cameras: Cameras,
        shading: str,
        normals: bool,
        soft_light: bool,
        generator: torch.Generator | None,
        together: int,
    ) -> _Style:
        light = volume.towards_light(cameras, shading, generator)
        drawn = soft_light and generator is not None
        ambient = float(torch.rand(1, generator=generator)) if drawn else volume.AMBIENT
        around = None
        if self.finish is not None and shading == "albedo":
            count = len(cameras)
            drawn_for = -(-count // together)  # an object's views stand in one light
            made = environment.draw(drawn_for, generator) if generator else environment.studio(drawn_for)
            around = made[torch.arange(count) // together].to(self.paint.device)
        wanted = normals or shading != "albedo" or around is not None
        return _Style(shading, light, ambient, wanted, around)

    def _trace(
        self, origins: Tensor, directions: Tensor, picture: Tensor, style: _Style
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Colour, opacity, depth and normal of pixels from their rays, ``[pixels, rays, 3]``, and their pictures' numbers."""
        pixels, rays = origins.shape[:2]
        with torch.no_grad():
            face, distance, weight = self._cast(origins.reshape(-1, 3), directions.reshape(-1, 3))
            hit = (face >= 0).nonzero()[:, 0]
            face, weight = face[hit], weight[hit]
            count = (
                torch.zeros(pixels * rays, device=hit.device)
                .index_fill(0, hit, 1.0)
                .view(pixels, rays)
                .sum(1)
            )
            depth = distance.view(pixels, rays).sum(1) / count.clamp(min=1)
            facing = self._normals(face, weight, directions.reshape(-1, 3)[hit]) if style.normals else None
        colour = self._colour(face, weight)
        if facing is not None:
            seen = picture[hit // rays]
            bent = self._perturbed(face, weight, facing)
            if style.around is not None:
                finish = self._finish(face, weight)
                ray = directions.reshape(-1, 3)[hit]
                colour = environment.lit(colour, *finish, bent, ray, style.around[seen])
            elif style.kind != "albedo":
                lit = volume.shade(colour, bent, style.light[seen], style.kind, style.ambient)
                colour = lit + 0 * colour  # what shows no colour has a gradient of 0 rather than none
        normal = facing if facing is not None else torch.zeros_like(weight)
        # Each ray has a place of its own, and a sum over places has one order on every device.
        colour, normal = (
            values.new_zeros(pixels * rays, 3).index_copy(0, hit, values).view(pixels, rays, 3).sum(1)
            for values in (colour, normal)
        )
        return colour / rays, count / rays, depth, normalize(normal, dim=-1, eps=1e-6)

    def _cast(self, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found: tuple[Tensor, Tensor, Tensor] = self._on(origins.device)[0](origins, directions)
        return found

    def _on(self, device: torch.device) -> Any:
        """The caster, the looks of kept parts, and each face's part and number within it, on a device."""
        from distill.renderers._warp_mesh import Caster

        if device.type not in ("cpu", "cuda"):
            raise ValueError(
                f"scene=surface casts rays on the CPU or on CUDA, got device={device.type}; use device=cpu"
            )
        if device not in self._there:
            vertices, faces = torch.from_numpy(self.mesh.vertices), torch.from_numpy(self.mesh.faces)
            looks = [part.look.to(device) if part.kept else None for part in self.mesh.parts]
            part, first = (
                torch.from_numpy(self.mesh.part),
                torch.tensor([p.faces[0] for p in self.mesh.parts]),
            )
            local = torch.from_numpy(self.mesh.origin) - first[part]
            self._there[device] = (
                Caster(vertices.to(device), faces.to(device)),
                looks,
                part.to(device),
                local.to(device),
            )
        return self._there[device]

    def _outward(self, face: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Unit normals of the triangles, and the file's, where it has some, else again the triangles'."""
        corners = self.triangles[face]
        flat = normalize(
            torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]),
            dim=-1,
            eps=1e-20,
        )
        given = (weight[..., None] * self.normals[face]).sum(1)
        return flat, torch.where(given.norm(dim=-1, keepdim=True) > 0.1, normalize(given, dim=-1), flat)

    @torch.no_grad()
    def _turn(self, face: Tensor, weight: Tensor) -> Tensor:
        """Rotations, or reflections, that a face's first place is turned by, shape ``[n, 3, 3]``."""

        def axes(face: Tensor) -> Tensor:
            flat, outward = self._outward(face, weight)
            along = normalize(self.triangles[face, 1] - self.triangles[face, 0], dim=-1, eps=1e-20)
            # A mirrored place winds its faces the other way, not its normals.
            up = torch.where((flat * outward).sum(-1, keepdim=True) < 0, -flat, flat)
            return torch.stack([along, torch.linalg.cross(flat, along), up], dim=-1)

        return axes(face) @ axes(self.origin[face]).transpose(1, 2)

    def _normals(self, face: Tensor, weight: Tensor, directions: Tensor) -> Tensor:
        """Unit normals towards the camera: the file's, where it has some, else the triangles'."""
        flat, smooth = self._outward(face, weight)
        # Files have normals, and windings, that face inwards.
        smooth = torch.where((smooth * flat).sum(-1, keepdim=True) < 0, -smooth, smooth)
        return torch.where((flat * directions).sum(-1, keepdim=True) > 0, -smooth, smooth)

    def _perturbed(self, face: Tensor, weight: Tensor, facing: Tensor) -> Tensor:
        """Normals towards the camera, perturbed; a bump on one side is a dent on the other."""
        if self.perturbation is None:
            return facing
        vector = self.perturbations((weight[..., None] * self.paint[face]).sum(1))
        if self.placed_again:
            vector = (self._turn(face, weight) @ vector[..., None])[..., 0]
        with torch.no_grad():
            outward = self._outward(face, weight)[1]
            side = torch.where((outward * facing).sum(-1, keepdim=True) < 0, -1.0, 1.0)
            side = side.masked_fill(self.kept[face, None], 0.0)
        return environment.perturbed(facing, side * vector)

    def _colour(self, face: Tensor, weight: Tensor) -> Tensor:
        """Albedo at points of faces: learnt, or the file's own where it is kept."""
        points = (weight[..., None] * self.paint[face]).sum(1)
        return self._with_own(self.colours.query(points)[1], Look.colours, face, weight)

    def _finish(self, face: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Roughness and metallic at points of faces: learnt, or the file's own where it is kept."""
        points = (weight[..., None] * self.paint[face]).sum(1)
        learnt = torch.cat(self.material(points), dim=1)
        rough, metal = self._with_own(learnt, Look.finished, face, weight).split(1, dim=1)
        return rough.clamp(min=_MIRROR), metal

    def _with_own(
        self, learnt: Tensor, of: Callable[[Look, Tensor, Tensor], Tensor], face: Tensor, weight: Tensor
    ) -> Tensor:
        """Values at points of faces with those of the file's looks in their place where a part is kept."""
        kept = self.kept[face]
        if not any(part.kept for part in self.mesh.parts):
            return learnt
        _, looks, part, local = self._on(face.device)
        own = torch.zeros_like(learnt)
        with torch.no_grad():
            for number, look in enumerate(looks):
                here = (part[face] == number).nonzero()[:, 0]
                if look is not None and len(here):
                    own[here] = of(look, local[face[here]], weight[here])
        return torch.where(kept[:, None], own, learnt)

    def material(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Roughness and metallic at points of the surface, ``[n, 3]`` to ``[n, 1]`` each, within ``ROUGHNESS`` and ``METALLIC``.

        Raises:
            ValueError: the scene has a colour alone.
        """
        if self.finish is None:
            raise ValueError("the scene has material=albedo, and no roughness or metallic; use material=pbr")
        rough, metal = self.finish.query(points)[1][:, 1:].split(1, dim=1)
        metal = metal / (metal + (1 - metal) * _NO_METAL)
        return tuple(low + (high - low) * x for x, (low, high) in ((rough, ROUGHNESS), (metal, METALLIC)))

    def perturbations(self, points: Tensor) -> Tensor:
        """Return the perturbation of normals at points of the surface, ``[n, 3]`` to ``[n, 3]``; see ``environment.perturbed``.

        Raises:
            ValueError: the scene has no normal map.
        """
        if self.perturbation is None:
            raise ValueError(
                "the scene has normal_map=false, and its normals are not perturbed; use normal_map=true"
            )
        return PERTURBATION * (2 * self.perturbation.query(points)[1] - 1)  # a hyperbolic tangent

    def begin_with_colours(self, generator: torch.Generator, steps: int = 300, points: int = 8192) -> None:
        """Fit the colour to the mesh's own, by regression on points uniform over its area.

        Args:
            generator: draws the points.
            steps: number of steps of Adam, at twice the scene's own rates.
            points: number of points per step.

        Raises:
            ValueError: the mesh has no colours.
        """
        if not any(part.coloured for part in self.mesh.parts if not part.kept):
            raise ValueError(
                f"mesh.init_texture=true starts from the mesh's own texture or colours, and {self.mesh.file} has none; leave it out"
            )
        groups = [group for name, group in self.parameter_groups().items() if name != "background"]
        optimiser = torch.optim.Adam(
            [{"params": group.parameters, "lr": 2 * (group.rate or 0.01)} for group in groups],
            betas=(0.9, 0.99),
            eps=1e-15,
        )
        face, weight, colour = own_points(self.mesh, steps * points, generator)
        device, error = self.paint.device, torch.zeros(())
        for step in range(steps):
            here = slice(step * points, (step + 1) * points)
            for group in optimiser.param_groups:
                group["lr"] *= 1 if step < 2 * steps // 3 else 0.97
            places = (weight[here, :, None].to(device) * self.paint[face[here].to(device)]).sum(1)
            optimiser.zero_grad(set_to_none=True)
            error = (self.colours.query(places)[1] - colour[here].to(device)).square().mean()
            error.backward()
            optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        log.info("%s: began with its own colours, mean squared error %.2g", self.mesh.file.name, error.item())

    def field(self) -> None:
        """Return None: the shape is a mesh, not a field."""

    def assets(self) -> dict[str, Writer]:
        """Return the writer of mesh.glb, or of ``name`` with another name: the input mesh with the new texture."""
        return {"mesh": self._write}

    def _write(self, folder: Path, view: View, options: Any) -> dict[str, Any]:
        from distill.meshes.write import Paints, write_textured

        @torch.no_grad()
        def albedo(points: Tensor) -> Tensor:
            return self.colours.query(points.to(self.paint.device))[1].cpu()

        @torch.no_grad()
        def finish(points: Tensor) -> Tensor:
            return torch.cat(self.material(points.to(self.paint.device)), dim=1).cpu()

        @torch.no_grad()
        def perturbation(points: Tensor) -> Tensor:
            return self.perturbations(points.to(self.paint.device)).cpu()

        paints = Paints(
            albedo,
            finish if self.finish is not None else None,
            perturbation if self.perturbation is not None else None,
        )
        name = f"{options.get('name', 'mesh')}.glb"
        figures = write_textured(self.mesh, paints, folder / name, size=options["texture_size"])
        return {**figures, "meshes": [name]}


def own_points(mesh: Surface, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Draw points uniformly over the area of a mesh, with the colours of its file.

    Returns:
        Faces ``[count]``, barycentric weights ``[count, 3]`` and colours ``[count, 3]``, on the CPU.
    """
    part = torch.from_numpy(mesh.part)
    wanted = torch.tensor([not p.kept for p in mesh.parts])[part]
    heap = (torch.from_numpy(mesh.areas()).double() * wanted).cumsum(0)
    drawn = torch.rand(count, 3, generator=generator, dtype=torch.float64)
    face = torch.searchsorted(heap, drawn[:, 0] * heap[-1]).clamp(max=len(heap) - 1)
    # Uniform over a triangle: the square is folded along its diagonal.
    a, b = (
        (torch.where(drawn[:, 1:].sum(1, keepdim=True) > 1, 1 - drawn[:, 1:], drawn[:, 1:])).float().unbind(1)
    )
    weight = torch.stack([1 - a - b, a, b], dim=1)
    colour, origin = torch.empty(count, 3), torch.from_numpy(mesh.origin)[face]
    for number, piece in enumerate(mesh.parts):
        here = (part[face] == number).nonzero()[:, 0]
        colour[here] = piece.look.colours(origin[here] - piece.faces[0], weight[here])
    return face, weight, colour

"""Pictures of many objects in memory, on any device: what a small model trains on without waiting for files.

They come from renders in the layout that ``views`` reads, or from the embedded world, whose shapes are rendered once
and painted in several colours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from distill.lab.novel_view.evaluate import choose_pairs
from distill.lab.novel_view.pairs import mixed
from distill.lab.novel_view.placing import in_ball, within
from distill.lab.novel_view.views import Views
from distill.priors.novel_view.features import Features
from distill.priors.novel_view.pose import between

if TYPE_CHECKING:
    from distill.embedded.shapes import Part
    from distill.priors.novel_view.features import Encoder

Job = TypeVar("Job")
Made = TypeVar("Made")
#: Elevation from which a picture shows an object's top or bottom rather than its sides, degrees above or below the horizon.
STEEP_DEG = 60.0


@dataclass(frozen=True)
class Store:
    """Objects seen from several sides, the pictures of each object in a row.

    Attributes:
        pictures: over white, 0 to 255, shape ``[pictures, 3, size, size]``.
        positions: of the cameras that took them, shape ``[pictures, 3]``.
        first: where each object's begin, and where the last one's end, shape ``[objects + 1]``.
        uids: of the objects.
        steep_first: of a pair of which one picture is steep, from ``STEEP_DEG`` or more above or below, and the other is not,
            the steep one is the given one with this probability; None leaves it to chance, as for all other pairs.
    """

    pictures: Tensor
    positions: Tensor
    first: Tensor
    uids: tuple[str, ...]
    steep_first: float | None = None

    def __post_init__(self) -> None:
        if not torch.isfinite(self.positions).all() or (self.positions.norm(dim=-1) == 0).any():
            raise ValueError("every camera's position must be finite and away from the origin")
        if (self.first.diff() < 2).any():
            raise ValueError("every object needs at least two pictures")
        if self.steep_first is not None and not 0 <= self.steep_first <= 1:
            raise ValueError(f"steep_first must be a probability or None, got {self.steep_first}")

    def __len__(self) -> int:
        return len(self.uids)

    def to(self, device: torch.device | str) -> Store:
        pictures, positions, first = (
            value.to(device) for value in (self.pictures, self.positions, self.first)
        )
        return replace(self, pictures=pictures, positions=positions, first=first)

    def rgb(self, index: Tensor) -> Tensor:
        """Pictures in [0, 1], shape ``[n, 3, size, size]``."""
        return self.pictures[index].float() / 255

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Two different pictures of each of ``count`` objects, as indices; objects are equally likely."""
        device = self.first.device
        places = torch.randint(len(self), (count,), generator=generator, device=device)
        start, views = self.first[places], self.first[places + 1] - self.first[places]
        u = torch.rand(2, count, generator=generator, device=device)
        condition = (u[0] * views).long().clamp(max=views - 1)
        target = (u[1] * (views - 1)).long().clamp(max=views - 2)
        given, wanted = start + condition, start + target + (target >= condition)
        if self.steep_first is None:
            return given, wanted
        from_steep, to_steep = self.steep(given), self.steep(wanted)
        first = torch.rand(count, generator=generator, device=device) < self.steep_first
        swap = (from_steep != to_steep) & (from_steep != first)
        return torch.where(swap, wanted, given), torch.where(swap, given, wanted)

    def steep(self, index: Tensor, from_deg: float = STEEP_DEG) -> Tensor:
        """Whether pictures, given by index, were taken from so many degrees or more above or below the horizon."""
        positions = self.positions[index]
        return positions[:, 2].abs() >= math.sin(math.radians(from_deg)) * positions.norm(dim=-1)

    def pose(self, condition: Tensor, target: Tensor) -> Tensor:
        """Return the poses of pictures relative to others, both given by index, shape ``[n, 4]``."""
        return between(self.positions[condition], self.positions[target])

    def views(self) -> Views:
        """The same as ``evaluate`` reads it; every object must have as many pictures.

        Raises:
            ValueError: they have not.
        """
        counts = self.first.diff()
        if (counts != counts[0]).any():
            raise ValueError("the objects have different numbers of pictures")
        where = dict(zip(self.uids, self.first.tolist(), strict=False))

        def read(uid: str, index: int) -> tuple[Tensor, Tensor]:
            place = where[uid] + index
            return self.pictures[place].float().cpu() / 255, self.positions[place].cpu()

        return Views(self.uids, int(counts[0]), read)


def fixed_pairs(store: Store) -> Tensor:
    """One pair of views of each object, indices, the same at every call."""
    pairs = choose_pairs(store.views(), 1, seed=0)
    start = store.first[:-1].cpu()
    chosen = torch.tensor([[pair.condition, pair.target] for pair in pairs]) + start[:, None]
    return chosen.to(store.first.device)


def joined(stores: Sequence[Store]) -> Store:
    """All objects of several stores of one picture size."""
    starts = np.cumsum([0, *(len(store.pictures) for store in stores)]).tolist()
    first = [store.first[:-1] + start for store, start in zip(stores, starts, strict=False)]
    return Store(
        torch.cat([store.pictures for store in stores]),
        torch.cat([store.positions for store in stores]),
        torch.cat([*first, first[0].new_tensor([starts[-1]])]),
        tuple(uid for store in stores for uid in store.uids),
    )


def from_views(views: Views) -> Store:
    """Read all pictures of some renders."""
    pictures, positions = [], []
    for uid in tqdm(views.uids, desc="reading renders"):
        for index in range(views.count):
            rgb, position = views.read(uid, index)
            pictures.append((rgb * 255).round().byte())
            positions.append(position)
    first = torch.arange(len(views) + 1) * views.count
    return Store(torch.stack(pictures), torch.stack(positions), first, tuple(views.uids))


@dataclass(frozen=True)
class WorldOptions:
    """Cameras, lights and sizes that the embedded world is rendered with.

    Attributes:
        shapes: of each kind, each of proportions of its own.
        views: pictures of each shape, from the range of elevations that scenes have.
        steep: further pictures, from any height, straight above and below among them.
        size: height and width, pixels.
        distance: range of the cameras' distances.
        elevation_deg: range of the elevations of ``views``.
        steep_deg: range of the elevations of ``steep``, equally likely angles.
        steep_from_deg: those of ``steep`` are at least so far above or below the horizon.
        fov_y_deg: range of the field of view, one for each shape.
        scale: range that a shape's size is multiplied by, one for each.
        offset: each shape is moved away from the axis that the cameras go round, once for all of its pictures, by up to so
            much in any direction, scene units; by less where it would leave a picture.
        lights_deg: each shape's lights are turned by up to so much, to either side.
        samples: rays per pixel along each axis.
        seed: of all of it.
    """

    shapes: int = 140
    views: int = 13
    steep: int = 3
    size: int = 64
    distance: tuple[float, float] = (3.0, 3.4)
    elevation_deg: tuple[float, float] = (-10.0, 60.0)
    steep_deg: tuple[float, float] = (-89.9, 89.9)
    steep_from_deg: float = 0.0
    fov_y_deg: tuple[float, float] = (37.0, 43.0)
    scale: tuple[float, float] = (0.75, 1.25)
    offset: float = 0.0
    lights_deg: float = 20.0
    samples: int = 2
    seed: int = 0


def _uniform(g: np.random.Generator, ends: Sequence[float], count: int = 1) -> NDArray[Any]:
    return g.uniform(ends[0], ends[1], count)


def _elevations(g: np.random.Generator, ends: Sequence[float], count: int) -> NDArray[Any]:
    """Even over the sphere between two elevations, degrees."""
    low, high = (math.sin(math.radians(end)) for end in ends)
    return np.degrees(np.arcsin(g.uniform(low, high, count)))


def _steep(g: np.random.Generator, options: WorldOptions) -> NDArray[Any]:
    """Elevations of ``steep``: equally likely angles of both ends of the range, without what lies between them."""
    (low, high), least = options.steep_deg, options.steep_from_deg
    below, above = max(-least - low, 0.0), max(high - least, 0.0)
    angle = _uniform(g, (-below, above), options.steep)
    return angle + np.copysign(least, angle)


def render_shape(options: WorldOptions, job: tuple[str, int]) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """One shape's layers, ``[views, size, size, 5]`` (painted, tint, alpha), and its cameras' positions."""
    from distill.embedded import shapes, world

    kind, number = job
    g = np.random.default_rng(mixed(options.seed, world.KINDS.index(kind), number))
    return render_parts(options, shapes.build(kind, lambda value: value * float(g.uniform(0.85, 1.15))), g)


def render_parts(
    options: WorldOptions, parts: list[Part], g: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """An object's layers and its cameras' positions, as ``render_shape`` returns them.

    Args:
        options: cameras, lights and sizes.
        parts: of the object, its farthest point 0.95 from the origin; scaled and moved.
        g: draws its size, cameras, lights and place.
    """
    from distill.cameras import orbit
    from distill.embedded import raycast

    scale = float(_uniform(g, options.scale)[0])
    for part in parts:
        part.mesh.apply_scale(scale)
    count = options.views + options.steep
    elevation = np.concatenate(
        [
            _elevations(g, options.elevation_deg, options.views),
            # Even over the sphere, few would come from straight above or below.
            _steep(g, options),
        ]
    )
    azimuth, distance = g.uniform(-180, 180, count), _uniform(g, options.distance, count)
    fov = float(_uniform(g, options.fov_y_deg)[0])
    turned, above, away = (torch.from_numpy(value).float() for value in (azimuth, elevation, distance))
    cameras = orbit(turned, above, away, fov)
    lights = float(_uniform(g, (-options.lights_deg, options.lights_deg))[0])
    if options.offset:
        corners = np.concatenate([part.mesh.vertices for part in parts])
        shift = within(corners, in_ball(g, options.offset), cameras)
        for part in parts:
            part.mesh.apply_translation(shift)
    found = raycast.render(parts, cameras, options.size, options.samples, lights)
    layers = np.concatenate([found.painted, found.tint[..., None], found.alpha[..., None]], axis=-1)
    return (255 * layers.clip(0, 1)).round().astype(np.uint8), cameras.c2w[:, :3, 3].numpy()


def _one_thread() -> None:
    torch.set_num_threads(1)


def on_cores(work: Callable[[Job], Made], jobs: Sequence[Job], workers: int, unit: str) -> Iterator[Made]:
    """Do jobs in processes of their own, or in this one with one worker; yields what they make, in their order, under a bar.

    Args:
        work: a function of a module, or a partial of one.
        jobs: its arguments.
        workers: processes.
        unit: what the bar counts.
    """
    bar = partial(tqdm, total=len(jobs), desc="rendering", unit=unit, mininterval=5, disable=not jobs)
    if workers > 1:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
            yield from bar(pool.map(work, jobs, chunksize=4))
    else:
        yield from bar(map(work, jobs))


def write_tensors(path: Path, tensors: dict[str, Tensor], options: WorldOptions) -> None:
    """Write a file of renders, whole or not at all, with what they were rendered with."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, {"options": repr(options)}
    )
    temporary.replace(path)


def _work(job: tuple[WorldOptions, str, int]) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    options, kind, number = job
    return render_shape(options, (kind, number))


def render_shapes(worlds: Sequence[WorldOptions], workers: int = 1) -> list[dict[str, Tensor]]:
    """Layers and cameras of ``shapes`` of each kind, of one or several worlds, on several cores.

    Returns:
        For each, ``layers``, 0 to 255, shape ``[kinds, shapes, views, size, size, 5]``, and ``positions``, shape
        ``[kinds, shapes, views, 3]``.
    """
    from distill.embedded import world

    jobs = [(said, kind, number) for said in worlds for kind in world.KINDS for number in range(said.shapes)]
    done = list(on_cores(_work, jobs, workers, "shape"))
    found, start = [], 0
    for said in worlds:
        shape = (len(world.KINDS), said.shapes)
        part = done[start : start + shape[0] * shape[1]]
        values = (torch.from_numpy(np.stack(value)).unflatten(0, shape) for value in zip(*part, strict=True))
        found.append(dict(zip(("layers", "positions"), values, strict=True)))
        start += shape[0] * shape[1]
    return found


def cached_shapes(worlds: Sequence[WorldOptions], folder: Path, workers: int = 1) -> list[dict[str, Tensor]]:
    """``render_shapes``, written to ``folder`` and read from there the next time."""
    paths = [folder / f"world-{mixed(said.seed, repr(said)):016x}.safetensors" for said in worlds]
    left = [(said, path) for said, path in zip(worlds, paths, strict=True) if not path.exists()]
    if left:
        for found, (said, path) in zip(render_shapes([said for said, _ in left], workers), left, strict=True):
            write_tensors(path, found, said)
    return [load_file(path) for path in paths]


def painted(
    shapes: dict[str, Tensor],
    *,
    held_out: bool = False,
    colours: int = 7,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Store:
    """Paint shapes in the colours that are trained on for their kind, or in the one that is held out.

    Args:
        shapes: from ``render_shapes``.
        held_out: the pairs of colour and kind that are never trained on, instead of the others.
        colours: of each shape, all seven, or the next ones in turn.
        seed: of each object's own shade.
        device: where the pictures are to lie.
    """
    from distill.embedded import world

    names, pictures, positions, uids = list(world.COLOURS), [], [], []
    g = torch.Generator().manual_seed(mixed(seed, 6))
    for kind, layers, places in zip(world.KINDS, shapes["layers"], shapes["positions"], strict=True):
        allowed = [name for name in names if world.held_out(name, kind) == held_out]
        count = min(colours, len(allowed))
        for number, (shape, place) in enumerate(zip(layers, places, strict=True)):
            part = shape.to(device).movedim(-1, 1).float() / 255
            chosen = [allowed[(number * count + offset) % len(allowed)] for offset in range(count)]
            paint = torch.tensor([world.COLOURS[name] for name in chosen])
            paint = (paint + 0.02 * torch.randn(count, 3, generator=g)).clamp(0, 1).to(device)
            own = part[:, :3] + 1 - part[:, 4:]
            rgb = own + part[:, 3:4] * paint[:, None, :, None, None]
            pictures.append((rgb.clamp(0, 1) * 255).round().byte().flatten(0, 1))
            positions += [place] * count
            uids += [f"{name}-{kind}-{number:04d}" for name in chosen]
    first = torch.arange(len(uids) + 1) * shapes["layers"].shape[2]
    return Store(torch.cat(pictures), torch.cat(positions).to(device), first.to(device), tuple(uids))


class Encodings(Protocol):
    """Pictures, and what an encoder makes of them."""

    @property
    def store(self) -> Store: ...

    def features(self, index: Tensor) -> Features:
        """Of some pictures, in single precision."""
        ...


@dataclass(frozen=True)
class Seen:
    """A store whose pictures are encoded.

    Attributes:
        store: the pictures.
        token: of each, shape ``[pictures, width]``.
        maps: of each, shape ``[pictures, patches, layers * width]``.
    """

    store: Store
    token: Tensor
    maps: Tensor

    def features(self, index: Tensor) -> Features:
        return Features(self.token[index].float(), self.maps[index].float())


@dataclass(frozen=True)
class Live:
    """A store whose pictures are encoded each time that they are asked for."""

    store: Store
    encoder: Encoder

    def features(self, index: Tensor) -> Features:
        return self.encoder(self.store.rgb(index))


@torch.no_grad()
def encoded(store: Store, encoder: Encoder, batch: int = 512) -> Seen:
    """Encode all pictures where they lie, in half precision.

    Args:
        store: on the encoder's device.
        encoder: see ``distill.priors.novel_view.features``.
        batch: pictures at a time.
    """
    count = len(store.pictures)
    device = store.pictures.device
    token = torch.empty(count, encoder.token_width, dtype=torch.float16, device=device)
    maps = torch.empty(count, encoder.grid**2, encoder.map_width, dtype=torch.float16, device=device)
    for part in tqdm(torch.arange(count, device=device).split(batch), desc="encoding", mininterval=5):
        found = encoder(store.rgb(part))
        token[part], maps[part] = found.token.half(), found.maps.half()
    return Seen(store, token, maps)

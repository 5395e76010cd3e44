"""Renders of the embedded world for training in memory: its shapes are rendered once, and painted in several colours."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from distill.lab.novel_view.memory import Store
from distill.lab.novel_view.pairs import mixed
from distill.lab.novel_view.placing import in_ball, within

if TYPE_CHECKING:
    from distill.embedded.shapes import Part

Job = TypeVar("Job")
Made = TypeVar("Made")


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


def write_tensors(path: Path, tensors: dict[str, Tensor], options: object) -> None:
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

"""Real objects in other proportions, so that a novel-view model learns shapes rather than the objects of a pack.

Each is stretched along three axes, half of them turned about the vertical first, and one in five leans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from trimesh.transformations import euler_matrix, rotation_matrix

from distill.cameras import orbit
from distill.embedded import obj, things
from distill.embedded.shoot import shoot
from distill.lab.novel_view.memory import Store
from distill.lab.novel_view.pairs import mixed
from distill.lab.novel_view.world_renders import on_cores, write_tensors

#: Views of each, and the ranges that they are drawn from: elevation in degrees and distance in scene units.
VIEWS = 20
ELEVATION_DEG, DISTANCE, FOV_Y_DEG = (-8.0, 58.0), (3.0, 3.4), 40.0
#: Standard deviation of the logarithm of each axis's factor; the share that leans, and by how much at most, radians.
STRETCH, LEANING, LEAN = 0.28, 0.2, 0.5
#: Distance of the farthest point from the origin.
RADIUS = (0.72, 0.97)
NAMES = ("pictures", "positions")


def placed(model: obj.Model, g: np.random.Generator) -> obj.Model:
    """A model in other proportions, centred on its bounding box."""
    yaw = g.uniform(0, np.pi) if g.random() < 0.5 else 0.0
    turn = rotation_matrix(yaw, (0, 0, 1))[:3, :3]
    matrix = turn.T @ np.diag(np.exp(g.normal(0, STRETCH, 3))) @ turn
    if g.random() < LEANING:
        roll, pitch = g.uniform(-LEAN, LEAN, 2)
        matrix = euler_matrix(roll, pitch, 0)[:3, :3] @ matrix
    vertices = model.vertices @ matrix.T
    used = np.unique(model.faces)
    vertices = vertices - (vertices[used].min(0) + vertices[used].max(0)) / 2
    reach = np.linalg.norm(vertices[used], axis=1).max()
    return replace(model, vertices=vertices * (g.uniform(*RADIUS) / reach))


def render(
    archives: Path, count: int, seed: int, thing: things.Thing
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """A thing's pictures over white, and its cameras' positions, in so many proportions.

    Every other one is in a random colour, where the thing's colour can be chosen.
    """
    model, pictures, eyes = things.model(thing, archives), [], []
    for number in range(count):
        g = np.random.default_rng(mixed(seed, thing.id, number))
        ranges = ((-180.0, 180.0), ELEVATION_DEG, DISTANCE)
        azimuth, elevation, distance = (torch.from_numpy(g.uniform(*ends, VIEWS)).float() for ends in ranges)
        cameras = orbit(azimuth, elevation, distance, FOV_Y_DEG)
        layers = shoot(placed(model, g), thing.paint, cameras, things.SIZE, 2)
        paint = g.uniform(0, 1, 3) if number % 2 else np.array(thing.paint or (0.0, 0.0, 0.0))
        white = layers[..., :3] + layers[..., 3:4] * paint + 1 - layers[..., 4:]
        pictures.append(np.moveaxis(np.round(255 * white.clip(0, 1)).astype(np.uint8), -1, 1))
        eyes.append(cameras.c2w[:, :3, 3].numpy())
    return np.concatenate(pictures), np.concatenate(eyes).astype(np.float32)


def store(
    listed: Sequence[things.Thing], archives: Path, count: int, folder: Path, workers: int = 1, seed: int = 0
) -> Store:
    """Render things, or read those that ``folder`` has; there each thing is written.

    Args:
        listed: the things.
        archives: folder of the fetched archives.
        count: of each thing, each of proportions of its own.
        folder: of the files.
        workers: processes.
        seed: of proportions, cameras and colours.
    """
    options = (things.VERSION, seed, count, VIEWS, ELEVATION_DEG, DISTANCE, STRETCH, LEANING, LEAN, RADIUS)

    def path(thing: things.Thing) -> Path:
        return folder / f"{mixed(repr((options, thing))):016x}.safetensors"

    left = [thing for thing in listed if not path(thing).exists()]
    made = on_cores(partial(render, archives, count, seed), left, workers, "thing")
    for thing, parts in zip(left, made, strict=True):
        write_tensors(path(thing), dict(zip(NAMES, map(torch.from_numpy, parts), strict=True)), options)
    found = [load_file(path(thing)) for thing in listed]
    pictures, positions = (torch.cat([part[name] for part in found]) for name in NAMES)
    uids = tuple(f"stretched-{number}:{thing.id}" for thing in listed for number in range(count))
    return Store(pictures, positions, torch.arange(len(uids) + 1) * VIEWS, uids)

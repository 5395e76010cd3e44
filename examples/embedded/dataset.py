"""Pictures of the embedded world for training: rendered once, coloured on the fly."""

from __future__ import annotations

import argparse
import json
import multiprocessing
from dataclasses import dataclass
from multiprocessing.pool import Pool
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from distill.cameras import Cameras, orbit
from distill.embedded import raycast, shapes, world
from distill.transfer import send

SIZE = 64
VIEWS_PER_SHAPE = 24
OVERHEAD_SHARE = 1 / 16
DISTANCE = (3.0, 3.4)
ELEVATION_DEG = (-5.0, 50.0)
FOV_Y_DEG = 40.0


def render_shape(job: tuple[int, str]) -> tuple[np.ndarray, np.ndarray]:
    """Render one random sibling of a kind; returns uint8 layers and (kind, azimuth, elevation) rows."""
    seed, kind = job
    rng = np.random.default_rng(seed)
    parts = shapes.build(kind, lambda value: value * rng.uniform(0.94, 1.06))
    azimuth = torch.from_numpy(rng.uniform(-180, 180, VIEWS_PER_SHAPE)).float()
    above = rng.random(VIEWS_PER_SHAPE) < OVERHEAD_SHARE
    elevation = np.where(above, rng.uniform(62, 88, len(above)), rng.uniform(*ELEVATION_DEG, len(above)))
    distance = torch.from_numpy(rng.uniform(*DISTANCE, VIEWS_PER_SHAPE)).float()
    cameras = orbit(azimuth, torch.from_numpy(elevation).float(), distance, FOV_Y_DEG)
    rows = np.stack([np.full(VIEWS_PER_SHAPE, world.KINDS.index(kind)), azimuth.numpy(), elevation], axis=1)
    return layers_of(parts, cameras), rows.astype(np.float32)


def layers_of(parts: list[shapes.Part], cameras: Cameras) -> np.ndarray:
    """An object's pictures before its colour is chosen, uint8, ``[views, 64, 64, 5]``."""
    layers = raycast.render(parts, cameras, SIZE)
    stacked = np.concatenate([layers.painted, layers.tint[..., None], layers.alpha[..., None]], axis=-1)
    return np.round(255 * stacked.clip(0, 1)).astype(np.uint8)


def workers() -> Pool:
    """Processes that render, one for each core, each with one thread.

    On Linux they are forks, and a fork of a process that has computed with several threads hangs when it does so itself.
    """
    return multiprocessing.Pool(initializer=torch.set_num_threads, initargs=(1,))


def build(folder: Path, shapes_per_kind: int, seed: int) -> None:
    """Render the pictures into ``folder`` unless they are there already."""
    wanted = {"shapes_per_kind": shapes_per_kind, "seed": seed, "size": SIZE}
    done = folder / "dataset.json"
    if done.exists() and json.loads(done.read_text()) == wanted:
        return
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [
        (seed + i * len(world.KINDS) + k, kind)
        for i in range(shapes_per_kind)
        for k, kind in enumerate(world.KINDS)
    ]
    with workers() as pool:
        results = list(tqdm(pool.imap(render_shape, jobs, chunksize=4), "rendering", len(jobs)))
    np.save(folder / "layers.npy", np.concatenate([layers for layers, _ in results]))
    np.save(folder / "rows.npy", np.concatenate([rows for _, rows in results]))
    done.write_text(json.dumps(wanted))


def noise_for(x: Tensor, generator: torch.Generator) -> Tensor:
    """Draw standard normal noise in the shape of ``x`` and on its device; what is drawn depends on the kind of device."""
    if not x.is_cuda:
        return torch.randn(x.shape, generator=generator).to(x)
    seed = int(torch.randint(2**62, (1,), generator=generator))
    there = torch.Generator(x.device).manual_seed(seed)
    return torch.randn(x.shape, generator=there, device=x.device)


@dataclass(frozen=True)
class Batch:
    """Pictures in [-1, 1], shape ``[batch, 3, 64, 64]``, with what they show."""

    images: Tensor
    colour: Tensor
    kind: Tensor
    view: Tensor


def composed(layers: Tensor, rgb: Tensor, grey: Tensor) -> Tensor:
    """Pictures in [-1, 1] of uint8 layers ``[batch, 64, 64, 5]``, in these colours over these greys."""
    layers = layers.permute(0, 3, 1, 2).float() / 255
    image = layers[:, :3] + layers[:, 3:4] * rgb[:, :, None, None]
    return (image + (1 - layers[:, 4:5]) * grey[:, None, None, None]) * 2 - 1


class Pictures:
    """Draws batches: a random render in a random trained colour over white or grey.

    Args:
        folder: from ``build``.
        generator: of the CPU; what is drawn does not depend on the device.
        device: where the renders are kept and painted.
    """

    def __init__(self, folder: Path, generator: torch.Generator, device: torch.device | str = "cpu") -> None:
        self.layers = torch.from_numpy(np.load(folder / "layers.npy", mmap_mode="r+")).to(device)
        rows = np.load(folder / "rows.npy")
        self.kind = torch.from_numpy(rows[:, 0]).long()
        views = [world.VIEWS.index(world.view_of(azimuth, elevation)) for _, azimuth, elevation in rows]
        self.view = torch.tensor(views)
        self.palette = torch.tensor(list(world.COLOURS.values()))
        trained = [[not world.held_out(c, k) for c in world.COLOURS] for k in world.KINDS]
        self.allowed = torch.tensor(trained).float()
        self.generator = generator

    def draw(self, batch: int, darkest: float = 0.5, held_out: bool = False) -> Batch:
        """Draw pictures; ``held_out`` draws the pairs that are never trained on instead."""
        g = self.generator
        index = torch.randint(len(self.kind), (batch,), generator=g)
        kind = self.kind[index]
        colour, rgb, grey = self.paints(kind, darkest, held_out)
        there = self.layers.device
        layers, rgb, grey = self.layers[send(index, there)], send(rgb, there), send(grey, there)
        return Batch(composed(layers, rgb, grey), colour, kind, self.view[index])

    def paints(
        self, kind: Tensor, darkest: float = 0.5, held_out: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draw for objects of these kinds a colour's number, the colour itself and the grey behind."""
        g, batch = self.generator, len(kind)
        allowed = 1 - self.allowed[kind] if held_out else self.allowed[kind]
        colour = torch.multinomial(allowed, 1, generator=g)[:, 0]
        rgb = (self.palette[colour] + 0.02 * torch.randn(batch, 3, generator=g)).clamp(0, 1)
        grey = darkest + (1 - darkest) * torch.rand(batch, generator=g)
        return colour, rgb, torch.where(torch.rand(batch, generator=g) < 0.4, 1.0, grey)

    def captions(self, batch: Batch, without_view: float = 0.1) -> list[str]:
        """Write a random caption for each picture."""
        names = list(world.COLOURS)
        n = len(batch.kind)
        bare = torch.rand(n, generator=self.generator) < without_view
        template = torch.randint(len(world.TEMPLATES), (n,), generator=self.generator)
        return [
            world.caption(names[c], world.KINDS[k], None if plain else world.VIEWS[v], template=int(form))
            for c, k, v, plain, form in zip(batch.colour, batch.kind, batch.view, bare, template, strict=True)
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shapes-per-kind", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    build(options.folder, options.shapes_per_kind, options.seed)


if __name__ == "__main__":
    main()

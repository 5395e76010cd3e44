"""Pictures of the embedded world in rings of four views, for training multi-view priors: rendered once, coloured on the fly."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import dataset
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from distill.embedded import shapes, world
from distill.priors.multi_view.attention import VIEWS
from distill.priors.multi_view.camera import numbers
from distill.samplers.cameras import groups
from distill.transfer import send

#: Rings of each shape: as many pictures as ``dataset`` renders of it.
RINGS = dataset.VIEWS_PER_SHAPE // VIEWS
#: Names of the arrays: uint8 layers ``[pictures, 64, 64, 5]``, the cameras' numbers ``[pictures, 16]``, kinds ``[rings]``.
ARRAYS = ("layers", "cameras", "kinds")


def render_rings(job: tuple[int, str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Render one random sibling of a kind in some rings; returns uint8 layers and the numbers of the cameras."""
    seed, kind, rings = job
    rng = np.random.default_rng(seed)
    parts = shapes.build(kind, lambda value: value * rng.uniform(0.94, 1.06))
    draw = groups(VIEWS, dataset.DISTANCE, dataset.ELEVATION_DEG, (dataset.FOV_Y_DEG, dataset.FOV_Y_DEG))
    cameras = draw(0.0, VIEWS * rings, torch.Generator().manual_seed(seed))
    return dataset.layers_of(parts, cameras), numbers(cameras).numpy()


def build(folder: Path, shapes_per_kind: int, seed: int, rings: int = RINGS) -> None:
    """Render the rings into ``folder`` unless they are there already."""
    wanted = {
        "shapes_per_kind": shapes_per_kind, "seed": seed, "size": dataset.SIZE, "rings": rings, "views": VIEWS,
    }  # fmt: skip
    done = folder / "dataset.json"
    if done.exists() and json.loads(done.read_text()) == wanted:
        return
    folder.mkdir(parents=True, exist_ok=True)
    kinds = [*world.KINDS] * shapes_per_kind
    jobs = [(seed + number, kind, rings) for number, kind in enumerate(kinds)]
    with dataset.workers() as pool:
        results = list(tqdm(pool.imap(render_rings, jobs, chunksize=4), "rendering rings", len(jobs)))
    layers, cameras = (np.concatenate(arrays) for arrays in zip(*results, strict=True))
    of_rings = np.repeat([world.KINDS.index(kind) for kind in kinds], rings)
    for name, array in zip(ARRAYS, (layers, cameras, of_rings), strict=True):
        np.save(folder / f"{name}.npy", array)
    done.write_text(json.dumps(wanted))


@dataclass(frozen=True)
class Rings:
    """Draws objects in rings of views: each in a random trained colour over white or grey, the same for all of its views.

    Attributes:
        layers: of every picture, those of a ring in consecutive rows, on the device of ``dataset.Pictures``.
        cameras: their numbers.
        kinds: of each ring.
        paints: of ``dataset.Pictures``.
        generator: of what is drawn.
    """

    layers: Tensor
    cameras: Tensor
    kinds: Tensor
    paints: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
    generator: torch.Generator

    @classmethod
    def of(cls, folder: Path, pictures: dataset.Pictures) -> Rings:
        """Read what ``build`` wrote; colours are drawn as for single pictures, from the same generator."""
        layers, cameras, kinds = (np.load(folder / f"{name}.npy") for name in ARRAYS)
        there = torch.from_numpy(layers).to(pictures.layers.device)
        of_rings = torch.from_numpy(cameras), torch.from_numpy(kinds).long()
        return cls(there, *of_rings, pictures.paints, pictures.generator)

    def draw(self, objects: int) -> tuple[Tensor, Tensor, list[str]]:
        """Draw objects.

        Returns:
            Pictures in [-1, 1], ``[4 objects, 3, 64, 64]``, the numbers of their cameras, ``[4 objects, 16]``, and a caption of
            each picture, the same for all of an object and without a view.
        """
        g = self.generator
        ring = torch.randint(len(self.kinds), (objects,), generator=g)
        colour, rgb, grey = self.paints(self.kinds[ring])
        template = torch.randint(len(world.TEMPLATES), (objects,), generator=g)
        rows = (ring[:, None] * VIEWS + torch.arange(VIEWS)).flatten()
        there = self.layers.device
        every = (send(each.repeat_interleave(VIEWS, dim=0), there) for each in (rgb, grey))
        names = list(world.COLOURS)
        said = [
            world.caption(names[c], world.KINDS[k], None, form)
            for c, k, form in zip(colour.tolist(), self.kinds[ring].tolist(), template.tolist(), strict=True)
        ]
        images = dataset.composed(self.layers[send(rows, there)], *every)
        return images, self.cameras[rows], [text for text in said for _ in range(VIEWS)]

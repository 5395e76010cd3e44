"""A small table of things with variants, and the archive of their meshes."""

from __future__ import annotations

import csv
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from distill.cameras import orbit
from distill.contracts import Render
from distill.embedded import things
from distill.embedded.judge import Judge, load_judge
from distill.embedded.shoot import shoot

#: A closed box in OBJ's axes, all in one material.
BOX = """mtllib box.mtl
v -1 -1 -1
v 1 -1 -1
v 1 1 -1
v -1 1 -1
v -1 -1 1
v 1 -1 1
v 1 1 1
v -1 1 1
usemtl {material}
f 4 3 2 1
f 1 2 6 5
f 3 4 8 7
f 2 3 7 6
f 4 1 5 8
f 5 6 7 8
"""
MTL = "newmtl grey\nKd 0.5 0.5 0.5\nnewmtl glassy\nKd 0.2 0.4 0.8\nd 0.8\n"
#: Name, width, height and depth, and whether the colour can be chosen.
ROWS = (
    ("stool", (20.0, 60.0, 20.0), True),
    ("stool", (60.0, 20.0, 20.0), True),
    ("stool", (40.0, 40.0, 40.0), False),
    ("vase", (20.0, 40.0, 20.0), False),
)


@dataclass(frozen=True)
class Tiny:
    """Where they are."""

    table: Path
    archives: Path
    things: tuple[things.Thing, ...]


def write(folder: Path) -> Tiny:
    """Write the table and the archive; the variants of a stool are a pole, a beam and a cube that stays as it is."""
    archives = folder / "archives"
    archives.mkdir(parents=True)
    made, variants = [], dict[str, int]()
    with zipfile.ZipFile(archives / "Tiny.sh3f", "w") as file:
        for index, (name, size, paintable) in enumerate(ROWS):
            variants[name] = variants.get(name, 0) + 1
            file.writestr(f"{index}/box.obj", BOX.format(material="grey" if paintable else "glassy"))
            file.writestr(f"{index}/box.mtl", MTL)
            paint = (128 / 255,) * 3 if paintable else None
            turn = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
            made.append(
                things.Thing(
                    f"Tiny#{index}", name, "", "a", variants[name], "Test", "Ann", "CC0", "Tiny.sh3f", f"{index}/box.obj",
                    turn, size, 12, False, paint, float(paintable), name,
                )
            )  # fmt: skip
    table = folder / "table.csv"
    with table.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(things.COLUMNS)
        writer.writerows(thing.row() for thing in made)
    return Tiny(table, archives, things.table(table))


def view_of(thing: things.Thing, archives: Path, turned_deg: float = 0.0, paint: Any = None) -> Any:
    """Pictures of a thing's mesh as if it had been turned clockwise, seen from above, by some degrees."""
    model = things.model(thing, archives)
    colour = torch.tensor(paint or thing.paint or (0.0, 0.0, 0.0))

    def view(cameras: Any, height: int, width: int) -> Render:
        azimuth = cameras.azimuth_deg + turned_deg
        moved = orbit(azimuth, cameras.elevation_deg, cameras.distance, cameras.fov_y_deg)
        layers = torch.from_numpy(shoot(model, thing.paint, moved, height, 2))
        alpha = layers[..., 4:]
        return Render(layers[..., :3] + layers[..., 3:4] * colour + 1 - alpha, alpha, alpha)

    return view


def judge_of(names: list[str]) -> Judge:
    """A judge that knows these words beside the world's, and was trained on nothing."""
    torch.manual_seed(0)
    return Judge([*load_judge().vocabulary, *names]).eval().requires_grad_(False)

"""Benchmark of image to 3D: twelve held-out objects of the embedded world, or real objects, each from one picture.

Their pairs of colour and kind and their shapes were not used in training. The metrics are silhouette IoU and PSNR over eight
other views, against the ground truth in its own orientation rather than the best fit; whether the asset is rotated by half
a turn; seconds and peak memory. With --text, the same object is also made from its prompt alone; since a prompt does not
determine the orientation, the best one is measured too. With --named, it is made from the picture and its prompt together, if the
bundled priors know its name. An interrupted run continues when started again.
    python examples/benchmarks/image_to_3d.py --output ~/image_to_3d --text --set iterations=300
    python examples/benchmarks/image_to_3d.py --output ~/things_to_3d --things 20 --archives ~/things --set reference.elevation_deg=20

Real objects are the first variants of names that no novel-view model is trained on, evenly spread over their list, in their own colours;
leaves that are cut out of their textures are whole here.

The picture is cut out, centred and scaled as any user's is, and the ground truth is moved and scaled accordingly; with
``--set reference.recentre=false`` it is used as it was taken.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import trimesh
from measuring import finished
from pictured import (
    AZIMUTH_DEG,
    ELEVATION_DEG,
    PICTURE,
    SHAPE,
    SIZE,
    framed,
    measure,
    photograph,
    save_photograph,
    the_camera,
)
from PIL import Image
from quality import mean, parse_value

import distill
from distill.cameras import turntable
from distill.conditions.cutout import Frame
from distill.contracts import View
from distill.embedded import obj, shapes, things, world
from distill.embedded.prompt import kind_of, object_of, prior_for
from distill.embedded.vocabulary import of_prior
from distill.lab.comparison.cost import resident_mib
from distill.lab.novel_view.render import Surface, from_world

KINDS = world.KINDS[1:2] + world.KINDS[5:]
Made = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """What is made.

    Attributes:
        title: of its row.
        prompt: that describes it.
        surface: makes the true one.
        oriented: it has a front.
    """

    title: str
    prompt: str
    surface: Callable[[], Surface]
    oriented: bool = False


def of_kind(kind: str) -> Subject:
    """An object of the embedded world in the colour that is held out."""
    colour = next(name for name in world.COLOURS if world.held_out(name, kind))
    surface = partial(from_world, f"{colour}-{kind}-{SHAPE}", 1)
    return Subject(f"{colour} {kind}", world.caption(colour, kind), surface, kind in shapes.ORIENTED)


def of_thing(thing: things.Thing, archives: Path) -> Subject:
    """A real object in its own colours."""
    prompt = things.caption(thing.name, thing.article)
    return Subject(thing.name, prompt, partial(surface_of, thing, archives))


def surface_of(thing: things.Thing, archives: Path) -> Surface:
    """A thing's faces with their textures, opaque."""
    model = things.model(thing, archives)
    mesh = trimesh.Trimesh(model.vertices, model.faces, process=False)
    return Surface(mesh, lambda faces, weights: obj.colours(model, faces, weights)[:, :3])


def held_out(count: int, table: Path = things.TABLE) -> list[things.Thing]:
    """The first variants of so many names that are held out from novel-view models, evenly spread.

    Raises:
        ValueError: there are fewer.
    """
    first = {thing.name: thing for thing in reversed(things.table(table)) if things.held_out_name(thing.name)}
    names = sorted(first)
    if not 1 <= count <= len(names):
        raise ValueError(
            f"--things must be from 1 to {len(names)}, the number of held-out names, got {count}"
        )
    return [first[names[index * len(names) // count]] for index in range(count)]


def save_strip(view: View, surface: Surface, path: Path) -> None:
    """The input, then four true sides over the asset's."""
    cameras = turntable(4, ELEVATION_DEG)
    taken = photograph(surface, the_camera(), SIZE)
    truth = photograph(surface, cameras, SIZE)
    over = [part[:, :3] * part[:, 3:] + 1 - part[:, 3:] for part in (taken, truth)]
    drawn = view(cameras, SIZE, SIZE).rgb.detach().cpu().movedim(-1, 1)
    rows = [torch.cat([over[0], over[1]]), torch.cat([torch.ones_like(over[0]), drawn])]
    strip = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)
    Image.fromarray((strip.movedim(0, -1).clamp(0, 1) * 255).round().byte().numpy()).save(path)


def make(subject: Subject, way: str, root: Path, overrides: dict[str, Any]) -> Made:
    """Make and measure one asset, or read what an earlier run measured."""
    folder = folder_of(subject, way, root)
    result = folder / "result.json"
    made: Made | None = finished(result, overrides)
    if made is not None:
        return made
    surface = subject.surface()
    folder.mkdir(parents=True, exist_ok=True)
    resumed = (folder / "asset").exists()
    options: dict[str, Any] = {"seed": 0, "output_dir": str(folder / "asset"), "resume": resumed}
    prompt = "" if way == "image" else subject.prompt
    if way != "text":
        save_photograph(surface, the_camera(), folder / "input.png")
        options |= {"image": str(folder / "input.png"), "reference.azimuth_deg": AZIMUTH_DEG}
        options |= overrides
    start = time.perf_counter()
    asset = distill.generate(prompt, **options)
    seconds = None if resumed else time.perf_counter() - start
    if way != "text":
        surface = framed(surface, Frame(*asset.manifest["picture"]["frame"]), PICTURE)
    save_strip(asset.view, surface, folder / "strip.png")
    made = {"title": subject.title, "way": way, "oriented": subject.oriented, "overrides": overrides}
    made |= {"seconds": seconds, "peak_mib": resident_mib(), **measure(asset.view, surface)}
    if way != "text":
        made["azimuth_deg"] = asset.manifest["picture"]["azimuth_deg"]
        made["elevation_deg"] = asset.manifest["picture"]["elevation_deg"]
    result.write_text(json.dumps(made, indent=1) + "\n")
    return made


def folder_of(subject: Subject, way: str, root: Path) -> Path:
    return root / f"{subject.title.replace(' ', '-')}-{way}"


def table(rows: list[Made]) -> str:
    """Markdown: a line for each asset, then means."""
    titles = (
        "object",
        "from",
        "IoU",
        "PSNR, dB",
        "half a turn off",
        "IoU, best turn",
        "elevation",
        "seconds",
    )
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for row in rows:
        flipped = ("yes" if row["flipped"] else "no") if row["oriented"] else ""
        height = f"{row['elevation_deg']:.0f}°" if "elevation_deg" in row else ""
        lines.append(
            f"| {row.get('title') or row['colour'] + ' ' + row['kind']} | {row['way']} | {row['iou']:.3f} | {row['psnr']:.1f} | {flipped} "
            f"| {row['best_iou']:.3f} | {height} | {mean([row], 'seconds'):.0f} |"
        )
    for way in dict.fromkeys(row["way"] for row in rows):
        part = [row for row in rows if row["way"] == way]
        fronts = [row["flipped"] for row in part if row["oriented"]]
        flips = sum(fronts) if fronts else ""
        worst = max((row["seconds"] or math.nan) for row in part)
        lines.append(
            f"| **mean of {len(part)}** | {way} | {mean(part, 'iou'):.3f} | {mean(part, 'psnr'):.1f} | {flips} "
            f"| {mean(part, 'best_iou'):.3f} | | {mean(part, 'seconds'):.0f}, at most {worst:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("image_to_3d"))
    parser.add_argument("--objects", type=int, default=len(KINDS), help="only the first so many")
    parser.add_argument("--things", type=int, metavar="N", help="N real objects of held-out names instead")
    parser.add_argument("--archives", type=Path, help="folder of the things' archives")
    parser.add_argument("--named", action="store_true", help="also from the picture and the prompt together")
    parser.add_argument("--text", action="store_true", help="also from the prompt alone")
    parser.add_argument(
        "--set", type=parse_value, nargs="*", default=[], metavar="KEY=VALUE", dest="overrides"
    )
    options = parser.parse_args()
    if (options.things is None) != (options.archives is None):
        parser.error("--things N and --archives FOLDER go together")
    subjects = (
        [of_kind(kind) for kind in KINDS[: options.objects]]
        if options.things is None
        else [of_thing(thing, options.archives.expanduser()) for thing in held_out(options.things)]
    )
    rows, strips = [], []
    for way in ("image", *(["named"] if options.named else []), *(["text"] if options.text else [])):
        for subject in subjects:
            if way != "image" and not is_known(subject.prompt):
                print(f"{subject.title} from {way}: left out, for the bundled priors do not know it")
                continue
            made = make(subject, way, options.output, dict(options.overrides))
            rows.append(made)
            strips.append(folder_of(subject, way, options.output) / "strip.png")
            print(
                f"{subject.title} from {way}: IoU {made['iou']:.3f}, PSNR {made['psnr']:.1f} dB", flush=True
            )
            # Rewritten after each asset, so that an interrupted run still leaves its figures.
            (options.output / "results.md").write_text(table(rows) + "\n")
            draw_sheet(strips, options.output / "sheet.png")
    print(table(rows))


def is_known(prompt: str) -> bool:
    """Tell whether a bundled prior knows what a caption names, and not only a related object."""
    known = of_prior(prior_for([prompt]))
    name = known and (kind_of(prompt, known) or object_of(prompt, known))
    return bool(name) and prompt.endswith(f" {name}")


def draw_sheet(strips: list[Path], path: Path) -> None:
    pictures = [Image.open(strip) for strip in strips]
    width, height = pictures[0].size
    columns = min(3, len(pictures))
    sheet = Image.new("RGB", (columns * (width + 8), -(-len(pictures) // columns) * (height + 8)), "white")
    for number, one in enumerate(pictures):
        sheet.paste(one, (number % columns * (width + 8), number // columns * (height + 8)))
    sheet.save(path)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")

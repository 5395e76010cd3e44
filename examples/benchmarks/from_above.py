"""Benchmark of pictures from above and below: what the novel-view model draws of them, and the assets made from them.

Objects of held-out pairs of colour and kind, each in one picture from each elevation, which the model is told. The picture is
cut out, centred and scaled as any user's is, and the ground truth is moved and scaled accordingly. The silhouettes of eight
views that the model draws at 25 degrees are compared with the true ones, before any distillation.
    python examples/benchmarks/from_above.py                                       # the bundled model
    python examples/benchmarks/from_above.py --novel-view FOLDER --elevations 85 90 --objects brown-mug
    python examples/benchmarks/from_above.py --assets --output ~/from_above        # also three assets, in from_above.jpg
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pictured import (
    AZIMUTH_DEG,
    PICTURE,
    SHAPE,
    VIEWS,
    framed,
    measure,
    photograph,
    save_photograph,
    the_camera,
)
from PIL import Image
from torch import Tensor

from distill.conditions.cutout import frame_of, over_white, without_background
from distill.conditions.framing import settled
from distill.conditions.picture import EMBEDDED
from distill.conditions.start import LEVEL_DEG, ring
from distill.lab.novel_view.render import Surface, from_world
from distill.loop import train
from distill.priors.novel_view.elevation import silhouettes
from distill.priors.novel_view.pipeline import NovelViewPipeline
from distill.priors.novel_view.pose import relative_cameras
from distill.run.assembly.assemble import assemble
from distill.run.assembly.scenes import look
from distill.run.config.compose import compose_config
from distill.run.config.overrides import as_overrides
from distill.silhouettes import silhouette_iou
from distill.viewing import DISTANCE, FOV_Y_DEG

OBJECTS = ("brown-mug", "purple-car", "red-duck", "purple-chair")
ELEVATIONS = (20.0, 60.0, 75.0, 85.0, 90.0, -75.0, -90.0)
#: Objects and elevations of the assets, and which of the eight views are shown of them.
ASSETS = (("brown-mug", 85.0), ("purple-car", 90.0), ("brown-mug", -90.0))
SHOWN = (0, 2, 5)
#: Share of the picture that the cut-out object takes: ``reference.fill``.
FILL = 0.6
AROUND = ring(AZIMUTH_DEG, LEVEL_DEG, VIEWS, DISTANCE, FOV_Y_DEG)


def white(rgba: Tensor) -> Tensor:
    """Pictures ``[n, 4, h, w]`` over white, ``[n, 3, h, w]``."""
    return rgba[:, :3] * rgba[:, 3:] + 1 - rgba[:, 3:]


def taken(pipeline: NovelViewPipeline, name: str, elevation_deg: float, path: Path) -> tuple[Tensor, Surface]:
    """Photograph an object; returns the picture as the model is given it, ``[3, size, size]``, and the truth that fits it."""
    surface, camera = from_world(f"{name}-{SHAPE}", 1), the_camera(elevation_deg)
    save_photograph(surface, camera, path)
    image = without_background(path)
    frame = frame_of(np.asarray(image.getchannel("A")), str(path), FILL)
    frame = settled(pipeline, image, frame, FILL)
    return over_white(image, frame, pipeline.size).rgb, framed(surface, frame, PICTURE, camera)


@torch.no_grad()
def drawn(pipeline: NovelViewPipeline, rgb: Tensor, elevation_deg: float, steps: int) -> Tensor:
    """The model's eight views, shape ``[8, 3, size, size]``."""
    pose = relative_cameras(the_camera(elevation_deg), AROUND)
    return pipeline(rgb, pose, generator=torch.Generator().manual_seed(0), steps=steps, scale=2.0)


def views_of(pipeline: NovelViewPipeline, name: str, elevation_deg: float, folder: Path) -> dict[str, float]:
    """Mean IoU and PSNR of the model's views with the true ones."""
    rgb, surface = taken(pipeline, name, elevation_deg, folder / f"{name}{elevation_deg:g}.png")
    true = photograph(surface, AROUND, pipeline.size)
    views = drawn(pipeline, rgb, elevation_deg, steps=16)
    iou = silhouette_iou(silhouettes(views)[:, 0] > 0.5, true[:, 3] > 0.5).mean().item()
    psnr = (-10 * (views - white(true)).square().mean((1, 2, 3)).log10()).mean().item()
    return {"iou": iou, "psnr": psnr}


def table(found: dict[str, dict[str, dict[str, float]]], figure: str, digits: int) -> str:
    """Markdown: a line for each object, then the means."""
    heights = list(next(iter(found.values())))
    rows = {name: [values[height][figure] for height in heights] for name, values in found.items()}
    rows["**mean**"] = [sum(column) / len(column) for column in zip(*rows.values(), strict=True)]
    lines = [
        f"| picture from | {' | '.join(f'{height}°' for height in heights)} |",
        "|---" * (len(heights) + 1) + "|",
    ]
    lines += [
        f"| {name} | {' | '.join(f'{one:.{digits}f}' for one in values)} |" for name, values in rows.items()
    ]
    return "\n".join(lines)


def asset_of(
    pipeline: NovelViewPipeline, novel_view: Path, name: str, elevation_deg: float, folder: Path
) -> tuple[dict[str, Any], Tensor]:
    """Make an asset, its elevation given; returns its figures, and the picture and three views: true, drawn, the asset's."""
    path = folder / f"{name}{elevation_deg:g}.png"
    rgb, surface = taken(pipeline, name, elevation_deg, path)
    # The settings of the bundled model, for any folder.
    given = {"image": str(path), "novel_view": str(novel_view), "preset": "embedded_image", "seed": 0}
    given["reference.azimuth_deg"] = AZIMUTH_DEG
    job = assemble(compose_config(as_overrides(given | {"reference.elevation_deg": elevation_deg})))
    train(job)
    view = look(job.scenes[0], job.prior.device)
    three = AROUND[torch.tensor(SHOWN)]
    samples = drawn(pipeline, rgb, elevation_deg, steps=25)[list(SHOWN)]
    small = torch.cat([rgb[None], samples])
    large = torch.nn.functional.interpolate(small, (128, 128), mode="bicubic").clamp(0, 1)
    own = view(three, 128, 128).rgb.detach().cpu().movedim(-1, 1).clamp(0, 1)
    row = [large[:1], white(photograph(surface, three, 128)), large[1:], own]
    return measure(view, surface), torch.cat(list(torch.cat(row)), 2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("from_above"))
    parser.add_argument("--novel-view", type=Path, default=EMBEDDED, help="folder of the model")
    parser.add_argument("--objects", nargs="+", default=list(OBJECTS), metavar="COLOUR-KIND")
    parser.add_argument("--elevations", nargs="+", type=float, default=list(ELEVATIONS), metavar="DEGREES")
    parser.add_argument("--assets", action="store_true", help="also make three assets, and draw them")
    options = parser.parse_args()
    pipeline = NovelViewPipeline.load(options.novel_view.expanduser())
    folder = options.output.expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in options.objects:
        found[name] = {}
        for height in options.elevations:
            found[name][f"{height:g}"] = one = views_of(pipeline, name, height, folder)
            print(f"{name} from {height:g}: IoU {one['iou']:.3f}, PSNR {one['psnr']:.1f} dB", flush=True)
    (folder / "views.json").write_text(json.dumps(found, indent=1) + "\n")
    print(table(found, "iou", 3), table(found, "psnr", 1), sep="\n\n")
    if not options.assets:
        return
    rows = []
    for name, height in ASSETS:
        made, row = asset_of(pipeline, options.novel_view.expanduser(), name, height, folder)
        print(
            f"asset of {name} from {height:g}: IoU {made['iou']:.3f}, PSNR {made['psnr']:.1f} dB", flush=True
        )
        rows.append(row)
        sheet = (torch.cat(rows, 1).movedim(0, -1) * 255).round().byte().numpy()
        Image.fromarray(sheet).save(folder / "from_above.jpg", quality=92)


if __name__ == "__main__":
    main()

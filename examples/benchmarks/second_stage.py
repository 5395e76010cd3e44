"""Benchmark of the second stage: sixteen prompts of the embedded world, or real objects, each as a field and then as a surface.

The prompts are those of quality.py. For each, a run of a field is the beginning of a run of a surface (``init=``, ``scene=sdf``). The
metrics are the judge's R-precision at 1 and the silhouette IoU with the truth, of the field, the surface and both of their exported
meshes; how alike the two scenes are where one becomes the other; and the PSNR of each mesh with its scene's own pictures. A mesh is read
from its GLB and drawn by a ray caster of another library. An interrupted run continues when started again.

    python examples/benchmarks/second_stage.py --output ~/second-stage
    python examples/benchmarks/second_stage.py --output ~/second-stage --prompts 4 --set iterations=200
    python examples/benchmarks/second_stage.py --output ~/second-stage-things --things 38 --archives ~/things
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from glb import view_of
from measuring import finished
from measuring import table as format_table
from quality import PROMPTS, THINGS, mean, measure, measured_with, parse_value, save_strip
from quality import SIZE as FINE

import distill
from distill.cameras import turntable
from distill.contracts import View
from distill.lab.truth import ELEVATION_DEG, VIEWS, Source, check, judge_of

Made = dict[str, Any]
#: Pixels of the pictures in which a mesh and its scene are compared.
SIZE = 96
#: Figures of a row: title, stage, key, digits.
FIGURES = (
    ("R-precision@1, field", "field", "r_precision", 3),
    ("surface", "surface", "r_precision", 3),
    ("its mesh", "field", "mesh_r_precision", 3),
    ("mesh of the surface", "surface", "mesh_r_precision", 3),
    ("IoU, field", "field", "iou", 3),
    ("surface", "surface", "iou", 3),
    ("its mesh", "field", "mesh_iou", 3),
    ("mesh of the surface", "surface", "mesh_iou", 3),
    ("conversion, IoU", "surface", "conversion_iou", 3),
    ("conversion, dB", "surface", "conversion_db", 1),
    ("mesh, dB, field", "field", "mesh_db", 1),
    ("surface", "surface", "mesh_db", 1),
)


def mesh_psnr(path: Path, view: View) -> float:
    """PSNR, in dB, of a mesh's pictures and its scene's, all around at ``ELEVATION_DEG``."""
    cameras = turntable(VIEWS, ELEVATION_DEG)
    own, drawn = (each(cameras, SIZE, SIZE).rgb.detach().cpu().double() for each in (view, view_of(path)))
    return -10 * math.log10(max((drawn - own).square().mean().item(), 1e-10))


def make(
    prompt: str, folder: Path, stage: str, options: Made, generate: Callable[..., Any], source: Source
) -> Made:
    """Make and measure the asset of one stage and its mesh, or read the measurement of an earlier run."""
    result = folder / f"{stage}.json"
    made: Made | None = finished(result, options, measured_with(prompt, source))
    if made is not None:
        return made
    own = folder / stage
    asset = generate(prompt, output_dir=str(own), resume=own.exists(), **({"seed": 0} | options))
    figures, front = measure(asset.view, prompt, source)
    mesh = view_of(own / "mesh.glb")
    save_strip(mesh, front, folder / f"{stage}.png")
    made = {"prompt": prompt, "overrides": options, **figures}
    found, _ = measure(mesh, prompt, source)
    made |= {f"mesh_{name}": found[name] for name in ("r_precision", "iou")}
    made["mesh_db"] = mesh_psnr(own / "mesh.glb", asset.view)
    found = asset.manifest.get("conversion") or {}
    made |= {"conversion_iou": found.get("silhouette_iou"), "conversion_db": found.get("psnr_db")}
    result.write_text(json.dumps(made, indent=1) + "\n")
    return made


def both(prompt: str, folder: Path, options: Made, surface: Made, source: Source) -> dict[str, Made]:
    """Make a field and its surface."""
    folder.mkdir(parents=True, exist_ok=True)
    field = make(prompt, folder, "field", options, distill.generate, source)
    second = {"init": str(folder / "field"), "scene": "sdf", **surface}
    return {"field": field, "surface": make(prompt, folder, "surface", second, distill.generate, source)}


def table(rows: list[dict[str, Made]]) -> str:
    """Markdown: a line for each prompt, and the means."""

    def cells(of: list[dict[str, Made]]) -> list[str]:
        return [f"{mean([row[stage] for row in of], key):.{digits}f}" for _, stage, key, digits in FIGURES]

    lines = [[row["field"]["prompt"], *cells([row])] for row in rows]
    return format_table(
        ["prompt", *(title for title, *_ in FIGURES)], [*lines, [f"**mean of {len(rows)}**", *cells(rows)]]
    )


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("second-stage"))
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), help="only the first so many")
    parser.add_argument(
        "--things", type=int, metavar="N", help=f"the first N of {len(THINGS)} real objects instead"
    )
    parser.add_argument("--archives", type=Path, help="folder of the things' archives, for their true meshes")
    parser.add_argument("--pack", type=Path, help="folder of their pictures, where there are no archives")
    parser.add_argument("--judge", type=Path, help="folder of another judge than the bundled one")
    for name, what in (("--set", "fields"), ("--surface", "surfaces")):
        parser.add_argument(
            name, type=parse_value, nargs="*", default=[], metavar="KEY=VALUE", help=f"options of the {what}"
        )
    options = parser.parse_args()
    if wrong := [key for key, _ in [*options.set, *options.surface] if key.startswith("export.")]:
        parser.error(f"the meshes are measured as they are exported by default; leave out {', '.join(wrong)}")
    if not 1 <= options.prompts <= len(PROMPTS):
        parser.error(f"--prompts is 1 to {len(PROMPTS)}, got {options.prompts}")
    if options.things is not None and not 1 <= options.things <= len(THINGS):
        parser.error(f"--things is 1 to {len(THINGS)}, got {options.things}")
    if (options.things is None) != (options.archives is None and options.pack is None):
        parser.error("--things needs --archives or --pack, and these are for --things")
    return options


def main() -> None:
    options = parse_options()
    surface = {"iterations": 100, "timesteps.t_max": 0.5} | dict(options.surface)
    prompts = PROMPTS[: options.prompts] if options.things is None else THINGS[: options.things]
    source = Source(options.archives, options.pack, size=FINE, fine=FINE, judge=options.judge)
    check(prompts, source, judge_of(source, prompts))
    rows = []
    for prompt in prompts:
        folder = options.output / prompt.replace(" ", "-")
        rows.append(both(prompt, folder, dict(options.set), surface, source))
        # Rewritten after each prompt, so that an interrupted run still leaves its figures.
        (options.output / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
        (options.output / "results.md").write_text(table(rows) + "\n")
        print(table(rows[-1:]).splitlines()[-2], flush=True)
    print(table(rows))


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")

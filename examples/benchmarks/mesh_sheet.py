"""Sheet of exported meshes: four sides of each asset that quality.py made, beside the true object, with the figures of the mesh.

An asset without a mesh is exported first: ``distill export FOLDER/PROMPT/asset``.

    python examples/benchmarks/mesh_sheet.py ~/quality-things --archives ~/things --sheet meshes.png
    python examples/benchmarks/mesh_sheet.py ~/quality-things --archives ~/things --prompts "a hamburger" "a yellow kettle"
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from glb import view_of
from quality import SIZE, draw_sheet, measure, save_strip, shown

from distill.lab.truth import Source, check, judge_of


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of quality.py's --output")
    parser.add_argument("--prompts", nargs="+", help="only these, in this order; all by default")
    parser.add_argument("--archives", type=Path, help="folder of the things' archives, for their true meshes")
    parser.add_argument("--sheet", type=Path, default=Path("meshes.png"), help="the picture")
    return parser.parse_args()


def assets(folder: Path, prompts: list[str] | None) -> list[Path]:
    """Find the folders of the assets, each with its measurement and its mesh.

    Raises:
        ValueError: one lacks either, in one line.
    """
    results = folder / "results.json"
    if prompts is None:
        if not results.exists():
            raise ValueError(f"expected a folder that quality.py wrote, with results.json, got {folder}")
        prompts = [row["prompt"] for row in json.loads(results.read_text())]
    found = [folder / prompt.replace(" ", "-") for prompt in prompts]
    for asset in found:
        if not (asset / "quality.json").exists():
            raise ValueError(f"expected an asset that quality.py measured in {asset}, got none")
        if not (asset / "asset" / "mesh.glb").exists():
            raise ValueError(f"{asset / 'asset'} has no mesh.glb; distill export {asset / 'asset'} makes it")
    return found


def main() -> None:
    options = parse_options()
    if not options.sheet.parent.is_dir():
        raise ValueError(
            f"--sheet: the folder {options.sheet.parent} is not there; make it, or choose another"
        )
    source = Source(options.archives, size=SIZE, fine=SIZE)
    rows, strips = [], []
    folders = assets(options.folder, options.prompts)
    made = [json.loads((folder / "quality.json").read_text()) for folder in folders]
    prompts = [row["prompt"] for row in made]
    check(prompts, source, judge_of(source, prompts))
    for folder, row in zip(folders, made, strict=True):
        view = view_of(folder / "asset" / "mesh.glb")
        figures, front = measure(view, row["prompt"], source)
        rows.append(row | figures)
        strips.append(folder / "mesh.png")
        save_strip(view, front, strips[-1])
        said = f"R-precision {shown(rows[-1:], 'r_precision')}, IoU {shown(rows[-1:], 'iou')}"
        print(f"{row['prompt']}: {said}", flush=True)
    draw_sheet(rows, strips, options.sheet)
    print(f"the sheet is in {options.sheet}")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")

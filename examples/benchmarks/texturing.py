"""Benchmark of texturing: the embedded world's sixteen kinds as meshes, each in a colour that is not its own.

Each mesh is written as GLB in one colour and textured after a prompt that says another; beside it, a NeRF of the same prompt is made
in as many steps. The metrics are the judge's R-precision at 1 over eight views, the distance of the mean colour from the true
object's, and the seconds from prompt to files. An interrupted run continues when started again; an asset that was interrupted halfway
is finished but not timed.

    python examples/benchmarks/texturing.py --output ~/texturing --set iterations=200
    python examples/benchmarks/texturing.py --output ~/texturing --kinds chair mug --without-nerf
    python examples/benchmarks/texturing.py --output ~/real --meshes ~/furniture --prompt "a red chair" --set iterations=20

With --meshes, every mesh in a folder is loaded, textured, exported and read back instead; with node and gltf-validator, its file is
validated, too.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from measuring import finished
from measuring import table as format_table
from quality import KINDS, SIZE, mean, measured_with, parse_value, save_strip

import distill
from distill.cameras import turntable
from distill.contracts import View
from distill.embedded import shapes, world
from distill.embedded.judge import r_precision
from distill.lab.truth import ELEVATION_DEG, VIEWS, asked, best_shape, judge_of, matches, truths
from distill.meshes.read import USUAL, read_surface

#: Of the world's axes, z up and front +x, to those of GLB.
TO_GLB = np.array([[0.0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
VALIDATOR = Path(__file__).parents[2] / "tests" / "validate_gltf.js"
Made = dict[str, Any]


def pairs() -> dict[str, tuple[str, str]]:
    """Return for each kind the colour that is asked for, and another that its mesh has: each colour asked for twice."""
    colours = list(world.COLOURS)
    return {
        kind: (colours[number % len(colours)], colours[(number + 3) % len(colours)])
        for number, kind in enumerate(shapes.KINDS)
    }


def write_mesh(kind: str, colour: str, path: Path) -> Path:
    """Write a kind's true mesh in a colour."""
    mesh = world.mesh(f"{colour} {kind}").apply_transform(TO_GLB)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(trimesh.Scene(mesh).export(file_type="glb"))
    return path


def measure(view: View, prompt: str) -> Made:
    """R-precision at 1 over eight views, silhouette IoU, and the mean colour's distance from the true object's."""
    seen = view(turntable(VIEWS, ELEVATION_DEG), SIZE, SIZE)
    rgb, opacity = (x.detach().cpu().movedim(-1, 1) for x in (seen.rgb, seen.opacity))
    best = best_shape(matches(view, truths(prompt, KINDS), rgb, opacity))
    return {
        "r_precision": r_precision(judge_of(KINDS, [prompt]), rgb, asked(prompt, KINDS).caption),
        "iou": best.iou,
        "colour_error": best.colour_error,
        **measured_with(prompt, KINDS),
    }


def make(
    prompt: str, folder: Path, options: Mapping[str, Any], generate: Callable[..., Any] = distill.generate
) -> Made:
    """Make and measure one asset, or read the measurement of an earlier run, if the judge is the same."""
    result = folder / "texturing.json"
    overrides = dict(options)
    made: Made | None = finished(result, overrides, measured_with(prompt, KINDS))
    if made is not None:
        return made
    resumed = (folder / "asset").exists()
    start = time.perf_counter()
    asset = generate(prompt, output_dir=str(folder / "asset"), resume=resumed, **({"seed": 0} | overrides))
    before = json.loads(result.read_text()) if resumed and result.exists() else {}
    seconds = before.get("seconds") if resumed else time.perf_counter() - start
    folder.mkdir(parents=True, exist_ok=True)
    (true,) = truths(prompt, KINDS)
    save_strip(asset.view, true.rgb[0], folder / "strip.png")
    made = {"prompt": prompt, "seconds": seconds, "overrides": overrides, **measure(asset.view, prompt)}
    made["train_seconds"] = before.get("train_seconds") if resumed else asset.manifest["seconds"]["train"]
    result.write_text(json.dumps(made, indent=1) + "\n")
    return made


#: A row's figures: title, key and digits.
FIGURES = (
    ("R-precision@1", "r_precision", 3),
    ("colour error", "colour_error", 3),
    ("IoU", "iou", 3),
    ("seconds", "seconds", 0),
)


def table(rows: Mapping[str, Mapping[str, Made]]) -> str:
    """Markdown: a line for each kind, the mesh's figures and then the NeRF's, and their means."""
    ways = list(dict.fromkeys(way for row in rows.values() for way in row))
    titles = ["prompt", *(f"{title}, {way}" for title, _, _ in FIGURES for way in ways)]

    def cells(of: Mapping[str, list[Made]]) -> list[str]:
        return [
            f"{mean(of[way], key):.{digits}f}"
            if way in of and any(made[key] is not None for made in of[way])
            else "-"
            for _, key, digits in FIGURES
            for way in ways
        ]

    lines = [
        [next(iter(row.values()))["prompt"], *cells({way: [made] for way, made in row.items()})]
        for row in rows.values()
    ]
    every = {way: [row[way] for row in rows.values() if way in row] for way in ways}
    return format_table(titles, [*lines, [f"**mean of {len(rows)}**", *cells(every)]])


def run_kinds(options: argparse.Namespace) -> None:
    rows: dict[str, dict[str, Made]] = {}
    for kind in options.kinds:
        colour, other = pairs()[kind]
        prompt, folder = world.caption(colour, kind), options.output / kind
        mesh = write_mesh(kind, other, folder / "mesh.glb")
        ways: dict[str, dict[str, Any]] = {"mesh": {"mesh.file": str(mesh)}, "nerf": {}}
        if options.without_nerf:
            del ways["nerf"]
        rows[kind] = {
            way: make(prompt, folder / way, own | dict(options.overrides)) for way, own in ways.items()
        }
        print(
            f"{prompt}: "
            + "; ".join(f"{way} R {made['r_precision']:.3f}" for way, made in rows[kind].items()),
            flush=True,
        )
        # Rewritten after each, so that an interrupted run still leaves its figures.
        (options.output / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
        (options.output / "results.md").write_text(table(rows) + "\n")
    print(table(rows))


def validate(path: Path) -> str:
    """Return what the Khronos validator finds in a file, ``not validated`` where it is not installed."""
    environment = os.environ | {
        "NODE_PATH": os.environ.get("NODE_PATH", str(VALIDATOR.parent / "node_modules"))
    }
    if shutil.which("node") is None:
        return "not validated"
    done = subprocess.run(
        ["node", str(VALIDATOR), str(path)], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        return "not validated"
    report = json.loads(done.stdout)
    return f"{report['numErrors']} errors, {report['numWarnings']} warnings"


def try_mesh(path: Path, prompt: str, folder: Path, options: Mapping[str, Any]) -> Made:
    """Load, texture, export and read back one mesh; what fails is said."""
    result = folder / "texturing.json"
    made: Made | None = finished(result, dict(options))
    if made is not None:
        return made
    made = {
        "file": path.name,
        "overrides": dict(options),
        "faces": None,
        "own_uv": None,
        "seconds": None,
        "validator": "-",
    }
    start = time.perf_counter()
    try:
        asset = distill.generate(
            prompt,
            output_dir=str(folder / "asset"),
            resume=(folder / "asset").exists(),
            mesh=str(path),
            **options,
        )
        read = {"up": "auto", "front": "auto", "keep": [], "init_texture": False}
        before, after = (
            read_surface({"file": str(file), **read}) for file in (path, folder / "asset" / "mesh.glb")
        )
        whole = len(before.faces) == len(after.faces) and np.isclose(
            before.areas().sum(), after.areas().sum(), rtol=1e-4
        )
        exported = asset.manifest["export"]
        made |= {
            "faces": len(before.faces),
            "own_uv": exported["own_uv"],
            "seconds": time.perf_counter() - start,
        }
        made |= {
            "outcome": "fine" if whole else "another shape came back",
            "validator": validate(folder / "asset" / "mesh.glb"),
        }
    except (ValueError, RuntimeError) as error:
        made["outcome"] = " ".join(str(error).split())
    folder.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps(made, indent=1) + "\n")
    return made


def run_meshes(options: argparse.Namespace) -> None:
    paths = sorted(path for path in options.meshes.rglob("*") if path.suffix.lower() in USUAL)
    if not paths:
        raise ValueError(
            f"--meshes must be a folder with {', '.join(USUAL)} files, and {options.meshes} has none"
        )
    rows = []
    for path in paths:
        name = "-".join(path.relative_to(options.meshes).with_suffix("").parts) + path.suffix.replace(
            ".", "-"
        )
        rows.append(try_mesh(path, options.prompt, options.output / name, dict(options.overrides)))
        print(f"{path}: {rows[-1]['outcome']}", flush=True)
        (options.output / "meshes.json").write_text(json.dumps(rows, indent=1) + "\n")
        (options.output / "meshes.md").write_text(table_of_meshes(rows) + "\n")
    print(table_of_meshes(rows))


def table_of_meshes(rows: list[Made]) -> str:
    """Markdown: a line for each file."""
    keys = ("file", "faces", "own_uv", "seconds", "validator", "outcome")

    def shown(value: object) -> str:
        return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)

    return format_table(
        [key.replace("_", " ") for key in keys], [[shown(row[key]) for key in keys] for row in rows]
    )


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("texturing"))
    parser.add_argument(
        "--kinds", nargs="+", default=list(shapes.KINDS), choices=list(shapes.KINDS), metavar="KIND"
    )
    parser.add_argument("--without-nerf", action="store_true", help="only the meshes")
    parser.add_argument("--meshes", type=Path, metavar="FOLDER", help="try every mesh in a folder instead")
    parser.add_argument("--prompt", default="a red chair", help="of --meshes")
    parser.add_argument(
        "--set", type=parse_value, nargs="*", default=[], metavar="KEY=VALUE", dest="overrides"
    )
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    options.output.mkdir(parents=True, exist_ok=True)
    (run_meshes if options.meshes else run_kinds)(options)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")

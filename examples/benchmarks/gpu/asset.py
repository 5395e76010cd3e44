"""The main job: an asset from a prompt with the embedded prior, its time and its quality."""

from __future__ import annotations

import importlib.util
import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from quality import measure
from record import Record

import distill
from distill.asset import Asset
from distill.export.colours import paint_of
from distill.export.files import save_mesh
from distill.export.mesh import extract_mesh
from distill.export.pictures import write_contact_sheet
from distill.export.texture import bake_texture, colour_vertices
from distill.run.config.compose import compose_config
from distill.run.config.overrides import as_overrides

PROMPT = "a red mug"


def export(asset: Asset, folder: Path, device: torch.device, options: Any) -> None:
    """All that a run exports but the video, for which ffmpeg must be there."""
    write_contact_sheet(asset.view, folder / "contact.png", size=options.picture_size)
    query = asset.scene.field()
    assert query is not None
    mesh = extract_mesh(query, asset.view, resolution=options.resolution, faces=options.faces, device=device)
    paint = paint_of(query, asset.view, device=device)
    save_mesh(bake_texture(mesh, paint, size=options.texture_size), folder / "mesh.glb")
    save_mesh(colour_vertices(mesh, paint), folder / "mesh.ply")


def make(prompt: str, folder: Path, device: torch.device, overrides: dict[str, Any]) -> dict[str, Any]:
    """One asset, its seconds and its figures."""
    shutil.rmtree(folder, ignore_errors=True)
    video = importlib.util.find_spec("imageio_ffmpeg") is not None
    given = {"seed": 0, "device": str(device), "export.enabled": video, **overrides}
    options = compose_config(as_overrides({"prompt": prompt, **given})).export
    started = time.perf_counter()
    asset = distill.generate(prompt, output_dir=str(folder), **given)
    trained = time.perf_counter()
    if not video:
        export(asset, folder, device, options)
    ended = time.perf_counter()
    seconds = asset.manifest["seconds"]
    lines = [json.loads(line)["seconds"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "prompt": prompt,
        "seconds": ended - started,
        "loading": seconds["load"],
        "training": seconds["train"],
        "export": seconds["export"] if video else ended - trained,
        "video": "yes" if video else "no",
        "it/s": len(lines) / seconds["train"],
        "it/s at the end": 1 / statistics.median(lines[len(lines) // 2 :]),
        **{name: value for name, value in measured(asset, prompt).items() if name != "true_r_precision"},
    }


def measured(asset: Asset, prompt: str) -> dict[str, Any]:
    found, _ = measure(asset.view, prompt)
    return {name: found[name] for name in ("r_precision", "true_r_precision", "iou", "azimuth_offset_deg")}


def run(record: Record, work: Path, output: Path, device: torch.device, dry: bool) -> None:
    """The same prompt in a new process, again, and with the prior's kernels launched one by one."""
    small = {"iterations": 4, "render.size": 16, "render.batch": 1, "export.resolution": 24, "export.texture_size": 64,
             "export.picture_size": 32, "export.frames": 2}  # fmt: skip
    runs: list[tuple[str, dict[str, Any]]] = [("in a new process", {})]
    if not dry:
        runs += [("again", {}), ("again, without CUDA graphs", {"prior_options.graphs": False})]
    for number, (when, overrides) in enumerate(runs):
        folder = work / f"asset-{number}"
        made = make(PROMPT, folder, device, {**overrides, **(small if dry else {})})
        record.row("Assets", {"when": when, **made})
        if number == 0:
            shutil.copy(folder / "contact.png", output / "red-mug.png")
            shutil.copy(folder / "mesh.glb", output / "red-mug.glb")

"""What made an asset, and the sums of its files."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from distill.conditions.picture import folder_of_model
from distill.contracts import Prior
from distill.files.atomic import sha256, write_atomic
from distill.priors.source import Source


def describe(config: DictConfig, prior: Prior) -> dict[str, Any]:
    """What made an asset: enough to make it again."""
    packages = (
        "distill3d",
        "torch",
        "diffusers",
        "transformers",
        "nerfacc",
        "warp-lang",
        "trimesh",
        "xatlas",
    )
    source: Source | None = getattr(prior, "source", None)
    if config.image and not config.prompt:
        source = Source(folder_of_model(config.novel_view), config.novel_view)
    device = (
        torch.cuda.get_device_name(prior.device)
        if prior.device.type == "cuda"
        else platform.processor() or platform.machine()
    )
    return {
        "prompt": config.prompt,
        "seed": config.seed,
        "iterations": config.iterations,
        "guidance": str(config.guidance._target_).rpartition(".")[2].lower(),
        "prior": describe_source(source) if source else {"name": config.prior, "sha256": {}},
        "loras": [lora.describe() for lora in getattr(prior, "loras", ())],
        "controlnet": describe_control(config, prior),
        "device": f"{prior.device.type} ({device})",
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
    }


def describe_source(source: Source) -> dict[str, Any]:
    """Where a model is from: its commit on the hub, or the sums of its files."""
    said = {name: value for name, value in vars(source).items() if value and name != "folder"}
    root, files = source.folder, () if source.revision else source.folder.rglob("*.safetensors")
    return {**said, "sha256": {str(path.relative_to(root)): sha256(path) for path in sorted(files)}}


def describe_control(config: DictConfig, prior: Any) -> dict[str, Any] | None:
    """The prior's ControlNet and what it was shown, or None where it has none."""
    control = getattr(prior, "control", None)
    if control is None:
        return None
    shown = config.prior_options.control
    return {**describe_source(control.source), "scale": control.scale, "shown": shown}


def finish(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest, then the report, which marks the run as finished."""
    from distill.export.report import write_report

    made = [*folder.iterdir(), *folder.glob("term-*/*")]
    files = [p for p in sorted(made) if p.is_file() and p.name not in ("manifest.json", "report.html")]
    manifest["files"] = {
        str(p.relative_to(folder)): {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in files
    }
    write_atomic(folder / "manifest.json", json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    write_report(folder)

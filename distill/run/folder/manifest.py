"""The manifest of an asset: settings, versions, and checksums of its files."""

from __future__ import annotations

import importlib.metadata
import logging
import platform
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_object
from omegaconf import DictConfig

from distill.conditions.prompts import asked
from distill.export import thumbnail
from distill.export.report import write_report
from distill.files.atomic import sha256, write_atomic
from distill.files.lines import json_of
from distill.files.lock import NAME as LOCK
from distill.files.paths import user_path
from distill.job import Job

log = logging.getLogger(__name__)


def describe(config: DictConfig, job: Job) -> dict[str, Any]:
    """Return what made an asset: enough to make it again."""
    packages = (
        "distill3d", "torch", "diffusers", "transformers", "nerfacc", "warp-lang", "trimesh", "xatlas",
    )  # fmt: skip
    device = job.prior.device
    hardware = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.processor() or platform.machine()
    )
    said = {
        "prompt": config.prompt,
        "seed": config.seed,
        "iterations": config.iterations,
        "guidance": get_object(config.guidance._target_).__name__.lower(),
        "prior": {"name": config.prior, "sha256": {}},
        "loras": [],
        "controlnet": None,
        "vae": None,
        "embeddings": [],
        **job.prior.describe(),
        "device": f"{device.type} ({hardware})",
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
        "skipped_steps": job.state.skipped,
        "code": dict(job.state.code),
    }
    if (caption := asked(job.prior, config.prompt)) != config.prompt:
        said["asked"] = caption
    if said["controlnet"]:
        said["controlnet"]["shown"] = config.prior_options.control
    if job.picture:
        said["picture"] = job.picture.describe()
    if job.conversion:
        said["conversion"] = {"init": config.init, **job.conversion}
    if config.mesh.file:
        mesh = user_path(config.mesh.file)
        said["mesh"] = {"file": mesh.name, "sha256": sha256(mesh), "kept": list(config.mesh.keep)}
    return said


def outline(config: DictConfig, job: Job) -> dict[str, Any]:
    """What made an asset, of a run that has failed; its settings alone where a part cannot be described any more."""
    try:
        return describe(config, job)
    except Exception as error:  # whatever it is, how the run failed comes first
        log.debug("the run's parts cannot be described: %s", error)
        return {"prompt": config.prompt, "seed": config.seed, "iterations": config.iterations}


def finish(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the thumbnail and the manifest, then the report, which marks the run as finished."""
    if picture := thumbnail.draw(folder):
        write_atomic(folder / thumbnail.NAME, picture)
    made = [*folder.iterdir(), *folder.glob("term-*/*")]
    files = [p for p in sorted(made) if p.is_file() and p.name not in ("manifest.json", "report.html", LOCK)]
    manifest["files"] = {
        str(p.relative_to(folder)): {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in files
    }
    write_atomic(folder / "manifest.json", json_of(manifest, indent=2, ensure_ascii=False))
    write_report(folder)

"""Can this machine run distill: its devices, backends, disks and ffmpeg, and whether a step works."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig

from distill.files.paths import nearest, user_path
from distill.loop import train
from distill.run.assembly.assemble import assemble
from distill.run.config.compose import compose_config

#: Free space that a large run may take, and what the smallest does, bytes.
ROOM, LEAST = 2e9, 20e6


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        name: of it.
        verdict: ``ok``; ``note``, nothing that this run needs; or ``wrong``, with the remedy in ``said``.
        said: in one line.
    """

    name: str
    verdict: str
    said: str


def devices(wanted: str) -> Iterator[Finding]:
    """Check CUDA and its driver."""
    driver = Path("/proc/driver/nvidia/version")
    line = driver.read_text().splitlines()[0] if driver.is_file() else ""
    if not torch.cuda.is_available():
        build = (
            f"torch is built for CUDA {torch.version.cuda}"
            if torch.version.cuda
            else "torch is a build for the CPU"
        )
        there = f"a driver is there ({line})" if line else "no NVIDIA driver"
        yield Finding("cuda", "note", f"not usable: {build}, {there}")
        return
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        arch = f"sm_{about.major}{about.minor}"
        known = torch.cuda.get_arch_list()
        fits = any(runs_on(name, about.major, about.minor) for name in known)
        said = f"{about.name}, {about.total_memory / 1e9:.0f} GB, {arch}, CUDA {torch.version.cuda}; {line}"
        needed = "wrong" if wanted != "cpu" else "note"
        yield Finding(
            f"cuda:{number}",
            "ok" if fits else needed,
            said if fits else f"{said}; this torch has only {known}",
        )


def runs_on(arch: str, major: int, minor: int) -> bool:
    """Return whether kernels built for an architecture, such as ``sm_86``, run on a card of a compute capability.

    Machine code (``sm_``) runs on cards of the same major version and the same or a later minor one, intermediate code
    (``compute_``) on all later cards, and what is for one card alone (``sm_90a``) on that one.

    Source: NVIDIA, CUDA C++ Programming Guide, binary and PTX compatibility.
    """
    sort, _, version = arch.partition("_")
    if not version.isdecimal():
        return version.rstrip("af") == f"{major}{minor}"
    built = divmod(int(version), 10)
    return built <= (major, minor) and (sort == "compute" or built[0] == major)


def backends(device: torch.device | None, chosen: str) -> Iterator[Finding]:
    """Check the backends of the hash grid, of ray marching and of attention."""
    on_gpu = device is not None and device.type == "cuda"
    try:
        import warp

        yield Finding("warp", "ok", f"{warp.__version__}: hash grid and ray marching")
    except ImportError as error:
        yield Finding("warp", "wrong", f"not importable ({error}); pip install warp-lang")
    there = importlib.util.find_spec("tinycudann") is not None
    usable = there and on_gpu
    why = (
        "usable"
        if usable
        else "installed, but it needs CUDA"
        if there
        else "not installed; optional, needs CUDA and a build"
    )
    yield Finding("tinycudann", "ok" if usable else "wrong" if chosen == "tinycudann" else "note", why)
    yield Finding("nerfacc", "ok", f"{importlib.metadata.version('nerfacc')}: occupancy; Warp marches")
    yield Finding("attention", "ok", "torch's scaled_dot_product_attention; xformers is not needed")


def places(config: DictConfig) -> Iterator[Finding]:
    """Check the disk space for results and models."""
    from huggingface_hub import constants

    from distill.priors.text import cache_folder

    for name, folder in (
        ("results", Path(config.output_dir or "outputs")),
        ("embeddings", cache_folder()),
        ("hub cache", Path(constants.HF_HUB_CACHE)),
    ):
        try:
            free = shutil.disk_usage(nearest(user_path(folder))).free
        except ValueError:
            continue  # told where a run's inputs are looked at
        said = f"{folder}: {free / 1e9:.1f} GB free"
        if name == "results" and free < ROOM:
            verdict = "note" if free > LEAST else "wrong"
            yield Finding(name, verdict, f"{said}; a large run wants 2 GB, choose another output_dir=")
        else:
            yield Finding(name, "ok", said)


def ffmpeg(needed: bool) -> Finding:
    """Check for ffmpeg, which writes an export's video."""
    try:
        import imageio_ffmpeg

        return Finding("ffmpeg", "ok", str(imageio_ffmpeg.get_ffmpeg_version()))
    except (ImportError, RuntimeError) as error:
        return Finding("ffmpeg", "wrong" if needed else "note", f"{error}; pip install imageio-ffmpeg")


def smoke(device: torch.device) -> Finding:
    """Take a step with the embedded prior on a device."""
    options = [
        "prompt=a red mug",
        "iterations=1",
        "render.size=16",
        "render.batch=1",
        f"device={device.type}",
    ]
    try:
        started = time.perf_counter()
        train(assemble(compose_config(options)))
        return Finding(f"step on {device.type}", "ok", f"{time.perf_counter() - started:.1f} s with loading")
    except Exception as error:  # whatever does not work here is what this is to find
        return Finding(
            f"step on {device.type}", "wrong", f"{type(error).__name__}: {' '.join(str(error).split())}"
        )


def memory() -> int:
    """Return the machine's memory in bytes; 0 if unknown."""
    import os

    names: Callable[[str], int] | None = getattr(os, "sysconf", None)
    return names("SC_PAGE_SIZE") * names("SC_PHYS_PAGES") if names and sys.platform.startswith("linux") else 0

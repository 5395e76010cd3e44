"""What the soak scripts share: a run of a second, started as a process of its own, and a look at what it left."""

from __future__ import annotations

import hashlib
import importlib
import os
import pkgutil
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

#: A whole run of a second or two: few steps of small pictures, a checkpoint at each, and all kinds of exported files.
STEPS = 8
SMALL = [
    f"iterations={STEPS}", "render.size=16", "render.batch=1", "log.checkpoint_every=1", "log.preview_every=3",
    "export.resolution=16", "export.frames=2", "export.picture_size=16", "export.texture_size=64", "scene.levels=4",
    "scene.log2_table_size=10", "device=cpu",
]  # fmt: skip
#: Names of files that are being written.
TORN = re.compile(r"\..+\.tmp|\..+\.part\b.*|\.lock")


def preload() -> None:
    """Import all that a run needs, so that each process that is forked later starts at once."""
    import imageio_ffmpeg  # noqa: F401
    import torch
    import warp  # noqa: F401

    import distill

    for found in pkgutil.walk_packages(distill.__path__, "distill."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
    torch.set_num_threads(1)


def start(arguments: Sequence[str], log: Path) -> int:
    """Fork a process that does what ``distill`` with these arguments does, its words appended to a file; its id."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    code = 99
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        from distill.cli import main

        main(arguments)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(pid: int, seconds: float | None = None) -> int | None:
    """The exit code of a process, negative for a signal; None if it is still at work after so long."""
    end = time.monotonic() + (1e9 if seconds is None else seconds)
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end:
            return None
        time.sleep(0.002)


def run(arguments: Sequence[str], log: Path) -> int:
    """Do what ``distill`` with these arguments does in a process of its own, and return its exit code."""
    code = wait(start(arguments, log))
    assert code is not None
    return code


def kill(pid: int) -> int:
    """Kill a process of ours at once, and return its exit code."""
    os.kill(pid, signal.SIGKILL)
    code = wait(pid)
    assert code is not None
    return code


def results(folder: Path) -> dict[str, str]:
    """SHA-256 of the files of a finished run that are the same bytes in each run: the scene, its mesh, its pictures."""
    last = folder / "checkpoints" / f"step-{STEPS:06d}"
    wanted = [last / "tensors.safetensors", last / "state.json"]
    wanted += [
        folder / name
        for name in ("mesh.glb", "mesh.obj", "mesh.ply", "mesh.png", "contact.png", "turntable.mp4")
    ]
    wanted += sorted((folder / "previews").iterdir())
    return {path.relative_to(folder).as_posix(): digest(path) for path in wanted}


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def names(folder: Path) -> set[str]:
    """Files below a folder, of which each process adds one for TensorBoard."""
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {name for name in found if "events.out.tfevents" not in name}


def torn(folder: Path) -> list[str]:
    """Files and folders below a folder that are half written."""
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if TORN.fullmatch(path.name)
    )

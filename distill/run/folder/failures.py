"""How a run can fail, and the word of it in the run's manifest."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from distill.files.atomic import write_atomic
from distill.files.errors import line_of
from distill.files.lines import json_of
from distill.files.lock import InUse
from distill.loop import Diverged, OutOfMemory
from distill.run.journal import Interrupted
from distill.run.watchdog import Collapsed

log = logging.getLogger(__name__)


class ExportFailed(RuntimeError):
    """The scene is trained and saved, but no mesh can be made of it."""


class NoSeedFinished(RuntimeError):
    """None of a run's seeds became an asset."""


#: What may happen with one seed and not with the next.
OF_A_SEED = (Collapsed, Diverged, ExportFailed)
#: What a run foresees to fail with, other than for wrong input.
FORESEEN = (*OF_A_SEED, NoSeedFinished, OutOfMemory, OSError)


def state_of(error: BaseException) -> str:
    """``collapsed`` or ``failed``."""
    return "collapsed" if isinstance(error, Collapsed) else "failed"


def note(folder: Path, manifest: Mapping[str, Any], error: BaseException) -> None:
    """Write into a folder's ``manifest.json`` how its run failed, under ``state`` and ``why``; a full disk takes nothing else away.

    A report marks a run as finished, so that of an earlier success is kept as ``report-earlier.html``.
    """
    with contextlib.suppress(OSError):
        (folder / "report.html").replace(folder / "report-earlier.html")
    said = {**exported(folder), **manifest, "state": state_of(error), "why": line_of(error)}
    try:
        write_atomic(folder / "manifest.json", json_of(said, indent=2, ensure_ascii=False))
    except OSError as full:
        log.error("the failure cannot be noted in %s: %s", folder, full.strerror)


def noted(folder: Path) -> dict[str, Any]:
    """A folder's ``manifest.json``; empty where there is none that can be read."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((folder / "manifest.json").read_text("utf-8"))
        if isinstance(found, dict):
            return found
    return {}


def exported(folder: Path) -> dict[str, Any]:
    """What a folder's manifest says of exports of the finished run, under ``exports``; empty where there were none."""
    return {name: value for name, value in noted(folder).items() if name == "exports"}


@contextlib.contextmanager
def noting(config: DictConfig, folder: Path) -> Iterator[None]:
    """Note a failure that nothing within noted, such as one before the training; that a run has collapsed stays noted."""
    before = noted(folder)
    try:
        yield
    except (InUse, Interrupted):
        raise  # what another run is at work on has not failed, nor has what is to be resumed
    except Exception as error:  # a custom part fails in any way
        now = noted(folder)
        if now.get("state") != "collapsed" and not ("state" in now and now != before):
            note(folder, {"prompt": config.prompt, "seed": config.seed}, error)
        raise


def forget(folder: Path) -> None:
    """Remove the word of an earlier failure: the run continues."""
    if "state" in noted(folder):
        (folder / "manifest.json").unlink(missing_ok=True)


def check_collapse(folder: Path) -> None:
    """Refuse to continue with a run that has collapsed: it would do so again.

    Raises:
        Collapsed: it has, with what was said then.
    """
    said = noted(folder)
    if said.get("state") == "collapsed":
        raise Collapsed(str(said.get("why")))

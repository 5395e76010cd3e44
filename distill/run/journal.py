"""Output of a run in progress: metrics, previews, checkpoints, a progress bar."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from distill.cameras import turntable
from distill.contracts import Render, View
from distill.files.atomic import write_atomic
from distill.files.checkpoint import save_checkpoint
from distill.files.lines import json_of
from distill.job import State
from distill.live.desk import Desk
from distill.run.several.stages import ALONE, Place

if TYPE_CHECKING:
    from omegaconf import DictConfig


class Interrupted(Exception):
    """The run stopped on request at the end of a step, with a checkpoint."""


def check_there(folder: Path) -> None:
    """Refuse to write further files of a run whose folder was removed: without its settings, nobody could continue or find it.

    Raises:
        OSError: its ``config.yaml`` is gone.
    """
    if not (folder / "config.yaml").is_file():
        raise OSError(
            f"{folder} was removed, or moved, while the run was at work in it; remove what is left there, and give the same command again to make it "
            "anew"
        )


def seconds_before(path: Path, step: int) -> float:
    """Seconds that the steps before ``step`` took, by the lines of a run's ``metrics.jsonl``; 0 without any."""
    total = 0.0
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            said = json.loads(line)
            total += said["seconds"] if said["step"] < step else 0.0
    return total


def keep_lines_before(path: Path, step: int) -> None:
    """Drop what a resumed run will write again: lines of ``step`` and later, and a torn last line."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(ValueError):
            if json.loads(line)["step"] < step:
                kept.append(line + "\n")
    write_atomic(path, "".join(kept))


class Journal:
    """Called after each step. Writes ``metrics.jsonl``, TensorBoard events, previews and checkpoints, and attends to viewers."""

    def __init__(
        self,
        folder: Path,
        options: DictConfig,
        iterations: int,
        start: int,
        views: Sequence[View],
        stop: threading.Event,
        desk: Desk | None = None,
        notes: Callable[[], Mapping[str, float]] | None = None,
        show: Callable[[int], None] | None = None,
        place: Place = ALONE,
    ) -> None:
        self.folder, self.options, self.views, self.stop, self.desk = folder, options, views, stop, desk
        self.notes, self.show = notes, show or self.preview
        keep_lines_before(folder / "metrics.jsonl", start)
        self.lines = (folder / "metrics.jsonl").open("a", buffering=1)
        self.board = None
        if options.tensorboard:
            logging.getLogger("tensorboard").setLevel(logging.ERROR)
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=start)
        # Of several stages, each continues with the bar of the one before, and the last one's stays.
        self.bar = tqdm(
            total=place.steps or iterations, initial=place.before + start, unit="it", dynamic_ncols=True,
            disable=not (place.steps or iterations),
            desc=f"distilling, {place.said}" if place.said else "distilling", leave=place.number == place.total,
        )  # fmt: skip
        self.before = time.perf_counter()

    def __call__(self, state: State, metrics: dict[str, float], picture: Render) -> bool:
        now = time.perf_counter()
        metrics = {**metrics, **(self.notes() if self.notes else {}), "seconds": round(now - self.before, 4)}
        self.before = now
        self._write(json_of(metrics))
        if self.board:
            for name, value in metrics.items():
                if name != "step":
                    self.board.add_scalar(name, value, int(metrics["step"]))
        self.bar.update()
        if state.step % 10 == 0:
            shown = {"opacity": f"{metrics['opacity']:.3f}", "skipped": state.skipped}
            shown |= {"prompts": metrics.get("prompts_seen", 0)}
            self.bar.set_postfix({name: value for name, value in shown.items() if value}, refresh=False)
        if self._due(self.options.preview_every, state.step):
            self.show(state.step)
        if self.desk:
            # Not of the next step's seconds: a pause can be long.
            self.before += self.desk.attend(state.step, metrics, lambda: self.checkpoint(state))
        stop = self.stop.is_set()
        if stop or self._due(self.options.checkpoint_every, state.step):
            self.checkpoint(state)
        return stop

    def _write(self, line: str) -> None:
        """Add a line to ``metrics.jsonl``.

        Raises:
            OSError: it cannot be written; names the file.
        """
        try:
            self.lines.write(line)
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.lines.name) from error

    @staticmethod
    def _due(every: int, step: int) -> bool:
        return every > 0 and step % every == 0

    def preview(self, step: int) -> None:
        """Write four sides of each scene, a row each, as one picture."""
        import imageio.v3 as imageio

        folder = self.folder / "previews"
        folder.mkdir(exist_ok=True)
        rows = [view(turntable(4), 64, 64).rgb.detach().cpu().clamp(0, 1) for view in self.views]
        sheet = torch.cat([rgb.movedim(0, 1).flatten(1, 2) for rgb in rows])
        imageio.imwrite(folder / f"step-{step:06d}.png", (sheet * 255).round().byte().numpy())

    def checkpoint(self, state: State) -> Path:
        check_there(self.folder)
        return save_checkpoint(
            self.folder / "checkpoints", state.step, state.state_dict(), self.options.keep_checkpoints
        )

    def close(self) -> None:
        self.bar.close()
        with contextlib.suppress(OSError):  # of a line that could not be written, which was told
            self.lines.close()
        if self.board:
            self.board.close()

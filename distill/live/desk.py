"""What a run and the page that shows it tell each other; the training thread alone touches the scene."""

from __future__ import annotations

import json
import math
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from distill.cameras import Cameras
from distill.contracts import View
from distill.export.thumbnail import sheets
from distill.files.errors import first_line
from distill.files.lines import finite

#: Seconds between two pictures while the run trains, at least.
EVERY = 0.1
#: Share of the time that pictures for viewers may take from training.
SHARE = 0.2
#: Pictures that may wait; a browser asks for one at a time.
WAITING = 16
#: Records of metrics in one answer, about one for each pixel of a curve.
RECORDS = 600


@dataclass
class Look:
    """A picture that someone asks for.

    Attributes:
        cameras: one camera.
        scene: which of the run's scenes.
        size: height and width, pixels.
        answered: set when there is a picture or a reason why there is none.
        picture: bytes of RGB on the CPU, ``[size, size, 3]``.
        step: steps done when it was rendered.
        why: the reason why there is no picture.
    """

    cameras: Cameras
    scene: int
    size: int
    answered: threading.Event = field(default_factory=threading.Event)
    picture: Tensor | None = None
    step: int = 0
    why: str = ""


class Desk:
    """Where the page's requests lie until the training thread, between two steps, attends to them.

    ``begin``, ``attend`` and ``say`` are for the thread that trains; the others are for the threads that serve the page.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.looks: deque[Look] = deque()
        self.paused = self.saving = False
        self.stop = threading.Event()
        self.phase, self.message = "loading", ""
        self.run, self.step, self.iterations = 0, 0, 0
        self.prompt, self.folder = "", Path()
        self.views: Sequence[View] = ()
        self.records: list[dict[str, float | None]] = []
        self.largest = 512
        self.rest_until = 0.0
        self.asked_at = -math.inf

    def begin(
        self,
        prompt: str,
        folder: Path,
        iterations: int,
        step: int,
        views: Sequence[View],
        stop: threading.Event,
    ) -> None:
        """Start to show a run, with the metrics of the steps that an earlier process did."""
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        with self.changed:
            self.run += 1
            self.prompt, self.folder, self.iterations, self.step = prompt, folder, iterations, step
            self.views, self.stop, self.records = views, stop, [finite(json.loads(line)) for line in lines]
            self.paused = self.saving = False
            self.phase, self.message = "training", ""

    def attend(self, step: int, metrics: Mapping[str, float], save: Callable[[], object]) -> float:
        """Take a step's metrics and do what the page asked for; returns after a pause ends, with the seconds all of it took.

        Args:
            step: steps done.
            metrics: of the last one.
            save: writes a checkpoint.
        """
        began = time.perf_counter()
        with self.changed:
            self.step = step
            self.records.append(finite(metrics))
        if self.looks and began >= self.rest_until:
            self._show()
        self._save(save)
        while self.paused and not self.stop.is_set():
            with self.changed:
                if not (self.looks or self.saving):
                    self.changed.wait(0.2)  # a signal sets ``stop`` without a word here
            self._show()
            self._save(save)
        return time.perf_counter() - began

    def say(self, phase: str, message: str = "") -> None:
        """Name what the run is at, other than training; requests for a picture are answered that there is none."""
        with self.changed:
            self.phase, self.message, self.views = phase, message, ()
            while self.looks:
                _refuse(self.looks.popleft(), f"the run is {phase}")
            self.changed.notify_all()

    def look(self, look: Look, seconds: float = 60.0) -> Look:
        """Wait for a picture, for as long as a step may take."""
        with self.changed:
            if look.scene >= len(self.views):
                return _refuse(look, "there is no such scene to look at now")
            if len(self.looks) >= WAITING:
                return _refuse(look, "too many viewers wait for a picture")
            look.size = min(look.size, self.largest)
            self.looks.append(look)
            self.changed.notify_all()
        if not look.answered.wait(seconds):
            with self.changed:
                if look in self.looks:
                    self.looks.remove(look)
            _refuse(look, "the step takes longer than a browser waits")
        return look

    def ask(self, what: str) -> None:
        """Pause, continue, save a checkpoint or stop, at the end of the step that is computed now.

        Raises:
            ValueError: the run does not train now.
        """
        with self.changed:
            if self.phase != "training":
                raise ValueError(f"the run is {self.phase}, so there is nothing to {what}")
            if what == "stop":
                self.stop.set()
                self.message = "stopping"
            elif what == "checkpoint":
                self.saving = True
            else:
                self.paused = what == "pause"
            self.changed.notify_all()

    def state(self, run: int, since: int) -> dict[str, Any]:
        """Return what the page shows, with the metrics from record ``since`` on; all of them if ``run`` is another run."""
        with self.changed:
            self.asked_at = time.monotonic()
            since = since if run == self.run else 0
            fresh = self.records[since:]
            seconds = [took for each in self.records[-20:] if (took := each.get("seconds")) is not None]
            told: dict[str, Any] = {
                "run": self.run, "phase": self.phase, "message": self.message, "paused": self.paused,
                "prompt": self.prompt, "folder": str(self.folder), "step": self.step, "iterations": self.iterations,
                "scenes": len(self.views), "since": since + len(fresh),
            }  # fmt: skip
        stride = math.ceil(len(fresh) / RECORDS) or 1
        told["records"] = fresh[::-1][::stride][::-1]  # the last one is always among them
        told["seconds"] = statistics.median(seconds) if seconds else None
        told["previews"] = [step for step, _ in sheets(self.folder)] if self.run else []
        return told

    def _show(self) -> None:
        """Render the picture that has waited longest."""
        with self.changed:
            if not self.looks:
                return
            look = self.looks.popleft()
        began = time.perf_counter()
        try:
            rgb = self.views[look.scene](look.cameras, look.size, look.size).rgb[0]
            look.picture = (rgb.detach().clamp(0, 1) * 255).round().byte().cpu()
        except (
            RuntimeError,
            ValueError,
        ) as error:  # the run continues without this picture, and asks for less memory
            self.largest = max(look.size // 2, 32)
            look.why = first_line(error)
        look.step = self.step
        look.answered.set()
        now = time.perf_counter()
        self.rest_until = now + max(EVERY, (now - began) * (1 / SHARE - 1))

    def _save(self, save: Callable[[], object]) -> None:
        if self.saving:
            save()
            with self.changed:
                self.saving = False
                self.message = f"checkpoint saved at step {self.step}"


def _refuse(look: Look, why: str) -> Look:
    look.why = why
    look.answered.set()
    return look

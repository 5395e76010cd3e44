"""How far a stage of a training is, by updates or by seconds, and the rate that follows."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

#: Share of a stage over which its rate rises.
WARMUP = 0.02


@dataclass
class Pace:
    """Progress of a stage, by updates or by seconds, whichever is given.

    Attributes:
        updates: of the whole stage, or None.
        seconds: of the whole stage, earlier parts of it counted, or None.
        update: how many are made.
        used: seconds of earlier parts.
    """

    updates: int | None = None
    seconds: float | None = None
    update: int = 0
    used: float = 0.0
    _since: float | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if (self.updates is None) == (self.seconds is None):
            raise ValueError("a stage lasts a number of updates or of seconds: give one of the two")

    @property
    def spent(self) -> float:
        """Seconds, those of earlier parts included."""
        return self.used + (time.perf_counter() - self._since if self._since is not None else 0.0)

    @property
    def done(self) -> float:
        """Share of the stage that is over, in [0, 1]."""
        if self.updates is not None:
            return min(self.update / self.updates, 1.0) if self.updates else 1.0
        assert self.seconds is not None
        return min(self.spent / self.seconds, 1.0) if self.seconds > 0 else 1.0

    def start(self) -> None:
        self._since = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "seconds": self.seconds, "update": self.update, "used": self.spent}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on as it was, in as many updates or seconds."""
        self.updates, self.seconds = saved["updates"], saved["seconds"]
        self.update, self.used, self._since = saved["update"], saved["used"], None


def learning_rate(done: float, final: float) -> float:
    """Share of the peak: a linear rise over the first fiftieth, then half a cosine down to ``final``."""
    return (
        min(done / WARMUP, 1.0) * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done))) or final * 0.1
    )

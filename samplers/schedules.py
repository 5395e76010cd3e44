"""Numbers that change over training."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Ramp:
    """A number that goes linearly from ``start`` to ``end`` between two fractions of training.

    Attributes:
        start: value up to ``from_fraction``.
        end: value from ``to_fraction`` on; None means ``start``, a constant.
        from_fraction: fraction of training, in [0, 1].
        to_fraction: fraction of training, at least ``from_fraction``.
    """

    start: float
    end: float | None = None
    from_fraction: float = 0.0
    to_fraction: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.from_fraction <= self.to_fraction <= 1:
            raise ValueError(
                "a schedule needs 0 <= from_fraction <= to_fraction <= 1, got "
                f"{self.from_fraction} and {self.to_fraction}"
            )

    def __call__(self, progress: float) -> float:
        if self.end is None or progress <= self.from_fraction:
            return self.start
        if progress >= self.to_fraction:
            return self.end
        part = (progress - self.from_fraction) / (self.to_fraction - self.from_fraction)
        return self.start + (self.end - self.start) * part

"""Numbers that change over training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from distill.contracts import Condition, Guidance, Prior


#: What a sampler draws: timesteps or cameras.
Drawn = TypeVar("Drawn")


@dataclass(frozen=True)
class Ramp:
    """A number that changes linearly from ``start`` to ``end`` between two fractions of training.

    Equal fractions make a step.

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

    @property
    def nonzero(self) -> bool:
        """Whether the schedule is ever different from 0."""
        return bool(self.start or self.end)

    def __call__(self, progress: float) -> float:
        if self.end is None or progress < self.from_fraction:
            return self.start
        if progress >= self.to_fraction:
            return self.end
        part = (progress - self.from_fraction) / (self.to_fraction - self.from_fraction)
        return self.start + (self.end - self.start) * part


def at(options: Mapping[str, object], progress: float) -> dict[str, Any]:
    """Return the options' values at a point in training: schedules, also in pairs, are evaluated; other values are unchanged."""

    def now(value: object) -> object:
        if isinstance(value, tuple):
            return tuple(now(item) for item in value)
        return value(progress) if isinstance(value, Ramp) else value

    return {name: now(value) for name, value in options.items()}


def scheduled(loss: Callable[..., Any], **options: object) -> Guidance:
    """Bind a loss's options, of which any number may be a ``Ramp``: ``scheduled(sds, scale=Ramp(100, 7.5))``."""

    def guidance(prior: Prior, x: Tensor, cond: Condition, t: Tensor, noise: Tensor) -> Tensor:
        grad: Tensor = loss(prior, x, cond, t, noise, **at(options, cond.step.progress))
        return grad

    return guidance


def scheduled_sampler(
    make: Callable[..., Callable[[float, int, torch.Generator], Drawn]], **options: object
) -> Callable[[float, int, torch.Generator], Drawn]:
    """Make a sampler of timesteps or cameras from options of which any number may be a ``Ramp``."""
    if at(options, 0.0) == options:
        return make(**options)

    for point in turns(options):
        make(**at(options, point))  # what is wrong anywhere is said before training

    def sample(progress: float, batch: int, generator: torch.Generator) -> Drawn:
        return make(**at(options, progress))(progress, batch, generator)

    return sample


def turns(options: Mapping[str, object]) -> list[float]:
    """Return the points at which schedules begin and end, and just before them, where one may jump; in between, all are linear.

    Training ends just before 1.
    """
    flat = [end for value in options.values() for end in (value if isinstance(value, tuple) else (value,))]
    ramps = [value for value in flat if isinstance(value, Ramp)]
    ends = {1.0, *(end for ramp in ramps for end in (ramp.from_fraction, ramp.to_fraction))}
    return sorted({0.0, *(end for end in ends if end < 1), *(end - 1e-9 for end in ends if end > 0)})

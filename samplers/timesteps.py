"""Timestep samplers: which noise levels a loss sees, and when.

Each takes the prior and its options and returns ``(progress, batch, generator) -> t``, integers of shape
``[batch]``. Ranges are fractions of the prior's timesteps T. ``register`` adds one from a script.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from functools import partial
from typing import Annotated, TypeVar

import torch
from torch import Tensor

from distill.contracts import Prior, TimestepSampler
from distill.domains import Fraction, Length, Positive
from distill.parts.registered import check_own, found_in
from distill.samplers.schedules import Ramp

__all__ = [
    "annealed",
    "dreamtime",
    "dreamtime_v1",
    "listed",
    "square_root",
    "truncated_normal",
    "uniform",
]
_registered: dict[str, Callable[..., TimestepSampler]] = {}

Make = TypeVar("Make", bound=Callable[..., TimestepSampler])


def register(law: Make) -> Make:
    """Register a custom timestep law as ``timesteps=<its name in lower case>``; usable as a decorator.

    If a name is registered again, as in a notebook, the later one counts.

    Raises:
        ValueError: it has no name, one that is taken, is defined inside a function, does not take ``prior`` alone, or has an option
            without a default.
    """
    _registered[_check(law, __all__)] = law
    return law


def available() -> dict[str, Callable[..., TimestepSampler]]:
    """Return every timestep law by name."""
    laws = {name: found_in(__file__, "timestep law", name, partial(_named, name), _check) for name in __all__}
    return {**{name: law for name, law in laws.items() if law}, **_registered}


def _named(name: str) -> Callable[..., TimestepSampler]:
    """One of ``__all__``.

    Raises:
        ValueError: it is not there.
    """
    if name not in globals():
        raise ValueError(f"it has no timestep law {name}; define it there, or leave it out of __all__")
    law: Callable[..., TimestepSampler] = globals()[name]
    return law


def _check(law: object, taken: Container[str] = ()) -> str:
    """Check a timestep law, and return the name by which it is chosen.

    Raises:
        ValueError: it cannot be used.
    """
    return check_own("timestep law", law, taken, ("prior=",))


def check_drawn(prior: Prior, t: object, count: int) -> Tensor:
    """Check what a timestep law draws, and return it.

    Raises:
        ValueError: it is no ``count`` integers on the CPU, or one is outside the prior's range.
    """
    # torch indexes with these; booleans and bytes would be masks.
    whole = isinstance(t, Tensor) and t.dtype in (torch.int64, torch.int32)
    if not isinstance(t, Tensor) or t.shape != (count,) or not whole or t.device.type != "cpu":
        got = f"{list(t.shape)} of {t.dtype} on {t.device}" if isinstance(t, Tensor) else type(t).__name__
        raise ValueError(
            f"a timestep law must draw int64 or int32 integers of shape [{count}] on the CPU, got {got}"
        )
    check_timesteps(prior, t)
    return t


def check_timesteps(prior: Prior, t: Tensor) -> None:
    """Refuse timesteps that the prior does not have.

    Only timesteps on the CPU are checked: reading others would make the host wait for the device. The loop checks timesteps
    before it copies them.

    Raises:
        ValueError: a timestep is outside the prior's range.
    """
    if t.device.type != "cpu":
        return
    low, high = int(t.min()), int(t.max())
    if low < 0 or high >= prior.num_timesteps:
        raise ValueError(f"timesteps must lie in [0, {prior.num_timesteps - 1}], got {low} to {high}")


def bounds(prior: Prior, t_min: float, t_max: float) -> tuple[int, int]:
    """Return a range of timesteps as integers, both ends included.

    Raises:
        ValueError: the range is empty or leaves [0, 1].
    """
    if not 0 <= t_min <= t_max <= 1:
        raise ValueError(f"timesteps need 0 <= t_min <= t_max <= 1 throughout, got {t_min} and {t_max}")
    last = prior.num_timesteps - 1
    return min(round(t_min * prior.num_timesteps), last), min(round(t_max * prior.num_timesteps), last)


def uniform(prior: Prior, *, t_min: Fraction = 0.02, t_max: Fraction = 0.98) -> TimestepSampler:
    """Draw each timestep uniformly, one per picture (DreamFusion, arXiv:2209.14988, Sec. 3.1).

    Args:
        prior: gives the number of timesteps T.
        t_min: lowest timestep, fraction of T, included.
        t_max: highest timestep, fraction of T, included.
    """
    return annealed(prior, t_min=t_min, t_min_end=t_min, t_max=t_max, t_max_end=t_max)


def annealed(
    prior: Prior,
    *,
    t_min: Fraction = 0.02,
    t_min_end: Fraction = 0.02,
    t_max: Fraction = 0.98,
    t_max_end: Fraction = 0.5,
    from_fraction: Fraction = 0.0,
    to_fraction: Fraction = 1.0,
) -> TimestepSampler:
    """Draw uniformly from a range whose two ends decrease linearly over training, or in one step.

    Args:
        prior: gives the number of timesteps T.
        t_min: lowest timestep at the start, fraction of T.
        t_min_end: lowest timestep at the end.
        t_max: highest timestep at the start, fraction of T, included.
        t_max_end: highest timestep at the end.
        from_fraction: fraction of training at which the range begins to move.
        to_fraction: fraction of training at which it stops; equal to ``from_fraction``, it moves in one step
            (ProlificDreamer, arXiv:2305.16213).

    Raises:
        ValueError: a range is empty or leaves [0, 1], or an end rises.
    """
    bounds(prior, t_min, t_max)
    bounds(prior, t_min_end, t_max_end)
    if t_min_end > t_min or t_max_end > t_max:
        raise ValueError(
            f"annealed timesteps only fall, but t_min goes from {t_min:g} to {t_min_end:g} and t_max from {t_max:g} to "
            f"{t_max_end:g}; lower t_min_end or t_max_end, or give timesteps=uniform a schedule"
        )
    lowest = Ramp(t_min, t_min_end, from_fraction, to_fraction)
    highest = Ramp(t_max, t_max_end, from_fraction, to_fraction)

    def sample(progress: float, batch: int, generator: torch.Generator) -> Tensor:
        low, high = bounds(prior, lowest(progress), highest(progress))
        return torch.randint(low, high + 1, (batch,), generator=generator)

    return sample


def dreamtime(
    prior: Prior,
    *,
    t_min: Fraction = 0.02,
    t_max: Fraction = 0.98,
    centre: float = 0.5,
    width: Positive = 0.125,
) -> TimestepSampler:
    r"""Decrease the timestep over training, slowest where pictures take shape: the schedule of TP-SDS.

    .. math:: t(i) = \arg\min_t \Big| \sum_{u=t}^{t_{max}} W(u) - i/N \Big|, \quad
        W(t) \propto \sqrt{(1 - \bar\alpha_t) / \bar\alpha_t} \; e^{-(t - m)^2 / 2 s^2}

    One timestep for the whole batch; W determines t only and is not a loss weight. The paper counts steps i from 1 to N; here
    they are from 0 to N - 1, so that the first is at ``t_max`` and the last does not reach ``t_min``.

    Args:
        prior: gives the noise levels.
        t_min: lowest timestep, fraction of T.
        t_max: highest timestep, fraction of T.
        centre: m, the mean, fraction of T.
        width: s, the standard deviation, fraction of T.

    Source: Huang et al. 2023 (DreamTime), arXiv:2306.12422, the version published at ICLR 2024.
    """
    t = torch.arange(prior.num_timesteps, device=prior.device)
    alpha, sigma = prior.alpha(t).flatten().double().cpu(), prior.sigma(t).flatten().double().cpu()
    away = t.double().cpu() / prior.num_timesteps - centre
    return _descending(prior, sigma / alpha * torch.exp(-(away**2) / (2 * width**2)), t_min, t_max)


def dreamtime_v1(
    prior: Prior,
    *,
    t_min: Fraction = 0.02,
    t_max: Fraction = 0.98,
    upper: float = 0.8,
    upper_width: Positive = 0.3,
    lower: float = 0.5,
    lower_width: Positive = 0.1,
) -> TimestepSampler:
    """Decrease the timestep as ``dreamtime`` does, with the weights of the paper's first version.

    The weight is 1 between ``lower`` and ``upper`` and falls off as a Gaussian on either side.

    Args:
        prior: gives the number of timesteps T.
        t_min: lowest timestep, fraction of T.
        t_max: highest timestep, fraction of T.
        upper: m1, the timestep above which the weight falls, fraction of T.
        upper_width: s1, standard deviation of the fall above it, fraction of T.
        lower: m2, the timestep below which the weight falls, fraction of T.
        lower_width: s2, standard deviation of the fall below it, fraction of T.

    Source: Huang et al. 2023 (DreamTime), arXiv:2306.12422v1.
    """
    t = torch.arange(prior.num_timesteps, dtype=torch.float64) / prior.num_timesteps
    above, below = (t - upper).clamp(min=0) / upper_width, (lower - t).clamp(min=0) / lower_width
    return _descending(prior, torch.exp(-(above**2 + below**2) / 2), t_min, t_max)


def _descending(prior: Prior, weight: Tensor, t_min: float, t_max: float) -> TimestepSampler:
    low, high = bounds(prior, t_min, t_max)
    whole = weight[low : high + 1].sum()
    if not (torch.isfinite(whole) and whole > 0):
        raise ValueError(
            "dreamtime's weights vanish between t_min and t_max; give it widths above 0, and a centre in that range"
        )
    tail = weight[low : high + 1].flip(0).cumsum(0)
    tail = tail / tail[-1]

    def sample(progress: float, batch: int, generator: torch.Generator) -> Tensor:
        # argmin takes the first of equals, the highest timestep: t never increases.
        return torch.full((batch,), high - int((tail - progress).abs().argmin()))

    return sample


def square_root(prior: Prior, *, t_min: Fraction = 0.02, t_max: Fraction = 0.98) -> TimestepSampler:
    """Decrease the timestep from ``t_max`` to ``t_min`` with the square root of progress (HiFA, arXiv:2305.18766).

    Args:
        prior: gives the number of timesteps T.
        t_min: lowest timestep, fraction of T.
        t_max: highest timestep, fraction of T.
    """
    low, high = bounds(prior, t_min, t_max)

    def sample(progress: float, batch: int, generator: torch.Generator) -> Tensor:
        return torch.full((batch,), round(high - (high - low) * progress**0.5))

    return sample


def truncated_normal(
    prior: Prior, *, mean: float = 0.5, std: Positive = 0.2, t_min: Fraction = 0.0, t_max: Fraction = 1.0
) -> TimestepSampler:
    r"""Draw from a normal distribution cut to a range, one timestep per picture.

    .. math:: p(k) \propto \Phi((k + 1 - m) / s) - \Phi((k - m) / s)

    Args:
        prior: gives the number of timesteps T.
        mean: mean of the normal, fraction of T.
        std: standard deviation of the normal, fraction of T.
        t_min: lowest timestep, fraction of T.
        t_max: highest timestep, fraction of T.

    Raises:
        ValueError: ``std`` is not positive, or the range is empty.

    Source: Jiang et al. 2023 (Efficient-3DiM), arXiv:2310.03015: a real number is drawn, cut, and rounded down.
    """
    low, high = bounds(prior, t_min, t_max)
    if std <= 0:
        raise ValueError(f"std must be positive, got {std}")
    weight = normal_cells(
        torch.arange(low, high + 1) / prior.num_timesteps, 1 / prior.num_timesteps, mean, std
    )

    def sample(progress: float, batch: int, generator: torch.Generator) -> Tensor:
        return low + torch.multinomial(weight, batch, replacement=True, generator=generator)

    return sample


def normal_cells(start: Tensor, width: float, mean: float, std: float) -> Tensor:
    """Return the probability of each cell ``[start, start + width)`` under a normal, scaled so that the largest is 1."""
    below, above = (start.double() - mean) / std, (start.double() + width - mean) / std
    # In the upper tail both are 1 to rounding; mirrored, they are as exact as in the lower one.
    tail = below > 0
    below, above = torch.where(tail, -above, below), torch.where(tail, -below, above)
    highest = torch.special.log_ndtr(above)
    exponent = highest + torch.log1p(-torch.exp(torch.special.log_ndtr(below) - highest))
    return torch.exp(exponent - exponent.max())  # a mean far outside must not vanish


def listed(
    prior: Prior, *, timesteps: Annotated[Sequence[Fraction], Length(1, None)] = (0.98, 0.75, 0.5, 0.25)
) -> TimestepSampler:
    """Use the timesteps of a list in order, each for an equal part of training.

    Args:
        prior: gives the number of timesteps T.
        timesteps: fractions of T, in the order they are used.

    Raises:
        ValueError: the list is empty or an entry leaves [0, 1].
    """
    if not timesteps:
        raise ValueError("timesteps.timesteps needs at least one entry, got an empty list")
    steps = [bounds(prior, value, value)[0] for value in timesteps]

    def sample(progress: float, batch: int, generator: torch.Generator) -> Tensor:
        # Rounding must not leave step 29 of 100 in the entry before.
        return torch.full((batch,), steps[min(int(progress * len(steps) + 1e-9), len(steps) - 1)])

    return sample

"""Verdicts on numbers that were measured on a few prompts, and how much more data would decide what they leave open.

A number stands with the interval in which it falls for 90% of resamplings of the prompts (Efron's percentile
bootstrap, each prompt with all its seeds). A claim that the number is above a threshold holds where the whole
interval is, does not where none of it is or by less than what matters, and is not decidable otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from distill.lab.comparison.power import prompts_needed, seeds_needed

#: What a number is computed from: the prompts drawn, as indices.
Statistic = Callable[[Sequence[int]], float]


@dataclass(frozen=True)
class Number:
    """A figure, and where it lies for 90% of resamplings of the prompts; ``cells`` has each prompt's seeds, if it is their mean."""

    name: str
    value: float
    low: float
    high: float
    cells: tuple[tuple[float, ...], ...] = ()

    def __str__(self) -> str:
        return f"{self.name} {self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


@dataclass(frozen=True)
class Claim:
    """One claim with its verdict: ``holds``, ``does not hold`` or ``not decidable``."""

    text: str
    verdict: str
    numbers: list[Number] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Finding:
    """A verdict on one number, and how far the number is from the bound that would decide it.

    Attributes:
        verdict: see ``Claim``.
        number: None where it was not measured.
        gap: in the number's unit.
        against: whether the number as it is speaks against the claim.
    """

    verdict: str
    number: Number | None
    gap: float = 0.0
    against: bool = False


def bootstrap(name: str, statistic: Statistic, prompts: int, draws: int = 1000) -> Number:
    """A statistic of all prompts and its 5th and 95th percentile over resampled ones."""
    value = statistic(range(prompts))
    if prompts < 2:
        return Number(name, value, -math.inf, math.inf)  # one prompt says nothing of others
    generator = np.random.default_rng(0)
    values = sorted(statistic(generator.integers(prompts, size=prompts).tolist()) for _ in range(draws))
    # No interpolation: a curve that is never reached counts as infinitely late.
    low, high = math.floor(0.05 * (draws - 1)), math.ceil(0.95 * (draws - 1))
    return Number(name, value, values[low], values[high])


def above(number: Number, threshold: float = 0.0, matters: float = 0.0) -> str:
    """Verdict on a number's being above a threshold; by less than what ``matters``, it may as well not be."""
    if number.low > threshold:
        return "holds"
    return "does not hold" if number.high <= threshold + matters else "not decidable"


def below(number: Number, threshold: float) -> str:
    """Verdict on a number's being below a threshold."""
    if number.high < threshold:
        return "holds"
    return "does not hold" if number.low >= threshold else "not decidable"


def all_of(*verdicts: str) -> str:
    """Verdict on several things together."""
    if "does not hold" in verdicts:
        return "does not hold"
    return "not decidable" if "not decidable" in verdicts else "holds"


def found_above(number: Number, threshold: float = 0.0, matters: float = 0.0) -> Finding:
    """``above``, with its gap: to the farther of the two bounds, which decides with less."""
    beyond, short = number.value - threshold, threshold + matters - number.value
    return Finding(above(number, threshold, matters), number, max(beyond, short), short > beyond)


def found_below(number: Number, threshold: float) -> Finding:
    """``below``, with its gap."""
    gap = threshold - number.value
    return Finding(below(number, threshold), number, abs(gap), gap < 0)


def decide(text: str, prompts: int, *findings: Finding, beside: Sequence[Number] = ()) -> Claim:
    """Put findings together; where they decide nothing, a note says how many prompts or seeds would.

    Args:
        text: the claim.
        prompts: how many were measured.
        *findings: all must hold.
        beside: numbers to be shown that decide nothing.
    """
    verdict = all_of(*(finding.verdict for finding in findings))
    numbers = [finding.number for finding in findings if finding.number is not None]
    open_ = [finding for finding in findings if finding.verdict == "not decidable"]
    notes = [what_would_decide(open_, prompts)] if verdict == "not decidable" else []
    return Claim(text, verdict, [*numbers, *beside], notes)


def what_would_decide(findings: Sequence[Finding], prompts: int) -> str:
    """Estimate how much more data would decide a claim, as a note for the report.

    The note names a number of prompts and, if more seeds can decide, a number of seeds of the same prompts. Both assume that
    the measured numbers are the true ones, and decide in 80% of repetitions (``distill.lab.comparison.power``).

    A claim holds if all of its findings do. So if findings speak against it, the one that needs the least data decides;
    otherwise all must be decided.

    Args:
        findings: those that are not decidable yet.
        prompts: number of prompts that were measured.
    """
    numbers = [(finding.number, finding.gap, finding.against) for finding in findings if finding.number]
    if len(numbers) < len(findings):
        return "costs were not measured"
    needed = [
        (prompts_needed(number.low, number.high, gap, prompts), seeds_needed(number.cells, gap), against)
        for number, gap, against in numbers
    ]
    against = [one for one in needed if one[2]]
    more, seeds = (
        _enough([one[which] for one in against or needed], any_one=bool(against)) for which in (0, 1)
    )
    if more is None:
        return "no number of prompts can be estimated: an interval has no end or is no prompts', or a number is on its bound"
    had = min((len(cells) for number, _, _ in numbers for cells in number.cells), default=0)
    also = "" if seeds is None else f", or about {seeds} seeds of each instead of {had}"
    return f"about {more} prompts instead of {prompts} would decide it{also}"


def _enough(numbers: Sequence[int | None], any_one: bool) -> int | None:
    known = [number for number in numbers if number is not None]
    if any_one:
        return min(known, default=None)
    return max(known) if len(known) == len(numbers) else None

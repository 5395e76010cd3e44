"""How much more data would decide what a comparison leaves open.

An estimate from n prompts has a standard error s / sqrt(n), and the interval of 90% reaches z(.95) s / sqrt(n) to both sides.
Let the true number be the measured one, at a distance ``gap`` from the bound that decides. The next estimate is normal about
it, so the whole interval is on its side of the bound in 80% of repetitions where

    gap >= (z(.95) + z(.80)) s / sqrt(n).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

#: Quantiles of the standard normal distribution: of the interval's end, and of the power.
INTERVAL = statistics.NormalDist().inv_cdf(0.95)
POWER = statistics.NormalDist().inv_cdf(0.80)


def prompts_needed(low: float, high: float, gap: float, prompts: int) -> int | None:
    """Number of prompts with which the inequality above holds: ``prompts ((z(.95) + z(.80)) error / gap)^2``, rounded up.

    ``error`` is the standard error with ``prompts`` prompts, half of the interval's width over z(.95).

    Args:
        low: lower end of the measured interval.
        high: its upper end.
        gap: distance from the measured number to the bound.
        prompts: number of prompts that were measured.

    Returns:
        At least ``prompts + 1``; None if the interval is infinite or the number is on the bound.
    """
    if not math.isfinite(high - low) or not 0 < gap < math.inf:
        return None
    error = (high - low) / (2 * INTERVAL)
    return max(prompts + 1, math.ceil(prompts * ((INTERVAL + POWER) * error / gap) ** 2))


def seeds_needed(values: Sequence[Sequence[float]], gap: float) -> int | None:
    """Number of seeds of the same prompts that would decide.

    The variance of a prompt's mean over k seeds is b + w / k: w is the variance between its seeds, and b the one
    between prompts. More seeds leave b as it is, so k' seeds suffice where (b + w / k') / n <= (gap / (z(.95) + z(.80)))^2.

    Args:
        values: of each prompt, of each of its seeds.
        gap: distance from the number to the bound.

    Returns:
        None where no number of seeds would do, or fewer than two prompts or seeds were measured.
    """
    if len(values) < 2 or min(map(len, values)) < 2 or not 0 < gap < math.inf:
        return None
    within = statistics.fmean(statistics.variance(seeds) for seeds in values)
    seeds = min(map(len, values))
    between = max(statistics.variance(map(statistics.fmean, values)) - within / seeds, 0.0)
    left = len(values) * (gap / (INTERVAL + POWER)) ** 2 - between
    return max(seeds + 1, math.ceil(within / left)) if left > 0 else None

"""The papers' claims, each put to the test on a comparison's figures.

A number stands with the interval in which it falls for 90% of resamplings of the prompts (Efron's percentile
bootstrap, each prompt with all its seeds). A claim that the number is above a threshold holds where the whole
interval is, does not where none of it is or by less than what matters, and is not decidable otherwise.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from distill.embedded.judge import Judge
from distill.lab.comparison.figures import diversity
from distill.lab.comparison.records import Record, by_prompt, of, views_of

#: What a number is computed from: the prompts drawn, as indices.
Statistic = Callable[[Sequence[int]], float]

#: Similarities this close count as equal: the judge's cosine of a true shape with its own caption is 0.84, and 0.26
#: lower with the caption of the next kind or colour.
MARGIN = 0.03
#: A difference of saturation that nobody sees.
PALER = 0.02
#: By how much a ratio of two measured costs may be off.
NOISE = 0.05


@dataclass(frozen=True)
class Number:
    """A figure, and where it lies for 90% of resamplings of the prompts."""

    name: str
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.name} {self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


@dataclass(frozen=True)
class Claim:
    """One claim with its verdict: ``holds``, ``does not hold`` or ``not decidable``."""

    text: str
    verdict: str
    numbers: list[Number] = field(default_factory=list)


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


@dataclass(frozen=True)
class Comparison:
    """A comparison's records, prompt by prompt: every method's cells of each, in one order."""

    prompts: dict[str, list[list[Record]]]
    root: Path

    def final(self, method: str, name: str, index: int) -> float:
        """Mean of a figure over the seeds of a prompt."""
        return statistics.fmean(cell["final"][name] for cell in self.prompts[method][index])

    def mean(self, method: str, name: str) -> Statistic:
        values = [self.final(method, name, index) for index in range(len(self.prompts[method]))]
        return lambda drawn: statistics.fmean(values[index] for index in drawn)

    def difference(self, better: str, worse: str, name: str = "similarity") -> Number:
        """Measure how much larger a metric is for one method than for another."""
        first, second = self.mean(better, name), self.mean(worse, name)
        title = f"{name.replace('_', '-')} of {better} less that of {worse}"
        return self.number(title, lambda drawn: first(drawn) - second(drawn))

    def number(self, name: str, statistic: Statistic) -> Number:
        return bootstrap(name, statistic, len(next(iter(self.prompts.values()))))

    def curve(self, method: str, drawn: Sequence[int]) -> list[tuple[float, float]]:
        """Fraction of training and mean similarity, point by point."""
        cells = [cell for index in drawn for cell in self.prompts[method][index]]
        columns = list(zip(*(cell["points"] for cell in cells), strict=True))
        last = columns[-1][0]["step"]
        return [
            (points[0]["step"] / last, statistics.fmean(p["similarity"] for p in points))
            for points in columns
        ]


def reached(curve: Sequence[tuple[float, float]], goal: float) -> float:
    """Return where a piecewise linear curve first reaches a goal; infinite if it never does."""
    before: tuple[float, float] | None = None
    for x, y in curve:
        if y >= goal:
            if before is None:
                return x
            return before[0] + (x - before[0]) * (goal - before[1]) / (y - before[1])
        before = (x, y)
    return math.inf


def speed(data: Comparison, paced: str, plain: str) -> tuple[Number, Number]:
    """Measure when one method reaches another's final value, as a fraction of training, and how much sooner than the other.

    The other may itself first come up to it before its end, so the first number alone proves nothing.
    """

    def first(method: str, drawn: Sequence[int]) -> float:
        return reached(data.curve(method, drawn), data.curve(plain, drawn)[-1][1])

    when = f"fraction of iterations at which {paced} reaches the end of {plain}"
    return (
        data.number(when, lambda drawn: first(paced, drawn)),
        data.number(
            f"the same less that of {plain}", lambda drawn: first(paced, drawn) - first(plain, drawn)
        ),
    )


def spread_at_equal_quality(data: Comparison, paced: str, plain: str, judge: Judge) -> Number:
    """Measure how much more diverse one method's seeds are than another's, at equal similarity to the prompt.

    For each prompt: at the first point at which each comes up to the lower of the two final similarities.
    """
    gains = []
    for index in range(len(data.prompts[paced])):
        curves = {name: data.curve(name, [index]) for name in (paced, plain)}
        goal = min(curve[-1][1] for curve in curves.values())
        distances = {}
        for name, curve in curves.items():
            point = next(number for number, (_, y) in enumerate(curve) if y >= goal)
            sets: list[Tensor] = [views_of(cell, data.root)[point] for cell in data.prompts[name][index]]
            distances[name] = diversity(judge, sets) or 0.0
        gains.append(distances[paced] - distances[plain])
    title = f"distance between seeds of {paced} less that of {plain}, at equal similarity"
    return data.number(title, lambda drawn: statistics.fmean(gains[index] for index in drawn))


def excess(data: Comparison, method: str) -> Number:
    """Measure how much more saturated a method's assets are than the ground truth."""
    own, true = data.mean(method, "saturation"), data.mean(method, "true_saturation")
    return data.number(f"saturation of {method} above the truth's", lambda drawn: own(drawn) - true(drawn))


def judge_claims(
    records: Sequence[Record], root: Path, judge: Judge, costs: Mapping[str, Mapping[str, float]]
) -> list[Claim]:
    """Every claim that the comparison's methods allow to test, in the papers' order.

    Args:
        records: of all cells; for each claim, prompts that one of its methods lacks or failed at are left out.
        root: where the cells' pictures are.
        judge: measures distances between pictures.
        costs: by method, as of ``distill.lab.comparison.cost.measure_cost``; may be empty.
    """
    tests: list[tuple[set[str], Callable[[Comparison], Claim | None]]] = [
        *(
            ({name, f"tp_{name}"}, partial(test, name=name, judge=judge))
            for name in ("sds", "csd", "asd", "vsd")
            for test in (_dreamtime_speed, _dreamtime_spread)
        ),
        ({"csd", "sds_100"}, _csd_alone),
        ({"sds_7.5", "csd", "asd"}, _small_scale),
        ({"sds_100", "asd", "vsd"}, _saturation),
        ({"asd", "vsd"}, partial(_asd_against_vsd, costs=costs)),
        ({"asd", "asd_fixed", "asd_eta_0"}, _random_shift),
        ({"asd", "asd_eta_1", "sds_7.5"}, _large_eta),
    ]
    found = [test(data) for needed, test in tests if (data := select(records, needed, root))]
    return [claim for claim in found if claim]


def select(records: Sequence[Record], methods: set[str], root: Path) -> Comparison | None:
    """The cells of some methods on the prompts that all of them finished; None where there are none."""
    of_each = {name: by_prompt(of(records, name)) for name in sorted(methods)}
    whole = [
        {
            cells[0]["prompt"]
            for cells in groups
            if all(not cell["error"] and "final" in cell for cell in cells)
        }
        for groups in of_each.values()
    ]
    shared = set.intersection(*whole)
    if not shared:
        return None
    return Comparison(
        {
            name: [cells for cells in groups if cells[0]["prompt"] in shared]
            for name, groups in of_each.items()
        },
        root,
    )


def _dreamtime_speed(data: Comparison, name: str, judge: Judge) -> Claim:
    when, gain = speed(data, f"tp_{name}", name)
    return Claim(
        f"DreamTime's timesteps bring {name} to its final score in fewer iterations",
        below(gain, 0.0),
        [when, gain],
    )


def _dreamtime_spread(data: Comparison, name: str, judge: Judge) -> Claim | None:
    if any(len(cells) < 2 for groups in data.prompts.values() for cells in groups):
        return None
    found = spread_at_equal_quality(data, f"tp_{name}", name, judge)
    return Claim(f"DreamTime's timesteps give {name} more diverse assets across seeds", above(found), [found])


def _csd_alone(data: Comparison) -> Claim:
    found = data.difference("csd", "sds_100")
    return Claim(
        f"CSD alone carries SDS at scale 100: without the generator's term it is within {MARGIN} of it or better",
        above(found, -MARGIN),
        [found],
    )


def _small_scale(data: Comparison) -> Claim:
    low = data.number("r-precision of sds_7.5", data.mean("sds_7.5", "r_precision"))
    others = [
        data.number(f"r-precision of {name}", data.mean(name, "r_precision")) for name in ("csd", "asd")
    ]
    verdicts = [below(low, 0.5), *(above(number, 0.5) for number in others)]
    return Claim(
        "SDS at scale 7.5 fails (an R-precision below a half) where CSD and ASD do not",
        all_of(*verdicts),
        [low, *others],
    )


def _saturation(data: Comparison) -> Claim:
    most = excess(data, "sds_100")
    lower = [data.difference("sds_100", name, "saturation") for name in ("asd", "vsd")]
    verdicts = [above(most), *(above(number, matters=PALER) for number in lower)]
    return Claim("SDS at scale 100 oversaturates; ASD and VSD do less", all_of(*verdicts), [most, *lower])


def _asd_against_vsd(data: Comparison, costs: Mapping[str, Mapping[str, float]]) -> Claim:
    numbers = [data.difference("asd", "vsd")]
    verdicts = [above(numbers[0], -MARGIN)]
    for key, title in (("step_ms", "time of a step"), ("peak_mib", "peak memory")):
        if {"asd", "vsd"} <= set(costs):
            share = costs["asd"][key] / costs["vsd"][key]
            numbers.append(
                Number(f"{title} with asd over that with vsd", share, share - NOISE, share + NOISE)
            )
            verdicts.append(below(numbers[-1], 1.0))
        else:
            verdicts.append("not decidable")
    return Claim(
        f"ASD matches VSD (within {MARGIN}) or beats it at less time and memory", all_of(*verdicts), numbers
    )


def _random_shift(data: Comparison) -> Claim:
    gains = [data.difference("asd", name) for name in ("asd_fixed", "asd_eta_0")]
    return Claim(
        "ASD's random shift beats a fixed shift and none",
        all_of(*(above(gain, matters=MARGIN) for gain in gains)),
        gains,
    )


def _large_eta(data: Comparison) -> Claim:
    gains = [data.difference("asd", "asd_eta_1"), data.difference("asd_eta_1", "sds_7.5")]
    return Claim("Too large an eta degrades ASD (towards SDS)", above(gains[0], matters=MARGIN), gains)

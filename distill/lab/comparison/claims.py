"""The papers' claims, each put to the test on a comparison's figures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from distill.embedded.judge import Judge
from distill.lab.comparison.figures import colour_spread, distinct, diversity
from distill.lab.comparison.records import (
    Record,
    by_prompt,
    by_step,
    common_steps,
    of,
    pictured,
    views_of,
)
from distill.lab.comparison.verdicts import (
    Claim,
    Finding,
    Number,
    Statistic,
    bootstrap,
    decide,
    found_above,
    found_below,
)

#: Similarities this close count as equal: the judge's cosine of a true shape with its own caption is 0.84, and 0.26
#: lower with the caption of the next kind or colour.
MARGIN = 0.03
#: A difference of saturation that nobody sees.
PALER = 0.02
#: What a claim needs of a cell, beside figures: the pictures that it kept.
PICTURES = "pictures"
#: Methods that may have a counterpart with DreamTime's timesteps, named ``tp_``.
PACED = ("sds", "sds_7.5", "sds_100", "csd", "asd", "vsd")
#: By how much a ratio of two measured costs may be off.
NOISE = 0.05


@dataclass(frozen=True)
class Comparison:
    """A comparison's records, prompt by prompt: every method's cells of each, in one order."""

    prompts: dict[str, list[list[Record]]]
    root: Path

    def __len__(self) -> int:
        return len(next(iter(self.prompts.values())))

    def final(self, method: str, name: str, index: int) -> float:
        """Mean of a figure over the seeds of a prompt."""
        return statistics.fmean(cell["final"][name] for cell in self.prompts[method][index])

    def mean(self, method: str, name: str) -> Statistic:
        values = [self.final(method, name, index) for index in range(len(self.prompts[method]))]
        return lambda drawn: statistics.fmean(values[index] for index in drawn)

    def difference(self, better: str, worse: str, name: str = "similarity") -> Number:
        """Measure how much larger a metric is for one method than for another."""
        cells = [
            [first[seed] - second[seed] for seed in first if seed in second]
            for first, second in zip(self._by_seed(better, name), self._by_seed(worse, name), strict=True)
        ]
        title = f"{name.replace('_', '-')} of {better} less that of {worse}"
        means, others = self.mean(better, name), self.mean(worse, name)
        return self.number(title, lambda drawn: means(drawn) - others(drawn), cells)

    def seeds(self, method: str, name: str) -> list[list[float]]:
        """A figure of each prompt, of each of its seeds."""
        return [[cell["final"][name] for cell in cells] for cells in self.prompts[method]]

    def _by_seed(self, method: str, name: str) -> list[dict[int, float]]:
        return [{cell["seed"]: cell["final"][name] for cell in cells} for cells in self.prompts[method]]

    def number(self, name: str, statistic: Statistic, cells: Sequence[Sequence[float]] = ()) -> Number:
        found = bootstrap(name, statistic, len(self))
        return replace(found, cells=tuple(tuple(row) for row in cells))

    def between_seeds(
        self, paced: str, plain: str, what: str, figure: Callable[[Sequence[Record]], float | None]
    ) -> Number | None:
        """Measure how much larger a figure of a prompt's seeds together is for one method; None where a prompt has none."""
        values = [[figure(cells) for cells in self.prompts[name]] for name in (paced, plain)]
        gains = [a - b for a, b in zip(*values, strict=True) if a is not None and b is not None]
        if len(gains) < len(self):
            return None
        title = f"{what} of {paced} less that of {plain}"
        return self.number(title, lambda drawn: statistics.fmean(gains[index] for index in drawn))

    def steps(self, method: str) -> list[int]:
        """The steps at which all of a method's cells have a point, whatever prompts are drawn; none where they share none."""
        return common_steps([cell for cells in self.prompts[method] for cell in cells])

    def curve(self, method: str, drawn: Sequence[int]) -> list[tuple[float, float]]:
        """Fraction of training and mean similarity at each of a method's ``steps``."""
        steps = self.steps(method)
        cells = [by_step(cell) for index in drawn for cell in self.prompts[method][index]]
        return [
            (step / steps[-1], statistics.fmean(own[step]["similarity"] for own in cells)) for step in steps
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
            step = next(step for step, (_, y) in zip(data.steps(name), curve, strict=True) if y >= goal)
            cells = data.prompts[name][index]
            places = [list(by_step(cell)).index(step) for cell in cells]
            sets = [views[place] for place, views in zip(places, _pictures(data, cells), strict=True)]
            distances[name] = diversity(judge, sets) or 0.0
        gains.append(distances[paced] - distances[plain])
    title = f"distance between seeds of {paced} less that of {plain}, at equal similarity"
    return data.number(title, lambda drawn: statistics.fmean(gains[index] for index in drawn))


def excess(data: Comparison, method: str) -> Number:
    """Measure how much more saturated a method's assets are than the ground truth."""
    own, true = data.seeds(method, "saturation"), data.seeds(method, "true_saturation")
    cells = [[a - b for a, b in zip(*both, strict=True)] for both in zip(own, true, strict=True)]
    means = [statistics.fmean(row) for row in cells]
    title = f"saturation of {method} above the truth's"
    return data.number(title, lambda drawn: statistics.fmean(means[index] for index in drawn), cells)


def judge_claims(
    records: Sequence[Record], root: Path, judge: Judge, costs: Mapping[str, Mapping[str, Any]]
) -> list[Claim]:
    """Every claim that the comparison's methods allow to test, in the papers' order.

    Args:
        records: of all cells; for each claim, prompts that one of its methods lacks or failed at are left out.
        root: where the cells' pictures are.
        judge: measures distances between pictures.
        costs: by method, as in ``costs.json``; may be empty.
    """
    tests: list[tuple[set[str], tuple[str, ...], Callable[[Comparison], Claim | None]]] = [
        *(
            ({name, f"tp_{name}"}, figures, partial(test, name=name, judge=judge))
            for name in PACED
            for test, figures in (
                (_dreamtime_speed, ()),
                (_dreamtime_spread, (PICTURES,)),
                (_dreamtime_finished, (PICTURES,)),
                (_dreamtime_variants, ("variant",)),
            )
        ),
        ({"csd", "sds_100"}, (), _csd_alone),
        ({"sds_7.5", "csd", "asd"}, (), _small_scale),
        ({"sds_100", "asd", "vsd"}, ("true_saturation",), _saturation),
        ({"sds_100", "asd", "vsd"}, ("true_saturation",), _oversaturation),
        ({"asd", "vsd"}, (), partial(_asd_against_vsd, costs=costs)),
        ({"asd", "asd_fixed", "asd_eta_0"}, (), _random_shift),
        ({"asd", "asd_eta_1", "sds_7.5"}, (), _large_eta),
    ]
    every, found = len({record["prompt"] for record in records}), []
    for needed, figures, test in tests:
        data = select(records, needed, root, figures)
        if data and (claim := test(data)):
            fewer = [f"from {len(data)} of {every} prompts"] if len(data) < every else []
            found.append(replace(claim, notes=[*claim.notes, *fewer]))
    return found


def select(
    records: Sequence[Record], methods: set[str], root: Path, figures: Sequence[str] = ()
) -> Comparison | None:
    """The cells of some methods on the prompts that all of them finished, with these figures; None where there are none.

    Of the figures, ``PICTURES`` stands for the pictures that a cell kept.
    """
    of_each = {name: by_prompt(of(records, name)) for name in sorted(methods)}
    whole = [
        {
            cells[0]["prompt"]
            for cells in groups
            if all(
                not cell["error"] and "final" in cell and all(_has(cell, name, root) for name in figures)
                for cell in cells
            )
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


def _has(cell: Record, name: str, root: Path) -> bool:
    return pictured(cell, root) if name == PICTURES else cell["final"].get(name) is not None


def _pictures(data: Comparison, cells: Sequence[Record]) -> list[Tensor]:
    """The pictures of cells that were selected for having them."""
    return [views for cell in cells if (views := views_of(cell, data.root)) is not None]


def _dreamtime_speed(data: Comparison, name: str, judge: Judge) -> Claim | None:
    if not _has_curves(data):
        return None
    when, gain = speed(data, f"tp_{name}", name)
    text = f"DreamTime's timesteps bring {name} to its final score in fewer iterations"
    claim = decide(text, len(data), found_below(gain, 0.0))
    return replace(claim, numbers=[when, gain])


def _several_seeds(data: Comparison) -> bool:
    return all(len(cells) > 1 for groups in data.prompts.values() for cells in groups)


def _has_curves(data: Comparison) -> bool:
    return all(data.steps(method) for method in data.prompts)


def _dreamtime_spread(data: Comparison, name: str, judge: Judge) -> Claim | None:
    if not (_several_seeds(data) and _has_curves(data)):
        return None
    found = found_above(spread_at_equal_quality(data, f"tp_{name}", name, judge))
    return decide(f"DreamTime's timesteps give {name} more diverse assets across seeds", len(data), found)


def _dreamtime_finished(data: Comparison, name: str, judge: Judge) -> Claim | None:
    paced = f"tp_{name}"

    def apart(cells: Sequence[Record]) -> float | None:
        return diversity(judge, [views[-1] for views in _pictures(data, cells)])

    if not _several_seeds(data):
        return None
    found = data.between_seeds(paced, name, "distance between seeds' finished assets", apart)
    colours = data.between_seeds(paced, name, "distance between their mean colours", _colours)
    beside = [data.difference(paced, name), *([colours] if colours else [])]
    text = f"DreamTime's timesteps give {name} more diverse finished assets"
    return decide(text, len(data), found_above(found), beside=beside) if found else None


def _colours(cells: Sequence[Record]) -> float | None:
    return colour_spread([cell["final"] for cell in cells])


def _dreamtime_variants(data: Comparison, name: str, judge: Judge) -> Claim | None:
    def variants(cells: Sequence[Record]) -> float | None:
        return distinct([cell["final"] for cell in cells])

    kept = [
        index
        for index in range(len(data))
        if all(variants(groups[index]) is not None for groups in data.prompts.values())
    ]
    if not kept:
        return None
    part = replace(data, prompts={key: [groups[i] for i in kept] for key, groups in data.prompts.items()})
    found = part.between_seeds(f"tp_{name}", name, "variants among the seeds", variants)
    text = f"DreamTime's timesteps bring {name}'s seeds to more of a name's variants"
    return decide(text, len(part), found_above(found)) if found else None


def _csd_alone(data: Comparison) -> Claim:
    found = found_above(data.difference("csd", "sds_100"), -MARGIN)
    return decide(
        f"CSD alone carries SDS at scale 100: without the generator's term it is within {MARGIN} of it or better",
        len(data),
        found,
    )


def _small_scale(data: Comparison) -> Claim:
    low, *others = (
        data.number(f"r-precision of {name}", data.mean(name, "r_precision"), data.seeds(name, "r_precision"))
        for name in ("sds_7.5", "csd", "asd")
    )
    return decide(
        "SDS at scale 7.5 fails (an R-precision below a half) where CSD and ASD do not",
        len(data),
        found_below(low, 0.5),
        *(found_above(number, 0.5) for number in others),
    )


def _saturation(data: Comparison) -> Claim:
    most = excess(data, "sds_100")
    lower = [data.difference("sds_100", name, "saturation") for name in ("asd", "vsd")]
    findings = [found_above(most), *(found_above(number, matters=PALER) for number in lower)]
    return decide("SDS at scale 100 oversaturates; ASD and VSD do less", len(data), *findings)


def _oversaturation(data: Comparison) -> Claim:
    findings = [
        found_above(excess(data, "sds_100"), PALER),
        *(found_below(excess(data, name), PALER) for name in ("asd", "vsd")),
    ]
    text = f"SDS at scale 100 oversaturates (by more than {PALER}); ASD and VSD do not"
    return decide(text, len(data), *findings)


def _asd_against_vsd(data: Comparison, costs: Mapping[str, Mapping[str, Any]]) -> Claim:
    findings = [found_above(data.difference("asd", "vsd"), -MARGIN)]
    for key, title in (("step_ms", "time of a step"), ("peak_mib", "peak memory")):
        if {"asd", "vsd"} <= set(costs):
            share = costs["asd"][key] / costs["vsd"][key]
            cost = Number(f"{title} with asd over that with vsd", share, share - NOISE, share + NOISE)
            # More prompts measure a cost no better.
            findings.append(replace(found_below(cost, 1.0), gap=0.0))
        else:
            findings.append(Finding("not decidable", None))
    text = f"ASD matches VSD (within {MARGIN}) or beats it at less time and memory"
    return decide(text, len(data), *findings)


def _random_shift(data: Comparison) -> Claim:
    gains = [data.difference("asd", name) for name in ("asd_fixed", "asd_eta_0")]
    findings = [found_above(gain, matters=MARGIN) for gain in gains]
    return decide("ASD's random shift beats a fixed shift and none", len(data), *findings)


def _large_eta(data: Comparison) -> Claim:
    found = found_above(data.difference("asd", "asd_eta_1"), matters=MARGIN)
    beside = [data.difference("asd_eta_1", "sds_7.5")]
    return decide("Too large an eta degrades ASD (towards SDS)", len(data), found, beside=beside)

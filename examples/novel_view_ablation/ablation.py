"""Ablation of Efficient-3DiM and of the rotated code: the papers' claims, put to the test on records of trainings."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cells import (
    BASELINE,
    CODE_ROWS,
    FLAT,
    FULL,
    LAWS,
    POWER,
    ROWS,
    SHORT_ROWS,
    WHOLE,
    law_name,
)

from distill.files.lines import with_nan
from distill.lab.comparison.claims import reached
from distill.lab.comparison.verdicts import Claim, Number, above, all_of, bootstrap

#: The paper's LPIPS and MSE of Table 1.
PAPER = {
    "uniform + CLIP": (0.236, 0.187),
    "Gaussian + CLIP": (0.205, 0.142),
    "Gaussian + DINO": (0.187, 0.136),
    "Gaussian + CLIP + amalgamation": (0.191, 0.144),
    "Gaussian + DINO + amalgamation": (0.171, 0.128),
}


@dataclass(frozen=True)
class Training:
    """One finished training.

    Attributes:
        name: of its row or law.
        seed: its own.
        updates: how long it was.
        said: the whole record.
        curve: of its validation: ``step``, ``loss`` and ``view_mse``, see ``cells.measured``.
        objects: figures of every held-out object, by name.
        folder: of its files.
    """

    name: str
    seed: int
    updates: int
    said: Mapping[str, Any]
    curve: Sequence[Mapping[str, float]]
    objects: Mapping[str, Mapping[str, float]]
    folder: Path

    @classmethod
    def read(cls, folder: Path) -> Training:
        """Read a record from a cell's folder."""
        said = with_nan(json.loads((folder / "record.json").read_text()))
        lines = csv.DictReader((folder / "evaluation" / "objects.csv").open())
        objects = {
            line.pop("uid"): {name: float(value) for name, value in line.items() if name != "pairs"}
            for line in lines
        }
        return cls(said["name"], said["seed"], said["updates"], said, said["validation"], objects, folder)


@dataclass(frozen=True)
class Ablation:
    """All trainings by name, seeds in order, measured on the same objects; two are compared by the seeds that both have."""

    trainings: Mapping[str, Sequence[Training]]

    @classmethod
    def read(cls, root: Path) -> Ablation:
        """Read the finished cells of a folder.

        Raises:
            ValueError: there are none.
        """
        found = [Training.read(path.parent) for path in sorted((root / "cells").glob("*/record.json"))]
        if not found:
            raise ValueError(f"{root} has no finished training")
        order = [*ROWS, *SHORT_ROWS]
        names = sorted({training.name for training in found}, key=order.index)
        return cls({n: sorted((t for t in found if t.name == n), key=lambda t: t.seed) for n in names})

    def both(self, one: str, other: str) -> list[tuple[Training, Training]]:
        """Trainings of two names with the same seeds."""
        of = {training.seed: training for training in self.trainings[other]}
        return [(training, of[training.seed]) for training in self.trainings[one] if training.seed in of]

    @property
    def distance(self) -> str:
        """The perceptual distance's name."""
        first = next(iter(self.trainings.values()))[0]
        figures = next(iter(first.objects.values()))
        return next(name for name in figures if name in ("judge_distance", "lpips_vgg"))

    def mean(self, name: str, figure: str) -> float:
        return statistics.fmean(self.of_seed(training, figure) for training in self.trainings[name])

    @staticmethod
    def of_seed(training: Training, figure: str) -> float:
        return statistics.fmean(figures[figure] for figures in training.objects.values())

    def gain(self, worse: str, better: str, figure: str) -> Number:
        """Measure how much a metric decreases, over resampled objects, each the mean of its seeds."""
        pairs = self.both(worse, better)
        gains = [
            statistics.fmean(a.objects[uid][figure] - b.objects[uid][figure] for a, b in pairs)
            for uid in pairs[0][0].objects
        ]
        return bootstrap(
            f"{figure.replace('_', ' ')} of {worse} less that of {better}",
            lambda drawn: statistics.fmean(gains[i] for i in drawn),
            len(gains),
        )

    def seeds_agree(self, worse: str, better: str, figure: str) -> bool:
        """Tell whether the metric decreases for every seed, or for none."""
        pairs = self.both(worse, better)
        return len({self.of_seed(a, figure) > self.of_seed(b, figure) for a, b in pairs}) == 1

    def compares(self, *names: str) -> bool:
        """Tell whether there are trainings of all of these with a seed in common."""
        return set(names) <= self.trainings.keys() and all(self.both(names[0], name) for name in names)

    def better(self, worse: str, better: str, figures: Sequence[str]) -> tuple[str, list[Number]]:
        """Verdict on one training's being better in all figures; seeds that disagree leave it open."""
        gains = [self.gain(worse, better, figure) for figure in figures]
        verdicts = [
            above(gain) if self.seeds_agree(worse, better, figure) else "not decidable"
            for gain, figure in zip(gains, figures, strict=True)
        ]
        return all_of(*verdicts), gains


#: Claims of Table 1, and ours: what is said, the worse row and the better one.
COMPARED = (
    ("Gaussian timesteps beat uniform ones (Table 1)", BASELINE, "Gaussian + CLIP"),
    ("DINO features beat CLIP's (Table 1)", "Gaussian + CLIP", "Gaussian + DINO"),
    ("Amalgamation helps with CLIP (Table 1)", "Gaussian + CLIP", "Gaussian + CLIP + amalgamation"),
    ("Amalgamation helps with DINO (Table 1)", "Gaussian + DINO", FULL),
    ("All three together beat the baseline (Table 1)", BASELINE, FULL),
    *((f"A rotated code beats the paper's full recipe, {name.removeprefix('code: ')}", FULL, name) for name in CODE_ROWS),
    *((f"Tokens, FiLM and draft together beat {name.removeprefix('code: ')} alone", name, WHOLE) for name in list(CODE_ROWS)[:3]),
    ("With the code, power-law timesteps beat Gaussian ones", WHOLE, POWER),
)  # fmt: skip


def judge_claims(data: Ablation, costs: Mapping[str, Any]) -> list[Claim]:
    """The claims that the trainings can test.

    Args:
        data: the trainings.
        costs: milliseconds of an update with ``plain`` (float32, live encoding), ``mixed`` (precision) and ``cached``
            training, measured side by side; may be empty.
    """
    figures = (data.distance, "mse")
    claims = [turns(data, name) for name in (BASELINE, FULL) if name in data.trainings]
    claims += [
        Claim(text, *data.better(worse, better, figures))
        for text, worse, better in COMPARED
        if data.compares(worse, better)
    ]
    claims += law_claims(data)
    if data.compares(BASELINE, FULL):
        claims.append(speed(data, costs))
    best = law_name(1000, 200)
    if data.compares(best, FLAT):
        number = lead(data, FLAT, best, "updates")
        text = "A falling rate reaches a constant one's final loss sooner (part of Fig. 7, short trainings)"
        claims.append(Claim(text, above(number, 1.0), [number]))
    if costs:
        claims.append(thrift(costs))
    return claims


def turns(data: Ablation, name: str) -> Claim:
    """Tell whether a row draws the asked view more often than by chance; comparing rows that do not says little."""
    of_objects = [
        statistics.fmean(training.objects[uid]["pose_right"] for training in data.trainings[name])
        for uid in data.trainings[name][0].objects
    ]
    number = bootstrap(
        f"share of nearest views that are the asked one, {name}",
        lambda drawn: statistics.fmean(of_objects[i] for i in drawn),
        len(of_objects),
    )
    return Claim(
        f"{name} turns: the asked view of 12 is the nearest more often than by chance",
        above(number, 1 / 12),
        [number],
    )


def law_claims(data: Ablation) -> list[Claim]:
    """The claims of Fig. 6, on the shorter trainings."""
    best, claims = law_name(1000, 200), []
    for text, others in (
        (
            "A mean of 1000 is the best at a standard deviation of 200",
            [law for law in LAWS if law[1] == 200][1:],
        ),
        ("A standard deviation of 200 is better than 100 at a mean of 1000", [(1000, 100)]),
    ):
        names = [law_name(*law) for law in others]
        if data.compares(best, *names):
            found = [data.better(name, best, (data.distance,)) for name in names]
            numbers = [number for _, of_one in found for number in of_one]
            claims.append(Claim(f"{text} (Fig. 6)", all_of(*(verdict for verdict, _ in found)), numbers))
    return claims


def speed(data: Ablation, costs: Mapping[str, Any]) -> Claim:
    """Measure how much sooner the full recipe reaches the baseline's final loss, and its error of the drawn side."""
    what, ratio = ("time", costs["plain"] / costs["cached"]) if costs else ("updates", 1.0)
    numbers = [lead(data, BASELINE, FULL, what, ratio, figure) for figure in ("loss", "view_mse")]
    return Claim(
        "The full recipe reaches the baseline's final loss in less time (Fig. 7; the paper: 14 times; brackets: the "
        "seeds' range)",
        above(numbers[0], 1.0),
        numbers,
    )


def lead(data: Ablation, slow: str, fast: str, what: str, ratio: float = 1.0, figure: str = "loss") -> Number:
    """Divide one run's updates by those that another needs for its final validation figure; brackets: the seeds."""
    gains = []
    for behind, ahead in data.both(slow, fast):
        when = reached([(p["step"], -p[figure]) for p in ahead.curve], -behind.curve[-1][figure])
        gains.append(ratio * behind.updates / when)
    said = f"{what} of {slow} over that of {fast}, to the same {figure.replace('_', ' ')}"
    return Number(said, statistics.fmean(gains), min(gains), max(gains))


def thrift(costs: Mapping[str, Any]) -> Claim:
    """Measure how much of an update's time mixed precision and caching save."""
    mixed, cached = (1 - costs[name] / costs["plain"] for name in ("mixed", "cached"))
    numbers = [
        Number("saved by mixed precision", mixed, mixed, mixed),
        Number("saved by mixed precision and caching", cached, cached, cached),
    ]
    return Claim("Mixed precision saves about 40% of the time, caching a further 10%", all_of(
        "holds" if mixed >= 0.3 else "does not hold", "holds" if cached - mixed >= 0.05 else "does not hold"
    ), numbers)  # fmt: skip

"""Ablation of Efficient-3DiM: its tables and figures on a small scale, from records of training runs."""

from __future__ import annotations

import base64
import csv
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from distill.files.atomic import write_atomic
from distill.lab.comparison.claims import Claim, Number, above, all_of, bootstrap, reached
from distill.lab.comparison.report import as_csv, colours, draw, template_of

#: Table 1: what is special to each row, as options of ``distill.lab.novel_view.train``, and the paper's LPIPS and MSE.
ROWS: dict[str, dict[str, Any]] = {
    "uniform + CLIP": {"timestep_sampling": "uniform", "encoder": "clip", "amalgamation": False},
    "Gaussian + CLIP": {"encoder": "clip", "amalgamation": False},
    "Gaussian + DINO": {"encoder": "dino", "amalgamation": False},
    "Gaussian + CLIP + amalgamation": {"encoder": "clip"},
    "Gaussian + DINO + amalgamation": {"encoder": "dino"},
}
PAPER = {
    "uniform + CLIP": (0.236, 0.187),
    "Gaussian + CLIP": (0.205, 0.142),
    "Gaussian + DINO": (0.187, 0.136),
    "Gaussian + CLIP + amalgamation": (0.191, 0.144),
    "Gaussian + DINO + amalgamation": (0.171, 0.128),
}
BASELINE, FULL = "uniform + CLIP", "Gaussian + DINO + amalgamation"
#: Fig. 6: mean and standard deviation of the timesteps, thousandths of all; short runs of the last row.
LAWS = (
    (1000, 200), (700, 200), (500, 200), (300, 200), (0, 200),
    (1000, 100), (1000, 300), (1000, 400), (1000, 500),
)  # fmt: skip
#: Beside the laws: the best of them at a learning rate that does not fall.
FLAT = "constant rate"


def law_name(mean: int, std: int) -> str:
    return f"mean {mean}, std {std}"


@dataclass(frozen=True)
class Training:
    """One finished training.

    Attributes:
        name: of its row or law.
        seed: its own.
        updates: how long it was.
        curve: of its validation: ``step``, ``loss``, ``sample_mse`` and the perceptual distance of samples.
        objects: figures of every held-out object, by name.
        folder: of its files.
    """

    name: str
    seed: int
    updates: int
    curve: Sequence[Mapping[str, float]]
    objects: Mapping[str, Mapping[str, float]]
    folder: Path

    @classmethod
    def read(cls, folder: Path) -> Training:
        """Read a record from a cell's folder."""
        said = json.loads((folder / "record.json").read_text())
        lines = csv.DictReader((folder / "evaluation" / "objects.csv").open())
        objects = {
            line.pop("uid"): {name: float(value) for name, value in line.items() if name != "pairs"}
            for line in lines
        }
        return cls(said["name"], said["seed"], said["updates"], said["validation"], objects, folder)


@dataclass(frozen=True)
class Ablation:
    """All trainings by name, seeds in order, measured on the same objects."""

    trainings: Mapping[str, Sequence[Training]]

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
        uids = list(self.trainings[worse][0].objects)

        def of_objects(name: str) -> list[float]:
            return [statistics.fmean(t.objects[uid][figure] for t in self.trainings[name]) for uid in uids]

        before, after = of_objects(worse), of_objects(better)
        return bootstrap(
            f"{figure.replace('_', ' ')} of {worse} less that of {better}",
            lambda drawn: statistics.fmean(before[i] - after[i] for i in drawn),
            len(uids),
        )

    def seeds_agree(self, worse: str, better: str, figure: str) -> bool:
        """Tell whether the metric decreases for every seed, or for none."""
        pairs = zip(self.trainings[worse], self.trainings[better], strict=False)
        return len({self.of_seed(a, figure) > self.of_seed(b, figure) for a, b in pairs}) == 1

    def better(self, worse: str, better: str, figures: Sequence[str]) -> tuple[str, list[Number]]:
        """Verdict on one training's being better in all figures; seeds that disagree leave it open."""
        gains = [self.gain(worse, better, figure) for figure in figures]
        verdicts = [
            above(gain) if self.seeds_agree(worse, better, figure) else "not decidable"
            for gain, figure in zip(gains, figures, strict=True)
        ]
        return all_of(*verdicts), gains


def judge_claims(data: Ablation, costs: Mapping[str, Any]) -> list[Claim]:
    """The paper's claims that the trainings can test.

    Args:
        data: the trainings.
        costs: milliseconds of an update with ``plain`` (float32, live encoding), ``mixed`` (precision) and ``cached``
            training, measured side by side; may be empty.
    """
    figures = (data.distance, "mse")
    compared = [
        ("Gaussian timesteps beat uniform ones", BASELINE, "Gaussian + CLIP"),
        ("DINO features beat CLIP's", "Gaussian + CLIP", "Gaussian + DINO"),
        ("Amalgamation helps with CLIP", "Gaussian + CLIP", "Gaussian + CLIP + amalgamation"),
        ("Amalgamation helps with DINO", "Gaussian + DINO", FULL),
        ("All three together beat the baseline", BASELINE, FULL),
    ]
    claims = [
        Claim(f"{text} (Table 1)", *data.better(worse, better, figures))
        for text, worse, better in compared
        if {worse, better} <= data.trainings.keys()
    ]
    best = law_name(1000, 200)
    for text, others in (
        (
            "A mean of 1000 is the best at a standard deviation of 200",
            [law for law in LAWS if law[1] == 200][1:],
        ),
        ("A standard deviation of 200 is better than 100 at a mean of 1000", [(1000, 100)]),
    ):
        names = [law_name(*law) for law in others]
        if {best, *names} <= data.trainings.keys():
            found = [data.better(name, best, figures[:1]) for name in names]
            claims.append(
                Claim(f"{text} (Fig. 6)", all_of(*(v for v, _ in found)), [n for _, ns in found for n in ns])
            )
    if {BASELINE, FULL} <= data.trainings.keys():
        claims.append(speed(data, costs))
    if {best, FLAT} <= data.trainings.keys():
        number = lead(data, FLAT, best, "updates")
        text = (
            "A falling rate reaches a constant one's final distance sooner (part of Fig. 7, short trainings)"
        )
        claims.append(Claim(text, above(number, 1.0), [number]))
    if costs:
        claims.append(thrift(costs))
    return claims


def speed(data: Ablation, costs: Mapping[str, Any]) -> Claim:
    """Measure how much sooner the full recipe reaches the baseline's final perceptual distance."""
    what, ratio = ("time", costs["plain"] / costs["cached"]) if costs else ("updates", 1.0)
    number = lead(data, BASELINE, FULL, what, ratio)
    return Claim(
        "The full recipe reaches the baseline's final distance in less time (Fig. 7; the paper: 14 times; brackets: "
        "the seeds' range)",
        above(number, 1.0),
        [number],
    )


def lead(data: Ablation, slow: str, fast: str, what: str, ratio: float = 1.0) -> Number:
    """Divide one run's updates by those that another needs for its final perceptual distance; brackets: the seeds."""
    gains = []
    for behind, ahead in zip(data.trainings[slow], data.trainings[fast], strict=False):
        goal = -behind.curve[-1][f"sample_{data.distance}"]
        when = reached([(p["step"], -p[f"sample_{data.distance}"]) for p in ahead.curve], goal)
        gains.append(ratio * behind.updates / when)
    return Number(f"{what} of {slow} over that of {fast}", statistics.fmean(gains), min(gains), max(gains))


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


def write_report(root: Path) -> Path:
    """Write ``table.csv``, ``claims.csv``, ``samples.png`` and ``report.html`` from the cells of a folder.

    Raises:
        ValueError: no cell is finished.
    """
    found = [Training.read(path.parent) for path in sorted((root / "cells").glob("*/record.json"))]
    if not found:
        raise ValueError(f"{root} has no finished training")
    order = [*ROWS, *(law_name(*law) for law in LAWS), FLAT]
    names = sorted({training.name for training in found}, key=order.index)
    data = Ablation({n: sorted((t for t in found if t.name == n), key=lambda t: t.seed) for n in names})
    path = root / "costs.json"
    claims = judge_claims(data, json.loads(path.read_text()) if path.exists() else {})
    said = [
        {"claim": c.text, "verdict": c.verdict, "numbers": "; ".join(map(str, c.numbers))} for c in claims
    ]
    write_atomic(root / "claims.csv", as_csv(said))
    figures = (data.distance, "mse", "mse_signed", "psnr", "ssim", "pose_right", "pose_error_deg")
    write_atomic(
        root / "table.csv",
        as_csv(
            [
                {"name": n, "seeds": len(data.trainings[n]), **{f: data.mean(n, f) for f in figures}}
                for n in names
            ]
        ),
    )
    titles = ["", *(name.replace("_", " ") for name in figures), "paper: LPIPS, MSE"]
    rows = [
        [n, *(_cell(data, n, f) for f in figures), "{:.3f}, {:.3f}".format(*PAPER[n])]
        for n in names
        if n in ROWS
    ]
    laws = [[n, *(_cell(data, n, f) for f in figures)] for n in names if n not in ROWS]
    draw_samples(root, data)
    shown = [name for name in names if name in ROWS]
    charts = [chart(data, shown, f"sample_{data.distance}"), chart(data, shown, "loss")]
    page = template_of("ablation.html").render(
        cells=len(found),
        distance=data.distance.replace("_", " "),
        tables=[
            ("Table 1 in kind", titles, rows),
            *([("Fig. 6 in kind", titles[:-1], laws)] if laws else []),
        ],
        claims=said,
        charts=charts,
        colours=dict(zip(shown, colours(shown), strict=True)),
        grid=base64.b64encode((root / "samples.png").read_bytes()).decode(),
    )
    write_atomic(root / "report.html", page)
    return root / "report.html"


def _cell(data: Ablation, name: str, figure: str) -> str:
    """Mean over seeds, and half of their range."""
    values = [data.of_seed(training, figure) for training in data.trainings[name]]
    half = (max(values) - min(values)) / 2
    digits = 1 if figure in ("psnr", "pose_error_deg") else 4 if "mse" in figure else 3
    return f"{statistics.fmean(values):.{digits}f}" + (f" ± {half:.{digits}f}" if len(values) > 1 else "")


def chart(data: Ablation, names: Sequence[str], figure: str) -> dict[str, Any]:
    """A figure of validation over updates: the seeds' mean and half of their range."""
    series = []
    for name in names:
        columns = zip(*(training.curve for training in data.trainings[name]), strict=False)
        line = []
        for points in columns:
            values = [point[figure] for point in points]
            line.append((points[0]["step"], statistics.fmean(values), (max(values) - min(values)) / 2))
        series.append((name, line))
    return draw(f"{figure.replace('_', ' ')} over updates", series, float)


def draw_samples(root: Path, data: Ablation, rows: int = 6) -> None:
    """The first rows of every training's sheet side by side, its name above, for the first seed."""
    sheets = []
    for name in (name for name in data.trainings if name in ROWS):
        sheet = Image.open(data.trainings[name][0].folder / "evaluation" / "sheet.png")
        cell = sheet.width // 3
        step = max(1, sheet.height // cell // rows)
        picked = [
            np.asarray(sheet)[row * cell : (row + 1) * cell] for row in range(0, sheet.height // cell, step)
        ][:rows]
        sheets.append((name, np.concatenate(picked)))
    if not sheets:
        Image.new("RGB", (8, 8), "white").save(root / "samples.png")
        return
    wide, tall = sheets[0][1].shape[1] + 12, sheets[0][1].shape[0]
    whole = Image.new("RGB", (wide * len(sheets), tall + 34), "white")
    pen = ImageDraw.Draw(whole)
    for number, (name, picture) in enumerate(sheets):
        lines = name.replace(" + amalgamation", "\n+ amalgamation")
        pen.multiline_text(
            (number * wide + wide / 2, 17), lines, "black", anchor="mm", align="center", font_size=13
        )
        whole.paste(Image.fromarray(picture), (number * wide, 34))
    whole.save(root / "samples.png")

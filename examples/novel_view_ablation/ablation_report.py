"""The ablation's files: tables, claims, curves, pictures, one page that holds them all, and its part of the documentation."""

from __future__ import annotations

import base64
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ablation import PAPER, Ablation, judge_claims
from cells import CODE_ROWS, ROWS
from PIL import Image, ImageDraw

from distill.files.atomic import write_atomic
from distill.lab.comparison.report import as_csv, colours, draw, template_of

#: Figures of the tables, and their titles.
FIGURES = {
    "distance": "", "mse": "MSE, [0, 1]", "mse_signed": "[-1, 1]", "psnr": "PSNR, dB", "ssim": "SSIM",
    "pose_right": "nearest view right", "pose_error_deg": "azimuth off",
}  # fmt: skip
BEGIN, END = "<!-- ablation -->", "<!-- end of ablation -->"


def write_report(root: Path) -> Path:
    """Write ``table.csv``, ``claims.csv``, ``samples.png``, ``ablation.md`` and ``report.html`` from a folder's cells.

    Raises:
        ValueError: no cell is finished.
    """
    data = Ablation.read(root)
    path = root / "costs.json"
    claims = judge_claims(data, json.loads(path.read_text()) if path.exists() else {})
    said = [
        {"claim": c.text, "verdict": c.verdict, "numbers": "; ".join(map(str, c.numbers))} for c in claims
    ]
    write_atomic(root / "claims.csv", as_csv(said))
    figures = [data.distance if name == "distance" else name for name in FIGURES]
    lines = [
        {"name": name, "seeds": len(found), **{f: data.mean(name, f) for f in figures}}
        for name, found in data.trainings.items()
    ]
    write_atomic(root / "table.csv", as_csv(lines))
    draw_samples(root, data)
    tables = tables_of(data)
    write_atomic(root / "ablation.md", as_markdown(data, tables, said))
    shown = [name for name in data.trainings if name in ROWS]
    page = template_of("ablation.html", Path(__file__).parent).render(
        cells=sum(map(len, data.trainings.values())),
        distance=data.distance.replace("_", " "),
        tables=tables,
        claims=said,
        charts=[chart(data, shown, figure) for figure in ("loss", "view_mse", "view_right")],
        colours=dict(zip(shown, colours(shown), strict=True)),
        grid=base64.b64encode((root / "samples.png").read_bytes()).decode(),
    )
    write_atomic(root / "report.html", page)
    return root / "report.html"


def tables_of(data: Ablation) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, columns and lines of each table: the paper's rows, those with a code, and the timesteps' laws."""
    columns = ["", *(title or data.distance.replace("_", " ") for title in FIGURES.values())]
    lines = {name: [name, *(_cell(data, name, figure) for figure in FIGURES)] for name in data.trainings}
    paper = [[*lines[n], "{:.3f}, {:.3f}".format(*PAPER[n])] for n in lines if n in PAPER]
    code = [lines[name] for name in lines if name in CODE_ROWS]
    laws = [lines[name] for name in lines if name not in ROWS]
    found = [
        ("Table 1 in kind", [*columns, "paper: LPIPS, MSE"], paper),
        ("The paper's full recipe with a rotated code", columns, code),
        ("Fig. 6 in kind", columns, laws),
    ]
    return [table for table in found if table[2]]


def as_markdown(
    data: Ablation, tables: Sequence[tuple[str, list[str], list[list[str]]]], claims: Sequence[dict[str, str]]
) -> str:
    """The part of the documentation that says what was trained and found, to be put between ``BEGIN`` and ``END``."""
    found = [training for trainings in data.trainings.values() for training in trainings]
    first, seeds = found[0].said, len({training.seed for training in found if training.name in ROWS})
    lengths = sorted({training.updates for training in found}, reverse=True)
    short = f" ({lengths[1]:,} for the laws of Fig. 6)" if len(lengths) > 1 else ""
    code = max(training.said["code"] for training in found)
    before = f" The code of a seed has first seen {code:,} pairs, without the UNet." if code else ""
    minutes = statistics.fmean(t.said["seconds"] for t in found if t.updates == lengths[0]) / 60
    text = (
        f"Each row was trained for {lengths[0]:,} updates{short} of {first['batch']} pairs with {seeds} seed"
        f"{'s' * (seeds > 1)} on {first['objects']:,} objects ({first['pictures']:,} pictures), in {minutes:.1f} minutes beside "
        f"others ({first['hardware']}), and measured on {first['unseen']} objects of held-out pairs.{before} ± is half of the "
        f"seeds' range.\n"
    )
    parts = [text]
    for title, columns, lines in tables:
        parts.append(f"{title}:\n\n" + _table(columns, lines))
    parts.append(_table(["claim", "verdict", "numbers"], [list(claim.values()) for claim in claims]))
    return "\n".join(parts)


def _table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [columns, ["---"] * len(columns), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def write_docs(root: Path, page: Path) -> None:
    """Put ``ablation.md`` between the page's marks, and the pictures beside the page as ``ablation.jpg``.

    Raises:
        ValueError: the page lacks the marks.
    """
    text = page.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(
            f"{page} must have the marks {BEGIN} and {END} once each, around what is to be replaced"
        )
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    picture = "![Input, truth, sample of every row, first seed](ablation.jpg)"
    said = (root / "ablation.md").read_text()
    Image.open(root / "samples.png").convert("RGB").save(page.parent / "ablation.jpg", quality=88)
    write_atomic(page, f"{before}{BEGIN}\n{said}\n{picture}\n{END}{after}")


def _cell(data: Ablation, name: str, figure: str) -> str:
    """Mean over seeds, and half of their range."""
    figure = data.distance if figure == "distance" else figure
    values = [data.of_seed(training, figure) for training in data.trainings[name]]
    half = (max(values) - min(values)) / 2
    digits = 1 if figure in ("psnr", "pose_error_deg") else 4 if "mse" in figure else 3
    mean, unit = statistics.fmean(values), "°" if figure == "pose_error_deg" else ""
    return f"{mean:.{digits}f}" + (f" ± {half:.{digits}f}" if len(values) > 1 else "") + unit


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
        lines = name.replace(" + amalgamation", "\n+ amalgamation").replace(": ", ":\n", 1)
        pen.multiline_text(
            (number * wide + wide / 2, 17), lines, "black", anchor="mm", align="center", font_size=13
        )
        whole.paste(Image.fromarray(picture), (number * wide, 34))
    whole.save(root / "samples.png")

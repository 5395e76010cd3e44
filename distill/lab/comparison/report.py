"""The comparison's files: two tables, a grid of pictures, and one page that holds them all."""

from __future__ import annotations

import base64
import csv
import io
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from distill.files.atomic import write_atomic
from distill.lab.comparison.figures import SIZE, colour_spread, distinct
from distill.lab.comparison.records import (
    Record,
    by_prompt,
    by_step,
    common_steps,
    costs_in,
    is_cost_of,
    judge_of,
    of,
    pictured,
    views_of,
)

#: Figures of the table: name and title.
FIGURES: tuple[tuple[str, str], ...] = (
    ("r_precision", "R-precision@1"),
    ("similarity", "similarity"),
    ("iou", "silhouette IoU"),
    ("chamfer", "chamfer"),
    ("colour_error", "colour error"),
    ("saturation", "saturation"),
    ("true_saturation", "true saturation"),
    ("oversaturation", "oversaturation"),
    ("janus", "Janus rate"),
)
COLOURS = ("#4269d0", "#ef7d22", "#3ca951", "#b5446e", "#8561c5", "#8c6d46", "#2a9d9d", "#777777", "#c2a300",
           "#e377c2", "#003f5c", "#a1c935", "#f28e8e", "#5b3a1e", "#6fb7f2", "#1b1b1b")  # fmt: skip


#: Figures of what the losses make from pictures.
PICTURED: tuple[tuple[str, str], ...] = (("iou", "IoU from a picture"), ("psnr", "PSNR from a picture"))


def write_report(root: Path, records: Sequence[Record]) -> Path:
    """Write ``results.csv``, ``curves.csv``, ``claims.csv``, ``grid.png`` and ``report.html``; returns the last."""
    from distill.lab.comparison.claims import judge_claims

    methods = list(dict.fromkeys(record["method"] for record in records))
    write_atomic(root / "results.csv", as_csv([row(record) for record in records]))
    points = [
        {**{key: record[key] for key in ("method", "prompt", "seed")}, **point}
        for record in records
        for point in record["points"]
    ]
    write_atomic(root / "curves.csv", as_csv(points))
    draw_grid(root, records)
    costs = costs_of(records, root)
    claims = judge_claims(records, root, judge_of(records), costs)
    lines = [
        {
            "claim": claim.text,
            "verdict": claim.verdict,
            "numbers": "; ".join([*map(str, claim.numbers), *claim.notes]),
        }
        for claim in claims
    ]
    write_atomic(root / "claims.csv", as_csv(lines))
    template = template_of("report.html")
    # What the thriftiest method spends in all: there, every method has had the same number of network calls.
    limit = min((record["calls"] for record in records if not record["error"]), default=0)
    page = template.render(
        titles=[title for _, title in (*FIGURES, *PICTURED)],
        table=[(name, summary(of(records, name), root, costs.get(name), limit)) for name in methods],
        charts=[
            chart(records, methods, by, value)
            for value in ("r_precision", "similarity")
            for by in ("step", "seconds", "calls")
        ],
        profiles=[gradient_chart(records, methods, value) for value in ("norm", "variance")],
        grid=base64.b64encode((root / "grid.png").read_bytes()).decode(),
        colours=dict(zip(methods, colours(methods), strict=True)),
        cells=len(records),
        limit=limit,
        claims=lines,
        options=options_of(records),
        failures=[record for record in records if record["error"]],
        variants=variants_of(records),
        unseen=sorted({r["prompt"] for r in records if not r["error"] and not pictured(r, root)}),
        untold=sorted({r["prompt"] for r in records if "final" in r and r["final"].get("iou") is None}),
    )
    write_atomic(root / "report.html", page)
    return root / "report.html"


def options_of(records: Sequence[Record]) -> dict[str, Any]:
    """The options of each method: their ``names``, and ``rows`` of a method with its values, empty where it does not set one."""
    options = {record["method"]: record["options"] for record in records}
    names = list(dict.fromkeys(name for each in options.values() for name in each))
    rows = [
        (method, [json.dumps(each[name]).strip('"') if name in each else "" for name in names])
        for method, each in options.items()
    ]
    return {"names": names, "rows": rows}


def costs_of(records: Sequence[Record], root: Path) -> dict[str, dict[str, Any]]:
    """What a step of each method costs, as ``costs.json`` says; a cost that is of other options than the cells' is left out."""
    options = {record["method"]: record["options"] for record in records}
    return {
        name: cost
        for name, cost in costs_in(root).items()
        if name in options and is_cost_of(cost, options[name])
    }


def template_of(name: str, folder: Path | None = None) -> Any:
    """A page's template, of those that lie beside this file or in a folder, whose templates can import these."""
    import jinja2

    beside = jinja2.PackageLoader("distill.lab.comparison", "")
    loader = jinja2.ChoiceLoader([jinja2.FileSystemLoader(folder), beside]) if folder else beside
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined).get_template(
        name
    )


def row(record: Record) -> dict[str, Any]:
    """One cell as a line of the table."""
    kept = ("method", "prompt", "seed", "seconds", "calls", "skipped", "error")
    return {**{key: record.get(key) for key in kept}, **record.get("final", {})}


def figure_of(record: Record, name: str) -> float | None:
    """One of ``FIGURES``; None where there is no truth that it needs."""
    final = record["final"]
    if name != "oversaturation":
        return final.get(name)
    true = final.get("true_saturation")
    return None if true is None else final["saturation"] - true


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for line in rows for name in line))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def spread(values: Sequence[float | None]) -> tuple[float, float] | None:
    """Mean and standard error of what there is, assumed to be independent."""
    found = [value for value in values if value is not None]
    if not found:
        return None
    error = statistics.stdev(found) / len(found) ** 0.5 if len(found) > 1 else 0.0
    return statistics.fmean(found), error


def at_calls(record: Record, limit: float) -> float | None:
    """A cell's similarity when it had asked the network for so many pictures, straight between its points."""
    points = record["points"]
    if not points or limit < points[0]["calls"]:
        return None
    return float(np.interp(limit, [p["calls"] for p in points], [p["similarity"] for p in points]))


def summary(records: Sequence[Record], root: Path, cost: Mapping[str, Any] | None, limit: float) -> list[str]:
    """A method's line: means over its prompts with standard errors, then diversity, costs and failures."""

    def text(values: Sequence[float | None], digits: int = 3) -> str:
        found, several = spread(values), sum(value is not None for value in values) > 1
        error = f" \N{PLUS-MINUS SIGN} {found[1]:.{digits}f}" if found and several else ""
        return "-" if found is None else f"{found[0]:.{digits}f}{error}"

    whole = by_prompt([record for record in records if not record["error"]])

    def per_prompt(figure: Callable[[Record], float | None]) -> list[float | None]:
        # Seeds of one prompt are alike, so a prompt is one observation.
        means = [spread([figure(record) for record in group]) for group in whole]
        return [found[0] if found else None for found in means]

    line = [text(per_prompt(lambda r, name=name: figure_of(r, name))) for name, _ in FIGURES]  # type: ignore[misc]
    line += [text(values) for values in from_pictures(root, records[0]["method"])]
    line.append(text(per_prompt(lambda record: at_calls(record, limit))))
    line.append(text([diversity_of(group, root) for group in whole]))
    finals = [[record["final"] for record in group] for group in whole]
    line += [text([distinct(group) for group in finals], 2), text([colour_spread(group) for group in finals])]
    line.append(text(per_prompt(lambda record: record["seconds"]), 1))
    line.append(text(per_prompt(lambda record: record["calls"]), 0))
    line += [f"{cost[key]:.0f}" if cost else "-" for key in ("step_ms", "peak_mib")]
    return [*line, str(sum(bool(record["error"]) for record in records))]


def variants_of(records: Sequence[Record]) -> list[tuple[str, list[str]]]:
    """For each method and prompt with several variants, which of them each seed came nearest to.

    Returns:
        A heading and lines, each the method and a cell for each prompt; empty where no prompt has variants.
    """
    told = [record for record in records if (record.get("final", {}).get("variants") or 1) > 1]
    prompts = list(dict.fromkeys(record["prompt"] for record in told))
    if not prompts:
        return []
    counts = {record["prompt"]: record["final"]["variants"] for record in told}
    lines = [("method", [f"{prompt} (of {counts[prompt]})" for prompt in prompts])]
    for method in dict.fromkeys(record["method"] for record in told):
        own = {cells[0]["prompt"]: cells for cells in by_prompt(of(told, method))}
        numbers = [", ".join(str(r["final"]["variant"]) for r in own.get(prompt, [])) for prompt in prompts]
        lines.append((method, numbers))
    return lines


def from_pictures(root: Path, method: str) -> list[list[float | None]]:
    """The figures of ``PICTURED`` of each object that a method made from a picture; empty where it made none."""
    path = root / "pictures.csv"
    if not path.exists():
        return [[] for _ in PICTURED]
    with path.open() as file:
        own = [line for line in csv.DictReader(file) if line["method"] == method]
    return [[float(line[name]) for line in own] for name, _ in PICTURED]


def diversity_of(records: Sequence[Record], root: Path) -> float | None:
    """Between the seeds of one prompt, from the pictures that the cells kept; None where one has none."""
    from distill.lab.comparison.figures import diversity

    kept = [views[-1] for record in records if (views := views_of(record, root)) is not None]
    return diversity(judge_of(records), kept) if len(kept) == len(records) else None


def colours(methods: Sequence[str]) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(len(methods))]


def chart(records: Sequence[Record], methods: Sequence[str], by: str, value: str) -> dict[str, Any]:
    """Mean and standard error over cells, at the steps at which all have a point; time is the cells' mean at that point."""
    series = []
    for name in methods:
        whole = [record for record in of(records, name) if not record["error"]]
        points = [by_step(record) for record in whole]
        columns = [[own[step] for own in points] for step in common_steps(whole)]
        line = [
            (
                statistics.fmean(point[by] for point in column),
                *(spread([p[value] for p in column]) or (0.0, 0.0)),
            )
            for column in columns
        ]
        series.append((name, line))
    over = {"step": "steps", "seconds": "seconds", "calls": "network calls"}[by]
    return draw(f"{value.replace('_', '-')} over {over}", series, float)


def gradient_chart(records: Sequence[Record], methods: Sequence[str], value: str) -> dict[str, Any]:
    """The gradient's norm or variance over t, on a logarithmic scale."""
    import math

    series = []
    for name in methods:
        columns = zip(
            *(record["gradient"] for record in of(records, name) if "gradient" in record), strict=False
        )
        line = []
        for column in columns:
            found = [math.log10(point[value]) for point in column if point[value] > 0]
            if found:
                line.append((column[0]["t"], *(spread(found) or (0.0, 0.0))))
        series.append((name, line))
    return draw(f"log10 of the gradient's {value} over t", series, float)


def draw(
    title: str, series: Sequence[tuple[str, list[Any]]], number: Callable[[Any], float]
) -> dict[str, Any]:
    """SVG points on a canvas of 300 x 160: a line and a band for each series, and the axes' ends."""
    across = [point[0] for _, line in series for point in line]
    heights = [point[1] + side * point[2] for _, line in series for point in line for side in (-1, 1)]
    if not across:
        return {"title": title, "series": [], "x": (0, 1), "y": (0, 1)}
    left, right, low, high = min(across), max(across), min(heights), max(heights)

    def place(x: float, y: float) -> str:
        wide, tall = (right - left) or 1.0, (high - low) or 1.0
        return f"{300 * (x - left) / wide:.1f},{160 * (high - y) / tall:.1f}"

    lines = []
    for name, line in series:
        upper = [place(x, y + e) for x, y, e in line]
        lower = [place(x, y - e) for x, y, e in line]
        lines.append((name, " ".join(place(x, y) for x, y, _ in line), " ".join(upper + lower[::-1])))
    return {
        "title": title,
        "series": lines,
        "x": (number(left), number(right)),
        "y": (number(low), number(high)),
    }


def draw_grid(root: Path, records: Sequence[Record]) -> None:
    """Four sides of the first seed's asset: a row for each method, a column for each prompt."""
    prompts = list(dict.fromkeys(record["prompt"] for record in records))
    methods = list(dict.fromkeys(record["method"] for record in records))
    found = {(record["method"], record["prompt"], record["seed"]): record for record in records}
    seed, label, bar, gap = min(record["seed"] for record in records), 100, 24, 8
    wide, tall = 4 * SIZE + gap, SIZE + gap
    sheet = Image.new("RGB", (label + wide * len(prompts), bar + tall * len(methods)), "white")
    pen = ImageDraw.Draw(sheet)
    for column, prompt in enumerate(prompts):
        pen.text((label + wide * column + 2 * SIZE, bar // 2), prompt, "black", anchor="mm", font_size=14)
    for line, method in enumerate(methods):
        pen.text((8, bar + tall * line + SIZE // 2), method, "black", anchor="lm", font_size=14)
        for column, prompt in enumerate(prompts):
            cell = found.get((method, prompt, seed))
            views = views_of(cell, root) if cell else None
            if views is not None:
                for side, picture in enumerate(views[-1, ::2]):
                    pixels = (picture.movedim(0, -1) * 255).round().byte().numpy()
                    place = (label + wide * column + side * SIZE, bar + tall * line)
                    sheet.paste(Image.fromarray(pixels), place)
    sheet.save(root / "grid.png")

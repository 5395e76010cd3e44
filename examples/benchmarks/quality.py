"""Benchmark of whole assets: sixteen prompts of the embedded world, each kind once, each colour twice.

Four of the pairs are held out from the prior's training. The metrics are the judge's R-precision at 1 over eight views,
silhouette IoU with the ground truth at the best azimuth, and the seconds from prompt to files, including loading. An
interrupted run continues when started again; an asset that was interrupted halfway is finished but not timed.
    python quality.py --output ~/quality --prompts 16 --set iterations=800
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import finished
from PIL import Image, ImageDraw
from torch import Tensor

import distill
from distill.cameras import turntable
from distill.contracts import View
from distill.embedded import raycast, shapes, world
from distill.embedded.judge import load_judge, r_precision
from distill.lab.metrics import best_azimuth_iou, true_silhouettes

PROMPTS = (
    "a blue sphere",
    "a red cube",
    "a green cylinder",
    "a pink cone",
    "a pink torus",
    "a brown mug",
    "a brown table",
    "a yellow chair",
    "an orange snowman",
    "a red mushroom",
    "a blue house",
    "an orange rocket",
    "a purple car",
    "a yellow duck",
    "a green robot",
    "a purple teapot",
)
VIEWS, ELEVATION_DEG, SIZE = 8, 15.0, 128
Made = dict[str, Any]


def measure(view: View, prompt: str) -> Made:
    """R-precision at 1 over eight views, of the true shape too, and the IoU at the best azimuth."""
    _, kind = world.parse(prompt)
    pictures = view(turntable(VIEWS, ELEVATION_DEG), SIZE, SIZE).rgb.detach().cpu().permute(0, 3, 1, 2)
    iou, offset = best_azimuth_iou(view, true_silhouettes(kind, size=SIZE), VIEWS, ELEVATION_DEG)
    truth = true_pictures(prompt, VIEWS).permute(0, 3, 1, 2)
    judge = load_judge()
    return {
        "r_precision": r_precision(judge, pictures, prompt),
        "true_r_precision": r_precision(judge, truth, prompt),
        "iou": iou,
        "azimuth_offset_deg": offset,
    }


def true_pictures(prompt: str, views: int) -> Tensor:
    """The true object over white from evenly spaced sides, the front first, ``[views, size, size, 3]``."""
    colour, kind = world.parse(prompt)
    layers = raycast.render(shapes.build(kind), turntable(views, ELEVATION_DEG), SIZE, samples=2)
    return torch.from_numpy(raycast.over(layers.rgba(world.COLOURS[colour]), 1.0))


def save_strip(view: View, prompt: str, path: Path) -> None:
    """Save the true front and four sides of the asset next to each other."""
    sides = view(turntable(4, ELEVATION_DEG), SIZE, SIZE).rgb.detach().cpu()
    strip = torch.cat(list(torch.cat([true_pictures(prompt, 1), sides])), dim=1)
    Image.fromarray((strip.clamp(0, 1) * 255).round().byte().numpy()).save(path)


def make(prompt: str, folder: Path, overrides: dict[str, Any], generate: Callable[..., Any]) -> Made:
    """Make and measure one asset, or read the measurement of an earlier run."""
    result = folder / "quality.json"
    made: Made | None = finished(result, overrides)
    if made is not None:
        return made
    resumed = (folder / "asset").exists()
    start = time.perf_counter()
    asset = generate(prompt, output_dir=str(folder / "asset"), resume=resumed, **({"seed": 0} | overrides))
    seconds = None if resumed else time.perf_counter() - start
    folder.mkdir(parents=True, exist_ok=True)
    save_strip(asset.view, prompt, folder / "strip.png")
    held_out = world.held_out(*world.parse(prompt))
    made = {"prompt": prompt, "held_out": held_out, "seconds": seconds, "overrides": overrides}
    made |= measure(asset.view, prompt)
    result.write_text(json.dumps(made, indent=1) + "\n")
    return made


def mean(rows: list[Made], key: str) -> float:
    values = [row[key] for row in rows if row[key] is not None]
    return sum(values) / len(values) if values else float("nan")


def table(rows: list[Made]) -> str:
    """Markdown: a line for each asset, then means over the trained, the held-out and all pairs."""
    titles = ("prompt", "pair", "R-precision@1", "of the true shape", "IoU", "turned by", "seconds")
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for row in rows:
        pair = "held out" if row["held_out"] else "trained"
        lines.append(
            f"| {row['prompt']} | {pair} | {row['r_precision']:.3f} | {row['true_r_precision']:.3f} "
            f"| {row['iou']:.3f} | {row['azimuth_offset_deg']:g}° | {mean([row], 'seconds'):.0f} |"
        )
    for name, wanted in (("trained", (False,)), ("held out", (True,)), ("all", (False, True))):
        part = [row for row in rows if row["held_out"] in wanted]
        if part:
            shares = f"{mean(part, 'r_precision'):.3f} | {mean(part, 'true_r_precision'):.3f}"
            figures = f"{mean(part, 'iou'):.3f} | | {mean(part, 'seconds'):.0f}"
            lines.append(f"| **mean of {len(part)}** | {name} | {shares} | {figures} |")
    return "\n".join(lines)


def draw_sheet(rows: list[Made], strips: list[Path], path: Path) -> None:
    """Two columns of assets, each with its prompt, the true front, then four sides and the figures."""
    label, bar, gap, column = 172, 34, 6, 5 * SIZE
    width, deep = label + column, SIZE + gap
    half = -(-len(rows) // 2)
    sheet = Image.new("RGB", (2 * width + gap, bar + deep * half), "white")
    pen = ImageDraw.Draw(sheet)
    for side in range(2):
        left = side * (width + gap) + label
        for index, title in enumerate(("true front", "front", "left", "back", "right")):
            pen.text((left + index * SIZE + SIZE // 2, bar // 2), title, "#555555", anchor="mm", font_size=15)
    for index, (row, strip) in enumerate(zip(rows, strips, strict=True)):
        left, top = index // half * (width + gap), bar + index % half * deep
        middle = top + SIZE // 2
        pen.text((left + 10, middle - 18), row["prompt"], "black", anchor="lm", font_size=16)
        figures = f"R {row['r_precision']:.2f}   IoU {row['iou']:.2f}"
        pen.text((left + 10, middle + 4), figures, "#555555", anchor="lm", font_size=13)
        if row["held_out"]:
            pen.text((left + 10, middle + 24), "pair never seen", "#b03010", anchor="lm", font_size=13)
        sheet.paste(Image.open(strip), (left + label, top))
        pen.rectangle((left + label, top, left + label + SIZE - 1, top + SIZE - 1), outline="#bbbbbb")
    sheet.save(path)


def parse_value(text: str) -> tuple[str, Any]:
    """Read ``key=value``; the value is JSON where it can be, else text."""
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected key=value, got {text!r}")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("quality"))
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), help="only the first so many")
    parser.add_argument(
        "--set", type=parse_value, nargs="*", default=[], metavar="KEY=VALUE", dest="overrides"
    )
    options = parser.parse_args()
    overrides = dict(options.overrides)
    rows, strips = [], []
    for prompt in PROMPTS[: options.prompts]:
        folder = options.output / prompt.replace(" ", "-")
        rows.append(make(prompt, folder, overrides, distill.generate))
        strips.append(folder / "strip.png")
        print(f"{prompt}: R-precision {rows[-1]['r_precision']:.3f}, IoU {rows[-1]['iou']:.3f}", flush=True)
        # Rewritten after each asset, so that an interrupted run still leaves its figures.
        (options.output / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
        (options.output / "results.md").write_text(table(rows) + "\n")
        draw_sheet(rows, strips, options.output / "sheet.png")
    print(table(rows))


if __name__ == "__main__":
    main()

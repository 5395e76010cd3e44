"""Benchmark of whole assets: sixteen prompts of the embedded world, each kind once, each colour twice; or forty real objects.

Four of the sixteen pairs, and eight of the forty, are held out from the prior's training. The metrics are the judge's
R-precision at 1 over eight views, silhouette IoU with the ground truth at the best azimuth, of a thing with the variant
that fits best, and the seconds from prompt to files, including loading. An interrupted run continues when started again; an
asset that was interrupted halfway is finished but not timed.
    python examples/benchmarks/quality.py --output ~/quality --prompts 16 --set iterations=800
    python examples/benchmarks/quality.py --output ~/quality-things --things 38 --archives ~/things
    python examples/benchmarks/quality.py --output ~/quality-things --things 40 --archives ~/things --judge ~/judge/weights --set prior=~/prior/prior
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import finished
from measuring import table as format_table
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import interpolate

import distill
import distill.embedded.judge
from distill.cameras import turntable
from distill.contracts import View
from distill.embedded.judge import r_precision
from distill.embedded.prompt import prior_for
from distill.files.atomic import sha256
from distill.lab.truth import (
    ELEVATION_DEG,
    VIEWS,
    Source,
    asked,
    best_shape,
    check,
    check_meant,
    judge_folder,
    judge_of,
    matches,
    origin,
    truths,
)
from distill.run.journal import Interrupted

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
#: Twenty names as they are, twelve in a colour, and eight in the one that is held out; ``things`` knows the first 38 names.
THINGS = (
    "a hamburger",
    "a yellow tent",
    "an electric guitar",
    "a teddy bear",
    "a red fire hydrant",
    "a bicycle",
    "a cactus",
    "an orange traffic cone",
    "a cat",
    "a horse",
    "a yellow umbrella",
    "a christmas tree",
    "a blue office chair",
    "a dog",
    "a rocking horse",
    "a hot dog",
    "a blue table lamp",
    "a purple hat",
    "a barrel",
    "a brown stool",
    "a birthday cake",
    "a blue gift",
    "a fountain",
    "a red trash can",
    "a yellow kettle",
    "a red sofa",
    "a grand piano",
    "a pink deer",
    "an armchair",
    "a wheelbarrow",
    "a truck",
    "an orange tricycle",
    "a motorcycle",
    "a red sedan",
    "a brown biplane",
    "a green bench",
    "a pink bed",
    "a blue suitcase",
    "a red vase",
    "a rabbit",
)
SIZE = 128
NO_COLOUR = "no colour"
#: Truths of kinds alone.
KINDS = Source(size=SIZE, fine=SIZE)
Made = dict[str, Any]


def measured_with(prompt: str, source: Source, judged: bool = True) -> Made:
    """What a prompt's figures depend on besides the asset: where the truth is from, and the judge.

    The judge is told by the SHA-256 of its weights and of the code that scores with them.
    """
    found: Made = {"truth": origin(prompt, source)}
    if judged:
        parts = judge_folder(source, [prompt]) / "judge.safetensors", Path(distill.embedded.judge.__file__)
        found["judge"] = "-".join(sha256(part)[:16] for part in parts)
    return found


def measure(
    view: View, prompt: str, source: Source = KINDS, judged: bool = True
) -> tuple[Made, Tensor | None]:
    """R-precision at 1 over eight views, of the true object too, and the IoU at the best azimuth, with the best variant.

    Args:
        view: takes pictures of the asset.
        prompt: what it was made from.
        source: of the truth.
        judged: False for no R-precision.

    Returns:
        The figures, None where there is no truth, and the true front over white, ``[3, height, width]``.
    """
    seen = view(turntable(VIEWS, ELEVATION_DEG), SIZE, SIZE)
    rgb, opacity = (x.detach().cpu().movedim(-1, 1) for x in (seen.rgb, seen.opacity))
    caption = asked(prompt, source).caption

    def precision(pictures: Tensor) -> float | None:
        return r_precision(judge_of(source, [prompt]), pictures, caption) if judged else None

    figures: Made = {"r_precision": precision(rgb), **measured_with(prompt, source, judged)}
    compared = matches(view, truths(prompt, source), rgb, opacity)
    if not compared:
        return figures | dict.fromkeys(
            ("true_r_precision", "iou", "azimuth_offset_deg", "variant", "variants")
        ), None
    best = best_shape(compared)
    return figures | {
        "true_r_precision": precision(best.truth.rgb),
        "iou": best.iou,
        "azimuth_offset_deg": best.offset_deg,
        "variant": best.truth.variant,
        "variants": len(compared),
    }, best.truth.rgb[0]


def save_strip(view: View, front: Tensor | None, path: Path) -> None:
    """Save the true front, empty where it is not known, and four sides of the asset next to each other."""
    sides = view(turntable(4, ELEVATION_DEG), SIZE, SIZE).rgb.detach().cpu()
    true = torch.ones(1, 3, SIZE, SIZE) if front is None else front[None]
    true = interpolate(true, (SIZE, SIZE), mode="bilinear", align_corners=False).movedim(1, -1)
    strip = torch.cat(list(torch.cat([true, sides])), dim=1)
    Image.fromarray((strip.clamp(0, 1) * 255).round().byte().numpy()).save(path)


def make(
    prompt: str, folder: Path, overrides: dict[str, Any], generate: Callable[..., Any], source: Source = KINDS,
    judged: bool = True,
) -> Made:  # fmt: skip
    """Make and measure one asset, or read the measurement of an earlier run.

    An asset of an earlier run is measured again if the judge is another, or the kind of truth.
    """
    result = folder / "quality.json"
    made: Made | None = finished(result, overrides, measured_with(prompt, source, judged))
    if made is not None:
        return made
    resumed = (folder / "asset").exists()
    start = time.perf_counter()
    asset = generate(prompt, output_dir=str(folder / "asset"), resume=resumed, **({"seed": 0} | overrides))
    seconds: float | None = time.perf_counter() - start
    if resumed:  # the time of the run that made it, if it was measured then
        seconds = json.loads(result.read_text())["seconds"] if result.exists() else None
    folder.mkdir(parents=True, exist_ok=True)
    figures, front = measure(asset.view, prompt, source, judged)
    save_strip(asset.view, front, folder / "strip.png")
    wanted = asked(prompt, source)
    pair = NO_COLOUR if wanted.colour is None else "held out" if wanted.held_out else "trained"
    made = {
        "prompt": prompt,
        "pair": pair,
        "held_out": wanted.held_out,
        "seconds": seconds,
        "overrides": overrides,
    }
    made |= figures
    result.write_text(json.dumps(made, indent=1) + "\n")
    return made


def pair_of(row: Made) -> str:
    """Whether the pair was trained; earlier versions had no names without a colour."""
    return str(row.get("pair", "held out" if row["held_out"] else "trained"))


def mean(rows: list[Made], key: str) -> float:
    values = [row[key] for row in rows if row[key] is not None]
    return sum(values) / len(values) if values else float("nan")


def shown(rows: list[Made], key: str, digits: int = 3) -> str:
    """The mean of what is known, or a dash."""
    known = [row for row in rows if row[key] is not None]
    return f"{mean(known, key):.{digits}f}" if known else "-"


def variant_of(row: Made) -> str:
    """The variant that the IoU is with, and how many can be of the prompt's colour; empty for an object that has no others."""
    return f"{row['variant']} (of {row['variants']})" if (row.get("variants") or 1) > 1 else ""


def table(rows: list[Made]) -> str:
    """Markdown: a line for each asset, then means over the trained, the held-out, those without a colour, and all."""
    named = any(variant_of(row) for row in rows)
    titles = ["prompt", "pair", "R-precision@1", "of the true shape", "IoU", "turned by", "seconds"]
    lines = [[*titles, *(["variant"] if named else [])]]
    for row in rows:
        turned = "-" if row["iou"] is None else f"{row['azimuth_offset_deg']:g}°"
        shares = [shown([row], key) for key in ("r_precision", "true_r_precision", "iou")]
        line = [row["prompt"], pair_of(row), *shares, turned, shown([row], "seconds", 0)]
        lines.append([*line, *([variant_of(row)] if named else [])])
    for name in ("trained", "held out", NO_COLOUR, "all"):
        part = [row for row in rows if name in ("all", pair_of(row))]
        if part:
            shares = [shown(part, key) for key in ("r_precision", "true_r_precision", "iou")]
            line = [f"**mean of {len(part)}**", name, *shares, "", shown(part, "seconds", 0)]
            lines.append([*line, *([""] if named else [])])
    return format_table(lines[0], lines[1:])


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
        figures = f"R {shown([row], 'r_precision', 2)}   IoU {shown([row], 'iou', 2)}"
        pen.text((left + 10, middle + 4), figures, "#555555", anchor="lm", font_size=13)
        if row["held_out"]:
            pen.text((left + 10, middle + 24), "pair never seen", "#b03010", anchor="lm", font_size=13)
        if variant_of(row):
            pen.text(
                (left + 10, middle + 44), f"variant {row['variant']}", "#555555", anchor="lm", font_size=13
            )
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


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("quality"))
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), help="only the first so many")
    parser.add_argument(
        "--things", type=int, metavar="N", help=f"the first N of {len(THINGS)} real objects instead"
    )
    parser.add_argument("--archives", type=Path, help="folder of the things' archives, for their true meshes")
    parser.add_argument("--pack", type=Path, help="folder of their pictures, where there are no archives")
    parser.add_argument("--judge", type=Path, help="folder of a judge that was trained on things")
    parser.add_argument(
        "--no-judge", action="store_true", help="measure the IoU and the time of --things alone"
    )
    parser.add_argument(
        "--set", type=parse_value, nargs="*", default=[], metavar="KEY=VALUE", dest="overrides"
    )
    options = parser.parse_args()
    if options.things is None and (options.archives or options.pack or options.judge):
        parser.error("--archives, --pack and --judge are for --things")
    if options.no_judge and (options.things is None or options.judge):
        parser.error("--no-judge is for --things, and takes no --judge")
    return options


def main() -> None:
    options = parse_options()
    overrides = dict(options.overrides)
    prompts = PROMPTS[: options.prompts] if options.things is None else THINGS[: options.things]
    source = Source(options.archives, options.pack, size=SIZE, fine=SIZE, judge=options.judge)
    check(prompts, source, None if options.no_judge else judge_of(source, prompts))
    check_meant(prompts, str(overrides.get("prior", prior_for(prompts))))
    if options.things and not (options.archives or options.pack):
        print("no truth of things: give --archives or --pack for the IoU and the true object's R-precision")
    rows, strips = [], []
    for prompt in prompts:
        folder = options.output / prompt.replace(" ", "-")
        rows.append(make(prompt, folder, overrides, distill.generate, source, not options.no_judge))
        strips.append(folder / "strip.png")
        said = f"R-precision {shown(rows[-1:], 'r_precision')}, IoU {shown(rows[-1:], 'iou')}"
        print(f"{prompt}: {said}", flush=True)
        # Rewritten after each asset, so that an interrupted run still leaves its figures.
        (options.output / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
        (options.output / "results.md").write_text(table(rows) + "\n")
        draw_sheet(rows, strips, options.output / "sheet.png")
    print(table(rows))


if __name__ == "__main__":
    try:
        main()
    except Interrupted as stopped:
        print(f"{stopped}; run this again to continue", file=sys.stderr)
        sys.exit(130)
    except ValueError as error:
        sys.exit(f"error: {error}")

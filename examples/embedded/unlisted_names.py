"""Make assets of the real objects that a prior's ``names.json`` leaves out, and list those that are recognised.

``evaluate_prior.py --keep`` lists names by their samples. Distillation averages over many noises, so that an asset can be right where
single samples often are not. With ``--add``, names are listed whose asset the judge recognises in enough of eight views, and whose
silhouettes are those of the true object. An interrupted run continues when started again:

    python examples/embedded/unlisted_names.py --output ~/unlisted --pack ~/things/pack
    python examples/embedded/unlisted_names.py --output ~/unlisted --pack ~/things/pack --add
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import things_dataset

import distill
from distill.cameras import turntable
from distill.contracts import View
from distill.embedded import things
from distill.embedded.judge import r_precision
from distill.embedded.vocabulary import NAMES, SHIPPED, read_names, write_names
from distill.lab.truth import ELEVATION_DEG, VIEWS, Source, asked, best_shape, judge_of, matches, truths
from distill.run.watchdog import Collapsed

SIZE = 128
#: Least share of views that are recognised (five of eight), and least silhouette IoU, of a name that is listed.
R_PRECISION, IOU = 0.6, 0.6


def measure(view: View, prompt: str, source: Source) -> tuple[float, float]:
    """The judge's R-precision at 1 over eight views, and the silhouette IoU with the true object at the best azimuth."""
    seen = view(turntable(VIEWS, ELEVATION_DEG), SIZE, SIZE)
    rgb, opacity = (x.detach().cpu().movedim(-1, 1) for x in (seen.rgb, seen.opacity))
    recognised = r_precision(judge_of(source, [prompt]), rgb, asked(prompt, source).caption)
    return recognised, best_shape(matches(view, truths(prompt, source), rgb, opacity)).iou


def knowing_all(folder: Path, prior: Path, pack: things.Pack) -> Path:
    """A copy of a prior whose ``names.json`` has every name of a pack."""
    if not folder.exists():
        shutil.copytree(prior, folder)
    write_names(folder, things_dataset.known(pack))
    return folder


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the assets and their figures")
    parser.add_argument(
        "--pack", type=Path, required=True, help="pack of real objects that the prior was trained on"
    )
    parser.add_argument("--prior", type=Path, default=SHIPPED["things"], help="folder of the prior")
    parser.add_argument(
        "--add", action="store_true", help="write the names that are recognised into the prior's names.json"
    )
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    pack = things.read_pack(options.pack)
    listed, source = read_names(options.prior / NAMES), Source(pack=options.pack, size=SIZE, fine=SIZE)
    missing = [row for row in things_dataset.known(pack) if row[0] not in {own[0] for own in listed}]
    prior = knowing_all(options.output / "prior", options.prior, pack)
    added = []
    for row in missing:
        prompt, folder = things.caption(row[0], row[1]), options.output / row[0].replace(" ", "-")
        result = folder / "result.json"
        if not result.exists():
            resume = (folder / "asset").exists()
            made = {"output_dir": str(folder / "asset"), "resume": resume, "seed": 0, "export.enabled": False}
            try:
                figures = measure(distill.generate(prompt, prior=str(prior), **made).view, prompt, source)
            except Collapsed:  # nothing is seen of it, from any side
                figures = 0.0, 0.0
            folder.mkdir(parents=True, exist_ok=True)
            result.write_text(json.dumps(figures) + "\n")
        recognised, iou = json.loads(result.read_text())
        good = recognised >= R_PRECISION and iou >= IOU
        added += [row] if good else []
        print(
            f"{prompt}: R-precision {recognised:.3f}, IoU {iou:.3f}{', recognised' if good else ''}",
            flush=True,
        )
    print(f"{len(added)} of {len(missing)} names: {', '.join(name for name, *_ in added)}")
    if options.add:
        write_names(options.prior, sorted([*listed, *added]))
        print(f"{options.prior / NAMES} has {len(listed) + len(added)} names")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")

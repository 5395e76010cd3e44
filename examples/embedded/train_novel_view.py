"""Train the embedded novel-view model, from renders to the folder that ships; every step goes on where it was.

    python train_novel_view.py --work ~/novel_view

About two and a half hours on two CPU cores: renders, the image encoder, then the model from the embedded prior with
Efficient-3DiM's recipe. A last, shorter part widens the timesteps' spread, for the recipe leaves the finest noise levels all but untrained,
and a small network forgets them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import torch

from distill.priors.novel_view.pipeline import NovelViewPipeline
from distill.priors.source import EMBEDDED

HERE = Path(__file__).resolve().parent
SHIPPED = HERE.parents[1] / "distill/embedded/novel_view"
#: Cameras like those that the scenes are made from.
CAMERAS = [
    "--size",
    "64",
    "--fov",
    "40",
    "40",
    "--distance",
    "3.0",
    "3.4",
    "--elevation",
    "-10",
    "60",
    "--scale",
    "0.75",
    "1.25",
]


def run(*command: str) -> None:
    """Run a Python command that must succeed."""
    print(" ".join(command), flush=True)
    subprocess.run([sys.executable, *command], check=True)


def train(work: Path, name: str, start: Path, *options: str) -> Path:
    """One training with the embedded recipe, or go on with it; returns the finished model's folder."""
    folder = work / name
    if not (folder / "model" / "conditioning").is_dir():
        run(
            "-m", "distill.lab.novel_view.train", "recipe=embedded", f"data={work / 'renders'}", f"init={start}",
            f"encoder={work / 'encoder' / 'encoder'}", f"output_dir={folder}", "resume=true", *options,
        )  # fmt: skip
    return folder / "model"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--objects", type=int, default=10, help="of each pair of colour and kind")
    parser.add_argument("--encoder-steps", type=int, default=3000)
    parser.add_argument("--updates", type=int, default=12000)
    parser.add_argument("--last-updates", type=int, default=800)
    parser.add_argument("--output", type=Path, default=SHIPPED, help="folder of the model, in half precision")
    options = parser.parse_args()
    work: Path = options.work.expanduser()
    renders, encoder = work / "renders", work / "encoder"
    run("-m", "distill.lab.novel_view.cli", "render", "--world", str(options.objects), str(renders), *CAMERAS)
    if not (encoder / "encoder").is_dir():
        steps = ["--steps", str(options.encoder_steps)]
        run(str(HERE / "train_encoder.py"), "--renders", str(renders), "--work", str(encoder), *steps)
    first = train(work, "first", EMBEDDED, f"iterations={options.updates}")
    rates = ["learning_rate=2e-4", "final_rate=1e-5", "std=0.4", "warmup=50"]
    last = train(work, "last", first, f"iterations={options.last_updates}", *rates)
    NovelViewPipeline.load(last).save(options.output, torch.float16)
    size = sum(path.stat().st_size for path in options.output.rglob("*") if path.is_file())
    print(f"{size / 1e6:.1f} MB in {options.output}")


if __name__ == "__main__":
    main()

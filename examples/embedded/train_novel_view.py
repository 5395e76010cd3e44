"""Train the embedded novel-view model end to end, from renders to the folder that ships, on a CPU or a GPU.

    python train_novel_view.py --work ~/novel_view                 # two to three hours on two CPU cores
    python train_novel_view.py --work ~/novel_view --minutes 5     # so many minutes in all, on a GPU

The shapes of the world are rendered once and painted in the colours that are trained on; ``--renders`` adds other
objects, in the layout of ``distill-views render``. Then a code that turns with the camera learns to draw thumbnails,
and the embedded prior's UNet learns to draw views, told by it. The folder is written every minute, so that one is there
whenever it stops; run it again to go on.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tarfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.files.atomic import write_atomic
from distill.files.checkpoint import load_checkpoint, save_checkpoint
from distill.lab.novel_view import memory, stages
from distill.lab.novel_view.levels import Law
from distill.lab.novel_view.start import from_prior
from distill.priors.novel_view.code import TurnOptions
from distill.priors.novel_view.features import Encoder, load_encoder
from distill.priors.novel_view.pipeline import NovelViewPipeline
from distill.run.journal import stop_signals

BEGAN = time.perf_counter()
HERE = Path(__file__).resolve().parent
SHIPPED = HERE.parents[1] / "distill/embedded/novel_view"
PRIOR = HERE.parents[1] / "distill/embedded/prior"
#: Bytes of one tar file, for machines that take only small files.
TAR = 15 * 2**20
#: Seconds kept for the evaluation at the end of a training of so many minutes, and for writing.
RESERVE = {"cuda": 26.0, "cpu": 120.0}


@dataclass(frozen=True)
class Sizes:
    """What differs between a CPU and a GPU."""

    colours: int
    code: stages.CodeRecipe
    unet: stages.UNetRecipe


SIZES = {
    # Features of all pictures take 50 KB each: 1.4 GB here, 12 GB there.
    "cpu": Sizes(1, stages.CodeRecipe(), stages.UNetRecipe()),
    "cuda": Sizes(
        7,
        stages.CodeRecipe(batch=1024, learning_rate=1.5e-3),
        stages.UNetRecipe(batch=256, learning_rate=1e-3, law=Law(until=0.25, reach=0.75)),
    ),
}


def say(text: str) -> None:
    print(f"[{time.perf_counter() - BEGAN:7.1f} s] {text}", flush=True)


def open_pipeline(options: argparse.Namespace, encoder: Encoder) -> NovelViewPipeline:
    """The embedded prior with new conditioning, or the model of an earlier training."""
    if options.start:
        return NovelViewPipeline.load(options.start, device=options.device)
    turn = TurnOptions(options.tokens, options.film, options.draft)
    return from_prior(PRIOR, encoder, turn=turn, seed=options.seed, device=options.device)


def pictures(options: argparse.Namespace, colours: int) -> tuple[memory.Store, dict[str, memory.Store]]:
    """What is trained on, the world's trained pairs of colour and kind and other renders, and what is measured on.

    The latter are the pairs that the world holds out, shapes of a fresh seed: seen by cameras like the scenes', the same shapes
    beside the axis, and these mostly from steep angles.
    """
    from distill.lab.novel_view.views import from_folder

    said = memory.WorldOptions(
        shapes=options.shapes,
        views=options.views,
        steep=options.steep,
        offset=options.offset,
        seed=options.seed,
    )
    usual = memory.WorldOptions(
        shapes=options.unseen,
        views=12,
        steep=0,
        fov_y_deg=(40.0, 40.0),
        lights_deg=0.0,
        seed=options.seed + 1000,
    )
    unseen = {"usual": usual, "steep": replace(usual, views=4, steep=8, offset=options.offset)}
    if options.offset:
        unseen["beside"] = replace(usual, offset=options.offset)
    known, *new = memory.cached_shapes([said, *unseen.values()], options.work, options.workers)
    say("rendered")
    found = [memory.painted(known, colours=options.colours or colours, device=options.device)]
    for folder in options.renders:
        count = len(list(next(path for path in folder.iterdir() if path.is_dir()).glob("*.png")))
        found.append(memory.from_views(from_folder(folder, count=count, size=said.size, check=False)))
    held_out = {
        name: memory.painted(one, held_out=True, colours=1, seed=usual.seed, device=options.device)
        for name, one in zip(unseen, new, strict=True)
    }
    return memory.joined([store.to(options.device) for store in found]), held_out


def summed_up(found: dict[str, Tensor], uids: tuple[str, ...]) -> dict[str, float]:
    """Means over all objects and over those with a front."""
    from distill.lab.novel_view.evaluate import oriented

    front = oriented(uids).get("oriented", set())
    rows = torch.tensor([uid in front for uid in uids], device=found["mse"].device)
    means = {name: value.mean().item() for name, value in found.items()}
    return means | {f"{name}_oriented": value[rows].mean().item() for name, value in found.items()}


class Watch:
    """Called after each update: says how it goes, saves every so often, and stops when asked to.

    Args:
        folder: of the stage's checkpoints.
        save: writes what else is to be kept.
        measure: what to say of the model when it is saved.
        every: seconds between saves.
        asked: whether to stop.
    """

    def __init__(
        self,
        folder: Path,
        save: Callable[[stages.Stage], None],
        measure: Callable[[], dict[str, float]],
        every: float,
        asked: Callable[[], bool],
    ) -> None:
        self.folder, self.save, self.measure, self.every, self.asked = folder, save, measure, every, asked
        self.since = self.saved = time.perf_counter()
        self.total: Tensor | None = None
        self.count = 0
        self.stopped = False

    def __call__(self, stage: stages.Stage, loss: Tensor) -> bool:
        self.total = loss.clone() if self.total is None else self.total + loss
        self.count += 1
        # What waits for a GPU is seldom, so that work piles up there and not here.
        if self.count % 20 == 0 or stage.pace.done >= 1:
            now = time.perf_counter()
            if now - self.since > 5 or stage.pace.done >= 1:
                mean = self.total.item() / self.count
                rate = self.count / (time.perf_counter() - self.since)
                say(
                    f"{self.folder.name} {stage.pace.done:6.1%} update {stage.pace.update} loss {mean:.5f} {rate:.2f}/s"
                )
                if not mean < 1e3:
                    raise ValueError("the training has diverged; take a lower rate")
                self.total, self.count, self.since = None, 0, time.perf_counter()
            elif self.total.is_cuda:
                torch.cuda.synchronize()
            self.stopped = self.asked()
            if self.stopped or now - self.saved > self.every:
                self.keep(stage)
        return self.stopped

    def keep(self, stage: stages.Stage) -> None:
        """Write a checkpoint and say how good it is."""
        spent = time.perf_counter()
        save_checkpoint(self.folder / "checkpoints", stage.pace.update, stage.state_dict(), keep=1)
        self.save(stage)
        found = {"update": stage.pace.update, "seconds": round(stage.pace.spent, 1), **self.measure()}
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(found) + "\n")
        say(f"{self.folder.name} " + " ".join(f"{name} {value:.4g}" for name, value in found.items()))
        self.saved = time.perf_counter()
        stage.pace.used -= self.saved - spent  # saving is no training
        self.since += self.saved - spent


def write_folder(pipeline: NovelViewPipeline, output: Path, tars: Path | None) -> None:
    """Write the model in half precision, whole or not at all, and as tar files of a few megabytes."""
    new = output.with_name(f".{output.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    pipeline.save(new, torch.float16)
    output.mkdir(parents=True, exist_ok=True)
    for part in sorted(path for path in new.iterdir() if path.is_dir()):
        shutil.rmtree(output / part.name, ignore_errors=True)
        os.replace(part, output / part.name)
    shutil.rmtree(new)
    if tars is None:
        return
    tars.mkdir(parents=True, exist_ok=True)
    parts = ("conditioning", "image_encoder", "scheduler", "unet")
    groups: list[list[Path]] = [[]]
    for path in sorted(path for part in parts for path in (output / part).iterdir()):
        if sum(other.stat().st_size + 2048 for other in [*groups[-1], path]) > TAR and groups[-1]:
            groups.append([])
        groups[-1].append(path)
    for number, paths in enumerate(groups):
        with tarfile.open(tars / f"model-{number}.tar", "w") as archive:
            for path in paths:
                archive.add(path, str(path.relative_to(output)))


def evaluated(
    pipeline: NovelViewPipeline, store: memory.Store, out: Path, steps: int, scale: float
) -> dict[str, Any]:
    """Sample one view of each unseen object and measure it."""
    from distill.lab.novel_view.evaluate import choose_pairs, evaluate, oriented

    def draw(rgb: Tensor, pose: Tensor, generator: Any) -> Tensor:
        return pipeline(rgb, pose, generator=generator, steps=steps, scale=scale, batch=len(rgb))

    views = store.views()
    batch = 320 if store.pictures.is_cuda else 16
    return evaluate(
        draw, views, choose_pairs(views, 1, 0), out, groups=oriented(store.uids), batch=batch, progress=False,
        about={"steps": steps, "scale": scale},
    )  # fmt: skip


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder of renders and checkpoints")
    parser.add_argument("--output", type=Path, default=SHIPPED, help="folder of the model, in half precision")
    parser.add_argument(
        "--tars", type=Path, help="folder of the model once more, in tar files of at most 15 MiB"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--encoder", type=Path, default=SHIPPED / "image_encoder")
    parser.add_argument("--start", type=Path, help="a model with a code to go on from, instead of the prior")
    parser.add_argument("--renders", type=Path, nargs="*", default=[], help="of other objects, as wide")
    parser.add_argument("--shapes", type=int, default=140, help="of each kind")
    parser.add_argument("--views", type=int, default=12, help="of each shape")
    parser.add_argument(
        "--steep", type=int, default=3, help="further views from any height, straight above and below too"
    )
    parser.add_argument(
        "--offset", type=float, default=0.0, help="shapes are up to so far from the axis, scene units"
    )
    parser.add_argument("--colours", type=int, help="of each shape; one on a CPU, all seven on a GPU")
    parser.add_argument("--unseen", type=int, default=10, help="shapes of each kind to measure on")
    parser.add_argument("--tokens", type=int, default=4)
    parser.add_argument("--film", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--draft", type=int, default=16)
    parser.add_argument(
        "--minutes", type=float, help="of everything, instead of --code-updates and --updates"
    )
    parser.add_argument("--code-share", type=float, default=0.18, help="of --minutes")
    parser.add_argument("--code-updates", type=int, default=8000)
    parser.add_argument("--updates", type=int, default=7000)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--code-batch", type=int)
    parser.add_argument("--code-rate", type=float)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--save-minutes", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=25, help="of the sampler, when measured at the end")
    parser.add_argument("--scale", type=float, default=2.0, help="of guidance, likewise")
    options = parser.parse_args()
    if not 0 <= options.offset <= 0.5:
        parser.error(f"--offset must be in [0, 0.5], or shapes leave the picture, got {options.offset:g}")
    for name in ("work", "output", "tars", "encoder", "start"):
        if getattr(options, name) is not None:
            setattr(options, name, getattr(options, name).expanduser())
    return options


def train_code(
    options: argparse.Namespace, pipeline: NovelViewPipeline, seen: memory.Seen, unseen: memory.Seen, recipe: stages.CodeRecipe,
    asked: Callable[[], bool],
) -> bool:  # fmt: skip
    """The first stage, or what is left of it; returns whether it was stopped."""
    turn = pipeline.model.turn
    if turn is None or options.start:
        return False
    folder = options.work / "code"
    minutes = options.minutes and 60 * options.minutes * options.code_share
    pace = stages.Pace(None if minutes else options.code_updates, minutes or None)
    stage = stages.code_stage(turn, seen, recipe, pace, options.seed)
    if saved := load_checkpoint(folder / "checkpoints", options.device):
        stage.load_state_dict(saved)
        say(f"the code goes on at update {pace.update}")
    folder.mkdir(parents=True, exist_ok=True)
    pairs = memory.fixed_pairs(unseen.store)

    def measure() -> dict[str, float]:
        return summed_up(stages.drafts_right(turn, stage.modules["draft"], unseen, pairs), unseen.store.uids)

    watch = Watch(folder, lambda _: None, measure, 60 * options.save_minutes, asked)
    before = pace.update
    stages.fit_code(stage, seen, recipe, watch)
    if not watch.stopped and pace.update > before:
        watch.keep(stage)
    return watch.stopped


def train_unet(
    options: argparse.Namespace, pipeline: NovelViewPipeline, seen: memory.Seen, unseen: memory.Seen, recipe: stages.UNetRecipe,
    asked: Callable[[], bool],
) -> None:  # fmt: skip
    """The second stage, or what is left of it; leaves the averaged weights in the model."""
    folder = options.work / "unet"
    seconds = None
    if options.minutes:
        left = (
            60 * options.minutes - (time.perf_counter() - BEGAN) - RESERVE[torch.device(options.device).type]
        )
        seconds = max(left, 1.0)
    stage = stages.unet_stage(
        pipeline, recipe, stages.Pace(None if seconds else options.updates, seconds), options.seed
    )
    if saved := load_checkpoint(folder / "checkpoints", options.device):
        stage.load_state_dict(saved)
        say(f"the UNet goes on at update {stage.pace.update}")
    folder.mkdir(parents=True, exist_ok=True)
    pairs = memory.fixed_pairs(unseen.store)

    def measure() -> dict[str, float]:
        with stages.averaged(stage):
            return summed_up(stages.one_step(pipeline, unseen, pairs), unseen.store.uids)

    def save(stage: stages.Stage) -> None:
        with stages.averaged(stage):
            write_folder(pipeline, options.output, options.tars)

    watch = Watch(folder, save, measure, 60 * options.save_minutes, asked)
    before = stage.pace.update
    stages.fit_unet(stage, pipeline, seen, recipe, watch)
    if not watch.stopped and (stage.pace.update > before or not (options.output / "conditioning").is_dir()):
        watch.keep(stage)
    stages.averaged(stage).__enter__()
    pipeline.model.eval().requires_grad_(False)


def main() -> None:
    options = parse_options()
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    kind = torch.device(options.device).type
    sizes = SIZES[kind]
    chosen = {"batch": options.code_batch, "learning_rate": options.code_rate}
    code = replace(sizes.code, **{name: value for name, value in chosen.items() if value})
    chosen = {"batch": options.batch, "learning_rate": options.rate, "ema": options.ema}
    unet = replace(sizes.unet, **{name: value for name, value in chosen.items() if value})
    options.work.mkdir(parents=True, exist_ok=True)
    store, held_out = pictures(options, sizes.colours)
    encoder = load_encoder(options.encoder, device=options.device)
    say(f"{len(store)} objects, {len(store.pictures)} pictures; {len(held_out['usual'])} unseen ones")
    seen, unseen = (memory.encoded(part, encoder) for part in (store, held_out["usual"]))
    pipeline = replace(open_pipeline(options, encoder), offset=options.offset)
    count = sum(p.numel() for p in pipeline.model.parameters()) / 1e6
    say(f"encoded; {count:.2f}M parameters; {code}; {unet}")
    with stop_signals() as stop:
        if not train_code(options, pipeline, seen, unseen, code, stop.is_set):
            train_unet(options, pipeline, seen, unseen, unet, stop.is_set)
    if stop.is_set():
        say("stopped; run again to go on")
        return
    out = options.tars or options.work
    said: dict[str, Any] = {"code": asdict(code), "unet": asdict(unet), "pictures": len(store.pictures)}
    for name, views in held_out.items():
        place = options.work / "evaluation" / name
        said[name] = evaluated(pipeline, views, place, options.steps, options.scale)
        shutil.copy(place / "sheet.png", out / f"sheet-{name}.png")
        for group, figures in {"all": said[name]["figures"], **said[name]["groups"]}.items():
            means = ", ".join(f"{figure} {mean:.4f}" for figure, (mean, _, _) in figures.items())
            say(f"{name}, {group}: {means}")
        write_atomic(out / "evaluation.json", json.dumps(said, indent=1) + "\n")
    size = sum(path.stat().st_size for path in options.output.rglob("*") if path.is_file())
    say(f"{size / 1e6:.1f} MB in {options.output}")


if __name__ == "__main__":
    main()

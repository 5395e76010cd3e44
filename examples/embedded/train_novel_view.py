"""Train the embedded novel-view model end to end, from renders to the bundled folder, on a CPU or a GPU.

    python examples/embedded/train_novel_view.py --work ~/novel_view                 # two to three hours on two CPU cores
    python examples/embedded/train_novel_view.py --work ~/novel_view --minutes 5     # so many minutes in all, on a GPU

The shapes of the world are rendered once and painted in the colours that are trained on; ``--renders`` adds other
objects, in the layout of ``distill-views render``, ``--things`` the real objects of a pack, ``--stretched`` the same in other proportions,
and ``--assemblies`` objects put together at random, from which it learns to turn what it does not know. Then
``distill.lab.novel_view`` trains with ``recipe=embedded``, or ``embedded-gpu``: a code that turns with the camera learns to draw
thumbnails, and the embedded prior's UNet, or that of ``--prior``, learns to draw views, conditioned on it. The folder is written every minute, so that one is there whenever it stops; run it again to continue.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
import tarfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import assemblies
import stretched
import torch
from things_store import from_pack
from torch import Tensor

from distill.embedded.things import Pack, held_out_name, read_pack
from distill.files.atomic import write_atomic
from distill.lab.novel_view import memory, world_renders
from distill.lab.novel_view.config import TrainConfig, check, claim, compose
from distill.lab.novel_view.in_memory import Limits, fit
from distill.lab.novel_view.start import open_pipeline
from distill.priors.novel_view.features import load_encoder
from distill.priors.novel_view.pipeline import NovelViewPipeline
from distill.run.config.overrides import as_overrides
from distill.run.journal import Interrupted
from distill.run.signals import stop_signals

BEGAN = time.perf_counter()
HERE = Path(__file__).resolve().parent
SHIPPED = HERE.parents[1] / "distill/embedded/novel_view"
PRIOR = HERE.parents[1] / "distill/embedded/prior"
#: Bytes of one tar file, for machines that take only small files.
TAR = 15 * 2**20
#: Seconds kept for the evaluation at the end of a training of so many minutes, and for writing.
RESERVE = {"cuda": 26.0, "cpu": 120.0}
#: Of the shapes' colours, in which each is painted; features of all pictures take 50 KB each: for the shapes, 1.4 GB here, 12 GB there.
COLOURS = {"cuda": 7, "cpu": 1}
#: Of each object that is measured on.
VIEWS = 12
RECIPES = {"cuda": "embedded-gpu", "cpu": "embedded"}


def say(text: str) -> None:
    print(f"[{time.perf_counter() - BEGAN:7.1f} s] {text}", flush=True)


def composed(options: argparse.Namespace) -> TrainConfig:
    """The recipe with what the command line changes."""
    given: dict[str, Any] = {
        "init": options.start or options.prior or PRIOR, "encoder": options.encoder, "output_dir": options.work, "resume": True,
        "tokens": options.tokens, "film": options.film, "draft": options.draft, "offset": options.offset,
        "views": options.views + options.steep, "iterations": options.updates, "batch": options.batch,
        "learning_rate": options.rate, "code_iterations": options.code_updates, "code_batch": options.code_batch,
        "code_rate": options.code_rate, "code_again": options.code_again,
        "code_keep": options.code_keep, "ema": options.ema, "minutes": options.minutes, "code_share": options.code_share,
        "save_minutes": options.save_minutes, "seed": options.seed, "tracker": "none",
    }  # fmt: skip
    words = as_overrides({name: value for name, value in given.items() if value is not None})
    config = compose([f"recipe={RECIPES[torch.device(options.device).type]}", *words])
    # A rate that is given falls to the same share as the recipe's.
    return replace(config, final_rate=0.05 * config.learning_rate)


def pictures(
    options: argparse.Namespace, colours: int, pack: Pack | None
) -> tuple[memory.Store, dict[str, memory.Store]]:
    """What is trained on, the world's trained pairs of colour and kind and other renders, and what is measured on.

    The latter are the pairs that the world holds out, shapes of a fresh seed: seen by cameras like the scenes', the same shapes
    beside the axis, and these mostly from steep angles; and, of a pack of real objects, those whose names are held out.
    """
    from distill.lab.novel_view.views import from_folder

    # First, since a pack may lack either.
    real = [] if pack is None else [from_pack(pack, colours=options.colours or colours, seed=options.seed)]
    new_names = {} if pack is None else {"things": from_pack(pack, held_out=True, colours=0, views=VIEWS)}
    said = world_renders.WorldOptions(
        shapes=options.shapes,
        views=options.views,
        steep=options.steep,
        steep_from_deg=options.steep_from,
        offset=options.offset,
        seed=options.seed,
    )
    usual = world_renders.WorldOptions(
        shapes=options.unseen,
        views=VIEWS,
        steep=0,
        fov_y_deg=(40.0, 40.0),
        lights_deg=0.0,
        seed=options.seed + 1000,
    )
    unseen = {"usual": usual, "steep": replace(usual, views=4, steep=8, offset=options.offset)}
    if options.offset:
        unseen["beside"] = replace(usual, offset=options.offset)
    known, *new = world_renders.cached_shapes([said, *unseen.values()], options.work, options.workers)
    found = [world_renders.painted(known, colours=options.colours or colours, device=options.device)]
    for folder in options.renders:
        count = len(list(next(path for path in folder.iterdir() if path.is_dir()).glob("*.png")))
        found.append(memory.from_views(from_folder(folder, count=count, size=said.size, check=False)))
    if options.assemblies:
        found.append(assemblies.store(said, options.assemblies, options.work, options.workers))
    if options.stretched and pack is not None:
        trained = [thing for thing in pack.things if not held_out_name(thing.name)]
        place = options.work / "stretched"
        found.append(
            stretched.store(
                trained, options.archives, options.stretched, place, options.workers, options.seed
            )
        )
    say("rendered")
    found += real
    held_out = {
        name: world_renders.painted(one, held_out=True, colours=1, seed=usual.seed, device=options.device)
        for name, one in zip(unseen, new, strict=True)
    }
    held_out |= {name: store.to(options.device) for name, store in new_names.items()}
    whole = memory.joined([store.to(options.device) for store in found])
    return replace(whole, steep_first=options.steep_first), held_out


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
    """Sample one view of each unseen object and measure it: by how objects are oriented, or, of others, whether their sides are told apart."""
    from distill.lab.novel_view.evaluate import choose_pairs, evaluate, oriented, told_apart

    def draw(rgb: Tensor, pose: Tensor, generator: Any) -> Tensor:
        return pipeline(rgb, pose, generator=generator, steps=steps, scale=scale, batch=len(rgb))

    views = store.views()
    batch = 320 if store.pictures.is_cuda else 16
    return evaluate(
        draw, views, choose_pairs(views, 1, 0), out, groups=oriented(store.uids) or told_apart(views), batch=batch, progress=False,
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
    parser.add_argument("--save-minutes", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=25, help="of the sampler, when measured at the end")
    parser.add_argument("--scale", type=float, default=2.0, help="of guidance, likewise")
    add_data_options(parser)
    add_model_options(parser)
    options = parser.parse_args()
    check_options(parser, options)
    for name in ("work", "output", "tars", "encoder", "start", "prior", "things", "archives"):
        if getattr(options, name) is not None:
            setattr(options, name, getattr(options, name).expanduser())
    return options


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Options of the pictures that are trained and measured on."""
    parser.add_argument("--renders", type=Path, nargs="*", default=[], help="of other objects, as wide")
    parser.add_argument("--things", type=Path, help="pack of real objects, made by render_things.py")
    parser.add_argument(
        "--assemblies", type=int, default=0,
        help="objects put together at random, to learn from beside the others; 6,000 take 14 minutes of one core to render, within "
        "--minutes, and 6 GB of the device's memory",
    )  # fmt: skip
    parser.add_argument(
        "--stretched", type=int, default=0,
        help="of each real object, so many with other proportions, to learn from beside the others; 8 take 11 minutes of one core to "
        "render, within --minutes, and 6 GB of the device's memory, 1.2 with --live",
    )  # fmt: skip
    parser.add_argument(
        "--archives", type=Path, help="folder that fetch_things.py filled, with the models for --stretched"
    )
    parser.add_argument("--shapes", type=int, default=140, help="of each kind")
    parser.add_argument("--views", type=int, default=12, help="of each shape")
    parser.add_argument(
        "--steep", type=int, default=3, help="further views from any height, straight above and below too"
    )
    parser.add_argument(
        "--steep-from",
        type=float,
        default=0.0,
        help="and from at least so many degrees above or below the horizon",
    )
    parser.add_argument(
        "--steep-first", type=float,
        help="probability that the steep picture of a pair is the given one, where one of the two is from 60 degrees or more "
        "above or below; by chance",
    )  # fmt: skip
    parser.add_argument(
        "--offset", type=float, default=0.0, help="shapes are up to so far from the axis, scene units"
    )
    parser.add_argument("--colours", type=int, help="of each shape; one on a CPU, all seven on a GPU")
    parser.add_argument("--unseen", type=int, default=10, help="shapes of each kind to measure on")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Options of the model and of its training."""
    parser.add_argument("--encoder", type=Path, default=SHIPPED / "image_encoder")
    parser.add_argument(
        "--start", type=Path, help="a model with a code to continue from, instead of the prior"
    )
    parser.add_argument(
        "--code-again",
        action="store_true",
        help="train the code of --start on as well, first, with --code-updates",
    )
    parser.add_argument(
        "--code-keep",
        type=float,
        help="with --code-again: weight of a loss that keeps the codes of usual pictures as they are",
    )
    parser.add_argument(
        "--prior", type=Path, help="text-to-image model to begin from; the embedded prior by default"
    )
    parser.add_argument(
        "--live", action="store_true",
        help="encode pictures of objects each time that they are drawn, instead of keeping 50 KB of features for each",
    )  # fmt: skip
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


def check_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse values out of range, and options that do not go together."""
    if not 0 <= options.offset <= 0.5:
        parser.error(f"--offset must be in [0, 0.5], or shapes leave the picture, got {options.offset:g}")
    if not 0 <= options.steep_from < 89:
        parser.error(f"--steep-from must be in [0, 89), degrees, got {options.steep_from:g}")
    if options.steep_first is not None and not 0 <= options.steep_first <= 1:
        parser.error(f"--steep-first must be a probability, in [0, 1], got {options.steep_first:g}")
    if options.workers < 1:
        parser.error(f"--workers must be at least 1, got {options.workers}")
    for name in ("assemblies", "stretched"):
        if getattr(options, name) < 0:
            parser.error(f"--{name} must be at least 0, got {getattr(options, name)}")
    if options.stretched and (options.things is None or options.archives is None):
        parser.error("--stretched needs the real objects of --things and the models in --archives; give both")
    if options.archives is not None and not options.archives.expanduser().is_dir():
        parser.error(f"--archives: {options.archives} is not there; fetch_things.py fetches the archives")
    if options.start is not None and options.prior is not None:
        parser.error("--start and --prior are two models to begin from; give one of them")
    for name in ("start", "prior"):
        folder = getattr(options, name)
        if folder is not None and not (folder.expanduser() / "unet").is_dir():
            parser.error(f"--{name} must be a folder in the diffusers layout, with a unet, got {folder}")
    if options.archives is not None and not options.stretched:
        parser.error("--archives are the models for --stretched; give it too, or leave them out")
    if options.code_again and options.start is None:
        parser.error("--code-again trains the code of --start on; give --start, or leave it out")


def check_time_left(options: argparse.Namespace) -> None:
    """Refuse to train for what rendering has left of ``--minutes``, if that is less than half.

    Raises:
        ValueError: in one line.
    """
    taken = (time.perf_counter() - BEGAN) / 60
    if options.minutes is not None and taken > options.minutes / 2:
        raise ValueError(
            f"rendering took {taken:.1f} of the {options.minutes:g} minutes of --minutes; the renders are kept in {options.work}: run it again"
        )


def main() -> None:
    options = parse_options()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    kind = torch.device(options.device).type
    config = composed(options)
    check(config)
    pack = None if options.things is None else read_pack(options.things)
    claim(options.work, config)
    store, held_out = pictures(options, COLOURS[kind], pack)
    check_time_left(options)
    encoder = load_encoder(options.encoder, device=options.device)
    say(f"{len(store)} objects, {len(store.pictures)} pictures; {len(held_out['usual'])} unseen ones")
    seen = memory.Live(store, encoder) if options.live else memory.encoded(store, encoder)
    unseen = memory.encoded(held_out["usual"], encoder)
    pipeline = open_pipeline(config, encoder)
    pipeline.model.to(options.device)
    count = sum(p.numel() for p in pipeline.model.parameters()) / 1e6
    say(f"encoded; {count:.2f}M parameters; {config}")
    limits = Limits(BEGAN, RESERVE[kind])
    with stop_signals() as stop:
        fit(
            config, pipeline, seen, unseen, asked=stop.is_set, limits=limits,
            saved=lambda pipeline: write_folder(pipeline, options.output, options.tars),
        )  # fmt: skip
        if stop.is_set():
            raise Interrupted(f"the model is in {options.output}; run it again to measure it")
    finish(options, config, pipeline, held_out, len(store.pictures))


def finish(
    options: argparse.Namespace, config: TrainConfig, pipeline: NovelViewPipeline, held_out: dict[str, memory.Store],
    pictures: int,
) -> None:  # fmt: skip
    """Write the model where it is not there yet, measure it, and say how good it is."""
    if not (options.output / "conditioning").is_dir():
        write_folder(pipeline, options.output, options.tars)
    out = options.tars or options.work
    said: dict[str, Any] = {"options": asdict(config), "pictures": pictures}
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
    try:
        main()
    except Interrupted:
        say("stopped; run again to continue")
    except ValueError as error:
        sys.exit(f"error: {error}")

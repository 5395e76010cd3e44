"""``distill-views``: renders for novel-view models."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from distill.run.signals import as_interrupts, stop_signals
from distill.usage import Parser
from distill.wording import counted

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from distill.lab.novel_view.render import Surface
    from distill.priors.novel_view.pipeline import NovelViewPipeline


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``distill-views``."""
    parser = Parser(prog="distill-views", description="Renders for novel-view models.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (about, add_options, run) in COMMANDS.items():
        command = commands.add_parser(name, help=about)
        add_options(command)
        command.set_defaults(run=run)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # Torch speaks of its caches if its import is interrupted.
    logging.getLogger("torch").setLevel(logging.WARNING)
    try:
        with as_interrupts():
            sys.exit(options.run(options))
    except (ValueError, OSError) as error:
        print(f"distill-views: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        advice = "; the same command continues" if options.command in ("render", "pack") else ""
        print(f"distill-views: interrupted{advice}", file=sys.stderr)
        sys.exit(130)


def _render_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "inputs", nargs="*", type=Path, help="mesh files (GLB, OBJ, PLY, ...) or folders of them"
    )
    parser.add_argument("output", type=Path)
    parser.add_argument(
        "--world", type=int, metavar="N", help="N objects of each pair of the embedded world instead"
    )
    parser.add_argument("--views", type=int, default=12)
    parser.add_argument(
        "--steep", type=int, default=0, help="further views from any height, straight above and below too"
    )
    parser.add_argument(
        "--offset", type=float, default=0.0, help="objects are up to so far from the axis, scene units"
    )
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--distance", type=float, nargs=2, default=(1.5, 2.2), metavar=("NEAR", "FAR"))
    parser.add_argument("--elevation", type=float, nargs=2, default=(-90.0, 90.0), metavar=("LOW", "HIGH"))
    parser.add_argument(
        "--fov",
        type=float,
        nargs=2,
        default=(49.13, 49.13),
        metavar=("LOW", "HIGH"),
        help="vertical, degrees",
    )
    parser.add_argument(
        "--scale",
        type=float,
        nargs=2,
        default=(1.0, 1.0),
        metavar=("LOW", "HIGH"),
        help="of an object's size",
    )
    parser.add_argument(
        "--lights", type=float, default=0.0, help="turned by up to so many degrees, per object"
    )
    parser.add_argument("--up", choices=("y", "z"), default="y", help="the meshes' upward axis")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)


def _pack_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--objects", type=int, default=1000, help="in each shard")


def _evaluate_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path)
    parser.add_argument("renders", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--pairs", type=Path, help="JSON list of pairs; written where it is not there yet")
    parser.add_argument("--per-object", type=int, default=2, help="pairs of each object of a new list")
    parser.add_argument("--views", type=int, default=12, help="pictures of each object")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--scale", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)


def _features_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("encoder", type=Path, help="its folder")
    parser.add_argument(
        "pictures", nargs="+", type=Path, help="of objects; matches are drawn for the first two"
    )
    parser.add_argument("output", type=Path, help="a picture to write")
    parser.add_argument("--layers", type=int, nargs="+", help="by default four, evenly spaced")


def _render(options: argparse.Namespace) -> int:
    with stop_signals() as stop:  # trimesh drops exceptions of any kind while it is imported
        from distill.lab.novel_view import render
    if stop.is_set():
        raise KeyboardInterrupt
    _check_render(options)
    protocol = render.Protocol(
        views=options.views, size=options.size, distance=tuple(options.distance),
        fov_y_deg=tuple(options.fov), elevation_deg=tuple(options.elevation), scale=tuple(options.scale),
        seed=options.seed, up=options.up, lights_deg=options.lights, steep=options.steep, offset=options.offset,
    )  # fmt: skip
    if options.world:
        jobs, sources = _of_world(options), dict[str, Path]()
    else:
        sources = _sources(options)
        jobs = {name: partial(render.load_surface, path, options.up) for name, path in sources.items()}
    wrong = render.render_all(jobs, options.output, protocol, workers=options.workers, sources=sources)
    print(f"{counted(len(jobs) - len(wrong), 'object')} in {options.output}, {len(wrong)} left out")
    return 1 if wrong else 0


def _of_world(options: argparse.Namespace) -> dict[str, partial[Surface]]:
    from distill.embedded import world
    from distill.lab.novel_view.render import from_world

    pairs = [(c, k) for k in world.KINDS for c in world.COLOURS]
    # Those that the world holds out come last, where a training looks for what to validate on.
    pairs.sort(key=lambda pair: world.held_out(*pair))
    names = [f"{c}-{k}-{i:04d}" for c, k in pairs for i in range(options.world)]
    return {name: partial(from_world, name, options.seed) for name in names}


def _sources(options: argparse.Namespace) -> dict[str, Path]:
    """Mesh files by the names of their objects; prints which others are of the same meshes."""
    from distill.lab.novel_view.sources import find_meshes, name_of

    found, left = find_meshes(options.inputs)
    if left:
        more = ", ..." if len(left) > 3 else ""
        print(
            f"{counted(len(left), 'file')} not rendered, as other formats or levels of detail of the same meshes: "
            f"{', '.join(map(str, left[:3]))}{more}"
        )
    named = dict[str, Path]()
    for path in found:
        named[name_of(path, named, options.output)] = path
    return named


def _check_render(options: argparse.Namespace) -> None:
    if min(options.views, options.size) < 1:
        raise ValueError(f"--views and --size must be at least 1, got {options.views} and {options.size}")
    if not (min(options.fov) > 0 and max(options.fov) < 180 and min(options.scale) > 0):
        raise ValueError(
            f"--fov must be within 0 and 180 and --scale above 0, got {options.fov}, {options.scale}"
        )
    for name in ("distance", "elevation", "fov", "scale"):
        low, high = getattr(options, name)
        if not low <= high:
            raise ValueError(f"--{name} takes the smaller number first, got {low:g} {high:g}")
    if options.world is not None and options.world < 1:
        raise ValueError(f"--world must be at least 1, got {options.world}")
    if options.workers < 1:
        raise ValueError(f"--workers must be at least 1, got {options.workers}")
    if options.output.exists() and not options.output.is_dir():
        raise ValueError(f"{options.output} is a file; give a folder to write the renders to")
    if options.steep < 0 or not 0 <= options.offset <= 0.5:
        raise ValueError(
            f"--steep must not be negative and --offset be within 0 and 0.5, got {options.steep} and {options.offset:g}"
        )
    if min(options.distance) <= 0.9 * max(options.scale) + options.offset:
        raise ValueError(
            "--distance must be more than 0.9 times the largest --scale, and --offset, outside the object, got "
            f"{min(options.distance)}"
        )
    if options.world and options.inputs:
        raise ValueError("give meshes or --world, not both")


def _evaluate(options: argparse.Namespace) -> int:
    from distill.lab.novel_view import evaluate
    from distill.lab.novel_view.views import from_folder
    from distill.priors.novel_view.pipeline import NovelViewPipeline

    for name in ("steps", "per_object", "views"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(options, name)}")
    _first_of(options.renders)
    pipeline = NovelViewPipeline.load(options.model)
    views = from_folder(options.renders, count=options.views, size=pipeline.size)
    path = options.pairs or options.output / "pairs.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        evaluate.write_pairs(path, evaluate.choose_pairs(views, options.per_object, options.seed))
    pairs = evaluate.read_pairs(path, views)
    draw = partial(_draw, pipeline, options.steps, options.scale)
    about = {"model": str(options.model), "steps": options.steps, "scale": options.scale, "pairs": str(path)}
    groups = evaluate.oriented(views.uids)
    summary = evaluate.evaluate(
        draw, views, pairs, options.output, seed=options.seed, about=about, groups=groups
    )
    for group, figures in {"": summary["figures"], **summary["groups"]}.items():
        for name, (mean, low, high) in figures.items():
            print(f"{group:>10} {name:>16} {mean:9.4f}  [{low:.4f}, {high:.4f}]")
    print(
        f"{counted(summary['pairs'], 'pair')} of {counted(summary['objects'], 'object')}; results in {options.output}"
    )
    return 0


def _draw(
    pipeline: NovelViewPipeline,
    steps: int,
    scale: float,
    rgb: Tensor,
    pose: Tensor,
    generator: torch.Generator,
) -> Tensor:
    return pipeline(rgb, pose, generator=generator, steps=steps, scale=scale)


def _pack(options: argparse.Namespace) -> int:
    from distill.lab.novel_view.views import from_folder, pictures_of, write_shards

    if options.objects < 1:
        raise ValueError(f"--objects must be at least 1, got {options.objects}")
    first = _first_of(options.folder)
    count, size = pictures_of(options.folder, first)
    views = from_folder(options.folder, count=count, size=size)
    shards = write_shards(options.output, options.folder, views.uids, count, options.objects)
    print(
        f"{counted(len(views), 'object')} in {counted(shards, 'shard')} in {options.output}, {len(views.skipped)} left out"
    )
    return 1 if views.skipped else 0


def _first_of(renders: Path) -> Path:
    """The folder of the first object of some renders.

    Raises:
        ValueError: there are none.
    """
    from distill.lab.novel_view.views import objects_in

    names = objects_in(renders) if renders.is_dir() else []
    first = next((renders / name for name in names if (renders / name / "000.png").is_file()), None)
    if first is None:
        raise ValueError(
            f"expected renders in {renders}, a folder for each object with 000.png and so on, and there are none; make them with "
            "distill-views render"
        )
    return first


def _features(options: argparse.Namespace) -> int:
    import torch

    from distill.conditions.cutout import cut_out
    from distill.lab.novel_view.inspect import draw_features
    from distill.priors.novel_view.features import load_encoder

    encoder = load_encoder(options.encoder, layers=options.layers)
    pictures = [cut_out(path, encoder.size, recentre=False)[0].rgb for path in options.pictures]
    drawn = draw_features(encoder, torch.stack(pictures), options.output)
    print(
        f"{counted(len(pictures), 'picture')}, {counted(len(encoder.layers), 'layer')}, matches: {drawn}; in {options.output}"
    )
    return 0


#: What each command is for, what adds its options, and what carries it out.
COMMANDS = {
    "render": ("pictures and cameras of meshes, in Zero-1-to-3's layout", _render_options, _render),
    "pack": ("a folder of renders as tar shards", _pack_options, _pack),
    "evaluate": ("a model's views against true ones", _evaluate_options, _evaluate),
    "features": ("what an encoder sees, drawn", _features_options, _features),
}


if __name__ == "__main__":
    main()

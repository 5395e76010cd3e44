"""What a prompt of the embedded world or the name of a real object should look like: pictures, silhouettes and a mesh.

A kind of the world has one truth. A name has one for each of its variants: from its mesh where the archives are there, else
from the pack's pictures, else none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distill.cameras import Cameras, orbit, turntable
from distill.contracts import View
from distill.embedded import raycast, shapes, things, world
from distill.embedded.judge import SHIPPED, Judge, load_judge
from distill.embedded.prompt import understand
from distill.embedded.shoot import shoot
from distill.embedded.vocabulary import of_prior
from distill.lab.metrics import best_turn, mean_colour, true_silhouettes
from distill.silhouettes import silhouette_iou
from distill.viewing import FOV_Y_DEG

if TYPE_CHECKING:
    import trimesh

VIEWS, ELEVATION_DEG = 8, 15.0
#: Turns about the vertical axis at which an asset is compared.
TURNS = 16


@dataclass(frozen=True)
class Source:
    """Where truths come from, and how large they are.

    Attributes:
        archives: folder of the things' archives, or None.
        pack: folder of their pictures, for when there are no archives, or None.
        table: the things' table.
        size: height and width of pictures, pixels.
        fine: of silhouettes; the pack's have 64.
        judge: folder of the judge that ranks captions, or None for a bundled one.
    """

    archives: Path | None = None
    pack: Path | None = None
    table: Path = things.TABLE
    size: int = 64
    fine: int = 96
    judge: Path | None = None


#: Knows the truths of kinds alone.
SHAPES = Source()


@dataclass(frozen=True)
class Asked:
    """What a prompt asks for.

    Attributes:
        name: a kind of the world, or a thing's name.
        colour: a word of the world's, or None for a thing as it is.
        caption: how the judge's captions say it.
        held_out: whether the pair of colour and name is held out from the text prior's training.
        things: the variants; empty for a kind of the world.
    """

    name: str
    colour: str | None
    caption: str
    held_out: bool
    things: tuple[things.Thing, ...] = ()


@dataclass(frozen=True)
class Truth:
    """One object as it is.

    Attributes:
        variant: of its name, from 1; 1 for a kind of the world.
        rgb: over white from ``VIEWS`` evenly spaced sides, the front first, shape ``[views, 3, size, size]``.
        opacity: of them, shape ``[views, 1, size, size]``.
        masks: silhouettes, true inside, shape ``[n, fine, fine]``.
        cameras: where from; None where they are ``TURNS`` evenly spaced ones.
        mesh: gives the surface; None where only pictures are known.
    """

    variant: int
    rgb: Tensor
    opacity: Tensor
    masks: Tensor
    cameras: Cameras | None = None
    mesh: Callable[[], trimesh.Trimesh] | None = None


@dataclass(frozen=True)
class Match:
    """How near an asset comes to a truth.

    Attributes:
        truth: that one.
        iou: of silhouettes, at the turn that fits best.
        offset_deg: that turn, as ``best_turn`` has it.
        colour_error: distance between mean colours, sRGB.
    """

    truth: Truth
    iou: float
    offset_deg: float
    colour_error: float

    @property
    def distance(self) -> float:
        """Of silhouettes and colours together, 0 for the truth itself."""
        return 1 - self.iou + self.colour_error


def asked(prompt: str, source: Source = SHAPES) -> Asked:
    """Read a prompt that names a kind in a colour, or a thing with or without one.

    Raises:
        ValueError: it names neither, or several things, or one whose colour cannot be chosen in a colour.
    """
    table = things.table(source.table)
    names = {name for thing in table for name in (thing.name, thing.also) if name}
    colour, name, _ = world.parse(prompt, {*world.KINDS, *names})
    if name in world.KINDS and (colour is not None or name not in names):
        colour, kind = world.pair_of(prompt)
        return Asked(kind, colour, world.caption(colour, kind), world.held_out(colour, kind))
    found = [one for one in table if one.name == name] or [one for one in table if one.also == name]
    first, *others = things.names(found)
    if others:
        raise ValueError(
            f"{prompt!r} may be any of {', '.join([first, *others][:6])}{', ...' if len(others) > 5 else ''}: there is no one "
            "truth to measure it against; write one of these names"
        )
    if colour is not None:
        found = [one for one in found if one.paint is not None]
        if not found:
            raise ValueError(
                f"the colour in the prompt {prompt!r} cannot be chosen: no plain colour covers most of a {first}; leave it out"
            )
    held_out = colour is not None and things.held_out(colour, first)
    return Asked(first, colour, things.caption(first, found[0].article, colour), held_out, tuple(found))


def judge_folder(source: Source, prompts: Iterable[str]) -> Path:
    """Choose the judge of a source, by default the bundled one that knows the prompts: of the kinds, or of things as well.

    Raises:
        ValueError: a prompt cannot be read.
    """
    if source.judge is not None:
        return source.judge.absolute()
    of_things = any(asked(prompt, source).things for prompt in prompts)
    return SHIPPED["things" if of_things else "embedded"]


def judge_of(source: Source, prompts: Iterable[str]) -> Judge:
    """Load the judge of a source, see ``judge_folder``.

    Raises:
        ValueError: its folder holds none, or a prompt cannot be read.
    """
    return load_judge(folder=judge_folder(source, prompts))


def check_meant(prompts: Iterable[str], prior: str) -> None:
    """Refuse prompts that a prior takes for something else than they are measured against.

    Args:
        prompts: of kinds and names.
        prior: a value of ``prior=``; a prior that takes any prompt is asked nothing.

    Raises:
        ValueError: it does not know one, or takes one for what is near.
    """
    own = of_prior(prior)
    if own is None:
        return
    for prompt in prompts:
        meaning = understand(prompt, own)
        if meaning.taken:
            raise ValueError(
                f"prior={prior} takes {prompt!r} for {meaning.caption!r}, and it would be measured as what it says; leave this prompt "
                "out, or give a prior that knows it"
            )


def check(prompts: Sequence[str], source: Source, judge: Judge | None) -> None:
    """Refuse what cannot be measured, before anything is made; without a judge, nothing is asked of its words.

    Raises:
        ValueError: a prompt cannot be read; an archive that is needed, or the pack, is missing or broken; or the judge does
            not know a prompt's words.
    """
    if source.pack is not None:
        _pack(source.pack)
    for prompt in prompts:
        for thing in asked(prompt, source).things:
            if source.archives is not None and not (source.archives / thing.archive).is_file():
                raise ValueError(
                    f"{source.archives / thing.archive} is not there, and {prompt!r} needs it; "
                    f"fetch it with examples/embedded/fetch_things.py"
                )

    if judge is not None:
        check_words([asked(prompt, source).caption for prompt in prompts], judge)


def check_words(said: Sequence[str], judge: Judge) -> None:
    """Refuse captions that a judge cannot read.

    Raises:
        ValueError: it does not know a word.
    """
    try:
        judge.text_features(list(said))
    except ValueError as error:
        why = str(error).partition(";")[0]
        raise ValueError(
            f"{why}, so it cannot measure things; give one that was trained on them with --judge (examples/embedded/train_judge.py --things)"
        ) from None


def origin(prompt: str, source: Source) -> str:
    """Say what a prompt's truth is made from: ``shapes``, ``archives``, ``pack`` or ``none``."""
    if not asked(prompt, source).things:
        return "shapes"
    return "archives" if source.archives is not None else "none" if source.pack is None else "pack"


@lru_cache(maxsize=1)
def _pack(folder: Path) -> things.Pack:
    return things.read_pack(folder)


@lru_cache(maxsize=4)
def truths(prompt: str, source: Source = SHAPES) -> tuple[Truth, ...]:
    """Every object that a prompt may mean, in the order of variants; none where the source has none of them.

    Raises:
        ValueError: see ``asked``; or an archive or the pack cannot be read.
    """
    wanted = asked(prompt, source)
    if not wanted.things:
        assert wanted.colour is not None  # a kind has one
        return (_of_shape(wanted.name, wanted.colour, source),)
    if source.archives is not None:
        return tuple(_of_mesh(thing, wanted.colour, source) for thing in wanted.things)
    if source.pack is None:
        return ()
    pack = _pack(source.pack)
    number = {thing.id: index for index, thing in enumerate(pack.things)}
    here = [thing for thing in wanted.things if thing.id in number]
    return tuple(_of_pack(pack, number[thing.id], wanted.colour) for thing in here)


def _of_shape(kind: str, colour: str, source: Source) -> Truth:
    layers = raycast.render(shapes.build(kind), turntable(VIEWS, ELEVATION_DEG), source.size, samples=2)
    rgba = torch.from_numpy(layers.rgba(world.COLOURS[colour])).float()
    masks = true_silhouettes(kind, TURNS, source.fine, ELEVATION_DEG)
    return Truth(1, *_over_white(rgba), masks, None, partial(world.mesh, f"{colour} {kind}"))


def _of_mesh(thing: things.Thing, colour: str | None, source: Source) -> Truth:
    assert source.archives is not None
    model = things.model(thing, source.archives)

    def cast(views: int, size: int) -> Tensor:
        return torch.from_numpy(shoot(model, thing.paint, turntable(views, ELEVATION_DEG), size, 2))

    paint = torch.tensor(world.COLOURS[colour] if colour else thing.paint or (0.0, 0.0, 0.0))
    layers = cast(VIEWS, source.size)
    rgba = torch.cat([layers[..., :3] + layers[..., 3:4] * paint, layers[..., 4:]], dim=-1)
    masks = cast(TURNS, source.fine)[..., 4] > 0.5
    surface = partial(things.mesh, thing, source.archives, colour)
    return Truth(thing.variant, *_over_white(rgba), masks, None, surface)


def _of_pack(pack: things.Pack, index: int, colour: str | None) -> Truth:
    """The pictures whose cameras come nearest to evenly spaced ones, and those cameras."""
    azimuth, elevation, distance = pack.angles[index].unbind(1)
    evenly = torch.arange(VIEWS)[:, None] * (360 / VIEWS)
    aside = ((azimuth - evenly + 180) % 360 - 180).abs()
    # Each of the world's sixteen directions has pictures; another direction's is no match, whatever its height.
    off = aside + (elevation - ELEVATION_DEG).abs() + 1000.0 * (aside > 180 / len(world.DIRECTIONS) + 1e-3)
    nearest = off.argmin(1)
    rgba = pack.rgba(index, world.COLOURS[colour] if colour else None)[nearest]
    cameras = orbit(azimuth[nearest], elevation[nearest], distance[nearest], FOV_Y_DEG)
    return Truth(pack.things[index].variant, *_over_white(rgba), rgba[..., 3] > 0.5, cameras)


def _over_white(rgba: Tensor) -> tuple[Tensor, Tensor]:
    """Colour and opacity of premultiplied pictures, ``[views, 3, h, w]`` and ``[views, 1, h, w]``."""
    rgba = rgba.movedim(-1, 1)
    return (rgba[:, :3] + 1 - rgba[:, 3:]).clamp(0, 1), rgba[:, 3:]


def matches(view: View, found: Sequence[Truth], rgb: Tensor, opacity: Tensor) -> list[Match]:
    """Compare an asset with every truth, each at its own best turn.

    Args:
        view: takes pictures of the asset.
        found: as for ``truths``.
        rgb: the asset's pictures, as a ``Truth`` has its own.
        opacity: of them.
    """
    colour, seen = mean_colour(rgb, opacity), dict[int, Tensor]()
    made = []
    for truth in found:
        if truth.cameras is not None:
            iou, offset = _best_turn_of(view, truth.masks, truth.cameras)
        else:
            fine = truth.masks.shape[-1]
            if fine not in seen:
                seen[fine] = view(turntable(VIEWS, ELEVATION_DEG), fine, fine).opacity[..., 0].cpu() > 0.5
            iou, offset = best_turn(seen[fine], truth.masks)
        error = (colour - mean_colour(truth.rgb, truth.opacity)).norm().item()
        made.append(Match(truth, iou, offset, error))
    return made


def _best_turn_of(view: View, masks: Tensor, cameras: Cameras) -> tuple[float, float]:
    """As ``best_turn``, for cameras that are not evenly spaced: the asset is seen again at each turn."""
    size, scores = masks.shape[-1], []
    for turn in range(TURNS):
        azimuth = cameras.azimuth_deg - turn * 360 / TURNS
        moved = orbit(azimuth, cameras.elevation_deg, cameras.distance, cameras.fov_y_deg)
        scores.append(silhouette_iou(view(moved, size, size).opacity[..., 0].cpu() > 0.5, masks).mean())
    best = int(torch.stack(scores).argmax())
    return scores[best].item(), best * 360 / TURNS


def best_shape(found: Sequence[Match]) -> Match:
    """The match of the largest IoU."""
    return max(found, key=lambda match: match.iou)


def nearest(found: Sequence[Match]) -> Match:
    """The match of the smallest distance, by silhouette and mean colour."""
    return min(found, key=lambda match: match.distance)

"""A prior's samples of real objects: what is asked for, what the judge sees, and how it is told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import avg_pool2d

from distill.embedded import captions, things, world
from distill.embedded.judge import Judge

#: Ways to ask for a name, in turn; one whose colour cannot be chosen is always asked for as it is.
WAYS = ("as it is", "trained", "held out")
WORST = 20


@dataclass(frozen=True)
class Request:
    """One sample of a thing.

    Attributes:
        name: the thing's.
        article: of the name.
        colour: a word of the world's, or None for the thing as it is.
        direction: index into ``world.DIRECTIONS``.
        way: one of ``WAYS``.
    """

    name: str
    article: str
    colour: str | None
    direction: int
    way: str

    @property
    def prompt(self) -> str:
        return things.caption(self.name, self.article, self.colour, world.DIRECTIONS[self.direction])


def requests(listed: Sequence[things.Thing], count: int) -> list[Request]:
    """So many samples, name after name, each name's again once all have had their turn; of evenly spread ones for fewer.

    Names, ways to ask and directions take turns, so that every share of them is asked for from all sides.
    """
    articles = {thing.name: thing.article for thing in listed}
    paintable = {thing.name for thing in listed if thing.paint is not None}
    names, made = sorted(articles), []
    if count < len(names):
        names = [names[index * len(names) // count] for index in range(count)]
    for number in range(count):
        turn, index = divmod(number, len(names))
        name = names[index]
        way = WAYS[(index + turn) % len(WAYS)] if name in paintable else WAYS[0]
        held = [things.held_out(word, name) for word in world.COLOURS]
        fit = [word for word, out in zip(world.COLOURS, held, strict=True) if out == (way == "held out")]
        colour = None if way == WAYS[0] else fit[(index // len(WAYS) + turn) % len(fit)]
        made.append(Request(name, articles[name], colour, (5 * index + 7 * turn) % 16, way))
    return made


def judge_right(
    judge: Judge, images: Tensor, asked: Sequence[Request], said: Sequence[captions.Meaning]
) -> list[bool]:
    """Tell of which pictures the judge says what was asked for, see ``distill.embedded.captions``; ``said`` is what it may say."""
    similarity = judge.similarity(images, [captions.write(*meaning) for meaning in said]).cpu()
    hits: list[bool] = captions.right(similarity, [(one.name, one.colour) for one in asked], said).tolist()
    return hits


def told(judge: Judge, images: Tensor, said: Sequence[captions.Meaning]) -> list[str]:
    """The name that the judge says first of each picture."""
    similarity = judge.similarity(images, [captions.write(*meaning) for meaning in said])
    return [said[best][0] for best in similarity.argmax(1).tolist()]


def true_pictures(pack: things.Pack, asked: Sequence[Request]) -> Tensor:
    """The pack's own picture of each request, of one of the name's variants over white, ``[requests, 3, 64, 64]``."""
    pictures = []
    for number, one in enumerate(asked):
        fit = [
            index
            for index, thing in enumerate(pack.things)
            if thing.name == one.name and (one.colour is None or thing.paint is not None)
        ]
        index = fit[number % len(fit)]
        sides = [world.view_of(azimuth, elevation) for azimuth, elevation, _ in pack.angles[index].tolist()]
        colour = None if one.colour is None else world.COLOURS[one.colour]
        rgba = pack.rgba(index, colour)[sides.index(world.DIRECTIONS[one.direction])]
        pictures.append((rgba[..., :3] + 1 - rgba[..., 3:]).clamp(0, 1).movedim(-1, 0))
    return torch.stack(pictures)


def nearest_names(pack: things.Pack, images: Tensor) -> list[str]:
    """Name the true picture that each picture is nearest to, of all things as they are from all sides.

    No judge is asked: the distance is the mean square of the differences at a quarter of the pack's resolution.

    Args:
        pack: of true pictures.
        images: over white in [0, 1], ``[n, 3, 64, 64]``.
    """
    names, seen = [], []
    for index, thing in enumerate(pack.things):
        rgba = pack.rgba(index, None)
        seen.append((rgba[..., :3] + 1 - rgba[..., 3:]).clamp(0, 1).movedim(-1, 1))
        names += [thing.name] * len(rgba)
    made, true = (avg_pool2d(one, 4).flatten(1) for one in (images.cpu(), torch.cat(seen)))
    return [names[index] for index in torch.cdist(made, true).argmin(1).tolist()]


def share(hits: Sequence[bool]) -> str:
    """A share in per cent with its binomial standard error."""
    if not hits:
        return "-"
    p = sum(hits) / len(hits)
    return f"{100 * p:.1f} ± {100 * math.sqrt(p * (1 - p) / len(hits)):.1f}"


def summary(asked: Sequence[Request], truth: Sequence[bool], made: Sequence[bool]) -> str:
    """Markdown: the judge's own accuracy, and the prior's, by the way a name was asked for."""
    lines = [
        "| things, measured by the judge | the pack's own pictures, % | samples, % | of each |",
        "|---|---|---|---|",
    ]
    said = {
        "as it is": "as they are: name right",
        "trained": "trained pairs: name and colour right",
        "held out": "held-out pairs: name and colour right",
    }
    for way, words in said.items():
        own = [index for index, one in enumerate(asked) if one.way == way]
        shares = [share([hits[index] for index in own]) for hits in (truth, made)]
        lines.append(f"| {words} | {shares[0]} | {shares[1]} | {len(own)} |")
    lines.append(f"| all | {share(truth)} | {share(made)} | {len(asked)} |")
    return "\n".join(lines)


def worst(asked: Sequence[Request], truth: Sequence[bool], made: Sequence[bool], count: int = WORST) -> str:
    """Markdown: the names whose samples are right least often; where all are, the table says so."""
    hits: dict[str, list[int]] = {}
    for index, one in enumerate(asked):
        hits.setdefault(one.name, []).append(index)

    def share_of(right: Sequence[bool], own: list[int]) -> float:
        return sum(right[i] for i in own) / len(own)

    # Where samples are equally bad, names come first that the judge itself knows from their own pictures.
    rows = sorted((share_of(made, own), -share_of(truth, own), name, own) for name, own in hits.items())
    never = sum(row[0] == 0 for row in rows)
    rows = [row for row in rows if row[0] < 1][:count]
    if not rows:
        return "Every sample of every name is right."
    title = f"the worst {len(rows)} of {len(hits)} names; {never} have no sample right"
    lines = [f"| {title} | samples right | the pack's own right | of each |", "|---|---|---|---|"]
    for *_, name, own in rows:
        counts = [sum(right[i] for i in own) for right in (made, truth)]
        lines.append(f"| {name} | {counts[0]} | {counts[1]} | {len(own)} |")
    return "\n".join(lines)


def chosen(count: int, wanted: int = 64) -> list[int]:
    """Indices evenly spread over so many samples, of different names where there are as many."""
    return sorted({index * count // wanted for index in range(wanted)})


def draw_sheet(
    images: Tensor, asked: Sequence[Request], path: Path, columns: int = 8, cell: int = 96
) -> None:
    """Write a sheet of samples, each with what was asked for under it."""
    label = 26
    rows = -(-len(asked) // columns)
    sheet = Image.new("RGB", (cell * columns, (cell + label) * rows), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (image, one) in enumerate(zip(images, asked, strict=True)):
        left, top = index % columns * cell, index // columns * (cell + label)
        pixels = image.permute(1, 2, 0).mul(255).round().byte().contiguous().numpy()
        picture = Image.fromarray(pixels).resize((cell, cell), Image.Resampling.BICUBIC)
        sheet.paste(picture, (left, top))
        name = f"{one.colour or ''} {one.name}".strip()
        side = world.DIRECTIONS[one.direction].removesuffix(" view")
        colour = "#b03010" if one.way == "held out" else "black"
        for line, text in enumerate((name, side)):
            middle = (left + cell // 2, top + cell + 7 + 11 * line)
            fits = text if len(text) <= 20 else text[:19] + "…"
            pen.text(middle, fits, colour if line == 0 else "#777777", anchor="mm", font_size=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)

"""Pictures of kinds and real objects for the judge: training batches, and true renders that it never saw.

Cameras of the fresh renders of things are newly drawn, from the true meshes; the pack's views train.
"""

from __future__ import annotations

import hashlib
import io
import math
from dataclasses import dataclass, replace
from pathlib import Path

import dataset
import numpy as np
import torch
from dataset import noise_for
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample
from tqdm import tqdm

from distill.embedded import captions, things, world
from distill.files.atomic import write_atomic
from distill.transfer import send

#: Pictures of each pair in a batch, so that captions of one pair that differ in the view meet.
TOGETHER = 2
WITH_VIEW, WITH_COLOUR, IN_A_COLOUR = 0.4, 0.85, 0.6
#: An index of colours and of views that stands for none.
NONE = -1
#: Of each view, the index of what it is in a mirror: what is seen from the left is then seen from the right.
MIRRORED = torch.tensor(
    [
        -view % len(world.DIRECTIONS) if name in world.DIRECTIONS else view
        for view, name in enumerate(world.VIEWS)
    ]
)
#: Pictures of each thing that are rendered again, and the seed of what is fresh of both.
FRESH_EACH, FRESH_SEED = 4, 20_000_000


@dataclass(frozen=True)
class Half:
    """Renders before their colour is chosen.

    Attributes:
        layers: as ``dataset.Pictures`` has them, on any device, uint8, shape ``[pictures, 64, 64, 5]``.
        name: each picture's index in ``captions.articles()``, shape ``[pictures]``.
        view: its index in ``world.VIEWS``, likewise.
        paint: its own colour, sRGB, shape ``[pictures, 3]``.
        chosen: whether that can be changed, bool, shape ``[pictures]``.
    """

    layers: Tensor
    name: Tensor
    view: Tensor
    paint: Tensor
    chosen: Tensor

    def to(self, device: torch.device | str) -> Half:
        """The renders on a device; what they show stays on the CPU."""
        return replace(self, layers=self.layers.to(device))

    def rows(self, listed: list[int]) -> tuple[Tensor, ...]:
        """Indices of the pictures of each name."""
        return tuple((self.name == name).nonzero()[:, 0] for name in listed)


def of_world(pictures: dataset.Pictures) -> Half:
    """The half of kinds."""
    n = len(pictures.kind)
    chosen = torch.ones(n, dtype=torch.bool)
    return Half(pictures.layers, pictures.kind, pictures.view, torch.zeros(n, 3), chosen)


def _of_things(listed: tuple[things.Thing, ...], angles: Tensor, layers: Tensor) -> Half:
    """The half of things, ``[things, views, ...]`` brought to one row of pictures."""
    number = {name: index for index, name in enumerate(captions.articles())}
    each = angles.shape[1]
    view = [world.VIEWS.index(world.view_of(float(a), float(e))) for a, e, _ in angles.flatten(0, 1)]
    name = torch.tensor([number[thing.name] for thing in listed]).repeat_interleave(each)
    paint = torch.tensor([thing.paint or (0.0, 0.0, 0.0) for thing in listed]).repeat_interleave(each, dim=0)
    chosen = torch.tensor([thing.paint is not None for thing in listed]).repeat_interleave(each)
    return Half(layers.flatten(0, 1), name, torch.tensor(view), paint, chosen)


def of_pack(folder: Path) -> Half:
    """The half of things, from their pack.

    Raises:
        ValueError: see ``things.read_pack``; or the pack names what the library's table does not.
    """
    pack = things.read_pack(folder)
    unknown = sorted({thing.name for thing in pack.things} - set(captions.articles()))
    if unknown:
        raise ValueError(
            f"{folder} has {unknown[0]!r}, which the table does not; make it again with render_things.py pack"
        )
    layers = torch.stack([pack.layers(index) for index in range(len(pack.things))])
    return _of_things(pack.things, pack.angles, layers)


def fresh_things(archives: Path, folder: Path, seed: int) -> Half:
    """True renders of each thing from newly drawn cameras, ``FRESH_EACH`` each, rendered once into ``folder``.

    Raises:
        ValueError: an archive is missing or a model cannot be read.
    """
    from render_things import cameras_of, draw_angles, shoot

    folder.mkdir(parents=True, exist_ok=True)
    layers, angles = [], []
    for thing in tqdm(things.table(), "fresh things", mininterval=10):
        said = f"{seed} {FRESH_EACH} {thing.archive} {thing.model} {thing.turn} {thing.size_cm} {thing.paint}"
        path = folder / f"{thing.id.replace('/', '_')} {hashlib.sha256(said.encode()).hexdigest()[:12]}.npz"
        if not path.exists():
            drawn = draw_angles(thing, seed)
            rng = np.random.default_rng(int.from_bytes(hashlib.sha256(said.encode()).digest()[:8], "big"))
            chosen = drawn[rng.choice(len(drawn), FRESH_EACH, replace=False)]
            made = shoot(things.model(thing, archives), thing.paint, cameras_of(chosen), things.SIZE, 3)
            file = io.BytesIO()
            np.savez_compressed(file, layers=np.round(255 * made).astype(np.uint8), angles=chosen)
            write_atomic(path, file.getvalue())
        with np.load(path) as one:
            layers.append(torch.from_numpy(one["layers"]))
            angles.append(torch.from_numpy(one["angles"]))
    return _of_things(things.table(), torch.stack(angles), torch.stack(layers))


def uniform(low: float, high: float, shape: tuple[int, ...], g: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=g)


def move(layers: Tensor, g: torch.Generator, above: Tensor | None = None) -> Tensor:
    """Shift, zoom and roll a little; what comes in from outside is empty.

    Where ``above`` (bool, shape ``[batch]``) is true, the roll is any angle: a rolled view from overhead is a view from overhead.
    """
    n, there = len(layers), layers.device
    roll, zoom = uniform(-0.12, 0.12, (n,), g), uniform(0.85, 1.25, (n,), g)
    if above is not None:
        roll = torch.where(above, uniform(-math.pi, math.pi, (n,), g), roll)
    cos, sin = torch.cos(roll) * zoom, torch.sin(roll) * zoom
    shift = uniform(-0.15, 0.15, (2, n), g)
    theta = torch.stack([cos, -sin, shift[0], sin, cos, shift[1]], dim=1).view(n, 2, 3)
    grid = affine_grid(send(theta, there), list(layers.shape), align_corners=False)
    return grid_sample(layers, grid, align_corners=False)


def blur(layers: Tensor, g: torch.Generator) -> Tensor:
    """Blur by a Gaussian whose width, up to 1.5 pixels, is drawn for the batch."""
    sigma = float(uniform(0.05, 1.5, (1,), g))
    size = layers.shape[-1]
    apart = torch.arange(size)[:, None] - torch.arange(size)
    kernel = torch.exp(-0.5 * (torch.arange(-3, 4) / sigma).square()).sum()
    # As a matrix: on a CPU, far quicker than a convolution of each channel.
    band = torch.exp(-0.5 * (apart / sigma).square()).masked_fill(apart.abs() > 3, 0) / kernel
    band = send(band, layers.device)
    return band @ layers @ band


def recolour(image: Tensor, g: torch.Generator) -> Tensor:
    """Change saturation, brightness and white balance a little, and add noise."""
    n, there = len(image), image.device
    grey = image.mean(1, keepdim=True)
    image = grey + (image - grey) * send(uniform(0.75, 1.4, (n, 1, 1, 1), g), there)
    light = uniform(0.8, 1.15, (n, 1, 1, 1), g) * uniform(0.95, 1.05, (n, 3, 1, 1), g)
    strength = uniform(0.0, 0.08, (n, 1, 1, 1), g)
    return (image * send(light, there) + send(strength, there) * noise_for(image, g)).clamp(0, 1)


def augmented(stored: Tensor, paint: Tensor, g: torch.Generator, above: Tensor | None = None) -> Tensor:
    """Make augmented pictures in [0, 1] of renders ``[batch, 64, 64, 5]``, on their device, in paints ``[batch, 3]`` of the CPU.

    ``above`` is as ``move`` takes it.
    """
    layers = move(stored.permute(0, 3, 1, 2).float() / 255, g, above)
    if torch.rand(1, generator=g) < 0.6:
        layers = blur(layers, g)
    n, there = len(layers), layers.device
    rgb = send((paint + 0.03 * torch.randn(n, 3, generator=g)).clamp(0, 1), there)
    # A thin scene lets the background through.
    solid = send(uniform(0.75, 1.0, (n, 1, 1, 1), g), there) * layers[:, 4:5]
    shown = layers[:, :3] + layers[:, 3:4] * rgb[:, :, None, None]
    shown = shown * solid / layers[:, 4:5].clamp(min=1e-3)
    background = uniform(0.4, 1.0, (n, 1, 1, 1), g).masked_fill(
        torch.rand(n, 1, 1, 1, generator=g) < 0.4, 1.0
    )
    return recolour(shown + (1 - solid) * send(background, there), g)


def over_white(stored: Tensor, paint: Tensor) -> Tensor:
    """Renders ``[batch, 64, 64, 5]`` in paints ``[batch, 3]`` over white, in [0, 1], ``[batch, 3, 64, 64]``."""
    layers = stored.permute(0, 3, 1, 2).float() / 255
    rgb = send(paint, layers.device)[:, :, None, None]
    return (layers[:, :3] + layers[:, 3:4] * rgb + 1 - layers[:, 4:5]).clamp(0, 1)


@dataclass(frozen=True)
class Shown:
    """What pictures show, or captions say: indices of names, colours and views, ``NONE`` where there is none."""

    name: Tensor
    colour: Tensor
    view: Tensor

    def captions(self, g: torch.Generator) -> list[str]:
        """Captions in phrasings drawn for each."""
        names, colours = list(captions.articles()), [*world.COLOURS, None]
        views = [*world.VIEWS, None]
        template = torch.randint(len(world.TEMPLATES), (len(self.name),), generator=g)
        rows = torch.stack([self.name, self.colour, self.view, template], dim=1).tolist()
        return [captions.write(names[n], colours[c], views[v], form) for n, c, v, form in rows]

    def beside(self, more: Shown) -> Shown:
        """These, then others."""
        pairs = ((self.name, more.name), (self.colour, more.colour), (self.view, more.view))
        return Shown(*(torch.cat(pair) for pair in pairs))


def truth(pictures: Shown, said: Shown) -> tuple[Tensor, Tensor]:
    """Which captions are true of which pictures, and of which that is not known, bool, shape ``[pictures, captions]``.

    A caption that says less is true as well. Whether a thing in its own paint is red, say, is not known.
    """
    name = pictures.name[:, None] == said.name
    view = (said.view == NONE) | (pictures.view[:, None] == said.view)
    colour = (said.colour == NONE) | (pictures.colour[:, None] == said.colour)
    open_ = (pictures.colour[:, None] == NONE) & (said.colour != NONE)
    return name & view & colour, name & open_


class Rows:
    """Pictures of several names, to draw from evenly; a name may have none.

    Args:
        rows: the pictures' indices, for each name.
    """

    def __init__(self, rows: tuple[Tensor, ...]) -> None:
        self.count = torch.tensor([len(one) for one in rows])
        self.first, self.all = self.count.cumsum(0) - self.count, torch.cat(rows)

    def draw(self, name: Tensor, g: torch.Generator) -> Tensor:
        """A picture of each of these names."""
        at = (torch.rand(len(name), generator=g) * self.count[name]).long()
        return self.all[self.first[name] + at]


def overhead_often(half: Half, rows: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The pictures of each name with those from overhead four times: they are one in seventeen, and the hardest to tell."""
    above = half.view == world.VIEWS.index(world.OVERHEAD)
    return tuple(torch.cat([one, *3 * [one[above[one]]]]) for one in rows)


class Source:
    """Draws pictures of both: kinds evenly, and names of things by the square root of how many pictures they have.

    Args:
        kinds: the half of kinds.
        real: the half of things.
        share: of kinds among the names drawn.
        device: where the renders are kept and painted.
    """

    def __init__(self, kinds: Half, real: Half, share: float, device: torch.device | str = "cpu") -> None:
        self.share, self.first, count = share, len(world.KINDS), len(captions.articles())
        self.palette = torch.tensor(list(world.COLOURS.values()))
        self.name, self.view, self.paint, layers = (
            torch.cat([getattr(half, what) for half in (kinds, real)])
            for what in ("name", "view", "paint", "layers")
        )
        self.layers = layers.to(device)
        of_kinds = overhead_often(kinds, kinds.rows(list(range(self.first))))
        painted = replace(real, name=torch.where(real.chosen, real.name, NONE))
        listed, begin = list(range(self.first, count)), len(kinds.name)
        rows, in_a_colour = (
            (*of_kinds, *(begin + places for places in overhead_often(real, half.rows(listed))))
            for half in (real, painted)
        )
        self.rows, self.painted = Rows(rows), Rows(in_a_colour)
        self.can = self.painted.count > 0
        #: Names with a picture: a pack may hold some of the table's.
        self.there = self.rows.count.nonzero()[:, 0]
        #: How often each name of a thing is drawn. What has many variants takes longer to learn.
        self.often = self.rows.count[self.first :].double().sqrt()

    def draw(self, batch: int, g: torch.Generator) -> tuple[Tensor, Shown]:
        """Augmented pictures in [0, 1], ``[batch, 3, 64, 64]``, half of them in a mirror, and what they show."""
        pairs = batch // TOGETHER
        kind = torch.randint(self.first, (pairs,), generator=g)
        thing = self.first + torch.multinomial(self.often, pairs, replacement=True, generator=g)
        name = torch.where(torch.rand(pairs, generator=g) < self.share, kind, thing)
        some = torch.rand(pairs, generator=g) < IN_A_COLOUR
        coloured = (name < self.first) | (some & self.can[name])
        hue = torch.where(coloured, torch.randint(len(self.palette), (pairs,), generator=g), NONE)
        name, hue = name.repeat_interleave(TOGETHER), hue.repeat_interleave(TOGETHER)
        # Of a name without a painted picture, what this draws is not taken.
        index = torch.where(hue == NONE, self.rows.draw(name, g), self.painted.draw(self._paintable(name), g))
        paint = torch.where((hue == NONE)[:, None], self.paint[index], self.palette[hue])
        mirrored = torch.rand(len(index), generator=g) < 0.5
        stored, view = self.layers[send(index, self.layers.device)], self.view[index]
        stored = torch.where(send(mirrored, stored.device)[:, None, None, None], stored.flip(2), stored)
        above = view == world.VIEWS.index(world.OVERHEAD)
        shown = Shown(name, hue, torch.where(mirrored, MIRRORED[view], view))
        return augmented(stored, paint, g, above), shown

    def _paintable(self, name: Tensor) -> Tensor:
        """The names, a kind in the place of those that have no picture whose colour can be chosen."""
        return torch.where(self.can[name], name, 0)

    def told(self, shown: Shown, g: torch.Generator) -> Shown:
        """What a caption of each picture says: not always its view and its colour."""
        n = len(shown.name)
        view = torch.where(torch.rand(n, generator=g) < WITH_VIEW, shown.view, NONE)
        bare = (torch.rand(n, generator=g) >= WITH_COLOUR) & (shown.name >= self.first)
        return Shown(shown.name, torch.where(bare, NONE, shown.colour), view)

    def others(self, shown: Shown, g: torch.Generator) -> Shown:
        """What more captions say: every name, and the drawn pairs in another colour and from another side."""
        name = self.there
        hue = torch.randint(len(self.palette), name.shape, generator=g)
        say = self.can[name] & ((name < self.first) | (torch.rand(len(name), generator=g) < 0.5))
        pairs = Shown(*(value[::TOGETHER] for value in (shown.name, shown.colour, shown.view)))
        turn = torch.randint(1, len(self.palette), pairs.colour.shape, generator=g)
        turned = ((pairs.colour + turn) % len(self.palette))[pairs.colour != NONE]
        side = (pairs.view + torch.randint(1, len(world.VIEWS), pairs.view.shape, generator=g)) % len(
            world.VIEWS
        )
        none = [torch.full_like(one, NONE) for one in (name, turned)]
        return Shown(
            torch.cat([name, pairs.name[pairs.colour != NONE], pairs.name]),
            torch.cat([torch.where(say, hue, NONE), turned, pairs.colour]),
            torch.cat([*none, side]),
        )

"""Pictures of real objects for training, from a pack: coloured on the fly, as the world's are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from distill.embedded import things, world
from distill.embedded.vocabulary import Row
from distill.transfer import send

WITHOUT_VIEW = 0.1
#: Of the things whose colour can be chosen, so many are shown and told as they are.
OWN_COLOUR = 0.35
OTHER_NAME = 0.15


@dataclass(frozen=True)
class Batch:
    """Pictures in [-1, 1], shape ``[batch, 3, 64, 64]``, with the thing, the colour (-1: its own) and the view of each."""

    images: Tensor
    thing: Tensor
    colour: Tensor
    view: Tensor


def another_names(all_things: tuple[things.Thing, ...]) -> list[str]:
    """Another name of each thing, or its own where the other is a name or a kind of its own."""
    taken = {*things.names(all_things), *world.KINDS}
    return [one.also if one.also and one.also not in taken else one.name for one in all_things]


class ThingPictures:
    """Draws batches: a random picture of a thing in its own colours or another over white or grey.

    Args:
        pack: of the things.
        generator: of the CPU; what is drawn does not depend on the device.
        device: where the pictures are kept and painted.
    """

    def __init__(
        self, pack: things.Pack, generator: torch.Generator, device: torch.device | str = "cpu"
    ) -> None:
        self.pack, self.generator = pack, generator
        self.names = things.names(pack.things)
        self.name = torch.tensor([self.names.index(one.name) for one in pack.things])
        self.article = [one.article for one in pack.things]
        self.other = another_names(pack.things)
        unpacked = [pack.layers(i) for i in tqdm(range(len(pack.things)), "unpacking")]
        self.layers = torch.stack(unpacked).to(device)
        words = [
            [world.VIEWS.index(world.view_of(azimuth, elevation)) for azimuth, elevation, _ in rows]
            for rows in pack.angles.tolist()
        ]
        self.view = torch.tensor(words)
        self.palette = torch.tensor(list(world.COLOURS.values()))
        self.paint = torch.tensor([one.paint or (0.0, 0.0, 0.0) for one in pack.things])
        free = [[not things.held_out(c, one.name) for c in world.COLOURS] for one in pack.things]
        self.paintable = torch.tensor([one.paint is not None for one in pack.things])
        self.allowed = torch.tensor(free).float()
        # A name with more variants is drawn more often, but not as many times.
        self.weight = torch.bincount(self.name)[self.name].float().rsqrt()

    def draw(self, batch: int, darkest: float = 0.5) -> Batch:
        """Draw pictures of trained pairs of name and colour."""
        g = self.generator
        thing = torch.multinomial(self.weight, batch, replacement=True, generator=g)
        picture = torch.randint(self.view.shape[1], (batch,), generator=g)
        colour = torch.multinomial(self.allowed[thing], 1, generator=g)[:, 0]
        own = ~self.paintable[thing] | (torch.rand(batch, generator=g) < OWN_COLOUR)
        rgb = torch.where(own[:, None], self.paint[thing], self.palette[colour])
        rgb = (rgb + 0.02 * torch.randn(batch, 3, generator=g)).clamp(0, 1)
        grey = darkest + (1 - darkest) * torch.rand(batch, generator=g)
        grey = torch.where(torch.rand(batch, generator=g) < 0.4, 1.0, grey)
        there = self.layers.device
        rgb, grey = send(rgb, there), send(grey, there)
        layers = self.layers[send(thing, there), send(picture, there)].permute(0, 3, 1, 2).float() / 255
        image = layers[:, :3] + layers[:, 3:4] * rgb[:, :, None, None]
        image = (image + (1 - layers[:, 4:5]) * grey[:, None, None, None]).clamp(max=1)
        return Batch(image * 2 - 1, thing, torch.where(own, -1, colour), self.view[thing, picture])

    def captions(self, batch: Batch, without_view: float = WITHOUT_VIEW) -> list[str]:
        """Write a random caption for each picture."""
        n, g = len(batch.thing), self.generator
        bare = torch.rand(n, generator=g) < without_view
        other = torch.rand(n, generator=g) < OTHER_NAME
        form = torch.randint(len(world.TEMPLATES), (n,), generator=g)
        colours = [*world.COLOURS, None]
        rows = zip(
            *(x.tolist() for x in (batch.thing, batch.colour, batch.view, bare, other, form)), strict=True
        )
        return [
            things.caption(
                self.other[i] if alias else self.pack.things[i].name,
                self.article[i],
                colours[c],
                None if plain else world.VIEWS[v],
                f,
            )
            for i, c, v, plain, alias, f in rows
        ]


def known(pack: things.Pack) -> list[Row]:
    """What a prior that is trained on a pack knows, a row for each name."""
    chosen = {one.name for one in pack.things if one.paint is not None}
    found = {
        one.name: (one.name, one.article, one.name in chosen, "" if other == one.name else other)
        for one, other in zip(pack.things, another_names(pack.things), strict=True)
    }
    return [found[name] for name in sorted(found)]

"""Pictures of real, named things for a novel-view training in memory, from a pack; see ``distill.embedded.things``."""

from __future__ import annotations

import torch
from torch import Tensor

from distill.cameras import orbit
from distill.embedded import things, world
from distill.lab.novel_view.memory import Store
from distill.lab.novel_view.pairs import mixed


def from_pack(
    pack: things.Pack, *, held_out: bool = False, colours: int = 1, views: int | None = None, seed: int = 0
) -> Store:
    """Take the things of a pack whose names are trained on, or those whose names are held out, over white.

    Args:
        pack: of things.
        held_out: the names that are never trained on (``things.held_out_name``), instead of the others.
        colours: each thing has its own colours, and one whose colour can be chosen is there in so many of the world's as well.
        views: so many pictures of each, drawn for each from those of the elevations that scenes have; without it all of them.
        seed: of the colours and the pictures.

    Raises:
        ValueError: the pack has no such things or fewer such pictures, or ``colours`` is more than the world has.
    """
    palette = list(world.COLOURS)
    if not 0 <= colours <= len(palette):
        raise ValueError(f"colours must be from 0 to the world's {len(palette)}, got {colours}")
    chosen = [n for n, thing in enumerate(pack.things) if things.held_out_name(thing.name) == held_out]
    if not chosen:
        raise ValueError(f"the pack has no things whose names are {'' if held_out else 'not '}held out")
    least = min(len(_level(pack, index)) for index in chosen)
    if views is not None and not 2 <= views <= least:
        raise ValueError(f"views must be from 2 to the {least} level ones that the pack has, got {views}")
    pictures, positions, uids = [], [], []
    for index in chosen:
        thing = pack.things[index]
        g = torch.Generator().manual_seed(mixed(seed, thing.id))
        some = torch.randperm(len(palette), generator=g)[: colours if thing.paint else 0].tolist()
        taken = torch.arange(pack.angles.shape[1])
        if views is not None:
            usual = _level(pack, index)
            taken = usual[torch.randperm(len(usual), generator=g)[:views]]
        azimuth, elevation, distance = pack.angles[index][taken].unbind(1)
        eyes = orbit(azimuth, elevation, distance, 40.0).c2w[:, :3, 3]
        for colour in (None, *(palette[place] for place in some)):
            rgba = pack.rgba(index, world.COLOURS[colour] if colour else None)[taken]
            white = rgba[..., :3] + 1 - rgba[..., 3:]
            pictures.append((255 * white.clamp(0, 1)).round().byte().movedim(-1, 1))
            positions.append(eyes)
            uids.append(f"{colour or 'own'}:{thing.id}")
    first = torch.arange(len(uids) + 1) * (views or pack.angles.shape[1])
    return Store(torch.cat(pictures), torch.cat(positions), first, tuple(uids))


def _level(pack: things.Pack, index: int) -> Tensor:
    """Which of a thing's pictures are not from overhead, indices."""
    return (pack.angles[index, :, 1] < world.OVERHEAD_DEG).nonzero()[:, 0]

"""Evaluate the judge on true renders that it never saw, of kinds and real objects, and say what it confuses.

    python examples/embedded/evaluate_judge.py --work ~/judge --archives ~/things --beside OLDER

``--work`` is the folder that ``train_judge.py`` was given; ``--archives`` holds what ``fetch_things.py`` fetched. ``--beside`` names
another judge's folder, for the kinds' figures side by side. The fresh renders of things have other cameras than the pack's.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

import dataset
import torch
from evaluate_things import share
from judge_pictures import FRESH_SEED, NONE, Half, augmented, fresh_things, of_world, over_white
from torch import Tensor

from distill.embedded import captions, world
from distill.embedded.captions import Meaning
from distill.embedded.judge import SHIPPED, Judge, load_judge, readable

#: Names that people use for the same thing, or whose things look the same in a picture of 64 pixels. Figures are given with each name
#: on its own, and beside them with these joined.
ALIKE = (
    ("couch", "sofa"), ("cup", "coffee cup"), ("mug", "coffee mug"), ("trash can", "dustbin", "recycling bin"),
    ("bookcase", "shelves"), ("cupboard", "cabinet", "wardrobe", "tall cabinet"), ("mobile phone", "smartphone"),
    ("phone", "cordless phone"), ("oven", "stove"), ("crib", "baby bed"), ("washbasin", "sink", "basin", "bathroom vanity"),
    ("deck chair", "lounge chair", "sun lounger", "beach chair"), ("coffee machine", "coffee maker"),
    ("tv cabinet", "tv stand"), ("desk chair", "office chair"), ("dresser", "drawer cabinet"), ("small car", "sedan", "hatchback"),
    ("dining table", "oak table", "wooden table", "table"), ("dining chair", "oak chair", "wooden chair", "chair"),
    ("lamppost", "street light", "outdoor lamp"), ("lamp", "table lamp", "desk lamp"), ("cooktop", "induction cooktop"),
    ("box", "cardboard box"), ("bench", "wooden bench"), ("chest", "trunk"), ("futon", "sofa bed"), ("teapot", "china teapot"),
    ("cafe chair", "garden chair"), ("cafe table", "round table", "garden table"),
)  # fmt: skip


@torch.no_grad()
def similarities(
    judge: Judge, half: Half, colour: Tensor, said: tuple[Meaning, ...], g: torch.Generator | None = None
) -> Tensor:
    """Similarities of a half's pictures, over white or augmented, with captions, ``[pictures, captions]``.

    Args:
        judge: ranks.
        half: its pictures.
        colour: indices of the world's colours, ``NONE`` for the picture's own, shape ``[pictures]``.
        said: what the captions say.
        g: augments; None for plain pictures.
    """
    palette = torch.tensor(list(world.COLOURS.values()))
    texts, found = [captions.write(*meaning) for meaning in said], []
    for index in torch.arange(len(half.name)).split(512):
        own = (colour[index] == NONE)[:, None]
        paint = torch.where(own, half.paint[index], palette[colour[index]])
        stored = half.layers[index]
        images = over_white(stored, paint) if g is None else augmented(stored, paint, g)
        found.append(judge.similarity(images, texts).cpu())
    return torch.cat(found)


def asked_of(half: Half, colour: Tensor) -> list[Meaning]:
    """What pictures in these colours show."""
    names, colours = list(captions.articles()), [*world.COLOURS, None]
    return [(names[n], colours[c]) for n, c in zip(half.name.tolist(), colour.tolist(), strict=True)]


def colours_for(half: Half, g: torch.Generator) -> Tensor:
    """A colour for each picture whose colour can be chosen, ``NONE`` for the others, shape ``[pictures]``."""
    drawn = torch.randint(len(world.COLOURS), (len(half.name),), generator=g)
    return torch.where(half.chosen, drawn, NONE)


def accuracy(judge: Judge, half: Half, g: torch.Generator, worn: bool = False) -> float:
    """The share of pictures of which the judge, given all captions, names the name and the colour first."""
    judge.eval()
    colour = colours_for(half, g)
    found = similarities(judge, half, colour, captions.meanings(), g if worn else None)
    judge.train()
    return captions.right(found, asked_of(half, colour)).float().mean().item()


def alike(one: str, other: str) -> bool:
    return any(one in group and other in group for group in ALIKE)


def even(hits: Tensor, half: Half) -> str:
    """The mean over names, each weighing the same, in per cent."""
    each = [hits[half.name == name].float().mean().item() for name in half.name.unique().tolist()]
    return f"{100 * sum(each) / len(each):.1f}"


def kinds_rows(judge: Judge, half: Half, said: tuple[Meaning, ...], seed: int) -> list[str]:
    """Shares that are right of the kinds' level and overhead views, and of augmented ones, over some captions."""
    g = torch.Generator().manual_seed(seed)
    colour = colours_for(half, g)
    asked = asked_of(half, colour)
    clean = captions.right(similarities(judge, half, colour, said), asked, said)
    worn = captions.right(similarities(judge, half, colour, said, g), asked, said)
    above = half.view == world.VIEWS.index(world.OVERHEAD)
    return [share(hits.tolist()) for hits in (clean, clean[~above], clean[above], worn)]


def things_table(judge: Judge, half: Half, seed: int) -> str:
    """Markdown: shares of things that are right, and the most frequent confusions."""
    g, said = torch.Generator().manual_seed(seed), captions.meanings()
    chosen, own = colours_for(half, g), torch.full_like(half.name, NONE)
    lines = ["| things, among all captions | % of pictures | mean over names | alike names joined | pictures |", "|---|---|---|---|---|"]  # fmt: skip
    missed: Counter[tuple[str, str]] = Counter()
    rows = (
        ("in a chosen colour, name and colour", half.chosen.nonzero()[:, 0], chosen, None),
        ("in their own colours, name", torch.arange(len(own)), own, None),
        ("all, chosen colours where they can be", torch.arange(len(own)), chosen, None),
        ("the same, augmented", torch.arange(len(own)), chosen, g),
    )
    for label, index, colour, worn in rows:
        part = Half(*(value[index] for value in (half.layers, half.name, half.view, half.paint, half.chosen)))
        asked = asked_of(part, colour[index])
        found = similarities(judge, part, colour[index], said, worn)
        hits = captions.right(found, asked)
        joined, firsts = hits.clone(), [said[best] for best in found.argmax(1).tolist()]
        for at, ((name, hue), (guess, told)) in enumerate(zip(asked, firsts, strict=True)):
            joined[at] |= name != guess and alike(name, guess) and (hue is None or told in (None, hue))
            if label.startswith("all") and name != guess:
                missed[name, guess] += 1
        lines.append(
            f"| {label} | {share(hits.tolist())} | {even(hits, part)} | {share(joined.tolist())} | {len(hits)} |"
        )
    wrong = sum(missed.values())
    same = sum(count for pair, count in missed.items() if alike(*pair))
    lines.append(
        f"\n{wrong} of {len(own)} names wrong, {same} of them between names that are alike. Most frequent:"
    )
    lines += [f"- {name}, called {guess}: {count}" for (name, guess), count in missed.most_common(40)]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument(
        "--archives", type=Path, help="folder of the .sh3f archives; without it, the kinds alone"
    )
    parser.add_argument("--judge", type=Path, default=SHIPPED["things"])
    parser.add_argument("--beside", type=Path, help="another judge's folder")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    judge = load_judge(folder=options.judge)
    if options.archives and readable(judge) != captions.meanings():
        sys.exit(
            f"evaluate_judge: the judge in {options.judge} does not know all things; leave --archives out, or train one"
        )
    dataset.build(options.work / "fresh", shapes_per_kind=4, seed=FRESH_SEED)
    kinds = of_world(dataset.Pictures(options.work / "fresh", torch.Generator()))
    alone = captions.meanings()[: len(world.KINDS) * len(world.COLOURS)]
    print("| kinds, fresh renders | all, % | level | overhead | augmented |\n|---|---|---|---|---|")
    for label, one, said in (
        (f"this judge, among {len(readable(judge))}", judge, readable(judge)),
        ("this judge, among 128", judge, alone),
        *([("the other, among 128", load_judge(folder=options.beside), alone)] if options.beside else []),
    ):
        print(f"| {label} | {' | '.join(kinds_rows(one, kinds, said, options.seed))} |")
    if options.archives:
        half = fresh_things(options.archives, options.work / "fresh-things", FRESH_SEED)
        print("\n" + things_table(judge, half, options.seed))
    images, start = torch.rand(64, 3, 64, 64), time.perf_counter()
    judge.similarity(images, ["a red mug"])
    print(f"\n{(time.perf_counter() - start) / 64 * 1000:.2f} ms a picture on one thread")


if __name__ == "__main__":
    main()

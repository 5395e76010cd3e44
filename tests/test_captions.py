"""Captions of both halves of the embedded world: what there is to rank, how they are read, and what counts as right."""

from __future__ import annotations

import csv

import pytest
import torch

from distill.embedded import captions, things, world


def test_there_is_a_caption_for_each_colour_that_can_be_chosen_and_for_each_thing_as_it_is() -> None:
    with (things.FOLDER / "table.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names, coloured = {row["name"] for row in rows}, {row["name"] for row in rows if row["paint"]}
    texts = captions.all_captions()
    assert len(texts) == len(set(texts)) == 16 * 8 + len(names) + 8 * len(coloured)
    assert list(texts[:128]) == world.all_captions()
    assert {"an armchair", "scissors"} <= set(texts)


@pytest.mark.parametrize("template", range(len(world.TEMPLATES)))
def test_reading_a_caption_undoes_writing_it(template: int) -> None:
    for index, name in enumerate(captions.articles()):
        view = [None, *world.VIEWS][index % 18]
        for colour in (None, list(world.COLOURS)[index % 8]):
            text = captions.write(name, colour, view, template)
            assert world.parse(text, captions.articles()) == (colour, name, view)


@pytest.mark.parametrize(
    "text",
    [
        "a red zeppelin",
        "",
        "red",
        "a photo of",
        "a sofa and an armchair",
        "sofa red",
        "a red sofa that is blue",
    ],
)
def test_what_is_no_caption_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ValueError, match="is no caption of the embedded world") as caught:
        world.parse(text, captions.articles())
    assert "\n" not in str(caught.value)


SAID = (("mug", "red"), ("mug", "blue"), ("sofa", "red"), ("sofa", "blue"), ("sofa", None), ("cactus", None))


@pytest.mark.parametrize(
    ("best_first", "name", "colour", "right"),
    [
        # (red mug, blue mug, red sofa, blue sofa, sofa, cactus) by their places
        ([0, 1, 2, 3, 4, 5], "mug", "red", True),
        ([1, 0, 2, 3, 4, 5], "mug", "red", False),
        ([1, 0, 2, 3, 4, 5], "mug", None, True),
        ([5, 0, 1, 2, 3, 4], "mug", "red", False),
        # The name alone is true of a sofa in any paint: it hides none.
        ([4, 2, 3, 0, 1, 5], "sofa", "red", True),
        ([4, 3, 2, 0, 1, 5], "sofa", "red", False),
        ([4, 0, 1, 5, 2, 3], "sofa", "red", True),
        ([2, 4, 3, 0, 1, 5], "sofa", None, True),
        ([0, 4, 2, 3, 1, 5], "sofa", None, False),
    ],
)
def test_the_rule_of_what_is_right_by_hand(
    best_first: list[int], name: str, colour: str | None, right: bool
) -> None:
    similarity = torch.zeros(1, len(SAID))
    similarity[0, best_first] = torch.linspace(1, -1, len(SAID))
    assert captions.right(similarity, [(name, colour)], SAID).tolist() == [right]


def test_over_the_kinds_alone_the_first_caption_decides() -> None:
    said = captions.meanings()[:128]
    g = torch.Generator().manual_seed(0)
    similarity = torch.randn(500, 128, generator=g)
    asked = [said[int(index)] for index in torch.randint(128, (500,), generator=g)]
    similarity[torch.arange(250), [said.index(one) for one in asked[:250]]] = 9.0
    first = [said[index] == one for index, one in zip(similarity.argmax(1).tolist(), asked, strict=True)]
    assert captions.right(similarity, asked, said).tolist() == first
    assert sum(first) >= 250


def test_a_colour_that_no_caption_says_is_refused() -> None:
    with pytest.raises(ValueError, match="'a red cactus': either its colour cannot be chosen"):
        captions.right(torch.zeros(1, 1), [("cactus", "red")], [("cactus", None)])

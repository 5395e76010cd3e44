"""The embedded world: coloured objects, their captions and their true meshes."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import trimesh

#: The kinds of object; ``distill.embedded.shapes`` builds each.
KINDS = (
    "sphere",
    "cube",
    "cylinder",
    "cone",
    "torus",
    "mug",
    "table",
    "chair",
    "snowman",
    "mushroom",
    "house",
    "rocket",
    "car",
    "duck",
    "robot",
    "teapot",
)

#: Colour words and their sRGB values in [0, 1].
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.10, 0.10),
    "orange": (0.98, 0.55, 0.08),
    "yellow": (0.97, 0.86, 0.15),
    "green": (0.16, 0.62, 0.22),
    "blue": (0.13, 0.30, 0.85),
    "purple": (0.50, 0.18, 0.66),
    "pink": (0.97, 0.58, 0.74),
    "brown": (0.43, 0.25, 0.12),
}

#: Sixteen directions, counter-clockwise from the front in steps of 22.5 degrees of azimuth.
DIRECTIONS = (
    "front view",
    "front slightly left view",
    "front left view",
    "left slightly front view",
    "left view",
    "left slightly back view",
    "back left view",
    "back slightly left view",
    "back view",
    "back slightly right view",
    "back right view",
    "right slightly back view",
    "right view",
    "right slightly front view",
    "front right view",
    "front slightly right view",
)
OVERHEAD = "overhead view"
VIEWS = (*DIRECTIONS, OVERHEAD)

#: Degrees of elevation from which a view counts as overhead.
OVERHEAD_DEG = 60.0

#: The ways a caption says colour and kind.
TEMPLATES = ("{article} {colour} {kind}", "{colour} {kind}", "a photo of {article} {colour} {kind}",
             "{kind_article} {kind} that is {colour}")  # fmt: skip

#: What ``TEMPLATES`` write, with a view or none; a colour stands before the name or after it.
_CAPTION = re.compile(
    rf"(?:(?:a )?photo of )?(?:(?:an?|the) )?(?:(?P<before>{'|'.join(COLOURS)}) )?(?P<name>.+?)"
    rf"(?(before)|(?: that (?:is|are) (?P<after>{'|'.join(COLOURS)}))?)(?:, (?P<view>{'|'.join(VIEWS)}))?"
)


#: The colour of a kind where a prompt says none and the prior needs one; none of these pairs is held out.
USUAL = {
    "sphere": "blue", "cube": "red", "cylinder": "blue", "cone": "green", "torus": "pink", "mug": "red", "table": "brown",
    "chair": "brown", "snowman": "blue", "mushroom": "red", "house": "orange", "rocket": "red", "car": "red", "duck": "yellow",
    "robot": "blue", "teapot": "blue",
}  # fmt: skip


def held_out(colour: str, kind: str) -> bool:
    """Tell whether a pair is held out from training; one in eight is, each kind once and each colour twice."""
    return (KINDS.index(kind) * 3 + KINDS.index(kind) // 8) % 8 == list(COLOURS).index(colour)


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def caption(colour: str, kind: str, view: str | None = None, template: int = 0) -> str:
    """Write a caption; ``template`` indexes ``TEMPLATES``."""
    text = TEMPLATES[template].format(
        colour=colour, kind=kind, article=_article(colour), kind_article=_article(kind)
    )
    return text if view is None else f"{text}, {view}"


def all_captions() -> list[str]:
    """Return one caption, without a view, for each colour and kind, as ranked by the judge."""
    return [caption(colour, kind) for kind in KINDS for colour in COLOURS]


def view_of(azimuth_deg: float, elevation_deg: float) -> str:
    """The words for a camera's direction: azimuth 0 sees the front, 90 the object's left."""
    if elevation_deg >= OVERHEAD_DEG:
        return OVERHEAD
    return DIRECTIONS[round(azimuth_deg / 22.5) % 16]


class Said(NamedTuple):
    """What a caption says: a colour or None, a name, and the words of a view or None."""

    colour: str | None
    name: str
    view: str | None


def parse(text: str, names: Collection[str] = KINDS) -> Said:
    """Read a caption: a name, with or without a colour and a view, in one of ``TEMPLATES``.

    Case, spaces, a full stop and the choice of article do not matter. What a user's own words mean to a prior,
    ``distill.embedded.prompt.understand`` says.

    Args:
        text: the caption.
        names: what it may name.

    Raises:
        ValueError: it is not worded so, or names something else.
    """
    found = _CAPTION.fullmatch(" ".join(text.lower().split()).rstrip(" ."))
    name = found["name"] if found else ""
    if found and name in names:
        return Said(found["before"] or found["after"], name, found["view"])
    shown = text if len(text) <= 60 else text[:57] + "..."
    near = ", ".join(difflib.get_close_matches(name[:60], names, 5, 0.0))
    raise ValueError(
        f"{shown!r} is no caption of the embedded world: {name[:60]!r} is none of its names; write a name, after one colour "
        f"({', '.join(COLOURS)}) or none, as in 'a red mug'; the nearest names are {near}"
    )


def pair_of(text: str) -> tuple[str, str]:
    """Read the colour and the kind from a caption that says both.

    Raises:
        ValueError: see ``parse``; or it says no colour, and a kind has none of its own.
    """
    colour, kind, _ = parse(text)
    if colour is None:
        raise ValueError(f"a {kind} has no colour of its own; write it with one of {', '.join(COLOURS)}")
    return colour, kind


def mesh(prompt: str) -> trimesh.Trimesh:
    """The true mesh of a prompt such as "red mug", with sRGB face colours, z up, front towards +x."""
    import numpy as np
    import trimesh

    from distill.embedded import shapes

    colour, kind = pair_of(prompt)
    parts = shapes.build(kind)
    for part in parts:
        paint = COLOURS[colour] if part.paint is None else part.paint
        rgba = np.round(255 * np.array([*paint, 1.0])).astype(np.uint8)
        part.mesh.visual = trimesh.visual.ColorVisuals(
            part.mesh, face_colors=np.tile(rgba, (len(part.mesh.faces), 1))
        )
    return shapes.joined(parts)

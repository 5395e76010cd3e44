"""The embedded world: coloured objects, their captions and their true meshes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

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

_FILLER = frozenset(["a", "an", "the", "photo", "of", "that", "is", "view"])


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
    """One caption, without a view, for each colour and kind: what the judge ranks."""
    return [caption(colour, kind) for kind in KINDS for colour in COLOURS]


def view_of(azimuth_deg: float, elevation_deg: float) -> str:
    """The words for a camera's direction: azimuth 0 sees the front, 90 the object's left."""
    if elevation_deg >= OVERHEAD_DEG:
        return OVERHEAD
    return DIRECTIONS[round(azimuth_deg / 22.5) % 16]


def parse(text: str) -> tuple[str, str]:
    """Read the colour and the kind from a caption.

    Raises:
        ValueError: a word is unknown, or the colour or the kind is missing or ambiguous.
    """
    plain = text.lower()
    for view in sorted(VIEWS, key=len, reverse=True):
        plain = plain.removesuffix(f", {view}")
    words = re.findall(r"[^\W_]+", plain)
    colours = [word for word in words if word in COLOURS]
    kinds = [word for word in words if word in KINDS]
    unknown = [word for word in words if word not in _FILLER and word not in COLOURS and word not in KINDS]
    if unknown or len(colours) != 1 or len(kinds) != 1:
        what = f"does not know {unknown[0]!r}" if unknown else "needs one colour and one kind"
        shown = text if len(text) <= 60 else text[:57] + "..."
        raise ValueError(
            f"the embedded prior {what} in the prompt {shown!r}; it knows the colours {', '.join(COLOURS)} "
            f"and the kinds {', '.join(KINDS)}; for any other prompt choose a larger prior with prior=FOLDER"
        )
    return colours[0], kinds[0]


def mesh(prompt: str) -> trimesh.Trimesh:
    """The true mesh of a prompt such as "red mug", with sRGB face colours, z up, front towards +x."""
    import numpy as np
    import trimesh

    from distill.embedded import shapes

    colour, kind = parse(prompt)
    parts = shapes.build(kind)
    for part in parts:
        paint = COLOURS[colour] if part.paint is None else part.paint
        rgba = np.round(255 * np.array([*paint, 1.0])).astype(np.uint8)
        part.mesh.visual = trimesh.visual.ColorVisuals(
            part.mesh, face_colors=np.tile(rgba, (len(part.mesh.faces), 1))
        )
    return shapes.joined(parts)

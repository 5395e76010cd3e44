"""Words of prompts that name no object: colours beside the world's, fillers, words between objects, endings of plurals."""

from __future__ import annotations

from distill.embedded.world import COLOURS

__all__ = [
    "COLOURS", "DROPPED", "FILLER", "JOINING", "NEAR_COLOURS", "OTHER_COLOURS", "OUTSIDE", "PAIRS", "SHADES", "singulars",
]  # fmt: skip

#: Colour words that are read as one of the eight.
NEAR_COLOURS = {
    word: colour
    for colour, near in {
        "red": "crimson scarlet ruby maroon burgundy vermilion",
        "orange": "tangerine amber",
        "yellow": "golden gold",
        "green": "emerald jade",
        "blue": "navy azure cobalt sapphire indigo ultramarine",
        "purple": "violet lilac lavender mauve",
        "pink": "magenta fuchsia",
        "brown": "tan bronze tawny",
    }.items()
    for word in near.split()
}
#: Colours that are none of the eight and near none.
OTHER_COLOURS = frozenset(
    [
        "white",
        "black",
        "grey",
        "gray",
        "silver",
        "beige",
        "turquoise",
        "teal",
        "cyan",
        "colorful",
        "colourful",
        "rainbow",
    ]
)
#: Words of the captions that a prior is trained with, and words as empty as these.
FILLER = frozenset(
    ["a", "an", "the", "photo", "that", "is", "are", "view", "one", "some", "my", "this", "pair"]
)
#: What says how a picture is made, not what it is of.
OUTSIDE = frozenset(
    tuple(phrase.split())
    for phrase in (
        "dslr photo", "photograph", "picture", "image", "render", "rendering", "3d render", "3d model", "3d asset", "3d", "dslr",
        "highly detailed", "detailed", "high quality", "best quality", "high resolution", "ultra detailed", "masterpiece",
        "realistic", "photorealistic", "4k", "8k", "hd", "uhd", "hq", "studio lighting", "full body", "close up", "closeup",
        "zoomed out", "unreal engine", "octane render", "trending on artstation", "on a white background",
        "on white background", "white background", "on a plain background", "plain background", "colour", "color", "colored",
        "coloured",
    )
)  # fmt: skip
#: Words that make a colour another shade of it, in front of one.
SHADES = frozenset(["dark", "light", "bright", "pale", "deep", "vivid"])
#: Adjectives that the prior cannot follow and that change nothing of what the object is.
DROPPED = frozenset(
    [
        "beautiful",
        "cute",
        "nice",
        "small",
        "little",
        "big",
        "large",
        "tiny",
        "huge",
        "old",
        "new",
        "modern",
        "vintage",
        "antique",
        "shiny",
        "glossy",
        "matte",
        "simple",
        "plain",
        "single",
        "wooden",
        "metal",
        "plastic",
        "fancy",
        "elegant",
        "classic",
        "typical",
        "lovely",
        "pretty",
        "good",
        "great",
        "very",
    ]
)
#: Words between two objects, or between an object and where it is.
JOINING = frozenset(
    [
        "no",
        "not",
        "never",
        "and",
        "with",
        "without",
        "on",
        "in",
        "at",
        "by",
        "near",
        "beside",
        "behind",
        "under",
        "above",
        "over",
        "inside",
        "into",
        "onto",
        "next",
        "from",
        "for",
        "to",
        "or",
        "wearing",
        "holding",
        "riding",
        "eating",
        "carrying",
        "full",
        "made",
    ]
)
_IRREGULAR = {
    "mice": "mouse",
    "geese": "goose",
    "teeth": "tooth",
    "feet": "foot",
    "children": "child",
    "oxen": "ox",
}


#: Plurals whose singular is no thing.
PAIRS = frozenset(
    (
        "binoculars",
        "glasses",
        "jeans",
        "leggings",
        "pants",
        "pliers",
        "scissors",
        "shorts",
        "tights",
        "tongs",
        "trousers",
    )
)


def singulars(text: str) -> tuple[str, ...]:
    """Forms that the last word of a phrase may have in the singular, and its plural, the likeliest first; of pairs, none."""
    head, _, last = text.rpartition(" ")
    if last in PAIRS:
        return ()
    found = [_IRREGULAR[last]] if last in _IRREGULAR else []
    if last.endswith("ies"):
        found.append(last[:-3] + "y")
    if last.endswith("ves"):
        found += [last[:-3] + "f", last[:-3] + "fe"]
    if last.endswith("men"):
        found.append(last[:-3] + "man")
    if last.endswith("s") and not last.endswith("ss"):
        found.append(last[:-1])
        if last.endswith("es"):
            found.append(last[:-2])
    elif not last.endswith("s"):
        found.append(last + "s")
    return tuple(f"{head} {each}".strip() for each in found if len(each) > 1)

"""What options of prompts and of the input picture may be, without loading what reads them."""

from __future__ import annotations

#: How pictures are cut out.
BACKGROUNDS = ("auto", "keep", "rembg")
#: The views that can have prompts of their own.
SIDES = ("front", "side", "back", "overhead")
#: The options of ``views`` that give whole prompts.
OWN_PROMPTS = (*SIDES, "file")
#: Whose code the curves of Perp-Neg are from: threestudio's, and its authors' own for 3D.
CURVES = ("threestudio", "authors")

"""What options of rendering may be, without loading a renderer."""

from __future__ import annotations

#: How the colour of a picture is made; the first is the plain one.
SHADINGS = ("albedo", "lambertian", "textureless", "normals")

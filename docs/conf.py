"""Sphinx configuration for ``make docs``."""

from __future__ import annotations

import re
from typing import Any

from distill import __version__

project = "distill"
author = copyright = "the authors of distill"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"{project} {release}"

# Anchors for headings, with the names that code hosts give them.
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
napoleon_use_ivar = True
napoleon_attr_annotations = False


def setup(app: Any) -> None:
    app.connect("source-read", keep_files)


def keep_files(app: Any, page: str, text: list[str]) -> None:
    """Link to Markdown outside this folder as files; Sphinx would look for pages."""
    text[0] = re.sub(r"\]\((\.\./[^)]+\.md)\)", r"](path:\1)", text[0])

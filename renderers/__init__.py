"""Scenes and the renderers that take pictures of them.

Nothing heavy is imported until a name is used.
"""

from __future__ import annotations

import importlib
from typing import Any

if __name__ == "renderers":
    raise ImportError("this folder is distill.renderers; write 'import distill.renderers' instead")

_HOMES = {
    "HashGridScene": "nerf",
    "render": "volume",
    "ImageScene": "image",
    "render_image": "image",
    "encode": "hashgrid",
    "hash_layout": "hashgrid",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"distill.renderers has no {name!r}; there are {', '.join(sorted(_HOMES))}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)

"""Scenes, and the functions that render them.

A scene is a torch module that fits ``distill.contracts.Scene``; its options on the command line are its constructor's
keyword-only parameters, or all that have a default. ``register`` adds one from a script.
Nothing heavy is imported until a name is used.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from distill.renderers.hashgrid import encode, hash_layout
    from distill.renderers.image import ImageScene
    from distill.renderers.nerf import HashGridScene
    from distill.renderers.sdf import SdfScene
    from distill.renderers.surface import SurfaceScene
    from distill.renderers.volume import render

__all__ = [
    "HashGridScene",
    "ImageScene",
    "SdfScene",
    "SurfaceScene",
    "available",
    "encode",
    "hash_layout",
    "register",
    "render",
]

if __name__ == "renderers":
    raise ImportError("this folder is distill.renderers; write 'import distill.renderers' instead")

_HOMES = {
    "HashGridScene": "nerf",
    "render": "volume",
    "ImageScene": "image",
    "SdfScene": "sdf",
    "SurfaceScene": "surface",
    "encode": "hashgrid",
    "hash_layout": "layout",
}
_registered: dict[str, Callable[..., Any]] = {}

Make = TypeVar("Make", bound=Callable[..., Any])


def register(scene: Make) -> Make:
    """Register a custom scene as ``scene=<its name in lower case>``; usable as a decorator.

    If a name is registered again, as in a notebook, the later one counts.

    Raises:
        ValueError: it has no name, one that is taken, is defined inside a function, takes no ``seed``, or has an option without a default.
    """
    from distill.parts.registered import check_own

    given = ("seed=",), ("seed=", "embeddings="), ("surface", "seed=")
    _registered[check_own("scene", scene, _shipped(), *given)] = scene
    return scene


def available() -> dict[str, Callable[..., Any]]:
    """Return every scene by name."""
    return {**_shipped(), **_registered}


def _shipped() -> dict[str, Callable[..., Any]]:
    from distill.renderers.hyper_conv import hyper_conv
    from distill.renderers.hyper_grid import hyper_grid
    from distill.renderers.image import ImageScene
    from distill.renderers.nerf import HashGridScene
    from distill.renderers.sdf import SdfScene
    from distill.renderers.surface import SurfaceScene

    return {
        "hash_grid": HashGridScene,
        "hyper_conv": hyper_conv,
        "hyper_grid": hyper_grid,
        "image": ImageScene,
        "sdf": SdfScene,
        "surface": SurfaceScene,
    }


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"distill.renderers has no {name!r}; there are {', '.join(sorted(_HOMES))}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*_HOMES, "available", "register"])

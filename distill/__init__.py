"""Pluggable score distillation: any image diffusion model becomes the loss that shapes a 3D scene.

Imports nothing heavy; each name below is loaded when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from distill._version import __version__

if TYPE_CHECKING:
    from distill.asset import Asset
    from distill.lab.comparison.run import compare
    from distill.priors.load import load_prior
    from distill.run.execute import generate
    from distill.run.folder.finished import load

__all__ = [
    "Asset",
    "__version__",
    "compare",
    "contracts",
    "embedded",
    "export",
    "generate",
    "guidance",
    "load",
    "load_prior",
    "loop",
    "priors",
    "renderers",
    "samplers",
]

_HOMES = {
    "Asset": "distill.asset",
    "compare": "distill.lab.comparison.run",
    "generate": "distill.run.execute",
    "load": "distill.run.folder.finished",
    "load_prior": "distill.priors.load",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module 'distill' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

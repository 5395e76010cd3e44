"""Guidance losses, one file each; a file's name is the loss's name.

A loss is a function ``name(prior, x, cond, t, noise, *, option=default, ...) -> gradient``. Its keyword-only
parameters are its options on the command line. A loss with parameters of its own is a class, named in capitals,
made with ``(prior, generator, *, option=default, ...)``, called in the same way and trained by ``learn``; see
``vsd.py``. Dropping a file in this folder adds a loss; so does ``register`` from a script.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

if __name__ == "guidance":
    raise ImportError("this folder is distill.guidance; write 'from distill import guidance' instead")

#: Files here that are no loss.
_SHARED = frozenset({"terms"})
_registered: dict[str, Callable[..., Any]] = {}


def register(loss: Callable[..., Any]) -> Callable[..., Any]:
    """Make a loss of one's own available as ``guidance=<its name in lower case>``; usable as a decorator."""
    _registered[loss.__name__.lower()] = loss
    return loss


def available() -> dict[str, Callable[..., Any]]:
    """Every loss by name, sorted."""
    files = [module.name for module in pkgutil.iter_modules(__path__) if module.name not in _SHARED]
    modules = {name: importlib.import_module(f"{__name__}.{name}") for name in files}
    found = {
        name: getattr(module, name, None) or getattr(module, name.upper()) for name, module in modules.items()
    }
    return dict(sorted({**found, **_registered}.items()))

"""Guidance losses, one file each; a file's name is the loss's name.

A loss is a function ``name(prior, x, cond, t, noise, *, option=default, ...) -> gradient``. Its keyword-only
parameters are its options on the command line. A loss that must be set up for its
prior takes ``(prior, generator, *, option=default, ...)`` instead and gives what is called in that way: ``mix``, and
``vsd``, a class (named in capitals) that also has ``learn`` for its own parameters. Dropping a file in this folder adds a loss; so does ``register`` from a script.
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

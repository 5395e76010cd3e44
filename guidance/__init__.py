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
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

if __name__ == "guidance":
    raise ImportError("this folder is distill.guidance; write 'from distill import guidance' instead")

#: Files here that are no loss.
_SHARED = frozenset({"terms"})
_registered: dict[str, Callable[..., Any]] = {}


def register(loss: Callable[..., Any]) -> Callable[..., Any]:
    """Make a loss of one's own available as ``guidance=<its name in lower case>``; usable as a decorator."""
    _registered[loss.__name__.lower()] = loss
    return loss


def register_weighting(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Make a weighting of one's own available to every loss as ``weighting=<its name>``; usable as a decorator.

    Args:
        function: of alpha and sigma, each of shape ``[batch, 1, 1, 1]``; gives w(t), the same shape.
    """
    from distill.guidance.terms import WEIGHTINGS

    WEIGHTINGS[function.__name__] = function
    return function


def available() -> dict[str, Callable[..., Any]]:
    """Every loss by name, sorted."""
    files = [module.name for module in pkgutil.iter_modules(__path__) if module.name not in _SHARED]
    modules = {name: importlib.import_module(f"{__name__}.{name}") for name in files}
    found = {
        name: getattr(module, name, None) or getattr(module, name.upper()) for name, module in modules.items()
    }
    return dict(sorted({**found, **_registered}.items()))

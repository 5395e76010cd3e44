"""Guidance losses, one file each; a file's name is the loss's name.

A loss is a function ``name(prior, x, cond, t, noise, *, option=default, ...) -> gradient``. Its keyword-only
parameters are its options on the command line. A loss that must be set up for its prior is marked ``made_for_prior``: it
takes ``(prior, generator, priors, *, option=default, ...)``, where ``priors`` has the run's other priors by name, and
returns what is called with ``(prior, x, cond, t, noise)``; ``mix`` and ``vsd`` are such. Where that is a
``distill.contracts.Learner``, checkpoints hold its state. Dropping a file in this folder adds a loss; so does ``register`` from
a script.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Container
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

    from distill.contracts import Guidance

if __name__ == "guidance":
    raise ImportError("this folder is distill.guidance; write 'from distill import guidance' instead")

#: Files here that are no loss.
_SHARED = frozenset({"terms"})
#: Names that a run reads as another loss with its own timesteps.
_ALIASES = frozenset({"tp_sds"})
_registered: dict[str, Callable[..., Any]] = {}
_made: set[Callable[..., Any]] = set()
_second: dict[Callable[..., Any], tuple[str, str | None]] = {}
_sums: dict[Callable[..., Any], tuple[str, ...]] = {}

Make = TypeVar("Make", bound=Callable[..., Any])


def register(loss: Make) -> Make:
    """Register a custom loss as ``guidance=<its name in lower case>``; usable as a decorator.

    If a name is registered again, as in a notebook, the later one counts. A mark such as ``made_for_prior`` stands below ``register``.

    Raises:
        ValueError: it has no name, one that is taken, is defined inside a function, does not take what a loss is given, or has an option
            without a default.
    """
    taken = {module.name for module in pkgutil.iter_modules(__path__)} | _ALIASES
    _registered[_check(loss, taken, "below @guidance.register, ")] = loss
    return loss


def made_for_prior(loss: Make) -> Make:
    """Mark a loss that must first be constructed for its prior; usable as a decorator.

    A number among its options may be a schedule: ``distill.samplers.schedules.at({"scale": scale}, cond.step.progress)["scale"]`` is the value
    of either at that point of training.
    """
    _made.add(loss)
    return loss


def is_made_for_prior(loss: Callable[..., Any]) -> bool:
    """Return whether a loss takes ``(prior, generator, priors)`` and returns the callable loss."""
    return loss in _made


def is_learner(loss: Callable[..., Any]) -> bool:
    """Return whether a loss is a class of ``distill.contracts.Learner``, before it is made; that of a function is known only then."""
    from distill.contracts import Learner

    return isinstance(loss, type) and issubclass(loss, Learner)


def set_up(loss: Callable[..., Any], *given: Any, **options: object) -> Guidance:
    """Set up a loss that is ``made_for_prior``.

    Args:
        loss: the loss.
        *given: the prior, the generator and the run's other priors.
        **options: of the loss.

    Raises:
        ValueError: it has a part of what ``distill.contracts.Learner`` has, so that its state would be in no checkpoint; or what it has does
            not take what it is given, or gives what no checkpoint can hold.
    """
    made: Guidance = loss(*given, **options)
    parts = ("learn", "save", "state_dict", "load_state_dict")
    lacking = [part for part in parts if not callable(getattr(made, part, None))]
    if 0 < len(lacking) < len(parts):
        raise ValueError(
            f"the loss {type(made).__name__} lacks {' and '.join(lacking)}, without which a checkpoint does not hold its state; one that "
            f"keeps a state has {', '.join(parts)}"
        )
    if not lacking and type(made).__module__.partition(".")[0] != "distill":
        _check_learner(made)
    return made


#: What each method of a loss with a state is given.
_LEARNER = {"learn": ("prior", "x", "cond", "generator", "at_once"), "save": ("folder",), "load_state_dict": ("saved",), "state_dict": ()}  # fmt: skip


def _check_learner(made: Any) -> None:
    """Check the methods of a loss with a state, and what it would put into a checkpoint.

    Raises:
        ValueError: one does not take what it is given, or the state cannot be saved.
    """
    from distill.files.checkpoint import check_storable

    for method, given in _LEARNER.items():
        signature = inspect.signature(getattr(made, method))
        try:
            signature.bind(*given)
        except TypeError as error:
            raise ValueError(
                f"the {method} of the loss {type(made).__name__} must take ({', '.join(given)}), got {signature}"
            ) from error
    if not isinstance(state := made.state_dict(), dict):
        raise ValueError(
            f"the state_dict of the loss {type(made).__name__} must return a dictionary, got {type(state).__name__}"
        )
    check_storable(state, f"the state_dict of the loss {type(made).__name__}")


def needs_prompt(role: str, option: str | None = None) -> Callable[[Make], Make]:
    """Mark a loss that requires a second prompt, so that a run without it is refused before anything is loaded.

    Args:
        role: of the prompt, ``negative`` or ``source``; the option that gives it is ``<role>_prompt``.
        option: of the loss, a number or a schedule, where that decides: the prompt is needed unless it is always 0.
    """

    def mark(loss: Make) -> Make:
        _second[loss] = (role, option)
        return loss

    return mark


def needed_prompt(loss: Callable[..., Any]) -> tuple[str, str | None] | None:
    """Return the requirement set by ``needs_prompt`` for a loss, None if it needs no second prompt."""
    return _second.get(loss)


def sums_to_zero(*options: str) -> Callable[[Make], Make]:
    """Mark a loss some of whose options, numbers or schedules, must sum to 0, so that a run where they do not is refused at once."""

    def mark(loss: Make) -> Make:
        _sums[loss] = options
        return loss

    return mark


def summing_to_zero(loss: Callable[..., Any]) -> tuple[str, ...]:
    """Return the options that ``sums_to_zero`` names for a loss; empty if they are unconstrained."""
    return _sums.get(loss, ())


def register_weighting(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Register a custom weighting for all losses as ``weighting=<its name in lower case>``; usable as a decorator.

    Args:
        function: of alpha and sigma, each of shape ``[batch, 1, 1, 1]``; gives w(t), the same shape.

    Raises:
        ValueError: it has no name, that of one of the library's weightings, or does not take alpha and sigma.
    """
    from distill.guidance.terms import SHIPPED, WEIGHTINGS
    from distill.parts.registered import check_name

    WEIGHTINGS[check_name("weighting", function, SHIPPED, ("alpha", "sigma"))] = function
    return function


def available() -> dict[str, Callable[..., Any]]:
    """Return every loss by name, sorted; a file of this folder that has no loss of its name, or one that cannot be used, is left out."""
    from distill.parts.registered import found_in

    there = [module for module in pkgutil.iter_modules(__path__) if module.name not in _SHARED]
    found = {
        name: loss
        for finder, name, _ in there
        if (loss := found_in(f"{finder.path}/{name}.py", "loss", name, partial(_load, name), _check))  # type: ignore[union-attr]
    }
    return dict(sorted({**found, **_registered}.items()))


def _load(name: str) -> Callable[..., Any]:
    """Import a file of this folder.

    Raises:
        ValueError: it has no loss of its name.
    """
    module = importlib.import_module(f"{__name__}.{name}")
    if not hasattr(module, name):
        raise ValueError(
            f"it has no loss {name}; give the function the file's name, or the file a place elsewhere"
        )
    loss: Callable[..., Any] = getattr(module, name)
    return loss


def _check(loss: Callable[..., Any], taken: Container[str] = (), where: str = "") -> str:
    """Check a loss, and return the name by which it is chosen.

    Raises:
        ValueError: it cannot be used.
    """
    from distill.parts.registered import check_own

    if loss in _made:
        return check_own("loss", loss, taken, ("prior", "generator", "priors"))
    remedy = f"; {where}mark one that is set up first with @guidance.made_for_prior"
    return check_own("loss", loss, taken, ("prior", "x", "cond", "t", "noise"), remedy=remedy)

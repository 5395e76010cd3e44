"""Signatures of parts: which parameters are options, and of what types."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Hashable, Sequence
from functools import cache
from typing import Any

#: Parameters that are no options: where randomness, prompts and other priors come from is the run's business.
GIVEN = ("seed", "generator", "embeddings", "priors")
#: What parts are given when they are called, by part: parameters that are no options, even with a default.
bound: dict[object, frozenset[str]] = {}


def arguments(signature: inspect.Signature, given: Sequence[str]) -> dict[str, Any] | None:
    """The parameters that take what is given, None where none does."""
    keywords = {name[:-1]: None for name in given if name.endswith("=")}
    try:
        return signature.bind_partial(
            *(name for name in given if not name.endswith("=")), **keywords
        ).arguments
    except TypeError:
        return None


def option_parameters(part: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters of a callable that are its options: the keyword-only ones, or without such all that have a default."""
    parameters = [p for p in inspect.signature(part).parameters.values() if p.name not in GIVEN]
    if keywords := [p for p in parameters if p.kind is p.KEYWORD_ONLY]:
        return keywords
    given = bound.get(part, frozenset()) if isinstance(part, Hashable) else frozenset()
    return [p for p in parameters if p.default is not p.empty and p.name not in given]


@cache
def hints_of(target: Callable[..., Any], rules: bool = False) -> dict[str, Any]:
    """Return the types of a callable's parameters; with ``rules``, including those of ``distill.domains``.

    One without a type has that of its default: a number may be any number, a tuple of two numbers is a range. A type that is known to type
    checkers alone may be anything.
    """
    source: Any = target.__init__ if inspect.isclass(target) else target
    try:
        hints = typing.get_type_hints(source, include_extras=rules)
    except (NameError, AttributeError, TypeError):
        hints = {name: _hint_of(source, name, rules) for name in source.__annotations__}
    for parameter in inspect.signature(target).parameters.values():
        if parameter.annotation is parameter.empty and parameter.default is not parameter.empty:
            hints[parameter.name] = _inferred(parameter.default)
    return hints


def _hint_of(source: Any, name: str, rules: bool) -> Any:
    """The type of one parameter, ``Any`` where it cannot be found."""
    alone = types.SimpleNamespace(__annotations__={name: source.__annotations__[name]})
    try:
        return typing.get_type_hints(alone, getattr(source, "__globals__", {}), include_extras=rules)[name]
    except (NameError, AttributeError, TypeError):
        return Any


def _inferred(default: object) -> Any:
    """The type of an option that has none, from its default."""
    if isinstance(default, (bool, str)):
        return type(default)
    if isinstance(default, (int, float)):
        return float
    if isinstance(default, tuple) and len(default) == 2 and all(_inferred(end) is float for end in default):
        return tuple[float, float]
    return list if isinstance(default, (list, tuple)) else Any

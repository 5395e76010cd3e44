"""Options that several scenes share: one is the owner, and the others take them over, with their types and ranges."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from functools import wraps
from typing import Any, TypeVar, cast, get_type_hints

Make = TypeVar("Make", bound=Callable[..., Any])

#: The attribute of what takes over options that names their owner, whose docstring says what they mean.
OWNER = "options_owner"


def takes_options_of(
    owner: type, *, only: Collection[str] | None = None, without: Collection[str] = (), **defaults: Any
) -> Callable[[Make], Make]:
    """Let a function or a constructor take the keyword-only options of another class too; usable as a decorator.

    Those that are no parameters of its own are given to it as keyword arguments, all of them, and appear in its signature.

    Args:
        owner: the class.
        only: the options that it takes; None for all.
        without: options that it does not take.
        **defaults: of options whose default is another one here.
    """

    def decorate(make: Make) -> Make:
        theirs = inspect.signature(owner).parameters
        own = [
            p
            for p in inspect.signature(make).parameters.values()
            if p.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        left_out = {*without, *(p.name for p in own)}
        taken = [name for name in (theirs if only is None else only) if name not in left_out]
        default = {name: theirs[name].default for name in taken} | defaults

        @wraps(make)
        def made(*parts: Any, **options: Any) -> Any:
            if unknown := options.keys() - default.keys() - {p.name for p in own}:
                raise TypeError(f"{make.__qualname__} has no option {min(unknown)!r}")
            return make(*parts, **default | options)

        rules = get_type_hints(vars(owner)["__init__"], include_extras=True)
        hints = get_type_hints(make, include_extras=True)
        shared = [theirs[name].replace(default=default[name], annotation=rules[name]) for name in taken]
        vars(made)["__signature__"] = inspect.Signature(
            [*own, *shared], return_annotation=hints.get("return", inspect.Signature.empty)
        )
        made.__annotations__ = {**hints, **{name: rules[name] for name in taken}}
        vars(made)[OWNER] = owner
        return cast(Make, made)

    return decorate

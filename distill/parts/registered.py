"""Requirements for registering custom losses, weightings, timestep laws, cameras and scenes."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any

from distill.domains import describe, fits
from distill.files.errors import first_line
from distill.parts.signatures import GIVEN, arguments, bound, hints_of, option_parameters

log = logging.getLogger(__name__)

#: Modules in which parts were registered; a new process knows these parts once it has imported them.
homes: set[str] = set()
#: Why a part in a file of the library's folders cannot be used, by kind and name, with the file; they are looked at once.
_broken: dict[tuple[str, str], tuple[str, str]] = {}
#: Parts in such files that can be used.
_sound: set[object] = set()


def check_name(
    what: str,
    part: object,
    taken: Container[str],
    *called: Sequence[str],
    options: bool = False,
    remedy: str = "",
) -> str:
    """Check that a part to be registered has a free name and takes its arguments; returns the name, in lower case.

    Args:
        what: it is, for errors.
        part: a function or a class.
        taken: the library's own names.
        *called: the ways in which it may be called: the names of what it is given, those that end in ``=`` as keywords.
        options: it may have options: further parameters, as keywords only.
        remedy: follows the error of one that cannot be called so.

    Raises:
        ValueError: it has no name, one that is taken, or cannot be called so.
    """
    name = getattr(part, "__name__", "")
    if not (callable(part) and name.isidentifier()):
        raise ValueError(
            f"a {what} must be a function or a class with a name, by which it is chosen; got {str(part)[:80]!r}"
        )
    if name.lower() in taken:
        raise ValueError(f"the name {name.lower()} is taken; give your {what} another")
    signature = inspect.signature(part)
    if not (ways := [given for given in called if _takes(signature, given, options)]):
        must = " or ".join(f"({', '.join(given).replace('=', '')})" for given in called)
        parameters = signature.parameters.values()
        takes = ", ".join(p.name for p in parameters if not (options and p.kind is p.KEYWORD_ONLY))
        more = ", and its options as keywords" if options else ""
        raise ValueError(f"a {what} must take {must}{more}; {name} takes ({takes}){remedy}")
    if part.__module__.partition(".")[0] != "distill":
        homes.add(part.__module__)
    bound[part] = frozenset(arguments(signature, ways[0]) or ())
    return name.lower()


def _takes(signature: inspect.Signature, given: Sequence[str], options: bool) -> bool:
    """Tell whether a signature takes what is given, and needs no more except for options."""
    if (taken := arguments(signature, given)) is None:
        return False
    needed = [
        p
        for p in signature.parameters.values()
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and not (options and p.kind is p.KEYWORD_ONLY)
    ]
    return all(p.name in taken or p.default is not p.empty for p in needed)


def check_own(
    what: str, part: object, taken: Container[str], *called: Sequence[str], remedy: str = ""
) -> str:
    """Check a part that is to be registered and that a configuration names by its path; as ``check_name``.

    Raises:
        ValueError: as ``check_name``; or it is defined inside a function, where nothing finds it by a path, or has an option that has no
            default or one that a configuration cannot hold.
    """
    name = check_name(what, part, taken, *called, options=True, remedy=remedy)
    assert callable(part)
    if "<locals>" in getattr(part, "__qualname__", ""):
        raise ValueError(
            f"the {what} {name} is defined inside a function, where a configuration cannot name it; define it at the top level of a file"
        )
    _check_options(what, name, part)
    return name


def _check_options(what: str, name: str, part: Callable[..., Any]) -> None:
    options = option_parameters(part)
    if beside := [p.name for p in inspect.signature(part).parameters.values() if _is_lost(p, part, options)]:
        raise ValueError(
            f"the {what} {name} has the parameter {beside[0]} with a default before its options, which are keywords only, so that it would be "
            f"none; put it after the *"
        )
    for option in options:
        if option.default is option.empty:
            raise ValueError(f"the {what} {name} has the option {option.name} without a default; give it one")
        if isinstance(option.default, dict) or not _is_plain(option.default):
            raise ValueError(
                f"the default of {option.name} of the {what} {name} must be a number, text, true or false, None, or a list of these, got "
                f"{type(option.default).__name__} {' '.join(str(option.default).split())[:80]}"
            )
        hint = hints_of(part, rules=True).get(option.name, Any)
        if not fits(option.default, hint):
            raise ValueError(
                f"the default of {option.name} of the {what} {name} must be {describe(hint)}, as its type says, got {option.default!r}; change "
                + ("the type, as in float | None" if option.default is None else "one of them")
            )


def _is_lost(parameter: inspect.Parameter, part: object, options: Sequence[inspect.Parameter]) -> bool:
    """Tell whether a parameter looks like an option, and is none beside others that are keywords."""
    return (
        parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and parameter.default is not parameter.empty
        and parameter.name not in (*GIVEN, *bound.get(part, ()))
        and parameter.name not in [option.name for option in options]
    )


def _is_plain(value: object) -> bool:
    """Tell whether a configuration can hold a value."""
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))  # type: ignore[call-overload]
    if type(value) is dict:
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return value is None or type(value) in (bool, int, float, str) or isinstance(value, Path)


def found_in(
    file: str, what: str, name: str, load: Callable[[], Any], check: Callable[[Any], object]
) -> Callable[..., Any] | None:
    """A part that is chosen by the name of a file, or by a name in a list there; None, with a warning once, where it cannot be used.

    Args:
        file: for messages.
        what: it is, as for ``check_own``.
        name: of the part.
        load: returns it; may fail in any way.
        check: raises ValueError where it cannot be used.
    """
    before, said = _broken.get((what, name), ("", ""))
    if before == file and said.startswith(f"{file} cannot"):
        return None  # an import that has failed is not tried again
    try:
        part: Callable[..., Any] = load()
        if part not in _sound:
            check(part)
            _sound.add(part)
        _broken.pop((what, name), None)
        return part
    except (Exception, SystemExit) as error:  # a file fails in any way, and the other parts work all the same
        wrong = isinstance(error, ValueError)
        now = (
            f"{file}: {error}"
            if wrong
            else f"{file} cannot be imported ({type(error).__name__}: {first_line(error)})"
        )
    _broken[what, name] = file, " ".join(now.split())
    if (file, now) != (before, said):
        log.warning("%s; it is left out", now)
    return None


def why_broken(what: str, name: str) -> str:
    """Say why a part in a file cannot be used; empty for another name."""
    return _broken.get((what, name), ("", ""))[1]

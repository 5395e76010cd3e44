"""Requirements for registering custom losses, weightings, timestep laws, cameras and scenes."""

from __future__ import annotations

import inspect
from collections.abc import Container, Sequence

#: Parameters that are no options: where randomness and prompts come from is the run's business.
GIVEN = ("seed", "generator", "embeddings")
#: Modules in which parts were registered; a new process knows these parts once it has imported them.
homes: set[str] = set()


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
    if not any(_takes(signature, given, options) for given in called):
        must = " or ".join(f"({', '.join(given).replace('=', '')})" for given in called)
        parameters = signature.parameters.values()
        takes = ", ".join(p.name for p in parameters if not (options and p.kind is p.KEYWORD_ONLY))
        more = ", and its options as keywords" if options else ""
        raise ValueError(f"a {what} must take {must}{more}; {name} takes ({takes}){remedy}")
    homes.add(part.__module__)
    return name.lower()


def _takes(signature: inspect.Signature, given: Sequence[str], options: bool) -> bool:
    """Tell whether a signature takes what is given, and needs no more except for options."""
    keywords = {name[:-1]: None for name in given if name.endswith("=")}
    try:
        bound = signature.bind_partial(*(name for name in given if not name.endswith("=")), **keywords)
    except TypeError:
        return False
    needed = [
        p
        for p in signature.parameters.values()
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and not (options and p.kind is p.KEYWORD_ONLY)
    ]
    return all(p.name in bound.arguments or p.default is not p.empty for p in needed)


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
    options = [p for p in inspect.signature(part).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option.default is option.empty and option.name not in GIVEN:
            raise ValueError(f"the {what} {name} has the option {option.name} without a default; give it one")
        if isinstance(option.default, (dict, set)):
            raise ValueError(
                f"the default of {option.name} of the {what} {name} must be a number, text, true or false, or a list, got "
                f"{str(option.default)[:80]}"
            )
    return name

"""Requirements for registering custom losses and scenes."""

from __future__ import annotations

import inspect

#: Parameters that are no options: where randomness and prompts come from is the run's business.
GIVEN = ("seed", "generator", "embeddings")


def check_own(what: str, part: object) -> str:
    """Check a part to be registered; returns the name that selects it, in lower case.

    Args:
        what: it is, for errors.
        part: a function or a class.

    Raises:
        ValueError: it has no name, or an option that has no default or one that a configuration cannot hold.
    """
    name = getattr(part, "__name__", "")
    if not (callable(part) and name.isidentifier()):
        raise ValueError(
            f"a {what} must be a function or a class with a name, by which it is chosen; got {str(part)[:80]!r}"
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
    return name.lower()

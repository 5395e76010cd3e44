"""Each value of a configuration alone: against its type, and the rules beside it."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping
from typing import Any

from hydra.utils import get_object
from omegaconf import MISSING

from distill.files.errors import first_line
from distill.options import check_option, check_options, hints_of, names_of, options_of, shown
from distill.run.config.known import default_of
from distill.run.config.mistakes import unknown_option
from distill.run.config.schema import PARTS, Config


def check_values(values: Mapping[str, Any]) -> dict[str, Callable[..., Any]]:
    """Check each value of a configuration alone; returns the parts that it names.

    Raises:
        ValueError: an option has a value that it may not take.
    """
    check_schema(values, values["iterations"])
    return {name: check_part(name, values.get(name), values["iterations"]) for name in PARTS}


def check_schema(values: Mapping[str, Any], iterations: int, schema: type = Config, prefix: str = "") -> None:
    """Check the options that every run has.

    Raises:
        ValueError: an option has a value that it may not take, or + added one that there is not.
    """
    hints = hints_of(schema, rules=True)
    if strange := [name for name in values if name not in hints]:
        raise ValueError(unknown_option(f"{prefix}{strange[0]}"))
    for item in dataclasses.fields(schema):
        name, hint, value = f"{prefix}{item.name}", hints[item.name], values[item.name]
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, Mapping):
                raise ValueError(
                    f"{name} is a group of options, got {shown(value)}; leave it out for the defaults"
                )
            check_schema(value, iterations, typing.cast(type, hint), f"{name}.")
        elif item.name not in PARTS:
            check_option(name, value, hint, iterations)


def check_part(group: str, options: object, iterations: int) -> Callable[..., Any]:
    """Check a part's options against its signature; returns the part.

    Raises:
        ValueError: there is no such part, or an option has a value that it may not take.
    """
    if not isinstance(options, Mapping) or not isinstance(options.get("_target_"), str):
        raise ValueError(f"{group} names no part; choose one with {group}=NAME")
    try:
        target: Callable[..., Any] = get_object(options["_target_"])
    except Exception as error:  # whatever its module fails with
        raise ValueError(
            f"{group}._target_ must be the path of a callable, and {options['_target_']!r} cannot be imported: "
            f"{first_line(error)}"
        ) from error
    own = {name: value for name, value in options.items() if not name.startswith("_")}
    if missing := [name for name, value in own.items() if value == MISSING]:
        raise ValueError(f"{group}.{missing[0]} has no default; give it a value")
    try:
        options_of(target)
    except Exception as error:  # what has no signature of options fails in many ways
        raise ValueError(
            f"{group}._target_={options['_target_']} is no {group}; choose one with {group}=NAME"
        ) from error
    check_options(target, own, group, iterations)
    return target


def check_known(group: str, target: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Check that a part has the options that it is given.

    Raises:
        ValueError: it does not.
    """
    known = names_of(target)
    if strange := [name for name in options if not name.startswith("_") and name not in known]:
        raise ValueError(
            f"unknown option '{group}.{strange[0]}'; {options['_target_']} has {', '.join(known) or 'none'}; "
            "'distill --options' lists all options"
        )


def value_of(values: Mapping[str, Any], option: str) -> Any:
    """The value of an option with a dotted name."""
    found: Any = values
    for key in option.split("."):
        found = found[key]
    return found


def is_set(values: Mapping[str, Any], option: str) -> bool:
    """Tell whether an option asks for something: it is neither empty nor at the schema's default."""
    empty = "none" if option == "view_words" else None
    return value_of(values, option) not in (default_of(option), empty)

"""The schema's options and groups of them, by dotted name."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from functools import cache
from typing import Any

from distill.run.config.schema import PARTS, Config


def _walk(schema: type, prefix: str = "") -> Iterator[tuple[str, type | None]]:
    """Yield the dotted name of each option in a dataclass, and the dataclass that it is a group of; a group before what is in it."""
    for name, hint in typing.get_type_hints(schema).items():
        inner = typing.cast(type, hint) if is_dataclass(hint) else None
        yield prefix + name, inner
        if inner:
            yield from _walk(inner, f"{prefix}{name}.")


#: Every option and group, in the schema's order; reading its annotations takes a while.
_ALL = tuple(_walk(Config))


def known_options() -> list[str]:
    """Dotted names of the schema's options, groups included."""
    return [name for name, _ in _ALL]


def groups() -> Mapping[str, type]:
    """The groups of the schema, by their dotted names, the whole first with an empty one; without the parts, whose options are their own."""
    return {"": Config} | {name: inner for name, inner in _ALL if inner}


def schema_of(group: str) -> type:
    """The dataclass of a group of the schema, by its dotted name; of the whole with an empty one."""
    return groups()[group]


@cache
def group_names() -> frozenset[str]:
    """Dotted names of all groups of options, parts included."""
    return frozenset({*groups(), *PARTS} - {""})


def default_of(option: str) -> object:
    """The schema's default of an option with a dotted name."""
    value: Any = Config()
    for name in option.split("."):
        value = getattr(value, name)
    return value

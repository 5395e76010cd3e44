"""What options mean, as the docstrings of what has them say."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig

from distill.renderers.shared_options import OWNER
from distill.run.config.known import schema_of
from distill.run.config.schema import PARTS

#: The sections of a docstring that say what each parameter or field is.
SECTIONS = ("Args:", "Attributes:")


def entries(docstring: str | None) -> dict[str, str]:
    """The parameters of a docstring in Google's style, each with what it says of them in one line.

    Args:
        docstring: of a function, whose ``Args`` are read, or of a class, whose ``Attributes`` are; several names may share an entry.
    """
    found: dict[str, str] = {}
    lines = inspect.cleandoc(docstring or "").splitlines()
    names: list[str] = []
    reading = False
    for line in lines:
        if not line.startswith(" "):
            reading = line in SECTIONS or (reading and not line)
            names = []
        elif reading and (begun := re.match(r" {4}(\S[\w, *]*): (.*)", line)):
            names = [name.strip(" *") for name in begun[1].split(",")]
            found |= dict.fromkeys(names, begun[2])
        elif reading:
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found


def meanings(target: Callable[..., Any]) -> dict[str, str]:
    """What each option of a part means: a function's own, or those of a class, of its initialiser and of what it is derived from."""
    if not inspect.isclass(target):
        return of_owner(target) | entries(target.__doc__)
    found: dict[str, str] = {}
    for each in reversed(target.__mro__):
        begin = vars(each).get("__init__")
        found |= of_owner(begin) | entries(each.__doc__) | entries(getattr(begin, "__doc__", None))
    return found


def of_owner(function: object) -> dict[str, str]:
    """What the options mean that a function takes over from another class."""
    owner = getattr(function, OWNER, None)
    return meanings(owner) if owner else {}


def meaning_of(option: str, config: DictConfig) -> str:
    """What an option of a configuration means; empty where nothing says it, such as an option of a custom part.

    Args:
        option: its dotted name.
        config: names the parts.
    """
    group, _, name = option.rpartition(".")
    if group in PARTS:
        said = meanings(get_object(config[group]._target_))
    else:
        said = entries(schema_of(group).__doc__)
    return said.get(name, "")

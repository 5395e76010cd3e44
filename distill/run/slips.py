"""Slips in the words of a command line that Hydra would take in silence or answer in its own terms, refused before it composes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import get_args, get_origin

from distill.run.mistakes import hints_of_option, inside, option_around, takes_schedule, unknown_option
from distill.run.schema import PARTS, default_of, known_options

#: A choice of each group, as an example.
_USUAL = {
    "guidance": "sds",
    "timesteps": "uniform",
    "cameras": "ranges",
    "scene": "hash_grid",
    "preset": "latent",
    "experiment": "dreamfusion",
}
#: What Hydra's grammar reads as no text.
_NO_NAME = re.compile(r"(?i)null|true|false|[+-]?(\d[\d_]*\.?\d*|\.\d+)(e[+-]?\d+)?")


def check_words(words: Sequence[str]) -> None:
    """Refuse a word that names nothing, or something inside an option that holds one value.

    Raises:
        ValueError: there is such a word, in one line.
    """
    for word in words:
        key, equals, value = word.partition("=")
        if not (found := re.fullmatch(r"([+~]{0,2})([A-Za-z_][\w.]*)", key)) or found[2].startswith("hydra"):
            continue
        sign, name = found[1], found[2]
        if "~" in sign:
            _check_deleted(word, name)
        elif option := option_around(name):
            if not _may_hold(option, name.removeprefix(f"{option}.")):
                raise ValueError(inside(option, f"{name}{equals}{value}"))
        elif sign == "+" and name in known_options():
            raise ValueError(f"{name} is there already, and + adds what is not; write {name}{equals}{value}")
        elif name in _USUAL and _NO_NAME.fullmatch(value):
            raise ValueError(f"{name} takes a name, got {value}; write for example {name}={_USUAL[name]}")
        elif (group := name.partition(".")[0]) in ("preset", "experiment") and group != name:
            raise ValueError(
                f"{group} takes a name and has no options of its own, got {word}; write for example {group}={_USUAL[group]}"
            )


def _check_deleted(word: str, name: str) -> None:
    """Refuse to delete an option; without a part, what is missing is told later."""
    if name in PARTS:
        return
    if name not in known_options():
        raise ValueError(unknown_option(name))
    raise ValueError(f"an option cannot be deleted, got {word}; leave it out for its default")


def _may_hold(option: str, rest: str) -> bool:
    """Tell whether something inside an option can be set: an item of its default list, or a number of a schedule."""
    hints = [kind for hint in hints_of_option(option) for kind in (hint, *get_args(hint))]
    if any(get_origin(kind) is dict for kind in hints):
        return True
    if any(get_origin(kind) in (list, tuple) for kind in hints):
        default = default_of(option) if option in known_options() else None
        return rest.isdigit() and (
            int(rest) < len(default) if isinstance(default, list) else option not in known_options()
        )
    return takes_schedule(option)

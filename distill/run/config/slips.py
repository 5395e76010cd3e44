"""Slips in the words of a command line that Hydra would take in silence or answer in its own terms, refused before it composes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from distill.run.config.known import default_of, known_options
from distill.run.config.mistakes import inside, option_around, takes_list, takes_mapping, takes_schedule
from distill.run.config.plugins import plugin_options
from distill.run.config.schema import PARTS

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
            if name not in PARTS and name in (*known_options(), *plugin_options()):
                raise ValueError(f"an option cannot be deleted, got {word}; leave it out for its default")
        elif option := option_around(name):
            if not _may_hold(option, name.removeprefix(f"{option}.")):
                raise ValueError(inside(option, f"{name}{equals}{value}"))
        elif name in _USUAL and _NO_NAME.fullmatch(value):
            raise ValueError(f"{name} takes a name, got {value}; write for example {name}={_USUAL[name]}")
        elif (group := name.partition(".")[0]) in ("preset", "experiment") and group != name:
            raise ValueError(
                f"{group} takes a name and has no options of its own, got {word}; write for example {group}={_USUAL[group]}"
            )


def _may_hold(option: str, rest: str) -> bool:
    """Tell whether something inside an option can be set: in a mapping, an item of a list that is there, or a number of a schedule."""
    if takes_mapping(option) or not takes_list(option):
        return takes_mapping(option) or takes_schedule(option)
    given = default_of(option) if option in known_options() else []
    return rest.partition(".")[0].isdigit() and isinstance(given, list)

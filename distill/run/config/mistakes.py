"""Errors of Hydra and of configuration files as one line: what is wrong with an option, and the remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, get_args, get_origin

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from distill.domains import describe
from distill.options import SCHEDULE_FIELDS, SCHEDULED, hints_of, names_of, numbers
from distill.parts.registered import why_broken
from distill.run.config.known import group_names, groups, known_options, schema_of
from distill.run.config.plugins import plugin_options, plugins
from distill.run.config.schema import PARTS


@contextmanager
def one_line() -> Iterator[None]:
    """Make errors of Hydra and of configuration files one line.

    Raises:
        ValueError: instead of them.
    """
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(explain(error)) from error
    except (YAMLError, UnicodeDecodeError, OSError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"a configuration file cannot be read as YAML: {said}") from error
    except ValueError as error:
        if not (found := re.search(r"Config group override must be .* Got (\w+)", str(error))):
            raise
        raise ValueError(
            f"{', '.join(PARTS)}, preset and experiment take a name, got a value of type {found[1]}; write for example scene=hash_grid"
        ) from error


def explain(error: BaseException) -> str:
    """Say in one line what is wrong with an option, and the remedy."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    text = str(error)
    if found := re.search(r"Could not find '((?:hydra/)?\w+)/([^']*)'", text):
        # A group may have several levels, and a name may be a path: what Hydra lists says where the group ends.
        listed = re.search(r"Available options in '([^']*)'", text)
        group = listed[1] if listed else found[1]
        name = f"{found[1]}/{found[2]}".removeprefix(f"{group}/")
        return _unknown_choice(group, name, re.findall(r"^\t(\S+)$", text, re.MULTILINE))
    if found := re.search(r"In '[^']*': Could not load '([\w/]+)/[^']*'", text):
        return f"{found[1]} takes one name, got a list or a name that is no file; choose one with {found[1]}=NAME"
    if found := re.search(r"Error resolving interpolation '\$\{preset\}.*keys: (.*)", text):
        missing = [name for name in ("preset", *PARTS, "experiment") if name not in found[1].split(", ")]
        return f"{missing[0]} names no part; choose one with {missing[0]}=NAME"
    if found := re.search(
        r"Ambiguous value for argument '([^=']+)=(.*)'\n|Sweep parameters '([^=']+)=(.*)' requires --multirun",
        text,
    ):
        return several(found[1] or found[3], found[2] or found[4])
    if found := re.search(r"To append to your default list use \+([^=\s]+)=\S+", text):
        return f"{found[1]} has no file yet that another could replace; a file of your own is added with +{found[1]}=NAME"
    if found := re.search(r"Either remove \+ prefix: '(([^=]+)=.*)'", text):
        return f"{found[2]} is there already, and + adds what is not; write {found[1]}"
    if found := re.search(r"Multiple values for (\S+)\. .* use 'override \S+: (.*)'", text):
        return f"{found[1]} is there already, and + adds what is not; write {found[1]}={found[2]}"
    full = re.search(r"full_key: (\S+)", f"{text}\n{cause}")
    named = r"Could not (?:override|delete|delete from config\.) '([^']+)'", r"Key '([^']+)' (?:is )?not in"
    if found := next(filter(None, (re.search(pattern, text) for pattern in named)), None):
        made = re.search(r"object_type=(\w+)_options", f"{text}\n{cause}")
        return unknown_option(full[1] if full else found[1], made[1] if made else "")
    if found := re.search(
        r"Value '(.*?)' .*(?:could not be converted to|is not a valid) (\w+)", str(cause), re.DOTALL
    ):
        return _of_another_type(
            getattr(cause, "full_key", None) or (full and full[1]) or "an option", found[1], found[2]
        )
    if said := _mistyped(f"{text}\n{cause}"):
        return said
    lines = [
        line.strip() for line in f"{text}\n{cause if cause is not error else ''}".splitlines() if line.strip()
    ]
    return f"could not read the options: {'; '.join(lines[:2])}; quote values as the shell and Hydra need"


def several(option: str, values: str) -> str:
    """Say that an option takes one value, or a list in brackets, where several stand side by side."""
    brackets = f"; as a list, write {option}=[{values}]" if takes_list(option) else ""
    return (
        f"{option} takes one {'list' if brackets else 'value'}, got {values}{brackets}; a run for each value is a sweep, which -m starts: "
        f'distill "PROMPT" -m {option}={values}'
    )


def takes_list(option: str) -> bool:
    """Tell whether an option of a run, or of some part, takes a list."""
    return bool({list, tuple, Sequence} & _origins(option))


def takes_mapping(option: str) -> bool:
    """Tell whether an option of some part takes a mapping, or anything."""
    return bool({dict, Mapping, Any, object} & _origins(option))


def _origins(option: str) -> set[object]:
    """What an option's types are made of: ``list`` for ``list[float] | None``, and None."""
    hints = hints_of_option(option)
    return {get_origin(kind) or kind for hint in hints for kind in (hint, *get_args(hint))}


def takes_schedule(option: str) -> bool:
    """Tell whether an option of a run, or of some part, may be a schedule."""
    group, _, name = option.partition(".")
    own = plugins().get(group, {}).values() if group in SCHEDULED else ()
    return Any in hints_of_option(option) or any(name in numbers(target) for target in own)


def hints_of_option(option: str, *, rules: bool = False) -> list[object]:
    """The types that an option of a run, or of some part, is annotated with; with ``rules``, what values they allow, too."""
    group, _, name = option.partition(".")
    having = [target for target in plugins().get(group, {}).values() if name in names_of(target)]
    hints: list[object] = [hints_of(target, rules).get(name, Any) for target in having]
    if option in known_options():
        above, _, last = option.rpartition(".")
        hints.append(hints_of(schema_of(above), rules)[last])
    return hints


def _of_another_type(option: str, value: str, kind: str) -> str:
    """Say what values an option takes, or only their type where parts differ."""
    accepted = {describe(hint) for hint in hints_of_option(option, rules=True)}
    said = accepted.pop() if len(accepted) == 1 else f"of type {kind.lower()}"
    return f"{option} must be {said}, got {value!r}; leave it out for the default"


def _mistyped(error: str) -> str | None:
    """Say what kind of value an option takes, where that is what Hydra complains of."""
    if found := re.search(r"field '([\w.]+)' is not Optional", error):
        if _options_in(found[1]):
            return _of_a_group(found[1], "null")
        return f"{found[1]} takes a plain value, neither null nor a schedule; leave it out for the default"
    if found := re.search(r"Cannot convert '\w+' to string: '(.*)'\n\s*full_key: (\S+)", error):
        about = f"; what belongs to it are the options of {_ABOUT[found[2]]}" if found[2] in _ABOUT else ""
        return f"{found[2]} takes one value, got {found[1]}{about or '; leave it out for the default'}"
    if found := re.search(r"Error parsing override '(.*)'\n", error):
        return f"could not read {found[1]} as an option; write name=value, a value with other characters as name=\"'a value'\""
    given = r"override \+*([\w.]+)=(.*)\n(?:.*\n)*?"
    if found := re.search(rf"{given}.*list index out of range", error):
        return inside(option_around(found[1]) or found[1], f"{found[1]}={found[2]}")
    if found := re.search(rf"{given}.* is not a ListConfig", error):
        return f"{found[1]} is a list, got {found[2]}; write {found[1]}=[{found[2]}]"
    if found := re.search(
        rf"{given}(?:Invalid type assigned: \w+ is not a subclass of|Cannot merge DictConfig with)", error
    ):
        return _of_a_group(found[1], found[2])
    if found := re.search(r"Merge error: \w+ is not a subclass of (\w+)\. value: (.*)", error):
        held = {schema.__name__: name for name, schema in groups().items() if name}
        return _of_a_group(held[found[1]], found[2]) if found[1] in held else None
    return None


def _options_in(group: str) -> list[str]:
    return [option for option in known_options() if option.startswith(f"{group}.")]


def _of_a_group(name: str, value: str) -> str:
    """Say that a group of options was given a value."""
    example = next(iter(_options_in(name)), f"{name}.NAME")
    return f"{name} is a group of options, got {value}; set one of them, such as {example}="


def _unknown_choice(group: str, name: str, there: Sequence[str]) -> str:
    choices = plugins().get(group, there)
    if said := why_broken({"guidance": "loss", "timesteps": "timestep law"}.get(group, ""), name):
        return said
    if name.lower() in choices:
        return f"unknown {group} {name!r}; did you mean {name.lower()!r}?"
    close = difflib.get_close_matches(name.lower(), choices, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    own = f"; {OWN}" if group in PARTS else ""
    return f"unknown {group} {name!r}" + (f"; {hint}there are {', '.join(choices)}{own}" if choices else "")


#: Where a part is known that is none of the library's.
OWN = "one of your own is known only in the script that registers it: run that script instead of distill"


#: What lists every option.
ALL_OPTIONS = "'distill --options' lists all options"


#: Groups of files whose content, without this first line, lands under the group's name, where no option is.
_FILES = ("experiment", "preset", "tuned")
GLOBAL = "# @package _global_"


def unknown_option(name: str, chosen: str = "") -> str:
    """Say that there is no option of a name, what may have been meant, and what lists them all.

    Args:
        name: with dots.
        chosen: name of the function or class of the part that is chosen in the option's group, where that is known.
    """
    name = re.sub(r"\[(\d+)\]", r".\1", name)
    if option := option_around(name):
        return inside(option, name)
    if name.partition(".")[0] in _FILES:
        return f"a file of {name.partition('.')[0]} must begin with the line '{GLOBAL}', so that what it sets are the run's options; add it"
    said = _strange(name, chosen)
    return f"{said}{' ' if said.endswith('?') else '; '}{ALL_OPTIONS}"


def option_around(name: str) -> str:
    """The option, no group, that a dotted name goes into; empty for none."""
    parts = name.split(".")
    if len(parts) < 2:
        return ""
    options = {*known_options(), *plugin_options()} - group_names()
    return next((above for end in range(1, len(parts)) if (above := ".".join(parts[:end])) in options), "")


#: Groups whose options are about what an option names.
_ABOUT = {"prior": "prior_options", "image": "reference", "novel_view": "reference"}


def inside(option: str, given: str) -> str:
    """Say that an option has none of its own inside, and what may have been meant.

    Args:
        option: that is there.
        given: what goes into it, ``prior.dtype=float32`` or only ``prior.dtype``.
    """
    name, equals, value = given.partition("=")
    last = name.rpartition(".")[2]
    if last in SCHEDULE_FIELDS and takes_schedule(option) and not takes_list(option):
        return f"a schedule is written whole, as {option}={{start:1,end:0}}, got {given}"
    if takes_list(option) or name[len(option) + 1 :].partition(".")[0].isdigit():
        return f"{option} is a list, which is written whole, got {given}; write {option}=[...]"
    about = _ABOUT.get(option)
    near = f"{about}.{last}", name.replace(".", "_")
    meant = [other for other in known_options() if other in near and not _options_in(other)]
    remedy = f"what belongs to it are the options of {about}; " if about else ""
    remedy = f"did you mean {meant[0]}{equals}{value}? " if meant else remedy
    return f"{option} takes one value and has no options of its own, got {given}; {remedy}{ALL_OPTIONS}"


def _strange(name: str, chosen: str = "") -> str:
    group, _, option = name.partition(".")
    having = [choice for choice, target in plugins().get(group, {}).items() if option in names_of(target)]
    if having:
        others = ", ".join(f"{group}={choice}" for choice in having)
        return (
            f"the chosen {group} has no option {name!r}; {others} {'has' if len(having) == 1 else 'have'} it"
        )
    if of_it := [part for part in plugins().get(group, {}).items() if chosen and part[1].__name__ == chosen]:
        selected, own = of_it[0][0], names_of(of_it[0][1])
        if close := difflib.get_close_matches(option, own, n=1):
            return f"unknown option {name!r}; did you mean '{group}.{close[0]}'?"
        return f"unknown option {name!r}; {group}={selected} has {', '.join(own) or 'no options'}"
    above, _, last = name.rpartition(".")
    beside = [
        other.rpartition(".")[2] for other in known_options() if above and other.rpartition(".")[0] == above
    ]
    if beside and not difflib.get_close_matches(last, beside, n=1):
        return f"unknown option {name!r}; {above} has {', '.join(beside)}"
    close = difflib.get_close_matches(name, [*known_options(), *plugin_options()], n=1, cutoff=0.5)
    return f"unknown option {name!r}" + (f"; did you mean {close[0]!r}?" if close else "")

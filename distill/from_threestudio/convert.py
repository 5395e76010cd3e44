"""From a threestudio configuration to a command line; what becomes of each key is in ``table``."""

from __future__ import annotations

import fnmatch
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.cli import split_prompt
from distill.from_threestudio.read import Values, read
from distill.from_threestudio.scene import LIT
from distill.from_threestudio.table import (
    ALWAYS,
    CONVERTED,
    DEFAULTS,
    LIT_DEFAULTS,
    QUIET,
    SAME,
    SYSTEMS,
    WITHOUT,
)
from distill.from_threestudio.values import GUIDANCE, Conversion
from distill.run.config.compose import compose_config
from distill.run.config.overrides import quote


def convert(path: Path) -> tuple[str, list[str]]:
    """Return the command for a configuration, and what is to be said of it, a line each.

    Raises:
        ValueError: it is no configuration of threestudio, or of a kind that has no counterpart, in one line.
    """
    values, unresolved = read(path)
    check_kinds(values, path)
    values, left_out = with_defaults(one_data(values))
    c = Conversion(values)
    c.iterations = int(c.number("trainer.max_steps", c.iterations))
    for key, why in unresolved.items():
        if not is_in(key, QUIET):
            c.say(key, f"cannot be worked out: {why}")
    for key, option in SAME.items():
        if values.get(key) is not None:
            c.options[option] = values[key]
    for convert_some in dict.fromkeys(
        each for key, each in CONVERTED.items() if key in values or each in ALWAYS
    ):
        try:
            convert_some(c)
        except (TypeError, IndexError) as error:
            keys = [key for key, each in CONVERTED.items() if each is convert_some and key in values]
            said = ", ".join(f"{key}: {values[key]!r}" for key in keys)
            raise ValueError(f"expected values as threestudio takes them, got {said}") from error
    if c.options.get("image") and not c.options["prompt"]:
        for_words = ("view_words", "views.", "perp_neg.", "negative_prompt", "prior_options.")
        c.options = {name: value for name, value in c.options.items() if not name.startswith(for_words)}
    if what := SYSTEMS[values["system_type"]]:
        c.say("system_type", f"{values['system_type']}: {what}")
    off = name_what_is_left(c)
    notes = [f"{key}: {' '.join(text.split())}" for key, text in c.notes]
    if off:
        notes.append(f"no counterpart, but without effect in this file: {', '.join(off)}")
    if left_out:
        notes.append(f"not in the file, as threestudio has them: {', '.join(left_out)}")
    compose_config(written(c.options))
    return command(c.options), notes


def check_kinds(values: Values, path: Path) -> None:
    """Refuse kinds of systems and guidance that are not known.

    Raises:
        ValueError: as said.
    """
    for key, known in (("system_type", SYSTEMS), ("system.guidance_type", GUIDANCE)):
        if str(values.get(key)) not in known:
            raise ValueError(
                f"{path} has {key} {values.get(key)!r}, which has no counterpart here; those that have are {', '.join(known)}"
            )


def one_data(values: Values) -> Values:
    """Cameras of a run from a picture are under ``data.random_camera``; what is beside them is of the picture."""
    inner = {key: value for key, value in values.items() if key.startswith("data.random_camera.")}
    if not inner:
        return values
    kept = ("data.image_path", "data.default_")
    outer = {key: v for key, v in values.items() if not key.startswith("data.") or key.startswith(kept)}
    return outer | {key.replace(".random_camera", ""): value for key, value in inner.items()}


def with_defaults(values: Values) -> tuple[Values, list[str]]:
    """Add what the file leaves out; returns the names of what is added as well."""
    picture = {"data.image_path": values.get("data.image_path", "YOUR_IMAGE.png")}
    of_picture = values.get("data_type") == "single-image-datamodule"
    known = {**DEFAULTS, **(LIT_DEFAULTS if values.get("system.material_type") == LIT else {})}
    added = {key: value for key, value in known.items() if key not in values}
    prompt = {} if "system.prompt_processor.prompt" in values else {"system.prompt_processor.prompt": None}
    return {**added, **prompt, **values, **(picture if of_picture else {})}, list(added)


def name_what_is_left(c: Conversion) -> list[str]:
    """Say what has no counterpart; returns the keys whose value has no effect anyway."""
    off = []
    for key, value in c.values.items():
        if key in SAME or key in CONVERTED or is_in(key, QUIET):
            continue
        name = is_in(key, WITHOUT)
        if name is None:
            c.say(key, f"{value}: not known to this converter, and left out")
        elif value is None or value in WITHOUT[name].off:
            off.append(key)
        else:
            c.say(key, f"{value}: no counterpart; {WITHOUT[name].why}".rstrip("; "))
    return off


def is_in(key: str, names: Mapping[str, Any] | frozenset[str]) -> str | None:
    """Return the name, perhaps with a star, that a key has in a table."""
    if key in names:
        return key
    return next((name for name in names if "*" in name and fnmatch.fnmatchcase(key, name)), None)


def written(options: Mapping[str, Any]) -> list[str]:
    """Write options as words of a command line, the prompt among them."""
    return [f"{name}={_value(value)}" for name, value in options.items()]


def command(options: Mapping[str, Any]) -> str:
    """Write the command, quoted for a shell."""
    prompt = str(options["prompt"])
    words = written({name: value for name, value in options.items() if name != "prompt"})
    if prompt:
        plain = not prompt.startswith("-") and split_prompt([prompt]) == (prompt, [])
        words = [prompt, *words] if plain else [*words, "--", prompt]
    return " ".join(["distill", *map(_quoted, words)])


def _value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return f"{value + 0:.10g}"  # -0 is 0
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_value, value))}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{name}:{_value(item)}' for name, item in value.items())}}}"
    text = str(value)
    plain = re.fullmatch(r"[A-Za-z][\w./-]*", text) and text.lower() not in (
        "null",
        "true",
        "false",
        "nan",
        "inf",
    )
    return text if plain else quote(text)


def _quoted(word: str) -> str:
    """As ``shlex.quote``, without its chains of quotes where double ones do."""
    double = "'" in word and not re.search(r'["$`\\!]', word)
    return f'"{word}"' if double else shlex.quote(word)

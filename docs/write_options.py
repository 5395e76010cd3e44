"""Write options.md: every option of a run with its meaning, the values that it takes and its default.

    python docs/write_options.py

All of it is read from the docstrings, types and defaults of the schema and of the parts.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from distill.domains import Losses, Scheduled, describe
from distill.options import SCHEDULED, followed, hints_of, numbers, options_of
from distill.run.config.known import groups
from distill.run.config.meanings import entries, meanings
from distill.run.config.plugins import plugins
from distill.run.config.schema import PARTS

PAGE = Path(__file__).parent / "options.md"
BEGINNING = """\
# Options

<!-- Written by write_options.py; change the docstrings instead. -->

Every option of a run, as `distill --options` lists them, with its meaning, the values that it takes and its default. On the command line an
option is `render.batch=8`, from Python `distill.generate("a red mug", **{"render.batch": 8})`. The default is the library's; the prior,
the loss and `experiment=` set others, and `distill "a red mug" --why render.batch` says which value a run has and what set it.

Options of `distill-views` and of novel-view trainings are described in [novel views](novel-views.md).

## Schedules

Where a *schedule* is allowed, a number can change over the run. A schedule is linear between two points of the run and constant before and after them:

```sh
distill "a red mug" 'guidance.scale={start:100,end:7.5}'                                   # over the whole run
distill "a red mug" 'guidance.scale={start:100,end:7.5,from_fraction:0.2,to_fraction:0.5}' # between two fractions of the run
distill "a red mug" 'guidance.scale={start:100,end:7.5,from_step:50,to_step:50}'           # in one step
```

`from_fraction` is 0 and `to_fraction` 1 where they are left out. `end` without `start` is an error; `start` without `end` is a constant.
"""
#: What a part is, and how it is chosen.
SAID = {
    "guidance": "The loss, chosen with `guidance=NAME`.",
    "timesteps": "The sampler of timesteps, chosen with `timesteps=NAME`. Fractions are of the prior's number of timesteps T.",
    "cameras": "The sampler of cameras, chosen with `cameras=NAME`.",
    "scene": "The representation of the scene, chosen with `scene=NAME`.",
}


def markdown(text: str) -> str:
    """A docstring's text in a cell of a table."""
    text = re.sub(r":math:`([^`]*)`", r"$\1$", text).replace("``", "`").replace("|", r"\|")
    return " ".join(text.split())


def summary(target: object) -> str:
    """The first paragraph of a docstring."""
    return markdown(inspect.cleandoc(target.__doc__ or "").split("\n\n")[0])


def plain(value: object) -> str:
    """A default as the command line takes it."""
    if value is dataclasses.MISSING or value == MISSING:
        return ""
    if value is None or isinstance(value, bool):
        return f"`{ {None: 'null', True: 'true', False: 'false'}[value] }`".replace(" ", "")
    if isinstance(value, (list, tuple)):
        return f"`[{','.join(plain(item).strip('`') for item in value)}]`"
    if isinstance(value, Mapping):
        return "`{" + ",".join(f"{name}:{plain(item).strip('`')}" for name, item in value.items()) + "}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`" if value != "" else "empty"


def values(hint: object, scheduled: bool = False) -> str:
    """The values that a type takes."""
    rules = getattr(hint, "__metadata__", ())
    if Losses() in rules:
        return "a list of losses"
    moving = ", or a schedule" if scheduled or Scheduled() in rules else ""
    return markdown(describe(hint)) + moving


def table(rows: Iterator[tuple[str, str, str, str]]) -> list[str]:
    lines = ["| option | values | default | meaning |", "|---|---|---|---|"]
    return [
        *lines,
        *(f"| `{name}` | {takes} | {default} | {meaning} |" for name, takes, default, meaning in rows),
    ]


def of_schema(group: str, schema: type) -> Iterator[tuple[str, str, str, str]]:
    """The rows of a group's own options; its groups have sections of their own."""
    hints, said = hints_of(schema, rules=True), entries(schema.__doc__)
    for item in dataclasses.fields(schema):
        if dataclasses.is_dataclass(hints[item.name]) or item.name in PARTS or item.name == "earlier":
            continue
        default = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
        name = f"{group}.{item.name}" if group else item.name
        yield name, values(hints[item.name]), plain(default), markdown(said[item.name])


def of_part(group: str, target: Callable[..., Any]) -> Iterator[tuple[str, str, str, str]]:
    """The rows of a part's options."""
    hints, said = hints_of(target, rules=True), meanings(target)
    numeric, follows = numbers(target) if group in SCHEDULED else {}, followed(target)
    for item in dataclasses.fields(options_of(target)):
        if item.name.startswith("_"):
            continue
        default = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
        told = f"`{follows[item.name]}.{item.name}`" if item.name in follows else plain(default)
        yield (
            f"{group}.{item.name}",
            values(hints[item.name], item.name in numeric),
            told,
            markdown(said[item.name]),
        )


def page() -> str:
    """The whole page."""
    lines = [BEGINNING, "## Run", ""]
    for group, schema in groups().items():
        lines += [f"## `{group}`", "", summary(schema), ""] if group else []
        lines += [*table(of_schema(group, schema)), ""]
    for group, choices in plugins().items():
        lines += [f"## `{group}`", "", SAID[group], ""]
        for name, target in choices.items():
            if not target.__module__.startswith("distill."):  # of a package that adds parts
                continue
            if name == "tp_sds":
                lines += [
                    "### `guidance=tp_sds`",
                    "",
                    "`guidance=sds` with `timesteps=dreamtime`, and its options.",
                    "",
                ]
                continue
            lines += [f"### `{group}={name}`", "", summary(target), "", *table(of_part(group, target)), ""]
    return "\n".join(lines).rstrip("\n") + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)

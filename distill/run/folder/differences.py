"""What tells runs of one prompt apart: the options of their ``config.yaml`` that differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

#: Options that say how a run was done, or that a table has a column for, and not what was made.
NOT_COMPARED = {"prompt", "seed", "seeds", "output_dir", "resume", "view", "view_address", "view_port", "device", "log", "earlier"}  # fmt: skip
#: The field of a part that names its function or class.
TARGET = "_target_"


def entries(text: str) -> dict[str, str]:
    """The options of a ``config.yaml`` by their dotted names, as they are written there; a list is ``[first, second]``.

    They are read line by line, which suits the block style of these files: 1,200 of them in a second on one core, where libyaml reads 270
    and OmegaConf 20. A table has thousands, and shows values as they are written.
    """
    values, items = dict[str, str](), dict[str, list[str]]()
    for name, value in _lines(text):
        if value.startswith("- "):
            items.setdefault(name, []).append(value[2:])
        else:
            values[name] = f"{values[name]} {value}".strip() if name in values else value
    lists = {name: f"[{', '.join(own)}]" for name, own in items.items()}
    return {name: said for name, value in values.items() if (said := value or lists.get(name, ""))}


def _lines(text: str) -> Iterator[tuple[str, str]]:
    """Yield each line's option and what it says; a line that is an item of a list, or goes on with a text, has the option before it."""
    parents: list[tuple[int, str]] = []
    for line in text.splitlines():
        content = line.lstrip(" ")
        name, colon, value = content.partition(":")
        if not colon or not name.isidentifier() or value[:1] not in ("", " "):
            if parents:
                yield ".".join(part for _, part in parents), content
            continue
        depth = len(line) - len(content)
        while parents and parents[-1][0] >= depth:
            parents.pop()
        parents.append((depth, name))
        yield ".".join(part for _, part in parents), value.strip()


def told_apart(runs: Sequence[Mapping[str, str]]) -> list[str]:
    """Name the options that some runs have in common and that differ, such as ``guidance.scale=5 iterations=800``, for each run.

    Args:
        runs: the options of each, from ``entries``.

    Returns:
        A text for each; empty where all are equal.
    """
    names = dict.fromkeys(name for run in runs for name in run if name.partition(".")[0] not in NOT_COMPARED)
    shared = [name for name in names if all(_value(run, name) for run in runs)]
    differ = [name for name in shared if len({_value(run, name) for run in runs}) > 1]
    return [" ".join(_said(name, _value(run, name)) for name in differ) for run in runs]


def _value(run: Mapping[str, str], name: str) -> str:
    """What an option says, of one with fields all of them; empty where there is none."""
    if name in run:
        return run[name]
    fields = [f"{key[len(name) + 1 :]}: {value}" for key, value in run.items() if key.startswith(f"{name}.")]
    return f"{{{', '.join(fields)}}}" if fields else ""


def _said(name: str, value: str) -> str:
    """An option and its value; of a part, its function or class."""
    part, _, field = name.rpartition(".")
    return f"{part}={value.rpartition('.')[2]}" if field == TARGET else f"{name}={value}"

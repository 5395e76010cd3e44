"""Vocabulary of a prior of the embedded world: kinds, colours, and the real objects that its folder names."""

from __future__ import annotations

import json
import re
import shlex
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from distill.embedded.world import COLOURS, KINDS
from distill.files.atomic import write_atomic
from distill.files.paths import user_path
from distill.wording import counted

#: The folders of the bundled priors, by the value of ``prior=``: of the embedded world, of that and real objects, and of four views of
#: the embedded world together.
SHIPPED = {
    "embedded": Path(__file__).with_name("prior"),
    "things": Path(__file__).with_name("things") / "prior",
    "views": Path(__file__).with_name("views") / "prior",
}

#: The file in a prior's folder that says which things it knows, and the version of its layout.
NAMES, VERSION = "names.json", 1
#: Name, article (``a``, ``an`` or empty), whether its colour can be chosen, and another name or nothing.
Row = tuple[str, str, bool, str]


class Name(NamedTuple):
    """A known name: its article, and whether its colour can be chosen."""

    article: str
    paintable: bool


@dataclass(frozen=True, eq=False)
class Known:
    """The vocabulary of a prior.

    Attributes:
        names: the kinds of the embedded world, and things by both of their names.
        things: first names of the things, sorted.
        first: the first name of a thing, by its second one.
        bare: whether a prompt may leave the colour out.
        longest: words of the longest name.
        joined: the names of several words, by these written as one.
        prior: what ``prior=`` calls it, a name of ``SHIPPED`` or its folder.
    """

    names: Mapping[str, Name]
    things: tuple[str, ...]
    first: Mapping[str, str]
    bare: bool
    longest: int
    joined: Mapping[str, str]
    prior: str = "embedded"

    @property
    def command(self) -> str:
        """The command that lists all of this."""
        return f"distill priors {shlex.quote(self.prior)}"


def knowing(rows: Iterable[Row], prior: str = "embedded") -> Known:
    """Return the vocabulary of a prior of this name that was trained on the embedded world and on these names."""
    rows = list(rows)
    found = {name: Name(article, paintable) for name, article, paintable, _ in rows}
    for _, article, paintable, also in rows:
        if also and also not in {row[0] for row in rows}:
            found[also] = Name(article, paintable or (also in found and found[also].paintable))
    found |= {kind: Name("a", True) for kind in KINDS}
    taken = {row[0] for row in rows} | {*KINDS}
    first = {also: name for name, _, _, also in rows if also and also not in taken}
    longest = max(len(name.split()) for name in found)
    joined = {name.replace(" ", ""): name for name in found if " " in name}
    things = tuple(sorted({row[0] for row in rows}))
    return Known(found, things, first, bool(rows), longest, joined, prior)


@lru_cache(maxsize=8)
def known(folder: Path) -> Known:
    """Read the vocabulary of the prior in a folder: the sixteen kinds, and the names of ``names.json`` if there is one.

    Raises:
        ValueError: that file cannot be read, or is of another version.
    """
    path = folder / NAMES
    name = next((name for name, shipped in SHIPPED.items() if shipped == folder), str(folder))
    return knowing(read_names(path) if path.exists() else [], name)


def of_prior(name: str) -> Known | None:
    """Return the vocabulary of a prior, or None for a prior that takes any prompt.

    Only the bundled ones and folders with a ``names.json`` have one.

    Args:
        name: the value of ``prior=``.

    Raises:
        ValueError: see ``known``.
    """
    if name in SHIPPED:
        return known(SHIPPED[name])
    if not name:
        return None
    folder = user_path(name)
    return known(folder) if (folder / NAMES).is_file() else None


def read_names(path: Path) -> list[Row]:
    """Read and check a ``names.json``.

    Raises:
        ValueError: it is none, in one line.
    """
    try:
        said: Any = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} must say which things the prior knows, and cannot be read ({' '.join(str(error).split())}); copy the "
            "prior's folder again"
        ) from None
    if not isinstance(said, dict) or said.get("version") != VERSION:
        version = said.get("version") if isinstance(said, dict) else None
        raise ValueError(
            f"{path} is of version {version!r}, and this library reads {VERSION}; update the library, or take a prior that fits it"
        )
    return checked(said.get("things"), str(path))


def write_names(folder: Path, rows: Iterable[Row]) -> None:
    """Write the ``names.json`` of a prior's folder.

    Raises:
        ValueError: a row is not as ``Row`` says.
    """
    things = checked([list(row) for row in rows], NAMES)
    write_atomic(folder / NAMES, json.dumps({"version": VERSION, "things": things}) + "\n")


def checked(rows: object, where: str) -> list[Row]:
    """Check rows of ``names.json``.

    Raises:
        ValueError: one is not as ``Row`` says, a name comes twice, or prompts could not mean it.
    """
    wanted = "a list of [name, article, colour can be chosen, another name] for different names"
    if not isinstance(rows, list):
        raise ValueError(f"{where}: things must be {wanted}, got {type(rows).__name__}")
    seen = set()
    for row in rows:
        if not is_row(row) or row[0] in seen:
            raise ValueError(f"{where}: things must be {wanted}, got {str(row)[:60]}")
        if row[0] in (*KINDS, *COLOURS) or row[3] in COLOURS:
            raise ValueError(
                f"{where}: a thing cannot have the name of a kind of the embedded world or of a colour, for prompts mean those; "
                f"got {str(row)[:60]}"
            )
        seen.add(row[0])
    return [(name, article, paintable, also) for name, article, paintable, also in rows]


def is_row(row: object) -> bool:
    """Tell whether a value is as ``Row`` says; names are in lower case, of letters without accents, digits and apostrophes."""
    if not isinstance(row, (list, tuple)) or [type(value) for value in row] != [str, str, bool, str]:
        return False
    name, article, _, also = row
    plain = all(each == " ".join(tokens(each)) for each in (name, also))
    return bool(name) and plain and article in ("", "a", "an")


def tokens(text: str) -> list[str]:
    """The words of a text in lower case, Latin letters without accents; hyphens separate, apostrophes do not."""
    apart = unicodedata.normalize("NFD", text.lower().replace("\u2019", "'"))
    plain = unicodedata.normalize("NFC", re.sub("(?<=[a-z])[\u0300-\u036f]+", "", apart))
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", plain)


def shipped() -> str:
    """The bundled priors, a line for each with what it knows."""
    lines = [
        "in the package; 'distill priors NAME' lists what each knows, and without prior= the prompt chooses one of the first two:",
        "",
    ]
    for name in SHIPPED:
        own = of_prior(name)
        assert own is not None
        real = f" and {counted(len(own.things), 'real object')}" if own.things else ""
        together = ", four views together" if name == "views" else ""
        lines.append(f"  {name:8}  {len(KINDS)} kinds of object in {len(COLOURS)} colours{real}{together}")
    return "\n".join(lines)


def describe(known: Known, width: int = 100) -> str:
    """Format a vocabulary as text: kinds and colours, then the names of real objects in columns."""
    lines = [f"{len(KINDS)} kinds in {len(COLOURS)} colours", f"  kinds    {', '.join(KINDS)}",
             f"  colours  {', '.join(COLOURS)}"]  # fmt: skip
    if known.things:
        lines += ["", f"{counted(len(known.things), 'thing')}; * those whose colour can be chosen"]
        marked = [name + ("*" if known.names[name].paintable else "") for name in known.things]
        wide = max(map(len, marked)) + 2
        count = max(1, (width - 2) // wide)
        rows = -(-len(marked) // count)
        lines += [
            "  " + "".join(each.ljust(wide) for each in marked[row::rows]).rstrip() for row in range(rows)
        ]
    return "\n".join(lines)

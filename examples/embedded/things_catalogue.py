"""Reads the furniture catalogues of Sweet Home 3D (`.sh3f` archives) and gives their objects names that a person would type.

`things_names.csv` says which names are written otherwise, and `things_left_out.csv` which objects are no things to generate.
"""

from __future__ import annotations

import csv
import fnmatch
import math
import re
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.embedded.things import LICENCES

Array = NDArray[np.floating[Any]]
HERE = Path(__file__).resolve().parent
CATALOGUE = "PluginFurnitureCatalog.properties"
NEEDED = ("id", "name", "category", "model", "width", "depth", "height", "creator")
_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")
_KEY = re.compile(r"(\w+)(?:#(\d+))?\s*=\s*(.*)")


@dataclass(frozen=True)
class Entry:
    """An object as its catalogue has it.

    Attributes:
        id: its own in all catalogues.
        title: the catalogue's name for it.
        category: the catalogue's.
        creator: who made it.
        licence: ``CC0``, ``CC-BY 3.0``, ``CC-BY 3.0 US``, or another that keeps it out.
        archive: the name of the ``.sh3f`` file.
        model: path of the OBJ file in it.
        turn: the catalogue's rotation of column vectors, by rows; y is up and +z the front afterwards.
        size_cm: width, height and depth after it.
        opening: whether the catalogue calls it a door or window.
    """

    id: str
    title: str
    category: str
    creator: str
    licence: str
    archive: str
    model: str
    turn: tuple[float, ...]
    size_cm: tuple[float, float, float]
    opening: bool


def properties(text: str) -> tuple[dict[str, str], dict[int, dict[str, str]]]:
    """A properties file's values: the catalogue's own, and each object's by its number."""
    own: dict[str, str] = {}
    objects: dict[int, dict[str, str]] = {}
    for line in re.sub(r"\\\r?\n\s*", "", text).splitlines():
        match = None if line.lstrip().startswith(("#", "!")) else _KEY.fullmatch(line.strip())
        if match:
            key, number, value = match.groups()
            where = objects.setdefault(int(number), {}) if number else own
            where[key] = _ESCAPE.sub(lambda found: chr(int(found[1], 16)), value).strip()
    return own, objects


def licence_of(text: str, where: str) -> str:
    """The licence that a catalogue's own line names.

    Raises:
        ValueError: it is none of those that allow what is derived to be shipped.
    """
    if re.search(r"public domain|CC-?0", text, re.IGNORECASE):
        return "CC0"
    if (
        re.search(r"share|non-?commercial|no-?deriv|-SA|-NC|-ND", text, re.IGNORECASE)
        or "ttribution" not in text
    ):
        raise ValueError(f"{where}: expected a licence CC0 or CC-BY, got {text!r}; leave this archive out")
    return "CC-BY 3.0 US" if "United States" in text else "CC-BY 3.0"


def licence_within(archive: zipfile.ZipFile, model: str, licence: str) -> str:
    """An object's licence: what a licence file beside its model says, where that asks for more than the catalogue does."""
    folder = model.rsplit("/", 1)[0] + "/"
    for name in archive.namelist():
        if name.rpartition("/")[0] + "/" == folder and "licen" in name.lower():
            kinds = set(
                re.findall(r"creativecommons\.org/licenses/([\w-]+)", archive.read(name).decode("latin-1"))
            )
            if kinds - {"by"}:
                return f"CC-{min(kinds - {'by'}).upper()}"
            if kinds and licence == "CC0":
                return "CC-BY 3.0"
    return licence


def _entry(values: dict[str, str], licence: str, archive: str, where: str) -> Entry:
    missing = [key for key in NEEDED if not values.get(key)]
    if missing:
        raise ValueError(
            f"{where} has no {missing[0]}; the catalogue has changed, take the version that is pinned"
        )
    try:
        turn = tuple(float(word) for word in values.get("modelRotation", "1 0 0 0 1 0 0 0 1").split())
        width, height, depth = (float(values[key]) for key in ("width", "height", "depth"))
    except ValueError as error:
        raise ValueError(f"{where}: expected numbers for its size and rotation, got {error}") from None
    if len(turn) != 9:
        raise ValueError(f"{where}: expected nine numbers for modelRotation, got {len(turn)}")
    if not all(math.isfinite(number) for number in turn) or not all(
        0 < size < math.inf for size in (width, height, depth)
    ):
        raise ValueError(
            f"{where}: expected a size above 0 and a finite rotation, got {width:g} x {depth:g} x {height:g}, "
            f"{' '.join(f'{number:g}' for number in turn)}"
        )
    return Entry(
        values["id"], values["name"], values["category"], values["creator"], licence, archive,
        values["model"].lstrip("/"), turn, (width, height, depth), values.get("doorOrWindow") == "true",
    )  # fmt: skip


def read_catalogue(path: Path) -> list[Entry]:
    """The objects of one ``.sh3f`` archive.

    Raises:
        ValueError: it is no such archive, an object lacks a key, or the licence is another.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            own, objects = properties(archive.read(CATALOGUE).decode("latin-1"))
            licence = licence_of(own.get("license", ""), path.name)
            said = {
                number: licence_within(archive, values.get("model", "").lstrip("/"), licence)
                for number, values in objects.items()
            }
    except (zipfile.BadZipFile, KeyError, OSError):
        raise ValueError(
            f"{path} is no furniture catalogue: expected a zip archive with {CATALOGUE}"
        ) from None
    if not objects:
        raise ValueError(
            f"{path.name} lists no objects; the catalogue has changed, take the version that is pinned"
        )
    return [_entry(objects[n], said[n], path.name, f"{path.name}, object {n}") for n in sorted(objects)]


def read_folder(folder: Path) -> list[Entry]:
    """The objects of all archives in a folder, in the order of their names.

    Raises:
        ValueError: there is none, two objects share an id, or see ``read_catalogue``.
    """
    paths = sorted(folder.glob("*.sh3f"))
    if not paths:
        raise ValueError(f"no .sh3f archive in {folder}; choose the folder that holds them with --folder")
    found: dict[str, Entry] = {}
    for entry in (entry for path in paths for entry in read_catalogue(path)):
        if entry.id in found:
            raise ValueError(f"{entry.archive} and {found[entry.id].archive} share the object {entry.id}")
        found[entry.id] = entry
    return list(found.values())


def _rows(name: str) -> list[list[str]]:
    with (HERE / name).open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))[1:]


def why_left_out(entry: Entry) -> str | None:
    """Why an object is no thing to generate, or None."""
    if entry.licence not in LICENCES:
        return f"licence {entry.licence}"
    if entry.opening:
        return "door or window"
    said = (f"name:{entry.title.lower()}", f"category:{entry.category}", f"id:{entry.id}")
    for pattern, reason in _rows("things_left_out.csv"):
        if any(fnmatch.fnmatchcase(one, pattern) for one in said):
            return reason
    return None


def names_of(entries: Iterable[Entry]) -> dict[str, str]:
    """The name of each object by its id: an object's own row of the table, else its title's, else its title."""
    table = dict(_rows("things_names.csv"))
    return {
        entry.id: table.get(entry.id) or table.get(entry.title.lower()) or entry.title.lower()
        for entry in entries
    }


def turned(entry: Entry) -> tuple[Array, tuple[float, float, float]]:
    """An object's rotation of column vectors, ours after the catalogue's, and its size after it.

    ``things_turns.csv`` says by how many quarter turns an object must be turned for its front to face +z,
    counter-clockwise seen from above.

    Returns:
        The rotation, shape ``[3, 3]``, and width, height and depth in cm.
    """
    own, (width, height, depth) = np.array(entry.turn).reshape(3, 3), entry.size_cm
    for key, quarters, _ in _rows("things_turns.csv"):
        if key == entry.id:
            cosine, sine = [(1, 0), (0, 1), (-1, 0), (0, -1)][int(quarters) % 4]
            own = np.array([[cosine, 0, sine], [0, 1, 0], [-sine, 0, cosine]]) @ own
            width, depth = (depth, width) if int(quarters) % 2 else (width, depth)
    return own, (width, height, depth)


#: Last words that do not name the object alone, and those that do though no other object has them.
_NO_NAME = frozenset(
    [
        "bag",
        "board",
        "box",
        "can",
        "holder",
        "machine",
        "maker",
        "paddle",
        "pool",
        "set",
        "setting",
        "shed",
        "station",
        "track",
        "unit",
    ]
)
_NAME = frozenset(("guitar", "tent"))
#: Names whose last word is another thing, and names with another that is no word of theirs.
_ANOTHER = frozenset(("dog house", "hot dog", "roasted chicken", "rocking horse", "toy car"))
_OTHER = {
    "bulldog": "dog",
    "bookcase": "bookshelf",
    "couch": "sofa",
    "motorcycle": "motorbike",
    "fridge": "refrigerator",
    "hatchback": "car",
    "minivan": "car",
    "sedan": "car",
    "suv": "car",
}


def also_called(name: str, names: Iterable[str]) -> str:
    """Another name of an object, such as ``guitar`` for ``electric guitar``; empty if it has none."""
    if name in _OTHER:
        return _OTHER[name]
    last = name.split()[-1]
    known = set(names)
    shared = sum(one.endswith(f" {last}") for one in known) > 1 or last in known or last in _NAME
    return last if " " in name and shared and last not in _NO_NAME and name not in _ANOTHER else ""

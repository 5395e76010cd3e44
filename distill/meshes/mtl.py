"""OBJ files and the MTL files that they name, made plain before trimesh reads them.

trimesh reads the first MTL file that an OBJ names, be it in a comment, looks for textures beside the OBJ alone, leaves out all materials
where a colour is one number, and does not know ``Tr``, tabs or comments behind numbers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

#: What the plain OBJ calls its MTL file: no file has this name.
NAME = "/"
#: Numbers of a material that are read, and how many each has: opacity, transparency and shininess, and the colour.
_NUMBERS = {"kd": 3, "ns": 1, "d": 1, "tr": 1}
_MAPS = ("map_kd", "map_d")
#: A colour that is above 1 by so little was rounded.
_NEAR = 1e-3


@dataclass(frozen=True)
class Library:
    """What the MTL files of an OBJ say.

    Attributes:
        materials: by their names, values by their keywords: ``kd``, ``ns``, ``d``, ``map_kd`` and ``map_d``.
        files: MTL files that are there.
        lost: MTL files that are not there, as the OBJ names them.
        textures: files by what the MTL files call them.
    """

    materials: dict[str, dict[str, str]]
    files: tuple[Path, ...]
    lost: tuple[str, ...]
    textures: dict[str, Path]

    def text(self) -> str:
        """One MTL file of all materials."""
        lines = []
        for name, values in self.materials.items():
            lines += [f"newmtl {name}", *(f"{key} {value}" for key, value in values.items())]
        return "\n".join(lines) + "\n"


def text_in(data: bytes) -> str:
    """The text of a file's bytes, in UTF-8 or in an encoding of one byte, with ``\\n`` at the ends of its lines."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def plain_obj(text: str) -> tuple[str, list[str], list[str]]:
    """Make an OBJ's text plain: lines begin with their keywords, numbers end without comments, and it names the MTL file ``NAME``.

    Args:
        text: of the file, with ``\\n`` at the ends of its lines.

    Returns:
        The text, what follows each ``mtllib``, and the names of the materials that are used.
    """
    # A newline before a pattern is found ten times as fast as a line's beginning.
    text = re.sub(r"\n +", "\n", "\n" + text.replace("\\\n", " ").replace("\t", " "))
    text = re.sub(r"\n#[^\n]*", "\n", text)
    if "#" in text:
        text = re.sub(r"\n((?:v|vt|vn|f) [^\n#]*)#[^\n]*", r"\n\1", text)
    text = re.sub(
        r"\n(mtllib|usemtl|o|g) +([^\n]*)",
        lambda found: f"\n{found[1]} {' '.join(found[2].split())}",
        text,
    )
    libraries, used = (re.findall(rf"\n{key} ([^\n]+)", text) for key in ("mtllib", "usemtl"))
    text = re.sub(r"\nmtllib\b[^\n]*", "\n", text)
    return f"mtllib {NAME}{text}", libraries, list(dict.fromkeys(used))


def named_as(used: Sequence[str], materials: Mapping[str, object]) -> dict[str, str]:
    """Which names of materials differ in a comment alone: those that an OBJ uses, and those of its MTL files that they mean.

    A name may itself have a `` #``, as in ``Material #25``, so that one that is known stays as it is.
    """
    unknown = [name for name in used if name not in materials]
    pairs = ((name, other) for name in unknown for other in materials)
    return {
        name: other
        for name, other in pairs
        if other == name.partition(" #")[0].strip() or name == other.partition(" #")[0].strip()
    }


def shares(text: str) -> str:
    """Divide the colours of vertices of a plain OBJ's text by 255 where they are whole numbers of which one is above 1.

    Raises:
        ValueError: one is outside [0, 1], and they are no such numbers.
    """
    first = re.search(r"\nv ([^\n]*)", text)
    if first is None or len(first[1].split()) < 6:
        return text
    rows = [row.split() for row in re.findall(r"\nv ([^\n]*)", text)]
    if any(len(row) < 6 for row in rows):  # trimesh reads none of them
        return text
    colours = np.array([row[3:6] for row in rows], np.float64)
    low, high = colours.min(), colours.max()
    if low >= -_NEAR and high <= 1 + _NEAR:
        return text
    if not (low >= 0 and high <= 255 and (colours == colours.round()).all()):
        odd = low if low < 0 or not math.isfinite(low) else high
        raise ValueError(f"colours of vertices must be in [0, 1], or whole numbers in [0, 255], got {odd:g}")
    lines = iter((colours / 255).tolist())
    return re.sub(
        r"\nv ([^\n]*)",
        lambda found: "\nv " + " ".join([*found[1].split()[:3], *(f"{share:.6g}" for share in next(lines))]),
        text,
    )


def library_of(path: Path, named: Sequence[str]) -> Library:
    """Read the MTL files of an OBJ; of a material that is in several, the first counts.

    Args:
        path: of the OBJ.
        named: what follows each ``mtllib``: a name, which may have blanks, or several.

    Raises:
        ValueError: a line cannot be read.
    """
    files, lost = list[Path](), list[str]()
    for line in named:
        whole = beside(path.parent, line)
        for name in [line] if whole else line.partition(" #")[0].split():
            found = whole or beside(path.parent, name)
            if found:
                files.append(found)
            else:
                lost.append(name)
    materials, textures = dict[str, dict[str, str]](), dict[str, Path]()
    for file in dict.fromkeys(files):
        read = materials_of(text_in(file.read_bytes()), file.name)
        materials = {**read, **materials}
        for name in (values[key] for values in read.values() for key in _MAPS if key in values):
            texture = beside(file.parent, name) or beside(path.parent, name)
            if texture:
                textures.setdefault(name, texture)
    return Library(materials, tuple(dict.fromkeys(files)), tuple(dict.fromkeys(lost)), textures)


def beside(folder: Path, name: str) -> Path | None:
    """The file that a name written on any system means, seen from a folder; None where it is not there.

    A backslash may stand for a slash, capitals may differ, and of a path in full that is not there, the file may lie in the folder.
    """
    usual = name.strip('"').replace("\\", "/")
    full = re.match(r"/|[A-Za-z]:", usual)
    for one in (name, usual, *([usual.rpartition("/")[2]] if full else ())):
        if found := _in_any_case(folder, one):
            return found
    return None


def _in_any_case(folder: Path, name: str) -> Path | None:
    if (folder / name).is_file():
        return folder / name
    path = folder
    for part in Path(name).parts:
        step = path / part
        if not step.exists() and path.is_dir():
            step = next((each for each in sorted(path.iterdir()) if each.name.lower() == part.lower()), step)
        path = step
    return path if path.is_file() else None


def materials_of(text: str, file: str) -> dict[str, dict[str, str]]:
    """The materials of an MTL file's text, see ``Library``.

    ``Tr`` is 1 less ``d``, which counts where there are both.

    Args:
        text: of the file.
        file: its name, for errors.

    Raises:
        ValueError: a line cannot be read.
    """
    found = dict[str, dict[str, str]]()
    values = dict[str, str]()
    for number, line in enumerate(text.split("\n"), start=1):
        key, rest = (*line.split(None, 1), "", "")[:2]
        key, rest = key.lower(), rest.strip()
        if not rest:
            continue
        if key == "newmtl":
            values = found[" ".join(rest.split())] = {}
        elif key in _MAPS:
            values[key] = rest
        elif key in _NUMBERS:
            try:
                values[key] = _numbers(rest, _NUMBERS[key])
            except ValueError as error:
                raise ValueError(f"line {number} of {file}, {line.strip()}: {error}") from None
    for values in found.values():
        if "tr" in values:
            values.setdefault("d", f"{1 - float(values['tr']):.8g}")
            del values["tr"]
    return found


def _numbers(text: str, count: int) -> str:
    """The numbers of a line, one of which stands for all of a colour's; an option such as ``-halo`` and a comment are left out."""
    words = [word for word in text.partition("#")[0].split() if not re.fullmatch(r"-[A-Za-z]+", word)]
    expected = "expected one finite number" + (f" or {count}" if count > 1 else "")
    try:
        numbers = [float(word) for word in words[:count]]
    except ValueError:
        raise ValueError(expected) from None
    if len(numbers) not in (1, count) or not all(map(math.isfinite, numbers)):
        raise ValueError(expected)
    return " ".join(f"{number:.8g}" for number in (numbers * count)[:count])

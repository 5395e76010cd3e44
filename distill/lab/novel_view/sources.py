"""Mesh files to render: which there are, what their objects are called, and what a folder's pictures were made of."""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from distill.files.atomic import is_half, sha256
from distill.meshes.mtl import library_of, plain_obj, text_in

#: Of one mesh in several formats, the first of these is rendered.
SUFFIXES = (".glb", ".obj", ".gltf", ".ply", ".stl", ".off")
#: In an object's folder, what it was made of.
RECORD = "source.json"
_LEVEL = re.compile(r"(.+)_lod\d+")


def find_meshes(inputs: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Mesh files among the inputs, and those in folders that are other formats or levels of detail of these.

    Raises:
        ValueError: there is none, or an input is not there.
    """
    found, left = list[Path](), list[Path]()
    for path in inputs:
        if not path.exists():
            raise ValueError(f"{path} is not there")
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(
            p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file() and not is_half(p)
        )
        chosen = _one_of_each(inside)
        found += chosen
        left += [p for p in inside if p not in chosen]
    if not found:
        among = (
            f"among {', '.join(map(str, inputs))}"
            if inputs
            else "is given; add some before the output, or --world N"
        )
        raise ValueError(f"no mesh ({', '.join(SUFFIXES)}) {among}")
    return found, left


def _one_of_each(files: Sequence[Path]) -> dict[Path, None]:
    """Of the files of a stem in one folder the best, in their order, and none that is a level of detail of another one."""
    best = dict[Path, Path]()
    for path in files:
        stem = path.parent / path.stem
        if stem not in best or _rank(path) < _rank(best[stem]):
            best[stem] = path
    levels = {stem: _LEVEL.fullmatch(stem.name) for stem in best}
    whole = {stem for stem, level in levels.items() if not (level and stem.with_name(level[1]) in best)}
    return {path: None for path in files if (stem := path.parent / path.stem) in whole and best[stem] == path}


def _rank(path: Path) -> int:
    return SUFFIXES.index(path.suffix.lower())


def name_of(path: Path, taken: Container[str], out: Path) -> str:
    """A folder name for a mesh: its stem, with a number where another file has it.

    Args:
        path: of the mesh.
        taken: names of other files.
        out: of the folders; a number that stands there for another file is passed over.
    """
    stem = "".join(c if c.isalnum() or c in "-_" else "-" for c in path.stem) or "object"
    name, number = stem, 2
    while name in taken or (number > 2 and _is_of_another(out / name, path)):
        name, number = f"{stem}-{number}", number + 1
    return name


def _is_of_another(folder: Path, path: Path) -> bool:
    if not folder.is_dir():
        return False
    try:
        record = record_of(path)
        before = json.loads((folder / RECORD).read_text("utf-8"))
        # A file that has changed keeps its number, and is refused there.
        return refusal(folder, record) is not None and before["file"] != record["file"]
    except (OSError, ValueError, KeyError, TypeError):  # there is no record, or rendering it says so
        return False


def record_of(path: Path) -> dict[str, Any]:
    """What tells a mesh from others: its file, and the digests of that and of the files that it names.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        beside = sorted(sha256(p) for p in set(beside_of(path)) if p.is_file())
        return {"file": str(path.resolve()), "sha256": sha256(path), "beside": beside}
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error


def refusal(folder: Path, record: dict[str, Any]) -> str | None:
    """Why an object's folder cannot be used as one of a mesh; None if it can, or does not say what it was made of."""
    try:
        before = json.loads((folder / RECORD).read_text("utf-8"))
        same = all(before[key] == record[key] for key in ("sha256", "beside"))
        file = str(before["file"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if same:
        return None
    if file == record["file"]:
        return f"{folder} has pictures of what {file} was before it changed; move that folder away, or choose another output"
    return f"{folder} has pictures of another mesh, {file}, not of {record['file']}; rename one, or choose another output"


def beside_of(path: Path) -> list[Path]:
    """Files that a mesh file names for its shape or its colours, whether they are there or not."""
    kind = path.suffix.lower()
    if kind == ".gltf":
        return [path.parent / name for name in _of_gltf(path)]
    if kind == ".obj":
        return _of_obj(path)
    return [path.parent / name for name in pictures_of_ply(path)]


def _of_obj(path: Path) -> list[Path]:
    """MTL files whose materials are used, and their textures."""
    _, named, used = plain_obj(text_in(path.read_bytes()))
    try:
        library = library_of(path, named if used else ())
    except ValueError:  # reading its surface says what is wrong
        return []
    return [*library.files, *(path.parent / name for name in library.lost), *library.textures.values()]


def pictures_of_ply(path: Path) -> list[str]:
    """Files that the colours of a PLY file are in, as it names them; none for another format."""
    return list(_after(path, "comment texturefile", "end_header")) if path.suffix.lower() == ".ply" else []


def _after(path: Path, first: str, end: str = "") -> Iterator[str]:
    """What stands behind the first words of lines, in lower case, up to a line that is ``end``; nothing without the file."""
    if not path.is_file():
        return
    wanted = first.split()
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            *words, rest = [*line.split(None, len(wanted)), ""][: len(wanted) + 1]
            if end and line.strip() == end:
                return
            if rest and [word.lower() for word in words] == wanted:
                yield rest.strip()


def _of_gltf(path: Path) -> list[str]:
    try:
        tree = json.loads(path.read_text("utf-8-sig"))
        named = [one["uri"] for key in ("buffers", "images") for one in tree.get(key, ()) if "uri" in one]
    except (ValueError, TypeError, AttributeError):  # reading its surface says what is wrong
        return []
    return [unquote(uri) for uri in named if isinstance(uri, str) and not uri.startswith("data:")]

"""Real objects: named, licensed objects for training priors, with their captions, splits, pictures and true meshes.

The table of objects and the credits of their creators ship with the library; the pictures are packed, and the meshes
fetched, by ``examples/embedded/render_things.py`` and ``examples/embedded/fetch_things.py``.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from distill.embedded import obj
from distill.embedded.world import COLOURS, TEMPLATES

if TYPE_CHECKING:
    import trimesh

FOLDER = Path(__file__).with_suffix("")
TABLE = FOLDER / "table.csv"
#: Licences that what ships may derive from.
LICENCES = ("CC0", "CC-BY 3.0", "CC-BY 3.0 US")
COLUMNS = (
    "id", "name", "also", "article", "variant", "category", "creator", "licence", "archive", "model", "turn", "size_cm",
    "faces", "textured", "paint", "share", "title",
)  # fmt: skip

#: Version of the pack's layout.
VERSION = 1
PICTURES, INDEX = "things.safetensors", "things.json"
SIZE = 64


@dataclass(frozen=True)
class Thing:
    """An object of the table.

    Attributes:
        id: its own in all catalogues.
        name: what a person would type, such as ``electric guitar``; variants of one kind of thing share it.
        also: another name, mostly a shorter one, or empty.
        article: ``a`` or ``an``; empty for what is plural or has no number.
        variant: from 1, among those that share the name.
        category: the catalogue's.
        creator: who made it.
        licence: one of ``LICENCES``.
        archive: the file that holds it.
        model: path of the OBJ file in the archive.
        turn: rotation of column vectors in the file's axes, by rows; y is up and +z the front afterwards.
        size_cm: width, height and depth after it.
        faces: triangles.
        textured: whether a picture colours some of them.
        paint: sRGB in [0, 1] of the plain colour that covers more than any other material, and can be changed, or None.
        share: the part of the surface that it covers, 0 without.
        title: the catalogue's name.
    """

    id: str
    name: str
    also: str
    article: str
    variant: int
    category: str
    creator: str
    licence: str
    archive: str
    model: str
    turn: tuple[float, ...]
    size_cm: tuple[float, float, float]
    faces: int
    textured: bool
    paint: tuple[float, float, float] | None
    share: float
    title: str

    def row(self) -> list[str]:
        """The table's row."""

        def numbers(values: Iterable[float]) -> str:
            return " ".join(f"{value:g}" for value in values)

        paint = (
            "" if self.paint is None else "#" + "".join(f"{round(255 * value):02x}" for value in self.paint)
        )
        return [
            self.id, self.name, self.also, self.article, str(self.variant), self.category, self.creator, self.licence,
            self.archive, self.model, numbers(self.turn), numbers(self.size_cm), str(self.faces),
            str(int(self.textured)), paint, f"{self.share:.2f}", self.title,
        ]  # fmt: skip


def _thing(values: dict[str, str]) -> Thing:
    turn = tuple(float(word) for word in values["turn"].split())
    width, height, depth = (float(word) for word in values["size_cm"].split())
    paint = values["paint"]
    red, green, blue = (int(paint[at : at + 2] or "0", 16) / 255 for at in (1, 3, 5))
    if len(turn) != 9 or values["licence"] not in LICENCES or not values["name"]:
        raise ValueError(
            "a rotation of nine numbers, a licence that allows it to ship, and a name are needed"
        )
    return Thing(
        values["id"], values["name"], values["also"], values["article"], int(values["variant"]), values["category"],
        values["creator"], values["licence"], values["archive"], values["model"], turn, (width, height, depth),
        int(values["faces"]), values["textured"] == "1", (red, green, blue) if paint else None, float(values["share"]),
        values["title"],
    )  # fmt: skip


@lru_cache(maxsize=4)
def table(path: Path = TABLE) -> tuple[Thing, ...]:
    """Return the objects, in the table's order.

    Raises:
        ValueError: the table is missing, or of another version, or a row cannot be read.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            if tuple(rows.fieldnames or ()) != COLUMNS:
                raise ValueError(f"{path} is no table of things of this version: its columns are others")
            found = []
            for row in rows:
                try:
                    if None in row.values() or None in row:
                        raise ValueError(f"expected {len(COLUMNS)} fields")
                    found.append(_thing(row))
                except ValueError as error:
                    raise ValueError(f"{path}, row {rows.line_num}: {error}") from None
    except OSError:
        raise ValueError(f"{path} is not there; write it with examples/embedded/fetch_things.py") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no table of things: {error}") from None
    if twice := [own for own, count in Counter(thing.id for thing in found).items() if count > 1]:
        raise ValueError(f"{path} has {twice[0]} twice")
    return tuple(found)


def names(things: Iterable[Thing] | None = None) -> tuple[str, ...]:
    """Return the unique names, sorted."""
    return tuple(sorted({thing.name for thing in (table() if things is None else things)}))


def _number(text: str) -> int:
    """A number that a text always gives, for splits that stay as they are when objects are added."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def held_out(colour: str, name: str) -> bool:
    """Tell whether a pair is held out from the text prior's training: one colour in eight of each name.

    Raises:
        ValueError: it is no colour of the world's.
    """
    check_colour(colour)
    return _number(f"colour of {name}") % len(COLOURS) == list(COLOURS).index(colour)


def check_colour(colour: str) -> None:
    """Refuse what is none of the world's colours.

    Raises:
        ValueError: it is none.
    """
    if colour not in COLOURS:
        raise ValueError(f"expected a colour of {', '.join(COLOURS)}, got {colour!r}")


def held_out_name(name: str) -> bool:
    """Tell whether a name, with all its variants, is held out from the novel-view model's training: about one in ten."""
    return _number(f"name {name}") % 10 == 0


def article_of(name: str, plain: frozenset[str] = frozenset()) -> str:
    """The indefinite article of a name; ``plain`` are those that have none."""
    if name in plain:
        return ""
    first = name.split()[0]
    return "an" if first[0] in "aeio" or (first[0] == "u" and first not in ("urinal", "utensil")) else "a"


def caption(
    name: str, article: str, colour: str | None = None, view: str | None = None, template: int = 0
) -> str:
    """Write a caption in one of the embedded world's templates.

    Args:
        name: of the thing, or its other one.
        article: empty for a name that has none.
        colour: a word of the world's colours; None for the colours that the thing has.
        view: words of a direction.
        template: index into ``TEMPLATES``.
    """
    form = TEMPLATES[template]
    if colour is None:
        form = (
            form.replace("{article} {colour}", "{kind_article}")
            .replace("{colour} ", "")
            .replace(" that is {colour}", "")
        )
    article = article_of(name) if article else ""
    first = (article_of(colour) if colour else article) if article else ""
    if not article:
        form = form.replace("that is", "that are") if name.endswith("s") else form
    text = " ".join(form.format(kind=name, colour=colour, article=first, kind_article=article).split())
    return text if view is None else f"{text}, {view}"


@dataclass(frozen=True)
class Pack:
    """Compressed pictures of real objects.

    Attributes:
        things: one for each object.
        angles: azimuth and elevation in degrees and the camera's distance, shape ``[things, views, 3]``.
        data: WebP pictures one after another.
        offsets: where each object's two begin, and the end, shape ``[2 things + 1]``; an empty one is not there.
    """

    things: tuple[Thing, ...]
    angles: Tensor
    data: Tensor
    offsets: Tensor

    def layers(self, index: int) -> Tensor:
        """One object's pictures before its colour is chosen, as ``dataset.Pictures`` has them.

        Returns:
            Premultiplied sRGB of the parts with colours of their own, shading of the parts whose colour can be chosen, and
            coverage, uint8, shape ``[views, 64, 64, 5]``.
        """
        rgba = self._picture(2 * index)
        tint = self._picture(2 * index + 1) if self.things[index].paint else np.zeros_like(rgba)
        views = self.angles.shape[1]
        # Compression adds colour where nothing is; premultiplied, it is never more than the coverage.
        colours = np.minimum(np.concatenate([rgba[..., :3], tint[..., :1]], axis=-1), rgba[..., 3:])
        both = np.concatenate([colours, rgba[..., 3:]], axis=-1)
        return torch.from_numpy(tiles(both, views))

    def rgba(self, index: int, colour: tuple[float, float, float] | None = None) -> Tensor:
        """One object's premultiplied pictures in a colour, or in its own, in [0, 1], shape ``[views, 64, 64, 4]``."""
        layers = self.layers(index).float() / 255
        paint = torch.tensor(colour or self.things[index].paint or (0.0, 0.0, 0.0))
        return torch.cat([(layers[..., :3] + layers[..., 3:4] * paint).clamp(max=1), layers[..., 4:]], dim=-1)

    def _picture(self, number: int) -> NDArray[np.uint8]:
        begin, end = self.offsets[number : number + 2].tolist()
        with Image.open(io.BytesIO(self.data[begin:end].numpy().tobytes())) as image:
            return np.asarray(image.convert("RGBA"))


def tiles(sheet: NDArray[np.uint8], views: int) -> NDArray[np.uint8]:
    """Take a sheet of square pictures apart, row by row: ``[rows 64, columns 64, c]`` to ``[views, 64, 64, c]``."""
    rows, columns = sheet.shape[0] // SIZE, sheet.shape[1] // SIZE
    apart = sheet.reshape(rows, SIZE, columns, SIZE, -1).swapaxes(1, 2)
    return np.ascontiguousarray(apart.reshape(rows * columns, SIZE, SIZE, -1)[:views])


def read_pack(folder: Path) -> Pack:
    """Read a complete pack.

    Raises:
        ValueError: it is missing, cut short, or of another version.
    """
    remedy = "make it again with examples/embedded/render_things.py pack"
    try:
        index: dict[str, Any] = json.loads((folder / INDEX).read_text("utf-8"))
        data = (folder / PICTURES).read_bytes()
    except OSError as error:
        raise ValueError(
            f"{folder} holds no pack of things: {Path(error.filename).name} is missing; {remedy}"
        ) from None
    except ValueError:
        raise ValueError(f"{folder / INDEX} is cut short or no JSON; {remedy}") from None
    version = index.get("version") if isinstance(index, dict) else None
    if version != VERSION:
        raise ValueError(
            f"{folder / INDEX} is of version {version}, and this library reads {VERSION}; {remedy}"
        )
    if hashlib.sha256(data).hexdigest() != index.get("sha256"):
        raise ValueError(f"{folder / PICTURES} is cut short or not the one that {INDEX} describes; {remedy}")
    try:
        tensors = load(data)
        things = tuple(_thing(dict(zip(COLUMNS, row["row"], strict=True))) for row in index["things"])
        pack = Pack(things, tensors["angles"], tensors["data"], tensors["offsets"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{folder / INDEX} is not as version {VERSION} is written ({error}); {remedy}"
        ) from None
    if len(pack.offsets) != 2 * len(things) + 1 or len(pack.angles) != len(things):
        raise ValueError(f"{folder / INDEX} lists {len(things)} things, {PICTURES} another number; {remedy}")
    return pack


def model(thing: Thing, folder: Path) -> obj.Model:
    """Return an object's true surface with its materials, placed like the embedded world's objects: z up, front towards +x.

    Args:
        thing: of the table.
        folder: holds the archives.

    Raises:
        ValueError: the archive is not there, or the model cannot be read.
    """
    path = folder / thing.archive
    try:
        with zipfile.ZipFile(path) as archive:
            read = obj.read(archive.read, thing.model)
    except (OSError, zipfile.BadZipFile):
        raise ValueError(
            f"{path} is no archive of things; fetch it with examples/embedded/fetch_things.py"
        ) from None
    return obj.placed(read, np.array(thing.turn).reshape(3, 3), thing.size_cm)


def mesh(thing: Thing, folder: Path, colour: str | None = None) -> trimesh.Trimesh:
    """Return an object's true mesh with sRGB face colours, in one of the eight colours or in its own.

    Args:
        thing: of the table.
        folder: holds the archives.
        colour: a word of the world's colours, for a thing with ``paint``.

    Raises:
        ValueError: see ``model``; or the thing's colour cannot be chosen, or is none of the world's.
    """
    import trimesh

    if colour is not None:
        check_colour(colour)
    if colour is not None and thing.paint is None:
        raise ValueError(
            f"the colour of {thing.name} ({thing.id}) cannot be chosen: no plain colour covers most of it"
        )
    whole = model(thing, folder)
    rgb = obj.colours(whole, np.arange(len(whole.faces)), np.full((len(whole.faces), 3), 1 / 3))[:, :3]
    if colour is not None:
        rgb[obj.painted(whole, thing.paint)[whole.material]] = COLOURS[colour]
    rgba = np.round(255 * np.concatenate([rgb, np.ones((len(rgb), 1))], axis=1)).astype(np.uint8)
    return trimesh.Trimesh(whole.vertices, whole.faces, face_colors=rgba, process=False)

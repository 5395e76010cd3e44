"""Fetch real, named, licensed objects (Debian's package of furniture for Sweet Home 3D) and write the bundled table.

    python examples/embedded/fetch_things.py ~/things                          # downloads the package with apt-get
    python examples/embedded/fetch_things.py ~/things --package FILE.deb       # has it already
    python examples/embedded/fetch_things.py ~/things --folder FOLDER          # has the .sh3f archives already

The archives go to the folder; ``table.csv``, ``names.csv``, ``left_out.csv`` and ``CREDITS.md``
to ``distill/embedded/things`` or ``--output``.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import os
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
from things_catalogue import Entry, also_called, names_of, read_folder, turned, why_left_out
from tqdm import tqdm

from distill.embedded import obj, things
from distill.embedded.world import COLOURS
from distill.files.atomic import write_atomic

PACKAGE, VERSION = "sweethome3d-furniture", "1.8-1"
SHA256 = "3ccb90c63f9525e887a767b9cd5c8b6933b8b6b2973a615a5359ee68a2118668"
MOST_FACES = 400_000
#: A plain colour that covers less than this is not the thing's colour.
LEAST_SHARE = 0.3
#: Names without an article: plural ones and those of substances.
PLAIN = frozenset(
    """ankle_boots bolt_cutters bread butter flowers folded_clothes french_fries glasses hanging_clothes headphones keys
    kitchen_utensils logs orchids playing_cards scissors shelves shorts slippers sneakers oil_cruets sunglasses
    track_lights trousers tulips women's_shoes bamboo""".replace("\n", " ").split()
)


def checked(path: Path) -> Path:
    """The package, if it is the one that is pinned.

    Raises:
        ValueError: it is not there, or another.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not there; expected {PACKAGE}_{VERSION}_all.deb")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != SHA256:
        raise ValueError(
            f"{path} is not {PACKAGE} {VERSION}: expected SHA-256 {SHA256[:12]}..., got {found[:12]}..."
        )
    return path


def _call(command: list[str], where: Path, remedy: str) -> None:
    try:
        done = subprocess.run(command, cwd=where, capture_output=True, text=True)
    except FileNotFoundError:
        raise ValueError(f"{command[0]} is not on this machine; {remedy}") from None
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ValueError(f"{' '.join(command[:2])} failed ({said}); {remedy}")


def fetch(folder: Path, package: Path | None) -> None:
    """Put the archives of the package into a folder; done already, it does nothing.

    Raises:
        ValueError: no network, no apt-get or dpkg-deb, or another package.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ValueError(f"{folder} is a file; give a folder for the archives") from None
    done = folder / "package.txt"
    if done.is_file() and done.read_text("utf-8").split() == [PACKAGE, VERSION]:
        return
    with tempfile.TemporaryDirectory(dir=folder) as name:
        work = Path(name)
        if package is None:
            remedy = "get the package elsewhere and name it with --package"
            _call(["apt-get", "download", f"{PACKAGE}={VERSION}"], work, remedy)
            package = next(work.glob("*.deb"), work / f"{PACKAGE}.deb")
        package = checked(package.resolve())
        _call(
            ["dpkg-deb", "-x", str(package), "unpacked"],
            work,
            "unpack the package elsewhere and use --folder",
        )
        archives = sorted((work / "unpacked").rglob("*.sh3f"))
        if not archives:
            raise ValueError(f"{package} holds no .sh3f archive; the package has changed")
        for archive in archives:
            os.replace(archive, folder / archive.name)
    # Last of all: without it, a folder may lack archives.
    write_atomic(done, f"{PACKAGE} {VERSION}\n")


def largest_plain(model: obj.Model) -> tuple[tuple[float, float, float], float] | None:
    """Return the plain colour that covers more of the surface than any other material, or None.

    Returns:
        The colour and the share of the surface that it covers; None where a texture or glass covers more than it.
    """
    area = np.bincount(model.material, model.areas(), len(model.materials))
    total: dict[object, float] = {}
    for index, material in enumerate(model.materials):
        key = material.colour if obj.is_plain(material) else index
        total[key] = total.get(key, 0.0) + float(area[index])
    best = max(total, key=lambda key: total[key])
    return (best, total[best] / max(float(area.sum()), 1e-12)) if isinstance(best, tuple) else None


def measured(entry: Entry, name: str, archive: zipfile.ZipFile) -> things.Thing:
    """An object's row of the table, its model read; the variant and the shorter name come later.

    Raises:
        ValueError: why it is left out.
    """
    turn, size = turned(entry)
    model = obj.placed(obj.read(archive.read, entry.model), turn, size)
    if len(model.faces) > MOST_FACES:
        raise ValueError(f"more than {MOST_FACES} faces")
    used = [model.materials[index] for index in np.unique(model.material)]
    colour, share = largest_plain(model) or (None, 0.0)
    if share < LEAST_SHARE:
        colour, share = None, 0.0
    return things.Thing(
        id=entry.id, name=name, also="", article=things.article_of(name, PLAIN_NAMES), variant=0,
        category=entry.category, creator=entry.creator, licence=entry.licence, archive=entry.archive, model=entry.model,
        turn=tuple(turn.ravel().tolist()), size_cm=size, faces=len(model.faces),
        textured=any(one.texture is not None for one in used), paint=colour, share=share, title=entry.title,
    )  # fmt: skip


PLAIN_NAMES = frozenset(name.replace("_", " ") for name in PLAIN)


def select(folder: Path, entries: list[Entry]) -> tuple[list[things.Thing], list[tuple[Entry, str]]]:
    """The objects that are kept, and those that are left out with the reason."""
    names, kept, out = names_of(entries), [], []
    for archive_name in dict.fromkeys(entry.archive for entry in entries):
        with zipfile.ZipFile(folder / archive_name) as archive:
            for entry in tqdm([one for one in entries if one.archive == archive_name], archive_name):
                reason = why_left_out(entry)
                try:
                    if reason is None:
                        kept.append(measured(entry, names[entry.id], archive))
                        continue
                except ValueError as error:
                    reason = str(error)
                except (zipfile.BadZipFile, zlib.error) as error:
                    raise ValueError(f"{folder / archive_name} is damaged ({error}); get it again") from error
                out.append((entry, reason))
    known = {thing.name for thing in kept}
    count: Counter[str] = Counter()
    for index, thing in enumerate(kept):
        count[thing.name] += 1
        kept[index] = replace(thing, variant=count[thing.name], also=also_called(thing.name, known))
    return kept, out


def _csv(header: tuple[str, ...], rows: list[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def credits_of(kept: list[things.Thing] | tuple[things.Thing, ...]) -> str:
    """The credits: every creator with the objects and their licence."""
    lines = [
        "# Credits of the real objects",
        "",
        f"Pictures and tables of {len(kept)} objects derive from 3D models that come with Sweet Home 3D, converted to OBJ by",
        "Emmanuel Puybaret (eTeks) and distributed as the Debian package"
        f" `{PACKAGE}` {VERSION}. Their creators, with the",
        "catalogue's names of their objects and the licences they gave:",
        "",
        "- CC0: <https://creativecommons.org/publicdomain/zero/1.0/>",
        "- CC-BY 3.0: <https://creativecommons.org/licenses/by/3.0/>",
        "- CC-BY 3.0 US: <https://creativecommons.org/licenses/by/3.0/us/>",
        "",
        "They were turned, scaled, recoloured and rendered. `examples/embedded/fetch_things.py` writes this file from the catalogues.",
        "",
    ]
    by_creator: dict[tuple[str, str], list[str]] = {}
    for thing in kept:
        by_creator.setdefault((thing.creator, thing.licence), []).append(thing.title)
    for (creator, licence), titles in sorted(
        by_creator.items(), key=lambda item: (item[0][0].lower(), item[0])
    ):
        count = Counter(titles)
        said = ", ".join(title if n == 1 else f"{title} ({n})" for title, n in sorted(count.items()))
        lines.append(f"- **{creator}**, {licence}: {said}")
    return "\n".join(lines) + "\n"


def names_table(kept: list[things.Thing] | tuple[things.Thing, ...]) -> str:
    """The names with their captions and splits, for people: ``distill.embedded.things`` computes the same."""
    header = (
        "name",
        "caption",
        "also",
        "variants",
        "variants_of_any_colour",
        "held_out_colour",
        "held_out_name",
    )
    rows = []
    for name in things.names(kept):
        here = [thing for thing in kept if thing.name == name]
        free = sum(thing.paint is not None for thing in here)
        colour = next(colour for colour in COLOURS if things.held_out(colour, name)) if free else ""
        said = things.caption(name, here[0].article)
        numbers = [str(len(here)), str(free)]
        rows.append([name, said, here[0].also, *numbers, colour, str(int(things.held_out_name(name)))])
    return _csv(header, rows)


def check_complete(output: Path, kept: list[things.Thing]) -> None:
    """Refuse to replace the bundled tables by those of fewer objects, such as of a folder with some of the archives.

    Raises:
        ValueError: the output is theirs, and an object of them is missing.
    """
    found = {thing.id for thing in kept}
    lost = [thing.id for thing in things.table() if thing.id not in found]
    if lost and output.resolve() == things.FOLDER.resolve():
        raise ValueError(
            f"{len(lost)} of the {len(things.table())} objects of the bundled tables are not there, such as {lost[0]}; get the whole "
            "package, or give --output FOLDER for tables of what is there"
        )


def write(output: Path, kept: list[things.Thing], out: list[tuple[Entry, str]]) -> None:
    """Write the table, what is left out, and the credits."""
    output.mkdir(parents=True, exist_ok=True)
    write_atomic(output / "table.csv", _csv(things.COLUMNS, [thing.row() for thing in kept]))
    rows = [[entry.id, entry.title, entry.category, entry.creator, entry.licence, why] for entry, why in out]
    header = ("id", "title", "category", "creator", "licence", "reason")
    write_atomic(output / "left_out.csv", _csv(header, rows))
    write_atomic(output / "names.csv", names_table(kept))
    write_atomic(output / "CREDITS.md", credits_of(kept))


def _short(why: str) -> str:
    """A reason without the file that it is about."""
    return "missing map" if why.startswith("the map") else "broken" if why.startswith("the model") else why


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("things", type=Path, help="folder for the archives")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--package", type=Path, help=f"{PACKAGE}_{VERSION}_all.deb, and no download")
    source.add_argument("--folder", type=Path, help="folder that holds the .sh3f archives, and no download")
    parser.add_argument(
        "--output", type=Path, default=things.FOLDER, help="folder for the tables and credits"
    )
    options = parser.parse_args()
    try:
        if options.folder is None:
            fetch(options.things, options.package)
        folder = options.folder or options.things
        kept, out = select(folder, read_folder(folder))
        check_complete(options.output, kept)
    except ValueError as error:
        sys.exit(f"fetch_things: {error}")
    write(options.output, kept, out)
    reasons = Counter(_short(why) for _, why in out)
    said = ", ".join(f"{count} {why}" for why, count in reasons.most_common())
    print(
        f"{len(kept)} objects of {len(things.names(kept))} names in {options.output}; {len(out)} left out: {said}"
    )


if __name__ == "__main__":
    main()

"""Pictures of real objects for training: contact sheets for visual inspection, and the pack that training reads.

    python examples/embedded/render_things.py sheets ~/things ~/things/sheets     # front, side, back, three quarters, top
    python examples/embedded/render_things.py pack ~/things ~/things/pack         # an interrupted run continues when started again
    python examples/embedded/render_things.py pack ~/things ~/things/more --each 4     # 68 pictures of each and not 34
    python examples/embedded/render_things.py pack ~/things ~/things/some --names names.txt --variants 5       # some names, a line each

The first folder holds the archives that ``fetch_things.py`` fetched. Cameras, framing, light and layers are those of ``dataset.py``.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import torch
from dataset import DISTANCE, ELEVATION_DEG, FOV_Y_DEG, workers
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from safetensors.torch import save
from tqdm import tqdm

from distill.cameras import Cameras, orbit
from distill.embedded import things, world
from distill.embedded.shoot import shoot
from distill.files.atomic import write_atomic

#: Pictures of each of the world's views, sixteen directions and overhead, without ``--each``; as many as a WebP sheet has room for.
EACH, MOST_EACH = 2, 90
COLUMNS = 6
QUALITY = 94


def draw_angles(thing: things.Thing, seed: int = 0, each: int = EACH) -> NDArray[np.float32]:
    """Azimuth, elevation in degrees and distance of a thing's pictures, the same at every call.

    Every view of the world has ``each`` pictures, in the world's order; the azimuth is even over
    its sector, all else by the laws of ``dataset.render_shape``.
    """
    digest = hashlib.sha256(f"{seed} {thing.id}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    middles = np.repeat(22.5 * np.arange(len(world.DIRECTIONS)), each)
    azimuth = np.concatenate([middles + rng.uniform(-11.25, 11.25, len(middles)), rng.uniform(0, 360, each)])
    elevation = np.concatenate([rng.uniform(*ELEVATION_DEG, len(middles)), rng.uniform(62, 88, each)])
    azimuth = (azimuth + 180) % 360 - 180
    return np.stack([azimuth, elevation, rng.uniform(*DISTANCE, len(azimuth))], axis=1).astype(np.float32)


def cameras_of(angles: NDArray[np.float32]) -> Cameras:
    azimuth, elevation, distance = torch.from_numpy(angles).unbind(1)
    return orbit(azimuth, elevation, distance, FOV_Y_DEG)


def sheet_of(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Square pictures side by side, ``COLUMNS`` a row: undone by ``things.tiles``."""
    n, size, _, channels = pictures.shape
    rows = -(-n // COLUMNS)
    padded = np.zeros((rows * COLUMNS, size, size, channels), np.uint8)
    padded[:n] = pictures
    apart = padded.reshape(rows, COLUMNS, size, size, channels).swapaxes(1, 2)
    return apart.reshape(rows * size, COLUMNS * size, channels)


def webp(sheet: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    # What is premultiplied has colours that count where alpha is 0: they must stay as they are.
    Image.fromarray(sheet).save(file, "webp", quality=QUALITY, method=5, exact=True, use_sharp_yuv=True)
    return file.getvalue()


def render_thing(
    thing: things.Thing, archives: Path, each: int = EACH
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]]:
    """A thing's compressed pictures and tint, and the angles of its cameras.

    Raises:
        ValueError: its model cannot be read.
    """
    angles = draw_angles(thing, each=each)
    layers = shoot(things.model(thing, archives), thing.paint, cameras_of(angles), things.SIZE, 3)
    levels = np.round(255 * layers).astype(np.uint8)
    pictures = webp(sheet_of(levels[..., [0, 1, 2, 4]]))
    tint = webp(np.repeat(sheet_of(levels[..., 3:4]), 3, axis=2)) if thing.paint else b""
    return np.frombuffer(pictures, np.uint8), np.frombuffer(tint, np.uint8), angles


def mark(thing: things.Thing, each: int = EACH) -> str:
    """Names a render by all that it depends on."""
    said = json.dumps(
        [things.VERSION, each, QUALITY, thing.model, thing.archive, thing.turn, thing.size_cm, thing.paint]
    )
    return hashlib.sha256(f"{thing.id} {said}".encode()).hexdigest()[:24]


def chosen(
    listed: tuple[things.Thing, ...], names: Path | None = None, variants: int | None = None
) -> tuple[things.Thing, ...]:
    """The objects of a file's names, a line each, and of each name at most so many.

    Raises:
        ValueError: the file is not there or empty, or has a name that the table does not have.
    """
    if names is not None:
        try:
            wanted = {line.strip() for line in names.read_text(encoding="utf-8").splitlines() if line.strip()}
        except OSError as error:
            raise ValueError(f"--names: cannot read {names}: {error.strerror}") from error
        unknown = sorted(wanted - {one.name for one in listed})
        if unknown or not wanted:
            raise ValueError(
                f"--names: expected names of the table, one a line, got {unknown[0]!r}" if unknown
                else f"--names: {names} is empty; expected names of the table, one a line"
            )  # fmt: skip
        listed = tuple(one for one in listed if one.name in wanted)
    seen: Counter[str] = Counter()
    kept = []
    for one in listed:
        seen[one.name] += 1
        if variants is None or seen[one.name] <= variants:
            kept.append(one)
    return tuple(kept)


def render_into(folder: Path, archives: Path, each: int, thing: things.Thing) -> None:
    """Render a thing into a folder, if it is not there yet.

    Raises:
        ValueError: its model cannot be read.
    """
    path = folder / f"{mark(thing, each)}.npz"
    if path.exists():
        return
    file = io.BytesIO()
    pictures, tint, angles = render_thing(thing, archives, each)
    np.savez(file, pictures=pictures, tint=tint, angles=angles)
    write_atomic(path, file.getvalue())


def pack(listed: tuple[things.Thing, ...], archives: Path, folder: Path, each: int = EACH) -> None:
    """Render what is not there yet, on all cores, then write the pack; both of its files are whole or not there.

    Raises:
        ValueError: a model cannot be read.
    """
    renders = folder / "renders"
    renders.mkdir(parents=True, exist_ok=True)
    render = partial(render_into, renders, archives, each)
    with workers() as pool:
        for _ in tqdm(pool.imap_unordered(render, listed), "rendering", len(listed), mininterval=10):
            pass
    parts, angles = [], []
    for thing in listed:
        with np.load(renders / f"{mark(thing, each)}.npz") as one:
            parts += [one["pictures"], one["tint"]]
            angles.append(one["angles"])
    tensors = {
        "data": torch.from_numpy(np.concatenate(parts)),
        "offsets": torch.tensor([0, *np.cumsum([len(part) for part in parts]).tolist()]),
        "angles": torch.from_numpy(np.stack(angles)),
    }
    data = save(tensors)
    index = {
        "version": things.VERSION,
        "sha256": hashlib.sha256(data).hexdigest(),
        "size": things.SIZE,
        "fov_y_deg": FOV_Y_DEG,
        "things": [
            {
                "row": thing.row(),
                "caption": things.caption(thing.name, thing.article),
                "held_out_colours": [
                    c for c in world.COLOURS if thing.paint and things.held_out(c, thing.name)
                ],
                "held_out_name": things.held_out_name(thing.name),
                "views": [world.view_of(float(a), float(e)) for a, e, _ in one],
            }
            for thing, one in zip(listed, angles, strict=True)
        ],
    }
    write_atomic(folder / things.PICTURES, data)
    write_atomic(folder / things.INDEX, json.dumps(index, ensure_ascii=False, separators=(",", ":")) + "\n")
    print(f"{len(listed)} things, {len(data) / 1e6:.1f} MB of pictures in {folder}")


#: Views of a contact sheet: azimuth and elevation.
CHECKED = ((0, 10), (90, 10), (180, 10), (35, 25), (0, 75))


def sheets(
    listed: tuple[things.Thing, ...], archives: Path, folder: Path, size: int = 60, per_sheet: int = 56
) -> None:
    """Write contact sheets, eight objects a column of rows, with each one's number in the table."""
    folder.mkdir(parents=True, exist_ok=True)
    angles = np.array([(a, e, 3.0) for a, e in CHECKED], np.float32)
    width = size * len(CHECKED) + 8
    for start in tqdm(range(0, len(listed), per_sheet), "sheets"):
        path = folder / f"{start:03d}.png"
        if path.exists():
            continue
        here = listed[start : start + per_sheet]
        picture = Image.new("RGB", (width * 4, (size + 13) * -(-len(here) // 4)), "white")
        draw = ImageDraw.Draw(picture)
        for index, thing in enumerate(here):
            layers = shoot(things.model(thing, archives), None, cameras_of(angles), size, 2)
            x, y = index % 4 * width, index // 4 * (size + 13)
            row = np.concatenate(list(layers[..., :3] + 0.85 * (1 - layers[..., 4:])), axis=1)
            picture.paste(Image.fromarray((255 * row).round().astype(np.uint8)), (x, y + 12))
            draw.text((x + 2, y), f"{start + index} {thing.name} [{thing.title}]"[:48], "black")
        picture.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("sheets", "pack"))
    parser.add_argument("archives", type=Path, help="folder of the .sh3f archives")
    parser.add_argument("output", type=Path)
    parser.add_argument("--table", type=Path, default=things.TABLE)
    parser.add_argument(
        "--names", type=Path, help="file of the names to take, one a line; without it all of the table"
    )
    parser.add_argument("--variants", type=int, help="objects of a name, at most")
    parser.add_argument(
        "--each", type=int, help=f"pictures of each of the 17 views, with pack; {EACH} without it"
    )
    options = parser.parse_args()
    if options.each is not None and not 1 <= options.each <= MOST_EACH:
        parser.error(f"--each must be from 1 to {MOST_EACH}, got {options.each}")
    if options.each and options.what != "pack":
        parser.error("--each is for pack; sheets show five views")
    if options.variants is not None and options.variants < 1:
        parser.error(f"--variants must be at least 1, got {options.variants}")
    torch.set_num_threads(1)
    try:
        listed = chosen(things.table(options.table), options.names, options.variants)
        missing = sorted({one.archive for one in listed if not (options.archives / one.archive).is_file()})
        if missing:
            raise ValueError(f"{options.archives} lacks {missing[0]}; fetch it with fetch_things.py")
        if options.what == "sheets":
            sheets(listed, options.archives, options.output)
        else:
            pack(listed, options.archives, options.output, options.each or EACH)
    except ValueError as error:
        sys.exit(f"render_things: {error}")


if __name__ == "__main__":
    main()

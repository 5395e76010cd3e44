"""Image to 3D on real pictures: 24 emoji and 12 photographs, of things that the embedded world knows and of others.

Nothing tells what the other sides of these objects look like, so only the view that the picture shows is measured: the IoU of its
silhouette, its PSNR over white, and the seconds of processor time. A sheet shows the other sides. An interrupted run
continues when started again.
    python examples/benchmarks/real_pictures.py --output ~/real_pictures --fetch
    python examples/benchmarks/real_pictures.py --output ~/real_pictures --fetch --named
    python examples/benchmarks/real_pictures.py --output ~/real_pictures --emoji package/assets --stamps usr/share/tuxpaint/stamps

--fetch gets the two packages that have the pictures, with npm (``@lobehub/fluent-emoji-3d``) and with apt-get and dpkg-deb of Debian 12
(``tuxpaint-stamps-default``), 180 MB in total, and checks their SHA-256. Their licences are in ``LICENCES`` and ``PHOTOGRAPHS``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from measuring import finished
from PIL import Image, ImageDraw
from quality import mean, parse_value
from torch import Tensor

import distill
from distill.cameras import Cameras, orbit
from distill.conditions.cutout import Cutout, Frame, over_white, without_background
from distill.contracts import View
from distill.lab.comparison.cost import resident_mib
from distill.silhouettes import silhouette_iou
from distill.viewing import DISTANCE, FOV_Y_DEG

#: The emoji, by what they show: the code point, and the kind of the embedded world that it is or resembles.
EMOJI = {
    "mushroom": ("1f344", "mushroom"),
    "house": ("1f3e0", "house"),
    "rocket": ("1f680", "rocket"),
    "automobile": ("1f697", "car"),
    "duck": ("1f986", "duck"),
    "robot face": ("1f916", "robot"),
    "teapot": ("1fad6", "teapot"),
    "chair": ("1fa91", "chair"),
    "snowman": ("26c4", "snowman"),
    "hot beverage": ("2615", "mug"),
    "doughnut": ("1f369", "torus"),
    "game die": ("1f3b2", "cube"),
    "oil drum": ("1f6e2-fe0f", "cylinder"),
    "tangerine": ("1f34a", "sphere"),
    "evergreen tree": ("1f332", "cone"),
    "hamburger": ("1f354", ""),
    "guitar": ("1f3b8", ""),
    "bicycle": ("1f6b2", ""),
    "teddy bear": ("1f9f8", ""),
    "cactus": ("1f335", ""),
    "banana": ("1f34c", ""),
    "elephant": ("1f418", ""),
    "locomotive": ("1f682", ""),
    "trophy": ("1f3c6", ""),
}
#: The photographs: the file, the kind, who made it and the licence, after Tux Paint's list of changes.
PHOTOGRAPHS = {
    "cep": ("plants/mushrooms/cep-1", "mushroom", "Pere Pujal i Carabantes, GPL 2 or later"),
    "fire engine": ("vehicles/emergency/firetruck", "car", "Aaron M. Lang, Bill Kendrick, CC BY 2.5"),
    "mallard": ("animals/birds/duck", "duck", "Stas Zytkiewicz, Pere Pujal i Carabantes, GPL"),
    "mandarine": ("food/fruit/mandarine", "sphere", "Chris Goerner, GPL 2"),
    "football": ("sports/soccer", "sphere", "Albert Cahalan, GPL 2"),
    "refuse lorry": ("vehicles/garbagetruck", "", "Caroline Ford, GPL 2"),
    "penguin": ("animals/birds/magellanic_penguin", "", "Bill Kendrick, GPL 2"),
    "goat": ("animals/mammals/bovines/goat", "", "Stas Zytkiewicz, Pere Pujal i Carabantes, GPL"),
    "hot-air balloon": ("vehicles/flight/balloon360", "", "Albert Cahalan, GPL 2"),
    "toilet": ("household/toilet", "", "Albert Cahalan, GPL 2"),
    "Christmas tree": ("seasonal/christmas/Christmas_Tree_photo", "cone", "Jorge Barrios, public domain"),
    "toy bear": ("animals/mammals/bears/toys/edward_bear", "", "Jim Trice, GPL 2"),
}


#: What the prior of real objects calls them, where it knows them.
NAMED = {
    "automobile": "a sedan",
    "teapot": "a china teapot",
    "chair": "a wooden chair",
    "hot beverage": "a coffee cup",
    "game die": "a box",
    "oil drum": "a barrel",
    "evergreen tree": "a christmas tree",
    "hamburger": "a hamburger",
    "guitar": "an electric guitar",
    "bicycle": "a bicycle",
    "teddy bear": "a teddy bear",
    "cactus": "a cactus",
    "locomotive": "a toy train",
    "fire engine": "a truck",
    "football": "a soccer ball",
    "refuse lorry": "a truck",
    "toilet": "a toilet",
    "Christmas tree": "a christmas tree",
    "toy bear": "a teddy bear",
}


class Package(NamedTuple):
    """A package with pictures.

    Attributes:
        command: downloads it into the working directory.
        file: that it leaves there.
        sha256: of the file.
        root: the folder in it that is kept.
        unpack: command that unpacks the file into a folder, nothing for a tar file.
    """

    command: tuple[str, ...]
    file: str
    sha256: str
    root: str
    unpack: tuple[str, ...] = ()


NPM, DEBIAN = "@lobehub/fluent-emoji-3d@1.1.0", "tuxpaint-stamps-default=2022.06.04-1"
PACKAGES = (
    Package(
        ("npm", "pack", "--loglevel=error", NPM), "lobehub-fluent-emoji-3d-1.1.0.tgz",
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58", "package",
    ),
    Package(
        ("apt-get", "download", "-qq", DEBIAN), "tuxpaint-stamps-default_2022.06.04-1_all.deb",
        "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34", "usr", ("dpkg-deb", "-x"),
    ),
)  # fmt: skip
BY_HAND = "unpack the packages elsewhere, and give --emoji and --stamps"
LICENCES = "Emoji: Fluent Emoji, Microsoft, MIT, packaged by LobeHub (MIT). Photographs: Tux Paint's stamps, as listed."
SIZE, SHOWN = 128, 96
Made = dict[str, Any]


class Taken(NamedTuple):
    """A picture of the benchmark: its name, its file, the world's kind or nothing, and who made it."""

    name: str
    path: Path
    kind: str
    credit: str

    def prompt(self, named: bool) -> str:
        """The prompt beside it, empty for the picture alone."""
        return NAMED[self.name] if named else ""


def pictures_in(emoji: Path, stamps: Path) -> list[Taken]:
    """The benchmark's pictures.

    Raises:
        ValueError: one of them is not there.
    """
    found = [
        Taken(name, emoji / f"{code}.webp", kind, "Microsoft, MIT") for name, (code, kind) in EMOJI.items()
    ]
    found += [
        Taken(name, stamps / f"{file}.png", kind, credit)
        for name, (file, kind, credit) in PHOTOGRAPHS.items()
    ]
    for one in found:
        if not one.path.is_file():
            raise ValueError(
                f"{one.path} is not there; give the unpacked folders of {NPM} and {DEBIAN}, or --fetch into a new --output"
            )
    return found


def fetch(folder: Path) -> tuple[Path, Path]:
    """Get both packages and unpack them below a folder, unless they are there; returns ``--emoji`` and ``--stamps``.

    Raises:
        ValueError: a tool is missing, a package cannot be had or is another one, in one line.
    """
    made = {"npm": ("package", "assets"), "apt-get": ("usr", "share", "tuxpaint", "stamps")}
    left = [one for one in PACKAGES if not folder.joinpath(*made[one.command[0]]).is_dir()]
    for tool in dict.fromkeys(tool for one in left for tool in (one.command[0], *one.unpack[:1])):
        if shutil.which(tool) is None:
            raise ValueError(f"--fetch needs {tool}; {BY_HAND}")
    folder.mkdir(parents=True, exist_ok=True)
    for one in left:
        get(one, folder)
    return folder.joinpath(*made["npm"]), folder.joinpath(*made["apt-get"])


def get(package: Package, folder: Path) -> None:
    """Download a package unless it is there, check it, and unpack it below a folder, whole or not at all."""
    path = folder / package.file
    if not path.exists():
        done = subprocess.run(package.command, cwd=folder, capture_output=True, text=True)
        if done.returncode or not path.exists():
            wrong = [line for line in done.stderr.splitlines() if line.startswith(("E: ", "npm error "))]
            # A whole sentence, of all the lines that npm says.
            reason = next((line for line in wrong if len(line.split()) > 5), "it said nothing of why")
            raise ValueError(f"{' '.join(package.command)} did not give {path.name} ({reason}); {BY_HAND}")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != package.sha256:
        raise ValueError(
            f"{path} must have the SHA-256 {package.sha256}, got {found}; remove it and fetch again, or {BY_HAND}"
        )
    if (folder / package.root).exists():
        raise ValueError(f"{folder / package.root} is incomplete; remove it and fetch again, or {BY_HAND}")
    with tempfile.TemporaryDirectory(dir=folder) as place:
        if package.unpack:
            subprocess.run([*package.unpack, path.resolve(), place], check=True)
        else:
            with tarfile.open(path) as packed:
                packed.extractall(place, filter="data")
        # Renamed at last: a folder that an interruption left half full would be used as if it were complete.
        os.replace(Path(place) / package.root, folder / package.root)


def measure(view: View, given: Cutout, camera: Cameras) -> Made:
    """IoU and PSNR of the picture's own view, against the picture as it was cut out, over white."""
    size = given.rgb.shape[-1]
    seen = view(camera, size, size)
    drawn = seen.rgb[0].detach().cpu().movedim(-1, 0).clamp(0, 1)
    solid = seen.opacity[0].detach().cpu()[..., 0] > 0.5
    error = (drawn - given.rgb).square().mean().clamp(min=1e-10)
    return {
        "iou": silhouette_iou(solid, given.mask[0] > 0.5).item(),
        "psnr": (-10 * error.log10()).item(),
    }


def save_strip(view: View, given: Cutout, taken_from: Cameras, path: Path) -> None:
    """The picture, then the asset from there and turned by 90, 180 and 270 degrees, at most 20 degrees from the horizon."""
    height = max(-20.0, min(20.0, taken_from.elevation_deg.item()))
    azimuth_deg = taken_from.azimuth_deg.item()
    cameras = Cameras.joined(
        [taken_from, *(camera(height, azimuth_deg + turn) for turn in (90.0, 180.0, 270.0))]
    )
    drawn = view(cameras, SIZE, SIZE).rgb.detach().cpu().movedim(-1, 1).clamp(0, 1)
    save(torch.cat([given.rgb, *drawn], dim=2), path)


def save(rgb: Tensor, path: Path) -> None:
    Image.fromarray((rgb.movedim(0, -1).clamp(0, 1) * 255).round().byte().numpy()).save(path)


def camera(elevation_deg: float, azimuth_deg: float = 0.0) -> Cameras:
    return orbit(torch.tensor([azimuth_deg]), torch.tensor([elevation_deg]), DISTANCE, FOV_Y_DEG)


def spent() -> float:
    """Seconds of processor time so far, those of finished children included: other processes do not lengthen them."""
    return sum(os.times()[:4])


def make(taken: Taken, root: Path, overrides: dict[str, Any], named: bool = False) -> Made:
    """Make and measure one asset, or read what an earlier run measured."""
    folder = folder_of(taken, root, named)
    result = folder / "result.json"
    made: Made | None = finished(result, overrides)
    if made is not None:
        return made
    resumed = (folder / "asset").exists()
    start = spent()
    asset = distill.generate(
        taken.prompt(named),
        image=str(taken.path),
        seed=0,
        output_dir=str(folder / "asset"),
        resume=resumed,
        **overrides,
    )
    seconds = None if resumed else spent() - start
    said = asset.manifest["picture"]
    given = over_white(without_background(taken.path), Frame(*said["frame"]), SIZE)
    taken_from = camera(said["elevation_deg"], said["azimuth_deg"])
    save_strip(asset.view, given, taken_from, folder / "strip.png")
    made = {"name": taken.name, "kind": taken.kind, "prompt": taken.prompt(named), "overrides": overrides}
    made |= {"seconds": seconds, "peak_mib": resident_mib()}
    made |= {name: said[name] for name in ("elevation_deg", "azimuth_deg")}
    made |= measure(asset.view, given, taken_from)
    result.write_text(json.dumps(made, indent=1) + "\n")
    return made


def folder_of(taken: Taken, root: Path, named: bool) -> Path:
    return root / (taken.name.replace(" ", "-") + ("-named" if named else ""))


def table(rows: list[Made]) -> str:
    """Markdown: a line for each picture, then means of what the world knows, of the rest, and of all."""
    titles = ("picture", "as the world's", "prompt", "IoU", "PSNR, dB", "azimuth", "elevation", "CPU seconds")
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for row in rows:
        lines.append(
            f"| {row['name']} | {row['kind']} | {row.get('prompt', '')} | {row['iou']:.3f} | {row['psnr']:.1f} "
            f"| {row.get('azimuth_deg', 0):.0f}° | {row['elevation_deg']:.0f}° | {mean([row], 'seconds'):.0f} |"
        )
    groups = {
        "known": [row for row in rows if row["kind"]],
        "unknown": [row for row in rows if not row["kind"]],
        "all": rows,
    }
    for name, part in groups.items():
        if part:
            worst = max((row["seconds"] or math.nan) for row in part)
            lines.append(
                f"| **mean of {len(part)}** | {name} | | {mean(part, 'iou'):.3f} | {mean(part, 'psnr'):.1f} | | "
                f"| {mean(part, 'seconds'):.0f}, at most {worst:.0f} |"
            )
    return "\n".join(lines)


def draw_sheet(strips: list[tuple[str, Path]], path: Path, columns: int = 3) -> None:
    """All strips with their names, as a JPEG."""
    width, height = 5 * SHOWN + 12, SHOWN + 16
    sheet = Image.new("RGB", (columns * width, -(-len(strips) // columns) * height), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (name, strip) in enumerate(strips):
        x, y = number % columns * width, number // columns * height
        with Image.open(strip) as drawn:
            sheet.paste(drawn.resize((5 * SHOWN, SHOWN), Image.Resampling.LANCZOS), (x, y + 13))
        pen.text((x + 2, y), name, fill="black")
    sheet.save(path, quality=85)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("real_pictures"))
    parser.add_argument("--fetch", action="store_true", help="get the packages, 180 MB, into OUTPUT/sources")
    parser.add_argument("--emoji", type=Path, help="the folder of WebP files in the package's assets")
    parser.add_argument("--stamps", type=Path, help="the folder stamps in usr/share/tuxpaint")
    parser.add_argument(
        "--named", action="store_true", help="with the names of those that a bundled prior knows"
    )
    parser.add_argument("--only", nargs="*", metavar="NAME", help="some of the pictures, by name")
    parser.add_argument(
        "--set", type=parse_value, nargs="*", default=[], metavar="KEY=VALUE", dest="overrides"
    )
    options = parser.parse_args()
    try:
        if options.fetch:
            emoji, stamps = fetch(options.output / "sources")
        elif options.emoji and options.stamps:
            emoji, stamps = options.emoji, options.stamps
        else:
            raise ValueError("give --fetch, or the folders --emoji and --stamps")
        chosen = [one for one in pictures_in(emoji, stamps) if not options.named or one.name in NAMED]
    except ValueError as error:
        parser.error(str(error))
    if options.only and (strange := set(options.only) - {one.name for one in chosen}):
        parser.error(
            f"--only has no picture {', '.join(sorted(strange))}; there are {', '.join(one.name for one in chosen)}"
        )
    rows, strips, ending = [], [], "-named" if options.named else ""
    for taken in chosen:
        if options.only and taken.name not in options.only:
            continue
        made = make(taken, options.output, dict(options.overrides), options.named)
        rows.append(made)
        strips.append((taken.name, folder_of(taken, options.output, options.named) / "strip.png"))
        print(f"{taken.name}: IoU {made['iou']:.3f}, PSNR {made['psnr']:.1f} dB", flush=True)
        # Rewritten after each asset, so that an interrupted run still leaves its figures.
        (options.output / f"results{ending}.md").write_text(table(rows) + "\n")
        draw_sheet(strips, options.output / f"sheet{ending}.jpg")
    print(table(rows))


if __name__ == "__main__":
    main()

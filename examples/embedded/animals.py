"""Animals of the game 0 A.D. as GLB files: objects to measure a novel-view model on that it was never trained on.

    apt-get download 0ad-data && dpkg-deb -x 0ad-data_*.deb 0ad                    # 1.4 GB, and 3.3 GB unpacked
    python examples/embedded/animals.py 0ad/usr/share/games/0ad/mods/public/public.zip animals
    distill-views render animals renders --size 64 --distance 3.0 3.4 --fov 40 40 --elevation -5 50 --scale 1.7 1.7
    distill-views evaluate distill/embedded/novel_view renders evaluation --per-object 1 --steps 25 --scale 2

They are under CC-BY-SA 3.0 (Wildfire Games and contributors). Nothing bundled is made from them.
"""

from __future__ import annotations

import argparse
import io
import struct
import sys
import xml.etree.ElementTree as ElementTree
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import trimesh
from PIL import Image
from tqdm import tqdm
from trimesh.exchange.gltf import export_glb
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

from distill.files.atomic import write_atomic

ACTORS, VARIANTS, MESHES, SKINS = "art/actors/fauna/", "art/variants/", "art/meshes/", "art/textures/skins/"
#: Faces of a mesh that shows something.
FEWEST = 20
#: Bytes of a vertex except for its texture coordinates: position, normal, four bones and their weights.
PLAIN = 4 * (3 + 3) + 4 + 4 * 4


def read_mesh(data: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read a mesh in its pose of rest from the game's own format, PMD.

    Returns:
        Vertices ``[n, 3]``, y up; texture coordinates ``[n, 2]``, whose origin is at the bottom left; faces ``[m, 3]``.

    Raises:
        ValueError: it is no such mesh, or cut short.
    """
    try:
        magic, version = struct.unpack_from("<4sI", data)
        if magic != b"PSMD" or version not in (3, 4):
            raise ValueError(f"expected a PMD mesh of version 3 or 4, got {magic!r} of version {version}")
        count, sets = (
            struct.unpack_from("<II", data, 12) if version == 4 else (*struct.unpack_from("<I", data, 12), 1)
        )
        start = 20 if version == 4 else 16
        size = PLAIN + 8 * sets
        rows = np.frombuffer(data, np.uint8, count * size, start).reshape(count, size)
        numbers = rows[:, : 24 + 8 * sets].copy().view("<f4")
        (faces,) = struct.unpack_from("<I", data, start + count * size)
        corners = np.frombuffer(data, "<u2", 3 * faces, start + count * size + 4).reshape(faces, 3)
    except (struct.error, ValueError) as error:
        raise ValueError(f"not a whole PMD mesh: {error}") from error
    return numbers[:, :3], numbers[:, 6:8], corners.astype(np.int64)


def chosen(actor: bytes, variant_of: Callable[[str], bytes]) -> tuple[str, str] | None:
    """The mesh and the skin of an actor, of the most frequent variant of each of its groups; None without either.

    Args:
        actor: its XML.
        variant_of: reads a variant that stands in a file of its own.
    """
    mesh, skin = "", ""
    for group in ElementTree.fromstring(actor).iter("group"):
        variants = group.findall("variant")
        if not variants:
            continue
        first = max(variants, key=lambda variant: float(variant.get("frequency", 0)))
        parts = [first]
        if file := first.get("file"):
            parts.append(ElementTree.fromstring(variant_of(file)))
        for part in parts:
            mesh = mesh or (part.findtext("mesh") or "").strip()
            skins = [each.get("file", "") for each in part.iter("texture") if each.get("name") == "baseTex"]
            skin = skin or "".join(skins[:1])
    return (mesh, skin) if mesh and skin else None


def model(mesh: bytes, skin: bytes) -> trimesh.Trimesh:
    """A textured mesh of the game's two files.

    Raises:
        ValueError: either cannot be read.
    """
    vertices, uv, faces = read_mesh(mesh)
    if len(faces) < FEWEST:
        raise ValueError(f"its mesh has {len(faces)} faces; it stands for what is drawn otherwise")
    try:
        picture = Image.open(io.BytesIO(skin)).convert("RGB")  # its alpha says where a player's colour goes
    except OSError as error:
        raise ValueError(f"its skin cannot be read: {error}") from error
    material = PBRMaterial(
        baseColorTexture=picture, metallicFactor=0.0, roughnessFactor=1.0, doubleSided=True
    )
    visual = TextureVisuals(uv=uv, material=material)
    return trimesh.Trimesh(vertices, faces, visual=visual, process=False)


def convert(archive: Path, folder: Path) -> tuple[list[str], dict[str, str]]:
    """Write the animals of the game's ``public.zip``, those that are not there yet.

    Returns:
        The names of the animals that are there, and why others were left out.

    Raises:
        ValueError: the archive cannot be read, or has no animals.
    """
    try:
        files = zipfile.ZipFile(archive)
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{archive} cannot be read ({error}); expected public.zip of Debian's package 0ad-data"
        ) from error
    with files:
        known = set(files.namelist())
        actors = sorted(name for name in known if name.startswith(ACTORS) and name.endswith(".xml"))
        if not actors:
            raise ValueError(
                f"{archive} has nothing in {ACTORS}; expected public.zip of Debian's package 0ad-data"
            )
        folder.mkdir(parents=True, exist_ok=True)
        there, left_out = [], {}
        for actor in tqdm(actors, "animals"):
            name = Path(actor).stem
            parts = chosen(files.read(actor), lambda file: files.read(VARIANTS + file))
            if parts is None:
                left_out[name] = "no mesh or no skin"
                continue
            mesh, skin = f"{MESHES}{parts[0]}.cached.pmd", f"{SKINS}{parts[1]}.cached.dds"
            missing = [part for part in (mesh, skin) if part not in known]
            if missing:
                left_out[name] = f"{missing[0]} is not there"
                continue
            path = folder / f"{name}.glb"
            if not path.exists():
                try:
                    write_atomic(path, export_glb(model(files.read(mesh), files.read(skin)).scene()))
                except ValueError as error:
                    left_out[name] = str(error)
                    continue
            there.append(name)
    return there, left_out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", type=Path, help="public.zip of Debian's package 0ad-data")
    parser.add_argument("output", type=Path, help="folder of the GLB files")
    options = parser.parse_args()
    there, left_out = convert(options.archive.expanduser(), options.output.expanduser())
    for name, why in left_out.items():
        print(f"left out {name}: {why}")
    print(f"{len(there)} animals in {options.output}")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"animals: {error}")

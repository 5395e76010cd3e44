"""What an export's options may be, without loading what writes meshes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec

#: Formats of mesh files, and what is written where none is named.
FORMATS = ("glb", "obj", "ply", "stl", "usdz")
USUAL = ("glb", "obj", "ply")
#: Where a file's origin is: where the scene has it, in the middle of the bounding box, or beneath it.
PIVOTS = ("scene", "centre", "ground")
#: Least and largest extent of a mesh in metres, within what single precision and other programs can do with it.
SIZES = (1e-6, 1e6)
#: What a mesh is made with by default: nodes along an edge of the grid, and faces.
RESOLUTION, FACES = 128, 10_000
#: Volume of the smallest component that it keeps, as a fraction of the largest one's.
MIN_COMPONENT = 0.03
#: Standard deviation of the Gaussian that smooths the field first, scene units. A distilled field is rough at this scale.
BLUR_WIDTH = 0.03
#: Height and width of its texture, pixels.
TEXTURE_SIZE = 512
#: The turntable: its frames, and the height and width of its pictures and the sheet's, pixels, and their cameras' elevation, degrees.
FRAMES, PICTURE_SIZE, ELEVATION_DEG = 48, 192, 15.0
#: Most pixels along a side of a texture: what graphics cards take.
LARGEST_TEXTURE = 16384
#: Most nodes along an edge of the grid that a mesh is made on: 1.1 billion nodes.
FINEST_GRID = 1024
#: Where levels of detail are: in files of their own, in the GLB as MSFT_lod, or both.
LOD_PLACES = ("files", "msft", "both")
#: Of a mesh of 10,000 faces, the eighth level would have 40.
MOST_LODS = 8
#: Names of pictures that a run writes beside its meshes, an OBJ's texture would replace them; and what Windows keeps for itself.
_TAKEN = re.compile(r"contact|image|reference|wall|con|prn|aux|nul|com\d|lpt\d", re.IGNORECASE)


def check_name(name: str) -> None:
    """Check a name for files, objects and materials.

    Raises:
        ValueError: some program could not read it, or a file of a run has it.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", name):
        raise ValueError(
            f"export.name must be 1 to 64 letters (a to z), digits, - and _, the first a letter or a digit, got {name!r}; the ending "
            "follows from export.formats"
        )
    if _TAKEN.fullmatch(name):
        raise ValueError(
            f"export.name={name} is taken, by a picture of the run or by the system; choose another, such as {name}_mesh"
        )


def check_formats(formats: Sequence[str]) -> None:
    """Check that formats are known, and that what writes them is installed.

    Raises:
        ValueError: one is not.
    """
    known = ", ".join(FORMATS)
    if isinstance(formats, str):
        raise ValueError(f"the formats of a mesh are a list such as ['glb'], got {formats!r}")
    if not formats or [name for name in formats if name not in FORMATS]:
        raise ValueError(f"the formats of a mesh are {known}, got {', '.join(map(str, formats)) or 'none'}")
    if "usdz" in formats and find_spec("pxr") is None:
        raise ValueError(
            "usdz needs the package usd-core; install it with pip install usd-core, or leave usdz out of export.formats"
        )


def check_files(
    formats: Sequence[str] | None, name: str, lods: int, lod_as: str, own_mesh: bool = False
) -> None:
    """Check options of an export that only make sense together.

    Args:
        formats: None for the usual ones.
        name: of files, objects and materials.
        lods: levels of detail below the full mesh.
        lod_as: one of ``LOD_PLACES``.
        own_mesh: the mesh is the user's own, which comes back as GLB alone.

    Raises:
        ValueError: a name or a format cannot be written, or the levels have no file.
    """
    check_name(name)
    if lod_as not in LOD_PLACES or not isinstance(lods, int) or not 0 <= lods <= MOST_LODS:
        raise ValueError(
            f"lods is 0 to {MOST_LODS} levels, and lod_as {', '.join(LOD_PLACES)}, got {lods!r} and {lod_as!r}"
        )
    check_formats(USUAL if formats is None else formats)
    if own_mesh and formats is not None and list(formats) != ["glb"]:
        raise ValueError(
            f"mesh= comes back with its nodes and materials, as GLB alone, got export.formats={','.join(formats)}; leave it out, and "
            "convert the GLB, for example with Blender"
        )
    if lods and lod_as != "files" and "glb" not in (USUAL if formats is None else formats):
        raise ValueError(
            f"export.lod_as={lod_as} puts levels of detail into the GLB; add glb to export.formats"
        )

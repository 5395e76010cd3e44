"""Benchmark of texturing on meshes that people made: twenty of the objects that ``examples/embedded/fetch_things.py`` fetches.

Each is unpacked as its maker shipped it, OBJ with MTL and pictures, and textured with ``mesh=``. The prompt names the nearest thing
that the embedded prior knows, and few steps are trained: the point is whether the path works, not the likeness.

    python examples/benchmarks/real_meshes.py ~/things --output ~/real-meshes
    python examples/benchmarks/real_meshes.py ~/things --output ~/real-meshes --only chair suv --set iterations=100
    python examples/benchmarks/real_meshes.py ~/things --output ~/a-million --only teapot --faces 1000000

Every mesh has a process of its own, whose largest resident size is its peak. The GLB is read without the library that wrote it, and must
have the triangles of the OBJ to the bit, its parts' names, and a texture for each; its colours, read through its texture coordinates, are
compared with the scene's. With node and gltf-validator (``npm install --prefix tests``) it is validated. With --faces, triangles are
divided until there are as many. An interrupted run continues when started again.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import subprocess
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from measuring import finished
from measuring import table as format_table
from numpy.typing import NDArray
from PIL import Image
from quality import parse_value
from texturing import validate

from distill.embedded import things

Array = NDArray[Any]
Made = dict[str, Any]

#: Objects by the catalogue's name, and what is asked for: small to large, with and without pictures, normals, ``g`` and ``o``.
MESHES = {
    "Scopia#tournevis": "a red cylinder",  # a screwdriver of 254 faces
    "Scopia#children_chair": "a red chair",
    "Scopia#table-on-trestles": "a green table",
    "Kator Legaz#glass-dining-table": "a blue table",  # transparent
    "Scopia#dog-house": "a red house",
    "Kator Legaz#coffee-mug": "a yellow mug",
    "Blend Swap CC-0#beerGlass": "a pink mug",  # transparent
    "Blend Swap CC-0#chair": "a red chair",  # groups
    "Scopia#suv": "a blue car",  # lines beside the faces, transparent
    "Blend Swap CC-0#umbrella": "a purple mushroom",  # open
    "Scopia#robe": "a red cone",  # an open dress
    "Scopia#bicycle": "a green torus",  # cut out by an alpha map
    "Scopia#doll-house": "a pink house",  # 51 objects in 22 materials
    "Blend Swap CC-0#basketball": "an orange sphere",
    "Blend Swap CC-0#chicken": "a yellow duck",
    "Blend Swap CC-0#mano_cooktop": "a brown cube",
    "Scopia#teapot": "a blue teapot",
    "Scopia#bush": "a green mushroom",  # leaves that are open and cut out, lines
    "Kator Legaz#concept-sedan-02": "a blue car",  # 124,188 faces in 73 objects
    "Scopia#japaneseMaple": "a green mushroom",  # 198,396 faces, the most of all
}
ITERATIONS = 40
#: Points at which the file's colours are compared with the scene's.
POINTS = 20_000


def unpack(thing: things.Thing, archives: Path, folder: Path) -> Path:
    """Write an object's files as they are in its archive, and return its OBJ file."""
    path = archives / thing.archive
    if not path.is_file():
        raise ValueError(f"{path} is not there; fetch it with examples/embedded/fetch_things.py")
    own = PurePosixPath(thing.model).parent
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if PurePosixPath(name).parent == own])
    return folder / thing.model


@dataclass(frozen=True)
class Triangles:
    """Triangles of a file in its own frame, and how many each of its parts has.

    Attributes:
        corners: shape ``[f, 3, 3]``.
        parts: faces by name.
        uv: texture coordinates of the corners, (0, 0) at the lower left, shape ``[f, 3, 2]``; empty for an OBJ.
        image: index of each face's picture, shape ``[f]``; empty for an OBJ.
        images: sRGB, shape ``[height, width, 3]``, the first row on top.
    """

    corners: Array
    parts: Counter[str]
    uv: Array
    image: Array
    images: Sequence[Array]


def _cut(places: Array, polygon: Sequence[int]) -> list[list[int]]:
    from distill.meshes.polygons import concave, in_triangles

    if len(polygon) > 3 and len(concave(places, np.array([polygon]))):
        return [[polygon[at] for at in one] for one in in_triangles(places[[*polygon]]).tolist()]
    return [[polygon[0], *pair] for pair in pairwise(polygon[1:])]


def read_obj(path: Path) -> Triangles:
    """An OBJ file's triangles: polygons are fans, concave ones as the library cuts them, and a part is an ``o`` with a material."""
    vertices, polygons, parts = list[list[float]](), list[list[int]](), Counter[str]()
    text = path.read_text("latin-1").replace("\\\n", " ")
    library = re.search(r"(?m)^mtllib\s+(.*?)\s*$", text)
    materials = path.with_name(library[1]).read_text("latin-1").count("newmtl ") if library else 0
    group = material = ""
    for key, *words in (line.split() for line in text.splitlines() if line.strip()):
        if key == "v":
            vertices.append([float(word) for word in words[:3]])
        elif key == "o":
            group = " ".join(words)
        elif key == "usemtl":
            material = " ".join(words)
        elif key == "f":
            corners = [int(word.split("/")[0]) for word in words]
            corners = [at - 1 if at > 0 else len(vertices) + at for at in corners]
            polygons.append(corners)
            # A material tells parts apart only where there are several.
            name = "_".join(filter(None, (group, material if materials > 1 else "")))
            parts[name or path.name] += len(corners) - 2
    places = np.array(vertices)
    faces = [face for polygon in polygons for face in _cut(places, polygon)]
    return Triangles(places[np.array(faces)].astype(np.float32), parts, np.empty(0), np.empty(0), ())


_TYPES = {5120: np.int8, 5121: np.uint8, 5122: np.int16, 5123: np.uint16, 5125: np.uint32, 5126: np.float32}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}


def read_glb(path: Path) -> Triangles:
    """A GLB file's triangles, by the layout that glTF 2.0 describes; those of ours have no strides and no sparse accessors."""
    data = path.read_bytes()
    length = int.from_bytes(data[12:16], "little")
    tree, binary = json.loads(data[20 : 20 + length]), memoryview(data)[28 + length :]

    def view(index: int) -> memoryview:
        of = tree["bufferViews"][index]
        begin = of.get("byteOffset", 0)
        return binary[begin : begin + of["byteLength"]]

    def values(index: int) -> Array:
        of = tree["accessors"][index]
        kind, width = np.dtype(_TYPES[of["componentType"]]), _WIDTHS[of["type"]]
        flat = np.frombuffer(view(of["bufferView"]), kind, of["count"] * width, of.get("byteOffset", 0))
        return flat.reshape(of["count"], width)

    corners, uv, image, parts = list[Array](), list[Array](), list[Array](), Counter[str]()

    def walk(index: int, outer: Array) -> None:
        node = tree["nodes"][index]
        own = np.array(node.get("matrix", np.eye(4).ravel()), float).reshape(4, 4).T  # by columns
        matrix = outer @ own
        for primitive in tree["meshes"][node["mesh"]]["primitives"] if "mesh" in node else ():
            attributes, faces = primitive["attributes"], values(primitive["indices"]).reshape(-1, 3)
            points = values(attributes["POSITION"]) @ matrix[:3, :3].T + matrix[:3, 3]
            corners.append(points[faces].astype(np.float32))
            # (0, 0) is at the upper left in glTF.
            uv.append(values(attributes["TEXCOORD_0"])[faces] * (1, -1) + (0, 1))
            texture = tree["materials"][primitive["material"]]["pbrMetallicRoughness"]["baseColorTexture"]
            image.append(np.full(len(faces), tree["textures"][texture["index"]]["source"]))
            parts[tree["meshes"][node["mesh"]]["name"]] += len(faces)
        for child in node.get("children", ()):
            walk(child, matrix)

    for root in tree["scenes"][tree.get("scene", 0)]["nodes"]:
        walk(root, np.eye(4))
    pictures = [Image.open(io.BytesIO(view(one["bufferView"]))) for one in tree.get("images", ())]
    images = [np.asarray(picture.convert("RGB")) for picture in pictures]
    return Triangles(np.concatenate(corners), parts, np.concatenate(uv), np.concatenate(image), images)


def same_triangles(first: Array, second: Array) -> bool:
    """Tell whether triangles ``[f, 3, 3]`` are the same to the bit and wound alike, in whatever order."""

    def ordered(corners: Array) -> Array:
        # Each begins with its least corner; then all are sorted.
        rows = np.ascontiguousarray(corners + np.float32(0)).reshape(-1, 9)  # -0 becomes 0
        turns = np.stack([rows, np.roll(rows, -3, 1), np.roll(rows, -6, 1)])
        keys = turns.view([("", np.float32)] * 9)[..., 0]
        least = np.argsort(keys, axis=0)[0]
        return np.sort(keys[least, np.arange(len(rows))])

    return len(first) == len(second) and bool((ordered(first) == ordered(second)).all())


def wrong(given: Triangles, made: Triangles) -> list[str]:
    """What differs between the mesh that was given and the GLB, in words."""
    found = []
    if not same_triangles(given.corners, made.corners):
        found.append("other triangles")
    if given.parts != made.parts:
        odd = [*(given.parts - made.parts), *(made.parts - given.parts)]
        found.append(f"{len(made.parts)} parts of {len(given.parts)}, such as {odd[0]}")
    if made.uv.min() < 0 or made.uv.max() > 1 or not np.isfinite(made.uv).all():
        found.append("texture coordinates outside [0, 1]")
    return found


def subdivided(path: Path, least: int) -> Path:
    """Divide a mesh's triangles into four, as often as it takes to have so many, and write it beside the OBJ that it was read from."""
    import trimesh

    scene = trimesh.load_scene(path, process=False, split_objects=True)
    meshes = {name: mesh for name, mesh in scene.geometry.items() if len(mesh.faces)}
    while sum(len(mesh.faces) for mesh in meshes.values()) < least:
        meshes = {name: mesh.subdivide() for name, mesh in meshes.items()}
    made = path.with_name(f"{path.stem}-divided.obj")
    library = next((line for line in path.read_text("latin-1").splitlines() if line.startswith("mtllib")), "")
    first = 1
    with made.open("w", encoding="latin-1") as file:
        file.write(f"{library}\n")
        for name, mesh in meshes.items():
            uv, material = (getattr(mesh.visual, key, None) for key in ("uv", "material"))
            file.write(f"o {name}\n")
            np.savetxt(file, mesh.vertices, "v %.9g %.9g %.9g")
            # Every vertex has texture coordinates, so that one number is both's.
            np.savetxt(file, np.zeros((len(mesh.vertices), 2)) if uv is None else uv, "vt %.9g %.9g")
            file.write(f"usemtl {getattr(material, 'name', '')}\n")
            np.savetxt(file, np.repeat(mesh.faces + first, 2, axis=1), "f %d/%d %d/%d %d/%d")
            first += len(mesh.vertices)
    return made


def texture(path: Path, prompt: str, folder: Path, options: Mapping[str, Any]) -> Made:
    """Texture a mesh and compare the file's colours with the scene's; meant for a process of its own."""
    import torch

    import distill
    from distill.cameras import turntable
    from distill.lab.comparison.cost import resident_mib
    from distill.meshes.read import read_surface

    start = time.perf_counter()
    read_surface({"file": str(path), "up": "auto", "front": "auto", "keep": [], "init_texture": False})
    read = time.perf_counter() - start
    asset = distill.generate(prompt, mesh=str(path), output_dir=str(folder), **options)
    peak = resident_mib()  # of all that a user does; what is looked at below is not
    scene: Any = asset.scene
    made = read_glb(folder / "mesh.glb")
    generator = np.random.default_rng(0)
    edges = made.corners[:, 1:] - made.corners[:, :1]
    area = np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]).astype(float), axis=1)
    face = generator.choice(len(area), POINTS, p=area / area.sum())
    weight = generator.dirichlet((1, 1, 1), POINTS)[..., None]
    # The scene's frame has the front at +x and the top at +z, and is centred and scaled.
    points = (made.corners[face] * weight).sum(1)[:, [2, 0, 1]]
    used = made.corners.reshape(-1, 3)[:, [2, 0, 1]].astype(float)
    centre = (used.min(0) + used.max(0)) / 2
    points = (points - centre) * (0.95 / np.linalg.norm(used - centre, axis=1).max())
    with torch.no_grad():
        colour = scene.colours.query(torch.from_numpy(points).float())[1].numpy()
        seen = asset.view(turntable(8, 15.0), 64, 64)
    uv, in_file = (made.uv[face] * weight).sum(1), np.empty((POINTS, 3))
    for index, image in enumerate(made.images):
        here = made.image[face] == index
        height, width = image.shape[:2]
        column = (uv[here, 0] * width).astype(int).clip(0, width - 1)
        row = ((1 - uv[here, 1]) * height).astype(int).clip(0, height - 1)
        in_file[here] = image[row, column] / 255
    error = np.abs(in_file - colour).mean(1)
    rgb, opacity = seen.rgb.numpy(), seen.opacity.numpy() > 0.99
    surface = scene.mesh
    return {
        "faces": len(surface.faces),
        "parts": len(surface.parts),
        "materials": len({part.material for part in surface.parts}),
        "textured": any(part.look.texture is not None for part in surface.parts),
        "normals": bool((np.abs(surface.normals).sum(-1) > 0).all()),
        "own_uv": asset.manifest["export"]["own_uv"],
        "read": read,
        "train": asset.manifest["seconds"]["train"],
        "export": asset.manifest["seconds"]["export"],
        "unwrap": asset.manifest["export"]["seconds"]["unwrap"],
        "peak_mib": peak,
        "colour_error": float(error.mean()),
        "far_off": float((error > 0.1).mean()),
        "mean_colour": [round(float(value), 2) for value in rgb[opacity[..., 0]].mean(0)],
    }


def measure(name: str, prompt: str, options: argparse.Namespace) -> Made:
    """Unpack, texture in another process, read back and validate one mesh; what fails is said in a line."""
    folder = options.output / name.replace("#", "-").replace(" ", "-").lower()
    overrides: dict[str, Any] = {"iterations": ITERATIONS} | dict(options.overrides)
    if options.prior:
        overrides["prior"] = options.prior
    said = overrides | {"faces": options.faces}
    result = folder / "real_mesh.json"
    done: Made | None = finished(result, said)
    if done is not None:
        return done
    thing = next(thing for thing in things.table() if thing.id == name)
    folder.mkdir(parents=True, exist_ok=True)
    path = unpack(thing, options.archives, folder / "given")
    if options.faces:
        path = subdivided(path, options.faces)
    given = read_obj(path)
    job = json.dumps(
        [str(path), prompt, str(folder / "asset"), overrides | {"resume": (folder / "asset").exists()}]
    )
    ran = subprocess.run(
        [sys.executable, __file__, "--job", job], capture_output=True, text=True, check=False
    )
    (folder / "log.txt").write_text(ran.stderr)
    made: Made = {"name": name, "prompt": prompt, "overrides": said, "validator": "-"}
    if ran.returncode:
        lines = ran.stderr.strip().splitlines() or ["no word"]
        made["outcome"] = f"failed: {lines[-1]}"
    else:
        made |= json.loads(ran.stdout.splitlines()[-1])
        back = read_glb(folder / "asset" / "mesh.glb")
        differs = wrong(given, back)
        if not options.faces and made["faces"] != thing.faces:
            differs.append(f"{made['faces']} faces of {thing.faces}")
        made["validator"] = validate(folder / "asset" / "mesh.glb")
        made["outcome"] = "; ".join(differs) or "fine"
    result.write_text(json.dumps(made, indent=1) + "\n")
    return made


#: A column's title, its key and its digits.
COLUMNS = (
    ("mesh", "name", 0),
    ("prompt", "prompt", 0),
    ("faces", "faces", 0),
    ("parts", "parts", 0),
    ("materials", "materials", 0),
    ("pictures", "textured", 0),
    ("normals", "normals", 0),
    ("own UV", "own_uv", 2),
    ("read, s", "read", 1),
    ("train, s", "train", 0),
    ("unwrap, s", "unwrap", 0),
    ("export, s", "export", 0),
    ("peak, MiB", "peak_mib", 0),
    ("colour error", "colour_error", 3),
    ("error > 0.1", "far_off", 3),
    ("mean colour", "mean_colour", 2),
    ("validator", "validator", 0),
    ("outcome", "outcome", 0),
)


def table(rows: Sequence[Made]) -> str:
    """Markdown: a line for each mesh, and how many are fine."""

    def shown(value: object, digits: int) -> str:
        if isinstance(value, bool) or value is None:
            return {True: "yes", False: "no", None: "-"}[value]
        if isinstance(value, list):
            return " ".join(f"{one:.{digits}f}" for one in value)
        return f"{value:.{digits}f}" if isinstance(value, float) else str(value)

    lines = [[shown(row.get(key), digits) for _, key, digits in COLUMNS] for row in rows]
    fine = sum(row["outcome"] == "fine" and row["validator"].startswith("0 errors") for row in rows)
    return (
        f"{format_table([title for title, _, _ in COLUMNS], lines)}\n\n{fine} of {len(rows)} are fine. Prompts are the nearest that "
        "the prior knows, and training is short: likeness is not the point. Seconds are of a machine with other work."
    )


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archives", type=Path, nargs="?", help="folder of the fetched .sh3f archives")
    parser.add_argument("--output", type=Path, default=Path("real-meshes"))
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="of the twenty, such as suv")
    parser.add_argument("--prior", help="of another prior than the embedded one; prompts stay as they are")
    parser.add_argument("--faces", type=int, default=0, help="divide triangles until there are so many")
    parser.add_argument(
        "--set", type=parse_value, nargs="*", default=[], metavar="KEY=VALUE", dest="overrides"
    )
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.archives is None and options.job is None:
        parser.error("give the folder of the archives that examples/embedded/fetch_things.py fetches")
    return options


def main() -> None:
    options = parse_options()
    if options.job:
        path, prompt, folder, overrides = json.loads(options.job)
        print(json.dumps(texture(Path(path), prompt, Path(folder), overrides)))
        return
    short = {name.partition("#")[2]: name for name in MESHES}
    if unknown := sorted({*options.only} - {*short}):
        raise ValueError(f"--only takes {', '.join(short)}, got {unknown[0]}")
    chosen = [short[name] for name in options.only] or list(MESHES)
    options.output.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in chosen:
        rows.append(measure(name, MESHES[name], options))
        print(f"{name}: {rows[-1]['outcome']}, validator {rows[-1]['validator']}", flush=True)
        # Rewritten after each, so that an interrupted run still leaves its figures.
        (options.output / "results.md").write_text(table(rows) + "\n")
    print(table(rows))


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")

"""glTF files made plain before trimesh reads them.

trimesh reads normalised integers as they are stored, fills what is compressed or sparse with zeros, and knows one set of texture
coordinates, without transforms. Here accessors become floats, the base colour's coordinates become the first set, and what
cannot be read is refused.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import trimesh
from numpy.typing import NDArray
from PIL import Image
from trimesh.visual.material import PBRMaterial

from distill.export.files import COLOURS
from distill.meshes.look import set_factor
from distill.meshes.nodes import Json, check_skins, make_plain
from distill.meshes.surface import Unfit

_COMPRESSIONS = {
    "KHR_draco_mesh_compression": "Draco",
    "EXT_meshopt_compression": "meshopt",
    "KHR_meshopt_compression": "meshopt",
}
#: Extensions that a file may require: they are read here, or by trimesh, or change no more than light.
_READ = (
    "KHR_mesh_quantization",
    "KHR_texture_",
    "EXT_texture_",
    "KHR_materials_",
    "KHR_lights_",
    "EXT_lights_",
)
_COMPONENTS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
#: Under this a scene's metadata has the extensions of kept materials, by their names, which trimesh leaves out.
EXTENSIONS = "extensions of kept materials"
#: An older way to describe a material, which trimesh turns into metallic and roughness.
OLDER = "KHR_materials_pbrSpecularGlossiness"
#: Maps of a material that are written again, where it is kept.
_MAPS = (
    "baseColorTexture",
    "metallicRoughnessTexture",
    "normalTexture",
    "occlusionTexture",
    "emissiveTexture",
)


@dataclass
class _Gltf:
    path: Path
    tree: Json
    buffers: list[bytes | None]
    added: list[bytes] = field(default_factory=list)
    made: dict[str, int] = field(default_factory=dict)

    def primitives(self) -> Iterator[tuple[str, Json]]:
        for mesh in self.tree.get("meshes", []):
            for primitive in mesh["primitives"]:
                yield mesh.get("name", "GLTF"), primitive

    def add(self, values: NDArray[Any], kind: str, component: int, **more: Any) -> int:
        """Add an accessor with a view of its own; returns its index."""
        self.added.append(np.ascontiguousarray(values).tobytes())
        self.tree["bufferViews"].append({"added": len(self.added) - 1})
        accessor = {"componentType": component, "type": kind, "count": len(values), **more}
        self.tree["accessors"].append(accessor | {"bufferView": len(self.tree["bufferViews"]) - 1})
        return len(self.tree["accessors"]) - 1


def load_gltf(path: Path, keep: frozenset[str], begin: bool) -> trimesh.Scene:
    """Read a GLB or glTF file.

    Args:
        path: of the file.
        keep: names of materials that are written as they were read.
        begin: the base colours of the other ones are needed, too.

    Raises:
        Unfit: it is compressed, needs an extension that is not known here, has a skeleton that scales a mesh, or textures that are needed
            cannot be read.
        Exception: it is broken, in whatever way.
    """
    data = path.read_bytes()
    tree, chunk = _parted(data)
    if int(str(tree["asset"]["version"]).split(".")[0]) < 2:
        raise ValueError("it is glTF 1")
    _check_extensions(path, tree, chunk is not None)
    buffers: list[bytes | None] = [
        _bytes(path, buffer["uri"]) if "uri" in buffer else (None if number else chunk)
        for number, buffer in enumerate(tree.get("buffers", []))
    ]
    tree.setdefault("bufferViews", []), tree.setdefault("accessors", [])
    gltf = _Gltf(path, tree, buffers)
    check_skins(path, tree, partial(_values, gltf))
    make_plain(tree)
    extensions = _check_looks(gltf, _embedded(gltf), keep, begin)
    for name, primitive in gltf.primitives():
        _make_plain(gltf, name, primitive, keep)
    # A material's number stands for its name until it is known which one a geometry has.
    materials = [*tree.get("materials", ())]
    tree["materials"] = [{**material, "name": str(number)} for number, material in enumerate(materials)]
    scene = trimesh.load_scene(BytesIO(_joined(gltf)), file_type="glb", process=False)
    _restore(scene, materials)
    scene.metadata[EXTENSIONS] = extensions
    return scene


def _restore(scene: trimesh.Scene, materials: Sequence[Json]) -> None:
    """Give the materials of a scene, which have their numbers for names, their names and the factors that trimesh rounded to bytes."""
    visuals = (geometry.visual for geometry in scene.geometry.values())
    own = {
        id(v.material): v.material for v in visuals if isinstance(getattr(v, "material", None), PBRMaterial)
    }
    for material in own.values():
        said = materials[int(material.name)]
        material.name = said.get("name")
        factor = said.get("pbrMetallicRoughness", {}).get("baseColorFactor")
        if factor is not None and OLDER not in said.get("extensions", {}):
            set_factor(material, factor)


def _parted(data: bytes) -> tuple[Json, bytes | None]:
    """JSON and the binary chunk of a file."""
    if data[:4] != b"glTF":
        return json.loads(data.decode("utf-8-sig")), None
    chunks, at = dict[bytes, bytes](), 12
    while at + 8 <= len(data):
        length, kind = struct.unpack_from("<I4s", data, at)
        if at + 8 + length > len(data):
            raise ValueError("it ends too early")
        chunks.setdefault(kind, data[at + 8 : at + 8 + length])
        at += 8 + length
    if b"JSON" not in chunks:
        raise ValueError("it ends too early")
    return json.loads(chunks[b"JSON"]), chunks.get(b"BIN\0")


def _bytes(path: Path, uri: str) -> bytes:
    if uri.startswith("data:"):
        return base64.b64decode(uri.partition(",")[2])
    return (path.parent / unquote(uri)).read_bytes()


def _check_extensions(path: Path, tree: Json, chunk: bool) -> None:
    required = [*tree.get("extensionsRequired", [])]
    # What is not required has to be there without compression as well.
    for primitive in (p for mesh in tree.get("meshes", []) for p in mesh["primitives"]):
        accessors = (tree["accessors"][number] for number in primitive["attributes"].values())
        if any("bufferView" not in accessor for accessor in accessors):
            required += primitive.get("extensions", {})
    for view in tree.get("bufferViews", []):
        number = view["buffer"]
        if "uri" not in tree["buffers"][number] and (number or not chunk):
            required += view.get("extensions", {})
    if any("EXT_mesh_gpu_instancing" in node.get("extensions", {}) for node in tree.get("nodes", [])):
        required.append("EXT_mesh_gpu_instancing")
    for name in required:
        if name in _COMPRESSIONS:
            raise Unfit(
                f"{path} is compressed with {_COMPRESSIONS[name]} ({name}), which mesh= does not read; export it again without "
                "compression, or decompress it, for example with gltf-transform copy"
            )
        if not name.startswith(_READ):
            raise Unfit(f"{path} needs {name}, which mesh= does not read; export it again without it")


def _embedded(gltf: _Gltf) -> list[str]:
    """Put images that lie beside the file into it; returns by image why it cannot be read, '' where it can."""
    faults = []
    for number, image in enumerate(gltf.tree.get("images", [])):
        try:
            if "uri" in image:
                data = _bytes(gltf.path, image["uri"])
                gltf.added.append(data)
                gltf.tree["bufferViews"].append({"added": len(gltf.added) - 1})
                kind = image.get("mimeType", "image/png")
                image = {"mimeType": kind, "bufferView": len(gltf.tree["bufferViews"]) - 1}
                gltf.tree["images"][number] = image
            else:
                view = gltf.tree["bufferViews"][image["bufferView"]]
                data = _slice(gltf, view)
            with Image.open(BytesIO(data)) as opened:
                opened.load()
            faults.append("")
        except Image.DecompressionBombError:
            gltf.tree["images"][number] = {}
            faults.append("too large")
        except OSError as error:
            gltf.tree["images"][number] = {}
            missing = isinstance(error, FileNotFoundError)
            faults.append(f"{image['uri'][:80]} is not there" if missing else "not a whole PNG, JPEG or WebP")
    return faults


def _slice(gltf: _Gltf, view: Json) -> bytes:
    raw, start = gltf.buffers[view["buffer"]], view.get("byteOffset", 0)
    if raw is None:
        raise ValueError("a buffer has no data")
    return raw[start : start + view["byteLength"]]


def _material(gltf: _Gltf, primitive: Json) -> Json:
    return gltf.tree["materials"][primitive["material"]] if "material" in primitive else {}


def _maps(material: Json) -> dict[str, Json]:
    """Texture infos of a material by the names of its maps; the base colour's is trimesh's choice of it."""
    found = {**material, **material.get("pbrMetallicRoughness", {})}
    older = material.get("extensions", {}).get(OLDER)
    if older is not None:
        found.pop("baseColorTexture", None)
        found |= {"baseColorTexture": older["diffuseTexture"]} if "diffuseTexture" in older else {}
    return {name: found[name] for name in _MAPS if name in found}


def _check_looks(gltf: _Gltf, faults: Sequence[str], keep: frozenset[str], begin: bool) -> dict[str, Json]:
    """Refuse what cannot be read or kept; returns the extensions of kept materials by their names."""
    extensions = dict[str, Json]()
    for mesh, primitive in gltf.primitives():
        material = _material(gltf, primitive)
        name, maps = material.get("name", mesh), _maps(material)
        kept = name in keep
        if kept:
            _check_extended(gltf.path, name, material, extensions)
        if kept and len({json.dumps(_coordinates(info)) for info in maps.values()}) > 1:
            raise Unfit(
                f"mesh.keep cannot keep {name} of {gltf.path}: its textures have texture coordinates or transforms that differ; "
                "export it with one set for all of them"
            )
        needed = maps if kept else {"baseColorTexture"} & {*maps} if begin else ()
        for texture in (gltf.tree["textures"][maps[one]["index"]] for one in needed):
            fault = _fault(texture, faults)
            if fault:
                option = f"mesh.keep={name}" if kept else "mesh.init_texture=true"
                raise Unfit(
                    f"{option} needs a texture of {name} that cannot be read ({fault}), in {gltf.path}; export it with PNG or JPEG"
                )
    return extensions


def _check_extended(path: Path, name: str, material: Json, found: dict[str, Json]) -> None:
    """Note the extensions of a kept material, except for the older one that trimesh turns into glTF's own; refuse textures in them."""
    own = {key: value for key, value in material.get("extensions", {}).items() if key != OLDER}
    for key, value in own.items():
        if '"index"' in json.dumps(value):
            raise Unfit(
                f"mesh.keep cannot keep {name} of {path}: it has a texture in {key}, which would be lost; export it without that, or "
                "leave it out of mesh.keep"
            )
    if found.setdefault(name, own) != own or (own and "name" not in material):
        raise Unfit(
            f"mesh.keep cannot keep {name} of {path} with {', '.join({**found[name], **own})}: it has no name, or shares it with another "
            "material; give it one of its own"
        )


def _fault(texture: Json, faults: Sequence[str]) -> str:
    """Why a texture cannot be read, '' where it can."""
    webp = texture.get("extensions", {}).get("EXT_texture_webp", {})
    source = webp.get("source", texture.get("source"))
    return ", ".join(texture.get("extensions", ["no image"])) if source is None else faults[source]


def _coordinates(info: Json) -> tuple[int, list[float]]:
    """Which set of texture coordinates a texture has, and the matrix ``[2, 3]`` on them, row by row; [] for none."""
    change = info.get("extensions", {}).get("KHR_texture_transform", {})
    number = int(change.get("texCoord", info.get("texCoord", 0)))
    (x, y), (width, height) = change.get("offset", (0, 0)), change.get("scale", (1, 1))
    # Counter-clockwise where v points down, as viewers do it; the extension's own listing turns the other way.
    cos, sin = np.cos(change.get("rotation", 0.0)), np.sin(change.get("rotation", 0.0))
    matrix = [float(v) for v in (cos * width, sin * height, x, -sin * width, cos * height, y)]
    return number, [] if matrix == [1, 0, 0, 0, 1, 0] else matrix


def _make_plain(gltf: _Gltf, name: str, primitive: Json, keep: frozenset[str]) -> None:
    if primitive.get("mode", 4) == 6:
        raise Unfit(f"{gltf.path} has a fan of triangles, in {name}; export it again as triangles")
    primitive.pop("extensions", None)
    attributes = primitive["attributes"]
    material = _material(gltf, primitive)
    maps = _maps(material)
    # All maps of a kept material have the same coordinates.
    leading = maps if material.get("name", name) in keep else {"baseColorTexture"} & {*maps}
    number, matrix = _coordinates(maps[next(iter(leading))] if leading else {})
    if number:
        attributes["TEXCOORD_0"] = attributes.get(f"TEXCOORD_{number}")
    for key in [key for key in attributes if attributes[key] is None]:
        del attributes[key]
    for key, change in (("POSITION", []), ("NORMAL", []), ("TEXCOORD_0", matrix)):
        if key in attributes:
            attributes[key] = _floats(gltf, attributes[key], change)
    if "COLOR_0" in attributes:
        attributes[COLOURS] = _colours(gltf, attributes.pop("COLOR_0"))
    if "indices" in primitive and "sparse" in gltf.tree["accessors"][primitive["indices"]]:
        primitive["indices"] = gltf.add(_values(gltf, primitive["indices"]).astype("<u4"), "SCALAR", 5125)


def _floats(gltf: _Gltf, number: int, matrix: Sequence[float]) -> int:
    accessor = gltf.tree["accessors"][number]
    if (
        accessor["componentType"] == 5126
        and "sparse" not in accessor
        and "bufferView" in accessor
        and not matrix
    ):
        return number
    key = json.dumps([number, *matrix])
    if key not in gltf.made:
        values = _values(gltf, number)
        if matrix:
            turn = np.reshape(matrix, (2, 3))
            values = values @ turn[:, :2].T + turn[:, 2]
        gltf.made[key] = gltf.add(values.astype("<f4"), accessor["type"], 5126)
    return gltf.made[key]


def _colours(gltf: _Gltf, number: int) -> int:
    """An accessor of linear colours in [0, 1] as floats; trimesh reads and writes its own colours as bytes."""
    key = f"colours {number}"
    if key not in gltf.made:
        values = np.nan_to_num(_values(gltf, number, share=True), nan=0.0)
        kind = gltf.tree["accessors"][number]["type"]
        gltf.made[key] = gltf.add(values.clip(0, 1).astype("<f4"), kind, 5126)
    return gltf.made[key]


def _values(gltf: _Gltf, number: int, share: bool = False) -> NDArray[np.float64]:
    """What an accessor says, shape ``[count, width]``; integers that are normalised, or a ``share``, are in [-1, 1]."""
    accessor = gltf.tree["accessors"][number]
    kind, shape = (
        np.dtype(_COMPONENTS[accessor["componentType"]]),
        (accessor["count"], _WIDTHS[accessor["type"]]),
    )
    sparse = accessor.get("sparse")
    if "bufferView" in accessor:
        raw = _seen(gltf, accessor, kind, shape).copy()
    elif sparse:
        raw = np.zeros(shape, kind)
    else:
        raise ValueError("values are not there; they may be compressed")
    if sparse:
        where, count = sparse["indices"], sparse["count"]
        rows = _seen(gltf, where, np.dtype(_COMPONENTS[where["componentType"]]), (count, 1))[:, 0]
        raw[rows] = _seen(gltf, sparse["values"], kind, (count, shape[1]))
    if kind.kind == "f" or not (share or accessor.get("normalized")):
        return raw.astype(np.float64)
    return np.maximum(raw / np.iinfo(kind).max, -1.0)


def _seen(gltf: _Gltf, place: Json, kind: np.dtype[Any], shape: tuple[int, int]) -> NDArray[Any]:
    view = gltf.tree["bufferViews"][place["bufferView"]]
    step = view.get("byteStride") or kind.itemsize * shape[1]
    data = _slice(gltf, view)
    return np.ndarray(shape, kind, data, place.get("byteOffset", 0), (step, kind.itemsize))


def _joined(gltf: _Gltf) -> bytes:
    """A GLB file with one buffer."""
    parts = [buffer or b"" for buffer in gltf.buffers] + gltf.added
    padded = [part + bytes(-len(part) % 4) for part in parts]
    starts = [0, *accumulate(len(part) for part in padded)]
    for number, view in enumerate(gltf.tree["bufferViews"]):
        if "added" in view:
            index = len(gltf.buffers) + view["added"]
            view = {"byteLength": len(parts[index])}
        else:
            index = view["buffer"]
        at = starts[index] + view.get("byteOffset", 0)
        gltf.tree["bufferViews"][number] = {**view, "buffer": 0, "byteOffset": at}
    gltf.tree["buffers"] = [{"byteLength": starts[-1]}]
    text = json.dumps(gltf.tree).encode()
    text += b" " * (-len(text) % 4)
    head = struct.pack("<4sIIII", b"glTF", 2, 28 + len(text) + starts[-1], len(text), 0x4E4F534A)
    return b"".join([head, text, struct.pack("<I4s", starts[-1], b"BIN\0"), *padded])

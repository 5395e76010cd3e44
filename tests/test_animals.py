"""The game's animals as GLB files: its mesh format, what an actor names, and what is left out."""

from __future__ import annotations

import importlib
import io
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from PIL import Image

FOLDER = Path(__file__).parents[1] / "examples" / "embedded"
SPHERE = trimesh.creation.icosphere(subdivisions=1)


@pytest.fixture
def animals(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("animals")


def pmd(mesh: trimesh.Trimesh, version: int = 4) -> bytes:
    """A mesh as the game writes it: the second texture coordinate is twice the first, and the third is only filled."""
    sets = 3 if version == 4 else 1
    body = (
        struct.pack("<II", len(mesh.vertices), sets)
        if version == 4
        else struct.pack("<I", len(mesh.vertices))
    )
    for number, (place, normal) in enumerate(zip(mesh.vertices, mesh.vertex_normals, strict=True)):
        body += struct.pack("<6f2f", *place, *normal, number / 100, number / 50)
        body += (
            struct.pack("<2f", 9, 9) * (sets - 1) + bytes([0, 255, 255, 255]) + struct.pack("<4f", 1, 0, 0, 0)
        )
    body += struct.pack("<I", len(mesh.faces)) + mesh.faces.astype("<u2").tobytes() + struct.pack("<II", 0, 0)
    return b"PSMD" + struct.pack("<II", version, len(body)) + body


def skin() -> bytes:
    file = io.BytesIO()
    Image.new("RGBA", (4, 4), (200, 100, 50, 0)).save(file, "DDS")
    return file.getvalue()


def actor(*groups: str) -> str:
    return f"<actor version='1'>{''.join(f'<group>{group}</group>' for group in groups)}</actor>"


def archive(path: Path, actors: dict[str, str], **more: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, text in actors.items():
            file.writestr(f"art/actors/fauna/{name}.xml", text)
        file.writestr("art/meshes/skeletal/wolf.dae.cached.pmd", pmd(SPHERE))
        file.writestr("art/meshes/skeletal/none.dae.cached.pmd", pmd(trimesh.Trimesh(np.eye(3), [[0, 1, 2]])))
        file.writestr("art/meshes/skeletal/cut.dae.cached.pmd", pmd(SPHERE)[:500])
        file.writestr("art/textures/skins/wolf_grey.png.cached.dds", skin())
        file.writestr("art/variants/quadraped/grey.xml", f"<variant>{GREY}</variant>")
    return path


MESH, GREY = (
    "<mesh>skeletal/{}.dae</mesh>",
    "<textures><texture file='wolf_grey.png' name='baseTex'/></textures>",
)
WOLF = f"<variant frequency='1'>{MESH.format('wolf')}</variant>"


@pytest.mark.parametrize("version", [3, 4])
def test_a_mesh_is_read_as_it_was_written(animals: Any, version: int) -> None:
    vertices, uv, faces = animals.read_mesh(pmd(SPHERE, version))
    assert np.allclose(vertices, SPHERE.vertices, atol=1e-6) and (faces == SPHERE.faces).all()
    assert np.allclose(uv, [[number / 100, number / 50] for number in range(len(vertices))])


@pytest.mark.parametrize(
    "data", [b"", b"PSMD", b"GLTF" + bytes(40), b"PSMD\x09" + bytes(40), pmd(SPHERE)[:-9][:800]]
)
def test_what_is_no_whole_mesh_is_refused(animals: Any, data: bytes) -> None:
    with pytest.raises(ValueError, match="not a whole PMD mesh"):
        animals.read_mesh(data)


def test_the_most_frequent_variant_of_each_group_counts_also_one_in_a_file(animals: Any) -> None:
    rare = "<variant frequency='2'><textures><texture file='rare.png' name='baseTex'/></textures></variant>"
    often = f"<variant frequency='5'>{GREY}</variant>"
    spec = "<variant><textures><texture file='spec.png' name='specTex'/></textures></variant>"
    read = {"quadraped/grey.xml": f"<variant>{GREY}</variant>".encode()}.__getitem__
    assert animals.chosen(actor(WOLF, spec, rare + often).encode(), read) == (
        "skeletal/wolf.dae",
        "wolf_grey.png",
    )
    filed = "<variant frequency='1' file='quadraped/grey.xml'/>"
    assert animals.chosen(actor(WOLF, filed).encode(), read) == ("skeletal/wolf.dae", "wolf_grey.png")
    assert animals.chosen(actor(WOLF, "", spec).encode(), read) is None


def test_animals_are_written_textured_and_others_named_with_the_reason(
    animals: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grey = f"<variant>{GREY}</variant>"
    actors = {"wolf": actor(WOLF, grey), "bare": actor(WOLF)}
    actors |= {
        name: actor(f"<variant>{MESH.format(name)}</variant>", grey) for name in ("none", "cut", "away")
    }
    public = archive(tmp_path / "public.zip", actors)
    monkeypatch.setattr(sys, "argv", ["animals.py", str(public), str(tmp_path / "out")])
    animals.main()
    said = capsys.readouterr().out
    for line in (
        "left out away: art/meshes/skeletal/away.dae.cached.pmd is not there", "left out bare: no mesh or no skin",
        "left out cut: not a whole PMD mesh", "left out none: its mesh has 1 faces", "1 animals in",
    ):  # fmt: skip
        assert line in said
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["wolf.glb"]
    (mesh,) = trimesh.load_scene(tmp_path / "out" / "wolf.glb").geometry.values()
    assert mesh.volume == pytest.approx(SPHERE.volume, rel=1e-5)
    assert mesh.visual.material.baseColorTexture.convert("RGBA").getpixel((0, 0)) == (200, 100, 50, 255)


def test_what_is_no_archive_of_the_game_is_refused_in_one_line(animals: Any, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no zip")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as file:
        file.writestr("a", "b")
    for name in ("absent.zip", "text", "other.zip"):
        with pytest.raises(ValueError, match=r"expected public\.zip of Debian's package 0ad-data"):
            animals.convert(tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "out").exists()

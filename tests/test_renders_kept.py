"""Renders are those of the files that were given, an interruption leaves nothing half made in a set, and shards are of one set."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from distill.lab.novel_view.cli import main
from distill.lab.novel_view.config import TrainConfig, offset_of
from distill.lab.novel_view.sources import find_meshes, name_of
from distill.lab.novel_view.views import from_folder, from_shards

SMALL = ("--views", "2", "--size", "8", "--workers", "1")


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def a_box(path: Path, *extents: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    trimesh.creation.box(extents=extents or (1, 1, 1)).export(path)
    return path


def painted(folder: Path, colour: str) -> Path:
    """A square as OBJ, with a texture of one colour."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), colour).save(folder / "skin.png")
    (folder / "square.mtl").write_text("newmtl a\nmap_Kd skin.png\n")
    corners = "v -1 -1 0\nv 1 -1 0\nv 1 1 0\nv -1 1 0\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\n"
    faces = "usemtl a\nf 1/1 2/2 3/3\nf 1/1 3/3 4/4\n"
    (folder / "square.obj").write_text(f"mtllib square.mtl\n{corners}{faces}")
    return folder / "square.obj"


@pytest.fixture
def renders(tmp_path: Path) -> Path:
    """Three boxes, seen."""
    for name in "abc":
        a_box(tmp_path / "meshes" / f"{name}.glb")
    assert run("render", tmp_path / "meshes", tmp_path / "renders", *SMALL, "--offset", "0.25") == 0
    return tmp_path / "renders"


@pytest.mark.parametrize("case", ["other folder", "changed", "recoloured"])
def test_pictures_of_another_file_are_not_taken_for_a_meshs_own(
    case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    first = painted(tmp_path / "a", "red")
    assert run("render", first, out, *SMALL) == 0
    before = (out / "square" / "000.png").read_bytes()
    assert run("render", first, out, *SMALL) == 0  # the same one is gone on with
    if case == "other folder":
        second, said = painted(tmp_path / "b", "red"), "has pictures of another mesh"
        second.write_text(second.read_text().replace("-1 -1 0", "-2 -1 0"))
    elif case == "changed":
        second, said = first, "before it changed"
        second.write_text(second.read_text().replace("-1 -1 0", "-2 -1 0"))
    else:  # the file is the same, its texture is not
        second, said = painted(tmp_path / "a", "blue"), "before it changed"
    caplog.clear()
    assert run("render", second, out, *SMALL) == 1
    assert said in caplog.text and str(first) in caplog.text and "choose another output" in caplog.text
    assert len(caplog.text.splitlines()) == 1
    assert (out / "square" / "000.png").read_bytes() == before


def test_a_moved_file_and_a_folder_without_the_record_are_gone_on_with(tmp_path: Path) -> None:
    out, path = tmp_path / "out", a_box(tmp_path / "a" / "box.glb")
    assert run("render", path, out, *SMALL) == 0
    said = json.loads((out / "box" / "source.json").read_text())
    assert said["file"] == str(path) and re.fullmatch("[0-9a-f]{64}", said["sha256"])
    path.rename(tmp_path / "box.glb")
    assert run("render", tmp_path / "box.glb", out, *SMALL) == 0
    (out / "box" / "source.json").unlink()
    assert run("render", a_box(path, 1, 2, 3), out, *SMALL) == 0  # of an earlier version: nobody knows


def test_a_number_that_stands_for_another_file_is_passed_over(tmp_path: Path) -> None:
    a, b, c = (a_box(tmp_path / "in" / x / "mesh.glb", 1, n, 3) for n, x in enumerate("abc", start=1))
    out = tmp_path / "out"
    assert run("render", a, c, out, *SMALL) == 0
    assert run("render", tmp_path / "in", out, *SMALL) == 0
    files = {p.parent.name: json.loads(p.read_text())["file"] for p in sorted(out.glob("*/source.json"))}
    assert files == {"mesh": str(a), "mesh-2": str(c), "mesh-3": str(b)}
    assert name_of(c, {"mesh"}, out) == "mesh-2"


def test_a_mesh_with_a_number_that_changed_is_refused_as_one_without(tmp_path: Path) -> None:
    a, b = (a_box(tmp_path / "in" / x / "mesh.glb", 1, n, 3) for n, x in enumerate("ab", start=1))
    out = tmp_path / "out"
    assert run("render", a, b, out, *SMALL) == 0
    a_box(b, 3, 2, 1)
    assert run("render", a, b, out, *SMALL) == 1
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == ["mesh", "mesh-2"]
    assert name_of(b, {"mesh"}, out) == "mesh-2"


@pytest.mark.parametrize(
    "text", ['{"images": [{"uri": null}]}', '{"buffers": [{"uri": 3}]}', "[]", "{", '{"images": 1}']
)
def test_a_gltf_of_nonsense_is_left_out_and_the_others_are_made(text: str, tmp_path: Path) -> None:
    good = a_box(tmp_path / "in" / "z.glb")
    (tmp_path / "in" / "bad.gltf").write_text(text)
    assert run("render", tmp_path / "in", tmp_path / "out", *SMALL) == 1
    assert (tmp_path / "out" / good.stem / "000.png").exists() and not (tmp_path / "out" / "bad").exists()


def test_of_a_folder_each_mesh_is_taken_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run_name in ("one", "two"):
        for name in ("mesh.ply", "mesh.obj", "mesh.glb", "mesh_lod1.glb", "mesh_lod1.obj"):
            a_box(tmp_path / "runs" / run_name / name)
    for name in ("cup.stl", "cup.obj"):
        a_box(tmp_path / "runs" / name)
    alone = a_box(tmp_path / "runs" / "far_lod2.ply")  # whose full mesh is not there
    a_box(tmp_path / "runs" / "two" / ".mesh.12-3.part.glb")
    found, left = find_meshes([tmp_path / "runs"])
    runs = tmp_path / "runs"
    assert found == [runs / "cup.obj", alone, runs / "one" / "mesh.glb", runs / "two" / "mesh.glb"]
    assert len(left) == 9 and not {*left} & {*found}
    given = [runs / "one" / "mesh.obj", runs / "one" / "mesh_lod1.glb"]  # by name
    assert find_meshes(given) == (given, [])
    assert run("render", runs, tmp_path / "out", *SMALL) == 0
    said = capsys.readouterr().out
    assert "9 files not rendered, as other formats or levels of detail of the same meshes: " in said
    assert "4 objects in" in said


def test_what_an_interruption_left_is_in_no_set(renders: Path, tmp_path: Path) -> None:
    half = renders / ".aa.tmp"
    shutil.copytree(renders / "a", half)
    (half / "001.png").unlink()
    (renders / "valid_paths.json").unlink()
    assert list(from_folder(renders, count=2, size=8).uids) == ["a", "b", "c"]
    # Its first object lacks a picture; protocol.json says how many there are.
    (renders / "a" / "001.png").unlink()
    assert run("pack", renders, tmp_path / "shards") == 1
    shards = from_shards(sorted((tmp_path / "shards").glob("*.tar")), count=2, size=8)
    assert list(shards.uids) == ["b", "c"]


def test_without_a_protocol_the_first_whole_folder_says_how_many_views_there_are(
    renders: Path, tmp_path: Path
) -> None:
    (renders / ".a.tmp").mkdir()
    shutil.copy(renders / "a" / "000.png", renders / ".a.tmp")
    for name in ("valid_paths.json", "protocol.json"):
        (renders / name).unlink()
    assert run("pack", renders, tmp_path / "shards") == 0
    assert not (tmp_path / "shards" / "protocol.json").exists()
    with tarfile.open(tmp_path / "shards" / "00000.tar") as shard:
        assert len(shard.getnames()) == 3 * 2 * 2


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.slow
def test_an_interrupt_ends_a_render_with_one_line(alone: bool, tmp_path: Path) -> None:
    """As a terminal sends it, to all processes, or to the first alone."""
    for name in ("quick", *(f"slow-{n}" for n in range(8))):  # more than are handed out at once
        mesh = trimesh.creation.icosphere(subdivisions=1 if name == "quick" else 5)
        (tmp_path / "in").mkdir(exist_ok=True)
        mesh.export(tmp_path / "in" / f"{name}.glb")
    words = [sys.executable, "-m", "distill.lab.novel_view.cli", "render", "in", "out", "--views", "40"]
    process = subprocess.Popen(
        [*words, "--workers", "2"], cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    late = time.monotonic() + 120
    while not (tmp_path / "out" / "quick").is_dir():
        assert process.poll() is None and time.monotonic() < late
        time.sleep(0.1)
    (os.kill if alone else os.killpg)(process.pid, signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "Traceback" not in said
    assert said.rstrip().splitlines()[-1] == "distill-views: interrupted; the same command continues"
    assert json.loads((tmp_path / "out" / "valid_paths.json").read_text()) == ["quick"]
    while True:  # its processes have ended, too
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        assert time.monotonic() < late
        time.sleep(0.1)


@pytest.mark.parametrize("command", ["pack", "render"])
def test_an_interrupt_is_no_traceback(
    command: str,
    renders: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from distill.lab.novel_view import render, views

    def interrupted(*given: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(views, "write_shard", interrupted)
    monkeypatch.setattr(render, "_write_views", interrupted)
    capsys.readouterr()
    words = (renders, tmp_path / "s") if command == "pack" else (tmp_path / "meshes", tmp_path / "r", *SMALL)
    assert run(command, *words) == 130
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == "distill-views: interrupted; the same command continues"
    assert not list(tmp_path.glob("[sr]/.*"))


def test_shards_are_not_mixed_with_others(
    renders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = tmp_path / "shards"
    assert run("pack", renders, shards, "--objects", "1") == 0
    before = {path.name: path.read_bytes() for path in shards.iterdir()}
    assert sorted(before) == ["00000.tar", "00001.tar", "00002.tar", "protocol.json"]
    (shards / "00001.tar").unlink()
    assert run("pack", renders, shards, "--objects", "1") == 0  # an interrupted one is gone on with
    for uid in ("a", "b"):  # fewer objects, and one of other pictures
        shutil.copytree(renders / uid, tmp_path / "fewer" / uid)
    shutil.copy(renders / "protocol.json", tmp_path / "fewer")
    shutil.copytree(renders, tmp_path / "other")
    Image.new("RGBA", (8, 8), "red").save(tmp_path / "other" / "b" / "001.png")
    for folder, name, each in (("fewer", "00002", 1), ("other", "00001", 1), ("renders", "00000", 2)):
        capsys.readouterr()
        assert run("pack", tmp_path / folder, shards, "--objects", each) == 2
        (said,) = capsys.readouterr().err.splitlines()
        assert f"holds shards of something else, {name}.tar among them" in said
        assert "choose another folder, or move them away" in said
        assert {path.name for path in shards.iterdir()} == {*before}
        assert (shards / "00000.tar").read_bytes() == before["00000.tar"]


def test_shards_carry_what_the_renders_say(
    renders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run("pack", renders, tmp_path / "shards") == 0
    for data in (str(tmp_path / "shards" / "*.tar"), "~/shards/*.tar", "~/sh*/*.tar", "~/shards/00000.tar"):
        config = TrainConfig(data=data)
        assert offset_of(config) == 0.25
        config.offset = 0.1
        with pytest.raises(ValueError, match=r"offset=0.1, but \S+shards/protocol.json says 0.25; leave"):
            offset_of(config)
    assert offset_of(TrainConfig(data=str(tmp_path / "none" / "*.tar"))) == 0
    path = tmp_path / "shards" / "protocol.json"
    (tmp_path / "shards" / "00000.tar").unlink()
    said = json.loads(path.read_text())
    path.write_text(json.dumps(said | {"offset": 0.5}))
    assert run("pack", renders, tmp_path / "shards") == 2
    assert "protocol.json is of other renders than those in" in capsys.readouterr().err
    assert json.loads(path.read_text())["offset"] == 0.5
    for text, wanted in (
        ("{", "cannot be read"),
        ("[]", "got list"),
        ('{"offset": "x"}', "have a number"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=rf"protocol.json must .*{wanted}"):
            offset_of(TrainConfig(data="~/shards/*.tar"))


def test_a_picture_of_sixteen_bits_is_as_grey_as_it_was(renders: Path) -> None:
    """0.4 of 65535, and the same of 255."""
    deep = np.full((8, 8), 26214, np.uint16)
    Image.fromarray(deep).save(renders / "b" / "001.png")
    rgb, _ = from_folder(renders, count=2, size=8).read("b", 1)
    torch.testing.assert_close(rgb, torch.full((3, 8, 8), 102 / 255))

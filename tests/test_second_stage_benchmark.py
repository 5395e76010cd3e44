"""The second stage's benchmark: what it draws of a mesh's file."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from distill.cameras import orbit

FOLDER = Path(__file__).parents[1] / "examples" / "benchmarks"
RED, GREEN, BLUE, GREY = (200, 40, 30), (20, 180, 60), (30, 60, 220), (128, 128, 128)


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("second_stage")


@pytest.fixture
def glb(benchmark: Any) -> Any:
    return importlib.import_module("glb")


@pytest.fixture
def mesh_sheet(benchmark: Any) -> Any:
    return importlib.import_module("mesh_sheet")


def write_box(path: Path, to_file: np.ndarray) -> Path:
    """A box of edge 1 whose front, +x, is red, its left, +y, green, its top, +z, blue, and the rest grey."""
    box = trimesh.creation.box((1, 1, 1))
    box.unmerge_vertices()
    colours = [RED, GREEN, BLUE, GREY]
    facing = [int(np.argmax(normal)) if normal.max() > 0.5 else 3 for normal in box.face_normals]
    texture = Image.new("RGB", (len(colours), 1))
    for column, colour in enumerate(colours):
        texture.putpixel((column, 0), colour)
    columns = np.repeat(np.array(facing), 3)
    uv = np.stack([(columns + 0.5) / len(colours), np.full(len(columns), 0.5)], axis=1)
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=texture)
    box = trimesh.Trimesh(
        box.vertices[box.faces.reshape(-1)], np.arange(36).reshape(12, 3), process=False,
        visual=trimesh.visual.TextureVisuals(uv=uv, material=material),
    )  # fmt: skip
    box.apply_transform(to_file)
    box.export(path)
    return path


def test_a_box_is_drawn_where_a_pinhole_camera_sees_it(glb: Any, tmp_path: Path) -> None:
    path = write_box(tmp_path / "box.glb", np.linalg.inv(glb.FROM_GLB))
    azimuth, elevation = torch.tensor([0.0, 90.0, 180.0, 0.0]), torch.tensor([0.0, 0.0, 0.0, 89.0])
    size, distance, fov = 60, 3.0, 40.0
    render = glb.view_of(path)(orbit(azimuth, elevation, distance, fov), size, size)
    seen = render.rgb.numpy()
    for picture, colour in zip(seen, (RED, GREEN, GREY, BLUE), strict=True):
        np.testing.assert_allclose(picture[size // 2, size // 2], np.array(colour) / 255, atol=1e-6)
        np.testing.assert_allclose(picture[0, 0], 1.0)
    # The front face is a square at distance 2.5: its edge, in pixels, squared.
    edge = size / (2 * math.tan(math.radians(fov) / 2) * 2.5)
    covered = ((1 - seen[0]) / (1 - np.array(RED) / 255)).mean(-1).sum()
    assert covered == pytest.approx(edge**2, rel=0.03)
    assert render.opacity[0].sum().item() == pytest.approx(covered, rel=1e-5)


def test_the_psnr_of_a_mesh_with_itself_and_with_a_constant_error(
    benchmark: Any, glb: Any, tmp_path: Path
) -> None:
    path = write_box(tmp_path / "box.glb", np.linalg.inv(glb.FROM_GLB))

    def view_with(error: float) -> Any:
        def view(cameras: Any, height: int, width: int) -> Any:
            return SimpleNamespace(rgb=glb.view_of(path)(cameras, height, width).rgb - error)

        return view

    assert benchmark.mesh_psnr(path, view_with(0.0)) == pytest.approx(100)  # where it ends
    assert benchmark.mesh_psnr(path, view_with(0.1)) == pytest.approx(20)  # 10 log10(1 / 0.01)


def test_a_table_has_both_stages_their_means_and_gaps(benchmark: Any) -> None:
    def stage(value: float | None) -> dict[str, Any]:
        figures = dict.fromkeys(
            (
                "r_precision",
                "iou",
                "mesh_r_precision",
                "mesh_iou",
                "mesh_db",
                "conversion_iou",
                "conversion_db",
            ),
            value,
        )
        return {"prompt": "a red mug", **figures}

    rows = [{"field": stage(0.5), "surface": stage(1.0)}, {"field": stage(1.0), "surface": stage(None)}]
    *_, first, _, mean = benchmark.table(rows).splitlines()
    assert first.split(" | ")[1:] == [*["0.500", "1.000"] * 4, "1.000", "1.0", "0.5", "1.0 |"]
    assert mean.split(" | ")[1:] == [*["0.750", "1.000"] * 4, "1.000", "1.0", "0.8", "1.0 |"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prompts", "0"], "--prompts is 1 to 16, got 0"),
        (["--prompts", "17"], "--prompts is 1 to 16, got 17"),
        (["--things", "38"], "--things needs --archives or --pack, and these are for --things"),
        (["--pack", "x"], "--things needs --archives or --pack, and these are for --things"),
        (["--things", "0", "--pack", "x"], "--things is 1 to 40, got 0"),
        (["--surface", "export.formats=[ply]"], "exported by default; leave out export.formats"),
        (["--set", "iterations=1", "export.enabled=false"], "leave out export.enabled"),
    ],
)
def test_wrong_options_are_one_line(
    words: list[str],
    said: str,
    benchmark: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["second_stage.py", *words])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert capsys.readouterr().err.strip().splitlines()[-1].endswith(said)


def test_a_sheet_shows_the_meshes_of_some_assets_with_their_own_figures(
    glb: Any,
    mesh_sheet: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    row = {"prompt": "a red box", "pair": "trained", "held_out": False, "r_precision": 0.1, "iou": 0.2}
    (tmp_path / "a-red-box" / "asset").mkdir(parents=True)
    (tmp_path / "a-red-box" / "quality.json").write_text(json.dumps(row))
    write_box(tmp_path / "a-red-box" / "asset" / "mesh.glb", np.linalg.inv(glb.FROM_GLB))
    measured = []

    def measure(view: Any, prompt: str, source: Any) -> Any:
        measured.append(view(orbit(torch.zeros(1), torch.zeros(1), 3.2, 40.0), 8, 8).rgb[0, 4, 4])
        return {"r_precision": 0.75, "iou": 0.5}, torch.full((3, 8, 8), 0.25)

    monkeypatch.setattr(mesh_sheet, "measure", measure)
    monkeypatch.setattr(mesh_sheet, "check", lambda prompts, source, judge: None)
    monkeypatch.setattr(mesh_sheet, "judge_of", lambda source, prompts: None)
    words = [str(tmp_path), "--prompts", "a red box", "--sheet", str(tmp_path / "sheet.png")]
    monkeypatch.setattr("sys.argv", ["mesh_sheet.py", *words])
    mesh_sheet.main()
    np.testing.assert_allclose(measured[0].numpy(), np.array(RED) / 255, atol=1e-6)
    assert "a red box: R-precision 0.750, IoU 0.500" in capsys.readouterr().out
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"))
    size = mesh_sheet.SIZE
    # Behind the label, the true front, then the mesh's front, left, back and right.
    middle = [sheet[34 + size // 2, 172 + size * side + size // 2] for side in range(5)]
    np.testing.assert_allclose(middle, [(64, 64, 64), RED, GREEN, GREY, GREY], atol=1)


def test_assets_without_a_measurement_or_a_mesh_are_said_in_one_line(mesh_sheet: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a folder that quality\.py wrote, with results\.json"):
        mesh_sheet.assets(tmp_path, None)
    (tmp_path / "results.json").write_text('[{"prompt": "a red box"}]')
    with pytest.raises(ValueError, match=r"expected an asset that quality\.py measured in .*a-red-box"):
        mesh_sheet.assets(tmp_path, None)
    (tmp_path / "a-red-box").mkdir()
    (tmp_path / "a-red-box" / "quality.json").write_text("{}")
    with pytest.raises(ValueError, match=r"has no mesh\.glb; distill export .*a-red-box/asset makes it"):
        mesh_sheet.assets(tmp_path, ["a red box"])


def test_a_sheet_without_a_folder_is_refused_before_anything_is_measured(
    mesh_sheet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [str(tmp_path), "--sheet", str(tmp_path / "gone" / "sheet.png")]
    monkeypatch.setattr("sys.argv", ["mesh_sheet.py", *words])
    with pytest.raises(ValueError, match=r"--sheet: the folder .*gone is not there; make it"):
        mesh_sheet.main()

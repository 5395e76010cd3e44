"""Objects from pictures: the figures on the truth itself, the cells of the comparison, and the script for real pictures."""

from __future__ import annotations

import csv
import importlib
import json
import math
from pathlib import Path
from typing import Any

import pictured
import pytest
import torch
from PIL import Image

from distill.cameras import Cameras
from distill.conditions.cutout import Cutout, Frame
from distill.contracts import Render
from distill.embedded.prompt import object_of
from distill.embedded.vocabulary import of_prior
from distill.lab.comparison.report import PICTURED, from_pictures
from distill.lab.novel_view.render import Surface, from_world


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script for real pictures."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples" / "benchmarks"))
    return importlib.import_module("real_pictures")


def view_of(surface: Surface, turn: int = 0) -> Any:
    """What renders a true object, turned by so many of eight places."""

    def view(cameras: Cameras, height: int, width: int) -> Render:
        rgba = pictured.photograph(surface, cameras, height).roll(turn, 0).movedim(1, -1)
        rgb, opacity = rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:], rgba[..., 3:]
        return Render(rgb, opacity, torch.zeros_like(opacity))

    return view


def test_the_truth_has_every_point_and_half_a_turn_is_seen() -> None:
    surface = from_world("orange-mug-0100", 1)
    whole = pictured.measure(view_of(surface), surface)
    assert (whole["iou"], whole["flipped"], whole["best_turn_deg"]) == (1.0, False, 0.0)
    assert whole["psnr"] == pytest.approx(100)  # the error is bounded from below
    turned = pictured.measure(view_of(surface, 4), surface)
    assert turned["flipped"] and turned["iou"] < 0.95
    assert (turned["best_iou"], turned["best_turn_deg"]) == (1.0, 180.0)


@pytest.mark.parametrize("elevation", [20.0, 90.0])
def test_a_framed_object_is_where_its_cut_out_puts_it(elevation: float) -> None:
    """A frame off the middle and 0.9 as wide: the framed object's picture is the crop of the old one."""
    surface, camera = from_world("orange-mug-0100", 1), pictured.the_camera(elevation)
    before = pictured.photograph(surface, camera, 160)[0, 3]
    frame = Frame(16.0, 2.0, 144.0)
    after = pictured.photograph(pictured.framed(surface, frame, 160, camera), camera, 144)[0, 3]
    crop = before[2:146, 16:160]
    # Perspective makes the moved and scaled object differ from the crop a little; a wrong sign gives .6 to .7.
    assert ((after > 0.5) & (crop > 0.5)).sum() / ((after > 0.5) | (crop > 0.5)).sum() > 0.9


def test_cells_are_made_once_and_told_to_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def make(prompt: str, options: dict[str, Any]) -> dict[str, Any]:
        asked.append((prompt, options))
        return {"iou": 0.5 + 0.1 * len(asked), "psnr": 20.0 + len(asked), "flipped": False}

    monkeypatch.setattr(pictured, "make", make)
    methods = {"sds": {"guidance": "sds"}, "csd": {"guidance": "csd"}}
    for _ in range(2):
        path = pictured.compare_pictures(
            methods, ("a red duck", "a brown mug"), output_dir=tmp_path, iterations=3
        )
    assert [options["guidance"] for _, options in asked] == ["sds", "sds", "csd", "csd"]
    assert all(options["iterations"] == 3 for _, options in asked)
    lines = list(csv.DictReader(path.open()))
    assert [(line["method"], line["prompt"]) for line in lines] == [
        (name, prompt) for name in methods for prompt in ("a red duck", "a brown mug")
    ]
    assert [name for name, _ in PICTURED] == ["iou", "psnr"]
    assert from_pictures(tmp_path, "csd") == [[pytest.approx(0.8), pytest.approx(0.9)], [23.0, 24.0]]
    assert from_pictures(tmp_path / "none", "csd") == [[], []]
    with pytest.raises(ValueError, match=r"was made with .* choose another output_dir"):
        pictured.compare_pictures(methods, ("a red duck",), output_dir=tmp_path, iterations=4)


def made_by(prompt: str, options: dict[str, Any]) -> dict[str, Any]:
    return {"iou": 0.5, "psnr": options["psnr"], "flipped": False}


def test_the_table_has_what_was_made_by_other_methods_and_of_other_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictured, "make", made_by)
    methods = {"sds": {"psnr": 20.0}, "csd": {"psnr": math.nan}}
    for chosen, prompts in (
        (methods, ("a red duck",)),
        ({"csd": methods["csd"]}, ("a brown mug", "a red duck")),
    ):
        path = pictured.compare_pictures(chosen, prompts, output_dir=tmp_path)
    lines = [(line["method"], line["prompt"]) for line in csv.DictReader(path.open())]
    assert lines == [("csd", "a brown mug"), ("csd", "a red duck"), ("sds", "a red duck")]
    assert from_pictures(tmp_path, "sds") == [[0.5], [20.0]]
    # What is no number is null in the file that keeps it, and no number again in the table.
    (kept, _) = sorted((tmp_path / "pictures" / "csd").iterdir())
    assert json.loads(kept.read_text())["psnr"] is None
    (ious, psnrs) = from_pictures(tmp_path, "csd")
    assert ious == [0.5, 0.5] and all(psnr is not None and math.isnan(psnr) for psnr in psnrs)


def test_a_cell_of_other_options_is_told_before_any_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictured, "make", made_by)
    pictured.compare_pictures({"csd": {"psnr": 1.0}}, ("a red duck",), output_dir=tmp_path)
    monkeypatch.setattr(pictured, "make", pytest.fail)
    with pytest.raises(ValueError, match=r"was made with .* choose another output_dir"):
        pictured.compare_pictures(
            {"sds": {"psnr": 1.0}, "csd": {"psnr": 2.0}}, ("a red duck",), output_dir=tmp_path
        )


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"methods": {}}, "at least one method"),
        ({"methods": {"../x": {}}}, r"the name of a method .* got '\.\./x'"),
        ({"prompts": "a red duck"}, "prompts must be a list of texts, .* got 'a red duck'"),
        ({"prompts": ["a red duck", "a red duck"]}, "prompts has 'a red duck' twice"),
        ({"prompts": ["a red duck", "a duck"]}, "a duck has no colour of its own"),
        ({"iterations": 0}, "iterations must be an integer of at least 1, got 0"),
    ],
)
def test_what_makes_no_objects_is_refused_before_any_is_made(
    wrong: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictured, "make", pytest.fail)
    with pytest.raises(ValueError, match=said) as caught:
        pictured.compare_pictures(output_dir=tmp_path / "out", **wrong)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_a_mixture_alone_is_told_the_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    class Assembled(Exception):
        pass

    def assemble(config: Any) -> None:
        raise Assembled(config.prompt)

    monkeypatch.setattr(pictured, "assemble", assemble)
    for guidance, prompt in (("mix", "a red duck"), ("sds", "")):
        with pytest.raises(Assembled) as told:
            pictured.make("a red duck", {"guidance": guidance})
        assert told.value.args == (prompt,)


def test_a_real_pictures_own_view_is_measured_by_hand(real: Any) -> None:
    """The render has the left half, the picture the upper one: a third overlaps; the colours differ by 0.1 everywhere."""
    mask, solid = torch.zeros(1, 8, 8), torch.zeros(1, 8, 8, 1)
    mask[:, :4], solid[:, :, :4] = 1, 1

    def view(cameras: Cameras, height: int, width: int) -> Render:
        return Render(torch.full((1, height, width, 3), 0.6), solid, solid)

    found = real.measure(view, Cutout(torch.full((3, 8, 8), 0.5), mask), real.camera(0.0))
    assert found["iou"] == pytest.approx(1 / 3)
    assert found["psnr"] == pytest.approx(20.0, abs=1e-3)


def test_the_table_has_means_of_what_the_world_knows_and_of_the_rest(real: Any, tmp_path: Path) -> None:
    mug: dict[str, Any] = {"name": "mug", "kind": "mug", "prompt": "", "iou": 0.9, "psnr": 20.0}
    bicycle = {**mug, "name": "bicycle", "kind": "", "prompt": "a bicycle", "iou": 0.5, "psnr": 10.0}
    rows = [
        {**mug, "azimuth_deg": 0.0, "elevation_deg": 20.0, "seconds": 30.0},
        {**bicycle, "azimuth_deg": 90.0, "elevation_deg": 0.0, "seconds": None},
    ]
    table = real.table(rows).splitlines()
    assert table[3].startswith("| bicycle |  | a bicycle | 0.500 | 10.0 | 90° | 0° |")
    assert "| **mean of 1** | known | | 0.900 | 20.0 |" in table[4]
    assert "| **mean of 1** | unknown | | 0.500 | 10.0 |" in table[5]
    assert "| **mean of 2** | all | | 0.700 | 15.0 |" in table[6]
    assert len({line.count("|") for line in table}) == 1
    Image.new("RGB", (5 * 128, 128), "red").save(tmp_path / "strip.png")
    real.draw_sheet([("mug", tmp_path / "strip.png")] * 4, tmp_path / "sheet.jpg")
    with Image.open(tmp_path / "sheet.jpg") as sheet:
        assert sheet.height == 2 * (real.SHOWN + 16)


def test_pictures_that_are_not_there_are_named_and_what_was_made_is_read(real: Any, tmp_path: Path) -> None:
    assert (len(real.EMOJI), len(real.PHOTOGRAPHS)) == (24, 12)
    with pytest.raises(ValueError, match=r"1f344\.webp is not there; give the unpacked folders"):
        real.pictures_in(tmp_path, tmp_path)
    made = {"name": "mug", "overrides": {"iterations": 3}}
    (tmp_path / "old-mug").mkdir()
    (tmp_path / "old-mug" / "result.json").write_text(json.dumps(made))
    taken = real.Taken("old mug", tmp_path / "none.png", "mug", "")
    assert real.make(taken, tmp_path, {"iterations": 3}) == made
    with pytest.raises(ValueError, match="choose another --output"):
        real.make(taken, tmp_path, {})
    assert real.folder_of(taken, tmp_path, True) == tmp_path / "old-mug-named"


def test_names_are_given_to_pictures_that_are_there_and_mean_real_objects(real: Any) -> None:
    things = of_prior("things")
    assert things is not None
    assert {*real.NAMED} <= {*real.EMOJI, *real.PHOTOGRAPHS}
    assert all(object_of(prompt, things) for prompt in real.NAMED.values())


def test_a_package_of_pictures_is_checked_before_it_is_unpacked(
    real: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hashlib
    import tarfile

    (tmp_path / "package" / "assets").mkdir(parents=True)
    (tmp_path / "package" / "assets" / "a.webp").write_text("a picture")
    with tarfile.open(tmp_path / "made.tgz", "w:gz") as packed:
        packed.add(tmp_path / "package", "package")
    digest = hashlib.sha256((tmp_path / "made.tgz").read_bytes()).hexdigest()
    copy = ("cp", str(tmp_path / "made.tgz"), "p.tgz")
    right = real.Package(copy, "p.tgz", digest, "package")
    new = tmp_path / "new"
    new.mkdir()
    with pytest.raises(ValueError, match=f"p.tgz must have the SHA-256 0, got {digest}; remove it and fetch"):
        real.get(right._replace(sha256="0"), new)
    assert [path.name for path in new.iterdir()] == ["p.tgz"]
    real.get(right, new)
    assert (new / "package" / "assets" / "a.webp").read_text() == "a picture"
    assert sorted(path.name for path in new.iterdir()) == ["p.tgz", "package"]
    with pytest.raises(ValueError, match="package is incomplete; remove it and fetch again"):
        real.get(right, new)
    said = "echo 'npm error code E' >&2; echo 'E: Version 1 for these was not found' >&2; exit 100"
    with pytest.raises(ValueError) as caught:
        real.get(right._replace(command=("sh", "-c", said), file="q.tgz"), new)
    assert "did not give q.tgz (E: Version 1 for these was not found); unpack" in str(caught.value)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr("shutil.which", lambda tool: None)
    with pytest.raises(ValueError, match="--fetch needs npm; unpack the packages elsewhere"):
        real.fetch(tmp_path / "other")
    assert not (tmp_path / "other").exists()

"""Novel views measured: figures by hand, and models whose score is known beforehand."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from test_novelview_pipeline import make
from torch import Tensor

from distill.lab.novel_view.cli import main
from distill.lab.novel_view.evaluate import (
    FixedPair,
    choose_pairs,
    compare,
    evaluate,
    interval,
    read_pairs,
    told_apart,
    turned_as_asked,
    write_pairs,
)
from distill.lab.novel_view.views import Views
from distill.priors.novel_view.pose import relative


def painted(uid: str, index: int) -> tuple[Tensor, Tensor]:
    """Six views, 60 degrees apart, each a grey of its own; objects differ by a stripe."""
    rgb = torch.full((3, 16, 16), index / 6)
    rgb[:, :, int(uid)] = 1.0
    angle = torch.tensor(np.pi / 3 * index)
    return rgb, torch.stack([2 * angle.cos(), 2 * angle.sin(), torch.tensor(0.5)]).float()


VIEWS = Views([str(number) for number in range(4)], 6, painted)


def perfect(shift: int) -> object:
    """Draws the true view, ``shift`` views too far round."""

    def draw(rgb: Tensor, pose: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        assert len(rgb) == len(pose) == len(generators)
        return torch.stack([one(*both) for both in zip(rgb, pose[:, None], strict=True)])

    def one(rgb: Tensor, pose: Tensor) -> Tensor:
        for uid in VIEWS.uids:
            for start in range(6):
                seen, here = painted(uid, start)
                if torch.equal(seen, rgb):
                    for end in range(6):
                        there = painted(uid, end)[1]
                        if torch.allclose(relative(here[None], there[None]), pose, atol=1e-4):
                            return painted(uid, (end + shift) % 6)[0]
        raise AssertionError("not a view of these objects")

    return draw


def test_figures_by_hand() -> None:
    truth = torch.full((3, 8, 8), 0.5)
    found = compare(truth + 0.1, truth)
    assert found["mse"] == pytest.approx(0.01)
    assert found["mse_signed"] == pytest.approx(0.04)
    assert found["psnr"] == pytest.approx(20.0)
    # Two flat pictures: SSIM is (2 ab + c1) / (a^2 + b^2 + c1) with c1 = 0.01^2.
    assert found["ssim"] == pytest.approx((2 * 0.6 * 0.5 + 1e-4) / (0.36 + 0.25 + 1e-4), rel=1e-3)
    assert compare(truth, truth) == {"mse": 0.0, "mse_signed": 0.0, "psnr": 100.0, "ssim": 1.0}


def test_an_interval_by_hand() -> None:
    assert interval([1.0, 3.0]) == pytest.approx((2.0, 2 - 1.96, 2 + 1.96))


def test_a_perfect_model_scores_perfectly_and_a_turned_one_is_caught(tmp_path: Path) -> None:
    pairs = choose_pairs(VIEWS, 3)
    assert len(pairs) == 12
    assert all(pair.condition != pair.target for pair in pairs)
    draw = perfect(0)
    assert callable(draw)
    summary = evaluate(draw, VIEWS, pairs, tmp_path, progress=False)
    assert summary["figures"]["mse"][0] == 0
    assert summary["figures"]["pose_right"][0] == 1
    lines = list(csv.DictReader((tmp_path / "objects.csv").open()))
    assert [line["uid"] for line in lines] == list(VIEWS.uids)
    assert (tmp_path / "sheet.png").exists()
    assert json.loads((tmp_path / "summary.json").read_text())["pairs"] == 12
    turned = perfect(1)
    assert callable(turned)
    wrong = evaluate(turned, VIEWS, pairs, tmp_path, progress=False)
    assert wrong["figures"]["pose_right"][0] == 0
    assert wrong["figures"]["pose_error_deg"][0] == pytest.approx(60, abs=0.01)


def test_the_nearest_view_is_found_among_all() -> None:
    found = turned_as_asked(painted("2", 5)[0], VIEWS, "2", 0)
    assert found["pose_right"] == 0
    assert found["pose_error_deg"] == pytest.approx(60, abs=0.01)


def test_lists_of_pairs_go_to_disk_and_back_and_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "pairs.json"
    pairs = choose_pairs(VIEWS, 2)
    write_pairs(path, pairs)
    assert read_pairs(path, VIEWS) == pairs == choose_pairs(VIEWS, 2)
    for bad, said in (
        ([FixedPair("9", 0, 1)], "names 9, views 0 and 1, which are not there"),
        ([FixedPair("1", 0, 6)], "names 1, views 0 and 6, which are not there"),
        ([FixedPair("1", 2, 2)], "asks for view 2 of 1, which is the one that is given"),
    ):
        write_pairs(path, bad)
        with pytest.raises(ValueError, match=said):
            read_pairs(path, VIEWS)
    path.write_text('[{"uid": 1}]')
    with pytest.raises(ValueError, match="must be a JSON list of uid, condition and target"):
        read_pairs(path, VIEWS)
    path.write_text("[]")
    with pytest.raises(ValueError, match="must name at least one pair of views, and is empty; remove it"):
        read_pairs(path, VIEWS)
    for uid, condition, target in (
        ([1], 0, 1),
        ({}, 0, 1),
        (1, 0, 1),
        ("1", [0], 1),
        ("1", 0.0, 1),
        ("1", 0, True),
    ):
        path.write_text(json.dumps([{"uid": uid, "condition": condition, "target": target}]))
        with pytest.raises(ValueError, match="must give uid as text, and condition and target as") as caught:
            read_pairs(path, VIEWS)
        assert "\n" not in str(caught.value)


def test_a_summary_without_intervals_is_json_all_the_same(tmp_path: Path) -> None:
    """A single object has no interval, and a grey one no hue."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    def grey(uid: str, index: int) -> tuple[Tensor, Tensor]:
        rgb, position = painted(uid, index)
        return rgb.mean() * torch.ones_like(rgb), position

    def same(rgb: Tensor, pose: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        return rgb

    summary = evaluate(same, Views(["0"], 6, grey), [FixedPair("0", 0, 1)], tmp_path, progress=False)
    assert summary["figures"]["psnr"][1] == -math.inf and math.isnan(summary["figures"]["hue_error_deg"][0])
    said = json.loads((tmp_path / "summary.json").read_text(), parse_constant=refuse)
    assert said["figures"]["hue_error_deg"] == [None, None, None]
    assert said["figures"]["psnr"] == [summary["figures"]["psnr"][0], None, None]


def test_the_command_line_evaluates_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from test_novelview_data import write_object

    for number in range(2):
        write_object(tmp_path / "renders" / f"object{number}", number, size=16)
    make(tmp_path / "parts", latent=False).save(tmp_path / "model")
    out = tmp_path / "out"
    options = ["--views", "3", "--steps", "2", "--per-object", "2"]
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", str(tmp_path / "model"), str(tmp_path / "renders"), str(out), *options])
    assert caught.value.code == 0
    assert "4 pairs of 2 objects" in capsys.readouterr().out
    assert {"pairs.json", "objects.csv", "summary.json", "sheet.png"} == {path.name for path in out.iterdir()}


def test_objects_that_look_the_same_all_around_are_left_out_of_those_told_apart() -> None:
    def read(uid: str, index: int) -> tuple[Tensor, Tensor]:
        # By hand: views of "turned" are 0.2 apart from the next, mean square 0.04; those of "close" 0.05, 0.0025; "round" has one look.
        level = {"turned": 0.2, "close": 0.05, "round": 0.0}[uid] * index
        return torch.full((3, 4, 4), level), torch.tensor([3.0, 0.0, 0.0])

    views = Views(["turned", "close", "round"], 4, read)
    assert told_apart(views) == {"told apart": {"turned"}}
    assert told_apart(views, 0.002) == {"told apart": {"turned", "close"}}
    assert told_apart(Views(["round"], 4, read)) == {}

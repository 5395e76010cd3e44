"""The comparison: its figures on pictures made by hand and on the truth, its cells, its files."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import distill
from distill.comparison import figures
from distill.comparison.report import as_csv, chart, spread
from distill.contracts import Condition
from distill.embedded.judge import load_judge
from distill.guidance.csd import csd
from distill.guidance.sds import sds
from distill.priors.exact import gaussian

QUICK: dict[str, Any] = {
    "iterations": 4,
    "measure_every": 2,
    "render.size": 16,
    "scene.log2_table_size": 12,
    "scene.levels": 4,
}


def test_mean_colour_and_saturation_by_hand() -> None:
    rgb, opacity = torch.ones(1, 3, 2, 2), torch.zeros(1, 1, 2, 2)
    rgb[0, :, 0, 0], opacity[0, 0, 0, 0] = torch.tensor([0.8, 0.2, 0.4]), 1.0
    # Half transparent red over white: its own colour is (0.6, 0.0, 0.0) times 0.5.
    rgb[0, :, 1, 1], opacity[0, 0, 1, 1] = torch.tensor([0.8, 0.5, 0.5]), 0.5
    expected = (torch.tensor([0.8, 0.2, 0.4]) + torch.tensor([0.3, 0.0, 0.0])) / 1.5
    torch.testing.assert_close(figures.mean_colour(rgb, opacity), expected)
    assert figures.saturation(rgb, opacity) == pytest.approx(1 - 0.2 / 0.8)
    assert figures.saturation(rgb, torch.zeros_like(opacity)) == 0.0


@pytest.mark.parametrize("kind", ["chair", "car", "rocket"])
def test_the_truth_scores_as_it_should(kind: str) -> None:
    judge, prompt = load_judge(), f"a red {kind}"
    pictures, _ = figures.true_pictures(prompt)
    assert figures.judge_scores(judge, pictures, prompt)["r_precision"] == 1.0
    assert figures.judge_scores(judge, pictures, "a blue torus")["r_precision"] == 0.0
    assert figures.judge_scores(judge, pictures, prompt)["similarity"] > 0.5


def test_janus_is_what_the_judge_sees_behind() -> None:
    judge, prompt = load_judge(), "a red car"
    pictures, _ = figures.true_pictures(prompt)
    assert figures.janus(judge, pictures, prompt, 0.0) == 0.0
    # Turned by half a turn, its front is behind; an offset of 180 says so, and it counts as right again.
    turned = pictures.roll(4, dims=0)
    assert figures.janus(judge, turned, prompt, 180.0) == 0.0
    twofaced = torch.cat([pictures[[0, 1]], pictures[[7, 7, 0, 1, 1]], pictures[[7]]])
    assert figures.janus(judge, twofaced, prompt, 0.0) == 1.0
    assert figures.janus(judge, pictures, "a red sphere", 0.0) is None


def test_diversity_is_zero_for_copies_and_one_for_nothing_in_common() -> None:
    class Axes:
        def image_features(self, pictures: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.one_hot(pictures[:, 0].long(), 4).float()

    judge: Any = Axes()
    same, other = torch.zeros(3, 1), torch.ones(3, 1)
    assert figures.diversity(judge, [same, same]) == 0.0
    assert figures.diversity(judge, [same, other]) == 1.0
    assert figures.diversity(judge, [same, same, other]) == pytest.approx(2 / 3)
    assert figures.diversity(judge, [same]) is None


def test_gradient_profile_against_closed_forms() -> None:
    """CSD between equal Gaussians has no variance; SDS on one has (w a^2 s_p^2 / v)^2."""
    prior = gaussian({"mug": torch.zeros(1, 8, 8).double(), "": torch.ones(1, 8, 8).double()}, 0.7)
    cond = Condition(prior.embed(["mug"]), prior.embed([""]))
    x, g = torch.full((1, 1, 8, 8), 0.5).double(), torch.Generator().manual_seed(0)
    assert all(
        point["variance"] < 1e-20 for point in figures.gradient_profile(csd, prior, x, cond, g, levels=3)
    )

    def plain(*inputs: Any) -> torch.Tensor:
        return sds(*inputs, scale=1.0)

    for point in figures.gradient_profile(plain, prior, x, cond, g, levels=3, draws=200):
        a2 = prior.abar[int(point["t"])].item()
        v = a2 * 0.49 + 1 - a2
        assert point["variance"] == pytest.approx(((1 - a2) * a2 * 0.49 / v) ** 2, rel=0.05)


def test_spread_and_chart_by_hand() -> None:
    assert spread([1.0, None, 3.0]) == pytest.approx((2.0, 1.0))
    assert spread([None]) is None
    records = [
        {"method": "a", "error": None, "points": [{"step": 0, "y": 0.0}, {"step": 10, "y": 1.0}]},
        {"method": "a", "error": None, "points": [{"step": 0, "y": 0.0}, {"step": 10, "y": 3.0}]},
    ]
    drawn = chart(records, ["a"], "step", "y")
    assert (drawn["x"], drawn["y"]) == ((0.0, 10.0), (0.0, 3.0))
    # The mean rises from 0 to 2 of 3; the band's end reaches from 1 to 3.
    assert drawn["series"][0][1] == "0.0,160.0 300.0,53.3"
    assert drawn["series"][0][2] == "0.0,160.0 300.0,0.0 300.0,106.7 0.0,160.0"


def test_tables_keep_every_column() -> None:
    rows = list(csv.DictReader(as_csv([{"a": 1}, {"a": 2, "b": "x,y"}]).splitlines()))
    assert rows == [{"a": "1", "b": ""}, {"a": "2", "b": "x,y"}]


def test_a_comparison_counts_calls_resumes_and_writes_its_files(tmp_path: Path) -> None:
    methods: dict[str, dict[str, Any]] = {
        "sds": {"guidance": "sds"},
        "asd": {"guidance": "asd"},
        "text only": {"guidance": "sds", "guidance.scale": 1},
    }

    def go() -> Path:
        return distill.compare(methods, ["a red car"], [0, 1], output_dir=tmp_path, **QUICK)

    report = go()
    lines = list(csv.DictReader((tmp_path / "results.csv").read_text().splitlines()))
    assert [(line["method"], line["seed"]) for line in lines] == [(m, s) for s in "01" for m in methods]
    # Four pictures a step, four steps; with and without text, and ASD once more at its second timestep.
    assert {line["method"]: line["calls"] for line in lines} == {"sds": "32", "asd": "48", "text only": "16"}
    curves = list(csv.DictReader((tmp_path / "curves.csv").read_text().splitlines()))
    assert [line["step"] for line in curves] == ["2", "4"] * 6
    page = report.read_text()
    for part in ("sds", "asd", "text only", "R-precision@1", "data:image/png;base64", "<polyline"):
        assert part in page
    cells = sorted(tmp_path.rglob("cell.json"))
    assert len(cells) == 6
    before = {path: path.stat().st_mtime_ns for path in cells}
    cells[0].unlink()
    go()
    again = {path: path.stat().st_mtime_ns for path in cells}
    assert [path for path in cells if again[path] != before[path]] == [cells[0]]
    with pytest.raises(ValueError, match="choose another output_dir"):
        distill.compare(methods, ["a red car"], [0, 1], output_dir=tmp_path, **{**QUICK, "iterations": 5})


def test_equal_calls_give_dearer_losses_fewer_steps(tmp_path: Path) -> None:
    methods: dict[str, dict[str, Any]] = {
        "text only": {"guidance": "sds", "guidance.scale": 1},
        "asd": {"guidance": "asd"},
    }
    options = {**QUICK, "iterations": 6, "budget": "calls"}
    distill.compare(methods, ["a red car"], [0], output_dir=tmp_path, **options)
    records = [json.loads(path.read_text()) for path in sorted(tmp_path.rglob("cell.json"))]
    found = {record["method"]: (record["options"]["iterations"], record["calls"]) for record in records}
    assert found == {"text only": (6, 24), "asd": (2, 24)}


def test_an_unknown_budget_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="budget must be steps or calls, got 'hours'"):
        distill.compare({}, output_dir=tmp_path, budget="hours")

"""The comparison: its figures on pictures made by hand and on the truth, its cells, its files."""

from __future__ import annotations

import argparse
import csv
import json
import math
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from measuring import share

import distill
from distill.contracts import Condition
from distill.embedded.exact import exact_prior
from distill.embedded.judge import load_judge
from distill.export import mesh
from distill.files.lines import json_of
from distill.guidance.csd import csd
from distill.guidance.sds import sds
from distill.lab.comparison import figures, run
from distill.lab.comparison.claims import judge_claims, reached
from distill.lab.comparison.cost import compose, measure_cost
from distill.lab.comparison.records import Cell, read_record
from distill.lab.comparison.report import as_csv, at_calls, chart, costs_of, diversity_of, spread
from distill.lab.comparison.verdicts import Number, above, all_of, below, bootstrap
from distill.lab.truth import SHAPES, asked, origin, truths
from distill.priors.exact import ExactPrior, gaussian
from distill.run.config.code import without_texts
from distill.run.config.plugins import code_of

QUICK: dict[str, Any] = {
    "iterations": 4,
    "measure_every": 2,
    "render.size": 16,
    "scene.log2_table_size": 12,
    "scene.levels": 4,
}


@pytest.fixture(autouse=True)
def _cheap_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell's gradient profile from 4 predictions, not 48, and its mesh from a coarse grid: both are tested by themselves."""
    monkeypatch.setattr(
        "distill.lab.comparison.cell.gradient_profile", partial(figures.gradient_profile, levels=2, draws=2)
    )
    whole = mesh.extract_mesh
    monkeypatch.setattr(mesh, "extract_mesh", lambda *of, **how: whole(*of, **{**how, "resolution": 24}))


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
    pictures = truths(prompt)[0].rgb
    assert figures.judge_scores(judge, pictures, prompt)["r_precision"] == 1.0
    assert figures.judge_scores(judge, pictures, "a blue torus")["r_precision"] == 0.0
    assert figures.judge_scores(judge, pictures, prompt)["similarity"] > 0.5


def test_janus_is_what_the_judge_sees_behind() -> None:
    judge, (truth,) = load_judge(), truths("a red car")
    pictures = truth.rgb
    assert figures.janus(judge, pictures, truth, 0.0) == 0.0
    # Turned by half a turn, its front is behind; an offset of 180 says so, and it counts as right again.
    turned = pictures.roll(4, dims=0)
    assert figures.janus(judge, turned, truth, 180.0) == 0.0
    twofaced = torch.cat([pictures[[0, 1]], pictures[[7, 7, 0, 1, 1]], pictures[[7]]])
    assert figures.janus(judge, twofaced, truth, 0.0) == 1.0
    for prompt, front in (("a red car", True), ("a red sphere", False)):
        assert figures.has_front(judge, asked(prompt), truths(prompt)[0]) is front


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
    cond = Condition({"text": prior.embed(["mug"]), "uncond": prior.embed([""])})
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


@pytest.mark.slow
def test_a_comparison_counts_calls_resumes_and_writes_its_files(pixel_folder: Path, tmp_path: Path) -> None:
    methods: dict[str, dict[str, Any]] = {
        "asd": {"guidance": "asd"},
        "text only": {"guidance": "sds", "guidance.scale": 1},
    }

    prior = distill.load_prior(pixel_folder, dtype=torch.float32)

    def go(part: tuple[int, int] = (1, 1)) -> Path:
        return distill.compare(
            methods, ["a red car"], [0, 1], output_dir=tmp_path, prior=prior, part=part, **QUICK
        )

    go((2, 2))
    assert len(list(tmp_path.rglob("cell.json"))) == 2
    report = go()
    lines = list(csv.DictReader((tmp_path / "results.csv").read_text().splitlines()))
    assert [(line["method"], line["seed"]) for line in lines] == [(m, s) for s in "01" for m in methods]
    # Four pictures a step, four steps; with and without text, and ASD once more at its second timestep.
    assert {line["method"]: line["calls"] for line in lines} == {"asd": "48", "text only": "16"}
    curves = list(csv.DictReader((tmp_path / "curves.csv").read_text().splitlines()))
    assert [line["step"] for line in curves] == ["2", "4"] * 4
    page = report.read_text()
    for part in ("asd", "text only", "R-precision@1", "data:image/png;base64", "<polyline"):
        assert part in page
    cells = sorted(tmp_path.rglob("cell.json"))
    assert len(cells) == 4
    before = {path: path.stat().st_mtime_ns for path in cells}
    cells[0].unlink()
    go()
    again = {path: path.stat().st_mtime_ns for path in cells}
    assert [path for path in cells if again[path] != before[path]] == [cells[0]]
    with pytest.raises(ValueError, match="choose another output_dir"):
        distill.compare(methods, ["a red car"], [0, 1], output_dir=tmp_path, **{**QUICK, "iterations": 5})


def few_pictures(prompt: str) -> ExactPrior:
    return exact_prior(prompt, pictures=20)


@pytest.mark.slow
def test_equal_calls_give_dearer_losses_fewer_steps(tmp_path: Path) -> None:
    methods: dict[str, dict[str, Any]] = {
        "text only": {"guidance": "sds", "guidance.scale": 1},
        "asd": {"guidance": "asd"},
    }

    options = {**QUICK, "iterations": 6, "budget": "calls", "prior": few_pictures}
    distill.compare(methods, ["a red car"], [0], output_dir=tmp_path, **options)
    records = [json.loads(path.read_text()) for path in sorted(tmp_path.rglob("cell.json"))]
    found = {record["method"]: (record["options"]["iterations"], record["calls"]) for record in records}
    assert found == {"text only": (6, 24), "asd": (2, 24)}


@pytest.mark.slow
def test_cost_is_measured_in_a_process_of_its_own() -> None:
    ballast = torch.ones(3 * 2**28)  # 3 GiB
    quick = {k: v for k, v in QUICK.items() if k != "measure_every"}
    found = measure_cost({"guidance": "sds", **quick, "render.batch": 1}, "a red car")
    # Torch alone takes more than 100 MiB; a large parent must not count as the child's.
    assert 100 < found["peak_mib"] < 2500
    assert 0 <= found["training_mib"] < found["peak_mib"]
    assert found["step_ms"] > 0
    del ballast


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ('echo Traceback >&2; echo "ValueError: refused $3" >&2; exit 1', r"ValueError: refused .*no_such"),
        ("kill -9 $$", "it ended with exit code -9$"),
    ],
)
def test_a_process_that_cannot_measure_a_cost_says_why_in_its_last_line_if_it_can(
    ends: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    failing = tmp_path / "python"
    failing.write_text(f"#!/bin/sh\n{ends}\n")
    failing.chmod(0o700)
    monkeypatch.setattr("sys.executable", str(failing))
    monkeypatch.setattr("distill.lab.comparison.cost.homes", set())
    with pytest.raises(RuntimeError, match=rf"^could not measure the cost in a new process: {said}"):
        measure_cost({"guidance": "no_such"}, "a red car")


def test_a_prompts_exact_prior_knows_its_views_and_gives_back_its_pictures() -> None:
    prior = exact_prior("a red car", pictures=40)
    whole, side = prior.prompts["a red car"], prior.prompts["a red car, left view"]
    assert len(whole.means) == len(prior.prompts[""].means) == 40
    assert 0 < len(side.means) < 40
    # At little noise, the denoised picture is the one that was noised.
    x, t = side.means[:1], torch.tensor([20])
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    x_t = prior.alpha(t).to(x) * x + prior.sigma(t).to(x) * noise
    predicted = prior.predict_noise(x_t, t, prior.embed(["a red car, left view"]))
    torch.testing.assert_close(predicted, noise, rtol=1e-3, atol=1e-3)


def test_verdicts_by_hand() -> None:
    assert above(Number("", 1.0, 0.1, 2.0)) == "holds"
    assert above(Number("", 1.0, -0.1, 2.0)) == "not decidable"
    assert above(Number("", -1.0, -2.0, 0.0)) == "does not hold"
    assert above(Number("", 0.0, -0.01, 0.01), matters=0.02) == "does not hold"
    assert above(Number("", 0.01, 0.005, 0.015), matters=0.02) == "holds"
    assert below(Number("", 0.5, 0.4, 0.9), 1.0) == "holds"
    assert below(Number("", 0.5, 0.4, 1.1), 1.0) == "not decidable"
    assert below(Number("", 2.0, 1.0, math.inf), 1.0) == "does not hold"
    assert all_of("holds", "holds") == "holds"
    assert all_of("holds", "not decidable") == "not decidable"
    assert all_of("not decidable", "does not hold") == "does not hold"


def test_similarity_at_equal_calls() -> None:
    points = [{"calls": 100, "similarity": 0.2}, {"calls": 200, "similarity": 0.6}]
    assert at_calls({"points": points}, 150) == pytest.approx(0.4)
    assert at_calls({"points": points}, 900) == 0.6
    assert at_calls({"points": points}, 50) is None
    assert at_calls({"points": []}, 150) is None


def test_where_a_curve_reaches_a_goal() -> None:
    curve = [(0.25, 0.2), (0.5, 0.6), (0.75, 0.5), (1.0, 0.8)]
    assert reached(curve, 0.1) == 0.25
    assert reached(curve, 0.4) == pytest.approx(0.375)
    assert reached(curve, 0.7) == pytest.approx(0.75 + 0.25 * 2 / 3)
    assert reached(curve, 0.9) == math.inf


def test_the_bootstrap_has_the_spread_of_a_mean() -> None:
    values = torch.randn(60, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist()
    found = bootstrap("mean", lambda drawn: statistics.fmean(values[i] for i in drawn), 60, draws=4000)
    assert found.value == pytest.approx(statistics.fmean(values))
    # 90% of a normal mean lies within 1.645 standard errors.
    half = 1.645 * statistics.pstdev(values) / 60**0.5
    assert found.low == pytest.approx(found.value - half, abs=0.03)
    assert found.high == pytest.approx(found.value + half, abs=0.03)


def invented(method: str, prompt: str, seed: int, similarity: float, **figures: float) -> dict[str, Any]:
    points = [{"step": step, "similarity": similarity * step / 100} for step in (50, 100)]
    final = {"similarity": similarity, "r_precision": similarity, "saturation": 0.5, "true_saturation": 0.5}
    return {
        "method": method, "prompt": prompt, "seed": seed, "error": None, "points": points,
        "final": {**final, **figures},
    }  # fmt: skip


def test_claims_on_figures_made_by_hand(tmp_path: Path) -> None:
    scores = {"csd": 0.6, "asd": 0.6, "vsd": 0.5, "sds_100": 0.62, "sds_7.5": 0.2, "asd_eta_1": 0.65}
    scores |= {"asd_fixed": 0.6, "asd_eta_0": 0.5}
    records = [
        invented(name, prompt, seed, score + tiny, saturation=0.9 if name == "sds_100" else 0.5)
        for name, score in scores.items()
        for prompt, tiny in (("a", 0.0), ("b", 0.01), ("c", -0.01))
        for seed in (0, 1)
    ]
    costs = {
        "asd": {"step_ms": 50.0, "peak_mib": 90.0, "training_mib": 9.0},
        "vsd": {"step_ms": 100.0, "peak_mib": 100.0, "training_mib": 30.0},
    }
    judge: Any = None
    found = {claim.text.split(":")[0]: claim for claim in judge_claims(records, tmp_path, judge, costs)}
    verdicts = {text.split()[0]: claim.verdict for text, claim in found.items()}
    assert [claim.verdict for claim in found.values()] == ["holds"] * 5 + ["does not hold"] * 2
    assert set(verdicts) == {"CSD", "SDS", "ASD", "ASD's", "Too"}
    against_vsd = next(claim for text, claim in found.items() if text.startswith("ASD matches"))
    assert [round(number.value, 3) for number in against_vsd.numbers] == [0.1, 0.5, 0.9]
    # The shift beats none, but ties with the fixed one: a tie is no win.
    shift = next(claim for text, claim in found.items() if text.startswith("ASD's"))
    assert [round(number.value, 3) for number in shift.numbers] == [0.0, 0.1]
    # One failed cell takes its prompt away from all methods, not the test.
    records[0]["error"] = "diverged"
    again = judge_claims(records, tmp_path, judge, costs)
    assert [claim.verdict for claim in again] == [claim.verdict for claim in found.values()]


def test_curves_that_are_alike_prove_nothing(tmp_path: Path) -> None:
    """A curve that flattens reaches its own end early: that is no merit of the other's."""
    records = []
    for name in ("csd", "tp_csd"):
        for prompt in ("a", "b", "c"):
            record = invented(name, prompt, 0, 0.8)
            scores = ((25, 0.5), (50, 0.7), (75, 0.8), (100, 0.8))
            record["points"] = [{"step": step, "similarity": score} for step, score in scores]
            records.append(record)
    judge: Any = None
    (faster,) = judge_claims(records, tmp_path, judge, {})
    assert [number.value for number in faster.numbers] == [0.75, 0.0]
    assert faster.verdict == "does not hold"


def with_points(record: dict[str, Any], scores: dict[int, float]) -> dict[str, Any]:
    points = [{"step": step, "calls": 4 * step, "similarity": score} for step, score in scores.items()]
    return {**record, "points": points}


def test_curves_of_other_numbers_of_points_are_compared_at_the_steps_that_they_share(tmp_path: Path) -> None:
    """Of the first method, one cell has a point at 25 and at 75, too; its pictures are found by the step."""
    from PIL import Image

    class Brightness:
        """Sees how bright a picture is: black and white have nothing in common."""

        def image_features(self, pictures: torch.Tensor) -> torch.Tensor:
            bright = pictures.mean((1, 2, 3))
            return torch.stack([bright, (1 - bright**2).clamp(min=0).sqrt()], dim=1)

    few = {50: 0.2, 100: 0.4}
    many = {25: 0.9, 50: 0.4, 75: 0.9, 100: 0.6}
    records = []
    for name, scores in (("csd", (few, few)), ("tp_csd", (few, many))):
        for seed, own in enumerate(scores):
            records.append(with_points(invented(name, "a", seed, 0.5), own))
            folder = Cell(name, "a", seed).folder(tmp_path)
            folder.mkdir(parents=True)
            # Black, except for the last picture of the cell of many points.
            sheet = Image.new("RGB", (64, 64 * len(own)))
            if own is many:
                sheet.paste((255, 255, 255), (0, 64 * 3, 64, 64 * 4))
            sheet.save(folder / "views.png")
    judge: Any = Brightness()
    faster, wider, _ = judge_claims(records, tmp_path, judge, {})
    # The means are 0.3 at 50 and 0.5 at 100: the end of the other, 0.4, is reached halfway between.
    assert faster.numbers[0].value == pytest.approx(0.75)
    assert wider.numbers[0].value == pytest.approx(1.0, abs=1e-3)
    drawn = chart(records, ["tp_csd"], "step", "similarity")
    assert drawn["x"] == (50.0, 100.0) and drawn["series"][0][1].count(",") == 2
    # Without a step that all of a method's cells share, there is no curve, and what needs one is left out.
    alone = [*records[:3], with_points(records[3], {75: 0.9})]
    assert len(judge_claims(alone, tmp_path, judge, {})) == 1


def test_dreamtimes_claims_on_curves_made_by_hand(tmp_path: Path) -> None:
    from PIL import Image

    class Brightness:
        """Sees how bright a picture is: black and white have nothing in common."""

        def image_features(self, pictures: torch.Tensor) -> torch.Tensor:
            bright = pictures.mean((1, 2, 3))
            return torch.stack([bright, (1 - bright**2).clamp(min=0).sqrt()], dim=1)

    records = []
    for name, similarity, levels in (("csd", 0.4, (0, 0)), ("tp_csd", 0.8, (0, 255))):
        for prompt in ("a", "b"):
            for seed in (0, 1):
                record = invented(name, prompt, seed, similarity)
                records.append(record)
                folder = Cell(name, prompt, seed).folder(tmp_path)
                folder.mkdir(parents=True)
                Image.new("RGB", (128, 128), (levels[seed],) * 3).save(folder / "views.png")
    judge: Any = Brightness()
    faster, wider, finished = judge_claims(records, tmp_path, judge, {})
    assert (faster.verdict, faster.numbers[0].value) == ("holds", 0.5)
    assert wider.verdict == "holds"
    assert wider.numbers[0].value == pytest.approx(1.0, abs=1e-3)
    assert (finished.verdict, finished.numbers[0].value) == ("holds", pytest.approx(1.0, abs=1e-3))
    assert finished.numbers[1].value == pytest.approx(0.4)  # beside it, what it costs in similarity
    # A prompt of which a cell's pictures did not come along says nothing of pictures, and counts for the rest.
    (Cell("csd", "b", 1).folder(tmp_path) / "views.png").unlink()
    pair = [record for record in records if record["prompt"] == "b"]
    faster, wider, finished = judge_claims(records, tmp_path, judge, {})
    assert [claim.notes[-1:] for claim in (faster, wider, finished)] == [[], *2 * [["from 1 of 2 prompts"]]]
    assert len(judge_claims(pair, tmp_path, judge, {})) == 1
    half = [record for record in pair if record["method"] == "csd"]
    assert diversity_of(half, tmp_path) is None  # of two seeds, one has pictures


def broken(prior: Any, x: torch.Tensor, cond: Any, t: Any, noise: Any, *, scale: float = 1.0) -> Any:
    return x * float("nan")


@pytest.mark.slow
def test_a_cell_that_diverges_is_part_of_the_record(pixel_folder: Path, tmp_path: Path) -> None:
    distill.guidance.register(broken)
    prior = distill.load_prior(pixel_folder, dtype=torch.float32)
    options = {**QUICK, "iterations": 6, "measure_every": 6, "optimiser.max_bad_steps": 2, "prior": prior}
    methods = {"broken": {"guidance": "broken"}, "sds": {"guidance": "sds"}}
    try:
        for _ in range(2):  # the second time finds it finished
            report = distill.compare(methods, ["a red car"], [0], output_dir=tmp_path, **options)
    finally:
        del distill.guidance._registered["broken"]
    lines = {line["method"]: line for line in csv.DictReader((tmp_path / "results.csv").open())}
    assert "not finite in 2 steps in a row" in lines["broken"]["error"]
    assert lines["sds"]["error"] == ""
    assert "broken, a red car, seed 0: what the prior and the loss gave" in report.read_text()


@pytest.mark.slow
def test_cells_of_another_prior_or_rhythm_are_not_taken_for_these(tmp_path: Path) -> None:
    methods = {"sds": {"guidance": "sds", "guidance.scale": 1}}
    prior = distill.load_prior("embedded")
    distill.compare(methods, ["a red car"], [0], output_dir=tmp_path, prior=prior, **QUICK)
    with pytest.raises(ValueError, match="was made with measure_every 2, not 3"):
        distill.compare(
            methods, ["a red car"], [0], output_dir=tmp_path, prior=prior, **{**QUICK, "measure_every": 3}
        )
    with pytest.raises(ValueError, match="was made with prior embedded, not exact_prior"):
        distill.compare(methods, ["a red car"], [0], output_dir=tmp_path, prior=exact_prior, **QUICK)


@pytest.mark.parametrize(
    ("option", "of_all"),
    [
        *(
            (option, False)
            for option in ("prompt", "prompts", "seed", "seeds", "output_dir", "shard", "resume")
        ),
        *(
            (option, True) for option in ("prompt", "seed", "shard", "resume")
        ),  # the others are its own parameters
    ],
)
def test_options_that_would_make_a_cell_another_one_are_refused(
    option: str, of_all: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "load_prior", pytest.fail)
    own: dict[str, Any] = {} if of_all else {option: 1}
    shared: dict[str, Any] = {option: 1} if of_all else {}
    with pytest.raises(
        ValueError, match=f"{option} is no option of a method, or of all cells: in a comparison"
    ):
        distill.compare({"sds": own}, ["a red car"], [0], output_dir=tmp_path, **shared)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "said"), [({"stages": ["field", "surface"]}, "stages="), ({"retries": 2}, "retries=")]
)
def test_a_cell_is_one_run(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"one run of each cell, and {said} makes several"):
        distill.compare({"sds": options}, ["a red car"], [0], output_dir=tmp_path)


def test_a_cell_of_other_options_is_told_before_any_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "load_prior", pytest.fail)
    methods: dict[str, dict[str, Any]] = {
        "sds": {"guidance": "sds"},
        "asd": {"guidance": "asd", "guidance.scale": 2},
    }
    last = Cell("asd", "a red car", 1).folder(tmp_path)
    last.mkdir(parents=True)

    def go(**made: Any) -> str:
        record = {
            "options": {"iterations": 9, "guidance": "asd", "guidance.scale": 2},
            **{"prior": "embedded", "measure_every": 50, "judge": "", "truth": origin("a red car", SHAPES)},
            **made,
        }
        (last / "cell.json").write_text(json.dumps(record))
        with pytest.raises(ValueError, match="choose another output_dir") as said:
            distill.compare(methods, ["a red car"], [0, 1], output_dir=tmp_path, iterations=9)
        return str(said.value)

    assert go(prior="things").endswith("was made with prior things, not embedded; choose another output_dir")
    assert "was made with iterations 8, not 9; " in go(options={"iterations": 8, **methods["asd"]})
    assert "was made with guidance.scale left out, not 2; " in go(
        options={"iterations": 9, "guidance": "asd"}
    )
    more = {"iterations": 9, **methods["asd"], "particles": 2}
    assert "was made with particles 2, not left out; " in go(options=more)


def test_comments_docstrings_and_breaks_are_no_change_of_code() -> None:
    plain = without_texts("def loss(x):\n    return x + 1\n")
    assert (
        without_texts('def loss(x):\n    """Text."""\n    # more\n    return (\n        x + 1\n    )\n')
        == plain
    )
    assert without_texts("def loss(x):\n    return x + 2\n") != plain
    assert (
        without_texts("loss = register(lambda x:") == "loss = register(lambda x:"
    )  # no statement of its own


def test_a_cell_of_code_that_was_changed_is_told_before_any_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "load_prior", pytest.fail)
    methods = {"own": {"guidance": "broken"}, "sds": {"guidance": "sds"}}
    made = {"prior": "embedded", "measure_every": 50, "judge": "", "truth": origin("a red car", SHAPES)}
    distill.guidance.register(broken)
    try:
        code = code_of(compose({"guidance": "broken"}, "a red car", 0))
    finally:
        del distill.guidance._registered["broken"]
    assert {"guidance", "timesteps", "cameras", "scene", "guidance, with what it uses"} <= set(code)

    def go(**more: Any) -> str:
        """What stops a comparison whose second cell is of another prior: nothing before that, if the first is as it was."""
        for method, prior in (("own", "embedded"), ("sds", "things")):
            folder = Cell(method, "a red car", 0).folder(tmp_path)
            folder.mkdir(parents=True, exist_ok=True)
            record = {"options": {"iterations": 9, **methods[method]}, **made, "prior": prior, **more}
            (folder / "cell.json").write_text(json.dumps(record))
        distill.guidance.register(broken)
        try:
            with pytest.raises(ValueError, match="choose another output_dir") as said:
                distill.compare(methods, ["a red car"], [0], output_dir=tmp_path, iterations=9)
        finally:
            del distill.guidance._registered["broken"]
        return str(said.value)

    assert "was made with prior things" in go()  # by an earlier version, which did not note code
    assert "was made with prior things" in go(code=code)
    assert go(code={"guidance": "another"}).endswith(
        "was made before the code of broken was changed; choose another output_dir"
    )


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"measure_every": 0}, "measure_every must be an integer of at least 1, got 0"),
        ({"measure_every": 2.5}, "measure_every must be an integer of at least 1, got 2.5"),
        ({"iterations": 0}, "iterations must be an integer of at least 1, got 0"),
        ({"prompts": "a red mug"}, "prompts must be a list of texts, .* got 'a red mug'"),
        ({"prompts": ["a red mug", 3]}, "prompts must be a list of texts, .* got "),
        ({"prompts": []}, "prompts must be a list of texts, .* is empty; name at least one"),
        ({"prompts": ["a red mug", "a red mug"]}, "prompts has 'a red mug' twice; leave one of them out"),
        ({"seeds": 2}, "seeds must be a list of integers, .* got 2"),
        ({"seeds": ["0"]}, "seeds must be a list of integers, .* got "),
        ({"seeds": (0, True)}, "seeds must be a list of integers, .* got "),
        ({"seeds": (0, 0)}, "seeds has 0 twice; leave one of them out"),
        ({"seeds": range(0)}, "seeds must be a list of integers, .* is empty"),
        ({"methods": ["sds"]}, r"methods must be options by the name of a method, .* got \['sds'\]"),
        ({"methods": "sds"}, "methods must be options by the name of a method, .* got 'sds'"),
        ({"methods": {}}, "at least one method"),
        ({"methods": {"sds": "sds"}}, "the options of the method sds must be values by name, .* got 'sds'"),
        *(
            ({"methods": {name: {}}}, "the name of a method is that of its folder, .*; choose another")
            for name in (
                "/tmp/escaped",
                "../x",
                "a:b",
                "x.",
                "what?",
                "",
                ".",
                "..",
                "a\\b",
                "a\nb",
                " a",
                3,
                "x" * 256,
                "\0",
                "\ud800",
            )
        ),
    ],
)
def test_what_makes_no_cells_is_refused_before_anything_is_made(
    wrong: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "load_prior", pytest.fail)
    monkeypatch.setattr(run, "judge_of", pytest.fail)
    asked = {"methods": {"sds": {"guidance": "sds"}}, "prompts": ["a red mug"], "seeds": [0], **wrong}
    with pytest.raises(ValueError, match=said) as caught:
        distill.compare(**asked, output_dir=tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_a_fault_of_measuring_is_none_of_the_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, failing = figures.judge_scores, [ZeroDivisionError("no pictures")]

    def fails_once(*given: Any) -> dict[str, float]:
        if failing:
            raise failing.pop()
        return whole(*given)

    monkeypatch.setattr(figures, "judge_scores", fails_once)
    with pytest.raises(ZeroDivisionError, match="no pictures"):
        distill.compare(
            {"sds": {"guidance": "sds"}},
            ["a red car"],
            [0],
            output_dir=tmp_path,
            prior=few_pictures,
            **{**QUICK, "measure_every": 1},
        )
    assert not list(tmp_path.rglob("cell.json"))  # made when it is mended


def test_a_cost_is_kept_with_its_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[Any] = []

    def cost(wanted: dict[str, Any], prompt: str) -> dict[str, float]:
        measured.append(wanted)
        if wanted.get("guidance") == "own":
            raise RuntimeError("no such loss")
        return {"step_ms": float(len(measured)), "peak_mib": 1.0, "training_mib": 1.0}

    def costs() -> dict[str, float]:
        said = json.loads((tmp_path / "costs.json").read_text())
        return {name: each["step_ms"] for name, each in said.items()}

    monkeypatch.setattr(run, "measure_cost", cost)
    small, large = {"render.size": 16, "scene.bounds": (1, 2)}, {"render.size": 64}
    for settings in ({"sds": small, "csd": small}, {"sds": small}, {"sds": large}):
        run.measure_costs(tmp_path, settings, "a red car")
    assert measured == [small, small, large] and costs() == {"sds": 3.0, "csd": 2.0}
    # The report takes those of the cells' own options.
    records = [{"method": "sds", "options": {"render.size": 64}}, {"method": "csd", "options": large}]
    assert list(costs_of(records, tmp_path)) == ["sds"]
    assert list(costs_of([{"method": "csd", "options": small}], tmp_path)) == ["csd"]
    # What cannot be measured again is not used as if it were unchanged.
    run.measure_costs(tmp_path, {"sds": {"guidance": "own"}}, "a red car")
    assert costs_of([{"method": "sds", "options": {"guidance": "own"}}], tmp_path) == {}


def test_what_is_no_number_in_a_cell_is_null_and_no_number_again(tmp_path: Path) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    made: dict[str, Any] = {
        "method": "sds", "options": {"guidance.scale": math.inf}, "error": None,
        "points": [{"step": 2, "similarity": math.nan}], "gradient": [{"t": 5, "norm": math.nan, "variance": 0.1}],
        "final": {"similarity": math.nan, "saturation": 0.5, "iou": None},
    }  # fmt: skip
    path = tmp_path / "cell.json"
    path.write_text(json_of(made))
    json.loads(path.read_text(), parse_constant=refuse)
    again = read_record(path)
    assert math.isnan(again["points"][0]["similarity"]) and again["points"][0]["step"] == 2
    assert math.isnan(again["gradient"][0]["norm"]) and again["gradient"][0]["variance"] == 0.1
    assert (
        math.isnan(again["final"]["similarity"]) and again["final"]["iou"] is None and again["error"] is None
    )
    # It is still the cell of these options.
    assert run.finished(tmp_path, {"options": {"guidance.scale": math.inf}}, {})


@pytest.mark.parametrize("wrong", ["0/2", "3/2", "2", "a/b", "1/2/3"])
def test_a_share_is_read_or_refused(wrong: str) -> None:
    assert share("2/3") == (2, 3)
    with pytest.raises(argparse.ArgumentTypeError, match="must be k/n with 1 <= k <= n, got "):
        share(wrong)


def test_parts_outside_the_whole_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"part must be \(k, n\) with 1 <= k <= n, got \(3, 2\)"):
        distill.compare({"sds": {}}, output_dir=tmp_path, part=(3, 2))


def test_an_unknown_budget_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="budget must be steps or calls, got 'hours'"):
        distill.compare({"sds": {}}, output_dir=tmp_path, budget="hours")


def test_a_share_without_cells_is_one_line(tmp_path: Path) -> None:
    methods = {"sds": {"guidance": "sds", "timesteps": "uniform"}}
    with pytest.raises(
        ValueError, match=r"nothing is finished in .* the share 2/2 of 1 cell has none to make"
    ):
        distill.compare(methods, ["a red mug"], [0], output_dir=tmp_path / "out", iterations=1, part=(2, 2))
    assert not (tmp_path / "out").exists()

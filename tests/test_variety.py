"""What a comparison on names with variants tells: how different seeds are, and how much data would decide a claim."""

from __future__ import annotations

import csv
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_things
from PIL import Image

import distill
from distill.embedded.judge import save_judge
from distill.lab.comparison import figures
from distill.lab.comparison.claims import Comparison, judge_claims, select
from distill.lab.comparison.power import INTERVAL, POWER, prompts_needed, seeds_needed
from distill.lab.comparison.records import Cell
from distill.lab.comparison.report import figure_of, variants_of
from distill.lab.comparison.verdicts import Number, decide, found_above, found_below
from distill.lab.truth import Source

#: Named by its folder, it is asked for a stool in plain words, whatever it knows.
PRIOR = Path(distill.__file__).parent / "embedded" / "prior"


def final(variant: int, red: float = 0.0, variants: int = 3) -> dict[str, Any]:
    return {"variant": variant, "variants": variants, "red": red, "green": 0.0, "blue": 0.0}


def test_variants_among_seeds_by_hand() -> None:
    assert figures.distinct([final(1), final(3), final(1)]) == 2
    assert figures.distinct([final(1)]) is None
    assert figures.distinct([final(1, variants=1), final(1, variants=1)]) is None
    assert figures.distinct([{"variants": None}, {"variants": None}]) is None
    assert figures.distinct([{}, {}]) is None  # of a comparison before there were variants


def test_the_spread_of_mean_colours_by_hand() -> None:
    # Pairs are 0.3, 0.4 and 0.1 apart.
    assert figures.colour_spread([final(1, 0.0), final(1, 0.3), final(1, 0.4)]) == pytest.approx(0.8 / 3)
    assert figures.colour_spread([final(1)]) is None
    assert figures.colour_spread([{}, {}]) is None


def test_prompts_that_would_decide_by_hand() -> None:
    # The interval's half is 2 = 1.645 errors; 8 (1.645 + 0.842)^2 (2 / 1.645)^2 = 73.1.
    assert prompts_needed(-1.0, 3.0, 1.0, 8) == 74
    assert prompts_needed(-1.0, 3.0, 2.0, 8) == 19  # a quarter, rounded up
    assert prompts_needed(-1.0, 3.0, 0.0, 8) is None
    assert prompts_needed(-math.inf, 3.0, 1.0, 8) is None


def test_so_many_prompts_decide_in_four_of_five_repetitions() -> None:
    spread, effect, prompts = 1.0, 0.3, 10
    half = INTERVAL * spread / math.sqrt(prompts)
    wanted = prompts_needed(effect - half, effect + half, effect, prompts)
    assert wanted is not None
    drawn = np.random.default_rng(0).normal(effect, spread, size=(4000, wanted))
    low = drawn.mean(1) - INTERVAL * drawn.std(1, ddof=1) / math.sqrt(wanted)
    assert (low > 0).mean() == pytest.approx(0.8, abs=0.03)


def test_seeds_that_would_decide_by_hand() -> None:
    # Seeds vary by 2 within each prompt and prompts not at all beyond that: 2 / k <= 3 (1 / 2.4865)^2.
    same = [[0.0, 2.0], [1.0, 3.0], [2.0, 4.0]]
    assert pytest.approx(2.4865, abs=1e-4) == INTERVAL + POWER
    assert seeds_needed(same, 1.0) == 5
    # Prompts vary by 16 - 2 / 2 = 15: no seeds make up for that at a gap of 1.
    other = [[0.0, 2.0], [4.0, 6.0], [8.0, 10.0]]
    assert seeds_needed(other, 1.0) is None
    # 15 + 2 / k <= 3 (5.6 / 2.4865)^2 = 15.217.
    assert seeds_needed(other, 5.6) == math.ceil(2 / (3 * (5.6 / 2.48649) ** 2 - 15)) == 10
    assert seeds_needed([[1.0], [2.0]], 1.0) is None


def test_an_open_claim_says_what_would_decide_it() -> None:
    cells = ((0.0, 2.0), (1.0, 3.0), (2.0, 4.0))
    wide = Number("gain", 1.0, -1.0, 3.0, cells)
    assert decide("a claim", 8, found_above(wide)).notes == [
        "about 74 prompts instead of 8 would decide it, or about 5 seeds of each instead of 2"
    ]
    assert decide("a claim", 8, found_above(Number("gain", 1.0, 0.5, 3.0))).notes == []
    # Two must hold, so the one that needs more counts; one that fails would decide alone.
    other = Number("gain", 2.0, -0.1, 4.0)
    assert decide("a claim", 8, found_above(wide), found_above(other)).notes == [
        "about 74 prompts instead of 8 would decide it"
    ]
    failing = Number("gain", -1.0, -3.0, 1.0)
    assert decide("a claim", 8, found_above(failing), found_above(other)).notes == [
        "about 74 prompts instead of 8 would decide it"
    ]
    # A bound that leaves room: 0.01 is 0.02 from failing and 0.01 from holding.
    assert found_above(Number("", 0.01, -1, 1), matters=0.03).gap == pytest.approx(0.02)
    assert found_below(Number("", 0.3, 0, 1), 0.5).gap == pytest.approx(0.2)
    endless = Number("gain", 1.0, -math.inf, math.inf)
    assert decide("a claim", 1, found_above(endless)).notes[0].startswith("no number of prompts")


def record(method: str, prompt: str, seed: int, **known: Any) -> dict[str, Any]:
    said = {"similarity": 0.5, "r_precision": 0.5, "saturation": 0.5, "true_saturation": 0.5, "iou": 0.5}
    points = [{"step": step, "similarity": 0.5, "calls": step} for step in (50, 100)]
    return {"method": method, "prompt": prompt, "seed": seed, "error": None, "points": points,
            "seconds": 1.0, "calls": 100, "final": {**said, **final(1), **known}}  # fmt: skip


def pictured(root: Path, cell: dict[str, Any], grey: int) -> None:
    folder = Cell(cell["method"], cell["prompt"], cell["seed"]).folder(root)
    folder.mkdir(parents=True)
    Image.new("RGB", (64, 128), (grey,) * 3).save(folder / "views.png")


class Plain:
    """Sees nothing: all pictures are alike."""

    def image_features(self, shown: Any) -> Any:
        return shown.new_tensor([[1.0, 0.0]]).expand(len(shown), 2)


def test_dreamtimes_claim_about_variants_by_hand(tmp_path: Path) -> None:
    found = []
    for name, numbers in (("vsd", (1, 1, 1)), ("tp_vsd", (1, 2, 3))):
        for prompt in ("a", "b", "c"):
            for seed, variant in enumerate(numbers):
                # The third prompt has no variants, and counts for nothing here.
                found.append(record(name, prompt, seed, variant=variant, variants=1 if prompt == "c" else 3))
                pictured(tmp_path, found[-1], 100)
    judge: Any = Plain()
    claims = {claim.text: claim for claim in judge_claims(found, tmp_path, judge, {})}
    more = claims["DreamTime's timesteps bring vsd's seeds to more of a name's variants"]
    assert (more.verdict, more.numbers[0].value) == ("holds", 2.0)
    finished = claims["DreamTime's timesteps give vsd more diverse finished assets"]
    assert finished.verdict == "does not hold"
    assert [number.value for number in finished.numbers] == [pytest.approx(0), 0.0, 0.0]


def test_oversaturation_is_against_the_truth_by_hand(tmp_path: Path) -> None:
    found = [
        record(name, prompt, seed, saturation=0.5 + above, true_saturation=None if prompt == "d" else 0.5)
        for name, above in (("sds_100", 0.2), ("asd", 0.01), ("vsd", -0.1))
        for prompt in ("a", "b", "c", "d")
        for seed in (0, 1)
    ]
    judge: Any = None
    claims = {claim.text: claim for claim in judge_claims(found, tmp_path, judge, {})}
    claim = claims["SDS at scale 100 oversaturates (by more than 0.02); ASD and VSD do not"]
    assert claim.verdict == "holds"
    assert [round(number.value, 3) for number in claim.numbers] == [0.2, 0.01, -0.1]
    assert figure_of(found[0], "oversaturation") == pytest.approx(0.2)
    assert figure_of(found[6], "oversaturation") is None
    assert figure_of({"final": {}}, "janus") is None
    data = select(found, {"asd", "vsd"}, tmp_path, ("true_saturation",))
    assert isinstance(data, Comparison) and len(data) == 3  # the fourth has no truth
    assert select(found[6:8], {"sds_100"}, tmp_path, ("true_saturation",)) is None


def test_the_report_lists_the_variant_of_each_seed() -> None:
    found = [record("sds", prompt, seed, variant=seed + 1) for prompt in ("b", "a") for seed in (0, 1)]
    found += [record("asd", "b", 0, variant=3), record("asd", "c", 0, variants=1)]
    assert variants_of(found) == [
        ("method", ["b (of 3)", "a (of 3)"]),
        ("sds", ["1, 2", "1, 2"]),
        ("asd", ["3", ""]),
    ]
    assert variants_of(found[-1:]) == []


@pytest.mark.slow
@pytest.mark.parametrize("with_truth", [True, False])
def test_a_comparison_on_a_thing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_truth: bool) -> None:
    tiny = tiny_things.write(tmp_path / "tiny")
    judge = tmp_path / "judge"
    save_judge(tiny_things.judge_of(["stool"]), judge)
    monkeypatch.setattr(figures, "r_precision", lambda judge, shown, caption: 0.5)
    monkeypatch.setattr(
        "distill.lab.comparison.cell.gradient_profile", partial(figures.gradient_profile, levels=2, draws=2)
    )
    source = Source(tiny.archives if with_truth else None, table=tiny.table, judge=judge)
    options: dict[str, Any] = {"iterations": 2, "measure_every": 2, "render.size": 16, "scene.log2_table_size": 12,
                               "scene.levels": 4, "prior": distill.load_prior(PRIOR)}  # fmt: skip
    methods = {"sds": {"guidance": "sds", "guidance.scale": 1}}
    page = distill.compare(methods, ["a stool"], [0, 1], output_dir=tmp_path, source=source, **options)
    lines = list(csv.DictReader((tmp_path / "results.csv").open()))
    text = page.read_text()
    assert len(lines) == 2 and "variants among seeds" in text
    if with_truth:
        assert {line["variants"] for line in lines} == {"3"} and "a stool (of 3)" in text
        assert all(0 <= float(line["iou"]) <= 1 for line in lines) and "No truth was given" not in text
    else:
        assert {line["iou"] for line in lines} == {""} and "No truth was given for a stool" in text
        with pytest.raises(ValueError, match="was made with truth none, not archives"):
            again = Source(tiny.archives, table=tiny.table, judge=judge)
            distill.compare(methods, ["a stool"], [0, 1], output_dir=tmp_path, source=again, **options)

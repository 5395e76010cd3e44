"""The ablation's verdicts, on records whose answers are known beforehand."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from ablation import Ablation, judge_claims
from ablation_report import BEGIN, END, write_docs, write_report
from cells import BASELINE, FLAT, FULL, LAWS, POWER, ROWS, WHOLE, law_name
from PIL import Image

#: Mean perceptual distance of each row's samples.
DISTANCE = dict(zip(ROWS, (0.5, 0.4, 0.3, 0.35, 0.2, 0.1, 0.12, 0.3, 0.05, 0.06), strict=True))


def write_cell(
    root: Path, name: str, seed: int, distance: float, curve: list[float], right: float = 1.0
) -> None:
    folder = root / "cells" / f"{abs(hash(name))}-{seed}"
    (folder / "evaluation").mkdir(parents=True)
    steps = [100 * (i + 1) for i in range(len(curve))]
    validation = [
        {"step": step, "loss": value, "view_mse": 2 * value, "view_right": 0.5}
        for step, value in zip(steps, curve, strict=True)
    ]
    record = {
        "name": name, "seed": seed, "updates": steps[-1], "batch": 8, "objects": 1600, "pictures": 19200, "unseen": 6,
        "code": 1000 if name.startswith("code") else 0, "seconds": 90.0, "hardware": "a device", "validation": validation,
    }  # fmt: skip
    (folder / "record.json").write_text(json.dumps(record))
    with (folder / "evaluation" / "objects.csv").open("w") as file:
        names = [
            "uid",
            "pairs",
            "mse",
            "mse_signed",
            "psnr",
            "ssim",
            "judge_distance",
            "pose_right",
            "pose_error_deg",
        ]
        lines = csv.writer(file)
        lines.writerow(names)
        for number in range(6):
            off = distance + 0.01 * number
            lines.writerow([f"object-{number}", 1, off, 4 * off, 20, 0.5, off, right, 0])
    Image.fromarray(np.zeros((12 * 4, 12, 3), np.uint8)).save(folder / "evaluation" / "sheet.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for seed in range(2):
        for name, distance in DISTANCE.items():
            # The baseline ends at .5 after 1000 updates; the full recipe comes there halfway from 100 to 200.
            curve = [1.0 - 0.05 * i for i in range(1, 11)] if name == BASELINE else [0.6, 0.4, 0.3]
            write_cell(tmp_path, name, seed, distance, curve)
    return tmp_path


def verdicts(root: Path) -> dict[str, str]:
    write_report(root)
    return {
        line["claim"].split(" (")[0].split(":")[0]: line["verdict"]
        for line in csv.DictReader((root / "claims.csv").open())
    }


def test_known_orders_are_told(root: Path) -> None:
    assert verdicts(root) == {
        "uniform + CLIP turns": "holds",
        "Gaussian + DINO + amalgamation turns": "holds",
        "Gaussian timesteps beat uniform ones": "holds",
        "DINO features beat CLIP's": "holds",
        "Amalgamation helps with CLIP": "holds",
        "Amalgamation helps with DINO": "holds",
        "All three together beat the baseline": "holds",
        "A rotated code beats the paper's full recipe, tokens": "holds",
        "A rotated code beats the paper's full recipe, FiLM": "holds",
        "A rotated code beats the paper's full recipe, draft": "does not hold",
        "A rotated code beats the paper's full recipe, all three": "holds",
        "A rotated code beats the paper's full recipe, all three, power law": "holds",
        "Tokens, FiLM and draft together beat tokens alone": "holds",
        "Tokens, FiLM and draft together beat FiLM alone": "holds",
        "Tokens, FiLM and draft together beat draft alone": "holds",
        "With the code, power-law timesteps beat Gaussian ones": "does not hold",
        "The full recipe reaches the baseline's final loss in less time": "holds",
    }
    page = (root / "report.html").read_text()
    assert "Table 1 in kind" in page
    assert "0.236, 0.187" in page
    table = {line["name"]: line for line in csv.DictReader((root / "table.csv").open())}
    assert float(table[FULL]["judge_distance"]) == pytest.approx(0.2 + 0.025)
    assert table[FULL]["seeds"] == "2"


def test_a_row_that_draws_any_view_does_not_turn(tmp_path: Path) -> None:
    write_cell(tmp_path, BASELINE, 0, 0.5, [0.5], right=1 / 12)
    write_cell(tmp_path, FULL, 0, 0.5, [0.5], right=0.2)
    found = verdicts(tmp_path)
    assert found[f"{BASELINE} turns"] == "does not hold"
    assert found[f"{FULL} turns"] == "holds"


def test_rows_are_compared_by_the_seeds_that_both_have(tmp_path: Path) -> None:
    for seed, distance in ((0, 0.5), (1, 0.1)):
        write_cell(tmp_path, WHOLE, seed, distance, [0.5])
    write_cell(tmp_path, POWER, 0, 0.4, [0.5])
    data = Ablation.read(tmp_path)
    gain = data.gain(WHOLE, POWER, "mse")
    assert gain.value == pytest.approx(0.1)  # of all seeds of both, it would be -.1
    assert data.mean(WHOLE, "mse") == pytest.approx(0.3 + 0.025)


def test_the_documentations_part_is_written_between_its_marks(root: Path, tmp_path: Path) -> None:
    write_report(root)
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nsuperseded\n{END}\nafter\n")
    write_docs(root, page)
    text = page.read_text()
    assert (
        text.startswith(f"before\n{BEGIN}\n")
        and text.endswith(f"{END}\nafter\n")
        and "superseded" not in text
    )
    assert (
        "trained for 1,000 updates (300 for the laws of Fig. 6) of 8 pairs with 2 seeds on 1,600 objects"
        in text
    )
    assert f"| {FULL} | 0.225 ± 0.000 | 0.2250 ± 0.0000 |" in text and "| 0.171, 0.128 |" in text
    assert (tmp_path / "ablation.jpg").exists()
    page.write_text("no marks\n")
    with pytest.raises(ValueError, match="must have the marks"):
        write_docs(root, page)


def test_the_speedup_by_hand(root: Path) -> None:
    data = Ablation.read(root)
    claims = {claim.text: claim for claim in judge_claims(data, {})}
    (fast,) = (claim for text, claim in claims.items() if "Fig. 7" in text)
    assert [number.value for number in fast.numbers] == pytest.approx([1000 / 150, 1000 / 150])
    # An update that costs a third makes it three times as much.
    claims = {
        claim.text: claim for claim in judge_claims(data, {"plain": 300.0, "mixed": 150.0, "cached": 100.0})
    }
    (fast,) = (claim for text, claim in claims.items() if "Fig. 7" in text)
    assert fast.numbers[0].value == pytest.approx(3 * 1000 / 150)
    (thrift,) = (claim for text, claim in claims.items() if "precision saves" in text)
    assert [number.value for number in thrift.numbers] == pytest.approx([0.5, 2 / 3])
    assert thrift.verdict == "holds"


def test_seeds_that_disagree_leave_it_open_and_worse_is_said(tmp_path: Path) -> None:
    for seed in range(2):
        write_cell(tmp_path, "uniform + CLIP", seed, 0.5, [0.5])
        write_cell(tmp_path, "Gaussian + CLIP", seed, 0.3 if seed else 0.6, [0.4])
        write_cell(tmp_path, "Gaussian + DINO", seed, 0.9, [0.4])
    found = verdicts(tmp_path)
    assert found["Gaussian timesteps beat uniform ones"] == "not decidable"
    assert found["DINO features beat CLIP's"] == "does not hold"


def test_laws_are_judged_against_the_papers(tmp_path: Path) -> None:
    for law in LAWS:
        best = law == (1000, 200)
        write_cell(tmp_path, law_name(*law), 0, 0.1 if best else 0.3 if law != (500, 200) else 0.05, [0.3])
    found = verdicts(tmp_path)
    assert found["A mean of 1000 is the best at a standard deviation of 200"] == "does not hold"
    assert found["A standard deviation of 200 is better than 100 at a mean of 1000"] == "holds"


def test_what_the_falling_rate_gains_by_hand(tmp_path: Path) -> None:
    write_cell(tmp_path, law_name(1000, 200), 0, 0.1, [0.6, 0.4, 0.2])
    write_cell(tmp_path, FLAT, 0, 0.1, [0.6, 0.5, 0.5])
    assert "A falling rate reaches a constant one's final loss sooner" in verdicts(tmp_path)
    lines = {line["claim"]: line for line in csv.DictReader((tmp_path / "claims.csv").open())}
    (line,) = (line for claim, line in lines.items() if claim.startswith("A falling rate"))
    assert line["verdict"] == "holds"
    # It is at .5 after 150 updates, and the constant one ends there after 300.
    assert "2 [2, 2]" in line["numbers"]


def test_nothing_finished_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no finished training"):
        write_report(tmp_path)

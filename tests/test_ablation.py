"""The ablation's verdicts, on records whose answers are known beforehand."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill.lab.novel_view.ablation import (
    BASELINE,
    FLAT,
    FULL,
    LAWS,
    ROWS,
    Ablation,
    Training,
    judge_claims,
    law_name,
    write_report,
)

#: Mean perceptual distance of each row's samples.
DISTANCE = dict(zip(ROWS, (0.5, 0.4, 0.3, 0.35, 0.2), strict=True))


def write_cell(root: Path, name: str, seed: int, distance: float, curve: list[float]) -> None:
    folder = root / "cells" / f"{abs(hash(name))}-{seed}"
    (folder / "evaluation").mkdir(parents=True)
    steps = [100 * (i + 1) for i in range(len(curve))]
    validation = [
        {"step": step, "loss": value, "sample_mse": value, "sample_judge_distance": value}
        for step, value in zip(steps, curve, strict=True)
    ]
    record = {"name": name, "seed": seed, "updates": steps[-1], "validation": validation}
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
            lines.writerow([f"object-{number}", 1, off, 4 * off, 20, 0.5, off, 1, 0])
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
        line["claim"].split(" (")[0]: line["verdict"] for line in csv.DictReader((root / "claims.csv").open())
    }


def test_known_orders_are_told(root: Path) -> None:
    assert verdicts(root) == {
        "Gaussian timesteps beat uniform ones": "holds",
        "DINO features beat CLIP's": "holds",
        "Amalgamation helps with CLIP": "holds",
        "Amalgamation helps with DINO": "holds",
        "All three together beat the baseline": "holds",
        "The full recipe reaches the baseline's final distance in less time": "holds",
    }
    page = (root / "report.html").read_text()
    assert "Table 1 in kind" in page
    assert "0.236, 0.187" in page
    table = {line["name"]: line for line in csv.DictReader((root / "table.csv").open())}
    assert float(table[FULL]["judge_distance"]) == pytest.approx(0.2 + 0.025)
    assert table[FULL]["seeds"] == "2"


def test_the_speedup_by_hand(root: Path) -> None:
    cells = [Training.read(path.parent) for path in (root / "cells").glob("*/record.json")]
    data = Ablation({name: [cell for cell in cells if cell.name == name] for name in ROWS})
    claims = {claim.text: claim for claim in judge_claims(data, {})}
    (fast,) = (claim for text, claim in claims.items() if "Fig. 7" in text)
    assert fast.numbers[0].value == pytest.approx(1000 / 150)
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
    assert "A falling rate reaches a constant one's final distance sooner" in verdicts(tmp_path)
    lines = {line["claim"]: line for line in csv.DictReader((tmp_path / "claims.csv").open())}
    (line,) = (line for claim, line in lines.items() if claim.startswith("A falling rate"))
    assert line["verdict"] == "holds"
    # It is at .5 after 150 updates, and the constant one ends there after 300.
    assert "2 [2, 2]" in line["numbers"]


def test_nothing_finished_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no finished training"):
        write_report(tmp_path)

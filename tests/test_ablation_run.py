"""The ablation's trainings, at a tiny size: what rows share, what stops them, and the script from renders to the report."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import cells
import pytest
import torch
from conftest import write_tiny_prior
from test_novelview_model import write_encoder

from distill.lab.novel_view import stages, world_renders
from distill.lab.novel_view.start import from_prior

SCRIPT = Path(__file__).parents[1] / "examples" / "novel_view_ablation" / "ablate_novelview.py"


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prior of 8 pixels and two encoders."""
    folder = tmp_path_factory.mktemp("parts")
    write_tiny_prior(folder / "prior", latent=False, prediction="v_prediction")
    write_encoder(folder / "clip", "clip")
    write_encoder(folder / "dino", "dinov2")
    return folder


@pytest.fixture(scope="module")
def bench(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> cells.Bench:
    world = world_renders.WorldOptions(shapes=1, views=3, steep=0, size=8, samples=1)
    setup = cells.Setup(
        work=tmp_path_factory.mktemp("work"), encoders={name: str(parts / name) for name in ("clip", "dino")},
        prior=parts / "prior", device="cpu", world=world, unseen=world, batch=4, code=stages.CodeRecipe(batch=4),
        code_updates=2, points=2, steps=1,
    )  # fmt: skip
    return cells.Bench(setup)


@pytest.mark.slow
def test_a_cell_is_trained_measured_and_kept(bench: cells.Bench) -> None:
    cell = cells.Cell(cells.BASELINE, 3, 4)
    cells.train_cell(bench, cell)
    path = cell.folder(bench.setup.work) / "record.json"
    record = json.loads(path.read_text())
    assert [point["step"] for point in record["validation"]] == [2, 4]
    assert (record["name"], record["seed"], record["updates"], record["code"]) == (cells.BASELINE, 3, 4, 0)
    assert (record["objects"], record["pictures"], record["unseen"]) == (16, 48, 16)
    assert (path.parent / "evaluation" / "objects.csv").read_text().count("\n") == 17
    before = path.stat().st_mtime_ns
    cells.train_cell(bench, cell)
    assert path.stat().st_mtime_ns == before


def test_what_comes_too_late_leaves_nothing(bench: cells.Bench) -> None:
    late = cells.Cell(cells.FULL, 0, 4, deadline=time.time() - 1)
    with pytest.raises(cells.Late):
        cells.train_cell(bench, late)
    assert not late.folder(bench.setup.work).exists()
    with pytest.raises(cells.Late):
        cells.train_code(bench, 9, deadline=time.time() - 1)
    assert not cells.code_path(bench.setup.work, 9).exists()


def test_a_seeds_rows_share_its_code_and_draws(bench: cells.Bench) -> None:
    cells.train_code(bench, 1)
    made = {name: cells.begun(bench, cells.Cell(name, 1, 4)) for name in ("code: tokens", cells.WHOLE)}
    one, other = (pipeline.model.turn for pipeline, _, _ in made.values())
    assert one is not None and other is not None and one.draft is None and other.draft is not None
    theirs = other.code.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in one.code.state_dict().items())
    assert not any(p.requires_grad for p in one.code.parameters())
    first, second = (bench.store.draw(8, stage.generator) for _, stage, _ in made.values())
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def test_rows_differ_in_what_they_are_named_for() -> None:
    rows = cells.ROWS
    assert [rows[name].encoder for name in list(rows)[:5]] == ["clip", "clip", "dino", "clip", "dino"]
    assert [rows[name].amalgamation for name in list(rows)[:5]] == [False, False, False, True, True]
    assert [rows[name].law.kind for name in rows] == ["uniform", *["normal"] * 8, "power"]
    told = [(row.turn.tokens > 0, row.turn.film, row.turn.draft > 0) for row in rows.values() if row.turn]
    assert told == [
        (True, False, False),
        (False, True, False),
        (False, False, True),
        *[(True, True, True)] * 2,
    ]


@pytest.mark.slow
def test_the_script_goes_from_renders_to_a_report_and_on(parts: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, SCRIPT, "--work", tmp_path / "work", "--clip", parts / "clip", "--dino", parts / "dino",
        "--prior", parts / "prior", "--size", 16, "--device", "cpu", "--processes", 1, "--workers", 1, "--shapes", 1,
        "--unseen", 1, "--batch", 2, "--code-updates", 2, "--code-batch", 4, "--points", 1, "--steps", 1, "--cost-rounds", 1,
        "--seeds", 1, "--minutes", 5, "--updates", 2, "--only", "power", "--no-costs", "--bring", tmp_path / "out",
    ]  # fmt: skip
    first = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr[-2000:]
    with tarfile.open(tmp_path / "out" / "cells.tar") as archive:
        names = archive.getnames()
    assert "cells/code-all-three-power-law-0/record.json" in names and "plan.json" in names
    assert "codes/0.json" in names
    assert "trained for 2 updates of 2 pairs with 1 seed" in (tmp_path / "out" / "ablation.md").read_text()
    wrong = subprocess.run(
        [str(part) for part in [*command, "--clip", tmp_path]], capture_output=True, text=True, check=False
    )
    assert wrong.returncode == 1
    assert wrong.stderr.splitlines()[-1].startswith("error: --clip must be a folder of an image encoder")
    other = subprocess.run(
        [str(part) for part in [*command, "--rate", "1e-4"]], capture_output=True, text=True, check=False
    )
    assert other.returncode == 1
    assert (
        "is of trainings with --rate 0.0008, not 0.0001; give what they have" in other.stderr.splitlines()[-1]
    )


def test_a_size_that_the_prior_cannot_halve_is_refused(bench: cells.Bench, parts: Path) -> None:
    encoder = bench.seen("dino")[0]
    with pytest.raises(ValueError, match="multiple of 2 pixels high, got 7"):
        from_prior(parts / "prior", encoder, turn=None, size=7)
    assert from_prior(parts / "prior", encoder, turn=None, size=12).size == 12
    assert from_prior(parts / "prior", encoder, turn=None).size == 8

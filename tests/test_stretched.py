"""Real objects in other proportions: how they are placed, what is rendered and kept, and which training learns from them."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_things
import torch

from distill.embedded import things
from distill.lab.novel_view import memory
from distill.priors.novel_view.pipeline import NovelViewPipeline

EXAMPLES = Path(__file__).parents[1] / "examples" / "embedded"


@pytest.fixture
def stretched(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    found = importlib.import_module("stretched")
    monkeypatch.setattr(found, "VIEWS", 3)
    return found


@pytest.fixture
def tiny(tmp_path: Path) -> tiny_things.Tiny:
    return tiny_things.write(tmp_path / "tiny")


def test_a_box_gets_other_proportions_and_is_framed_again(stretched: Any, tiny: tiny_things.Tiny) -> None:
    """A cube's edges stay parallel to three directions: a linear map takes the eight corners to a parallelepiped."""
    model = things.model(tiny.things[2], tiny.archives)
    volumes, upright, sheared = [], 0, 0
    for number in range(40):
        corners = stretched.placed(model, np.random.default_rng(number)).vertices
        used = corners[np.unique(model.faces)]
        np.testing.assert_allclose(used.min(0) + used.max(0), 0, atol=1e-6)
        assert stretched.RADIUS[0] <= np.linalg.norm(used, axis=1).max() <= stretched.RADIUS[1]
        matrix = np.linalg.lstsq(model.vertices[np.unique(model.faces)], used, rcond=None)[0].T
        np.testing.assert_allclose(model.vertices[np.unique(model.faces)] @ matrix.T, used, atol=1e-6)
        # Without leaning, the vertical stays the vertical.
        upright += bool(np.abs(matrix[:2, 2]).max() < 1e-6)
        # Turned first, a stretch shears the level directions; the axes of the others stay.
        sheared += bool(np.abs(matrix[0, 1]) > 1e-3)
        volumes.append(np.linalg.det(matrix))
    assert min(volumes) > 0 and max(volumes) > 1.2 * min(volumes)
    assert 24 <= upright <= 39  # four in five
    assert 14 <= sheared <= 34  # half, and most of those that lean


def test_things_are_rendered_once_the_same_on_any_number_of_cores(
    stretched: Any, tiny: tiny_things.Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = stretched.store(tiny.things[:2], tiny.archives, 2, tmp_path / "kept")
    assert made.pictures.shape == (12, 3, 64, 64) and made.first.tolist() == [0, 3, 6, 9, 12]
    assert made.uids == (
        "stretched-0:Tiny#0",
        "stretched-1:Tiny#0",
        "stretched-0:Tiny#1",
        "stretched-1:Tiny#1",
    )
    # Around it is white, and what is shown is grey, or of a colour for every other one.
    assert (made.pictures[:, :, 0] == 255).all()
    shown = [part.movedim(1, -1)[(part < 240).all(1)].float() for part in made.pictures.split(3)]
    assert min(len(pixels) for pixels in shown) > 300
    spread = [float(pixels.std(-1).mean()) for pixels in shown]
    assert max(spread[0], spread[2]) < 1 < 5 < min(spread[1], spread[3])
    height = torch.rad2deg(torch.asin(made.positions[:, 2] / made.positions.norm(dim=1)))
    assert -8.01 <= float(height.min()) < 10 and 40 < float(height.max()) <= 58.01
    distances = made.positions.norm(dim=1)
    assert float(distances.min()) >= 3.0 and float(distances.max()) <= 3.4

    def never(*args: object) -> None:
        raise AssertionError("rendered again")

    monkeypatch.setattr(stretched, "render", never)
    again = stretched.store(tiny.things[:2], tiny.archives, 2, tmp_path / "kept", workers=1)
    assert torch.equal(again.pictures, made.pictures) and torch.equal(again.positions, made.positions)
    with pytest.raises(AssertionError, match="rendered again"):
        stretched.store(tiny.things[:2], tiny.archives, 2, tmp_path / "kept", seed=1)


def test_a_missing_archive_is_said_in_one_line(
    stretched: Any, tiny: tiny_things.Tiny, tmp_path: Path
) -> None:
    with pytest.raises(
        ValueError, match=r"is no archive of things; fetch it with examples/embedded/fetch_things\.py"
    ):
        stretched.store(tiny.things[:1], tmp_path / "nowhere", 1, tmp_path / "kept")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--stretched", "2"],
            "--stretched needs the real objects of --things and the models in --archives; give both",
        ),
        (["--stretched", "2", "--archives", "a"], "give both"),
        (["--stretched", "-1"], "--stretched must be at least 0, got -1"),
        (["--archives", "a"], "--archives: a is not there; fetch_things.py fetches the archives"),
        (["--archives", "."], "--archives are the models for --stretched; give it too, or leave them out"),
        (["--prior", "b"], "--prior must be a folder in the diffusers layout, with a unet, got b"),
        (["--start", "b"], "--start must be a folder in the diffusers layout, with a unet, got b"),
        (
            ["--start", "a", "--prior", "b"],
            "--start and --prior are two models to begin from; give one of them",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    train = importlib.import_module("train_novel_view")
    monkeypatch.setattr("sys.argv", ["train_novel_view.py", "--work", str(tmp_path), *words])
    with pytest.raises(SystemExit) as ended:
        train.parse_options()
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_a_training_learns_from_them_beside_the_shapes(
    stretched: Any, tiny: tiny_things.Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = importlib.import_module("train_novel_view")
    words = [
        "--work", tmp_path, "--device", "cpu", "--shapes", 1, "--unseen", 1, "--views", 3, "--steep", 1, "--workers", 1,
        "--things", tmp_path, "--archives", tiny.archives, "--stretched", 2,
    ]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["train_novel_view.py", *map(str, words)])
    options = train.parse_options()
    kept = next(word for word in map(str, range(100)) if things.held_out_name(word))
    known = tuple(thing for thing in tiny.things[:2] if not things.held_out_name(thing.name))
    assert known
    whole = SimpleNamespace(things=(*known, replace(tiny.things[2], name=kept)))
    few = memory.Store(
        torch.zeros(2, 3, 64, 64, dtype=torch.uint8), torch.ones(2, 3), torch.tensor([0, 2]), ("own",)
    )
    monkeypatch.setattr(train, "from_pack", lambda *args, **options: few)
    store, held_out = train.pictures(options, 1, whole)
    assert set(held_out) == {"usual", "steep", "things"}
    # The name that is held out is not among them.
    alone = stretched.store(known, tiny.archives, 2, tmp_path / "stretched")
    count = len(alone.uids)
    assert count == 2 * len(known) and store.uids[-1 - count : -1] == alone.uids
    assert torch.equal(store.pictures[-2 - len(alone.pictures) : -2], alone.pictures)


@pytest.mark.slow
def test_a_model_is_trained_measured_and_written_without_keeping_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    train = importlib.import_module("train_novel_view")
    encoded: list[int] = []
    whole = train.memory.encoded

    def counted(store: memory.Store, *args: Any) -> Any:
        encoded.append(len(store))
        return whole(store, *args)

    monkeypatch.setattr(train.memory, "encoded", counted)
    words = [
        "--work", tmp_path, "--output", tmp_path / "model", "--device", "cpu", "--shapes", 1, "--views", 3, "--steep", 1,
        "--unseen", 1, "--workers", 1, "--live", "--prior", train.PRIOR, "--code-updates", 1, "--code-batch", 2, "--updates", 1,
        "--batch", 2, "--steps", 1,
    ]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["train_novel_view.py", *map(str, words)])
    train.main()
    # Only what is measured on was encoded beforehand: an object of each kind.
    assert encoded == [16]
    model = NovelViewPipeline.load(tmp_path / "model").model
    assert model.turn is not None and (tmp_path / "evaluation.json").exists()

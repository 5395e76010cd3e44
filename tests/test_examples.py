"""The examples that documentation points to: a loop and a loss of one's own."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import compare
import pytest
import torch
import trimesh

import distill
from distill import guidance
from distill.contracts import Condition
from distill.priors.exact import gaussian

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name: str) -> ModuleType:
    """Import an example by its file."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what an example registers."""
    monkeypatch.setattr(guidance, "_registered", {})


@pytest.mark.slow
@pytest.mark.weights
def test_the_loop_from_parts_writes_a_mesh(tmp_path: Path) -> None:
    load("custom_loop").main("a blue chair", tmp_path / "chair.glb", iterations=2, batch=1)
    mesh = trimesh.load(tmp_path / "chair.glb", force="mesh")
    assert isinstance(mesh, trimesh.Trimesh)
    assert len(mesh.faces) > 100


def test_the_loss_is_the_classifiers_score(registry: None) -> None:
    """w(t) s (e_c - e_u): for Gaussians of equal spread, alpha sigma (mean_u - mean_c) / (alpha^2 std^2 + sigma^2)."""
    loss = load("custom_guidance").classifier_score
    means = {name: torch.full((3, 2, 2), value) for name, value in (("", 0.0), ("mug", 1.0))}
    prior = gaussian(means, std=0.5)
    cond = Condition({"text": prior.embed(["mug"]), "uncond": prior.embed([""])})
    x, t = torch.zeros(1, 3, 2, 2), torch.tensor([400])
    alpha, sigma = prior.alpha(t), prior.sigma(t)
    expected = sigma**2 * 10 * -alpha * sigma / (alpha**2 * 0.25 + sigma**2)
    found = loss(prior, x, cond, t, torch.zeros_like(x))
    torch.testing.assert_close(found, expected.expand_as(found).to(found), rtol=1e-5, atol=1e-6)


@pytest.mark.weights
def test_the_registered_loss_is_a_choice(
    registry: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "custom_guidance", load("custom_guidance"))
    options: dict[str, Any] = {
        "iterations": 2, "render.size": 16, "render.batch": 1, "export.enabled": False, "log.tensorboard": False,
        "guidance.scale": 20.0,
    }  # fmt: skip
    asset = distill.generate("a red mug", guidance="classifier_score", output_dir=tmp_path / "run", **options)
    assert asset.manifest["guidance"] == "classifier_score"


def options_of(monkeypatch: pytest.MonkeyPatch, *words: str) -> Any:
    """What ``compare.py`` reads from a command line."""
    monkeypatch.setattr(sys, "argv", ["compare.py", *words])
    return compare.parse_options({**compare.METHODS, **compare.VARIANTS, **compare.ON_THINGS})


def test_a_comparisons_folders_may_be_in_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    found = options_of(monkeypatch, "--output=~/a", "--things", "--pack=~/b", "--archives=~/c", "--judge=~/d")
    names = ("output", "pack", "archives", "judge")
    assert [getattr(found, name) for name in names] == [tmp_path / name for name in "abcd"]


def test_methods_that_make_nothing_from_pictures_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        options_of(monkeypatch, "--pictures=2", "--methods", "asd_eta_0")
    assert "none of --methods makes objects from pictures; choose others" in capsys.readouterr().err

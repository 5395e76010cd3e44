"""Several scenes trained as one: which is drawn, what is left alone, and what the run leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from usual import optimiser_of, settings_of

import distill
from distill.conditions.prompts import conditioner
from distill.contracts import Render, Step
from distill.job import Job, State
from distill.loop import train
from distill.priors.exact import dirac
from distill.renderers.image import ImageScene
from distill.renderers.particles import Particles
from distill.samplers.cameras import ranges
from distill.samplers.schedules import scheduled
from distill.samplers.timesteps import uniform


class Counting(ImageScene):
    """Writes down the steps and draws that it is brought up to date with."""

    def __init__(self, seed: int) -> None:
        super().__init__(8, 8, lr=0.1, seed=seed)
        self.steps: list[int] = []

    def update(self, step: Step, optimiser: torch.optim.Optimizer, generator: torch.Generator) -> None:
        self.steps.append(step.index)


def test_each_scene_counts_its_own_steps_and_all_are_drawn_alike() -> None:
    particles, g = Particles([Counting(seed) for seed in range(3)]), torch.Generator().manual_seed(0)
    optimiser = optimiser_of(particles)
    for step in range(600):
        particles.update(Step(step, step / 600), optimiser, g)
    assert particles.visits.sum() == 600
    # Each is drawn 200 times on average; four standard deviations are 46.
    assert (particles.visits - 200).abs().max() < 47
    for scene, visits in zip(particles.scenes, particles.visits.tolist(), strict=True):
        assert scene.steps == list(range(visits))


def test_a_step_trains_the_drawn_scene_and_no_other() -> None:
    scenes = [Counting(seed) for seed in range(3)]
    before = [scene.image.detach().clone() for scene in scenes]
    prior, particles, g = (
        dirac({"": torch.zeros(3, 8, 8)}),
        Particles(scenes),
        torch.Generator().manual_seed(1),
    )
    state = State(particles, optimiser_of(particles), g)
    moved: list[int] = []

    def on_step(state: State, metrics: dict[str, float], picture: Render) -> None:
        now = [not torch.equal(scene.image, old) for scene, old in zip(scenes, before, strict=True)]
        assert now == [i == particles.drawn for i in range(3)]
        assert torch.equal(picture.rgb, before[particles.drawn].expand(2, -1, -1, -1))
        before[:] = [scene.image.detach().clone() for scene in scenes]
        moved.append(particles.drawn)

    def loss(prior: Any, x: Tensor, cond: Any, t: Tensor, noise: Tensor) -> Tensor:
        return x

    settings = settings_of(iterations=12, batch=2, size=distill.samplers.schedules.Ramp(8))
    train(
        Job(
            state, prior, scheduled(loss), conditioner(prior, ""), particles.render, ranges(), uniform(prior),
            settings,
        ),
        on_step,
    )  # fmt: skip
    assert set(moved) == {0, 1, 2}


def test_no_scenes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one scene"):
        Particles([])


QUICK: dict[str, Any] = {
    "iterations": 6,
    "particles": 2,
    "guidance": "vsd",
    "guidance.warmup": 1,
    "render.size": 16,
    "render.batch": 2,
    "log.checkpoint_every": 3,
    "log.preview_every": 3,
    "export.resolution": 32,
    "export.faces": 500,
    "export.texture_size": 64,
    "export.frames": 4,
    "export.picture_size": 32,
    "scene.log2_table_size": 12,
}


@pytest.mark.slow
def test_a_run_of_several_leaves_an_asset_for_each_and_the_lora(tmp_path: Path) -> None:
    asset = distill.generate("a red mug", output_dir=tmp_path / "two", **QUICK)
    assert [one.folder.name for one in asset.particles] == ["particle-1", "particle-2"]
    for number, one in enumerate(asset.particles, start=1):
        files = {path.name for path in one.folder.iterdir()}
        assert {"mesh.glb", "mesh.obj", "mesh.ply", "contact.png", "turntable.mp4", "report.html"} <= files
        assert json.loads((one.folder / "manifest.json").read_text())["particle"] == number
    grids = [load_first(asset, number) for number in (0, 1)]
    assert not torch.equal(*grids)
    top = json.loads((asset.folder / "manifest.json").read_text())
    assert top["particles"] == ["particle-1", "particle-2"]
    assert "pytorch_lora_weights.safetensors" in top["files"]
    lora = load_file(asset.folder / "pytorch_lora_weights.safetensors")
    assert any(value.abs().sum() > 0 for name, value in lora.items() if "lora_B" in name)
    report = (asset.folder / "report.html").read_text()
    assert all(f'href="{name}/report.html"' in report for name in top["particles"])


def load_first(asset: distill.Asset, number: int) -> Tensor:
    tensors = load_file(sorted((asset.folder / "checkpoints").glob("step-*"))[-1] / "tensors.safetensors")
    return tensors[f"state.scene.scenes.{number}.grid"]


@pytest.mark.slow
def test_an_interrupted_run_of_several_resumes_to_the_same_bits(tmp_path: Path) -> None:
    whole = distill.generate("a red mug", output_dir=tmp_path / "whole", **QUICK, **{"export.enabled": False})
    folder = tmp_path / "stopped"
    distill.generate("a red mug", output_dir=folder, **QUICK, **{"export.enabled": False})
    # As if it had been killed after the checkpoint of step 3.
    import shutil

    shutil.rmtree(folder / "checkpoints" / "step-000006")
    (folder / "report.html").unlink()
    again = distill.generate(
        "a red mug", output_dir=folder, resume=True, **QUICK, **{"export.enabled": False}
    )
    for number in (0, 1):
        assert torch.equal(load_first(again, number), load_first(whole, number))

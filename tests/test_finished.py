"""Finished runs are loaded from their folders as assets."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

import distill
from distill.cameras import turntable
from distill.run.assembly import assemble
from distill.run.config.compose import compose_config
from distill.run.several import seeds

SMALL: dict[str, Any] = {
    "iterations": 2, "render.batch": 1, "render.size": 16, "log.tensorboard": False, "log.preview_every": 0, "scene.log2_table_size": 10,
    "scene.march_steps": 24, "export.resolution": 24, "export.faces": 200, "export.texture_size": 64, "export.frames": 2,
    "export.enabled": False, "device": "cpu",
}  # fmt: skip


def made(folder: Path, **options: Any) -> distill.Asset:
    return distill.generate("a red mug", output_dir=folder, **{**SMALL, **options})


def look(asset: distill.Asset) -> torch.Tensor:
    shown = asset.view(turntable(2, 15.0, 3.2, 40.0), 24, 24)
    return torch.cat([shown.rgb, shown.opacity], dim=-1)


@pytest.mark.parametrize("options", [{}, {"optimiser.ema": 0.9}, {"scene.background": "learned"}])
def test_a_loaded_asset_looks_as_the_one_that_was_made(options: dict[str, Any], tmp_path: Path) -> None:
    before = made(tmp_path / "run", **options)
    after = distill.load(tmp_path / "run", device="cpu")
    torch.testing.assert_close(look(after), look(before), atol=0, rtol=0)
    assert (after.prompt, after.folder, after.particles) == ("a red mug", tmp_path / "run", ())
    assert after.manifest == json.loads((tmp_path / "run/manifest.json").read_text())
    assert dict(after.export) == dict(before.export)


def test_a_loaded_asset_saves_the_mesh_of_the_one_that_was_made(tmp_path: Path) -> None:
    before = made(tmp_path / "run", **{"scene.encoding_lr": 0.05, "iterations": 3})
    after = distill.load(str(tmp_path / "run"), device=torch.device("cpu"))
    one, other = before.save(tmp_path / "one.ply"), after.save(tmp_path / "other.ply")
    assert one.read_bytes() == other.read_bytes() and one.stat().st_size > 1000


def test_each_particle_of_a_run_is_loaded(tmp_path: Path) -> None:
    before = made(tmp_path / "run", particles=2, guidance="vsd")
    after = distill.load(tmp_path / "run", device="cpu")
    assert [one.folder.name for one in after.particles] == ["particle-1", "particle-2"]
    for one, other in zip(after.particles, before.particles, strict=True):
        assert torch.equal(look(one), look(other)) and one.folder == other.folder
        assert one.manifest["particle"] == other.manifest["particle"]
    assert torch.equal(look(after), look(after.particles[0]))
    assert not torch.equal(look(after.particles[0]), look(after.particles[1]))


@pytest.mark.slow
def test_the_last_stage_of_a_run_is_loaded(tmp_path: Path) -> None:
    stages = {"stages": ["field", "surface"], "stage.surface.iterations": 1, "scene.encoding_lr": 0.05}
    before = made(tmp_path / "run", **stages)
    after = distill.load(tmp_path / "run", device="cpu")
    assert type(after.scene) is type(before.scene)
    assert torch.equal(look(after), look(before))
    field = distill.load(tmp_path / "run/stages/1-field", device="cpu")
    assert type(field.scene).__name__ == "HashGridScene"


def test_a_picture_is_loaded(tmp_path: Path) -> None:
    options = {
        "scene": "image",
        **{name: value for name, value in SMALL.items() if not name.startswith("scene.")},
    }
    before = distill.generate("a red mug", output_dir=tmp_path / "run", **options)
    after = distill.load(tmp_path / "run", device="cpu")
    assert torch.equal(look(after), look(before))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("finished") / "run").folder


def broken(run: Path, folder: Path, what: str) -> Path:
    """A copy of a run's folder with a fault."""
    if what == "gone":
        return folder
    config = OmegaConf.load(run / "config.yaml")
    folder.mkdir()
    if what == "longer":
        config.iterations = 5
    elif what == "other scene":
        config.scene = {"_target_": "nowhere.Scene"}
    elif what == "older":
        config.export.largest_component, config.export.blur = True, 1.0
        del config.export["min_component"], config.export["blur_width"]
    OmegaConf.save(config, folder / "config.yaml")
    if what == "no YAML":
        (folder / "config.yaml").write_text("a: [")
    if what not in ("no checkpoint", "empty"):
        (folder / "checkpoints").symlink_to(run / "checkpoints")
    if what == "empty":
        (folder / "config.yaml").unlink()
    return folder


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("gone", "distill.load takes the folder of a finished run, and {folder} is not there"),
        ("empty", "distill.load takes the folder of a finished run, and {folder} holds none directly"),
        ("no checkpoint", "distill.load takes the folder of a finished run, and {folder} has no checkpoints"),
        ("no YAML", "distill.load takes the folder of a finished run, and {folder}/config.yaml cannot be read"),
        ("other scene", "distill.load takes the folder of a finished run, and {folder}/config.yaml cannot be read"),
        ("longer", "{folder} is at step 2 of 5; finish it with resume=true"),
    ],
)  # fmt: skip
def test_what_cannot_be_loaded_is_refused_in_one_line(
    run: Path, tmp_path: Path, what: str, said: str
) -> None:
    folder = broken(run, tmp_path / "copy", what)
    with pytest.raises(ValueError) as caught:
        distill.load(folder)
    assert str(caught.value).startswith(said.format(folder=folder)) and "\n" not in str(caught.value)


def test_a_run_whose_export_had_other_options_is_loaded_with_those_that_are_left(
    run: Path, tmp_path: Path
) -> None:
    older, own = distill.load(broken(run, tmp_path / "copy", "older")), distill.load(run)
    assert dict(older.export) == dict(own.export)


@pytest.mark.parametrize("device", ["gpu", None])
def test_a_device_that_there_is_not_is_refused_in_one_line(run: Path, device: Any) -> None:
    with pytest.raises(ValueError, match=r"^device must be auto, cpu, cuda, cuda:N or mps, got .+$"):
        distill.load(run, device=device)


def test_loading_needs_no_prior_and_writes_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a prior was loaded")

    monkeypatch.setattr("distill.priors.load.load_prior", refuse)
    monkeypatch.setattr("distill.run.assembly.assemble.open_prior", refuse)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    distill.load(run, device="cpu").view(turntable(1, 15.0, 3.2, 40.0), 8, 8)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


@pytest.mark.parametrize("options", [{}, {"particles": 2}, {"optimiser.ema": 0.9}])
def test_several_seeds_that_are_asked_for_again_are_the_asset_that_was_made(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scene alone is read: the parts of the run are not made again."""
    options |= {"seeds": 2, "resume": True}
    before = made(tmp_path / "run", **options)
    for part in ("open_prior", "make_scenes"):
        monkeypatch.setattr(assemble, part, None)
    after = made(tmp_path / "run", **options)
    assert (after.folder, after.manifest) == (before.folder, before.manifest)
    assert [one.folder for one in after.particles] == [one.folder for one in before.particles]
    assert len(after.particles) == (2 if "particles" in options else 0)
    for one, other in zip((after, *after.particles), (before, *before.particles), strict=True):
        torch.testing.assert_close(look(one), look(other), atol=0, rtol=0)


def test_a_seed_is_read_onto_the_device_of_the_given_prior(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller's prior decides where the scene is, not ``device=``; here a device that has shapes and no values."""
    config = compose_config(["prompt=a red mug", "device=cpu", f"output_dir={tmp_path}"])
    seen = list[torch.device]()
    monkeypatch.setattr(seeds, "reopened", lambda folder, config, device, taker: seen.append(device))
    one = seeds.Made({}, config, {}, None)
    prior: Any = SimpleNamespace(device=torch.device("meta"))
    for given in (prior, None):
        seeds.reopen(one, given)
    assert seen == [torch.device("meta"), torch.device("cpu")]

"""Options that would do nothing, refusals that must come early and say enough, and light that two renderings share."""

from __future__ import annotations

import math
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from scenes import hash_grid

from distill import inputs
from distill.cameras import turntable
from distill.contracts import Condition
from distill.guidance.vsd import VSD
from distill.lab.novel_view.config import TrainConfig, check
from distill.priors import load_prior
from distill.renderers import volume
from distill.renderers.patch import patched
from distill.run import execute
from distill.run.assembly import assemble
from distill.run.config.compose import compose_config
from distill.run.several import batch
from distill.run.several.queue import compose_queue

MUG = "prompt=a red mug"


def _never(*arguments: object) -> None:
    raise AssertionError("something was loaded")


def test_a_window_has_the_light_of_what_is_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    shares, shade = [], volume.shade

    def noted(*arguments: Any) -> torch.Tensor:
        shares.append(arguments[-1])
        return shade(*arguments)

    monkeypatch.setattr(volume, "shade", noted)
    scene: Any = hash_grid()
    draw = patched(partial(scene.render, shading="lambertian", soft_light=True), patch=9, coarse=8)
    draw(turntable(1), 16, 16, generator=torch.Generator().manual_seed(0))
    assert len(shares) == 2
    assert shares[0] == shares[1] != volume.AMBIENT


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["render.soft_light=true"], "render.soft_light=True would do nothing: add render.shading=lambertian"),
        (["view_port=9000"], "view_port=9000 would do nothing: add view=true"),
        (["cameras.front_back_deg=40"], "cameras.front_back_deg=40 would do nothing: add cameras.front_back="),
        (["cameras.area_elevation_deg=[-90,90]"], "would do nothing: add cameras.by_area=1"),
        (["scene=image", "scene.levels=4"], "'scene.levels'; scene=hash_grid, scene=hyper_grid, scene=sdf, scene=surface have it"),
        (["scene=image", "scene.samples=4"], "the chosen scene has no option 'scene.samples'; scene=surface has it"),
        (["render.turns=0.5"], "render.turns is a group of options, got 0.5; set one of them, such as render.turns."),
        (["render.patch=7"], "render.patch must be an integer of at least 8"),
        (["optimiser.weight_decay={start: 1, end: 0}"], "optimiser.weight_decay takes a plain value, neither null nor a schedule"),
        (["prior_options.embeddings=a.safetensors"], "is a list, got a.safetensors; write prior_options.embeddings=[a.safetensors]"),
        (["experiment=[csd,sdi]"], "experiment names no part; choose one with experiment=NAME"),
        (["render.turns.flat=1"], "unknown option 'render.turns.flat'; render.turns has lambertian, textureless, normals"),
        (["cameras=3"], "cameras takes a name, got 3; write for example cameras=ranges"),
    ],
)  # fmt: skip
def test_what_does_nothing_or_is_not_there_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=r"^.+$") as caught:
        compose_config([MUG, *words])
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        ["render.soft_light=true", "render.turns.textureless={start: 0, end: 0.5}"],
        ["render.soft_light=true", "render.shading=lambertian"],
        ["cameras.front_back=0.3", "cameras.front_back_deg=40"],
        ["cameras.by_area={start: 0, end: 1}", "cameras.area_elevation_deg=[-90,90]"],
        ["cameras.front_back_deg=30"],
        ["view=true", "view_port=9000"],
    ],
)
def test_what_does_something_is_taken(words: list[str]) -> None:
    assert isinstance(compose_config([MUG, *words]), DictConfig)


def test_shares_are_added_up_just_before_a_schedule_jumps() -> None:
    falls = "render.turns.lambertian={start: 1, end: 0, from_fraction: 0.5, to_fraction: 0.5}"
    rises = "render.turns.normals={start: 0, end: %s, to_fraction: 0.5}"
    with pytest.raises(ValueError, match="at most 1 together, got 2"):
        compose_config([MUG, falls, rises % 1])
    swapped = "render.turns.normals={start: 0, end: 1, from_fraction: 0.5, to_fraction: 0.5}"
    assert compose_config([MUG, falls, swapped]).render.turns.normals.end == 1


def test_a_folder_that_cannot_be_used_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (execute, batch):
        monkeypatch.setattr(module, "begin", _never)
    monkeypatch.setattr(batch, "open_prior", _never)
    mine = compose_config([MUG, f"output_dir={tmp_path / 'mine'}"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.yaml").write_text(OmegaConf.to_yaml(mine))
    with pytest.raises(ValueError, match="already holds this run; add resume=true"):
        execute.run(mine)
    with pytest.raises(ValueError, match="holds another run, with seed=0, not 1"):
        execute.run(compose_config([MUG, "seed=1", f"output_dir={tmp_path / 'mine'}"]))
    (tmp_path / "file").write_text("a red mug")
    for below in ("file", "file/below"):
        with pytest.raises(ValueError, match=r"cannot write to .* is a file\); choose a writable folder"):
            execute.run(compose_config([MUG, f"output_dir={tmp_path / below}"]))
    with pytest.raises(ValueError, match=r"cannot write to .* is a file\)"):
        batch.run_prompts(compose_queue([f"prompts={tmp_path / 'file'}", f"output_dir={tmp_path / 'file'}"]))


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("scene: {radius: 2.0}", "holds a scene with radius 2.0, not 1.0"),
        ("scene: {}\nparticles: 2", "has 2 scenes; only a run with particles=1"),
        ("scene: [", "cannot be read"),
        ("nothing: 1", "cannot be read"),
    ],
)
def test_a_run_that_cannot_be_gone_on_from_is_refused_before_anything_is_loaded(
    written: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assemble, "open_prior", _never)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").write_text(written)
    with pytest.raises(ValueError, match=r"^.+$") as caught:
        assemble.assemble(compose_config([MUG, f"init={tmp_path}"]))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "words", [["scene.progressive_levels=[99,0.5]"], ["scene.progressive_levels=[2,0.5,0.5]"]]
)
def test_a_scene_that_cannot_be_made_is_refused_before_anything_is_loaded(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assemble, "open_prior", _never)
    with pytest.raises(ValueError, match="expected progressive_levels"):
        assemble.assemble(compose_config([MUG, *words]))


def test_a_gradient_that_overflows_does_not_spoil_the_copy(pixel_folder: Path) -> None:
    prior = load_prior(pixel_folder, dtype=torch.float32)
    loss = VSD(prior, torch.Generator().manual_seed(0), warmup=0)
    cond = Condition({"text": prior.embed(["a mug"]), "uncond": prior.embed([""])}, cameras=turntable(1))
    x = torch.zeros(1, *prior.shape)
    weights = list(loss.student.trainable())
    before = [weight.detach().clone() for weight in weights]
    overflow = weights[0].register_hook(lambda gradient: gradient * float("inf"))
    assert math.isnan(loss.learn(prior, x, cond, torch.Generator().manual_seed(0)))
    assert all(map(torch.equal, before, weights))
    overflow.remove()
    assert math.isfinite(loss.learn(prior, x, cond, torch.Generator().manual_seed(0)))
    assert not all(map(torch.equal, before, weights))
    assert all(bool(weight.isfinite().all()) for weight in weights)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"log_every": 0}, "log_every must be at least 1, got 0"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"views": 1}, "views must be at least 2, got 1"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0, got 0.0"),
        ({"weight_decay": float("nan")}, "weight_decay must be at least 0, got nan"),
        ({"ema": 1.0}, r"ema must be in \[0, 1\), got 1.0"),
        ({"precision": "fp8"}, "precision must be no, fp16 or bf16, got 'fp8'"),
    ],
)
def test_numbers_of_a_novel_view_training_are_checked_first(option: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check(TrainConfig(tracker="none", **option))


def test_a_shard_without_prompts_ends_at_once_and_a_run_keeps_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(batch, "open_prior", _never)
    (tmp_path / "list.txt").write_text("a red mug\na blue cube\n")
    words = [f"prompts={tmp_path / 'list.txt'}", f"output_dir={tmp_path / 'out'}", "shard=3/5"]
    with caplog.at_level("INFO"):
        assert batch.run_prompts(compose_queue(words)) == {}
    assert "shard=3/5 has none of the 2 prompts" in caplog.text
    assert (tmp_path / "out" / "batch-3-of-5.csv").read_text() == "prompt,state,folder,seconds\n"
    (tmp_path / "out" / "config.yaml").write_text("prompt: a red mug")
    with pytest.raises(ValueError, match="is the folder of a run; choose another output_dir="):
        batch.run_prompts(compose_queue(words))
    with pytest.raises(ValueError, match="is the folder of a run"):
        inputs.writable(compose_config(words))


@pytest.mark.slow
def test_a_sweep_over_a_broken_file_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "bad.yaml").write_text(
        "# @package _global_\nrender: {turns: {lambertin: 1}}\n"
    )
    words = ["a red mug", "--config-dir", str(tmp_path), "-m", "experiment=csd,bad"]
    found = subprocess.run(
        [sys.executable, "-m", "distill", *words], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    said = (
        "distill: error: job 2 of 2 of the sweep (experiment=bad): unknown option 'render.turns.lambertin'; did you mean "
        "'render.turns.lambertian'?"
    )
    assert found.returncode == 2, found.stderr
    assert found.stderr.startswith(said) and found.stderr.count("\n") == 1
    assert not list(tmp_path.glob("outputs/*"))


@pytest.mark.parametrize("option", ["loras", "embeddings"])
def test_one_file_in_the_place_of_a_list_is_said(option: str) -> None:
    given: dict[str, Any] = {option: "a.safetensors"}
    with pytest.raises(
        ValueError, match=rf"{option} is a list of files, got 'a.safetensors'; write {option}="
    ):
        load_prior("embedded", **given)


@pytest.mark.parametrize(
    "words",
    [
        ["a red mug", "output_dir=~nobody-here/x"], ["a mug", "prior=~nobody-here/x"], ["image=~nobody-here/x.png"],
        ["prompts=~nobody-here/p.txt"], ["a red mug", "init=~nobody-here/x"], ["a red mug", "--config-dir", "~nobody-here"],
        ["a red mug", "views.file=~nobody-here/v.yaml"], ["a red mug", "guidance=vsd", "guidance.lora='~nobody-here/l'"],
    ],
)  # fmt: skip
def test_a_home_folder_that_is_not_known_is_said_in_one_line(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from distill import cli

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main([*words, "iterations=1", "export.enabled=false"])
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("distill: error:")]
    assert ended.value.code == 2 and len(said) == 1
    assert "begins with a home folder that is not known here" in said[0]
    assert not list(tmp_path.iterdir())


def test_the_doctor_tells_of_a_home_folder_that_is_not_known() -> None:
    from distill import doctor, machine

    config = compose_config(["prompt=a red mug", "output_dir='~nobody-here/x'"])
    assert [found.name for found in machine.places(config)] == ["embeddings", "hub cache"]
    found = {each.name: each for each in doctor.inputs(config)}
    assert found["output_dir"].verdict == "wrong" and "home folder" in found["output_dir"].said


@pytest.mark.parametrize("part", ["preset", "experiment", "scene", "guidance", "cameras", "timesteps"])
def test_a_list_is_no_name_of_a_part(part: str) -> None:
    with pytest.raises(ValueError, match=rf"^{part} takes one name, got a list .* {part}=NAME$"):
        compose_config([MUG, f"{part}=[a,b]"])

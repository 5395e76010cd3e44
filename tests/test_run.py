"""The main job: from a command to files, interrupted, resumed, many at once, and with wrong input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from omegaconf import OmegaConf
from safetensors.torch import load_file

import distill
from distill.cli import main

QUICK = [
    "iterations=6",
    "render.batch=1",
    "render.size=32",
    "log.checkpoint_every=2",
    "log.preview_every=3",
    "export.resolution=32",
    "export.faces=500",
    "export.texture_size=64",
    "export.frames=4",
    "export.picture_size=32",
]
OPTIONS: dict[str, Any] = {name: int(value) for name, value in (text.split("=") for text in QUICK)}
BARE: dict[str, Any] = {"export.enabled": False}


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert isinstance(caught.value.code, int)
    return caught.value.code


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must fail with exit code 2 and exactly one line of error."""
    capsys.readouterr()
    assert command(*arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("distill: error:")]
    assert len(lines) == 1
    return lines[0]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def final_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(sorted((folder / "checkpoints").glob("step-*"))[-1] / "tensors.safetensors")


def test_a_prompt_becomes_an_asset_with_every_file(tmp_path: Path) -> None:
    assert command("a red mug", *QUICK) == 0
    (folder,) = (tmp_path / "outputs").iterdir()
    assert folder.name.startswith("a-red-mug-")
    expected = "mesh.glb mesh.obj mesh.mtl mesh.ply turntable.mp4 contact.png report.html config.yaml manifest.json metrics.jsonl"
    assert {*expected.split(), "checkpoints", "previews"} <= {path.name for path in folder.iterdir()}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["prompt"], manifest["seed"]) == ("a red mug", 0)
    assert manifest["prior"]["sha256"]["unet/diffusion_pytorch_model.safetensors"]
    assert manifest["files"]["mesh.glb"]["bytes"] == (folder / "mesh.glb").stat().st_size
    assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == list(
        range(6)
    )
    assert not [name for name in {*manifest["files"], *os.listdir(folder)} if name.startswith(".")]
    mesh = trimesh.load_mesh(folder / "mesh.glb", process=False)
    assert np.isfinite(mesh.vertices).all() and len(mesh.faces) > 50


@pytest.mark.slow
def test_python_makes_and_saves_the_same_asset_as_the_command_line_and_another_with_another_seed(
    tmp_path: Path,
) -> None:
    assert command("a red mug", *QUICK, "output_dir=line", "export.enabled=false") == 0
    asset = distill.generate("a red mug", output_dir="script", **OPTIONS, **BARE)
    line, script = final_tensors(tmp_path / "line"), final_tensors(asset.folder)
    assert all(torch.equal(line[name], script[name]) for name in line)
    other = distill.generate("a red mug", seed=1, **OPTIONS, **BARE)
    assert not torch.equal(script["state.scene.grid"], final_tensors(other.folder)["state.scene.grid"])
    assert asset.save(tmp_path / "mug.glb").stat().st_size > 1000
    with pytest.raises(ValueError, match="glb"):
        asset.save(tmp_path / "mug.fbx")


#: A run that is long enough to be interrupted.
LONG = ["a red mug", *QUICK[1:], "iterations=12", "render.batch=2", "export.enabled=false"]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As many as the processes that are interrupted have: sums of several differ in their last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def finished() -> dict[str, dict[str, torch.Tensor]]:
    """The end of the run that nobody interrupted, once it is there."""
    return {}


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])  # SIGTERM: tests/test_ranks.py
def test_an_interrupted_run_resumes_to_the_same_bits(
    tmp_path: Path, how: signal.Signals, one_thread: None, finished: dict[str, dict[str, torch.Tensor]]
) -> None:
    running = subprocess.Popen(
        [sys.executable, "-m", "distill", *LONG, "output_dir=broken"],
        stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    deadline = time.monotonic() + 240
    while not list(tmp_path.glob("broken/checkpoints/step-*")) and time.monotonic() < deadline:
        assert running.poll() is None, running.communicate()[1]
        time.sleep(0.05)
    running.send_signal(how)
    said = running.communicate(timeout=240)[1]
    if how is signal.SIGKILL:
        assert running.returncode == -signal.SIGKILL
    else:
        assert running.returncode == 130
        assert "continue with resume=true" in said
    # What was interrupted had a process of its own; this one, which has run other things, must not differ from it.
    assert command(*LONG, "output_dir=broken", "resume=true") == 0
    if not finished:
        assert command(*LONG, "output_dir=whole") == 0
        finished["whole"] = final_tensors(tmp_path / "whole")
    broken, whole = final_tensors(tmp_path / "broken"), finished["whole"]
    assert broken.keys() == whole.keys()
    assert all(torch.equal(broken[name], whole[name]) for name in whole)
    steps = [
        json.loads(line)["step"] for line in (tmp_path / "broken/metrics.jsonl").read_text().splitlines()
    ]
    assert steps == list(range(12))


def test_a_scene_without_a_surface_keeps_its_checkpoint_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = ["scene.blob_scale=-50", "scene.blob_radius=1000", "iterations=2", "output_dir=empty"]
    assert command("a red mug", *QUICK, *nothing) == 1
    assert "the trained scene is kept" in capsys.readouterr().err
    assert list((tmp_path / "empty/checkpoints").glob("step-*"))
    assert not (tmp_path / "empty/report.html").exists()


def test_a_latent_prior_from_a_folder_runs_the_same_job(tmp_path: Path, latent_folder: Path) -> None:
    options = [
        *QUICK,
        "export.enabled=false",
        "negative_prompt=ugly, (blurry)",
        "output_dir=a folder, of (mine)",
    ]
    assert command("a cat", f"prior={latent_folder}", *options, "iterations=2") == 0
    manifest = json.loads((tmp_path / "a folder, of (mine)" / "manifest.json").read_text())
    assert manifest["prior"]["name"] == str(latent_folder)
    assert "vae/diffusion_pytorch_model.safetensors" in manifest["prior"]["sha256"]


def test_a_picture_can_be_the_scene(tmp_path: Path) -> None:
    assert command("a red mug", "scene=image", *QUICK, "output_dir=flat") == 0
    assert (tmp_path / "flat/report.html").exists()


@pytest.mark.slow
def test_an_edit_starts_from_an_earlier_run_and_sees_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from distill.cameras import turntable
    from distill.contracts import Step
    from distill.run.assembly.assemble import assemble
    from distill.run.config.compose import compose_config
    from distill.run.config.overrides import as_overrides

    first = distill.generate("a red mug", output_dir=tmp_path / "first", **OPTIONS, **BARE)
    prior = distill.load_prior("embedded")
    edit = {"init": str(tmp_path / "first"), "guidance": "dds", "source_prompt": "a red mug"}
    config = compose_config(as_overrides({"prompt": "a blue mug", **edit, **OPTIONS}))
    job = assemble(config, prior)
    for name, value in first.scene.state_dict().items():
        assert torch.equal(job.scenes[0].state_dict()[name], value)
    before = job.views[0](turntable(2), 64, 64).rgb.clone()
    with torch.no_grad():
        job.state.parameters()[0].add_(0.5)
    cond = job.condition(turntable(2), Step())
    assert cond.source_x is not None
    torch.testing.assert_close(cond.source_x, prior.encode(before.movedim(-1, 1)))
    words = [f"{key}={value}" for key, value in edit.items()]
    assert command("a blue mug", *words, *QUICK, "iterations=2", "export.enabled=false") == 0
    assert "init=" in error_of(capsys, "a blue mug", *QUICK, f"init={tmp_path / 'first'}", "scene.levels=3")
    assert "has no checkpoints" in error_of(capsys, "a blue mug", *QUICK, "init=nowhere")


def test_a_list_of_prompts_goes_on_after_a_failure_and_skips_what_is_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.txt").write_text("a red mug\n\n# a remark\na purple zebra\na blue cube\n")
    quick = [*QUICK, "iterations=2", "export.enabled=false"]
    assert command("prompts=list.txt", *quick) == 1
    assert "2 finished, 0 skipped, 1 failed" in capsys.readouterr().out
    assert sorted(path.suffix for path in (tmp_path / "outputs").iterdir()) == ["", "", ".csv"]
    (tmp_path / "list.txt").write_text("a red mug\na blue cube\n")
    assert command("prompts=list.txt", *quick) == 0
    assert "0 finished, 2 skipped, 0 failed" in capsys.readouterr().out


def test_a_sweep_runs_every_job_in_a_folder_of_its_own(tmp_path: Path) -> None:
    assert command("a red mug", "-m", "seed=0,1", *QUICK, "iterations=2", "export.enabled=false") == 0
    runs = [path for path in (tmp_path / "outputs").iterdir() if path.name.startswith("a-red-mug")]
    assert sorted(json.loads((run / "manifest.json").read_text())["seed"] for run in runs) == [0, 1]


def test_a_sweep_takes_an_alias(tmp_path: Path) -> None:
    swept = ["-m", "guidance=sds,tp_sds"]
    assert command("a red mug", *swept, *QUICK, "iterations=2", "export.enabled=false") == 0
    runs = [path for path in (tmp_path / "outputs").iterdir() if path.name.startswith("a-red-mug")]
    targets = sorted(OmegaConf.load(run / "config.yaml").timesteps._target_ for run in runs)
    assert [target.rpartition(".")[2] for target in targets] == ["annealed", "dreamtime"]


def test_an_experiment_of_one_s_own_is_found(tmp_path: Path) -> None:
    (tmp_path / "mine/experiment").mkdir(parents=True)
    (tmp_path / "mine/experiment/quick.yaml").write_text(
        "# @package _global_\niterations: 3\nexport:\n  enabled: false\n"
    )
    assert command("a red mug", "--config-dir", "mine", "+experiment=quick", "render.batch=1") == 0
    (folder,) = (path for path in (tmp_path / "outputs").iterdir() if path.name != "sweeps")
    assert json.loads((folder / "manifest.json").read_text())["iterations"] == 3


WRONG = [
    (["a red mug", "iteratons=5"], "did you mean 'iterations'"),
    (["a red mug", "iterations=many"], "iterations must be an integer"),
    (["a red mug", "guidance=dsd"], "there are asd, bridge, csd"),
    (
        ["a red mug", "guidance.weighting=x", *QUICK],
        "guidance.weighting must be sigma_squared, uniform, fantasia3d or hifa",
    ),
    ([""], "the prompt is empty"),
    (["a red mug", "iterations=0"], "at least 1, got 0"),
    (["a purple zebra"], "does not know 'zebra'"),
    (["a red mug", "prior=nowhere"], "but there is no 'nowhere'"),
    (["prompts=missing.txt"], "cannot be read"),
    (["a red mug", "output_dir=file/x"], "choose a writable folder"),
    (["a", "b"], "put the prompt in quotes"),
    (["a red mug", "timesteps.t_min=0.9", "timesteps.t_max=0.1"], "0 <= t_min <= t_max <= 1"),
    (["a red mug", "scene.backend=magic"], "backend"),
]


@pytest.mark.parametrize(("arguments", "said"), WRONG, ids=[said for _, said in WRONG])
def test_wrong_input_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    (tmp_path / "file").write_text("")
    assert said in error_of(capsys, *arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_asking_for_cuda_where_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert "use device=cpu or device=auto" in error_of(capsys, "a red mug", "device=cuda")


def test_a_run_never_writes_over_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("a red mug", *QUICK, "output_dir=mine", "export.enabled=false") == 0
    before = {path: path.read_bytes() for path in (tmp_path / "mine").rglob("*") if path.is_file()}
    assert "resume=true to continue" in error_of(
        capsys, "a red mug", *QUICK, "output_dir=mine", "export.enabled=false"
    )
    assert "holds another run, with prompt=a red mug, not a blue cube" in error_of(
        capsys, "a blue cube", *QUICK, "output_dir=mine"
    )
    assert before == {path: path.read_bytes() for path in (tmp_path / "mine").rglob("*") if path.is_file()}


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    quick = [*QUICK, "output_dir=mine", "export.enabled=false"]
    assert command("a red mug", *quick) == 0
    expected = final_tensors(tmp_path / "mine")
    newest = sorted((tmp_path / "mine/checkpoints").glob("step-*"))[-1] / "tensors.safetensors"
    newest.write_bytes(newest.read_bytes()[:-7])
    assert command("a red mug", *quick, "resume=true") == 0
    assert "step-000006" in caplog.text and "trying the one before" in caplog.text
    again = final_tensors(tmp_path / "mine")
    assert all(torch.equal(expected[name], again[name]) for name in expected)

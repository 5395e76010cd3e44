"""Stages of one command: the same bits as one command after the other, resumed anywhere, read like any run, and refused in one line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

import distill
from distill.run import execute
from distill.run.assembly.initial import check_init
from distill.run.config.compose import compose_config
from distill.run.config.why import explain_options
from distill.run.folder.reexport import export_again
from distill.run.folder.summary import read
from distill.run.journal import Interrupted, Journal
from distill.run.launched import check_shared
from distill.run.several import stages
from distill.run.several.batch import run_prompts
from distill.run.several.queue import compose_queue
from distill.run.several.sweep import sweep

#: Three steps of a tiny field, four of its surface.
TINY: dict[str, Any] = {
    "iterations": 3, "render.batch": 1, "render.size": 16, "log.tensorboard": False, "log.preview_every": 0, "scene.log2_table_size": 10,
    "scene.march_steps": 24, "export.resolution": 24, "export.faces": 200, "export.texture_size": 64, "export.frames": 4,
    "export.picture_size": 32,
}  # fmt: skip
OF_SURFACE: dict[str, Any] = {"iterations": 4, "scene.resolution": 24, "scene.detail": 16}
STAGED: dict[str, Any] = {
    **TINY, "stages": ["field", "surface"], **{f"stage.surface.{name}": value for name, value in OF_SURFACE.items()},
}  # fmt: skip
BARE: dict[str, Any] = {"export.enabled": False}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    return distill.generate("a red mug", output_dir=folder, **STAGED).folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(sorted((folder / "checkpoints").glob("step-*"))[-1] / "tensors.safetensors")


def same(folder: Path, other: Path) -> bool:
    one, two = tensors(folder), tensors(other)
    return set(one) == set(two) and all(torch.equal(one[name], two[name]) for name in one)


def metrics(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def composed(*words: str) -> Any:
    return compose_config(["prompt=a red mug", *words])


@pytest.mark.slow
def test_it_is_one_command_after_the_other(whole: Path) -> None:
    distill.generate("a red mug", output_dir="first", **TINY, **BARE)
    second = {**TINY, **OF_SURFACE, **BARE, "scene": "sdf", "init": "first", "timesteps.t_max": 0.5}
    distill.generate("a red mug", output_dir="second", **second)
    field = whole / "stages" / "1-field"
    assert same(field, Path("first")) and same(whole, Path("second"))
    assert metrics(field) == metrics(Path("first")) and metrics(whole) == metrics(Path("second"))
    by_hand = json.loads(Path("second/manifest.json").read_text())["conversion"]
    said = json.loads((whole / "manifest.json").read_text())["conversion"]
    assert {**said, "init": ""} == {**by_hand, "init": ""}


def test_what_reads_a_run_reads_one_of_stages(whole: Path) -> None:
    said = json.loads((whole / "manifest.json").read_text())
    rows = [(row["stage"], row["folder"], row["iterations"]) for row in said["stages"]]
    assert rows == [("field", "stages/1-field", 3), ("surface", ".", 4)]
    assert said["seconds"]["earlier"] == said["stages"][0]["seconds"] > 0
    assert said["export"]["iso_level"] == 0 and (whole / "mesh.glb").is_file()
    assert (whole / "stages/1-field/report.html").is_file() and not (
        whole / "stages/1-field/mesh.glb"
    ).exists()
    assert 'href="stages/1-field/report.html"' in (whole / "report.html").read_text()
    line = read(whole, whole.parent)
    assert (line.state, line.steps, line.seconds) == (
        "finished",
        "7/7",
        round(sum(said["seconds"].values()), 1),
    )
    # Each folder's settings are those of what lies in it.
    of_field, of_run = (
        OmegaConf.load(folder / "config.yaml") for folder in (whole / "stages/1-field", whole)
    )
    assert (of_field.iterations, of_field.scene._target_.rpartition(".")[2]) == (3, "HashGridScene")
    assert (of_run.iterations, of_run.scene._target_.rpartition(".")[2]) == (4, "SdfScene")
    assert stages.plan(compose_config(words_of(STAGED)), whole)[0] == of_field
    made = export_again(str(whole), ["export.formats=stl", "export.name=again"])
    made += export_again(str(whole / "stages/1-field"), ["export.formats=ply"])
    assert [path.name for path in made] == ["again.stl", "mesh.ply"] and all(path.is_file() for path in made)
    assert "stages" in json.loads((whole / "manifest.json").read_text())
    for init, scene in ((whole, "sdf"), (whole / "stages/1-field", "hash_grid")):
        check_init(composed(f"init={init}", f"scene={scene}"))


def words_of(options: dict[str, Any]) -> list[str]:
    from distill.run.config.overrides import as_overrides

    return as_overrides({"prompt": "a red mug", **options})


@pytest.mark.slow
@pytest.mark.parametrize(("after", "where"), [(2, "stages/1-field"), (5, "")])
def test_a_run_goes_on_in_the_stage_in_which_it_was_interrupted(
    whole: Path, after: int, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = 0

    class Stopping(Journal):
        def __call__(self, *step: Any) -> bool:
            nonlocal done
            done += 1
            if done == after:
                self.stop.set()
            return super().__call__(*step)

    with monkeypatch.context() as patch:
        patch.setattr(execute, "Journal", Stopping)
        with pytest.raises(Interrupted, match=f"stopped at step 2 of .*run{'/' * bool(where)}{where}$"):
            distill.generate("a red mug", output_dir="run", **STAGED, **BARE)
    run, field = Path("run"), Path("run/stages/1-field")
    line = read(run, Path())
    assert (line.state, line.steps) == ("unfinished", f"{after}/7")
    before = (field / "report.html").stat().st_mtime_ns if not where else 0
    distill.generate("a red mug", output_dir="run", resume=True, **STAGED, **BARE)
    assert same(run, whole) and same(field, whole / "stages/1-field")
    assert metrics(run) == metrics(whole)
    assert where or (field / "report.html").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="run holds another run, with 1-field: "):
        changed = {**STAGED, **BARE, "stage.field.scene.blob_scale": 7}
        distill.generate("a red mug", output_dir="run", resume=True, **changed)


def test_options_are_for_all_stages_or_for_one() -> None:
    config = composed(
        "stages=[field,surface]", "iterations=50", "timesteps.t_max=0.9", "scene.blob_scale=7", "scene.levels=5", "guidance.scale=3",
        "stage.surface.guidance=csd", "stage.surface.scene.reach=0.1", "stage.field.render.size=32",
        "stage.surface.render.size={start:16,end:32}",
    )  # fmt: skip
    field, surface = stages.plan(config, Path("run"))
    assert (field.iterations, surface.iterations) == (50, 50)
    # What makes a stage that stage is its own; a part's options are for the stages that have that part.
    assert (field.timesteps.t_max, surface.timesteps.t_max) == (0.9, 0.5)
    assert (field.scene.blob_scale, field.scene.levels, surface.scene.levels) == (7, 5, 5)
    assert (surface.scene.reach, surface.scene.background) == (0.1, field.scene.background)
    assert [one.guidance._target_.rpartition(".")[2] for one in (field, surface)] == ["sds", "csd"]
    assert (field.guidance.scale, field.render.size, surface.render.size) == (3, 32, {"start": 16, "end": 32})
    assert (field.init, surface.init) == (None, "run/stages/1-field")
    assert composed("stages=field,surface").iterations == 100  # the preset's own
    assert composed("stages=[]") == composed()
    plain = composed()
    plain.stages = ["field"]
    assert composed("stages=[field]") == plain


def test_a_sweep_and_why_know_options_of_one_stage() -> None:
    jobs: list[list[str]] = []
    words = ["prompt='a red mug'", "stages=[field,surface]", "stage.surface.iterations=5"]

    def run_job(given: Sequence[str], folders: Sequence[str]) -> int:
        jobs.append(list(given))
        return 0

    assert sweep([*words, "-m", "seed=3,4"], [], run_job) == 0
    assert [job[-1] for job in jobs] == words[2:3] * 2
    assert [compose_config(job).seed for job in jobs] == [3, 4]
    said = explain_options(["scene.background", "scene.reach", "iterations"], words)
    field, surface = said.split("stage surface:\n")
    assert field.startswith("stage field:\nscene.background = grey\n") and "scene.reach" not in field
    assert surface.startswith("scene.background = grey\n  set by what follows from the other stages\n")
    assert (
        "iterations = 5\n  set by iterations=5 (command line)" in surface and "scene.reach = 0.2\n" in surface
    )
    with pytest.raises(ValueError, match=r"unknown option 'scene\.nope'"):
        explain_options(["scene.nope"], words)


def test_a_stage_is_one_file() -> None:
    Path("mine/stage").mkdir(parents=True)
    text = "# @package _global_\ndefaults:\n  - surface\n  - override /guidance: csd\niterations: 9\n"
    Path("mine/stage/sharp.yaml").write_text(text)
    words = ["prompt=a red mug", "stages=[field,sharp]", "guidance=ism", "timesteps.t_max=0.8"]
    field, sharp = stages.plan(compose_config(words, ["mine"]), Path())
    assert [one.guidance._target_.rpartition(".")[2] for one in (field, sharp)] == ["ism", "csd"]
    assert (field.iterations, sharp.iterations) == (400, 9)
    assert (field.timesteps.t_max, sharp.timesteps.t_max) == (0.8, 0.5)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["stages=[field,sharp]"], r"unknown stage 'sharp'; there are .*field, geometry.*surface"),
        (["stages=[surface]"], r"surface begins with .*, and it is the first; .*stages=\[field,surface\], or add init="),
        (["stages=[material]"], r"material begins with .* add mesh=FILE"),
        (["stages=[field,surface,field]"], "field cannot follow surface: its HashGridScene does not begin with a SdfScene"),
        (["stages=[field,surface]", "scene=image"], "surface cannot follow field: its SdfScene .* ImageScene"),
        (["stages=[field,surface]", "particles=2"], r"does not go with particles=; add stages=\[field\]"),
        (["stages=[field,surface]", "stage.fine.seed=3"], r"stage.fine.seed=3 is for a stage that this run has not"),
        (["stage.surface.iterations=3"], "its stages are .*: add surface to stages="),
        (["stages=[field,surface]", "stage.surface.seed=3"], "seed is the whole run's; write seed="),
        (["stages=[field,surface]", "stage.surface=3"], "written stage.NAME.option=value"),
        (["stages=[field,surface]", "stage.surface.scene.levels=3"], "does not fit the stage field, whose scene has 12"),
        (["stages=[field,surface]", "stage.surface.scene.blob_scale=3"], "the chosen scene has no option"),
        (["stages=[field,surface]", "stage.surface.iterations=0"], "stage surface: iterations must be .* at least 1, got 0"),
        (["stages=[field,surface]", "export.iso=3"], "export.iso=3.0 would do nothing"),
        (["+earlier.a=3"], "earlier= is what stages= make"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(words: list[str], why: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=why) as refused:
        composed(*words)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["- scene", "[1, 2]"])
def test_a_stage_file_without_options_is_refused_in_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "mine/stage").mkdir(parents=True)
    (tmp_path / "mine/stage/sharp.yaml").write_text(content + "\n")
    with pytest.raises(ValueError, match=r"sharp") as refused:
        compose_config(["prompt=a red mug", "stages=[field,sharp]"], [str(tmp_path / "mine")])
    assert "\n" not in str(refused.value)


def test_what_is_shared_by_processes_or_learns_a_library_has_no_stages() -> None:
    with pytest.raises(ValueError, match="stages= does not go with 2 processes"):
        check_shared(composed("stages=[field,surface]"), 2)
    with pytest.raises(ValueError, match=r"stages= .* a library of prompts"):
        compose_config(["prompts=x", "scene=hyper_grid", "stages=[field,surface]"])


@pytest.mark.slow
def test_a_queue_has_stages_and_skips_what_is_finished() -> None:
    Path("prompts.txt").write_text("a red mug\n")
    quick = {**STAGED, **BARE, "iterations": 1, "stage.surface.iterations": 1, "seeds": 2}
    words = words_of({**quick, "prompt": "", "prompts": "prompts.txt", "output_dir": "queue"})
    queue = compose_queue(words)
    assert run_prompts(queue) == {"a red mug": "finished"}
    (folder,) = (path for path in Path("queue").iterdir() if path.is_dir())
    seeds = [folder / "seed-0", folder / "seed-1"]
    fields = [tensors(own / "stages/1-field")["state.scene.grid"] for own in seeds]
    assert not torch.equal(*fields)
    assert all(len(json.loads((own / "manifest.json").read_text())["stages"]) == 2 for own in seeds)
    assert run_prompts(queue) == {"a red mug": "skipped"}


def test_a_material_is_learnt_on_the_mesh_of_the_stage_before(tmp_path: Path) -> None:
    own = {
        f"stage.material.{name}": value
        for name, value in {"iterations": 2, "scene.material": "pbr", "scene.normal_map": True}.items()
    }
    words = {**TINY, "stages": ["field", "material"], **own, "export.name": "mug"}
    asset = distill.generate("a red mug", output_dir="run", **words)
    field = json.loads(Path("run/stages/1-field/manifest.json").read_text())
    assert field["export"]["meshes"] == ["mug.glb"]
    assert asset.manifest["mesh"]["sha256"] == field["files"]["mug.glb"]["sha256"]
    assert Path("run/mug.glb").is_file() and len(metrics(Path("run"))) == 2

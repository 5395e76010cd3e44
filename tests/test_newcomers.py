"""What a newcomer gets wrong with generators, novel-view renders and trainings, and from Python: one line each, before long work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

import distill
from distill.conditions.cutout import read_rgba
from distill.export.choices import check_files
from distill.export.frame import place_of
from distill.lab.novel_view import cli, train
from distill.lab.novel_view.config import compose
from distill.meshes.read import read_surface
from distill.run.assembly.initial import check_init
from distill.run.assembly.prior import check_prompt
from distill.run.config.compose import compose_config
from distill.run.folder import contents
from distill.run.folder.reexport import export_again


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def generator(tmp_path: Path) -> str:
    """A folder as a generator's, as far as options follow from it."""
    (tmp_path / "lib/checkpoints").mkdir(parents=True)
    said = {"prior": "embedded", "width": 64, "scene": {}}
    (tmp_path / "lib/generator.json").write_text(json.dumps(said))
    return "generator=lib"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["seeds=2"], "seeds= and retries= would do nothing; leave them out, or add iterations=200"),
        (["retries=1"], "seeds= and retries= would do nothing"),
        (["guidance=csd"], "guidance= would do nothing: the generator's scene is not trained; add iterations=200"),
        (["timesteps=dreamtime"], "timesteps= would do nothing"),
        (["cameras.fov_y_deg=[30,40]"], "cameras.fov_y_deg=[30, 40] would do nothing"),
        (["guidance.scale=9"], "guidance.scale=9 would do nothing"),
        (["penalties.sparsity=3"], "penalties.sparsity=3 would do nothing"),
        (["optimiser.ema=0.5"], "optimiser.ema=0.5 would do nothing"),
        (["image=mug.png"], "does not go with generator=lib; leave out one of them"),
        (["mesh=a.glb"], "generator=lib makes the scene, and mesh=a.glb would be another; leave out one of them"),
        (["scene=sdf"], "generator=lib makes scene=hash_grid; leave out scene=sdf"),
        (["scene=surface"], "generator=lib makes scene=hash_grid; leave out scene=surface"),
    ],
)  # fmt: skip
def test_what_is_of_training_does_nothing_for_a_generators_scene_that_is_not_trained(
    words: list[str], said: str, generator: str
) -> None:
    with pytest.raises(ValueError) as caught:
        compose_config(["prompt=a red mug", generator, *words])
    assert said in str(caught.value) and "\n" not in str(caught.value)
    if not words[0].startswith(("image=", "mesh=", "scene=")):
        compose_config(["prompt=a red mug", generator, *words, "iterations=3"])


@pytest.fixture
def textured() -> None:
    """The folder ``run`` of a run that textured ``chair.glb``."""
    Path("chair.glb").write_text("a chair")
    Path("run/checkpoints").mkdir(parents=True)
    words = ["mesh=chair.glb", "mesh.up=+z", "mesh.keep=[wheels]", "mesh.init_texture=true"]
    first = compose_config(["prompt=a chair", *words])
    contents.keep(Path("run"), first)
    OmegaConf.save(first, "run/config.yaml")


@pytest.mark.usefixtures("textured")
def test_what_begins_with_a_textured_mesh_has_its_mesh_and_how_it_stands() -> None:
    followed = compose_config(["prompt=an old chair", "init=run"]).mesh
    assert (followed.file, followed.up, followed.keep) == ("chair.glb", "+z", ["wheels"])
    assert not followed.init_texture  # the run's own colours are what it begins with
    given = compose_config(["prompt=an old chair", "init=run", "mesh=there/chair.glb", "mesh.keep=[]"]).mesh
    assert (given.file, given.up, given.keep) == ("there/chair.glb", "+z", [])


@pytest.mark.usefixtures("textured")
def test_a_textured_mesh_that_has_moved_or_changed_is_asked_for() -> None:
    Path("there").mkdir()
    shutil.move("chair.glb", "there/chair.glb")
    with pytest.raises(
        ValueError,
        match=r"^init=run textures mesh=chair\.glb, which is not there; give that mesh as mesh=FILE$",
    ):
        compose_config(["prompt=an old chair", "init=run"])
    check_init(compose_config(["prompt=an old chair", "init=run", "mesh=there/chair.glb"]))
    Path("chair.glb").write_text("another chair")
    with pytest.raises(
        ValueError, match=r"init=run textures another mesh than chair\.glb, .*; give that one as mesh=FILE$"
    ):
        check_init(compose_config(["prompt=an old chair", "init=run"]))


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("gone", "takes the folder of a finished run, and gone is not there"),
        ("empty", "takes the folder of a finished run, and empty holds none directly"),
        ("file", "takes the folder of a finished run, and file is a file"),
        (
            "outputs",
            "takes the folder of a finished run, and outputs holds 2 runs; give one, such as outputs/a",
        ),
    ],
)
def test_an_export_is_told_whose_folder_it_takes(folder: str, said: str) -> None:
    Path("empty").mkdir()
    Path("file").touch()
    for name in ("a", "b"):
        Path(f"outputs/{name}").mkdir(parents=True)
        Path(f"outputs/{name}/config.yaml").write_text("prompt: x\n")
    with pytest.raises(ValueError) as caught:
        export_again(folder, ["export.formats=usdz"])
    assert str(caught.value) == f"distill export {said}"


def test_a_folder_and_an_empty_file_are_told_from_what_is_not_there() -> None:
    Path("folder.png").mkdir()
    Path("folder.glb").mkdir()
    Path("empty.glb").touch()
    for name, said in (("folder.png", "is a folder"), ("gone.png", "is not there")):
        with pytest.raises(ValueError, match=f"must be a picture file, and {name} {said}; "):
            read_rgba(Path(name))
    for name, said in (
        ("folder.glb", "is a folder"),
        ("gone.glb", "is not there"),
        ("empty.glb", "is empty"),
    ):
        with pytest.raises(ValueError, match=f"must be a mesh in .*, and {name} {said}; "):
            read_surface(compose_config(["prompt=a chair", f"mesh={name}"]).mesh)


@pytest.mark.parametrize("words", [["prompt=a hamburger"], ["prompt=a red mug", "generator_mix=a hamburger"]])
def test_another_prior_is_no_remedy_for_a_generator(words: list[str], generator: str) -> None:
    with pytest.raises(ValueError) as caught:
        check_prompt(compose_config([*words, generator]))
    said = str(caught.value)
    assert "does not know 'hamburger'" in said and "things" not in said
    assert said.endswith("with which generator=lib was made; 'distill priors embedded' lists what it knows")


@pytest.mark.parametrize("words", [["particles=2"], ["prompts=list.txt"]])
def test_what_does_not_go_with_a_picture_is_named_alone(words: list[str]) -> None:
    Path("list.txt").write_text("a mug\n")
    with pytest.raises(
        ValueError, match=r"does not go with (particles=2|prompts=list\.txt); leave out one of them$"
    ):
        compose_config(["image=mug.png", *words])


def views(*words: object, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main([str(word) for word in words])
    assert ended.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("distill-views: error: ")
    return said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pack", "empty", "out"], "expected renders in empty, a folder for each object with 000.png"),
        (["pack", "gone", "out"], "expected renders in gone, a folder for each object with 000.png"),
        (["pack", "renders", "out", "--objects", 0], "--objects must be at least 1, got 0"),
        (["render", "out", "--world", -1], "--world must be at least 1, got -1"),
        (["render", "out", "--world", 0], "--world must be at least 1, got 0"),
        (["render", "out"], "is given; add some before the output, or --world N"),
        (["render", "out", "--world", 1, "--elevation", 60, -10], "--elevation takes the smaller number first, got 60 -10"),
        (["render", "out", "--world", 1, "--distance", 3, 2], "--distance takes the smaller number first, got 3 2"),
        (["render", "out", "--world", 1, "--workers", 0], "--workers must be at least 1, got 0"),
        (["render", "a.txt", "--world", 1], "a.txt is a file; give a folder to write the renders to"),
        (["evaluate", "model", "empty", "out"], "expected renders in empty, a folder for each object with 000.png"),
        (["evaluate", "model", "renders", "out", "--steps", 0], "--steps must be at least 1, got 0"),
        (["evaluate", "model", "renders", "out", "--per-object", 0], "--per-object must be at least 1, got 0"),
        (["evaluate", "model", "renders", "out", "--views", 0], "--views must be at least 1, got 0"),
    ],
)  # fmt: skip
def test_wrong_words_of_the_renders_command_are_one_line(
    words: list[object], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    Path("renders/mug").mkdir(parents=True)
    Path("a.txt").write_text("a")
    Image.fromarray(np.zeros((8, 8, 4), np.uint8)).save("renders/mug/000.png")
    assert said in views(*words, capsys=capsys)
    assert not Path("out").exists()


@pytest.mark.parametrize("there", [False, True])
def test_a_training_that_cannot_begin_takes_no_folder(there: bool) -> None:
    Path("renders").mkdir()
    if there:
        Path("encoder").mkdir()
        Path("encoder/config.json").write_text("{}")
    words = [
        "data=renders",
        "output_dir=mine",
        "tracker=none",
        "precision=no",
        *(["encoder=encoder"] if there else []),
    ]
    with pytest.raises(
        ValueError, match=r"encoder must be the folder of an image encoder .* has (no|a) config\.json"
    ):
        train.train(compose(words))
    assert not Path("mine").exists()


def test_wrong_values_from_python_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device=cuda needs an NVIDIA driver"):
        distill.load_prior("embedded", device="cuda")
    for part in ("1/2", (0, 2), (1,), (1, 2.0)):
        wrong: Any = part
        with pytest.raises(ValueError, match=r"part must be \(k, n\) with 1 <= k <= n, got "):
            distill.compare(output_dir="cells", part=wrong)
    lods: Any = "2"
    with pytest.raises(ValueError, match=r"lods is 0 to .* got '2'"):
        check_files(["glb"], "mesh", lods, "files")
    size: Any = "0.1"
    mesh: Any = None
    with pytest.raises(ValueError, match=r"size_m is the largest extent in metres, .* got '0.1'"):
        place_of(mesh, size_m=size)

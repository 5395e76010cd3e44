"""What a run that is resumed, or that begins with an earlier one, must be given again, and what it says where it is given something else."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from safetensors.torch import save_file

import distill
from distill import cli
from distill.renderers.sdf import SdfScene
from distill.run import execute
from distill.run.assembly.prior import check_prior
from distill.run.assembly.scenes import scene_of_run
from distill.run.config.compose import compose_config
from distill.run.config.overrides import quote
from distill.run.config.plugins import plugins
from distill.run.folder import stored
from distill.run.folder.earlier import follows_from, read_settings
from distill.run.folder.folders import check_unused, claim, refuse, to_resume
from distill.run.folder.stored import left_as_it_is, renew
from distill.run.journal import seconds_before
from distill.run.several import amortise, batch, staging
from distill.run.several.generator import library_of
from distill.run.several.queue import compose_queue

#: Two steps of a small picture.
QUICK = [
    "scene=image", "iterations=2", "render.size=16", "render.batch=1", "export.enabled=false", "log.tensorboard=false",
    "log.preview_every=0", "view_words=none", "device=cpu",
]  # fmt: skip
FOUND = "there is no run with these settings in outputs to continue, so resume=true begins a new one"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def picture(path: str, level: int) -> None:
    """A square over white."""
    pixels = np.full((64, 64, 3), 255, np.uint8)
    pixels[16:48, 16:48] = level
    Path(path).parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path)


def mesh(path: str, size: int) -> None:
    Path(path).parent.mkdir(exist_ok=True)
    trimesh.creation.box(extents=(size, 1, 1)).export(path)


def views(path: str, level: int) -> None:
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_text(f"back: a mug from behind {level}\n")


@pytest.mark.parametrize(
    ("option", "words", "write", "name"),
    [
        ("image", [], picture, "mug.png"),
        ("reference.depth", ["image=mug.png", "penalties.reference_depth=1"], picture, "depth.png"),
        ("reference.normal", ["image=mug.png", "penalties.reference_normal=1"], picture, "normal.png"),
        ("mesh.file", ["prompt=a red mug"], mesh, "mug.obj"),
        ("views.file", ["prompt=a mug", "prior=sd-2.1-base"], views, "views.yaml"),
        ("prior_options.control", ["prompt=a mug", "prior=sd-2.1-base", "prior_options.controlnet=c"], picture, "edges.png"),
    ],
)  # fmt: skip
def test_a_file_that_a_run_was_given_is_told_by_what_it_holds(
    option: str, words: list[str], write: Any, name: str
) -> None:
    picture("mug.png", 80)
    write(name, 40)
    config = compose_config([*words, f"{option}={name}", "output_dir=mine", "resume=true"])
    assert claim(config) == Path("mine")
    # The same one elsewhere.
    Path("there").mkdir()
    shutil.copy(name, f"there/{name}")
    elsewhere = compose_config([*words, f"{option}=there/{name}", "output_dir=mine", "resume=true"])
    assert claim(elsewhere) == Path("mine")
    # Another one, in the same place or not, and none.
    write(f"there/{name}", 41)
    with pytest.raises(
        ValueError, match=f"mine holds another run, with another file as {option}; give its own options"
    ):
        claim(elsewhere)
    write(name, 41)
    with pytest.raises(ValueError, match=f"with another file as {option}"):
        claim(config)
    # A run of a version that kept nothing of its files goes by their names.
    Path("mine/inputs.json").unlink()
    assert claim(config) == Path("mine")
    with pytest.raises(ValueError, match=f"with another file as {option}"):
        claim(elsewhere)


def embedding(path: str, level: float) -> None:
    save_file({"emb_params": torch.full((1, 4), level)}, path)


@pytest.mark.parametrize(
    ("option", "entry", "same", "other"),
    [
        ("loras", "{}:0.5", "{}:0.50", "{}:0.25"),
        ("loras", "{}", "{}:1", "{}:0.25"),
        ("embeddings", "<cat>={}", "<cat>={}", "<dog>={}"),
        ("embeddings", "{}", "a={}", "<a>={}"),
    ],
)
def test_files_of_a_list_are_told_by_what_they_hold_and_by_what_is_said_beside_them(
    option: str, entry: str, same: str, other: str
) -> None:
    def config(first: str, second: str) -> DictConfig:
        own = f"prior_options.{option}=['{first}','{second}']"
        return compose_config(["prompt=a mug", "prior=sd-2.1-base", own, "output_dir=mine", "resume=true"])

    for name, level in (("a", 0.1), ("b", 0.2)):
        embedding(f"{name}.safetensors", level)
    shutil.copytree(".", "there", ignore=shutil.ignore_patterns("there"))
    given = config(entry.format("a.safetensors"), "b.safetensors")
    assert claim(given) == Path("mine")
    for form in (entry, same):
        assert claim(config(form.format("there/a.safetensors"), "there/b.safetensors")) == Path("mine")
    wrong = f"another run, with other prior_options.{option}; give its own options"
    for first, second in (("b", "a"), ("a", "a")):
        with pytest.raises(ValueError, match=wrong):
            claim(config(entry.format(f"{first}.safetensors"), f"{second}.safetensors"))
    with pytest.raises(ValueError, match=wrong):
        claim(config(other.format("a.safetensors"), "b.safetensors"))
    embedding("b.safetensors", 0.3)
    with pytest.raises(ValueError, match=wrong):
        claim(given)


def test_an_embedding_that_is_renamed_has_another_token() -> None:
    embedding("cat.safetensors", 0.1)
    shutil.copy("cat.safetensors", "dog.safetensors")
    words = ["prompt=a cat", "prior=sd-2.1-base", "output_dir=mine", "resume=true"]
    assert claim(compose_config([*words, "prior_options.embeddings=[cat.safetensors]"])) == Path("mine")
    assert claim(compose_config([*words, "prior_options.embeddings=['cat=dog.safetensors']"])) == Path("mine")
    with pytest.raises(ValueError, match=r"other prior_options\.embeddings"):
        claim(compose_config([*words, "prior_options.embeddings=[dog.safetensors]"]))


def test_a_queue_makes_what_was_made_with_another_file_again() -> None:
    mesh("mug.obj", 1)
    Path("list.txt").write_text("a red mug\n")
    queue = compose_queue(["prompts=list.txt", "mesh=mug.obj", "output_dir=out"])
    (part,) = queue.parts
    folder = claim(batch._one(part.config, "a red mug"), Path("out"))
    (folder / "report.html").write_text("")
    assert batch.finished_before(part.config, Path("out"))("a red mug") == folder
    mesh("mug.obj", 2)
    assert batch.finished_before(part.config, Path("out"))("a red mug") is None
    assert claim(batch._one(part.config, "a red mug"), Path("out")) != folder


def test_where_there_is_nothing_to_resume_a_new_run_says_so_and_names_what_differs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def said(*words: str) -> list[str]:
        caplog.clear()
        check_unused(compose_config(["prompt=a red mug", "resume=true", *words]))
        return caplog.messages

    assert said() == [FOUND]
    for words in ([], ["iterations=5"], ["guidance=csd"]):
        claim(compose_config(["prompt=a red mug", *words]))
    assert said() == said("iterations=5") == said("export.faces=77", "device=cpu") == []
    (line,) = said("iterations=5", "seed=3")
    name = "outputs/a-red-mug-10a5c24a"
    # The other options of a loss are not told beside it.
    assert line == (
        f"{FOUND}; beside it: {name} (iterations=400, not 5; seed=0, not 3), {name}-2 (seed=0, not 3), "
        f"{name}-3 (iterations=400, not 5; seed=0, not 3; guidance=csd, not sds)"
    )
    assert said("output_dir=gone") == ["gone holds no run to continue yet, so resume=true begins one"]
    Path("empty").mkdir()
    assert said("output_dir=empty") == ["empty holds no run to continue yet, so resume=true begins one"]
    assert said("output_dir=outputs/a-red-mug-10a5c24a") == []


def test_a_folder_of_something_else_is_told_from_another_run() -> None:
    Path("mine").mkdir()
    Path("mine/letter.txt").write_text("dear")
    config = compose_config(["prompt=a red mug", "output_dir=mine", "resume=true"])
    with pytest.raises(
        ValueError, match=r"mine holds something else than a run; choose another output_dir=$"
    ):
        refuse(Path("mine"), config)
    claim(compose_config(["prompt=a red mug", "output_dir=other"]))
    many = ["iterations=1", "seed=1", "particles=2", "render.batch=1", "render.size=32"]
    with pytest.raises(
        ValueError, match=r"with iterations=400, not 1; particles=1, not 2; seed=0, not 1 and 2 more"
    ):
        refuse(Path("other"), compose_config(["prompt=a red mug", *many]))


@pytest.mark.parametrize(
    "option", ["seed=3", "optimiser.ema=0.5", "render.turns.normals=0.25", "guidance.scale=3"]
)
def test_a_setting_is_named_however_deep_it_lies(option: str) -> None:
    """Each group inside a group has names of its own; a schedule is one value."""
    claim(compose_config(["prompt=a red mug", "output_dir=mine"]))
    name, _, value = option.partition("=")
    with pytest.raises(ValueError, match=rf"with {re.escape(name)}=[\w.]+, not {value}(\.0)?;"):
        refuse(Path("mine"), compose_config(["prompt=a red mug", "output_dir=mine", option]))
    moving = compose_config(["prompt=a red mug", "render.turns.normals={start:0,end:1}"])
    made = stored.flat(stored.settings_of(moving))
    assert made["render.turns.normals"] == {"start": 0, "end": 1}


def test_a_resumed_run_is_described_as_it_was_resumed() -> None:
    assert command("a red mug", *QUICK, "output_dir=mine") == 0
    before = json.loads(Path("mine/manifest.json").read_text())
    lines = Path("mine/metrics.jsonl").read_text().splitlines()
    spent = sum(json.loads(line)["seconds"] for line in lines)
    assert seconds_before(Path("mine/metrics.jsonl"), 2) == pytest.approx(spent)
    assert seconds_before(Path("mine/metrics.jsonl"), 1) == pytest.approx(json.loads(lines[0])["seconds"])
    again = [
        *QUICK,
        "output_dir=mine",
        "resume=true",
        "export.enabled=true",
        "export.picture_size=32",
        "retries=0",
    ]
    assert command("a red mug", *again, "log.keep_checkpoints=1") == 0
    now, stored = json.loads(Path("mine/manifest.json").read_text()), OmegaConf.load("mine/config.yaml")
    assert stored.export.enabled and stored.export.picture_size == 32 and stored.log.keep_checkpoints == 1
    assert not stored.resume and stored.output_dir == "mine"
    assert "export" in now and "export" not in before and Path("mine/image.png").exists()
    assert now["seconds"]["train"] >= spent


def test_time_of_lines_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert seconds_before(path, 5) == 0
    path.write_text('{"step": 0, "seconds": 1.5}\n{"step": 1}\n\n{"step": 2, "seconds": 2}\n{"step": 3, "sec')
    assert seconds_before(path, 5) == 3.5 and seconds_before(path, 2) == 1.5


@pytest.mark.slow
def test_what_begins_with_an_unfinished_run_says_so(caplog: pytest.LogCaptureFixture) -> None:
    assert command("a red mug", *QUICK, "output_dir=mine") == 0
    assert command("a red mug", *QUICK, "init=mine", "output_dir=next") == 0
    assert "unfinished" not in caplog.text
    stored = OmegaConf.load("mine/config.yaml")
    stored.iterations = 9
    OmegaConf.save(stored, "mine/config.yaml")
    assert command("a red mug", *QUICK, "init=mine", "output_dir=more") == 0
    assert "init=mine is unfinished and used as it is, at step 2 of 9; resume=true finishes it" in caplog.text


def test_a_library_that_changed_is_refused_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("list.txt").write_text("a red mug\na blue mug\n")
    words = ["prompts=list.txt", "scene=hyper_grid", "iterations=2", "output_dir=mine", "resume=true"]
    config = compose_config([*words, "optimiser.accumulate=1"])
    amortise.keep(claim(config), library_of(config))
    monkeypatch.setattr(amortise, "assemble", pytest.fail)
    Path("list.txt").write_text("a red mug\na green mug\n")
    with pytest.raises(ValueError, match=r"mine learns another library, the one in its library\.json"):
        amortise.run_library(config)


@pytest.mark.parametrize("wrong", [["guidance=vsd", "guidance.lora=gone"], ["prior=sd-9"]])
@pytest.mark.parametrize("how", ["alone", "with a prior", "seeds", "a queue"])
def test_what_a_later_stage_needs_is_looked_at_before_the_first_begins(
    wrong: list[str], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in ((staging, "assemble"), (batch, "open_prior"), (execute, "run_seeds")):
        monkeypatch.setattr(module, name, pytest.fail)
    Path("list.txt").write_text("a red mug\n")
    # A prior that is given is the last stage's.
    stage = "field" if how == "with a prior" and wrong == ["prior=sd-9"] else "surface"
    words = ["stages=[field,surface]", *(f"stage.{stage}.{word}" for word in wrong)]
    words += ["prompts=list.txt"] if how == "a queue" else ["prompt=a red mug"]
    words += ["seeds=2"] if how == "seeds" else []
    with pytest.raises(ValueError, match=r"gone is not there|there is no 'sd-9'"):
        if how == "a queue":
            batch.run_prompts(compose_queue(words))
        else:
            prior: Any = object() if how == "with a prior" else None
            execute.run(compose_config(words), prior)
    assert not list(Path("outputs").glob("*/config.yaml"))


def test_a_loss_of_a_mixture_has_its_lora_looked_at_too() -> None:
    terms = "guidance.terms=[{loss: sds, weight: 1.0}, {loss: vsd, weight: 1.0, lora: gone}]"
    config = compose_config(["prompt=a red mug", "guidance=mix", terms])
    with pytest.raises(ValueError, match=r"guidance\.lora must be a file or folder .* gone is not there"):
        check_prior(config, torch.device("cpu"))


@pytest.mark.parametrize("prompt", ["", "a red mug"])
def test_python_makes_one_asset_and_refuses_a_file_of_many(prompt: str) -> None:
    Path("list.txt").write_text("a red mug\n")
    with pytest.raises(
        ValueError, match=r"makes one asset, and prompts= names a file of many; .*distill prompts=list.txt$"
    ):
        distill.generate(prompt, prompts="list.txt", iterations=1)


@pytest.mark.parametrize(
    "words", [["prompt=a blue mug"], [f"prompt={quote('a red mug')}"], ["-m", "prompt=a mug,a car"]]
)
@pytest.mark.parametrize("first", [[], ["doctor"]])
def test_a_prompt_that_is_given_twice_is_refused(
    words: list[str], first: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*first, "a red mug", *(word for word in words if not (first and word == "-m"))) == 2
    assert "expected one prompt, got 'a red mug' and prompt=" in capsys.readouterr().err


def test_files_of_earlier_stages_are_told_by_what_they_hold() -> None:
    picture("edges.png", 80)
    words = [
        "prompt=a mug",
        "prior=sd-2.1-base",
        "stages=[field,surface]",
        "prior_options.controlnet=c",
        "prior_options.control=depth",
    ]
    mine = [*words, "output_dir=mine", "resume=true"]
    config = compose_config([*mine, "stage.field.prior_options.control=edges.png"])
    assert claim(config) == Path("mine")
    Path("there").mkdir()
    shutil.copy("edges.png", "there/edges.png")
    elsewhere = compose_config([*mine, "stage.field.prior_options.control=there/edges.png"])
    assert claim(elsewhere) == Path("mine")
    picture("edges.png", 81)
    with pytest.raises(
        ValueError, match=r"with another file as 1-field: prior_options\.control; give its own options"
    ):
        claim(config)
    renew(Path("mine"), elsewhere)
    assert OmegaConf.load("mine/config.yaml").earlier["1-field"].prior_options.control == "there/edges.png"


def test_a_run_goes_on_with_a_file_where_it_is_now() -> None:
    mesh("box.obj", 1)
    config = compose_config(["prompt=a red mug", "mesh=box.obj", "output_dir=mine"])
    claim(config)
    Path("there").mkdir()
    Path("box.obj").rename("there/box.obj")
    again = compose_config(["prompt=a red mug", "mesh=there/box.obj", "output_dir=mine", "resume=true"])
    renew(claim(again), again)
    assert OmegaConf.load("mine/config.yaml").mesh.file == "there/box.obj"


def test_what_decides_files_that_are_there_already_is_not_renewed() -> None:
    claim(compose_config(["prompt=a red mug", "output_dir=mine"]))
    again = compose_config(
        ["prompt=a red mug", "output_dir=mine", "export.faces=77", "render.at_once=2", "resume=true"]
    )
    renew(Path("mine"), again, written=False)
    stored = OmegaConf.load("mine/config.yaml")
    assert stored.export.faces != 77 and stored.render.at_once == 2 and not stored.resume
    renew(Path("mine"), again)
    assert OmegaConf.load("mine/config.yaml").export.faces == 77


def test_a_run_that_was_killed_before_its_settings_were_whole_is_in_nobodys_way() -> None:
    picture("mug.png", 80)
    config = compose_config(["image=mug.png", "output_dir=mine"])
    claim(config)
    Path("mine/config.yaml").unlink()
    check_unused(config)
    # Another run has no files of its own, so that those of the first one are forgotten.
    assert claim(compose_config(["prompt=a red mug", "output_dir=mine"])) == Path("mine")
    assert sorted(path.name for path in Path("mine").iterdir()) == ["config.yaml"]


def test_the_run_to_resume_is_the_one_that_goes_on() -> None:
    words = ["prompt=a red mug", "resume=true"]
    first, second = (claim(compose_config([*words, f"seed={seed}"])) for seed in (0, 1))
    (first / "config.yaml").unlink()
    (first / "letter.txt").write_text("dear")
    config = compose_config([*words, "seed=1"])
    assert to_resume(config) == claim(config) == second
    # A folder that is free comes first.
    (first / "letter.txt").unlink()
    assert to_resume(config) is None and claim(config) == first


def test_prompts_in_a_step_of_a_library_are_those_of_the_run_where_they_are_not_given() -> None:
    Path("list.txt").write_text("a red mug\na blue mug\n")
    words = ["prompts=list.txt", "scene=hyper_grid", "output_dir=mine", "resume=true"]
    claim(compose_config([*words, "optimiser.accumulate=2"]))
    check_unused(compose_config(words))
    with pytest.raises(ValueError, match=r"with optimiser\.accumulate=2, not 3;"):
        check_unused(compose_config([*words, "optimiser.accumulate=3"]))


@pytest.mark.parametrize(
    "prompt", ["a red mug", "a mug\nseed: 7\nof red", "a mug " + "red " * 40 + "seed: 7"]
)
def test_among_runs_of_other_seeds_a_sweep_reads_its_own_alone(
    prompt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To read the settings of each costs what grows with the square of their number; their text tells the seed."""
    words = [f"prompt={quote(prompt)}", "resume=true", "prior=/models/any"]
    made = {seed: claim(compose_config([*words, f"seed={seed}"])) for seed in (3, 4, 5)}
    read: list[Path] = []
    plain = stored.stored_in

    def reading(folder: Path) -> DictConfig | None:
        read.append(folder)
        return plain(folder)

    monkeypatch.setattr(stored, "stored_in", reading)
    for seed, folder in made.items():
        read.clear()
        assert to_resume(compose_config([*words, f"seed={seed}"])) == folder
        assert read == [folder]
    read.clear()
    assert to_resume(compose_config([*words, "seed=7"])) is None and not read


def test_a_sweep_reads_the_settings_of_each_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["prompt=a red mug", "resume=true"]
    configs = [compose_config([*words, f"guidance.scale={scale}"]) for scale in (3, 4, 5, 6)]
    read: list[str] = []
    plain = stored.stored_in

    def reading(folder: Path) -> DictConfig | None:
        read.append(folder.name)
        return plain(folder)

    monkeypatch.setattr(stored, "stored_in", reading)
    made = [claim(config) for config in configs]
    again = [claim(config) for config in configs]
    assert again == made and [to_resume(config) for config in configs] == made
    assert sorted(read) == sorted(folder.name for folder in made)
    # One that was changed since is read again.
    path = made[1] / "config.yaml"
    text = path.read_text()
    assert text.count("scale: 4\n") == 1
    path.write_text(text.replace("scale: 4\n", "scale: 9.5\n"))
    assert to_resume(configs[1]) is None
    assert to_resume(compose_config([*words, "guidance.scale=9.5"])) == made[1]
    assert read.count(made[1].name) == 2


#: What a ``config.yaml`` may hold that is no settings, and how that is told.
BROKEN: dict[str, tuple[bytes | None, str]] = {
    "gone": (None, r"\(.*No such file"),
    "no text": (b"prompt: \xff\xfe", r"\("),
    "no YAML": (b"prompt: [a", r"\("),
    "no number": (b"prompt: 0b_", r"\(invalid literal for int"),
    "a list": (b"- prompt", r"\(it holds no settings of a run"),
    "a word": (b"word", r"\("),
    "empty": (b"", r"\(it "),
    "another thing": (b"scene: 3", r"\(it "),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_settings_that_cannot_be_read_are_told_by_all_who_read_them(kind: str) -> None:
    """Where a run must have them, in one line that names the file; where they may be missing, they are as if they were."""
    content, why = BROKEN[kind]
    Path("run").mkdir()
    if content is not None:
        Path("run/config.yaml").write_bytes(content)
    said = rf"run/config.yaml cannot be read {why}[^\n]*"
    with pytest.raises(ValueError, match=rf"^{said}; init must be the folder of an earlier run$"):
        read_settings("run")
    if content is None:
        assert stored.stored_in(Path("run")) is None
    else:
        with pytest.raises(ValueError, match=rf"^{said}; remove run, or choose another output_dir=$"):
            stored.stored_in(Path("run"))
        with pytest.raises(
            ValueError,
            match=r"^distill.load takes the folder of a finished run, and run/config.yaml cannot be read",
        ):
            distill.load("run")
    assert scene_of_run("run", {}) == {} == follows_from("run", SdfScene)
    assert (
        scene_of_run("~nobody-of-this-name/run", {})
        == {}
        == follows_from("~nobody-of-this-name/run", SdfScene)
    )
    assert left_as_it_is(Path("run"), compose_config(["prompt=a red mug"])) == ""


def test_an_earlier_run_of_a_mesh_is_gone_on_from_only_where_it_says_which() -> None:
    """Settings of an earlier version may lack how the mesh stands; the scene alone would show another one."""
    Path("run").mkdir()
    known = plugins()["scene"]
    config = compose_config(["prompt=a red mug", "mesh=m.glb"])
    OmegaConf.save(config, "run/config.yaml")
    found = scene_of_run("run", known)
    assert (found["scene"], found["mesh.file"], found["mesh.up"]) == ("surface", "m.glb", "auto")
    plain: Any = OmegaConf.to_container(config)
    del plain["mesh"]["up"]
    OmegaConf.save(OmegaConf.create(plain), "run/config.yaml")
    assert scene_of_run("run", known) == {}

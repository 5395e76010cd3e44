"""What a user gives is used as it says, or refused in one line; and what only the cache cannot do stops no run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_pipelines import make

from distill import cli, doctor
from distill.priors import load_prior
from distill.priors.load import family_of
from distill.priors.source import find
from distill.priors.whole import check_complete
from distill.run import folders
from distill.run.assemble import assemble
from distill.run.batch import read_prompts
from distill.run.checks import check_prompt
from distill.run.compose import compose_config
from distill.run.journal import stop_signals


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    make("stable_diffusion").save_pretrained(tmp_path / "prior")
    return tmp_path / "prior"


def states(folder: Path) -> torch.Tensor:
    return load_prior(folder, dtype=torch.float32).embed(["a mug"])["encoder_hidden_states"]


def test_the_cache_tells_models_by_their_content(folder: Path) -> None:
    """Another model at the same path, of the same size and time, is another; the same one elsewhere is the same."""
    first = states(folder)
    (kept,) = (folder.parent / "cache" / "text").iterdir()
    moved = folder.rename(folder.parent / "moved")
    assert torch.equal(states(moved), first) and len(list(kept.parent.iterdir())) == 1
    file = moved / "text_encoder" / "model.safetensors"
    before = file.stat()
    weights = {name: value + 0.1 for name, value in load_file(file).items()}
    save_file(weights, file, {"format": "pt"})
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert not torch.allclose(states(moved), first)


def test_a_cache_that_cannot_be_written_is_said_and_the_run_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = states(folder)
    (folder.parent / "file").write_text("")
    monkeypatch.setenv("DISTILL_CACHE", str(folder.parent / "file"))
    caplog.clear()
    assert torch.equal(states(folder), expected)
    assert "set DISTILL_CACHE to a writable folder" in caplog.text


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_a_precision_has_a_name(folder: Path, name: str) -> None:
    prior = load_prior(folder, dtype=name)
    assert {value.dtype for value in prior.network.parameters()} == {getattr(torch, name)}
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, float16, got 'half'"):
        load_prior(folder, dtype="half")


@pytest.mark.parametrize("name", ["mug.png", "Mug.JPG", "a mug.webp"])
def test_a_picture_is_no_prompt(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.split_prompt([name]) == (name, [])
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(SystemExit) as ended:
        cli.main([name])
    assert ended.value.code == 2
    assert (
        capsys.readouterr().err
        == f"distill: error: {name} is a picture; to start from it, write image={name}\n"
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["a red mug"], {"prompt": "a red mug"}),
        (["--json", "a red mug, big", "seed=3"], {"prompt": "a red mug, big", "seed": 3}),
        (["prompts=list.txt"], {"prompt": "", "prompts": "list.txt"}),
        (["image=mug.png"], {"prompt": "", "image": "mug.png"}),
        (["negative_prompt=ugly, blurry"], {"prompt": "a red mug", "negative_prompt": "ugly, blurry"}),
    ],
)
def test_the_doctor_takes_what_a_run_takes(
    arguments: list[str], expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[DictConfig] = []

    def look(config: DictConfig, as_json: bool) -> int:
        seen.append(config)
        return 0

    monkeypatch.setattr(doctor, "doctor", look)
    with pytest.raises(SystemExit) as ended:
        cli.main(["doctor", *arguments])
    assert ended.value.code == 0
    assert {name: seen[0][name] for name in expected} == expected


def verdicts(*options: str) -> dict[str, tuple[str, str]]:
    return {found.name: (found.verdict, found.said) for found in doctor.inputs(compose_config(options))}


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files that a run cannot use, each in its own way."""
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "empty.txt": "# none\n", "strange.txt": "a red mug\na dragon\n", "good.txt": "a red mug\na blue table\n",
        "text.png": "no picture", "views.yaml": "front: [", "other.yaml": "top: a mug", "back.yaml": "back: behind a mug",
        "file": "", "mine/notes.txt": "mine",
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "latin.txt").write_bytes(b"a m\xfcg\n")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "model" / "unet").mkdir(parents=True)
    (tmp_path / "model" / "unet" / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\n"
    )
    picture = Image.new("RGB", (64, 64), "white")
    picture.paste((220, 30, 30), (16, 16, 48, 48))
    picture.save(tmp_path / "mug.png")
    picture.crop((0, 0, 64, 40)).save(tmp_path / "low.png")
    Image.effect_noise((64, 64), 200).save(tmp_path / "busy.png")
    return tmp_path


@pytest.mark.parametrize(
    ("options", "name", "said"),
    [
        (["prompts=gone.txt"], "prompts", "cannot be read"),
        (["prompts=empty.txt"], "prompts", "has none"),
        (["prompts=latin.txt"], "prompts", "cannot be read"),
        (["prompts=strange.txt"], "prompts", "does not know 'dragon'"),
        (["prompt=a dragon"], "prompt", "does not know 'dragon'"),
        (["image=gone.png"], "image", "is not there"),
        (["image=text.png"], "image", "cannot be read"),
        (["image=busy.png"], "image", "is not plain"),
        (["image=mug.png", "reference.depth=low.png", "penalties.reference_depth=1"], "image", "must be as large as"),
        (["image=mug.png", "novel_view=gone"], "novel_view", "a folder of a novel-view model"),
        (["image=mug.png", "novel_view=model"], "novel_view", "pointer of Git LFS"),
        (["prompt=a red mug", "views.file=views.yaml"], "views.file", "cannot be read"),
        (["prompt=a red mug", "views.file=other.yaml"], "views.file", "must hold a prompt for any of"),
        (["prompt=a red mug", "init=gone"], "init", "gone has no checkpoints"),
        (["prompt=a red mug", "init=run"], "init", "checkpoints of run are empty"),
        (["prompt=a red mug", "output_dir=mine"], "output_dir", "holds something else"),
        (["prompt=a red mug", "output_dir=file"], "output_dir", "cannot write"),
        (["prompt=a red mug", "output_dir=file/inside"], "output_dir", "cannot write"),
        (["prompt=a red mug", "guidance=vsd", "guidance.lora=gone"], "guidance.lora", "is not there"),
        (["prompt=a mug", "prior=sd-1.5", "prior_options.loras=[gone.safetensors]"], "lora", "is neither"),
        (
            ["prompt=a mug", "prior=sd-1.5", "prior_options.controlnet=x", "prior_options.control=text.png"],
            "prior_options.control", "cannot be read",
        ),
    ],
)  # fmt: skip
def test_the_doctor_refuses_what_a_run_refuses(there: Path, options: list[str], name: str, said: str) -> None:
    verdict, text = verdicts(*options)[name]
    assert verdict == "wrong" and said in text and "\n" not in text
    with pytest.raises(ValueError):  # the run itself, with the part that the doctor does not look at left out
        config = compose_config(options)
        if name == "output_dir":
            folders.claim(config)
        elif config.prompts:
            [check_prompt(compose_config([f"prompt={text}"])) for text in read_prompts(config)]
        elif name == "guidance.lora" or config.prior != "embedded":
            raise ValueError
        else:
            assemble(config)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["prompts=good.txt"], {"output_dir", "prompts"}),
        (["image=mug.png"], {"output_dir", "image", "novel_view"}),
        (["prompt=a mug", "prior=sd-1.5", "views.file=back.yaml"], {"output_dir", "prompt", "views.file"}),
        (["prompt=a red mug", "output_dir=new/deep"], {"output_dir", "prompt"}),
    ],
)
def test_the_doctor_passes_what_runs_and_leaves_nothing(
    there: Path, options: list[str], names: set[str]
) -> None:
    before = sorted(there.rglob("*"))
    found = verdicts(*options)
    assert set(found) == names and {verdict for verdict, _ in found.values()} == {"ok"}
    assert sorted(there.rglob("*")) == before


def test_the_doctor_looks_at_the_tensors_names_in_loras_and_encoders(folder: Path) -> None:
    """A LoRA of another network, junk, and a text encoder that lacks a layer; the whole ones pass."""
    save_file({"unet.strange.lora_A.weight": torch.zeros(1, 4)}, folder.parent / "other.safetensors")
    (folder.parent / "junk.safetensors").write_bytes(b"x" * 99)
    source = find(folder)
    for name in ("other", "junk"):
        config = compose_config(
            ["prompt=a mug", f"prior={folder}", f"prior_options.loras=[{folder.parent}/{name}.safetensors]"]
        )
        found = {each.name: each for each in doctor.fits(config, source)}
        assert found["options"].verdict == "ok" and found["lora"].verdict == "wrong"
        assert "does not fit this prior" in found["lora"].said
    family, index = family_of(folder)
    check_complete(folder, family, index)
    for part, cut in (("text_encoder", "layers.1"), ("vae", "decoder.conv_in"), ("unet", "conv_out")):
        (file,) = (folder / part).glob("*.safetensors")
        whole = load_file(file)
        save_file({key: x for key, x in whole.items() if cut not in key}, file, {"format": "pt"})
        with pytest.raises(ValueError, match=rf"{part} lacks \d+ of its weights, such as .*{cut}"):
            check_complete(folder, family, index)
        save_file(whole, file, {"format": "pt"})


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has none")
def test_a_terminal_that_closes_asks_a_run_to_stop() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may have been started by nohup
    try:
        with stop_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.wait(5)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        with stop_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.wait(0.1)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_list_whose_reader_has_seen_enough_is_silent() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "distill", "priors"],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")

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
from safetensors.torch import load_file, save_file
from tiny_pipelines import make

from distill import cli, doctor
from distill.priors import load_prior
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
        (["negative_prompt=ugly, blurry"], {"prompt": "example", "negative_prompt": "ugly, blurry"}),
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


def test_the_doctor_finds_files_that_are_not_there(tmp_path: Path) -> None:
    save_file({"x.lora_A.weight": torch.zeros(1)}, tmp_path / "there.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"x")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    config = compose_config(
        ["prompt=a mug", "prior=sd-1.5", f"init={tmp_path}/run", f"views.file={tmp_path}/views.yaml",
         f"prior_options.loras=[{tmp_path}/there.safetensors:0.5,{tmp_path}/gone.safetensors,{tmp_path}/cut.safetensors]"]
    )  # fmt: skip
    found = [(finding.name, finding.verdict) for finding in doctor.inputs(config)]
    assert found == [
        ("lora", "ok"),
        ("lora", "wrong"),
        ("lora", "wrong"),
        ("init", "ok"),
        ("views.file", "wrong"),
    ]
    config.init = str(tmp_path)
    assert ("init", "wrong") in [(finding.name, finding.verdict) for finding in doctor.inputs(config)]


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

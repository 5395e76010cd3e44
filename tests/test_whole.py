"""Folders of priors with a file that is missing, cut or another model's: one line that names it, before anything is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_pipelines import make, unet, vae

from distill.doctor import the_prior
from distill.priors import load_prior
from distill.run.several.batch import run_prompts
from distill.run.several.queue import compose_queue


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    make("stable_diffusion").save_pretrained(folder)
    return folder


def pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 492265168\n")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def change(path: Path, **more: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))


def at(do: Callable[[Path], object], file: str) -> Callable[[Path], object]:
    return lambda folder: do(folder / file)


def shards(folder: Path) -> None:
    weights = load_file(folder / "text_encoder/model.safetensors")
    names = sorted(weights)
    first = {name: weights[name] for name in names[: len(names) // 2]}
    save_file(first, folder / "text_encoder/model-00001-of-00002.safetensors", {"format": "pt"})
    (folder / "text_encoder/model.safetensors").unlink()
    listed = {name: f"model-0000{1 if name in first else 2}-of-00002.safetensors" for name in names}
    (folder / "text_encoder/model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))


#: What is done to a folder, and what is said.
HARM: dict[str, tuple[Callable[[Path], object], str]] = {
    **{
        f"pointer in {part}": (
            at(pointer, file),
            rf"{file} is a pointer of Git LFS.*git lfs pull",
        )
        for part, file in (
            ("unet", "unet/diffusion_pytorch_model.safetensors"),
            ("vae", "vae/diffusion_pytorch_model.safetensors"),
            ("text_encoder", "text_encoder/model.safetensors"),
        )
    },
    **{
        f"cut {file}": (
            at(cut, file),
            rf"{file} is cut short .*download the model again",
        )
        for file in ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors")
    },
    "empty weights": (
        lambda folder: (folder / "text_encoder/model.safetensors").write_bytes(b""),
        "model.safetensors is cut short",
    ),
    "no weights": (
        lambda folder: (folder / "text_encoder/model.safetensors").unlink(),
        r"no weights in .*text_encoder .*download the model again",
    ),
    "a shard": (shards, "model-00002-of-00002.safetensors is missing"),
    "no tokenizer": (lambda folder: shutil.rmtree(folder / "tokenizer"), "has no tokenizer"),
    "no settings": (lambda folder: (folder / "vae/config.json").unlink(), r"lacks .*vae/config.json"),
    "no scheduler": (lambda folder: shutil.rmtree(folder / "scheduler"), r"lacks .*scheduler_config.json"),
    "broken settings": (
        lambda folder: (folder / "text_encoder/config.json").write_text('{"a": '),
        r"text_encoder/config.json cannot be read",
    ),
    "broken index": (
        lambda folder: (folder / "model_index.json").write_text("{"),
        r"model_index.json cannot be read .*download the model again",
    ),
    "no index of names": (
        lambda folder: (folder / "model_index.json").write_text("[]"),
        "must hold named settings, got list",
    ),
    "a listed class": (
        lambda folder: change(folder / "model_index.json", _class_name=["diffusers", "X"]),
        "known kinds are StableDiffusion, ",
    ),
    "inpainting": (
        lambda folder: unet(9, 4).save_pretrained(folder / "unet"),
        r"takes 9 channels \(it is one for inpainting or editing\), and .* gives 4",
    ),
    "a wider VAE": (
        lambda folder: vae(16).save_pretrained(folder / "vae"),
        "takes 4 channels, and .* gives 16",
    ),
    "another's UNet": (
        lambda folder: unet(cross=32).save_pretrained(folder / "unet"),
        "takes text states of width 32, and the text encoders give 16; they are of different models",
    ),
}


@pytest.mark.parametrize("harm", list(HARM))
def test_a_folder_that_is_not_whole_is_one_line_before_anything_is_loaded(
    harm: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "prior"
    shutil.copytree(whole, folder)
    do, said = HARM[harm]
    do(folder)
    monkeypatch.setattr("distill.priors.load._parts", lambda *_: pytest.fail("loads before it looks"))
    with pytest.raises(ValueError, match=said) as caught:
        load_prior(folder)
    assert "\n" not in str(caught.value)
    verdicts = {finding.name: finding for finding, _ in the_prior(str(folder))}
    assert verdicts["prior"].verdict == "wrong" and verdicts["prior"].said == str(caught.value)


def lacking(folder: Path, file: str, what: str) -> None:
    weights = load_file(folder / file)
    kept = {name: value for name, value in weights.items() if what not in name}
    assert 0 < len(kept) < len(weights)
    save_file(kept, folder / file, {"format": "pt"})


def test_a_text_encoder_that_lacks_a_layer_is_never_drawn_at_random(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
    shutil.copytree(whole, tmp_path / "prior")
    lacking(tmp_path / "prior", "text_encoder/model.safetensors", "layers.1.mlp")
    prior = load_prior(tmp_path / "prior", dtype=torch.float32)
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"text_encoder lacks 4 of its weights, such as .*layers.1.mlp.fc1"
        ) as said:
            prior.embed(["a red mug"])
        assert "\n" not in str(said.value)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_network_that_lacks_a_layer_is_one_line(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "prior")
    lacking(tmp_path / "prior", "unet/diffusion_pytorch_model.safetensors", "mid_block")
    with pytest.raises(ValueError, match=r"unet lacks .* of its weights, such as mid_block") as said:
        load_prior(tmp_path / "prior", dtype=torch.float32)
    assert "\n" not in str(said.value)


def test_a_batch_goes_on_past_what_fails_while_prompts_are_embedded(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each prompt has its line; nothing is thrown out of the batch."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
    shutil.copytree(whole, tmp_path / "prior")
    for file in (tmp_path / "prior/tokenizer").iterdir():
        file.write_text("{")
    (tmp_path / "list.txt").write_text("a red mug\na blue cube\n")
    results = run_prompts(compose_queue(["prompts=list.txt", f"prior={tmp_path}/prior", "iterations=1"]))
    assert len(results) == 2 and all(
        why.startswith("could not load the text encoders") for why in results.values()
    )

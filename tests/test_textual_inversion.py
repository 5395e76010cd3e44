"""Textual-inversion embeddings: as diffusers' pipelines have them, with view words, weights and long prompts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_pipelines import make
from torch import Tensor

import distill
from distill.contracts import Prompt
from distill.doctor import beside
from distill.files.atomic import sha256
from distill.priors import load_prior
from distill.priors.inversion import Words, parse
from distill.priors.source import find
from distill.run.config.compose import compose_config

KINDS = ("stable_diffusion", "stable_diffusion_xl")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inversion")
    for kind in (*KINDS, "stable_diffusion_3"):
        make(kind).save_pretrained(folder / kind)
    return folder


def vectors(count: int, seed: int = 0, width: int = 16) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def file_for(kind: str, count: int, path: Path) -> tuple[Path, dict[str, Tensor]]:
    """A file for a model, and its vectors by text encoder."""
    first, second = vectors(count), vectors(count, 1)
    if kind == "stable_diffusion":
        save_file({"emb_params": first}, path)
        return path, {"text_encoder": first}
    save_file({"clip_l": first, "clip_g": second}, path)
    return path, {"text_encoder": first, "text_encoder_2": second}


def load(root: Path, kind: str, *embeddings: str | Path, **options: Any) -> Any:
    return load_prior(root / kind, dtype=torch.float32, image_size=64, embeddings=embeddings, **options)


@torch.no_grad()
def by_diffusers(kind: str, found: Mapping[str, Tensor], prompt: str) -> Tensor:
    """The states of diffusers' own pipeline with the same vectors under the token ``toy``."""
    pipeline = make(kind)
    for part, rows in found.items():
        tokenizer = getattr(pipeline, part.replace("text_encoder", "tokenizer"))
        pipeline.load_textual_inversion(
            rows, token="toy", text_encoder=getattr(pipeline, part), tokenizer=tokenizer
        )
    options: dict[str, Any] = {
        "device": "cpu",
        "num_images_per_prompt": 1,
        "do_classifier_free_guidance": False,
    }
    states: Tensor = pipeline.encode_prompt(prompt, **options)[0]
    return states


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_states_are_those_of_the_pipeline(kind: str, count: int, root: Path, tmp_path: Path) -> None:
    """Named by its file or in the option, in any case, and nothing but that word changes."""
    file, found = file_for(kind, count, tmp_path / "toy.safetensors")
    prior, plain = load(root, kind, file), load(root, kind)
    told = prior.embed(["a toy cup", "a cup", "a TOY cup", "a toyy cup"])["encoder_hidden_states"]
    torch.testing.assert_close(told[:1], by_diffusers(kind, found, "a toy cup"), rtol=1e-4, atol=1e-5)
    without = plain.embed(["a toy cup", "a cup", "a toyy cup"])["encoder_hidden_states"]
    assert torch.equal(told[1], without[1]) and torch.equal(told[2], told[0])
    assert torch.equal(told[3], without[2]) and not torch.allclose(told[0], without[0], atol=1e-3)
    renamed = load(root, kind, f"<mine>={file}").embed(["a <mine> cup"])["encoder_hidden_states"]
    torch.testing.assert_close(renamed[0], told[0], rtol=1e-5, atol=1e-6)


def test_the_cache_tells_files_and_tokens_apart(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
    kind, file = KINDS[0], tmp_path / "toy.safetensors"
    found = []
    for seed in (0, 1, 0):
        save_file({"any name": vectors(2, seed)}, file)
        found.append(load(root, kind, file).embed(["a toy"])["encoder_hidden_states"])
    assert torch.equal(found[0], found[2]) and not torch.allclose(found[0], found[1], atol=1e-3)
    other = load(root, kind, f"a={file}").embed(["a toy"])["encoder_hidden_states"]
    assert not torch.allclose(other, found[0], atol=1e-3)


def test_view_words_stay_where_a_long_prompt_is_cut(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three vectors take three of the twelve tokens; what is cut off is told by the token's name."""
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
    file, _ = file_for(KINDS[0], 3, tmp_path / "toy.safetensors")
    prior = load(root, KINDS[0], file)
    prompts = [Prompt("a b c d e f toy g", f", {view}") for view in "xy"]
    states = prior.embed(prompts)["encoder_hidden_states"]
    assert not torch.equal(states[0], states[1])
    (line,) = {record.getMessage() for record in caplog.records if "too long" in record.getMessage()}
    assert "toy g" in line and "distilltoken" not in line
    fits = prior.embed([Prompt("a b c toy d", ", x"), "a b c toy d, x"])["encoder_hidden_states"]
    assert torch.equal(fits[0], fits[1])


def test_weights_multiply_all_of_its_vectors(root: Path, tmp_path: Path) -> None:
    """By the rule of compel's weights, e0 + w (e - e0)."""
    file, found = file_for(KINDS[0], 2, tmp_path / "toy.safetensors")
    prior = load(root, KINDS[0], file, prompt_weighting=True)
    weighted = prior.embed(["a (toy:1.5) cup"])["encoder_hidden_states"][0]
    states = by_diffusers(KINDS[0], found, "a toy cup")[0]
    empty = prior.embed([""])["encoder_hidden_states"][0]
    expected = states.clone()
    expected[2:4] = empty[2:4] + 1.5 * (states[2:4] - empty[2:4])  # after the start and the a
    torch.testing.assert_close(weighted, expected, rtol=1e-4, atol=1e-5)


def test_longer_tokens_come_first_and_words_are_told_back(tmp_path: Path) -> None:
    files = []
    for name, count in (("bad", 1), ("bad-hand-5", 2)):
        save_file({"x": vectors(count)}, tmp_path / f"{name}.safetensors")
        files.append(parse(tmp_path / f"{name}.safetensors"))
    words = Words(files)
    written = words.written("a bad cup, Bad-Hand-5, badly")
    assert written == "a distilltoken0v0e cup, distilltoken1v0e distilltoken1v1e, badly"
    assert words.told(written) == "a bad cup, bad-hand-5, badly"
    told = words.written(Prompt("a bad cup", ", bad view"))
    assert isinstance(told, Prompt) and told.tail == ", distilltoken0v0e view"


def test_a_run_names_them(root: Path, tmp_path: Path) -> None:
    file, _ = file_for(KINDS[0], 1, tmp_path / "toy.safetensors")
    asset = distill.generate(
        "a toy", prior=root / KINDS[0], scene="image", iterations=1, output_dir=tmp_path / "run",
        **{"prior_options.embeddings": [f"toy={file}"], "log.tensorboard": False, "prior_options.image_size": 64},
    )  # fmt: skip
    digest = sha256(file)
    assert asset.manifest["embeddings"] == [{"name": "toy.safetensors", "token": "toy", "sha256": digest}]


@pytest.mark.parametrize(
    ("kind", "entry", "said"),
    [
        (KINDS[0], "missing.safetensors", "there is no file"),
        (KINDS[0], "old.pt", "is pickled.*python -m distill.convert"),
        (KINDS[0], "pointer.safetensors", "is a pointer of Git LFS"),
        (KINDS[0], "cut.safetensors", "is cut short"),
        (
            KINDS[0],
            "wide.safetensors",
            "has vectors of width 24, and the prior's text_encoder takes 16; give one",
        ),
        (KINDS[0], "xl.safetensors", "has 2 tensors, and this prior takes one for Stable Diffusion 1 or 2"),
        (
            KINDS[1],
            "good.safetensors",
            "has 1 tensors, and this prior takes one for XL, with clip_l and clip_g",
        ),
        (KINDS[0], "three.safetensors", "holds no textual-inversion embedding.* but 3 tensors"),
        (KINDS[0], "cube.safetensors", "holds no textual-inversion embedding"),
        (KINDS[0], "two words=good.safetensors", "a token is one word, got 'two words'"),
        (KINDS[0], "twice", "two files have the token good; give one as token=path"),
        (
            "stable_diffusion_3",
            "good.safetensors",
            "works with Stable Diffusion 1, 2 and XL, and this prior is a Stable",
        ),
    ],
)
def test_what_cannot_be_used_is_one_line_before_anything_is_loaded(
    kind: str, entry: str, said: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {
        "good": {"x": vectors(2)}, "wide": {"x": vectors(2, width=24)}, "three": {name: vectors(1) for name in "abc"},
        "xl": {"clip_l": vectors(1), "clip_g": vectors(1)}, "cube": {"x": torch.zeros(2, 2, 16)}, "cut": {"x": vectors(9)},
    }  # fmt: skip
    for name, content in tensors.items():
        save_file(content, tmp_path / f"{name}.safetensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(cut.read_bytes()[:-9])
    (tmp_path / "pointer.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "old.pt").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("distill.priors.load._parts", lambda *_: pytest.fail("loads before it looks"))
    given = ["good.safetensors", "Good=good.safetensors"] if entry == "twice" else [entry]
    with pytest.raises(ValueError, match=said) as caught:
        load(root, kind, *given)
    assert "\n" not in str(caught.value)
    listed = ",".join(f"'{each}'" for each in given)
    config = compose_config(["prompt=a", f"prior={root}/{kind}", f"prior_options.embeddings=[{listed}]"])
    (finding,) = beside(config, find(root / kind))
    assert (finding.verdict, finding.said) == ("wrong", str(caught.value))


def test_what_follows_a_token_counts_in_the_pooled_state(root: Path, tmp_path: Path) -> None:
    """Published encoders say 2 for the end of a prompt, for which transformers takes the highest token, which a new word is."""
    folder = shutil.copytree(root / "stable_diffusion_xl", tmp_path / "prior")
    for part in ("text_encoder", "text_encoder_2"):
        path = folder / part / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": 2}))
    file, _ = file_for("stable_diffusion_xl", 2, tmp_path / "toy.safetensors")
    told = load(tmp_path, "prior", file).embed(["a toy", "a toy of the king"])["text_embeds"]
    assert not torch.allclose(told[0], told[1], atol=1e-3)
    # Without a new word, the end is found as before.
    plain = load(tmp_path, "prior").embed(["a mug"])["text_embeds"]
    torch.testing.assert_close(load(tmp_path, "prior", file).embed(["a mug"])["text_embeds"], plain)


def test_the_cache_tells_models_apart_whose_empty_prompt_differs(root: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(root / "stable_diffusion_xl", tmp_path / "prior")
    index = folder / "model_index.json"
    found = []
    for zeros in (True, False):
        index.write_text(json.dumps({**json.loads(index.read_text()), "force_zeros_for_empty_prompt": zeros}))
        found.append(load(tmp_path, "prior").embed([""])["text_embeds"])
    assert not found[0].any() and found[1].any()

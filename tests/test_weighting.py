"""Prompts with weights and of any length: the rule by hand, and what a run makes of several lengths."""

from __future__ import annotations

import math
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pipelines import make
from torch import Tensor

import distill
from distill.contracts import Embedding
from distill.priors import load_prior
from distill.priors.text import cache_folder, filled

#: The small encoders take 12 tokens, letters: a start, ten letters, an end.
PART = 12


@pytest.fixture(scope="module", params=["stable_diffusion", "stable_diffusion_xl"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    make(request.param).save_pretrained(folder)
    return folder


def load(folder: Path, **options: Any) -> Any:
    return load_prior(folder, dtype=torch.float32, **{"image_size": 64, "prompt_weighting": True, **options})


@torch.no_grad()
def states(text: str, hidden: tuple[int, ...] = ()) -> Tensor:
    """What CLIP makes of a prompt while no token attends to some places, ``[tokens, width]``."""
    pipeline = make("stable_diffusion")
    tokens = pipeline.tokenizer(text, padding="max_length", max_length=PART, return_tensors="pt").input_ids
    mask = torch.ones_like(tokens)
    mask[:, list(hidden)] = 0
    return pipeline.text_encoder(tokens, attention_mask=mask).last_hidden_state[0]


def test_a_plain_prompt_is_as_the_pipeline_has_it(folder: Path) -> None:
    prompts = ["a red mug", "", "a cat, c"]
    plain, weighted = load(folder, prompt_weighting=False).embed(prompts), load(folder).embed(prompts)
    assert plain.keys() == weighted.keys()
    for name, value in plain.items():
        torch.testing.assert_close(weighted[name], value, rtol=1e-5, atol=1e-6)


def test_a_folder_with_a_text_encoder_alone_has_it_too(latent_folder: Path) -> None:
    plain, weighted = (load_prior(latent_folder, prompt_weighting=on) for on in (False, True))
    name = "encoder_hidden_states"
    torch.testing.assert_close(weighted.embed(["a mug"])[name], plain.embed(["a mug"])[name])
    assert weighted.embed(["a (mug)2", "a mug of a king"])[name].shape[1] == 2 * PART


@pytest.mark.parametrize("text", ["a (red)1.3 mug", "a (red:1.3) mug", "a (red: 1.30 ) mug"])
def test_weights_above_one_by_hand(tmp_path: Path, text: str) -> None:
    make("stable_diffusion").save_pretrained(tmp_path)
    found = load(tmp_path).embed([text])["encoder_hidden_states"][0]
    weight = torch.ones(PART, 1)
    weight[2:5] = 1.3  # start, a, r, e, d
    empty = states("")
    torch.testing.assert_close(found, empty + weight * (states("a red mug") - empty), rtol=1e-5, atol=1e-6)


def test_weights_below_one_by_hand(tmp_path: Path) -> None:
    make("stable_diffusion").save_pretrained(tmp_path)
    found = load(tmp_path).embed(["a (red:0.6) mug"])["encoder_hidden_states"][0]
    weight = torch.ones(PART, 1)
    weight[2:5] = 0.6
    empty, ratio = states(""), math.tan(0.4 * math.pi / 2)
    seen, hidden = (empty + weight * (states("a red mug", hide) - empty) for hide in ((), (2, 3, 4)))
    torch.testing.assert_close(found, (seen + ratio * hidden) / (1 + ratio), rtol=1e-5, atol=1e-6)


def test_a_long_prompt_is_its_parts_one_after_another(folder: Path) -> None:
    prior = load(folder)
    long = prior.embed(["a red mug, a big cat", "a cat", ""])
    name = "encoder_hidden_states"
    assert long[name].shape[1] == 2 * PART
    first, second, cat, empty = load(folder, prompt_weighting=False).embed(
        ["a red mug,", "a big cat", "a cat", ""]
    )[name]
    close: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(long[name][0], torch.cat([first, second]), **close)
    torch.testing.assert_close(long[name][1], torch.cat([cat, empty]), **close)
    torch.testing.assert_close(long[name][2], torch.cat([empty, empty]), **close)
    # Alone, the same prompt is as short as it is: what is kept on disk does not depend on what stood beside it.
    torch.testing.assert_close(prior.embed(["a cat"])[name][0], cat, **close)


def test_the_pooled_embedding_is_of_the_first_part_without_weights(tmp_path: Path) -> None:
    make("stable_diffusion_xl").save_pretrained(tmp_path)
    weighted, plain = load(tmp_path), load(tmp_path, prompt_weighting=False)
    found = weighted.embed(["a (red:1.3) mug", "a red mug, a big cat"])["text_embeds"]
    expected = plain.embed(["a red mug", "a red mug, a big cat"])[
        "text_embeds"
    ]  # cut off at the encoder's length
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_filling_up_repeats_the_empty_prompt() -> None:
    def row(*numbers: float) -> dict[str, Tensor]:
        return {"encoder_hidden_states": torch.tensor(numbers)[:, None], "pooled": torch.tensor(numbers[0])}

    rows = filled([row(1, 2, 3, 4, 5, 6), row(7, 8)], row(0, 9))
    assert [x["encoder_hidden_states"][:, 0].tolist() for x in rows] == [
        [1, 2, 3, 4, 5, 6],
        [7, 8, 0, 9, 0, 9],
    ]
    assert [x["pooled"].item() for x in rows] == [1, 7]


def test_the_cache_tells_weighted_from_plain(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path))

    def embed(on: bool) -> Embedding:
        found: Embedding = load(folder, prompt_weighting=on).embed(["a (red:1.5) cup"])
        return found

    plain = embed(False)
    weighted = embed(True)
    assert len(list((cache_folder() / "text").iterdir())) == 3  # one of them for the empty prompt
    name = "encoder_hidden_states"
    assert plain[name].shape != weighted[name].shape or not torch.equal(plain[name], weighted[name])
    assert torch.equal(embed(True)[name], weighted[name])


@pytest.mark.parametrize(
    "options",
    [
        {"guidance": "nfsd", "negative_prompt": "ugly"},
        {"guidance": "sds", "perp_neg.enabled": True},
        {
            "guidance": "mix",
            "guidance.terms": [{"loss": "sds"}, {"loss": "csd", "prompt": "a (red)2 cup of a king"}],
        },
    ],
    ids=str,
)
def test_a_run_whose_prompts_are_of_several_lengths(
    folder: Path, options: dict[str, Any], tmp_path: Path
) -> None:
    asset = distill.generate(
        "a (red:1.3) mug of the king", prior=folder, output_dir=tmp_path / "run", iterations=1, preset="none",
        **{
            "prior_options.prompt_weighting": True, "prior_options.image_size": 64, "render.size": 16, "render.batch": 2,
            "scene.log2_table_size": 10, "scene.levels": 2, "export.enabled": False, "log.tensorboard": False,
            "view_words": "four", **options,
        },
    )  # fmt: skip
    assert asset.manifest["skipped_steps"] == 0


def test_terms_of_several_lengths_are_said(folder: Path, tmp_path: Path) -> None:
    terms = [{"loss": "sds"}, {"loss": "csd", "prompt": "a cup", "negative": -1.0, "empty": 0.0}]
    with pytest.raises(
        ValueError, match=r"a term's own prompt comes to 36 tokens and the run's to 72; make them"
    ):
        distill.generate(
            "a mug of a king and a queen of clubs", prior=load(folder), output_dir=tmp_path / "run", preset="none",
            guidance="mix",
            **{"scene.log2_table_size": 10, "scene.levels": 2, "guidance.terms": terms, "negative_prompt": "ugly", "log.tensorboard": False, "view_words": "four"},
        )  # fmt: skip


@pytest.mark.parametrize("name", ["deepfloyd", "stable_diffusion_3"])
def test_other_families_say_that_they_have_none(name: str, tmp_path: Path) -> None:
    make(name).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"prompt_weighting works with .*StableDiffusionXLPipeline, and not with a"
    ):
        load(tmp_path, image_size=8 if name == "deepfloyd" else 64)


def test_without_compel_the_remedy_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setitem(sys.modules, "compel", None)
    monkeypatch.setattr(metadata, "version", none)
    with pytest.raises(ValueError, match=r"needs the package compel; pip install compel"):
        load(folder)

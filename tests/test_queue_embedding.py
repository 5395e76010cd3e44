"""A queue embeds all of its prompts first: the text encoders are loaded once, and are gone before the first run."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pipelines import make

from distill.priors import encoders, load_prior, text
from distill.run.assembly.conditioning import texts_of
from distill.run.config.compose import compose_config
from distill.run.several import batch
from distill.run.several.batch import run_prompts
from distill.run.several.queue import compose_queue

QUICK = [
    "scene=image", "iterations=1", "render.size=16", "prior_options.image_size=64", "prior_options.dtype=float32",
    "log.tensorboard=false", "log.preview_every=0", "export.enabled=false", "output_dir=out",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
    make("stable_diffusion").save_pretrained(tmp_path / "prior")
    return tmp_path


def loads_of(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Weak references to each pipeline that is loaded for its text encoders."""
    loaded: list[Any] = []
    plain = encoders._load_text

    def load(*given: Any) -> Any:
        made = plain(*given)
        loaded.append(weakref.ref(made.text_encoder))
        return made

    monkeypatch.setattr(encoders, "_load_text", load)
    return loaded


@pytest.mark.slow
@pytest.mark.parametrize("kept", [True, False])
def test_the_encoders_are_loaded_once_and_freed(
    kept: bool, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the cache cannot be written, too."""
    if not kept:
        monkeypatch.setenv("DISTILL_CACHE", str(folder / "prior" / "model_index.json"))
    loaded, alive = loads_of(monkeypatch), []
    plain = batch.carry_out

    def carry_out(*given: Any) -> Any:
        gc.collect()
        alive.append(sum(each() is not None for each in loaded))
        return plain(*given)

    monkeypatch.setattr(batch, "carry_out", carry_out)
    (folder / "list.txt").write_text("a red mug\na blue cube\na cat\n")
    more = ["negative_prompt=ugly", "prompts=list.txt", "prior=prior"]
    results = run_prompts(compose_queue([*QUICK, *more]))
    assert list(results.values()) == ["finished"] * 3
    assert len(loaded) == 1 and alive == [0, 0, 0]
    again = run_prompts(compose_queue([*QUICK, *more]))
    assert list(again.values()) == ["skipped"] * 3 and len(loaded) == 1


def test_many_prompts_are_embedded_in_parts_and_as_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "AT_ONCE", 2)
    prompts = [f"a {name}" for name in ("mug", "cat", "cube", "red mug", "blue cat")]
    found = load_prior(folder / "prior", dtype=torch.float32).embed(prompts)["encoder_hidden_states"]
    monkeypatch.setenv("DISTILL_CACHE", str(folder / "other"))
    for prompt, row in zip(prompts, found, strict=True):
        alone = load_prior(folder / "prior", dtype=torch.float32).embed([prompt])["encoder_hidden_states"]
        torch.testing.assert_close(row[None], alone, rtol=1e-5, atol=1e-6)


def test_what_a_run_embeds(folder: Path) -> None:
    """Four views, the empty prompt, the negative one and the prompt alone."""
    config = compose_config(["prompt=a mug", "prior=prior", "negative_prompt=ugly", "views.back=its back"])
    assert texts_of(config, load_prior(folder / "prior")) == [
        "a mug, front view", "a mug, side view", "its back", "a mug, overhead view", "", "ugly", "a mug",
    ]  # fmt: skip

"""What a queue of thousands of prompts does once, and not for each prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from diffusers.utils import logging as of_diffusers
from omegaconf import OmegaConf
from tiny_pipelines import make
from transformers.utils import logging as of_transformers

from distill import inputs
from distill.conditions.prompt_library import Prompts
from distill.priors import load_prior
from distill.priors.quiet import SILENT, quiet
from distill.run.assembly import conditioning
from distill.run.config.compose import compose_config
from distill.run.config.schema import Config
from distill.run.folder import folders
from distill.run.folder.folders import claim
from distill.run.several import batch
from distill.run.several.stages import plan


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))


def asked_of(prior: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that a prior's encoders embed from now on."""
    texts, plain = list[str](), prior.text.embed

    def embed(pipeline: Any, prompts: Any) -> Any:
        texts.extend(prompts)
        return plain(pipeline, prompts)

    monkeypatch.setattr(prior.text, "embed", embed)
    return texts


@pytest.mark.slow
def test_embeddings_that_are_not_kept_are_not_made_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the bundled prior, whose encoder stays in memory; of one whose encoders are loaded for it, they are."""
    wanted = ["a red mug", "a blue cube"]
    small = load_prior("embedded")
    asked, config = asked_of(small, monkeypatch), compose_config(["prompts=list.txt", "prior=embedded"])
    batch.embed_first(config, wanted, small)
    assert asked == []
    library = Prompts(tuple(wanted))
    alone = conditioning.embed_library(config, small, library)
    assert asked == wanted  # the views of a prompt when it is drawn

    make("stable_diffusion").save_pretrained("prior")
    large = load_prior("prior")
    asked, config = asked_of(large, monkeypatch), compose_config(["prompts=list.txt", "prior=prior"])
    batch.embed_first(config, wanted, large)
    made = [*asked]
    assert set(made) >= {"a red mug", "a blue cube, back view", ""} and len(made) == len({*made})
    conditioning.embed_library(config, large, library)
    assert asked == made  # they were kept
    assert alone.shape[0] == 2


def test_who_is_silent_is_not_silenced_again() -> None:
    """To set a level costs a millisecond of a process with many loggers, and prompts are counted one by one."""
    libraries = of_diffusers, of_transformers
    before, set_again = [each.get_verbosity() for each in libraries], list[str]()
    with quiet():
        assert [each.get_verbosity() for each in libraries] == [SILENT, SILENT]
        with pytest.MonkeyPatch.context() as patch:
            for each in libraries:
                patch.setattr(each, "set_verbosity", lambda level: set_again.append(level))
            with quiet():
                pass
        assert [each.get_verbosity() for each in libraries] == [SILENT, SILENT] and not set_again
    assert [each.get_verbosity() for each in libraries] == before


def test_the_doctor_composes_a_list_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And names no more of what its prompts are read as than a table shows."""
    prompts = [f"a {colour} cuddly bear {i}" for i in range(30) for colour in ("red", "$" + "{x}")]
    Path("list.txt").write_text("\n".join(prompts) + "\n")
    seen, config = list[str](), compose_config(["prompts=list.txt", "prior=gone"])

    def check(one: Any) -> str:
        seen.append(one.prompt)
        return f"{one.prompt} is taken as it is" if "red" in one.prompt else ""

    monkeypatch.setattr(inputs, "check_prompt", check)
    monkeypatch.setattr(OmegaConf, "merge", lambda *_: pytest.fail("composed for a prompt"))
    monkeypatch.setattr(inputs, "SHOWN", 28)
    said = inputs.listed(config).split("; ")
    assert seen == prompts
    assert said[0] == "list.txt: 60 prompts" and len(said) == 30 and said[-1] == "and 2 more"
    assert config.prompt == ""


def test_a_run_of_one_stage_is_planned_without_composing_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the settings that composing gives, and apart from the run's own."""
    configs = [compose_config(["prompt=a red mug", *words]) for words in ([], ["stages=[field]", "seeds=3"])]
    again = [OmegaConf.merge(OmegaConf.structured(Config), config, {"stages": []}) for config in configs]
    monkeypatch.setattr(OmegaConf, "merge", lambda *_: pytest.fail("composed again"))
    for config, wanted in zip(configs, again, strict=True):
        (alone,) = plan(config, Path("out"))
        assert alone == wanted and OmegaConf.get_type(alone) is Config
        alone.render.size = 7
        assert config.render.size != 7


def test_of_many_runs_of_a_prompt_the_newest_are_read_to_say_what_differs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for seed in range(6):
        claim(compose_config(["prompt=a red mug", f"seed={seed}"]))
    read, plain = list[str](), folders.differing

    def differing(folder: Path, config: Any) -> str:
        read.append(folder.name)
        return plain(folder, config)

    monkeypatch.setattr(folders, "differing", differing)
    said = folders.nothing_to_resume(compose_config(["prompt=a red mug", "seed=9", "resume=true"]))
    assert [name.rpartition("-")[2] for name in read] == ["4", "5", "6"]
    assert "-6 (seed=5, not 9)" in said and "seed=2" not in said

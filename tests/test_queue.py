"""A file of prompts: each is made as it would be alone, and those with the same settings share a prior."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from distill.run import batch
from distill.run.compose import compose_config
from distill.run.queue import Queue, compose_queue

#: The prior and the first timesteps that the tuned options give, and those of a kind with the prior of things.
WORLD, THINGS, BARE = ("embedded", 0.1), ("things", 0.1), ("things", 0.92)
MIXED = ["a hamburger", "a red mug", "a mug", "a purple dragon", "a blue house", "a horse"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("list.txt").write_text("\n".join(MIXED))


def parts_of(queue: Queue) -> list[tuple[tuple[str, float], list[str]]]:
    return [((str(one.prior), float(one.timesteps.t_min)), prompts) for one, prompts in queue.parts]


def test_prompts_are_divided_by_the_prior_that_knows_them() -> None:
    assert parts_of(compose_queue(["prompts=list.txt"])) == [
        (THINGS, ["a hamburger", "a purple dragon", "a horse"]),
        (WORLD, ["a red mug", "a blue house"]),
        (BARE, ["a mug"]),
    ]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["prior=embedded"], [(WORLD, MIXED)]),
        (["prior=things"], [(THINGS, [MIXED[i] for i in (0, 3, 5)]), (BARE, [MIXED[i] for i in (1, 2, 4)])]),
        (["prior=things", "timesteps.t_min=0.3"], [(("things", 0.3), MIXED)]),
        (["timesteps.t_min=0.3"], [(("things", 0.3), [MIXED[i] for i in (0, 2, 3, 5)]), (("embedded", 0.3), [MIXED[1], MIXED[4]])]),
        (["shard=2/3"], [(WORLD, ["a red mug", "a blue house"])]),
        (["shard=1/3"], [(THINGS, ["a hamburger", "a purple dragon"])]),
    ],
)  # fmt: skip
def test_what_is_given_is_not_chosen(words: list[str], parts: list[Any]) -> None:
    assert parts_of(compose_queue(["prompts=list.txt", *words])) == parts


@pytest.mark.parametrize("prompt", [MIXED[0], MIXED[1], MIXED[2]])
@pytest.mark.parametrize("words", [[], ["guidance=csd"], ["timesteps=uniform"]])
def test_a_prompt_of_a_list_has_the_settings_that_it_has_alone(prompt: str, words: list[str]) -> None:
    queue = compose_queue(["prompts=list.txt", *words])
    (config,) = (one for one, prompts in queue.parts if prompt in prompts)
    alone = compose_config([f"prompt={prompt}", "resume=true", *words])
    assert OmegaConf.to_yaml(batch._one(config, prompt)) == OmegaConf.to_yaml(alone)


def test_a_library_is_a_list_of_all_its_prompts() -> None:
    lists = {"train": ["a red mug", "a hamburger"], "held_out": ["a blue house"]}
    Path("library.json").write_text(json.dumps(lists, indent=1))
    queue = compose_queue(["prompts=library.json"])
    assert queue.listed == 3
    assert parts_of(queue) == [(WORLD, ["a red mug", "a blue house"]), (THINGS, ["a hamburger"])]


def test_each_prior_is_loaded_once_after_a_look_at_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    did = list[str]()

    def one(config: Any, prompt: str, root: Path, prior: object, desk: object) -> tuple[str, str]:
        did.append(f"{prior}: {prompt}")
        return "finished", ""

    def opened(config: Any, device: object) -> str:
        did.append(f"open {config.prior}")
        return str(config.prior)

    monkeypatch.setattr(batch, "_run_one", one)
    monkeypatch.setattr(batch, "open_prior", opened)
    monkeypatch.setattr(batch, "check_prior", lambda config, _: did.append(f"check {config.prior}"))
    monkeypatch.setattr(batch, "embed_first", lambda *_: None)
    Path("list.txt").write_text("a hamburger\na red mug\na horse\n")
    results = batch.run_prompts(compose_queue(["prompts=list.txt", "output_dir=out"]))
    assert results == dict.fromkeys(["a hamburger", "a horse", "a red mug"], "finished")
    assert did == [
        "check things", "check embedded",
        "open things", "things: a hamburger", "things: a horse", "open embedded", "embedded: a red mug",
    ]  # fmt: skip
    with Path("out/batch.csv").open(newline="") as file:
        assert [row["prompt"] for row in csv.DictReader(file)] == ["a hamburger", "a horse", "a red mug"]


def test_a_prior_that_cannot_be_used_stops_a_queue_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def check(config: Any, _: object) -> None:
        if config.prior == "embedded":
            raise ValueError("no such prior")

    monkeypatch.setattr(batch, "check_prior", check)
    monkeypatch.setattr(batch, "open_prior", lambda *_: pytest.fail("it was loaded"))
    with pytest.raises(ValueError, match="no such prior"):
        batch.run_prompts(compose_queue(["prompts=list.txt", "output_dir=out"]))

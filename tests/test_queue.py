"""A file of prompts: each is made as it would be alone, and those with the same settings share a prior."""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from distill import cli
from distill.embedded import prompt as prompt_module
from distill.run.config.compose import compose_config
from distill.run.config.overrides import quote
from distill.run.several import batch
from distill.run.several.queue import Queue, compose_queue

#: The prior and the first timesteps that the tuned options give, and those of a kind with the prior of things.
WORLD, THINGS, BARE = ("embedded", 0.96), ("things", 0.96), ("things", 0.96)
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
        (WORLD, ["a red mug", "a mug", "a blue house"]),
    ]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["prior=embedded"], [(WORLD, MIXED)]),
        (["prior=things"], [(THINGS, [MIXED[i] for i in (0, 3, 5)]), (BARE, [MIXED[i] for i in (1, 2, 4)])]),
        (["prior=things", "timesteps.t_min=0.3", "guidance.scale=4"], [(("things", 0.3), MIXED)]),
        (
            ["timesteps.t_min=0.3", "guidance.scale=4"],
            [(("things", 0.3), [MIXED[i] for i in (0, 3, 5)]), (("embedded", 0.3), [MIXED[i] for i in (1, 2, 4)])],
        ),
        (["shard=2/3"], [(WORLD, ["a red mug", "a blue house"])]),
        (["shard=1/3"], [(THINGS, ["a hamburger", "a purple dragon"])]),
    ],
)  # fmt: skip
def test_what_is_given_is_not_chosen(words: list[str], parts: list[Any]) -> None:
    assert parts_of(compose_queue(["prompts=list.txt", *words])) == parts


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        [],
        ["guidance=csd"],
        ["timesteps=uniform"],
        ["stages=[field,surface]"],
        ["stages=[mine]"],
        ["stages=[mine,surface]", "stage.surface.iterations=3"],
        ["source_prompt=a blue mug", "guidance=dds"],
        ["source_prompt=a horse", "guidance=dds"],
        ["+experiment=own"],
        ["seeds=2"],
    ],
)
def test_a_prompt_of_a_list_has_the_settings_that_it_has_alone(words: list[str]) -> None:
    for group, text in (("stage", "iterations: 9\n"), ("experiment", "seed: 3\n")):
        (Path("mine") / group).mkdir(parents=True)
        name = "mine" if group == "stage" else "own"
        Path(f"mine/{group}/{name}.yaml").write_text(f"# @package _global_\n{text}prior: /models/sd\n")
    queue = compose_queue(["prompts=list.txt", *words], ["mine"])
    for prompt in ("a hamburger", "a red mug", "a mug"):
        (config,) = (one for one, prompts in queue.parts if prompt in prompts)
        alone = compose_config([f"prompt={prompt}", "resume=true", *words], ["mine"])
        assert OmegaConf.to_yaml(batch._one(config, prompt)) == OmegaConf.to_yaml(alone)


@pytest.mark.parametrize(
    "prompt", ["null", "[close up] a red mug", "{old|new} mug", "a mug, red", "x=1", "it's ${a}"]
)
def test_any_text_is_a_prompt(prompt: str) -> None:
    Path("list.txt").write_text(f"{prompt}\na blue cube\n")
    queue = compose_queue(["prompts=list.txt", "prior=/models/sd"])
    assert parts_of(queue)[0][1] == [prompt, "a blue cube"] and len(queue.parts) == 1
    assert batch._one(queue.parts[0].config, prompt).prompt == prompt
    alone = compose_config([f"prompt={quote(prompt)}", "resume=true"])
    found = [one for one, prompts in compose_queue(["prompts=list.txt"]).parts if prompt in prompts]
    assert [str(one.prior) for one in found] == [str(alone.prior)]


def test_a_pipe_is_read_once() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"a red mug\na hamburger\n")
    os.close(writing)
    queue = compose_queue([f"prompts=/dev/fd/{reading}"])
    os.close(reading)
    assert parts_of(queue) == [(WORLD, ["a red mug"]), (THINGS, ["a hamburger"])]


def test_without_a_file_it_is_one_line() -> None:
    with pytest.raises(ValueError, match="prompts= is empty; write prompts=FILE, a JSON file"):
        compose_queue(["prompt=a red mug"])


def test_a_prompt_is_understood_once_by_each_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, plain = Counter[str](), prompt_module._read

    def read(prompt: str, known: Any) -> Any:
        asked[prompt] += 1
        return plain(prompt, known)

    monkeypatch.setattr(prompt_module, "_read", read)
    texts = [f"a {colour} {kind}, please" for colour in ("red", "blue") for kind in ("mug", "thingummy")]
    Path("list.txt").write_text("\n".join(texts))
    queue = compose_queue(["prompts=list.txt"])
    for config, prompts in queue.parts:
        batch.say_first(config, prompts)
    assert set(asked) == set(texts) and max(asked.values()) <= 2


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
    Path("list.txt").write_text("a hamburger\na red mug\na mug\na horse\n")
    results = batch.run_prompts(compose_queue(["prompts=list.txt", "output_dir=out"]))
    made = ["a hamburger", "a horse", "a red mug", "a mug"]
    assert results == dict.fromkeys(made, "finished")
    assert did == [
        "check things", "check embedded",
        "open things", "things: a hamburger", "things: a horse", "open embedded", "embedded: a red mug", "embedded: a mug",
    ]  # fmt: skip
    with Path("out/batch.csv").open(newline="") as file:
        assert [row["prompt"] for row in csv.DictReader(file)] == made


@pytest.mark.slow
def test_options_why_and_doctor_speak_of_each_part(capsys: pytest.CaptureFixture[str]) -> None:
    def said(*words: str) -> str:
        with pytest.raises(SystemExit) as ended:
            cli.main([*words, "prompts=list.txt"])
        assert ended.value.code in (0, 1)
        return capsys.readouterr().out

    Path("list.txt").write_text("a hamburger\na red mug\na horse\n")
    first, second = "'a hamburger' and 1 more of the prompts", "'a red mug'"
    options = said("--options").split("# ")
    assert [part.partition(":\n")[0] for part in options[1:]] == [first, second]
    assert ["prior: things" in part for part in options[1:]] == [True, False]
    why = said("--why", "prior")
    assert re.findall(r"# (.*):\nprior = (\w+)", why) == [(first, "things"), (second, "embedded")]
    looked = [line.split() for line in said("doctor").splitlines()]
    assert {line[0] for line in looked if line[1] in ("prior", "prior,")} == {"ok"}
    assert sum(line[1].startswith("prompts") for line in looked) == 2


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

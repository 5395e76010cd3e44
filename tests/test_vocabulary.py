"""What prompts mean to the embedded prior: names that it knows, words that are near one, and what is refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from distill.cli import main
from distill.conditions import prompts
from distill.conditions.perp_neg import Curves
from distill.embedded import things, words, world
from distill.embedded.phrases import COLOURS, NEAR_COLOURS, OTHER_COLOURS, singulars
from distill.embedded.prompt import Meaning, asked, prior_for, told, understand
from distill.embedded.vocabulary import (
    SHIPPED,
    describe,
    knowing,
    known,
    of_prior,
    read_names,
    tokens,
    write_names,
)
from distill.inputs import looks
from distill.run import execute
from distill.run.assembly.prior import check_prompt
from distill.run.config.compose import compose_config
from distill.run.folder import manifest
from distill.run.several import batch
from distill.run.several.generator import library_of, tell_taken
from distill.run.several.queue import compose_queue


def rows_of(every: tuple[things.Thing, ...]) -> list[Any]:
    """A row for each name, whose colour can be chosen where that of one of the objects can."""
    chosen = {one.name for one in every if one.paint is not None}
    return [
        list(row)
        for row in dict.fromkeys((one.name, one.article, one.name in chosen, one.also) for one in every)
    ]


ROWS = rows_of(things.table())
ALL = knowing(ROWS)
WORLD = knowing([])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a prior that knows some things."""
    names = {"sofa", "hamburger", "grand piano", "scissors", "bicycle", "table with tablecloth"}
    rows: dict[str, Any] = {row[0]: row for row in ROWS if row[0] in names}
    assert set(rows) == names
    write_names(tmp_path, rows.values())
    return tmp_path


@pytest.mark.parametrize(
    ("prompt", "caption", "taken"),
    [
        ("a blue sofa", "a blue sofa", ()),
        ("A Photo of the RED  mug.", "a red mug", ()),
        ("red mug", "red mug", ()),
        ("a mug", "a mug", ()),
        ("a photo of an orange mug, left view", "a photo of an orange mug, left view", ()),
        ("a mug that is orange", "a mug that is orange", ()),
        ("the grand piano", "a grand piano", ()),
        ("a grand-piano", "a grand piano", ()),
        ("a blue table with tablecloth", "a blue table with tablecloth", ()),
        ("rubik\u2019s cube", "a rubik's cube", ()),
        ("red scissors", "red scissors", ()),
        ("two blue mugs", "a blue mug", (("mugs", "mug"), ("two", ""))),
        ("a sneaker", "sneakers", (("sneaker", "sneakers"),)),
        ("a crimson mug", "a red mug", (("crimson", "red"),)),
        ("a dark green mug", "a green mug", (("dark", ""),)),
        ("a mug in blue", "a blue mug", ()),
        ("a small red car", "a red small car", ()),
        ("a coffee mug in navy", "a blue coffee mug", (("navy", "blue"),)),
        ("a DSLR photo of a rusty red car, highly detailed", "a red car",
         (("dslr photo", ""), ("highly detailed", ""), ("rusty", ""))),
        ("a brown puppy, back view", "a brown dog, back view", (("puppy", "dog"),)),
        ("a red lorry", "a red truck", (("lorry", "truck"),)),
        ("a green hamburger", "a green hamburger", ()),
    ],
)  # fmt: skip
def test_a_prompt_means_what_a_reader_takes_it_for(
    prompt: str, caption: str, taken: tuple[tuple[str, str], ...]
) -> None:
    found = understand(prompt, ALL)
    assert (found.caption, found.taken) == (caption, taken)


def test_a_meaning_has_its_parts() -> None:
    assert understand("a navy lorry, left view", ALL) == Meaning(
        "blue", "truck", "left view", "a blue truck, left view", (("navy", "blue"), ("lorry", "truck"))
    )
    assert understand("a hamburger", ALL) == Meaning(None, "hamburger", None, "a hamburger")


def test_what_is_taken_for_something_is_said_in_one_line() -> None:
    said = {prompt: told(prompt, understand(prompt, ALL)) for prompt in ("a red mug", "a rusty blue lorry")}
    assert said == {
        "a red mug": "",
        "a rusty blue lorry": "'a rusty blue lorry' is read as 'a blue truck': 'lorry' is not known, 'truck' is; 'rusty' left out",
    }


def test_a_colour_that_cannot_be_chosen_goes_on_and_is_said() -> None:
    assert not ALL.names["hamburger"].paintable and ALL.names["sofa"].paintable
    found = understand("a green hamburger", ALL)
    assert found.own_colour
    assert told("a green hamburger", found) == (
        "'a green hamburger': the colour of 'hamburger' cannot be chosen, and 'green' may not be followed"
    )
    assert not understand("a hamburger", ALL).own_colour and not understand("a green sofa", ALL).own_colour


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a purple dragon", "does not know 'dragon'"),
        ("a asdfgh mug", "does not know 'asdfgh'"),
        ("a qwrtz dragon", "does not know 'dragon'"),
        ("a red car seatt", "does not know 'seatt'"),
        ("a red mug on a table", "'mug' and 'table'"),
        ("a red mug with steam", "has 'with'"),
        ("a red mug chair", "'mug' and 'chair'"),
        ("a cat and a dog", "'cat' and 'dog'"),
        ("a red blue mug", "'red' and 'blue'"),
        ("a white mug", "does not know the colour 'white'"),
        ("", "needs one thing"),
        ("a red", "needs one thing"),
        ("a", "needs one thing"),
        ("...", "needs one thing"),
    ],
)  # fmt: skip
def test_what_is_beyond_the_prior_is_refused_in_one_line(prompt: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"prior=FOLDER") as caught:
        understand(prompt, ALL)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_refusal_names_the_five_nearest_names_and_how_to_list_them() -> None:
    with pytest.raises(ValueError, match="distill priors embedded") as caught:
        understand("a red zebra", ALL)
    close = str(caught.value).partition("nearest of what it knows are ")[2].partition(";")[0].split(", ")
    assert len(close) == 5 and set(close) < set(ALL.names) and "horse" in close
    with pytest.raises(ValueError, match="nearest of what it knows are hamburger") as caught:
        understand("a hamburgr", ALL)


@pytest.mark.parametrize("prompt", ["кружка", "赤いマグカップ", "ein красный mug"])
def test_letters_that_no_name_has_are_near_to_none(prompt: str) -> None:
    with pytest.raises(ValueError, match=r"^.+$") as caught:
        understand(prompt, ALL)
    assert ("it knows English names, which 'distill priors" in str(caught.value)) == prompt.isalpha()
    assert ("nearest" in str(caught.value)) == (not prompt.isalpha())


def test_a_refusal_names_first_what_the_prompt_has_that_is_known() -> None:
    for prompt, name in (("a rocket ship", "rocket"), ("a teapot dragon", "teapot")):
        with pytest.raises(ValueError, match=f"nearest of what it knows are {name}, "):
            understand(prompt, ALL)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A Café table", ["a", "cafe", "table"]),
        ("cafe\u0301 \u00c5ngstro\u0308m", ["cafe", "angstrom"]),
        ("a red mug\u2122", ["a", "red", "mug"]),  # a trade mark is no letters
        ("\u2116 5, a CAF\u00c9", ["5", "a", "cafe"]),
        (
            "\u304c\u3093 \ud55c\uae00",
            ["\u304c\u3093", "\ud55c\uae00"],
        ),  # marks that make another letter stay
    ],
)
def test_accents_are_left_out_of_words(text: str, words: list[str]) -> None:
    assert tokens(text) == words


def test_a_refusal_names_the_priors_own_folder(folder: Path) -> None:
    for prompt in ("a red zebra", "a red"):
        with pytest.raises(ValueError, match=f"'distill priors {folder}' lists"):
            understand(prompt, known(folder))


def test_the_world_alone_takes_what_is_near_its_kinds() -> None:
    assert not WORLD.bare and set(WORLD.names) == set(world.KINDS)
    assert understand("a green coffee mug", WORLD).caption == "a green mug"
    for prompt in ("a red hamburger", "a blue grand piano", "a purple zebra", "a red dragon"):
        with pytest.raises(ValueError, match="does not know"):
            understand(prompt, WORLD)


@pytest.mark.parametrize("own", [ALL, WORLD], ids=["things", "world"])
def test_every_caption_of_every_name_is_understood_as_itself(own: Any) -> None:
    views = (None, "front view", "back slightly right view", world.OVERHEAD)
    colours = [*COLOURS, None] if own.bare else list(COLOURS)
    for at, (name, (article, paintable)) in enumerate(own.names.items()):
        for form in range(len(world.TEMPLATES)):
            for step, colour in list(enumerate(colours))[(at + form) % 3 :: 3]:
                view = views[(at + form + step) % len(views)]
                text = things.caption(name, article, colour, view, form)
                found = understand(text, own)
                assert (found.name, found.colour, found.view, found.caption, found.taken) == (
                    name, colour, view, text, (),
                ), text  # fmt: skip
                assert found.own_colour == (colour is not None and not paintable)


def test_a_prompt_that_is_a_caption_means_what_it_says() -> None:
    for colour in COLOURS:
        for kind in world.KINDS:
            text = world.caption(colour, kind, "left view", 3)
            found = understand(text, WORLD)
            assert (found.colour, found.name, found.view) == world.parse(text)


PIECES = st.sampled_from(
    [*list(ALL.names)[::9], *COLOURS, *NEAR_COLOURS, "on", "and", "settee", "the", "photo", "of", "view", ",", "-", "'", "zebra",
     "light", "in", "3d", "highly", "detailed", "mugs", "xyzzy", "front view", "\u2019s", "é", "ß", "İ", "\n", "${x}"]
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=7).map(" ".join)))
def test_any_text_has_a_meaning_or_one_line(text: str) -> None:
    for own in (ALL, WORLD):
        try:
            found = understand(text, own)
        except ValueError as error:
            assert str(error) and "\n" not in str(error)
            continue
        assert "\n" not in told(text, found)
        again = understand(found.caption, own)
        assert (again.caption, again.name, again.colour, again.taken) == (
            found.caption, found.name, found.colour, (),
        )  # fmt: skip


def test_plurals_have_their_singulars() -> None:
    found = {word: singulars(word)[0] for word in ("mugs", "cherries", "knives", "mice", "wine bottles", "snowmen", "glass")
             if singulars(word)}  # fmt: skip
    assert found == {"mugs": "mug", "cherries": "cherry", "knives": "knif", "mice": "mouse", "wine bottles": "wine bottle",
                     "snowmen": "snowman"}  # fmt: skip
    assert "knife" in singulars("knives") and "box" in singulars("boxes")


def test_near_colours_name_the_eight_and_are_none_of_them() -> None:
    assert not set(NEAR_COLOURS) & ({*COLOURS} | OTHER_COLOURS) and set(NEAR_COLOURS.values()) == set(COLOURS)


def test_a_priors_folder_says_what_it_knows(folder: Path) -> None:
    own = known(folder)
    assert own.bare and own.things == (
        "bicycle",
        "grand piano",
        "hamburger",
        "scissors",
        "sofa",
        "table with tablecloth",
    )
    assert set(own.names) == {*own.things, "piano", "table", *world.KINDS}
    assert own.names["scissors"].article == "" and own.names["piano"] == own.names["grand piano"]
    assert of_prior(str(folder)) is own and known(folder) is own
    assert of_prior("embedded") is not None and of_prior("sd-1.5") is None and of_prior("") is None
    assert (
        asked(str(folder), "a blue couch") == "a blue sofa"
        and asked("exact", "a blue couch") == "a blue couch"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read"),
        ("[]", "version None"),
        ('{"version": 2, "things": []}', "version 2"),
        ('{"version": 1}', "got NoneType"),
        ('{"version": 1, "things": [["Sofa", "a", true, ""]]}', "Sofa"),
        ('{"version": 1, "things": [["sofa", "an", 1, ""]]}', "sofa"),
        ('{"version": 1, "things": [["sofa", "the", true, ""]]}', "the"),
        ('{"version": 1, "things": [["sofa", "a", true, ""], ["sofa", "a", true, ""]]}', "different names"),
        ('{"version": 1, "things": [["mug", "a", true, ""]]}', "prompts mean those; got ['mug'"),
        ('{"version": 1, "things": [["red", "a", true, ""]]}', "prompts mean those; got ['red'"),
        ('{"version": 1, "things": [["beet", "a", true, "orange"]]}', "prompts mean those; got ['beet'"),
    ],
)
def test_a_broken_list_of_names_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "names.json").write_text(text)
    with pytest.raises(ValueError, match=r"names\.json") as caught:
        known(tmp_path)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_names_are_written_as_they_are_read(tmp_path: Path) -> None:
    rows = [("sofa", "a", True, "couch"), ("scissors", "", False, "")]
    write_names(tmp_path, rows)
    assert read_names(tmp_path / "names.json") == rows
    assert json.loads((tmp_path / "names.json").read_text())["version"] == 1
    with pytest.raises(ValueError, match="different names"):
        write_names(tmp_path, [("Sofa", "a", True, "")])


class Asked:
    """A prior that notes the texts that it is asked to embed."""

    words, views, device = True, 1, torch.device("cpu")

    def __init__(self, name: str) -> None:
        self.name = name
        self.texts: list[str] = []

    def describe(self) -> dict[str, Any]:
        return {}

    def embed(self, texts: list[str]) -> dict[str, torch.Tensor]:
        self.texts = [*map(str, texts)]
        return {"states": torch.zeros(len(texts), 2)}


def test_the_prior_is_asked_in_its_own_words_with_those_of_the_view(folder: Path) -> None:
    own: Any = Asked(str(folder))
    views = prompts.view_words("four", "other")
    prompts.conditioner(own, "a navy couch", "ugly, blurry couch", views, "a red bike", away=Curves())
    sides = ("front view", "side view", "back view", "overhead view")
    assert own.texts == [
        *(f"a blue sofa, {side}" for side in sides), *(f"a red bicycle, {side}" for side in sides),
        "", "ugly, blurry couch", "a blue sofa",
    ]  # fmt: skip
    other: Any = Asked("somebody's")
    prompts.conditioner(other, "a navy couch")
    assert other.texts == ["a navy couch", "", "", "a navy couch"]
    with pytest.raises(ValueError, match="does not know 'dragon'"):
        prompts.conditioner(own, "a dragon")


def test_a_run_says_what_it_takes_a_prompt_for_before_it_loads(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stop(*_: object) -> None:
        raise RuntimeError("loading")

    monkeypatch.chdir(folder)
    monkeypatch.setattr(execute, "begin", stop)
    config = compose_config(["prompt=a blue couch", f"prior={folder}"])
    with caplog.at_level(logging.WARNING), pytest.raises(RuntimeError, match="loading"):
        execute.run(config)
    line = "'a blue couch' is read as 'a blue sofa': 'couch' is not known, 'sofa' is"
    assert caplog.messages == [line] and config.prompt == "a blue couch"
    assert dict(looks(config))["prompt"]() == line == check_prompt(config)


def test_a_queue_says_it_of_every_prompt_before_it_loads(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stop(*_: object) -> None:
        raise RuntimeError("loading")

    monkeypatch.chdir(folder)
    (folder / "list.txt").write_text("a blue couch\na red mug\na dragon\na red bike\n")
    monkeypatch.setattr(batch, "open_prior", stop)
    monkeypatch.setattr(batch, "check_prior", lambda *_: None)
    queue = compose_queue(["prompts=list.txt", f"prior={folder}"])
    with caplog.at_level(logging.WARNING), pytest.raises(RuntimeError, match="loading"):
        batch.run_prompts(queue)
    assert [message.partition(":")[0] for message in caplog.messages] == [
        "'a blue couch' is read as 'a blue sofa'", "a dragon", "'a red bike' is read as 'a red bicycle'",
    ]  # fmt: skip
    caplog.clear()
    words = ["prompts=list.txt", f"prior={folder}", "source_prompt=a green couch", "guidance=dds"]
    config = compose_config(words)
    with caplog.at_level(logging.WARNING), pytest.raises(RuntimeError, match="loading"):
        batch.run_prompts(compose_queue(words))
    assert len(caplog.messages) == 4 and "'a green couch' is read as" in caplog.messages[0]
    assert sum("a green couch" in message for message in caplog.messages) == 1
    with pytest.raises(ValueError, match="does not know 'dragon'"):
        dict(looks(config))["prompts"]()
    (folder / "list.txt").write_text("a blue couch\na red mug\n")
    assert "2 prompts; 'a blue couch' is read as" in dict(looks(config))["prompts"]()


def test_the_command_lists_what_the_prior_knows(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["priors", "embedded"])
    shown = capsys.readouterr().out
    assert stopped.value.code == 0 and all(word in shown for word in (*world.KINDS, *COLOURS))
    told_of = describe(known(folder)).splitlines()
    assert told_of[0] == "16 kinds in 8 colours" and "6 things" in told_of[4]
    listed = " ".join(told_of[5:])
    assert all(name in listed for name in known(folder).things)
    assert "sofa*" in listed and "hamburger*" not in listed
    with pytest.raises(SystemExit) as stopped:
        main(["priors", str(folder)])
    assert stopped.value.code == 0 and capsys.readouterr().out == describe(known(folder)) + "\n"
    with pytest.raises(SystemExit) as stopped:
        main(["priors", "nowhere"])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.count("\n") == 1 and "got 'nowhere'; leave it out" in said
    assert max(map(len, describe(ALL).splitlines())) <= 130


def test_the_manifest_has_the_users_prompt_and_what_the_prior_was_asked_for(folder: Path) -> None:
    prior: Any = Asked(str(folder))
    state = SimpleNamespace(skipped=0, code={})
    job: Any = SimpleNamespace(prior=prior, state=state, picture=None, conversion={})
    said = {
        text: manifest.describe(compose_config([f"prompt={text}", f"prior={folder}"]), job)
        for text in ("a navy couch", "a red mug")
    }
    assert said["a navy couch"]["prompt"] == "a navy couch" and said["a navy couch"]["asked"] == "a blue sofa"
    assert "asked" not in said["a red mug"]


def test_a_colour_in_a_name_is_part_of_it() -> None:
    own = knowing([("golden retriever", "a", True, "")])
    assert understand("a brown golden retriever", own).caption == "a brown golden retriever"
    assert understand("a golden retriever", own).colour is None
    assert understand("an orange mug", own).caption == "an orange mug"


def test_words_are_read_only_where_one_is_not_known() -> None:
    words.table.cache_clear()
    understand("a photo of a crimson mug, left view", ALL)
    assert words.table.cache_info().currsize == 0
    understand("a crimson lorry", ALL)
    assert words.table.cache_info().currsize == 1


def test_a_folder_that_names_things_is_run_as_the_embedded_prior_is(folder: Path) -> None:
    own, other = (compose_config(["prompt=a sofa", f"prior={prior}"]) for prior in (folder, "sd-1.5"))
    shipped = compose_config(["prompt=a red mug"])
    assert (own.iterations, own.timesteps) == (shipped.iterations, shipped.timesteps)
    assert own.guidance == {**shipped.guidance, "scale": 5} != other.guidance
    words = prompts.view_words("auto", str(folder))
    assert words is not None and words.words == world.VIEWS
    assert prompts.view_words("auto", "sd-1.5").words == prompts.FOUR_VIEWS  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"view_words=four"):
        compose_config(["prompt=a sofa", f"prior={folder}", "perp_neg.enabled=true"])


@pytest.mark.parametrize(
    "prompt",
    [
        "the leg of a table", "a wheel of a car", "a statue of a horse", "a photo of the door of a house", "a vase of flowers",
        "no mug", "not a mug", "never a mug", "a lamp shade", "a car wheel", "a horse shoe",
    ],
)  # fmt: skip
def test_parts_of_things_and_what_is_not_wanted_are_refused(prompt: str) -> None:
    with pytest.raises(ValueError, match=r"^prior=embedded (makes one object|does not know)") as caught:
        understand(prompt, ALL)
    assert "\n" not in str(caught.value)


def test_a_prior_that_is_asked_for_says_that_the_other_knows_the_prompt() -> None:
    embedded, both = (known(SHIPPED[name]) for name in ("embedded", "things"))
    refused = r"^prior=embedded does not know 'hamburger'.*prior=things does.*left out$"
    with pytest.raises(ValueError, match=refused) as caught:
        understand("a hamburger", embedded)
    assert "\n" not in str(caught.value) and prior_for(["a hamburger"]) == "things"
    for chosen in (embedded, both):
        with pytest.raises(
            ValueError, match=f"^prior={chosen.prior} does not know 'qwrtz'.*nearest of what it knows"
        ):
            understand("a qwrtz", chosen)
    # What the other would take for something near is not what it knows.
    near = next(word for word in ("vase", "goblet", "urn") if understand(f"a {word}", both).taken)
    with pytest.raises(ValueError, match="nearest of what it knows"):
        understand(f"a red {near}", embedded)


@pytest.mark.parametrize("kind", world.KINDS)
def test_a_kind_without_a_colour_has_its_usual_one_where_the_prior_needs_one(kind: str) -> None:
    embedded, both = of_prior("embedded"), of_prior("things")
    assert embedded and both
    prompt, colour = f"a {kind}, left view", world.USUAL[kind]
    meaning = understand(prompt, embedded)
    assert meaning.usual and meaning.caption == world.caption(colour, kind, "left view")
    assert told(prompt, meaning) == (
        f"{prompt!r} is read as {meaning.caption!r}: it says no colour, and this prior needs one"
    )
    assert not world.held_out(colour, kind)
    assert not understand(f"a {colour} {kind}", embedded).usual
    # The other prior has learnt kinds without a colour.
    assert understand(prompt, both).colour is None and not understand(prompt, both).usual


@pytest.mark.parametrize(
    "prompt", ["a photo of a red mug", "a 3d render of a red mug", "a picture of the red mug"]
)
def test_of_after_what_shows_the_thing_is_nothing(prompt: str) -> None:
    assert understand(prompt, ALL).name == "mug"
    assert understand("a pair of scissors", ALL).name == "scissors"


def test_a_long_prompt_is_read_as_a_short_one() -> None:
    with pytest.raises(ValueError, match="needs one thing"):
        understand("red " * 20_000, ALL)


def test_a_source_prompt_is_read_before_anything_is_loaded() -> None:
    words = ["prompt=a red mug", "guidance=dds", "source_prompt=a blue dragon"]
    with pytest.raises(ValueError, match="does not know 'dragon'"):
        check_prompt(compose_config(words))
    said = check_prompt(compose_config([*words[:2], "source_prompt=blue mugs"]))
    assert said.startswith("'blue mugs' is read as 'a blue mug'")


@pytest.mark.parametrize(
    ("prompts_given", "prior"),
    [
        ([], "embedded"),
        (["a red mug", "an ORANGE rocket, left view"], "embedded"),
        (["crimson mugs"], "embedded"),
        (["a mug"], "embedded"),  # in its usual colour
        (["a mug", "a hamburger"], "things"),
        (["a hamburger"], "things"),
        (["a red mug", "a hamburger"], "things"),
        (["a red mug", "a purple dragon"], "embedded"),
        (["a purple dragon"], "things"),  # which has more names to suggest
    ],
)
def test_the_prior_that_ships_and_knows_the_prompts_is_chosen(prompts_given: list[str], prior: str) -> None:
    assert prior_for(prompts_given) == prior


def test_the_bundled_priors_begin_with_noisy_timesteps() -> None:
    def begun(*words: str) -> tuple[str, float]:
        config = compose_config(words)
        return str(config.prior), float(config.timesteps.t_min)

    for prompt in ("a mug", "a red mug", "a hamburger"):
        assert begun(f"prompt={prompt}", "prior=things") == ("things", 0.96)
    assert begun("prompt=a hamburger") == begun("prompt=a hamburger", "guidance.scale=3") == ("things", 0.96)
    assert begun("prompt=a mug") == begun("prompt=a red mug") == ("embedded", 0.96)
    # What these draw beside each other settles a view in less noise, and other priors have timesteps of their own.
    for prior in ("views", "sd-1.5"):
        assert begun("prompt=a red mug", f"prior={prior}")[1] <= 0.1
    assert begun("prompt=a mug", "prior=things", "timesteps.t_min=0.3") == ("things", 0.3)
    for prompt in ("a mug", "a red mug", "a hamburger"):
        for word in ("timesteps=uniform", "experiment=dreamfusion", "guidance=tp_sds"):
            assert begun(f"prompt={prompt}", "prior=things", word)[1] < 0.2
    assert begun("prompt=a mug", "prior=things", "guidance=csd") == ("things", 0.96)
    # A further stage has little noise at most.
    for further in ("stages=[field,surface]", "init=run"):
        assert (
            begun("prompt=a hamburger", further)[1]
            == begun("prompt=a mug", "prior=things", further)[1]
            == 0.1
        )


@pytest.mark.parametrize(
    ("words", "scale"),
    [
        (["prompt=a hamburger"], 5),
        (["prompt=a red sofa", "timesteps=uniform"], 5),
        (["prompt=a hamburger", "guidance=sds"], 5),
        (["prompt=a hamburger", "guidance.scale=3"], 3),
        (["prompt=a hamburger", "guidance=tp_sds"], 2),
        (["prompt=a hamburger", "guidance=vsd"], 2),
        (["prompt=a hamburger", "experiment=dreamfusion"], 2),
        (["prompt=a mug"], 2),
        (["prompt=a red mug"], 2),
        (["prompt=a red mug", "prior=things"], 2),
        (["prompt=a hamburger", "stages=[field,surface]"], 5),
        (["prompt=a hamburger", "stages=[field,texture]", "stage.texture.guidance=sds"], 5),
        (["prompt=a hamburger", "stages=[field,texture]", "stage.field.guidance=asd"], 5),
        (["prompt=a hamburger", "stages=[field,texture]", "stage.texture.guidance=asd"], 7.5),
        (["prompt=a hamburger", "stages=[field,material]"], 2),
        (["prompt=a hamburger", "scene=sdf", "init=run"], 5),
        (["prompt=a hamburger", "scene=image"], 2),
        (["prompt=a mug", "prior=things", "stages=[field,surface]"], 2),
    ],
)
def test_real_things_have_a_larger_scale(words: list[str], scale: float) -> None:
    assert compose_config(words).guidance.scale == scale


@pytest.mark.parametrize(("scene", "scale"), [("hash_grid", 5), ("sdf", 5), ("image", 2)])
def test_a_run_that_begins_with_another_has_the_scale_of_its_scene(
    scene: str, scale: float, tmp_path: Path
) -> None:
    earlier = compose_config(
        ["prompt=a hamburger", f"scene={scene}", *(["init=run"] if scene == "sdf" else [])]
    )
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(earlier))
    begun = compose_config(["prompt=a hamburger", f"init='{tmp_path}'"])
    assert (begun.scene._target_, begun.guidance.scale) == (earlier.scene._target_, scale)


def test_no_prior_is_chosen_where_one_is_given(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a red mug\n# a comment\na hamburger\na hamburger\n")
    (tmp_path / "library.json").write_text(json.dumps({"train": ["a red mug"], "held_out": ["a teddy bear"]}))
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "crisp.yaml").write_text("# @package _global_\nprior: embedded\n")

    def chosen(*words: str, folders: tuple[str, ...] = ()) -> str:
        return str(compose_config(words, folders).prior)

    assert chosen("prompt=a hamburger") == chosen("prompt=a hamburger", "experiment=csd") == "things"
    assert chosen("prompt=a red mug") == chosen("image=mug.png") == "embedded"
    assert chosen("prompt=a red mug", "source_prompt=a hamburger", "guidance=dds") == "things"
    assert (
        chosen(f"prompts={tmp_path / 'list.txt'}")
        == chosen(f"prompts={tmp_path / 'library.json'}")
        == "things"
    )
    assert chosen("prompt=a hamburger", "prior=embedded") == "embedded"
    assert chosen("prompt=a hamburger", "experiment=crisp", folders=(str(tmp_path),)) == "embedded"
    assert chosen(f"prompts={tmp_path / 'not_there.txt'}") == "embedded"


def test_both_priors_that_ship_list_what_they_know(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["priors", "things"])
    assert ended.value.code == 0
    listed = capsys.readouterr().out
    assert "hamburger" in listed and "16 kinds in 8 colours" in listed
    own = of_prior("things")
    assert own is not None and set(own.things) < {one.name for one in things.table()}


def test_a_terms_own_prompt_is_told_and_refused_as_the_runs() -> None:
    def words(prompt: str) -> list[str]:
        return [
            "prompt=a red mug",
            "guidance=mix",
            f"guidance.terms=[{{loss:sds}},{{loss:csd,prompt:{prompt}}}]",
        ]

    said = check_prompt(compose_config(words("a chair")))
    assert said == "'a chair' is read as 'a brown chair': it says no colour, and this prior needs one"
    with pytest.raises(ValueError, match="does not know 'dragon'"):
        check_prompt(compose_config(words("a red dragon")))


def test_what_prompts_of_a_library_are_taken_for_is_told_a_few_times(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "list.txt").write_text("\n".join(["a red mug", *(f"a {kind}" for kind in world.KINDS[:8])]))
    config = compose_config(["scene=hyper_grid", f"prompts={tmp_path}/list.txt"])
    with caplog.at_level("WARNING"):
        tell_taken(config, library_of(config))
    assert len(caplog.messages) == 6 and caplog.messages[-1].startswith("and 3 prompts of ")
    first = world.KINDS[0]
    assert caplog.messages[0].startswith(
        f"'a {first}' is read as '{world.caption(world.USUAL[first], first)}'"
    )

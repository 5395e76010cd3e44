"""Files of prompts as editors, spreadsheets and other programs write them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill import cli
from distill.conditions.prompt_library import TABLES, read_library, read_list
from distill.run.config.compose import compose_config
from distill.run.config.overrides import quote

#: What ``str.splitlines`` takes for the end of a line, and editors do not.
INNER = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("last", [True, False])
def test_a_file_of_any_editor_has_the_same_prompts_and_lines(end: str, mark: str, last: bool) -> None:
    lines = ["", "# mugs", "a red mug", "   ", " \ta blue mug ", "a red mug", "  # more", "a #1 mug"]
    Path("list.txt").write_bytes((mark + end.join(lines) + end * last).encode())
    assert read_list("list.txt") == ("a red mug", "a blue mug", "a red mug", "a #1 mug")
    library = read_library("list.txt")
    assert (library.train, library.repeated) == (("a red mug", "a blue mug", "a #1 mug"), 1)
    # The first of those that are repeated.
    assert [library.where(prompt) for prompt in library.train] == ["line 3", "line 5", "line 8"]


@pytest.mark.parametrize("inner", INNER)
def test_a_line_is_what_an_editor_shows_as_one(inner: str) -> None:
    """A prompt that was copied from a page is one prompt, and those below it keep their numbers."""
    first = f"a red{inner}mug"
    Path("list.txt").write_text(f"{first}\n\na blue mug{inner}\n", encoding="utf-8")
    library = read_library("list.txt")
    assert library.train == (first, "a blue mug")
    assert [library.where(prompt) for prompt in library.train] == ["line 1", "line 3"]
    said = json.dumps({"train": [first, "a blue mug"]}, ensure_ascii=False, indent=1)
    Path("list.json").write_text(said, encoding="utf-8")
    if ord(inner) >= 32:  # others are escaped
        library = read_library("list.json")
        assert [library.where(prompt) for prompt in library.train] == ["line 3", "line 4"]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=6))
def test_every_line_that_is_neither_empty_nor_a_comment_is_a_prompt(lines: list[str]) -> None:
    lines = [line.replace("\n", "").replace("\r", "") for line in ["a mug", *lines]]
    Path("list.txt").write_bytes("\n".join(lines).encode())
    stripped = [line.strip() for line in lines]
    wanted = tuple(line for line in stripped if line and not line.startswith("#"))
    assert read_list("list.txt") == wanted


@pytest.mark.parametrize("ending", [*TABLES, TABLES[0].upper()])
def test_a_table_is_no_list_of_prompts(ending: str) -> None:
    """Its head and its other columns would be made as prompts."""
    content = '{"prompt": "a red mug"}\n' if "l" in ending.lower()[2:] else "prompt,seed\na red mug,1\n"
    Path(f"list{ending}").write_text(content)
    for read in (read_list, read_library):
        with pytest.raises(ValueError, match=rf"list{ending} is a table by its name; write .* into a \.txt"):
            read(f"list{ending}")


@pytest.mark.slow
@pytest.mark.parametrize("command", [[], ["amortise"], ["doctor"]])
def test_a_table_is_refused_by_every_command(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("list.csv").write_text("prompt,seed\na red mug,1\n")
    with pytest.raises(SystemExit) as ended:
        cli.main([*command, "prompts=list.csv", "output_dir=out"])
    said = capsys.readouterr()
    assert ended.value.code in ({1, 2} if command == ["doctor"] else {2}) and not Path("out").exists()
    assert "list.csv is a table by its name" in said.out + said.err


def test_half_a_character_is_refused_before_anything_is_made(capsys: pytest.CaptureFixture[str]) -> None:
    Path("list.json").write_text('{"train": ["a blue mug"],\n "held_out": ["a red \\ud800mug"]}')
    with pytest.raises(SystemExit) as ended:
        cli.main(["prompts=list.json", "output_dir=out"])
    assert ended.value.code == 2 and not Path("out").exists()
    assert r"list.json has half a character in 'a red \ud800mug'" in capsys.readouterr().err
    # A pair of halves is a character.
    Path("list.json").write_text('{"train": ["a \\ud83d\\ude00 mug"]}')
    assert read_list("list.json") == ("a \N{GRINNING FACE} mug",)


@pytest.mark.parametrize(
    "option", ["prompt", "negative_prompt", "source_prompt", "generator_mix", "views.front", "views.back"]
)
def test_bytes_of_another_encoding_are_no_prompt(option: str) -> None:
    """As a terminal that is not set to UTF-8 gives them."""
    text = b"ein gr\xfcner Becher".decode("utf-8", "surrogateescape")
    words = [f"{option}={quote(text)}", *(["prompt=a mug"] if option != "prompt" else [])]
    with pytest.raises(ValueError, match=rf"^{option} has bytes that are no text in UTF-8: .*\\udcfc"):
        compose_config(words)

"""What options mean: every one is said, on the page of options and by --why, and the page is what is said now."""

from __future__ import annotations

import importlib.util
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from distill.cli import main
from distill.options import names_of
from distill.renderers.shared_options import takes_options_of
from distill.run.config.compose import compose_config
from distill.run.config.known import groups, known_options, schema_of
from distill.run.config.meanings import entries, meaning_of, meanings
from distill.run.config.plugins import plugins

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def writer() -> Any:
    spec = importlib.util.spec_from_file_location("write_options", ROOT / "docs" / "write_options.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shipped() -> list[tuple[str, str, Any]]:
    """The library's own parts; other tests register some, too."""
    return [
        (group, name, target)
        for group, choices in plugins().items()
        for name, target in choices.items()
        if target.__module__.startswith("distill.")
    ]


def test_a_docstring_is_read_as_it_is_written() -> None:
    text = """Do something.

    Args:
        one: first, in two
            lines: of them.
        two, three: both.
        *rest: others.

    Returns:
        four: no parameter.

    Attributes:
        five: a field.

    five: no parameter, either.
    """
    assert entries(text) == {
        "one": "first, in two lines: of them.",
        "two": "both.",
        "three": "both.",
        "rest": "others.",
        "five": "a field.",
    }
    assert entries(None) == entries("Do something.") == {}


def test_options_that_are_taken_over_mean_what_they_mean_there() -> None:
    class Owner:
        def __init__(self, *, lr: float = 0.1, size: int = 2) -> None:
            """Begin.

            Args:
                lr: learning rate.
                size: pixels.
            """

    @takes_options_of(Owner)
    def part(*, size: int = 3, **options: Any) -> None:
        """Do something.

        Args:
            size: of another thing.
        """

    assert meanings(part) == {"lr": "learning rate.", "size": "of another thing."}


@pytest.mark.parametrize("group", groups())
def test_the_schema_says_of_each_option_what_it_means_and_of_nothing_else(group: str) -> None:
    schema = schema_of(group)
    assert set(entries(schema.__doc__)) == {item.name for item in fields(schema)}


def test_each_part_says_what_its_options_mean() -> None:
    silent = [
        f"{group}={name}: {option}"
        for group, name, target in shipped()
        for option in names_of(target)
        if not meanings(target).get(option)
    ]
    assert silent == []


def test_the_page_of_options_is_what_the_docstrings_say(writer: Any) -> None:
    page = writer.PAGE.read_text(encoding="utf-8")
    assert page == writer.page(), "run: python docs/write_options.py"
    listed = {line.split("`")[1] for line in page.splitlines() if line.startswith("| `")}
    own = {option for option in known_options() if option not in groups()} - {*plugins(), "earlier"}
    parts = {f"{group}.{option}" for group, _, target in shipped() for option in names_of(target)}
    assert listed == own | parts


def test_why_says_what_an_option_means(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["a red mug", "--why", "guidance.scale", "--why", "optimiser.ema"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "  means  classifier-free guidance scale, dimensionless" in out
    assert "  means  decay of a moving average of the parameters" in out and "``" not in out


def test_a_part_of_ones_own_may_say_nothing() -> None:
    config = compose_config(["prompt=a red mug"])
    config.guidance._target_ = "statistics.mean"
    assert meaning_of("guidance.scale", config) == ""


def test_each_meaning_can_be_read_alone(writer: Any) -> None:
    """In the words of the command line, and without what the entry above it says."""
    rows = [line for line in writer.page().splitlines() if line.startswith("| `")]
    told = {line.split("`")[1]: line.rsplit(" | ", 1)[1] for line in rows}
    odd = [
        name
        for name, said in told.items()
        if "likewise" in said
        or "None" in said
        or said.startswith(("of ", "from ", "its ", "their ", "the latter"))
    ]
    assert odd == []

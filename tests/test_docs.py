"""What the pages under docs/ say can be typed and followed."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from hydra.utils import instantiate

from distill import guidance
from distill.cli import split_prompt
from distill.forecast.network import calls_of
from distill.run.compose import compose_config, quote, quote_text

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: What is no run: programs of their own, and flags that Hydra reads.
OTHER = ("priors", "--options", "--why", "--config-dir", "-m")


def blocks(page: Path, *languages: str) -> list[str]:
    """The code blocks of a page in some languages."""
    fenced = re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    return [code for language, code in fenced if language in languages]


def lines(page: Path) -> list[list[str]]:
    """The command lines of a page, split as a shell does, continued lines joined, variables in front left out."""
    typed = "\n".join(blocks(page, "sh", "bash")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in typed]
    return [[word for i, word in enumerate(line) if i or not re.match(r"[A-Z_]+=", word)] for line in words]


COMMANDS = {
    shlex.join(line): line[1:]
    for page in PAGES
    for line in lines(page)
    if line[:1] == ["distill"] and not set(line) & set(OTHER)
}


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS.keys())
def test_every_command_composes(arguments: list[str]) -> None:
    doctor = arguments[0] == "doctor"
    prompt, options = split_prompt([text for text in arguments[doctor:] if text != "--json"])
    said = [f"prompt={quote(prompt or 'example')}"] if prompt or doctor else []
    config = compose_config([*map(quote_text, options), *said])
    assert config.prompt == (prompt or ("example" if doctor else ""))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_module_that_is_run_is_there(page: Path) -> None:
    run = [line[2] for line in lines(page) if line[:2] == ["python", "-m"]]
    assert all(importlib.util.find_spec(module) for module in run)
    scripts = [line[1] for line in lines(page) if line[:1] == ["python"] and line[1].endswith(".py")]
    assert all((ROOT / script).is_file() for script in scripts)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_can_be_read(page: Path) -> None:
    for code in blocks(page, "python"):
        compile(code, page.name, "exec")


def anchors(page: Path) -> set[str]:
    """What code hosts call a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_point_at_what_is_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"https?:", target):
            continue
        name, _, anchor = target.partition("#")
        there = (page.parent / name) if name else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    names = {page.stem for page in PAGES[1:]} - {"index"}
    assert names == set(re.findall(r"^([\w-]+)$", index, re.MULTILINE))
    assert names == set(re.findall(r"\]\(([\w-]+)\.md\)", index))


def test_every_loss_is_in_the_api_and_costs_what_its_table_says() -> None:
    api = (ROOT / "docs" / "api.md").read_text()
    rows = re.findall(
        r"^\| `(\w+)` \| (\w+) \| (\w+) \|", (ROOT / "docs" / "choosing.md").read_text(), re.MULTILINE
    )
    said = {name: (int(pictures), int(calls)) for name, pictures, calls in rows if pictures.isdigit()}
    known = guidance.available()
    assert said.keys() == known.keys() - {"mix"}
    for name, loss in known.items():
        assert re.search(rf"\.{loss.__name__}$", api, re.MULTILINE), name
    for name in said.keys() - {"vsd"}:
        # This one asks a prior that trains a copy: 2 and 1 + 1 rows.
        made = instantiate(compose_config(["prompt=a", "preset=none", f"guidance={name}"]).guidance)
        asked = calls_of(made, 1)
        assert said[name] == (sum(asked), len(asked)), name

"""The commands, code, links and tables in the documentation are valid."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from hydra.utils import instantiate

import distill
from distill import guidance
from distill.arguments import of_library, split_prompt
from distill.forecast.network import calls_of
from distill.run.config.compose import compose_config
from distill.run.config.overrides import quote, quote_text

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: Words of commands that do not start a run, and of flags that Hydra reads.
OTHER = ("priors", "summary", "--options", "--why", "--config-dir", "-m")


def blocks(page: Path, *languages: str) -> list[str]:
    """Return a page's code blocks in some languages."""
    fenced = re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    return [code for language, code in fenced if language in languages]


def lines(page: Path) -> list[list[str]]:
    """Return a page's commands, split as a shell does, without variables in front; continued lines are joined."""
    typed = "\n".join(blocks(page, "sh", "bash")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in typed]
    return [[word for i, word in enumerate(line) if i or not re.match(r"[A-Z_]+=", word)] for line in words]


COMMANDS = {
    shlex.join(line): line[1:]
    for page in PAGES
    for line in lines(page)
    if line[:1] == ["distill"]
    and not set(line) & set(OTHER)
    # What follows from a generator is in its folder; test_amortise.py has one.
    and not any(word.startswith("generator=") for word in line)
}


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS.keys())
def test_every_command_composes(arguments: list[str]) -> None:
    doctor, library, export = (arguments[0] == word for word in ("doctor", "amortise", "export"))
    begin = 2 if export else int(doctor or library)  # after the folder of a run
    prompt, options = split_prompt([text for text in arguments[begin:] if text != "--json"])
    options += of_library(prompt, options) if library else []
    said = [f"prompt={quote(prompt or 'example')}"] if prompt or doctor or export else []
    config = compose_config([*map(quote_text, options), *said])
    assert config.prompt == (prompt or ("example" if doctor or export else ""))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_module_that_is_run_is_there(page: Path) -> None:
    run = [line[2] for line in lines(page) if line[:2] == ["python", "-m"]]
    assert all(importlib.util.find_spec(module) for module in run)
    scripts = [line[1] for line in lines(page) if line[:1] == ["python"] and line[1].endswith(".py")]
    assert all((ROOT / script).is_file() for script in scripts)


def test_every_script_says_how_to_run_it_from_the_repositorys_root() -> None:
    said = {
        path.relative_to(ROOT).as_posix(): re.findall(
            r"^    python (\S+\.py)",
            ast.get_docstring(ast.parse(path.read_text()), clean=False) or "",
            re.MULTILINE,
        )
        for path in (ROOT / "examples").rglob("*.py")
    }
    assert sum(map(len, said.values())) > 20
    assert {path: one for path, found in said.items() for one in found if not (ROOT / one).is_file()} == {}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_imports_what_is_there(page: Path) -> None:
    missing = []
    for code in blocks(page, "python"):
        for node in ast.walk(ast.parse(code, page.name)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("distill"):
                module = importlib.import_module(str(node.module))
                names = [each.name for each in node.names]
                missing += [name for name in names if not (hasattr(module, name) or is_module(module, name))]
    assert missing == []


def is_module(package: ModuleType, name: str) -> bool:
    """Return whether a package has a module of that name."""
    return importlib.util.find_spec(f"{package.__name__}.{name}") is not None


def anchors(page: Path) -> set[str]:
    """Return the anchors that code hosts give a page's headings."""
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


def test_every_folder_of_the_architecture_is_there() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    table = page[page.index("## Folders") : page.index("## Extending")]
    named = re.findall(r"`([\w/.]+(?:/|\.py))`", table)
    assert named and all((ROOT / name).exists() for name in named)
    folders = {
        f"distill/{path.name}/" for path in (ROOT / "distill").iterdir() if (path / "__init__.py").exists()
    }
    assert folders <= set(named) | {"distill/priors/"}


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
    assert said.keys() == known.keys() - {"mix", "tp_sds"}
    for name, loss in known.items():
        assert re.search(rf"\.{loss.__name__}$", api, re.MULTILINE), name
    for name in said.keys() - {"vsd"}:
        # VSD needs a prior to train a LoRA in: 2 evaluations of the prior, 1 with the LoRA, 1 to train it.
        second = ["negative_prompt=b"] + ["source_prompt=c"] * (name in ("dds", "bridge"))
        words = ["prompt=a", "preset=none", f"guidance={name}", *second]
        made = instantiate(compose_config(words).guidance)
        asked = calls_of(made, 1)
        assert said[name] == (sum(asked), len(asked)), name


def test_the_citation_is_of_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (cited["version"], cited["license"]) == (distill.__version__, "Apache-2.0")

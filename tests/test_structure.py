"""How the library hangs together, read from its source: what imports what, and that parts are told apart by their contracts."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import distill
from distill import guidance, renderers, samplers


def homes() -> dict[str, Path]:
    """Files of the library by the name of their module."""
    found: dict[str, Path] = {}
    packages = {
        "distill": distill,
        "distill.guidance": guidance,
        "distill.renderers": renderers,
        "distill.samplers": samplers,
    }
    for name, package in packages.items():
        root = Path(str(package.__file__)).parent
        for file in sorted(root.rglob("*.py")):
            parts = file.relative_to(root).with_suffix("").parts
            inner = [part for part in parts if part != "__init__"]
            found[".".join([name, *inner])] = file
    return found


HOMES = homes()
#: Names that a module loads when they are first used.
LAZY = {"distill": "distill.lab.comparison.run"}


@functools.cache
def tree(module: str) -> ast.Module:
    return ast.parse(HOMES[module].read_text("utf-8"))


@dataclass(frozen=True)
class Import:
    """An import of the library's own: at the top, in a function, or for types alone (``if TYPE_CHECKING``).

    Attributes:
        source: the module that imports.
        target: the module that is imported.
        line: where it stands.
    """

    source: str
    target: str
    line: int

    def __str__(self) -> str:
        return f"{self.source}:{self.line} imports {self.target}"


def imports(module: str) -> Iterator[Import]:
    """Imports of the library's own in a module; ``from a import b`` is of ``a.b`` where that is a module."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno} is a relative import"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in HOMES else str(node.module) for name in whole]
        else:
            continue
        for name in dict.fromkeys(names):
            if name in HOMES:
                yield Import(module, name, node.lineno)


@functools.cache
def all_imports() -> list[Import]:
    return [found for module in HOMES for found in imports(module)]


def reached(start: str) -> set[str]:
    """Modules that a module's imports lead to."""
    edges: dict[str, set[str]] = {}
    for found in all_imports():
        edges.setdefault(found.source, set()).add(found.target)
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        for target in edges.get(waiting.pop(), set()) - seen:
            seen.add(target)
            waiting.append(target)
    return seen


def test_the_source_is_found_and_read() -> None:
    assert {
        "distill.loop",
        "distill.guidance.sds",
        "distill.renderers.nerf",
        "distill.run.assembly.assemble",
    } <= {*HOMES}
    assert "distill.contracts" in reached("distill.loop")
    pairs = {(found.source, found.target) for found in all_imports()}
    at_the_top = ("distill.guidance.sds", "distill.contracts")
    in_a_function = ("distill.priors.preset", "distill.priors.families")
    for_types = ("distill.priors.families.sd3", "distill.priors.space")
    assert {at_the_top, in_a_function, for_types} <= pairs


def test_nothing_but_the_laboratory_imports_the_laboratory() -> None:
    inside = [
        str(found)
        for found in all_imports()
        if found.target.startswith("distill.lab")
        and not found.source.startswith("distill.lab")
        and LAZY.get(found.source) != found.target
    ]
    assert inside == []
    named = {
        module: [
            node.value
            for node in ast.walk(tree(module))
            if isinstance(node, ast.Constant) and str(node.value).startswith("distill.lab.")
        ]
        for module in HOMES
        if not module.startswith("distill.lab")
    }
    assert {module: found for module, found in named.items() if found} == {
        module: [name] for module, name in LAZY.items()
    }


def test_no_imports_close_a_cycle() -> None:
    """Neither those in a function nor those for types alone: modules whose types need each other belong together."""
    assert [str(found) for found in all_imports() if found.source in reached(found.target)] == []


#: Words that name a part by what it is.
PARTS = ("scene", "prior", "guidance", "loss", "sampler", "learner", "renderer")


def is_part(node: ast.AST) -> bool:
    """Whether an expression is a variable or attribute that is named for a part."""
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return any(name == part or name.endswith(f"_{part}") for part in PARTS)


#: What a part says of itself.
SAYS = ("features", "field_options", "__name__")


def asks_for_an_attribute(node: ast.AST) -> bool:
    """``hasattr(scene, "query")`` or ``getattr(prior, "network", None)`` with a constant name.

    ``getattr`` with a variable's name looks a plug-in up, and one of a class's ``features``, ``field_options`` or ``__name__``
    asks what a user's own class says of itself.
    """
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) >= 2):
        return False
    named = isinstance(node.args[1], ast.Constant) and node.args[1].value not in SAYS
    return node.func.id in ("hasattr", "getattr") and named and is_part(node.args[0])


def reads_a_signature(node: ast.AST) -> bool:
    """``"generator" in inspect.signature(...).parameters``, or any other name looked for there."""
    if not (isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.In, ast.NotIn))):
        return False
    left, right = node.left, ast.dump(node.comparators[0])
    return isinstance(left, ast.Constant) and (left.value == "generator" or "attr='parameters'" in right)


def looks_at_the_end_of_a_name(node: ast.AST) -> bool:
    """``target.endswith("HashGridScene")``, of a class of the library."""
    if not (
        isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "endswith"
    ):
        return False
    ends = [
        leaf.value for argument in node.args for leaf in ast.walk(argument) if isinstance(leaf, ast.Constant)
    ]
    return any(isinstance(end, str) and end in classes() for end in ends)


def is_of_a_scene(node: ast.AST) -> bool:
    """``isinstance`` of one of the library's scenes."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance"):
        return False
    kinds = {leaf.id for leaf in ast.walk(node.args[1]) if isinstance(leaf, ast.Name)}
    return bool(kinds & {"HashGridScene", "ImageScene", "Particles"})


@functools.cache
def classes() -> set[str]:
    return {
        node.name for module in HOMES for node in ast.walk(tree(module)) if isinstance(node, ast.ClassDef)
    }


@pytest.mark.parametrize(
    "guess",
    [asks_for_an_attribute, reads_a_signature, looks_at_the_end_of_a_name, is_of_a_scene],
    ids=lambda guess: guess.__name__,
)
def test_parts_are_not_told_apart_by_guessing(guess: Callable[[ast.AST], bool]) -> None:
    found = [
        f"{module}:{getattr(node, 'lineno', 0)}: {ast.unparse(node)}"
        for module in HOMES
        for node in ast.walk(tree(module))
        if guess(node)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("guess", "code"),
    [
        (asks_for_an_attribute, 'hasattr(scene, "query")'),
        (asks_for_an_attribute, 'getattr(self.prior, "network", None)'),
        (reads_a_signature, '"generator" in inspect.signature(loss).parameters'),
        (looks_at_the_end_of_a_name, 'config.scene._target_.endswith("ImageScene")'),
        (is_of_a_scene, "isinstance(scene, ImageScene)"),
    ],
)
def test_guesses_are_recognised(guess: Callable[[ast.AST], bool], code: str) -> None:
    assert guess(ast.parse(code, mode="eval").body)


@pytest.mark.slow
def test_a_run_loads_neither_the_laboratory_nor_forecasts_nor_the_doctor() -> None:
    code = "import sys, distill.run.execute; print([m for m in sys.modules if m.startswith(('distill.lab', 'distill.forecast', 'distill.doctor'))])"
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert said.strip() == "[]"

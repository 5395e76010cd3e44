"""Measure the structure of the library's code: ``python tests/measure_code.py [checkout] [--json]``.

Counts are taken over the Python files of ``distill/``, ``guidance/``, ``renderers/`` and ``samplers/``; tests, examples and
documentation are left out.

- Run: distinct functions of the package, and files that hold them, which execute during ``distill "a red mug"`` with tiny
  settings. Lambdas, comprehensions, class bodies and modules are not functions. It runs with the checkout's own
  ``.venv/bin/python`` where there is one.
- Concepts in a step: see ``concepts``.
- ``Any``: annotations of arguments, returns and variables that are ``Any``; with "nested", also those that contain it, such
  as ``dict[str, Any]``.
- Cycles: an import inside a function of A counts if the imported module reaches A again through imports, whether at the top
  of a module or in a function; among packages, if the imported package (``distill.run`` for ``distill.run.config.compose``) does.
  Imports for type checking alone are left out.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType

#: Folders of the library, and the packages that they are installed as.
FOLDERS = {
    "distill": "distill",
    "guidance": "distill.guidance",
    "renderers": "distill.renderers",
    "samplers": "distill.samplers",
}
LONG = 40
TINY = (
    "iterations=2",
    "render.size=16",
    "render.batch=1",
    "export.resolution=24",
    "export.frames=1",
    "export.texture_size=64",
)
NUMBERS = {"int", "float", "bool", "str", "None"}

Function = ast.FunctionDef | ast.AsyncFunctionDef
Import = ast.Import | ast.ImportFrom


@dataclass(frozen=True)
class Module:
    """A source file of the library."""

    name: str
    path: Path
    source: str
    tree: ast.Module

    @property
    def lines(self) -> int:
        return len(self.source.splitlines())


def read(root: Path) -> dict[str, Module]:
    """Parse the library's modules, by dotted name."""
    modules = {}
    for folder, package in FOLDERS.items():
        for path in sorted((root / folder).rglob("*.py")):
            inside = path.relative_to(root / folder).with_suffix("").parts
            name = ".".join([package, *(part for part in inside if part != "__init__")])
            source = path.read_text()
            modules[name] = Module(name, path.relative_to(root), source, ast.parse(source))
    return modules


def functions(tree: ast.AST) -> Iterator[Function]:
    """All functions and methods, nested ones too."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def length(function: Function) -> int:
    """Lines of a function with its signature and docstring, without its decorators."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def spread(values: Sequence[int]) -> dict[str, int]:
    """Median, 90th percentile and maximum."""
    ordered = sorted(values)
    return {
        "median": round(statistics.median(ordered)),
        "p90": ordered[int(0.9 * len(ordered))],
        "max": ordered[-1],
    }


def annotated(tree: ast.AST) -> Iterator[ast.expr]:
    """The annotations of arguments, returns and variables."""
    for node in ast.walk(tree):
        found = node.returns if isinstance(node, Function) else getattr(node, "annotation", None)
        if isinstance(found, ast.expr):
            yield found


def is_any(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "Any"


def count_any(tree: ast.AST) -> tuple[int, int]:
    """How many annotations are ``Any``, and how often it is written in one."""
    found = list(annotated(tree))
    return sum(map(is_any, found)), sum(is_any(node) for annotation in found for node in ast.walk(annotation))


def targets(node: Import, known: set[str]) -> set[str]:
    """The modules of the library that an import statement loads by name, without their parent packages."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names} & known
    base = node.module or ""
    named = {f"{base}.{alias.name}" for alias in node.names}
    return (named & known) | ({base} & known if named - known else set())


def imports(node: ast.AST, known: set[str], inside: bool = False) -> Iterator[tuple[str, bool, int]]:
    """Imported modules, each with whether a function imports it, and the line."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Import):
            for target in targets(child, known):
                yield target, inside, child.lineno
        elif not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            yield from imports(child, known, inside or isinstance(child, Function))


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """The modules that a module imports, directly or through others."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        new = graph[waiting.pop()] - seen
        seen |= new
        waiting += new
    return seen


def package(name: str) -> str:
    """The part of the library that a module belongs to: ``distill.run`` for ``distill.run.config.compose``."""
    return ".".join(name.split(".")[:2])


def cycles(modules: dict[str, Module], group: Callable[[str], str] = str) -> list[str]:
    """The imports inside functions that close a cycle among modules, or among groups of them."""
    found = {name: list(imports(module.tree, set(modules))) for name, module in modules.items()}
    graph: dict[str, set[str]] = {group(name): set() for name in modules}
    for name, edges in found.items():
        graph[group(name)] |= {group(target) for target, _, _ in edges}
    return [
        f"{modules[name].path}:{line} -> {target}"
        for name, edges in found.items()
        for target, inside, line in edges
        if inside and group(target) != group(name) and group(name) in reachable(graph, group(target))
    ]


def fields(tree: ast.Module, root: Function) -> tuple[set[str], set[str]]:
    """The module's dataclasses that a function's parameters lead to, and their fields except for plain numbers and strings."""
    classes = {
        node.name: [item for item in node.body if isinstance(item, ast.AnnAssign)]
        for node in tree.body
        if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in node.decorator_list)
    }
    waiting: list[ast.expr | None] = [arg.annotation for arg in arguments(root)]
    reached: set[str] = set()
    named: set[str] = set()
    while waiting:
        annotation = waiting.pop()
        name = ast.unparse(annotation) if annotation else ""
        if name in reached or name not in classes:
            continue
        reached.add(name)
        for item in classes[name]:
            waiting.append(item.annotation)
            if not plain(item.annotation) and ast.unparse(item.annotation) not in classes:
                named.add(ast.unparse(item.target))
    return reached, named


def arguments(function: Function) -> list[ast.arg]:
    """A function's parameters."""
    return [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]


def plain(annotation: ast.expr | None) -> bool:
    """Whether an annotation is of numbers or strings."""
    return annotation is not None and set(ast.unparse(annotation).split(" | ")) <= NUMBERS


def package_names(tree: ast.Module) -> set[str]:
    """Names that a module defines as functions or classes, or imports from the library."""
    names = {node.name for node in tree.body if isinstance(node, ast.ClassDef | Function)}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "distill":
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def body(function: Function) -> Iterator[ast.AST]:
    """The nodes of a function's statements, without annotations, docstrings and what only fails."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        yield node
        waiting += [child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.Raise)]


def names(function: Function) -> set[str]:
    """The names that a function uses and does not define itself."""
    found = [node for node in body(function) if isinstance(node, ast.Name)]
    own = {arg.arg for arg in arguments(function)} | {n.id for n in found if isinstance(n.ctx, ast.Store)}
    return {node.id for node in found} - own


def steps(tree: ast.Module, root: Function) -> list[Function]:
    """A function and the functions of the same module that it calls, directly or through others."""
    here = {node.name: node for node in tree.body if isinstance(node, Function)}
    found, waiting = [root], [root]
    while waiting:
        called = names(waiting.pop()) & set(here)
        new = [here[name] for name in sorted(called) if here[name] not in found]
        found += new
        waiting += new
    return found


def concepts(tree: ast.Module, root: Function) -> set[str]:
    """The distinct things of the library that a reader has to know to follow one training step.

    They are: the functions and classes of the library that the step names; the root function's parameters; and, of a
    parameter that is a dataclass of the same module (a state, the settings), the fields that the step uses instead of itself.
    Numbers and strings do not count, nor do annotations and ``raise`` statements. The step is the root function with the
    functions that it calls in the same module.

    In a script, a step is the loop in ``main``, and the parts are local variables: those count that the loop uses and does
    not set itself.
    """
    loops = [node for node in root.body if isinstance(node, ast.For)]
    if root.name == "main" and loops:
        nodes = list(ast.walk(loops[-1]))
        used = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
        own = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        given = {
            node.id
            for node in ast.walk(root)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        }
        return used & (package_names(tree) | given) - own
    reading = steps(tree, root)
    nodes = [node for function in reading for node in body(function)]
    classes, known = fields(tree, root)
    named = set().union(*map(names, reading)) & package_names(tree)
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute)} & known
    given = {arg.arg for arg in arguments(root) if arg.annotation and not plain(arg.annotation)
             and ast.unparse(arg.annotation) not in classes}  # fmt: skip
    return named | used | given


def step_concepts(path: Path) -> list[str]:
    """The concepts of the training step in a file: of ``step``, ``train`` or ``main``, whichever it has first."""
    tree = ast.parse(path.read_text())
    here = {node.name: node for node in tree.body if isinstance(node, Function)}
    root = next(here[name] for name in ("step", "train", "main") if name in here)
    return sorted(concepts(tree, root))


def trace(root: Path) -> dict[str, int]:
    """Run the command in this process and count what is called."""
    folders = tuple(f"{root / folder}{os.sep}" for folder in FOLDERS)
    seen: set[CodeType] = set()

    def profile(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            seen.add(frame.f_code)

    from distill import cli

    with tempfile.TemporaryDirectory() as folder:
        threading.setprofile(profile)
        sys.setprofile(profile)
        try:
            cli.main(["a red mug", "device=cpu", f"output_dir={folder}/out", *TINY])
        except SystemExit as stop:
            if stop.code:
                raise
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
    # A class body is a code object too, but its names are not fast locals.
    called = {
        (os.path.realpath(code.co_filename), code.co_firstlineno)
        for code in seen
        if not code.co_name.startswith("<") and code.co_flags & 1
    }
    called = {(path, line) for path, line in called if path.startswith(folders)}
    if not called:
        raise SystemExit(f"the environment imports distill from {cli.__file__}, not from {root}")
    return {"functions": len(called), "files": len({path for path, _ in called})}


def run(root: Path) -> dict[str, int]:
    """Count the functions and files of a run, with the checkout's own environment."""
    own = root / ".venv" / "bin" / "python"
    python = str(own) if own.exists() else sys.executable
    command = [python, str(Path(__file__).resolve()), str(root), "--trace"]
    found = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True, check=True).stdout
    counted: dict[str, int] = json.loads(found.splitlines()[-1])
    return counted


def measure(root: Path) -> dict[str, object]:
    """All measurements of a checkout."""
    modules = read(root)
    lines = sum(module.lines for module in modules.values())
    lengths = [(length(f), m.path, f.name) for m in modules.values() for f in functions(m.tree)]
    marked, nested = map(sum, zip(*(count_any(module.tree) for module in modules.values()), strict=True))
    example = root / "examples" / "custom_loop.py"
    return {
        "lines": lines,
        "files": len(modules),
        "run": run(root),
        "concepts in loop.py": step_concepts(root / "distill" / "loop.py"),
        "concepts in custom_loop.py": step_concepts(example),
        "Any per 1,000 lines": round(1000 * marked / lines, 1),
        "Any per 1,000 lines, nested": round(1000 * nested / lines, 1),
        "cycles by imports in functions": cycles(modules),
        "cycles by imports in functions, packages": cycles(modules, package),
        "lines of a file": spread([module.lines for module in modules.values()]),
        "lines of a function": spread([count for count, _, _ in lengths]),
        f"functions over {LONG} lines": [
            f"{count:4} {path}: {name}" for count, path, name in sorted(lengths, reverse=True, key=lambda x: x[0])
            if count > LONG
        ],
    }  # fmt: skip


def table(found: dict[str, object]) -> Iterator[str]:
    """The measurements as lines of text: one line each, then the lists."""
    for name, value in found.items():
        shown = len(value) if isinstance(value, list) else value
        if isinstance(value, dict):
            shown = ", ".join(f"{key} {number}" for key, number in value.items())
        yield f"{name:<45} {shown}"
    for name, value in found.items():
        if isinstance(value, list) and value:
            yield f"\n{name}:"
            yield from (f"  {item}" for item in value)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the structure of the library's code.")
    parser.add_argument("checkout", nargs="?", type=Path, default=Path(__file__).parents[1])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--trace", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    root = options.checkout.resolve()
    if options.trace:
        print(json.dumps(trace(root)))
        return
    found = measure(root)
    print(json.dumps(found, indent=2) if options.json else "\n".join(table(found)))


if __name__ == "__main__":
    main()

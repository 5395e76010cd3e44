"""The code of parts: digests that tell whether a part, or what it uses, was changed between two runs."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import inspect
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

#: Modules of which the parts that are used count, and what these use there: a script lists its runs beside its parts.
_BY_PART = ("__main__", "distill")
#: Values at the top level of such a module that count with the part that names them.
_PLAIN = (bool, int, float, complex, str, bytes, type(None))


def own_code(part: object) -> str | None:
    """The SHA-256 of the code of a function or class itself; None where it cannot be read, as of what was typed into a console.

    Comments and docstrings do not count.
    """
    try:
        source = inspect.getsource(inspect.unwrap(part))  # type: ignore[arg-type]
    except (OSError, TypeError):
        return None
    return _digest(without_texts(source))


def used_code(parts: Iterable[object]) -> dict[str, str]:
    """The SHA-256 of all code that parts consist of and use, by module, or by part where a module holds more than that.

    Of a module of one's own the whole source counts, and that of the modules of one's own that it imports. In a script and in distill's own
    files, the part counts, with its base classes and the functions, classes and plain values of the same file that its code names, and what
    these name. Installed packages do not count, and neither do comments and docstrings.

    Args:
        parts: functions and classes.
    """
    found = dict[str, str]()
    queue: list[object] = list(parts)
    while queue:
        part = queue.pop()
        while isinstance(part, functools.partial):
            part = part.func
        part = inspect.unwrap(part) if callable(part) else part
        home = part if isinstance(part, str) else str(getattr(part, "__module__", ""))
        key = home if isinstance(part, str) else f"{home}.{getattr(part, '__qualname__', '')}"
        if home.partition(".")[0] in _BY_PART and not isinstance(part, str):
            if key not in found and (source := _source_of(part)) is not None:
                found[key] = _digest(without_texts(source))
                queue += _named(part, source, home, found)
        elif home not in found and (source := _source_of_module(home)) is not None:
            found[home] = _digest(without_texts(source))
            queue += _imported(_parsed(source), home)
    return found


def together(found: Mapping[str, str]) -> str:
    """One digest of several."""
    return _digest("\n".join(f"{name} {found[name]}" for name in sorted(found)))


def without_texts(source: str) -> str:
    """Code without comments, docstrings and line breaks; as it is where it cannot be parsed alone."""
    tree = _parsed(source)
    if tree is None:
        return source
    for node in ast.walk(tree):
        texted = isinstance(node, (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        if texted and ast.get_docstring(node) is not None:  # type: ignore[arg-type]
            node.body = node.body[1:]  # type: ignore[attr-defined]
    return ast.unparse(tree)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _parsed(source: str) -> ast.Module | None:
    try:
        return ast.parse(textwrap.dedent(source))
    except SyntaxError:
        return None


def _source_of(part: object) -> str | None:
    try:
        return inspect.getsource(part)  # type: ignore[arg-type]
    except (OSError, TypeError):
        return None


def _source_of_module(name: str) -> str | None:
    """The source of a module, imported or not; None of one that has none."""
    file = _file_of(name)
    try:
        return file.read_text("utf-8") if file else None
    except (OSError, UnicodeDecodeError):
        return None


def _file_of(name: str) -> Path | None:
    """The Python file of a module, found without importing it or its packages; None where there is none."""
    if (loaded := sys.modules.get(name)) is not None:
        file = getattr(loaded, "__file__", None)
        return Path(file) if file and file.endswith(".py") else None
    first, *below = name.split(".")
    try:
        spec = importlib.util.find_spec(first)
    except (ImportError, ValueError, AttributeError):
        return None
    if spec is None:
        return None
    if not below:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    for folder in spec.submodule_search_locations or ():
        inner = Path(folder, *below)
        for file in (inner / "__init__.py", inner.with_suffix(".py")):
            if file.is_file():
                return file
    return None


def _package_of(module: str) -> str:
    """What a module's relative imports start from: of a package, imported or not, the package itself."""
    loaded: Any = sys.modules.get(module)
    if package := getattr(loaded, "__package__", None):
        return str(package)
    file = _file_of(module)
    return module if file is not None and file.name == "__init__.py" else module.rpartition(".")[0]


def _named(part: object, source: str, home: str, found: dict[str, str]) -> Iterator[object]:
    """What a part's code names, in its own file and in modules of one's own; plain values are added to what is ``found``."""
    if isinstance(part, type):
        yield from (base for base in part.__bases__ if _counts(base.__module__, home))
    tree, there = _parsed(source), vars(sys.modules[home]) if home in sys.modules else {}
    if tree is None:
        return
    changed = {name for node in ast.walk(tree) if isinstance(node, ast.Global) for name in node.names}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Name) or node.id not in there or node.id in changed:
            continue
        value = there[node.id]
        if _is_plain(value):
            found[f"{home}.{node.id}"] = _digest(repr(value))
        elif isinstance(value, ModuleType):
            if is_own(value.__name__):
                yield value.__name__
        elif callable(value) and _counts(str(getattr(value, "__module__", "")), home):
            yield value
    yield from _imported(tree, home)


def _is_plain(value: object) -> bool:
    return isinstance(value, _PLAIN) or (isinstance(value, tuple) and all(map(_is_plain, value)))


def _counts(module: str, home: str) -> bool:
    return module == home or is_own(module)


def _imported(tree: ast.Module | None, home: str) -> Iterator[str]:
    """The modules of one's own that some code imports, wherever in it."""
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if is_own(alias.name))
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = _package_of(home)
                above = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
                base = f"{above}.{base}".strip(".")
            names = (base, *(f"{base}.{alias.name}" for alias in node.names))
            yield from (name for name in names if is_own(name))


def is_own(module: str) -> bool:
    """Tell whether a module is the user's: neither distill's, nor Python's, nor an installed package's."""
    first = module.partition(".")[0]
    if not first or first in _BY_PART or first in sys.stdlib_module_names:
        return False
    file = _file_of(module)
    return file is not None and not {"site-packages", "dist-packages"} & {*file.parts}

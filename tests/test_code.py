"""What counts as a change of code: between two comparisons into one folder, and between a run and its resumption."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_run import OPTIONS

import distill
from distill import guidance, loop
from distill.guidance.terms import WEIGHTINGS
from distill.job import State
from distill.lab.comparison.cost import compose
from distill.lab.comparison.given import prior_code, prior_name
from distill.lab.comparison.run import finished
from distill.priors import exact
from distill.priors.wrapped import wrap
from distill.run.config.code import is_own, own_code, together, used_code, without_texts
from distill.run.config.plugins import code_changed, code_of

FIRST = """\
from distill import guidance
import my_shared
GAIN = 2.0
def helper(x):
    return x + 1
class Base:
    size = 3
@guidance.register
def mine(prior, x, cond, t, noise, *, scale: float = 1.0):
    return my_shared.halved(helper(x)) * GAIN
@guidance.register
@guidance.made_for_prior
class Built(Base):
    def __init__(self, prior, generator, priors=None, *, scale: float = 1.0): ...
    def __call__(self, prior, x, cond, t, noise): return x
@guidance.register_weighting
def heavy(alpha, sigma):
    return alpha
METHODS = ["a"]
"""
SHARED = "def halved(x):\n    return x / 2\n"


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(guidance, "_registered", {})
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setitem(WEIGHTINGS, "heavy", lambda alpha, sigma: sigma)


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, str]]:
    """Gives the code of a method whose parts are in ``my_parts.py``, with what is replaced there."""

    def of(wanted: dict[str, Any], old: str = "", new: str = "") -> dict[str, str]:
        (tmp_path / "my_parts.py").write_text(FIRST.replace(old, new) if old else FIRST)
        (tmp_path / "my_shared.py").write_text(SHARED.replace(old, new) if old else SHARED)
        for name in ("my_parts", "my_shared"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()
        importlib.import_module("my_parts")
        return code_of(compose(wanted, "a red car", 0))

    return of


@pytest.mark.parametrize(
    ("wanted", "old", "new"),
    [
        ({"guidance": "mine"}, "x + 1", "x + 2"),
        ({"guidance": "mine"}, "x / 2", "x / 3"),
        ({"guidance": "mine"}, "GAIN = 2.0", "GAIN = 3.0"),
        ({"guidance": "built"}, "size = 3", "size = 4"),
        ({"guidance": "mix", "guidance.terms": [{"loss": "sds"}, {"loss": "mine"}]}, "* GAIN", "/ GAIN"),
        ({"guidance": "mix", "guidance.terms": [{"loss": "sds", "weighting": "heavy"}]}, "return alpha", "return alpha**2"),
        ({"guidance": "sds", "guidance.weighting": "heavy"}, "return alpha", "return alpha**2"),
    ],
    ids=["helper", "imported helper", "constant", "base class", "term", "weighting of a term", "weighting"],
)  # fmt: skip
def test_what_a_loss_uses_is_part_of_its_code(
    code: Callable[..., dict[str, str]], wanted: dict[str, Any], old: str, new: str
) -> None:
    before = code(wanted)
    assert code(wanted) == before
    assert code(wanted, "return x / 2", "return x / 2  # half") == before
    changed = {name for name, digest in code(wanted, old, new).items() if before[name] != digest}
    assert changed == {"guidance, with what it uses"}


def test_a_script_may_change_beside_a_part_and_what_it_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its list of methods is in the same file, and what the part does not name is no part of it."""

    def digests(text: str) -> dict[str, str]:
        (tmp_path / "script.py").write_text(text)
        (tmp_path / "my_shared.py").write_text(SHARED)
        spec = importlib.util.spec_from_file_location("__main__", tmp_path / "script.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "__main__", module)
        spec.loader.exec_module(module)
        return used_code([module.mine, module.Built])

    before = digests(FIRST)
    assert set(before) == {"__main__.mine", "__main__.helper", "__main__.GAIN", "__main__.Built", "__main__.Base", "my_shared"}  # fmt: skip
    assert digests(FIRST.replace('["a"]', '["a", "b"]')) == before
    assert digests(FIRST.replace("size = 3", "size = 4")) != before
    assert digests(FIRST.replace("x + 1", "x + 2")) != before


def test_installed_packages_are_not_ones_own() -> None:
    assert not any(map(is_own, ("torch", "json", "distill.loop", "hydra.utils", "no_such_module", "")))
    assert is_own(__name__)


def test_what_is_installed_is_told_by_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, folder in enumerate(("site-packages", "dist-packages", "my-packages")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"kept_in_{number}.py").write_text("")
        monkeypatch.syspath_prepend(str(tmp_path / folder))
    assert [is_own(f"kept_in_{number}") for number in range(3)] == [False, False, True]


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ('"""A."""\nx = 1', '"""B."""\nx = 1  # one', True),
        ('def f():\n    """A."""\n    return 1', "def f():\n    return 1", True),
        ('async def f():\n    """A."""\n    return 1', "async def f():\n    return 1", True),
        ('class A:\n    """A."""\n    x = 1', "class A:\n\n    x = (1)", True),
        (
            "    def f(self):\n        return 1  # indented, as a method is",
            "def f(self):\n    return 1",
            True,
        ),
        ('def f():\n    x = 1\n    """A."""', "def f():\n    x = 1", False),  # no docstring
        ('def f():\n    return "A."', 'def f():\n    return "B."', False),
        ("x = 1", "x = 2", False),
        ("}, x  # a piece", "}, x  # another piece", False),  # which cannot be parsed alone
    ],
)
def test_comments_and_docstrings_do_not_count(before: str, after: str, same: bool) -> None:
    assert (without_texts(before) == without_texts(after)) is same


def test_the_order_in_which_code_is_found_does_not_count_and_where_does() -> None:
    assert together({"a": "1", "b": "2"}) == together({"b": "2", "a": "1"})
    assert together({"a": "1", "b": "2"}) != together({"a": "2", "b": "1"})
    assert together({"a": "1"}) != together({"b": "1"})


def test_a_module_that_is_no_utf_8_is_passed_over(
    script: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    (tmp_path / "latin.py").write_bytes("# coding: latin-1\nname = 'é'\n".encode("latin-1"))
    assert set(script("import latin\ndef mine(x):\n    return latin.name\n")) == {"__main__.mine"}


def test_what_has_no_source_has_no_code_of_its_own() -> None:
    typed: dict[str, Any] = {}
    exec("def typed(x):\n    return x", typed)
    assert own_code(typed["typed"]) is own_code(len) is own_code(functools.partial(len)) is None
    assert own_code(bound) == own_code(bound.__wrapped__)


@functools.lru_cache
def bound(x: float) -> float:
    return x


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, str]]:
    """Gives the code of ``mine`` in a script, of which and beside which other files lie."""

    def of(text: str, **files: str) -> dict[str, str]:
        for name, each in {"script": text, **files}.items():
            (tmp_path / f"{name}.py").write_text(each)
            monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()
        spec = importlib.util.spec_from_file_location("__main__", tmp_path / "script.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "__main__", module)
        spec.loader.exec_module(module)
        return used_code([module.mine])

    return of


@pytest.mark.parametrize(
    ("there", "counts"),
    [
        ("VALUE = 1", True), ("VALUE = 'a'", True), ("VALUE = None", True), ("VALUE = (1, ('a', 2.5))", True),
        ("VALUE = [1]", False), ("VALUE = (1, [2])", False), ("import json as VALUE", False), ("from json import dumps as VALUE", False),
    ],
)  # fmt: skip
def test_plain_values_of_a_script_count(
    script: Callable[..., dict[str, str]], there: str, counts: bool
) -> None:
    found = script(f"{there}\ndef mine(x):\n    return VALUE\n")
    assert set(found) == {"__main__.mine"} | ({"__main__.VALUE"} if counts else set())


def test_what_a_script_s_part_changes_itself_does_not_count(script: Callable[..., dict[str, str]]) -> None:
    """Its value depends on when it is asked for, as of a counter."""
    text = "CALLS = {}\nGAIN = 2\ndef mine(x):\n    global CALLS\n    CALLS += GAIN\n"
    first, second = script(text.format(0)), script(text.format(5))
    assert first == second and set(first) == {"__main__.mine", "__main__.GAIN"}


@pytest.mark.parametrize(
    "text",
    [
        "import beside\ndef mine(x):\n    return beside.f(x)\n",
        "from beside import f\ndef mine(x):\n    return f(x)\n",
        "def mine(x):\n    import beside\n    return beside.f(x)\n",
        "def mine(x):\n    from beside import f\n    return f(x)\n",
        "from beside import Base\nclass mine(Base): ...\n",
        "import beside\nclass mine(beside.Base): ...\n",
        "from beside import f\ndef helper(x):\n    return f(x)\ndef mine(x):\n    return helper(x)\n",
    ],
)
def test_a_module_beside_a_script_counts_however_its_part_uses_it(
    script: Callable[..., dict[str, str]], text: str
) -> None:
    beside = "def f(x):\n    return x\nclass Base:\n    size = {}\n"
    first, second = script(text, beside=beside.format(1)), script(text, beside=beside.format(2))
    assert {name for name in first if first[name] != second[name]} == {"beside"}


@pytest.mark.parametrize(
    "text",
    [
        "import ast\nimport torch\nclass mine(torch.nn.Module, ast.NodeVisitor): ...\n",
        "def mine(x):\n    import json, torch.nn\n    import distill.loop\n    from torch import nn\n    return x\n",
    ],
)
def test_what_is_installed_does_not_count_however_a_script_s_part_uses_it(
    script: Callable[..., dict[str, str]], text: str
) -> None:
    assert set(script(text)) == {"__main__.mine"}


def test_a_part_counts_as_what_it_wraps() -> None:
    assert used_code([functools.partial(functools.partial(holding, 1), 2)]) == used_code([holding])
    assert __name__ in used_code([functools.partial(bound)])


@pytest.mark.parametrize("loaded", [True, False])
@pytest.mark.parametrize(
    ("where", "line", "target"),
    [
        ("made_up.inner.part", "from .beside import value", "made_up.inner.beside"),
        ("made_up.inner.part", "from . import beside", "made_up.inner.beside"),
        ("made_up.inner.part", "from ..above import value", "made_up.above"),
        ("made_up.inner.part", "from .. import above", "made_up.above"),
        ("made_up.inner.part", "from ..other.leaf import value", "made_up.other.leaf"),
        ("made_up.inner.part", "from made_up import above", "made_up.above"),
        ("made_up.inner.part", "import made_up.above", "made_up.above"),
        ("made_up.inner", "from .beside import value", "made_up.inner.beside"),
        ("made_up.inner", "from ..above import value", "made_up.above"),
        ("made_up", "from .above import value", "made_up.above"),
        ("made_up", "from .other import leaf", "made_up.other.leaf"),
    ],
)
def test_relative_imports_are_followed_from_modules_and_packages_imported_or_not(
    where: str, line: str, target: str, loaded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["made_up", "made_up.inner", "made_up.other", "made_up.inner.part", "made_up.inner.beside", "made_up.above", "made_up.other.leaf"]  # fmt: skip
    for name in (*names, "uses_made_up"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for folder in ("made_up", "made_up/inner", "made_up/other"):
        (tmp_path / folder).mkdir()

    def file(name: str) -> Path:
        path = tmp_path.joinpath(*name.split("."))
        return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")

    for name in names:
        file(name).write_text("value = 1\n")
    file(where).write_text(f"{line}\n")
    file("uses_made_up").write_text(f"def loss(x):\n    import {where}\n    return x\n")
    importlib.invalidate_caches()
    module = importlib.import_module("uses_made_up")
    if loaded:
        importlib.import_module(where)
    before = used_code([module.loss])
    file(target).write_text("value = 2\n")
    after = used_code([module.loss])
    assert {name for name in after if before.get(name) != after[name]} == {target}
    for name in names:
        sys.modules.pop(name, None)


def test_a_package_comes_before_a_module_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Python finds them."""
    (tmp_path / "outer_one" / "twice").mkdir(parents=True)
    for name in ("__init__", "twice/__init__", "twice"):
        (tmp_path / "outer_one" / f"{name}.py").write_text(f"value = {name!r}\n")
    (tmp_path / "uses_twice.py").write_text("def loss(x):\n    from outer_one.twice import value\n")
    module = importlib.import_module("uses_twice")
    before = used_code([module.loss])
    (tmp_path / "outer_one" / "twice.py").write_text("value = 0\n")
    assert used_code([module.loss]) == before
    (tmp_path / "outer_one" / "twice" / "__init__.py").write_text("value = 0\n")
    assert used_code([module.loss]) != before


def test_cells_of_other_code_and_of_another_prior_are_told(tmp_path: Path) -> None:
    """And those of a version that recorded less are compared in what it recorded."""
    wanted: dict[str, Any] = {"options": {"guidance": "mine"}, "prior": "exact"}
    now = {"guidance": "1", "guidance, with what it uses": "2", "prior": "3"}

    def go(code: dict[str, str] | None) -> bool:
        (tmp_path / "cell.json").write_text(json.dumps({**wanted, **({"code": code} if code else {})}))
        return finished(tmp_path, wanted, now)

    assert go(now) and go({"guidance": "1"}) and go(None)
    for name, said in (
        ("guidance", "was made before the code of mine was changed; choose another output_dir"),
        ("guidance, with what it uses", "before the code of mine or of what it uses was changed; choose"),
        ("prior", "was made with another prior that is called exact, too; choose another output_dir"),
    ):
        with pytest.raises(ValueError, match=said):
            go({**now, name: "0"})


def a_prior(prompt: str) -> Any: ...


def b_prior(prompt: str, scale: float = 2.0) -> Any: ...


def test_priors_of_one_name_are_told_apart_by_what_they_are() -> None:
    mean = torch.zeros(3, 4, 4)
    same = [prior_code(exact.gaussian({"": mean.clone()}, std=0.5)) for _ in range(2)]
    assert same[0] == same[1]
    others: list[Any] = [
        exact.gaussian({"": mean + 1}, std=0.5),
        exact.gaussian({"": mean}, std=0.6),
        exact.gaussian({"a": mean}, std=0.5),
        exact.gaussian({"": mean}, std=0.5, abar=torch.linspace(0.9, 0.1, 10)),
        a_prior,
        b_prior,
    ]
    digests = [same[0]["prior"], *(prior_code(prior)["prior"] for prior in others)]
    assert len(set(digests)) == len(digests)
    assert prior_code(None) == {}

    def bound_to(value: float) -> Callable[[str], Any]:
        def made(prompt: str) -> Any:
            return value

        return made

    first, again, other = (prior_code(bound_to(value)) for value in (1.0, 1.0, 2.0))
    assert first == again != other


class Net:
    """An object that holds what it predicts with, and refers to itself."""

    def __init__(self, factor: float) -> None:
        self.factor, self.table, self.me = factor, np.array([factor]), self

    def predict(self, x: Any, t: Any, cond: Any) -> Any:
        return self.factor * x


def holding(table: Any) -> Callable[..., Any]:
    return lambda x, t, cond: x * table[0]


@pytest.mark.parametrize(
    "made",
    [
        lambda value: Net(value).predict,
        lambda value: holding(np.array([value])),
        lambda value: functools.partial(Net(1.0).predict, cond=value),
        lambda value: Net(value),
        lambda value: holding([Net(value)]),
    ],
)
def test_the_code_of_a_wrapped_function_counts_what_it_holds(made: Callable[[float], Any]) -> None:
    levels = torch.linspace(0.9, 0.1, 10)
    first, again, other = (prior_code(wrap(made(value), (3, 8, 8), levels)) for value in (1.0, 1.0, 2.0))
    assert first == again != other


def test_the_order_of_keywords_does_not_count() -> None:
    one, two = (functools.partial(holding, **words) for words in ({"a": 1, "b": 2}, {"b": 2, "a": 1}))
    assert prior_code(one) == prior_code(two)  # type: ignore[arg-type]


def test_a_package_is_not_imported_to_be_digested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its inner module counts, though the package itself fails where it is imported."""
    package = tmp_path / "needs_a_gpu"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('needs a GPU')\n")
    (package / "inner" / "thing.py").write_text("value = 1\n")
    (tmp_path / "with_bench.py").write_text(
        "def loss(x):\n    return x\n\ndef bench():\n    from needs_a_gpu.inner.thing import value\n    return value\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("with_bench")
    before = used_code([module.loss])
    assert {"with_bench", "needs_a_gpu.inner.thing"} <= {*before}
    (package / "inner" / "thing.py").write_text("value = 2\n")
    assert used_code([module.loss]) != before


def test_a_prior_that_is_loaded_is_described_by_its_files() -> None:
    prior = distill.load_prior("embedded")
    assert prior_code(prior) == prior_code(distill.load_prior("embedded"))


def test_a_function_of_priors_without_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs a name, for its cells; got .*, define it with def"):
        prior_name(functools.partial(b_prior, scale=3.0), ["a red car"])  # type: ignore[arg-type]


LOSS = """\
from distill.guidance.terms import add_noise, predict
def size():
    return 1.0
def my_resumed(prior, x, cond, t, noise, *, scale: float = 1.0):
    text, uncond = predict(prior, add_noise(prior, x, t, noise), t, cond, "text", "uncond")
    return scale * size() * (text - uncond)
"""


@pytest.mark.slow
def test_a_resumed_run_says_that_code_was_changed_since_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One that was interrupted, and one that is finished."""

    def stopping(at: int) -> Callable[..., None]:
        def move(state: State, settings: Any, progress: float) -> None:
            if at and state.step == at:
                raise KeyboardInterrupt

        return move

    def go(text: str, name: str, stop: int = 0) -> list[str]:
        (tmp_path / "my_resumed.py").write_text(text)
        monkeypatch.delitem(sys.modules, "my_resumed", raising=False)
        importlib.invalidate_caches()
        guidance.register(importlib.import_module("my_resumed").my_resumed)
        caplog.clear()
        options: dict[str, Any] = {
            **OPTIONS, "iterations": 3, "guidance": "my_resumed", "log.checkpoint_every": 1, "export.enabled": False, "resume": True,
        }  # fmt: skip
        with contextlib.suppress(KeyboardInterrupt), monkeypatch.context() as patched:
            patched.setattr(loop, "move", stopping(stop))
            distill.generate("a red mug", output_dir=tmp_path / name, **options)
        return [record.getMessage() for record in caplog.records if "the code of" in record.getMessage()]

    other = LOSS.replace("1.0\n", "2.0\n")
    assert go(LOSS, "run", stop=2) == []
    assert go(other, "run") == [
        "the code of guidance=my_resumed, or of what it uses, was changed since the checkpoint: the first 2 steps were made with the earlier code"
    ]
    assert go(other, "run") == []
    (said,) = go(LOSS, "run")
    assert said.endswith("was changed since the run was trained, and it is not trained again; choose another output_dir= for that")  # fmt: skip
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert "guidance, with what it uses" in manifest["code"]


def test_a_folder_that_says_nothing_of_code_is_not_compared() -> None:
    config = compose({}, "a red car", 0)
    known = code_of(config)
    assert code_changed({}, config) == code_changed(known, config) == ""
    assert (
        code_changed({**known, "guidance": "0", "scene": "0"}, config) == "guidance=sds and scene=hash_grid"
    )

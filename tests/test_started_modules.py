"""Modules that ``python -m`` starts: each has a help, and refuses wrong arguments in one line."""

from __future__ import annotations

import ast
import runpy
import warnings

import pytest
from test_structure import HOMES, tree


def is_started(module: str) -> bool:
    """Whether a module is made to be started: a ``__main__``, or one that compares its name with that."""
    if module.endswith(".__main__"):
        return True
    return any(
        isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
        for node in tree(module).body
    )


STARTED = [module.removesuffix(".__main__") for module in HOMES if is_started(module)]


def started(
    module: str, *words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[object, str, str]:
    """What ``python -m module words`` ends with and prints, in this process."""
    monkeypatch.setattr("sys.argv", [module, *words])
    with pytest.raises(SystemExit) as ended, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'distill.* found in sys.modules", RuntimeWarning)
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err


def test_modules_that_are_started_are_found() -> None:
    assert {"distill", "distill.convert", "distill.from_threestudio", "distill.lab.comparison.cost"} <= {
        *STARTED
    }
    assert "distill.run.several.sweep" not in STARTED  # which only speaks of the name


@pytest.mark.parametrize("module", STARTED)
def test_a_started_module_has_a_help(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = started(module, "--help", monkeypatch=monkeypatch, capsys=capsys)
    assert (code, err) == (0, "")
    name = "distill-views" if module == "distill.lab.novel_view.cli" else module
    assert name in out and "--help" in out and out.count("\n") > 5


COST = "distill.lab.comparison.cost"
WRONG = [
    *((module, ["--no-such-flag"], "") for module in STARTED),
    ("distill.convert", [], "required: source"),
    ("distill.convert", ["gone.bin"], "gone.bin is no readable file of tensors"),
    ("distill.convert", ["a", "b", "c"], "unrecognized arguments: c"),
    ("distill.from_threestudio", [], "required: config"),
    ("distill.lab.novel_view.cli", ["pack", "renders"], "required: output"),
    ("distill.lab.novel_view.cli", ["no_such"], "no_such"),
    ("distill.lab.novel_view.train", ["no_such=1"], "no_such"),
    ("distill.lab.novel_view.train", ["no_such"], "no_such"),
    (COST, [], "required: method, prompt"),
    (COST, ["{}"], "required: prompt"),
    (COST, ["guidance=csd", "a red mug"], "expected JSON, got 'guidance=csd'"),
    (COST, ["[1]", "a red mug"], "expected a JSON object of options, got '[1]'"),
    (COST, ['{"guidance": "no_such"}', "a red mug"], "no_such"),
    (COST, ['{"iterations": "many"}', "a red mug"], "many"),
    (COST, ['{"prior": "no_such"}', "a red mug"], "no_such"),
]


@pytest.mark.parametrize(("module", "words", "part"), WRONG)
def test_a_started_module_refuses_wrong_arguments_in_one_line(
    module: str,
    words: list[str],
    part: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, err = started(module, *words, monkeypatch=monkeypatch, capsys=capsys)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1 and ": error: " in err and part in err

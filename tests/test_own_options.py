"""Options of one's own parts: their types and defaults, and what is refused where a part is registered or found in a file."""

from __future__ import annotations

import enum
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
import torch
from test_registered import DOORS

import distill
from distill import guidance
from distill.domains import describe, fits
from distill.options import check_options, hints_of, names_of, numbers
from distill.parts import registered
from distill.run.assembly.assemble import assemble
from distill.run.config.compose import compose_config

if TYPE_CHECKING:
    from torch import Tensor as OnlyForTypes

Tiny = enum.Enum("Tiny", "one two")
ZEROS, SOMETHING = torch.zeros(2), object()


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registered, "_broken", {})
    for door in DOORS.values():
        monkeypatch.setattr(door, "_registered", {})


@guidance.made_for_prior
class WithoutOptions:
    def __init__(self, prior: Any, generator: Any, priors: Any = None) -> None:
        self.given = prior, generator, priors

    def __call__(self, prior: Any, x: Any, cond: Any, t: Any, noise: Any) -> Any:
        return x


@guidance.made_for_prior
class OtherNames:
    def __init__(self, model: Any, g: Any, others: Any = None, scale: float = 2.0) -> None:
        self.given = model, g, others

    def __call__(self, prior: Any, x: Any, cond: Any, t: Any, noise: Any) -> Any:
        return x


@pytest.mark.parametrize(("made", "options"), [(WithoutOptions, []), (OtherNames, ["scale"])])
def test_what_a_part_is_given_is_no_option_of_it(made: Any, options: list[str]) -> None:
    """Not even where it has a default, and the part has no other parameters."""
    guidance.register(made)
    assert names_of(made) == options
    prior = distill.load_prior("embedded")
    loss: Any = assemble(compose_config(["prompt=a red mug", f"guidance={made.__name__}".lower()]), prior)
    assert loss.guidance.given[0] is prior and loss.guidance.given[2] == {}


@pytest.mark.parametrize(
    ("hint", "held", "refused", "said"),
    [
        (list, [1, "a", [2]], 3, "a list"),
        (tuple, (1, 2), "a", "a list"),
        (Sequence, [0.5], 1.0, "a list"),
        (list | None, None, 2, "a list or null"),
        (dict, {"a": 1}, [1], "a mapping"),
        (Mapping, {}, 3, "a mapping"),
        (list[int], [1], [0.5], "a list, each an integer"),
    ],
)  # fmt: skip
def test_a_list_or_mapping_of_anything_is_a_type(hint: Any, held: Any, refused: Any, said: str) -> None:
    assert fits(held, hint) and not fits(refused, hint)
    assert describe(hint) == said


def bare(prior: Any, x: Any, cond: Any, t: Any, noise: Any, *, levels: list = [1, 2]) -> Any:  # noqa: B006
    return x


def untyped(prior, x, cond, t, noise, *, gain=2.0, steps=3, flag=True, mode="a", levels=(1, 2, 3), span=(0.0, 1), more=None):  # type: ignore[no-untyped-def]  # fmt: skip
    return gain * x


def later(prior: Any, x: OnlyForTypes, cond: Any, t: Any, noise: Any, *, gain: float = 1.0) -> OnlyForTypes:
    return x


def test_a_bare_list_takes_its_own_default_and_another() -> None:
    guidance.register(bare)
    assert list(compose_config(["prompt=a red mug", "guidance=bare"]).guidance.levels) == [1, 2]
    assert list(compose_config(["prompt=a red mug", "guidance=bare", "guidance.levels=[3]"]).guidance.levels) == [3]  # fmt: skip


def test_an_option_without_a_type_has_that_of_its_default() -> None:
    guidance.register(untyped)
    kinds = {"gain": float, "steps": float, "flag": bool, "mode": str, "levels": list, "span": tuple[float, float], "more": Any}  # fmt: skip
    assert hints_of(untyped) == kinds
    assert numbers(untyped) == {"gain": 1, "steps": 1, "span": 2}
    moving = compose_config(["prompt=a red mug", "guidance=untyped", "guidance.gain={start:0,end:1}"])
    loss: Any = assemble(moving, distill.load_prior("embedded")).guidance
    step = distill.contracts.Step(progress=0.5)
    x: Any = torch.ones(1)
    assert loss(None, x, type("Cond", (), {"step": step}), x, x).item() == pytest.approx(0.5, abs=0.05)
    assert type(compose_config(["prompt=a red mug", "guidance=untyped"]).guidance.steps) is int
    check_options(untyped, {"more": {"any": 1}, "steps": 2.5}, "guidance", None)
    for name, value in {"gain": "much", "flag": 1, "mode": 2, "levels": 3}.items():
        with pytest.raises(ValueError, match=f"guidance.{name} must be "):
            check_options(untyped, {name: value}, "guidance", None)


def test_a_type_that_only_type_checkers_know_is_no_fault_of_a_loss() -> None:
    guidance.register(later)
    assert hints_of(later)["gain"] is float and hints_of(later)["x"] is Any
    compose_config(["prompt=a red mug", "guidance=later", "guidance.gain={start:0,end:1}"])


def tensor(prior: Any, x: Any, cond: Any, t: Any, noise: Any, *, d: Any = ZEROS) -> Any: ...
def object_(prior: Any, x: Any, cond: Any, t: Any, noise: Any, *, d: Any = SOMETHING) -> Any: ...
def member(prior: Any, x: Any, cond: Any, t: Any, noise: Any, *, d: Any = Tiny.one) -> Any: ...
def function(prior: Any, x: Any, cond: Any, t: Any, noise: Any, *, d: Any = len) -> Any: ...
def inner(prior: Any, x: Any, cond: Any, t: Any, noise: Any, *, d: Any = (1, ZEROS)) -> Any: ...
def positional(prior: Any, x: Any, cond: Any, t: Any, noise: Any, d: Any = ZEROS) -> Any: ...
def none(prior: Any, x: Any, cond: Any, t: Any, noise: Any, *, d: float = None) -> Any: ...  # type: ignore[assignment]  # noqa: RUF013
def text(prior: Any, x: Any, cond: Any, t: Any, noise: Any, *, d: float = "much") -> Any: ...  # type: ignore[assignment]
def choice(prior: Any, x: Any, cond: Any, t: Any, noise: Any, *, d: Literal["a", "b"] = "c") -> Any: ...  # type: ignore[assignment]
def lost(prior: Any, x: Any, cond: Any, t: Any, noise: Any, d: float = 2.0, *, e: float = 1.0) -> Any: ...


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (tensor, "default of d of the loss tensor must be a number, text, true or false, None, or a list of these, got Tensor tensor"),
        (object_, "got object <object"),
        (member, "got Tiny Tiny.one"),
        (function, "got builtin_function_or_method <built-in"),
        (inner, "got tuple "),
        (positional, "default of d of the loss positional must be a number"),
        (none, r"must be a finite number, as its type says, got None; change the type, as in float \| None"),
        (text, "must be a finite number, as its type says, got 'much'; change one of them"),
        (choice, "must be a or b, as its type says, got 'c'"),
        (lost, r"loss lost has the parameter d with a default before its options, .*; put it after the \*"),
    ],
)  # fmt: skip
def test_a_default_that_no_configuration_can_hold_is_refused_where_it_is_registered(loss: Any, said: str) -> None:  # fmt: skip
    with pytest.raises(ValueError, match=said) as caught:
        guidance.register(loss)
    assert "\n" not in str(caught.value) and guidance._registered == {}
    assert compose_config(["prompt=a red mug"]).guidance.scale == 2


SIGNED = "def my_file(prior, x, cond, t, noise, *, scale: float = 1.0):\n    return x\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (SIGNED.replace("float = 1.0", "dict = {}"), r"my_file\.py: the default of scale of the loss my_file must be a number"),
        (SIGNED.replace("x, cond, t", "t"), r"my_file\.py: a loss must take \(prior, x, cond, t, noise\)"),
        (SIGNED.replace(" = 1.0", ""), r"my_file\.py: the loss my_file has the option scale without a default"),
        (f"import no_such_module\n{SIGNED}", r"my_file\.py cannot be imported \(ModuleNotFoundError: No module named 'no_such_module'\)"),
        (f"{SIGNED}\n1 / 0\n", r"my_file\.py cannot be imported \(ZeroDivisionError: division by zero\)"),
        (f"import sys\nsys.exit(3)\n{SIGNED}", r"my_file\.py cannot be imported \(SystemExit: 3\)"),
        ("def my_file(prior:\n", r"my_file\.py cannot be imported \(SyntaxError: "),
    ],
)  # fmt: skip
def test_a_broken_file_of_losses_costs_that_loss_alone(
    text: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "my_file.py").write_text(text)
    monkeypatch.setattr(guidance, "__path__", [*guidance.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "distill.guidance.my_file", raising=False)
    try:
        for _ in range(2):
            assert compose_config(["prompt=a red mug"]).guidance.scale == 2
        assert len([record for record in caplog.records if "my_file" in record.getMessage()]) == 1
        for words in (["guidance=my_file"], ["guidance=mix", "guidance.terms=[{loss: my_file}]"]):
            with pytest.raises(ValueError, match=said) as caught:
                compose_config(["prompt=a red mug", *words])
            assert "\n" not in str(caught.value)
    finally:
        sys.modules.pop("distill.guidance.my_file", None)
        vars(guidance).pop("my_file", None)

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
from distill.run.config.code import is_own, used_code
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

"""The libraries that the benchmark of generators learns: of the embedded world, and of real objects."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from distill.embedded import world
from distill.embedded.vocabulary import of_prior
from distill.lab.truth import asked, check_meant

FOLDER = Path(__file__).parents[1] / "examples" / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("amortised")


@pytest.mark.parametrize("size", [16, 112])
def test_a_library_of_kinds_has_every_colour_and_no_pair_twice(benchmark: Any, size: int) -> None:
    lists = benchmark.kinds(size)
    pairs = [world.pair_of(prompt) for prompt in lists.learnt]
    assert len(set(pairs)) == size and {colour for colour, _ in pairs} == set(world.COLOURS)
    assert len({kind for _, kind in pairs}) >= min(size, len(world.KINDS)) - 2  # those whose turn is held out
    assert not any(world.held_out(*pair) for pair in pairs)
    assert len(lists.held_out) == 16 and all(world.held_out(*world.pair_of(each)) for each in lists.held_out)


def test_a_library_of_things_has_each_name_once_and_holds_out_colours_of_names_it_has(benchmark: Any) -> None:
    known = of_prior("things")
    assert known is not None
    lists = benchmark.named(419, None)
    learnt, held = ([asked(prompt) for prompt in prompts] for prompts in (lists.learnt, lists.held_out))
    assert sorted(each.name for each in learnt) == sorted(known.things)
    # A name that comes in any colour is learnt in one, and one that does not, as it is.
    assert all((each.colour is not None) == known.names[each.name].paintable for each in learnt)
    assert not any(each.held_out for each in learnt) and all(each.held_out for each in held)
    assert len(held) == 16 and {each.name for each in held} <= {each.name for each in learnt}
    counts = [sum(each.colour == colour for each in learnt) for colour in world.COLOURS]
    assert min(counts) > 0.8 * sum(counts) / len(counts)
    check_meant([*lists.learnt, *lists.held_out], "things")


def test_a_smaller_library_of_things_holds_out_its_own_names(benchmark: Any) -> None:
    lists = benchmark.named(48, None)
    names = {asked(prompt).name for prompt in lists.learnt}
    assert len(lists.learnt) == len(names) == 48
    assert lists.held_out and {asked(prompt).name for prompt in lists.held_out} <= names


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--sizes", "113"], "--sizes are at most 112, got 113"),
        (["--things", "--sizes", "16,420"], "--sizes are at most 419, got 420"),
        (["--archives", "x"], "--archives is for --things"),
        (["--steps", "0"], "expected numbers of at least 1, got '0'"),
    ],
)
def test_wrong_options_are_one_line(
    benchmark: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    given: list[str],
    said: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["amortised.py", *given])
    with pytest.raises(SystemExit) as ended:
        benchmark.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].endswith(said)


def test_a_library_of_another_kind_is_not_taken_for_this_one(benchmark: Any, tmp_path: Path) -> None:
    (tmp_path / "generator").mkdir()
    (tmp_path / "generator" / "manifest.json").write_text("{}")
    kinds = benchmark.kinds(16)
    assert benchmark.train(tmp_path, kinds, 1, "sds", {}) == tmp_path / "generator"
    before = (tmp_path / "library.json").read_text()
    with pytest.raises(ValueError, match="has another library; choose another --output"):
        benchmark.train(tmp_path, benchmark.named(16, None), 1, "sds", {})
    assert (tmp_path / "library.json").read_text() == before


def test_smaller_libraries_of_things_begin_larger_ones(benchmark: Any) -> None:
    small, large = benchmark.named(40, None), benchmark.named(419, None)
    assert large.learnt[:40] == small.learnt and large.held_out == small.held_out
    assert len(benchmark.named(1, None).learnt) == 1


def test_a_row_without_a_truth_is_measured_again_with_one(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_of = list[str]()

    def measure(view: object, prompt: str, source: Any) -> Any:
        asked_of.append(prompt)
        truth = "archives" if source.archives else "none"
        return {"r_precision": 1.0, "iou": 0.5 if source.archives else None, "truth": truth}, None

    monkeypatch.setattr(benchmark, "measure", measure)
    monkeypatch.setattr(benchmark, "views_of", lambda *_: lambda prompt: prompt)
    for archives, expected in ((None, None), (None, None), (tmp_path, 0.5)):
        source = benchmark.Source(archives)
        (row,) = benchmark.measured(tmp_path, ["a hamburger"], None, source)
        assert row["iou"] == expected
    assert asked_of == ["a hamburger"] * 2

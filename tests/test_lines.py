"""Lines of JSON: every reader takes them, and what is not finite is null."""

from __future__ import annotations

import json
import math
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from distill.files.errors import line_of
from distill.files.lines import finite, json_of, with_nan
from distill.run.folder.failures import note
from distill.run.folder.manifest import finish
from distill.run.journal import Journal
from distill.run.several.seeds import better


def strict(line: str) -> Any:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(line, parse_constant=refuse)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, float(torch.tensor(torch.nan))])
def test_what_is_not_finite_is_null(value: float) -> None:
    line = json_of({"step": 3, "loss": value, "rate": 0.5})
    assert line.endswith("\n") and line.count("\n") == 1
    assert strict(line) == {"step": 3, "loss": None, "rate": 0.5}
    assert finite(strict(line)) == strict(line)  # what was read is written as it was


def test_what_is_not_finite_in_a_tree_is_null() -> None:
    tree = {"a": (1.5, -math.inf), "b": [{"c": math.nan, "d": "nan"}, None, True, 3], "e": {}}
    assert finite(tree) == {"a": [1.5, None], "b": [{"c": None, "d": "nan"}, None, True, 3], "e": {}}
    assert strict(json_of(tree)) == finite(tree)


def test_a_runs_metrics_are_read_by_any_reader(tmp_path: Path) -> None:
    options: Any = SimpleNamespace(tensorboard=False, preview_every=0, checkpoint_every=0)
    journal = Journal(tmp_path, options, 2, 0, [], threading.Event())
    state: Any = SimpleNamespace(step=1, skipped=0)
    nothing: Any = None
    journal(state, {"step": 0, "opacity": math.nan, "loss": math.inf}, nothing)
    journal(state, {"step": 1, "opacity": 0.5, "loss": 1.0}, nothing)
    journal.lines.close()
    first, second = map(strict, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert first["opacity"] is None and first["loss"] is None and second["loss"] == 1.0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device here")
def test_a_line_that_cannot_be_written_names_its_file(tmp_path: Path) -> None:
    options: Any = SimpleNamespace(tensorboard=False, preview_every=0, checkpoint_every=0)
    journal = Journal(tmp_path, options, 2, 0, [], threading.Event())
    os.dup2(os.open("/dev/full", os.O_WRONLY), journal.lines.fileno())
    nothing: Any = None
    try:
        with pytest.raises(OSError, match="No space") as caught:
            journal(nothing, {"step": 0}, nothing)
    finally:
        journal.close()
    assert line_of(caught.value) == f"{tmp_path / 'metrics.jsonl'}: No space left on device"


def test_a_manifest_has_null_for_what_is_not_finite(tmp_path: Path) -> None:
    finish(
        tmp_path, {"prompt": "a red mug", "score": math.nan, "seconds": {"train": math.inf, "export": 1.5}}
    )
    said = strict((tmp_path / "manifest.json").read_text())
    assert said["score"] is None and said["seconds"] == {"train": None, "export": 1.5}
    note(tmp_path, {"score": math.nan}, ValueError("why"))
    assert strict((tmp_path / "manifest.json").read_text())["score"] is None


def test_a_seed_without_a_score_is_never_the_best() -> None:
    for none in (None, math.nan):
        assert better({"score": 0.1}, {"score": none}, "best")
        assert not better({"score": none}, {"score": -5.0}, "best")
        assert not better({"score": none}, {"score": None}, "best")
    assert not better({"score": 0.9}, {"score": 0.1}, "all")


def test_a_tree_is_read_back_as_it_was_written() -> None:
    tree = {"a": [1.0, math.nan], "b": {"c": math.nan, "d": "text", "e": True}}
    again = with_nan(strict(json_of(tree)))
    assert again["a"][0] == 1.0 and math.isnan(again["a"][1]) and math.isnan(again["b"]["c"])
    assert again["b"]["d"] == "text" and again["b"]["e"] is True

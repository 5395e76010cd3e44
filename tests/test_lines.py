"""Lines of JSON: every reader takes them, and what is not finite is null."""

from __future__ import annotations

import json
import math
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from distill.files.lines import finite, finite_tree, line_of
from distill.run.journal import Journal


def strict(line: str) -> Any:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(line, parse_constant=refuse)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, float(torch.tensor(torch.nan))])
def test_what_is_not_finite_is_null(value: float) -> None:
    line = line_of({"step": 3, "loss": value, "rate": 0.5})
    assert line.endswith("\n") and line.count("\n") == 1
    assert strict(line) == {"step": 3, "loss": None, "rate": 0.5}
    assert finite(strict(line)) == strict(line)  # what was read is written as it was


def test_what_is_not_finite_in_a_tree_is_null() -> None:
    tree = {"a": (1.5, -math.inf), "b": [{"c": math.nan, "d": "nan"}, None, True, 3], "e": {}}
    assert finite_tree(tree) == {"a": [1.5, None], "b": [{"c": None, "d": "nan"}, None, True, 3], "e": {}}
    assert strict(json.dumps(finite_tree(tree), allow_nan=False)) == finite_tree(tree)


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

"""Records of numbers as JSON that every reader takes, such as the lines of ``metrics.jsonl``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def finite(record: Mapping[str, float | None]) -> dict[str, float | None]:
    """The record with None for nan and infinities, which JSON does not have."""
    return {
        name: None if value is None or not math.isfinite(value) else value for name, value in record.items()
    }


def finite_tree(value: Any) -> Any:
    """A nested value with None for nan and infinities, as ``finite`` makes of a flat record; tuples become lists, as in JSON."""
    if isinstance(value, Mapping):
        return {name: finite_tree(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_tree(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def with_nan(value: Any) -> Any:
    """A nested value, read from a file of ``finite_tree``'s, with nan again for None."""
    if isinstance(value, Mapping):
        return {name: with_nan(item) for name, item in value.items()}
    if isinstance(value, list):
        return [with_nan(item) for item in value]
    return math.nan if value is None else value


def line_of(record: Mapping[str, float | None]) -> str:
    """A line that every reader of JSON takes."""
    return json.dumps(finite(record), allow_nan=False) + "\n"

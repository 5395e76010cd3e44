"""Records of numbers as lines of JSON, such as ``metrics.jsonl``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping


def finite(record: Mapping[str, float | None]) -> dict[str, float | None]:
    """The record with None for nan and infinities, which JSON does not have."""
    return {
        name: None if value is None or not math.isfinite(value) else value for name, value in record.items()
    }


def line_of(record: Mapping[str, float | None]) -> str:
    """A line that every reader of JSON takes."""
    return json.dumps(finite(record), allow_nan=False) + "\n"

"""JSON that every reader takes: what is not finite is null."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def finite(value: Any) -> Any:
    """A nested value with None for nan and infinities, which JSON does not have; tuples become lists."""
    if isinstance(value, Mapping):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def with_nan(value: Any) -> Any:
    """A nested value, read from what ``json_of`` wrote, with nan again for None."""
    if isinstance(value, Mapping):
        return {name: with_nan(item) for name, item in value.items()}
    if isinstance(value, list):
        return [with_nan(item) for item in value]
    return math.nan if value is None else value


def json_of(value: Any, indent: int | None = None, ensure_ascii: bool = True) -> str:
    """The text of a nested value, with the line's end; the options are those of ``json.dumps``."""
    return json.dumps(finite(value), indent=indent, ensure_ascii=ensure_ascii, allow_nan=False) + "\n"

"""The values that an option may take, written beside its type: ``eta: Annotated[float, Range(0)]``.

A type says what an option is, and ``Literal``, ``OneOf``, ``Range`` and ``Length`` say which of these it may be. ``fits`` and
``describe`` read such a type; ``distill.run.checks`` applies them to every option before anything is loaded.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Sequence as SequenceABC
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from distill.wording import listed


@dataclass(frozen=True)
class Range:
    """Bounds of a number, or of each number in a list.

    Attributes:
        low: smallest value, None for none.
        high: largest value, None for none.
        above: ``low`` itself is excluded.
        below: ``high`` itself is excluded.
        multiple: the value is a multiple of this, None where it need not be.
    """

    low: float | None = None
    high: float | None = None
    above: bool = False
    below: bool = False
    multiple: int | None = None

    def holds(self, value: float) -> bool:
        over = self.low is None or (value > self.low if self.above else value >= self.low)
        under = self.high is None or (value < self.high if self.below else value <= self.high)
        return over and under and (self.multiple is None or value % self.multiple == 0)

    def __str__(self) -> str:
        return self._bounds() + (f", a multiple of {self.multiple}" if self.multiple else "")

    def _bounds(self) -> str:
        if self.low is not None and self.high is not None:
            return f"in {'(' if self.above else '['}{_exact(self.low)}, {_exact(self.high)}{')' if self.below else ']'}"
        if self.low is not None:
            return f"above {_exact(self.low)}" if self.above else f"of at least {_exact(self.low)}"
        return f"below {_exact(self.high)}" if self.below else f"of at most {_exact(self.high)}"


def _exact(bound: float | None) -> str:
    """A bound with all digits where it is an integer."""
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


@dataclass(frozen=True)
class Length:
    """Allowed length of a list: at least ``low``, and at most ``high``, None for any number."""

    low: int
    high: int | None

    @classmethod
    def exactly(cls, count: int) -> Length:
        return cls(count, count)

    def holds(self, value: Sequence[object]) -> bool:
        return len(value) >= self.low and (self.high is None or len(value) <= self.high)

    def __str__(self) -> str:
        if self.high is None:
            return f"at least {self.low}"
        return f"{self.low}" if self.low == self.high else f"{self.low} to {self.high}"


@dataclass(frozen=True)
class OneOf:
    """A closed set of values whose list is computed on demand, such as names in a registry.

    In a plug-in's signature, ``Literal`` says the same of a fixed set; a structured configuration does not take ``Literal``.
    """

    values: Callable[[], Sequence[object]] | Sequence[object]

    def names(self) -> tuple[object, ...]:
        return tuple(self.values() if callable(self.values) else self.values)


@dataclass(frozen=True)
class Scheduled:
    """A number or a schedule, in a field that has the type ``Any``."""


@dataclass(frozen=True)
class Follows:
    """An option that, if None, takes the value of the option of the same name in another group."""

    group: str


@dataclass(frozen=True)
class Losses:
    """A list of mappings, each with a loss's name, its weight and its options."""


Count = Annotated[int, Range(1)]
Positive = Annotated[float, Range(0, above=True)]
NotNegative = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
#: Degrees, above 0 and at most 90.
Angle = Annotated[float, Range(0, 90, above=True)]


def fits(value: object, hint: object, rules: tuple[Any, ...] = ()) -> bool:
    """Tell whether a plain value (no ``DictConfig``) has a type and satisfies its constraints."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return fits(value, arguments[0], (*arguments[1:], *rules))
    if origin in (Union, types.UnionType):
        return any(fits(value, each, rules) for each in arguments)
    if origin is Literal:
        return _among(value, arguments)
    if isinstance(value, (list, tuple)):
        return _list_fits(value, hint, rules)
    if hint is None or hint is type(None):
        return value is None
    if hint in (int, float) or (hint is Any and Scheduled() in rules):
        return _number_fits(value, int if hint is int else float, rules)
    if hint in (str, bool):
        named = [rule for rule in rules if isinstance(rule, OneOf)]
        return isinstance(value, hint) and all(_among(value, rule.names()) for rule in named)
    if origin in (Mapping, dict):
        return isinstance(value, Mapping)
    if hint in (Mapping, dict):
        return isinstance(value, Mapping)
    return origin not in _LISTS and hint not in _LISTS


def _among(value: object, values: Sequence[object]) -> bool:
    return any(value == each and type(value) is type(each) for each in values)


def _number_fits(value: object, kind: type, rules: tuple[Any, ...]) -> bool:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not (whole or (kind is float and isinstance(value, float) and math.isfinite(value))):
        return False
    assert isinstance(value, (int, float))
    chosen = all(_among(value, rule.names()) for rule in rules if isinstance(rule, OneOf))
    return chosen and all(rule.holds(value) for rule in rules if isinstance(rule, Range))


def _list_fits(value: Sequence[object], hint: object, rules: tuple[Any, ...]) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if not all(rule.holds(value) for rule in rules if isinstance(rule, Length)):
        return False
    each = tuple(rule for rule in rules if not isinstance(rule, Length))
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        pairs = zip(value, arguments, strict=False)
        return len(value) == len(arguments) and all(fits(item, kind, each) for item, kind in pairs)
    if origin in _LISTS and arguments:
        return all(fits(item, arguments[0], each) for item in value)
    return origin in _LISTS or hint in _LISTS or (hint is Any and Scheduled() not in rules)


#: Types of lists, which a hint may name without what they hold.
_LISTS: tuple[Any, ...] = (tuple, list, Sequence, SequenceABC)


def describe(hint: object, rules: tuple[Any, ...] = ()) -> str:
    """Describe the values that a type accepts: ``a number in [0, 1]``, ``a list of 3, each ...``, ``x, y or z``."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return describe(arguments[0], (*arguments[1:], *rules))
    if origin in (Union, types.UnionType):
        return " or ".join(describe(each, rules) for each in arguments)
    if hint is None or hint is type(None):
        return "null"
    if named := [rule.names() for rule in rules if isinstance(rule, OneOf)]:
        return listed(named[0])
    if origin is Literal:
        return listed(arguments)
    if origin in _LISTS or hint in _LISTS:
        return _describe_list(hint, rules)
    ranges = [rule for rule in rules if isinstance(rule, Range)]
    closed = bool(ranges) and ranges[0].low is not None and ranges[0].high is not None
    words: dict[object, str] = {
        int: "an integer",
        float: "a number" if closed else "a finite number",
        str: "text",
        bool: "true or false",
    }
    plain = (
        words[float]
        if Scheduled() in rules
        else words.get(hint, "null" if hint is type(None) else "a mapping")
    )
    numeric = Scheduled() in rules or hint in (int, float)
    return " ".join([plain, *map(str, ranges if numeric else ())])


def _describe_list(hint: object, rules: tuple[Any, ...]) -> str:
    arguments = get_args(hint)
    each = tuple(rule for rule in rules if not isinstance(rule, Length))
    counts = [f" of {rule}" for rule in rules if isinstance(rule, Length)]
    if get_origin(hint) is tuple and arguments and arguments[-1] is not Ellipsis:
        kinds = [describe(kind, each) for kind in arguments]
        if len(set(kinds)) > 1:
            return f"a list [{', '.join(kinds)}]"
        counts = [f" of {len(kinds)}"]
    if not arguments:
        return f"a list{''.join(counts)}"
    return f"a list{''.join(counts)}, each {describe(arguments[0], each)}"

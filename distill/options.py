"""A callable's options, read from its signature, and the schedules among their values."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import field
from functools import partial
from typing import Any

from hydra.utils import get_method
from omegaconf import DictConfig, OmegaConf


def options_of(target: Callable[..., Any], schedules: bool = False) -> type:
    """A dataclass of a callable's options: its keyword-only parameters, or all where every one has a default.

    With ``schedules``, numbers accept a schedule too: their type is checked by ``schedule``, not by Hydra.
    """
    signature = inspect.signature(target)
    # Where randomness comes from is the run's business, not an option of a part.
    given = ("seed", "generator")
    parameters = [
        p for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY and p.name not in given
    ]
    if not parameters:
        parameters = [
            p for p in signature.parameters.values() if p.default is not p.empty and p.name not in given
        ]
    source = target.__init__ if inspect.isclass(target) else target
    hints = typing.get_type_hints(source)
    fields: list[Any] = [
        ("_target_", str, field(default=f"{target.__module__}.{target.__qualname__}")),
        ("_partial_", bool, field(default=True)),
    ]
    for parameter in parameters:
        hint = hints.get(parameter.name, Any)
        kind, default = _config_field(hint, parameter.default)
        if schedules and hint in (float, float | None):
            kind, default = Any, field(default=parameter.default, metadata={"numbers": 1})
        elif schedules and hint == tuple[float, float]:
            kind = Any
            default = field(default_factory=partial(list, parameter.default), metadata={"numbers": 2})
        fields.append((parameter.name, kind, default))
    return dataclasses.make_dataclass(f"{target.__name__}_options", fields)


def _config_field(hint: Any, default: Any) -> tuple[Any, Any]:
    """A field that OmegaConf accepts: Literal becomes str, tuples become lists, what it cannot type is Any."""
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return str, field(default=default)
    if isinstance(default, (list, tuple)):
        items = list(default)
        kinds = {type(item) for item in items}
        element = kinds.pop() if len(kinds) == 1 and kinds <= {int, float, str, bool} else Any
        return list[element], field(default_factory=lambda: list(items))  # type: ignore[valid-type]
    plain = (int, float, str, bool)
    allowed = hint in plain or (
        set(typing.get_args(hint)) - {type(None)} <= set(plain) and len(typing.get_args(hint)) == 2
    )
    return (hint if allowed else Any), field(default=default)


#: Groups whose every number may be a schedule.
SCHEDULED = ("guidance", "timesteps", "cameras")


#: What a schedule's mapping may hold.
SCHEDULE_FIELDS = ("start", "end", "from_fraction", "to_fraction", "from_step", "to_step")


def schedule(name: str, value: Any, iterations: int | None) -> Any:
    """A number as it is, or what a ``Ramp`` says as ``distill.samplers.schedules.Ramp``.

    Args:
        name: of the option, for errors.
        value: a number, or a mapping with the fields of ``Ramp``.
        iterations: of the run, to turn steps into fractions; None where only fractions are allowed.

    Raises:
        ValueError: the value is neither, or mixes fractions with steps.
    """
    from distill.samplers import schedules

    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    said = f"{name} must be a number or a schedule such as {{start:1,end:0,from_fraction:0,to_fraction:1}}"
    if not isinstance(value, Mapping) or "start" not in value:
        raise ValueError(f"{said}, got {value!r}")
    if unknown := [key for key in value if key not in SCHEDULE_FIELDS]:
        raise ValueError(f"{said}, got the field {unknown[0]!r}; the fields are {', '.join(SCHEDULE_FIELDS)}")
    given = {key: number for key, number in value.items() if number is not None}
    if wrong := [number for number in given.values() if not isinstance(number, (int, float))]:
        raise ValueError(f"{said}, got {wrong[0]!r} in it")
    if "start" not in given:
        raise ValueError(f"{said}, got no start")
    for end, missing in (("from", 0.0), ("to", 1.0)):
        step = given.pop(f"{end}_step", None)
        if step is not None and f"{end}_fraction" in given:
            raise ValueError(f"{name} has both {end}_fraction and {end}_step; give one of them")
        if step is not None and iterations is None:
            raise ValueError(f"{name} is given in steps; here only from_fraction and to_fraction are known")
        given.setdefault(f"{end}_fraction", missing if step is None else min(step / (iterations or 1), 1.0))
    try:
        return schedules.Ramp(**given)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def schedules_in(config: DictConfig, group: str) -> dict[str, Any]:
    """The schedules among a group's options, by option; in a range, either end may be one.

    Raises:
        ValueError: what should be a number, a range or a schedule is none.
    """
    target = get_method(config[group]._target_)
    options = OmegaConf.to_container(config[group])
    assert isinstance(options, dict)
    found: dict[str, Any] = {}
    for name, ends in numbers(target).items():
        if options.get(name) is None:
            continue
        where, value = f"{group}.{name}", options[name]
        if ends == 1:
            made = schedule(where, value, config.iterations)
        elif isinstance(value, list) and len(value) == ends:
            made = tuple(schedule(f"{where}[{i}]", end, config.iterations) for i, end in enumerate(value))
        else:
            raise ValueError(f"{where} must be a list of {ends} numbers or schedules, got {value!r}")
        if any(not isinstance(end, (int, float)) for end in (made if ends > 1 else (made,))):
            found[name] = made
    return found


def numbers(target: Callable[..., Any]) -> dict[str, int]:
    """A callable's options that are numbers, or ranges of them: how many numbers each has."""
    fields = dataclasses.fields(options_of(target, True))
    return {item.name: item.metadata["numbers"] for item in fields if "numbers" in item.metadata}

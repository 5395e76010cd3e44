"""A callable's options, read from its signature, and the schedules among their values."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from functools import cache, partial
from typing import Any

from hydra.utils import get_method
from omegaconf import MISSING, DictConfig, OmegaConf

from distill.domains import Follows, Losses, Scheduled, describe, fits
from distill.parts.registered import why_broken
from distill.parts.signatures import hints_of as hints_of
from distill.parts.signatures import option_parameters
from distill.samplers.schedules import Ramp


@cache
def options_of(target: Callable[..., Any], schedules: bool = False) -> type:
    """Return a dataclass of a callable's options: its keyword-only parameters, or all if every one has a default.

    With ``schedules``, numbers accept a schedule too: their type is checked by ``schedule``, not by Hydra.
    """
    hints = hints_of(target)
    fields: list[Any] = [
        ("_target_", str, field(default=f"{target.__module__}.{target.__qualname__}")),
        ("_partial_", bool, field(default=True)),
    ]
    for parameter in option_parameters(target):
        hint = hints.get(parameter.name, Any)
        typed = (
            parameter.annotation is not parameter.empty
        )  # what is inferred is checked, and nothing is converted to it
        kind, default = _config_field(hint if typed else Any, parameter.default)
        if schedules and hint in (float, float | None):
            kind, default = Any, field(default=parameter.default, metadata={"numbers": 1})
        elif schedules and hint == tuple[float, float]:
            kind = Any
            default = field(default_factory=partial(list, parameter.default), metadata={"numbers": 2})
        fields.append((parameter.name, kind, default))
    return dataclasses.make_dataclass(f"{target.__name__}_options", fields)


def names_of(target: Callable[..., Any]) -> list[str]:
    """Return the names of a callable's options."""
    return [item.name for item in dataclasses.fields(options_of(target)) if not item.name.startswith("_")]


def _config_field(hint: object, default: object) -> tuple[Any, Any]:
    """A field that OmegaConf accepts: Literal becomes str or int, tuples become lists, what it cannot type is Any."""
    if default is inspect.Parameter.empty:
        default = MISSING
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        kinds = {type(value) for value in typing.get_args(hint)}
        return (kinds.pop() if len(kinds) == 1 else Any), field(default=default)
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


def schedule(name: str, value: object, iterations: int | None) -> float | Ramp:
    """Return a number unchanged, or the contents of a ``Ramp`` as ``distill.samplers.schedules.Ramp``.

    Args:
        name: of the option, for errors.
        value: a number, or a mapping with the fields of ``Ramp``.
        iterations: of the run, to turn steps into fractions; None where only fractions are allowed.

    Raises:
        ValueError: the value is neither, is not finite, or mixes fractions with steps.
    """
    if isinstance(value, (int, float)) and fits(value, float):
        return value
    said = f"{name} must be a finite number or a schedule such as {{start:1,end:0,from_fraction:0,to_fraction:1}}"
    if not isinstance(value, Mapping) or "start" not in value:
        raise ValueError(f"{said}, got {value!r}")
    if unknown := [key for key in value if key not in SCHEDULE_FIELDS]:
        raise ValueError(f"{said}, got the field {unknown[0]!r}; the fields are {', '.join(SCHEDULE_FIELDS)}")
    given = {key: number for key, number in value.items() if number is not None}
    if wrong := [(key, number) for key, number in given.items() if not fits(number, float)]:
        raise ValueError(f"{said}, got {wrong[0][1]!r} in its {wrong[0][0]}")
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
        return Ramp(**given)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def ramp(name: str, value: object, iterations: int | None) -> Ramp:
    """Return a number unchanged, or a schedule as a ``Ramp``; arguments and errors as for ``schedule``."""
    made = schedule(name, value, iterations)
    return made if isinstance(made, Ramp) else Ramp(made)


def schedules_in(config: DictConfig, group: str) -> dict[str, Any]:
    """Return the schedules among a group's options, by option; in a range, either end may be one.

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
            made: tuple[float | Ramp, ...] = (schedule(where, value, config.iterations),)
        elif isinstance(value, list) and len(value) == ends:
            made = tuple(schedule(f"{where}[{i}]", end, config.iterations) for i, end in enumerate(value))
        else:
            raise ValueError(f"{where} must be a list of {ends} numbers or schedules, got {value!r}")
        if any(isinstance(end, Ramp) for end in made):
            found[name] = made if ends > 1 else made[0]
    return found


def followed(target: Callable[..., Any]) -> dict[str, str]:
    """Return the options of a callable that follow another group's option of the same name, with that group."""
    rules = {
        name: typing.get_args(hint)[1:]
        for name, hint in hints_of(target, rules=True).items()
        if typing.get_origin(hint) is typing.Annotated
    }
    return {name: rule.group for name, own in rules.items() for rule in own if isinstance(rule, Follows)}


def value_over_run(config: DictConfig, group: str, name: str) -> float | Ramp:
    """Return a number among a group's options, or its schedule; ``<name>_end`` makes it go there between two fractions."""
    options = config[group]
    start, end = options[name], options.get(f"{name}_end")
    if end is None:
        found: float | Ramp = schedule(f"{group}.{name}", start, config.iterations)
        return found
    return Ramp(start, end, options.from_fraction, options.to_fraction)


def numbers(target: Callable[..., Any]) -> dict[str, int]:
    """Return a callable's options that are numbers or ranges, with how many numbers each has."""
    fields = dataclasses.fields(options_of(target, True))
    return {item.name: item.metadata["numbers"] for item in fields if "numbers" in item.metadata}


def check_options(
    target: Callable[..., Any], values: Mapping[str, object], where: str, iterations: int | None
) -> None:
    """Check a callable's options against its signature's types and the rules of ``distill.domains`` beside them.

    Args:
        target: a loss, a sampler or a scene.
        values: option to plain value.
        where: the options' group, for errors: ``guidance`` or ``guidance.terms[0]``.
        iterations: of the run, for schedules in steps; None where only fractions are allowed.

    Raises:
        ValueError: an option has a value that it may not take.
    """
    hints = hints_of(target, rules=True)
    numeric = numbers(target) if where.startswith(SCHEDULED) else {}
    for name, value in values.items():
        if name in hints:
            check_option(f"{where}.{name}", value, hints[name], iterations, numeric.get(name, 0))


def check_option(name: str, value: object, hint: object, iterations: int | None, scheduled: int = 0) -> None:
    """Check one value against its type and rules; a schedule at both ends.

    Args:
        name: of the option, for errors.
        value: a plain value, no ``DictConfig``.
        hint: a type, perhaps ``Annotated``.
        iterations: of the run, for schedules in steps.
        scheduled: how many numbers the option has that may be schedules: 0, 1, or 2 in a range.

    Raises:
        ValueError: the value is not of the type, or breaks a rule.
    """
    rules = getattr(hint, "__metadata__", ())
    if Losses() in rules:
        return check_terms(name, value)
    scheduled = 1 if Scheduled() in rules else scheduled
    ends: Sequence[object] = (value,)
    if scheduled and value is not None and isinstance(value, (list, tuple)) == (scheduled > 1):
        ends = _ends(name, value, iterations)
    for end in ends:
        if not fits(end, hint):
            moving = " or a schedule of it" if scheduled == 1 else ""
            raise ValueError(
                f"{name} must be {describe(hint)}{moving}, got {shown(value)}; leave it out for the default"
            )


def _ends(name: str, value: object, iterations: int | None) -> Sequence[object]:
    """A schedule's values at its two ends; of a list, two lists."""
    if isinstance(value, (list, tuple)):
        pairs = [_ends(f"{name}[{i}]", item, iterations) for i, item in enumerate(value)]
        return [pair[0] for pair in pairs], [pair[-1] for pair in pairs]
    made = schedule(name, value, iterations)
    return (made.start, made(1.0)) if isinstance(made, Ramp) else (made,)


def shown(value: object) -> str:
    """Format a value for an error message, truncated if long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


#: What a term of ``guidance.terms`` holds beside its loss's options.
TERM_FIELDS = ("loss", "weight", "prompt", "prior")


def check_terms(name: str, terms: object) -> None:
    """Check the losses of a mixture, with their options.

    Raises:
        ValueError: a term has no or an unknown loss, or an option that its loss does not have or take.
    """
    from distill.guidance import available

    if not isinstance(terms, Sequence) or isinstance(terms, str) or not terms:
        raise ValueError(
            f"{name} must be a list of losses such as [{{loss: sds, weight: 1}}], got {shown(terms)}"
        )
    losses = available()
    for number, term in enumerate(terms):
        where = f"{name}[{number}]"
        if not isinstance(term, Mapping):
            raise ValueError(f"{where} must be a mapping such as {{loss: sds, weight: 1}}, got {shown(term)}")
        if term.get("loss") == "tp_sds":
            raise ValueError(
                f"{where}: tp_sds is sds with timesteps=dreamtime, and timesteps belong to the run; write loss: sds"
            )
        if said := why_broken("loss", str(term.get("loss"))):
            raise ValueError(f"{where}: {said}")
        if term.get("loss") not in losses:
            raise ValueError(f"{where} needs a loss, one of {', '.join(losses)}; got {term.get('loss')!r}")
        _check_term(where, term, losses[term["loss"]])


def _check_term(where: str, term: Mapping[str, object], loss: Callable[..., Any]) -> None:
    options = {key: value for key, value in term.items() if key not in TERM_FIELDS}
    known = names_of(loss)
    if unknown := [key for key in options if key not in known]:
        close = difflib.get_close_matches(str(unknown[0]), [*known, *TERM_FIELDS], n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(
            f"{where}: {term['loss']} has no option {unknown[0]!r}; {hint}it has {', '.join(known)}, and a term has "
            f"{', '.join(TERM_FIELDS)}"
        )
    schedule(f"{where}.weight", term.get("weight", 1.0), None)
    for name in ("prompt", "prior"):
        # From Python, a prior may be a loaded one.
        if name in term and (
            isinstance(term[name], (bool, int, float, list, dict)) or term[name] in (None, "")
        ):
            raise ValueError(
                f"{where}.{name} must be text, got {shown(term[name])}; leave it out for the run's"
            )
    check_options(loss, options, where, None)


def second_prompt(loss: Callable[..., Any], options: Mapping[str, Any], iterations: int | None) -> str:
    """Return the role of the second prompt that a loss needs with some options, empty if it needs none.

    Args:
        loss: the loss.
        options: of it; what is missing is at its default.
        iterations: of the run, for a schedule in steps; None where only fractions are allowed.
    """
    from distill.guidance import needed_prompt

    role, option = needed_prompt(loss) or ("", None)
    value = options.get(option, getattr(options_of(loss)(), option)) if option else 1
    return role if ramp(f"guidance.{option}", value, iterations).nonzero else ""

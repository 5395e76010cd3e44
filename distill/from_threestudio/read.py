"""Read a threestudio configuration: its dotted keys, with OmegaConf's references and threestudio's resolvers worked out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from distill.files.errors import first_line

Values = dict[str, Any]


def largest(value: Any) -> float:
    """Return the largest value of a number or of a schedule ``[step, value, value, step, value, step, ...]``."""
    if isinstance(value, (int, float)):
        return value
    points = [0, *value] if len(value) == 3 else list(value)
    return max(points[1], *points[2::2])


#: Resolvers that its configurations use.
RESOLVERS: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "idiv": lambda a, b: a // b,
    "not": lambda a: not a,
    "gt0": lambda a: a > 0,
    "cmaxgt0": lambda a: largest(a) > 0,
    "cmaxgt0orcmaxgt0": lambda a, b: largest(a) > 0 or largest(b) > 0,
    "tuple2": lambda a: [float(a), float(a)],
    "basename": lambda path: os.path.basename(path),
    "rmspace": lambda text, instead: text.replace(" ", instead),
    "calc_exp_lr_decay_rate": lambda factor, steps: factor ** (1 / steps),
}


@contextmanager
def resolvers() -> Iterator[None]:
    """Have its resolvers for as long as the context lasts; a custom resolver of the same name stays."""
    own = [name for name in RESOLVERS if not OmegaConf.has_resolver(name)]
    for name in own:
        OmegaConf.register_new_resolver(name, RESOLVERS[name])
    try:
        yield
    finally:
        for name in own:
            OmegaConf.clear_resolver(name)


def read(path: Path) -> tuple[Values, dict[str, str]]:
    """Return a configuration's values by dotted key, and the reasons of those that cannot be worked out; ``???`` is left out.

    Raises:
        ValueError: the file is not a YAML, or not a threestudio configuration, in one line.
    """
    try:
        config = OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise ValueError(
            f"expected a YAML of threestudio, but {path} cannot be read: {first_line(error)}"
        ) from error
    wanted = ("system_type", "system")
    if not isinstance(config, DictConfig) or any(name not in config for name in wanted):
        raise ValueError(
            f"expected a YAML of threestudio, with system_type and system, but {path} has not both of them"
        )
    values: Values = {}
    unresolved: dict[str, str] = {}
    with resolvers():
        _flatten(config, "", values, unresolved)
    return values, unresolved


def _flatten(config: DictConfig, prefix: str, values: Values, unresolved: dict[str, str]) -> None:
    for name in config:
        key = prefix + str(name)
        try:
            value = config[name]
            if isinstance(value, DictConfig):
                _flatten(value, f"{key}.", values, unresolved)
            else:
                values[key] = (
                    OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
                )
        except MissingMandatoryValue:
            continue
        except (OmegaConfBaseException, ArithmeticError, TypeError, ValueError, AttributeError) as error:
            unresolved[key] = first_line(error)

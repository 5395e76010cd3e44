"""The parts that plug in: the choices of each group, what Hydra is told of them, and what a configuration has chosen."""

from __future__ import annotations

import ast
import hashlib
import inspect
import textwrap
from collections.abc import Callable
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.utils import get_object
from omegaconf import DictConfig

from distill.options import SCHEDULED, names_of, options_of
from distill.run.schema import Config

#: Names for a loss with a timestep sampler of its own.
ALIASES = {"tp_sds": ("sds", "dreamtime")}


def plugins() -> dict[str, dict[str, Callable[..., Any]]]:
    """Return the option groups of the command line and their choices."""
    from distill import guidance, renderers
    from distill.samplers import cameras, timesteps

    losses = guidance.available()
    return {
        "guidance": dict(
            sorted({**losses, **{name: losses[loss] for name, (loss, _) in ALIASES.items()}}.items())
        ),
        "timesteps": timesteps.available(),
        "cameras": cameras.available(),
        "scene": renderers.available(),
    }


def plugin_options() -> list[str]:
    """Dotted names of the options that any part has."""
    return [
        f"{group}.{name}"
        for group, choices in plugins().items()
        for target in choices.values()
        for name in names_of(target)
    ]


def features_of(config: DictConfig) -> frozenset[str]:
    """What the scene of a configuration can do; nothing of one that does not say it, which the checks refuse."""
    return frozenset(getattr(get_object(config.scene._target_), "features", ()))


def code_of(config: DictConfig) -> dict[str, str]:
    """The SHA-256 of the code of a configuration's parts, by group: of each function or class itself, and not of helpers that it calls.

    Comments and docstrings do not count. What was typed into a console has no code that can be read, and is left out.
    """
    found = dict[str, str]()
    for group in plugins():
        try:
            source = inspect.getsource(inspect.unwrap(get_object(config[group]._target_)))
        except (OSError, TypeError):
            continue
        found[group] = hashlib.sha256(_without_texts(textwrap.dedent(source)).encode()).hexdigest()
    return found


def _without_texts(source: str) -> str:
    """A function's or class's code without comments, docstrings and line breaks; as it is where it cannot be parsed alone."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return source
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)


#: What Hydra was told of, by group and name.
_told: dict[tuple[str, str], object] = {}


def told() -> tuple[object, ...]:
    """Return what Hydra was told of; it is equal as long as nothing new is registered."""
    return tuple(_told.items())


def register() -> None:
    """Tell Hydra of the schema and of every plug-in that it does not know yet: building their nodes takes a third of composing."""
    store = ConfigStore.instance()
    if ("", "schema") not in _told:
        store.store(name="schema", node=Config)
        _told["", "schema"] = Config
    for group, choices in plugins().items():
        for name, target in choices.items():
            if _told.get((group, name)) is not target:
                store.store(group=group, name=name, node=options_of(target, schedules=group in SCHEDULED))
                _told[group, name] = target

"""The parts that plug in: the choices of each group, what Hydra is told of them, and what a configuration has chosen."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.utils import get_object
from omegaconf import DictConfig

from distill.options import SCHEDULED, names_of, options_of
from distill.run.config.code import own_code, together, used_code
from distill.run.config.schema import Config

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
    """The SHA-256 of the code of a configuration's parts, by group, as ``distill.run.config.code.own_code`` has it.

    Beside it, under the group with ``USED`` after it, that of what a part uses: functions that it calls and base classes, as
    ``distill.run.config.code.used_code`` has them; of a loss also the losses of its ``terms`` and a weighting of one's own. A part that uses nothing
    such has no such entry, and what was typed into a console none at all.
    """
    found = dict[str, str]()
    for group in plugins():
        part = get_object(config[group]._target_)
        if (own := own_code(part)) is not None:
            found[group] = own
        parts = [part, *(_within(config[group]) if group == "guidance" else ())]
        used = used_code(parts)
        if set(used) - {f"{part.__module__}.{part.__qualname__}"}:
            found[group + USED] = together(used)
    return found


#: What follows a group's name in ``code_of``, for the code that its part uses.
USED = ", with what it uses"


def code_changed(before: Mapping[str, str], config: DictConfig) -> str:
    """Say of which parts the code, or that of what they use, is not as it was; empty for none, and where nothing is known of before.

    Args:
        before: what ``code_of`` gave then.
        config: of the run.
    """
    now = code_of(config) if before else {}
    changed = [
        group for group in plugins() if any(before.get(key) != now.get(key) for key in (group, group + USED))
    ]
    return " and ".join(f"{group}={name_of(config, group)}" for group in changed)


def name_of(config: DictConfig, group: str) -> str:
    """The name by which a configuration's part is chosen."""
    part = get_object(config[group]._target_)
    return next((name for name, each in plugins()[group].items() if each is part), part.__name__.lower())


def _within(options: Mapping[str, Any]) -> list[Callable[..., Any]]:
    """The losses that a loss's options name as ``terms``, and the weightings of one's own."""
    from distill.guidance import available
    from distill.guidance.terms import SHIPPED, WEIGHTINGS

    losses, found = available(), list[Callable[..., Any]]()
    for value in options.values():
        if isinstance(value, str) and value in WEIGHTINGS and value not in SHIPPED:
            found.append(WEIGHTINGS[value])
    for term in options.get("terms") or ():
        if isinstance(term, Mapping) and term.get("loss") in losses:
            loss = losses[term["loss"]]
            unset = {p.name: p.default for p in inspect.signature(loss).parameters.values()}
            found += [loss, *_within({**unset, **term})]
    return found


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

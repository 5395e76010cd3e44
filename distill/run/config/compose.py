"""The run's structured configuration, composed by Hydra, identical from a script and from the command line."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import compress
from typing import NamedTuple

from hydra import compose, initialize_config_module
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict

from distill.files.paths import user_path
from distill.run.checks import check
from distill.run.checks.idle import check_idle, check_idle_everywhere
from distill.run.config.compose_stages import (
    Stage,
    check_own,
    checkable,
    compose_stages,
    joined,
    named_stages,
    split_stages,
)
from distill.run.config.implied import expanded, with_implied
from distill.run.config.known import known_options
from distill.run.config.mistakes import one_line
from distill.run.config.overrides import key_of, quote
from distill.run.config.plugins import ALIASES, plugin_options, register, told
from distill.run.several.generator import check_together


def compose_config(
    overrides: Sequence[str], folders: Sequence[str] = (), *, loaded: bool = False
) -> DictConfig:
    """Compose and check a configuration.

    Args:
        overrides: words of the command line, without the prompt.
        folders: with configuration files of the user's own.
        loaded: whether the run is given a loaded prior, which may have a ControlNet that no option names.

    Raises:
        ValueError: an option is unknown or has the wrong type or value, in one line.
    """
    config, made = compose_any(overrides, folders)
    if len(made) < 2:
        check(config, loaded)
        check_together(config)
        check_idle(config, _given(made[0].words if made else overrides))
        return config
    for stage in checkable(made):
        try:
            check(stage.config, loaded)
            check_together(stage.config)
        except ValueError as error:
            raise ValueError(f"stage {stage.name}: {error}") from error
    check_idle_everywhere([(stage.config, _given(stage.words)) for stage in checkable(made)])
    return config


def compose_any(overrides: Sequence[str], folders: Sequence[str]) -> tuple[DictConfig, list[Stage]]:
    """Compose a configuration without checks of its values, and its stages, of which a run may have none.

    Raises:
        ValueError: it cannot be composed, or a stage cannot follow another.
    """
    common, own = split_stages(overrides)
    with composing(folders) as search:

        def composed(words: Sequence[str]) -> DictConfig:
            return compose_words([*with_implied(words), *search]).config

        names = named_stages(common, folders)
        if not names:
            config = composed(common)
            # A preset of the user's own may name some.
            names = [] if "experiment" in map(key_of, common) else list(config.stages)
            config.stages = []
            check_own(names, own)
        if not names:
            return config, []
        made = compose_stages(names, common, own, folders, composed)
    return joined(made), made


def _given(words: Sequence[str]) -> list[str]:
    """The options that words give, which are to do something."""
    known = {*known_options(), *plugin_options()}
    return [name for name in map(key_of, words) if name in known]


class Composed(NamedTuple):
    """A configuration, and the words that it was composed from in the end."""

    config: DictConfig
    words: Sequence[str]


@contextmanager
def composing(folders: Sequence[str] = ()) -> Iterator[list[str]]:
    """Start Hydra on the library's configuration; gives the words that add folders, and makes its errors one line.

    Raises:
        ValueError: an option is unknown or has the wrong type, or a folder is not there.
    """
    paths = [user_path(folder).resolve() for folder in folders]
    if missing := [path for path in paths if not path.is_dir()]:
        raise ValueError(
            f"--config-dir must be a folder with configuration files, and {missing[0]} is not there"
        )
    listed = ",".join(quote(path.as_uri()) for path in paths)
    register()
    # A job of a sweep runs inside Hydra, which does not start twice.
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with one_line(), initialize_config_module("distill.conf", version_base="1.3"):
            yield [f"hydra.searchpath=[{listed}]"] if paths else []
    finally:
        GlobalHydra.instance().hydra = outer


def compose_words(words: Sequence[str]) -> Composed:
    """Compose as Hydra does, and once more where a configuration file has chosen an alias; ``composing`` must be open."""
    config, chosen = _composed(words)
    if chosen in ALIASES:
        words = [*words, *expanded(chosen, None)]
        config, _ = _composed(words)
    return Composed(config, words)


def _composed(words: Sequence[str]) -> tuple[DictConfig, str]:
    """Return a configuration and the loss that it chose.

    Hydra composes the files of the chosen parts, and then sets values. The first takes most of the time, so it is done once for
    each choice of parts, unless a word is Hydra's own, such as the search path of the user's folders: their files may change.
    """
    loader = GlobalHydra.instance().config_loader()
    assert isinstance(loader, ConfigLoaderImpl)
    parsed = OverridesParser.create().parse_overrides(list(words))
    if any(word.is_hydra_override() for word in parsed):
        return _compose_uncached(words)
    loader.validate_sweep_overrides_legal(parsed, RunMode.RUN, from_shell=False)
    is_part = [
        loader.repository.group_exists(word.key_or_group) and not isinstance(word.value(), dict)
        for word in parsed
    ]
    config, chosen = _of_parts(tuple(compress(words, is_part)), told())
    config = copy.deepcopy(config)
    values = [word for word, part in zip(parsed, is_part, strict=True) if not part]
    loader._apply_overrides_to_config(values, config)
    return config, chosen


@functools.cache
def _of_parts(words: tuple[str, ...], told: object) -> tuple[DictConfig, str]:
    """Compose a choice of parts, once while Hydra is told of the same plug-ins."""
    return _compose_uncached(words)


def _compose_uncached(words: Sequence[str]) -> tuple[DictConfig, str]:
    config = compose("config", overrides=list(words), return_hydra_config=True)
    chosen = str(config.hydra.runtime.choices.guidance)
    with open_dict(config):
        del config["hydra"]
    return config, chosen

"""A file of prompts: those that this process makes, and the settings of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf

from distill.conditions.prompt_library import FORM, read_list
from distill.embedded.prompt import sort_of
from distill.embedded.vocabulary import of_prior
from distill.files.paths import user_path
from distill.run.checks.texts import numbers_of
from distill.run.config.compose import compose_config
from distill.run.config.overrides import key_of, quote
from distill.run.several.stages import plan


class Part(NamedTuple):
    """Prompts of a file that are made with the same settings.

    Attributes:
        config: of each of them, except for the prompt.
        prompts: in the order of the file.
    """

    config: DictConfig
    prompts: list[str]

    def __str__(self) -> str:
        others = len(self.prompts) - 1
        return repr(self.prompts[0]) + (f" and {others} more of the prompts" if others else "")


class Queue(NamedTuple):
    """A file of prompts.

    Attributes:
        config: of the whole, which says where the file is, where the assets go, and which shard is this process's own.
        listed: how many prompts the file has.
        parts: of the shard; none if it has no prompts.
    """

    config: DictConfig
    listed: int
    parts: list[Part]


def compose_queue(overrides: Sequence[str], folders: Sequence[str] = ()) -> Queue:
    """Compose the settings of each prompt of a file as for a separate run.

    What follows from a prompt, such as which of the bundled priors knows it, differs between prompts; those with the same
    settings are one part.

    Args:
        overrides: words of the command line, ``prompts=`` among them.
        folders: with configuration files of the user's own.

    Raises:
        ValueError: an option is wrong, or the file cannot be read or has no prompts, in one line.
    """
    return divide(compose_config(overrides, folders), overrides, folders)


def divide(config: DictConfig, overrides: Sequence[str], folders: Sequence[str]) -> Queue:
    """Divide the file of a configuration, which these words compose to; see ``compose_queue``."""
    every = read_prompts(config)
    wanted = shard_of(every, config.shard)
    if wanted and not any(of_prior(stage.prior) for stage in plan(config, Path())):
        return Queue(config, len(every), [Part(config, wanted)])  # nothing follows from a prompt
    alike: dict[object, list[str]] = {}
    for prompt in wanted:
        alike.setdefault(sort_of(prompt), []).append(prompt)
    parts: dict[str, Part] = {}
    for prompts in alike.values():
        own = compose_config(as_alone(overrides, prompts[0]), folders)
        own.prompt, own.prompts, own.shard = "", config.prompts, config.shard
        parts.setdefault(OmegaConf.to_yaml(own), Part(own, [])).prompts.extend(prompts)
    place = {prompt: number for number, prompt in enumerate(wanted)}
    for part in parts.values():
        part.prompts.sort(key=place.__getitem__)
    return Queue(config, len(every), list(parts.values()))


def as_alone(overrides: Sequence[str], prompt: str) -> list[str]:
    """The words of a command line with a prompt instead of the file."""
    return [
        *(word for word in overrides if key_of(word) not in ("prompts", "shard")),
        f"prompt={quote(prompt)}",
    ]


def by_prior(parts: Sequence[Part]) -> list[list[Part]]:
    """The parts that can share a prior which is loaded once, in the order of the first of each."""
    shared: dict[str, list[Part]] = {}
    for part in parts:
        key = OmegaConf.to_yaml({"prior": part.config.prior, "options": part.config.prior_options})
        shared.setdefault(key, []).append(part)
    return list(shared.values())


def read_prompts(config: DictConfig) -> list[str]:
    """The prompts of ``config.prompts``, a text file or a library, without repetitions.

    Raises:
        ValueError: the file cannot be read or has no prompts.
    """
    if not (config.prompts or "").strip():
        raise ValueError(f"prompts= is empty; write prompts=FILE, {FORM}")
    return list(dict.fromkeys(read_list(config.prompts)))


def shard_of(prompts: Sequence[str], shard: str | None) -> list[str]:
    """Every n-th prompt from the i-th, for ``i/n``: n processes share a file, and each prompt is one's alone; all without a shard."""
    if shard is None:
        return list(prompts)
    first, count = numbers_of(shard)
    return list(prompts[first - 1 :: count])


def table_of(config: DictConfig) -> Path:
    """The file of a queue's table, one for each shard."""
    root = user_path(config.output_dir or "outputs")
    if config.shard is None:
        return root / "batch.csv"
    first, count = numbers_of(config.shard)
    return root / f"batch-{first}-of-{count}.csv"

"""A file of prompts: those that this process makes, and the settings of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf

from distill.conditions.prompt_library import read_list
from distill.files.paths import user_path
from distill.run.checks.texts import numbers_of
from distill.run.compose import compose_config
from distill.run.implied import implied_by_texts
from distill.run.overrides import split_word


class Part(NamedTuple):
    """Prompts of a file that are made with the same settings.

    Attributes:
        config: of each of them, but for the prompt.
        prompts: in the order of the file.
    """

    config: DictConfig
    prompts: list[str]


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
    """Compose the settings of each prompt of a file as they would be if it were alone.

    What follows from a prompt, such as which of the priors that ship knows it, differs between prompts; those with the same
    settings are one part, which loads its prior once.

    Args:
        overrides: words of the command line, ``prompts=`` among them.
        folders: with configuration files of the user's own.

    Raises:
        ValueError: an option is wrong, or the file cannot be read or has no prompts, in one line.
    """
    config = compose_config(overrides, folders)
    every = read_prompts(config)
    alike: dict[tuple[str, ...], list[str]] = {}
    chosen = implied_by_texts(overrides)
    for prompt in shard_of(every, config.shard):
        alike.setdefault(tuple(chosen(prompt)), []).append(prompt)
    parts = list[Part]()
    for words, prompts in alike.items():
        as_all = all(str(OmegaConf.select(config, key)) == value for key, value in map(split_word, words))
        own = config if as_all else compose_config([*overrides, *words], folders)
        parts.append(Part(own, prompts))
    return Queue(config, len(every), parts)


def read_prompts(config: DictConfig) -> list[str]:
    """The prompts of ``config.prompts``, a text file or a library, without repetitions.

    Raises:
        ValueError: the file cannot be read or has no prompts.
    """
    if not config.prompts.strip():
        raise ValueError("prompts= is empty; write prompts=FILE, a text file with one prompt per line")
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

"""Sweeps, and what else Hydra does with the command line."""

from __future__ import annotations

import errno
import logging
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from distill.devices import pick_device
from distill.files.errors import line_of
from distill.files.paths import user_path
from distill.inputs import looks
from distill.run.checks.guidance import parts as losses_of
from distill.run.config.compose import compose_config
from distill.run.config.compose_stages import is_own
from distill.run.config.implied import implied, with_implied
from distill.run.config.mistakes import one_line
from distill.run.config.overrides import quote_text
from distill.run.config.plugins import register
from distill.run.config.schema import PARTS
from distill.run.folder.folders import check_root, is_finished, to_resume
from distill.run.folder.stored import finished_otherwise, left_as_it_is
from distill.run.several.generator import amortised
from distill.run.several.queue import divide
from distill.run.several.stages import plan
from distill.run.several.staging import check_priors
from distill.run.signals import INTERRUPTED, heeding_launcher

log = logging.getLogger(__name__)

#: Several names or paths for one option, whose jobs are to differ in it; a text with anything else in it is one value.
_LIST = re.compile(r"(?!negative_prompt=|source_prompt=|views\.)[^=]+=[\w.:/@~+-]+(?:,[\w.:/@~+-]+)+")
#: Runs one job, given its words and the folders of configuration files; returns the exit code.
RunJob = Callable[[Sequence[str], Sequence[str]], int]
#: Hydra's launchers other than its own, and the packages that they are in.
LAUNCHERS = {
    "joblib": "hydra-joblib-launcher",
    "submitit_local": "hydra-submitit-launcher",
    "submitit_slurm": "hydra-submitit-launcher",
}


class Stopped(BaseException):
    """A job of a sweep in this process was interrupted; Hydra would take an ``Exception`` for the end of this job alone."""


class JobEnded(Exception):
    """A job of a sweep in another process did not succeed."""

    def __init__(self, code: int, words: Sequence[str]) -> None:
        super().__init__(code, words)
        self.code, self.words = code, words

    def __str__(self) -> str:
        return (
            f"a job of the sweep ended with exit code {self.code}: {' '.join(self.words)}; the other jobs have ended, too; "
            "distill summary lists what became of all runs"
        )


def sweep(options: Sequence[str], folders: Sequence[str], run_job: RunJob) -> int:
    """Do what has Hydra's own flags, a sweep's jobs one after the other or by a launcher in processes of their own.

    Args:
        options: words of the command line, the prompt among them.
        folders: of the user's own configuration files.
        run_job: runs one job, given its words and the folders; returns the exit code.

    Returns:
        The largest exit code of the jobs; of those in other processes, the first that is not 0.
    """
    codes: list[int] = []
    flags = [text for text in options if "=" not in text or text.startswith("-")]
    swept = bool({"-m", "--multirun"} & set(flags))
    words = [
        text if swept and _LIST.fullmatch(text) else quote_text(text) for text in options if text not in flags
    ]
    launcher = launcher_of(words, flags)
    words, own = [word for word in words if not is_own(word)], [word for word in words if is_own(word)]
    added = implied(words)

    def words_of(task: Sequence[str]) -> list[str]:
        """What a job is composed from, as it would be alone."""
        given = [word for word in task if word not in added]
        aliases = [word for word in words if word.startswith("guidance=") and "," not in word]
        return [*given, *aliases, *own]

    register()
    if swept:
        check_jobs([words_of(task) for task in jobs_of(with_implied(words))], folders, here=not launcher)

    @hydra.main(version_base="1.3", config_path="pkg://distill.conf", config_name="config")
    def job(config: object) -> None:
        given = words_of(HydraConfig.get().overrides.task)
        code = heeding_launcher(partial(run_job, given, folders)) if launcher else run_job(given, folders)
        if code == INTERRUPTED and not launcher:  # who interrupts a job wants no further one
            raise Stopped
        if launcher and code:  # what another process appends stays there
            raise JobEnded(code, given)
        codes.append(code)

    sys.argv = ["distill", *flags, *with_implied(words)]
    return ended(job, launcher) or max(codes, default=0)


def finished(words: Sequence[str], folders: Sequence[str]) -> Path | None:
    """The folder of the run that a job would resume, if it is finished and has the files that are asked for; None for a job with work to do."""
    try:
        config = compose_config(words, folders)
        folder = to_resume(config) if config.resume and config.prompts is None else None
    except ValueError:  # which the job tells
        return None
    if not folder or not is_finished(folder) or left_as_it_is(folder, config):
        return None
    if said := finished_otherwise(folder, config):
        log.warning("%s", said)
    return folder


def ended(jobs: Callable[[], object], launcher: str | None) -> int:
    """Make a sweep's jobs; returns 0, or the exit code of what stopped them, which is said in one line."""
    with one_line():
        try:
            jobs()
        except Stopped:
            print("distill: the sweep was stopped, and its further jobs are not started", file=sys.stderr)
            return INTERRUPTED
        except JobEnded as failed:
            print(f"distill: error: {failed}", file=sys.stderr)
            return failed.code
        except Exception as error:
            told = isinstance(error, (ValueError, HydraException, OmegaConfBaseException))
            # A full disk names no file; other errors without one are of a connection or a process.
            full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
            if isinstance(error, OSError) and (error.filename or full or not launcher):
                what = f"the sweep's own files cannot be written ({line_of(error)}); free some space, or choose another folder with hydra.sweep.dir=FOLDER"
            elif launcher and not told:  # a worker was killed, or the cluster took it away
                lost = " ".join(str(error).split())[:300]
                what = f"a job of the sweep was lost: {lost}; the same command continues it, with resume=true for single prompts"
            else:
                raise
            print(f"distill: error: {what}", file=sys.stderr)
            return 1
    return 0


def jobs_of(words: Sequence[str]) -> list[list[str]]:
    """The words of each job that Hydra's own sweeper makes of a command line; none where another sweeper makes them as it goes."""
    with one_line():
        parsed = OverridesParser.create().parse_overrides(list(words))
    if any(word.key_or_group == "hydra/sweeper" for word in parsed):
        return []
    jobs = BasicSweeper.split_arguments([word for word in parsed if not word.is_hydra_override()], None)
    return [list(job) for job in jobs[0]]


def check_jobs(jobs: Sequence[Sequence[str]], folders: Sequence[str], here: bool) -> None:
    """Look at all jobs of a sweep before the first one begins.

    Args:
        jobs: the words of each.
        folders: of the user's own configuration files.
        here: they run on this machine, which can tell whether it has what they need.

    Raises:
        ValueError: one of them would be refused, or two have one folder.
    """
    taken = set[Path]()
    for number, words in enumerate(jobs, start=1):
        try:
            config = compose_config(words, folders)
            if here:
                check_inputs(config, words, folders)
            else:
                check_parts(config)
            if config.output_dir and (config.prompts is None or amortised(config)):
                if (folder := user_path(config.output_dir).resolve()) in taken:
                    raise ValueError(
                        f"output_dir={config.output_dir} is another job's, too; leave it out, and each has a folder of its own in outputs"
                    )
                taken.add(folder)
        except ValueError as error:
            own = [word for word in words if not all(word in job for job in jobs)]
            raise ValueError(
                f"job {number} of {len(jobs)} of the sweep ({' '.join(own)}): {error}; no job was started"
            ) from error


def check_parts(config: DictConfig) -> None:
    """Check that a job in another process finds its parts.

    Raises:
        ValueError: the script itself registers one, which that process does not run.
    """
    for one in plan(config, Path()):
        for option, name, part in parts_of(one):
            if part.__module__ == "__main__":
                raise ValueError(
                    f"{option}={name} is registered by the script itself, which a launcher's processes do not run; register it in a "
                    "module that the script imports, or leave out hydra/launcher="
                )


def parts_of(config: DictConfig) -> Iterator[tuple[str, str, Callable[..., object]]]:
    """The parts that a stage's configuration chooses: the option, the name that it has, and the part."""
    from distill.guidance.terms import WEIGHTINGS

    values: Any = OmegaConf.to_container(config, resolve=True)
    for group in PARTS:
        part = get_object(values[group]["_target_"])
        yield group, part.__name__.lower(), part
    for loss, options, where, _ in losses_of(values, get_object(values["guidance"]["_target_"])):
        if "loss" in options:
            yield f"{where}.loss", options["loss"], loss
        if (name := options.get("weighting")) in WEIGHTINGS:
            yield f"{where}.weighting", name, WEIGHTINGS[name]


def check_inputs(config: DictConfig, words: Sequence[str], folders: Sequence[str]) -> None:
    """Look at what a job reads, and where it writes, without loading a model.

    Raises:
        ValueError: it would be refused, in one line.
    """
    device = pick_device(config.device)
    if config.prompts is not None and not amortised(config):
        check_root(config)
        for part in divide(config, words, folders).parts:  # a prompt that is refused does not stop the others
            check_priors(part.config, device)
        return
    for _, look in looks(config):
        look()
    check_priors(config, device)


def launcher_of(words: Sequence[str], flags: Sequence[str]) -> str | None:
    """The launcher that gives a sweep's jobs to other processes, or None.

    Raises:
        ValueError: its package is not installed, or there is no sweep.
    """
    name = next((word.partition("=")[2] for word in words if word.startswith("hydra/launcher=")), "basic")
    if name == "basic":
        return None
    package = f"hydra_plugins.{LAUNCHERS.get(name, '').replace('-', '_')}"
    if name in LAUNCHERS and not (find_spec("hydra_plugins") and find_spec(package)):
        raise ValueError(
            f"hydra/launcher={name} needs the package {LAUNCHERS[name]}; install it with pip install {LAUNCHERS[name]}"
        )
    if not {"-m", "--multirun"} & set(flags):
        raise ValueError(
            f"hydra/launcher={name} distributes the jobs of a sweep; add -m and several values of an option"
        )
    return name

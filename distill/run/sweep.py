"""Sweeps, and what else Hydra does with the command line."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from distill.run.compose_stages import is_own
from distill.run.implied import implied, with_implied
from distill.run.mistakes import one_line
from distill.run.overrides import quote_text
from distill.run.plugins import register

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
#: Exit code of a run that a signal has stopped.
INTERRUPTED = 130


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

    @hydra.main(version_base="1.3", config_path="pkg://distill.conf", config_name="config")
    def job(config: object) -> None:
        given = [word for word in HydraConfig.get().overrides.task if word not in added]
        aliases = [word for word in words if word.startswith("guidance=") and "," not in word]
        code = run_job([*given, *aliases, *own], folders)
        if code == INTERRUPTED and not launcher:  # who interrupts a job wants no further one
            raise Stopped
        if launcher and code:  # what another process appends stays there
            raise JobEnded(code, given)
        codes.append(code)

    register()
    sys.argv = ["distill", *flags, *with_implied(words)]
    os.environ.setdefault(
        "HYDRA_FULL_ERROR", "1"
    )  # which raises what is wrong rather than to print several lines
    with one_line():
        try:
            job()
        except Stopped:
            print("distill: the sweep was stopped, and its further jobs are not started", file=sys.stderr)
            return INTERRUPTED
        except JobEnded as ended:
            print(f"distill: error: {ended}", file=sys.stderr)
            return ended.code
        except Exception as error:
            if not launcher or isinstance(error, (ValueError, HydraException, OmegaConfBaseException)):
                raise
            # A worker was killed, or the cluster took it away.
            lost = " ".join(str(error).split())[:300]
            print(
                f"distill: error: a job of the sweep was lost: {lost}; the same command goes on where it was, with resume=true for "
                "single prompts",
                file=sys.stderr,
            )
            return 1
    return max(codes, default=0)


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

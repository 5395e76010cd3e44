"""The settings in a run's folder, its ``config.yaml``, as what reads them needs them: whole, or quickly.

To read one whole, as OmegaConf does, takes 50 ms, so a table of 1,000 runs or a sweep over 1,000 seeds would take a minute. These look at
the text: see ``summary.head`` and ``differences.entries``; ``stored.same_run`` does where seeds differ, and else reads each file once.
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from distill.files.errors import first_line

#: The file's name in a run's folder.
NAME = "config.yaml"


class Unreadable(ValueError):
    """A run's settings are not there, cannot be read, or are something else.

    Attributes:
        path: of the file.
        why: in one line, without the path.
    """

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path} cannot be read ({why})")
        self.path, self.why = path, why


def read(folder: Path) -> DictConfig:
    """Read the settings in a run's folder, as they were stored.

    Raises:
        Unreadable: they cannot be read, or are no mapping.
    """
    path = folder / NAME
    try:
        found = OmegaConf.load(path)
    except (
        YAMLError,
        OmegaConfBaseException,
        ValueError,
        OSError,
    ) as error:  # such as of 0b_, a number without digits
        raise Unreadable(path, first_line(error)) from error
    if not isinstance(found, DictConfig):
        raise Unreadable(path, "it holds no settings of a run")
    return found


def text_of(folder: Path) -> str:
    """The text of the settings in a run's folder, empty where it cannot be read."""
    try:
        return (folder / NAME).read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
